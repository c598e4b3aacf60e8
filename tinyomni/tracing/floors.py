"""Formulas of one length, written for reading: ⌊(a·n + b) / c⌋ where that is what they are."""

import ast
import math
from collections.abc import Mapping
from typing import NamedTuple

from tinyomni.tracing.formula import SpecError, evaluate, parse


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

    def lowest(self) -> "Floor":
        """In lowest terms: ⌊(4n + 7) / 8⌋ is ⌊(n + 1) / 2⌋."""
        g = math.gcd(self.a, self.c) or 1
        return self._replace(a=self.a // g, b=self.b // g, c=self.c // g)

    def text(self, n: str) -> str:
        """`max(50, min(1000, 30·tokens))`."""
        top = {1: n, -1: f"-{n}"}.get(self.a, f"{self.a}·{n}")
        top += f" + {self.b}" if self.b > 0 else f" - {-self.b}" if self.b < 0 else ""
        text = top if self.c == 1 else f"⌊({top}) / {self.c}⌋" if self.b else f"⌊{top} / {self.c}⌋"
        text = text if self.a else str(self.b // self.c)
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
            case ast.UnaryOp(ast.USub(), operand):
                inner = form(operand)
                if inner.c == 1 and inner.least is None and inner.most is None:
                    return Floor(-inner.a, -inner.b, 1)
            case ast.BinOp(left, ast.Sub(), right) if constant(left) is not None:
                return form(ast.BinOp(ast.UnaryOp(ast.USub(), right), ast.Add(), left))
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
                        case ast.Mult() if inner.c == 1:
                            return Floor(inner.a * number, inner.b * number, 1)
                        case ast.FloorDiv() if number > 0:
                            return inner._replace(c=inner.c * number)
        raise SpecError(
            f"{text!r} has no form ⌊(a·{over} + b) / c⌋: write it with + - of constants, * before any //, "
            "and min or max around the whole"
        )

    return form(parse(text))


class Formula(NamedTuple):
    """A formula of another kind, with the sizes of all its names but one."""

    formula: str
    over: str
    sizes: Mapping[str, int]

    def at(self, n: int) -> int:
        """The value for one n."""
        return evaluate(self.formula, {**self.sizes, self.over: n})

    def text(self, n: str) -> str:
        """`8·⌊(n + 7) / 8⌋`."""
        return pretty(self.formula, {**self.sizes, self.over: n})


Form = Floor | Formula


def form_of(formula: str, over: str, sizes: Mapping[str, int]) -> Form:
    """The simplest way to write a formula."""
    try:
        return floor_form(formula, over, sizes).lowest()
    except SpecError:
        return Formula(formula, over, dict(sizes))


def pretty(formula: str, names: Mapping[str, int | str]) -> str:
    """A formula as it is written in mathematics, its names replaced by numbers or other names."""

    def write(node: ast.expr, inner: int = 0) -> str:
        match node:
            case ast.Name(name):
                return str(names.get(name, name))
            case ast.UnaryOp(_, ast.BinOp(ast.UnaryOp(_, top), ast.FloorDiv(), bottom)):
                return f"⌈{write(top, 2)} / {write(bottom, 3)}⌉"
            case ast.UnaryOp(_, operand):
                return f"(-{write(operand, 2)})" if inner > 1 else f"-{write(operand, 2)}"
            case ast.Call(ast.Name(name), arguments):
                return f"{name}({', '.join(map(write, arguments))})"
            case ast.BinOp(left, ast.FloorDiv(), right):
                return f"⌊{write(left, 2)} / {write(right, 3)}⌋"
            case ast.BinOp(left, sign, right):
                mark, level = SIGNS[type(sign)]
                text = f"{write(left, level)}{mark}{write(right, level + (not isinstance(sign, (ast.Add, ast.Mult))))}"
                return f"({text})" if level < inner else text
        return ast.unparse(node)

    return write(parse(formula))


SIGNS: dict[type[ast.operator], tuple[str, int]] = {
    ast.Add: (" + ", 1),
    ast.Sub: (" - ", 1),
    ast.Mult: ("·", 2),
    ast.Mod: (" mod ", 2),
}
