"""Run-time shape checks: off by default and then free, switched on before a lesson or a test.

`check_shapes()` wraps every annotated function of the package with jaxtyping and beartype, in rooms that are loaded
already and in those that come later. A wrong shape is explained in our words; jaxtyping's own text stands below.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import reprlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from jaxtyping import TypeCheckError

from tinyomni.tracing.errors import ShapeError
from tinyomni.tracing import annotations, explain

CONF = BeartypeConf(is_pep484_tower=True)
CHECKER = beartype(conf=CONF)


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
            values = signature.bind(*args, **kwargs).arguments
            hints = annotations.hints_of(function)
            told = annotations.told(annotations.braces(hints), values)
            hints = {name: annotations.fill(hint, told) for name, hint in hints.items()}
            wrong = annotations.misfit(values, hints)
            if wrong:
                ours = explain.misfit(function.__qualname__, wrong, values, hints)[1]
            elif other := other_misfit(signature, values, hints):
                ours = f"{function.__qualname__}: {other}"
            else:
                ours = f"{function.__qualname__}: the result should be {annotations.show(hints.get('return'))}."
            raise ShapeError(f"{ours}\n\n{error}") from error

    with_checks.__shapes_checked__ = True  # type: ignore[attr-defined]
    return with_checks


def other_misfit(signature: inspect.Signature, values: dict[str, Any], hints: dict[str, Any]) -> str:
    """What is wrong with an argument that is no tensor; empty if nothing is."""
    for name, value in values.items():
        one = signature.parameters[name].kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if one and name in hints and not is_bearable(value, hints[name], conf=CONF):
            kind = hints[name].__name__ if isinstance(hints[name], type) else str(hints[name])
            return f"{name} should be {kind}; got {reprlib.repr(value)} ({type(value).__name__})."
    return ""


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
