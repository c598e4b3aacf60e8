"""Grade a folder of submissions: scores, the most common mistakes by name, and feedback to hand back to each student.

What is graded is kept in OUT/results, one file for each submission, under a key made of the submission, the graders and
the limits: an interrupted run continues where it ended, and only what has changed is graded again.
"""

import csv
import dataclasses
import hashlib
import html
import io
import json
import multiprocessing
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyomni.errors import InputError
from tinyomni.grade.formulas import plain
from tinyomni.grade.grading import FAILED, PASSED
from tinyomni.grade.isolation import Limits, printable
from tinyomni.grade.notebook import ALL_SYMBOLS, NO_RESULT, SOURCE_LIMIT, STOPPED, grade_notebook
from tinyomni.grade.registry import lessons

Result = dict[str, Any]
LIBRARY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Submission:
    """One file of one student."""

    student: str
    path: Path
    name: str  # the path inside the folder, as the name of a file

    @property
    def own_folder(self) -> bool:
        """May its modules be imported? Not those of other students."""
        return printable(self.path.parent.name) == self.student


def find_submissions(folder: Path) -> list[Submission]:
    """Every notebook and `.py` file with a check in it: one folder for each student, or the student in the file's name.

    Raises InputError if there is none.
    """
    found: list[Submission] = []
    for path in sorted([*folder.rglob("*.ipynb"), *folder.rglob("*.py")]):
        inside = path.relative_to(folder)
        if is_hidden(inside) or not is_submission(path):
            continue
        student = printable(inside.parts[0] if len(inside.parts) > 1 else student_of(inside.stem))
        name = re.sub(r"[^\w.-]+", "_", "__".join(inside.parts))
        if name in {each.name for each in found}:  # `a b.ipynb` and `a_b.ipynb`: neither may replace the other
            name = f"{hashlib.sha256(str(inside).encode()).hexdigest()[:8]}-{name}"
        found.append(Submission(student, path, name))
    if not found:
        raise InputError(f"grade: no notebook and no .py file that calls `check` in {folder}")
    return found


def left_out(folder: Path) -> list[str]:
    """Files that are not graded: of another kind, or Python without a check. Hidden ones are not named."""
    visible = [path for path in sorted(folder.rglob("*")) if path.is_file() and not is_hidden(path.relative_to(folder))]
    return [
        str(path.relative_to(folder))
        for path in visible
        if path.suffix not in (".ipynb", ".py") or not is_submission(path)
    ]


def is_hidden(inside: Path) -> bool:
    """Files of Jupyter, Git, Python and others."""
    return any(part.startswith((".", "__")) for part in inside.parts)


def is_submission(path: Path) -> bool:
    """Notebooks always are; a `.py` file without a check is a module that the student's notebook imports."""
    if path.suffix == ".ipynb" or path.stat().st_size > SOURCE_LIMIT:
        return True
    return "check." in path.read_text(encoding="utf-8", errors="replace")


def student_of(stem: str) -> str:
    """`03_attention_ada` and `ada-03_attention` → `ada`."""
    for lesson in lessons():
        if lesson.notebook in stem:
            return stem.replace(lesson.notebook, "").strip("_- ") or stem
    return stem


def grade_folder(
    folder: Path,
    out: Path,
    limits: Limits | None = None,
    jobs: int = 2,
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """A result for each submission, sorted by their names. Raises InputError if there are none."""
    limits = limits or Limits()
    submissions, graders = find_submissions(folder), fingerprint_of_graders()
    (out / "results").mkdir(parents=True, exist_ok=True)

    def grade(one: Submission) -> Result:
        content = one.path.read_bytes() if one.path.stat().st_size <= SOURCE_LIMIT else b""
        parts = [graders, json.dumps(dataclasses.asdict(limits)), one.name, hashlib.sha256(content).hexdigest()]
        key, kept = hashlib.sha256("\0".join(parts).encode()).hexdigest(), out / "results" / f"{one.name}.json"
        if (stored := load(kept)).get("key") == key:
            return stored
        try:
            result = grade_notebook(one.path, limits, own_modules=one.own_folder)
        except InputError as error:
            result = {"notebook": one.path.name, "lesson": "", "passed": 0, "of": 0, "failure": str(error),
                      "isolation": "", "exercises": [], "errors": []}  # fmt: skip
        if STOPPED.is_set():
            return {}
        result = {"key": key, "student": one.student, "file": one.name} | result
        result.pop("seconds", None)  # so that two runs give the same files
        temporary = kept.with_suffix(".part")
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(kept)
        report(f"{one.student}: {result['passed']} of {result['of']}  {result['lesson'] or result['failure']}")
        return result

    STOPPED.clear()
    executor = ThreadPoolExecutor(jobs)
    try:
        return list(executor.map(grade, submissions))
    except BaseException:  # interrupted, usually: what is running ends now, and is graded again the next time
        STOPPED.set()
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def fingerprint_of_graders() -> str:
    """Changes with any source of the library."""
    digest = hashlib.sha256()
    for path in sorted(LIBRARY.rglob("*.py")):
        digest.update(path.relative_to(LIBRARY).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def load(path: Path) -> Result:
    """A stored result; empty if there is none that can be read."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


# ---- tables ---------------------------------------------------------------------------------------------------------


def to_csv(results: Iterable[Result]) -> str:
    """A row for each submission: the score, and the status of each exercise."""
    results = list(results)
    names = list(dict.fromkeys(name for names in exercises_of(results).values() for name in names))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["student", "lesson", "file", "passed", "of", "failure", *names])
    for one in results:
        states = states_of(one)
        row = [one["student"], one["lesson"], one["file"], one["passed"], one["of"], one["failure"]]
        table.writerow([*map(unformatted, row), *(states.get(name, "") for name in names)])
    return text.getvalue()


def unformatted(value: Any) -> Any:
    """A spreadsheet runs text that begins with one of these signs as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value


def states_of(result: Result) -> dict[str, str]:
    """Exercise → status."""
    return {each["exercise"]: each["status"] for each in result["exercises"]}


def exercises_of(results: Iterable[Result]) -> dict[str, list[str]]:
    """Lesson → the names of its exercises; without submissions that could not be read."""
    found = {one["lesson"]: [each["exercise"] for each in one["exercises"]] for one in results if one["lesson"]}
    return dict(sorted(found.items()))


def common_mistakes(results: Iterable[Result]) -> list[tuple[str, str, str, list[str]]]:
    """(exercise, mistake, where the lesson explains it, students), the most frequent first."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in results:
        for each in one["exercises"]:
            if each["status"] in (FAILED, NO_RESULT):
                general = re.sub(r" \(case .*|( of)? \d+(\.\d+)? s\b.*", "", each["summary"])
                section = f"{each['notebook']}: {plain(each['section'])}" if each.get("section") else ""
                mistake = (each.get("diagnosis") or general).removeprefix("This is what happens when ").rstrip(".")
                students = groups.setdefault((each["exercise"], mistake, section), [])
                students += [one["student"]] if one["student"] not in students else []
    return sorted(((*key, names) for key, names in groups.items()), key=lambda row: (-len(row[3]), row[:2]))


# ---- pages ----------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem; border-bottom: 1px solid #8886 }
.passed { color: #007a5e } .failed, .no-result { color: #c04a00 } .missing, .not-attempted { color: #777 }
@media (prefers-color-scheme: dark) { .passed { color: #2fd3a5 } .failed, .no-result { color: #ff9a4d } }
td { white-space: pre-wrap } section { border-left: 4px solid; padding-left: 1rem; margin: 1.5rem 0 }
section > * { color: CanvasText }
"""


def page(title: str, *parts: str) -> str:
    """A page that needs no other file."""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    head += f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    return "\n".join([head, f"<h1>{html.escape(title)}</h1>", *parts]) + "\n"


def table(rows: Iterable[Iterable[Any]], *header: str) -> str:
    """Texts are escaped; what begins with `<td` is a finished cell."""
    lines = ["".join(f"<th>{html.escape(each)}</th>" for each in header)] if header else []
    for row in rows:
        cells = [str(each) for each in row]
        lines.append("".join(each if each.startswith("<td") else f"<td>{html.escape(each)}</td>" for each in cells))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def to_html(results: list[Result], feedback: str = "feedback") -> str:
    """The instructor's page: a table for each lesson, the most common mistakes, and what broke a limit."""
    parts = []
    for lesson, names in exercises_of(results).items():
        own = [one for one in results if one["lesson"] == lesson]
        rows: list[list[Any]] = []
        for one in own:
            link = f"{feedback}/{html.escape(one['file'], quote=True)}.html"
            student = f"<td><a href='{link}'>{html.escape(one['student'])}</a></td>"
            rows.append([student, one["passed"], *map(mark, one["exercises"])])
        mean = sum(one["passed"] for one in own) / len(own)
        passed = [sum(states_of(one)[name] == PASSED for one in own) for name in names]
        rows.append([f"passed, of {len(own)}", f"mean {mean:.1f}", *passed])
        parts.append(f"<h2>{lesson}</h2>" + table(rows, "student", f"of {len(names)}", *names))
    mistakes = [(len(students), *rest, ", ".join(students)) for *rest, students in common_mistakes(results)]
    header = ("students", "exercise", "mistake", "explained in", "who")
    parts.append("<h2>Most common mistakes</h2>" + table(mistakes, *header) if mistakes else "<p>No mistakes.</p>")
    if broken := [(one["student"], one["file"], one["failure"]) for one in results if one["failure"]]:
        parts.append("<h2>Ended early, or could not be read</h2>" + table(broken))
    return page("Scores", *parts)


def mark(each: Result) -> str:
    """The sign of a status, which says more under the mouse."""
    label = html.escape(f"{each['exercise']}: {each['summary']}", quote=True)
    return f"<td class='{css_class(each)}' title='{label}'>{ALL_SYMBOLS[each['status']]}</td>"


def css_class(each: Result) -> str:
    """Of a status."""
    return str(each["status"]).replace(" ", "-")


def feedback_page(result: Result) -> str:
    """What one student gets back: each verdict as in the notebook."""
    parts = [f"<p>{result['passed']} of {result['of']} exercises passed.</p>"]
    if not result["lesson"]:
        parts = [f"<p>It could not be graded: {html.escape(result['failure'])}</p>"]
    for each in result["exercises"]:
        title = f"{ALL_SYMBOLS[each['status']]} {each['exercise']}"
        lines = [f"<p><b>{html.escape(title)}</b>: {html.escape(each['summary'])}</p>"]
        lines += [table(each["lines"])] if each.get("lines") else []
        lines += [f"<p><b>{html.escape(each['diagnosis'])}</b></p>"] if each.get("diagnosis") else []
        if each.get("section"):
            where = f"Read “{plain(each['section'])}” in notebooks/{each['notebook']}.ipynb."
            lines.append(f"<p>{html.escape(where)}</p>")
        parts.append(f"<section class='{css_class(each)}'>{''.join(lines)}</section>")
    if errors := [(f"cell {each['cell']}", each["error"]) for each in result["errors"]]:
        parts.append("<h2>Cells that raised an error</h2>" + table(errors))
    return page(f"{result['student']}: {result['lesson'] or result['file']}", *parts)


def write_pages(results: list[Result], path: Path) -> None:
    """The instructor's page, and beside it `feedback/` with a page for each submission."""
    feedback = path.parent / "feedback"
    feedback.mkdir(parents=True, exist_ok=True)
    for one in results:
        (feedback / f"{one['file']}.html").write_text(feedback_page(one), encoding="utf-8")
    path.write_text(to_html(results), encoding="utf-8")


def format_scores(results: list[Result]) -> str:
    """A line for each submission, and the three most common mistakes."""
    width = max(len(one["student"]) for one in results)
    rows = []
    for one in results:
        marks = "".join(ALL_SYMBOLS[each["status"]] for each in one["exercises"])
        score = f"{one['passed']:2} of {one['of']:2}"
        note = f"  {one['failure']}" if one["failure"] else ""
        rows.append(f"{one['student'].ljust(width)}  {one['lesson'].ljust(22)} {score}  {marks}{note}")
    for exercise, mistake, _, students in common_mistakes(results)[:3]:
        rows.append(f"{len(students)} × {exercise}: {mistake}")
    return "\n".join(rows)
