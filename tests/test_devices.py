"""On a GPU the model gives what it gives on the CPU, and trains. `benchmarks/gpu.py` runs this file on one."""

import copy
from pathlib import Path

import pytest
import torch

from tinyomni import Omni
from tinyomni.dry_run import AUDIO, IMAGE
from tinyomni.training import stages
from tinyomni.training.log import read_log
from tinyomni.training.recipe import RunDir
from tinyomni.training.train import train

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
QUESTION, SENTENCE = "What colour is the circle?", "A red circle."


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def both(request: pytest.FixtureRequest) -> tuple[Omni, Omni]:
    """The shipped model on the CPU, and on the device."""
    model = Omni.from_pretrained()
    return model, copy.deepcopy(model).to(request.param)


def test_every_encoder_gives_the_same(both: tuple[Omni, Omni]) -> None:
    here, there = both
    image, wave, mel = torch.rand(2, 3, 224, 224), torch.randn(2, 16_000) * 0.1, torch.rand(1, 12, 128)
    with torch.no_grad():
        for run in (
            lambda omni, device: omni.vision(image.to(device)),
            lambda omni, device: omni.embed_audio(wave.to(device)),
            lambda omni, device: omni.codec.rvq.decode(omni.codec.rvq.encode(mel.to(device))),
        ):
            torch.testing.assert_close(run(there, there.device).cpu(), run(here, "cpu"), rtol=1e-3, atol=1e-3)


def test_it_answers_and_speaks_the_same(both: tuple[Omni, Omni]) -> None:
    here, there = both
    answers = [omni.generate(text=QUESTION, image=IMAGE, max_new_tokens=8) for omni in both]
    assert answers[0] == answers[1]
    assert "".join(there.transcribe(AUDIO)) == "".join(here.transcribe(AUDIO)) != ""
    assert there.speech_codes(SENTENCE).cpu().equal(here.speech_codes(SENTENCE))
    spoken = there.speak(SENTENCE)
    assert spoken.device.type == "cpu" and bool(torch.isfinite(spoken).all()) and len(spoken) > 8000


@needs_gpu
def test_every_stage_trains_on_a_gpu_and_resumes(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path, "smoke")
    for spec in stages.in_order():
        result = train(spec.name, run_dir, {} if spec.name == "tokenizer" else {"device": "cuda"})
        assert result is None or (result.device.startswith("cuda") and result.peak_memory > 0)
    longer = train("thinker", run_dir, {"device": "cuda", "steps": "24"})
    losses = [each["loss"] for each in read_log(run_dir.of("thinker") / "log.jsonl") if "loss" in each]
    assert longer is not None and longer.steps == 24 and len(losses) == 24 and losses[-1] < losses[0]


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_of_a_gpu_learns(tmp_path: Path, precision: str) -> None:
    changes = {"device": "cuda", "precision": precision, "steps": "60", "eval_every": "60"}
    result = train("thinker", RunDir(tmp_path, "smoke"), changes)
    losses = [each["loss"] for each in read_log(tmp_path / "thinker" / "log.jsonl") if "loss" in each]
    assert result is not None and result.precision == precision and result.skipped == 0 and losses[-1] < losses[0]
