"""Formulas over axes: parsed, never run as Python.

Allowed are `+ - * // % min max`, brackets, integers and names. A formula is read once into nested closures, so that
evaluating it costs time linear in its length; its length and depth are limited.
"""

import ast
import difflib
import functools
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping

OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS: dict[str, Callable[..., int]] = {"min": min, "max": max}
MAX_LENGTH = 1000  # characters
MAX_DEPTH = 100  # brackets, or terms of one sum
MAX_VALUE = 2**63  # no size is larger


class SpecError(ValueError):
    """A formula or a specification that cannot be read."""


@functools.lru_cache(maxsize=1024)
def parse(text: str | int) -> ast.expr:
    """The syntax tree of a formula. Raises SpecError for everything that is not allowed."""
    source = str(text).strip()
    if len(source) > MAX_LENGTH:
        raise SpecError(f"formula of {len(source)} characters, expected at most {MAX_LENGTH}: {source[:40]}…")
    try:
        with warnings.catch_warnings():  # Python's own on strange literals; they are refused below
            warnings.simplefilter("ignore")
            found = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise SpecError(f"cannot read the formula {text!r}: {error}") from error
    level, depth = [found], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise SpecError(f"formula nested deeper than {MAX_DEPTH} levels: {source[:40]}…")
        level = [part for node in level for part in _parts(node, text)]
    return found


def _parts(node: ast.expr, text: str | int) -> list[ast.expr]:
    """The operands of one node."""
    match node:
        case ast.Constant(int(number)) if not isinstance(number, bool):
            return []
        case ast.Name():
            return []
        case ast.UnaryOp(ast.USub(), operand):
            return [operand]
        case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
            return [left, right]
        case ast.Call(ast.Name(name), [_, *_] as arguments, []) if name in FUNCTIONS:
            if not any(isinstance(each, ast.Starred) for each in arguments):
                return arguments
    raise SpecError(f"formula {text!r}: expected only + - * // % min max, brackets, integers and axis names")


@functools.lru_cache(maxsize=1024)
def compiled(text: str | int) -> Callable[[Mapping[str, int]], int]:
    """The formula as a function of the sizes."""

    def build(node: ast.expr) -> Callable[[Mapping[str, int]], int]:
        match node:
            case ast.Constant(int(number)):
                return lambda sizes: number
            case ast.UnaryOp(_, operand):
                inner = build(operand)
                return lambda sizes: -inner(sizes)
            case ast.Name(name):
                return operator.itemgetter(name)
            case ast.BinOp(left, sign, right):
                apply, one, other = OPERATORS[type(sign)], build(left), build(right)
                return lambda sizes: apply(one(sizes), other(sizes))
            case ast.Call(ast.Name(name), arguments):
                call, parts = FUNCTIONS[name], [build(each) for each in arguments]
                if len(parts) == 1:
                    return parts[0]
                return lambda sizes: call(*[part(sizes) for part in parts])
        raise AssertionError(ast.dump(node))  # `parse` lets nothing else through

    return build(parse(text))


def evaluate(text: str | int, sizes: Mapping[str, int]) -> int:
    """The value of a formula. Raises SpecError for unknown names, division by zero, and what `parse` refuses."""
    try:
        value = compiled(text)(sizes)
    except KeyError as error:
        raise SpecError(unknown(str(error.args[0]), sizes, f" in {text!r}")) from error
    except ZeroDivisionError as error:
        raise SpecError(f"formula {text!r}: division by zero") from error
    if isinstance(value, int) and abs(value) > MAX_VALUE:
        raise SpecError(f"formula {text!r}: the value is larger than 2**63")
    return value


def unknown(name: object, known: Iterable[str], where: str = "", what: str = "axis") -> str:
    """`unknown axis 'toknes'; did you mean 'tokens'? known: …`."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}{where}.{hint} Known: {', '.join(names) or 'none'}"


def names_in(text: str | int) -> set[str]:
    """The axes in a formula."""
    return {node.id for node in ast.walk(parse(text)) if isinstance(node, ast.Name)} - set(FUNCTIONS)


def split(text: str) -> list[str]:
    """`"1, max(n, 9), d"` at its outer commas."""
    parts, depth, part = [], 0, ""
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += char
    return [each.strip() for each in [*parts, part] if each.strip()]


def shape(text: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """`"1, tokens, d_model"` → (1, 6, 256)."""
    return tuple(evaluate(each, sizes) for each in split(text))
