"""Where a tensor came from that was refused: the line that assigned it, who gave it, the call that made it.

Read from the source and from the record of the run, after the error; nothing is run.
"""

import ast
import linecache
import re
import types
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from tinyomni.tracing.functions import file_of
from tinyomni.tracing.lines import targets
from tinyomni.tracing.mismatch import Context, Joined
from tinyomni.tracing.records import Record
from tinyomni.tracing.statements import Statement, parsed, statement_of

Place = tuple[types.FrameType, int, int]
"""A frame, its line and its instruction."""
MOST_ORIGINS = 3  # that are told of one statement
MOST_UNCALLED = 3
MOST_STEPS = 3  # assignments of one name
MOST_TOLD = 5
LONGEST = 120


def origins(place: Place, callers: Sequence[Place], statement: Statement, context: Context) -> list[str]:
    """A line for each tensor of a statement: `x` was assigned at …, was given at …, came from …"""
    frame, line, _ = place
    names = [name for name, value in statement.names.items() if isinstance(value, Tensor) and name.isidentifier()]
    told = []
    for name in names[:MOST_ORIGINS]:
        source = assigned_at(frame, name, line)
        if source:
            told += source
        elif name in _parameters(frame.f_code) and callers:
            given = statement_of(*callers[-1])
            told.append(f"`{name}` was given at {given.place.partition(',')[0]}: `{given.text}`")
        record = context.maker(statement.names[name])
        if record is not None and (not source or not _is_layer(record)):
            told.append(f"`{name}` came from {_shown(record)}")
    for text, module in statement.modules.items():
        path = context.path(module)
        own = next((each for each in reversed(context.steps) if each.path == path and each.end and not each.op), None)
        if own is not None and not _is_layer(own):
            told.append(f"`{text}(…)` came from {_shown(own)}")
    return told[:MOST_TOLD]


def assigned_at(frame: types.FrameType, name: str, line: int) -> list[str]:
    """Where a variable was assigned above a line; nothing where the source does not say."""
    found = _assigned(frame, name, line)
    return [f"`{name}` was assigned at {', after '.join(found)}"] if found else []


def return_line(frame: types.FrameType) -> int:
    """The line of a `return`; inside a `with`, Python has gone back to that by then."""
    tree = parsed(frame.f_code.co_filename, tuple(linecache.getlines(frame.f_code.co_filename, frame.f_globals)))
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, (ast.With, ast.AsyncWith)) and node.lineno == frame.f_lineno:
            lines = [each.lineno for each in ast.walk(node) if isinstance(each, ast.Return)]
            return lines[0] if len(lines) == 1 else frame.f_lineno
    return frame.f_lineno


def returned_names(frame: types.FrameType, line: int) -> list[str]:
    """Where the variable was assigned that a line returns as it is."""
    source = linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip().partition("#")[0]
    name = source.removeprefix("return ").strip()
    return assigned_at(frame, name, line) if source != name and name.isidentifier() else []


def uncalled(frame: types.FrameType, line: int, context: Context) -> str:
    """The parts of a module that were not called, although parts behind them were, or the code above names them."""
    module = frame.f_locals.get("self")
    if not isinstance(module, nn.Module) or frame.f_code.co_name == "__init__":
        return ""
    above = context.path(module)
    prefix = f"{above}." if above else ""
    called = {record.path for record in context.steps if not record.op}
    own = [record for record in context.steps if record.path == above and not record.op]
    if any(axis.name for record in own[-1:] for value in record.inputs for axis in value.axes):
        return ""  # an annotated call: the modules inside are not recorded
    children = [name for name, child in module._modules.items() if child is not None and not _is_passive(child)]
    done = [place for place, name in enumerate(children) if prefix + name in called]
    before = "".join(linecache.getlines(frame.f_code.co_filename)[frame.f_code.co_firstlineno : line - 1])
    found = [
        name
        for place, name in enumerate(children)
        if done and place not in done and (place < done[-1] or re.search(rf"\bself\.{name}\b", before))
    ]
    names = " and ".join(f"`{prefix}{name}`" for name in found)
    return f"Not called: {names}." if 0 < len(found) <= MOST_UNCALLED else ""


def _is_passive(module: nn.Module) -> bool:
    """A container, or what does nothing in evaluation."""
    name = type(module).__name__.lower()
    return isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Identity)) or "drop" in name


def _is_layer(record: Record) -> bool:
    return record.file.startswith("torch/nn/")


def _shown(record: Record) -> str:
    path = f" ({record.path})" if record.path else ""
    return f"{record.call}{path}" + ("" if _is_layer(record) else f", {record.file}:{record.end or record.line}")


def _parameters(code: types.CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _assigned(frame: types.FrameType, name: str, line: int) -> list[str]:
    """`model.py:12: `x = self.conv(x)``: the assignments above a line that can have counted, the last one first."""
    code = frame.f_code
    lines = tuple(linecache.getlines(code.co_filename, frame.f_globals))
    told = []
    for node, sure in _assignments(_body(frame, line), name, line):
        text = " ".join((ast.get_source_segment("".join(lines), node) or "").split())
        text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
        told.append(f"{file_of(code, frame.f_globals)}:{node.lineno}{'' if sure else ', if that ran'}: `{text}`")
        # `x = f(x)` hands on what x was before
        read = {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}
        if (sure and name not in read and not isinstance(node, ast.AugAssign)) or len(told) == MOST_STEPS:
            break
    return told


def _body(frame: types.FrameType, line: int) -> Sequence[ast.stmt]:
    """The statements of the function that a line is in."""
    code = frame.f_code
    tree = parsed(code.co_filename, tuple(linecache.getlines(code.co_filename, frame.f_globals)))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(tree) if tree is not None else ()
    inner = [node for node in nodes if isinstance(node, kinds) and node.lineno <= line <= _end(node)]
    return max(inner, key=lambda node: node.lineno).body if inner else tree.body if tree is not None else ()


def joined(place: Place, statement: Statement) -> Joined | None:
    """How the argument of the failing call was put together: in the call, or in the line that assigned it."""
    part, line = statement.part, place[1]
    node: ast.expr | None = part.args[0] if isinstance(part, ast.Call) and part.args else None
    if isinstance(node, ast.Name):
        last = next(_assignments(_body(place[0], line), node.id, line), (None, False))[0]
        node = last.value if isinstance(last, (ast.Assign, ast.AnnAssign)) else None
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], (ast.List, ast.Tuple)):
        return None
    how = ast.unparse(node.func).removeprefix("torch.")
    given = [each.value for each in node.keywords if each.arg in ("dim", "axis")] or node.args[1:2]
    dim = statement.value(given[0]) if given else 0
    if how not in ("cat", "concat", "concatenate", "stack") or type(dim) is not int:
        return None
    return Joined(how, len(node.args[0].elts), dim)


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _assignments(body: Sequence[ast.stmt], name: str, line: int, sure: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """The statements above a line that assign a name, backwards, and whether they surely ran."""
    for node in reversed(body):
        if node.lineno > line or (not hasattr(node, "body") and line <= _end(node)):
            continue
        if not hasattr(node, "body"):
            if name in targets(node):
                yield node, sure
            continue
        around = line <= _end(node)
        for inner in reversed(list(_bodies(node))):
            # of the branches of an `if` that the line is in, only its own ran
            if inner and (not around or inner[0].lineno <= line <= _end(inner[-1])):
                yield from _assignments(inner, name, line, sure and (around or isinstance(node, ast.With)))


def _bodies(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return
    for part in ("body", "orelse", "finalbody"):
        yield getattr(node, part, [])
    for handler in getattr(node, "handlers", []):
        yield handler.body
    for case in getattr(node, "cases", []):
        yield case.body
