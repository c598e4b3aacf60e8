"""A first specification, copied from a run: `t.draft_spec("my.toml")`, or better `t.draft_spec("my.toml", other=t2)`.

Steps with call and module, the axes that the input decides, and a formula for each size that changed between the runs.
Two runs decide little: what other formulas would fit, too, is said at the top. What is copied proves nothing: it pins
down what the code does today, until somebody has compared each line with what it should do. The file says so.
"""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinyomni.tracing.formula import SpecError, evaluate, names_in
from tinyomni.tracing.records import Record, Run, Value
from tinyomni.tracing.spec import Spec, is_step

MOST_STEPS = 80  # of calls that take turns, all but one are left out then
MOST_VALUES = 8  # tensors of one call
MOST_DIVISORS = 4096  # that are tried
MOST_EXTRA = 4  # a CLS token, BOS and EOS, a border: what is more than that is hardly added
HEAD = """\
# COPIED from {runs}, TO BE REVIEWED.
# These are the shapes that the code gave, not those that it should give.
# Compare each line with your own source (a paper, a design) and delete this note when all of them hold.
"""

Key = tuple[str, str]
"""Call and module path."""
Sizes = tuple[int, ...]
"""One size in each run."""


@dataclass(frozen=True)
class Group:
    """Calls of one function, one after the other, whose sizes are the same or grow evenly."""

    key: Key
    records: tuple[Record, ...]


def draft(runs: Sequence[Run], depth: int = 1) -> str:
    """The text of a specification that the runs fulfil. Raises ValueError for runs that cannot be compared."""
    for run in runs:
        wrong = next((record for record in run.steps if not record.ok), None)
        if wrong is not None or not run.steps:
            what = f"{wrong.call}: {wrong.status}" if wrong else "no call was recorded"
            raise ValueError(f"draft_spec: expected a run without problems, got {run.title!r} ({what})")
    keys, left_out = _keys(runs[0], depth), list[Key]()
    rows = [list(_groups(run, keys)) for run in runs]
    if len(rows[0]) > MOST_STEPS or [group.key for group in rows[0]] != [group.key for group in rows[-1]]:
        left_out = _in_turn(rows[0])
        keys = [key for key in keys if key not in left_out]
        rows = [list(_groups(run, keys)) for run in runs]
    _same_calls(runs, rows)
    names = Names(runs)
    ledger = list(_ledger(runs, names))
    steps = [_step(groups, names, keys) for groups in zip(*rows, strict=True)]
    text = "\n".join([*_head(runs, names, left_out), *ledger, *(f"\n{step}" for step in steps)]) + "\n"
    for place, run in enumerate(runs):
        report = Spec(tomllib.loads(text), "draft", text).compare(run, names.given_in(place))
        if not report.ok:
            raise ValueError(
                f"draft_spec: a specification cannot express {run.title!r}:\n" + "\n".join(report.problems)
            )
    return text


# ---- which calls ----------------------------------------------------------------------------------------------------


def _keys(run: Run, depth: int) -> list[Key]:
    """The calls that become steps."""
    calls = [record for record in run.steps if not record.op]
    keys = list(dict.fromkeys((r.call, r.path) for r in calls if r.depth <= depth or r.declared))
    while True:  # a short name may be found again further inside
        steps = [_of(key, keys) for key in keys]
        found = [r for r in calls if (r.call, r.path) not in keys and any(is_step(r, step) for step in steps)]
        if not found:
            return keys
        keys += dict.fromkeys((record.call, record.path) for record in found)


def _in_turn(groups: Sequence[Group]) -> list[Key]:
    """All but one of the calls that take turns, such as `forward, sample, forward, sample, …`: a module is kept."""
    times = Counter(group.key for group in groups)
    declared = {group.key for group in groups if group.records[0].declared}
    often = [key for key, count in times.items() if count > 1]
    kept = next(iter(sorted(often, key=lambda key: (key not in declared, not key[1]))), None)
    return [key for key in often if key != kept and key not in declared]


def _of(key: Key, keys: Sequence[Key]) -> dict[str, str]:
    """How a step names its calls; by the module only where that tells calls apart or says something."""
    call, path = key
    alone = not path and not any(other.rpartition(".")[2] == call.rpartition(".")[2] and place for other, place in keys)
    return {"call": call} if alone else {"call": call, "module": path}


def _groups(run: Run, keys: Sequence[Key]) -> Iterator[Group]:
    """The calls in order, those of one kind together."""
    calls = [record for record in run.steps if not record.op and (record.call, record.path) in keys]
    place = 0
    while place < len(calls):
        key, end = (calls[place].call, calls[place].path), place + 1
        while end < len(calls) and (calls[end].call, calls[end].path) == key and _even(calls[place : end + 1]):
            end += 1
        if end == place + 2 and _shapes(calls[place]) != _shapes(calls[place + 1]):
            end -= 1  # two different calls are no row that grows
        yield Group(key, tuple(calls[place:end]))
        place = end


def _shapes(record: Record) -> list[tuple[str, tuple[object, ...]]]:
    return [(value.name, value.shape) for value in (*record.inputs, *record.outputs) if value.dtype]


def _even(calls: Sequence[Record]) -> bool:
    """Does every size stay, or grow by the same each time?"""
    first, before, last = _shapes(calls[0]), _shapes(calls[-2]), _shapes(calls[-1])
    if [(name, len(shape)) for name, shape in first] != [(name, len(shape)) for name, shape in last]:
        return False
    for (_, a), (_, b), (_, c) in zip(first, before, last, strict=True):
        for one, two, three in zip(a, b, c, strict=True):
            if not isinstance(one, int) or not isinstance(two, int) or not isinstance(three, int):
                return False
            if three < two or (three - one) != (three - two) * (len(calls) - 1):
                return False
    return True


def _same_calls(runs: Sequence[Run], rows: Sequence[list[Group]]) -> None:
    for other in rows[1:]:
        for place in range(max(len(rows[0]), len(other))):
            pair = [" ".join(row[place].key).strip() if place < len(row) else "nothing" for row in (rows[0], other)]
            if pair[0] != pair[1]:
                titles = " and ".join(dict.fromkeys(repr(run.title) for run in runs))
                raise ValueError(
                    f"draft_spec: expected runs of the same calls, got {titles}: "
                    f"step {place + 1} is {pair[0]} in the first and {pair[1]} in the second"
                )


# ---- names and formulas ---------------------------------------------------------------------------------------------


class Names:
    """Names of sizes: given by the input, the same in every run, or a formula of the given ones."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.given: dict[str, Sizes] = {}
        self.fixed: dict[str, tuple[str, Sizes]] = {}  # a formula or a number
        self.chosen: dict[str, Sizes] = {}  # formulas that were found by their sizes
        self.equal: dict[str, list[str]] = {}  # a given axis, and those without a name that are as large in every run
        self.blank: dict[Sizes, list[str]] = {}  # what no formula fits, and where it is
        self._sizes = self._consistent(runs)
        outer = [[record for record in run.steps if record.parent is None and not record.op] for run in runs]
        for fresh in (True, False):  # what other calls gave is given only where no formula fits
            met: set[str] = set()
            for calls in zip(*outer, strict=False):
                if not fresh and calls[0].call in met:  # it comes again: a row that grows
                    continue
                met.add(calls[0].call)
                for values in zip(*(call.inputs for call in calls), strict=False):
                    if fresh == (not calls[0].sources):
                        self._give(values, alone=len(runs) == 1 and fresh, fresh=fresh)

    @staticmethod
    def _consistent(runs: Sequence[Run]) -> dict[str, Sizes]:
        """Names that mean one size in the whole of each run."""
        found: list[dict[str, set[int]]] = [{} for _ in runs]
        for run, sizes in zip(runs, found, strict=True):
            for record in run.steps:
                for axis in (axis for value in (*record.inputs, *record.outputs) for axis in value.axes):
                    if axis.name.isidentifier() and isinstance(axis.size, int):
                        sizes.setdefault(axis.name, set()).add(axis.size)
        return {
            name: tuple(min(sizes[name]) for sizes in found)
            for name in found[0]
            if all(len(sizes.get(name, ())) == 1 for sizes in found)
        }

    def _give(self, values: tuple[Value, ...], alone: bool, fresh: bool) -> None:
        """Axes of an outermost call: what differs between the runs is given, or what has a name if there is one run."""
        first = values[0]
        if not first.dtype:
            texts = [value.text for value in values]
            if len(set(texts)) > 1 and all(text.isdigit() for text in texts):
                self.given.setdefault(_identifier(first.name), tuple(map(int, texts)))
            return
        for place, axis in enumerate(first.axes):
            sizes = tuple(value.shape[place] for value in values if place < len(value.shape))
            if len(sizes) != len(values) or not all(isinstance(size, int) for size in sizes):
                continue
            name = axis.name if axis.name.isidentifier() else ""
            if not fresh and self._formula(sizes, axis.formula) != "_":  # type: ignore[arg-type]
                continue
            if len(set(sizes)) > 1 and (sizes not in self.given.values() or name):
                self.given.setdefault(name or f"{_identifier(first.name)}_{place}", sizes)  # type: ignore[arg-type]
            elif alone and name:
                self.given.setdefault(name, sizes)  # type: ignore[arg-type]
            elif len(set(sizes)) > 1 and not axis.formula:
                same = next(each for each, known in self.given.items() if known == sizes)
                self.equal.setdefault(same, []).append(f"axis {place} of {first.name}")

    def given_in(self, place: int) -> dict[str, int]:
        """The given axes of one of the runs."""
        return {name: sizes[place] for name, sizes in self.given.items()}

    def text(self, sizes: Sizes, name: str = "", formula: str = "") -> str:
        """How a size is written: a name, a number, a formula, or `_`."""
        if self.given.get(name) == sizes:
            return name
        written = self._formula(sizes, formula)
        if name in self._sizes and self._sizes[name] == sizes and written != "_" and name not in self.given:
            self.fixed.setdefault(name, (written, sizes))
            return name
        return written

    def count(self, counts: Sizes, name: str, derived: bool) -> str:
        """How a number is written that is no size; what no formula fits is given, too. `derived`: may it be a part of
        a size? The number of turns of a loop hardly is."""
        if derived or len(set(counts)) == 1:
            written = self._formula(counts, "")
        else:
            plain = (text for text in self._candidates(counts) if "//" not in text and "*" not in text)
            written = next((text for text in plain if self._holds(text, counts)), "_")
            self.chosen[written] = counts
        if written == "_":
            self.given[name] = counts
        return name if written == "_" else written

    def _formula(self, sizes: Sizes, formula: str) -> str:
        if formula and self._holds(formula, sizes):
            return formula
        if len(set(sizes)) == 1:
            return str(sizes[0])
        text = next((text for text in self._candidates(sizes) if self._holds(text, sizes)), "_")
        self.chosen[text] = sizes
        return text

    def undecided(self) -> Iterator[tuple[str, str]]:
        """Formulas that the runs do not decide, and what else fits."""
        for text, sizes in self.chosen.items():
            told = [*self._others(text, sizes), *self._also(text, sizes)] if text != "_" else []
            if told:
                yield text, " and ".join(told)

    def _others(self, text: str, sizes: Sizes) -> list[str]:
        """What fits as well with an axis that is not in the formula, one for each such axis."""
        found: dict[str, str] = {}
        for each in self._of_one_axis(sizes):
            (name,) = names_in(each)
            if name not in {*found, *names_in(text)} and self._holds(each, sizes):
                found[name] = each
        return list(found.values())

    def _also(self, text: str, sizes: Sizes) -> list[str]:
        """What fits as well with the same axis: other numbers to add before a division, or other divisors."""
        name = next(each for each in self.given if each in names_in(text))
        values = self.given[name]
        if "//" not in text:
            points = len(set(zip(values, sizes, strict=True)))
            line = any(sign in text for sign in "+-*")
            return ["a straight line through two points"] if line and points == 2 else []
        divisor = int(text.rpartition("// ")[2])
        low, high = _offsets(values, sizes, divisor)
        others = [c for c in range(2, min(max(values), MOST_DIVISORS) + 1)
                  if c != divisor and _offsets(values, sizes, c)[0] <= _offsets(values, sizes, c)[1]]  # fmt: skip
        told = [f"({name} + b) // {divisor} for every b in {low}…{high}"] if low < high else []
        told += [f"{len(others)} other divisors from {others[0]} to {others[-1]}"] if others else []
        return told

    def _holds(self, formula: str, sizes: Sizes) -> bool:
        known = self.given | {name: values for name, (_, values) in self.fixed.items()}
        try:
            return all(
                evaluate(formula, {name: values[place] for name, values in known.items()}) == size
                for place, size in enumerate(sizes)
            )
        except SpecError:
            return False

    def _of_one_axis(self, sizes: Sizes) -> Iterator[str]:
        """An axis itself, or a multiple, a part or a neighbour of it."""
        given, (one, *_, other) = self.given, sizes
        yield from given
        for name, (a, *_) in given.items():
            if a and one % a == 0:
                yield f"{one // a} * {name}"
            if one and a % one == 0:
                yield f"{name} // {a // one}"
        for name, (a, *_, b) in given.items():
            if one - a == other - b and abs(one - a) <= MOST_EXTRA:
                yield f"{name} + {one - a}" if one > a else f"{name} - {a - one}"

    def _candidates(self, sizes: Sizes) -> Iterator[str]:
        """Formulas from simple to strange; two runs decide little, so that the simplest one that fits is suggested."""
        given, (one, *_, other) = self.given, sizes
        yield from self._of_one_axis(sizes)
        for name, (a, *_) in given.items():
            near = a // one if one else 0
            for divisor in sorted({near, near + 1, near - 1} - {-1, 0, 1}):
                yield from (f"({name} + {more}) // {divisor}" for more in (0, divisor - 1, divisor // 2, 1))
        for name, values in given.items():
            if (rise := max(sizes) - min(sizes)) and max(values) - min(values) >= rise:
                divisor = round((max(values) - min(values)) / rise)
                near_by = sorted(range(max(2, divisor - divisor // 8 - 1), divisor + divisor // 8 + 2),
                                 key=lambda each: (each != divisor, -(each & -each), abs(each - divisor)))  # fmt: skip
                for each in near_by:
                    low, high = _offsets(values, sizes, each)
                    if low <= high:
                        yield f"({name} - {-high}) // {each}" if high < 0 else f"({name} + {max(low, 0)}) // {each}"
        for sign in "+*":
            for place, name in enumerate(given):
                yield from (f"{name} {sign} {each}" for each in list(given)[place:])
        for name, (a, *_, b) in given.items():
            if a != b and (other - one) % (b - a) == 0:
                factor = (other - one) // (b - a)
                rest = one - factor * a
                part = name if factor == 1 else f"{factor} * {name}"
                yield f"{part} {'+' if rest > 0 else '-'} {abs(rest)}"


def _offsets(values: Sizes, sizes: Sizes, divisor: int) -> tuple[int, int]:
    """The least and the largest b for which (value + b) // divisor is the size, in all runs; not many divisors."""
    low = max(size * divisor - value for value, size in zip(values, sizes, strict=True))
    high = min(size * divisor + divisor - 1 - value for value, size in zip(values, sizes, strict=True))
    return max(low, -4 * divisor), min(high, 4 * divisor)


def _identifier(name: str) -> str:
    text = re.sub(r"\W", "_", name).strip("_")
    return text if text.isidentifier() else f"x_{text}"


# ---- text -----------------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _head(runs: Sequence[Run], names: Names, left_out: Sequence[Key]) -> Iterator[str]:
    names_of = " and ".join(dict.fromkeys(repr(run.title) for run in runs))
    titles = f"{'the run' if len(runs) == 1 else f'{len(runs)} runs'} {names_of}"
    yield HEAD.format(runs=titles).rstrip()
    if len(runs) == 1:
        yield "# From one run no formula can be told from a number: run once more with other sizes and give `other=`."
    undecided = list(names.undecided())
    if undecided or names.equal:
        yield "# Not decided by these runs; written is the simplest that fits. More runs, `other=[…]`, decide more."
        yield from (f"#   {text}: so would {also}" for text, also in undecided)
        yield from (f"#   {name}: also {', '.join(all_)}, as large in every run" for name, all_ in names.equal.items())
    if names.blank:
        yield "# No formula was found for these sizes; written is _, which any size fits."
        yield from (
            f"#   {', then '.join(map(str, s))}: {', '.join(dict.fromkeys(places))}"
            for s, places in names.blank.items()
        )
    for call, path in left_out:
        yield f"# Left out, because it takes turns with other calls: {call}{f' in {path}' if path else ''}"
    yield f"title = {_quoted(runs[0].title)}"
    if not left_out:
        yield "complete = true"
    yield "\n[given]  # decided by the input"
    yield from (f"{name} = {sizes[0]}{_then(sizes)}" for name, sizes in names.given.items())
    if names.fixed:
        yield "\n[fixed]  # numbers that did not change, and formulas that fit"
    for name, (formula, sizes) in names.fixed.items():
        shown = f"  # {', then '.join(map(str, sizes))}"
        yield f"{name} = {formula}" if formula.isdigit() else f"{name} = {_quoted(formula)}{shown}"


def _then(sizes: Sizes) -> str:
    return f"  # then {', '.join(map(str, sizes[1:]))}" if len(set(sizes)) > 1 else ""


def _ledger(runs: Sequence[Run], names: Names) -> Iterator[str]:
    entries = runs[0].ledger
    if not entries:
        return
    yield "\n[ledger]"
    for place, entry in enumerate(entries):
        counts = tuple(run.ledger[place].tokens for run in runs if place < len(run.ledger))
        written = names.count(counts, f"{_identifier(entry.source)}_tokens", derived=True)
        yield f"{_key(entry.source)} = {written if written.isdigit() else _quoted(written)}"
    yield f"of = {entries[0].of}"


def _step(groups: Sequence[Group], names: Names, keys: Sequence[Key]) -> str:
    lines = ["[[step]]", *(f"{key} = {_quoted(text)}" for key, text in _of(groups[0].key, keys).items())]
    times = tuple(len(group.records) for group in groups)
    if set(times) != {1}:
        written = names.count(times, f"calls_of_{_identifier(groups[0].key[1] or groups[0].key[0])}", derived=False)
        lines.append(f"times = {written if written.isdigit() else _quoted(written)}")
    given = list(_shapes_of(groups, "inputs", names))
    if given:
        lines.append(f"in = {{ {', '.join(f'{_key(name)} = {_quoted(text)}' for name, text in given)} }}")
    out = [text for _, text in _shapes_of(groups, "outputs", names)]
    tensors = sum(bool(value.dtype) for value in groups[0].records[0].outputs)
    if out and len(out) == tensors:
        lines.append(f"out = {_quoted(out[0])}" if len(out) == 1 else f"out = [{', '.join(map(_quoted, out))}]")
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _shapes_of(groups: Sequence[Group], side: str, names: Names) -> Iterator[tuple[str, str]]:
    """Each tensor of one side with its shape, as far as the runs agree on what there is."""
    ends = [(_tensors(group.records[0], side), _tensors(group.records[-1], side)) for group in groups]
    if len({tuple((value.name, len(value.axes)) for value in first) for first, _ in ends}) != 1:
        return
    for place, value in enumerate(ends[0][0][:MOST_VALUES]):
        axes = []
        for index, axis in enumerate(value.axes):
            sizes = [(first[place].shape[index], last[place].shape[index]) for first, last in ends]
            where = f"axis {index} of {value.name} of {' '.join(groups[0].key).strip()}"
            if not all(isinstance(size, int) for pair in sizes for size in pair):
                axes.append("_")
                names.blank.setdefault(tuple(first for first, _ in sizes), []).append(where)  # type: ignore[arg-type]
                continue
            text = names.text(tuple(first for first, _ in sizes), axis.name, axis.formula)  # type: ignore[misc]
            slopes = {
                (last - first) // (len(group.records) - 1) if len(group.records) > 1 else 0  # type: ignore[operator]
                for group, (first, last) in zip(groups, sizes, strict=True)
            }
            slope = slopes.pop() if len(slopes) == 1 else None
            more = "" if slope == 0 else " + i" if slope == 1 else f" + {slope} * i"
            axes.append("_" if slope is None or text == "_" else text + more)
            if axes[-1] == "_":
                names.blank.setdefault(tuple(first for first, _ in sizes), []).append(where)  # type: ignore[arg-type]
        if axes:
            yield value.name, ", ".join(axes)


def _tensors(record: Record, side: str) -> list[Value]:
    return [value for value in getattr(record, side) if value.dtype]
