"""Omni: one sequence for all, the token budget, answers, speech, weights on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyomni import TINY, Omni
from tinyomni.dry_run import AUDIO, IMAGE, build
from tinyomni.errors import InputError
from tinyomni.generation import Step
from tinyomni.io.weights import FORMAT
from tinyomni.shapes import ShapeError


@pytest.fixture(scope="module")
def omni() -> Omni:
    return build(seed=1)


def test_the_sequence_is_image_audio_text(omni: Omni) -> None:
    with torch.no_grad():
        every = omni.embed(text="What was said?", image=IMAGE, audio=AUDIO)
        parts = [omni.embed(image=IMAGE), omni.embed(audio=AUDIO), omni.embed(text="What was said?")]
    assert every.shape == (1, 1 + 25 + 5, 256)
    torch.testing.assert_close(every, torch.cat(parts, dim=1))
    ids = torch.tensor([[1, *omni.tokenizer.encode("What was said?")]])
    assert torch.equal(parts[2], omni.thinker.tok_emb(ids))
    assert torch.equal(parts[2], omni.embed(text=ids)) and torch.equal(parts[2], omni.embed(text=ids[0].tolist()))


def test_every_kind_of_image_and_audio_is_accepted(omni: Omni) -> None:
    image = Image.open(IMAGE)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    with torch.no_grad():
        want = omni.embed(image=str(IMAGE))
        for source in (IMAGE, image, pixels, pixels.numpy()):
            torch.testing.assert_close(omni.embed(image=source), want)
        wave = torch.randn(16_000) * 0.1
        torch.testing.assert_close(omni.embed(audio=(wave, 16_000)), omni.embed(audio=(wave.numpy(), 16_000)))
        assert omni.embed(audio=(wave, 8_000)).shape[1] == 50


def test_answers_stream_and_stop(omni: Omni) -> None:
    answer = omni.generate(text="Hello.", image=IMAGE, max_new_tokens=20)
    pieces = omni.generate(text="Hello.", image=IMAGE, max_new_tokens=20, stream=True)
    assert isinstance(answer, str) and not isinstance(pieces, str)
    assert "".join(pieces) == answer
    hot = [omni.generate(text="Hello.", max_new_tokens=20, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


def test_it_ends_at_eos(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [3 + 40, 3 + 41, 2, 3 + 42]
    steps = [Step(torch.tensor([each]), torch.tensor([-0.5])) for each in free[:3]]
    monkeypatch.setattr("tinyomni.omni.stream", lambda *_, **__: iter(steps))
    assert omni.generate(text="Hello.") == omni.tokenizer.decode(free[:2])


def test_speech_is_whole_frames_of_audio(omni: Omni) -> None:
    wav = omni.speak("Good night.")
    assert wav.dtype == torch.float32 and wav.ndim == 1
    assert len(wav) % 1280 == 0 and 1280 <= len(wav) <= 90 * 1280
    assert float(wav.abs().max()) <= 0.951


def test_a_call_runs_without_shape_checks_left_on_the_functions() -> None:
    import subprocess
    import sys

    code = (
        "import tinyomni.thinker as t, tinyomni.rope as r, types\n"
        "assert type(r.apply_rope) is types.FunctionType and not hasattr(r.apply_rope, '__wrapped__')\n"
        "assert not hasattr(t.ThinkerLM.forward, '__wrapped__')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_budget_is_spelled_out(omni: Omni) -> None:
    wave = torch.randn(81_920) * 0.1
    with torch.no_grad():
        assert omni.embed(audio=(wave, 16_000)).shape[1] == 128
    with pytest.raises(ValueError, match=r"129 audio tokens > 128.* 5\.12 s fit"):
        omni.embed(audio=(torch.cat([wave, wave[:160]]), 16_000))
    with pytest.raises(ValueError, match=r"image 1 \+ audio 128 \+ text 401 = 530 tokens > ctx_len = 512"):
        omni.embed(text="red " * 399 + "red", image=IMAGE, audio=(wave, 16_000))
    with pytest.raises(ValueError, match=r"2 .*\+ 511 new tokens = 514 > ctx_len = 512|= 51\d > ctx_len"):
        omni.generate(text="Hello.", max_new_tokens=511)


def test_bad_input_is_a_clear_error(omni: Omni) -> None:
    for arguments, kind, words in [
        ({}, ValueError, "at least one of"),
        ({"text": ""}, ValueError, "empty"),
        ({"text": [5, 6]}, ValueError, "starts with BOS"),
        ({"text": [1, 5000]}, ValueError, "0 … 4999"),
        ({"text": torch.tensor([1, 5])}, ValueError, r"unsqueeze\(0\)"),
        ({"text": torch.tensor([[1.0]])}, ValueError, "integers|Int"),
        ({"image": torch.rand(224, 224, 3)}, ShapeError, r"permute\(2, 0, 1\)"),
        ({"image": torch.rand(3, 224, 224) * 255}, ValueError, "Divide by 255"),
        ({"image": 7}, TypeError, "image"),
        ({"audio": (torch.zeros(16_000), 16_000)}, ValueError, "silent"),
        ({"audio": (torch.full((16_000,), torch.nan), 16_000)}, ValueError, "NaN"),
        ({"audio": (torch.rand(159), 16_000)}, ValueError, "at least one frame"),
        ({"audio": (torch.randn(16_000, 2), 16_000)}, ShapeError, "samples.T"),
        ({"audio": torch.randn(16_000)}, TypeError, "audio"),
    ]:
        with pytest.raises(kind, match=words):
            omni.embed(**arguments)
    with pytest.raises(ValueError, match="empty"):
        omni.speak("  ")
    with pytest.raises(ValueError, match="600 tokens > max_text = 512"):
        omni.speak("red " * 599 + "red")


def test_weights_come_back_and_foreign_files_are_refused(omni: Omni, tmp_path: Path) -> None:
    omni.save(tmp_path / "omni.safetensors")
    assert (tmp_path / "omni.safetensors").stat().st_size < 30_000_000
    again = Omni.from_pretrained(tmp_path / "omni.safetensors")
    for (name, one), other in zip(omni.state_dict().items(), again.state_dict().values(), strict=True):
        assert other.dtype == torch.float32, name
        torch.testing.assert_close(one.half().float(), other)
    data = (tmp_path / "omni.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-1000])
    (tmp_path / "noise").write_bytes(b"noise" * 100)
    (tmp_path / "older").write_bytes(data.replace(FORMAT.encode(), b"tinyomni 0"))
    (tmp_path / "foreign").write_bytes(data.replace(omni.tokenizer.fingerprint.encode(), b"0" * 64))
    for name, words in [
        ("cut", "damaged"),
        ("noise", "damaged"),
        ("older", "format"),
        ("foreign", "another tokenizer"),
    ]:
        with pytest.raises(ValueError, match=words):
            Omni.from_pretrained(tmp_path / name)


def test_tiny_is_what_the_design_says() -> None:
    assert (TINY.thinker.layers, TINY.thinker.d_model, TINY.thinker.heads, TINY.thinker.intermediate_size) == (
        4,
        256,
        4,
        1024,
    )
    assert (TINY.vision.vision_dim, TINY.audio.audio_dim, TINY.talker.talker_dim, TINY.audio_limit) == (
        128,
        192,
        192,
        128,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_precisions_see_hear_and_speak(dtype: torch.dtype) -> None:
    usual, omni = Omni.from_pretrained(), Omni.from_pretrained().to(dtype)
    question = "What is the color of the circle?"
    assert omni.reply(question, image=IMAGE).answer == usual.reply(question, image=IMAGE).answer
    assert omni.transcribe(AUDIO).text == usual.transcribe(AUDIO).text
    wav = omni.speak("Yes.")
    assert wav.dtype == torch.float32 and wav.abs().max() > 0.5
    codes = omni.codec.encode(wav[None])
    assert codes.shape == (1, len(wav) // 1280, 2) and omni.codec.decode(codes).shape == (1, len(wav))


def test_no_code_frames_are_no_speech() -> None:
    with pytest.raises(InputError, match="expected at least one code frame"):
        build().codec.decode(torch.zeros(1, 0, 2, dtype=torch.long))
