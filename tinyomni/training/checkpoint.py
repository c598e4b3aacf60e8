"""Checkpoints that survive what happens to machines: a kill at any moment, a full disk, a damaged file.

A checkpoint is a folder, `step-00000500`, with the tensors (safetensors) and the metadata (JSON), which has a checksum
of the tensors and one of itself. It is written under a temporary name, synced to the disk, and renamed: a name without
`tmp-` is a complete checkpoint. Beside the folders lie two small files, the pointers `last` and `best`, which hold the
name of one of them.
"""

import errno
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors
from torch import Tensor, nn

from tinyomni.errors import InputError, MissingFileError
from tinyomni.training.average import PREFIX, WeightAverage

Tensors = dict[str, Shaped[Tensor, "..."]]
TENSORS, METADATA, CORRUPT = "tensors.safetensors", "checkpoint.json", ".corrupt"


class CorruptCheckpoint(InputError):
    """A checkpoint that is not what was written."""


# ---- files ----------------------------------------------------------------------------------------------------------


def sync_folder(folder: Path) -> None:
    """A new name in a folder is safe only when the folder itself is on the disk. Windows has no such call."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, and return when it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a small file: it has the old content or the new, never a mixture."""
    temporary = path.with_name(f"tmp-{path.name}")
    write_synced(temporary, data)
    os.replace(temporary, path)
    sync_folder(path.parent)


def delete(path: Path) -> None:
    """Delete a checkpoint; what a kill leaves of it has a temporary name."""
    temporary = path.with_name(f"tmp-deleted-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def clear_temporary(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in folder.glob("tmp-*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


# ---- one checkpoint -------------------------------------------------------------------------------------------------


def path_of(folder: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints, the newest first."""
    return sorted((path for path in folder.glob("step-*") if path.suffix != CORRUPT), reverse=True)


def save(folder: Path, step: int, tensors: Tensors, metadata: dict[str, Any]) -> Path:
    """Write a checkpoint. An OSError leaves the earlier ones as they are."""
    path, temporary = path_of(folder, step), folder / f"tmp-{step:08d}"
    # clones: safetensors takes no two names for one memory, as tied weights have
    data = bytes_from_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    metadata = {**metadata, "step": step, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    metadata["metadata_sha256"] = _digest(metadata)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_synced(temporary / TENSORS, data)
        write_synced(temporary / METADATA, json.dumps(metadata, indent=1).encode())
        sync_folder(temporary)
        if path.exists():
            delete(path)
        os.replace(temporary, path)
        sync_folder(folder)
        set_pointer(folder, "last", path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        complete = list_checkpoints(folder)
        raise OSError(
            error.errno,
            f"Checkpoint: disk full, step {step} needs {len(data) / 1e6:.1f} MB in {folder}. "
            + (f"{complete[0].name} is complete. " if complete else "")
            + "Free some space and run the same command again: it resumes.",
        ) from error
    return path


def _digest(metadata: dict[str, Any]) -> str:
    """SHA-256 of the metadata but for its own checksum."""
    rest = {key: value for key, value in metadata.items() if key != "metadata_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and metadata of one checkpoint. Raises `CorruptCheckpoint`, which says what is wrong with it."""
    try:
        metadata = json.loads((path / METADATA).read_bytes())
        data = (path / TENSORS).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptCheckpoint(f"{path}: {Path(str(error.filename)).name} is missing") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, an endless number, nested too deeply
        raise CorruptCheckpoint(f"{path}: {METADATA} is damaged or truncated ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("metadata_sha256") != _digest(metadata):
        raise CorruptCheckpoint(f"{path}: {METADATA} is damaged: checksum mismatch")
    if len(data) != metadata["bytes"]:
        raise CorruptCheckpoint(f"{path}: {TENSORS} must have {metadata['bytes']} bytes, got {len(data)}")
    if hashlib.sha256(data).hexdigest() != metadata["sha256"]:
        raise CorruptCheckpoint(f"{path}: {TENSORS} is damaged: checksum mismatch")
    try:
        return tensors_from_bytes(data), metadata
    except SafetensorError as error:
        raise CorruptCheckpoint(f"{path}: {TENSORS} cannot be read ({error})") from error


def load_newest(folder: Path, notify: Callable[[str], None]) -> tuple[Tensors, dict[str, Any]] | None:
    """The newest checkpoint that is complete, or None. Corrupt ones are named, and renamed to `….corrupt`."""
    for path in list_checkpoints(folder):
        try:
            found = load(path)
        except CorruptCheckpoint as error:
            aside = path.with_name(path.name + CORRUPT)
            notify(f"Checkpoint: {error}. Renamed to {aside.name}; trying the one before.")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
        else:
            return found
    if corrupt := len(list(folder.glob(f"step-*{CORRUPT}"))):
        notify(f"Checkpoint: all {corrupt} in {folder} are corrupt: training starts from scratch")
    return None


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one."""
    best = read_pointer(folder, "best")
    for path in list_checkpoints(folder)[keep_last:]:
        if path != best:
            delete(path)


# ---- the pointers `last` and `best` ---------------------------------------------------------------------------------


def set_pointer(folder: Path, name: str, path: Path) -> None:
    """Let `last` or `best` name this checkpoint."""
    write_atomic(folder / name, path.name.encode())


def read_pointer(folder: Path, name: str) -> Path | None:
    """The checkpoint that `last` or `best` names, or None. Raises CorruptCheckpoint for anything but such a name."""
    file = folder / name
    if not file.is_file():
        return None
    text = file.read_bytes()
    if not re.fullmatch(rb"step-\d{8}\s*", text):
        raise CorruptCheckpoint(f"{file} is damaged: expected the name of a checkpoint, got {text[:40]!r}. Delete it.")
    return folder / text.decode().strip()


def load_weights(stage: nn.Module, folder: Path, which: str = "best") -> dict[str, Any]:
    """Put the weights of a run's `best` (or `last`) checkpoint into the stage; returns the checkpoint's metadata.

    Where the run had averaged its weights by then, these are the mean. A run without validation has no `best`: then it
    is the last. Raises MissingFileError, CorruptCheckpoint, and InputError where the weights are another model's.
    """
    path = read_pointer(Path(folder), which) or read_pointer(Path(folder), "last")
    if path is None:
        raise MissingFileError(f"Checkpoint: none found in {folder}. Was this stage trained?")
    tensors, metadata = load(path)
    mean = {f"model.{name.removeprefix(PREFIX)}": each for name, each in tensors.items() if name.startswith(PREFIX)}
    restore_model(stage, tensors | mean)
    return metadata


# ---- its content ----------------------------------------------------------------------------------------------------


def pack(stage: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None) -> Tensors:
    """Weights as `model.NAME`, the optimizer's state of each as `optimizer.NAME KEY`, their mean as `average.NAME`."""
    tensors = {f"model.{name}": tensor for name, tensor in stage.state_dict().items()}
    tensors |= average.tensors() if average else {}
    for name, parameter in stage.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name} {key}"] = torch.as_tensor(value)
    return tensors


def restore_model(stage: nn.Module, tensors: Tensors) -> None:
    """Load the weights; names and shapes must be the stage's."""
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    expected = {name: tuple(each.shape) for name, each in stage.state_dict().items()}
    actual = {name: tuple(each.shape) for name, each in weights.items()}
    if wrong := [name for name in sorted(expected | actual) if expected.get(name) != actual.get(name)]:
        first = wrong[0]
        raise InputError(
            f"Checkpoint: these are the weights of another model: {len(wrong)} names or shapes differ. "
            f"The first is {first}: expected {expected.get(first, 'none')} for {type(stage).__name__}, "
            f"got {actual.get(first, 'none')}."
        )
    stage.load_state_dict(weights)


def restore_optimizer(stage: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Load the optimizer's state, parameter by parameter."""
    names = {parameter: name for name, parameter in stage.named_parameters()}
    state = {}
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        prefix = f"optimizer.{names[parameter]} "
        found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if found:
            state[number] = found
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of this process's random generators: Python's, numpy's, torch's, the GPU's."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return state


def restore_random(state: dict[str, Any], device: torch.device) -> None:
    """Continue the random numbers from a `random_state`."""

    def bytes_of(text: str) -> Tensor:
        return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(bytes_of(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(bytes_of(state["cuda"]), device)
