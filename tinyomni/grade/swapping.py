"""A learner's functions in place of the library's: `with swap(split_heads=mine): ...`, then everything is as before.

An answer must have passed its exercise. While it is swapped in, every call of it is checked against the library's own
annotations, and a trace shows it under the library's name.
"""

import contextlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from tinyomni.errors import InputError
from tinyomni.grade.exercise import Replacement
from tinyomni.grade.grading import grade_answer
from tinyomni.grade.registry import exercises, find_exercise
from tinyomni.tracing.checks import wrap

deferred = False  # while a notebook is graded: what a swapped model does takes seconds, and answers nothing


class CellSkipped(Exception):
    """The rest of this cell is of no use here."""


@contextlib.contextmanager
def swap(**answers: Any) -> Iterator[None]:
    """Put answers, by the names of their exercises, into the library; models that already exist use them too.

    Raises AttributeError for an unknown exercise, InputError for one without a counterpart in the library or an answer
    that does not pass its check. Nothing is replaced then.
    """
    if deferred:
        raise CellSkipped("not run while the notebook is graded")
    pairs: list[tuple[Replacement, Any]] = []
    for name, answer in answers.items():
        exercise = find_exercise(name)
        if not exercise.replacements:
            swappable = ", ".join(each.name for each in exercises().values() if each.replacements)
            raise InputError(f"swap: {name} has no counterpart in the library; these have one: {swappable}")
        verdict = grade_answer(exercise, answer)
        if not verdict:
            raise InputError(f"swap: {name} must pass its check first.\n{verdict}")
        pairs += [(replacement, answer) for replacement in exercise.replacements]
    with contextlib.ExitStack() as stack:
        for replacement, answer in pairs:
            stack.enter_context(replaced(replacement, answer))
        yield


@contextlib.contextmanager
def replaced(replacement: Replacement, answer: Any) -> Iterator[None]:
    """Replace one function or class for the duration of the context."""
    holder, name = resolve(replacement.path)
    adapt, original = replacement.adapt, vars(holder)[name]
    if inspect.isclass(original) and issubclass(original, nn.Module):
        with patched_forward(original, lambda layer: adapt(answer, layer) if adapt else answer(layer)):
            yield
        return
    new = wrap(with_signature_of(inspect.unwrap(original), adapt(answer) if adapt else answer))
    in_class = inspect.isclass(holder)
    rebind([holder] if in_class else library_modules(), original, new)
    try:
        yield
    finally:
        # modules that imported it in the meantime get the original back as well
        rebind([holder] if in_class else library_modules(), new, original)


def resolve(path: str) -> tuple[Any, str]:
    """`tinyomni.vision.ViTTiny.flatten` → the class (or module) that holds it, and its name there."""
    holder, _, name = path.rpartition(".")
    return pkgutil.resolve_name(holder), name


def library_modules() -> list[types.ModuleType]:
    """All loaded modules but those of the exercises, whose correct answers may call the original, and of the tracer."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("tinyomni.") and not name.startswith(("tinyomni.grade", "tinyomni.tracing"))
    ]


def rebind(holders: list[Any], original: Any, new: Any) -> None:
    """Replace an object under every name that refers to it."""
    for holder in holders:
        for name, value in list(vars(holder).items()):
            if value is original:
                setattr(holder, name, new)


@contextlib.contextmanager
def patched_forward(kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    """Every layer of this class passes its input on to the learner's layer, which has the same weights."""
    made: dict[int, tuple[nn.Module, nn.Module]] = {}  # the layer is kept alive, so that its id stays unique
    original = vars(kind)["forward"]

    def call(layer: nn.Module, *inputs: Any) -> Any:
        if id(layer) not in made:
            made[id(layer)] = layer, make(layer)
        learners = made[id(layer)][1]
        accepted = inspect.signature(learners.forward).parameters
        signature = inspect.signature(inspect.unwrap(original)).parameters.values()
        x, *optional = zip(list(signature)[1:], inputs, strict=True)
        # a learner's layer need not accept what is not used, such as a cache
        used = {each.name: value for each, value in optional if each.name in accepted or value is not each.default}
        return learners(x[1], **used)

    kind.forward = wrap(with_signature_of(inspect.unwrap(original), call))  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.forward = original  # type: ignore[method-assign]


def with_signature_of(original: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the original's name, arguments and annotations that calls another one."""
    parameters = list(inspect.signature(original).parameters.values())
    if starred := [each.name for each in parameters if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]:
        raise InputError(f"swap: a function with *{starred[0]} cannot be replaced")
    bare = [each.replace(annotation=each.empty, default=each.empty) for each in parameters]
    arguments = ", ".join(f"{each.name}={each.name}" if each.kind is each.KEYWORD_ONLY else each.name for each in bare)
    namespace: dict[str, Any] = {"call": call}
    exec(f"def {original.__name__}{inspect.Signature(bare)}: return call({arguments})", namespace)
    new = namespace[original.__name__]
    new.__code__ = new.__code__.replace(co_qualname=original.__code__.co_qualname)
    for name in ("__module__", "__qualname__", "__doc__", "__annotations__", "__defaults__", "__kwdefaults__"):
        setattr(new, name, getattr(original, name))
    return new
