"""Weights in one file: a file that cannot be used is refused with the reason; the shipped weights work."""

import json
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinyomni import TINY, BPETokenizer, Omni
from tinyomni.dry_run import AUDIO, IMAGE, build
from tinyomni.io import weights as weights_file
from tinyomni.tokenizer import train_tokenizer

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    omni = build(seed=1)
    omni.thresholds = {"typed": -0.25}
    path = tmp_path_factory.mktemp("weights") / "omni.safetensors"
    omni.save(path, made={"preset": "smoke"})
    return path


# ---- the file -------------------------------------------------------------------------------------------------------


def test_everything_comes_back(weights: Path) -> None:
    omni, again = build(seed=1), Omni.from_pretrained(weights)
    assert again.thresholds == {"typed": -0.25} and again.cfg == TINY and not again.training
    assert {each.dtype for each in again.state_dict().values()} == {torch.float32}
    for name, tensor in omni.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor.half().float(), rtol=0, atol=0)
    tensors, about = weights_file.read(weights)
    assert json.loads(about["made"]) == {"preset": "smoke"} and len(tensors) == len(omni.state_dict())


def test_the_tokenizer_travels_with_the_weights(tmp_path: Path) -> None:
    own = train_tokenizer(["a red circle", "a blue ring"] * 50, tmp_path / "own.model", vocab=300)
    assert own.fingerprint != BPETokenizer().fingerprint
    Omni(tokenizer=own).save(tmp_path / "own.safetensors")
    (tmp_path / "own.model").unlink()
    again = Omni.from_pretrained(tmp_path / "own.safetensors").tokenizer
    assert again.fingerprint == own.fingerprint and again.encode("a red ring") == own.encode("a red ring")


@pytest.mark.parametrize("place", [0.3, 0.7, 0.999])
def test_one_changed_bit_is_noticed(weights: Path, tmp_path: Path, place: float) -> None:
    data = bytearray(weights.read_bytes())
    data[int(len(data) * place)] ^= 1
    (tmp_path / "bit").write_bytes(data)
    with pytest.raises(ValueError, match=r"bit is damaged: its checksum does not match. Copy or download it again"):
        Omni.from_pretrained(tmp_path / "bit")


def test_changed_metadata_is_noticed_too(weights: Path, tmp_path: Path) -> None:
    data = weights.read_bytes()
    (tmp_path / "limits").write_bytes(data.replace(b"-0.25", b"-9.25"))
    with pytest.raises(ValueError, match="checksum"):
        Omni.from_pretrained(tmp_path / "limits")


def test_foreign_older_and_missing_files_are_told_apart(weights: Path, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    (tmp_path / "older").write_bytes(weights.read_bytes().replace(b"tinyomni 2", b"tinyomni 0"))
    torch.save({"x": torch.zeros(2)}, tmp_path / "pickle")
    for name, words in [
        ("foreign", r"foreign was not written by tinyomni, expected format 'tinyomni 2'"),
        ("older", r"older has format 'tinyomni 0', expected format 'tinyomni 2'.*take both from one version"),
        ("pickle", r"pickle is damaged, or not a safetensors file"),
    ]:
        with pytest.raises(ValueError, match=words):
            Omni.from_pretrained(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nowhere. Is the path right\?"):
        Omni.from_pretrained(tmp_path / "nowhere")


def test_sizes_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    omni = build(seed=1)
    bigger = replace(TINY, thinker=replace(TINY.thinker, layers=5))
    small = replace(TINY, thinker=replace(TINY.thinker, vocab=100))
    later = asdict(TINY) | {"memory": {}}
    later["thinker"] = later["thinker"] | {"experts": 8}
    for config, words in [
        (asdict(bigger), "do not fit the sizes in it"),
        (asdict(small), r"thinker.vocab must be at least \d+, got 100"),
        (later, "cannot use the sizes"),
    ]:
        weights_file.write(tmp_path / "x", omni.state_dict(), config, omni.tokenizer, thresholds={})
        with pytest.raises(ValueError, match=words):
            Omni.from_pretrained(tmp_path / "x")


def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path: Path) -> None:
    omni = build(seed=1)
    for bad in (1e6, torch.nan):
        with torch.no_grad():
            omni.proj_v.bias[3] = bad
        with pytest.raises(ValueError, match=r"proj_v\.bias holds NaN, infinity or a number above 65504"):
            omni.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_without_shipped_weights_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights_file, "SHIPPED", tmp_path / "omni.safetensors")
    with pytest.raises(FileNotFoundError, match=r"No trained weights ship with this version.*tinyomni train all"):
        Omni.from_pretrained()


def test_the_package_includes_its_weights() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    assert "weights/*" in project["tool"]["setuptools"]["package-data"]["tinyomni"]
    assert weights_file.SHIPPED.parent == TOP / "tinyomni" / "weights"


# ---- what ships -----------------------------------------------------------------------------------------------------


def test_shipped_weights_answer_transcribe_and_speak() -> None:
    folder = weights_file.SHIPPED.parent
    assert sum(each.stat().st_size for each in folder.iterdir()) <= 30_000_000
    omni = Omni.from_pretrained()
    assert set(omni.thresholds) == {"typed", "spoken", "asr"}
    for question, answer in [("What colour is the circle?", "Red."), ("How many things are there?", "Three."),
                             ("Where is the star?", "At the top.")]:  # fmt: skip
        assert omni.generate(question, IMAGE) == answer
    things = "a big red circle on the left, a big yellow triangle on the right and a small blue star at the top"
    assert omni.generate("Describe the image.", IMAGE) == f"There is {things}."
    assert omni.transcribe(AUDIO).text == "" and "".join(omni.transcribe(AUDIO))
    assert not torch.equal(omni.speech_codes("On the left.", 0), omni.speech_codes("On the left.", 1))
    said = omni.speak("There is a small blue star at the top.")
    assert "".join(omni.transcribe((said, 16_000))) == "There is a small blue star at the top."


def test_tensors_are_float16_and_no_pickle(weights: Path) -> None:
    assert {each.dtype for each in load_file(weights).values()} == {torch.float16}
    assert b"pickle" not in weights.read_bytes()[:100_000]
