"""The log is written and read, and drawn so that it can be read in print."""

import json
import math
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from tinyomni.errors import InputError
from tinyomni.palette import IMAGE
from tinyomni.training.log import Log, read_log
from tinyomni.training.plots import live, plot_runs, running_mean, save_plot


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs of 100 steps with 4 validations each; step 31 of the second was skipped."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        with Log(folder, "toy", 0, 100, is_main=True) as log:
            for step in range(1, 101):
                if number and step == 31:
                    log.write(step=step, lr=0.1, skipped="Loss is nan", batch=[1, 2])
                else:
                    log.write(step=step, lr=1 / step, loss=3 * math.exp(-step / 30) + number)
                if step % 25 == 0:
                    log.write(step=step, validation={"loss": 5.0 + number, "other": math.nan})
    return folders


def test_the_curves_show_what_the_log_holds(runs: list[Path]) -> None:
    above, below = plot_runs(runs).axes
    shown = {line.get_label(): line for line in above.lines if not line.get_label().startswith("_")}
    assert list(shown) == [
        "first: training", "first: validation", "second: training", "second: validation", "second: skipped",
    ]  # fmt: skip
    assert list(shown["first: validation"].get_xydata()[:, 0]) == [25, 50, 75, 100]
    assert list(shown["second: validation"].get_xydata()[:, 1]) == [6.0] * 4
    assert list(shown["second: skipped"].get_xdata()) == [31]
    x, y = shown["second: training"].get_data()
    assert 31 not in x and len(x) == 99
    assert y[50] == pytest.approx(np.mean([3 * math.exp(-step / 30) + 1 for step in x[50:51]]), rel=0.05)
    assert below.lines[0].get_ydata()[9] == pytest.approx(0.1)
    assert [axes.get_ylabel() for axes in (above, below)] == ["loss", "learning rate"]


def test_runs_can_be_told_apart_without_colour(runs: list[Path]) -> None:
    above, below = plot_runs(runs).axes
    labelled = [line for line in above.lines if not line.get_label().startswith("_")]
    looks = [(line.get_linestyle(), line.get_marker()) for line in labelled]
    assert len(set(looks)) == len(looks)
    assert below.lines[0].get_linestyle() != below.lines[1].get_linestyle()


def test_one_run_has_the_colour_of_its_modality_and_labels_at_its_curves(runs: list[Path], tmp_path: Path) -> None:
    above = plot_runs([runs[0].rename(tmp_path / "vision")]).axes[0]
    assert above.get_legend() is None and {text.get_text() for text in above.texts} == {"training", "validation"}
    assert {line.get_color() for line in above.lines} == {IMAGE.colour}
    assert above.get_title("left") == "After 100 steps the training loss is 0.109, from 2.85"  # means of two steps
    assert not plot_runs(runs[1:] * 2).axes[0].get_title("left")


def test_a_picture_is_written(runs: list[Path], tmp_path: Path) -> None:
    save_plot(runs, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1200, 900)
    save_plot(runs, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log\.jsonl is missing or holds no step"):
        plot_runs([tmp_path])


def test_the_log_is_json_and_drops_what_comes_again(runs: list[Path], tmp_path: Path) -> None:
    text = (runs[0] / "log.jsonl").read_text()
    assert "NaN" not in text and json.loads(text.splitlines()[25])["validation"] == {"loss": 5.0, "other": None}
    with Log(runs[0], "toy", 30, 100, is_main=True) as log:
        log.write(step=31, loss=0.0)
    assert [entry["step"] for entry in read_log(runs[0] / "log.jsonl")] == [*range(1, 26), 25, *range(26, 32)]
    with Log(tmp_path, "toy", 0, 100, is_main=False) as log:
        log.write(step=1, loss=0.0)
        log.progress("loss 0")
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize("line", [b"\0\0\0\n", b'{"step": \xff}\n', b"\n"])
def test_a_damaged_line_of_a_log_is_named(runs: list[Path], line: bytes) -> None:
    path = runs[0] / "log.jsonl"
    path.write_bytes(path.read_bytes() + line + b'{"step": 99}\n')
    with pytest.raises(InputError, match=r"log\.jsonl, line \d+: expected JSON, got b"):
        read_log(path)


def test_the_running_mean_is_a_slow_loop() -> None:
    values = np.random.default_rng(0).normal(size=20)
    want = [np.mean(values[max(0, end - 5) : end]) for end in range(1, 21)]
    np.testing.assert_allclose(running_mean(values, 5), want)
    np.testing.assert_allclose(running_mean(values, 1), values)


def test_in_a_notebook_the_curve_is_drawn_while_it_grows(tmp_path: Path) -> None:
    """A second image is drawn before the body ends; one stays, with a description in words."""
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell(f"""
import time
from pathlib import Path
from tinyomni.training import log, plots
run, drawn, draw = Path({str(tmp_path)!r}), [], plots.plot_runs
plots.plot_runs = lambda runs: drawn.append(len(plots.read_log(run / "log.jsonl"))) or draw(runs)
try:
    with plots.live(run, every=0.1), log.Log(run, "run", 0, 9, True) as entries:
        for step in range(1, 9):
            entries.write(step=step, loss=1 / step, lr=0.1)
            while len(drawn) < min(step, 2):
                time.sleep(0.01)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
assert drawn[:2] == [1, 2] and drawn[-1] == 8, drawn""")
    ]
    NotebookClient(book, timeout=900).execute()
    (output,) = book.cells[0].outputs
    assert "image/png" in output.data and "over the steps" in output.metadata["image/png"]["alt"]


def test_elsewhere_nothing_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live(tmp_path):
        pass
    assert capsys.readouterr() == ("", "")
