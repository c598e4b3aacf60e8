"""Grade a learner's notebook: a copy of it runs in a process of its own, with a time limit.

The file itself is only read. The cells run as they are, with the rights of whoever grades: this is no jail, and no
proof against somebody who wants to cheat.
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

from tinyomni.grade.judge import PASSED, SIGNS

MISSING, NO_RESULT = "missing", "no result"


def cells_of(path: Path) -> list[str]:
    """The code cells. Raises ValueError for what is no notebook."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        code = [each for each in data["cells"] if each["cell_type"] == "code"]
        return ["".join(each["source"]) for each in code]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no notebook ({type(error).__name__}: {error})") from error


def lesson_of(path: Path, cells: list[str]) -> str:
    """Which lesson's exercises it answers: by the checks in it, then by its name. Raises ValueError if by neither."""
    from tinyomni.grade.catalogue import exercises, lessons

    called = re.findall(r"check\.(\w+)", "\n".join(cells))
    books = [exercises()[name].book for name in called if name in exercises()]
    books += [lesson.book for lesson in lessons() if path.stem.startswith(lesson.book)]
    if not books:
        known = ", ".join(lesson.book for lesson in lessons())
        raise ValueError(f"{path.name} has no checks of any exercise. There are exercises for {known}.")
    return max(books, key=books.count)


def grade(path: Path, timeout: float = 120.0) -> dict[str, Any]:
    """Run a notebook and judge every exercise of its lesson; the result is ready for JSON.

    Raises FileNotFoundError, and ValueError for what is no notebook with exercises.
    """
    from tinyomni.grade.catalogue import lessons

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if not timeout > 0:
        raise ValueError(f"--timeout should be a number of seconds, got {timeout:g}")
    book = lesson_of(path, cells_of(path))
    lesson = next(each for each in lessons() if each.book == book)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log, copied = Path(folder) / "verdicts.jsonl", Path(folder) / "work" / path.name
        copied.parent.mkdir()
        shutil.copyfile(path, copied)
        command = [sys.executable, "-m", "tinyomni.grade.notebook", str(copied), book, str(log)]
        beside = [str(path.resolve().parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # modules of the learner's
        env = os.environ | {
            "TINYOMNI_HOME": folder, "MPLBACKEND": "Agg", "IPYTHONDIR": folder, "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(beside),
        }  # fmt: skip
        ended = run(command, copied.parent, env, timeout)
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be half written
    if not events and ended:
        raise ValueError(f"{path.name} could not be run: {ended}")
    verdicts = {each["exercise"]: each for each in events if "exercise" in each}
    for each in lesson.exercises:
        if each.name not in verdicts:
            why = f"no result: {ended}" if ended else f"there is no `{each.answer}` in the notebook"
            verdicts[each.name] = {"exercise": each.name, "status": NO_RESULT if ended else MISSING, "head": why}
    results = [verdicts[each.name] for each in lesson.exercises]
    return {
        "notebook": path.name,
        "lesson": book,
        "passed": sum(each["status"] == PASSED for each in results),
        "of": len(results),
        "seconds": round(time.monotonic() - start, 1),
        "ended": ended or "whole",
        "exercises": results,
        "errors": [each for each in events if "cell" in each and "error" in each],
    }


def run(command: list[str], cwd: Path, env: dict[str, str], timeout: float) -> str:
    """Run it; an empty string, or how it ended too early. Its children end with it."""
    own_group = os.name != "nt"
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        start_new_session=own_group,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL) if own_group else process.kill()
        process.communicate()
        return f"the time limit of {timeout:g} s was reached"
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        return f"the process ended with status {process.returncode}{': ' + last[0][:200] if last else ''}"
    return ""


def report(result: dict[str, Any]) -> str:
    """A line for each exercise, with the diagnosis where there is one."""
    signs = SIGNS | {MISSING: "✎", NO_RESULT: "✘"}
    rows = [f"{result['notebook']}: {result['passed']} of {result['of']} in {result['seconds']} s"]
    for each in result["exercises"]:
        rows.append(f"  {signs[each['status']]} {each['exercise']}: {each['head']}")
        rows += [f"      {each['diagnosis']}"] if each.get("diagnosis") else []
    rows += [f"  cell {each['cell']}: {each['error']}" for each in result["errors"]]
    return "\n".join(rows)


# ---- inside the process ---------------------------------------------------------------------------------------------


def work(path: Path, book: str, log: Path) -> int:
    """Run cell by cell; judge an answer as soon as it is defined, so that a later endless loop cannot take it away."""
    from IPython.core.interactiveshell import InteractiveShell

    from tinyomni.grade.catalogue import lessons
    from tinyomni.grade.judge import judge

    lesson = next(each for each in lessons() if each.book == book)
    shell = InteractiveShell.instance()
    judged: dict[str, Any] = {}
    with log.open("a", encoding="utf-8") as file:

        def write(event: dict[str, Any]) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        write({"begin": book})
        for number, source in enumerate(cells_of(path), 1):
            result = shell.run_cell(source, store_history=False)
            error = result.error_before_exec or result.error_in_exec
            if error is not None:
                write({"cell": number, "error": f"{type(error).__name__}: {error}"[:500]})
            for each in lesson.exercises:
                answer = shell.user_ns.get(each.answer)
                if each.answer in shell.user_ns and judged.get(each.name) is not answer:
                    judged[each.name] = answer
                    write(judge(each, answer).data())
    return 0


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
