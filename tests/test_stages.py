"""The registry of stages: a new stage is one file; settings are read once; custom rows are split by one rule; shipped
weights are a place to begin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from torch import nn

from tinyomni.cli import main
from tinyomni.data.rendering import render
from tinyomni.data.world import draw_scene
from tinyomni.errors import InputError
from tinyomni.io import weights
from tinyomni.tokenizer import BPETokenizer
from tinyomni.training import stages
from tinyomni.training.omni_examples import OmniExample
from tinyomni.training.recipe import RunDir
from tinyomni.training.run import shipped_state, total_costs
from tinyomni.training.settings import PRESETS, Settings
from tinyomni.training.stages import StageSpec
from tinyomni.training.train import changes_for, prepare, train

TOY = '''
"""Stage toy: one number that should become that of the data."""

from dataclasses import dataclass

import torch

from tinyomni.training.recipe import Job
from tinyomni.training.settings import PRESETS, Settings
from tinyomni.training.stage import Stage
from tinyomni.training.stages import StageSpec, register


@dataclass(frozen=True)
class ToySettings(Settings):
    """How to train it, and toward which number."""

    number: float = 3.0


class ToyStage(Stage):
    """Learns a number."""

    name = "toy"

    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(1, 1))

    def forward(self, batch):
        return (self.x - batch).square().mean(), {}


def build(run_dir, settings):
    """As many copies of the number as one step needs."""
    return Job(ToyStage(), [settings.number] * settings.batch_size, torch.tensor, settings)


presets = dict.fromkeys(PRESETS, ToySettings(steps=40, batch_size=4, lr=0.3, warmup=2))
SPEC = register(StageSpec("toy", presets, build, requires=("audio",), untrained=ToyStage))
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stage in a file of its own, as if it lay beside the others."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "toy.py").write_text(TOY, encoding="utf-8")
    stages.in_order()  # the others are registered before, and stay so
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path / "stages")])
    monkeypatch.setattr(stages, "_registered", dict(stages._registered))
    monkeypatch.delitem(sys.modules, "tinyomni.training.stages.toy", raising=False)
    return "toy"


# ---- the registry ---------------------------------------------------------------------------------------------------


def test_a_stage_is_one_file(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = [spec.name for spec in stages.in_order()]
    assert toy in stages.names() and order.index("audio") < order.index(toy)
    command = ["train", toy, "--preset", "smoke", "--out", str(tmp_path / "runs")]
    assert main([*command, "--set", "number=-2", "--set", "batch_size=8"]) == 0
    assert "toy: 40 steps" in capsys.readouterr().out
    run_dir = RunDir(tmp_path / "runs", "smoke")
    assert float(run_dir.trained(stages.get(toy).untrained()).x.detach()) == pytest.approx(-2, abs=0.1)
    result = json.loads((run_dir.of(toy) / "result.json").read_text(encoding="utf-8"))
    assert (result["settings"]["number"], result["settings"]["batch_size"]) == (-2, 8)
    assert main([*command, "--set", "colour=red"]) == 2
    assert "unknown setting 'colour'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "toy" in capsys.readouterr().out


def test_each_module_registers_the_stage_of_its_name_after_what_it_requires() -> None:
    order = [spec.name for spec in stages.in_order()]
    assert sorted(order) == sorted(stages.names()) and len(order) >= 7
    for number, name in enumerate(order):
        spec = stages.get(name)
        assert spec.name == name and set(spec.requires) <= set(order[:number])
        assert set(PRESETS) <= set(spec.presets)
        if spec.untrained is not None:
            stage = spec.untrained()
            assert stage.name == name
            kinds = [each for each, _ in stage.weights_file]
            assert len(kinds) == len(set(kinds))


def test_names_are_known_without_importing_a_stage() -> None:
    script = (
        "import sys; from tinyomni.training import stages; print(*stages.names());"
        "assert not {'torch', 'numpy', 'tinyomni.training.stages.audio'} & set(sys.modules)"
    )
    environment = {**os.environ, "TINYOMNI_SHAPES": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.split() == list(stages.names()), found.stderr


def test_what_a_stage_lacks_is_named() -> None:
    with pytest.raises(InputError, match="unknown stage 'eye'; expected one of audio, codec"):
        stages.get("eye")
    with pytest.raises(ValueError, match="Stage x: no settings for the preset quick, gpu, smoke"):
        StageSpec("x", {"laptop": Settings(steps=1)}, lambda run_dir, settings: None)
    with pytest.raises(InputError, match="unknown preset 'tiny'; expected one of laptop, quick, gpu, smoke"):
        RunDir(Path("runs"), "tiny")


def test_each_change_goes_to_the_stages_that_have_such_a_setting() -> None:
    specs = [stages.get(name) for name in ("tokenizer", "thinker", "omni")]
    found = changes_for(specs, {"lr": "0.1", "from_scratch": "False", "vocab": "300"})
    assert found == {
        "tokenizer": {"vocab": "300"},
        "thinker": {"lr": "0.1"},
        "omni": {"lr": "0.1", "from_scratch": "False"},
    }
    with pytest.raises(InputError, match="unknown setting 'speed'"):
        changes_for(specs, {"lr": "0.1", "speed": "3"})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("steps", "many", "steps must be an int, got 'many'"),
        ("lr", "abc", "lr must be a float, got 'abc'"),
        ("lr", "nan", "lr must be above 0 and finite, got nan"),
        ("weight_decay", "-1", r"weight_decay must be at least 0, got -1\.0"),
        ("min_lr_ratio", "2", r"min_lr_ratio must be at most 1, got 2\.0"),
        ("seed", "-1", "seed must be at least 0, got -1"),
        ("patience", "0", "patience must be at least 1, got 0"),
        ("compile", "yes", "compile must be True or False, got 'yes'"),
        ("optimizer", "sgd", "optimizer must be 'adamw' or 'muon', got 'sgd'"),
        ("speed", "3", "unknown setting 'speed'; expected one of steps, batch_size"),
    ],
)
def test_a_wrong_setting_is_named(name: str, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(steps=1).override({name: text})


def test_settings_are_read_as_their_types() -> None:
    changes = {"steps": "7", "lr": "1e-4", "compile": "true", "patience": "3", "init_from": "runs/x"}
    settings = Settings(steps=1).override(changes)
    assert (settings.steps, settings.lr, settings.compile, settings.patience) == (7, 1e-4, True, 3)
    assert settings.init_from == "runs/x" and settings.override({"patience": "None"}).patience is None


def test_the_tokenizer_has_the_vocabulary_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("The cat sat on the mat.\nThe dog sat on the log.\n" * 20, encoding="utf-8")
    run_dir = RunDir(tmp_path / "runs", "smoke", tmp_path / "own.txt")
    assert train("tokenizer", run_dir, {"vocab": "290"}) is None
    assert run_dir.tokenizer().n_pieces == 290


# ---- custom rows ----------------------------------------------------------------------------------------------------


def rows_of(stage: str, job: object) -> tuple[set[str], set[str]]:
    """The texts that are trained on, and those that are validated on."""

    def texts(part: object) -> set[str]:
        found = set()
        for index in range(len(part)):
            each = part[index]
            if isinstance(each, list):
                (each,) = each
            answer = BPETokenizer().decode(each.answer) if isinstance(each, OmniExample) else each.texts
            found.add(answer if isinstance(answer, str) else next(iter(answer.values())))
        return found

    if stage == "vision":  # validation comes as batches
        ids = [row for batch in job.stage.validation() for row in batch.caption.tolist()]
        return texts(job.train), {BPETokenizer().decode(row) for row in ids}
    return texts(job.train), texts(job.stage.validation if stage == "omni" else job.stage.held_out)


@pytest.mark.parametrize("count", [2, 5, 39, 40])
@pytest.mark.parametrize("stage", ["vision", "audio", "omni"])
def test_no_validation_row_is_trained_on(stage: str, count: int, tmp_path: Path) -> None:
    kind, column, ending = ("audio", "text", "wav") if stage == "audio" else ("image", "caption", "png")
    for number in range(count):
        if kind == "audio":
            soundfile.write(tmp_path / f"{number}.wav", 0.1 * torch.randn(8000).numpy(), 16_000)
        else:
            render(draw_scene("train", number)).save(tmp_path / f"{number}.png")
    texts = {f"text {number}" for number in range(count)}
    lines = [f"{number}.{ending},text {number}" for number in range(count)]
    (tmp_path / "rows.csv").write_text("\n".join([f"{kind},{column}", *lines]) + "\n", encoding="utf-8")
    job = prepare(stage, RunDir(tmp_path / "runs", "smoke", tmp_path / "rows.csv"), shipped_if(stage))
    trained, validated = rows_of(stage, job)
    assert trained | validated == texts and not trained & validated
    assert len(validated) == max(1, count // 20)


def shipped_if(stage: str) -> dict[str, str]:
    """The stage omni needs encoders; here nothing was trained."""
    return {"init_from": "shipped"} if stage == "omni" else {}


def test_the_codec_is_validated_on_recordings_that_it_is_not_trained_on(tmp_path: Path) -> None:
    for number in range(5):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * torch.randn(16_000 * (4 + number)).numpy(), 16_000)
    lines = [f"{number}.wav,text {number}" for number in range(5)]
    (tmp_path / "rows.csv").write_text("\n".join(["audio,text", *lines]) + "\n", encoding="utf-8")
    job = prepare("codec", RunDir(tmp_path / "runs", "smoke", tmp_path / "rows.csv"))
    seconds = [round(len(each) * 0.08) for part in (job.train, job.stage.held_out) for each in part]
    assert len(job.train) == 4 and len(job.stage.held_out) == 1 and sorted(seconds) == [4, 5, 6, 7, 8]


# ---- shipped weights ------------------------------------------------------------------------------------------------

SMALL = {
    "audio": {"utterances": "4", "validation_utterances": "1"},
    "vision": {"scenes": "4", "validation_scenes": "1"},
    "codec": {"utterances": "4", "validation_utterances": "1"},
    "talker": {"utterances": "4", "validation_utterances": "1"},
    "omni": {"scenes": "8", "spoken": "1", "validation_items": "1"},
}
STEP = {"steps": "1", "batch_size": "1", "warmup": "0", "lr": "1e-12"}


@pytest.mark.parametrize("stage", SMALL)
def test_training_starts_from_the_shipped_weights(stage: str, tmp_path: Path) -> None:
    """In an empty folder: what the stage needs of others is taken from the same file."""
    run_dir = RunDir(tmp_path, "smoke")
    result = train(stage, run_dir, {**STEP, **SMALL[stage], "init_from": "shipped"})
    tensors, about = weights.read()
    made = json.loads(about["made"])["stages"][stage]
    assert result.initialized_from == {"run": "shipped", **total_costs(made)} and made["steps"] > 0
    trained = run_dir.trained(stages.get(stage).untrained())
    shipped = shipped_state(trained, tensors)
    assert len(shipped) == len(trained.state_dict())
    for name, tensor in trained.state_dict().items():
        if name not in ("usage",) and "codebooks" not in name:  # entries that one batch does not use may expire
            torch.testing.assert_close(tensor, shipped[name], atol=1e-5, rtol=1e-4, msg=name)


def test_custom_speech_from_the_shipped_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * torch.randn(16_000).numpy(), 16_000)
    (tmp_path / "rows.csv").write_text("audio,text\n" + "".join(f"{n}.wav,one two\n" for n in range(3)))
    options = ["--data", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "runs"), "--preset", "smoke"]
    changes = [part for name, text in STEP.items() for part in ("--set", f"{name}={text}")]
    assert main(["train", "audio", *options, *changes, "--set", "init_from=shipped"]) == 0
    assert "audio: 1 steps" in capsys.readouterr().out


def test_where_the_shipped_weights_cannot_be_used_it_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--preset", "smoke", "--out", str(tmp_path / "runs")]
    assert main(["train", "thinker", *out, "--set", "init_from=shipped"]) == 2
    assert "not possible for the stage thinker" in capsys.readouterr().err
    assert main(["train", "codec", *out, "--set", "init_from=shipped", "--set", "single_frame=True"]) == 2
    assert "not possible for the stage codec-single-frame" in capsys.readouterr().err
    (tmp_path / "own.txt").write_text("The cat sat on the mat.\nThe dog sat on the log.\n" * 20, encoding="utf-8")
    assert main(["train", "tokenizer", *out, "--data", str(tmp_path / "own.txt")]) == 0
    assert main(["train", "vision", *out, "--set", "init_from=shipped"]) == 2
    assert "needs the shipped tokenizer" in capsys.readouterr().err


def test_frozen_parameters_keep_their_weights(tmp_path: Path) -> None:
    """Encoders that were trained here are better than those in the file."""
    run_dir = RunDir(tmp_path, "smoke")
    train("vision", run_dir, {**STEP, **SMALL["vision"]})
    stage = prepare("omni", run_dir, {**STEP, **SMALL["omni"], "init_from": "shipped"}).stage
    own = run_dir.trained(stages.get("vision").untrained()).vision
    assert isinstance(own, nn.Module)
    for name, tensor in own.state_dict().items():
        assert torch.equal(stage.vision.state_dict()[name], tensor), name
