"""Grade a learner's notebook: a copy of it runs in a separate process, with a time limit.

The file itself is only read. The cells run as they are, with the rights of whoever grades: this is not a sandbox, and
it does not stop somebody who wants to cheat.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tinyomni.errors import InputError
from tinyomni.grade.grading import PASSED, SYMBOLS, grade_answer
from tinyomni.grade.registry import exercises, find_lesson, lessons

MISSING, NO_RESULT = "missing", "no result"


def code_cells(path: Path) -> list[str]:
    """The sources of the code cells. Raises InputError if the file is not a notebook."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in data["cells"] if cell["cell_type"] == "code"]
        return ["".join(cell["source"]) for cell in code]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path.name} is not a notebook ({type(error).__name__}: {error})") from error


def detect_lesson(path: Path, cells: list[str]) -> str:
    """Which lesson a notebook answers: by the checks in it and by its name. Raises InputError if neither tells."""
    called = re.findall(r"check\.(\w+)", "\n".join(cells))
    votes = [exercises()[name].notebook for name in called if name in exercises()]
    votes += [lesson.notebook for lesson in lessons() if path.stem.startswith(lesson.notebook)]
    if not votes:
        known = ", ".join(lesson.notebook for lesson in lessons())
        raise InputError(f"{path.name} calls no `check` of an exercise. There are exercises for {known}.")
    return max(votes, key=votes.count)


def grade_notebook(path: Path, timeout: float = 120.0) -> dict[str, Any]:
    """Run a notebook and grade every exercise of its lesson; the result is ready for JSON.

    Raises InputError if there is no such file, or if it is not a notebook with exercises.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    if not timeout > 0:
        raise InputError(f"--timeout must be a positive number of seconds, got {timeout:g}")
    lesson = find_lesson(detect_lesson(path, code_cells(path)))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log, copied = Path(folder) / "verdicts.jsonl", Path(folder) / "work" / path.name
        copied.parent.mkdir()
        shutil.copyfile(path, copied)
        command = [sys.executable, "-m", "tinyomni.grade.notebook", str(copied), lesson.notebook, str(log)]
        search_path = [str(path.resolve().parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # learner's modules
        env = os.environ | {
            "TINYOMNI_HOME": folder, "MPLBACKEND": "Agg", "IPYTHONDIR": folder, "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(search_path),
        }  # fmt: skip
        failure = run_process(command, copied.parent, env, timeout)
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be incomplete
    if not events and failure:
        raise InputError(f"{path.name} could not be run: {failure}")
    verdicts = {each["exercise"]: each for each in events if "exercise" in each}
    for each in lesson.exercises:
        if each.name not in verdicts:
            status = NO_RESULT if failure else MISSING
            summary = f"no result: {failure}" if failure else f"the notebook does not define `{each.answer_name}`"
            verdicts[each.name] = {"exercise": each.name, "status": status, "summary": summary}
    results = [verdicts[each.name] for each in lesson.exercises]
    return {
        "notebook": path.name,
        "lesson": lesson.notebook,
        "passed": sum(each["status"] == PASSED for each in results),
        "of": len(results),
        "seconds": round(time.monotonic() - start, 1),
        "failure": failure,
        "exercises": results,
        "errors": [each for each in events if "cell" in each and "error" in each],
    }


def run_process(command: list[str], cwd: Path, env: dict[str, str], timeout: float) -> str:
    """Run a command; returns an empty string, or why it ended early. Its children are killed with it."""
    new_group = os.name != "nt"
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        start_new_session=new_group,
    )  # fmt: skip
    try:
        _, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL) if new_group else process.kill()
        process.communicate()
        return f"it ran longer than the time limit of {timeout:g} s"
    if process.returncode:
        last = stderr.decode(errors="replace").strip().splitlines()[-1:]
        return f"the process exited with status {process.returncode}{': ' + last[0][:200] if last else ''}"
    return ""


def format_grades(result: dict[str, Any]) -> str:
    """A line for each exercise, with the diagnosis where there is one."""
    symbols = SYMBOLS | {MISSING: "✎", NO_RESULT: "✘"}
    rows = [f"{result['notebook']}: {result['passed']} of {result['of']} passed in {result['seconds']} s"]
    for each in result["exercises"]:
        rows.append(f"  {symbols[each['status']]} {each['exercise']}: {each['summary']}")
        rows += [f"      {each['diagnosis']}"] if each.get("diagnosis") else []
    rows += [f"  cell {each['cell']}: {each['error']}" for each in result["errors"]]
    return "\n".join(rows)


# ---- inside the process ---------------------------------------------------------------------------------------------


def run_and_grade(path: Path, notebook: str, log: Path) -> int:
    """Run cell by cell; grade an answer as soon as it is defined, so that a later endless loop cannot lose it."""
    from IPython.core.interactiveshell import InteractiveShell

    lesson = find_lesson(notebook)
    shell = InteractiveShell.instance()
    graded: dict[str, Any] = {}
    with log.open("a", encoding="utf-8") as file:

        def write(event: dict[str, Any]) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        write({"begin": notebook})
        for number, source in enumerate(code_cells(path), 1):
            result = shell.run_cell(source, store_history=False)
            error = result.error_before_exec or result.error_in_exec
            if error is not None:
                write({"cell": number, "error": f"{type(error).__name__}: {error}"[:500]})
            for each in lesson.exercises:
                answer = shell.user_ns.get(each.answer_name)
                if each.answer_name in shell.user_ns and graded.get(each.name) is not answer:
                    graded[each.name] = answer
                    write(grade_answer(each, answer).to_json())
    return 0


if __name__ == "__main__":
    sys.exit(run_and_grade(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
