"""Rates with their intervals, limits that can be missed, and a report on a real, if hardly trained, stage."""

import json
from pathlib import Path

import pytest

from tinyomni.cli import main
from tinyomni.evaluation.report import LIMITS, MEASURES, Figure, figure
from tinyomni.metrics import Rate, cer, share


def test_a_rate_is_a_sum_over_a_sum() -> None:
    rate = cer(["red", "a bule ring", ""], ["red", "a blue ring", "no"])
    assert rate.parts == (0, 2, 2) and rate.wholes == (3, 11, 2) and rate.rate == 4 / 16 and rate.n == 3


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 experiments with a known share of 0.3, the interval should miss it about 10 times."""
    import random

    rng = random.Random(0)
    missed = 0
    for _ in range(200):
        low, high = share([rng.random() < 0.3 for _ in range(100)]).interval(300)
        missed += not low <= 0.3 <= high
    assert 2 <= missed <= 24
    assert share([True] * 100).interval() == (0.97, 1.0) and share([False] * 50).interval() == (0.0, 0.06)
    # errors that come together make the figure less certain
    apart, together = Rate((1,) * 10 + (0,) * 90, (1,) * 100), Rate((10,) + (0,) * 9, (10,) * 10)
    assert together.interval()[1] > apart.interval()[1]


@pytest.mark.parametrize(("name", "value", "good"), [
    ("ear: characters wrong, grammar", 0.02, True), ("ear: characters wrong, grammar", 0.021, False),
    ("typed questions: all", 0.97, True), ("typed questions: all", 0.969, False),
    ("spoken questions: never heard", 0.1, None),
])  # fmt: skip
def test_limits(name: str, value: float, good: bool | None) -> None:
    parts = figure(name, Rate((value,), (1.0,)), "laptop")
    assert parts.good is good and parts.limit == LIMITS[name][0]
    assert ("✘" in str(parts)) == (good is False)
    assert figure(name, Rate((value,), (1.0,)), "smoke").limit is None


def test_the_gpu_has_to_reach_more() -> None:
    for name, (laptop, gpu) in LIMITS.items():
        if laptop is not None:
            higher = Figure(name, 0, 0, 0, 1).higher_is_better
            assert gpu >= laptop if higher else gpu <= laptop, name


def test_the_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "First: tinyomni train all" in capsys.readouterr().err
    train = ["train", "thinker", "--preset", "smoke", "--out", str(tmp_path), "--set", "steps=3"]
    assert main(train) == 0
    assert main(["report", str(tmp_path), "--only", "everything"]) == 2
    files = ["--json", str(tmp_path / "report.json"), "--picture", str(tmp_path / "report.png")]
    # a Thinker that has hardly read misses the limit, and is far worse than one that counts tokens
    assert main(["report", str(tmp_path), "--n", "40", "--only", "text", *files]) == 1
    assert "✘ text: loss above the grammar's" in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    line, unknowing = found["figures"]
    assert unknowing["value"] < line["value"] and unknowing["limit"] is None
    assert line["value"] > line["control"] > 1 > line["limit"] and found["costs"]["thinker"]["steps"] == 3
    assert (tmp_path / "report.png").stat().st_size > 5000
    assert main(["report", str(tmp_path), "--n", "40", "--only", "ear"]) == 1
    assert "not trained here: audio" in capsys.readouterr().out
    assert set(MEASURES) == {"text", "eye", "ear", "codec", "voice", "ears", "questions", "unknowable"}
