"""`check`, which a learner calls: it grades an answer, says why it is wrong, and records what passed."""

from collections.abc import Callable
from typing import Any

from tinyomni.grade import progress
from tinyomni.grade.grading import NOT_ATTEMPTED, Verdict, grade_answer
from tinyomni.grade.registry import exercises, find_exercise


class Checker:
    """`check.split_heads(my_split_heads)`: one method for each exercise."""

    deferred = False  # while a notebook is graded: the grader itself runs every answer, once and with limits

    def __getattr__(self, name: str) -> Callable[[Any], Verdict]:
        if not exercises():  # a release for an exam
            return lambda answer: Verdict(name, NOT_ATTEMPTED, "not checked here: your instructor grades it")
        exercise = find_exercise(name)

        def check(answer: Any) -> Verdict:
            if self.deferred:
                return Verdict(name, NOT_ATTEMPTED, "graded at the end of the cell that defines it")
            return progress.record(grade_answer(exercise, answer))

        check.__name__ = check.__qualname__ = name
        check.__doc__ = f"{exercise.title}: {name}{exercise.signature}"
        return check

    def __dir__(self) -> list[str]:
        return sorted(exercises())

    def __repr__(self) -> str:
        return f"check: {', '.join(exercises())}"


check = Checker()
