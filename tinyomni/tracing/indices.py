"""Indices: what runs without numbers can still say about them.

A table has as many rows as it has; a position past its end is an error of the ordinary run alone, since shapes do not
say what an index is. So the least and the largest value of each tensor of indices are kept beside it, as numbers or as
symbols, where they are known: from `torch.arange` on, and for tensors that have numbers.
"""

import os
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from tinyomni.tracing.symbol_watch import OURS, is_watched, stands_in

INTEGERS = (torch.int64, torch.int32)
KEPT = (
    "view view_as reshape reshape_as flatten unflatten ravel unsqueeze squeeze expand expand_as broadcast_to permute "
    "transpose t T mT movedim swapaxes repeat tile repeat_interleave flip roll clone contiguous detach to long int"
)  # all values are kept by these
PART = ("getitem", "narrow", "select", "unbind", "split", "chunk", "index_select", "gather", "take", "take_along_dim")
JOIN = ("cat", "concat", "stack", "hstack", "vstack")
ALONG = ("index_select", "gather", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill")
OTHERWISE = {"radd": "add", "rmul": "mul", "clip": "clamp", "__floordiv__": "floor_divide"}


class Bounds(NamedTuple):
    """The least and the largest value, numbers or symbols."""

    low: Any
    high: Any
    reached: bool = False  # both are there; else all values lie between them


class Indices(TorchFunctionMode):
    """Raises for an index that is out of range, and notes the operations whose indices are not known."""

    def __init__(self, unseen: dict[str, None]) -> None:
        super().__init__()
        self.unseen = unseen  # `embedding at model.py:12`
        self.asked: list[str] = []  # what the function asks of a tensor that is answered otherwise with numbers
        self.bounds: Any = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for each operator."""
        kwargs = kwargs or {}
        own = str(func.__self__.__name__ if func.__name__ == "__get__" else func.__name__)
        name = own.strip("_")
        name = OTHERWISE.get(name, name)
        if name in ("repr", "format", "str") and any(map(stands_in, args)) and any(map(is_watched, callers())):
            self.asked.append("the text")
        for index, size, negative in lookups(name, args, kwargs):
            self.check(name, index, size, negative)
        found = self.result(name, args, kwargs)
        changes = "out" in kwargs or own == "__setitem__" or (own.endswith("_") and not own.startswith("__"))
        if changes and any(getattr(each, "dtype", None) in INTEGERS for each in (*args[:1], *kwargs.values())):
            self.bounds.clear()  # what changes may be seen through other tensors
        out = self.operate(func, args, kwargs)
        if found is not None:
            for each in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(each, Tensor) and each.dtype in INTEGERS:
                    self.bounds[each] = found
        return out

    def operate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operator itself."""
        return func(*args, **kwargs)

    def check(self, name: str, index: Any, size: Any, negative: bool) -> None:
        """Compare the bounds with the size; with symbols, this is a condition of the path."""
        found = self.of(index)
        if found is not None:
            wrong = found.high if found.high >= size else found.low if found.low < (-size if negative else 0) else None
            if wrong is None:
                return
            if found.reached and (isinstance(index, list) or index.numel() > 0):
                kind = RuntimeError if name in ("gather", "scatter", "scatter_add") else IndexError
                raise kind(f"{name}: index {wrong} is out of range for a dimension of size {size}")
        frame = next((each for each in callers() if is_watched(each)), None)
        where = f" at {os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame else ""
        self.unseen[{"getitem": "indexing", "setitem": "indexing"}.get(name, name) + where] = None

    def of(self, value: Any) -> Bounds | None:
        """What is known of an index."""
        if isinstance(value, (int, SymInt)) and not isinstance(value, bool):
            return Bounds(value, value, True)
        if isinstance(value, list) and value and all(isinstance(each, (int, SymInt)) for each in value):
            return Bounds(min(value), max(value), True)
        if not isinstance(value, Tensor) or value.dtype not in INTEGERS:
            return None
        known = self.bounds.get(value)
        if known is None and not stands_in(value) and value.device.type == "cpu" and value.numel():
            with _disable_current_modes():  # a module's own tensor, which has numbers
                known = self.bounds[value] = Bounds(int(value.min()), int(value.max()), True)
        return known

    def result(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> Bounds | None:
        """The bounds of a result, from those of the operands. None where nothing is known."""
        if name == "arange":
            return counted(*args[:3], **kwargs)
        if name in JOIN or name == "meshgrid":
            tensors = args[0] if args and isinstance(args[0], (tuple, list)) else args
            parts = [self.of(each) for each in tensors]
            known = [each for each in parts if each is not None]
            if not known or len(known) < len(parts):
                return None
            low, high = known[0].low, known[0].high
            for part in known[1:]:
                low, high = torch.sym_min(low, part.low), torch.sym_max(high, part.high)
            return Bounds(low, high, name != "meshgrid" and all(part.reached for part in known))
        one = self.of(args[0]) if args and isinstance(args[0], Tensor) else None
        if one is None:
            return None
        if name in KEPT.split():
            return None if name == "view" and any(isinstance(each, torch.dtype) for each in args) else one
        if name in PART:
            return one if name == "getitem" and whole(args[1]) else one._replace(reached=False)
        if name == "clamp" or name.startswith("clamp_m"):
            least = kwargs.get("min", args[1] if len(args) > 1 and name != "clamp_max" else None)
            most = kwargs.get("max", args[-1] if len(args) > (1 if name == "clamp_max" else 2) else None)
            ends = [None if each is None else self.of(each) for each in (least, most)]
            if any(end is None and each is not None for end, each in zip(ends, (least, most), strict=True)):
                return None
            for end, pick in zip(ends, (torch.sym_max, torch.sym_min), strict=True):
                one = one if end is None else Bounds(pick(one.low, end.low), pick(one.high, end.high), one.reached)
            return one
        other = self.of(args[1]) if len(args) == 2 and not kwargs else None
        return None if other is None else combined(name, one, other, outer(args[0], args[1]))


def combined(name: str, one: Bounds, other: Bounds, every: bool) -> Bounds | None:
    """Of an operation on two; `every` value of the one meets every value of the other."""
    reached = one.reached and other.reached and every
    number = other.low if other.low is other.high else None
    if name == "add":
        return Bounds(one.low + other.low, one.high + other.high, reached)
    if name == "sub":
        return Bounds(one.low - other.high, one.high - other.low, reached)
    if name == "rsub":
        return Bounds(other.low - one.high, other.high - one.low, reached)
    if name in ("minimum", "maximum"):
        pick = torch.sym_min if name == "minimum" else torch.sym_max
        return Bounds(pick(one.low, other.low), pick(one.high, other.high), reached)
    if name == "mul" and number is not None:
        ends = (one.low * number, one.high * number)
        return Bounds(*(ends if number >= 0 else ends[::-1]), reached)
    if name in ("floor_divide", "floordiv") and number is not None and number > 0:
        return Bounds(one.low // number, one.high // number, reached)
    if name in ("remainder", "mod") and number is not None and number > 0:
        return Bounds(0, number - 1)
    return None


def counted(start: Any, end: Any = None, step: Any = 1, **options: Any) -> Bounds | None:
    """Of `torch.arange`."""
    start, end = (0, start) if end is None else (start, end)
    if not all(isinstance(each, (int, SymInt)) for each in (start, end, step)) or step == 0:
        return None
    last = start + (end - start + (-1 if step > 0 else 1)) // step * step
    return Bounds(start, last, True) if step > 0 else Bounds(last, start, True)


def whole(index: Any) -> bool:
    """Whether an index only adds axes."""
    parts = index if isinstance(index, tuple) else (index,)
    plain = (slice, type(None), type(...))
    return all(isinstance(each, plain) for each in parts) and all(
        each.start is each.stop is each.step is None for each in parts if isinstance(each, slice)
    )


def outer(one: Any, other: Any) -> bool:
    """Whether each value of the one meets each of the other: on every axis, one of the two has size 1."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    return all(a == 1 or b == 1 for a, b in zip(reversed(one.shape), reversed(other.shape), strict=False))


def lookups(name: str, args: Any, kwargs: Mapping[str, Any]) -> Iterator[tuple[Any, Any, bool]]:
    """(index, size of the axis that it goes into, whether it may count from the end)."""
    if name == "embedding":
        pair = [*args[:2], *(kwargs[each] for each in ("input", "weight", "indices") if each in kwargs)]
        index, table = sorted(pair, key=lambda each: each.is_floating_point())
        yield index, table.shape[0], False
    elif name in ALONG:
        given = dict(zip(("input", "dim", "index"), args, strict=False)) | dict(kwargs)
        if isinstance(given.get("index"), Tensor) and isinstance(given["dim"], int) and given["input"].ndim:
            yield given["index"], given["input"].shape[given["dim"]], name == "index_fill"
    elif name == "take":
        yield args[1] if len(args) > 1 else kwargs["index"], args[0].numel(), True
    elif name == "one_hot" and isinstance(
        most := kwargs.get("num_classes", args[1] if args[1:] else -1), (int, SymInt)
    ):
        yield args[0], most, False
    elif name in ("getitem", "setitem") and isinstance(args[0], Tensor):
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        taken = [each.ndim if getattr(each, "dtype", None) is torch.bool else each is not None for each in parts]
        place = 0
        for each, axes in zip(parts, taken, strict=True):
            if each is ...:
                place += args[0].ndim - (sum(taken) - 1)
                continue
            if isinstance(each, list) or getattr(each, "dtype", None) in INTEGERS:
                yield each, args[0].shape[place], True
            place += int(axes)


def callers() -> Iterator[types.FrameType]:
    """The frames of the function that is swept, innermost first."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != f"{OURS}.lengths":
        yield frame
        frame = frame.f_back
