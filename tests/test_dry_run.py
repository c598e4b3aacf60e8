"""The six pipelines, their specifications, the command, and the user's own input."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image

from tinyomni import cli, dry_run
from tinyomni.omni import Omni
from tinyomni.tracing import Spec, trace


@pytest.fixture(scope="module")
def omni() -> Omni:
    return dry_run.build()


@pytest.mark.parametrize("name", dry_run.PIPELINES)
def test_every_line_of_every_pipeline_holds(omni: Omni, name: str) -> None:
    report = dry_run.run(name, omni, dry_run.default_inputs())
    assert report.ok, str(report)
    assert report.steps and all(line.ok for line in report.steps)


def test_the_numbers_of_the_document(omni: Omni) -> None:
    reports = {name: dry_run.run(name, omni, dry_run.default_inputs()) for name in ("text", "multimodal", "speech")}
    assert reports["multimodal"].ledger == [("image", 1), ("audio", 25), ("text", 9)]
    assert "= 35 of 512" in str(reports["multimodal"])
    due = {value for _, value, _ in reports["speech"].quantities}
    assert {300, 301, 602, 600, 38_528, 385_280, 24_000, 24_080} <= due
    assert ("tokens at the end of generation (6 → 70)", 70, 70) in reports["text"].quantities


def test_the_users_own_input_is_held_to_the_formulas(omni: Omni, tmp_path: Path) -> None:
    Image.new("L", (300, 77), 90).save(tmp_path / "grey.png")
    wave = torch.sin(torch.arange(44_100 * 2) / 20)[:, None].repeat(1, 2)
    soundfile.write(tmp_path / "two.flac", wave.numpy() * 0.3, 44_100)
    given = dry_run.default_inputs("Is there a cross? 日本", tmp_path / "grey.png", tmp_path / "two.flac")
    for name in dry_run.PIPELINES:
        report = dry_run.run(name, omni, given)
        assert report.ok, str(report)
    assert dry_run.run("audio", omni, given).axes["mel_frames"] == 200


WRONG = {
    "a dropped CLS": ("take_cls", "image", lambda x: (x[:, 1:2], x[:, 2:])),
    "a swapped order": ("fuse", "multimodal", lambda parts, ctx: torch.cat(list(parts.values())[::-1], 1)[:, 1:]),
    "a shift by two": ("shift", "training", lambda codes: codes[:, 2:]),
    "a mel that is swapped": ("hear", "audio", lambda mel, wav: mel(wav).transpose(1, 2)),
    "a frame too many": ("codes_to_mel", "speech", lambda rvq, codes: rvq.decode(codes[:, 1:])[0]),
}


@pytest.mark.parametrize("bug", WRONG)
def test_a_planted_bug_turns_the_report_red(omni: Omni, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    name, pipeline, wrong = WRONG[bug]
    monkeypatch.setattr(dry_run, name, wrong)
    try:
        good = dry_run.run(pipeline, omni, dry_run.default_inputs()).ok
    except (RuntimeError, ValueError):
        good = False
    assert not good


def test_a_line_without_a_step_and_a_step_without_a_line_fail(omni: Omni) -> None:
    path = dry_run.HERE / "specs" / "text.toml"
    with trace("text") as seen, torch.no_grad():
        dry_run.text_only(omni, dry_run.default_inputs())
    import tomllib

    data = tomllib.loads(path.read_text(encoding="utf-8"))
    assert seen.report(Spec(data)).ok
    shorter = tomllib.loads(path.read_text(encoding="utf-8"))
    del shorter["step"][2]
    assert "no [[step]] names it" in str(seen.report(Spec(shorter)).problems)
    longer = tomllib.loads(path.read_text(encoding="utf-8"))
    longer["step"].append({"call": "sing", "title": "Sing"})
    assert "sing: expected 1 calls, got 0" in str(seen.report(Spec(longer)).problems)


def test_the_steps_in_pieces_are_the_models(omni: Omni) -> None:
    ids = torch.tensor([[1, 20, 30, 40]])
    block, x = omni.thinker.blocks[0], omni.thinker.tok_emb(ids)
    q, k, v = dry_run.queries_keys_values(block, dry_run.normalise(block, x))
    q, k = dry_run.rotate(block, q, k)
    pieces = x + dry_run.weighted_values(block, dry_run.attention_weights(q, k, v), v)
    pieces = pieces + dry_run.mlp(block, pieces)
    torch.testing.assert_close(pieces, block(x))
    mel = torch.randn(1, 100, 128)
    ear = omni.audio
    halves = dry_run.second_convolution(ear, dry_run.first_convolution(ear, dry_run.as_picture(ear, mel)))
    mine = dry_run.listen(ear, dry_run.project_bands(ear, dry_run.flatten_bands(ear, halves)))
    torch.testing.assert_close(mine, ear(mel))


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_json_and_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dry-run", "--pipeline", "multimodal", "--json", str(tmp_path / "run.json")]) == 0
    data = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert data["ok"] and data["pipelines"]["multimodal"]["ledger"] == {"of": 512, "image": 1, "audio": 25, "text": 9}
    assert "lines hold" in capsys.readouterr().out


def bad_files(folder: Path) -> dict[str, tuple[list[str], str]]:
    (folder / "empty.wav").write_bytes(b"")
    (folder / "empty.png").write_bytes(b"")
    (folder / "noise.png").write_bytes(b"this is no picture")
    (folder / "noise.wav").write_bytes(b"this is no recording")
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
        "no such picture": (["--image", "nowhere.png"], "no file"),
        "an empty picture": (["--image", str(folder / "empty.png")], "0 bytes"),
        "no picture": (["--image", str(folder / "noise.png")], "no picture"),
        "a picture cut off": (["--image", str(folder / "cut.png")], "cut off"),
        "a folder": (["--image", str(folder)], "folder"),
        "an empty recording": (["--audio", str(folder / "empty.wav")], "0 bytes"),
        "no recording": (["--audio", str(folder / "noise.wav")], "no recording"),
        "a recording cut off": (["--audio", str(folder / "cut.wav")], "recording"),
        "half a recording": (["--audio", str(folder / "half.wav")], "cut off"),
        "less than a frame": (["--audio", str(folder / "short.wav")], "at least one frame"),
        "silence": (["--audio", str(folder / "silent.wav")], "silent"),
        "too long": (["--audio", str(folder / "long.wav")], "5.12 s fit"),
        "no samples": (["--audio", str(folder / "none.wav")], "no samples"),
        "NaN": (["--audio", str(folder / "nan.wav")], "1 samples that are NaN"),
        "empty text": (["--text", " "], "empty"),
        "too much text": (["--text", "red " * 500], "= 565 > ctx_len = 512|tokens"),
        "an unknown pipeline": (["--pipeline", "smell"], "unknown pipeline smell"),
        "no GPU": (["--device", "cuda"], "no GPU") if not torch.cuda.is_available() else (["--device", "cuda:99"], ""),
    }


@pytest.mark.parametrize("name", [
    "no such picture", "an empty picture", "no picture", "a picture cut off", "a folder", "an empty recording",
    "no recording", "a recording cut off", "half a recording", "less than a frame", "silence", "too long", "no samples",
    "NaN", "empty text", "too much text", "an unknown pipeline", "no GPU",
])  # fmt: skip
def test_bad_input_gives_one_clear_line_and_status_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    options, words = bad_files(tmp_path)[name]
    assert cli.main(["dry-run", *options]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "Traceback" not in error and error.startswith("tinyomni dry-run:")
    with pytest.raises((ValueError, OSError, RuntimeError)):
        cli.main(["dry-run", "--debug", *options])
