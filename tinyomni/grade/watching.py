"""Check a notebook or `.py` file whenever it is saved. Help unfolds: the reason, then the hints, then where to read."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyomni.errors import InputError
from tinyomni.grade import progress
from tinyomni.grade.formulas import plain
from tinyomni.grade.grading import FAILED, NOT_ATTEMPTED, PASSED, Verdict
from tinyomni.grade.isolation import Limits
from tinyomni.grade.notebook import ALL_SYMBOLS, MISSING, grade_notebook, read_cells
from tinyomni.grade.registry import exercises

NAME = re.compile(r"^`(\w+)` · ", re.MULTILINE)
HINT = re.compile(r"<details><summary>(?P<title>.*?)</summary>(?P<text>.*?)</details>", re.DOTALL)


def hints_of(cells: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Exercise → its hints, from the text cells of its notebook."""
    hints: dict[str, list[str]] = {}
    for kind, source in cells:
        if kind == "markdown" and (named := NAME.search(source)):
            hints[named[1]] = [plain(f"{found['title']}\n{found['text'].strip()}") for found in HINT.finditer(source)]
    return hints


class Coach:
    """What it said about each exercise, and how often an answer to it has failed."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self.seen: dict[str, tuple[str, str]] = {}  # the answer, and what it got

    def comment(self, result: dict[str, Any], cells: list[tuple[str, str]]) -> str:
        """What is new since the last time, and what to do next."""
        lines, hints = [], hints_of(cells)
        for each in result["exercises"]:
            name, status = each["exercise"], each["status"]
            answer = exercises()[name].answer_name
            source = "\n".join(text for kind, text in cells if kind == "code" and re.search(rf"\b{answer}\b", text))
            if self.seen.get(name) == (source, status) or status in (NOT_ATTEMPTED, MISSING):
                continue
            self.seen[name] = source, status
            if status == PASSED:
                lines.append(f"✔ {name}: {each['summary']}")
            else:
                self.failures[name] = self.failures.get(name, 0) + 1
                lines += self.explain(each, self.failures[name], hints.get(name, []))
        lines += [f"  cell {each['cell']}: {each['error']}" for each in result["errors"]]
        return "\n".join([*(lines or ["Nothing new."]), self.next_step(result)])

    def explain(self, each: dict[str, Any], failures: int, hints: list[str]) -> list[str]:
        """The reason; from the second failure on one hint more each time; from the third on where to read."""
        lines = [f"{ALL_SYMBOLS[each['status']]} {each['exercise']}: {each['summary']}"]
        lines += [f"  {label:10}  {text}" for label, text in each.get("lines", [])]
        lines += [f"  → {each['diagnosis']}"] if each.get("diagnosis") else []
        lines += [f"  {hint}".replace("\n", "\n  ") for hint in hints[: failures - 1][-1:]]
        if failures >= 3:
            where = f"“{plain(each['section'])}” in " if each.get("section") else ""
            lines.append(f"  Read {where}notebooks/{exercises()[each['exercise']].taught_in}.ipynb")
        return lines

    def next_step(self, result: dict[str, Any]) -> str:
        """The first exercise that failed, else the first not attempted; the next lesson if all passed."""
        for each in sorted(result["exercises"], key=lambda each: each["status"] != FAILED):
            if each["status"] != PASSED:
                verb, one = "Go on with" if each["status"] == FAILED else "Next:", exercises()[each["exercise"]]
                return f"{verb} {one.name} ({one.title}, {one.minutes} minutes)"
        return f"All {result['of']} passed. {progress.format_progress().splitlines()[-1]}"


def watch(
    path: Path,
    report: Callable[[str], None],
    limits: Limits | None = None,
    wait: Callable[[], None] = lambda: time.sleep(0.5),
) -> None:
    """Comment on every saved version until interrupted, and record what passes. Raises InputError for no file."""
    if not path.is_file():
        raise InputError(f"no file {path}")
    if path.suffix not in (".ipynb", ".py"):
        raise InputError(f"expected a notebook or .py file, got {path}")
    coach, before = Coach(), b""
    report(f"Watching {path}: save it to have it checked, press Ctrl-C to stop.")
    while True:
        content = path.read_bytes() if path.is_file() else before  # an editor may replace it just now
        if content and content != before:  # an editor may have emptied it just now
            before = content
            try:
                cells = read_cells(path)  # now: it may be saved once more while it is graded
                result = grade_notebook(path, limits)
                for each in result["exercises"]:
                    if each["status"] in (PASSED, FAILED):
                        progress.record(Verdict(each["exercise"], each["status"], each["summary"]))
                report(f"\n{coach.comment(result, cells)}")
            except InputError as error:
                report(f"\n{error}")
        wait()
