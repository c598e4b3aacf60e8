"""The learner's own parts in the library's place: `with swap(split_heads=mine): ...`, then everything is as before.

A part must have passed its exercise. While it is in, every call of it is held against the library's own annotations,
and a trace shows it under the library's name.
"""

import contextlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from tinyomni.grade.catalogue import find
from tinyomni.grade.exercise import Exercise, Part
from tinyomni.grade.judge import judge
from tinyomni.tracing.checks import wrap


@contextlib.contextmanager
def swap(**answers: Any) -> Iterator[None]:
    """Put answers, by the names of their exercises, into the library, in models that are made already too.

    Raises AttributeError for a name that is no exercise, ValueError for an exercise with no place in the library or an
    answer that does not pass its check. Nothing is replaced then.
    """
    ready: list[tuple[Part, Any]] = []
    for name, answer in answers.items():
        exercise = find(name)
        if not exercise.parts:
            raise ValueError(f"swap: {name} stands for nothing in the library; these do: {', '.join(replaceable())}")
        verdict = judge(exercise, answer)
        if not verdict:
            raise ValueError(f"swap: {name} has to pass its check first.\n{verdict}")
        ready += [(part, answer) for part in exercise.parts]
    with contextlib.ExitStack() as stack:
        for part, answer in ready:
            stack.enter_context(replaced(part, answer))
        yield


def replaceable() -> list[str]:
    """The exercises whose answers can stand in for something."""
    from tinyomni.grade.catalogue import exercises

    def has_place(exercise: Exercise) -> bool:
        return bool(exercise.parts)

    return [each.name for each in filter(has_place, exercises().values())]


@contextlib.contextmanager
def replaced(part: Part, answer: Any) -> Iterator[None]:
    """One part, for a while."""
    holder, name = locate(part.path)
    old = vars(holder)[name]
    if inspect.isclass(old) and issubclass(old, nn.Module):
        with patched_forward(old, lambda layer: part.adapt(answer, layer) if part.adapt else answer(layer)):
            yield
        return
    new = wrap(stand_in(inspect.unwrap(old), part.adapt(answer) if part.adapt else answer))
    in_class = inspect.isclass(holder)
    put([holder] if in_class else modules(), old, new)
    try:
        yield
    finally:
        put([holder] if in_class else modules(), new, old)  # whoever imported it meanwhile gets it back too


def locate(path: str) -> tuple[Any, str]:
    """`tinyomni.vision.ViTTiny.flatten` → the class (or module) that holds it, and its name there."""
    holder, _, name = path.rpartition(".")
    return pkgutil.resolve_name(holder), name


def modules() -> list[types.ModuleType]:
    """The rooms of the library; the exercises keep the original, as their right answers may call it."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("tinyomni.") and not name.startswith(("tinyomni.grade", "tinyomni.tracing"))
    ]


def put(holders: list[Any], old: Any, new: Any) -> None:
    """Under whatever name it is known there."""
    for holder in holders:
        for name, value in list(vars(holder).items()):
            if value is old:
                setattr(holder, name, new)


@contextlib.contextmanager
def patched_forward(kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    """Every layer of this kind hands its input to the learner's layer, which has the same weights."""
    made: dict[int, tuple[nn.Module, nn.Module]] = {}  # the old layer is kept so that its id stays its own
    old = vars(kind)["forward"]

    def call(layer: nn.Module, *inputs: Any) -> Any:
        if id(layer) not in made:
            made[id(layer)] = layer, make(layer)
        mine = made[id(layer)][1]
        known = inspect.signature(mine.forward).parameters
        x, *more = zip(list(inspect.signature(inspect.unwrap(old)).parameters.values())[1:], inputs, strict=True)
        # a learner's layer need not know of what is not used, such as a cache
        used = {each.name: value for each, value in more if each.name in known or value is not each.default}
        return mine(x[1], **used)

    kind.forward = wrap(stand_in(inspect.unwrap(old), call))  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.forward = old  # type: ignore[method-assign]


def stand_in(original: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the original's name, arguments and annotations that calls another one."""
    parameters = inspect.signature(original).parameters.values()
    plain = [each.replace(annotation=each.empty, default=each.empty) for each in parameters]
    head = str(inspect.Signature(without_gaps(plain)))
    handed = ", ".join(f"{each.name}={each.name}" if each.kind is each.KEYWORD_ONLY else each.name for each in plain)
    space: dict[str, Any] = {"call": call}
    exec(f"def {original.__name__}{head}: return call({handed})", space)
    new = space[original.__name__]
    new.__code__ = new.__code__.replace(co_qualname=original.__code__.co_qualname)
    for name in ("__module__", "__qualname__", "__doc__", "__annotations__", "__defaults__", "__kwdefaults__"):
        setattr(new, name, getattr(original, name))
    return new


def without_gaps(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """As they are; stars cannot be handed on by name."""
    starred = [each.name for each in parameters if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if starred:
        raise ValueError(f"swap: a function with *{starred[0]} cannot be replaced")
    return parameters
