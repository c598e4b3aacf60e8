"""The static site: links lead somewhere, images are described, nothing comes from another host, and search finds.

Of the lessons only one is built here; `python3 course.py site` builds and checks all of it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert", reason="the site needs nbconvert: pip install 'tinyomni[course]'")
TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "site"))
import pages  # noqa: E402
from nbconvert import HTMLExporter  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NOT_BUILT = re.compile(r"dead link (../)*((notebooks|exercises)/)?(\d\d_\w+|traces/index)\.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pages.Site:
    return pages.build(tmp_path_factory.mktemp("site") / "out", with_live=False, with_traces=False, which="06*")


def test_links_lead_somewhere_and_images_are_described(site: pages.Site) -> None:
    assert [each for each in pages.faults(site.out) if not NOT_BUILT.search(each)] == []
    lesson = (site.out / "notebooks" / "06_seeing.html").read_text(encoding="utf-8")
    assert 'href="../exercises/06_seeing.html"' in lesson and 'href="../docs/glossary.html"' in lesson
    assert lesson.count("data:image/png") > 5 and "<script" not in lesson and "colab" not in lesson


def test_hidden_code_and_hidden_outputs_open_at_a_click() -> None:
    v4 = nbformat.v4
    said = [v4.new_output("stream", name="stdout", text="the answer")]
    cells = [v4.new_code_cell("1", metadata={"jupyter": {f"{each}_hidden": True}}, outputs=said)
             for each in ("source", "outputs")]  # fmt: skip
    cells += [v4.new_code_cell("2", outputs=said), v4.new_markdown_cell("text")]
    body = pages.folded(HTMLExporter(template_name="basic").from_notebook_node(v4.new_notebook(cells=cells))[0], cells)
    code, output, shown, text = body.split('<div class="cell ')[1:]
    assert code.index(pages.FOLD.format("code")) < code.index("highlight") < code.index("</details>")
    assert code.index("</details>") < code.index("the answer")
    assert output.index("highlight") < output.index(pages.FOLD.format("output")) < output.index("the answer")
    assert output.index("the answer") < output.index("</details>") and "details" not in shown + text
    assert body.count("<div") == body.count("</div>")


def test_faults_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="here">a</h1><a href="b.html">b</a><a href="#there">c</a><a href="#here">d</a><img src="x.png">'
        '<script src="https://example.com/x.js"></script><a href="https://example.com">may be a link</a>'
    )
    assert pages.faults(tmp_path) == [
        "a.html: 1 images without alt",
        "a.html: x.png is missing",
        "a.html: loads https://example.com/x.js",
        "a.html: dead link b.html",
        "a.html: no such place #there",
    ]


def test_a_repository_gives_links_to_the_source_and_to_colab(
    site: pages.Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = '<a href="../tinyomni/rope.py#L3">source</a>'
    assert site.links(link, "docs/x.md") == '<a data-file="tinyomni/rope.py">source</a>'
    monkeypatch.setattr(pages, "REPOSITORY", "someone/tinyomni")
    assert 'href="https://github.com/someone/tinyomni/blob/main/tinyomni/rope.py#L3"' in site.links(link, "docs/x.md")
    exercises = pages.Site(tmp_path / "out", has_live=False)
    exercises.notebook(TOP / "exercises" / "06_seeing.ipynb", None, None)
    page = (tmp_path / "out" / "exercises" / "06_seeing.html").read_text(encoding="utf-8")
    assert "https://colab.research.google.com/github/someone/tinyomni/blob/main/exercises/06_seeing.ipynb" in page


def test_formulas_are_drawn_and_described() -> None:
    drawn = pages.with_formulas("<p>$x^2$ and <code>$HOME</code> and $5</p>")
    assert '<img class="formula" alt="x^2" src="data:image/svg+xml,' in drawn and "<code>$HOME</code> and $5" in drawn
    assert "style='fill: none'" in drawn and "ffffff" not in drawn  # a white box would be a black one on a dark page
    assert pages.formula(r"\begin{aligned} x \end{aligned}").startswith("<code>")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
def test_search_finds_a_page_and_asks_no_other_host(site: pages.Site, tmp_path: Path) -> None:
    browsers = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    asked: list[str] = []
    with browsers.sync_playwright() as play:
        home: dict[str, Any] = os.environ | {"HOME": str(tmp_path)}
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], env=home)
        page = chromium.new_page()
        page.set_default_timeout(300_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site.out / "search.html").as_uri())
        page.get_by_label("Words that a page holds").fill("patches cls")
        page.locator("#found a").first.click()
        page.wait_for_url("**/*.html")
        assert "patches" in page.inner_text("body").lower()
        chromium.close()
    assert asked and not [each for each in asked if not each.startswith(("file:", "data:"))]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_live_pages_fft_blocks_of_speech_and_gaps() -> None:
    subprocess.run(["node", str(TOP / "site" / "live" / "test" / "sound.mjs")], check=True, timeout=120)
