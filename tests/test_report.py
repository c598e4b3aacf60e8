"""Rates with their intervals, the registry of metrics, and a report on a real, if hardly trained, stage."""

import json
import random
from pathlib import Path

import pytest

from tinyomni.cli import main
from tinyomni.errors import InputError
from tinyomni.evaluation.registry import METRICS, PARTS, WHOLE_MODEL, Metric
from tinyomni.evaluation.report import MEASURE, Report, report, result
from tinyomni.metrics import Rate, accuracy, cer, error_rate
from tinyomni.training import stages
from tinyomni.training.recipe import RunDir
from tinyomni.training.run import COSTS
from tinyomni.training.settings import PRESETS


def test_a_rate_is_a_sum_over_a_sum() -> None:
    rate = cer(["red", "a bule ring", ""], ["red", "a blue ring", "no"])
    assert rate.parts == (0, 2, 2) and rate.wholes == (3, 11, 2) and rate.rate == 4 / 16 and rate.n == 3
    assert error_rate([["a", "ring"]], [["a", "blue", "ring"]]).rate == 1 / 3  # words, of a list


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 experiments with a known accuracy of 0.3, the interval should miss it about 10 times."""
    rng = random.Random(0)
    missed = 0
    for _ in range(200):
        low, high = accuracy([rng.random() < 0.3 for _ in range(100)]).interval(300)
        missed += not low <= 0.3 <= high
    assert 2 <= missed <= 24
    assert accuracy([True] * 100).interval() == (0.97, 1.0) and accuracy([False] * 50).interval() == (0.0, 0.06)
    # correlated errors make the rate less certain
    apart, together = Rate((1,) * 10 + (0,) * 90, (1,) * 100), Rate((10,) + (0,) * 9, (10,) * 10)
    assert together.interval()[1] > apart.interval()[1]


# ---- the registry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("id", "value", "passed"), [
    ("asr.cer_grammar", 0.02, True), ("asr.cer_grammar", 0.021, False), ("questions.typed", 0.97, True),
    ("questions.typed", 0.969, False), ("questions.spoken_new", 0.1, None), ("tts.rtf", 1.01, False),
    ("dialogue.accuracy", 0.1, None),
])  # fmt: skip
def test_a_threshold_is_met_or_missed(id: str, value: float, passed: bool | None) -> None:
    found = result(id, Rate((value,), (1.0,)), 1, "laptop")
    assert found.passed is passed and found.threshold == METRICS[id].thresholds.get("laptop")
    assert str(found).startswith({True: "✔", False: "✘", None: " "}[passed]) and METRICS[id].label in str(found)
    assert result(id, Rate((value,), (1.0,)), 1, "smoke").threshold is None


def test_every_metric_states_which_way_is_good() -> None:
    """By the kind of metric, worked out from the names of the field: nothing is guessed from a label's first word."""
    lower = ("loss", "CER", "WER", "variance", "RTF", "of right answers", "confident claims", "called sure", "(ECE)")
    for metric in METRICS.values():
        assert metric.higher_is_better != any(word in metric.label for word in lower), metric.label
        assert set(metric.thresholds) <= set(PRESETS) and metric.part in PARTS and metric.stage in stages.names()
        if "laptop" in metric.thresholds:  # the GPU has to reach more
            assert metric.meets(metric.thresholds["gpu"], metric.thresholds["laptop"]), metric.id
        assert metric.thresholds.get("shipped") == metric.thresholds.get("laptop"), metric.id
    labels = [metric.label for metric in METRICS.values()]
    assert len(set(labels)) == len(labels) and max(map(len, labels)) <= 62


def test_ratios_are_not_shown_as_percentages() -> None:
    found = result("tts.rtf", Rate((0.76,), (10.0,)), 1, "laptop")
    assert found.cells()[0] == "0.076" and found.cells()[2] == "≤ 1.00"
    assert result("tts.cer", Rate((1,), (40,)), 1, "laptop").cells()[0] == "2.50%"


def test_a_metric_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An entry in the registry, and one line in the function of its part: report, JSON and plot follow."""
    monkeypatch.setitem(METRICS, "lm.toy", Metric("lm.toy", "lm", "LM: toy", True, thresholds={"smoke": 0.9}))
    monkeypatch.setitem(MEASURE, "lm", lambda run_dir, n: iter([("lm.toy", accuracy([True, False]), 0.1)]))
    (tmp_path / "thinker").mkdir()
    source = {"run": "x", **dict.fromkeys(COSTS, 5)}
    record = {**dict.fromkeys(COSTS, 2), "peak_memory": 0, "device": "cpu", "precision": "fp32"}
    (tmp_path / "thinker" / "result.json").write_text(json.dumps(record | {"initialized_from": source}))
    found = report(RunDir(tmp_path, "smoke"), 2, ["lm"])
    assert not found.passed and found.results[0].threshold == 0.9 and found.results[0].baseline == 0.1
    assert found.costs["thinker"]["steps"] == 7  # with the run that it was initialized from
    found.save(tmp_path / "report.json")
    (row,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["results"]
    assert (row["label"], row["unit"], row["value"]) == ("LM: toy", "%", 0.5)
    assert Report.load(tmp_path / "report.json") == found
    found.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 5000


def test_files_that_are_not_a_report_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text, words in (("[]", "expected the output"), ('{"preset": "gpu"}', "expected the output"),
                        ("{", "not valid JSON"),
                        ('{"results": [{"id": "ear: wrong"}]}', "unknown metric 'ear: wrong'")):  # fmt: skip
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=words):
            Report.load(path)
    path.write_bytes(b'{"results": ["\xff"]}')
    with pytest.raises(InputError, match="not valid JSON, or it is damaged"):
        Report.load(path)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "First: tinyomni train all" in capsys.readouterr().err
    train = ["train", "thinker", "--preset", "smoke", "--out", str(tmp_path), "--set", "steps=3"]
    assert main(train) == 0
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--only", "everything"])
    capsys.readouterr()
    assert main(["report", str(tmp_path), "--only", "end-to-end"]) == 2
    assert "needs a weights file: tinyomni report --weights" in capsys.readouterr().err
    files = ["--json", str(tmp_path / "report.json"), "--plot", str(tmp_path / "report.png")]
    # a Thinker that has hardly read misses the threshold, and is far worse than one that counts tokens
    assert main(["report", str(tmp_path), "--n", "40", "--only", "lm", *files]) == 1
    assert "✘ LM: excess loss over the grammar's entropy" in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    excess, all_pairs = found["results"]
    assert all_pairs["value"] < excess["value"] and all_pairs["threshold"] is None
    assert excess["value"] > excess["baseline"] > 1 > excess["threshold"] and found["costs"]["thinker"]["steps"] == 3
    assert (tmp_path / "report.png").stat().st_size > 5000
    assert main(["report", str(tmp_path), "--n", "40", "--only", "asr"]) == 1
    assert "not trained here: audio" in capsys.readouterr().out
    assert set(PARTS) == {*MEASURE, *WHOLE_MODEL}
