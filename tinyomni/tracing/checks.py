"""Run-time shape checks: off by default and then free, switched on before a lesson or a test.

`check_shapes()` wraps every annotated function of a package with jaxtyping and beartype, in modules that are imported
already and in those that come later. A mismatch is explained in our words; jaxtyping's own text stands below.

jaxtyping has an import hook that decorates every function of a package with a type checker. It is not used, because
it changes modules while they are imported only (`check_shapes()` in a notebook comes later), leaves async functions
out, takes the type checker as a text, whose error it replaces by its own words, and checks functions without tensors
too.
"""

import copy
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import pkgutil
import reprlib
import sys
import threading
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeException
from jaxtyping import TypeCheckError

from tinyomni.tracing import annotations, mismatch, recorder, values
from tinyomni.tracing.errors import ShapeError
from tinyomni.tracing.glossaries import glossary_of
from tinyomni.tracing.mismatch import Context, Mismatch

CONF = BeartypeConf(is_pep484_tower=True)
CHECKER = beartype(conf=CONF)
OURS = __name__.rpartition(".")[0]  # the tracer itself is never checked
NOTHING = "check_shapes({!r}): it has no function with jaxtyping annotations, so that nothing is checked"


NO_RESULT = object()
last = threading.local()  # its `result`: what the function that is judged returned; jaxtyping's error does not hold it


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked on every call; of a generator, those of its arguments."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        last.result = NO_RESULT
        last.result = result = function(*args, **kwargs)
        return result

    @functools.wraps(function)
    def with_checks(*args: Any, **kwargs: Any) -> Any:
        last.result = NO_RESULT
        try:
            return inner(*args, **kwargs)
        except ShapeError:  # explained already, by a call further inside
            raise
        except TypeCheckError as error:
            raise _explained(function, signature.bind(*args, **kwargs).arguments, signature, error) from error
        finally:
            last.result = NO_RESULT  # nothing is kept alive

    @functools.wraps(function)
    def begun_with_checks(*args: Any, **kwargs: Any) -> Any:
        """The body of a generator has not begun when it is made: a wrong argument would be noticed late."""
        arguments = signature.bind(*args, **kwargs).arguments
        if found := why(function, signature, arguments):
            raise _refused(function, arguments, found)
        return function(*args, **kwargs)

    @functools.wraps(function)
    async def awaited_with_checks(*args: Any, **kwargs: Any) -> Any:
        """jaxtyping would judge the coroutine, not what it returns."""
        arguments = signature.bind(*args, **kwargs).arguments
        if found := why(function, signature, arguments):
            raise _refused(function, arguments, found)
        result = await function(*args, **kwargs)
        if found := why(function, signature, arguments, result):
            raise ShapeError(str(found))
        return result

    wrapper: Any
    if inspect.iscoroutinefunction(function):
        wrapper = awaited_with_checks
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        wrapper = begun_with_checks
    else:
        hints = remembered.__annotations__ = checkable_hints(function)
        empty = inspect.Parameter.empty
        remembered.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[each.replace(annotation=hints.get(name, empty)) for name, each in signature.parameters.items()],
            return_annotation=hints.get("return", empty),
        )
        inner = jaxtyping.jaxtyped(remembered, typechecker=CHECKER)
        wrapper = with_checks
    wrapper.__shapes_checked__ = True
    return wrapper


def checkable_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations that beartype can check, resolved; a protocol that is not for run time is none of them."""
    return {name: hint for name, hint in annotations.hints_of(function).items() if _is_checkable(hint)}


def _is_checkable(hint: Any) -> bool:
    try:
        is_bearable(None, hint, conf=CONF)
    except BeartypeException:
        return False
    return True


def _explained(
    function: Callable[..., Any], arguments: Mapping[str, Any], signature: inspect.Signature, error: TypeCheckError
) -> ShapeError:
    """jaxtyping's error in our words."""
    if found := why(function, signature, arguments):
        return _refused(function, arguments, found, f"\n\n{error}")
    found = why(function, signature, arguments, last.result)
    return ShapeError(f"{found or function.__qualname__}\n\n{error}")


def _refused(function: Any, arguments: Mapping[str, Any], found: Mismatch, more: str = "") -> ShapeError:
    """The error of a call that does not begin; a trace that is running records it."""
    if recorder.current is not None:
        recorder.current.refused(function, arguments, found)
    return ShapeError(f"{found}{more}")


def why(
    function: Callable[..., Any], signature: inspect.Signature, arguments: Mapping[str, Any], result: Any = NO_RESULT
) -> Mismatch | None:
    """Which argument does not fit, or else the result if there is one; None if all do."""
    hints = checkable_hints(function)
    braces = annotations.brace_values(annotations.braces(hints), arguments)
    hints = {name: annotations.fill(hint, braces) for name, hint in hints.items()}
    call = function.__qualname__
    given = dict(arguments) if result is NO_RESULT else {**arguments, "return": result}
    name = annotations.mismatched(given, hints)
    if name is not None:
        bound = [each for other in given for each in values.annotated_tensors(other, given[other], hints.get(other))]
        context = Context(glossary=glossary_of(function.__module__))
        return mismatch.explain(call, name, given[name], bound, hints, context)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, value in given.items():
        one = name == "return" or signature.parameters[name].kind not in several
        if one and name in hints and not is_bearable(value, hints[name], conf=CONF):
            kind = hints[name].__name__ if isinstance(hints[name], type) else str(hints[name])
            return Mismatch(call, name, kind, f"{reprlib.repr(value)} ({type(value).__name__})")
    return None


def wrap(thing: Any) -> Any:
    """`checked` for what has annotated tensors, in classmethod, staticmethod and property too; the rest as it is."""
    if isinstance(thing, (classmethod, staticmethod)):
        inner = wrap(thing.__func__)
        return thing if inner is thing.__func__ else type(thing)(inner)
    if isinstance(thing, property) and thing.fget is not None:
        inner = wrap(thing.fget)
        return thing if inner is thing.fget else property(inner, thing.fset, thing.fdel, thing.__doc__)
    if not isinstance(thing, types.FunctionType) or hasattr(thing, "__shapes_checked__"):
        return thing
    return checked(thing) if any(annotations.leaves(hint) for hint in annotations.hints_of(thing).values()) else thing


def wrap_class(kind: type, module: str) -> int:
    """Wrap the methods of a class and of the classes in it; how many there are."""
    count = 0
    for key, attribute in list(vars(kind).items()):
        if (
            inspect.isclass(attribute)
            and attribute.__module__ == module
            and attribute.__qualname__.startswith(kind.__qualname__ + ".")
        ):
            count += wrap_class(attribute, module)
            continue
        new = wrap(attribute)
        if new is not attribute:
            setattr(kind, key, new)
        count += new is not attribute or hasattr(attribute, "__shapes_checked__")
    return count


def wrap_module(module: types.ModuleType, package: str) -> int:
    """Wrap all that a module of the package defines, and the copies that others have imported from it; how many
    functions there are."""
    count = 0
    swapped: dict[Any, Any] = {}
    for thing in list(vars(module).values()):
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            count += wrap_class(thing, module.__name__)
        elif hasattr(thing, "__shapes_checked__"):
            count += 1
        elif (new := wrap(thing)) is not thing:
            swapped[thing] = new
    importers = [each for name, each in list(sys.modules.items()) if within(name, package)]
    for importer in [module, *importers]:
        for name, thing in list(vars(importer).items()):
            if isinstance(thing, types.FunctionType) and thing in swapped:
                setattr(importer, name, swapped[thing])
    return count + len(swapped)


def within(name: str, package: str) -> bool:
    """Is this module the package, or inside it?"""
    return name == package or name.startswith(package + ".")


class Finder(importlib.abc.MetaPathFinder):
    """Lets Python load a module of the package as always, and wraps it afterwards."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.asked = set[tuple[int, str]]()  # for what module, by what thread

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Only for the package's own modules; the tracer's are left alone."""
        asked = threading.get_ident(), fullname
        # a finder of another tool may ask all others, too
        if not within(fullname, self.package) or within(fullname, OURS) or asked in self.asked:
            return None
        others = [each for each in sys.meta_path if not isinstance(each, Finder) and hasattr(each, "find_spec")]
        self.asked.add(asked)
        try:
            found = (each.find_spec(fullname, path, target) for each in others)
            spec = next((each for each in found if each is not None), None)
        finally:
            self.asked.remove(asked)
        if spec is None or spec.loader is None:
            return None
        # a copy, since one loader may serve many modules, as pytest's does for `test_*.py` and `*_test.py`
        loader, package = copy.copy(spec.loader), self.package
        load = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            load(module)
            if not wrap_module(module, package) and not hasattr(module, "__path__") and module.__name__ == package:
                warnings.warn(NOTHING.format(package), stacklevel=2)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        spec.loader = loader
        return spec


def check_shapes(package: str = __name__.partition(".")[0]) -> None:
    """Check the shapes of every call into a package or module from now on.

    Call it first: copies that other packages have imported already stay plain. Functions that are defined inside
    functions are left out, and so are those in `functools.lru_cache` and what a generator yields. Raises
    ModuleNotFoundError for an unknown name, and warns if there is nothing to check.
    """
    recorder.strict_by_default = True
    if any(isinstance(finder, Finder) and finder.package == package for finder in sys.meta_path):
        return
    loaded = {
        name: each for name, each in list(sys.modules.items()) if within(name, package) and not within(name, OURS)
    }
    if not loaded and not _exists(package):
        raise ModuleNotFoundError(f"check_shapes({package!r}): there is no module of this name", name=package)
    sys.meta_path.insert(0, Finder(package))
    found = sum([wrap_module(module, package) for module in loaded.values()])
    root = getattr(sys.modules.get(package), "__path__", None)
    lazy = root is not None and len(loaded) == 1 and any(pkgutil.iter_modules(root))  # its modules may come later
    if loaded and not found and not lazy:
        warnings.warn(NOTHING.format(package), stacklevel=2)


def _exists(module: str) -> bool:
    """Could it be imported? What is in a module that is no package could not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
