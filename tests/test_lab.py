"""`course.py lab` in a real browser: it opens lesson 00 and asks nothing, a lesson without outputs runs there, and a
slider draws its figure again.

Needs Chromium and the package playwright, see CONTRIBUTING.md. `LESSONS="1*" python -m pytest tests/test_lab.py` takes
other lessons than 00; `SCREENSHOT=FILE` saves a screenshot of the last one, at its last figure.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
import course  # noqa: E402

LESSONS = sorted((TOP / "notebooks").glob(os.environ.get("LESSONS", "00*") + ".ipynb"))
OUTPUT = ".jp-OutputArea-output"
ASKING = ".jp-Dialog, .Toastify__toast"
SLIDER = """
from matplotlib.figure import Figure
from tinyomni import lessons
lessons.explore(lambda width: (Figure(figsize=(width, 1)), f"{width} inches wide"), width=(2, 1, 4, 1))
"""
START = """
import sys
from pathlib import Path
import course
course.HERE, course.HOME, course.PYTHON = Path(sys.argv[1]), Path(sys.argv[1]) / "home", sys.executable
sys.exit(course.lab(sys.argv[2:]))
"""
WAIT = 300_000  # ms: a guard against a hang, far longer than any step takes on a busy machine


def code(path: Path) -> list[nbformat.NotebookNode]:
    """The code cells of a lesson."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `course.py lab` gives the browser to open. Its lessons are copies without outputs, its settings are new."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for path in (TOP / "notebooks").glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(book, folder / "notebooks" / path.name)
    slider = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(SLIDER)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}},
    )
    nbformat.write(slider, folder / "notebooks" / "slider.ipynb")
    opened, log = folder / "opened", folder / "log"
    browser = folder / "browser"  # keeps the address that it is called with
    browser.write_text(f'#!/bin/sh\necho "$1" > "{opened}"\n')
    browser.chmod(0o700)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = ["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    command = [sys.executable, "-c", START, str(folder), f"--port={port}", *root]
    home = {"HOME": str(folder), "BROWSER": f"{browser} %s"}  # what the server leaves behind lies there
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=TOP, env=os.environ | home, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + WAIT / 1000
        while not (opened.exists() and opened.read_text().strip()):
            assert server.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-2000:]
            time.sleep(0.2)
        yield opened.read_text().strip()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browsers = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with browsers.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"],
                                        env=os.environ | {"HOME": str(tmp_path_factory.mktemp("home"))})  # fmt: skip
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page that the command opens, loaded anew for each test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(WAIT)
    page.goto(address)  # a file, that sends the browser on to the server
    page.wait_for_url("**/lab/tree/notebooks/**")
    yield page
    page.close()


def ready(page: Any, path: Path) -> None:
    """Wait until the lesson and its kernel are there."""
    page.wait_for_function(f"document.title.startsWith({path.stem[:8]!r})")
    count = len(nbformat.read(path, as_version=4).cells)
    page.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-Cell').length === {count}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()


@pytest.mark.parametrize("named", [[], ["notebooks/03_attention.ipynb"]])
def test_the_command_opens_lesson_00_or_the_one_that_is_named(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(course, "HOME", tmp_path)
    monkeypatch.setattr(course, "run", lambda *command, **_: commands.append([str(part) for part in command]) or 0)
    monkeypatch.setattr(course, "set_up", lambda *_: None)
    assert course.main(["lab", "--no-browser", *named]) == 0
    assert "--no-browser" in commands[0] and commands[0][-1].endswith(named[0] if named else "00_start_here.ipynb")
    news, windowing = sorted(tmp_path.rglob("*.jupyterlab-settings"))
    assert "fetchNews" in news.read_text() and "windowingMode" in windowing.read_text()
    news.write_text("{}")  # what a person has chosen stays
    course.lab([])
    assert news.read_text() == "{}"


def test_it_opens_the_first_lesson_and_asks_nothing(page: Any) -> None:
    ready(page, sorted((TOP / "notebooks").glob("*.ipynb"))[0])
    page.wait_for_timeout(8000)  # JupyterLab asks for news some seconds after the rest is there
    assert page.locator(ASKING).all_text_contents() == []
    assert page.get_by_role("heading", name="· Start here").is_visible()


def run_all(page: Any) -> None:
    """Choose Run All Cells in the menu."""
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_without_outputs_runs_from_top_to_bottom(page: Any, path: Path) -> None:
    if f"/{path.name}" not in page.url:
        page.goto(page.url.rsplit("/lab/", 1)[0] + f"/lab/tree/notebooks/{path.name}")
    ready(page, path)
    assert page.locator(OUTPUT).count() == 0
    run_all(page)
    stored = code(path)
    # a cell whose source is hidden shows no number
    shown = [each for each, cell in enumerate(stored, 1) if not cell.metadata.get("jupyter", {}).get("source_hidden")]
    done = f"[...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(each => each.textContent.trim())\
        .join() === {','.join(f'[{number}]:' for number in shown)!r}"
    page.wait_for_function(done)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    for cell, there in zip(stored, page.locator(".jp-CodeCell").all(), strict=True):
        outputs = [output for output in cell.outputs if output.output_type != "stream"]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert there.locator(f"{OUTPUT} img").count() == len(pictures)
        assert there.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        if "nbval-ignore-output" not in cell.metadata.get("tags", []):
            printed = "".join(there.locator("[data-mime-type='application/vnd.jupyter.stdout']").all_text_contents())
            assert printed == "".join(each.text for each in cell.outputs if each.output_type == "stream")
    assert page.locator(ASKING).all_text_contents() == []
    if "SCREENSHOT" in os.environ:
        page.keyboard.press("Control+b")  # without the list of files
        page.locator(f"{OUTPUT} img").last.scroll_into_view_if_needed()
        page.screenshot(path=os.environ["SCREENSHOT"])


def test_a_slider_draws_its_figure_again(page: Any) -> None:
    # a workspace of its own: JupyterLab opens there what is named, and nothing of what was open before
    page.goto(page.url.rsplit("/lab/", 1)[0] + "/lab/workspaces/slider/tree/notebooks/slider.ipynb")
    page.wait_for_function("document.title.startsWith('slider')")
    page.wait_for_function("document.querySelectorAll('.jp-Notebook .jp-Cell').length === 1")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    run_all(page)
    figure = page.locator(f"{OUTPUT} img")
    page.get_by_alt_text("2 inches wide").wait_for()
    assert figure.count() == 1 and figure.bounding_box()["width"] == 200
    page.locator(".noUi-handle").press("ArrowRight")
    page.get_by_alt_text("3 inches wide").wait_for()
    assert figure.count() == 1 and figure.bounding_box()["width"] == 300
