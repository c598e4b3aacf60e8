"""Every exported graph gives what PyTorch gives, for lengths other than the traced ones; the page's code agrees too."""

import dataclasses
import inspect
import itertools
import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinyomni import Omni
from tinyomni.config import AudioConfig, OmniConfig, TalkerConfig, ThinkerConfig, VisionConfig
from tinyomni.errors import InputError
from tinyomni.generation import Step
from tinyomni.omni import Omni as Model
from tinyomni.reply import Reply, disagreement
from tinyomni.tokenizer import EOS, BPETokenizer

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

from tinyomni.onnx import export, runtime  # noqa: E402

TOP = Path(__file__).resolve().parent.parent
SMALL = OmniConfig(
    thinker=ThinkerConfig(layers=2, d_model=32, heads=4, kv_heads=2, intermediate_size=64, ctx_len=96),
    vision=VisionConfig(image_size=32, patch=8, vision_dim=16, layers=2, heads=2, intermediate_size=32),
    audio=AudioConfig(conv_channels=4, audio_dim=24, layers=2, heads=3, intermediate_size=32),
    talker=TalkerConfig(talker_dim=24, layers=2, heads=3, intermediate_size=48),
)
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's own deprecations


@pytest.fixture(scope="module")
def omni() -> Model:
    """Fresh weights, small sizes, with shared key heads: what counts is that both sides agree."""
    torch.manual_seed(0)
    omni = Omni(SMALL)
    omni.thresholds = {"typed": -1.0, "spoken": -2.0, "asr": -0.5, "scene": -0.1}
    return omni


@pytest.fixture(scope="module")
def exact(omni: Model, tmp_path_factory: pytest.TempPathFactory) -> runtime.OnnxOmni:
    """The graphs in float32."""
    folder = tmp_path_factory.mktemp("float32")
    export.export(omni, folder, quantize=False)
    return runtime.OnnxOmni(folder, threads=1)


def cache(config: Any, dim: int, heads: int, past: int) -> dict[str, np.ndarray]:
    """Keys and values of `past` tokens."""
    shape = (config.layers, 1, heads, past, dim // config.heads)
    generator = np.random.default_rng(past)
    return {name: generator.normal(size=shape).astype(np.float32) for name in ("keys", "values")}


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 95), (9, 3), (40, 0), (2, 2)])
def test_the_thinker_with_a_cache_of_any_length(exact: runtime.OnnxOmni, omni: Model, tokens: int, past: int) -> None:
    thinker, config = omni.thinker, SMALL.thinker
    x, given = torch.randn(1, tokens, 32), cache(config, 32, 2, past)
    own = thinker.new_cache()
    own.keys[:, :, :, :past], own.values[:, :, :, :past] = map(torch.from_numpy, given.values())
    own.size = past
    with torch.no_grad():
        expected = thinker(embeddings=x, cache=own)[:, -1, : omni.tokenizer.n_pieces]
    scale = np.ones((config.layers, config.heads), np.float32)
    logits, attention, keys, _ = exact.run("think", embeddings=x.numpy(), **given, head_scale=scale)
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    np.testing.assert_allclose(keys, own.keys[:, :, :, : past + tokens], atol=2e-5)
    assert attention.shape == (config.layers, config.heads, tokens, past + tokens)
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)


def test_a_head_that_is_switched_off_adds_nothing(exact: runtime.OnnxOmni, omni: Model) -> None:
    x = torch.randn(1, 6, 32)
    scale = np.ones((2, 4), np.float32)
    scale[1, 2] = 0
    ablated = exact.run("think", embeddings=x.numpy(), **cache(SMALL.thinker, 32, 2, 0), head_scale=scale)[0]
    columns = slice(2 * 8, 3 * 8)  # what o_proj takes from head 2
    before = omni.thinker.blocks[1].attn.o_proj.weight.detach().clone()
    with torch.no_grad():
        omni.thinker.blocks[1].attn.o_proj.weight[:, columns] = 0
        expected = omni.thinker(embeddings=x)[:, -1, : omni.tokenizer.n_pieces]
        omni.thinker.blocks[1].attn.o_proj.weight.copy_(before)
    np.testing.assert_allclose(ablated, expected, atol=2e-5)


@pytest.mark.parametrize("samples", [160 * 4, 8000, 15_077])
def test_audio_of_any_length(exact: runtime.OnnxOmni, omni: Model, samples: int) -> None:
    wav = torch.randn(1, samples) * 0.1
    with torch.no_grad():
        mel = omni.mel(wav)
        expected = omni.embed_audio(wav), omni.ctc(omni.audio(mel))
    np.testing.assert_allclose(exact.run("mel", wav=wav.numpy())[0], mel, atol=1e-3)
    for ours, theirs in zip(exact.run("audio", mel=mel.numpy()), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_image_and_what_cls_attended_to(exact: runtime.OnnxOmni, omni: Model) -> None:
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = omni.embed_image(image)
    token, attention = exact.run("image", image=image.numpy())
    np.testing.assert_allclose(token, expected, atol=2e-5)
    assert attention.shape == (2, 2, 1 + 16)
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)


def test_replies_codes_and_speech_are_those_of_pytorch(exact: runtime.OnnxOmni, omni: Model) -> None:
    image, audio = torch.rand(3, 40, 40), (torch.randn(9000) * 0.1, 16_000)
    for given in ({"text": "Hello."}, {"text": "What is it?", "image": image}, {"audio": audio, "image": image}):
        ours = exact.reply(**given, max_new_tokens=12).finish()  # type: ignore[arg-type]
        theirs = omni.reply(**given, max_new_tokens=12).finish()  # type: ignore[arg-type]
        assert ours.ids == theirs.ids and ours.certainty == pytest.approx(theirs.certainty, abs=1e-4)
        assert (ours.threshold, ours.scene_threshold) == (theirs.threshold, theirs.scene_threshold)
        assert (ours.scene_threshold is None) == ("image" not in given)
        assert ours.reading == theirs.reading and (ours.reading is None) == ("audio" not in given)
    codes = exact.speech_codes("A red star.", voice=1)
    np.testing.assert_array_equal(codes, omni.speech_codes("A red star.", voice=1))
    with torch.no_grad():
        mel = omni.codec.to_mel(omni.codec.rvq.decode(codes))
    np.testing.assert_allclose(exact.run("codec", codes=codes.numpy())[0], mel, atol=1e-4)
    ours, theirs = exact.transcribe(audio), omni.transcribe(audio)
    assert list(ours) == list(theirs) and ours.certainty == pytest.approx(theirs.certainty, abs=1e-4)


def test_wrong_input_is_refused_in_the_words_of_pytorch(exact: runtime.OnnxOmni, omni: Model) -> None:
    loud = np.random.default_rng(0).normal(size=160_000) * 0.1
    for method, given in [
        ("reply", {}),
        ("reply", {"text": " "}),
        ("reply", {"text": [5, 6]}),
        ("reply", {"text": "red " * 96}),
        ("reply", {"text": "Hello.", "max_new_tokens": 95}),
        ("reply", {"text": "Hello.", "max_new_tokens": 0}),
        ("reply", {"image": np.zeros((40, 40))}),
        ("reply", {"audio": (np.zeros(8000), 16_000)}),
        ("reply", {"audio": (loud, 16_000)}),
        ("reply", {"audio": (loud[:100], 16_000)}),
        ("transcribe", {"audio": (np.zeros(8000), 16_000)}),
        ("transcribe", {"audio": (loud[:100], 16_000)}),
        *((method, {"text": text}) for method in ("speech_codes", "speak") for text in (" ", "red " * 512)),
        *(("stream_codes", {"text": "A star.", "voice": voice}) for voice in (2, -1)),
    ]:
        errors = []
        for model in (omni, exact):
            with pytest.raises(ValueError, match=": ") as refused:
                list(getattr(model, method)(**given))
            errors.append((refused.type, str(refused.value).partition(": ")[2]))  # without the name of the function
        assert errors[0] == errors[1], (method, given)


def test_what_is_neither_a_text_nor_ids_nor_a_voice(exact: runtime.OnnxOmni) -> None:
    text_ids, speech_ids = inspect.unwrap(Omni.text_ids), inspect.unwrap(Omni.speech_ids)  # shape checks come first
    with pytest.raises(InputError, match=r"^Omni\.embed: expected a text, or ids as integers, got {}$"):
        text_ids(exact, {})
    pieces = exact.tokenizer.n_pieces  # the graph has no other rows
    with pytest.raises(InputError, match=f"expected ids in 0 … {pieces - 1}, got 1 … {pieces}"):
        exact.reply([1, pieces])
    with pytest.raises(TypeError, match=r"^Omni\.speak: expected a text, got NoneType$"):
        speech_ids(exact, None)
    for voice in (1.0, "1", None):
        with pytest.raises(InputError, match=f"expected a voice in 0 … 1, got {voice!r}"):
            speech_ids(exact, "Yes.", voice)
    for tokens in ("9", 9.0, None):
        with pytest.raises(InputError, match=f"max_new_tokens must be an integer, at least 1, got {tokens!r}"):
            inspect.unwrap(runtime.OnnxOmni.reply)(exact, "Hello.", max_new_tokens=tokens)


def test_a_long_recording_is_transcribed_in_parts(exact: runtime.OnnxOmni, omni: Model) -> None:
    audio = (torch.randn(40_000) * 0.1, 16_000)
    ours, theirs = exact.transcribe(audio), omni.transcribe(audio)
    assert list(ours) == list(theirs) and len(ours.log_probs) > 1


def test_int8_is_a_quarter_of_the_size_and_near(exact: runtime.OnnxOmni, tmp_path: Path) -> None:
    shutil.copy(exact.folder / "model.json", tmp_path)
    for path in exact.folder.glob("*.onnx"):
        (tmp_path / path.name).write_bytes(export.int8(onnx.load(path)).SerializeToString())
    small, whole = (sum(path.stat().st_size for path in each.glob("*.onnx")) for each in (tmp_path, exact.folder))
    assert small < 0.45 * whole
    x = torch.randn(1, 7, 32)
    given = {"embeddings": x.numpy(), **cache(SMALL.thinker, 32, 2, 0), "head_scale": np.ones((2, 4), np.float32)}
    ours, theirs = runtime.OnnxOmni(tmp_path).run("think", **given)[0], exact.run("think", **given)[0]
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()


def test_no_path_of_this_machine_is_in_a_graph(exact: runtime.OnnxOmni) -> None:
    for path in exact.folder.iterdir():
        assert str(TOP).encode() not in path.read_bytes()


def test_the_axis_names_come_from_the_annotations(exact: runtime.OnnxOmni) -> None:
    axes = exact.about["graphs"]["think"]["axes"]
    assert "tokens" in axes["embeddings"] and "d_model" in axes["embeddings"] and "vocab" in axes["return"]


def judged_replies(tokenizer: BPETokenizer) -> list[tuple[dict[str, Any], Reply]]:
    """Replies as the page and this library judge them: with and without separators, image, recording, thresholds."""
    rng, special, found = random.Random(0), tokenizer.separators, []
    assert special is not None
    described = "There is a big red star on the left. Is star red"
    texts = [
        ("Is it red?", described, "Yes."),
        ("", described, "Yes."),
        ("Is it?", "I can see nothing. Is star", "No."),
        ("", "", "A star. Is it red?"),
        ("", "", "I heard nothing."),
        ("", "", "There is a star."),
        ("", "", "."),
    ]
    readings = (None, "", "Is it red?", "is i rd", "is a rod", "Yes", "n i t l e n", "I heard nothing.",
                "There is a star.")  # fmt: skip
    for (transcript, scratchpad, answer), reading in itertools.product(texts, readings):
        encode = tokenizer.encode
        ids = [*encode(transcript), special.scratchpad, *encode(scratchpad), special.answer] if scratchpad else []
        ids += [*encode(answer), EOS]
        log_probs = [-rng.choice((0.01, 0.01, 0.05, 0.3)) * rng.random() for _ in ids]
        thresholds = {"typed": -0.25, "spoken": -0.25, "asr": -0.1, "scene": -0.04}
        for name in rng.sample(list(thresholds), rng.randrange(2)):
            del thresholds[name]
        image, style = rng.random() < 0.5, rng.choice(("wide", "wide", "plain"))
        steps = (Step(torch.tensor([id]), torch.tensor([each])) for id, each in zip(ids, log_probs, strict=True))
        spoken, scene = reading is not None, thresholds.get("scene") if image else None
        read = (lambda text=reading: text) if spoken and "asr" in thresholds else None
        threshold = thresholds.get("spoken" if spoken else "typed")
        reply = Reply(steps, tokenizer, 1, spoken, threshold, style, scene, read).finish()
        case = {"ids": ids, "logProbs": log_probs, "image": image, "reading": reading, "thresholds": thresholds,
                "style": style}  # fmt: skip
        found.append((case, reply))
    return found


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_pages_tokenizer_vocoder_and_parser_agree(exact: runtime.OnnxOmni, omni: Model, tmp_path: Path) -> None:
    """Without onnxruntime-web: what the page does itself."""
    from tinyomni.data.normalization import normalize_question
    from tinyomni.io.levels import normalize_level
    from tinyomni.reply import parse_reply, split_reply
    from tinyomni.tokenizer import train_tokenizer

    texts = ["What colour is the star?", "Hello, wörld! 12,5", "  two  spaces ", "▁ x", "🙂 ok", "a" * 40, "Big."]
    questions = ["  WHAT color is the  Traingle ", "whats this??", "wat colour is teh star", "Is it  red ?!", "hello",
                 "how are you", "“Where” is the circel", "...", "", "Ünknown wörds 12 times", "i see a wing",
                 "Paris"]  # fmt: skip
    replies = [("There is a big red star on the left. Colour star red: Red.", False), ("The time is 12: 30.", False),
               ("Is it? There is a big red star on the left: Yes.", True), ("Only words.", True)]  # fmt: skip
    mel = omni.codec.to_mel(omni.codec.rvq.decode(exact.speech_codes("Red.")))[0].detach()
    vocoder = omni.codec.vocoder
    shape, generator = (vocoder.n_fft // 2 + 1, len(mel) + 1), torch.Generator().manual_seed(0)
    phase = torch.rand(shape, generator=generator) * 2 * torch.pi
    faint = torch.randn(16_077, generator=generator) * torch.linspace(0, 0.01, 16_077)
    for name, values in (("mel", mel), ("phase", phase.T.contiguous()), ("faint", faint)):
        values.numpy().astype(np.float32).tofile(tmp_path / name)
    own = train_tokenizer(["Is there a big red star on the left: Yes."] * 9, tmp_path / "own.model", vocab=300)
    assert own.separators is not None
    odd, (start, end) = own.encode("There is a star. Is it: yes"), own.separators
    special = [[*odd, start, *odd, end, *odd], [start, *odd], [start, end, *odd], [*odd, start, end], odd[:3]]
    judged = judged_replies(own)
    given = {"texts": texts, "replies": replies, "frames": len(mel), "questions": questions,
             "special": {"pieces": own.vocabulary(), "ids": special},
             "judged": [case for case, _ in judged]}  # fmt: skip
    (tmp_path / "given.json").write_text(json.dumps(given))
    command = ["node", TOP / "site" / "live" / "test" / "agree.mjs", exact.folder / "model.json", tmp_path]
    subprocess.run([str(part) for part in command], check=True, timeout=120)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["questions"] == [normalize_question(each) for each in questions]
    level = np.fromfile(tmp_path / "level", dtype=np.float32)
    np.testing.assert_allclose(level, normalize_level(faint, 16_000), rtol=1e-4, atol=1e-6)
    assert found["ids"] == [omni.tokenizer.encode(text) for text in texts] and found["texts"] == texts
    fields = ("transcript", "description", "lookup", "answer")
    assert found["replies"] == [dict(zip(fields, parse_reply(*each), strict=True)) for each in replies]
    for ids, said in zip(special, found["special"], strict=True):
        expected = split_reply(ids, own) or parse_reply(own.decode(ids), spoken=True)
        assert said == {"text": own.decode(ids), "parts": dict(zip(fields, expected, strict=True))}
    for (case, reply), page in zip(judged, found["judged"], strict=True):
        assert page["certainty"] == pytest.approx(reply.certainty) and page["unsure"] == bool(reply.unsure), case
        of = "scene" if reply.doubts_scene else "speech" if reply.doubts_speech else None
        assert page["of"] == of, case
        apart = -1.0 if case["reading"] is None else disagreement(case["reading"], reply.parts)
        assert float(page["apart"]) == pytest.approx(apart), case
    assert {True, False} == {bool(reply.unsure) for _, reply in judged}
    assert {"scene", "speech", None} == {page["of"] for page in found["judged"]}
    ours, theirs = np.fromfile(tmp_path / "wav", dtype=np.float32), vocoder.mel_to_audio(mel, domain="log").numpy()
    ours *= np.abs(theirs).max() / np.abs(ours).max()
    assert np.linalg.norm(ours - theirs) < 1e-2 * np.linalg.norm(theirs)


def test_a_folder_without_graphs_and_another_tokenizer_are_refused(tmp_path: Path, exact: runtime.OnnxOmni) -> None:
    with pytest.raises(ValueError, match=r"expected model\.json in .*tinyomni export-onnx"):
        runtime.OnnxOmni(tmp_path)
    about = dict(exact.about, tokenizer=dict(exact.about["tokenizer"], fingerprint="other"))
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="another tokenizer"):
        runtime.OnnxOmni(tmp_path)
    assert dataclasses.asdict(SMALL)["thinker"]["layers"] == exact.about["config"]["thinker"]["layers"]


def test_graphs_of_other_weights_are_exported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinyomni import cli

    one, other, said, made = tmp_path / "one", tmp_path / "other", [], []
    one.write_bytes(b"1"), other.write_bytes(b"2")

    def export_now(_: Model, folder: Path, weights: str) -> None:
        made.append(weights)
        folder.mkdir(exist_ok=True)
        (folder / "model.json").write_text(json.dumps({"weights": weights}))

    monkeypatch.setattr(export, "export", export_now)
    monkeypatch.setattr(Model, "from_pretrained", classmethod(lambda *_: None))
    for weights in (one, one, other):
        assert export.graphs_of(weights, tmp_path / "graphs", said.append) == tmp_path / "graphs"
    assert made == [export.fingerprint(one), export.fingerprint(other)] and len(said) == 2
    assert cli.main(["ask", "What?", "--backend", "onnx", "--trace"]) == 2
    assert "leave out --backend onnx" in capsys.readouterr().err
