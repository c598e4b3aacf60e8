"""The verdict on an answer: the inputs, what was expected, what it gave, and which known mistake it looks like."""

import html
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyomni.grade.comparison import Difference, Kind, find_difference, format_value
from tinyomni.grade.exercise import GRADIENTS, AnswerError, Case, Exercise, Mutant, Outcome
from tinyomni.grade.formulas import plain
from tinyomni.tracing import annotations

PASSED, FAILED, NOT_ATTEMPTED = "passed", "failed", "not attempted"
SYMBOLS = {PASSED: "✔", FAILED: "✘", NOT_ATTEMPTED: "✎"}
LIBRARY = Path(__file__).resolve().parents[1]

SUMMARIES: dict[Kind, str] = {
    "type": "wrong type",
    "shape": "wrong shape",
    "dtype": "right shape, wrong dtype",
    "values": "right shape, wrong values",
    "gradient": "right values, wrong gradient",
    "error": "it raised an error",
    "no error": "it should raise an error",
    "modified": "right result, but an input was modified in place",
    "answer": "not what the task asks for",
}


@dataclass(frozen=True)
class Verdict:
    """The result of `check.<name>(answer)`; true if the answer passed."""

    exercise: str
    status: str
    summary: str
    lines: tuple[tuple[str, str], ...] = ()  # (label, text)
    diagnosis: str = ""
    section: str = ""  # a heading of the lesson
    notebook: str = ""
    note: str = ""

    def __bool__(self) -> bool:
        return self.status == PASSED

    @property
    def link(self) -> str:
        """Where the lesson explains it, as seen from exercises/."""
        return f"../notebooks/{self.notebook}.ipynb#{self.section.replace(' ', '-')}" if self.section else ""

    def __repr__(self) -> str:
        indent = max((len(label) for label, _ in self.lines), default=0)
        rows = [f"  {label.ljust(indent)}  {text}" for label, text in self.lines]
        if self.diagnosis:
            rows.append(f"  → {self.diagnosis}")
        if self.section:
            rows.append(f"    Read “{plain(self.section)}” in notebooks/{self.notebook}.ipynb")
        if self.note:
            rows.append(f"  {self.note}")
        return "\n".join([f"{SYMBOLS[self.status]} {self.exercise}: {self.summary}", *rows])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(label)}</th>"
            f"<td style='text-align:left'><code>{html.escape(text)}</code></td></tr>"
            for label, text in self.lines
        )
        parts = [f"<b>{SYMBOLS[self.status]} {html.escape(self.exercise)}</b>: {html.escape(self.summary)}"]
        parts += [f"<table>{rows}</table>"] if rows else []
        parts += [f"<b>{html.escape(self.diagnosis)}</b>"] if self.diagnosis else []
        if self.section:
            parts.append(f"Read <a href='{html.escape(self.link, quote=True)}'>{html.escape(plain(self.section))}</a>")
        parts += [html.escape(self.note)] if self.note else []
        return "<div>" + "<br>".join(parts) + "</div>"

    def to_json(self) -> dict[str, Any]:
        """What `tinyomni grade` collects."""
        return {
            "exercise": self.exercise, "status": self.status, "summary": self.summary,
            "lines": [list(line) for line in self.lines], "diagnosis": self.diagnosis, "section": self.section,
            "notebook": self.notebook,
        }  # fmt: skip


def grade_answer(exercise: Exercise, answer: Any) -> Verdict:
    """Run an answer in all cases and explain the first difference."""
    problem = find_problem(exercise, answer)
    return judge(exercise, problem or [exercise.run(answer, case.inputs) for case in exercise.all_cases])


def find_problem(exercise: Exercise, answer: Any) -> str:
    """Why an answer cannot be run; an empty string if it can."""
    if answer is None or answer is ...:
        return NOT_ATTEMPTED
    if not callable(answer):
        return f"expected {exercise.answer_name} itself, not its result; got {format_value(answer)}"
    return ""


def judge(exercise: Exercise, outcomes: list[Outcome] | str) -> Verdict:
    """The verdict on an answer's outcomes in all cases, or on why there are none."""

    def verdict(status: str, summary: str, *lines: tuple[str, str], mutant: Mutant | None = None) -> Verdict:
        diagnosis = f"This is what happens when {mutant.cause}." if mutant else ""
        section = mutant.section if mutant else ""
        return Verdict(exercise.name, status, summary, lines, diagnosis, section, exercise.taught_in)

    if isinstance(outcomes, str):
        untouched = outcomes == NOT_ATTEMPTED
        return verdict(NOT_ATTEMPTED, "not attempted yet") if untouched else verdict(FAILED, outcomes)
    cases = exercise.all_cases
    if all(outcome.empty for outcome in outcomes):
        return verdict(NOT_ATTEMPTED, f"not attempted yet{why_empty(exercise, outcomes[0])}")
    failures = [
        (case, outcome, difference)
        for case, outcome in zip(cases, outcomes, strict=True)
        if (difference := find_fault(exercise, case, outcome))
    ]
    if not failures:
        return verdict(PASSED, f"all {len(cases)} cases pass")
    if exercise.starter is not None:
        unedited = [exercise.run(exercise.starter, case.inputs) for case in cases]
        if behave_alike(exercise, outcomes, unedited):
            return verdict(NOT_ATTEMPTED, "not attempted yet: it behaves like the program in the stub")
    # the smallest case is the easiest to follow; derived cases come last
    case, outcome, difference = min(failures, key=lambda failure: (failure[0].derived, input_size(failure[0])))
    suspects = matching_mutants(exercise, outcomes, cases)
    suspects = suspects or matching_mutants(exercise, outcomes, [case for case in cases if not case.derived])
    summary = SUMMARIES[difference.kind]
    if difference.kind in ("shape", "values") and not annotations.is_array(exercise.hint("return")):
        summary = "wrong result"
    summary += f" (case “{case.name}”; {len(failures)} of {len(cases)} cases fail)"
    inputs = [("" if index else "input", text) for index, text in enumerate(exercise.describe_inputs(case))]
    expected, actual = describe_outcome(exercise, case.expected), describe_outcome(exercise, outcome)
    lines = [*inputs, ("expected", expected), ("got", actual), ("difference", difference.message)]
    if isinstance(outcome.error, AnswerError):  # its text is the difference
        lines.remove(("got", actual))
    return verdict(FAILED, summary, *lines, mutant=suspects[0] if len(suspects) == 1 else None)


def input_size(case: Case) -> int:
    """How many numbers a reader would have to look at."""
    return sum(getattr(value, "numel", lambda: 8)() for value in case.inputs.values())


def describe_outcome(exercise: Exercise, outcome: Outcome) -> str:
    """A result or an error in one line."""
    if outcome.error is None:
        return format_value(outcome.value, exercise.hint("return"))
    message = str(outcome.error).strip().splitlines()
    return f"{type(outcome.error).__name__}{': ' + message[0][:200] if message else ''}"


def compare_results(exercise: Exercise, expected: Any, actual: Any) -> Difference | None:
    """With the tolerances of the exercise."""
    return find_difference(expected, actual, exercise.hint("return"), exercise.rtol, exercise.atol)


def find_fault(exercise: Exercise, case: Case, outcome: Outcome) -> Difference | None:
    """What is wrong with one outcome; None if nothing is."""
    expected = case.expected
    if outcome.error is not None:
        if expected.error is not None and isinstance(outcome.error, type(expected.error)):
            return None
        if isinstance(outcome.error, AnswerError):
            return Difference("gradient" if case.name == GRADIENTS else "answer", str(outcome.error))
        return Difference("error", outcome.location or locate_error(outcome.error))
    if expected.error is not None:
        return Difference("no error", f"expected {type(expected.error).__name__}: {expected.error}")
    difference = compare_results(exercise, expected.value, outcome.value)
    if difference and case.name == GRADIENTS:
        return Difference("gradient", difference.message)
    if difference is None and outcome.modified:
        names = " and ".join(outcome.modified)
        return Difference("modified", f"{names} was modified in place: work on a new tensor or list")
    return difference


def locate_error(error: BaseException) -> str:
    """The last line of the learner's own code that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if "site-packages" not in frame.filename and LIBRARY not in Path(frame.filename).resolve().parents
    ]
    line = f", in line {own[-1].lineno} of {own[-1].name}: {own[-1].line}" if own and own[-1].line else ""
    return f"{type(error).__name__}{line}"


def last_function(error: BaseException) -> str:
    """The name of the function that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].name if frames else ""


def why_empty(exercise: Exercise, outcome: Outcome) -> str:
    """What may be missing in an answer that gives nothing."""
    if outcome.error is None:
        return " (it returns None: is a `return` missing?)"
    name = outcome.raised_in or last_function(outcome.error)
    if name in (exercise.answer_name, "__init__", "forward", "<lambda>"):
        return ""
    return f" (`{name}`, which it calls, is still a stub)"


def matching_mutants(exercise: Exercise, outcomes: list[Outcome], cases: list[Case]) -> list[Mutant]:
    """The mutants that behave like this answer in these cases."""
    chosen = [index for index, case in enumerate(exercise.all_cases) if any(case is each for each in cases)]
    mine = [outcomes[index] for index in chosen]
    return [
        mutant
        for mutant, theirs in zip(exercise.mutants, exercise.mutant_outcomes, strict=True)
        if behave_alike(exercise, mine, [theirs[index] for index in chosen])
    ]


def behave_alike(exercise: Exercise, mine: list[Outcome], theirs: list[Outcome]) -> bool:
    """The same outcome in all cases, and in at least one of them a result, not an error."""
    pairs = list(zip(mine, theirs, strict=True))
    return any(one.error is None for one in mine) and all(same_outcome(exercise, one, other) for one, other in pairs)


def same_outcome(exercise: Exercise, mine: Outcome, theirs: Outcome) -> bool:
    """The same result, or an error of the same type; what a check says of an answer in its own words counts too."""
    if isinstance(mine.error, AnswerError) and str(mine.error) != str(theirs.error):
        return False
    if mine.error is not None or theirs.error is not None:
        return name_of_type(mine.error) == name_of_type(theirs.error)
    return mine.modified == theirs.modified and compare_results(exercise, theirs.value, mine.value) is None


def name_of_type(value: Any) -> tuple[str, str]:
    """Module and name: an error that comes from another process has a type of its own there."""
    return type(value).__module__, type(value).__qualname__
