"""What an error that torch raises means: the line, the shapes in it, the layer or the operation, a likely fix.

Only sizes, dtypes and devices are read, never values.
"""

import ast
import functools
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tinyomni.tracing.functions import is_library
from tinyomni.tracing.layer_errors import layer_trouble
from tinyomni.tracing.mismatch import Context
from tinyomni.tracing.operation_errors import operation_trouble
from tinyomni.tracing.origins import Place, joined, origins, uncalled
from tinyomni.tracing.statements import Statement, raised_by_hand, statement_of

OURS = __name__.rpartition(".")[0]
KINDS = (RuntimeError, IndexError, ValueError, AssertionError)
WORDS = ("shape", "size", "dim", "mat1", "stride", "channels", "out of range", "out of bounds", "scalar type", "dtype",
         "type", "device", "should contain", "mask", "einsum", "tensor", "Kernel", "input", "heads",
         "unpack")  # fmt: skip
LONGEST = 60  # expression that is written again in a fix


def explain(error: BaseException, context: Context) -> str:
    """The line, what it was given, and why that does not work; "" if the error is not about tensors."""
    frames = list(_frames(error))
    outside_torch = [place for place, (frame, _, _) in enumerate(frames) if not _is_torch(frame)]
    if not outside_torch or not isinstance(error, KINDS):
        return ""
    users = [place for place in outside_torch if not is_library(frames[place][0].f_code)]
    innermost = outside_torch[-1]
    statement = statement_of(*frames[innermost])
    statement.result = functools.partial(_result, context)
    statement.given = _given(frames[innermost + 1 :])
    context, told = replace(context, joined=joined(frames[innermost], statement)), ""
    if not (innermost == len(frames) - 1 and raised_by_hand(frames[-1][0].f_code, frames[-1][2])):
        told = _in_a_layer(frames[innermost:], context, statement) or operation_trouble(error, statement, context)
    if not told and not any(word in str(error) for word in WORDS):
        return ""
    where = str(statement)
    more = _more(frames, outside_torch, innermost, statement, context)
    if users and users[-1] != innermost:  # in the code of a package: the reader's own line comes first
        outer = statement_of(*frames[users[-1]])
        where = f"{outer}\n  inside {where}"
        more += _more(frames, outside_torch, users[-1], outer, context)
    hint = uncalled(*frames[innermost][:2], context)
    said = " ".join(filter(None, [told or f"torch says: {_first_lines(error)}", hint]))
    return "\n  ".join([f"{where}\n{said}", *dict.fromkeys(more)])


def _first_lines(error: BaseException) -> str:
    """The first line; where that only announces a list, the next ones, too."""
    lines = str(error).splitlines()
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
    plain = isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
    return "" if len(text) > LONGEST else text if plain or not text else f"({text})"


def _in_a_layer(frames: Sequence[Place], context: Context, statement: Statement) -> str:
    """What is wrong with the input of a layer of torch.nn that these frames run, the innermost first."""
    modules = (frame.f_locals.get("self") for frame, _, _ in frames[1:])
    called = next((each for each in modules if isinstance(each, nn.Module)), None)
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
