"""What the lessons share: every figure is described and drawn in the course's look, and a slider moves its figure."""

import base64
import io
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tinyomni import lessons
from tinyomni.data import world
from tinyomni.lessons import pages, show
from tinyomni.lessons.map import HERE, PARTS, draw_map
from tinyomni.lessons.progress import draw_progress
from tinyomni.lessons.small_world import small_world
from tinyomni.palette import LOOKS, label_ends


def test_looks_differ_in_colour_marker_and_hatch() -> None:
    for part in ("colour", "marker", "hatch"):
        assert len({getattr(look, part) for look in LOOKS.values()}) == len(LOOKS)


def simulate(colour: str, matrix: list[list[float]]) -> np.ndarray:
    """A colour as a colour-blind person sees it, in linear RGB."""
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.clip(np.array(matrix) @ linear, 0, 1)


@pytest.mark.parametrize(
    "matrix",  # Machado, Oliveira & Fernandes (2009), severity 1: deuteranopia, protanopia, tritanopia
    [
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
    ids=["deutan", "protan", "tritan"],
)
def test_colours_of_modalities_stay_apart_for_colour_blind_readers(matrix: list[list[float]]) -> None:
    seen = {name: simulate(look.colour, matrix) for name, look in LOOKS.items()}
    near = {(a, b): round(float(np.abs(seen[a] - seen[b]).max()), 2) for a in seen for b in seen if a < b}
    assert min(near.values()) > 0.08, near


@pytest.mark.parametrize("number", HERE)
def test_every_lesson_has_its_place_on_the_map(number: int) -> None:
    figure, alt = draw_map(number)
    assert set(HERE[number]) <= set(PARTS) and alt.startswith("Map of the model")
    written = {text.get_text() for text in figure.axes[0].texts}
    assert {part.title for part in PARTS.values()} <= written


@pytest.mark.parametrize("name", lessons.DIAGRAMS)
def test_text_of_a_diagram_stays_on_its_sheet(name: str) -> None:
    figure, alt = lessons.DIAGRAMS[name]()
    assert 40 < len(alt) < 140
    figure.canvas.draw()
    sheet = figure.bbox
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert sheet.x0 <= box.x0 and box.x1 <= sheet.x1 and sheet.y0 <= box.y0 and box.y1 <= sheet.y1, text.get_text()


def drawing(height: int, word: str) -> tuple[Figure, str]:
    return Figure(figsize=(2, height)), f"{word} {height}"


def test_a_stored_lesson_shows_the_picture_for_the_first_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda *data, **more: shown.append((data, more)))
    lessons.explore(drawing, height=(2, 1, 4, 1), word=["tall", "low"])
    ((data, more),) = shown
    assert data[0]["text/plain"] == more["metadata"]["image/png"]["alt"] == "tall 2"
    size = Image.open(io.BytesIO(base64.b64decode(data[0]["image/png"]))).size
    assert size == (320, 320) and more["metadata"]["image/png"]["width"] == 200


def test_moving_a_slider_draws_again_in_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[str] = []
    handle = SimpleNamespace(update=lambda data, **_: updates.append(data["text/plain"]))
    box = show._controls(drawing, handle, {"height": (2, 1, 4, 1), "word": ["tall", "low"]})
    slider, menu, _ = box.children
    slider.value = 3
    menu.value = "low"
    assert updates == ["tall 3", "low 3"]


def test_a_reader_writes_a_text_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda *data, **more: shown.append(data[0]["text/plain"]))
    lessons.explore(drawing, height=(2, 1, 4, 1), word="wide")
    handle = SimpleNamespace(update=lambda data, **_: shown.append(data["text/plain"]))
    field = show._controls(drawing, handle, {"height": (2, 1, 4, 1), "word": "wide"}).children[1]
    field.value = "of my own"
    assert shown == ["wide 2", "of my own 2"]


def test_a_slider_over_choices_grows_to_the_right_and_begins_at_the_first_one() -> None:
    slider = show._controls(drawing, SimpleNamespace(), {"height": [3, 1, 2], "word": "wide"}).children[0]
    assert slider.value == 3 and list(slider.options) == [1, 2, 3]


def test_what_a_reader_may_write_wrongly_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def show_file(image_file: str) -> tuple[Figure, str]:
        if image_file == "":
            raise ValueError
        Path(image_file).read_bytes()
        return Figure(figsize=(2, 1)), image_file

    updates: list[str] = []
    handle = SimpleNamespace(update=lambda data, **_: updates.append(data["text/plain"]))
    field = show._controls(show_file, handle, {"image_file": __file__}).children[0]
    field.value = "no_such.png"
    assert "No such file" in capsys.readouterr().out and updates == []
    field.value = ""  # an error without a text
    told = capsys.readouterr().out
    assert "✘" in told and "Traceback" not in told and updates == []
    field.value = __file__
    assert updates == [__file__]


def test_the_finding_stands_above_all_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("IPython.display.display", lambda *data, **more: None)
    figure = Figure(figsize=(4, 2))
    figure.subplots(1, 2)
    lessons.show_figure(figure, "two empty panels", "Nothing is found")
    assert figure.get_suptitle() == "Nothing is found"


def singing(pitch: int) -> tuple[Figure, str, dict[str, torch.Tensor]]:
    tone = torch.sin(torch.arange(800) * 2 * torch.pi * pitch / 16_000)
    return Figure(figsize=(2, 1)), f"{pitch} Hz", {f"<{pitch}> Hz": tone, "half as loud": tone / 2}


def test_a_stored_lesson_has_players_for_the_sounds_of_the_first_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda *data, **more: shown.append(data[0]))
    lessons.explore(singing, pitch=[440, 880])
    figure, players = shown
    assert "image/png" in figure and players["text/html"].count("<audio controls src") == 2
    source = players["text/html"].split('src="data:audio/wav;base64,')[1].split('"')[0]
    with wave.open(io.BytesIO(base64.b64decode(source))) as stored:
        assert (stored.getframerate(), stored.getnframes()) == (16_000, 800)
    assert "&lt;440&gt; Hz" in players["text/html"]


def test_what_is_chosen_is_heard_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "is_live", lambda: True)
    updates: list[str] = []
    handle = SimpleNamespace(update=lambda data, **_: updates.append(data["text/html"]))
    show._controls(singing, handle, {"pitch": [440, 880]}).children[0].value = 880
    (html,) = updates
    assert html.startswith("<img alt=") and "&lt;880&gt; Hz" in html
    assert html.count("<audio") == 2 and html.count("autoplay") == 1


def test_labels_of_curves_lie_at_their_ends_and_apart() -> None:
    figure = Figure()
    axes = figure.subplots()
    for first, last, name in ((0.1, 1.0, "high"), (0.1, 0.5, "middle"), (0.1, 0.49, "beside it"), (0.09, 0.49, "low")):
        axes.semilogy([1, 2], [first, last], label=name)
    axes.plot([1, 2], [0.1, 0.2])
    label_ends(axes)
    height = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert list(height) == ["low", "beside it", "middle", "high"]
    assert height["middle"] - height["beside it"] == pytest.approx(0.08) and height["high"] > height["middle"] + 0.08
    figure.draw_without_rendering()
    end = axes.transAxes.inverted().transform(axes.transData.transform((2, 0.49)))
    assert axes.texts[0].xy == pytest.approx(tuple(end)) and axes.texts[0].get_position()[0] > end[0]


def test_a_live_figure_has_its_description_where_jupyterlab_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "is_live", lambda: True)
    data, metadata = show.bundle(Figure(figsize=(2, 1)), 'a "quoted" <word>')
    assert data["text/html"].startswith('<img alt="a &quot;quoted&quot; &lt;word&gt;" width="200" src="data:image/png')
    assert "image/png" not in data and metadata == {}


def test_a_small_area_of_a_rare_colour_keeps_it_among_256() -> None:
    noise = np.random.default_rng(0).uniform(0.7, 1, (200, 200, 3))
    noise[95:105, 95:105] = (0, 0.6, 0.2)
    figure = Figure(figsize=(2, 2))
    figure.add_axes((0, 0, 1, 1)).imshow(noise)
    png = base64.b64decode(show.bundle(figure, "noise")[0]["image/png"])
    image = Image.open(io.BytesIO(png))
    assert image.mode == "P" and len(png) < 90_000  # 300,000 in true colour
    assert np.abs(np.array(image.convert("RGB").getpixel((160, 160))) - (0, 153, 51)).max() < 24


def test_a_later_cell_that_uses_a_name_again_does_not_reach_a_slider() -> None:
    notebook: dict[str, Any] = {"Figure": Figure}
    cell = (
        "def label():\n  return logits\ndef draw(height):\n  return Figure(), f'{label()} {height}'\nlogits = 'first'"
    )
    exec(cell, notebook)
    updates: list[str] = []
    handle = SimpleNamespace(update=lambda data, **_: updates.append(data["text/plain"]))
    slider = show._controls(notebook["draw"], handle, {"height": (1.0, 0.1, 2.0, 0.1)}).children[0]
    notebook["logits"] = "second"
    slider.value = 1.4000000000000001  # what ten steps of 0.1 and four more are
    assert updates == ["first 1.4"]


def test_progress_marks_what_is_right() -> None:
    said = [["a red star", "nothing"], ["a red ring", "a blue ring"]]
    figure = draw_progress("title", ["one", "two"], ["step 0", "step 9"], said, [[True, False], [False, True]])
    marked = [text.get_text() for text in figure.axes[0].texts if text.get_text()[0] in "✔✘"]
    assert marked == ["✔ a red star", "✘ nothing", "✘ a red ring", "✔ a blue ring"]


def test_the_small_world_is_whole_and_nothing_of_it_is_held_out_of_the_closed_world() -> None:
    train, test = small_world()
    keys = {world.scene_key(things) for things in train + test}
    assert (len(train), len(test), len(keys)) == (120, 40, 2 * 4 * 4 * 5)
    assert world.HELD_OUT.isdisjoint(world.colour_shape_pairs(things[0] for things in train + test))


def test_an_unknown_diagram_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match=r"expected one of attention_head, .*, got 'attention'"):
        lessons.diagram("attention")


def test_a_diagram_warns_of_nothing_in_the_courses_style(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.setattr("IPython.display.display", lambda *data, **more: None)
    with plt.style.context(show.STYLE):
        lessons.diagram("kv_cache")
        show.show_figure(*draw_map(3))


TOP = Path(__file__).resolve().parents[1]
LESSONS = {int(path.name[:2]): path for path in (TOP / "notebooks").glob("*.ipynb")}
PAGES = {
    "glossary.md": lambda: pages.glossary({number: path.name for number, path in LESSONS.items()}),
    "cheat_sheet.md": pages.cheat_sheet,
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_beside_the_lessons_are_as_the_code_writes_them(name: str) -> None:
    page = (TOP / "docs" / name).read_text(encoding="utf-8")
    assert page == PAGES[name](), "run `python tests/test_lessons.py`"


def test_terms_are_taught_where_the_glossary_says() -> None:
    texts = {number: path.read_text(encoding="utf-8").lower() for number, path in LESSONS.items()}
    assert not [(term, number) for term, (number, _) in pages.TERMS.items() if term.lower() not in texts[number]]


if __name__ == "__main__":
    for name, write in PAGES.items():
        (TOP / "docs" / name).write_text(write(), encoding="utf-8")
