"""From stages to one weights file with its model card, and back to stages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyomni import Omni
from tinyomni.dry_run import build
from tinyomni.errors import InputError
from tinyomni.evaluation import export
from tinyomni.evaluation.model_card import (
    CANNOT,
    CARD,
    CERTAINTY,
    DRAWN,
    STRICTER,
    changed,
    command,
    makers_of,
    origin,
    row,
    style_of,
)
from tinyomni.evaluation.registry import METRICS, PARTS, WIDE
from tinyomni.evaluation.report import Report, result
from tinyomni.io import weights as weights_io
from tinyomni.metrics import accuracy
from tinyomni.training import checkpoint, stages
from tinyomni.training.recipe import RunDir

RATE = accuracy([1, 1, 0, 1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run folder with untrained stages: the encoders of the stage omni are those of their own stages."""
    run_dir = RunDir(tmp_path_factory.mktemp("runs"), "smoke")
    torch.manual_seed(0)
    stages = export.exported_stages()
    stages["omni"].vision.load_state_dict(stages["vision"].vision.state_dict())  # type: ignore[union-attr, operator, arg-type]
    stages["omni"].audio.load_state_dict(stages["audio"].encoder.state_dict())  # type: ignore[union-attr, operator, arg-type]
    for name, stage in stages.items():
        save(
            run_dir,
            name,
            stage,
            {"run": "/home/me/runs/1", "steps": 7, "seconds": 30.0, "samples": 1, "tokens": 2, "skipped": 1},
        )
    return run_dir


def save(run_dir: RunDir, name: str, stage: torch.nn.Module, source: dict[str, Any] | None = None) -> None:
    settings = {"steps": 3, "batch_size": 2, "lr": 0.5, "init_from": source and source["run"]}
    record = {"stage": name, "steps": 3, "best_step": 3, "seconds": 90.0, "samples": 6, "tokens": 9, "skipped": 0,
              "peak_memory": 2**20, "device": "cpu", "precision": "fp32", "settings": settings,
              "initialized_from": source}  # fmt: skip
    state = {f"model.{key}": each for key, each in stage.state_dict().items()}
    checkpoint.set_pointer(run_dir.of(name), "best", checkpoint.save(run_dir.of(name), 3, state, {}))
    (run_dir.of(name) / "result.json").write_text(json.dumps(record))


def test_a_run_becomes_one_model_and_that_model_a_run(
    runs: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = (result("questions.typed", RATE, 4, "laptop", 0.25), result("outside.photograph", RATE, 4, "smoke"))
    Report("smoke", metrics, {}, ()).save(tmp_path / "report.json")
    monkeypatch.setattr(export, "thresholds", lambda *_: {"typed": -0.125})
    out = tmp_path / "w" / "omni.safetensors"
    export.export(
        runs, out, 4, hardware="one abacus", commit="c0ffee", measured=tmp_path / "report.json", allow_missed=True
    )
    assert out.stat().st_size < 20_000_000
    assert Omni.from_pretrained(out).thresholds == {"typed": -0.125}
    unpacked = export.unpack(out, tmp_path / "unpacked", "smoke")
    for name in export.exported_stages():
        one, other = (place.trained(export.exported_stages()[name]).state_dict() for place in (runs, unpacked))
        expected = {key: each for key, each in one.items() if key != "usage"}
        pieces = unpacked.tokenizer().n_pieces
        for key, tensor in expected.items():
            if key.endswith("tok_emb.weight"):  # rows of no piece; those of the Talker are voices
                assert not other[key][pieces:].any()
                tensor = torch.cat([tensor[:pieces], other[key][pieces:]])
            step = tensor.flatten(1).abs().amax(1) / 127 if tensor.ndim > 1 else torch.zeros(tensor.shape)
            error = (other[key] - tensor).abs() - tensor.abs() / 2**11  # half precision, or half a step of int8
            rows = error.flatten(1).amax(1) if tensor.ndim > 1 else error
            assert (rows <= 0.5 * step + 1e-7).all(), f"{name} {key}"
    assert b"/home/me" not in out.read_bytes(), "where it was made is nobody's affair"
    card = (out.parent / CARD).read_text(encoding="utf-8")
    for words in ("| commit | c0ffee |", "| hardware | one abacus |", "time | 10 minutes", "lr=0.5",
                  "| typed questions: accuracy | 75.00% |", "≥ 97.0% **missed** | 25.0% | 4 |",
                  "outside the world: says so, photograph", "tinyomni train STAGE --preset smoke",
                  "thresholds are missed.** ", "typed questions: accuracy: 75.00%, threshold ≥ 97.0%",
                  "| vision | 10 | a run of 7 steps | 2.0 | 7 | 1 | 1 | cpu fp32 |", "cannot do"):  # fmt: skip
        assert words in card, words


def test_nothing_valuable_is_overwritten(runs: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = (result("questions.typed", accuracy([each] * 4), 4, "laptop", 0.25) for each in (1, 0))
    whole = result("dialogue.accuracy", RATE, 4, "smoke")
    Report("smoke", (good, whole), {}, ()).save(tmp_path / "good.json")
    Report("smoke", (bad, whole), {}, ()).save(tmp_path / "bad.json")
    monkeypatch.setattr(export, "thresholds", lambda *_: {})
    out = tmp_path / "w" / "omni.safetensors"
    with pytest.raises(
        InputError, match=r"1 thresholds are missed \(typed questions: accuracy\), so nothing was written"
    ):
        export.export(runs, out, 4, measured=tmp_path / "bad.json")
    assert list(out.parent.iterdir()) == []
    export.export(runs, out, 4, measured=tmp_path / "good.json")
    assert {path.name for path in out.parent.iterdir()} == {out.name, CARD}
    assert out.stat().st_mode == (out.parent / CARD).stat().st_mode
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"omni\.safetensors exists\..*--overwrite"):
        export.export(runs, out, 4, measured=tmp_path / "good.json")
    with pytest.raises(InputError, match="missed"):
        export.export(runs, out, 4, measured=tmp_path / "bad.json", overwrite=True)
    assert out.read_bytes() == before
    export.export(runs, out, 4, commit="new", measured=tmp_path / "bad.json", overwrite=True, allow_missed=True)
    assert out.read_bytes() != before


def test_what_the_report_does_not_hold_is_measured(
    runs: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def end_to_end(run_dir: RunDir, n: int, only: Any, model: Omni) -> Report:
        measured.append((run_dir.folder.name, n, only, model.thresholds))
        return Report("smoke", (result("dialogue.accuracy", RATE, 4, "smoke"),), {}, ())

    Report("smoke", (result("questions.typed", RATE, 4, "laptop"),), {}, ()).save(tmp_path / "report.json")
    monkeypatch.setattr(export, "thresholds", lambda *_: {"typed": -0.125})
    monkeypatch.setattr(export, "report", end_to_end)
    out = tmp_path / "w" / "o.safetensors"
    found = export.export(runs, out, 4, measured=tmp_path / "report.json", allow_missed=True)
    assert measured == [("shipped", 4, ("end-to-end",), {"typed": -0.125})]
    assert [each.id for each in found.results] == ["questions.typed", "dialogue.accuracy"]


def test_stages_that_were_not_trained_together_are_refused(runs: RunDir, tmp_path: Path) -> None:
    other = RunDir(tmp_path, "smoke")
    for name in export.exported_stages():
        (tmp_path / name).symlink_to(runs.of(name))
    (tmp_path / "audio").unlink()
    with pytest.raises(InputError, match="tinyomni train audio"):
        export.assemble(other)
    save(other, "audio", export.exported_stages()["audio"])
    with pytest.raises(InputError, match=r"omni was trained with another audio encoder than .*: tinyomni train omni"):
        export.assemble(other)


def test_weights_that_do_not_say_how_they_were_made_cannot_be_unpacked(tmp_path: Path) -> None:
    build(seed=1).save(tmp_path / "x")
    with pytest.raises(InputError, match="expected weights that say how they were made"):
        export.unpack(tmp_path / "x", tmp_path / "runs")


def test_the_preset_shipped_has_as_many_steps_as_the_shipped_weights() -> None:
    for name, each in json.loads(weights_io.read()[1]["made"])["stages"].items():
        steps = each["steps"] + (each.get("initialized_from") or {"steps": 0})["steps"]
        assert stages.get(name).settings("shipped").steps == pytest.approx(steps, rel=0.02), name


def test_the_shipped_weights_say_what_each_stage_was_initialized_from() -> None:
    made = json.loads(weights_io.read()[1]["made"])
    vision = made["stages"]["vision"]
    assert origin(vision) == f"a run of {vision['initialized_from']['steps']} steps"
    assert origin(made["stages"]["codec"]) == "random"
    assert f"steps={vision['settings']['steps']}" in changed("vision", made)
    assert command(made) == "tinyomni train STAGE --preset laptop --set …, see below"


def test_the_shipped_card_has_the_rows_of_today() -> None:
    """Every metric is there, by the label that the registry has now, with the threshold of the preset."""
    card = (weights_io.SHIPPED.parent / CARD).read_text(encoding="utf-8")
    made, labels = json.loads(weights_io.read()[1]["made"]), {metric.label: metric for metric in METRICS.values()}
    table = [line.split(" | ") for line in card.splitlines() if line.startswith("| ") and line.count(" | ") == 5]
    assert table[0] == ["| metric", "value", "95% CI", "threshold", "baseline", "n |"]
    shown = {cells[0].removeprefix("| "): cells for cells in table[1:]}
    not_measured = {"lm.excess_loss", "lm.excess_loss_all_pairs"}
    parts = set(PARTS) - (set(WIDE) if Omni.from_pretrained().style == "plain" else set())
    expected = [metric for metric in METRICS.values() if metric.id not in not_measured and metric.part in parts]
    # there may be no wrong answer, and none of some confidence
    expected = [each for each in expected if each.label in shown or not each.id.startswith(("calibration.", "unsure."))]
    assert list(shown) == [metric.label for metric in expected]
    for label, cells in shown.items():
        threshold = labels[label].thresholds.get(made["preset"])
        sign = "≥" if labels[label].higher_is_better else "≤"
        if threshold is None:
            assert cells[3] == "", label
            continue
        value = float(cells[1].rstrip("%")) / (100 if cells[1].endswith("%") else 1)
        met = value >= threshold if labels[label].higher_is_better else value <= threshold
        assert cells[3] == f"{sign} {labels[label].format(threshold, 1)} {'met' if met else '**missed**'}", label
        assert met or f"{label}: {cells[1]}, threshold {sign}" in card
    for name, each in made["stages"].items():
        assert f"| {name} | {each['steps'] + (each.get('initialized_from') or {'steps': 0})['steps']} |" in card
        assert origin(each) in card
        # the presets have moved since, so that other settings differ from them now; those named were used
        (cells,) = [line.split(" | ") for line in card.splitlines() if line.startswith(f"| {name} | ")]
        for setting in cells[-1].removesuffix(" |").split():
            key, value = setting.split("=")
            assert str(each["settings"][key]) == value, f"{name} {setting}"
    style = style_of(made)
    words = {"voices": 2, "sure": 0.98, "makers": makers_of(made), "certainty": CERTAINTY[style],
             "drawn": DRAWN[style], "stricter": STRICTER * (style == "wide")}  # fmt: skip
    assert " ".join(CANNOT.format(**words).split()) in " ".join(card.split())


def test_a_row_of_the_card_says_whether_the_threshold_is_met() -> None:
    found = result("tts.rtf", 0.076, 20, "laptop")
    assert row(found) == "| TTS: real-time factor (RTF) | 0.076 | 0.076 … 0.076 | ≤ 1.00 met |  | 20 |"


def test_the_card_names_the_synthesizers_that_were_heard() -> None:
    made = {"stages": {"audio": {"settings": {"makers": "flite,pico"}}}}
    assert makers_of(made) == "eSpeak NG, flite, pico"
    made["stages"]["audio"]["settings"]["makers"] = ""
    assert makers_of(made) == makers_of({"stages": {"audio": {"settings": {}}}}) == "eSpeak NG"
