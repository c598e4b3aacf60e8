"""All exercises, found in `lessons/lesson_*.py`."""

import difflib
import functools
import importlib
import pkgutil
from collections import Counter
from dataclasses import dataclass

from tinyomni.grade import lessons as lesson_modules
from tinyomni.grade.exercise import Exercise

NO_GRADERS = "This release holds no graders: your instructor has them."


@dataclass(frozen=True)
class Lesson:
    """A lesson's exercises, in order. `notebook` is the file name of its notebooks, without the ending."""

    notebook: str
    title: str
    exercises: tuple[Exercise, ...]


@functools.cache
def lessons() -> tuple[Lesson, ...]:
    """Every lesson that has exercises. Raises ValueError if two exercises share a name."""
    found = []
    for name in sorted(module.name for module in pkgutil.iter_modules(lesson_modules.__path__)):
        if name.startswith("lesson_"):
            module = importlib.import_module(f"{lesson_modules.__name__}.{name}")
            own = tuple(each for each in vars(module).values() if isinstance(each, Exercise))
            for each in own:
                each.notebook = module.NOTEBOOK
            found.append(Lesson(module.NOTEBOOK, module.TITLE, own))
    uses = Counter(each.name for lesson in found for each in lesson.exercises)
    if duplicates := sorted(name for name, count in uses.items() if count > 1):
        raise ValueError(f"duplicate exercise names: {', '.join(duplicates)}")
    return tuple(found)


@functools.cache
def exercises() -> dict[str, Exercise]:
    """All exercises by name."""
    return {each.name: each for lesson in lessons() for each in lesson.exercises}


def find_exercise(name: str) -> Exercise:
    """Raises AttributeError with the closest name if there is no such exercise."""
    if name not in exercises():
        close = difflib.get_close_matches(name, exercises(), 1)
        raise AttributeError(f"no exercise {name!r}{f'; did you mean {close[0]!r}?' if close else ''}")
    return exercises()[name]


def find_lesson(notebook: str) -> Lesson:
    """The lesson of this notebook; KeyError if it has no exercises."""
    return {lesson.notebook: lesson for lesson in lessons()}[notebook]
