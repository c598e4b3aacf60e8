"""Checkpoints that survive what happens to machines: a kill at any moment, a full disk, a damaged file.

A checkpoint is a folder, `step-00000500`, with the tensors (safetensors) and all else (JSON), their checksum too. It is
written under a temporary name, synced to the disk, and renamed: a name without `tmp-` is a whole checkpoint. Beside the
folders lie two small files, `last` and `best`, which hold the name of one of them.
"""

import errno
import hashlib
import json
import os
import random
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

Tensors = dict[str, Shaped[Tensor, "..."]]
TENSORS, FACTS, BROKEN = "tensors.safetensors", "checkpoint.json", ".broken"


class BrokenCheckpoint(ValueError):
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


def write(path: Path, data: bytes) -> None:
    """All of it, on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """A small file: the old content or the new one, never a mixture."""
    temporary = path.with_name(f"tmp-{path.name}")
    write(temporary, data)
    os.replace(temporary, path)
    sync_folder(path.parent)


def discard(path: Path) -> None:
    """Delete a folder; what a kill leaves of it has a temporary name."""
    gone = path.with_name(f"tmp-gone-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    shutil.rmtree(gone)


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


def steps(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    return sorted((path for path in folder.glob("step-*") if path.suffix != BROKEN), reverse=True)


def save(folder: Path, step: int, tensors: Tensors, facts: dict[str, Any]) -> Path:
    """Write a checkpoint. An OSError leaves the earlier ones as they are."""
    path, temporary = path_of(folder, step), folder / f"tmp-{step:08d}"
    # clones: safetensors takes no two names for one memory, as tied weights have
    data = bytes_from_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    facts = {**facts, "step": step, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary / TENSORS, data)
        write(temporary / FACTS, json.dumps(facts, indent=1).encode())
        sync_folder(temporary)
        if path.exists():
            discard(path)
        os.replace(temporary, path)
        sync_folder(folder)
        point(folder, "last", path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        before = steps(folder)
        raise OSError(
            error.errno,
            f"Checkpoint: no room for the {len(data) / 1e6:.1f} MB of step {step} in {folder}. "
            + (f"{before[0].name} is whole. " if before else "")
            + "Free some space and start the same command again: it goes on from there.",
        ) from error
    return path


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and facts of one checkpoint. Raises `BrokenCheckpoint`, which says what is wrong with it."""
    try:
        facts = json.loads((path / FACTS).read_bytes())
        data = (path / TENSORS).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BrokenCheckpoint(f"{path}: {Path(str(error.filename)).name} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenCheckpoint(f"{path}: {FACTS} is damaged or cut off ({error})") from error
    if not isinstance(facts, dict) or not {"bytes", "sha256", "step"} <= facts.keys():
        raise BrokenCheckpoint(f"{path}: {FACTS} lacks the step or the checksum")
    if len(data) != facts["bytes"]:
        raise BrokenCheckpoint(f"{path}: {TENSORS} has {len(data)} bytes, {facts['bytes']} were written")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise BrokenCheckpoint(f"{path}: {TENSORS} is damaged, its checksum is another one")
    try:
        return tensors_from_bytes(data), facts
    except SafetensorError as error:
        raise BrokenCheckpoint(f"{path}: {TENSORS} cannot be read ({error})") from error


def newest(folder: Path, tell: Callable[[str], None]) -> tuple[Tensors, dict[str, Any]] | None:
    """The newest checkpoint that is whole, or None. Broken ones are named, and renamed to `….broken`."""
    for path in steps(folder):
        try:
            found = load(path)
        except BrokenCheckpoint as error:
            aside = path.with_name(path.name + BROKEN)
            tell(f"Checkpoint: {error}. It is put aside as {aside.name}; the one before is tried.")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
        else:
            return found
    if steps_broken := len(list(folder.glob(f"step-*{BROKEN}"))):
        tell(f"Checkpoint: of {steps_broken} in {folder} none is whole: training starts anew")
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    best = pointed(folder, "best")
    for path in steps(folder)[keep:]:
        if path != best:
            discard(path)


# ---- `last` and `best` ----------------------------------------------------------------------------------------------


def point(folder: Path, name: str, path: Path) -> None:
    """Let `last` or `best` mean this checkpoint."""
    replace(folder / name, path.name.encode())


def pointed(folder: Path, name: str) -> Path | None:
    """The checkpoint that `last` or `best` means."""
    file = folder / name
    return folder / file.read_text().strip() if file.is_file() else None


def load_weights(stage: nn.Module, folder: Path, which: str = "best") -> int:
    """Put the weights of a run's `best` (or `last`) checkpoint into the stage; gives the step they are from.

    A run without validation has no `best`: then it is the last. Raises FileNotFoundError, BrokenCheckpoint, and
    ValueError where the weights are another model's.
    """
    path = pointed(Path(folder), which) or pointed(Path(folder), "last")
    if path is None:
        raise FileNotFoundError(f"Checkpoint: there is none in {folder}. Was this stage trained?")
    tensors, facts = load(path)
    restore_model(stage, tensors)
    return int(facts["step"])


# ---- what lies in it ------------------------------------------------------------------------------------------------


def pack(stage: nn.Module, optimiser: torch.optim.Optimizer) -> Tensors:
    """Weights as `model.NAME`, the optimiser's memory of each as `optimiser.NAME KEY`."""
    tensors = {f"model.{name}": tensor for name, tensor in stage.state_dict().items()}
    for name, parameter in stage.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{name} {key}"] = torch.as_tensor(value)
    return tensors


def restore_model(stage: nn.Module, tensors: Tensors) -> None:
    """The weights; names and shapes must be the stage's own."""
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    due = {name: tuple(each.shape) for name, each in stage.state_dict().items()}
    came = {name: tuple(each.shape) for name, each in weights.items()}
    if wrong := [name for name in sorted(due | came) if due.get(name) != came.get(name)]:
        first = wrong[0]
        raise ValueError(
            f"Checkpoint: it holds the weights of another model: {len(wrong)} names or sizes differ. The first is "
            f"{first}: {due.get(first, 'absent')} in a {type(stage).__name__}, {came.get(first, 'absent')} in the file."
        )
    stage.load_state_dict(weights)


def restore_optimiser(stage: nn.Module, optimiser: torch.optim.Optimizer, tensors: Tensors) -> None:
    """The optimiser's memory, parameter by parameter."""
    names = {parameter: name for name, parameter in stage.named_parameters()}
    state = {}
    for number, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
        start = f"optimiser.{names[parameter]} "
        found = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        if found:
            state[number] = found
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def random_state(device: torch.device) -> dict[str, Any]:
    """Where the random generators of this process stand: Python's, numpy's, torch's, the GPU's."""
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
    """Set them."""

    def bytes_of(text: str) -> Tensor:
        return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(bytes_of(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(bytes_of(state["cuda"]), device)
