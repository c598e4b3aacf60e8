"""exercises/*.ipynb, made from solutions/*.ipynb: what stands between the marks is cut, outputs are dropped.

A notebook that somebody has written answers into is never overwritten: it bears a checksum of what it was made as.

### BEGIN SOLUTION        nbgrader's marks; `raise NotImplementedError` takes their place
### END SOLUTION
### BEGIN STUB            optional, right behind: what takes their place instead, each line behind "# ",
# return thinker(image)   such as a broken program that is to be mended
### END STUB
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
REGION = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION\n(?P<body>.*?)^[ \t]*### END SOLUTION[ \t]*(?:\n|\Z)"
    r"(?:^[ \t]*### BEGIN STUB\n(?P<stub>.*?)^[ \t]*### END STUB[ \t]*(?:\n|\Z))?",
    re.MULTILINE | re.DOTALL,
)
STUB = "raise NotImplementedError"


def solutions(source: str) -> list[str]:
    """What is cut out of a cell."""
    return [match["body"] for match in REGION.finditer(source)]


def cut(source: str) -> str:
    """A cell without its solutions. Raises ValueError for a mark without its partner."""

    def stub(match: re.Match[str]) -> str:
        if match["stub"] is None:
            return f"{match['indent']}{STUB}\n"
        return re.sub(r"^([ \t]*)# ?", r"\1", match["stub"], flags=re.MULTILINE)

    found = REGION.sub(stub, source)
    if "### BEGIN" in found or "### END" in found:
        raise ValueError(f"exercises: a mark without its partner in\n{source}")
    return found if source.endswith("\n") else found.rstrip("\n")


def checksum(book: Any) -> str:
    """Of all that is written in the cells; outputs do not count."""
    sources = "\0".join("".join(cell["source"]) for cell in book["cells"])
    return hashlib.sha256(sources.encode()).hexdigest()


def build(solution: Path) -> str:
    """The exercise notebook as text."""
    import nbformat

    book: Any = nbformat.read(solution, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.source, cell.outputs, cell.execution_count = cut(cell.source), [], None
    book.metadata["tinyomni"] = {"made": checksum(book)}
    return str(nbformat.writes(book)) + "\n"


def answered(path: Path) -> bool:
    """Has anybody written into it since it was made?"""
    try:
        book = json.loads(path.read_text(encoding="utf-8"))
        return bool(checksum(book) != book["metadata"]["tinyomni"]["made"])
    except (ValueError, KeyError, TypeError):
        return True  # not made by us: not ours to overwrite


def main(top: Path = TOP) -> int:
    """Write all of them; 1 if one was left as it is."""
    if not (top / "solutions").is_dir():
        raise FileNotFoundError("exercises: there are no solutions/ here; they come with the checkout of the course")
    (top / "exercises").mkdir(exist_ok=True)
    kept = 0
    for solution in sorted((top / "solutions").glob("*.ipynb")):
        target = top / "exercises" / solution.name
        if target.exists() and answered(target):
            print(f"exercises/{target.name} has answers in it and stays as it is. Move it away to have it made anew.")
            kept = 1
        else:
            target.write_text(build(solution), encoding="utf-8")
    return kept


if __name__ == "__main__":
    sys.exit(main())
