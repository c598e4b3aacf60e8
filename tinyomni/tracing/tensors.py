"""What of a tensor can be shown and judged: sizes, dtype, device; never its values.

Nothing here makes a tensor or runs an operation, so that a program which counts, exports or fakes its operations sees
none of ours.
"""

import functools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Note = TypeVar("Note")
Size = int | str  # a text where the size is no number: `ragged` in a nested tensor, `s77` under torch.export


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Stands for a tensor: jaxtyping judges it in the tensor's place."""

    shape: tuple[Size, ...]
    dtype: torch.dtype
    device: str
    kind: type

    @property
    def ndim(self) -> int:
        """How many dims."""
        return len(self.shape)

    @property
    def symbolic(self) -> bool:
        """Is a size unknown? Comparing symbolic sizes would add guards to the program that is exported."""
        return any(type(size) is not int for size in self.shape)


def sizes(tensor: Tensor) -> tuple[Size, ...]:
    """The shape of any tensor: plain, nested, jagged, fake."""
    try:
        shape = tensor.shape
    except RuntimeError:  # a nested tensor of the strided layout has no shape, only single sizes
        return tuple(_nested_size(tensor, dim) for dim in range(tensor.dim()))
    for size in shape:
        if type(size) is not int:
            return tuple(map(_symbolic, shape))
    return shape


def _nested_size(tensor: Tensor, dim: int) -> Size:
    try:
        return tensor.size(dim)
    except RuntimeError:  # this dim differs from item to item
        return "ragged"


def _symbolic(size: Any) -> Size:
    if type(size) is int:
        return size
    return "ragged" if size.node.is_nested_int() else str(size)


def info(tensor: Tensor) -> TensorInfo:
    """What is kept of a tensor."""
    return TensorInfo(sizes(tensor), tensor.dtype, device_name(tensor.device), type(tensor))


def show(tensor: Tensor | TensorInfo) -> str:
    """`(1, 6, 256) float32`."""
    found = tensor if isinstance(tensor, TensorInfo) else info(tensor)
    return f"({', '.join(map(str, found.shape))}{',' * (found.ndim == 1)}) {dtype_name(found.dtype)}"


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def device_name(device: torch.device) -> str:
    """`cpu`, `cuda`, `cuda:1`."""
    return str(device) if device.index else device.type


class TensorNotes(Generic[Note]):
    """What is known about tensors, by identity, for as long as these live. Nothing is kept alive."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Tensor], Note]] = {}
        self._most = 10_000

    def __setitem__(self, tensor: Tensor, note: Note) -> None:
        self._kept[id(tensor)] = (weakref.ref(tensor), note)
        self._tidy()

    def _tidy(self) -> None:
        """Let go of the notes on tensors that are gone; seldom, so that a program with many pays little for it."""
        if len(self._kept) > self._most:
            self._kept = {key: kept for key, kept in self._kept.items() if kept[0]() is not None}
            self._most = max(10_000, 2 * len(self._kept))

    def get(self, tensor: Tensor) -> Note | None:
        """What was noted about this very tensor."""
        kept = self._kept.get(id(tensor))
        return kept[1] if kept is not None and kept[0]() is tensor else None


class Makers(TensorNotes[int]):
    """Which call made a tensor. Written and read at every call, hence the loops that are written out."""

    def note(self, made: Iterable[Tensor], call: int) -> None:
        """A call gave these tensors."""
        kept, ref = self._kept, weakref.ref
        for tensor in made:
            kept[id(tensor)] = (ref(tensor), call)
            # a view of this result will name the same base; a base that a call returned keeps that call
            base = tensor._base
            if base is not None and self.get(base) is None:
                kept[id(base)] = (ref(base), call)
        self._tidy()

    def of(self, given: Iterable[Tensor]) -> tuple[int, ...]:
        """The calls that made these tensors, or the tensors that these are views of."""
        found: dict[int, None] = {}
        kept = self._kept
        for tensor in given:
            note = kept.get(id(tensor))
            if note is None or note[0]() is not tensor:
                base = tensor._base
                note = kept.get(id(base)) if base is not None else None
                if note is None or note[0]() is not base:
                    continue
            found[note[1]] = None
        return tuple(found)
