"""The six pipelines, their specifications, the command, and custom input."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from PIL import Image

from tinyomni import cli, dry_run
from tinyomni.attention import attention, merge_heads
from tinyomni.audio import MelFrontend
from tinyomni.codec import RVQ
from tinyomni.dry_run import pipelines
from tinyomni.errors import InputError
from tinyomni.omni import Omni
from tinyomni.tracing import Spec, SpecReport, Trace
from tinyomni.vision import ViTTiny


@pytest.fixture(scope="module")
def omni() -> Omni:
    return dry_run.build()


@pytest.fixture(scope="module")
def runs(omni: Omni) -> dict[str, Trace]:
    return {name: dry_run.traced(name, omni, dry_run.default_inputs()) for name in dry_run.PIPELINES}


@pytest.fixture(scope="module")
def reports(runs: dict[str, Trace]) -> dict[str, SpecReport]:
    return {name: run.report(dry_run.load_spec(name)) for name, run in runs.items()}


@pytest.mark.parametrize("name", dry_run.PIPELINES)
def test_every_line_of_every_pipeline_holds(reports: dict[str, SpecReport], name: str) -> None:
    report = reports[name]
    assert report.ok, str(report)
    assert report.steps and all(line.ok for line in report.steps)


def test_the_numbers_of_the_reference_specification(reports: dict[str, SpecReport]) -> None:
    assert reports["multimodal"].ledger == [("image", 1), ("audio", 25), ("text", 9)]
    assert "= 35 of 512" in str(reports["multimodal"])
    values = {value for _, value, _ in reports["speech"].quantities}
    assert {300, 301, 602, 600, 38_528, 385_280, 24_000, 24_080} <= values
    assert ("tokens at the end of generation (6 → 70)", 70, 70) in reports["text"].quantities


# numbers of the reference specification that stand in each of its parts, as they must appear in the printed report
REFERENCE = {
    "text": ["d_model 256", "head_dim 64", "queries 6, keys 6", "5000", "70"],
    "image": ["height 224", "rows 14", "n_patches 196", "tokens 197", "(1, 1, 128) → (1, 1, 256)", "total 9"],
    "audio": ["16000", "100", "(1, 64, 50, 64)", "(1, 64, 25, 32)", "(1, 25, 2048) → (1, 25, 192)", "total 30"],
    "multimodal": ["(batch 1, 1, d_model 256)", "audio_tokens 25", "total 35", "vocab 5000"],
    "speech": [
        "text_tokens 10",
        "×300",
        "positions 301, codebooks 2",
        "mel_frames 301, n_mels 128",
        "385280",
        "384000",
    ],
    "training": ["batch 2, samples 64000", "frames 50, codebooks 2", "positions 100, codebook_size 128", "→ ()"],
}


@pytest.mark.parametrize("name", REFERENCE)
def test_a_report_shows_what_ran(reports: dict[str, SpecReport], name: str) -> None:
    missing = [text for text in REFERENCE[name] if text not in str(reports[name])]
    assert not missing, f"{missing} not in\n{reports[name]}"


def test_custom_input_is_compared_with_the_formulas(omni: Omni, tmp_path: Path) -> None:
    Image.new("L", (300, 77), 90).save(tmp_path / "grey.png")
    wave = torch.sin(torch.arange(44_100 * 2) / 20)[:, None].repeat(1, 2)
    soundfile.write(tmp_path / "two.flac", wave.numpy() * 0.3, 44_100)
    files = tmp_path / "grey.png", tmp_path / "two.flac"
    inputs = dry_run.default_inputs("Is there a cross? 日本", *files)
    for name in dry_run.PIPELINES:
        sayable = dry_run.default_inputs("Are there 3 naïve crosses?", *files)
        report = dry_run.run(name, omni, sayable if name == "speech" else inputs)
        assert report.ok, str(report)
    with pytest.raises(InputError, match="which cannot be said"):
        dry_run.run("speech", omni, inputs)
    assert dry_run.run("audio", omni, inputs).axes["mel_frames"] == 200


WRONG: dict[str, tuple[Any, str, str, Any]] = {
    "a dropped CLS": (ViTTiny, "split_cls", "image", lambda self, x: (x[:, 1:2], x[:, 2:])),
    "a token too few": (pipelines, "fuse", "image", lambda parts, ctx_len: torch.cat(list(parts.values()), 1)[:, 1:]),
    "a shift by two": (pipelines, "previous", "training", lambda codes: codes[:, 2:]),
    "a transposed mel": (MelFrontend, "forward", "audio", lambda self, wav: torch.zeros(1, self.cfg.n_mels, 100)),
    "a frame too few": (RVQ, "decode", "speech", lambda self, codes: self.out_proj(self.lookup(codes[:, 1:]))),
    "an unnamed call": (pipelines, "decode_text", "audio", lambda tokenizer, ids: pipelines.make_batch(ids / 2, 3)),
}


@pytest.mark.parametrize("bug", WRONG)
def test_a_planted_bug_makes_the_report_fail(omni: Omni, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    place, name, pipeline, wrong = WRONG[bug]
    monkeypatch.setattr(place, name, wrong)
    try:
        ok = dry_run.run(pipeline, omni, dry_run.default_inputs()).ok
    except (RuntimeError, ValueError):
        ok = False
    assert not ok


@pytest.mark.parametrize("name", dry_run.PIPELINES)
def test_a_call_without_a_step_and_a_step_without_a_call_fail(runs: dict[str, Trace], name: str) -> None:
    seen = runs[name]
    text = (dry_run.SPECS / f"{name}.toml").read_text(encoding="utf-8")
    assert seen.report(Spec(tomllib.loads(text))).ok
    for number, step in enumerate(tomllib.loads(text)["step"]):
        shorter = tomllib.loads(text)
        del shorter["step"][number]
        report = seen.report(Spec(shorter))
        # the parts of an outermost call may be left out, as long as one of them is named
        parts = step["call"] in ("Conv2d.forward", "next_frame", "generate_codes") or name == "multimodal"
        words = ("no [[step]] names it", "more than its [[step]] says", "; expected before it")
        assert parts or any(word in each for each in report.problems for word in words), step["call"]
    longer = tomllib.loads(text)
    longer["step"].append({"call": "sing", "title": "Sing"})
    assert "sing: expected 1 call, got 0" in str(seen.report(Spec(longer)).problems)


def test_the_modules_one_by_one_compute_what_the_whole_does(omni: Omni) -> None:
    x = omni.thinker.embed(torch.tensor([[1, 20, 30, 40]]))
    block: Any = omni.thinker.blocks[0]
    q, k, v = block.attn.qkv(block.norm1(x))
    values, _ = attention(*block.attn.rotate(q, k), v, causal=True)
    parts = x + block.attn.o_proj(merge_heads(values))
    torch.testing.assert_close(parts + block.mlp(block.norm2(parts)), block(x))


def makers(run: Trace, report: SpecReport) -> dict[str, set[str]]:
    """For each box of a figure, the calls that its arrows come from."""
    figure = dry_run.named_calls(run, report)
    return {step.title: {run.steps[source].call for source in step.sources} for step in figure.steps}


def test_a_figure_shows_the_named_calls_and_where_their_inputs_come_from(
    runs: dict[str, Trace], reports: dict[str, SpecReport]
) -> None:
    arrows = makers(runs["audio"], reports["audio"])
    # the activation between two convolutions is looked through
    assert arrows["Second convolution, stride 2"] == arrows["Flatten channels and bands"] == {"Conv2d.forward"}
    assert arrows["Concatenate audio + text"] == {"Linear.forward", "ThinkerLM.embed"}
    arrows = makers(runs["multimodal"], reports["multimodal"])
    assert arrows["Concatenate image + audio + text"] == {"Omni.embed_image", "Omni.embed_audio", "ThinkerLM.embed"}
    assert arrows["Thinker: 4 blocks, norm, LM head"] == {"fuse"}
    # what generate_codes returns is drawn as made by the last named call below it
    arrows = makers(runs["speech"], reports["speech"])
    assert "Generate codes: start frame + max_frames" not in arrows
    assert arrows["RVQ: codes → mel"] == {"next_frame"}


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_json_and_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dry-run", "--pipeline", "multimodal", "--json", str(tmp_path / "run.json")]) == 0
    data = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert data["ok"] and data["pipelines"]["multimodal"]["ledger"] == {"of": 512, "image": 1, "audio": 25, "text": 9}
    assert "lines hold" in capsys.readouterr().out


def test_an_unknown_pipeline_is_refused() -> None:
    with pytest.raises(InputError, match="unknown pipeline smell; known: text, image"):
        dry_run.main(names=["smell"])


def bad_files(folder: Path) -> dict[str, tuple[list[str], str]]:
    (folder / "empty.wav").write_bytes(b"")
    (folder / "empty.png").write_bytes(b"")
    (folder / "noise.png").write_bytes(b"not an image")
    (folder / "noise.wav").write_bytes(b"not a recording")
    (folder / "cut.png").write_bytes(dry_run.IMAGE.read_bytes()[:2000])
    (folder / "cut.wav").write_bytes(dry_run.AUDIO.read_bytes()[:30])
    (folder / "half.wav").write_bytes(dry_run.AUDIO.read_bytes()[:9000])
    one = torch.randn(16_000) * 0.1
    soundfile.write(folder / "short.wav", one[:159].numpy(), 16_000)
    soundfile.write(folder / "silent.wav", (one * 0).numpy(), 16_000)
    soundfile.write(folder / "long.wav", one.repeat(6).numpy(), 16_000)
    soundfile.write(folder / "none.wav", one[:0].numpy(), 16_000)
    one[77] = torch.nan
    soundfile.write(folder / "nan.wav", one.numpy(), 16_000, subtype="FLOAT")
    return {
        "no such image": (["--image", "nowhere.png"], "no.* file"),
        "an empty image": (["--image", str(folder / "empty.png")], "0 bytes"),
        "not an image": (["--image", str(folder / "noise.png")], "cannot decode image"),
        "a truncated image": (["--image", str(folder / "cut.png")], "truncated"),
        "a folder": (["--image", str(folder)], "folder|directory"),
        "an empty recording": (["--audio", str(folder / "empty.wav")], "0 bytes"),
        "not a recording": (["--audio", str(folder / "noise.wav")], "cannot decode audio"),
        "a truncated header": (["--audio", str(folder / "cut.wav")], "audio"),
        "a truncated recording": (["--audio", str(folder / "half.wav")], "truncated"),
        "less than a frame": (["--audio", str(folder / "short.wav")], "at least one"),
        "silence": (["--audio", str(folder / "silent.wav")], "silent"),
        "too long": (["--audio", str(folder / "long.wav")], "5.12 s"),
        "no samples": (["--audio", str(folder / "none.wav")], "no samples"),
        "NaN": (["--audio", str(folder / "nan.wav")], "NaN"),
        "empty text": (["--text", " "], "empty"),
        "too much text": (["--text", "red " * 500], "= 565 > ctx_len = 512|tokens"),
        "no such device": (["--device", "cuda:99"], "no such device"),
    }


@pytest.mark.parametrize("name", [
    "no such image", "an empty image", "not an image", "a truncated image", "a folder", "an empty recording",
    "not a recording", "a truncated header", "a truncated recording", "less than a frame", "silence", "too long",
    "no samples", "NaN", "empty text", "too much text", "no such device",
])  # fmt: skip
def test_bad_input_gives_one_clear_line_and_status_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, words = bad_files(tmp_path)[name]
    assert cli.main(["dry-run", *options]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "Traceback" not in error and error.startswith("tinyomni dry-run:")
    with pytest.raises((ValueError, OSError, RuntimeError)):
        cli.main(["dry-run", "--debug", *options])
