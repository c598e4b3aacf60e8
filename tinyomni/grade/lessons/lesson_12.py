"""Lesson 12, the training loop: its oracles count number by number, update by hand, or use torch's schedulers."""

import copy
import functools
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tinyomni.grade.exercise import AnswerError, exercise, unchanged

NOTEBOOK, TITLE = "12_training_loop", "The training loop"

BARE = "1. The loop that always works, when nothing goes wrong"
LOSS = "2. The loss: one bad batch is enough"
GRADIENT = "3. The gradient: check, then clip"
BITS = "4. Mixed precision"
SMALL = "5. Gradient accumulation: a large batch from small ones"
RATE = "6. The optimizer and the learning-rate schedule"
KEEP = "8. Checkpoints that survive"
PAGE = "10. The step, on one page"

fault: Any  # what a mutant changes


# ---- NaN ------------------------------------------------------------------------------------------------------------


@exercise("Detect NaN and infinity", minutes=10, level=1)
def check_finite(where: str, values: Float[Tensor, "batch tokens dim"]) -> None:
    """What the message should say, counted number by number."""
    numbers = values.flatten().tolist()
    nan, inf = sum(map(math.isnan, numbers)), sum(map(math.isinf, numbers))
    raised = "RuntimeError" if nan + inf else "nothing"
    return {"raised": raised, "NaN": nan, "Inf": inf, "names `where`": bool(nan + inf)}  # type: ignore[return-value]


@check_finite.invoke
def _(answer, where, values):
    try:
        answer(where, values)
    except NotImplementedError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        counts = {name: re.search(rf"{name}=(\d+)", str(error)) for name in ("NaN", "Inf")}
        reported = {name: int(found[1]) if found else -1 for name, found in counts.items()}
        return {"raised": type(error).__name__, **reported, "names `where`": where in str(error)}
    return {"raised": "nothing", "NaN": 0, "Inf": 0, "names `where`": False}


def with_values(values, *, nan=(), inf=(), minus=()):
    """The tensor with the numbers at these indices replaced."""
    flat = values.flatten()
    for places, number in ((nan, math.nan), (inf, math.inf), (minus, -math.inf)):
        flat[list(places)] = number
    return flat.view_as(values)


@check_finite.cases
def _(rng):
    yield (
        "all sizes different",
        {"where": "Thinker", "values": with_values(rng.randn(2, 3, 4), nan=[1, 7], inf=[5], minus=[6, 12])},
    )
    yield "all finite", {"where": "Talker", "values": rng.randn(2, 3, 2)}
    yield "large, but finite", {"where": "ViT", "values": 1e30 * rng.randn(1, 2, 3)}
    yield "finite, though the sum overflows", {"where": "ViT", "values": torch.full((1, 2, 3), 3e38)}
    yield "NaN only", {"where": "audio encoder", "values": with_values(rng.randn(1, 2, 3), nan=[3])}
    yield "infinity only", {"where": "Thinker", "values": with_values(rng.randn(2, 2, 2), inf=[3, 4])}
    yield "minus infinity only", {"where": "Talker", "values": with_values(rng.randn(1, 1, 4), minus=[2])}
    yield "two NaN in one token", {"where": "image encoder", "values": with_values(rng.randn(1, 2, 3), nan=[3, 5])}


@check_finite.random_inputs
def _(rng):
    values = rng.choice((1.0, 1e20)) * rng.randn(rng.size(3), rng.size(3), rng.size(4))
    nan, inf, minus = (rng.chosen(range(values.numel()), 2) for _ in range(3))
    return {"where": rng.choice(("ViT", "Talker", "model.blocks[3]")), "values": with_values(values, nan=nan, inf=inf,
                                                                                          minus=minus)}  # fmt: skip


def check_finite_variant(
    where,
    values,
    *,
    nan=torch.isnan,
    inf=torch.isinf,
    count=torch.sum,
    bad=lambda nan, inf: nan + inf > 0,
    kind=RuntimeError,
    name=True,
):
    """`check_finite`; each keyword injects one fault."""
    nans, infs = int(count(nan(values))), int(count(inf(values)))
    if bad(nans, infs):
        raise kind(f"Numerical instability{f' in {where}' if name else ''}: NaN={nans}, Inf={infs}")


for cause, fault in (
    ("only NaN is looked for: infinity passes, and becomes NaN one step later", {"bad": lambda nan, inf: nan > 0}),
    ("only infinity is looked for", {"bad": lambda nan, inf: inf > 0}),
    ("it complains only if both occur", {"bad": lambda nan, inf: nan > 0 and inf > 0}),
    ("minus infinity is missed", {"inf": lambda values: values == math.inf}),
    ("values are compared with NaN: NaN equals nothing, not even itself", {"nan": lambda values: values == math.nan}),
    ("infinities are counted as NaN too", {"nan": lambda values: ~torch.isfinite(values)}),
    ("tokens are counted instead of numbers", {"count": lambda found: found.any(dim=-1).sum()}),
    ("the message says that there are some, not how many", {"count": torch.any}),
    ("large numbers are counted as infinite", {"inf": lambda values: values.abs() > 1e6}),
    ("the message does not say where", {"name": False}),
    ("the error has another type: the training loop catches RuntimeError", {"kind": ValueError}),
):
    check_finite.mutant(cause, LOSS)(functools.partial(check_finite_variant, **fault))


check_finite.alternative(check_finite_variant)


@check_finite.alternative
def _(where, values):
    nan = int((values != values).sum())
    finite = int(torch.isfinite(values).sum())
    if finite < values.numel():
        raise RuntimeError(f"{where}: NaN={nan}, Inf={values.numel() - finite - nan}")


# ---- the loss -------------------------------------------------------------------------------------------------------


@exercise("Validate the loss", minutes=10, level=1, raises=(RuntimeError,))
def validate_loss(loss: Float[Tensor, ""] | float, min_loss: float = -1e6, max_loss: float = 1e6) -> None:
    """Valid if it lies between the bounds; NaN lies nowhere."""
    if sorted([min_loss, float(loss), max_loss])[1] != float(loss) or math.isnan(loss) or math.isinf(loss):
        raise RuntimeError(f"{float(loss):g} is no loss between {min_loss:g} and {max_loss:g}")
    return "no error"  # type: ignore[return-value]


@validate_loss.invoke
def _(answer, loss, min_loss=-1e6, max_loss=1e6):
    result = answer(loss, min_loss, max_loss)
    return "no error" if result is None else result


@validate_loss.cases
def _(rng):
    for what, number in (
        ("a usual loss", 4.6),
        ("NaN", math.nan),
        ("infinite", math.inf),
        ("minus infinity", -math.inf),
        ("too large", 2e6),
        ("too small", -2e6),
        ("a negative loss", -3.5),
        ("0", 0.0),
    ):
        yield what, {"loss": torch.tensor(number)}
    yield "a Python float", {"loss": 4.6}
    yield "a NaN that is a Python float", {"loss": math.nan}
    yield "exactly the lower bound", {"loss": torch.tensor(-2.0), "min_loss": -2.0}
    yield "exactly the upper bound", {"loss": torch.tensor(8.0), "max_loss": 8.0}
    yield "above an upper bound of 8", {"loss": torch.tensor(9.0), "max_loss": 8.0}
    yield "below a lower bound of 0", {"loss": torch.tensor(-0.5), "min_loss": 0.0}
    yield "large, but inside the bounds", {"loss": torch.tensor(5e6), "max_loss": 1e7}
    yield "infinite bounds", {"loss": torch.tensor(math.inf), "min_loss": -math.inf, "max_loss": math.inf}


@validate_loss.random_inputs
def _(rng):
    low, high = rng.choice((-math.inf, -1e6, -3.0, 0.0)), rng.choice((0.5, 8.0, 1e6, math.inf))
    loss = rng.choice((low, high, 2.0 * low, 2.0 * high, math.nan, math.inf, -math.inf, 0.25, 7.0))
    return {"loss": rng.choice((loss, torch.tensor(loss))), "min_loss": low, "max_loss": high}


def validate_loss_variant(
    loss,
    min_loss=-1e6,
    max_loss=1e6,
    *,
    not_finite=lambda x: math.isnan(x) or math.isinf(x),
    within=lambda x, low, high: low <= x <= high,
    kind=RuntimeError,
):
    """`validate_loss`; each keyword injects one fault."""
    value = float(loss)
    if not_finite(value) or not within(value, min_loss, max_loss):
        raise kind(f"the loss is {value:g}")


for cause, fault in (
    (
        "only the bounds are checked, with < and >: every comparison with NaN is false, so NaN passes",
        {"not_finite": lambda x: False, "within": lambda x, low, high: not (x < low or x > high)},
    ),
    ("only NaN and infinity are checked, not the bounds", {"within": lambda x, low, high: True}),
    ("infinity is left to the bounds, and passes where there are none", {"not_finite": math.isnan}),
    ("negative losses are rejected", {"within": lambda x, low, high: 0 <= x <= high and low <= x}),
    ("only the upper bound is checked", {"within": lambda x, low, high: x <= high}),
    ("only the lower bound is checked", {"within": lambda x, low, high: low <= x}),
    (
        "the absolute value is compared with the upper bound: `min_loss` is ignored",
        {"within": lambda x, low, high: abs(x) <= high},
    ),
    ("a loss that equals a bound is rejected", {"within": lambda x, low, high: low < x < high}),
    ("the bounds are always a million, ignoring the arguments", {"within": lambda x, low, high: -1e6 <= x <= 1e6}),
    ("the error has another type: the training loop catches RuntimeError", {"kind": ValueError}),
):
    validate_loss.mutant(cause, LOSS)(functools.partial(validate_loss_variant, **fault))


@validate_loss.mutant("False is returned instead of raising an error: callers that ignore it train on", LOSS)
def _(loss, min_loss=-1e6, max_loss=1e6):
    return None if math.isfinite(loss) and min_loss <= loss <= max_loss else False


validate_loss.alternative(validate_loss_variant)


@validate_loss.alternative
def _(loss, min_loss=-1e6, max_loss=1e6):
    value = torch.as_tensor(loss, dtype=torch.float64)
    if not bool(value.isfinite()) or bool(value < min_loss) or bool(value > max_loss):
        raise RuntimeError(f"a loss of {value}")


validate_loss.replaces("tinyomni.stability.validate_loss")


# ---- the gradient ---------------------------------------------------------------------------------------------------


class WithGradients(nn.Module):
    """Weights with these gradients; None for a weight without one. Unlike other modules it keeps them when copied."""

    def __init__(self, *gradients):
        super().__init__()
        self.weights = nn.ParameterList(
            torch.full((2,), 7.0) if s is None else torch.full_like(s, 7.0) for s in gradients
        )
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = None if gradient is None else gradient.clone()

    def __deepcopy__(self, memo):
        return WithGradients(*[weight.grad for weight in self.weights])


@exercise("Detect exploding gradients", minutes=15, level=2)
def check_gradient_explosion(model: nn.Module, max_grad_norm: float = 100.0) -> tuple[float, bool]:
    """The squares of all numbers of all gradients, summed."""
    total = sum(number**2 for p in model.parameters() if p.grad is not None for number in p.grad.flatten().tolist())
    norm = math.sqrt(total)
    return norm, not norm <= max_grad_norm or math.isinf(norm), False  # type: ignore[return-value]


@check_gradient_explosion.invoke
def _(answer, model, max_grad_norm=100.0):
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    norm, exploded = answer(model, max_grad_norm)
    after = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    touched = not unchanged(before, after)
    return norm, exploded, touched


@check_gradient_explosion.cases
def _(rng):
    yield "three weights", {"model": WithGradients(rng.randn(2, 5), rng.randn(3), 2 * rng.randn(4, 3))}
    yield (
        "two norms of 80, together above 100",
        {"model": WithGradients(torch.tensor([80.0]), torch.tensor([80.0, 0.0]))},
    )
    yield (
        "a norm below 100, although the sum of the norms is above",
        {"model": WithGradients(torch.tensor([60.0]), torch.tensor([[70.0]]))},
    )
    yield "exploded", {"model": WithGradients(200 * rng.randn(3, 2), rng.randn(2))}
    yield "NaN", {"model": WithGradients(torch.tensor([1.0, math.nan]), rng.randn(3))}
    yield "infinite", {"model": WithGradients(rng.randn(3), torch.tensor([math.inf]))}
    yield "a weight without a gradient", {"model": WithGradients(rng.randn(3), None, rng.randn(2, 2))}
    yield "a limit of 2", {"model": WithGradients(torch.tensor([3.0, 4.0])), "max_grad_norm": 2.0}
    yield "exactly the limit", {"model": WithGradients(torch.tensor([3.0, 4.0])), "max_grad_norm": 5.0}
    yield (
        "no limit, and an infinite gradient",
        {"model": WithGradients(torch.tensor([math.inf])), "max_grad_norm": math.inf},
    )


@check_gradient_explosion.random_inputs
def _(rng):
    scale = rng.choice((0.1, 1.0, 40.0))
    gradients = [rng.choice((None, scale * rng.randn(rng.size(3), rng.size(4)))) for _ in range(rng.size())]
    gradients.append(torch.tensor([rng.choice((0.0, 3.0, 1e25, math.nan, math.inf, -math.inf))]))
    return {"model": WithGradients(*gradients), "max_grad_norm": rng.choice((5.0, 100.0, math.inf))}


def norm_of(model, *, each=lambda g: g.norm(), join=lambda norms: norms.norm(), of=lambda p: p.grad):
    """One norm for each gradient, then one for all."""
    return float(join(torch.stack([each(of(p)) for p in model.parameters() if p.grad is not None])))


def gradient_explosion_variant(
    model, max_grad_norm=100.0, *, over=lambda n, most: not math.isfinite(n) or n > most, **how
):
    """`check_gradient_explosion`; each keyword injects one fault."""
    norm = norm_of(model, **how)
    return norm, over(norm, max_grad_norm)


for cause, fault in (
    ("the norms of the single gradients are summed, not their squares", {"join": torch.sum}),
    ("the largest norm of a single gradient is taken", {"join": torch.max}),
    ("the norms are averaged", {"join": torch.mean}),
    ("the last gradient overwrites those before it", {"join": lambda norms: norms[-1]}),
    ("the largest absolute value is taken instead of the norm", {"each": lambda g: g.abs().max(), "join": torch.max}),
    ("the square root is missing", {"join": lambda norms: norms.square().sum()}),
    ("the norm of the weights is taken instead of the gradients", {"of": lambda p: p.detach()}),
    ("NaN does not count as exploded: every comparison with NaN is false", {"over": lambda n, most: n > most}),
    ("only NaN and infinity count as exploded", {"over": lambda n, most: not math.isfinite(n)}),
    (
        "infinity is left to the limit, and passes where there is none",
        {"over": lambda n, most: math.isnan(n) or n > most},
    ),
    ("a norm that equals the limit counts as exploded", {"over": lambda n, most: not math.isfinite(n) or n >= most}),
    ("the limit is always 100, ignoring the argument", {"over": lambda n, most: not math.isfinite(n) or n > 100}),
    ("the boolean is inverted", {"over": lambda n, most: math.isfinite(n) and n <= most}),
):
    check_gradient_explosion.mutant(cause, GRADIENT)(functools.partial(gradient_explosion_variant, **fault))


@check_gradient_explosion.mutant("the norm is taken by clipping, which modifies the gradients", GRADIENT)
def _(model, max_grad_norm=100.0):
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    return norm, not math.isfinite(norm) or norm > max_grad_norm


check_gradient_explosion.alternative(gradient_explosion_variant)


@check_gradient_explosion.alternative
def _(model, max_grad_norm=100.0):
    gradients = torch.cat(
        [torch.zeros(1)] + [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]
    )
    norm = gradients.double().pow(2).sum().sqrt().item()
    return norm, not norm < math.inf or norm > max_grad_norm


check_gradient_explosion.replaces("tinyomni.stability.check_gradient_explosion")


# ---- accumulation ---------------------------------------------------------------------------------------------------


def parameter_vector(model):
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradients_cleared(model):
    """Are all gradients None or zero?"""
    return all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())


@exercise("Gradient accumulation", minutes=20, level=2, float64=False)
def accumulate_gradients(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Float[Tensor, "_ dim"], Float[Tensor, "_ outputs"]]],
) -> float:
    """The large batch in one step."""
    model, optimizer = copy.deepcopy((model, optimizer))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loss = F.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return {"loss": loss.item(), "weights": parameter_vector(model), "gradients cleared": True}  # type: ignore[return-value]


@accumulate_gradients.invoke
def _(answer, model, optimizer, batches):
    model, optimizer = copy.deepcopy((model, optimizer))
    rows: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    loss = answer(model, optimizer, batches)
    if max(rows, default=0) > (most := max(len(x) for x, _ in batches)):
        raise AnswerError(
            f"the model got {max(rows)} rows at once: more than the largest micro-batch ({most}) may not fit"
        )
    return {"loss": loss, "weights": parameter_vector(model), "gradients cleared": gradients_cleared(model)}


def linear_and_optimizer(rng, width, out, lr=0.1, kind=torch.optim.SGD):
    """A linear layer with random weights, and its optimizer."""
    layer = nn.utils.skip_init(nn.Linear, width, out)
    layer.weight.data, layer.bias.data = rng.randn(out, width), rng.randn(out)
    return {"model": layer, "optimizer": kind(layer.parameters(), lr=lr)}


@accumulate_gradients.cases
def _(rng):
    def rows(width, out, *sizes):
        return [(rng.randn(size, width), rng.randn(size, out)) for size in sizes]

    yield "2, 5 and 4 rows", {**linear_and_optimizer(rng, 7, 3), "batches": rows(7, 3, 2, 5, 4)}
    yield "micro-batches of equal size", {**linear_and_optimizer(rng, 3, 2), "batches": rows(3, 2, 4, 4)}
    yield "one micro-batch", {**linear_and_optimizer(rng, 3, 1), "batches": rows(3, 1, 5)}
    yield "one row and nine", {**linear_and_optimizer(rng, 2, 1), "batches": rows(2, 1, 1, 9)}
    yield "AdamW", {**linear_and_optimizer(rng, 3, 2, kind=torch.optim.AdamW), "batches": rows(3, 2, 3, 1, 2)}


@accumulate_gradients.random_inputs
def _(rng):
    width, out = rng.size(4), rng.size(3)
    kind = rng.choice((torch.optim.SGD, torch.optim.AdamW))
    batches = [(rng.randn(size, width), rng.randn(size, out)) for size in rng.chosen(range(1, 6), 4, 1)]
    return {**linear_and_optimizer(rng, width, out, kind=kind), "batches": batches}


def accumulate_gradients_variant(
    model,
    optimizer,
    batches,
    *,
    weight_of=lambda n, total, parts: n / total,
    before=None,
    between=None,
    after="step zero",
    report=lambda losses, weights: sum(loss * weight_of for loss, weight_of in zip(losses, weights, strict=True)),
):
    """`accumulate_gradients`; each keyword injects one fault."""
    total, losses, weights = sum(len(x) for x, _ in batches), [], []
    for x, y in batches:
        if before:
            before(optimizer)
        loss = F.mse_loss(model(x), y)
        weights.append(weight_of(len(x), total, len(batches)))
        (loss * weights[-1]).backward()
        losses.append(loss.item())
        if between:
            between(optimizer)
    for act in after.split():
        (optimizer.step if act == "step" else optimizer.zero_grad)()
    return report(losses, weights)


def step_and_forget(optimizer):
    optimizer.step()
    optimizer.zero_grad()


for cause, fault in (
    (
        "every micro-batch has the same weight, ignoring its number of rows: a mean of means",
        {"weight_of": lambda n, total, parts: 1 / parts},
    ),
    (
        "the losses are not scaled: the gradient is too large by the number of micro-batches",
        {"weight_of": lambda n, total, parts: 1.0},
    ),
    (
        "each loss is multiplied by its number of rows, but not divided by all of them",
        {"weight_of": lambda n, total, parts: float(n)},
    ),
    (
        "each loss is divided by the number of micro-batches once more",
        {"weight_of": lambda n, total, parts: n / total / parts},
    ),
    ("a step is taken after each micro-batch instead of once at the end", {"between": step_and_forget, "after": ""}),
    (
        "the gradients are cleared before each micro-batch: only the last one counts",
        {"before": lambda optimizer: optimizer.zero_grad()},
    ),
    ("the gradients are cleared before the step, or no step is taken: the weights never change", {"after": "zero"}),
    ("the gradients are not cleared: they are added to those of the next batch", {"after": "step"}),
    (
        "the loss of the last micro-batch is returned instead of the mean",
        {"report": lambda losses, weights: losses[-1]},
    ),
    ("the losses are summed, though the gradients are weighted", {"report": lambda losses, weights: sum(losses)}),
    (
        "the losses are averaged, ignoring the number of rows",
        {"report": lambda losses, weights: sum(losses) / len(losses)},
    ),
):
    accumulate_gradients.mutant(cause, BARE if "not cleared" in cause else SMALL)(
        functools.partial(accumulate_gradients_variant, **fault)
    )


accumulate_gradients.alternative(accumulate_gradients_variant)


@accumulate_gradients.alternative
def _(model, optimizer, batches):
    optimizer.zero_grad()
    rows = sum(y.numel() for _, y in batches)
    total = 0.0
    for x, y in batches:
        loss = (model(x) - y).square().sum() / rows
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return total


# ---- the step -------------------------------------------------------------------------------------------------------


@exercise("A training step with a gradient scaler", minutes=30, level=3, float64=False)
def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    x: Float[Tensor, "batch dim"],
    y: Float[Tensor, "batch outputs"],
    skip_grad_norm: float = 100.0,
    max_grad_norm: float = 1.0,
) -> str:
    """Without a scaler: gradients and SGD by hand; the scale doubles after every step that was not skipped."""
    weight, bias = (parameter.detach().clone() for parameter in model.parameters())
    lr, scale, results = optimizer.param_groups[0]["lr"], scaler.get_scale(), []
    for inputs, targets in two_batches(x, y):
        error = inputs @ weight.T + bias - targets
        loss = float(error.square().mean())
        gradients = [2 / error.numel() * error.T @ inputs, 2 / error.numel() * error.sum(dim=0)]
        norm = math.sqrt(sum(float((gradient * scale / scale).square().sum()) for gradient in gradients))
        if not abs(loss) <= 1e6:
            results.append("bad loss")
            continue
        results.append("stepped" if norm <= skip_grad_norm else "exploded")
        scale *= 2 if math.isfinite(norm) else 0.5
        if norm <= skip_grad_norm:
            step = lr * min(1.0, max_grad_norm / norm) if norm else lr
            weight, bias = weight - step * gradients[0], bias - step * gradients[1]
    return {
        "results": results,
        "weights": torch.cat([weight.flatten(), bias]),
        "scale": scale,
        "gradients cleared": True,
    }  # type: ignore[return-value]


def two_batches(x, y):
    """The given batch, and a healthy one after it, which reveals what the first left behind."""
    return [(x, y), (torch.full_like(x, 0.5), torch.zeros_like(y))]


@training_step.invoke
def _(answer, model, optimizer, scaler, x, y, **more):
    model, optimizer, scaler = copy.deepcopy((model, optimizer, scaler))
    results = [answer(model, optimizer, scaler, *batch, **more) for batch in two_batches(x, y)]
    return {
        "results": results,
        "weights": parameter_vector(model),
        "scale": float(scaler.get_scale()),
        "gradients cleared": gradients_cleared(model),
    }


def batch_and_scaler(rng, batch, width, out, scale=1.0, init_scale=2.0**16, **more):
    """A linear layer, its optimizer and scaler, and a batch."""
    grow = {"scaler": torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=1)}
    return {
        **linear_and_optimizer(rng, width, out),
        **grow,
        "x": scale * rng.randn(batch, width),
        "y": scale * rng.randn(batch, out),
        **more,
    }


@training_step.cases
def _(rng):
    given = functools.partial(batch_and_scaler, rng)
    yield "all sizes different", given(5, 7, 3)
    yield "batch 1", given(1, 3, 2, scale=0.1)
    yield "exploded", given(4, 3, 2, scale=60.0)
    broken = given(3, 2, 1)
    broken["x"][1, 0] = math.nan
    yield "NaN in the batch", broken
    yield "a scale so large that the gradients overflow", given(3, 2, 2, scale=3.0, init_scale=2.0**125)
    yield "a loss above a million", given(3, 2, 1, scale=3000.0)
    yield "skip_grad_norm 2", given(4, 3, 2, scale=2.0, skip_grad_norm=2.0)
    yield "max_grad_norm above skip_grad_norm", given(4, 3, 2, scale=3.0, skip_grad_norm=1.5, max_grad_norm=4.0)
    yield "max_grad_norm 0.1", given(4, 3, 2, max_grad_norm=0.1)


@training_step.random_inputs
def _(rng):
    batch = batch_and_scaler(rng, rng.size(4), rng.size(4), rng.size(3), scale=rng.choice((0.1, 1.0, 30.0, 3000.0)))
    return batch | {"skip_grad_norm": rng.choice((2.0, 50.0)), "max_grad_norm": rng.number(0.1, 3.0)}


def training_step_variant(
    model,
    optimizer,
    scaler,
    x,
    y,
    skip_grad_norm=100.0,
    max_grad_norm=1.0,
    *,
    look="before",
    order="unscale check clip",
    skip="zero update",
    after="step update zero",
    scaled=True,
):
    """`training_step`; each keyword injects one fault."""
    do = {"zero": optimizer.zero_grad, "update": scaler.update, "step": lambda: scaler.step(optimizer)}
    loss = F.mse_loss(model(x), y)
    valid = abs(loss.item()) <= 1e6
    if look == "before" and not valid:
        return "bad loss"
    (scaler.scale(loss) if scaled else loss).backward()
    if look == "after" and not valid:
        return "bad loss"
    if not scaled:
        scaler.scale(loss)  # a scaler is only initialized by its first `scale`
    for act in order.split():
        if act == "unscale":
            scaler.unscale_(optimizer)
        elif act == "clip":
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        elif not norm_of(model) <= skip_grad_norm:
            for line in skip.split():
                do[line]()
            return "exploded"
    for line in after.split():
        do[line]()
    return "stepped"


for cause, fault, section in (
    ("the loss is never validated: NaN is only noticed in the gradients", {"look": "never"}, LOSS),
    (
        "the loss is validated after `backward`: its NaN stays in the gradients and spoils the next batch",
        {"look": "after"},
        LOSS,
    ),
    (
        "the loss is not scaled, but the gradients are unscaled: the steps are 65,536 times too small",
        {"scaled": False},
        BITS,
    ),
    (
        "the gradients are checked before they are unscaled: every healthy batch seems to explode",
        {"order": "check unscale clip", "skip": "zero"},
        BITS,
    ),
    (
        "the gradients are clipped before they are unscaled: the steps are far too small, without any error",
        {"order": "clip unscale check"},
        BITS,
    ),
    (
        "the gradients are clipped before they are checked: nothing ever explodes",
        {"order": "unscale clip check"},
        GRADIENT,
    ),
    ("exploding gradients are not checked: one bad batch decides the direction", {"order": "unscale clip"}, GRADIENT),
    ("the gradients are not clipped", {"order": "unscale check"}, GRADIENT),
    ("a skipped batch does not clear its gradients: they are added to the next", {"skip": "update"}, BITS),
    ("a skipped batch does not update the scaler, which then refuses the next unscale", {"skip": "zero"}, BITS),
    ("the scaler is not updated after a step", {"after": "step zero"}, BITS),
    ("the gradients are not cleared after a step", {"after": "step update"}, BARE),
    ("the gradients are cleared before the step: the weights never change", {"after": "zero update"}, PAGE),
):
    training_step.mutant(cause, section)(functools.partial(training_step_variant, **fault))


@training_step.mutant("the gradients are always clipped at 1, ignoring `max_grad_norm`", GRADIENT)
def _(model, optimizer, scaler, x, y, skip_grad_norm=100.0, max_grad_norm=1.0):
    return training_step_variant(model, optimizer, scaler, x, y, skip_grad_norm)


@training_step.mutant("the limit is always 100, ignoring `skip_grad_norm`", GRADIENT)
def _(model, optimizer, scaler, x, y, skip_grad_norm=100.0, max_grad_norm=1.0):
    return training_step_variant(model, optimizer, scaler, x, y, max_grad_norm=max_grad_norm)


training_step.alternative(training_step_variant)


@training_step.alternative
def _(model, optimizer, scaler, x, y, skip_grad_norm=100.0, max_grad_norm=1.0):
    optimizer.zero_grad()
    loss = (model(x) - y).pow(2).mean()
    if not abs(loss.item()) <= 1e6:
        return "bad loss"
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    too_large = not bool(norm <= skip_grad_norm)
    if not too_large:
        for p in model.parameters():
            p.grad *= min(1.0, max_grad_norm / float(norm + 1e-12))
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return "exploded" if too_large else "stepped"


# ---- the learning rate ----------------------------------------------------------------------------------------------


@exercise("Warm-up and cosine decay", minutes=15, level=2)
def learning_rate(step: int, steps: int, warmup: int, lr: float = 1e-3, min_lr_ratio: float = 0.05) -> float:
    """torch's own schedulers, one step after the other."""
    if step < warmup:
        return lr * (step + 1) / warmup
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    fraction = max(1, steps - 1 - warmup)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fraction, eta_min=min_lr_ratio * lr)
    for _ in range(min(step - warmup, fraction)):
        optimizer.step()
        schedule.step()
    return float(optimizer.param_groups[0]["lr"])


@learning_rate.cases
def _(rng):
    def at(step, steps=40, warmup=8, **more):
        return {"step": step, "steps": steps, "warmup": warmup, **more}

    for what, step in (
        ("in the warm-up", 3),
        ("the first step", 0),
        ("the last warm-up step", 7),
        ("the peak", 8),
        ("during the decay", 17),
        ("late", 33),
        ("the last step", 39),
        ("beyond the last step", 45),
    ):
        yield what, at(step)
    yield "no warm-up, the first step", at(0, warmup=0)
    yield "no warm-up, later", at(9, warmup=0)
    yield "another lr and min_lr_ratio", at(29, lr=0.02, min_lr_ratio=0.3)
    yield "min_lr_ratio 0", at(36, min_lr_ratio=0.0)
    yield "warm-up until the end", at(7, steps=8)
    yield "after a warm-up until the end", at(10, steps=9)
    yield "after a warm-up longer than the training", at(12, steps=6)


@learning_rate.random_inputs
def _(rng):
    steps, warmup = rng.size(30, 2), rng.choice((0, 1, 2, 5, 35))
    step = rng.choice((0, max(0, warmup - 1), rng.size(40, 0), steps - 1, steps))
    step += step == warmup >= steps - 1  # the peak and the end at once: the text does not say which
    return {"step": step, "steps": steps, "warmup": warmup, "lr": rng.number(0.01, 1.0), "min_lr_ratio": rng.number()}


def learning_rate_variant(
    step,
    steps,
    warmup,
    lr=1e-3,
    min_lr_ratio=0.05,
    *,
    rise=lambda t, w: (t + 1) / w,
    fraction=lambda t, w, s: (t - w) / max(1, s - 1 - w),
    fall=lambda fraction: (1 + math.cos(math.pi * fraction)) / 2,
    low=lambda f, fall, lr: f + (1 - f) * fall,
    end=1.0,
):
    """`learning_rate`; each keyword injects one fault."""
    if step < warmup:
        return lr * rise(step, warmup)
    return lr * low(min_lr_ratio, fall(min(end, fraction(step, warmup, steps))), lr)


for cause, fault in (
    ("the first step has a rate of 0: nothing is learned", {"rise": lambda t, w: t / w}),
    ("there is no warm-up", {"rise": lambda t, w: 1.0}),
    (
        "the warm-up is not subtracted before the cosine: the rate jumps",
        {"fraction": lambda t, w, s: t / max(1, s - 1)},
    ),
    (
        "the warm-up is subtracted from the step, but not from the number of steps: the minimum is never reached",
        {"fraction": lambda t, w, s: (t - w) / max(1, s - 1)},
    ),
    (
        "the decay ends at `steps`, not at the last step, `steps` − 1",
        {"fraction": lambda t, w, s: (t - w) / max(1, s - w)},
    ),
    (
        "the cosine runs through a whole period: the rate rises again in the second half",
        {"fall": lambda fraction: (1 + math.cos(2 * math.pi * fraction)) / 2},
    ),
    (
        "the cosine is not shifted to 0 … 1: the rate becomes negative",
        {"fall": lambda fraction: math.cos(math.pi * fraction)},
    ),
    ("the decay is linear", {"fall": lambda fraction: 1 - fraction}),
    ("the decay ends at 0: there is no minimum", {"low": lambda f, fall, lr: fall}),
    ("the minimum clips the curve instead of being its end", {"low": lambda f, fall, lr: max(f, fall)}),
    ("the minimum is added: the peak is above `lr`", {"low": lambda f, fall, lr: f + fall}),
    (
        "`min_lr_ratio` is used as a rate, not as a fraction of `lr`",
        {"low": lambda f, fall, lr: fall + f / lr * (1 - fall)},
    ),
    ("after the last step the rate rises again", {"end": math.inf}),
):
    learning_rate.mutant(cause, RATE)(functools.partial(learning_rate_variant, **fault))


@learning_rate.mutant("the peak is always 0.001, ignoring `lr`", RATE)
def _(step, steps, warmup, lr=1e-3, min_lr_ratio=0.05):
    return learning_rate_variant(step, steps, warmup, min_lr_ratio=min_lr_ratio)


learning_rate.alternative(learning_rate_variant)


@learning_rate.alternative
def _(step, steps, warmup, lr=1e-3, min_lr_ratio=0.05):
    if warmup and step < warmup:
        return (step + 1) / warmup * lr
    last = max(warmup + 1, steps - 1)
    angle = math.pi / 2 * (min(step, last) - warmup) / (last - warmup)
    return lr * (math.cos(angle) ** 2 + min_lr_ratio * math.sin(angle) ** 2)


@learning_rate.replaces("tinyomni.training.optim.learning_rate")
def _(answer):
    return lambda step, settings: answer(step, settings.steps, settings.warmup, settings.lr, settings.min_lr_ratio)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


OLD = b"the checkpoint before this one"


class FullDisk(OSError):
    """The error of the simulated disk when it is full."""


@contextmanager
def watched_disk(path: Path, size: int, full: bool = False) -> Iterator[list[str]]:
    """Records each rename: was the file synced completely, is it in the same folder, does the old file still exist?"""
    renames: list[str] = []
    synced: dict[int, int] = {}
    rename = os.replace

    def sync(file):
        handle = file if isinstance(file, int) else file.fileno()
        if full:
            raise FullDisk("no space left on device")
        about = os.fstat(handle)
        synced[about.st_ino] = about.st_size

    def move(source, target, **more):
        about, old = Path(source).stat(), path.exists() and path.read_bytes() == OLD
        complete = synced.get(about.st_ino) == size
        # a folder inside of it is on the same disk, too
        same_folder = Path(target).resolve().parent in Path(source).resolve().parents
        renames.append(
            f"renamed: {'after' if complete else 'without'} a sync, "
            f"in {'the same' if same_folder else 'another'} folder, "
            f"the old file {'existed' if old else 'was gone'}"
        )
        rename(source, target, **more)

    with (
        mock.patch.object(os, "fsync", sync),
        mock.patch.object(os, "replace", move),
        mock.patch.object(os, "rename", move),
    ):
        yield renames


@exercise("Write a file atomically", minutes=20, level=2)
def atomic_save(path: Path, data: bytes) -> None:
    """What should be recorded; and the outcome on a full disk."""
    steps = ["renamed: after a sync, in the same folder, the old file existed"]
    return {  # type: ignore[return-value]
        "steps": steps,
        "content": data,
        "all files": [path.name],
        "content on a full disk": OLD,
        "error on a full disk": "raised",
    }


@atomic_save.invoke
def _(answer, path, data):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path
        file.write_bytes(OLD)
        with watched_disk(file, len(data)) as steps:
            answer(file, data)
        names = sorted(each.name for each in Path(folder).iterdir())
        found = {"steps": steps, "content": content_of(file), "all files": names}
    with tempfile.TemporaryDirectory() as folder:
        file, error = Path(folder) / path, "swallowed"
        file.write_bytes(OLD)
        with watched_disk(file, len(data), full=True):
            try:
                answer(file, data)
            except FullDisk:
                error = "raised"
        return found | {"content on a full disk": content_of(file), "error on a full disk": error}


def content_of(file):
    """The content, or nothing if there is no such file."""
    return file.read_bytes() if file.exists() else b""


@atomic_save.cases
def _(rng):
    yield "a small file", {"path": Path("last.pt"), "data": b"weights"}
    yield "longer than the old one", {"path": Path("step-00000500"), "data": bytes(range(256)) * 5}
    yield "an empty file", {"path": Path("best"), "data": b""}


@atomic_save.random_inputs
def _(rng):
    return {"path": Path(f"step-{rng.size(10_000):08}"), "data": bytes(rng.randint(256, rng.size(9000)).tolist())}


def atomic_save_variant(
    path, data, *, folder=None, flush=True, first=None, order="sync move", replace=lambda old, new: os.replace(old, new)
):
    """`atomic_save`; each keyword injects one fault."""
    temporary = (folder or path.parent) / f"tmp-{path.name}"
    if first:
        first(path)
    with temporary.open("wb") as file:
        file.write(data)
        if flush:
            file.flush()
        for act in order.split():
            if act == "sync":
                os.fsync(file.fileno())
            else:
                replace(temporary, path)


for cause, fault in (
    ("there is no fsync before the rename: after a power failure the new name may hold nothing", {"order": "move"}),
    ("fsync comes after the rename: in between, the new name may hold nothing", {"order": "move sync"}),
    ("Python's buffer is not flushed before fsync: nothing has reached the disk yet", {"flush": False}),
    ("the file is never renamed: the new checkpoint keeps its temporary name", {"order": "sync"}),
    ("the old file is deleted first: a crash in between leaves none", {"first": lambda path: path.unlink()}),
    (
        "the file is copied over the old one, which is not atomic, and the temporary file is left behind",
        {"replace": shutil.copyfile},
    ),
    (
        "the old file is moved aside first: a crash in between leaves none under its name",
        {"first": lambda path: os.replace(path, path.with_name(f"{path.name}.bak"))},
    ),
):
    atomic_save.mutant(cause, KEEP)(functools.partial(atomic_save_variant, **fault))


IN_PLACE = (
    "the old file is overwritten in place: a crash in the middle leaves half of the new one, and nothing of the old"
)


@atomic_save.mutant(f"{IN_PLACE}; nor is there an fsync", KEEP)
def _(path, data):
    path.write_bytes(data)


@atomic_save.mutant(IN_PLACE, KEEP)
def _(path, data):
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@atomic_save.mutant(
    "the temporary file is in another folder, perhaps on another disk, where renaming is not atomic", KEEP
)
def _(path, data):
    with tempfile.TemporaryDirectory() as folder:
        atomic_save_variant(path, data, folder=Path(folder))


@atomic_save.mutant("the error of a full disk is swallowed", KEEP)
def _(path, data):
    with suppress(OSError):
        atomic_save_variant(path, data)


atomic_save.alternative(atomic_save_variant)


@atomic_save.alternative
def _(path, data):
    temporary = path.with_suffix(".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    temporary.rename(path)
