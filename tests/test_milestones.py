"""The learner's own parts in the trained model."""

from pathlib import Path

import nbformat
import pytest
import soundfile

from tinyomni import Omni, attention, cli
from tinyomni.grade import milestones
from tinyomni.grade.milestones import MILESTONES, milestone
from tinyomni.grade.registry import find_lesson

TOP = Path(__file__).resolve().parent.parent
OWN = """import torch

# %%
calls = []
def split_heads(x, heads):
    calls.append(1)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)

# %%
def merge_heads(x):
    return x.flatten(2)

# %%
raise ValueError("half done")

# %%
check.split_heads(split_heads)
"""


def test_own_parts_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "03_attention.py").write_text(OWN)
    heard: list[object] = []

    def show(omni: Omni, sound: Path, report: milestones.Report) -> None:
        heard.append(attention.split_heads)
        report(omni.generate(text="Who are you?", max_new_tokens=4))

    monkeypatch.setitem(MILESTONES, "05", milestones.Milestone("test", show))
    said: list[str] = []
    before = attention.split_heads
    milestone("05", tmp_path, report=said.append)
    assert heard != [before] and attention.split_heads is before
    assert "  a cell of 03_attention.py raises ValueError: half done" in said
    assert "03_attention: yours split_heads; the library's causal_mask, merge_heads, attention" in said
    assert said[-2] == "Milestone 05: test, with 1 parts of your own" and said[-1]


def test_a_stub_in_a_python_file_does_not_hide_the_answer_in_the_notebook(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("def merge_heads(x):\n    return x.transpose(1, 2).flatten(2)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "03_attention.ipynb")
    (tmp_path / "03_attention.py").write_text(f"{OWN}\ndef merge_heads(x):\n    raise NotImplementedError\n")
    mine, missing = milestones.answers_of(find_lesson("03_attention"), tmp_path, lambda line: None)
    assert list(mine) == ["merge_heads", "split_heads"] and missing == ["causal_mask", "attention"]


@pytest.mark.parametrize("number", MILESTONES)
def test_each_gives_something_to_read_or_hear(number: str, tmp_path: Path, trained: Omni) -> None:
    said: list[str] = []
    MILESTONES[number].show(trained, tmp_path / "out.wav", said.append)
    assert said and all(line.split("→")[1].strip() for line in said)
    if number in ("11", "17"):
        wav, rate = soundfile.read(tmp_path / "out.wav")
        assert rate == 16000 and len(wav) > 4000 and abs(wav).max() > 0.1


@pytest.fixture(scope="module")
def trained() -> Omni:
    return Omni.from_pretrained()


def test_without_answers_it_says_where_to_run_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["milestone", "08", "--exercises", str(tmp_path)]) == 2
    assert "name their folder with --exercises" in capsys.readouterr().err
    assert cli.main(["milestone", "06"]) == 2
    assert "milestone must be one of 05, 08, 11, 17, got '06'" in capsys.readouterr().err
