"""What an error that torch raises means: the line, the shapes in it, the layer or the operation, a likely fix.

Only sizes, dtypes and devices are read, never values.
"""

import types
from collections.abc import Iterator

from torch import nn

from tinyomni.tracing.functions import is_library
from tinyomni.tracing.layer_errors import layer_trouble
from tinyomni.tracing.mismatch import Context
from tinyomni.tracing.operation_errors import operation_trouble
from tinyomni.tracing.statements import raised_by_hand, statement_of

OURS = __name__.rpartition(".")[0]
KINDS = (RuntimeError, IndexError, ValueError, AssertionError)
WORDS = ("shape", "size", "dim", "mat1", "stride", "channels", "out of range", "out of bounds", "scalar type", "dtype",
         "type", "device", "should contain", "mask", "einsum", "tensor", "Kernel", "input")  # fmt: skip


def explain(error: BaseException, context: Context) -> str:
    """The line, what it was given, and why that does not work; "" if the error is not about tensors."""
    frames = list(_frames(error))
    outside_torch = [place for place, (frame, _, _) in enumerate(frames) if not _is_torch(frame)]
    if not outside_torch or not isinstance(error, KINDS):
        return ""
    users = [place for place in outside_torch if not is_library(frames[place][0].f_code)]
    innermost = outside_torch[-1]
    statement = statement_of(*frames[innermost])
    told = ""
    if not (innermost == len(frames) - 1 and raised_by_hand(frames[-1][0].f_code, frames[-1][2])):
        told = _in_a_layer(frames[innermost:], context) or operation_trouble(error, statement)
    if not told and not any(word in str(error) for word in WORDS):
        return ""
    where = str(statement)
    if users and users[-1] != innermost:  # in the code of a package: the reader's own line comes first
        where = f"{statement_of(*frames[users[-1]])}\n  inside {where}"
    return f"{where}\n{told or f'torch says: {str(error).splitlines()[0]}'}"


def _is_torch(frame: types.FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "torch"


def _frames(error: BaseException) -> Iterator[tuple[types.FrameType, int, int]]:
    """The frames that the error went through, from the outermost, as (frame, line, instruction)."""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if not str(frame.f_globals.get("__name__", "")).startswith(OURS):
            yield frame, traceback.tb_lineno, traceback.tb_lasti
        traceback = traceback.tb_next


def _in_a_layer(frames: list[tuple[types.FrameType, int, int]], context: Context) -> str:
    """What is wrong with the input of a layer of torch.nn that these frames run, the innermost first."""
    for frame, _, _ in reversed(frames):
        module = frame.f_locals.get("self")
        if _is_torch(frame) and frame.f_code.co_name == "forward" and isinstance(module, nn.Module):
            code = frame.f_code
            names = (*code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount], "is_batched")
            values = {name: frame.f_locals.get(name) for name in names}
            if told := layer_trouble(module, values, context.path(module), context):
                return told
    return ""
