"""The statement that failed, and the tensors and numbers that it names; read from the source, nothing is run."""

import ast
import dis
import functools
import itertools
import linecache
import types
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tinyomni.tracing import tensors
from tinyomni.tracing.functions import file_of

LONGEST = 160
MOST_NAMES = 8


@dataclass
class Statement:
    """What stood where an error was raised."""

    place: str  # `package/module.py:12, in Model.forward`
    text: str  # on one line, without the body of a `for` or `with`
    part: ast.expr | None  # the very expression that failed
    names: dict[str, Any] = field(default_factory=dict)  # tensors, lists of tensors, and integers by their expression

    def __str__(self) -> str:
        told = [f"{name} {show(value)}" for name, value in itertools.islice(self.names.items(), MOST_NAMES)]
        return f"{self.place}\n    `{self.text}`" + (f", with {', '.join(told)}" if told else "")

    def value(self, node: ast.expr | None) -> Any:
        """The tensor or number that an expression names; None for other expressions. `.T`, `.mT` and the like are
        followed, so that the shape is right."""
        match node:
            case ast.Constant(value):
                return value
            case ast.UnaryOp(ast.USub(), ast.Constant(int(value))):
                return -value
            case ast.Attribute(inner, "T" | "mT" as name) if isinstance(found := self.value(inner), Tensor):
                return getattr(found.detach(), name)
            case ast.Attribute() | ast.Name():
                return self.names.get(ast.unparse(node))
        return None

    def operands(self) -> list[tuple[str, Tensor]]:
        """The tensors that the failing expression takes, by their text; those that only a computation would show are
        left out."""
        match self.part:
            case ast.BinOp(left, _, right):
                nodes = [left, right]
            case ast.Call(function, arguments, keywords):
                nodes = [*arguments, *(keyword.value for keyword in keywords)]
                if isinstance(function, ast.Attribute):
                    nodes.insert(0, function.value)
            case ast.Subscript(value) | ast.Attribute(value):
                nodes = [value]
            case _:
                nodes = []
        found: list[tuple[str, Tensor]] = []
        for node in nodes:
            items = node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node]
            for item in items:
                value = self.value(item)
                if isinstance(value, Tensor):
                    found.append((ast.unparse(item), value))
                elif isinstance(value, (list, tuple)):
                    found += [(f"{ast.unparse(item)}[{place}]", each) for place, each in enumerate(value)]
        return found


def show(value: Any) -> str:
    """`(2, 3) float32`, `[(2, 3) float32, (2, 5) float32]` or `= 4`."""
    if isinstance(value, Tensor):
        device = tensors.device_name(value.device)
        return tensors.show(value) + (f" {device}" if device != "cpu" else "")
    if isinstance(value, (list, tuple)):
        more = ", …" if len(value) > 4 else ""
        return f"[{', '.join(map(show, value[:4]))}{more}]"
    return f"= {value}"


def statement_of(frame: types.FrameType, line: int, instruction: int) -> Statement:
    """The statement at a line of a frame, with what it names."""
    code = frame.f_code
    place = f"{file_of(code, frame.f_globals)}:{line}, in {code.co_qualname}"
    lines = tuple(linecache.getlines(code.co_filename, frame.f_globals))
    node = _smallest(parsed(code.co_filename, lines), line)
    if node is None:  # no source that can be read
        return Statement(place, lines[line - 1].strip() if line <= len(lines) else "", None)
    whole = node
    if hasattr(node, "body"):  # of `for`, `with` and the like only the head
        empty = {"body": [ast.Pass()], "orelse": [], "handlers": [], "finalbody": []}
        node = type(node)(**{name: empty.get(name, getattr(node, name)) for name in node._fields})
        text = ast.unparse(ast.fix_missing_locations(ast.copy_location(node, whole))).splitlines()[0]
    elif node.lineno == node.end_lineno:
        text = (ast.get_source_segment("".join(lines), node) or "").strip()
    else:
        text = ast.unparse(node)
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    found = Statement(place, text, _part(node, code, instruction))
    expressions = [each for each in ast.walk(node) if isinstance(each, (ast.Name, ast.Attribute))]
    for each in sorted(expressions, key=lambda each: (getattr(each, "lineno", 0), getattr(each, "col_offset", 0))):
        value = frame.f_locals.get(each.id) if isinstance(each, ast.Name) else attribute(frame, each)
        if _worth_showing(value, each):
            found.names[ast.unparse(each)] = value
    return found


def raised_by_hand(code: types.CodeType, instruction: int) -> bool:
    """Was the error raised by a `raise` or `assert` in this code?"""
    return instruction >= 0 and code.co_code[instruction] == dis.opmap["RAISE_VARARGS"]


def _worth_showing(value: Any, node: ast.expr) -> bool:
    if isinstance(value, Tensor) or (type(value) is int and isinstance(getattr(node, "ctx", None), ast.Load)):
        return True
    return type(value) in (list, tuple) and bool(value) and all(isinstance(each, Tensor) for each in value[:64])


@functools.lru_cache(16)
def parsed(file: str, lines: tuple[str, ...]) -> ast.Module | None:
    try:
        return ast.parse("".join(lines))
    except (SyntaxError, ValueError):  # a cell with magics, a generated file
        return None


def _smallest(tree: ast.Module | None, line: int) -> ast.stmt | None:
    """The innermost statement that contains a line."""
    found: ast.stmt | None = None
    for node in ast.walk(tree) if tree is not None else ():
        inside = isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
        if inside and (found is None or _length(node) <= _length(found)):  # type: ignore[arg-type]
            found = node  # type: ignore[assignment]
    return found if not isinstance(found, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) else None


def _length(node: ast.stmt) -> tuple[int, int]:
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    return end[0] - node.lineno, end[1] - node.col_offset if end[0] == node.lineno else 0


def _part(statement: ast.stmt, code: types.CodeType, instruction: int) -> ast.expr | None:
    """The expression that an instruction belongs to."""
    place = next(itertools.islice(code.co_positions(), instruction // 2, None), None) if instruction >= 0 else None
    for node in ast.walk(statement):
        if isinstance(node, ast.expr):
            where = (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
            if where == place:
                return node
    return None


def attribute(frame: types.FrameType, node: ast.Attribute) -> Any:
    """`self.a.b` out of a frame, without running anybody's code: only what lies in instance dictionaries."""
    names: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
    found = frame.f_locals.get(inner.id) if isinstance(inner, ast.Name) else None
    for name in reversed(names):
        if isinstance(found, nn.Module):
            found = {**found._parameters, **found._buffers, **found._modules, **vars(found)}.get(name)
        else:
            found = getattr(found, "__dict__", {}).get(name)
    return found
