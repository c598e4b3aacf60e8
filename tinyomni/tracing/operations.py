"""The operations between calls: `cat`, `view`, `matmul`, … as a mode of torch sees them, one by one.

The mode is on only for `trace(ops=True)` and `trace(lines=True)`. An operation inside another one, or inside a layer of
torch.nn, is not shown apart.
"""

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

Listener = Callable[[types.FrameType, str, tuple[Any, ...], dict[str, Any], Any, Any], None]
"""Called with the frame that runs an operation, its name, its arguments, its result, and what was told before it."""


class Operations(TorchFunctionMode):
    """Tells its listener of every operation that gives a tensor."""

    def __init__(self, listener: Listener, before: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._listener = listener
        self._before = before  # called before an operation that changes its tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then tell of it; an error of the operation is the program's own."""
        kwargs, name = kwargs or {}, name_of(func)
        before = self._before(args, kwargs) if name.endswith("_") else None
        result = func(*args, **kwargs)
        if gives_tensors(result):
            self._listener(sys._getframe(1), name, args, kwargs, result, before)
        return result


def gives_tensors(result: Any) -> bool:
    """Is it a tensor, or a tuple or list of some?"""
    return isinstance(result, Tensor) or (
        isinstance(result, (tuple, list)) and bool(result) and isinstance(result[0], Tensor)
    )


_names: dict[Any, str] = {}


def name_of(func: Any) -> str:
    """`cat`, `view`, `linear`, `add` for `+`, `T` for the property."""
    if func not in _names:
        name = str(resolve_name(func) or getattr(func, "__name__", func))
        if name.endswith(".__get__"):  # a property, such as x.T
            name = name.removesuffix(".__get__")
        name = name.rpartition(".")[2]
        if name.startswith("__") and name.endswith("__"):
            name = name.strip("_")
            name = {"radd": "add", "rsub": "sub", "rmul": "mul", "rtruediv": "truediv", "rmatmul": "matmul",
                    "rpow": "pow"}.get(name, name)  # fmt: skip
        _names[func] = {"truediv": "div"}.get(name, name)
    return _names[func]


def users_frame(frame: types.FrameType | None) -> types.FrameType | None:
    """The innermost frame that is not torch's own; None where torch makes a layer."""
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "torch":
        if frame.f_code.co_name in ("__init__", "reset_parameters", "_reset_parameters"):
            return None
        frame = frame.f_back
    return frame


def tensors_among(values: Any) -> Iterator[Tensor]:
    """The tensors among the arguments of an operation, also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (each for each in value if isinstance(each, Tensor))


def is_plain(value: Any) -> bool:
    """A number, a dtype, or a shape: worth showing beside the name of an operation."""
    if isinstance(value, (tuple, list)):
        return bool(value) and all(type(each) is int for each in value[:16])
    return type(value) in (int, float, bool) or isinstance(value, (torch.dtype, slice))
