"""exercises/*.ipynb, made from solutions/*.ipynb: the code between the marks is removed, outputs are dropped.

A notebook that holds somebody's answers is never overwritten: it carries a checksum of its original sources.

### BEGIN SOLUTION        nbgrader's marks; `raise NotImplementedError` replaces what is between them
### END SOLUTION
### BEGIN STUB            optional, right after it: what replaces the solution instead, each line commented out,
# return thinker(image)   such as a broken program to debug
### END STUB

The same as plain Python files: `make_python`.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from tinyomni.grade import percent
from tinyomni.grade.formulas import plain

TOP = Path(__file__).resolve().parents[2]
REGION = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION\n(?P<body>.*?)^[ \t]*### END SOLUTION[ \t]*(?:\n|\Z)"
    r"(?:^[ \t]*### BEGIN STUB\n(?P<stub>.*?)^[ \t]*### END STUB[ \t]*(?:\n|\Z))?",
    re.MULTILINE | re.DOTALL,
)
STUB = "raise NotImplementedError"


def find_solutions(source: str) -> list[str]:
    """The code that is removed from a cell."""
    return [match["body"] for match in REGION.finditer(source)]


def stub_of(match: re.Match[str]) -> str:
    """What stands in the place of a solution."""
    if match["stub"] is None:
        return f"{match['indent']}{STUB}\n"
    return re.sub(r"^([ \t]*)# ?", r"\1", match["stub"], flags=re.MULTILINE)


def remove_solutions(source: str) -> str:
    """A cell with stubs for its solutions. Raises ValueError for an unpaired mark."""
    stubbed = REGION.sub(stub_of, source)
    if "### BEGIN" in stubbed or "### END" in stubbed:
        raise ValueError(f"exercises: unpaired BEGIN or END mark in\n{source}")
    return stubbed if source.endswith("\n") else stubbed.rstrip("\n")


def checksum(notebook: Any) -> str:
    """Of the sources of all cells; outputs do not count."""
    sources = "\0".join("".join(cell["source"]) for cell in notebook["cells"])
    return hashlib.sha256(sources.encode()).hexdigest()


def make_exercises(solution: Path) -> str:
    """The exercise notebook as text."""
    import nbformat

    notebook: Any = nbformat.read(solution, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source, cell.outputs, cell.execution_count = remove_solutions(cell.source), [], None
    notebook.metadata["tinyomni"] = {"checksum": checksum(notebook)}
    return str(nbformat.writes(notebook)) + "\n"


def make_python(solution: Path) -> str:
    """The exercises as a Python file with cells, and a checksum like the notebook's; formulas in plain text."""
    notebook = json.loads(make_exercises(solution))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = plain("".join(cell["source"]))
    return percent.render(notebook, checksum=text_checksum(percent.render(notebook)))


def text_checksum(text: str) -> str:
    """Of the cells of a Python file."""
    return hashlib.sha256(repr(percent.parse(text)).encode()).hexdigest()


def has_answers(path: Path) -> bool:
    """Has anybody edited the file since it was made? Anything that was not made here counts as edited."""
    if path.suffix == ".py":
        text = path.read_text(encoding="utf-8")
        return percent.read_header(text).get("checksum") != text_checksum(text)
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        return bool(checksum(notebook) != notebook["metadata"]["tinyomni"]["checksum"])
    except (ValueError, KeyError, TypeError):
        return True


def main(top: Path = TOP, as_py: bool = False) -> int:
    """Write all of them; 1 if a file with answers was left as it is.

    In a release for students, which has no solutions, Python files are made from the untouched notebooks.
    """
    make, suffix = (make_python, ".py") if as_py else (make_exercises, ".ipynb")
    (top / "exercises").mkdir(exist_ok=True)
    made = skipped = 0
    released = as_py and not (top / "solutions").is_dir()
    for solution in sorted((top / "exercises").glob("*.ipynb")) if released else find_notebooks(top):
        if released and has_answers(solution):
            print(f"exercises/{solution.name} has answers in it: no Python file is made from it")
            skipped = 1
            continue
        target = (top / "exercises" / solution.name).with_suffix(suffix)
        if target.exists() and has_answers(target):
            print(
                f"exercises/{target.name} has answers in it and was not overwritten. Move it away to get a fresh one."
            )
            skipped = 1
        else:
            target.write_text(make(solution), encoding="utf-8")
            made += 1
    print(f"exercises/: {made} {suffix} files made")
    return skipped


def find_notebooks(top: Path) -> list[Path]:
    """The solutions."""
    if not (top / "solutions").is_dir():
        raise FileNotFoundError(f"exercises: no folder {top / 'solutions'}; it is part of the course's checkout")
    return sorted((top / "solutions").glob("*.ipynb"))
