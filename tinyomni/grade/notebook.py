"""Grade a learner's notebook, or `.py` file with cells.

It runs in another process, with limits; the values that answers give are compared here. The file itself is only read.
A cell or an exercise that breaks a limit, or ends the process, costs only itself: a new process runs the others again,
without it. Nothing that a submission writes or sends is a verdict: to pass, the right values must come back. An answer
that calls the library's own code, or an oracle, gives them too, and passes.
"""

import functools
import json
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tinyomni.errors import InputError
from tinyomni.grade.encoding import decode_outcome
from tinyomni.grade.exercise import Exercise
from tinyomni.grade.grading import NOT_ATTEMPTED, PASSED, SYMBOLS, judge
from tinyomni.grade.isolation import FORKS, MODES, EndedEarly, Limits, Worker, printable
from tinyomni.grade.percent import parse
from tinyomni.grade.registry import NO_GRADERS, Lesson, exercises, find_lesson, lessons
from tinyomni.grade.worker import main as worker_main

MISSING, NO_RESULT = "missing", "no result"
ALL_SYMBOLS = SYMBOLS | {MISSING: SYMBOLS[NOT_ATTEMPTED], NO_RESULT: "✘"}
STOPPED = threading.Event()  # set by whoever grades in several threads: no new process starts
JUDGING = threading.Lock()  # oracles and mutants take their random numbers from the one generator of this process
SOURCE_LIMIT = 20 << 20  # bytes of a notebook, its outputs included

WEAKER = {
    "namespaces": "",
    "subreaper": (
        "this system allows no user namespaces: the submission could write files, use the network and end this program"
    ),
    "group": (
        "this system has neither namespaces nor subreapers: besides, memory is not limited, "
        "and a process that starts a session of its own survives"
    ),
}


def code_cells(path: Path) -> list[str]:
    """The sources of the code cells. Raises InputError if the file is neither a notebook nor a Python file."""
    return [source for kind, source in read_cells(path) if kind == "code"]


def read_cells(path: Path) -> list[tuple[str, str]]:
    """(kind, source) of each cell of a notebook, or of a `.py` file with cells."""
    if not path.is_file():
        raise InputError(f"no file {path}")
    if path.stat().st_size > SOURCE_LIMIT:
        raise InputError(f"{path.name} is larger than {SOURCE_LIMIT >> 20} MB. Clear its outputs.")
    if path.suffix == ".py":
        try:
            return parse(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path.name} is not UTF-8 text ({error})") from error
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        return [(str(cell["cell_type"]), "".join(cell["source"])) for cell in data["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path.name} is not a notebook ({type(error).__name__}: {error})") from error


def detect_lesson(path: Path, cells: list[str]) -> str:
    """Which lesson a notebook answers: by the checks in it and by its name. Raises InputError if neither tells."""
    if not lessons():
        raise InputError(NO_GRADERS)
    called = re.findall(r"check\.(\w+)", "\n".join(cells))
    votes = [exercises()[name].notebook for name in called if name in exercises()]
    votes += [lesson.notebook for lesson in lessons() if path.stem.startswith(lesson.notebook)]
    if not votes:
        known = ", ".join(lesson.notebook for lesson in lessons())
        raise InputError(f"{path.name} calls no `check` of an exercise. There are exercises for {known}.")
    return max(votes, key=votes.count)


def find_answered(path: Path, cells: list[str]) -> Lesson:
    """The exercises that a file answers: those of a lesson, or in `debugging.py` those that it checks."""
    if not path.stem.startswith("debugging"):
        return find_lesson(detect_lesson(path, cells))
    called = dict.fromkeys(re.findall(r"check\.(\w+)", "\n".join(cells)))
    return Lesson("debugging", "Debugging", tuple(exercises()[name] for name in called if name in exercises()))


def grade_notebook(
    path: Path, limits: Limits | None = None, modes: tuple[str, ...] = MODES, own_modules: bool = True
) -> dict[str, Any]:
    """Run a notebook and grade every exercise of its lesson; the result is ready for JSON.

    With `own_modules` it may import what lies beside it. Of the modes of isolation, the first one that works here is
    used. Raises InputError if there is no such file, or if it is not a notebook with exercises.
    """
    limits = limits or Limits()
    cells = code_cells(path)
    lesson = find_answered(path, cells)
    start = time.monotonic()
    run = GradingRun(path.resolve(), cells, lesson, limits, modes)
    run.search_path = [str(run.path.parent)] if own_modules else []
    run.finish()
    results = [run.result_of(each) for each in lesson.exercises]
    return {
        "notebook": path.name,
        "lesson": lesson.notebook,
        "passed": sum(each["status"] == PASSED for each in results),
        "of": len(results),
        "seconds": round(time.monotonic() - start, 1),
        "isolation": run.mode,
        "failure": next(iter(run.failures.values()), ""),
        "exercises": results,
        "errors": [{"cell": number, "error": error} for number, error in sorted(run.errors.items()) if error],
    }


Step = tuple[int, str]  # the number of a cell, and the exercise that is graded after it, or "" for the cell itself


class GradingRun:
    """What is known about a submission so far; each attempt runs it in a new process, without the steps that failed."""

    def __init__(self, path: Path, cells: list[str], lesson: Lesson, limits: Limits, modes: tuple[str, ...]) -> None:
        self.path, self.cells, self.lesson, self.limits = path, cells, lesson, limits
        self.modes, self.mode = modes, ""
        self.search_path: list[str] = []
        self.verdicts: dict[Step, dict[str, Any]] = {}
        self.failures: dict[Step, str] = {}
        self.errors: dict[int, str] = {}
        self.deadline = time.monotonic() + limits.total_seconds

    def finish(self) -> None:
        """Attempt after attempt: each that ends early adds a step that the next one leaves out."""
        while not self.attempt():
            if time.monotonic() > self.deadline or STOPPED.is_set():
                break

    def attempt(self) -> bool:
        """Run the steps that are left; False if the process ended early."""
        with tempfile.TemporaryDirectory(prefix="tinyomni-grade-") as name:
            folder = Path(name).resolve()
            (folder / self.path.name).write_bytes(self.path.read_bytes())
            worker = self.start_worker(folder)
            step: Step = (0, "")
            try:
                for number, source in enumerate(self.cells, 1):
                    step = (number, "")
                    if step in self.failures:
                        continue
                    names = {each.name: each.answer_name for each in self.lesson.exercises}
                    reply = self.ask(worker, {"cell": number, "source": source, "answers": names})
                    self.errors[number] = printable(str(reply.get("error", ""))[:500])
                    for each in self.lesson.exercises:
                        step = (number, each.name)
                        defined = each.name in list(reply.get("defined") or [])
                        if defined and step not in self.failures and step not in self.verdicts:
                            self.verdicts[step] = self.grade(each, self.ask(worker, {"exercise": each.name}))
            except EndedEarly as error:
                self.failures[step] = str(error)
                if not step[1]:
                    self.errors[step[0]] = f"{error}; it was left out"
                return False
            finally:
                worker.stop()
        return True

    def start_worker(self, folder: Path) -> Worker:
        """A worker that answers, in the first mode that works. Raises InputError if none does."""
        search_path = [*self.search_path, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {
            "TINYOMNI_HOME": str(folder), "IPYTHONDIR": str(folder / "ipython"), "MPLBACKEND": "Agg",
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join(search_path), "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        program = [sys.executable, "-m", "tinyomni.grade.worker", str(self.limits.memory_mb)]
        problem = ""
        for mode in [self.mode] if self.mode else self.modes:
            forked = functools.partial(worker_main, self.limits.memory_mb)
            worker = Worker(mode, forked if mode != "group" and FORKS else program, folder, env, self.limits)
            try:
                worker.ask({}, self.limits.total_seconds)  # the imports take seconds
            except EndedEarly as error:
                worker.stop()
                problem = f"{error}: {worker.last_output}"
                continue
            except BaseException:
                worker.stop()
                raise
            self.mode = mode
            return worker
        raise InputError(f"{self.path.name} could not be run: {problem}")

    def ask(self, worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
        """Within the time of a step, or what is left for all of them."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise EndedEarly(f"not run: the submission as a whole took longer than {self.limits.total_seconds:g} s")
        return worker.ask(request, min(self.limits.seconds, left))

    def grade(self, exercise: Exercise, reply: dict[str, Any]) -> dict[str, Any]:
        """The verdict on what an answer gave."""
        with JUDGING:
            try:
                if problem := str(reply.get("problem", ""))[:500]:
                    return judge(exercise, printable(problem)).to_json()
                expected, outcomes = len(exercise.all_cases), reply.get("outcomes")
                if not isinstance(outcomes, list) or len(outcomes) != expected:
                    raise InputError(f"expected {expected} outcomes of the worker")
                cases = zip(exercise.all_cases, outcomes, strict=True)
                return judge(exercise, [decode_outcome(outcome, case.inputs) for case, outcome in cases]).to_json()
            except InputError as error:
                raise EndedEarly(str(error)) from error

    def result_of(self, exercise: Exercise) -> dict[str, Any]:
        """The verdict on its last definition, or why there is none."""
        result = {"exercise": exercise.name, "status": MISSING}
        steps = [step for step in [*self.verdicts, *self.failures] if step[1] == exercise.name]
        if steps:
            last = max(steps)
            if last in self.verdicts:
                return self.verdicts[last]
            return result | {"status": NO_RESULT, "summary": f"no result: {self.failures[last]}"}
        for (number, _), reason in self.failures.items():
            if re.search(rf"\b{exercise.answer_name}\b", self.cells[number - 1]):
                return result | {"status": NO_RESULT, "summary": f"no result: cell {number} {reason}"}
        return result | {"summary": f"{self.path.name} does not define `{exercise.answer_name}`"}


def format_grades(result: dict[str, Any]) -> str:
    """A line for each exercise, with the diagnosis where there is one."""
    rows = [f"{result['notebook']}: {result['passed']} of {result['of']} passed in {result['seconds']} s"]
    for each in result["exercises"]:
        rows.append(f"  {ALL_SYMBOLS[each['status']]} {each['exercise']}: {each['summary']}")
        rows += [f"      {each['diagnosis']}"] if each.get("diagnosis") else []
    rows += [f"  cell {each['cell']}: {each['error']}" for each in result["errors"]]
    if weaker := WEAKER[result["isolation"]]:
        rows.append(f"  isolation “{result['isolation']}”: {weaker}")
    return "\n".join(rows)
