"""Two results side by side: type, shape and dtype before values, nothing broadcast, every axis by its name."""

import math
import reprlib
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from tinyomni.tracing import annotations

MAX_PRINTED = 12  # a tensor of at most so many numbers is printed in full

Kind = Literal["type", "shape", "dtype", "values", "gradient", "error", "no error", "modified", "answer"]


class Difference(NamedTuple):
    """The first thing that differs: its kind and the sentence about it."""

    kind: Kind
    message: str


def describe_tensor(tensor: Shaped[Tensor, "..."], hint: Any = None) -> str:
    """`(batch 2, tokens 5) float32`; without an annotation the axis names are left out."""
    axes = annotations.axes(annotations.choose(hint, tensor), tuple(tensor.shape))
    return f"({', '.join(str(axis) for axis in axes)}) {dtype_name(tensor)}"


def dtype_name(tensor: Shaped[Tensor, "..."]) -> str:
    """`float32`, without the `torch.` in front."""
    return str(tensor.dtype).removeprefix("torch.")


def format_value(value: Any, hint: Any = None) -> str:
    """A value in one line: a tensor with its axes, and with its numbers where it is small."""
    if isinstance(value, Tensor):
        text = describe_tensor(value, hint)
        if value.numel() > MAX_PRINTED or value.is_meta:
            return text
        return f"{text} = {round_numbers(value.detach().tolist())}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)) and any(map(holds_tensor, value)):
        parts = annotations.parts(hint, value)
        items = [format_item(item, part) for item, part in zip(value, parts, strict=True)]
        return ", ".join(items if len(items) <= MAX_PRINTED else [*items[:MAX_PRINTED], "…"])
    if isinstance(value, dict) and any(map(holds_tensor, value.values())):
        return ", ".join(f"{name}: {format_item(item)}" for name, item in value.items())
    if type(value).__repr__ is object.__repr__ or isinstance(value, (nn.Module, torch.optim.Optimizer)):
        return type(value).__name__  # an address, or many lines
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    short.maxlist = short.maxtuple = short.maxdict = MAX_PRINTED
    return short.repr(value)


def format_item(value: Any, hint: Any = None) -> str:
    """A value inside another one."""
    container = isinstance(value, (tuple, list, dict)) and holds_tensor(value)
    return f"({format_value(value, hint)})" if container else format_value(value, hint)


def holds_tensor(value: Any) -> bool:
    """Is it a tensor, a layer or an optimizer, or a container of some?"""
    if isinstance(value, (tuple, list, dict)):
        return any(map(holds_tensor, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (Tensor, nn.Module, torch.optim.Optimizer))


def round_numbers(value: Any) -> Any:
    """The same nested lists, with four significant digits."""
    if isinstance(value, list):
        return [round_numbers(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def type_name(value: Any) -> str:
    """`a tensor`, `a list`, `None`."""
    if value is None:
        return "None"
    name = "tensor" if isinstance(value, Tensor) else type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def same_type(expected: Any, actual: Any) -> bool:
    """Does the type match? An int passes for a float, a list for a tuple; a bool passes for no number."""
    if isinstance(expected, bool) or isinstance(actual, bool):
        return isinstance(expected, bool) and isinstance(actual, bool)
    if isinstance(expected, float):
        return isinstance(actual, (int, float))
    if isinstance(expected, tuple):
        return isinstance(actual, (tuple, list))
    return isinstance(actual, Tensor if isinstance(expected, Tensor) else type(expected))


def find_difference(
    expected: Any, actual: Any, hint: Any = None, rtol: float = 1e-4, atol: float = 1e-5, path: str = ""
) -> Difference | None:
    """The first difference, or None. `hint` is the annotation that names the axes, `path` leads to a nested value."""
    where = f"{path}: " if path else ""
    if not same_type(expected, actual):
        return Difference("type", f"{where}expected {type_name(expected)}, got {type_name(actual)}")
    if isinstance(expected, Tensor):
        return tensor_difference(expected, actual, hint, rtol, atol, where)
    if isinstance(expected, dict):
        missing = [key for key in expected if key not in actual]
        extra = [key for key in actual if key not in expected]
        if missing or extra:
            lists = (("missing keys", missing), ("unexpected keys", extra))
            return Difference(
                "values", where + "; ".join(f"{what}: {format_value(keys)}" for what, keys in lists if keys)
            )
        items = [(f"[{key!r}]", expected[key], actual[key]) for key in expected]
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(actual):
            return Difference("shape", f"{where}expected {len(expected)} items, got {len(actual)}")
        items = [(f"item {index}", *pair) for index, pair in enumerate(zip(expected, actual, strict=True))]
    else:
        return None if same_value(expected, actual, rtol, atol) else value_difference(expected, actual, where)
    differences = [
        find_difference(one, other, part, rtol, atol, f"{path} {name}".strip())
        for (name, one, other), part in zip(items, annotations.parts(hint, expected), strict=True)
    ]
    # a wrong type in the second item says more than wrong values in the first
    return min(filter(None, differences), key=lambda each: get_args(Kind).index(each.kind), default=None)


def same_value(expected: Any, actual: Any, rtol: float, atol: float) -> bool:
    """Floats within the tolerances, NaN equal to NaN; everything else exactly."""
    if not isinstance(expected, float):
        return bool(expected == actual)
    return math.isclose(expected, actual, rel_tol=rtol, abs_tol=atol) or (math.isnan(expected) and math.isnan(actual))


def value_difference(expected: Any, actual: Any, where: str) -> Difference:
    """`expected 0.5, got -1`."""
    return Difference("values", f"{where}expected {format_value(expected)}, got {format_value(actual)}")


def tensor_difference(
    expected: Shaped[Tensor, "..."], actual: Shaped[Tensor, "..."], hint: Any, rtol: float, atol: float, where: str
) -> Difference | None:
    """Shape, then dtype, then values."""
    expected, actual = expected.detach(), actual.detach().to(expected.device)
    axes = annotations.axes(annotations.choose(hint, expected), tuple(expected.shape))
    names = [axis.name or axis.formula or f"axis {index}" for index, axis in enumerate(axes)]
    if expected.shape != actual.shape:
        message = f"{where}expected {describe_tensor(expected, hint)}, got {tuple(actual.shape)}"
        return Difference("shape", f"{message}: {shape_difference(expected.shape, actual.shape, names)}")
    if expected.dtype != actual.dtype:
        return Difference("dtype", f"{where}expected {dtype_name(expected)}, got {dtype_name(actual)}")
    if expected.dtype.is_floating_point or expected.dtype.is_complex:
        differs = ~torch.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    else:
        differs = actual != expected
    if not bool(differs.any()):
        return None
    if expected.ndim == 0:
        return value_difference(expected.item(), actual.item(), where)
    first = tuple(differs.nonzero()[0].tolist())
    place = ", ".join(f"{name} {index}" for name, index in zip(names, first, strict=True))
    found = value_difference(expected[first].item(), actual[first].item(), f"{where}first difference at {place}: ")
    total = f" ({int(differs.sum())} of {differs.numel()} differ)" if differs.numel() > 1 else ""
    return Difference("values", found.message + total)


def shape_difference(expected: torch.Size, actual: torch.Size, names: list[str]) -> str:
    """What is wrong with a shape, by the names of the axes."""
    if len(expected) != len(actual):
        return f"{len(actual)} axes instead of {len(expected)}"
    if sorted(expected) == sorted(actual):
        return "the sizes are right, the order of the axes is not"
    sizes = zip(names, expected, actual, strict=True)
    return ", ".join(f"{name} is {size} instead of {right}" for name, right, size in sizes if size != right)
