"""Everything that is read from an annotation is read here.

Axis names are read for *display*. Whether a value fits is for jaxtyping's own `isinstance` to say.
"""

import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxtyping import AbstractArray, Shaped, jaxtyped
from torch import Tensor

from tinyomni.tracing.errors import is_of_a_signal
from tinyomni.tracing.tensors import Size, TensorInfo, info

ARRAY_KIND = type(AbstractArray)  # the class of all jaxtyping annotations
BRACES = re.compile(r"\{([^}]*)\}")


class Axis(NamedTuple):
    """One axis of a tensor: its name where it has one, its size, and the formula that the annotation gives for it."""

    name: str
    size: Size
    formula: str = ""

    def __str__(self) -> str:
        return f"{self.name or self.formula} {self.size}".strip()


class Word(NamedTuple):
    """One word of a jaxtyping string."""

    name: str
    formula: str = ""
    many: bool = False  # stands for any number of axes
    fixed: int | None = None  # the size, where the annotation gives it
    broadcast: bool = False  # may also be 1


class Fields(NamedTuple):
    """An annotation for each named part of a mapping or dataclass, where Python has none: names from outside."""

    hints: tuple[tuple[str, Any], ...]

    def of(self, value: Any) -> Iterator[tuple[Any, Any]]:
        """(part, annotation) for each part that the value has."""
        for name, hint in self.hints:
            part = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
            if part is not None:
                yield part, hint


@functools.cache
def words(dims: str) -> tuple[Word, ...]:
    """Read `"*batch #tokens d_model=256 frames//4 _ ..."` word by word."""
    found = []
    for text in dims.split():
        bare = text.lstrip("#*?")
        signs = text[: len(text) - len(bare)]
        many, broadcast = bare == "..." or "*" in signs, "#" in signs
        name, _, size = bare.partition("=")
        if bare in ("...", "_"):
            found.append(Word("", "", many))
        elif name.lstrip("-").isdigit():
            found.append(Word("", "", many, int(name), broadcast))
        elif name.lstrip("_").isidentifier():
            found.append(Word(name.lstrip("_"), "", many, int(size) if size.isdigit() else None, broadcast))
        else:
            formula = name.replace("{", "").replace("}", "")
            # {n} alone is a name whose size was known before
            found.append(Word(formula) if formula.isidentifier() else Word("", formula, many, None, broadcast))
    return tuple(found)


def is_array(hint: Any) -> bool:
    """Is this a jaxtyping annotation?"""
    return isinstance(hint, ARRAY_KIND) and hasattr(hint, "dim_str")


def leaves(hint: Any) -> tuple[Any, ...]:
    """The jaxtyping annotations inside unions, tuples, lists, dicts and dataclasses (that may hold one another)."""
    try:
        return _leaves(hint)
    except TypeError:  # an annotation that cannot be hashed
        return tuple(_find_leaves(hint))


@functools.lru_cache(4096)
def _leaves(hint: Any) -> tuple[Any, ...]:
    return tuple(_find_leaves(hint))


def _find_leaves(hint: Any, within: tuple[Any, ...] = ()) -> Iterator[Any]:
    if is_array(hint):
        yield hint
    elif isinstance(hint, Fields):
        for _, part in hint.hints:
            yield from _find_leaves(part, within)
    elif inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        for part in hints_of(hint).values() if hint not in within else ():
            yield from _find_leaves(part, (*within, hint))
    else:
        for part in typing.get_args(hint):
            yield from _find_leaves(part, within)


def hints_of(thing: Any) -> dict[str, Any]:
    """Annotations by name, `return` among them; as it is written where one cannot be resolved, such as a name that is
    imported for type checkers only."""
    try:
        return typing.get_type_hints(thing, include_extras=True)
    except Exception as error:  # annotations as text are somebody's expressions: resolving them may raise anything
        if is_of_a_signal(error):
            raise
        written = getattr(thing, "__annotations__", None) or {}
        return {name: _resolved(name, hint, thing) for name, hint in written.items()}


def _resolved(name: str, hint: Any, thing: Any) -> Any:
    """One annotation, by itself."""
    names = getattr(inspect.unwrap(thing), "__globals__", None) or vars(sys.modules.get(thing.__module__, typing))
    try:
        alone = types.SimpleNamespace(__annotations__={name: hint})
        return typing.get_type_hints(alone, names, include_extras=True)[name]
    except Exception as error:  # as above
        if is_of_a_signal(error):
            raise
        return hint


def spread(hint: Any, count: int) -> tuple[Word, ...]:
    """The words of an annotation, one for each of `count` axes; () where the number of axes differs."""
    parts = words(hint.dim_str) if is_array(hint) else ()
    many = [place for place, part in enumerate(parts) if part.many]
    if many and count >= len(parts) - 1:
        place = many[0]
        parts = parts[:place] + (parts[place],) * (count - len(parts) + 1) + parts[place + 1 :]
    return parts if len(parts) == count else ()


def axes(hint: Any, shape: tuple[Size, ...]) -> tuple[Axis, ...]:
    """Names from the annotation, sizes from the shape. Where the number of axes differs, the names are left out."""
    parts = spread(hint, len(shape)) or (Word(""),) * len(shape)
    # *batch is one name for several axes: the star stays, so that nobody reads each of them as the batch
    return tuple(
        Axis("*" * (part.many and bool(part.name)) + part.name, size, part.formula)
        for part, size in zip(parts, shape, strict=True)
    )


def choose(hint: Any, value: Tensor | TensorInfo) -> Any:
    """Of a union, the annotation whose number of dims and dtype suit the tensor; else the first; None without one."""
    arrays = leaves(hint)
    if len(arrays) > 1:
        for leaf in arrays:
            if has_dtype(value, leaf) and (value.ndim == 0 or spread(leaf, value.ndim)):
                return leaf
    return arrays[0] if arrays else None


@functools.lru_cache(4096)
def _of_any(hint: Any, dims: str) -> Any:
    """The annotation for a `TensorInfo`, which is no array type."""
    return hint.dtype[Any, dims]


def has_dtype(value: Tensor | TensorInfo, hint: Any) -> bool:
    """Is the tensor of the type and dtype of this annotation, whatever its shape?"""
    found = value if isinstance(value, TensorInfo) else info(value)
    return _has_kind(found, hint) and isinstance(found, _of_any(hint, "..."))


def _has_kind(found: TensorInfo, hint: Any) -> bool:
    wanted = hint.array_type
    return wanted is Tensor or not inspect.isclass(wanted) or issubclass(found.kind, wanted)


class AnnotationError(ValueError):
    """An annotation whose braces cannot be filled."""


def braces(hints: Mapping[str, Any]) -> dict[str, types.CodeType]:
    """The expressions in braces, such as `self.hop` in `"frames*{self.hop}"`, ready to be evaluated."""
    texts = [match[1] for hint in hints.values() for leaf in leaves(hint) for match in BRACES.finditer(leaf.dim_str)]
    return {text: compile(text, f"<annotation {text}>", "eval") for text in dict.fromkeys(texts)}


def brace_values(expressions: Mapping[str, types.CodeType], arguments: Mapping[str, Any]) -> dict[str, str]:
    """The values of the braces in one call: the annotation author's own code is evaluated, as jaxtyping does."""
    try:
        return {text: str(eval(code, {}, dict(arguments))) for text, code in expressions.items()}
    except Exception as error:  # somebody's expression: whatever it raises, the annotation cannot be read
        raise AnnotationError(f"{{{', '.join(expressions)}}} in an annotation cannot be filled: {error}") from error


def fill(hint: Any, values: Mapping[str, str]) -> Any:
    """The annotation with its braces filled, in unions and tuples too: jaxtyping does so only inside its decorator."""
    if not any("{" in leaf.dim_str for leaf in leaves(hint)):
        return hint
    if isinstance(hint, Fields):
        return Fields(tuple((name, fill(part, values)) for name, part in hint.hints))
    if not is_array(hint):
        parts = tuple(fill(part, values) for part in typing.get_args(hint))
        return typing.Union[parts] if is_union(hint) else typing.get_origin(hint)[parts]  # noqa: UP007
    return hint.dtype[hint.array_type, BRACES.sub(lambda match: values[match[1]], hint.dim_str)]


def is_union(hint: Any) -> bool:
    """`A | B`, `Optional[A]`, `Union[A, B]`."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def fits(value: Any, hint: Any, within: tuple[int, ...] = ()) -> bool:
    """jaxtyping's verdict on a value, also inside unions, tuples, lists, dicts, dataclasses; what else is not judged.

    Call it inside `jaxtyped("context")`, so that the same name means the same size. A tensor may be given as its
    `TensorInfo`; symbolic sizes are not judged.
    """
    if is_array(hint):
        if isinstance(value, Tensor):
            value = info(value)
        if not isinstance(value, TensorInfo):
            return isinstance(value, hint)
        if value.symbolic:
            return has_dtype(value, hint)
        return _has_kind(value, hint) and isinstance(value, _of_any(hint, hint.dim_str))
    if not leaves(hint):
        return True
    if isinstance(hint, Fields):
        return all(fits(part, each, within) for part, each in hint.of(value))
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        parts, within = hints_of(hint), (*within, id(value))
        return isinstance(value, hint) and all(
            id(part := getattr(value, each.name, None)) in within or fits(part, parts.get(each.name), within)
            for each in dataclasses.fields(hint)
        )
    origin, parts_ = typing.get_origin(hint), typing.get_args(hint)
    if is_union(hint):
        return any(_alternative(value, part, within) for part in parts_)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(parts_) == 2 and parts_[1] is Ellipsis:
            return all(fits(item, parts_[0], within) for item in value)
        return len(value) == len(parts_) and all(
            fits(item, part, within) for item, part in zip(value, parts_, strict=True)
        )
    if isinstance(value, Mapping):
        return all(fits(item, parts_[-1], within) for item in value.values())
    if isinstance(value, (list, tuple, set)):
        return all(fits(item, parts_[0], within) for item in value)
    return True


def _alternative(value: Any, hint: Any, within: tuple[int, ...]) -> bool:
    """One part of a union: here a plain type is judged too, or `None` would pass for anything."""
    if hint is types.NoneType:
        return value is None
    if leaves(hint):
        return fits(value, hint, within)
    kind = typing.get_origin(hint) or hint
    return isinstance(value, kind) if inspect.isclass(kind) else True


def mismatched(values: Mapping[str, Any], hints: Mapping[str, Any]) -> str | None:
    """The name of the first value that does not fit its annotation, or None."""
    with jaxtyped("context"):
        return next((name for name, value in values.items() if name in hints and not fits(value, hints[name])), None)


def result_fits(bound: Iterable[tuple[Any, TensorInfo]], result: Any, hint: Any) -> bool:
    """Does a result fit its annotation, given the annotated tensors of the arguments?"""
    if hint is None:
        return True
    with jaxtyped("context"):
        for leaf, tensor in bound:
            fits(tensor, leaf)
        return fits(result, hint)


def show(hint: Any) -> str:
    """`(batch, tokens, d_model) Float`, as it is written."""
    if is_array(hint):
        dims = f"({', '.join(hint.dim_str.split())})"
        return dims if hint.dtype is Shaped else f"{dims} {hint.dtype.__name__}"
    if hint is types.NoneType:
        return "None"
    if isinstance(hint, Fields):
        return ", ".join(f"{name} {show(part)}" for name, part in hint.hints)
    parts = [show(part) for part in typing.get_args(hint)]
    if not parts:
        return getattr(hint, "__name__", str(hint))
    return " | ".join(parts) if is_union(hint) else ", ".join(parts)


def unwrapped(thing: Any) -> Callable[..., Any] | None:
    """The plain function inside staticmethod, classmethod, property and decorators."""
    if isinstance(thing, (staticmethod, classmethod)):
        thing = thing.__func__
    if isinstance(thing, property):
        thing = thing.fget
    thing = inspect.unwrap(thing) if callable(thing) else None
    return thing if inspect.isfunction(thing) else None


def parts(hint: Any, value: Any) -> list[Any]:
    """The annotation of each part of a tuple, list, mapping or dataclass; None where there is none."""
    if isinstance(hint, Fields) or dataclasses.is_dataclass(value):
        hints = dict(hint.hints) if isinstance(hint, Fields) else hints_of(type(value))
        if isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
            return [hints.get(name) for name in value]
        return [hints.get(each.name) for each in dataclasses.fields(value)]
    if is_union(hint):
        hint = next((part for part in typing.get_args(hint) if isinstance(value, typing.get_origin(part) or ())), None)
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and args[-1:] != (Ellipsis,):
        return list(args) if len(args) == len(value) else [None] * len(value)
    one = (args[-1] if isinstance(value, Mapping) else args[0]) if args else None
    return [one] * len(value)
