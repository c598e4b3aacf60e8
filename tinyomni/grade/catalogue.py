"""All exercises, found by themselves in `lesson_*.py`, and `check`, which judges with them."""

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinyomni.grade import lessons as modules
from tinyomni.grade import progress
from tinyomni.grade.exercise import Exercise
from tinyomni.grade.judge import Verdict, judge


@dataclass(frozen=True)
class Lesson:
    """A lesson's exercises, in order. `book` is the file name of its notebooks, without the ending."""

    book: str
    title: str
    exercises: tuple[Exercise, ...]


@functools.cache
def lessons() -> tuple[Lesson, ...]:
    """Every lesson that has exercises. Raises ValueError if two exercises share a name."""
    found = []
    for name in sorted(module.name for module in pkgutil.iter_modules(modules.__path__)):
        if name.startswith("lesson_"):
            module = importlib.import_module(f"tinyomni.grade.lessons.{name}")
            own = tuple(each for each in vars(module).values() if isinstance(each, Exercise))
            for each in own:
                each.book = module.BOOK
            found.append(Lesson(module.BOOK, module.TITLE, own))
    names = [each.name for lesson in found for each in lesson.exercises]
    if double := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"exercises: two share the name {', '.join(sorted(double))}")
    return tuple(found)


@functools.cache
def exercises() -> dict[str, Exercise]:
    """All exercises by name."""
    return {each.name: each for lesson in lessons() for each in lesson.exercises}


def find(name: str) -> Exercise:
    """The exercise of this name. Raises AttributeError that names the nearest one."""
    if name not in exercises():
        near = difflib.get_close_matches(name, exercises(), 1)
        raise AttributeError(f"there is no exercise {name!r}{f'; is it {near[0]!r}?' if near else ''}")
    return exercises()[name]


class Check:
    """`check.split_heads(my_split_heads)` judges an answer, says why it is wrong, and keeps what was passed."""

    def __getattr__(self, name: str) -> Callable[[Any], Verdict]:
        exercise = find(name)

        def check(answer: Any) -> Verdict:
            return progress.record(judge(exercise, answer))

        check.__name__ = check.__qualname__ = name
        check.__doc__ = f"{exercise.title}: {name}{exercise.signature}"
        return check

    def __dir__(self) -> list[str]:
        return sorted(exercises())

    def __repr__(self) -> str:
        return f"check: {', '.join(exercises())}"


check = Check()
