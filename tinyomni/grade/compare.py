"""Two results side by side: type, shape and dtype before values, nothing broadcast, every axis by its name."""

import math
import reprlib
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from tinyomni.tracing import annotations

SMALL = 12  # a tensor of at most so many numbers is shown whole


class Difference(NamedTuple):
    """What differs first: its kind ("type", "shape", "dtype", "values") and the sentence about it."""

    kind: str
    text: str


def named(tensor: Shaped[Tensor, "..."], hint: Any = None) -> str:
    """`(batch 2, tokens 5) float32`; without a hint the names are left out."""
    axes = annotations.axes(annotations.choose(hint, tensor), tuple(tensor.shape))
    return f"({', '.join(str(axis) for axis in axes)}) {str(tensor.dtype).removeprefix('torch.')}"


def show(value: Any, hint: Any = None) -> str:
    """A value in a line: a tensor with its axes, and whole where it is small."""
    if isinstance(value, Tensor):
        text = named(value, hint)
        if value.numel() > SMALL or value.is_meta:
            return text
        return f"{text} = {rounded(value.detach().tolist())}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)) and any(isinstance(item, Tensor) for item in value):
        parts = annotations.parts(hint, value)
        return ", ".join(show(item, part) for item, part in zip(value, parts, strict=True))
    if isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values()):
        return ", ".join(f"{name}: {show(item)}" for name, item in value.items())
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    short.maxlist = short.maxtuple = short.maxdict = 12
    return short.repr(value)


def rounded(value: Any) -> Any:
    """Nested lists of numbers with four digits."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def kind_of(value: Any) -> str:
    """`a tensor`, `a list`, `nothing (None)`."""
    if value is None:
        return "nothing (None)"
    name = "tensor" if isinstance(value, Tensor) else type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def same_kind(due: Any, came: Any) -> bool:
    """Is it of the type that is due? A whole number passes where a float is due; a bool is no number."""
    if isinstance(due, bool) or isinstance(came, bool):
        return isinstance(due, bool) and isinstance(came, bool)
    if isinstance(due, float):
        return isinstance(came, (int, float))
    kind = Tensor if isinstance(due, Tensor) else type(due)
    return isinstance(came, kind)


def difference(
    due: Any, came: Any, hint: Any = None, rtol: float = 1e-4, atol: float = 1e-5, place: str = ""
) -> Difference | None:
    """The first difference, or None. `hint` is the annotation that names the axes; `place` says where we are."""
    where = f"{place}: " if place else ""
    if not same_kind(due, came):
        return Difference("type", f"{where}{kind_of(due)} is due, {kind_of(came)} came")
    if isinstance(due, Tensor):
        return tensors(due, came, hint, rtol, atol, where)
    if isinstance(due, dict):
        if list(due) != list(came) and set(due) != set(came):
            extra, lost = [key for key in came if key not in due], [key for key in due if key not in came]
            told = [f"{word} {show(keys)}" for word, keys in (("missing:", lost), ("too many:", extra)) if keys]
            return Difference("values", f"{where}{', '.join(told)}")
        pairs = [(f"[{key!r}]", due[key], came[key]) for key in due]
    elif isinstance(due, (list, tuple)):
        if len(due) != len(came):
            return Difference("shape", f"{where}{len(due)} items are due, {len(came)} came")
        pairs = [(f"item {at}", *both) for at, both in enumerate(zip(due, came, strict=True))]
    else:
        close = math.isclose(due, came, rel_tol=rtol, abs_tol=atol) if isinstance(due, float) else due == came
        both_nan = isinstance(due, float) and math.isnan(due) and math.isnan(came)
        return None if close or both_nan else Difference("values", f"{where}{show(due)} is due, {show(came)} came")
    hints = annotations.parts(hint, due)
    found = [
        difference(one, other, part, rtol, atol, f"{place} {name}".strip())
        for (name, one, other), part in zip(pairs, hints, strict=True)
    ]
    wrong = [each for each in found if each]
    # a wrong type in the second item says more than wrong values in the first
    return min(wrong, key=lambda each: ("type", "shape", "dtype", "values").index(each.kind)) if wrong else None


def tensors(
    due: Shaped[Tensor, "..."], came: Shaped[Tensor, "..."], hint: Any, rtol: float, atol: float, where: str
) -> Difference | None:
    """Shape, then dtype, then values."""
    due, came = due.detach(), came.detach().to(due.device)
    names = [axis.name or axis.formula for axis in annotations.axes(annotations.choose(hint, due), tuple(due.shape))]
    if due.shape != came.shape:
        why = ""
        if due.ndim != came.ndim:
            why = f": {came.ndim} axes instead of {due.ndim}"
        elif sorted(due.shape) == sorted(came.shape):
            why = ": the sizes are right, their order is not"
        else:
            wrong = [at for at in range(due.ndim) if due.shape[at] != came.shape[at]]
            told = [f"{names[at] or f'axis {at}'} is {came.shape[at]} instead of {due.shape[at]}" for at in wrong]
            why = f": {', '.join(told)}"
        return Difference("shape", f"{where}{named(due, hint)} is due, {tuple(came.shape)} came{why}")
    if due.dtype != came.dtype:
        kinds = [str(each.dtype).removeprefix("torch.") for each in (due, came)]
        return Difference("dtype", f"{where}{kinds[0]} is due, {kinds[1]} came")
    if due.dtype.is_floating_point or due.dtype.is_complex:
        apart = ~torch.isclose(came, due, rtol=rtol, atol=atol, equal_nan=True)
    else:
        apart = came != due
    if not bool(apart.any()):
        return None
    if due.ndim == 0:
        return Difference("values", f"{where}{show(due.item())} is due, {show(came.item())} came")
    first = tuple(apart.nonzero()[0].tolist())
    at = ", ".join(
        f"{name or f'axis {axis}'} {index}" for axis, (name, index) in enumerate(zip(names, first, strict=True))
    )
    count = f"{int(apart.sum())} of {apart.numel()} differ" if apart.numel() > 1 else ""
    text = f"{where}first at {at}: {show(due[first].item())} is due, {show(came[first].item())} came"
    return Difference("values", f"{text}{count and f' ({count})'}")
