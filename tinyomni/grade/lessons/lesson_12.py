"""Lesson 12, the training loop: its oracles count number by number, step by hand, or use torch's schedulers."""

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

from tinyomni.grade.exercise import exercise, unchanged

NOTEBOOK, TITLE = "12_training_loop", "The training loop"

BARE = "1. The loop that always works, when nothing goes wrong"
LOSS = "2. The loss: one bad batch is enough"
GRADIENT = "3. The gradient: check, then clip"
BITS = "4. Sixteen bits"
SMALL = "5. A large batch from small ones"
RATE = "6. The optimiser, and how fast"
KEEP = "8. Checkpoints that survive"
PAGE = "10. The step, on one page"

fault: Any  # what a mutant changes


# ---- NaN ------------------------------------------------------------------------------------------------------------


@exercise("Who made the NaN?", minutes=10, level=1)
def check_finite(where: str, values: Float[Tensor, "batch tokens dim"]) -> None:
    """What should be found in the message, counted number by number."""
    numbers = values.flatten().tolist()
    nan, inf = sum(map(math.isnan, numbers)), sum(map(math.isinf, numbers))
    raised = "RuntimeError" if nan + inf else "nothing"
    return {"raised": raised, "NaN": nan, "Inf": inf, "place named": bool(nan + inf)}  # type: ignore[return-value]


@check_finite.invoke
def _(answer, where, values):
    try:
        answer(where, values)
    except NotImplementedError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        counts = {name: re.search(rf"{name}=(\d+)", str(error)) for name in ("NaN", "Inf")}
        told = {name: int(found[1]) if found else -1 for name, found in counts.items()}
        return {"raised": type(error).__name__, **told, "place named": where in str(error)}
    return {"raised": "nothing", "NaN": 0, "Inf": 0, "place named": False}


def damaged(values, *, nan=(), inf=(), minus=()):
    """The numbers at these places replaced."""
    flat = values.flatten()
    for places, number in ((nan, math.nan), (inf, math.inf), (minus, -math.inf)):
        flat[list(places)] = number
    return flat.view_as(values)


@check_finite.cases
def _(rng):
    yield (
        "all sizes different",
        {"where": "Thinker", "values": damaged(rng.randn(2, 3, 4), nan=[1, 7], inf=[5], minus=[6, 12])},
    )
    yield "nothing is wrong", {"where": "Talker", "values": rng.randn(2, 3, 2)}
    yield "large, but finite", {"where": "ViT", "values": 1e30 * rng.randn(1, 2, 3)}
    yield "NaN only", {"where": "ear", "values": damaged(rng.randn(1, 2, 3), nan=[3])}
    yield "infinity only", {"where": "Thinker", "values": damaged(rng.randn(2, 2, 2), inf=[3, 4])}
    yield "minus infinity only", {"where": "Talker", "values": damaged(rng.randn(1, 1, 4), minus=[2])}
    yield "two NaN in one token", {"where": "eye", "values": damaged(rng.randn(1, 2, 3), nan=[3, 5])}


def looked_at(
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
    """The check, with one thing to go wrong at a time."""
    nans, infs = int(count(nan(values))), int(count(inf(values)))
    if bad(nans, infs):
        raise kind(f"Numerical instability{f' in {where}' if name else ''}: NaN={nans}, Inf={infs}")


for cause, fault in (
    ("only NaN is looked for: infinity goes through, and is NaN one step later", {"bad": lambda nan, inf: nan > 0}),
    ("only infinity is looked for", {"bad": lambda nan, inf: inf > 0}),
    ("both have to be there before it complains", {"bad": lambda nan, inf: nan > 0 and inf > 0}),
    ("minus infinity is overlooked", {"inf": lambda values: values == math.inf}),
    ("NaN is compared with NaN: it equals nothing, not even itself", {"nan": lambda values: values == math.nan}),
    ("infinite numbers are counted as NaN too", {"nan": lambda values: ~torch.isfinite(values)}),
    ("tokens are counted instead of numbers", {"count": lambda found: found.any(dim=-1).sum()}),
    ("it says that there are some, not how many", {"count": torch.any}),
    ("large numbers are taken for infinite ones", {"inf": lambda values: values.abs() > 1e6}),
    ("the message does not say where", {"name": False}),
    ("an error of another type is raised: the engine catches RuntimeError", {"kind": ValueError}),
):
    check_finite.mutant(cause, LOSS)(functools.partial(looked_at, **fault))


check_finite.alternative(looked_at)


@check_finite.alternative
def _(where, values):
    nan = int((values != values).sum())
    finite = int(torch.isfinite(values).sum())
    if finite < values.numel():
        raise RuntimeError(f"{where}: NaN={nan}, Inf={values.numel() - finite - nan}")


# ---- the loss -------------------------------------------------------------------------------------------------------


@exercise("Is this a loss?", minutes=10, level=1, raises=(RuntimeError,))
def validate_loss(loss: Float[Tensor, ""] | float, min_loss: float = -1e6, max_loss: float = 1e6) -> None:
    """Sound if it lies on the line between the bounds; NaN lies nowhere."""
    if sorted([min_loss, float(loss), max_loss])[1] != float(loss) or math.isnan(loss) or math.isinf(loss):
        raise RuntimeError(f"{float(loss):g} is no loss between {min_loss:g} and {max_loss:g}")
    return "it went through"  # type: ignore[return-value]


@validate_loss.invoke
def _(answer, loss, min_loss=-1e6, max_loss=1e6):
    gave = answer(loss, min_loss, max_loss)
    return "it went through" if gave is None else gave


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
    yield "a plain number", {"loss": 4.6}
    yield "a plain NaN", {"loss": math.nan}
    yield "exactly the upper bound", {"loss": torch.tensor(8.0), "max_loss": 8.0}
    yield "over a bound of 8", {"loss": torch.tensor(9.0), "max_loss": 8.0}
    yield "under a bound of 0", {"loss": torch.tensor(-0.5), "min_loss": 0.0}
    yield "large, and allowed", {"loss": torch.tensor(5e6), "max_loss": 1e7}
    yield "infinite, without bounds", {"loss": torch.tensor(math.inf), "min_loss": -math.inf, "max_loss": math.inf}


def validated(
    loss,
    min_loss=-1e6,
    max_loss=1e6,
    *,
    odd=lambda x: math.isnan(x) or math.isinf(x),
    inside=lambda x, low, high: low <= x <= high,
    kind=RuntimeError,
):
    """The check, with one thing to go wrong at a time."""
    value = float(loss)
    if odd(value) or not inside(value, min_loss, max_loss):
        raise kind(f"the loss is {value:g}")


for cause, fault in (
    (
        "only the bounds are looked at, by < and >: every comparison with NaN is false, so NaN goes through",
        {"odd": lambda x: False, "inside": lambda x, low, high: not (x < low or x > high)},
    ),
    ("only NaN and infinity are looked for, not the bounds", {"inside": lambda x, low, high: True}),
    ("infinity is left to the bounds, and goes through where there are none", {"odd": math.isnan}),
    ("a loss must not be negative, says this check", {"inside": lambda x, low, high: 0 <= x <= high and low <= x}),
    ("only the upper bound is looked at", {"inside": lambda x, low, high: x <= high}),
    ("only the lower bound is looked at", {"inside": lambda x, low, high: low <= x}),
    (
        "the size is compared with the upper bound: `min_loss` is never read",
        {"inside": lambda x, low, high: abs(x) <= high},
    ),
    ("a loss that equals a bound is refused", {"inside": lambda x, low, high: low < x < high}),
    ("the bounds are always a million, whatever is asked for", {"inside": lambda x, low, high: -1e6 <= x <= 1e6}),
    ("an error of another type is raised: the engine catches RuntimeError", {"kind": ValueError}),
):
    validate_loss.mutant(cause, LOSS)(functools.partial(validated, **fault))


@validate_loss.mutant("False comes back instead of an error: who does not look at it trains on", LOSS)
def _(loss, min_loss=-1e6, max_loss=1e6):
    return None if math.isfinite(loss) and min_loss <= loss <= max_loss else False


validate_loss.alternative(validated)


@validate_loss.alternative
def _(loss, min_loss=-1e6, max_loss=1e6):
    value = torch.as_tensor(loss, dtype=torch.float64)
    if not bool(value.isfinite()) or bool(value < min_loss) or bool(value > max_loss):
        raise RuntimeError(f"a loss of {value}")


validate_loss.replaces("tinyomni.stability.validate_loss")


# ---- the gradient ---------------------------------------------------------------------------------------------------


class Sloped(nn.Module):
    """Weights with these gradients; None for a weight that has none. Unlike other modules it keeps them when copied."""

    def __init__(self, *slopes):
        super().__init__()
        self.weights = nn.ParameterList(torch.full((2,), 7.0) if s is None else torch.full_like(s, 7.0) for s in slopes)
        for weight, slope in zip(self.weights, slopes, strict=True):
            weight.grad = None if slope is None else slope.clone()

    def __deepcopy__(self, memo):
        return Sloped(*[weight.grad for weight in self.weights])


@exercise("Has it exploded?", minutes=15, level=2)
def check_gradient_explosion(model: nn.Module, max_grad_norm: float = 100.0) -> tuple[float, bool]:
    """Every number of every gradient squared and summed up."""
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
    yield "three weights", {"model": Sloped(rng.randn(2, 5), rng.randn(3), 2 * rng.randn(4, 3))}
    yield "two of 80, together over 100", {"model": Sloped(torch.tensor([80.0]), torch.tensor([80.0, 0.0]))}
    yield (
        "together under 100, though their sum is more",
        {"model": Sloped(torch.tensor([60.0]), torch.tensor([[70.0]]))},
    )
    yield "exploded", {"model": Sloped(200 * rng.randn(3, 2), rng.randn(2))}
    yield "NaN", {"model": Sloped(torch.tensor([1.0, math.nan]), rng.randn(3))}
    yield "infinite", {"model": Sloped(rng.randn(3), torch.tensor([math.inf]))}
    yield "a weight without a gradient", {"model": Sloped(rng.randn(3), None, rng.randn(2, 2))}
    yield "a limit of 2", {"model": Sloped(torch.tensor([3.0, 4.0])), "max_grad_norm": 2.0}
    yield "exactly the limit", {"model": Sloped(torch.tensor([3.0, 4.0])), "max_grad_norm": 5.0}
    yield "no limit, and infinite", {"model": Sloped(torch.tensor([math.inf])), "max_grad_norm": math.inf}


def norm_of(model, *, each=lambda g: g.norm(), join=lambda norms: norms.norm(), of=lambda p: p.grad):
    """One length for each gradient, then one for all."""
    return float(join(torch.stack([each(of(p)) for p in model.parameters() if p.grad is not None])))


def exploded(model, max_grad_norm=100.0, *, over=lambda n, most: not math.isfinite(n) or n > most, **how):
    """The check, with one thing to go wrong at a time."""
    norm = norm_of(model, **how)
    return norm, over(norm, max_grad_norm)


for cause, fault in (
    ("the lengths of the single gradients are added up: they are no sides of one line", {"join": torch.sum}),
    ("the longest gradient is taken for all of them", {"join": torch.max}),
    ("the mean of the lengths is taken", {"join": torch.mean}),
    ("the last gradient overwrites those before it", {"join": lambda norms: norms[-1]}),
    ("the largest single number is taken for the length", {"each": lambda g: g.abs().max(), "join": torch.max}),
    ("the root is forgotten", {"join": lambda norms: norms.square().sum()}),
    ("the weights are measured instead of their gradients", {"of": lambda p: p.detach()}),
    ("NaN is no explosion here: every comparison with NaN is false", {"over": lambda n, most: n > most}),
    ("only NaN and infinity count as exploded", {"over": lambda n, most: not math.isfinite(n)}),
    (
        "infinity is left to the limit, and passes where there is none",
        {"over": lambda n, most: math.isnan(n) or n > most},
    ),
    ("a norm that equals the limit counts as exploded", {"over": lambda n, most: not math.isfinite(n) or n >= most}),
    ("the limit is always 100, whatever is asked for", {"over": lambda n, most: not math.isfinite(n) or n > 100}),
    ("the verdict is turned round", {"over": lambda n, most: math.isfinite(n) and n <= most}),
):
    check_gradient_explosion.mutant(cause, GRADIENT)(functools.partial(exploded, **fault))


@check_gradient_explosion.mutant("the norm is taken by clipping, and the gradient is shorter afterwards", GRADIENT)
def _(model, max_grad_norm=100.0):
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    return norm, not math.isfinite(norm) or norm > max_grad_norm


check_gradient_explosion.alternative(exploded)


@check_gradient_explosion.alternative
def _(model, max_grad_norm=100.0):
    slopes = torch.cat([torch.zeros(1)] + [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None])
    norm = slopes.double().pow(2).sum().sqrt().item()
    return norm, not norm < math.inf or norm > max_grad_norm


check_gradient_explosion.replaces("tinyomni.stability.check_gradient_explosion")


# ---- accumulation ---------------------------------------------------------------------------------------------------


def state(model):
    """All weights in one row."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def cleared(model):
    """Is no gradient left?"""
    return all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())


@exercise("A large batch from small ones", minutes=20, level=2, float64=False)
def accumulate(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: list[tuple[Float[Tensor, "_ dim"], Float[Tensor, "_ outputs"]]],
) -> float:
    """The large batch itself, in one go."""
    model, optimiser = copy.deepcopy((model, optimiser))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loss = F.mse_loss(model(x), y)
    loss.backward()
    optimiser.step()
    return {"loss": loss.item(), "weights": state(model), "gradients cleared": True}  # type: ignore[return-value]


@accumulate.invoke
def _(answer, model, optimiser, batches):
    model, optimiser = copy.deepcopy((model, optimiser))
    loss = answer(model, optimiser, batches)
    return {"loss": loss, "weights": state(model), "gradients cleared": cleared(model)}


def learner(rng, width, out, lr=0.1, kind=torch.optim.SGD):
    """A layer with weights drawn, and its optimiser."""
    layer = nn.utils.skip_init(nn.Linear, width, out)
    layer.weight.data, layer.bias.data = rng.randn(out, width), rng.randn(out)
    return {"model": layer, "optimiser": kind(layer.parameters(), lr=lr)}


@accumulate.cases
def _(rng):
    def rows(width, out, *sizes):
        return [(rng.randn(size, width), rng.randn(size, out)) for size in sizes]

    yield "2, 5 and 4 rows", {**learner(rng, 7, 3), "batches": rows(7, 3, 2, 5, 4)}
    yield "equally many rows", {**learner(rng, 3, 2), "batches": rows(3, 2, 4, 4)}
    yield "one batch", {**learner(rng, 3, 1), "batches": rows(3, 1, 5)}
    yield "one row and nine", {**learner(rng, 2, 1), "batches": rows(2, 1, 1, 9)}
    yield "AdamW", {**learner(rng, 3, 2, kind=torch.optim.AdamW), "batches": rows(3, 2, 3, 1, 2)}


def gathered(
    model,
    optimiser,
    batches,
    *,
    share=lambda n, total, parts: n / total,
    before=None,
    between=None,
    after="step zero",
    tell=lambda losses, shares: sum(loss * share for loss, share in zip(losses, shares, strict=True)),
):
    """The loop, with one thing to go wrong at a time."""
    total, losses, shares = sum(len(x) for x, _ in batches), [], []
    for x, y in batches:
        if before:
            before(optimiser)
        loss = F.mse_loss(model(x), y)
        shares.append(share(len(x), total, len(batches)))
        (loss * shares[-1]).backward()
        losses.append(loss.item())
        if between:
            between(optimiser)
    for act in after.split():
        (optimiser.step if act == "step" else optimiser.zero_grad)()
    return tell(losses, shares)


def step_and_forget(optimiser):
    optimiser.step()
    optimiser.zero_grad()


for cause, fault in (
    (
        "every micro-batch counts the same, however many rows it has: a mean of means",
        {"share": lambda n, total, parts: 1 / parts},
    ),
    (
        "nothing is divided: the gradient is as many times too long as there are micro-batches",
        {"share": lambda n, total, parts: 1.0},
    ),
    (
        "each counts by its number of rows, which is not divided by all of them",
        {"share": lambda n, total, parts: float(n)},
    ),
    (
        "the share is divided by the number of micro-batches once more",
        {"share": lambda n, total, parts: n / total / parts},
    ),
    ("a step is taken after each micro-batch instead of once at the end", {"between": step_and_forget, "after": ""}),
    (
        "the gradient is cleared before each micro-batch: only the last one counts",
        {"before": lambda optimiser: optimiser.zero_grad()},
    ),
    ("the gradient is cleared before the step, or no step is taken: the weights never move", {"after": "zero"}),
    ("the gradient is not cleared: it is added to that of the next batch", {"after": "step"}),
    ("the last micro-batch's loss is told for all of them", {"tell": lambda losses, shares: losses[-1]}),
    ("the losses are added up, though the gradients are weighed", {"tell": lambda losses, shares: sum(losses)}),
    (
        "the mean of the losses is told, however many rows each has",
        {"tell": lambda losses, shares: sum(losses) / len(losses)},
    ),
):
    accumulate.mutant(cause, BARE if "not cleared" in cause else SMALL)(functools.partial(gathered, **fault))


accumulate.alternative(gathered)


@accumulate.alternative
def _(model, optimiser, batches):
    optimiser.zero_grad()
    rows = sum(y.numel() for _, y in batches)
    told = 0.0
    for x, y in batches:
        loss = (model(x) - y).square().sum() / rows
        loss.backward()
        told += loss.item()
    optimiser.step()
    optimiser.zero_grad(set_to_none=False)
    return told


# ---- the step -------------------------------------------------------------------------------------------------------


@exercise("The step, in order", minutes=30, level=3, float64=False)
def training_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    x: Float[Tensor, "batch dim"],
    y: Float[Tensor, "batch outputs"],
    limit: float = 100.0,
    clip: float = 1.0,
) -> str:
    """Without any scaler: slopes by hand, plain descent; the scale doubles after every step that was looked at."""
    weight, bias = (parameter.detach().clone() for parameter in model.parameters())
    rate, scale, said = optimiser.param_groups[0]["lr"], 65536.0, []
    for seen, due in two_batches(x, y):
        apart = seen @ weight.T + bias - due
        loss = float(apart.square().mean())
        slopes = [2 / apart.numel() * apart.T @ seen, 2 / apart.numel() * apart.sum(dim=0)]
        norm = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
        if not abs(loss) <= 1e6:
            said.append("bad loss")
            continue
        said.append("stepped" if norm <= limit else "exploded")
        scale *= 2 if math.isfinite(norm) else 0.5
        if norm <= limit:
            short = min(1.0, clip / norm) if norm else 1.0
            weight, bias = weight - rate * short * slopes[0], bias - rate * short * slopes[1]
    return {"said": said, "weights": torch.cat([weight.flatten(), bias]), "scale": scale, "gradients cleared": True}  # type: ignore[return-value]


def two_batches(x, y):
    """The one that is asked for, and a healthy one behind it: what the first left undone shows there."""
    return [(x, y), (torch.full_like(x, 0.5), torch.zeros_like(y))]


@training_step.invoke
def _(answer, model, optimiser, scaler, x, y, **more):
    model, optimiser, scaler = copy.deepcopy((model, optimiser, scaler))
    said = [answer(model, optimiser, scaler, *batch, **more) for batch in two_batches(x, y)]
    return {
        "said": said,
        "weights": state(model),
        "scale": float(scaler.get_scale()),
        "gradients cleared": cleared(model),
    }


@training_step.cases
def _(rng):
    def given(batch, width, out, scale=1.0, **more):
        grow = {"scaler": torch.amp.GradScaler("cpu", growth_interval=1)}
        return {
            **learner(rng, width, out),
            **grow,
            "x": scale * rng.randn(batch, width),
            "y": scale * rng.randn(batch, out),
            **more,
        }

    yield "all sizes different", given(5, 7, 3)
    yield "batch 1", given(1, 3, 2, scale=0.1)
    yield "exploded", given(4, 3, 2, scale=60.0)
    broken = given(3, 2, 1)
    broken["x"][1, 0] = math.nan
    yield "NaN in the batch", broken
    yield "a loss over a million", given(3, 2, 1, scale=3000.0)
    yield "a limit of 2", given(4, 3, 2, scale=2.0, limit=2.0)
    yield "clipped to more than the limit", given(4, 3, 2, scale=3.0, limit=1.5, clip=4.0)
    yield "clip at 0.1", given(4, 3, 2, clip=0.1)


def stepped(
    model,
    optimiser,
    scaler,
    x,
    y,
    limit=100.0,
    clip=1.0,
    *,
    look="before",
    order="unscale check clip",
    skip="zero update",
    after="step update zero",
    scaled=True,
):
    """The page, with one line to go wrong at a time."""
    do = {"zero": optimiser.zero_grad, "update": scaler.update, "step": lambda: scaler.step(optimiser)}
    loss = F.mse_loss(model(x), y)
    sound = abs(loss.item()) <= 1e6
    if look == "before" and not sound:
        return "bad loss"
    (scaler.scale(loss) if scaled else loss).backward()
    if look == "after" and not sound:
        return "bad loss"
    if not scaled:
        scaler.scale(loss)  # it has to wake up somewhere
    for act in order.split():
        if act == "unscale":
            scaler.unscale_(optimiser)
        elif act == "clip":
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        elif not norm_of(model) <= limit:
            for line in skip.split():
                do[line]()
            return "exploded"
    for line in after.split():
        do[line]()
    return "stepped"


for cause, fault, section in (
    ("the loss is never looked at: NaN is only met in the gradient", {"look": "never"}, LOSS),
    (
        "the loss is looked at after `backward`: its NaN stays in the gradient and spoils the next batch",
        {"look": "after"},
        LOSS,
    ),
    (
        "the loss is not scaled before `backward`, but unscaled afterwards: the steps are 65,536 times too small",
        {"scaled": False},
        BITS,
    ),
    (
        "the gradient is checked before it is unscaled: every healthy batch seems to explode",
        {"order": "check unscale clip", "skip": "zero"},
        BITS,
    ),
    (
        "it is clipped before it is unscaled: the steps are far too small, and nothing complains",
        {"order": "clip unscale check"},
        BITS,
    ),
    ("it is clipped before it is checked: nothing ever explodes", {"order": "unscale clip check"}, GRADIENT),
    ("it is not checked: one broken batch chooses the direction", {"order": "unscale clip"}, GRADIENT),
    ("it is not clipped", {"order": "unscale check"}, GRADIENT),
    ("a skipped batch does not clear its gradient: it is added to the next", {"skip": "update"}, BITS),
    ("a skipped batch does not update the scaler, which refuses the next unscale", {"skip": "zero"}, BITS),
    ("the scaler is never updated after a step", {"after": "step zero"}, BITS),
    ("the gradient is not cleared after a step", {"after": "step update"}, BARE),
    ("the gradient is cleared before the step: the weights never move", {"after": "zero update"}, PAGE),
):
    training_step.mutant(cause, section)(functools.partial(stepped, **fault))


@training_step.mutant("the gradient is clipped at 1, whatever `clip` says", GRADIENT)
def _(model, optimiser, scaler, x, y, limit=100.0, clip=1.0):
    return stepped(model, optimiser, scaler, x, y, limit)


@training_step.mutant("the limit is 100, whatever `limit` says", GRADIENT)
def _(model, optimiser, scaler, x, y, limit=100.0, clip=1.0):
    return stepped(model, optimiser, scaler, x, y, clip=clip)


training_step.alternative(stepped)


@training_step.alternative
def _(model, optimiser, scaler, x, y, limit=100.0, clip=1.0):
    optimiser.zero_grad()
    loss = (model(x) - y).pow(2).mean()
    if not abs(loss.item()) <= 1e6:
        return "bad loss"
    scaler.scale(loss).backward()
    scaler.unscale_(optimiser)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    exploded = not bool(norm <= limit)
    if not exploded:
        for p in model.parameters():
            p.grad *= min(1.0, clip / float(norm + 1e-12))
        scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
    return "exploded" if exploded else "stepped"


# ---- the learning rate ----------------------------------------------------------------------------------------------


@exercise("Warm-up and cosine", minutes=15, level=2)
def learning_rate(step: int, steps: int, warmup: int, lr: float = 1e-3, floor: float = 0.05) -> float:
    """torch's own schedulers, one step after the other."""
    if step < warmup:
        return lr * (step + 1) / warmup
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    way = max(1, steps - 1 - warmup)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, way, eta_min=floor * lr)
    for _ in range(min(step - warmup, way)):
        optimiser.step()
        schedule.step()
    return float(optimiser.param_groups[0]["lr"])


@learning_rate.cases
def _(rng):
    def at(step, steps=40, warmup=8, **more):
        return {"step": step, "steps": steps, "warmup": warmup, **more}

    for what, step in (
        ("in the warm-up", 3),
        ("the first step", 0),
        ("the last of the warm-up", 7),
        ("the top", 8),
        ("on the way down", 17),
        ("late", 33),
        ("the last step", 39),
        ("a step too many", 45),
    ):
        yield what, at(step)
    yield "no warm-up, the first step", at(0, warmup=0)
    yield "no warm-up, later", at(9, warmup=0)
    yield "another rate and floor", at(29, lr=0.02, floor=0.3)
    yield "no floor", at(36, floor=0.0)
    yield "warm-up to the end", at(7, steps=8)


def scheduled(
    step,
    steps,
    warmup,
    lr=1e-3,
    floor=0.05,
    *,
    rise=lambda t, w: (t + 1) / w,
    way=lambda t, w, s: (t - w) / max(1, s - 1 - w),
    fall=lambda way: (1 + math.cos(math.pi * way)) / 2,
    low=lambda f, fall, lr: f + (1 - f) * fall,
    end=1.0,
):
    """The formula, with one thing to go wrong at a time."""
    if step < warmup:
        return lr * rise(step, warmup)
    return lr * low(floor, fall(min(end, way(step, warmup, steps))), lr)


for cause, fault in (
    ("the first step has a rate of 0: it learns nothing", {"rise": lambda t, w: t / w}),
    ("there is no warm-up: the first steps are as long as any", {"rise": lambda t, w: 1.0}),
    ("the warm-up is not taken off before the cosine: the rate jumps", {"way": lambda t, w, s: t / max(1, s - 1)}),
    (
        "the warm-up is taken off the step, but not off the number of steps: the floor is never reached",
        {"way": lambda t, w, s: (t - w) / max(1, s - 1)},
    ),
    (
        "the last step is counted as one of `steps`: the floor comes one step too late",
        {"way": lambda t, w, s: (t - w) / max(1, s - w)},
    ),
    (
        "a whole wave is gone through: the rate rises again in the second half",
        {"fall": lambda way: (1 + math.cos(2 * math.pi * way)) / 2},
    ),
    (
        "the cosine is not lifted: it falls below zero, and the model climbs",
        {"fall": lambda way: math.cos(math.pi * way)},
    ),
    ("it falls along a straight line", {"fall": lambda way: 1 - way}),
    ("it falls to 0: there is no floor", {"low": lambda f, fall, lr: fall}),
    ("the floor is a limit that cuts the curve off, instead of its end", {"low": lambda f, fall, lr: max(f, fall)}),
    ("the floor is added on top: the highest rate is more than `lr`", {"low": lambda f, fall, lr: f + fall}),
    ("the floor is taken for a rate, not for a share of `lr`", {"low": lambda f, fall, lr: fall + f / lr * (1 - fall)}),
    ("behind the last step the rate rises again", {"end": math.inf}),
):
    learning_rate.mutant(cause, RATE)(functools.partial(scheduled, **fault))


@learning_rate.mutant("the rate is always 0.001, whatever `lr` says", RATE)
def _(step, steps, warmup, lr=1e-3, floor=0.05):
    return scheduled(step, steps, warmup, floor=floor)


learning_rate.alternative(scheduled)


@learning_rate.alternative
def _(step, steps, warmup, lr=1e-3, floor=0.05):
    if warmup and step < warmup:
        return (step + 1) / warmup * lr
    last = max(warmup + 1, steps - 1)
    angle = math.pi / 2 * (min(step, last) - warmup) / (last - warmup)
    return lr * (math.cos(angle) ** 2 + floor * math.sin(angle) ** 2)


@learning_rate.replaces("tinyomni.training.engine.learning_rate")
def _(answer):
    return lambda step, settings: answer(step, settings.steps, settings.warmup, settings.lr, settings.floor)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


OLD = b"the checkpoint before this one"


class FullDisk(OSError):
    """What the watched disk says when it is full."""


@contextmanager
def watched(path: Path, size: int, full: bool = False) -> Iterator[list[str]]:
    """Notes each rename: was all of the file synced, from where does it come, and is the old file still there?"""
    seen: list[str] = []
    synced: dict[int, int] = {}
    rename = os.replace

    def sync(handle):
        if full:
            raise FullDisk("no room is left")
        about = os.fstat(handle)
        synced[about.st_ino] = about.st_size

    def move(source, target, **more):
        about, old = Path(source).stat(), path.exists() and path.read_bytes() == OLD
        whole = synced.get(about.st_ino) == size
        beside = Path(source).resolve().parent == Path(target).resolve().parent
        seen.append(
            f"renamed: {'synced before' if whole else 'not synced before'}, "
            f"from {'beside' if beside else 'elsewhere'}, the old file was {'there' if old else 'gone'}"
        )
        rename(source, target, **more)

    with (
        mock.patch.object(os, "fsync", sync),
        mock.patch.object(os, "replace", move),
        mock.patch.object(os, "rename", move),
    ):
        yield seen


@exercise("A file that is old or new, never half", minutes=20, level=2)
def save_safely(path: Path, data: bytes) -> None:
    """What the watched disk should note; and the same on a disk that is full."""
    steps = ["renamed: synced before, from beside, the old file was there"]
    return {"steps": steps, "the file": data, "all files": [path.name], "on a full disk": OLD, "its error": "is told"}  # type: ignore[return-value]


@save_safely.invoke
def _(answer, path, data):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path
        file.write_bytes(OLD)
        with watched(file, len(data)) as steps:
            answer(file, data)
        names = sorted(each.name for each in Path(folder).iterdir())
        found = {"steps": steps, "the file": held(file), "all files": names}
    with tempfile.TemporaryDirectory() as folder:
        file, told = Path(folder) / path, "is not told"
        file.write_bytes(OLD)
        with watched(file, len(data), full=True):
            try:
                answer(file, data)
            except FullDisk:
                told = "is told"
        return found | {"on a full disk": held(file), "its error": told}


def held(file):
    """What is in it, if it is there."""
    return file.read_bytes() if file.exists() else b""


@save_safely.cases
def _(rng):
    yield "a small file", {"path": Path("last.pt"), "data": b"weights"}
    yield "longer than the old one", {"path": Path("step-00000500"), "data": bytes(range(256)) * 5}
    yield "nothing in it", {"path": Path("best"), "data": b""}


def kept(
    path, data, *, folder=None, flush=True, first=None, order="sync move", put=lambda old, new: os.replace(old, new)
):
    """Write, sync, rename, with one thing to go wrong at a time."""
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
                put(temporary, path)


for cause, fault in (
    ("it is renamed without waiting for the disk: after a power cut the new name may hold nothing", {"order": "move"}),
    ("it is renamed first and synced afterwards: in between, the new name may hold nothing", {"order": "move sync"}),
    ("what Python still holds back is not flushed before the sync: nothing is on the disk yet", {"flush": False}),
    ("it is never renamed: the new checkpoint keeps its temporary name", {"order": "sync"}),
    ("the old file is deleted first: a kill in between leaves none", {"first": lambda path: path.unlink()}),
    ("it is copied over the old file, which is no single act, and the temporary one stays", {"put": shutil.copyfile}),
    (
        "the old file is moved aside first: a kill in between leaves none under its name",
        {"first": lambda path: os.replace(path, path.with_name(f"{path.name}.bak"))},
    ),
):
    save_safely.mutant(cause, KEEP)(functools.partial(kept, **fault))


@save_safely.mutant(
    "the old file is written over: a kill in the middle leaves half of the new one, and nothing of the old", KEEP
)
def _(path, data):
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@save_safely.mutant(
    "the temporary file lies in another folder, perhaps on another disk, where no rename is one act", KEEP
)
def _(path, data):
    with tempfile.TemporaryDirectory() as folder:
        kept(path, data, folder=Path(folder))


@save_safely.mutant("the error of a full disk is swallowed: nobody hears that nothing was saved", KEEP)
def _(path, data):
    with suppress(OSError):
        kept(path, data)


save_safely.alternative(kept)


@save_safely.alternative
def _(path, data):
    temporary = path.with_suffix(".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    temporary.rename(path)
