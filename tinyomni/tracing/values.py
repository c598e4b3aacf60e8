"""What a function takes and gives, as data: walked, described, and told apart.

One walk serves all three, so that two values which would be shown differently never share a description. It is bounded:
containers may be deep, long or cyclic.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
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


def key_of(value: Any) -> Any:
    """Equal for two values only if they are described and judged alike. Called for every argument of every call."""
    kind = type(value)
    if kind is Tensor:
        try:
            return value.shape, value.dtype, value.device, kind
        except RuntimeError:  # a nested tensor
            return tensors.sizes(value), value.dtype, value.device, kind
    if value is None:
        return None
    how = classify(kind)  # type: ignore[arg-type]
    if how == OTHER:
        return kind
    if how <= SCALAR:
        return _leaf_key(value, kind, how)
    if kind is tuple and len(value) <= FEW:  # often of tensors and None, so quickly
        found: list[Any] = [kind]
        for part in value:
            if part is not None and type(part) is not Tensor:
                break
            found.append(key_of(part))
        else:
            return tuple(found)
    elif kind is dict and not value:
        return (kind,)
    return _container_key(value, kind, how, DEEPEST, [MOST_NODES])


def _leaf_key(value: Any, kind: type, how: int) -> Any:
    if how == TENSOR:
        return tensors.sizes(value), value.dtype, value.device, kind
    if how == SCALAR:
        return kind, value if kind is not str or len(value) <= LONGEST_TEXT else text_of(value)
    return kind


def _container_key(value: Any, kind: type, how: int, depth: int, left: list[int]) -> Any:
    """The keys of all parts that are described; like `walk`, it ends in cyclic and endless containers."""
    found: list[Any] = [kind]
    for place, (name, part) in enumerate(items_of(value, how)):
        left[0] -= 1
        if place == MOST_ITEMS or left[0] <= 0:
            found.append("more")
            break
        each = type(part)
        what = classify(each)  # type: ignore[arg-type]
        if what in (DATACLASS, SEQUENCE, MAPPING):
            key = _container_key(part, each, what, depth - 1, left) if depth > 1 else each
        else:
            key = _leaf_key(part, each, what)
        found.append((name, key))
    return tuple(found)


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


def tensors_in(value: Any) -> Sequence[Tensor]:
    """The tensors that a function takes or gives, directly or in a tuple, list or dict. Called as often as `key_of`."""
    kind = type(value)
    if kind is Tensor:
        return (value,)
    if kind is tuple or kind is list or kind is dict:
        items = value.values() if kind is dict else value
        return [item for item in itertools.islice(items, MOST_ITEMS) if isinstance(item, Tensor)]
    how = classify(kind)  # type: ignore[arg-type]
    if how == TENSOR and kind is not TensorInfo:
        return (value,)
    # a named tuple, such as that of topk
    return [item for item in value[:MOST_ITEMS] if isinstance(item, Tensor)] if how == SEQUENCE else ()
