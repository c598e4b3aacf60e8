"""Omni: one sequence for all, the token budget, answers, speech, weights on disk."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyomni import TINY, Omni
from tinyomni.config import OmniConfig
from tinyomni.dry_run import AUDIO, IMAGE, build
from tinyomni.errors import InputError
from tinyomni.generation import Step
from tinyomni.io.weights import FORMAT
from tinyomni.omni import check_vocab, fuse, split_audio
from tinyomni.shapes import ShapeError
from tinyomni.tokenizer import BPETokenizer


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
    omni.check_audio(torch.cat([wave, wave[:159]])[None])  # not a whole frame more
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


# ---- parts that need no model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 1, 99, 100, 101, 109, 110, 111, 250, 777])
def test_a_recording_is_split_where_it_is_quietest(samples: int) -> None:
    longest, window = 100, 10
    wav = torch.rand(samples) + 0.5
    for quiet in (63, 141, 222):
        wav[quiet : quiet + 15] *= 0.01
    slow, rest = [], wav
    while len(rest) > longest:
        windows = [slice(start, start + window) for start in range(longest // 2, longest - window + 1, window)]
        quietest = min(windows, key=lambda each: float((rest[each] ** 2).mean()))
        end = quietest.start + window // 2
        slow.append(rest[:end])
        rest = rest[end:] if len(rest) - end >= window else rest[:0]
    slow += [rest] if len(rest) else []
    parts = list(split_audio(wav, longest, window))
    assert [each.tolist() for each in parts] == [each.tolist() for each in slow]
    assert all(0 < len(each) <= longest for each in parts)
    if samples == 109:
        assert len(parts) == 2


def test_the_parts_of_a_sequence_fill_the_context_and_no_more() -> None:
    parts = {"image": torch.randn(2, 1, 8), "text": torch.randn(2, 4, 8)}
    assert torch.equal(fuse(parts, 5), torch.cat([parts["image"], parts["text"]], dim=1))
    with pytest.raises(InputError, match=r"image 1 \+ text 4 = 5 tokens > ctx_len = 4"):
        fuse(parts, 4)


def test_every_piece_and_every_voice_needs_a_row() -> None:
    tokenizer = BPETokenizer()
    pieces, voices = tokenizer.n_pieces, TINY.talker.voices
    assert voices > 1

    def sizes(thinker: int, talker: int) -> OmniConfig:
        return replace(TINY, thinker=replace(TINY.thinker, vocab=thinker), talker=replace(TINY.talker, vocab=talker))

    check_vocab(sizes(pieces, pieces + voices - 1), tokenizer)
    with pytest.raises(InputError, match=f"thinker.vocab must be at least {pieces}, got {pieces - 1}"):
        check_vocab(sizes(pieces - 1, pieces + voices), tokenizer)
    with pytest.raises(InputError, match=f"talker.vocab must be at least {pieces + voices - 1}, got {pieces}"):
        check_vocab(sizes(pieces, pieces), tokenizer)


def test_what_the_talker_is_given(omni: Omni) -> None:
    ids = omni.tokenizer.encode("Good night.")
    assert omni.speech_ids("Good night.").tolist() == [ids]
    assert omni.speech_ids("Good night.", 1).tolist() == [[TINY.talker.vocab - 1, *ids]]
    assert torch.equal(omni.speech_ids("There are 3 circles."), omni.speech_ids("There are three circles."))
    for voice in (-1, TINY.talker.voices):
        with pytest.raises(InputError, match=f"expected a voice in 0 … {TINY.talker.voices - 1}, got {voice}"):
            omni.speech_ids("Good night.", voice)
    longest = "red " * (TINY.talker.max_text - 1) + "red"
    assert omni.speech_ids(longest).shape == (1, TINY.talker.max_text)
    with pytest.raises(InputError, match=f"{TINY.talker.max_text + 1} tokens > max_text"):
        omni.speech_ids(longest + " red")
    assert [omni.frame_limit(count) for count in (1, 2, 500)] == [50, 60, min(1000, TINY.talker.max_frames)]


def test_ids_of_a_text_part(omni: Omni) -> None:
    last = TINY.thinker.vocab - 1
    assert omni.text_ids([1, 0, last]).tolist() == [[1, 0, last]]
    assert omni.text_ids(torch.tensor([[1, 7]])).tolist() == [[1, 7]]
    for wrong in ([1, -1], [1, last + 1], [7, 1], torch.tensor([[1, 2], [1, 3]]), torch.zeros(1, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"expected"):
            omni.text_ids(wrong)


def test_a_fresh_model_is_ready_to_be_used(omni: Omni) -> None:
    assert not Omni().training and Omni().style == "plain" and Omni().thresholds == {}
    with pytest.raises(InputError, match=r"Omni.reply: expected at least one of"):
        omni.reply()
    spoken, typed = (omni.reply(**how, max_new_tokens=1) for how in ({"audio": AUDIO}, {"text": "Hello."}))
    assert spoken.threshold is None and typed.threshold is None
    other = copy.copy(omni)
    other.thresholds = {"spoken": -0.5, "typed": -0.25}
    assert other.reply(audio=AUDIO, max_new_tokens=1).threshold == -0.5
    assert other.reply("Hello.", max_new_tokens=1).threshold == -0.25


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
