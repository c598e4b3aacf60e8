"""The verdict on an answer: in words what was fed, what came, what was due, and which mistake it looks like."""

import html
import traceback
from dataclasses import dataclass
from typing import Any

from tinyomni.grade.compare import Difference, difference, show
from tinyomni.grade.exercise import AnswerError, Case, Exercise, Mutant, Outcome
from tinyomni.tracing import annotations

PASSED, FAILED, EMPTY = "passed", "failed", "not attempted"
SIGNS = {PASSED: "✔", FAILED: "✘", EMPTY: "✎"}


@dataclass(frozen=True)
class Verdict:
    """What `check.<name>(answer)` gives; true if the answer passed."""

    exercise: str
    status: str
    head: str
    lines: tuple[tuple[str, str], ...] = ()  # (label, text)
    diagnosis: str = ""
    see: str = ""  # a heading of the lesson
    book: str = ""
    note: str = ""

    def __bool__(self) -> bool:
        return self.status == PASSED

    @property
    def link(self) -> str:
        """Where the lesson explains it, as seen from exercises/."""
        return f"../notebooks/{self.book}.ipynb#{self.see.replace(' ', '-')}" if self.see else ""

    def __repr__(self) -> str:
        width = max((len(label) for label, _ in self.lines), default=0)
        rows = [f"  {label.ljust(width)}  {text}" for label, text in self.lines]
        if self.diagnosis:
            rows.append(f"  → {self.diagnosis}")
        if self.see:
            rows.append(f"    Read “{self.see}” in notebooks/{self.book}.ipynb")
        if self.note:
            rows.append(f"  {self.note}")
        return "\n".join([f"{SIGNS[self.status]} {self.exercise}: {self.head}", *rows])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(label)}</th>"
            f"<td style='text-align:left'><code>{html.escape(text)}</code></td></tr>"
            for label, text in self.lines
        )
        parts = [f"<b>{SIGNS[self.status]} {html.escape(self.exercise)}</b>: {html.escape(self.head)}"]
        parts += [f"<table>{rows}</table>"] if rows else []
        parts += [f"<b>{html.escape(self.diagnosis)}</b>"] if self.diagnosis else []
        if self.see:
            parts.append(f"Read <a href='{html.escape(self.link, quote=True)}'>{html.escape(self.see)}</a>")
        parts += [html.escape(self.note)] if self.note else []
        return "<div>" + "<br>".join(parts) + "</div>"

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "exercise": self.exercise, "status": self.status, "head": self.head, "lines": [list(x) for x in self.lines],
            "diagnosis": self.diagnosis, "see": self.see,
        }  # fmt: skip


def judge(exercise: Exercise, answer: Any) -> Verdict:
    """Run all cases and say what is so."""

    def verdict(status: str, head: str, *lines: tuple[str, str], mutant: Mutant | None = None) -> Verdict:
        why = f"This is what happens when {mutant.why}." if mutant else ""
        return Verdict(exercise.name, status, head, lines, why, mutant.see if mutant else "", exercise.taught)

    if answer is None or answer is ...:
        return verdict(EMPTY, "not attempted yet")
    if not callable(answer):
        return verdict(FAILED, f"the answer itself is due, {exercise.answer}, not what it gives; got {show(answer)}")
    cases = exercise.all_cases
    came = [exercise.run(answer, case.inputs) for case in cases]
    if all(each.empty for each in came):
        return verdict(EMPTY, f"not attempted yet{why_empty(exercise, came[0])}")
    wrong = [
        (case, each, found) for case, each in zip(cases, came, strict=True) if (found := fault(exercise, case, each))
    ]
    if not wrong:
        return verdict(PASSED, f"right in all {len(cases)} cases")
    if exercise.given is not None and alike(
        exercise, came, [exercise.run(exercise.given, case.inputs) for case in cases]
    ):
        return verdict(EMPTY, "not attempted yet: it behaves as it was given")
    # the smallest case is the easiest to follow; those that the framework made come last
    case, each, found = min(wrong, key=lambda each: (each[0].derived, size(each[0])))
    suspects = like(exercise, came, cases) or like(exercise, came, [case for case in cases if not case.derived])
    head = {
        "type": "a result of another type is due",
        "shape": "the shape is not right",
        "dtype": "the shape is right, the dtype is not",
        "values": "the shape is right, the values are not",
        "error": "it stopped with an error",
        "no error": "an error is due",
        "changed": "the result is right, but the input is not what it was",
    }[found.kind]
    if found.kind in ("shape", "values") and not annotations.is_array(exercise.hint("return")):
        head = "the result is not right"
    head += f" (case “{case.what}”; {len(wrong)} of {len(cases)} cases fail)"
    fed = [("" if at else "fed", text) for at, text in enumerate(exercise.fed(case))]
    lines = [*fed, ("came", told(exercise, each)), ("due", told(exercise, case.due)), ("so", found.text)]
    return verdict(FAILED, head, *lines, mutant=suspects[0] if len(suspects) == 1 else None)


def size(case: Case) -> int:
    """How much there is to look at."""
    return sum(getattr(value, "numel", lambda: 8)() for value in case.inputs.values())


def told(exercise: Exercise, outcome: Outcome) -> str:
    """A result or an error in a line."""
    if outcome.error is None:
        return show(outcome.value, exercise.hint("return"))
    text = str(outcome.error).strip().splitlines()
    return f"{type(outcome.error).__name__}{': ' + text[0][:200] if text else ''}"


def compare(exercise: Exercise, due: Any, came: Any) -> Difference | None:
    """Two results, as near as the exercise asks for."""
    return difference(due, came, exercise.hint("return"), exercise.rtol, exercise.atol)


def fault(exercise: Exercise, case: Case, came: Outcome) -> Difference | None:
    """What is wrong with one outcome; None if nothing is."""
    due = case.due
    if came.error is not None:
        if due.error is not None and isinstance(came.error, type(due.error)):
            return None
        if isinstance(came.error, AnswerError):
            return Difference("type", str(came.error))
        return Difference("error", where_it_stopped(came.error))
    if due.error is not None:
        return Difference("no error", f"{type(due.error).__name__} should be raised: {due.error}")
    found = compare(exercise, due.value, came.value)
    if found is None and came.changed:
        return Difference("changed", f"{' and '.join(came.changed)} was changed in place: work on a new tensor or list")
    return found


def where_it_stopped(error: Exception) -> str:
    """The last line of the learner's own code that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if "site-packages" not in each.filename and "tinyomni" not in each.filename]
    last = own[-1] if own else None
    line = f", in line {last.lineno} of {last.name}: {last.line}" if last and last.line else ""
    return f"{type(error).__name__}{line}"


def why_empty(exercise: Exercise, outcome: Outcome) -> str:
    """What an answer that gives nothing may lack."""
    if outcome.error is None:
        return " (it gives nothing back: is a `return` missing?)"
    last = traceback.extract_tb(outcome.error.__traceback__)[-1].name
    return (
        "" if last in (exercise.answer, "__init__", "forward", "<lambda>") else f" (`{last}`, which it calls, is empty)"
    )


def like(exercise: Exercise, came: list[Outcome], cases: list[Case]) -> list[Mutant]:
    """The mutants that behave like this answer in these cases."""
    places = [at for at, case in enumerate(exercise.all_cases) if any(case is each for each in cases)]
    mine = [came[at] for at in places]
    return [
        mutant
        for mutant, theirs in zip(exercise.mutants, exercise.mutant_outcomes, strict=True)
        if alike(exercise, mine, [theirs[at] for at in places])
    ]


def alike(exercise: Exercise, mine: list[Outcome], theirs: list[Outcome]) -> bool:
    """The same in all cases, and in one of them at least a result, not an error."""
    pairs = list(zip(mine, theirs, strict=True))
    return any(one.error is None for one in mine) and all(same(exercise, one, other) for one, other in pairs)


def same(exercise: Exercise, mine: Outcome, theirs: Outcome) -> bool:
    """The same result, or an error of the same type."""
    if mine.error is not None or theirs.error is not None:
        return type(mine.error) is type(theirs.error)
    return mine.changed == theirs.changed and compare(exercise, theirs.value, mine.value) is None
