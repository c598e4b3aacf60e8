"""Formulas over axes: parsed, never run. `evaluate` gives a number, `floor_form` what a formula is for all sizes.

Allowed are `+ - * // % min max`, brackets, whole numbers and names.
"""

import ast
import math
import operator
from collections.abc import Mapping
from typing import NamedTuple

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS = {"min": min, "max": max}


class SpecError(ValueError):
    """A formula or a specification that cannot be read."""


def parse(text: str | int) -> ast.expr:
    """The syntax tree of a formula. Raises SpecError for everything that is not allowed."""
    try:
        found = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise SpecError(f"{text!r} cannot be read: {error}") from error

    def allowed(node: ast.expr) -> bool:
        match node:
            case ast.Constant(int(number)):
                return not isinstance(number, bool)
            case ast.Name():
                return True
            case ast.UnaryOp(ast.USub(), operand):
                return allowed(operand)
            case ast.BinOp(left, sign, right):
                return type(sign) in OPERATORS and allowed(left) and allowed(right)
            case ast.Call(ast.Name(name), [_, *_] as arguments, []):
                return name in FUNCTIONS and all(map(allowed, arguments))
        return False

    if not allowed(found):
        raise SpecError(f"{text!r}: only + - * // % min max, brackets, whole numbers and axis names are allowed")
    return found


def evaluate(text: str | int, sizes: Mapping[str, int]) -> int:
    """A whole number. Raises SpecError for unknown names, for division by zero, for anything that is not allowed."""

    def value(node: ast.AST) -> int:
        match node:
            case ast.Constant(int(number)):
                return number
            case ast.UnaryOp(_, operand):
                return -value(operand)
            case ast.Name(name) if name in sizes:
                return sizes[name]
            case ast.BinOp(left, sign, right):
                if isinstance(sign, (ast.FloorDiv, ast.Mod)) and value(right) == 0:
                    raise SpecError(f"{text!r} divides by zero")
                return OPERATORS[type(sign)](value(left), value(right))
            case ast.Call(ast.Name(name), arguments):
                return FUNCTIONS[name]([value(argument) for argument in arguments])
        raise SpecError(f"unknown axis {ast.unparse(node)!r} in {text!r}; known: {', '.join(sorted(sizes)) or 'none'}")

    return value(parse(text))


def names_in(text: str | int) -> set[str]:
    """The axes that a formula speaks of."""
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


class Floor(NamedTuple):
    """⌊(a·n + b) / c⌋, held between two caps. With these five numbers a length is known for every n."""

    a: int
    b: int
    c: int
    least: int | None = None
    most: int | None = None

    def at(self, n: int) -> int:
        """The value for one n."""
        value = (self.a * n + self.b) // self.c
        value = value if self.least is None else max(self.least, value)
        return value if self.most is None else min(self.most, value)

    def inner(self) -> "Floor":
        """Without the caps, in lowest terms: ⌊(4n + 7) / 8⌋ is ⌊(n + 1) / 2⌋."""
        g = math.gcd(self.a, self.c) or 1
        return Floor(self.a // g, self.b // g, self.c // g)

    def text(self, n: str) -> str:
        """`max(50, min(1000, 30·tokens))`."""
        top = n if self.a == 1 else f"{self.a}·{n}"
        top += f" + {self.b}" if self.b > 0 else f" - {-self.b}" if self.b < 0 else ""
        text = top if self.c == 1 else f"⌊({top}) / {self.c}⌋" if self.b else f"⌊{top} / {self.c}⌋"
        text = text if self.most is None else f"min({self.most}, {text})"
        return text if self.least is None else f"max({self.least}, {text})"


def floor_form(text: str | int, over: str, sizes: Mapping[str, int] | None = None) -> Floor:
    """Write a formula as one `Floor` over an axis; every other name needs a size.

    ⌊⌊x / c⌋ / m⌋ = ⌊x / (c·m)⌋ and ⌊x / c⌋ + k = ⌊(x + k·c) / c⌋ for whole numbers (Graham, Knuth & Patashnik,
    Concrete Mathematics, section 3.2), so sums with a constant, products before any division and divisions compose.
    """
    known = {name: size for name, size in (sizes or {}).items() if name != over}

    def constant(node: ast.expr) -> int | None:
        if any(isinstance(each, ast.Name) and each.id == over for each in ast.walk(node)):
            return None
        return evaluate(ast.unparse(node), known)

    def form(node: ast.expr) -> Floor:
        number = constant(node)
        if number is not None:
            return Floor(0, number, 1)
        match node:
            case ast.Name():
                return Floor(1, 0, 1)
            case ast.Call(ast.Name("min" | "max" as name), [one, other], []):
                if constant(one) is not None:
                    one, other = other, one
                limit = constant(other)
                inner = form(one)
                if limit is not None and name == "min":
                    return inner._replace(most=limit if inner.most is None else min(limit, inner.most))
                if limit is not None and (inner.most is None or limit <= inner.most):
                    return inner._replace(least=limit if inner.least is None else max(limit, inner.least))
            case ast.BinOp(left, sign, right):
                if isinstance(sign, (ast.Add, ast.Mult)) and constant(left) is not None:
                    left, right = right, left
                number = constant(right)
                inner = form(left) if number is not None else Floor(0, 0, 1, least=0)
                if number is not None and inner.least is None and inner.most is None:
                    match sign:
                        case ast.Add():
                            return inner._replace(b=inner.b + number * inner.c)
                        case ast.Sub():
                            return inner._replace(b=inner.b - number * inner.c)
                        case ast.Mult() if inner.c == 1 and number > 0:
                            return Floor(inner.a * number, inner.b * number, 1)
                        case ast.FloorDiv() if number > 0:
                            return inner._replace(c=inner.c * number)
        raise SpecError(
            f"{text!r} has no form ⌊(a·{over} + b) / c⌋: write it with + - of constants, * before any //, and min or "
            "max around the whole"
        )

    return form(parse(text))
