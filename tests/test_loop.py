"""The training loop: held against a plain loop, and against everything that goes wrong in one."""

import contextlib
import dataclasses
import itertools
import json
import math
import re
import shutil
import sys
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tinyomni import stability
from tinyomni.config import ThinkerConfig
from tinyomni.layers import DecoderBlock
from tinyomni.thinker import ThinkerLM
from tinyomni.training import checkpoint, distributed, loop, optim, precision
from tinyomni.training.distributed import Batches, MicroBatchSampler, ProcessGroup, count_samples, to_device
from tinyomni.training.log import Log, read_log
from tinyomni.training.loop import fit
from tinyomni.training.optim import learning_rate
from tinyomni.training.run import Result, total_costs
from tinyomni.training.settings import Settings
from tinyomni.training.stage import Stage
from tinyomni.training.stages.tokenizer import TokenizerSettings

CPU = torch.device("cpu")


class Rows(Dataset[Any]):
    """256 rows of 8 numbers, with a wave of them to learn; each row has 1, 2 or 3 targets."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.x = torch.randn(256, 8, generator=random)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor, Tensor]:
        self.asked.append(index)
        x = self.x[index]
        return index, x, x[:3].sin(), torch.arange(3) <= index % 3


def stack(rows: list[Any]) -> dict[str, Tensor]:
    number, x, y, mask = zip(*rows, strict=True)
    return {"number": torch.tensor(number), "x": torch.stack(x), "y": torch.stack(y), "mask": torch.stack(mask)}


class Toy(Stage):
    """A small net. `planted` says what goes wrong when a certain row is in the batch."""

    name = "toy"

    def __init__(self, planted: dict[int, float] | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 3))
            self.frozen = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).requires_grad_(False)
        self.planted = planted or {}
        self.modes: list[tuple[bool, bool, bool]] = []

    def train(self, mode: bool = True) -> "Toy":
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        self.modes.append((self.net.training, self.frozen.training, torch.is_grad_enabled()))
        wrong = ((self.net(batch["x"]) - batch["y"]) ** 2)[batch["mask"]]
        loss = wrong.mean()
        for row, factor in self.planted.items():
            if row in batch["number"].tolist():
                loss = loss * factor
        return loss, {"targets": batch["mask"].sum()}

    def weight(self, batch: Any) -> float:
        return float(batch["mask"].sum())

    def validate(self) -> dict[str, float]:
        batch = stack([Rows()[index] for index in range(8)])
        torch.rand(3)
        return {"loss": float(self(batch)[0]), "noise": float(torch.rand(()))}


class Blocks(Toy):
    """The same with a transformer block inside, whose matrices Muon can learn."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            block = DecoderBlock(8, 2, 16, max_seq_len=4)
            self.net = nn.Sequential(nn.Linear(8, 32), nn.Unflatten(1, (4, 8)), block, nn.Flatten(), nn.Linear(32, 3))


def short(**more: Any) -> Settings:
    some = {"steps": 12, "batch_size": 32, "lr": 1e-2, "warmup": 3, "eval_every": 100, "precision": "fp32"}
    return Settings(**{**some, **more})


def run(folder: Path, stage: Stage | None = None, **more: Any) -> tuple[Result, Stage]:
    stage = stage or Toy()
    return fit(stage, Rows(), short(**more), folder, collate=stack), stage


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(folder / "log.jsonl") if "loss" in entry]


def weights(stage: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in stage.parameters()])


# ---- it is what a plain loop does -----------------------------------------------------------------------------------


def plain_loop(settings: Settings) -> tuple[Toy, list[float]]:
    """The same training with torch's own schedulers and nothing of ours but the order of the rows."""
    stage, rows, order, seen = Toy(), Rows(), Batches(256, settings.batch_size, settings.seed), []
    net = stage.net
    optimizer = torch.optim.AdamW(
        [
            {"params": [net[0].weight, net[3].weight], "weight_decay": 0.1},
            {"params": [net[0].bias, net[3].bias], "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(0.9, 0.95),
    )
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        batch = stack([rows[index] for index in order[step]])
        loss = F.mse_loss(net(batch["x"])[batch["mask"]], batch["y"][batch["mask"]])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), settings.max_grad_norm)
        optimizer.step()
        seen.append(loss.item())
    return stage, seen


@pytest.mark.parametrize("accumulate", [1, 2, 8])
def test_it_does_what_a_plain_loop_does_and_micro_batches_change_nothing(accumulate: int, tmp_path: Path) -> None:
    """Rows have 1 to 3 targets, so that a mean of means would be wrong."""
    settings = short(grad_accum_steps=accumulate, max_grad_norm=0.3)
    want, seen = plain_loop(settings)
    stage = Toy()
    result = fit(stage, Rows(), settings, tmp_path, collate=stack)
    torch.testing.assert_close(weights(stage), weights(want), atol=1e-6, rtol=1e-5)
    assert losses(tmp_path) == pytest.approx(seen, rel=1e-5)
    assert (result.steps, result.samples, result.skipped) == (12, 12 * 32, 0)
    assert result.tokens == sum(entry["tokens"] for entry in read_log(tmp_path / "log.jsonl") if "tokens" in entry)
    assert json.loads((tmp_path / "result.json").read_text())["samples"] == 12 * 32


def test_two_processes_with_the_same_batches_take_the_step_of_one() -> None:
    skipped: list[bool] = []

    class Twins(ProcessGroup):
        def sum(self, *values: float) -> list[float]:
            return [2 * value for value in values]

        def no_sync(self, model: nn.Module, skip: bool) -> contextlib.AbstractContextManager[None]:
            skipped.append(skip)
            return contextlib.nullcontext()

    def step(group: ProcessGroup) -> dict[str, Any]:
        stage, settings, policy = Toy(), short(), precision.policy(CPU, "fp32")
        optimizer = optim.build_optimizer(stage, settings, policy)
        trainer = loop.Trainer(stage, stage, optimizer, policy.scaler(), policy, group, settings)
        return trainer.step([stack([Rows()[index] for index in part]) for part in (range(8), range(8, 12), range(4))])

    alone, twins = step(ProcessGroup(0, 1, CPU)), step(Twins(0, 2, CPU))
    # backward averages gradients over processes, and the mean of two that are equal is each of them
    assert twins["grad_norm"] == pytest.approx(alone["grad_norm"]) and twins["loss"] == pytest.approx(alone["loss"])
    assert twins["tokens"] == 2 * alone["tokens"]
    assert skipped == [True, True, False]  # gradients are exchanged once, at the last micro-batch


class Counting(Stage):
    """A small Thinker; where a sequence holds the number 99, its embeddings are NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.think = ThinkerLM(
            ThinkerConfig(layers=1, d_model=32, heads=2, kv_heads=2, intermediate_size=64, vocab=100)
        )

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x = self.think.embed(batch[:, :-1])
        logits = self.think(embeddings=torch.where((batch[:, :-1] == 99)[..., None], math.nan, x))
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()), {}

    def weight(self, batch: Tensor) -> float:
        return batch[:, 1:].numel()


def count(folder: Path, data: Tensor) -> Result:
    settings = Settings(steps=60, batch_size=16, lr=1e-2, warmup=5)
    collate = lambda rows: torch.stack([row[0] for row in rows])  # noqa: E731
    return fit(Counting(), TensorDataset(data), settings, folder, collate=collate)


def test_a_small_thinker_learns_to_count(tmp_path: Path) -> None:
    result = count(tmp_path, (torch.arange(64)[:, None] + torch.arange(9)) % 16)
    found = losses(tmp_path)
    assert found[0] == pytest.approx(math.log(100), rel=0.1) and found[-1] < 0.05
    assert result.tokens == 60 * 16 * 8 and result.peak_memory > 0 and result.best is None


def test_a_nan_inside_a_model_is_a_bad_batch_as_well(tmp_path: Path) -> None:
    data = (torch.arange(64)[:, None] + torch.arange(9)) % 16
    data[7, 3] = 99
    assert count(tmp_path, data).skipped == 15  # once an epoch of 4 steps


def test_the_order_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def spy(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **more: (calls.append(name), real(*args, **more))[1])

    for name in ("scale", "unscale_", "step", "update"):
        spy(torch.amp.GradScaler, name)
    spy(loop, "check_gradient_explosion")
    spy(loop, "clip_gradients")
    spy(torch.optim.AdamW, "zero_grad")
    run(tmp_path, steps=1, grad_accum_steps=2)
    order = ["scale", "scale", "unscale_", "check_gradient_explosion", "clip_gradients", "step", "update", "zero_grad"]
    assert calls == order


def test_the_gradient_norm_is_computed_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check and the clipping share it; torch's own clipping would compute it again."""
    calls = []
    real = stability.gradient_norm
    monkeypatch.setattr(stability, "gradient_norm", lambda model: calls.append(1) or real(model))
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", None)
    monkeypatch.setattr(nn.utils, "get_total_norm", None)
    run(tmp_path, steps=3, max_grad_norm=0.1)
    assert len(calls) == 3
    assert all(entry["grad_norm"] > 0.1 for entry in read_log(tmp_path / "log.jsonl") if "loss" in entry)


# ---- optimizer ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 60), st.floats(0, 1))
def test_the_learning_rate_rises_then_falls_to_its_minimum(steps: int, warmup: int, low: float) -> None:
    settings = Settings(steps=steps, warmup=warmup, lr=0.5, min_lr_ratio=low)
    rates = [learning_rate(step, settings) for step in range(steps)]
    assert rates[0] > 0 and max(rates) <= 0.5
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    if steps > warmup + 1:
        assert rates[warmup] == 0.5 and rates[-1] == pytest.approx(0.5 * low)
        assert learning_rate(steps + 1000, settings) == pytest.approx(0.5 * low)


@given(st.integers(1, 50), st.integers(1, 5), st.integers(0, 100), st.integers(0, 10))
def test_every_restart_is_the_cosine_of_a_run_of_its_length(cycle: int, restarts: int, rest: int, warmup: int) -> None:
    whole = Settings(steps=cycle + rest, cycle=cycle, restarts=restarts, restart_lr=0.25, warmup=min(warmup, cycle))
    ends = [cycle, *(cycle + rest * number // restarts for number in range(1, restarts + 1))]
    assert max(lengths := [b - a for a, b in pairwise(ends)]) - min(lengths) <= 1
    for start, end in pairwise([0, *ends]):
        if end > start:
            alone = Settings(steps=end - start, lr=0.25 if start else whole.lr, warmup=0 if start else whole.warmup)
            for step in range(end - start):
                assert learning_rate(start + step, whole) == learning_rate(step, alone)


def test_the_rate_is_torchs_own_cosine() -> None:
    settings = Settings(steps=40, warmup=10, lr=0.5, min_lr_ratio=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=29, eta_min=0.05)
    for step in range(10, 40):
        assert learning_rate(step, settings) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()


def test_only_matrices_decay_and_only_what_is_not_frozen_is_learned() -> None:
    stage = Toy()
    decays = {
        id(p): group["weight_decay"] for group in optim.adamw(stage, short()).param_groups for p in group["params"]
    }
    for name, parameter in stage.named_parameters():
        want = None if name.startswith("frozen") else 0.1 if name.endswith("weight") else 0.0
        assert decays.get(id(parameter)) == want, name


def stepped(stage: nn.Module, optimizers: list[torch.optim.Optimizer], inside: set[str]) -> dict[str, Tensor]:
    """Weights after 5 steps along gradients that are made up, each with a few strong directions."""
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        for name, parameter in stage.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
            if name in inside:
                parameter.grad *= torch.logspace(0, -2, parameter.shape[1])
        for optimizer in optimizers:
            optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}


def test_muon_is_torchs_muon_inside_the_blocks_and_torchs_adamw_elsewhere() -> None:
    blocks = [Blocks(), Blocks()]
    inside = {name for name, p in blocks[0].named_parameters() if name.startswith("net.2.") and p.ndim == 2}
    assert len(inside) == 7
    ours = stepped(blocks[0], [optim.Muon(blocks[0], short())], inside)
    by_name = dict(blocks[1].named_parameters())
    muon = torch.optim.Muon([by_name[name] for name in inside], lr=1e-2, weight_decay=0.1, momentum=0.95,
                            adjust_lr_fn="match_rms_adamw")  # fmt: skip
    others = [p for name, p in by_name.items() if name not in inside and p.requires_grad]
    groups = [{"params": [p for p in others if (p.ndim >= 2) == matrix], "weight_decay": 0.1 * matrix}
              for matrix in (True, False)]  # fmt: skip
    theirs = stepped(blocks[1], [muon, torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))], inside)
    before = Blocks().state_dict()
    for name, weight in ours.items():
        if name.startswith("frozen"):
            assert torch.equal(weight, before[name])
        elif name in inside:  # torch computes it in bf16
            moved, expected = weight - before[name], theirs[name] - before[name]
            assert float((moved - expected).norm() / expected.norm()) < 0.03
        else:
            torch.testing.assert_close(weight, theirs[name])


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 32), (2, 32, 8)])
def test_directions_stay_and_become_equally_strong(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    even = optim.orthogonalize(matrices)
    assert float((even - left @ right).norm() / (left @ right).norm()) < 0.25
    strengths = torch.linalg.svdvals(even)
    assert float(strengths.min()) > 0.6 and float(strengths.max()) < 1.25
    assert torch.equal(optim.orthogonalize(torch.zeros(shape)), torch.zeros(shape))


def test_a_run_with_muon_resumes_bit_for_bit(tmp_path: Path) -> None:
    for name in ("whole", "halves"):
        fit(Blocks(), Rows(), short(optimizer="muon", checkpoint_freq=6, keep_last=5), tmp_path / name, collate=stack)
    shutil.rmtree(checkpoint.path_of(tmp_path / "halves", 12))
    stage = Blocks()
    fit(stage, Rows(), short(optimizer="muon", checkpoint_freq=6, keep_last=5), tmp_path / "halves", collate=stack)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole") and losses(tmp_path / "whole")[-1] < 0.5
    whole = Blocks()
    checkpoint.load_weights(whole, tmp_path / "whole", "last")
    assert torch.equal(weights(stage), weights(whole))


def test_muon_where_there_is_no_block(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matrices inside transformer blocks"):
        fit(Toy(), Rows(), short(optimizer="muon"), tmp_path, collate=stack)
    with pytest.raises(ValueError, match="optimizer must be 'adamw' or 'muon', got 'sgd'"):
        short(optimizer="sgd")


# ---- bad batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    ("factor", "reason"), [(math.nan, "Loss is nan"), (math.inf, "Loss is inf"), (1e7, "outside"), (5e3, "norm is")]
)
def test_a_bad_batch_is_logged_counted_and_skipped(
    factor: float, reason: str, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN, infinite, out of bounds, exploding. One bad micro-batch drops the whole window, and nothing of it stays."""
    before: list[Tensor] = []
    real = loop.Trainer.step
    monkeypatch.setattr(
        loop.Trainer, "step", lambda self, window: (before.append(weights(self.stage)), real(self, window))[1]
    )
    row = Batches(256, 32)[4][30]
    result, stage = run(tmp_path, Toy({row: factor}), steps=8, grad_accum_steps=accumulate)
    (entry,) = [entry for entry in read_log(tmp_path / "log.jsonl") if "skipped" in entry]
    assert entry["step"] == 5 and reason in entry["skipped"] and entry["batch"] == Batches(256, 32)[4]
    assert (result.skipped, result.overflows, result.skipped_in_a_row) == (1, 0, 0)
    assert result.tokens == sum(entry.get("tokens", 0) for entry in read_log(tmp_path / "log.jsonl"))
    assert torch.equal(before[4], before[5])  # and the next gradient starts from zero:
    assert not torch.equal(before[5], before[6]) and torch.isfinite(weights(stage)).all()
    if accumulate == 4:
        apart, _ = run(tmp_path / "whole", Toy({row: factor}), steps=8)
        assert apart.skipped == 1
        assert losses(tmp_path) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_too_many_bad_batches_in_a_row_end_it(tmp_path: Path) -> None:
    bad = {row: math.nan for batch in (2, 4, 5, 6) for row in Batches(256, 32)[batch][:1]}
    with pytest.raises(loop.TrainingDiverged, match=r"3 bad batches in a row, up to step 7.*Loss is nan.*lists their"):
        run(tmp_path, Toy(bad), max_skips=3)
    assert [entry["step"] for entry in read_log(tmp_path / "log.jsonl") if "skipped" in entry] == [3, 5, 6, 7]


def test_a_batch_without_targets_is_skipped(tmp_path: Path) -> None:
    class Empty(Toy):
        def weight(self, batch: Any) -> float:
            return 0.0

    with pytest.raises(RuntimeError, match="has no target"):
        run(tmp_path, Empty(), max_skips=2)


def test_a_batch_with_a_single_target_is_learned_from(tmp_path: Path) -> None:
    class Single(Toy):
        def weight(self, batch: Any) -> float:
            return 1.0

    result, stage = run(tmp_path, Single(), steps=2)
    assert result.skipped == 0 and not torch.equal(weights(stage), weights(Toy()))


def test_an_fp16_overflow_is_counted_apart(tmp_path: Path) -> None:
    """A gradient of 10 times 65,536 is no fp16 number; halved three times it is one."""

    class Half(Toy):
        def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
            loss, metrics = super().forward(batch)
            return (loss.half() * 10).float(), metrics

    result, _ = run(tmp_path, Half(), precision="fp16", max_skips=2)
    skips = [entry["skipped"] for entry in read_log(tmp_path / "log.jsonl") if "skipped" in entry]
    assert 3 <= result.overflows == len(skips) < 8 and result.skipped == 0
    assert all("fp16 overflow" in skip for skip in skips)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    metadata = checkpoint.load(checkpoint.path_of(tmp_path, 12))[1]
    assert metadata["scaler"]["scale"] == 65536 / 2**result.overflows


def test_what_is_infinite_at_every_scale_is_no_overflow(tmp_path: Path) -> None:
    class Root(Stage):
        def __init__(self) -> None:
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(1, 1))

        def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
            return self.zero.sqrt().sum(), {}

    with pytest.raises(RuntimeError, match="norm is inf"):
        run(tmp_path, Root(), steps=40, precision="fp16", max_skips=2)
    assert sum("overflow" in entry.get("skipped", "") for entry in read_log(tmp_path / "log.jsonl")) == 16


# ---- modes, validation, early stop ----------------------------------------------------------------------------------


def test_validation_is_in_eval_mode_without_gradients_and_changes_nothing(tmp_path: Path) -> None:
    result, stage = run(tmp_path / "often", Toy(dropout=0.3), eval_every=2)
    assert isinstance(stage, Toy)
    assert stage.modes[:3] == [(True, False, True), (True, False, True), (False, False, False)]
    assert stage.modes[3] == (True, False, True)
    run(tmp_path / "never", Toy(dropout=0.3), eval_every=100)
    assert losses(tmp_path / "often") == losses(tmp_path / "never")
    checks = [
        entry["validation"]["loss"] for entry in read_log(tmp_path / "often" / "log.jsonl") if "validation" in entry
    ]
    assert len(checks) == 6 and result.best == min(checks) and result.validation["loss"] == checks[-1]
    assert torch.equal(stage.frozen[0].weight, Toy().frozen[0].weight)


def test_the_weights_at_the_ends_of_restarts_are_averaged_and_the_mean_is_validated_and_loaded(tmp_path: Path) -> None:
    """A first cosine of 6 steps, then restarts that end after 8, 10 and 12; the run with all checkpoints has one less
    to be averaged, but the same weights after each step.
    """
    more: dict[str, Any] = {"cycle": 6, "restarts": 3, "eval_every": 4, "checkpoint_freq": 1, "keep_last": 20}
    results = [fit(Toy(), Rows(), short(**more), tmp_path / name, collate=stack) for name in ("whole", "halves")]
    at_end = {step: checkpoint.load(checkpoint.path_of(tmp_path / "whole", step))[0] for step in range(1, 13)}
    averaged = [step for step, tensors in at_end.items() if any(name.startswith("average.") for name in tensors)]
    assert averaged == [8, 9, 10, 11, 12]
    ends, stage = [], Toy()
    for step in (8, 10, 12):
        checkpoint.restore_model(stage, at_end[step])
        ends.append(weights(stage))
    checkpoint.load_weights(stage, tmp_path / "whole", "last")
    assert torch.allclose(weights(stage), torch.stack(ends).mean(0), atol=1e-6)
    assert not torch.allclose(weights(stage), ends[-1], atol=1e-5)
    stage.eval()
    with torch.no_grad():
        assert results[0].validation["loss"] == pytest.approx(stage.validate()["loss"])
    for step in (11, 12):  # resumed in the middle of the third
        shutil.rmtree(checkpoint.path_of(tmp_path / "halves", step))
    again = Toy()
    assert fit(again, Rows(), short(**more), tmp_path / "halves", collate=stack).validation == results[0].validation
    assert torch.equal(weights(again), ends[-1]), "the optimizer goes on with the weights, not with their mean"


def test_the_weights_of_a_single_restart_are_not_averaged(tmp_path: Path) -> None:
    fit(Toy(), Rows(), short(cycle=6), tmp_path, collate=stack)
    tensors, _ = checkpoint.load(checkpoint.path_of(tmp_path, 12))
    assert not any(name.startswith("average.") for name in tensors)


def test_it_stops_early_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    class Worse(Toy):
        """Best at the third validation."""

        def validate(self) -> dict[str, float]:
            self.count = getattr(self, "count", 0) + 1
            return {"loss": abs(3 - self.count) if self.count != 4 else math.nan}

    result, stage = run(tmp_path, Worse(), steps=100, eval_every=2, patience=2, keep_last=1)
    assert (result.steps, result.best, result.best_step, result.not_improved) == (10, 0.0, 6, 2)
    kept = sorted(path.name for path in tmp_path.glob("step-*"))
    assert kept == ["step-00000006", "step-00000010"]
    last = weights(stage).clone()
    assert checkpoint.load_weights(stage, tmp_path)["step"] == 6 and not torch.equal(weights(stage), last)
    assert checkpoint.load_weights(stage, tmp_path, "last")["step"] == 10 and torch.equal(weights(stage), last)
    again, _ = run(tmp_path, Worse(), steps=100, eval_every=2, patience=2, keep_last=1)
    assert again.steps == 10


# ---- data -----------------------------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9), st.booleans())
def test_processes_and_micro_batches_share_the_global_batch(
    more: int, micro: int, accumulate: int, processes: int, start: int, by_length: bool
) -> None:
    batch_size = micro * accumulate * processes
    samples = batch_size + more
    lengths = [(index * 7) % 13 for index in range(samples)] if by_length else None
    order, steps = Batches(samples, batch_size, 5, lengths), 10
    shares = [
        list(
            MicroBatchSampler(
                Batches(samples, batch_size, 5, lengths), start, steps, accumulate, ProcessGroup(rank, processes, CPU)
            )
        )
        for rank in range(processes)
    ]
    for step in range(start, steps):
        first = (step - start) * accumulate
        parts = [part for share in shares for part in share[first : first + accumulate]]
        assert all(len(part) == micro for part in parts)
        assert sorted(chain(*parts)) == sorted(order[step])
    assert all(len(share) == (steps - start) * accumulate for share in shares)
    epoch = list(chain(*(order[step] for step in range(samples // batch_size))))
    assert len(set(epoch)) == len(epoch) == samples // batch_size * batch_size


def test_epochs_differ_seeds_differ_and_lengths_are_alike() -> None:
    in_order = Batches(70, 32, 0, in_order=True)
    assert in_order[0] == list(range(32)) == in_order[2] and in_order[1] == list(range(32, 64))
    epochs = [[Batches(256, 32, seed)[step] for step in range(at, at + 8)] for seed, at in ((0, 0), (0, 8), (1, 0))]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert sorted(chain(*epochs[0])) == list(range(256))
    lengths = [index % 64 for index in range(256)]
    spread = [
        max(lengths[i] for i in batch) - min(lengths[i] for i in batch)
        for batch in (Batches(256, 32, 0, lengths)[step] for step in range(8))
    ]
    assert max(spread) < 20


def test_an_order_that_would_fill_the_memory_is_not_kept() -> None:
    huge = 1_000_000 * 65_536
    last = Batches(huge, 65_536, in_order=True)[999_999]
    assert last[0] == huge - 65_536 and last[-1] == huge - 1
    with pytest.raises(ValueError, match=r"at most 100,000,000 samples in random order, got 65,536,000,000; lower"):
        Batches(huge, 65_536)


def test_the_costs_of_earlier_runs_add_up(tmp_path: Path) -> None:
    run(tmp_path / "one", eval_every=4)
    run(tmp_path / "two", init_from=str(tmp_path / "one"), steps=5)
    result, _ = run(tmp_path / "three", init_from=str(tmp_path / "two"), steps=3)
    assert result.initialized_from is not None and result.initialized_from["steps"] == 12 + 5
    assert total_costs(dataclasses.asdict(result))["samples"] == (12 + 5 + 3) * 32
    written = json.loads((tmp_path / "three" / "result.json").read_text(encoding="utf-8"))
    assert written["initialized_from"] == result.initialized_from


def test_the_clock_goes_on_where_a_run_is_lengthened(tmp_path: Path) -> None:
    first, _ = run(tmp_path, steps=4)
    second, _ = run(tmp_path, steps=8)
    seconds = [entry["seconds"] for entry in read_log(tmp_path / "log.jsonl") if "loss" in entry]
    assert len(seconds) == 8 and 0 < first.seconds < second.seconds < 600
    assert (
        seconds == sorted(seconds) and seconds[3] == round(first.seconds, 3) and seconds[7] == round(second.seconds, 3)
    )


def test_the_speed_is_that_since_the_run_was_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    ticks = itertools.count(10, 4)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))  # 4 seconds a step
    monkeypatch.setattr(Log, "progress", lambda log, text: shown.append(text.rpartition(", ")[2]))
    run(tmp_path, steps=3)
    run(tmp_path, steps=5)
    tokens = [entry["tokens"] for entry in read_log(tmp_path / "log.jsonl") if "tokens" in entry]
    since = [*itertools.accumulate(tokens[:3]), *itertools.accumulate(tokens[3:])]
    assert shown == [f"{count / seconds:,.0f} tokens/s" for count, seconds in zip(since, (4, 8, 12, 4, 8), strict=True)]


@pytest.mark.parametrize(("every", "steps"), [(100, [12]), (5, [5, 10, 12]), (4, [4, 8, 12])])
def test_it_validates_now_and_then_and_at_the_end(every: int, steps: list[int], tmp_path: Path) -> None:
    result, _ = run(tmp_path, eval_every=every, checkpoint_freq=7)
    log = read_log(tmp_path / "log.jsonl")
    assert [entry["step"] for entry in log if "validation" in entry] == steps
    assert result.validation["loss"] == log[-1]["validation"]["loss"]
    saved = {int(each.name[5:]) for each in checkpoint.list_checkpoints(tmp_path)}
    assert {12, result.best_step} <= saved <= {7, *steps}


def test_metrics_are_means_by_weight() -> None:
    averager = loop.MetricAverager()
    averager.add({"a": 1, "b": torch.tensor(2.0)}, 1)
    averager.add({"a": 4.0}, 3)
    averager.add({"c": 5.0}, 0)
    assert averager.means() == {"a": 13 / 4, "b": 2}


def test_the_best_validation_is_the_lowest_and_patience_counts_those_that_are_not() -> None:
    result, settings = Result(), short(steps=12, patience=2)
    told = []
    for result.steps, loss in enumerate((2.0, 2.0, 1.5, torch.nan, 1.6), 1):
        result.validation = {"loss": loss}
        told.append((loop.update_best(result), result.best, result.best_step, result.not_improved))
    assert told == [(True, 2.0, 1, 0), (False, 2.0, 1, 1), (True, 1.5, 3, 0), (False, 1.5, 3, 1), (False, 1.5, 3, 2)]
    assert loop.done(result, settings) and not loop.done(result, short(steps=12, patience=3))
    result.validation = {}
    assert not loop.update_best(result) and result.not_improved == 2
    for result.steps, ended in ((11, False), (12, True), (13, True)):
        assert loop.done(result, short(steps=12)) is ended


def test_skipped_batches_and_overflows_are_counted_apart() -> None:
    result = Result()
    for skip in (loop.SkipBatch("bad"), loop.Overflow("fp16"), loop.SkipBatch("bad")):
        loop.count(skip, result)
    assert (result.skipped, result.skipped_in_a_row, result.overflows) == (2, 2, 1)


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    learned = run(tmp_path / "one", eval_every=4)[1]
    checkpoint.load_weights(learned, tmp_path / "one")
    start = str(tmp_path / "one")
    result, stage = run(tmp_path / "two", init_from=start, steps=1, lr=1e-12)
    assert result.initialized_from == {
        "run": start,
        "steps": 12,
        "seconds": ANY,
        "samples": 12 * 32,
        "tokens": ANY,
        "skipped": 0,
    }
    assert result.steps == 1 and losses(tmp_path / "two")[0] < losses(tmp_path / "one")[0]
    torch.testing.assert_close(weights(stage), weights(learned))
    better = Toy()
    nn.init.ones_(better.frozen[0].weight)  # type: ignore[arg-type]
    run(tmp_path / "frozen", better, init_from=start, steps=1, lr=1e-12)
    assert (better.frozen[0].weight == 1).all()
    torch.testing.assert_close(better.net.state_dict(), learned.net.state_dict())
    # from the second command on it resumes itself, and refuses other initial weights
    assert run(tmp_path / "two", init_from=start, steps=1, lr=1e-12)[0].steps == 1
    with pytest.raises(ValueError, match=r"init_from was .*one, got None"):
        run(tmp_path / "two", steps=1, lr=1e-12)
    other = Toy()
    other.net[0] = nn.Linear(8, 16)
    with pytest.raises(
        ValueError, match=r"another model: 2 names or shapes differ.* net.0.bias: expected \(16,\) for Toy, got \(32,\)"
    ):
        run(tmp_path / "other", other, init_from=start)
    with pytest.raises(FileNotFoundError, match="Was this stage trained"):
        run(tmp_path / "three", init_from=str(tmp_path / "nowhere"))


def test_a_resumed_run_reads_only_what_is_left_and_workers_change_nothing(tmp_path: Path) -> None:
    run(tmp_path / "whole", steps=12)
    rows, settings = Rows(), short(checkpoint_freq=6)
    fit(Toy(), rows, settings, tmp_path / "two", collate=stack)
    shutil.rmtree(tmp_path / "two" / "step-00000012")
    rows.asked.clear()
    fit(Toy(), rows, settings, tmp_path / "two", collate=stack)
    order = Batches(256, 32)
    assert sorted(rows.asked) == sorted(chain(*(order[step] for step in range(6, 12))))
    run(tmp_path / "workers", num_workers=2, grad_accum_steps=1)
    assert losses(tmp_path / "whole") == losses(tmp_path / "two") == losses(tmp_path / "workers")


def test_tensors_are_found_wherever_they_lie() -> None:
    meta = torch.device("meta")
    batch = {"a": [torch.zeros(3, 2), "text"], "b": (torch.zeros(3), None)}
    moved = to_device(batch, meta)
    assert moved["a"][0].is_meta and moved["b"][0].is_meta and moved["a"][1] == "text" and moved["b"][1] is None
    assert count_samples(batch) == 3
    result = to_device(Result(stage="x", validation={"t": torch.zeros(2)}), meta)  # type: ignore[dict-item]
    assert result.validation["t"].is_meta and result.stage == "x"


# ---- precision, compile, wrong input --------------------------------------------------------------------------------


def test_the_precision_of_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, want in (({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert precision.policy(CPU).precision == want
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: True)
    assert precision.policy(torch.device("cuda")).precision == "bf16"
    assert precision.policy(torch.device("cuda"), "fp16").precision == "fp16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: False)
    assert precision.policy(torch.device("cuda")).precision == "fp32"
    assert precision.policy(torch.device("mps")).precision == "fp32"
    with pytest.raises(ValueError, match="MPS supports only fp32, got 'fp16'"):
        precision.policy(torch.device("mps"), "fp16")
    with pytest.raises(ValueError, match="one of 'auto', 'fp32', 'bf16', 'fp16', got 'fp8'"):
        precision.policy(CPU, "fp8")
    assert [precision.policy(CPU, name).scaler().is_enabled() for name in ("fp32", "bf16", "fp16")] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_close_to_fp32(precision: str, tmp_path: Path) -> None:
    run(tmp_path / "full")
    run(tmp_path / precision, precision=precision)
    low = losses(tmp_path / precision)
    assert low != losses(tmp_path / "full")
    assert low[-1] == pytest.approx(losses(tmp_path / "full")[-1], rel=0.1)


def test_compile_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = next((finder for finder in sys.meta_path if isinstance(finder, loop.Finder)), None)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder or loop.Finder("tinyomni")])
    with pytest.raises(ValueError, match="TINYOMNI_SHAPES=0"):
        run(tmp_path, compile=True)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, loop.Finder)])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        run(tmp_path, compile=True)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("device", "compiler", "enough"),
    [
        ("cpu", "g++", True),
        ("cpu", "clang++", True),
        ("cpu", "gcc", False),
        ("cuda", "gcc", True),
        ("cpu", "own", True),
    ],
)
def test_the_compiler_that_torch_would_use_is_looked_for(
    device: str, compiler: str, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, loop.Finder)])
    monkeypatch.setattr(shutil, "which", lambda name: name if name == compiler else None)
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(1))
    monkeypatch.setenv("CXX", "own")
    with contextlib.nullcontext() if enough else pytest.raises(ValueError, match="needs a C"):
        loop.compile_stage(Toy(), torch.device(device))
    assert compiled == [1] * enough


def test_every_process_draws_its_own_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(loop, "seed_everything", seeds.append)
    for rank in range(3):
        monkeypatch.setattr(distributed, "start", lambda device, rank=rank: ProcessGroup(rank, 1, CPU))
        run(tmp_path / str(rank), steps=1, seed=5)
    assert seeds == [5, 6, 7]


def test_wrong_settings_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=32 must be divisible by grad_accum_steps × processes = 5 × 1"):
        run(tmp_path / "a", grad_accum_steps=5)
    with pytest.raises(ValueError, match="batch_size=300 needs as many samples, got 256"):
        run(tmp_path / "b", batch_size=300)
    with pytest.raises(ValueError, match="Is everything frozen"):
        run(tmp_path / "c", Toy().requires_grad_(False))
    with pytest.raises(ValueError, match="expected 256 lengths, one for each sample, got 3"):
        fit(Toy(), Rows(), short(), tmp_path / "d", collate=stack, lengths=[1, 2, 3])
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        short(steps=0)
    with pytest.raises(ValueError, match=r"lr must be above 0 and finite, got 0\.0"):
        short(lr=0.0)
    for name, value, most in [
        *(("steps", 10**23, "1,000,000"), ("eval_every", 10**23, "1,000,000"), ("batch_size", 10**14, "65,536")),
        *(("seed", 2**64 - 1, "2,147,483,647"), ("num_workers", 129, "128"), ("restarts", 10**9, "1,000")),
        *(("lr", 1e38, "100"), ("weight_decay", 1e308, "100"), ("skip_grad_norm", 1e308, "1,000,000,000")),
    ]:
        with pytest.raises(ValueError, match=rf"^Settings: {name} must be at most {most}, got {re.escape(str(value))}"):
            short(**{name: value})
    with pytest.raises(ValueError, match="vocab must be at most 1,000,000, got 1000001"):
        TokenizerSettings(vocab=1_000_001)
    with pytest.raises(ValueError, match="sees no GPU"):
        if torch.cuda.is_available():
            raise ValueError("sees no GPU")
        distributed.choose_device("cuda")
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu', 'cuda' or 'mps', got 'gpu'"):
        distributed.choose_device("gpu")
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu', 'cuda' or 'mps', got 'meta'"):
        distributed.choose_device("meta")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="cuda:2, but torch sees 2 GPU"):
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        distributed.choose_device("cuda:2")


def test_a_loss_that_is_no_single_number(tmp_path: Path) -> None:
    class Many(Toy):
        def forward(self, batch: Any) -> Any:
            return self.net(batch["x"]).mean(dim=1), {}

    with pytest.raises(TypeError, match="Stage toy: forward must return \\(mean loss, metrics\\)"):
        run(tmp_path, Many())


def test_it_is_quiet_where_nobody_looks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert capfd.readouterr() == ("", "")
    run(tmp_path)
    assert capfd.readouterr() == ("", "toy: resuming from step 12 of 12\n")
