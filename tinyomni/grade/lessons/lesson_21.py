"""Lesson 21, bigger, measured: its oracles count, search and bisect instead of using the formulas of the lesson."""

import functools
import math
import statistics
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.config import ThinkerConfig
from tinyomni.grade.exercise import exercise
from tinyomni.thinker import ThinkerLM

NOTEBOOK, TITLE = "21_scaling", "Bigger, measured"

COUNT = "1. One dial: its parameters and its FLOPs"
POWER = "3. A power law, and how sure it is"
COMPUTE = "4. The same compute, spent differently"
MEMORY = "6. The step to a GPU: does it fit?"
BUDGET = "7. The step to a GPU: how long, and how many tokens?"

fault: Any  # what a mutant changes


# ---- parameters and FLOPs -------------------------------------------------------------------------------------------


@exercise("Parameters and FLOPs per token", minutes=15, level=2)
def size_and_flops(layers: int, d_model: int, intermediate_size: int, vocab: int, tokens: int) -> tuple[int, int]:
    """Counted in a model; attention is counted product by product."""
    cfg = ThinkerConfig(
        layers=layers, d_model=d_model, heads=1, kv_heads=1, intermediate_size=intermediate_size, vocab=vocab
    )
    parameters = sum(p.numel() for name, p in ThinkerLM(cfg).named_parameters() if not name.startswith("tok_emb"))
    per_token = 0
    for _ in range(layers):
        scores = average = 2 * tokens * d_model  # a multiplication and an addition, for each key and dimension
        per_token += scores + average
    return parameters, 3 * (2 * parameters + per_token)  # backward costs twice as much as forward


@size_and_flops.cases
def _(rng):
    def sizes(*values):
        return dict(zip(("layers", "d_model", "intermediate_size", "vocab", "tokens"), values, strict=True))

    yield "all sizes different", sizes(3, 8, 20, 50, 7)
    yield "one layer", sizes(1, 4, 16, 47, 60)
    yield "the course's Thinker", sizes(4, 256, 1024, 5000, 512)
    yield "a long context in a narrow model", sizes(2, 4, 16, 47, 1000)
    yield "one token", sizes(2, 6, 10, 30, 1)


@size_and_flops.random_inputs
def _(rng):
    d_model = 2 * rng.size(6)
    return {
        "layers": rng.size(), "d_model": d_model, "intermediate_size": rng.size(30), "vocab": rng.size(60),
        "tokens": rng.size(2000),
    }  # fmt: skip


def size_variant(
    layers, d_model, intermediate_size, vocab, tokens, *, attention=4, mlp=3, norms=2, last=1, tables=1,
    wide=lambda d, h: h, cost=6, mixing=lambda n, t, d: 12 * n * t * d, whole=False,
):  # fmt: skip
    """`size_and_flops`; each keyword injects one fault."""
    d, h = d_model, wide(d_model, intermediate_size)
    parameters = layers * (attention * d * d + mlp * d * h + norms * d) + last * d + tables * vocab * d
    flops = cost * parameters + mixing(layers, tokens, d)
    return parameters, flops * tokens if whole else flops


for cause, fault in (
    ("the embedding table is counted: it only copies rows", {"tables": 2}),
    ("the head is left out: its matrix multiplies every token", {"tables": 0}),
    ("attention has three matrices: that of the output is missing", {"attention": 3}),
    ("the MLP has two matrices: SwiGLU has three, its gate is missing", {"mlp": 2}),
    ("the norms of the blocks are left out", {"norms": 0}),
    ("a block has two norms, one is counted", {"norms": 1}),
    ("the last norm is left out", {"last": 0}),
    ("`intermediate_size` is ignored: always four times the width", {"wide": lambda d, h: 4 * d}),
    ("only the forward pass is counted: 2 FLOPs for each parameter", {"cost": 2}),
    ("only the backward pass is counted: 4 FLOPs for each parameter", {"cost": 4}),
    ("one operation for each parameter and pass: a multiplication *and* an addition are two", {"cost": 3}),
    ("attention's products of tokens with tokens are missing", {"mixing": lambda n, t, d: 0}),
    ("attention's products are counted forward only", {"mixing": lambda n, t, d: 4 * n * t * d}),
    ("attention's products are counted by half: without the weighted average of the values, or without the masked keys",
     {"mixing": lambda n, t, d: 6 * n * t * d}),
    ("attention's products are counted for one layer", {"mixing": lambda n, t, d: 12 * t * d}),
    ("attention's products are those of all tokens, not of one: a token meets `tokens` keys",
     {"mixing": lambda n, t, d: 12 * n * t * t * d}),
    ("the FLOPs are those of the whole sequence, not of one token", {"whole": True}),
):  # fmt: skip
    size_and_flops.mutant(cause, COUNT)(functools.partial(size_variant, **fault))


size_and_flops.alternative(size_variant)


@size_and_flops.alternative
def _(layers, d_model, intermediate_size, vocab, tokens):
    block = [(d_model, d_model)] * 4 + [(d_model, intermediate_size)] * 3 + [(d_model, 1)] * 2
    shapes = block * layers + [(d_model, 1), (vocab, d_model)]
    parameters = sum(rows * columns for rows, columns in shapes)
    return parameters, 6 * (parameters + 2 * layers * tokens * d_model)


# ---- a power law ----------------------------------------------------------------------------------------------------


@exercise("Fit a power law", minutes=20, level=2, rtol=1e-3)
def fit_power_law(
    sizes: Float[Tensor, "points"], losses: Float[Tensor, "points"], floor: float = 0.0
) -> tuple[float, float]:
    """Python's own linear regression of the logarithms."""
    x = [math.log(size) for size in sizes.tolist()]
    y = [math.log(loss - floor) for loss in losses.tolist()]
    slope, intercept = statistics.linear_regression(x, y)
    return math.exp(intercept), -slope


@fit_power_law.cases
def _(rng):
    sizes = torch.tensor([100.0, 300.0, 800.0, 2500.0, 9000.0])
    noise = (0.1 * rng.randn(5)).exp()
    yield "all sizes different", {"sizes": sizes, "losses": 0.4 + 12 * sizes**-0.4 * noise, "floor": 0.4}
    yield "exactly a power law", {"sizes": sizes, "losses": 5 * sizes**-0.25}
    yield "noise, and nothing irreducible", {"sizes": sizes, "losses": 8 * sizes**-0.3 * noise}
    yield "two points", {"sizes": torch.tensor([10.0, 1000.0]), "losses": torch.tensor([3.0, 2.0]), "floor": 1.5}
    large = torch.tensor([1e6, 1e7, 2e8, 1e9])
    yield "millions of parameters", {"sizes": large, "losses": 1.7 + 400 * large**-0.34, "floor": 1.7}
    yield "a loss that rises", {"sizes": sizes, "losses": sizes**0.2, "floor": 0.1}


@fit_power_law.random_inputs
def _(rng):
    sizes = 10 * (rng.size(7, 2) * rng.randn(rng.size(6, 2))).exp()
    floor = rng.choice((0.0, 1.25))
    return {"sizes": sizes, "losses": floor + (0.5 * rng.randn(len(sizes))).exp() * sizes**-0.3, "floor": floor}


def fit_variant(
    sizes, losses, floor=0.0, *, x_of=torch.log, y_of=lambda loss, floor: torch.log(loss - floor),
    slope_of=lambda x, y: ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum(),
    start=lambda x, y, slope: y.mean() - slope * x.mean(), back=math.exp, sign=-1, swap=False,
):  # fmt: skip
    """`fit_power_law`; each keyword injects one fault."""
    x, y = x_of(sizes), y_of(losses, floor)
    slope = slope_of(x, y)
    result = back(float(start(x, y, slope))), sign * float(slope)
    return result[::-1] if swap else result


def ends(x, y):
    """The slope from the first point to the last."""
    return (y[-1] - y[0]) / (x[-1] - x[0])


for cause, fault in (
    ("the irreducible loss is not subtracted", {"y_of": lambda loss, floor: torch.log(loss)}),
    ("the irreducible loss is added", {"y_of": lambda loss, floor: torch.log(loss + floor)}),
    ("the irreducible loss is subtracted from the logarithm, not from the loss",
     {"y_of": lambda loss, floor: torch.log(loss) - floor}),
    ("the loss is divided by the irreducible one, not lowered by it",
     {"y_of": lambda loss, floor: torch.log(loss / (floor or 1.0))}),
    ("the exponent has the wrong sign: it is positive where the loss falls", {"sign": 1}),
    ("the coefficient is still a logarithm: `exp` is missing", {"back": lambda value: value}),
    ("the line runs through the origin: the intercept is missing",
     {"slope_of": lambda x, y: (x * y).sum() / x.square().sum(), "start": lambda x, y, slope: torch.tensor(0.0)}),
    ("the first and the last point decide alone", {"slope_of": ends, "start": lambda x, y, slope: y[0] - slope * x[0]}),
    ("only the losses are logarithms: that is an exponential, not a power", {"x_of": lambda sizes: sizes}),
    ("only the sizes are logarithms", {"y_of": lambda loss, floor: loss - floor, "back": lambda value: value}),
    ("nothing is a logarithm: a straight line is fitted",
     {"x_of": lambda s: s, "y_of": lambda loss, floor: loss - floor, "back": lambda value: value}),
    ("logarithms to base 10, and then `exp`: go back with 10 to the power",
     {"x_of": torch.log10, "y_of": lambda loss, floor: torch.log10(loss - floor)}),
    ("the sizes are fitted by the losses: slope of x over y",
     {"slope_of": lambda x, y: ((x - x.mean()) * (y - y.mean())).sum() / (y - y.mean()).square().sum()}),
    ("the coefficient is the loss in the middle of the points, not that of size 1",
     {"start": lambda x, y, slope: y.mean()}),
    ("exponent and coefficient are swapped", {"swap": True}),
):  # fmt: skip
    fit_power_law.mutant(cause, POWER)(functools.partial(fit_variant, **fault))


fit_power_law.alternative(fit_variant)


@fit_power_law.alternative
def _(sizes, losses, floor=0.0):
    import numpy as np

    slope, intercept = np.polyfit(np.log(sizes.double().numpy()), np.log(losses.double().numpy() - floor), 1)
    return np.exp(intercept), -slope


@fit_power_law.alternative
def _(sizes, losses, floor=0.0):
    x = torch.stack([torch.ones_like(sizes), sizes.log()], dim=1).double()
    solution = torch.linalg.lstsq(x, (losses.double() - floor).log()[:, None]).solution[:, 0]
    return solution[0].exp().item(), -solution[1].item()


# ---- the compute-optimal run ----------------------------------------------------------------------------------------


@exercise("The compute-optimal run", minutes=20, level=3)
def compute_optimal(
    parameters: Int[Tensor, "runs"],
    tokens: Int[Tensor, "runs"],
    losses: Float[Tensor, "runs"],
    budgets: Float[Tensor, "budgets"],
) -> Int[Tensor, "budgets"]:
    """Budget by budget, run by run, with Python's integers, which do not overflow."""
    chosen = []
    for budget in budgets.tolist():
        best = -1
        for run, (n, d, loss) in enumerate(zip(parameters.tolist(), tokens.tolist(), losses.tolist(), strict=True)):
            if 6 * n * d <= budget and (best < 0 or loss < losses[best]):
                best = run
        chosen.append(best)
    return torch.tensor(chosen)


@compute_optimal.cases
def _(rng):
    small = {
        "parameters": torch.tensor([10, 40, 160, 10, 40]),
        "tokens": torch.tensor([100, 100, 100, 900, 500]),
        "losses": torch.tensor([3.0, 2.6, 2.2, 2.4, 1.9]),
    }
    yield "all sizes different", small | {"budgets": torch.tensor([1e4, 1e5, 130_000.0])}
    yield "a budget that is exactly spent", small | {"budgets": torch.tensor([6000.0, 24_000.0, 120_000.0, 96_000.0])}
    yield "a budget for no run", small | {"budgets": torch.tensor([5999.0, 1e9])}
    yield "a run that costs a little more than the budget", small | {"budgets": torch.tensor([23_900.0, 95_000.0])}
    yield "budgets in any order", small | {"budgets": torch.tensor([1e9, 7000.0, 60_000.0, 30_000.0, 1.0, 97_000.0])}
    yield (
        "the largest and the longest run are not the best",
        {
            "parameters": torch.tensor([500, 100, 20]),
            "tokens": torch.tensor([10, 60, 400]),
            "losses": torch.tensor([2.0, 1.5, 1.8]),
            "budgets": torch.tensor([1e6, 50_000.0]),
        },
    )
    yield (
        "the cheapest run is not the worst",
        {
            "parameters": torch.tensor([50, 10, 200]),
            "tokens": torch.tensor([100, 60, 30]),
            "losses": torch.tensor([3.0, 2.5, 2.0]),
            "budgets": torch.tensor([1e6, 30_000.0]),
        },
    )
    yield (
        "runs of real size: the product does not fit an int64",
        {
            "parameters": torch.tensor([7_000_000_000, 70_000_000_000, 1_000_000_000]),
            "tokens": torch.tensor([2_000_000_000_000, 1_400_000_000_000, 20_000_000_000]),
            "losses": torch.tensor([2.1, 1.9, 2.6]),
            "budgets": torch.tensor([1e23, 1e24, 1e21]),
        },
    )


@compute_optimal.random_inputs
def _(rng):
    runs = rng.size(6)
    parameters, tokens = rng.randint(50, runs, low=1), rng.randint(90, runs, low=1)
    costs = (6 * parameters * tokens).float()
    budgets = torch.cat([costs[: rng.size(runs)], 6 * costs.mean() * rng.randn(rng.size(4)).abs()])
    return {"parameters": parameters, "tokens": tokens, "losses": rng.randn(runs).exp(), "budgets": budgets}


def optimal_variant(
    parameters, tokens, losses, budgets, *, cost=lambda n, d: 6 * n.double() * d.double(), fits=torch.le,
    score=lambda n, d, c, loss: loss, none=-1, order=lambda b: b, strict=True,
):  # fmt: skip
    """`compute_optimal`; each keyword injects one fault."""
    costs, value = cost(parameters, tokens), score(parameters.double(), tokens.double(), None, losses.double())
    chosen = []
    for budget in order(budgets.double()):
        allowed = fits(costs, budget) if strict else torch.ones_like(costs, dtype=torch.bool)
        chosen.append(int(value.masked_fill(~allowed, math.inf).argmin()) if allowed.any() else none)
    return torch.tensor(chosen)


for cause, fault in (
    ("the factor 6 is missing: N × D is not yet FLOPs", {"cost": lambda n, d: n.double() * d.double()}),
    ("only the forward pass is paid: 2ND", {"cost": lambda n, d: 2 * n.double() * d.double()}),
    ("a run that costs exactly its budget is left out", {"fits": torch.lt}),
    ("the budget is ignored: the lowest loss of all runs", {"strict": False}),
    ("the runs that are too expensive are chosen from, not the affordable ones", {"fits": torch.gt}),
    ("the largest affordable model is chosen, whatever its loss", {"score": lambda n, d, c, loss: -n}),
    ("the affordable run with the most tokens is chosen", {"score": lambda n, d, c, loss: -d}),
    ("the affordable run that spends most is chosen", {"score": lambda n, d, c, loss: -n * d}),
    ("the cheapest run is chosen", {"score": lambda n, d, c, loss: n * d}),
    ("the highest loss is chosen", {"score": lambda n, d, c, loss: -loss}),
    ("where no run is affordable, the first is chosen, not −1", {"none": 0}),
    ("integers overflow: 6 × 7·10¹⁰ × 1.4·10¹² does not fit 64 bits", {"cost": lambda n, d: 6 * n * d}),
    ("the budgets are sorted first, so the answers are in another order", {"order": lambda b: b.sort().values}),
    ("parameters are compared with the budget, tokens are ignored", {"cost": lambda n, d: 6 * n.double()}),
):  # fmt: skip
    compute_optimal.mutant(cause, COMPUTE)(functools.partial(optimal_variant, **fault))


@compute_optimal.mutant("the index counts the affordable runs only, not all runs", COMPUTE)
def _(parameters, tokens, losses, budgets):
    costs = 6 * parameters.double() * tokens.double()
    chosen = [losses[costs <= budget] for budget in budgets.double()]
    return torch.tensor([int(each.argmin()) if len(each) else -1 for each in chosen])


@compute_optimal.mutant("the loss is returned, not the number of the run", COMPUTE)
def _(parameters, tokens, losses, budgets):
    chosen = optimal_variant(parameters, tokens, losses, budgets)
    return torch.where(chosen < 0, -1.0, losses[chosen])


compute_optimal.alternative(optimal_variant)


@compute_optimal.alternative
def _(parameters, tokens, losses, budgets):
    costs = 6.0 * parameters.double() * tokens.double()
    table = losses.double().expand(len(budgets), -1).clone()
    table[costs > budgets.double()[:, None]] = math.inf
    best = table.min(dim=1)
    return torch.where(best.values.isinf(), -1, best.indices)


# ---- tokens for a budget --------------------------------------------------------------------------------------------


@exercise("Tokens for a budget", minutes=15, level=2)
def tokens_for_budget(
    days: float, gpus: int, peak: float, mfu: float = 0.4, tokens_per_parameter: float = 20.0
) -> tuple[float, float]:
    """The size is found by bisection: how large may it be, until its training costs more than there is?"""
    available = 0.0
    for _ in range(gpus):
        available += peak * mfu * 60 * 60 * 24 * days
    low, high = 0.0, available
    for _ in range(400):
        middle = (low + high) / 2
        if 6 * middle * (middle * tokens_per_parameter) > available:
            high = middle
        else:
            low = middle
    return low, low * tokens_per_parameter


@tokens_for_budget.cases
def _(rng):
    yield "a day on one GPU", {"days": 1.0, "gpus": 1, "peak": 1e15}
    yield "a month on eight", {"days": 30.0, "gpus": 8, "peak": 9.89e14, "mfu": 0.35}
    yield (
        "a smaller model, longer trained",
        {"days": 2.5, "gpus": 3, "peak": 3e14, "mfu": 0.5, "tokens_per_parameter": 200.0},
    )
    yield "an hour on a laptop", {"days": 1 / 24, "gpus": 1, "peak": 1e11, "mfu": 0.1}


@tokens_for_budget.random_inputs
def _(rng):
    return {
        "days": rng.number(0.01, 40.0), "gpus": rng.size(9), "peak": rng.choice((20.0, 1e9, 1e15)),
        "mfu": rng.number(0.1, 0.9), "tokens_per_parameter": rng.number(1.0, 300.0),
    }  # fmt: skip


def budget_variant(
    days, gpus, peak, mfu=0.4, tokens_per_parameter=20.0, *, seconds=86_400, many=lambda n: n, used=lambda u: u,
    rate=6, ratio=lambda r: r, size=lambda c, r: math.sqrt(c / r), data=lambda n, c, r: n * r, swap=False,
):  # fmt: skip
    """`tokens_for_budget`; each keyword injects one fault."""
    compute, r = days * seconds * many(gpus) * peak * used(mfu), ratio(tokens_per_parameter)
    parameters = size(compute / rate, r)
    result = parameters, data(parameters, compute / rate, r)
    return result[::-1] if swap else result


for cause, fault in (
    ("the days are taken for hours: 3600 seconds", {"seconds": 3600}),
    ("the days are taken for seconds", {"seconds": 1}),
    ("one GPU is counted", {"many": lambda n: 1}),
    ("the peak is taken for what is reached: the MFU is missing", {"used": lambda u: 1.0}),
    ("it is divided by the MFU: a machine would be faster than its peak", {"used": lambda u: 1 / u}),
    ("`mfu` is ignored: always 0.4", {"used": lambda u: 0.4}),
    ("the factor 6 is missing", {"rate": 1}),
    ("only the forward pass is paid: 2 FLOPs for each parameter and token", {"rate": 2}),
    ("`tokens_per_parameter` is ignored: always 20", {"ratio": lambda r: 20.0}),
    ("the square root is missing: twice the size has twice the tokens too", {"size": lambda c, r: c / r}),
    ("the tokens per parameter are left out of the size: the run costs more than the budget",
     {"size": lambda c, r: math.sqrt(c)}),
    ("the ratio is missing from the tokens: the run costs less than the budget",
     {"data": lambda n, c, r: math.sqrt(c)}),
    ("the size is multiplied by the tokens per parameter under the root", {"size": lambda c, r: math.sqrt(c * r)}),
    ("the tokens are divided by the tokens per parameter", {"data": lambda n, c, r: n / r}),
    ("tokens and parameters are swapped", {"swap": True}),
):  # fmt: skip
    tokens_for_budget.mutant(cause, BUDGET)(functools.partial(budget_variant, **fault))


tokens_for_budget.alternative(budget_variant)


@tokens_for_budget.alternative
def _(days, gpus, peak, mfu=0.4, tokens_per_parameter=20.0):
    pairs = days * 24 * 3600 * gpus * peak * mfu / 6  # parameters × tokens
    tokens = (pairs * tokens_per_parameter) ** 0.5
    return pairs / tokens, tokens


# ---- memory of a training step --------------------------------------------------------------------------------------


@exercise("Memory of a training step", minutes=15, level=2)
def training_memory(
    parameters: int,
    layers: int,
    d_model: int,
    vocab: int,
    batch: int,
    tokens: int,
    kept: int = 42,
    checkpointing: bool = False,
) -> dict[str, int]:
    """Bytes, added up tensor by tensor, layer by layer."""
    one = torch.tensor(0.0).element_size()
    positions = sum(tokens for _ in range(batch))
    found = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "logits"), 0)
    found["weights"] += one * parameters
    found["gradients"] += one * parameters
    for _ in ("mean of the gradients", "mean of their squares"):
        found["optimizer"] += one * parameters
    for layer in range(layers):
        found["activations"] += one * positions * d_model * (1 if checkpointing else kept)
        if checkpointing and layer == 0:  # one block at a time is computed again
            found["activations"] += one * positions * d_model * kept
    found["logits"] += one * positions * vocab
    return found


@training_memory.cases
def _(rng):
    def step(*values, **more):
        return dict(zip(("parameters", "layers", "d_model", "vocab", "batch", "tokens"), values, strict=True)) | more

    yield "all sizes different", step(10_000, 3, 16, 50, 4, 7)
    yield "the course's Thinker", step(6_756_608, 4, 256, 5000, 64, 128)
    yield "batch 1, tokens 1", step(500, 2, 8, 30, 1, 1)
    yield "other activations", step(10_000, 3, 16, 50, 4, 7, kept=12)
    yield "checkpointing", step(10_000, 5, 16, 50, 2, 9, checkpointing=True)
    yield "checkpointing, other activations", step(2_000, 6, 8, 40, 3, 5, kept=11, checkpointing=True)


@training_memory.random_inputs
def _(rng):
    names = ("parameters", "layers", "d_model", "vocab", "batch", "tokens", "kept")
    return {name: rng.size(50) for name in names} | {"checkpointing": bool(rng.randbool(1))}


def memory_variant(
    parameters, layers, d_model, vocab, batch, tokens, kept=42, checkpointing=False, *, size=4, moments=2,
    gradient=1, positions=lambda b, t: b * t, deep=lambda n: n, keeps=lambda k: k,
    thrifty=lambda n, k: n + k, last=lambda b, t, v: b * t * v, obeys=True,
):  # fmt: skip
    """`training_memory`; each keyword injects one fault."""
    blocks = thrifty(layers, keeps(kept)) if checkpointing and obeys else deep(layers) * keeps(kept)
    return {
        "weights": size * parameters,
        "gradients": size * gradient * parameters,
        "optimizer": size * moments * parameters,
        "activations": size * positions(batch, tokens) * d_model * blocks,
        "logits": size * last(batch, tokens, vocab),
    }


for cause, fault in (
    ("numbers are counted, not bytes: a float has four", {"size": 1}),
    ("every number has 16 bits: the task is in fp32, 4 bytes", {"size": 2}),
    ("AdamW keeps one average: it keeps two, of the gradients and of their squares", {"moments": 1}),
    ("the optimizer keeps nothing, as plain SGD", {"moments": 0}),
    ("the optimizer's 12 bytes count weights or gradients once more", {"moments": 3}),
    ("the gradients are left out", {"gradient": 0}),
    ("the activations are those of one layer", {"deep": lambda n: 1}),
    ("the activations are those of one sequence: the batch is missing", {"positions": lambda b, t: t}),
    ("the activations are those of one token: the length is missing", {"positions": lambda b, t: b}),
    ("the activations grow with the square of the length: fused attention keeps no weights",
     {"positions": lambda b, t: b * t * t}),
    ("`kept` is ignored: always 42", {"keeps": lambda k: 42}),
    ("each block keeps only its input, also without checkpointing", {"keeps": lambda k: 1}),
    ("checkpointing changes nothing", {"obeys": False}),
    ("with checkpointing the blocks' inputs are forgotten", {"thrifty": lambda n, k: k}),
    ("with checkpointing the block that is computed again is forgotten", {"thrifty": lambda n, k: n}),
    ("the logits are those of one sequence: the batch is missing", {"last": lambda b, t, v: t * v}),
    ("the logits are those of the last token only, as in generation", {"last": lambda b, t, v: b * v}),
):  # fmt: skip
    training_memory.mutant(cause, MEMORY)(functools.partial(memory_variant, **fault))


training_memory.alternative(memory_variant)


@training_memory.alternative
def _(parameters, layers, d_model, vocab, batch, tokens, kept=42, checkpointing=False):
    state = {name: 4 * parameters * times for name, times in (("weights", 1), ("gradients", 1), ("optimizer", 2))}
    vector = 4 * batch * tokens * d_model
    activations = vector * layers + vector * kept if checkpointing else vector * layers * kept
    return {"logits": 4 * batch * tokens * vocab, "activations": activations, **state}
