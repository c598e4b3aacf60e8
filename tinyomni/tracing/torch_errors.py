"""What an error that torch raises means: the line, the shapes in it, the layer or the operation, a likely fix.

Only sizes, dtypes and devices are read, never values.
"""

import ast
import functools
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinyomni.tracing import (
    indexing_errors,  # noqa: F401  (its explanations are registered)
    tensors,
)
from tinyomni.tracing.functions import is_library
from tinyomni.tracing.layer_errors import layer_trouble
from tinyomni.tracing.mismatch import Context
from tinyomni.tracing.operation_errors import operation_trouble
from tinyomni.tracing.operations import tensors_among
from tinyomni.tracing.origins import Place, assigned_at, joined, origins, uncalled
from tinyomni.tracing.statements import Statement, begins_with_tensor, raised_by_hand, statement_of

OURS = __name__.rpartition(".")[0]
KINDS = (RuntimeError, IndexError, ValueError, AssertionError)
CALLS = (TypeError, AttributeError)  # of these only torch's own, and those of a tuple where a tensor is due
WORDS = ("shape", "size", "dim", "mat1", "stride", "channels", "out of range", "out of bounds", "scalar type", "dtype",
         "type", "device", "should contain", "mask", "einsum", "tensor", "Kernel", "input", "heads",
         "unpack")  # fmt: skip
TENSORS = re.compile(
    r"""(?<!['"])\b[Tt]ensors?\b|\(\): argument '|invalid combination of arguments|operand type.*'Tensor'"""
)
"""What torch says of arguments. A quoted name alone is Python's: `unexpected keyword argument 'tensor'`."""
TUPLE = re.compile(r"(?:not|got) tuple\b|'tuple'|\btuple[,)]|^can only concatenate tuple|^tuple indices")
LONGEST = 60  # expression that is written again in a fix


def explain(error: BaseException, context: Context) -> str:
    """The line, what it was given, and why that does not work; "" if the error is not about tensors."""
    frames = list(_frames(error))
    outside_torch = [place for place, (frame, _, _) in enumerate(frames) if not _is_torch(frame)]
    if not outside_torch or not isinstance(error, (*KINDS, *CALLS)):
        return ""
    users = [place for place in outside_torch if not is_library(frames[place][0].f_code)]
    innermost = outside_torch[-1]
    statement = statement_of(*frames[innermost])
    statement.result = functools.partial(_result, context)
    statement.given = _given(frames[innermost + 1 :])
    context, told = replace(context, joined=joined(frames[innermost], statement)), ""
    by_hand = innermost == len(frames) - 1 and raised_by_hand(frames[-1][0].f_code, frames[-1][2])
    more: list[str] = []
    if isinstance(error, CALLS) and not by_hand:
        told, more = _tuple_for_tensor(error, frames[innermost:], statement, context)
    elif not by_hand:
        told = _in_a_layer(frames[innermost:], context, statement) or operation_trouble(error, statement, context)
    known = isinstance(error, KINDS) and any(word in str(error) for word in WORDS)
    if not told and not known and (by_hand or not _is_torchs(error, frames[innermost + 1 :], statement)):
        return ""
    where = str(statement)
    more += _more(frames, outside_torch, innermost, statement, context)
    if users and users[-1] != innermost:  # in the code of a package: the reader's own line comes first
        outer = statement_of(*frames[users[-1]])
        where = f"{outer}\n  inside {where}"
        more += _more(frames, outside_torch, users[-1], outer, context)
    hint = uncalled(*frames[innermost][:2], context)
    said = " ".join(filter(None, [told or f"torch says: {_first_lines(error)}", hint]))
    return "\n  ".join([f"{where}\n{said}", *dict.fromkeys(more)])


def _is_torchs(error: BaseException, inside: Sequence[Place], statement: Statement) -> bool:
    """Did torch raise this, while it was given tensors? `inside`: the frames of torch that it went through."""
    if isinstance(error, (AssertionError, AttributeError)):  # torch.testing asserts on purpose
        return False
    if TENSORS.search(str(error)):
        return True
    if inside:
        given = any(True for frame, _, _ in inside for _ in tensors_among(frame.f_locals.values()))
        return given and not isinstance(error, TypeError)
    return isinstance(error, (RuntimeError, IndexError)) and statement.runs_torch()


def _tuple_for_tensor(
    error: BaseException, frames: Sequence[Place], statement: Statement, context: Context
) -> tuple[str, list[str]]:
    """`y = self.lstm(x)` where `y, _ = self.lstm(x)` is meant: the fix, and where y was assigned."""
    if not TUPLE.search(str(error)):
        return "", []
    (frame, line, _), (inner, _, _) = frames[0], frames[-1]
    if (found := statement.tuple_given()) is not None:
        name, value = found
        fix = f"`{name}, {'_' if len(value) == 2 else '*_'} = …` where it is made"
        made = assigned_at(frame, name, line) if name.isidentifier() else []
        return f"`{name}` is {_tuple(value)}: {fix if name.isidentifier() else f'`{name}[0]`'}?", made
    module = inner.f_locals.get("self")
    if not isinstance(module, nn.Module):
        return "", []
    for name in inner.f_code.co_varnames[1 : inner.f_code.co_argcount]:
        if begins_with_tensor(given := inner.f_locals.get(name)):
            label = f"`{context.path(module) or type(module).__name__}` is a {type(module).__name__}"
            written = _argument(statement) if _called(frames) is module and name == inner.f_code.co_varnames[1] else ""
            return f"{label}, and its {name} is {_tuple(given)}: `{written or name}[0]`?", []
    return "", []


def _tuple(value: Any) -> str:
    return f"a tuple of {len(value)}, its first entry a tensor {tensors.show(value[0])}"


def _called(frames: Sequence[Place]) -> nn.Module | None:
    """The outermost layer below the first of these frames."""
    modules = (frame.f_locals.get("self") for frame, _, _ in frames[1:])
    return next((each for each in modules if isinstance(each, nn.Module)), None)


def _first_lines(error: BaseException) -> str:
    """The first line; where that only announces a list, the next ones, too."""
    lines = str(error).splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 4 if lines[0].endswith(":") else 1])


def _more(frames: list[Place], outside_torch: list[int], at: int, statement: Statement, context: Context) -> list[str]:
    """Where the tensors of a statement came from."""
    callers = [frames[place] for place in outside_torch if place < at]
    return origins(frames[at], callers, statement, context)


def _result(context: Context, module: nn.Module) -> Tensor | None:
    """What a module gave last, as an empty tensor."""
    path = context.path(module)
    record = next((each for each in reversed(context.steps) if each.path == path and not each.op), None)
    value = record.outputs[0] if record is not None and len(record.outputs) == 1 else None
    dtype = getattr(torch, value.dtype, None) if value is not None and value.dtype else None
    if value is None or dtype is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return torch.empty(value.shape, dtype=dtype, device="meta")  # type: ignore[arg-type]


def _is_torch(frame: types.FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "torch"


def _given(frames: Sequence[Place]) -> dict[str, Tensor]:
    """The tensors that a function of torch.nn.functional was given, by its parameters."""
    for frame, _, _ in frames:
        code = frame.f_code
        if frame.f_globals.get("__name__") == "torch.nn.functional":
            values = {name: frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]}
            return {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return {}


def _frames(error: BaseException) -> Iterator[Place]:
    """The frames that the error went through, from the outermost, as (frame, line, instruction)."""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if not str(frame.f_globals.get("__name__", "")).startswith(OURS):
            yield frame, traceback.tb_lineno, traceback.tb_lasti
        traceback = traceback.tb_next


def _argument(statement: Statement) -> str:
    """The first argument of the failing call, as it is written; "" where that is too long or unknown."""
    if not isinstance(statement.part, ast.Call):
        return ""
    arguments = [*statement.part.args, *(each.value for each in statement.part.keywords)]
    node = next(iter(arguments), None)
    text = ast.unparse(node) if node is not None and not isinstance(node, ast.Starred) else ""
    plain = isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Tuple))
    return "" if len(text) > LONGEST else text if plain or not text else f"({text})"


def _in_a_layer(frames: Sequence[Place], context: Context, statement: Statement) -> str:
    """What is wrong with the input of a layer of torch.nn that these frames run, the innermost first."""
    called = _called(frames)
    for frame, _, _ in reversed(frames):
        module = frame.f_locals.get("self")
        if _is_torch(frame) and frame.f_code.co_name == "forward" and isinstance(module, nn.Module):
            code = frame.f_code
            names = (*code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount], "is_batched")
            values = {name: frame.f_locals.get(name) for name in names}
            name = _argument(statement) if module is called else ""
            if told := layer_trouble(module, values, context.path(module), context, name or "input"):
                return told
    return ""
