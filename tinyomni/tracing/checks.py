"""Run-time shape checks: off by default and then free, switched on before a lesson or a test.

`check_shapes()` wraps every annotated function of the package with jaxtyping and beartype, in rooms that are loaded
already and in those that come later. A wrong shape is explained in our words; jaxtyping's own text stands below.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError

from tinyomni.axes import AXES, ShapeError
from tinyomni.tracing import annotations

CHECKER = beartype(conf=BeartypeConf(is_pep484_tower=True))


def explain(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """Which argument does not fit, what was due, what came, what the axis means; empty if none can be named."""
    from tinyomni.tracing.trace import describe

    hints = annotations.hints_of(function)
    sizes: dict[str, int] = {}
    for name, value in arguments.items():
        for leaf in annotations.leaves(hints.get(name)):
            if not hasattr(value, "shape"):
                continue
            words = annotations.words(leaf, value.ndim)
            came = describe(name, value, None)[0]
            text = (
                f"{function.__qualname__}: {name} should be {annotations.show(hints[name])}; got {came} {came.dtype}."
            )
            if len(words) != value.ndim:
                fix = f" {value.ndim} axes came, {len(words)} are due."
                return (
                    text
                    + fix
                    + (f" Is the batch axis missing? `{name}.unsqueeze(0)`" if value.ndim == len(words) - 1 else "")
                )
            for word, size in zip(words, value.shape, strict=True):
                if sizes.setdefault(word, size) != size:
                    meaning = f" ({AXES[word]})" if word in AXES else ""
                    return f"{text} {word}{meaning} is {sizes[word]} in another argument, {size} here."
            if not isinstance(value, leaf.dtype[leaf.array_type, "..."]):
                return text + " The dtype is another one."
    return f"{function.__qualname__}: the shapes do not fit its annotations."


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked on every call."""
    inner = jaxtyping.jaxtyped(function, typechecker=CHECKER)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def with_checks(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        except TypeCheckError as error:
            if isinstance(error, ShapeError):
                raise
            raise ShapeError(f"{explain(function, signature.bind(*args, **kwargs).arguments)}\n\n{error}") from error

    with_checks.__shapes_checked__ = True  # type: ignore[attr-defined]
    return with_checks


def wrap(thing: Any) -> Any:
    """`checked` for what has annotated tensors, in classmethod, staticmethod and property too; the rest as it is."""
    if isinstance(thing, (classmethod, staticmethod)):
        inner = wrap(thing.__func__)
        return thing if inner is thing.__func__ else type(thing)(inner)
    if isinstance(thing, property) and thing.fget is not None:
        inner = wrap(thing.fget)
        return thing if inner is thing.fget else property(inner, thing.fset, thing.fdel, thing.__doc__)
    if (
        not isinstance(thing, types.FunctionType)
        or hasattr(thing, "__shapes_checked__")
        or inspect.isgeneratorfunction(thing)
    ):
        return thing
    return (
        checked(thing) if any(any(annotations.leaves(hint)) for hint in annotations.hints_of(thing).values()) else thing
    )


def wrap_module(module: types.ModuleType, package: str) -> None:
    """Wrap all that a module of the package defines, and the copies that others have imported from it."""
    swapped: dict[Any, Any] = {}
    for thing in list(vars(module).values()):
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            for key, attribute in list(vars(thing).items()):
                new = wrap(attribute)
                if new is not attribute:
                    setattr(thing, key, new)
        elif wrap(thing) is not thing:
            swapped[thing] = checked(thing)
    rooms = [room for name, room in list(sys.modules.items()) if name == package or name.startswith(package + ".")]
    for room in [module, *rooms]:
        for name, thing in list(vars(room).items()):
            if isinstance(thing, types.FunctionType) and thing in swapped:
                setattr(room, name, swapped[thing])


class Finder(importlib.abc.MetaPathFinder):
    """Lets Python load a module of the package as always, and wraps it afterwards."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Only for the package's own rooms; the tracer's are left alone."""
        if not fullname.startswith(self.package + ".") or fullname.startswith("tinyomni.tracing"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        loader, package = spec.loader, self.package
        load = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            load(module)
            wrap_module(module, package)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def check_shapes(package: str = "tinyomni") -> None:
    """Check the shapes of every call into `package` from now on. Call it first: names already imported stay plain."""
    if any(isinstance(finder, Finder) and finder.package == package for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, Finder(package))
    for name, module in list(sys.modules.items()):
        if name.startswith(package + ".") and not name.startswith("tinyomni.tracing"):
            wrap_module(module, package)
