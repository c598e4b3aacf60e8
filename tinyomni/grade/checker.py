"""`check`, which a learner calls: it grades an answer, says why it is wrong, and records what passed."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tinyomni.grade import progress
from tinyomni.grade.exercise import Exercise
from tinyomni.grade.grading import NOT_ATTEMPTED, Verdict, find_problem, judge
from tinyomni.grade.registry import exercises, find_exercise


class TooSlow(BaseException):
    """Raised in an answer when its time is over; `except Exception` does not catch it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooSlow in the block after so many seconds; only in the main thread, and where the system has signals."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again each second, if a bare `except` catches it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def grade_in_time(exercise: Exercise, answer: Any, seconds: float) -> Verdict:
    """The verdict on an answer that may never return."""
    if problem := find_problem(exercise, answer):
        return judge(exercise, problem)
    cases = exercise.all_cases
    try:
        with time_limit(seconds):
            outcomes = [exercise.run(answer, case.inputs) for case in cases]
    except TooSlow:
        return judge(exercise, f"it ran for more than {seconds:g} s: is there a loop that never ends?")
    return judge(exercise, outcomes)


def is_shown() -> bool:
    """Does something display what a call returns? A notebook and a prompt do, a script does not."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None or hasattr(sys, "ps1")


class Checker:
    """`check.split_heads(my_split_heads)`: one method for each exercise."""

    seconds = 60.0  # for all cases of an answer
    deferred = False  # while a notebook is graded: the grader itself runs every answer, once and with limits

    def __getattr__(self, name: str) -> Callable[[Any], Verdict]:
        if not exercises():  # a release for an exam
            return lambda answer: Verdict(name, NOT_ATTEMPTED, "not checked here: your instructor grades it")
        exercise = find_exercise(name)

        def check(answer: Any) -> Verdict:
            if self.deferred:
                return Verdict(name, NOT_ATTEMPTED, "graded at the end of the cell that defines it")
            verdict = progress.record(grade_in_time(exercise, answer, self.seconds))
            if not is_shown():
                print(verdict)
            return verdict

        check.__name__ = check.__qualname__ = name
        check.__doc__ = f"{exercise.title}: {name}{exercise.signature}"
        return check

    def __dir__(self) -> list[str]:
        return sorted(exercises())

    def __repr__(self) -> str:
        return f"check: {', '.join(exercises())}"


check = Checker()
