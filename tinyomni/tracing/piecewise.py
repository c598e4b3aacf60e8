"""Formulas of one length, compared for all lengths at once.

A formula of `+ - *`, `//` and `%` by constants, `min` and `max` is a polynomial in k on every residue class
n = r + k·P, where P is a multiple of all its divisors, between the places where a `min`, a `max` or a condition turns
over. So two of them are equal for every n ≥ start if they are equal at a few lengths of each class between two such
places: finitely many, and all of them are looked at. (Presburger arithmetic: such statements are decidable.)
"""

import ast
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tinyomni.tracing.formula import SpecError, compiled, evaluate, names_in, parse, unknown

SMALL = 8  # k % f(n) is understood for constants k up to here


class Undecided(Exception):
    """This comparison is outside what can be decided; the text says why."""


@dataclass(frozen=True, eq=False)
class Piecewise:
    """A function of one integer that is a polynomial on each piece of each residue class."""

    at: Callable[[int], int]
    period: int
    degree: int
    rises: frozenset[int] | None  # by how much it may rise over one period; None: not by a constant
    turns: tuple["Piecewise", ...] = ()  # pieces end where one of these changes its sign


@dataclass(frozen=True, eq=False)
class Condition:
    """A statement about n, with the functions whose signs decide it."""

    holds: Callable[[int], bool]
    turns: tuple[Piecewise, ...]


@dataclass(frozen=True, eq=False)
class Path:
    """Under these conditions the length is `value`; None: the function refuses its input, with `error`."""

    conditions: tuple[Condition, ...]
    value: Piecewise | None
    text: str = ""
    error: str = ""

    def covers(self, n: int) -> bool:
        """Do all conditions hold?"""
        try:
            return all(condition.holds(n) for condition in self.conditions)
        except ZeroDivisionError:  # in a condition that another one excludes
            return False


def piecewise(text: str | int, over: str, sizes: Mapping[str, int] | None = None) -> Piecewise:
    """A formula in the one axis `over`. Raises SpecError for unknown names, Undecided for a form without pieces."""
    known = {name: size for name, size in (sizes or {}).items() if name != over}
    for name in sorted(names_in(text) - {over, *known}):
        raise SpecError(unknown(name, {over, *known}, f" in {text!r}"))
    found = _build(parse(text), over, known)
    whole = compiled(text)
    return Piecewise(lambda n: whole({**known, over: n}), found.period, found.degree, found.rises, found.turns)


def _build(node: ast.expr, over: str, known: Mapping[str, int]) -> Piecewise:
    match node:
        case ast.Name(name) if name == over:
            return Piecewise(lambda n: n, 1, 1, frozenset({1}))
        case ast.Constant() | ast.Name():
            return constant(evaluate(ast.unparse(node), known))
        case ast.UnaryOp(_, operand):
            return times(_build(operand, over, known), constant(-1))
        case ast.Call(ast.Name(name), arguments):
            parts = [_build(each, over, known) for each in arguments]
            found = parts[0]
            for part in parts[1:]:
                found = choice(found, part, min if name == "min" else max)
            return found
        case ast.BinOp(left, sign, right):
            one, other = _build(left, over, known), _build(right, over, known)
            match sign:
                case ast.Add():
                    return plus(one, other)
                case ast.Sub():
                    return plus(one, times(other, constant(-1)))
                case ast.Mult():
                    return times(one, other)
                case ast.FloorDiv():
                    return divided(one, other)
                case ast.Mod():
                    return remainder(one, other)
    raise AssertionError(ast.dump(node))  # `parse` lets nothing else through


def constant(value: int) -> Piecewise:
    """The same for every n."""
    return Piecewise(lambda n: value, 1, 0, frozenset({0}))


def _fixed(one: Piecewise) -> int | None:
    """The value of a constant."""
    return one.at(0) if one.period == 1 and one.degree == 0 and not one.turns else None


def _rises(one: Piecewise, period: int) -> frozenset[int] | None:
    return None if one.rises is None else frozenset(rise * (period // one.period) for rise in one.rises)


def plus(one: Piecewise, other: Piecewise) -> Piecewise:
    """The sum."""
    period = math.lcm(one.period, other.period)
    a, b = _rises(one, period), _rises(other, period)
    return Piecewise(
        lambda n: one.at(n) + other.at(n),
        period,
        max(one.degree, other.degree),
        None if a is None or b is None else frozenset(x + y for x in a for y in b),
        _once(one.turns, other.turns),
    )


def times(one: Piecewise, other: Piecewise) -> Piecewise:
    """The product."""
    if _fixed(one) is not None:
        one, other = other, one
    factor = _fixed(other)
    rises = None if factor is None or one.rises is None else frozenset(rise * factor for rise in one.rises)
    if factor is None and one.degree + other.degree == 0:
        rises = frozenset({0})
    return Piecewise(
        lambda n: one.at(n) * other.at(n),
        math.lcm(one.period, other.period),
        one.degree + other.degree,
        rises,
        _once(one.turns, other.turns),
    )


def divided(one: Piecewise, other: Piecewise) -> Piecewise:
    """⌊one / other⌋ by a constant."""
    divisor = _fixed(other)
    if not divisor:
        raise Undecided("a division by a length" if divisor is None else "a division by zero")
    if divisor < 0:
        return divided(times(one, constant(-1)), constant(-divisor))
    if one.rises is None or one.degree > 1:
        raise Undecided("a division of a product of lengths")
    more = math.lcm(*(divisor // math.gcd(rise, divisor) for rise in one.rises))
    rises = frozenset(rise * more // divisor for rise in one.rises)
    return Piecewise(lambda n: one.at(n) // divisor, one.period * more, one.degree, rises, one.turns)


def remainder(one: Piecewise, other: Piecewise) -> Piecewise:
    """one mod other, for a constant `other`, or for a small constant `one`."""
    divisor, value = _fixed(other), _fixed(one)
    if divisor is None and value is not None and abs(value) <= SMALL:
        # it changes only where `other` passes one of -|value| … |value|
        turns = tuple(plus(other, constant(-each)) for each in range(-abs(value), abs(value) + 1))
        return Piecewise(
            lambda n: value % other.at(n), other.period, 0 if value == 0 else 1, None, _once(other.turns, turns)
        )
    quotient = divided(one, other)
    assert divisor is not None  # else `divided` has raised
    return Piecewise(lambda n: one.at(n) % divisor, quotient.period, 0, frozenset({0}), one.turns)


def choice(one: Piecewise, other: Piecewise, pick: Callable[[int, int], int]) -> Piecewise:
    """min or max: on each piece it is one of the two."""
    difference = plus(one, times(other, constant(-1)))
    period = difference.period
    a, b = _rises(one, period), _rises(other, period)
    return Piecewise(
        lambda n: pick(one.at(n), other.at(n)),
        period,
        max(one.degree, other.degree),
        None if a is None or b is None else a | b,
        _once(difference.turns, (difference,)),
    )


# ---- all lengths ----------------------------------------------------------------------------------------------------


def pieces(turns: Sequence[Piecewise], start: int, period: int) -> Iterator[tuple[int, int, int]]:
    """(first n, step, count) of progressions on which no sign changes; count 0: without an end."""
    if any(turn.degree > 1 for turn in turns):
        raise Undecided("a condition on a product of lengths")
    for first in range(start, start + period):
        edges = [0]  # in k, n = first + k·period; the last piece has no end
        for turn in turns:
            found = list(edges)
            for begin, end in zip(edges, [*edges[1:], None], strict=True):
                value, rise = turn.at(first + begin * period), 0
                if end is None or end - begin > 1:
                    rise = turn.at(first + (begin + 1) * period) - value
                if rise and value * rise < 0:  # it moves towards zero: where it arrives, and the next place
                    at = begin - value // rise
                    found += [each for each in (at - 1, at, at + 1) if each > begin and (end is None or each < end)]
                elif rise and value == 0:
                    found += [begin + 1]
            edges = sorted(set(found))
        for begin, end in zip(edges, [*edges[1:], None], strict=True):
            yield first + begin * period, period, 0 if end is None else end - begin


@dataclass(frozen=True)
class Finding:
    """Where paths and formula part: at `n` no path covers the length (`value` None), or the path gives `value`."""

    n: int
    value: int | None = None


@dataclass(frozen=True)
class Domain:
    """The lengths that are taken: n ≥ least with n % step == least % step, up to `most`."""

    least: int
    step: int = 1
    most: int | None = None


def involved(paths: Sequence[Path], want: Piecewise | None) -> tuple[tuple[Piecewise, ...], int]:
    """All functions whose signs matter, and the period of all."""
    values = [path.value for path in paths if path.value is not None] + ([want] if want else [])
    turns = _once(*(each.turns for path in paths for each in path.conditions), *(value.turns for value in values))
    return turns, math.lcm(1, *(each.period for each in (*turns, *values)))


def looks(paths: Sequence[Path], want: Piecewise | None) -> int:
    """How many values `part` has to compute, about."""
    turns, period = involved(paths, want)
    return period * (len(turns) + 2)


def part(paths: Sequence[Path], want: Piecewise | None, start: int) -> Finding | list[tuple[int, int, int, Path]]:
    """The first length that no path covers or at which `want` is another; else every piece with its path."""
    turns, period = involved(paths, want)
    worst: Finding | None = None
    found: list[tuple[int, int, int, Path]] = []
    for n, step, count in pieces(turns, start, period):
        path = next((each for each in paths if each.covers(n)), None)
        if path is None:
            worst = min((each for each in (worst, Finding(n)) if each is not None), key=_order)
            continue
        found.append((n, step, count, path))
        if want is None or path.value is None:
            continue
        looks = max(path.value.degree, want.degree) + 1  # a polynomial of degree d is known by d + 1 values
        for k in range(min(count, looks) if count else looks):
            at = n + k * step
            if path.value.at(at) != want.at(at):
                worst = min((each for each in (worst, Finding(at, path.value.at(at))) if each is not None), key=_order)
                break
    return worst or found


def _order(finding: Finding) -> tuple[bool, int]:
    """Counterexamples before lengths that are not covered, small ones first."""
    return finding.value is None, finding.n


def _once(*turns: Iterable[Piecewise]) -> tuple[Piecewise, ...]:
    """Each of them once; what another one depends on stays before it."""
    return tuple(dict.fromkeys(itertools.chain(*turns)))


def domain(found: Sequence[tuple[int, int, int, Path]]) -> Domain | None:
    """The lengths that are taken, if they are a progression; None if there are holes of another kind."""
    taken = [(n, step, count) for n, step, count, path in found if path.value is not None]
    if not taken:
        return None
    least = min(n for n, _, _ in taken)
    refused = [(n, step, count) for n, step, count, path in found if path.value is None]
    refused = [each for each in refused if _last(*each) > least]
    if not refused:
        return Domain(least)
    end = min(n for n, _, _ in refused)
    if all(_last(*each) < end for each in taken):
        return Domain(least, 1, end - 1)
    second = min((n if n > least else n + step for n, step, count in taken if n > least or count != 1), default=least)
    gap = second - least
    if (
        gap
        and all((n - least) % gap == step % gap == 0 for n, step, _ in taken)
        and all((n - least) % gap and step % gap == 0 for n, step, _ in refused)
    ):
        return Domain(least, gap)
    return None


def cases(found: Sequence[tuple[int, int, int, Path]], over: str) -> str:
    """The lengths that each path covers: `2 paths: n = 2…20,480; n ≥ 20,481`."""
    texts: list[tuple[int, str]] = []
    for path in dict.fromkeys(path for _, _, _, path in found if path.value is not None):
        mine = [(n, step, count) for n, step, count, each in found if each is path]
        first, last = min(n for n, _, _ in mine), max(_last(*each) for each in mine)
        if last == math.inf and not any(_last(n, step, k) > first for n, step, k, each in found if each is not path):
            texts.append((first, f"{over} ≥ {first:,}"))
        elif last < math.inf and sum(count for _, _, count in mine) == last - first + 1:
            texts.append((first, f"{over} = {first:,}" + (f"…{int(last):,}" if last > first else "")))
        else:
            texts.append((first, f"some {over} from {first:,} on"))
    shown = "; ".join(text for _, text in sorted(texts)[:4]) + ("; …" if len(texts) > 4 else "")
    return f"{len(texts)} path{'s' * (len(texts) > 1)}: {shown}"


def _last(n: int, step: int, count: int) -> float:
    return n + (count - 1) * step if count else math.inf
