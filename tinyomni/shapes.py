"""The cheap shape check that every model makes on its inputs. It stays on when jaxtyping's checks are off.

Only sizes and dtype are read, never values, so that nothing waits for a GPU.
"""

import torch
from torch import Tensor

from tinyomni.glossary import AXES
from tinyomni.tracing.errors import ShapeError

__all__ = ["ShapeError", "describe", "expect"]

INTEGERS = (torch.int64, torch.int32)


def describe(tensor: Tensor) -> str:
    """`(1, 6, 256) float32`, for error messages."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def expect(
    where: str, name: str, tensor: Tensor, axes: str, fix: str = "", integer: bool = False, **sizes: int
) -> None:
    """Raise a `ShapeError` unless `tensor` has these axes and this kind of numbers.

    `axes` is a jaxtyping string of names, such as `"batch tokens d_model"`; `sizes` gives the axes whose size is known.
    `integer=True` asks for int32 or int64, otherwise floats are expected.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{where}: expected {name} to be a tensor, got {type(tensor).__name__}. {fix}".rstrip())
    names = axes.split()
    problem = ""
    if tensor.ndim != len(names):
        problem = f"expected {len(names)} dims, got {tensor.ndim}"
        if tensor.ndim == len(names) - 1 and names[0] == "batch":
            fix = f"Is the batch axis missing? `{name}.unsqueeze(0)`"
    else:
        for axis, actual in zip(names, tensor.shape, strict=True):
            if axis in sizes and sizes[axis] != actual:
                meaning = f" ({AXES[axis]})" if axis in AXES else ""
                problem = f"expected {axis}={sizes[axis]}{meaning}, got {actual}"
                break
    if not problem and integer != (tensor.dtype in INTEGERS):
        kind = "an integer" if integer else "a float"
        problem = f"expected {kind} tensor, got {str(tensor.dtype).removeprefix('torch.')}"
        fix = f"`{name}.long()`" if integer else fix
    if not problem and not integer and not tensor.is_floating_point():
        problem = f"expected a float tensor, got {str(tensor.dtype).removeprefix('torch.')}"
    if problem:
        wanted = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in names)
        raise ShapeError(f"{where}: expected {name} ({wanted}), got {describe(tensor)}: {problem}. {fix}".rstrip())
