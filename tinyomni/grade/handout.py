"""What an instructor hands out: exercises, a course for nbgrader or otter-grader, or a checkout without solutions."""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinyomni.errors import InputError
from tinyomni.files import whole
from tinyomni.grade import build
from tinyomni.grade.build import REGION, checksum, make_exercises, remove_solutions, stub_of

SWAPS = re.compile(r"\b(swap|milestone)\(")
CHECK = re.compile(r"check\.(?P<exercise>\w+)\((?P<answer>\w+)\)\s*")
NBGRADER_CHECK = """from tinyomni.grade import check

verdict = check.{exercise}({answer})
display(verdict)
assert verdict, verdict.summary"""
NBGRADER_CONFIG = """c = get_config()
c.CourseDirectory.course_id = "tinyomni"
c.ExecutePreprocessor.timeout = 60  # seconds for each cell
c.ExecutePreprocessor.interrupt_on_timeout = True  # an endless loop costs its own cell
"""
OTTER_CONFIG = """# ASSIGNMENT CONFIG
init_cell: false  # students need no otter: `check` is part of the course
check_all_cell: false
export_cell: false
generate: true
tests:
  files: true
  ok_format: false"""
OTTER_QUESTION = """# BEGIN QUESTION
name: {exercise}
points: 1
check_cell: false"""
OTTER_TEST = """def test_{exercise}({answer}):
    from tinyomni.grade.checker import check, grade_in_time
    from tinyomni.grade.registry import find_exercise

    verdict = grade_in_time(find_exercise("{exercise}"), {answer}, check.seconds)
    assert verdict, verdict.summary"""
FOR_INSTRUCTORS = ("solutions", "tests", "benchmarks", ".github", "docs/instructors.md")


def write_masters(targets: dict[Path, Path], make: Callable[[Path], dict[str, Any]]) -> int:
    """Target → solution; 1 if a target that somebody has edited was left as it is."""
    skipped = 0
    for target, solution in targets.items():
        if target.exists() and is_edited(target):
            print(f"{target} was edited and not overwritten. Move it away to get a fresh one.")
            skipped = 1
            continue
        notebook = make(solution)
        notebook["metadata"]["tinyomni"] = {"checksum": checksum_with_metadata(notebook)}
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return skipped


def checksum_with_metadata(notebook: dict[str, Any]) -> str:
    """Of sources and metadata of all cells, such as their points; outputs do not count."""
    cells = [[cell["cell_type"], "".join(cell["source"]), cell["metadata"]] for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def is_edited(path: Path) -> bool:
    """Since it was made; what was not made here counts as edited."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        return bool(checksum_with_metadata(notebook) != notebook["metadata"]["tinyomni"]["checksum"])
    except (ValueError, KeyError, TypeError):
        return True


# ---- nbgrader -------------------------------------------------------------------------------------------------------


def write_nbgrader(solutions: list[Path], folder: Path) -> int:
    """An nbgrader course: an assignment for each lesson, and a configuration unless there is one."""
    skipped = write_masters({folder / "source" / each.stem / each.name: each for each in solutions}, for_nbgrader)
    config = folder / "nbgrader_config.py"
    if not config.exists():
        config.write_text(NBGRADER_CONFIG, encoding="utf-8")
    print(f"In {folder}: nbgrader generate_assignment {solutions[0].stem}")
    return skipped


def for_nbgrader(solution: Path) -> dict[str, Any]:
    """The solution with nbgrader's metadata, and checks that raise an error for an answer that does not pass.

    A program to debug is released as it is, broken: nbgrader knows only one stub, `raise NotImplementedError()`.
    """
    notebook = json.loads(solution.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        cell["outputs"], cell["execution_count"] = [], None
        if found := CHECK.fullmatch(source):
            cell["source"] = NBGRADER_CHECK.format(**found.groupdict())
            cell["metadata"]["nbgrader"] = nbgrader_metadata(f"check_{found['exercise']}", grade=True)
        elif "### BEGIN STUB" in source:
            cell["source"] = remove_solutions(source)
        elif "### BEGIN SOLUTION" in source:
            cell["metadata"]["nbgrader"] = nbgrader_metadata(f"answer_{cell['id']}", grade=False)
    return notebook


def nbgrader_metadata(grade_id: str, grade: bool) -> dict[str, Any]:
    """Of a cell that is graded and locked, or of one with a solution. Each exercise counts one point."""
    common = {"grade": grade, "grade_id": grade_id, "locked": grade, "schema_version": 3, "task": False}
    return common | ({"points": 1, "solution": False} if grade else {"solution": True})


# ---- otter-grader ---------------------------------------------------------------------------------------------------


def write_otter(solutions: list[Path], folder: Path) -> int:
    """A master notebook of otter-grader for each lesson."""
    skipped = write_masters({folder / each.name: each for each in solutions}, for_otter)
    print(f"In {folder}: otter assign {solutions[0].name} dist")
    return skipped


def for_otter(solution: Path) -> dict[str, Any]:
    """The solution with otter's blocks: each answer is a question with one test.

    What runs the answer once more, a check or a swap, is for the student: otter leaves it out when it grades.
    """
    notebook = json.loads(solution.read_text(encoding="utf-8"))
    cells: list[dict[str, Any]] = [raw_cell(OTTER_CONFIG)]
    for cell, following in zip(notebook["cells"], [*notebook["cells"][1:], {"source": ""}], strict=True):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        cell["outputs"], cell["execution_count"] = [], None
        if "### BEGIN SOLUTION" in source:
            found = CHECK.fullmatch("".join(following["source"]))
            if found is None:
                raise ValueError(f"exercises: {solution.name} has an answer without a check behind it:\n{source}")
            answer = cell | {"source": REGION.sub(mark_for_otter, source).rstrip("\n")}
            cells += [raw_cell(OTTER_QUESTION.format(**found.groupdict())), *block("SOLUTION", answer)]
        elif found := CHECK.fullmatch(source):
            test = cell | {"source": OTTER_TEST.format(**found.groupdict())}
            cells += [ignored(cell), *block("TESTS", test), raw_cell("# END QUESTION")]
        else:
            cells.append(ignored(cell) if SWAPS.search(source) else cell)
    notebook["cells"] = [cell | {"id": f"cell-{number}"} for number, cell in enumerate(cells)]
    return notebook


def mark_for_otter(match: re.Match[str]) -> str:
    """A solution, and what students get instead: a string that otter unwraps."""
    indent, stub = match["indent"], stub_of(match)
    return (
        f"{indent}# BEGIN SOLUTION NO PROMPT\n{match['body']}{indent}# END SOLUTION\n"
        f'{indent}""" # BEGIN PROMPT\n{stub}{indent}""" # END PROMPT\n'
    )


def raw_cell(source: str) -> dict[str, Any]:
    """A cell that otter reads."""
    return {"cell_type": "raw", "metadata": {}, "source": source}


def block(kind: str, cell: dict[str, Any]) -> list[dict[str, Any]]:
    """A cell between the marks of a block."""
    return [raw_cell(f"# BEGIN {kind}"), cell, raw_cell(f"# END {kind}")]


def ignored(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell that students run and otter does not."""
    return cell | {"metadata": {"tags": ["otter_ignore"]}}


# ---- a release ------------------------------------------------------------------------------------------------------


def write_release(top: Path, archive: Path, exam: bool = False) -> int:
    """A zip of the checkout's tracked files without solutions and tests; for an exam, without graders either.

    Graders hold reference implementations and known mistakes. Without them, `check` says that the instructor grades.
    Raises InputError outside a git checkout.
    """
    listed = subprocess.run(["git", "-C", str(top), "ls-files", "-z"], capture_output=True, text=True, encoding="utf-8")
    if listed.returncode:
        raise InputError(
            f"exercises: a release holds the files that git tracks; expected a git checkout in {top}, "
            f"got: {listed.stderr.strip()}"
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    with whole(archive) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as output:
        for name in sorted(filter(None, listed.stdout.split("\0"))):
            if any(name == each or name.startswith(f"{each}/") for each in FOR_INSTRUCTORS):
                continue
            if not (top / name).exists():  # a lesson that is not taught was deleted
                continue
            content = (top / name).read_bytes()
            if re.fullmatch(r"exercises/\d\d_\w+\.ipynb", name):
                content = released_exercises(top / "solutions" / Path(name).name, exam).encode()
            elif exam and re.fullmatch(r"tinyomni/grade/lessons/lesson_\d\d\.py", name):
                continue
            entry = zipfile.ZipInfo(f"tinyomni-course/{name}")  # the same date always: the same bytes
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            output.writestr(entry, content)
    print(f"{archive}: the course without solutions{' and graders' if exam else ''}")
    return 0


def released_exercises(solution: Path, exam: bool) -> str:
    """Fresh ones, whatever has been filled in here; in an exam without the cells that swap, which need a grader."""
    text = make_exercises(solution)
    if not exam:
        return text
    notebook = json.loads(text)
    notebook["cells"] = [
        cell for cell in notebook["cells"] if cell["cell_type"] != "code" or not SWAPS.search("".join(cell["source"]))
    ]
    notebook["metadata"]["tinyomni"] = {"checksum": checksum(notebook)}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


# ---- the command ---------------------------------------------------------------------------------------------------


def run(argv: Sequence[str], top: Path = build.TOP) -> int:
    """What `course.py exercises` does with its options."""
    parser = argparse.ArgumentParser(prog="course.py exercises", description="Make exercises from solutions/.")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--as-py", action="store_true", help="exercises/*.py with cells, for an editor")
    kind.add_argument("--nbgrader", metavar="DIR", help="source/ and configuration of an nbgrader course in DIR")
    kind.add_argument("--otter", metavar="DIR", help="master notebooks of otter-grader in DIR, for `otter assign`")
    kind.add_argument("--release", metavar="FILE.zip", help="the checkout for students: without any solution")
    kind.add_argument("--exam", metavar="FILE.zip", help="the same without the graders: nothing tells right from wrong")
    options = parser.parse_args(argv)
    if options.nbgrader:
        return write_nbgrader(build.find_notebooks(top), Path(options.nbgrader))
    if options.otter:
        return write_otter(build.find_notebooks(top), Path(options.otter))
    if archive := options.release or options.exam:
        return write_release(top, Path(archive), exam=bool(options.exam))
    return build.main(top, options.as_py)


def main(argv: Sequence[str]) -> int:
    """`run`; input that cannot be used, such as a folder that is a file, ends with a sentence."""
    try:
        return run(argv)
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
