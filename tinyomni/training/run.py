"""One run in its folder: where its weights begin, how it resumes, what it saves.

folder ─ resume → step, weights, optimizer, random numbers ─ train ─ save → checkpoints ─ finish → result.json
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tinyomni.errors import InputError
from tinyomni.io import weights
from tinyomni.training import checkpoint
from tinyomni.training.average import WeightAverage
from tinyomni.training.distributed import ProcessGroup
from tinyomni.training.settings import FREE_ON_RESUME, SHIPPED, Settings
from tinyomni.training.stage import Stage


@dataclass
class Result:
    """What a run did; it grows with the run and is part of every checkpoint, at the end in `result.json`."""

    stage: str = ""
    steps: int = 0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0  # bad batches
    skipped_in_a_row: int = 0
    overflows: int = 0  # fp16: steps the scaler gave up
    validation: dict[str, float] = field(default_factory=dict)  # the last
    best: float | None = None  # lowest validation loss
    best_step: int | None = None
    not_improved: int = 0  # validations since then
    peak_memory: int = 0  # bytes: of the GPU, else of the process
    device: str = ""
    precision: str = ""
    processes: int = 1
    initialized_from: dict[str, Any] | None = None  # "run": its folder, or "shipped"; and what it had cost, see COSTS


COSTS = ("steps", "seconds", "samples", "tokens", "skipped")
"""What adds up where a run begins with the weights of another."""


def total_costs(result: Mapping[str, Any]) -> dict[str, Any]:
    """COSTS of a result (as a dict), together with those of the runs before it."""
    before = result.get("initialized_from") or dict.fromkeys(COSTS, 0)
    return {name: result[name] + before[name] for name in COSTS}


@dataclass
class Run:
    """The state of a run in its folder."""

    folder: Path
    stage: Stage
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: Settings
    group: ProcessGroup
    samples: int
    data: str | None = None  # a digest of it
    result: Result = field(default_factory=Result)

    def __post_init__(self) -> None:
        self.average = WeightAverage(self.stage)

    def must_match(self) -> dict[str, Any]:
        """What decides what is learned: a run cannot resume with another value of one of these."""
        settings = dataclasses.asdict(self.settings)
        fixed = {name: value for name, value in settings.items() if name not in FREE_ON_RESUME}
        data = {"data": self.data} if self.data else {}
        return {"stage": self.stage.name, "samples": self.samples, **data, **fixed}

    def resume(self) -> Result:
        """Restore the newest complete checkpoint, if there is one. The main process reads it for all."""
        found = self.group.broadcast(self.find() if self.group.is_main else None)
        if found is None:
            self.result = Result(stage=self.stage.name)
            if self.settings.init_from is not None:
                self.result.initialized_from = initialize(self.stage, self.settings.init_from)
            return self.result
        tensors, metadata = found
        defaults = {each.name: each.default for each in dataclasses.fields(self.settings)}  # of settings that are newer
        now, then = self.must_match(), {**defaults, **metadata["must_match"]}
        if metadata["result"]["steps"] >= then["steps"] and now["steps"] > then["steps"]:
            self.notify(f"{self.stage.name}: a finished run of {then['steps']} steps is lengthened to {now['steps']}")
            # drawn data are as long as the run: there are more of them now, and those before are the same
            grown = {"samples": now["samples"]} if now["samples"] > then["samples"] else {}
            first = now["cycle"] == then["steps"] and then["cycle"] in (None, then["steps"])  # it was a first cosine
            after = {name: now[name] for name in ("cycle", "restarts", "restart_lr")} if first else {}
            then = {**then, "steps": now["steps"], **grown, **after}
        if other := [f"{name} was {then.get(name)}, got {now[name]}" for name in now if then.get(name) != now[name]]:
            raise InputError(
                f"Training: {self.folder} holds a run with other settings: {', '.join(other)}. "
                "Resume it with the old ones, or start from scratch in another folder."
            )
        checkpoint.restore_model(self.stage, tensors)
        checkpoint.restore_optimizer(self.stage, self.optimizer, tensors)
        self.average.resume(tensors)
        if metadata["scaler"]:
            self.scaler.load_state_dict(metadata["scaler"])
        if self.group.rank < len(metadata["random"]):
            checkpoint.restore_random(metadata["random"][self.group.rank], self.group.device)
        self.result = Result(**metadata["result"])
        self.notify(f"{self.stage.name}: resuming from step {self.result.steps} of {self.settings.steps}")
        return self.result

    def find(self) -> Any:
        """The newest complete checkpoint. `last` is set to it, as a run may have been killed between them, and
        `best` to what that one calls the best, if it is still there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.clear_temporary(self.folder)
        found = checkpoint.load_newest(self.folder, self.notify)
        if found:
            checkpoint.set_pointer(self.folder, "last", checkpoint.path_of(self.folder, found[1]["step"]))
        best = found[1]["result"]["best_step"] if found else None
        if best is not None and checkpoint.path_of(self.folder, best).exists():
            checkpoint.set_pointer(self.folder, "best", checkpoint.path_of(self.folder, best))
        else:
            (self.folder / "best").unlink(missing_ok=True)
            if found:
                found[1]["result"].update(best=None, best_step=None)
        return found

    def notify(self, text: str) -> None:
        """Print a sentence on stderr, from the main process only."""
        if self.group.is_main:
            tqdm.write(text, file=sys.stderr)

    def save(self, best: bool) -> None:
        """Write a checkpoint of this moment, from the main process."""
        states = self.group.gather(checkpoint.random_state(self.group.device))
        if not self.group.is_main:
            return
        self.result.peak_memory = max(self.result.peak_memory, peak_memory(self.group.device))
        metadata = {
            "must_match": self.must_match(),
            "settings": dataclasses.asdict(self.settings),
            "result": dataclasses.asdict(self.result),
            "scaler": self.scaler.state_dict(),
            "random": states,
        }
        tensors = checkpoint.pack(self.stage, self.optimizer, self.average)
        path = checkpoint.save(self.folder, self.result.steps, tensors, metadata)
        if best:
            checkpoint.set_pointer(self.folder, "best", path)
        checkpoint.prune(self.folder, self.settings.keep_last)

    def finish(self) -> None:
        """Write `result.json`; every process waits until it is there."""
        if self.group.is_main:
            data = {**dataclasses.asdict(self.result), "settings": dataclasses.asdict(self.settings)}
            checkpoint.write_atomic(self.folder / "result.json", json.dumps(data, indent=1).encode())
        self.group.barrier()


# ---- where weights begin --------------------------------------------------------------------------------------------


@torch.no_grad()
def initialize(stage: Stage, source: str) -> dict[str, Any]:
    """Give trainable parameters the weights of a run's best checkpoint, or the shipped ones; returns where from.

    Frozen parameters keep their values: those may be better by now than what the source was trained with.
    """
    frozen = [(each, each.clone()) for each in stage.parameters() if not each.requires_grad]
    result = load_shipped(stage) if source == SHIPPED else checkpoint.load_weights(stage, Path(source))["result"]
    for parameter, kept in frozen:
        parameter.copy_(kept)
    return {"run": source, **total_costs(result)}


def load_shipped(stage: Stage) -> dict[str, Any]:
    """Put the weights that come with the package into the stage; returns the result of the run that trained them.

    Raises InputError for a stage that their file does not hold.
    """
    if not stage.weights_file:
        raise InputError(
            f"Training: init_from={SHIPPED} is not possible for the stage {stage.name}: "
            "the weights file of the whole model does not hold it. Train it from scratch."
        )
    tensors, about = weights.read()
    checkpoint.restore_model(stage, {f"model.{name}": each for name, each in shipped_state(stage, tensors).items()})
    result: dict[str, Any] = json.loads(about["made"])["stages"][stage.name]
    return result


def shipped_state(stage: Stage, tensors: checkpoint.Tensors) -> checkpoint.Tensors:
    """The stage's `state_dict` with all that a weights file of `Omni` holds of it."""
    state: dict[str, Tensor] = stage.state_dict()
    for in_file, in_stage in stage.weights_file:
        for name, tensor in tensors.items():
            if name.startswith(in_file):
                own = in_stage + name.removeprefix(in_file)
                state[own] = weights.pad_table(name, tensor, state[own])
    return state


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use: of the GPU, else of this process since it started (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
