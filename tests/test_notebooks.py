"""The lessons are in order: executed from top to bottom, without errors, described, with links that lead somewhere."""

import json
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


WORDS, CODE, GUESS = 200, 0.5, 1.0
"""Words a minute; minutes to read and run a code cell, and to think about a prediction."""
TIME = re.compile(r"Reading and trying:[^.]*\.")


def reading_time(path: Path) -> str:
    """What the head of a lesson says, by what there is to read, to run and to predict."""
    words = sum(len(cell.source.split()) for cell in cells(path, "markdown")[1:])
    code = cells(path, "code")
    guesses = sum(len(re.findall(r"^ *(?:predict|choose|estimate)\(", cell.source, re.MULTILINE)) for cell in code)
    total = 5 * round((words / WORDS + CODE * len(code) + GUESS * guesses) / 5)
    return f"Reading and trying: about {total} minutes, for {words} words, {len(code)} cells and {guesses} predictions."


def minutes(path: Path) -> int:
    """How long a lesson takes to read and try."""
    return int(reading_time(path).split()[4])


def lesson_table() -> str:
    """The table of the README: a row for each lesson, and the sum."""
    rows = ["", "| | lesson | minutes |", "|---|---|---|"]
    for path in LESSONS:
        number, title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0][2:].split(" · ", 1)
        rows.append(f"| {number} | [{title}](notebooks/{path.name}) | {minutes(path)} |")
    hours = sum(map(minutes, LESSONS)) / 60
    return "\n".join([*rows, f"| | all of them | {hours:.0f} hours |", "", ""])


def test_every_lesson_is_there() -> None:
    assert [path.stem[:3] for path in LESSONS] == [f"{number:02}_" for number in range(24)]


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
    read = [cell for cell in code if not cell.metadata.get("jupyter", {}).get("source_hidden")]
    lengths = sorted(len(cell.source.splitlines()) for cell in read)
    assert lengths[len(lengths) // 2] <= 14  # lines of 88 characters


@each_lesson
def test_a_lesson_has_head_tail_and_headings_without_gaps(path: Path) -> None:
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    for part in ("**You will be able to**", "**You need**", "## To remember", "<details><summary>"):
        assert part in text
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@each_lesson
def test_the_head_says_how_long_it_takes(path: Path) -> None:
    found = TIME.search(nbformat.read(path, as_version=4).cells[0].source)
    assert found and found[0] == reading_time(path), "run `python tests/test_notebooks.py`"


@each_lesson
def test_code_fits_a_narrow_page_and_holds_no_style(path: Path) -> None:
    for cell in cells(path, "code"):
        assert not [line for line in cell.source.splitlines() if len(line) > 88]
        assert "rcParams" not in cell.source and 'cmap="' not in cell.source
        if "plt.subplot" in cell.source:
            assert cell.metadata["jupyter"]["source_hidden"], "code of a figure is collapsed"


@pytest.mark.parametrize("path", sorted((TOP / "exercises").glob("*.ipynb")), ids=lambda path: path.stem)
def test_exercises_fit_a_narrow_page_and_link_to_their_lesson(path: Path) -> None:
    for folder in ("exercises", "solutions"):
        page = path.parents[1] / folder / path.name
        assert not [line for cell in cells(page, "code") for line in cell.source.splitlines() if len(line) > 88]
        assert f"](../notebooks/{path.name})" in text_of(page)
    assert f"](../exercises/{path.name})" in text_of(path.parents[1] / "notebooks" / path.name)


@each_lesson
def test_a_lesson_opens_with_the_map_and_asks_for_predictions(path: Path) -> None:
    code = "\n".join(cell.source for cell in cells(path, "code"))
    assert f"\nbegin({int(path.stem[:2])})" in code or code.startswith("begin(")
    asked = re.findall(r"^ *(?:predict|choose|estimate)\(", code, re.MULTILINE)
    told = re.findall(r"\*\*(?:Predict|Guess) first", text_of(path))
    assert len(asked) >= 2 and len(asked) + len(told) >= 3 if path.stem[:2] != "00" else asked
    assert re.search(r"^ *(?:choose|estimate)\(", code, re.MULTILINE), "a prediction of behaviour"


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
        for guess in re.findall(r"^\s*(?:predict|choose|estimate)\(\s*([^,]+),", cell.source, re.MULTILINE):
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
    for lesson in LESSONS:
        notebook = nbformat.read(lesson, as_version=4)
        old = TIME.search(notebook.cells[0].source)
        assert old, lesson
        notebook.cells[0].source = notebook.cells[0].source.replace(old[0], reading_time(lesson))
        lesson.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = TOP / "README.md"
    page = readme.read_text(encoding="utf-8")
    readme.write_text(TABLE.sub(rf"\1{lesson_table()}\2", page), encoding="utf-8")


@each_lesson
def test_a_lesson_gives_the_same_where_there_is_a_gpu(path: Path) -> None:
    """All of it runs on the CPU. torchinfo would move a model to the GPU that it makes an input for."""
    for cell in cells(path, "code"):
        assert "cuda" not in cell.source and 'device="auto"' not in cell.source
        for call in re.findall(r"summary\((?:[^()]|\([^()]*\))*\)", cell.source):
            assert "input_size=" not in call or 'device="cpu"' in call
