"""What a function takes and gives, as data: walked, described, and told apart.

One walk serves all three, so that two values which would be shown differently never share a description. It is bounded:
containers may be deep, long or cyclic.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from tinyomni.tracing import annotations, tensors
from tinyomni.tracing.annotations import is_array
from tinyomni.tracing.records import Value
from tinyomni.tracing.tensors import TensorInfo

LONGEST_TEXT = 80
DEEPEST = 6
FEW = 4
MOST_ITEMS = 256  # of one container
MOST_NODES = 2048  # of one value

TENSOR, SCALAR, DATACLASS, SEQUENCE, MAPPING, OTHER = range(6)
SCALARS = (bool, int, float, str)


@functools.lru_cache(4096)
def classify(kind: type) -> int:
    """How values of a type are described."""
    if issubclass(kind, (Tensor, TensorInfo)):
        return TENSOR
    if issubclass(kind, SCALARS):
        return SCALAR
    if issubclass(kind, nn.Module):
        return OTHER
    if dataclasses.is_dataclass(kind):
        return DATACLASS
    if issubclass(kind, (tuple, list)):
        return SEQUENCE
    # other mappings may load something when they are read
    return MAPPING if issubclass(kind, (dict, collections.UserDict)) else OTHER


def items_of(value: Any, how: int) -> Iterator[tuple[str, Any]]:
    """The named parts of a container."""
    if how == DATACLASS:
        return ((each.name, getattr(value, each.name, None)) for each in dataclasses.fields(value))
    if how == MAPPING:
        return ((str(key) if type(key) in SCALARS else type(key).__name__, item) for key, item in value.items())
    names = getattr(value, "_fields", None) or map(str, itertools.count())
    return zip(names, value, strict=False)


def walk(name: str, value: Any, hint: Any = None, hinted: bool = True) -> Iterator[tuple[str, Any, Any, int]]:
    """Every node of a value as (path, value, annotation, kind), containers before their parts."""
    left = MOST_NODES

    def inside(path: str, value: Any, hint: Any, above: tuple[int, ...]) -> Iterator[tuple[str, Any, Any, int]]:
        nonlocal left
        left -= 1
        how = classify(type(value))  # type: ignore[arg-type]
        yield path, value, hint, how
        if how in (TENSOR, SCALAR, OTHER) or len(above) >= DEEPEST or id(value) in above:
            return
        above = (*above, id(value))
        hints = annotations.parts(hint, value) if hinted else itertools.repeat(None)
        for place, ((part, item), each) in enumerate(zip(items_of(value, how), hints, strict=False)):
            if place == MOST_ITEMS or left <= 0:
                yield f"{path}.…", "more", None, SCALAR
                return
            yield from inside(f"{path}.{part}", item, each, above)

    return inside(name, value, hint, ())


def keys_of(values: Iterable[Any], found: list[Tensor]) -> list[Any]:
    """Equal for two values only if they are described and judged alike. All tensors in them are added to `found`.

    Called for every argument of every call, so what is met most is told apart first.
    """
    keys: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is Tensor:
            found.append(value)
            try:
                keys.append((value.shape, value.dtype, value.is_cpu or value.device))
            except RuntimeError:  # a nested tensor
                keys.append(_leaf_key(value, kind, TENSOR))
        elif value is None:
            keys.append(None)
        elif (how := classify(kind)) == OTHER:  # type: ignore[arg-type]
            keys.append(kind)
        elif how == SCALAR:
            keys.append(_leaf_key(value, kind, how))
        elif kind is tuple and len(value) <= FEW and all(part is None or type(part) is Tensor for part in value):
            keys.append((kind, *keys_of(value, found)))
        elif how == TENSOR:
            found.append(value)
            keys.append(_leaf_key(value, kind, how))
        else:
            keys.append(_container_key(value, kind, how, DEEPEST, [MOST_NODES], found))
    return keys


def _leaf_key(value: Any, kind: type, how: int) -> Any:
    if how == TENSOR:
        return tensors.sizes(value), value.dtype, value.device, kind
    if how == SCALAR:
        return kind, value if kind is not str or len(value) <= LONGEST_TEXT else text_of(value)
    return kind


def _container_key(value: Any, kind: type, how: int, depth: int, left: list[int], found: list[Tensor]) -> Any:
    """The keys of all parts that are described; like `walk`, it ends in cyclic and endless containers."""
    keys: list[Any] = [kind]
    for place, (name, part) in enumerate(items_of(value, how)):
        left[0] -= 1
        if place == MOST_ITEMS or left[0] <= 0:
            keys.append("more")
            break
        each = type(part)
        what = classify(each)  # type: ignore[arg-type]
        if what in (DATACLASS, SEQUENCE, MAPPING):
            key = _container_key(part, each, what, depth - 1, left, found) if depth > 1 else each
        else:
            key = _leaf_key(part, each, what)
            if what == TENSOR:
                found.append(part)
        keys.append((name, key))
    return tuple(keys)


def text_of(value: Any) -> str:
    """A plain value as text, not too long."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 2] + "…" + text[0] * isinstance(value, str)


def describe(name: str, value: Any, hint: Any = None) -> Iterator[Value]:
    """The tensors of a value and the plain values beside them; what else there is is left out."""
    how = classify(type(value))  # type: ignore[arg-type]
    if how == TENSOR:
        yield _tensor(name, value, hint)
    elif how == SCALAR:
        yield Value(name, text=text_of(value))
    elif how != OTHER:
        nodes = list(walk(name, value, hint))
        # in a container, plain values are shown beside tensors only
        beside = {path.rpartition(".")[0] for path, _, _, how in nodes if how == TENSOR}
        beside -= {path for path, _, _, how in nodes if how == DATACLASS}
        for path, part, each, how in nodes:
            if how == TENSOR:
                yield _tensor(path, part, each)
            elif how == SCALAR and path.rpartition(".")[0] in beside:
                yield Value(path, text=part if path.endswith("…") else text_of(part))


def _tensor(name: str, value: Tensor | TensorInfo, hint: Any) -> Value:
    found = value if isinstance(value, TensorInfo) else tensors.info(value)
    axes = annotations.axes(annotations.choose(hint, found), found.shape)
    return Value(name, axes, tensors.dtype_name(found.dtype), found.device)


def annotated_tensors(name: str, value: Any, hint: Any) -> Iterator[tuple[str, Any, TensorInfo]]:
    """Every tensor of a value that has an annotation: (path, annotation, tensor)."""
    if is_array(hint) and isinstance(value, TensorInfo):
        yield name, hint, value
        return
    for path, part, each, how in walk(name, value, hint) if annotations.leaves(hint) else ():
        if how == TENSOR and (leaf := annotations.choose(each, part)) is not None:
            yield path, leaf, part if isinstance(part, TensorInfo) else tensors.info(part)
