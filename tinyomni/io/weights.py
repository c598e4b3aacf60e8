"""A trained model as one file: weights in half precision, and beside them all that it takes to use them.

    tensors      float16, by the names of `Omni`; `eye.…` is what taught the eye, and only the report reads it
    metadata     format, version, config (the sizes), tokenizer (the whole of it), limits, made (how), sha256

It is a safetensors file: reading it runs no code. The checksum is that of everything else in the file.
"""

import base64
import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tinyomni.tokenizer import BPETokenizer

FORMAT = "tinyomni 1"
SHIPPED = Path(__file__).parents[1] / "weights" / "omni.safetensors"
STEP = "Omni.from_pretrained"
TABLES = ("thinker.tok_emb.weight", "eye.text.tok_emb.weight")
"""Embeddings. A row that belongs to no piece of the tokenizer is never looked up, and does not ship.

The Talker's table is not among them: its last rows are voices.
"""

OLD_FIELDS = {"hidden": "intermediate_size"}
OLD_LIMITS = {"heard": "spoken", "read": "typed", "ear": "asr"}

Tensors = dict[str, Shaped[Tensor, "..."]]


def digest(tensors: Tensors, about: dict[str, str]) -> str:
    """SHA-256 of all names, shapes, numbers and words."""
    total = hashlib.sha256()
    for name, text in sorted(about.items()):
        total.update(f"{name}\0{text}\0".encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def write(path: str | Path, tensors: Tensors, config: dict[str, Any], tokenizer: BPETokenizer, **more: Any) -> None:
    """Write the file. `more` is kept as JSON. Raises ValueError for a weight that half precision cannot hold."""
    half = {name: tensor.detach().cpu().half().contiguous().clone() for name, tensor in tensors.items()}
    bad = [name for name, tensor in half.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ValueError(f"Omni.save: {bad[0]} holds NaN, infinity or a number above 65504, which float16 cannot hold")
    about = {
        "format": FORMAT,
        "version": version("tinyomni"),
        "config": json.dumps(config),
        "fingerprint": tokenizer.fingerprint,
        "tokenizer": base64.b64encode(tokenizer.model).decode(),
        **{name: json.dumps(value) for name, value in more.items()},
    }
    save_file(half, path, metadata=about | {"sha256": digest(half, about)})


def read(path: str | Path | None = None) -> tuple[Tensors, dict[str, str]]:
    """The tensors as float32, and the metadata; without a path, of the weights that ship with the package.

    Raises FileNotFoundError, and ValueError for a file that is damaged, of another format, or no weights at all.
    """
    source = Path(path) if path is not None else SHIPPED
    if not source.is_file():
        fix = (
            "No trained weights ship with this version: use Omni(TINY) for fresh ones, or train: tinyomni train all."
            if path is None
            else "Is the path right?"
        )
        raise FileNotFoundError(f"{STEP}: there is no file {source if path is not None else source.name}. {fix}")
    again = "Copy or download it again" if path is not None else "Install tinyomni again"
    try:
        with safe_open(source, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{STEP}: {source.name} is damaged or no safetensors file ({error}). {again}.") from error
    if about.get("format") != FORMAT:
        found = about.get("format", "")
        kind = f"of the format {found!r}" if found.startswith("tinyomni ") else "not a file of tinyomni's: no format"
        raise ValueError(
            f"{STEP}: {source.name} is {kind}, expected {FORMAT!r}. Weights and library go together: "
            "take both from one version, or export again: tinyomni export RUNS."
        )
    if base64_sha(about.get("tokenizer", "")) != about.get("fingerprint"):
        raise ValueError(
            f"{STEP}: {source.name} carries another tokenizer than the one that it was trained with. {again}."
        )
    if digest(tensors, {name: text for name, text in about.items() if name != "sha256"}) != about.get("sha256"):
        raise ValueError(f"{STEP}: {source.name} is damaged: its checksum is another one. {again}.")
    return {name: tensor.float() for name, tensor in tensors.items()}, translate(about)


def translate(about: dict[str, str]) -> dict[str, str]:
    """The metadata with the keys of today: files of the first release say `hidden`, `heard`, `read` and `ear`."""
    renamed = about.copy()
    if "config" in about:
        sizes = json.loads(about["config"])
        renamed["config"] = json.dumps({
            part: {OLD_FIELDS.get(key, key): value for key, value in fields.items()} for part, fields in sizes.items()
        })
    if "limits" in about:
        limits = json.loads(about["limits"])
        renamed["limits"] = json.dumps({OLD_LIMITS.get(key, key): value for key, value in limits.items()})
    return renamed


def fill(name: str, tensor: Shaped[Tensor, "..."], like: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """An embedding with zeros for the rows that did not ship; every other tensor as it is."""
    return torch.cat([tensor, torch.zeros_like(like[len(tensor) :])]) if name in TABLES else tensor


def base64_sha(text: str) -> str:
    """SHA-256 of what base64 stands for."""
    try:
        return hashlib.sha256(base64.b64decode(text, validate=True)).hexdigest()
    except ValueError as error:
        raise ValueError(f"{STEP}: the tokenizer in the file is damaged ({error})") from error


def tokenizer_of(about: dict[str, str]) -> BPETokenizer:
    """The tokenizer that the weights were trained with."""
    shipped = BPETokenizer()
    if about["fingerprint"] == shipped.fingerprint:
        return shipped
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(base64.b64decode(about["tokenizer"]))
        return BPETokenizer(path)
