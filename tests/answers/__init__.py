"""Answers to the exercises, written from the text of the task alone, before the graders' cases were read.

@right("embed")
def _(ids, table): ...

@wrong("embed", "the columns of the table")
def _(ids, table): ...
"""

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Callable
from typing import Any

Answer = Callable[..., Any]
RIGHT: dict[str, list[Answer]] = defaultdict(list)
WRONG: dict[str, list[tuple[str, Answer]]] = defaultdict(list)


def right(exercise: str) -> Callable[[Answer], Answer]:
    """Register an answer that has to pass."""

    def add(answer: Answer) -> Answer:
        RIGHT[exercise].append(answer)
        return answer

    return add


def wrong(exercise: str, mistake: str) -> Callable[[Answer], Answer]:
    """Register an answer that has to fail."""

    def add(answer: Answer) -> Answer:
        WRONG[exercise].append((mistake, answer))
        return answer

    return add


def load() -> None:
    """Import every module of this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
