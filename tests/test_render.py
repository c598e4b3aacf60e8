"""Pages and diagrams that people keep: small, self-contained, escaped, without overlaps."""

import itertools
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinyomni import dry_run
from tinyomni.tracing import Trace, trace
from tinyomni.tracing.svg import CHAR

VOID = {"meta", "br", "hr", "img", "link", "input", "col"}


class Strict(HTMLParser):
    """Every tag that opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or "http" in (value or "") for name, value in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def speech() -> Trace:
    """The 300-frame speech run."""
    omni = dry_run.build()
    with trace("<speech> & 'more'") as seen, torch.no_grad():
        dry_run.PIPELINES["speech"].run(omni, dry_run.default_inputs())
    return seen


def test_the_page_of_300_frames_is_small_whole_and_escaped(speech: Trace) -> None:
    page = speech.to_html()
    assert len(page.encode()) < 200_000 and len(speech.steps) > 10_000
    parser = Strict()
    parser.feed(page)
    assert parser.open == [] and not {"script", "link", "iframe", "img"} & set(parser.tags)
    assert "<speech>" not in page and "&lt;speech&gt;" in page
    # a screen reader finds its way: a caption, headers with a scope, a language; status is a word, not a colour
    assert 'lang="en"' in page and "<caption>" in page and 'scope="col"' in page and 'scope="row"' in page
    assert "✔ ok" in page and parser.tags.count("details") == parser.tags.count("summary") > 3
    # a fold opens: the frames one by one
    assert "the 299 calls of next_frame" in page and page.count("<li>") >= 299


def test_a_notebook_shows_the_same_table() -> None:
    def f(x: Float[Tensor, "a"]) -> Float[Tensor, "a"]:
        return x

    with trace("t") as seen:
        f(torch.zeros(3))
    assert "(a 3)" in seen._repr_html_() and "<html" not in seen._repr_html_()
    with trace("nothing") as seen:
        pass
    assert "nothing was traced" in seen._repr_html_()
    with pytest.raises(ValueError, match="nothing to draw"):
        seen.to_svg()


@pytest.mark.parametrize("name", list(dry_run.PIPELINES))
def test_no_box_and_no_text_of_a_diagram_lies_over_another(name: str) -> None:
    picture = ET.fromstring((Path(__file__).parents[1] / "docs" / f"{name}.svg").read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    boxes, shapes = [], []
    for node in picture.iter(f"{space}rect"):
        if node.get("rx"):
            x, y, w, h = (float(node.get(key, "0")) for key in ("x", "y", "width", "height"))
            boxes.append((x, y, x + w, y + h))
    for node in picture.iter(f"{space}text"):
        x, y, w = float(node.get("x", "0")), float(node.get("y", "0")), len(node.text or "") * CHAR
        area = (x - w / 2, y - 10, x + w / 2, y + 3)
        inside = [
            box for box in boxes if box[0] <= area[0] and area[2] <= box[2] and box[1] <= area[1] and area[3] <= box[3]
        ]
        if not inside:
            shapes.append(area)
    left, top, width, height = map(float, (picture.get("viewBox") or "").split())
    for area in boxes + shapes:
        assert left <= area[0] and area[2] <= left + width and top <= area[1] and area[3] <= top + height
    for one, other in itertools.combinations(boxes + shapes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)
    assert len(boxes) >= 5 and re.search(r"\w+ \d+", "".join(picture.itertext()))
    assert picture.get("role") == "img" and picture.get("aria-label")


def test_names_in_a_diagram_are_escaped() -> None:
    def f(x: Float[Tensor, "a"]) -> Float[Tensor, "a"]:
        return x

    with trace('<b> & "c"') as seen:
        f(f(torch.zeros(3)))
    assert ET.fromstring(seen.to_svg()).get("aria-label") == '<b> & "c"'


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def block(**more: bool) -> Trace:
    model, x = nn.Sequential(Block(), Block(), nn.Linear(4, 2)), torch.zeros(3, 4)
    with trace("block", **more) as seen:
        model(x)
    return seen


def names_in(picture: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(picture).iter() if node.get("font-weight") == "bold"][1:]


def test_a_model_that_is_called_alone_shows_its_parts() -> None:
    seen = block()
    assert names_in(seen.to_svg()) == ["Block.forward 0…1 ×2", "Linear.forward 2"]
    assert names_in(seen.to_svg(depth=0)) == ["Sequential.forward"]
    seen = Trace("one block", [record for record in seen.steps if record.path.startswith("0") and record.id < 6])
    assert names_in(seen.to_svg(depth=1)) == [
        "LayerNorm.forward 0.norm",
        "Linear.forward 0.up",
        "Linear.forward 0.down",
    ]
    # the relu between up and down was not recorded: the line says what came next, not where a tensor went
    assert seen.to_svg(depth=1).count("stroke-dasharray") == 1
    one, x = Block(), torch.zeros(3, 4)
    with trace(ops=True) as seen:
        one(x)
    assert names_in(seen.to_svg())[2:] == ["relu", "Linear.forward down", "add"]
    assert "stroke-dasharray" not in seen.to_svg()


def test_tables_by_depth_and_unfolded_with_places_and_odd_dtypes() -> None:
    seen = block()
    assert len(seen.table(depth=0).splitlines()) == 3 and "Block.forward ×2" in seen.table(depth=1)
    assert seen.table(unfold=True).count("Block.forward") == 2 and "LayerNorm" not in seen.table(depth=1)
    assert "0…1" in seen.table() and "test_render.py:" in seen.table(where=True)
    with trace() as mixed:
        nn.Linear(3, 3)(torch.zeros(2, 3))
        nn.Embedding(3, 3)(torch.zeros(2, dtype=torch.long))
        nn.Linear(3, 3, device="meta")(torch.zeros(2, 3, device="meta"))
    lines = str(mixed).splitlines()[1:4]
    assert "float32" not in str(mixed) and "input (2,) int64 → (2, 3)" in lines[1] and "(2, 3) meta" in lines[2]
    assert "int64" in mixed.to_html() and "meta" in mixed.to_html()


def test_columns_of_nested_tables_are_aligned_and_places_may_be_links() -> None:
    page = block().to_html(links="vscode://file/{path}:{line}")
    widths = re.findall(r"<colgroup>(.*?)</colgroup>", page)
    assert len(widths) >= 2 and len(set(widths)) == 1 and "table-layout: fixed" in page
    assert re.search(r'<a href="vscode://file/[^"]*linear\.py:\d+">torch/nn/modules/linear\.py:\d+</a>', page)
    assert "<a " not in block().to_html()
