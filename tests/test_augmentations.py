"""`benchmarks/augmentations.py`: what each augmentation is worth. In small sizes."""

import json
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from tinyomni.data.randomization import WIDE, Randomization
from tinyomni.evaluation.independent_renderer import LOOKS
from tinyomni.lessons.augmentations import CONCERNED, draw_worth, measured

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "benchmarks"))
import augmentations  # noqa: E402

SMALL = ["--images", "40", "--epochs", "1", "--n", "4", "--seeds", "1"]


def test_every_variation_is_in_one_family_and_every_look_is_known() -> None:
    varied = Counter(name for names in augmentations.FAMILIES.values() for name in names)
    assert varied == Counter(field.name for field in fields(Randomization))
    concerned = [look for looks in CONCERNED.values() for look in looks]
    assert sorted([*concerned, "plain", "mixed"]) == sorted(LOOKS)
    assert list(CONCERNED) == list(augmentations.FAMILIES)


def test_a_condition_leaves_out_what_it_says() -> None:
    how = augmentations.families_of
    assert how("all") == WIDE and how("none") == WIDE.scaled(0)
    for name, varied in augmentations.FAMILIES.items():
        for field in (each.name for each in fields(Randomization)):
            assert getattr(how(f"all but {name}"), field) == (0 if field in varied else getattr(WIDE, field))


def test_the_scenes_are_the_same_whatever_varies() -> None:
    images, labels, shown = augmentations.training_set(augmentations.families_of("none"), 6, 3)
    others = augmentations.training_set(augmentations.families_of("all"), 6, 3)
    assert torch.equal(labels, others[1]) and not torch.equal(images, others[0])
    assert images.shape == (6, 3, 112, 112) and shown.shape == (6, 49) and (shown == 0).any(dim=1).all()


def test_runs_are_kept_and_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "a.json")]
    assert augmentations.main([*SMALL, *out, "--only", "none", "all but place"]) == 0
    table = capsys.readouterr().out
    assert table.count(" seed 0 ") == 2 and table.count("\n| ") == 4 + len(augmentations.FAMILIES)
    assert augmentations.main([*SMALL, *out, "--only", "none", "all"]) == 0
    assert capsys.readouterr().out.count(" seed 0 ") == 1
    result = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [run["condition"] for run in result["runs"]] == ["none", "all but place", "all"]
    for run in result["runs"]:
        assert list(run["right"]) == list(LOOKS)
        for counts in run["right"].values():
            assert 0 <= counts["scene"] <= min(counts.values()) and max(counts.values()) <= 4


def test_the_page_and_the_figure_show_what_was_measured() -> None:
    result = measured()
    assert {run["condition"] for run in result["runs"]} == set(augmentations.CONDITIONS)
    page = (TOP / "docs" / "studies.md").read_text(encoding="utf-8")
    assert augmentations.table(result) in page, "put there what `python benchmarks/augmentations.py` prints"
    figure, alt = draw_worth("title")
    assert all(name in alt for name in CONCERNED)
    assert [len(ax.lines) for ax in figure.axes] == [5 * len(CONCERNED)] * 2
