"""The lessons are in order: executed from top to bottom, without errors, described, with links that lead somewhere."""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

TOP = Path(__file__).resolve().parent.parent
LESSONS = sorted((TOP / "notebooks").glob("*.ipynb"))
TABLE = re.compile(r"(<!-- lessons: .*? -->\n).*?(<!-- end of lessons -->)", re.DOTALL)
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    """The code cells, or the markdown cells, of a lesson."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def text_of(path: Path) -> str:
    """All that is written in a lesson, code too."""
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


def minutes(path: Path) -> int:
    """How long a lesson takes to read and try, by its head."""
    head = nbformat.read(path, as_version=4).cells[0].source
    found = re.search(r"Reading and trying:\s+about\s+(\d+)\s+minutes", head)
    assert found, f"{path.name}: its head should say **Time** … Reading and trying: about 40 minutes, an estimate."
    return int(found[1])


def lesson_table() -> str:
    """The table of the README: a row for each lesson, and the sum."""
    rows = ["", "| | lesson | minutes |", "|---|---|---|"]
    for path in LESSONS:
        number, title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0][2:].split(" · ", 1)
        rows.append(f"| {number} | [{title}](notebooks/{path.name}) | {minutes(path)} |")
    hours = sum(map(minutes, LESSONS)) / 60
    return "\n".join([*rows, f"| | all of them | {hours:.0f} hours |", "", ""])


def test_there_are_twenty_lessons() -> None:
    assert [path.stem[:3] for path in LESSONS] == [f"{number:02}_" for number in range(20)]


def test_the_readme_has_the_lessons_and_their_minutes() -> None:
    page = (TOP / "README.md").read_text(encoding="utf-8")
    written = TABLE.search(page)
    assert written and TABLE.sub(rf"\1{lesson_table()}\2", page) == page, "run `python tests/test_notebooks.py`"


def test_the_index_of_topics_names_words_that_the_lessons_have() -> None:
    page = (TOP / "docs" / "where.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| \[(\d\d)\]\(\.\./notebooks/(.+?)\.ipynb\) \| `(.+?)` \|$", page, re.MULTILINE)
    assert len(rows) == sum(line.startswith("| ") for line in page.splitlines()) - page.count("| topic | lesson |")
    texts = {path.stem: text_of(path).lower() for path in LESSONS}
    missing = [f"{topic}: {word!r} in {book}" for topic, _, book, word in rows if word.lower() not in texts[book]]
    assert not missing, "\n".join(missing)


@each_lesson
def test_a_lesson_is_in_order(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert book.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    code = cells(path, "code")
    # a cell without a count is not compared by nbval
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert all(output.output_type != "error" and output.get("name") != "stderr" for output in cell.outputs)
    lengths = sorted(len(cell.source.splitlines()) for cell in code)
    assert lengths[len(lengths) // 2] <= 10


@each_lesson
def test_a_lesson_has_head_tail_and_headings_without_gaps(path: Path) -> None:
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    for part in ("**You will be able to**", "**You need**", "## To remember", "<details><summary>"):
        assert part in text
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@each_lesson
def test_links_lead_somewhere(path: Path) -> None:
    for cell in cells(path, "markdown"):
        for link in re.findall(r"\]\(([^)#]+)\)", cell.source):
            assert link.startswith("https://") or (path.parent / link).exists(), link


@each_lesson
def test_pictures_have_an_alt_text(path: Path) -> None:
    outputs = [
        output for cell in cells(path, "code") for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert outputs and all(output.metadata.get("image/png", {}).get("alt") for output in outputs)


@each_lesson
def test_no_guess_is_written_down_for_the_learner(path: Path) -> None:
    for cell in cells(path, "code"):
        for guess in re.findall(r"predict\(([^,]+),", cell.source):
            assert re.search(rf"{re.escape(guess)}\b.* = None", cell.source)


def test_a_stored_output_that_is_wrong_fails(tmp_path: Path) -> None:
    v4 = nbformat.v4
    stored = [v4.new_output("stream", name="stdout", text="(2, 5)\n")]
    code = [v4.new_code_cell(f"print((2, {size}))", execution_count=1, outputs=stored) for size in (5, 6)]
    nbformat.write(v4.new_notebook(cells=code), tmp_path / "lesson.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "nbval.plugin", "--nbval", "--nbval-current-env", "."]
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the others take longer to load than the lesson runs
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr


if __name__ == "__main__":
    readme = TOP / "README.md"
    page = readme.read_text(encoding="utf-8")
    readme.write_text(TABLE.sub(rf"\1{lesson_table()}\2", page), encoding="utf-8")
