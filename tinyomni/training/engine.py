"""The training engine: one loop that every stage shares.

    for each step:  batch → loss → check → backward → unscale → check gradients → clip → optimiser → now and then:
                    validate, write a checkpoint

What is trained is a `Stage`: a module whose forward gives a loss. How it is trained, the `Settings` say. `fit` does it,
and goes on by itself where an earlier run in the same folder ended. The folder gets `log.jsonl` (a line for each step),
the checkpoints, and `result.json`.
"""

import dataclasses
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tinyomni.layers import DecoderBlock, EncoderBlock
from tinyomni.stability import check_gradient_explosion, clip_gradients, finite_checks, validate_loss
from tinyomni.tracing.checks import Finder
from tinyomni.training import checkpoint, distributed, precision
from tinyomni.training.curves import Log
from tinyomni.training.distributed import Batches, Share, World, each_a_share, size, to_device

# ---- what is trained, and how ---------------------------------------------------------------------------------------


class Stage(nn.Module):
    """Something that can be trained. Only parameters with `requires_grad` are; the rest is frozen.

    `fit` calls `stage.train()` and `stage.eval()`. A stage with frozen modules overrides `train(mode)` to leave them in
    eval mode:

        def train(self, mode: bool = True):
            super().train(mode)
            self.vision.eval()
            return self
    """

    name = "stage"

    def forward(self, batch: Any) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """The *mean* loss over the batch's targets, and figures (numbers) to log."""
        raise NotImplementedError

    def weight(self, batch: Any) -> float:
        """How many targets the mean is over; asked while the batch is still on the CPU. By default its samples.

        Without a target it is 0, and the loss has to be 0, not the NaN of an empty mean.
        """
        return size(batch)

    def tokens(self, batch: Any) -> int:
        """What is counted for tokens/s."""
        return int(self.weight(batch))

    def validate(self) -> dict[str, float]:
        """Figures on held-out data; called in eval mode without gradients. Of `loss`, lower is better."""
        return {}


@dataclass(frozen=True)
class Settings:
    """How to train. Batches are global: `batch_size` samples over all processes and micro-batches."""

    steps: int
    batch_size: int = 32
    accumulate: int = 1  # micro-batches to a batch, each with its own backward pass: less memory, the same result
    lr: float = 1e-3
    floor: float = 0.05  # where the cosine ends, as a share of lr
    warmup: int = 50
    weight_decay: float = 0.1  # on matrices only
    optimiser: str = "adamw"  # muon: for the matrices inside the blocks
    clip: float = 1.0
    explosion: float = 100.0  # a batch whose gradient is longer is skipped
    max_skips: int = 10  # one after another
    seed: int = 0
    precision: str = "auto"  # fp32, bf16, fp16: see precision.py
    device: str = "auto"
    compile: bool = False
    checkpoint_freq: int = 500
    keep: int = 2  # checkpoints beside the best one
    validate_freq: int = 250
    patience: int | None = None  # stop after so many validations without a better one
    workers: int = 0
    start: str | None = None  # a run of the same stage: begin with its best weights, but for what is frozen

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_freq", "keep", "validate_freq", "max_skips"):
            if getattr(self, name) < 1:
                raise ValueError(f"Settings: {name} should be 1 or more, {getattr(self, name)} came")
        if self.optimiser not in ("adamw", "muon"):
            raise ValueError(f"Settings: optimiser should be adamw or muon, {self.optimiser!r} came")
        if not (self.lr > 0 and 0 <= self.floor <= 1 and self.warmup >= 0 and self.clip > 0 and self.workers >= 0):
            raise ValueError(
                "Settings: lr > 0, 0 ≤ floor ≤ 1, warmup ≥ 0, clip > 0, workers ≥ 0 are expected; "
                f"{self.lr}, {self.floor}, {self.warmup}, {self.clip}, {self.workers} came"
            )


MOMENTUM = 0.95  # of Muon's running mean
# its steps have a length of their own, however flat the ground: only a low rate lets them come to rest
MUON: dict[str, Any] = {"optimiser": "muon", "floor": 0.01}

# a resumed run may have other values of these; all the rest decides what is learned
FREE = {
    *("accumulate", "max_skips", "device", "compile", "checkpoint_freq"),
    *("keep", "validate_freq", "patience", "workers"),
}


@dataclass
class Result:
    """What a run did; it grows with the run and lies in every checkpoint, at the end in `result.json`."""

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
    not_better: int = 0  # validations since then
    peak_memory: int = 0  # bytes: of the GPU, else of the process
    device: str = ""
    precision: str = ""
    processes: int = 1


class SkipBatch(RuntimeError):
    """This batch is bad: go on to the next."""


class Overflow(SkipBatch):
    """The fp16 scaler's factor was too large; it is smaller now."""


# ---- the optimiser --------------------------------------------------------------------------------------------------


def optimiser_for(stage: Stage, settings: Settings, policy: precision.Policy) -> torch.optim.AdamW:
    """The one that the settings ask for."""
    if settings.optimiser == "muon":
        return Muon(stage, settings, torch.bfloat16 if policy.precision == "bf16" else torch.float32)
    return adamw(stage, settings)


def adamw(stage: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: norms and biases have few numbers, each with a meaning of its own.

    Loshchilov & Hutter (2019), arXiv:1711.05101.
    """
    learned = [p for p in stage.parameters() if p.requires_grad]
    if not learned:
        raise ValueError("Training: no parameter has requires_grad. Is everything frozen?")
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(0.9, 0.95))


class Muon(torch.optim.AdamW):
    """Muon for the matrices inside the blocks, AdamW for all else.

    A gradient's matrix is mostly a few strong directions; AdamW follows them, and what is rare is learned late. Muon
    makes all directions of its running mean equally strong, and so learns what is rare as fast as what is common.
    Jordan et al., Muon (2024), kellerjordan.github.io/posts/muon; Liu et al. (2025), arXiv:2502.16982, for the size of
    a step: as long as AdamW's would be, so that one learning rate serves both.

    torch has one too (`torch.optim.Muon`), which always computes in bf16: very slow on a CPU that cannot multiply it.
    """

    def __init__(self, stage: nn.Module, settings: Settings, dtype: torch.dtype = torch.float32) -> None:
        blocks = [module for module in stage.modules() if isinstance(module, DecoderBlock | EncoderBlock)]
        inside = {p for block in blocks for p in block.parameters() if p.ndim == 2 and p.requires_grad}
        if not inside:
            raise ValueError("Training: Muon is for matrices inside transformer blocks; none learns here: use adamw")
        groups = adamw(stage, settings).param_groups
        others = [{**group, "params": [p for p in group["params"] if p not in inside]} for group in groups]
        matrices = [p for group in groups for p in group["params"] if p in inside]
        super().__init__([group for group in others if group["params"]], lr=settings.lr)
        self.add_param_group({"params": matrices, "weight_decay": settings.weight_decay, "muon": True})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group.get("muon")]
            super().step()
        finally:
            self.param_groups = groups
        for group in (group for group in groups if group.get("muon")):
            self.step_matrices(group)

    def step_matrices(self, group: dict[str, Any]) -> None:
        """Those of one size together; of several processes, each sees to a share of them."""
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for matrix in group["params"]:
            if matrix.grad is not None:
                memory = self.state[matrix]
                if not memory:
                    memory["mean"] = torch.zeros_like(matrix)
                    memory["step"] = torch.tensor(0.0)  # AdamW looks for it when its memory is loaded
                mean = memory["mean"].lerp_(matrix.grad, 1 - MOMENTUM)
                ahead = matrix.grad.lerp(mean, MOMENTUM)  # Nesterov
                alike.setdefault(matrix.shape, []).append((matrix, ahead))
        for shape, found in alike.items():
            even = each_a_share(orthogonal, torch.stack([ahead for _, ahead in found]).to(self.dtype))
            for (matrix, _), direction in zip(found, even.float(), strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


def orthogonal(matrices: Float[Tensor, "batch rows columns"], rounds: int = 5) -> Float[Tensor, "batch rows columns"]:
    """The same directions, all about equally strong: singular values become 0.7 to 1.2, where they were not near zero.

    An odd polynomial of a matrix does to its singular values what it does to a number, with no decomposition. This one,
    3.4445 s - 4.775 s³ + 2.0315 s⁵, brings all of 0…1 toward 1 in five rounds (Newton-Schulz; numbers of Jordan, 2024).
    """
    x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


def learning_rate(step: int, settings: Settings) -> float:
    """Up in a straight line for `warmup` steps, then down along a cosine to the floor. `step` counts from 0."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    way = min(1.0, (step - settings.warmup) / max(1, settings.steps - 1 - settings.warmup))
    return settings.lr * (settings.floor + (1 - settings.floor) * (1 + math.cos(math.pi * way)) / 2)


# ---- one step -------------------------------------------------------------------------------------------------------


@dataclass
class Trainer:
    """The things a step needs."""

    stage: Stage
    model: nn.Module  # the stage, wrapped where several processes train it
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    policy: precision.Policy
    world: World
    settings: Settings

    def step(self, window: Sequence[Any]) -> dict[str, Any]:
        """One update from the micro-batches of a window. Raises `SkipBatch` on all processes or on none.

        The window equals one large batch: each micro-batch's mean loss counts by its share of all targets. (A loss that
        compares the samples of a batch with each other sees fewer of them in a micro-batch, and is not the same.)
        """
        weights = [self.stage.weight(batch) for batch in window]
        targets, tokens = self.world.total(sum(weights), sum(self.stage.tokens(batch) for batch in window))
        if targets <= 0:
            raise SkipBatch("There is not one target in this batch.")
        loss, figures = 0.0, Figures()
        for number, (batch, weight) in enumerate(zip(window, weights, strict=True), 1):
            share = weight / targets
            with self.world.alone(self.model, number < len(window)):
                part, more = self.forward(batch)
                # backward averages over processes; the share is one of a sum
                self.scaler.scale(part * (share * self.world.size)).backward()
            loss += float(part.detach()) * share
            figures.add(more, weight)
        norm = self.check_gradients()
        clip_gradients(self.stage, self.settings.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        return {"loss": self.world.total(loss)[0], "norm": norm, "tokens": int(tokens), "figures": figures.means()}

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The loss, if it is sound on every process: before backward, in which they wait for each other."""
        # the models' own NaN checks would stop one process in the middle; the loss shows a NaN as well
        with self.policy.autocast(), finite_checks(False):
            loss, figures = self.model(to_device(batch, self.world.device))
        if not isinstance(loss, Tensor) or loss.ndim:
            raise TypeError(f"Stage {self.stage.name}: forward should give (mean loss, figures); the loss is {loss!r}")
        problem = ""
        try:
            validate_loss(loss)
        except RuntimeError as error:
            problem = str(error)
        if self.world.any(bool(problem)):
            raise SkipBatch(problem or "The loss of another process is bad.")
        return loss, figures

    def check_gradients(self) -> float:
        """Unscale, then look for an explosion, before clipping would hide it."""
        self.scaler.unscale_(self.optimiser)
        norm, exploded = check_gradient_explosion(self.stage, self.settings.explosion)
        if not self.world.any(exploded):
            return norm
        # of fp16 this is expected, but not once the factor is as low as 1: then the gradient itself is infinite
        overflow = self.scaler.is_enabled() and not math.isfinite(norm) and self.scaler.get_scale() > 1
        self.scaler.update()
        if overflow:
            raise Overflow(f"fp16 overflow; the loss is scaled by {self.scaler.get_scale():g} from now on.")
        raise SkipBatch(f"The gradient's norm is {norm:g}, more than {self.settings.explosion:g}.")


class Figures:
    """Weighted means of what micro-batches report. Each process has its own; those of rank 0 are logged."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, figures: Mapping[str, Any], weight: float) -> None:
        """One micro-batch."""
        for name, value in figures.items():
            total = self.sums.setdefault(name, [0.0, 0.0])
            total[0] += float(value) * weight
            total[1] += weight

    def means(self) -> dict[str, float]:
        """Over the window."""
        return {name: total / weight for name, (total, weight) in self.sums.items() if weight}


# ---- the loop -------------------------------------------------------------------------------------------------------


def fit(
    stage: Stage,
    train: Dataset,
    settings: Settings,
    folder: Path,
    *,
    collate: Callable[[list[Any]], Any],
    lengths: Sequence[float] | None = None,
    in_order: bool = False,
) -> Result:
    """Train `stage`, or go on with it from the newest whole checkpoint in `folder`; it ends with the last weights.

    `checkpoint.load_weights(stage, folder)` gives the best ones. What is random in the data should come from a sample's
    index: then a resumed run reads what an uninterrupted one would have read. `lengths` and `in_order` are those of
    `Batches`.
    """
    folder, world = Path(folder), distributed.start(settings.device)
    policy = precision.policy(world.device, settings.precision)
    stage.to(world.device)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    if settings.compile:
        compile_stage(stage, world.device)
    optimiser, scaler = optimiser_for(stage, settings, policy), policy.scaler()
    seed_everything(settings.seed + world.rank)  # every process drops out other units
    run = Run(folder, stage, optimiser, scaler, settings, world, samples=len(train))  # type: ignore[arg-type]
    result = run.resume()
    result.device, result.precision, result.processes = str(world.device), policy.precision, world.size
    batches = Batches(run.samples, settings.batch_size, settings.seed, lengths, in_order)
    loader = iter(
        DataLoader(
            train,
            batch_sampler=Share(batches, result.steps, settings.steps, settings.accumulate, world),
            collate_fn=collate,
            num_workers=settings.workers,
            pin_memory=world.device.type == "cuda",
            generator=torch.Generator().manual_seed(settings.seed),  # its own, so that it takes no number of ours
        )
    )
    trainer = Trainer(stage, world.wrap(stage), optimiser, scaler, policy, world, settings)
    clock, resumed_at, old_tokens = time.perf_counter(), result.seconds, result.tokens
    stage.train()
    with Log(folder, stage.name, result.steps, settings.steps, world.first) as log:
        while not done(result, settings):
            rate = learning_rate(result.steps, settings)
            for group in optimiser.param_groups:
                group["lr"] = rate
            window = [next(loader) for _ in range(settings.accumulate)]
            try:
                figures = trainer.step(window)
                result.skipped_in_a_row = 0
            except SkipBatch as skip:
                optimiser.zero_grad()
                count(skip, result)
                figures = {"skipped": str(skip), "batch": batches[result.steps]}
            result.steps += 1
            result.samples += settings.batch_size
            result.tokens += figures.get("tokens", 0)
            passed = time.perf_counter() - clock
            result.seconds = resumed_at + passed
            log.write(step=result.steps, seconds=round(result.seconds, 3), lr=rate, **figures)
            speed = (result.tokens - old_tokens) / passed
            log.progress(f"loss {figures.get('loss', math.nan):.4f}, lr {rate:.1e}, {speed:,.0f} tokens/s")

            if result.skipped_in_a_row >= settings.max_skips:
                raise RuntimeError(
                    f"Training: {result.skipped_in_a_row} batches in a row were bad, up to step {result.steps}. The "
                    f"last: {figures['skipped']} {folder / 'log.jsonl'} names their samples. Is there something wrong "
                    f"with them, or is the learning rate of {settings.lr:g} too high?"
                )
            better = False
            if result.steps % settings.validate_freq == 0 or result.steps == settings.steps:
                result.validation = validate(stage, policy, world)
                log.write(step=result.steps, validation=result.validation)
                better = judge(result)
            if better or result.steps % settings.checkpoint_freq == 0 or done(result, settings):
                run.save(best=better)
    run.finish()
    return result


def done(result: Result, settings: Settings) -> bool:
    """All steps are taken, or validation has not become better for too long."""
    return result.steps >= settings.steps or (settings.patience is not None and result.not_better >= settings.patience)


def count(skip: SkipBatch, result: Result) -> None:
    """The scaler's own overflows, of which fp16 starts with many, are counted apart."""
    if isinstance(skip, Overflow):
        result.overflows += 1
    else:
        result.skipped += 1
        result.skipped_in_a_row += 1


def validate(stage: Stage, policy: precision.Policy, world: World) -> dict[str, float]:
    """The first process validates, the others get its figures. Random numbers drawn here do not change the training."""
    figures: dict[str, float] = {}
    if world.first:
        state = checkpoint.random_state(world.device)
        stage.eval()
        try:
            with torch.no_grad(), policy.autocast():
                figures = {name: float(value) for name, value in stage.validate().items()}
        finally:
            stage.train()
            checkpoint.restore_random(state, world.device)
    return world.from_first(figures)


def judge(result: Result) -> bool:
    """Whether this validation is the best so far. NaN is never better."""
    loss = result.validation.get("loss")
    if loss is None:
        return False
    if math.isfinite(loss) and (result.best is None or loss < result.best):
        result.best, result.best_step, result.not_better = loss, result.steps, 0
        return True
    result.not_better += 1
    return False


def seed_everything(seed: int) -> None:
    """Python, numpy, torch; of the GPU too."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def compile_stage(stage: nn.Module, device: torch.device) -> None:
    """`torch.compile`, where it can work."""
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        raise ValueError("Training: compile and shape checks do not go together; set TINYOMNI_SHAPES=0 to compile")
    names = [os.environ.get("CXX", ""), *(("cc", "gcc") if device.type == "cuda" else ("c++", "g++", "clang++", "cl"))]
    if not any(shutil.which(name) for name in names if name):
        raise ValueError("Training: compile needs a C++ compiler, and there is none (g++ or clang). Train without it.")
    stage.compile()


# ---- to stop and to go on -------------------------------------------------------------------------------------------


@dataclass
class Run:
    """The state of a run in its folder."""

    folder: Path
    stage: Stage
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: Settings
    world: World
    samples: int
    result: Result = field(default_factory=Result)

    def must_match(self) -> dict[str, Any]:
        """What decides what is learned: a run cannot go on with another value of one of these."""
        settings = dataclasses.asdict(self.settings)
        fixed = {name: value for name, value in settings.items() if name not in FREE}
        return {"stage": self.stage.name, "samples": self.samples, **fixed}

    def resume(self) -> Result:
        """Set everything to where the newest whole checkpoint was. The first process reads, the others get it sent."""
        found = self.world.from_first(self.find() if self.world.first else None)
        if found is None:
            if self.settings.start is not None:
                start_from(self.stage, Path(self.settings.start))
            self.result = Result(stage=self.stage.name)
            return self.result
        tensors, facts = found
        now, then = self.must_match(), facts["must_match"]
        other = [f"{name} {then.get(name)} (now {now[name]})" for name in now if then.get(name) != now[name]]
        if other:
            raise ValueError(
                f"Training: {self.folder} holds a run with other settings: {', '.join(other)}. Go on with the old "
                "ones, or start anew in another folder."
            )
        checkpoint.restore_model(self.stage, tensors)
        checkpoint.restore_optimiser(self.stage, self.optimiser, tensors)
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        if self.world.rank < len(facts["random"]):
            checkpoint.restore_random(facts["random"][self.world.rank], self.world.device)
        self.result = Result(**facts["result"])
        self.tell(f"{self.stage.name}: goes on from step {self.result.steps} of {self.settings.steps}")
        return self.result

    def find(self) -> Any:
        """The newest whole checkpoint. `best` is set to what that one calls the best, if it is still there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.clear_temporary(self.folder)
        found = checkpoint.newest(self.folder, self.tell)
        best = found[1]["result"]["best_step"] if found else None
        if best is not None and checkpoint.path_of(self.folder, best).exists():
            checkpoint.point(self.folder, "best", checkpoint.path_of(self.folder, best))
        else:
            (self.folder / "best").unlink(missing_ok=True)
            if found:
                found[1]["result"].update(best=None, best_step=None)
        return found

    def tell(self, text: str) -> None:
        """A sentence on stderr."""
        if self.world.first:
            tqdm.write(text, file=sys.stderr)

    def save(self, best: bool) -> None:
        """A checkpoint of this moment, by the first process."""
        states = self.world.gather(checkpoint.random_state(self.world.device))
        if not self.world.first:
            return
        self.result.peak_memory = max(self.result.peak_memory, peak_memory(self.world.device))
        facts = {
            "must_match": self.must_match(),
            "settings": dataclasses.asdict(self.settings),
            "result": dataclasses.asdict(self.result),
            "scaler": self.scaler.state_dict(),
            "random": states,
        }
        tensors = checkpoint.pack(self.stage, self.optimiser)
        path = checkpoint.save(self.folder, self.result.steps, tensors, facts)
        if best:
            checkpoint.point(self.folder, "best", path)
        checkpoint.prune(self.folder, self.settings.keep)

    def finish(self) -> None:
        """Write `result.json`, and wait until it is there."""
        if self.world.first:
            data = {**dataclasses.asdict(self.result), "settings": dataclasses.asdict(self.settings)}
            checkpoint.replace(self.folder / "result.json", json.dumps(data, indent=1).encode())
        self.world.any(False)


@torch.no_grad()
def start_from(stage: Stage, run: Path) -> None:
    """The best weights of another run, for what learns. What is frozen keeps its own: it may be better by now."""
    frozen = [(each, each.clone()) for each in stage.parameters() if not each.requires_grad]
    checkpoint.load_weights(stage, run)
    for each, own in frozen:
        each.copy_(own)


def tell(world: World, text: str) -> None:
    """A sentence on stderr, from the first process."""
    if world.first:
        tqdm.write(text, file=sys.stderr)


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use: of the GPU, else of this process since it started (0 where nobody counts)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
