"""The statement that failed, and the tensors and numbers that it names; read from the source, nothing is run."""

import ast
import dis
import functools
import itertools
import linecache
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
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
    modules: dict[str, nn.Module] = field(default_factory=dict)  # that are called, by their expression
    result: Callable[[nn.Module], Tensor | None] = lambda module: None  # what a module gave, as far as is known
    node: ast.stmt | None = None
    frame: types.FrameType | None = None
    line: int = 0
    given: dict[str, Tensor] = field(default_factory=dict)  # what torch's own function was given, by its parameters

    def __str__(self) -> str:
        told = [f"{name} {show(value)}" for name, value in itertools.islice(self.names.items(), MOST_NAMES)]
        return f"{self.place}\n    `{self.text}`" + (f", with {', '.join(told)}" if told else "")

    def variable(self, node: ast.AST) -> Any:
        """What a name or an attribute stands for, whatever it is; None for other expressions."""
        if self.frame is not None and isinstance(node, ast.Name):
            return variable(self.frame, node.id)
        return attribute(self.frame, node) if self.frame is not None and isinstance(node, ast.Attribute) else None

    def runs_torch(self) -> bool:
        """Is the failing expression an operation of torch that was given a tensor, or what some call has made? Where no
        source can be read: does its function have tensors?"""
        part = self.part
        if not self.text and self.frame is not None:
            return any(isinstance(value, Tensor) for value in self.frame.f_locals.values())
        if part is None:
            return False
        given = (each for each in ast.walk(part) if each is not part)
        return any(isinstance(each, ast.Call) or isinstance(self.variable(each), Tensor) for each in given) and any(
            _of_torch(self.variable(each)) for each in ast.walk(part.func if isinstance(part, ast.Call) else part)
        )

    def tuple_given(self) -> tuple[str, tuple[Any, ...]] | None:
        """A variable of the failing expression that is a tuple with a tensor in front, such as what an LSTM gives."""
        match self.part:
            case ast.BinOp(left, _, right):
                nodes = [left, right]
            case ast.Call(_, arguments, keywords):
                nodes = [*arguments, *(each.value for each in keywords)]
            case ast.Subscript(value) | ast.Attribute(value):
                nodes = [value]
            case _:
                nodes = []
        items = [item for node in nodes for item in (node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node])]
        found = ((ast.unparse(item), self.variable(item)) for item in items)
        return next(((name, value) for name, value in found if begins_with_tensor(value)), None)

    def value(self, node: ast.expr | None) -> Any:
        """The tensor or number that an expression names; None for other expressions. Views of tensors and results of
        modules are followed, as empty tensors on the meta device: only their shape and dtype are right."""
        if isinstance(node, (ast.Attribute, ast.Name)) and ast.unparse(node) in self.names:
            return self.names[ast.unparse(node)]
        match node:
            case ast.Constant(value):
                return value
            case ast.UnaryOp(ast.USub(), ast.Constant(int(value))):
                return -value
            case ast.Compare(left, [_], [right]) | ast.BinOp(left, _, right):
                return self._elementwise(node, left, right)
            case ast.UnaryOp(ast.USub() | ast.Invert(), inner) if isinstance(found := self.value(inner), Tensor):
                return _empty(found)
            case ast.Attribute(inner, "T" | "mT" as name) if isinstance(found := self.value(inner), Tensor):
                return getattr(_empty(found), name)
            case ast.Subscript(ast.Attribute(inner, "shape"), ast.expr() as index) | ast.Call(
                ast.Attribute(inner, "size"), [index], []
            ) if isinstance(found := self.value(inner), Tensor) and type(axis := self.value(index)) is int:
                return found.shape[axis] if -found.ndim <= axis < found.ndim else None
            case ast.Call(function) if ast.unparse(function) in self.modules:
                return self.result(self.modules[ast.unparse(function)])
            case ast.Call(ast.Attribute(ast.Name("torch" | "F" as module), name), [inner, *arguments], keywords) if (
                name in VIEWS and module not in self.names
            ):
                return self._view(inner, name, arguments, keywords)
            case ast.Call(ast.Attribute(inner, name), arguments, keywords) if name in VIEWS:
                return self._view(inner, name, arguments, keywords)
            case ast.Subscript(inner, index) if isinstance(found := self.value(inner), Tensor):
                try:
                    return _empty(found)[_constant(index)]
                except (IndexError, ValueError):  # out of range, or an index that is computed
                    return None
        return None

    def _elementwise(self, node: ast.expr, left: ast.expr, right: ast.expr) -> Tensor | None:
        """The shape of `mask == 0`, `x + y`; numbers alone are left to the source."""
        values = [self.value(each) for each in (left, right)]
        known = [each for each in values if isinstance(each, Tensor)]
        product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
        if product or not known or not all(isinstance(each, (Tensor, int, float, complex)) for each in values):
            return None
        dtype = torch.bool if isinstance(node, ast.Compare) else torch.result_type(*values)
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Div)
            and not (dtype.is_floating_point or dtype.is_complex)
        ):
            dtype = torch.get_default_dtype()
        try:
            return torch.empty(torch.broadcast_shapes(*(each.shape for each in known)), dtype=dtype, device="meta")
        except RuntimeError:  # this very operation is what failed
            return None

    def _view(
        self, inner: ast.expr, name: str, arguments: list[ast.expr], keywords: list[ast.keyword]
    ) -> Tensor | None:
        """The shape of `x.transpose(1, 2)`, `x.view(-1, x.size(-1))`, … without running anything on data."""
        found, numbers = self.value(inner), [self.value(each) for each in arguments]
        named = {each.arg: self.value(each.value) for each in keywords if each.arg}
        if not isinstance(found, Tensor) or not all(type(each) is int for each in (*numbers, *named.values())):
            return None
        try:
            return getattr(_empty(found), name)(*numbers, **named)  # type: ignore[no-any-return]
        except (RuntimeError, IndexError, TypeError):  # this very view is what failed
            return None

    def operands(self) -> list[tuple[str, Tensor]]:
        """The tensors that the failing expression takes, by their text. Those that only a computation would show have
        the names of torch's parameters, or are left out where torch's own function is not in Python."""
        written = self._written()
        if len(written) >= len(self.given):
            return written
        texts = {id(tensor): text for text, tensor in reversed(written)}
        return [(texts.get(id(tensor), name), tensor) for name, tensor in self.given.items()]

    def _written(self) -> list[tuple[str, Tensor]]:
        match self.part:
            case ast.BinOp(left, _, right):
                nodes = [left, right]
            case ast.Call(function, arguments, keywords):
                nodes = [*arguments, *(keyword.value for keyword in keywords)]
                if isinstance(function, ast.Attribute) and ast.unparse(function) not in self.modules:
                    nodes.insert(0, function.value)
            case ast.Subscript(value) | ast.Attribute(value):
                nodes = [value]
            case _:
                nodes = []
        found: list[tuple[str, Tensor]] = []
        for node in nodes:
            items = node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node]
            for item in items:
                item = item.value if isinstance(item, ast.Starred) else item
                value = self.value(item)
                if isinstance(value, Tensor):
                    text, bare = ast.unparse(item), isinstance(item, (ast.Compare, ast.BinOp, ast.UnaryOp))
                    found.append((f"({text})" if bare else text, value))
                elif isinstance(value, (list, tuple)):
                    found += [(f"{ast.unparse(item)}[{place}]", each) for place, each in enumerate(value)]
        return found


VIEWS = ("transpose", "permute", "unsqueeze", "squeeze", "flatten", "view", "reshape", "contiguous", "float", "long",
         "expand", "detach", "clone", "mean", "sum", "softmax", "relu", "sigmoid", "tanh", "exp", "log", "sqrt", "abs",
         "swapaxes", "repeat", "int", "bool")  # fmt: skip


def _empty(tensor: Tensor) -> Tensor:
    """The same shape and dtype, without data."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _constant(index: ast.expr | None) -> Any:
    """The index of `x[:, -1]`. Raises ValueError for one that is computed."""
    match index:
        case ast.Slice(lower, upper, step):
            return slice(_constant(lower), _constant(upper), _constant(step))
        case ast.Tuple(parts):
            return tuple(map(_constant, parts))
    return None if index is None else ast.literal_eval(index)


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
    position = _position(code, instruction)
    node = _smallest(parsed(code.co_filename, lines), line, position)
    if node is None:  # no source that can be read
        return Statement(place, lines[line - 1].strip() if line <= len(lines) else "", None, frame=frame)
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
    found = Statement(place, text, _part(node, position), node=whole, frame=frame, line=line)
    if found.part is None and isinstance(node, ast.AugAssign):  # x += y
        target = ast.parse(ast.unparse(node.target), mode="eval").body
        found.part = ast.BinOp(target, node.op, node.value)
    expressions = [each for each in ast.walk(node) if isinstance(each, (ast.Name, ast.Attribute))]
    for call in (each.func for each in ast.walk(node) if isinstance(each, ast.Call)):
        value = variable(frame, call.id) if isinstance(call, ast.Name) else None
        value = attribute(frame, call) if isinstance(call, ast.Attribute) else value
        if isinstance(value, nn.Module):
            found.modules[ast.unparse(call)] = value
    for each in sorted(expressions, key=lambda each: (getattr(each, "lineno", 0), getattr(each, "col_offset", 0))):
        value = variable(frame, each.id) if isinstance(each, ast.Name) else attribute(frame, each)
        if _worth_showing(value, each):
            found.names[ast.unparse(each)] = value
    return found


def begins_with_tensor(value: Any) -> bool:
    """Is it a tuple whose first entry is a tensor?"""
    return type(value) is tuple and bool(value) and isinstance(value[0], Tensor)


def _of_torch(value: Any) -> bool:
    """A tensor, or a module or function of torch."""
    name = value.__name__ if isinstance(value, types.ModuleType) else ""
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        name = value.__module__ or ""
    return isinstance(value, Tensor) or name.partition(".")[0] == "torch"


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


Position = tuple[int | None, int | None, int | None, int | None]
"""Of an instruction in the source: line, last line, column, last column."""


def _position(code: types.CodeType, instruction: int) -> Position | None:
    return next(itertools.islice(code.co_positions(), instruction // 2, None), None) if instruction >= 0 else None


def _smallest(tree: ast.Module | None, line: int, position: Position | None) -> ast.stmt | None:
    """The innermost statement that contains a line, and the instruction, where several statements are on that line."""
    found: ast.stmt | None = None
    for node in ast.walk(tree) if tree is not None else ():
        inside = isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
        if inside and (found is None or _rank(node, position) <= _rank(found, position)):  # type: ignore[arg-type]
            found = node  # type: ignore[assignment]
    return found if not isinstance(found, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) else None


def _rank(node: ast.stmt, position: Position | None) -> tuple[bool, int, int]:
    """Least for the statement that is meant: it contains the instruction, and it is the shortest that does."""
    begin, end = (node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0)
    outside = False
    if position is not None and None not in position:
        first, last, column, last_column = position
        outside = not (begin <= (first, column) and (last, last_column) <= end)  # type: ignore[operator]
    return outside, end[0] - begin[0], end[1] - begin[1] if end[0] == begin[0] else 0


def _part(statement: ast.stmt, position: Position | None) -> ast.expr | None:
    """The expression that an instruction belongs to."""
    for node in ast.walk(statement) if position is not None else ():
        if isinstance(node, ast.expr) and position == (
            node.lineno, node.end_lineno, node.col_offset, node.end_col_offset
        ):  # fmt: skip
            return node
    return None


def variable(frame: types.FrameType, name: str) -> Any:
    """What a name stands for in a frame: a local variable, or one of the module that no local variable hides."""
    if name in frame.f_locals or name in frame.f_code.co_varnames:
        return frame.f_locals.get(name)
    return frame.f_globals.get(name)


def attribute(frame: types.FrameType, node: ast.Attribute) -> Any:
    """`self.a.b` out of a frame, without running anybody's code: only what lies in instance dictionaries."""
    names: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
    found = variable(frame, inner.id) if isinstance(inner, ast.Name) else None
    for name in reversed(names):
        if isinstance(found, nn.Module):
            found = {**found._parameters, **found._buffers, **found._modules, **vars(found)}.get(name)
        else:
            found = getattr(found, "__dict__", {}).get(name)
    return found
