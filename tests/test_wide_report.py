"""What people do, measured: looks, wordings and recordings, as parts of the report on a weights file."""

import math
from pathlib import Path

import numpy as np
import pytest

from tinyomni import Omni
from tinyomni.config import SAMPLE_RATE
from tinyomni.data import other_makers, wordings
from tinyomni.data.tts import utter
from tinyomni.evaluation import dialogue, export, independent_renderer, looks, recordings, report
from tinyomni.evaluation.calibration import BINS, accuracy_by_confidence, calibration_error
from tinyomni.evaluation.recordings import CONDITIONS
from tinyomni.evaluation.registry import METRICS, PARTS, WHOLE_MODEL, WIDE
from tinyomni.metrics import Rate, accuracy


@pytest.fixture(scope="module")
def omni() -> Omni:
    return Omni.from_pretrained().eval()


def test_every_look_wording_and_recording_is_a_metric(
    omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "captions_and_answers", lambda *_: (accuracy([True, False]), []))
    monkeypatch.setattr(looks, "confident_and_wrong", lambda *_: accuracy([False]))
    every_bin = [looks.Worded(True, math.log(confidence), False) for confidence in (0.3, 0.7, 0.9, 0.97, 0.999)]
    monkeypatch.setattr(looks, "worded", lambda *_, **__: every_bin)
    monkeypatch.setattr(dialogue, "ask", lambda omni, question, image: omni)
    monkeypatch.setattr(looks, "accuracy", lambda found: accuracy(found or [True]))
    monkeypatch.setattr(other_makers, "installed", lambda voices: ())
    monkeypatch.setattr(Omni, "answer", "Yes.", raising=False)
    monkeypatch.setattr(Omni, "unsure", False, raising=False)
    found = {part: [id for id, *_ in report.MEASURE_MODEL[part](omni, str(tmp_path), 1)] for part in WIDE}
    for part, ids in found.items():
        expected = [id for id, metric in METRICS.items() if metric.part == part]
        if part == "recordings":  # voices of other makers: where they are installed
            person = ["recordings.person_cer", "recordings.person_confident"]
            assert ids == [*expected[: len(CONDITIONS)], *person] and expected[-2:] == person
            assert len(expected) == len(ids) + len((*other_makers.HELD_OUT, *other_makers.TRAINED))
            monkeypatch.setattr(dialogue, "REAL_SPEECH", tmp_path / "not here")
            assert [id for id, *_ in report.MEASURE_MODEL[part](omni, str(tmp_path), 1)] == ids[:-2]
        else:
            assert sorted(ids) == sorted(expected)
    assert set(WIDE) < set(WHOLE_MODEL) < set(PARTS) and set(report.MEASURE_MODEL) == set(WHOLE_MODEL)


def test_captions_and_wordings_are_judged_by_what_the_model_says(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independent_renderer, "LOOKS", {"plain": independent_renderer.LOOKS["plain"]})
    monkeypatch.setattr(independent_renderer, "UNCLEAR", ("empty",))
    found = dict(looks.looks(omni, 8))
    assert found["looks.caption"].rate == found["looks.caption_worst"].rate == found["looks.caption_plain"].rate >= 0.5
    assert found["looks.question_plain"].rate >= 0.75 and found["looks.claims_empty"].n == 8
    found_answers = looks.worded(omni, wordings.families("train")[0], 6)
    assert len(found_answers) == 6 and any(each.right for each in found_answers)
    assert all(each.certainty <= 0 for each in found_answers) and any(not each.unsure for each in found_answers)


def test_calibration_sets_confidence_against_accuracy() -> None:
    """ECE as Guo et al. (2017) have it, by another way: NumPy's digitize over the same edges."""
    rng = np.random.default_rng(0)
    confidence = rng.beta(5, 1, 400)
    right = rng.random(400) < confidence**2  # too confident
    judged = [(math.log(each), bool(hit)) for each, hit in zip(confidence, right, strict=True)]
    edges = [up_to for _, up_to in BINS.values()]
    number = np.digitize(confidence, edges[:-1], right=True)
    expected = sum(abs(right[number == each].mean() - confidence[number == each].mean()) * (number == each).mean()
                   for each in set(number))  # fmt: skip
    error = calibration_error(judged)
    assert error.rate == pytest.approx(expected) and error.n == 400 and expected > 0.05
    rates = accuracy_by_confidence(judged)
    assert list(rates) == [name for each, name in enumerate(BINS) if each in set(number)]
    for name, rate in rates.items():
        chosen = number == list(BINS).index(name)
        assert rate.rate == pytest.approx(right[chosen].mean()) and rate.n == chosen.sum()
    assert calibration_error([(math.log(0.25), each == 0) for each in range(4)]).rate == pytest.approx(0)


def test_the_reliability_diagram_is_drawn_where_calibration_was_measured(tmp_path: Path) -> None:
    results = tuple(report.result(f"calibration.{name}", accuracy([True, False]), 2, "laptop") for name in BINS)
    measured, without = report.Report("laptop", results, {}, ()), report.Report("laptop", (), {}, ())
    assert measured.plot_reliability(tmp_path / "one.svg") and measured.plot_reliability(tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert not without.plot_reliability(tmp_path / "none.svg") and not (tmp_path / "none.svg").exists()


def test_the_mean_over_looks_is_that_of_all_samples() -> None:
    both = looks.joined([Rate((1.0, 0.0), (1.0, 1.0)), Rate((1.0,), (1.0,))])
    assert both.rate == pytest.approx(2 / 3) and both.n == 3


def test_spoken_questions_are_answered_in_a_quiet_recording(omni: Omni, tmp_path: Path) -> None:
    found = {}
    for id, rate in dialogue.recorded(omni, 4, str(tmp_path)):
        found[id] = rate
        if len(found) == 2:
            break
    assert found["recordings.as_spoken"].rate >= 0.75 and found["recordings.as_spoken"].n == 4


def test_weights_of_the_plain_style_are_not_measured_on_what_they_never_met(
    omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "omni").mkdir()
    record = (
        '{"steps": 1, "seconds": 1, "samples": 1, "skipped": 0, "peak_memory": 1, "device": "cpu", "precision": "fp32"}'
    )
    (tmp_path / "omni" / "result.json").write_text(record)
    measured: list[str] = []
    for part in report.MEASURE_MODEL:
        monkeypatch.setitem(report.MEASURE_MODEL, part, lambda *_, part=part: measured.append(part) or iter(()))
    for part in ("questions", "unanswerable"):
        monkeypatch.setitem(report.MEASURE, part, lambda *_: iter(()))
    monkeypatch.setattr(report, "total_costs", lambda run: {})
    run_dir = export.RunDir(tmp_path)
    for style, expected in (("plain", ["end-to-end"]), ("wide", list(WHOLE_MODEL))):
        monkeypatch.setattr(omni, "style", style)
        measured.clear()
        report.report(run_dir, 1, model=omni)
        assert measured == expected
    measured.clear()
    monkeypatch.setattr(omni, "style", "plain")
    report.report(run_dir, 1, ["looks"], omni)
    assert measured == ["looks"]


# ---- the conditions -------------------------------------------------------------------------------------------------


def test_a_condition_does_what_its_name_says() -> None:
    wave, rng = utter("What colour is the star?").double().numpy(), np.random.default_rng(0)
    changed = {name: change(wave, rng) for name, change in CONDITIONS.items()}
    assert all(np.isfinite(each).all() and each.any() for each in changed.values())
    np.testing.assert_array_equal(changed["as spoken"], wave)
    loud = np.abs(wave) > np.median(np.abs(wave))
    for snr in (20, 10, 5):
        noise = changed[f"{snr} dB SNR"] - wave
        assert 10 * np.log10(np.mean(wave[loud] ** 2) / np.mean(noise**2)) == pytest.approx(snr, abs=0.3)
    np.testing.assert_allclose(changed["30 dB quieter"], wave * 0.0316228, rtol=1e-4)
    assert (np.abs(changed["clipped"]) == 1).mean() > 0.01
    assert len(changed["room of 0.8 s"]) == len(wave) + int(0.8 * SAMPLE_RATE) - 1
    spectrum = np.abs(np.fft.rfft(changed["telephone"]))
    frequency = np.fft.rfftfreq(len(changed["telephone"]), 1 / SAMPLE_RATE)
    assert spectrum[frequency > 4000].max() < 0.1 * spectrum.max()
    assert len(changed["10% faster"]) == pytest.approx(len(wave) / 1.1, rel=0.01)
    assert recordings.through_file(wave, "WAV", "PCM_16") == pytest.approx(wave, abs=1e-4)
