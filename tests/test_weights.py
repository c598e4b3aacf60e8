"""Weights in one file: a file that cannot be used is refused with the reason; the shipped weights work."""

import base64
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinyomni import TINY, BPETokenizer, Omni
from tinyomni.dry_run import AUDIO, IMAGE, build
from tinyomni.errors import InputError
from tinyomni.io import weights as weights_file
from tinyomni.tokenizer import train_tokenizer

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    omni = build(seed=1)
    omni.thresholds, omni.style = {"typed": -0.25}, "wide"
    path = tmp_path_factory.mktemp("weights") / "omni.safetensors"
    omni.save(path, made={"preset": "smoke"})
    return path


# ---- the file -------------------------------------------------------------------------------------------------------


def test_everything_comes_back(weights: Path) -> None:
    omni, again = build(seed=1), Omni.from_pretrained(weights)
    assert again.thresholds == {"typed": -0.25} and again.cfg == TINY and not again.training
    assert again.style == "wide" and Omni.from_pretrained().style in ("plain", "wide")
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


def test_a_tokenizer_that_is_none_is_named_by_the_weights(weights: Path, tmp_path: Path) -> None:
    with safe_open(weights, framework="pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "sha256"}
    metadata |= {"tokenizer": base64.b64encode(b"garbage").decode(), "fingerprint": sha256(b"garbage").hexdigest()}
    tensors = load_file(weights)
    save_file(tensors, tmp_path / "odd", metadata | {"sha256": weights_file.digest(tensors, metadata)})
    with pytest.raises(InputError, match="the tokenizer in odd is not a SentencePiece model") as refused:
        Omni.from_pretrained(tmp_path / "odd")
    assert "tokenizer.model" not in str(refused.value)


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
    (tmp_path / "older").write_bytes(weights.read_bytes().replace(weights_file.FORMAT.encode(), b"tinyomni 0"))
    torch.save({"x": torch.zeros(2)}, tmp_path / "pickle")
    for name, words in [
        ("foreign", r"foreign was not written by tinyomni, expected format 'tinyomni 3'"),
        ("older", r"older has format 'tinyomni 0', expected format 'tinyomni 3'.*take both from one version"),
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


def forged(weights: Path, path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Path:
    """The file with other content, and a checksum that is right."""
    with safe_open(weights, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, metadata)
    metadata.pop("sha256")
    save_file(tensors, path, metadata=metadata | {"sha256": weights_file.digest(tensors, metadata)})
    return path


SIZES: list[tuple[str, str, Any, str]] = [
    ("thinker", "d_model", 0, "must be a positive integer"),
    ("thinker", "d_model", -256, "must be a positive integer"),
    ("thinker", "layers", "4", "must be a positive integer"),
    ("thinker", "d_model", 10**9, "must be at most 1,048,576"),
    ("thinker", "d_model", 2**20, "they make at least"),
    ("thinker", "layers", 10**6, "they make at least"),
    ("thinker", "vocab", 2**20, "they make at least"),
    ("thinker", "intermediate_size", 2**20, "they make at least"),
    ("vision", "layers", 10**6, "they make at least"),
    ("vision", "image_size", 2**20, "must be at most 8,192"),
    ("audio", "conv_channels", 2**20, "they make at least"),
    ("audio", "n_mels", 2**20, "must be at most n_fft // 2"),
    ("talker", "vocab", 2**20, "they make at least"),
    ("codec", "code_dim", 2**20, "they make at least"),
    ("thinker", "depth", 4, "unexpected keyword argument 'depth'"),
]


@pytest.mark.parametrize(("part", "field", "value", "words"), SIZES)
def test_hostile_sizes_are_refused_before_anything_is_built(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, field: str, value: Any, words: str
) -> None:
    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["config"])
        config[part][field] = value
        metadata["config"] = json.dumps(config)

    monkeypatch.setattr(Omni, "__init__", lambda *_: pytest.fail("it was built"))
    with pytest.raises(InputError, match=f"(?s)bad.safetensors.*{words}"):
        Omni.from_pretrained(forged(weights, tmp_path / "bad.safetensors", change))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("key", ["config", "thresholds", "made"])
@pytest.mark.parametrize("text", ["{", "[]", "3", DEEP])
def test_hostile_metadata_is_refused(weights: Path, tmp_path: Path, key: str, text: str) -> None:
    path = forged(weights, tmp_path / "bad.safetensors", lambda _, metadata: metadata.update({key: text}))
    with pytest.raises(InputError, match=r"the metadata of bad\.safetensors cannot be read"):
        Omni.from_pretrained(path)


@pytest.mark.parametrize("text", ["{", "[]", '"bold"', "wide", DEEP])
def test_an_unknown_style_is_refused(weights: Path, tmp_path: Path, text: str) -> None:
    path = forged(weights, tmp_path / "bad.safetensors", lambda _, metadata: metadata.update(style=text))
    with pytest.raises(InputError, match=r"expected the style plain or wide in bad\.safetensors"):
        Omni.from_pretrained(path)


@pytest.mark.parametrize("text", ['{"typed": NaN}', '{"typed": 1e999}', '{"typed": "x"}', '{"typed": null}'])
def test_thresholds_are_finite_floats(weights: Path, tmp_path: Path, text: str) -> None:
    path = forged(weights, tmp_path / "bad.safetensors", lambda _, metadata: metadata.update(thresholds=text))
    with pytest.raises(InputError, match=r"cannot use the thresholds in bad\.safetensors"):
        Omni.from_pretrained(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.float(), "got torch.float32 in proj_v.weight"),
        (lambda tensor: tensor.long(), "got torch.int64 in proj_v.weight"),
        (lambda tensor: torch.full_like(tensor, torch.nan), "got NaN or infinity in proj_v.weight"),
        (lambda tensor: tensor[:3].clone(), "do not fit the sizes"),
    ],
)
def test_hostile_tensors_are_refused(
    weights: Path, tmp_path: Path, change: Callable[[Tensor], Tensor], words: str
) -> None:
    name = "proj_v.weight"
    path = forged(
        weights, tmp_path / "bad.safetensors", lambda tensors, _: tensors.update({name: change(tensors[name])})
    )
    with pytest.raises(InputError, match=words):
        Omni.from_pretrained(path)


def test_missing_and_extra_tensors_are_refused(weights: Path, tmp_path: Path) -> None:
    for change in (
        lambda tensors, _: tensors.pop("proj_v.weight"),
        lambda tensors, _: tensors.update(x=torch.ones(2).half()),
    ):
        with pytest.raises(InputError, match="do not fit the sizes"):
            Omni.from_pretrained(forged(weights, tmp_path / "bad.safetensors", change))


def test_the_least_number_of_parameters_is_one() -> None:
    small = replace(TINY, thinker=replace(TINY.thinker, layers=1, kv_heads=1), talker=replace(TINY.talker, layers=9))
    for cfg in (TINY, small):
        numbers = sum(each.numel() for each in Omni(cfg).parameters())
        assert numbers / 2 < cfg.least_parameters() < numbers


def test_nothing_is_ever_unpickled() -> None:
    """No module of the package imports pickle, or calls what unpickles."""
    unpickling = re.compile(
        r"import pickle|pickle\.load|torch\.load\(|allow_pickle=True|joblib\.load|shelve|marshal\.load"
    )
    found = [path.name for path in (TOP / "tinyomni").rglob("*.py") if unpickling.search(path.read_text("utf-8"))]
    assert found == []


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
    assert set(omni.thresholds) == {"typed", "spoken", "asr", "scene"}
    for question, answer in [("What colour is the circle?", "Red."), ("How many things are there?", "Three."),
                             ("Where is the star?", "At the top.")]:  # fmt: skip
        assert omni.generate(question, IMAGE) == answer
    things = "a big red circle on the left, a big yellow triangle on the right and a small blue star at the top"
    assert omni.generate("Describe the image.", IMAGE) == f"There is {things}."
    assert omni.transcribe(AUDIO).text == "" and "".join(omni.transcribe(AUDIO))
    assert not torch.equal(omni.speech_codes("On the left.", 0), omni.speech_codes("On the left.", 1))
    said = omni.speak("There is a small blue star at the top.")
    assert "".join(omni.transcribe((said, 16_000))) == "There is a small blue star at the top."


def test_int8_is_half_as_large_and_nearly_the_same(weights: Path, tmp_path: Path) -> None:
    tensors, metadata = weights_file.read(weights)
    small = tmp_path / "int8.safetensors"
    weights_file.write(small, tensors, json.loads(metadata["config"]), BPETokenizer(), int8=True, thresholds={})
    assert small.stat().st_size < 0.55 * weights.stat().st_size
    assert {each.dtype for each in load_file(small).values()} == {torch.float16, torch.int8, torch.float32}
    again = weights_file.read(small)[0]
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if name + weights_file.SCALE in load_file(small):
            step = tensor.flatten(1).abs().amax(1, keepdim=True) / 127
            assert ((again[name] - tensor).flatten(1).abs() <= 0.5001 * step).all(), name
        else:
            assert torch.equal(again[name], tensor), name
    assert torch.equal(again["codec.rvq.codebooks"], tensors["codec.rvq.codebooks"])
    Omni.from_pretrained(small)
    assert weights_file.number_types(small) == "matrices in int8, the rest in float16"
    assert weights_file.number_types(weights) == "float16"


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=3), elements=st.floats(-1e4, 1e4, width=32)))
def test_quantization_rounds_to_the_nearest_step(numbers: np.ndarray) -> None:
    x = torch.from_numpy(numbers)
    steps, scale = weights_file.quantize(x)
    error = (weights_file.dequantize(steps, scale) - x).flatten(1).abs()
    assert (error <= 0.5001 * scale[:, None] + 1e-30).all() and steps.dtype == torch.int8 and steps.min() >= -127


@pytest.mark.parametrize(("scale", "words"), [
    (torch.ones(2), r"expected scales of shape \(256,\) for proj_v.weight in bad.safetensors, got \(2,\)"),
    (torch.ones(256).half(), "got torch.int8 with torch.float16 in proj_v.weight"),
    (torch.full((256,), torch.inf), "got NaN or infinity in proj_v.weight"),
])  # fmt: skip
def test_hostile_scales_are_refused(weights: Path, tmp_path: Path, scale: Tensor, words: str) -> None:
    name, bad = "proj_v.weight", tmp_path / "bad.safetensors"
    integers = weights_file.read(weights)[0][name].mul(100).to(torch.int8)
    changed = {name: integers, name + weights_file.SCALE: scale}
    with pytest.raises(InputError, match=words):
        Omni.from_pretrained(forged(weights, bad, lambda tensors, _: tensors.update(changed)))
    lone = {"x" + weights_file.SCALE: torch.ones(3)}
    with pytest.raises(InputError, match=r"got torch\.float32 in x\.int8_scale"):
        Omni.from_pretrained(forged(weights, bad, lambda tensors, _: tensors.update(lone)))


def test_tensors_are_float16_and_no_pickle(weights: Path) -> None:
    assert {each.dtype for each in load_file(weights).values()} == {torch.float16}
    assert b"pickle" not in weights.read_bytes()[:100_000]
