"""A trained model as one file: weights in 16 or 8 bits, and beside them everything that it takes to use them.

    tensors      float16, by the names of `Omni`; `eye.…` is the contrastive text encoder, which only the report reads
                 on request large matrices in int8: `NAME` and, in float32, `NAME.int8_scale`, one number per row
    metadata     format, version, config (sizes), tokenizer (the model file), thresholds, made (how), sha256

It is a safetensors file: reading it runs no code. The checksum covers everything else in the file.

Source: Dettmers et al., LLM.int8() (2022), arXiv:2208.07339, section 2: row-wise absmax quantization.
"""

import base64
import hashlib
import json
import math
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tinyomni.config import STYLES, OmniConfig
from tinyomni.errors import InputError, MissingFileError
from tinyomni.tokenizer import BPETokenizer

FORMAT = "tinyomni 3"
FLOAT16_FORMAT = "tinyomni 2"  # the same without int8
SHIPPED = Path(__file__).parents[1] / "weights" / "omni.safetensors"
WHERE = "Omni.from_pretrained"
MALFORMED = (KeyError, TypeError, ValueError, AttributeError)  # what JSON of an unexpected form leads to
TEACHER = "eye."  # the image encoder's contrastive partner in training, no part of `Omni`
TABLES = ("thinker.tok_emb.weight", "eye.text.tok_emb.weight")
"""Embeddings. A row that belongs to no piece of the tokenizer is never looked up, and does not ship.

The Talker's table is not among them: its last rows are voices.
"""

SCALE = ".int8_scale"  # of the name of a tensor that is stored in int8
LEAST_INT8 = 4096  # numbers in such a tensor; smaller ones take no room in float16 either

Tensors = dict[str, Shaped[Tensor, "..."]]


def digest(tensors: Tensors, metadata: dict[str, str]) -> str:
    """SHA-256 of all names, shapes, numbers and metadata."""
    total = hashlib.sha256()
    for name, text in sorted(metadata.items()):
        total.update(f"{name}\0{text}\0".encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def quantize(x: Float[Tensor, "rows *sizes"]) -> tuple[Int8[Tensor, "rows *sizes"], Float[Tensor, "rows"]]:
    """Each row as integers within ±127 and the number that 1 stands for, so that its largest number becomes ±127."""
    rows = x.float().flatten(1)
    scale = rows.abs().amax(dim=1) / 127
    steps = rows / torch.where(scale == 0, 1, scale)[:, None]
    return steps.round().to(torch.int8).view_as(x), scale


def dequantize(x: Int8[Tensor, "rows *sizes"], scale: Float[Tensor, "rows"]) -> Float[Tensor, "rows *sizes"]:
    """What `quantize` was given, but for rounding: at most half a step."""
    return (x.flatten(1) * scale[:, None]).view(x.shape)


def stored(tensors: Tensors, int8: bool) -> Tensors:
    """The tensors as they are in a file. Raises InputError for a weight that half precision cannot hold."""
    half = {name: tensor.detach().cpu().half().contiguous().clone() for name, tensor in tensors.items()}
    bad = [name for name, tensor in half.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise InputError(f"Omni.save: {bad[0]} holds NaN, infinity or a number above 65504, which float16 cannot hold")
    for name in [name for name in half if int8 and name.endswith(".weight")]:
        if half[name].ndim > 1 and half[name].numel() >= LEAST_INT8:
            half[name], half[name + SCALE] = quantize(tensors[name].detach().cpu())
    return half


def loaded(tensors: Tensors, name: str) -> Tensors:
    """The tensors of a file as float32. Raises InputError for a number or type that `stored` does not write."""
    found: Tensors = {}
    for key, tensor in tensors.items():
        if key.removesuffix(SCALE) != key and key.removesuffix(SCALE) in tensors:
            continue
        scale = tensors.get(key + SCALE)
        dtypes = (tensor.dtype,) if scale is None else (tensor.dtype, scale.dtype)
        if dtypes not in ((torch.float16,), (torch.int8, torch.float32)):
            got = " with ".join(str(dtype) for dtype in dtypes)
            raise InputError(f"{WHERE}: expected float16, or int8 with float32 scales, in {name}, got {got} in {key}")
        if scale is not None and (tensor.ndim < 2 or scale.shape != tensor.shape[:1]):
            sizes = f"expected scales of shape {tuple(tensor.shape[:1])} for {key} in {name}, got {tuple(scale.shape)}"
            raise InputError(f"{WHERE}: {sizes}")
        found[key] = tensor.float() if scale is None else dequantize(tensor, scale)
        if not bool(torch.isfinite(found[key]).all()):
            raise InputError(f"{WHERE}: expected finite numbers in {name}, got NaN or infinity in {key}")
    return found


def number_types(path: Path) -> str:
    """In which types a file holds its numbers, in words."""
    with safe_open(path, framework="pt") as file:
        int8 = any(name.endswith(SCALE) for name in file.keys())  # noqa: SIM118 (not a dict)
    return "matrices in int8, the rest in float16" if int8 else "float16"


def write(
    path: str | Path,
    tensors: Tensors,
    config: dict[str, Any],
    tokenizer: BPETokenizer,
    int8: bool = False,
    **more: Any,
) -> None:
    """Write the file, in float16 or with large matrices in int8. `more` is kept as JSON.

    Raises InputError for a weight that half precision cannot hold.
    """
    data = stored(tensors, int8)
    metadata = {
        "format": FORMAT,
        "version": version("tinyomni"),
        "config": json.dumps(config),
        "fingerprint": tokenizer.fingerprint,
        "tokenizer": base64.b64encode(tokenizer.model).decode(),
        **{name: json.dumps(value) for name, value in more.items()},
    }
    # not by safetensors itself: it has an error of its own for a full disk, and writes what only the owner reads
    Path(path).write_bytes(save(data, metadata | {"sha256": digest(data, metadata)}))


def read(path: str | Path | None = None) -> tuple[Tensors, dict[str, str]]:
    """The tensors as float32, and the metadata; without a path, of the weights that ship with the package.

    Raises InputError for a missing file, and for one that is damaged, of another format, or no weights at all.
    """
    source = Path(path) if path is not None else SHIPPED
    if not source.is_file():
        fix = (
            "No trained weights ship with this version: use Omni(TINY) for fresh ones, or train: tinyomni train all."
            if path is None
            else "Is the path right?"
        )
        raise MissingFileError(f"{WHERE}: no such file: {source if path is not None else source.name}. {fix}")
    again = "Copy or download it again" if path is not None else "Install tinyomni again"
    try:
        with safe_open(source, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise InputError(f"{WHERE}: {source.name} is damaged, or not a safetensors file ({error}). {again}.") from error
    found = metadata.get("format", "")
    if found not in (FORMAT, FLOAT16_FORMAT):
        kind = f"has format {found!r}" if found.startswith("tinyomni ") else "was not written by tinyomni"
        raise InputError(
            f"{WHERE}: {source.name} {kind}, expected format {FORMAT!r}. Weights and library go together: "
            "take both from one version, or export again: tinyomni export RUNS."
        )
    if base64_sha(metadata.get("tokenizer", "")) != metadata.get("fingerprint"):
        raise InputError(
            f"{WHERE}: {source.name} carries another tokenizer than the one that it was trained with. {again}."
        )
    if digest(tensors, {name: text for name, text in metadata.items() if name != "sha256"}) != metadata.get("sha256"):
        raise InputError(f"{WHERE}: {source.name} is damaged: its checksum does not match. {again}.")
    numbers = loaded(tensors, source.name)
    try:
        tokenizer_of(metadata)
    except InputError as error:  # it names a temporary file
        raise InputError(
            f"{WHERE}: the tokenizer in {source.name} is not a SentencePiece model, or it is damaged. {again}."
        ) from error
    try:
        for key in ("config", "thresholds", "made"):
            if not isinstance(json.loads(metadata.get(key, "{}")), dict):
                raise TypeError(f"{key}: expected a JSON object")
    except (*MALFORMED, RecursionError) as error:
        raise InputError(f"{WHERE}: the metadata of {source.name} cannot be read: {error}. {again}.") from error
    return numbers, metadata


def style_of(metadata: dict[str, str], name: str) -> str:
    """The style of the data of the last stage; files from before there were two are of the plain one."""
    text = metadata.get("style", '"plain"')
    style = {json.dumps(style): style for style in STYLES}.get(text)
    if style is None:
        raise InputError(f"{WHERE}: expected the style {' or '.join(STYLES)} in {name}, got {text[:40]}")
    return style


def sizes_of(tensors: Tensors, metadata: dict[str, str], name: str) -> tuple[OmniConfig, dict[str, float]]:
    """The sizes and the thresholds in a file; sizes that its tensors cannot have are refused before anything is built.

    Raises InputError.
    """
    try:
        cfg = OmniConfig.from_dict(json.loads(metadata["config"]))
        thresholds = json.loads(metadata["thresholds"])
    except MALFORMED as error:
        raise InputError(f"{WHERE}: cannot use the sizes in {name}: {error}") from error
    if not isinstance(thresholds, dict) or not all(
        isinstance(value, float) and math.isfinite(value) for value in thresholds.values()
    ):
        raise InputError(f"{WHERE}: cannot use the thresholds in {name}: expected finite floats by name")
    numbers = sum(tensor.numel() for tensor in tensors.values())
    table = cfg.thinker.vocab * cfg.thinker.d_model  # rows that no piece has did not ship
    if cfg.least_parameters() > numbers or table > 16 * numbers:
        raise InputError(
            f"{WHERE}: the sizes in {name} do not fit its tensors: "
            f"they make at least {max(cfg.least_parameters(), table):,} parameters, and it holds {numbers:,} numbers"
        )
    return cfg, thresholds


def pad_table(name: str, tensor: Shaped[Tensor, "..."], like: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """An embedding table with zeros for the rows that did not ship; every other tensor unchanged."""
    return torch.cat([tensor, torch.zeros_like(like[len(tensor) :])]) if name in TABLES else tensor


def base64_sha(text: str) -> str:
    """SHA-256 of the bytes that base64 encodes."""
    try:
        return hashlib.sha256(base64.b64decode(text, validate=True)).hexdigest()
    except ValueError as error:
        raise InputError(f"{WHERE}: the tokenizer in the file is damaged ({error})") from error


def tokenizer_of(metadata: dict[str, str]) -> BPETokenizer:
    """The tokenizer that the weights were trained with."""
    shipped = BPETokenizer()
    if metadata["fingerprint"] == shipped.fingerprint:
        return shipped
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(base64.b64decode(metadata["tokenizer"]))
        return BPETokenizer(path)
