"""The training loop that every stage shares.

    for each step:  batch → loss → check → backward → unscale → check gradients → clip → optimizer step
                    → now and then: validate, write a checkpoint

What is trained is a `Stage`, how is in the `Settings`. `fit` resumes automatically where an earlier run in the same
folder ended. The folder gets `log.jsonl` (a line for each step), the checkpoints, and `result.json`.
"""

import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tinyomni.errors import InputError
from tinyomni.stability import check_gradient_explosion, clip_gradients, finite_checks, validate_loss
from tinyomni.tracing.checks import Finder
from tinyomni.training import checkpoint, distributed, guard, precision
from tinyomni.training.distributed import Batches, MicroBatchSampler, ProcessGroup, to_device
from tinyomni.training.log import Log
from tinyomni.training.optim import averaged_at, build_optimizer, learning_rate
from tinyomni.training.run import Result, Run
from tinyomni.training.settings import Settings
from tinyomni.training.stage import Stage


class TrainingDiverged(InputError, RuntimeError):
    """Too many bad batches in a row: the data or the settings do not work, and going on would not help."""


class SkipBatch(RuntimeError):
    """This batch is bad: continue with the next."""


class Overflow(SkipBatch):
    """The fp16 scaler's factor was too large; it is smaller now."""


# ---- one step -------------------------------------------------------------------------------------------------------


@dataclass
class Trainer:
    """What a step needs."""

    stage: Stage
    model: nn.Module  # the stage, wrapped where several processes train it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    policy: precision.Policy
    group: ProcessGroup
    settings: Settings

    def step(self, window: Sequence[Any]) -> dict[str, Any]:
        """One update from the micro-batches of a window. Raises `SkipBatch` on all processes or on none.

        The window equals one large batch: each micro-batch's mean loss counts by its share of all targets. (A loss that
        compares the samples of a batch with each other sees fewer of them in a micro-batch, and is not the same.)
        """
        weights = [self.stage.weight(batch) for batch in window]
        targets, tokens = self.group.sum(sum(weights), sum(self.stage.tokens(batch) for batch in window))
        if targets <= 0:
            raise SkipBatch("This batch has no target.")
        loss, averager = 0.0, MetricAverager()
        for number, (batch, weight) in enumerate(zip(window, weights, strict=True), 1):
            share = weight / targets
            with self.group.no_sync(self.model, skip=number < len(window)):
                mean_loss, metrics = self.forward(batch)
                # backward averages over processes; the share is one of a sum
                self.scaler.scale(mean_loss * (share * self.group.size)).backward()
            loss += float(mean_loss.detach()) * share
            averager.add(metrics, weight)
        grad_norm = self.check_gradients()
        clip_gradients(self.stage, self.settings.max_grad_norm, grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return {
            "loss": self.group.sum(loss)[0],
            "grad_norm": grad_norm,
            "tokens": int(tokens),
            "metrics": averager.means(),
        }

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The loss, checked on every process before backward, in which they wait for each other."""
        # the models' own NaN checks would stop one process in the middle; the loss shows a NaN as well
        with self.policy.autocast(), finite_checks(False):
            loss, metrics = self.model(to_device(batch, self.group.device))
        if not isinstance(loss, Tensor) or loss.ndim:
            raise TypeError(
                f"Stage {self.stage.name}: forward must return (mean loss, metrics) with a scalar loss, got {loss!r}"
            )
        problem = ""
        try:
            validate_loss(loss)
        except RuntimeError as error:
            problem = str(error)
        if self.group.any(bool(problem)):
            raise SkipBatch(problem or "The loss of another process is bad.")
        return loss, metrics

    def check_gradients(self) -> float:
        """Unscale, then look for an explosion, before clipping would hide it."""
        self.scaler.unscale_(self.optimizer)
        grad_norm, exploded = check_gradient_explosion(self.stage, self.settings.skip_grad_norm)
        if not self.group.any(exploded):
            return grad_norm
        # of fp16 this is expected, but not once the factor is as low as 1: then the gradient itself is infinite
        overflow = self.scaler.is_enabled() and not math.isfinite(grad_norm) and self.scaler.get_scale() > 1
        self.scaler.update()
        if overflow:
            raise Overflow(f"fp16 overflow; the loss is scaled by {self.scaler.get_scale():g} from now on.")
        raise SkipBatch(f"The gradient norm is {grad_norm:g}, above skip_grad_norm={self.settings.skip_grad_norm:g}.")


class MetricAverager:
    """Weighted means of the metrics of micro-batches. Each process has its own; those of rank 0 are logged."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, Any], weight: float) -> None:
        """Add those of one micro-batch."""
        for name, value in metrics.items():
            total = self.sums.setdefault(name, [0.0, 0.0])
            total[0] += float(value) * weight
            total[1] += weight

    def means(self) -> dict[str, float]:
        """The means over all that was added."""
        return {name: total / weight for name, (total, weight) in self.sums.items() if weight}


# ---- all steps ------------------------------------------------------------------------------------------------------


def fit(
    stage: Stage,
    train: Dataset,
    settings: Settings,
    folder: Path,
    *,
    collate: Callable[[list[Any]], Any],
    lengths: Sequence[float] | None = None,
    in_order: bool = False,
    data: str | None = None,
) -> Result:
    """Train `stage`, resuming from the newest complete checkpoint in `folder`; it ends with the last weights.

    `checkpoint.load_weights(stage, folder)` gives the best ones. What is random in the data should follow from a
    sample's index: then a resumed run reads what an uninterrupted one would have read. `lengths` and `in_order` are
    those of `Batches`; `data` is a digest of the data, which has to be the same when the run resumes. SIGINT or SIGTERM
    ends it after a step, with a checkpoint. Raises InputError if another process trains in the folder.
    """
    folder, group = Path(folder), distributed.start(settings.device)
    with guard.locked(folder if group.is_main else None), guard.Interrupts(active=group.size == 1) as interrupts:
        return _fit(stage, train, settings, folder, group, interrupts, collate, lengths, in_order, data)


def _fit(
    stage: Stage,
    train: Dataset,
    settings: Settings,
    folder: Path,
    group: ProcessGroup,
    interrupts: guard.Interrupts,
    collate: Callable[[list[Any]], Any],
    lengths: Sequence[float] | None,
    in_order: bool,
    data: str | None,
) -> Result:
    """`fit`, in a folder that no other process trains in."""
    policy = precision.policy(group.device, settings.precision)
    stage.to(group.device)
    if group.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(group.device)
    if settings.compile:
        compile_stage(stage, group.device)
    optimizer, scaler = build_optimizer(stage, settings, policy), policy.scaler()
    seed_everything(settings.seed + group.rank)  # every process drops out other units
    samples = len(train)  # type: ignore[arg-type]
    run = Run(folder, stage, optimizer, scaler, settings, group, samples, data)
    result = run.resume()
    result.device, result.precision, result.processes = str(group.device), policy.precision, group.size
    batches = Batches(run.samples, settings.batch_size, settings.seed, lengths, in_order)
    loader = iter(
        DataLoader(
            train,
            batch_sampler=MicroBatchSampler(batches, result.steps, settings.steps, settings.grad_accum_steps, group),
            collate_fn=collate,
            num_workers=settings.num_workers,
            pin_memory=group.device.type == "cuda",
            generator=torch.Generator().manual_seed(settings.seed),  # its own, so that it takes no number of ours
            worker_init_fn=guard.leave_signals_to_the_trainer,
        )
    )
    averaged = averaged_at(settings)
    trainer = Trainer(stage, group.wrap(stage), optimizer, scaler, policy, group, settings)
    clock, earlier_seconds, earlier_tokens = time.perf_counter(), result.seconds, result.tokens
    stage.train()
    with Log(folder, stage.name, result.steps, settings.steps, group.is_main) as log:
        while not done(result, settings):
            rate = learning_rate(result.steps, settings)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            window = [next(loader) for _ in range(settings.grad_accum_steps)]
            try:
                entry = trainer.step(window)
                result.skipped_in_a_row = 0
            except SkipBatch as skip:
                optimizer.zero_grad()
                count(skip, result)
                entry = {"skipped": str(skip), "batch": batches[result.steps]}
            result.steps += 1
            if result.steps in averaged:
                run.average.add(averaged.index(result.steps) + 1)
            result.samples += settings.batch_size
            result.tokens += entry.get("tokens", 0)
            passed = time.perf_counter() - clock
            result.seconds = earlier_seconds + passed
            log.write(step=result.steps, seconds=round(result.seconds, 3), lr=rate, **entry)
            speed = (result.tokens - earlier_tokens) / passed
            log.progress(f"loss {entry.get('loss', math.nan):.4f}, lr {rate:.1e}, {speed:,.0f} tokens/s")

            if result.skipped_in_a_row >= settings.max_skips:
                raise TrainingDiverged(
                    f"Training: {result.skipped_in_a_row} bad batches in a row, up to step {result.steps}. "
                    f"The last: {entry['skipped']} {folder / 'log.jsonl'} lists their samples. "
                    f"Is there something wrong with them, or is lr={settings.lr:g} too high?"
                )
            improved = False
            if result.steps % settings.eval_every == 0 or result.steps == settings.steps:
                with run.average.applied():
                    result.validation = validate(stage, policy, group)
                log.write(step=result.steps, validation=result.validation)
                improved = update_best(result)
            stopped = interrupts.received and not done(result, settings)
            if improved or stopped or result.steps % settings.checkpoint_freq == 0 or done(result, settings):
                run.save(best=improved)
            if stopped:
                run.notify(f"{stage.name}: stopped after step {result.steps}. The same command resumes it.")
                raise guard.Interrupted(interrupts.received)
    run.finish()
    return result


def done(result: Result, settings: Settings) -> bool:
    """Whether all steps are taken, or validation has not improved for too long."""
    return result.steps >= settings.steps or (
        settings.patience is not None and result.not_improved >= settings.patience
    )


def count(skip: SkipBatch, result: Result) -> None:
    """Count a skipped batch. The scaler's overflows, with which fp16 starts, are counted apart."""
    if isinstance(skip, Overflow):
        result.overflows += 1
    else:
        result.skipped += 1
        result.skipped_in_a_row += 1


def validate(stage: Stage, policy: precision.Policy, group: ProcessGroup) -> dict[str, float]:
    """The main process validates, the others receive its metrics. Random numbers drawn here leave training as it is."""
    metrics: dict[str, float] = {}
    if group.is_main:
        state = checkpoint.random_state(group.device)
        stage.eval()
        try:
            with torch.no_grad(), policy.autocast():
                metrics = {name: float(value) for name, value in stage.validate().items()}
        finally:
            stage.train()
            checkpoint.restore_random(state, group.device)
    return group.broadcast(metrics)


def update_best(result: Result) -> bool:
    """Whether this validation is the best so far. NaN is never better."""
    loss = result.validation.get("loss")
    if loss is None:
        return False
    if math.isfinite(loss) and (result.best is None or loss < result.best):
        result.best, result.best_step, result.not_improved = loss, result.steps, 0
        return True
    result.not_improved += 1
    return False


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, the GPU included."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def compile_stage(stage: nn.Module, device: torch.device) -> None:
    """`torch.compile`, where it can work."""
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        raise InputError("Training: compile=True needs shape checks off; set TINYOMNI_SHAPES=0")
    names = [os.environ.get("CXX", ""), *(("cc", "gcc") if device.type == "cuda" else ("c++", "g++", "clang++", "cl"))]
    if not any(shutil.which(name) for name in names if name):
        raise InputError("Training: compile=True needs a C++ compiler (g++ or clang), and none was found")
    stage.compile()
