"""Everything that is read from a jaxtyping annotation stands in this file.

Names are read for display. Whether a value fits is for jaxtyping's own `isinstance` to say.
"""

import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from jaxtyping import AbstractArray
from torch import Tensor

Axis = tuple[str, int]  # name (empty where there is none) and size


def is_array(hint: Any) -> bool:
    """Is this a jaxtyping annotation?"""
    return inspect.isclass(hint) and issubclass(hint, AbstractArray) and hasattr(hint, "dim_str")


def leaves(hint: Any) -> Iterator[Any]:
    """The jaxtyping annotations inside unions, tuples, lists and dicts."""
    if is_array(hint):
        yield hint
    else:
        for part in typing.get_args(hint):
            yield from leaves(part)


def hints_of(function: Any) -> dict[str, Any]:
    """Annotations by parameter name, `return` among them; empty where they cannot be read."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return dict(getattr(function, "__annotations__", {}))


def fill(hint: Any, arguments: dict[str, Any]) -> Any:
    """Put values into the braces of `"frames*{self.hop}"`: jaxtyping itself does so only inside its own decorator."""
    if "{" not in hint.dim_str:
        return hint
    # the expression is the annotation author's own code, as in jaxtyping
    text = re.sub(r"\{([^}]*)\}", lambda match: str(eval(match[1], {}, dict(arguments))), hint.dim_str)
    return hint.dtype[hint.array_type, text]


def words(hint: Any, ndim: int) -> list[str]:
    """One word for each of `ndim` axes: `"*batch tokens"` on three axes gives batch, batch, tokens."""
    parts = [
        re.sub(r"^[#?_*]*|[{}]", "", part.split("=")[0]) if part != "..." else "..." for part in hint.dim_str.split()
    ]
    for place, part in enumerate(hint.dim_str.split()):
        if part == "..." or part.lstrip("#?_").startswith("*"):
            name = "" if part == "..." else parts[place]
            return parts[:place] + [name] * (ndim - len(parts) + 1) + parts[place + 1 :]
    return parts


def axes(hint: Any, tensor: Tensor) -> list[Axis]:
    """Names from the annotation, sizes from the tensor. Where the counts differ, the names are left out."""
    names = words(hint, tensor.ndim)
    if len(names) != tensor.ndim:
        names = [""] * tensor.ndim
    return [("" if name.isdigit() else name, size) for name, size in zip(names, tensor.shape, strict=True)]


def fits(value: Any, hint: Any, arguments: dict[str, Any]) -> bool:
    """jaxtyping's verdict, for arrays and for unions and tuples of them; anything else is not judged here."""
    if is_array(hint):
        return isinstance(value, fill(hint, arguments))
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return not any(leaves(hint)) or any(
            value is None if part is types.NoneType else fits(value, part, arguments) for part in parts
        )
    if origin is tuple and any(leaves(hint)):
        if not isinstance(value, tuple) or (Ellipsis not in parts and len(value) != len(parts)):
            return False
        return all(fits(item, part, arguments) for item, part in zip(value, parts, strict=False))
    return True


def show(hint: Any) -> str:
    """`(batch, tokens, d_model) float`, as it is written."""
    if is_array(hint):
        return f"({', '.join(hint.dim_str.split())}) {hint.dtype.__name__}"
    if hint is types.NoneType:
        return "None"
    if not typing.get_args(hint):
        return getattr(hint, "__name__", str(hint))
    parts = [show(part) for part in typing.get_args(hint)]
    return " | ".join(parts) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ", ".join(parts)
