"""Lesson 09, the codec: its oracles compare one vector with one entry at a time, and derive the gradients by hand."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.grade.exercise import exercise, load_weights

NOTEBOOK, TITLE = "09_codec", "The codec"

NEAREST = "2. Vector quantization: the nearest entry"
RESIDUAL = "4. Residual vector quantization: a second code for the residual"
RVQ = "5. The library's `RVQ`"
ARGMIN = "6. No gradient comes through an argmin"
DEAD = "9. Codebook utilization: dead codes"
BUGS = "12. Two bugs that keep the shape"

fault: Any  # what a mutant changes
join: Any
terms: Any


# ---- encode ---------------------------------------------------------------------------------------------------------


@exercise("Residual vector quantization: encode", minutes=20, level=2)
def rvq_encode(
    x: Float[Tensor, "batch frames code_dim"], codebooks: Float[Tensor, "codebooks codebook_size code_dim"]
) -> Int[Tensor, "batch frames codebooks"]:
    """One distance at a time."""
    codes = torch.zeros(*x.shape[:2], len(codebooks), dtype=torch.long)
    for b, t in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
        residual = x[b, t].tolist()
        for i, codebook in enumerate(codebooks.tolist()):
            distances = [sum((one - two) ** 2 for one, two in zip(residual, entry, strict=True)) for entry in codebook]
            codes[b, t, i] = distances.index(min(distances))
            residual = [one - two for one, two in zip(residual, codebook[codes[b, t, i]], strict=True)]
    return codes


@rvq_encode.cases
def _(rng):
    yield "all sizes different", {"x": 2 * rng.randn(2, 5, 7), "codebooks": rng.randn(3, 4, 7)}
    yield "batch 1, one frame", {"x": rng.randn(1, 1, 3), "codebooks": rng.randn(2, 4, 3)}
    yield "one codebook", {"x": rng.randn(2, 6, 3), "codebooks": rng.randn(1, 5, 3)}
    finer = torch.tensor([1.0, 0.5, 0.25, 0.125])[:, None, None]
    yield "four codebooks, each finer", {"x": 2 * rng.randn(2, 9, 3), "codebooks": 2 * finer * rng.randn(4, 8, 3)}
    yield "as many codebooks as entries", {"x": 2 * rng.randn(2, 4, 3), "codebooks": rng.randn(2, 2, 3)}
    # a long entry wins every dot product, a near one every distance
    codebooks = torch.tensor([[[1.0, 0.0], [9.0, 9.0], [0.0, 1.0]], [[0.1, 0.0], [5.0, 5.0], [0.0, 0.1]]])
    yield "one long entry", {"x": torch.tensor([[[1.1, 0.0], [0.0, 1.2]]]), "codebooks": codebooks}
    yield (
        "the residual in numbers",
        {
            "x": torch.tensor([[[10.0, 1.0], [0.0, 9.0]]]),
            "codebooks": torch.tensor([[[10.0, 0.0], [0.0, 10.0]], [[0.0, -1.0], [0.0, 1.0]]]),
        },
    )


@rvq_encode.random_inputs
def _(rng):
    width, books = rng.size(4), rng.size(4)
    finer = 0.6 ** torch.arange(float(books))[:, None, None]
    x = 2 * rng.randn(rng.size(3), rng.size(4), width)
    x[:, -1] = x[:, 0]  # a frame that comes back
    return {"x": x, "codebooks": 2 * finer * rng.randn(books, rng.size(6), width)}


def rvq_encode_variant(
    x,
    codebooks,
    *,
    score=lambda residual, codebook: -torch.cdist(residual, codebook[None]),
    update=lambda residual, entry: residual - entry,
    order=lambda i: i,
):
    """`rvq_encode`; each keyword injects one fault."""
    residual, codes = x, []
    for i in range(len(codebooks)):
        codebook = codebooks[order(i)]
        nearest = score(residual, codebook).argmax(dim=-1)
        codes.append(nearest)
        residual = update(residual, codebook[nearest])
    return torch.stack(codes, dim=-1)


for cause, fault, section in (
    (
        "nothing is subtracted: every codebook quantizes the same vector",
        {"update": lambda residual, entry: residual},
        BUGS,
    ),
    (
        "the entry is added to the residual instead of subtracted",
        {"update": lambda residual, entry: residual + entry},
        RESIDUAL,
    ),
    ("the next codebook quantizes the entry, not the residual", {"update": lambda residual, entry: entry}, RESIDUAL),
    (
        "the farthest entry is taken instead of the nearest",
        {"score": lambda r, codebook: torch.cdist(r, codebook[None])},
        NEAREST,
    ),
    (
        "the largest dot product is taken for the smallest distance: long entries win",
        {"score": lambda r, codebook: r @ codebook.T},
        NEAREST,
    ),
    (
        "directions are compared (cosine similarity), not distances",
        {"score": lambda r, codebook: F.normalize(r, dim=-1) @ F.normalize(codebook, dim=-1).T},
        NEAREST,
    ),
    ("the first codebook is used for every code", {"order": lambda i: 0}, RESIDUAL),
    ("the codebooks are used in reverse order", {"order": lambda i: -1 - i}, RESIDUAL),
):
    rvq_encode.mutant(cause, section)(functools.partial(rvq_encode_variant, **fault))


@rvq_encode.mutant("each entry is subtracted from x itself: the residual of the codebooks before is lost", RESIDUAL)
def _(x, codebooks):
    return rvq_encode_variant(x, codebooks, update=lambda residual, entry: x - entry)


@rvq_encode.mutant("the codes are in reverse order", BUGS)
def _(x, codebooks):
    return rvq_encode_variant(x, codebooks).flip(-1)


@rvq_encode.mutant("the codes are stacked as a new first axis instead of the last", RVQ)
def _(x, codebooks):
    return rvq_encode_variant(x, codebooks).movedim(-1, 0)


rvq_encode.alternative(rvq_encode_variant)


@rvq_encode.alternative
def _(x, codebooks):
    codes = []
    for codebook in codebooks:
        distances = (x[:, :, None] - codebook).square().sum(dim=-1)
        codes.append(distances.argmin(dim=2, keepdim=True))
        x = x - F.embedding(codes[-1].squeeze(2), codebook)
    return torch.cat(codes, dim=2)


@rvq_encode.replaces("tinyomni.codec.RVQ.encode")
def _(answer):
    def encode(self, x):
        rows = self.in_proj(x).reshape(1, -1, self.cfg.code_dim)
        return answer(rows, self.codebooks).reshape(*x.shape[:-1], self.cfg.codebooks)

    return encode


# ---- decode ---------------------------------------------------------------------------------------------------------


@exercise("Residual vector quantization: decode", minutes=10, level=1, gradients=("codebooks",))
def rvq_decode(
    codes: Int[Tensor, "batch frames codebooks"], codebooks: Float[Tensor, "codebooks codebook_size code_dim"]
) -> Float[Tensor, "batch frames code_dim"]:
    """One entry at a time."""
    quantized = codebooks.new_zeros(*codes.shape[:2], codebooks.shape[2])
    for b, t, i in torch.cartesian_prod(*map(torch.arange, codes.shape)).reshape(-1, 3).tolist():
        quantized[b, t] += codebooks[i, codes[b, t, i]]
    return quantized


@rvq_decode.cases
def _(rng):
    yield "all sizes different", {"codes": rng.randint(4, 2, 5, 3), "codebooks": rng.randn(3, 4, 7)}
    yield "batch 1, one frame", {"codes": rng.randint(4, 1, 1, 2), "codebooks": rng.randn(2, 4, 3)}
    yield "one codebook", {"codes": rng.randint(5, 2, 3, 1), "codebooks": rng.randn(1, 5, 2)}
    yield (
        "the same code in both codebooks",
        {"codes": torch.tensor([[[2, 2], [0, 0]]]), "codebooks": rng.randn(2, 3, 4)},
    )
    yield (
        "two frames with exchanged codes",
        {"codes": torch.tensor([[[1, 2], [2, 1]]]), "codebooks": rng.randn(2, 3, 4)},
    )


@rvq_decode.random_inputs
def _(rng):
    books, size = rng.size(4), rng.size(4)
    return {
        "codes": rng.randint(size, rng.size(3), rng.size(4), books),
        "codebooks": rng.randn(books, size, rng.size()),
    }


def look_up(codes, codebooks):
    """(codebooks, batch, frames, code_dim)"""
    return torch.stack([codebook[codes[..., i]] for i, codebook in enumerate(codebooks)])


@rvq_decode.mutant("every code is looked up in the first codebook", RVQ)
def _(codes, codebooks):
    return codebooks[0][codes].sum(dim=2)


@rvq_decode.mutant("only the first code is used: the residuals are missing", RESIDUAL)
def _(codes, codebooks):
    return codebooks[0][codes[..., 0]]


@rvq_decode.mutant("the mean of the entries is taken instead of the sum", RESIDUAL)
def _(codes, codebooks):
    return look_up(codes, codebooks).mean(dim=0)


@rvq_decode.mutant("the codes are read in reverse order, each in another codebook", BUGS)
def _(codes, codebooks):
    return look_up(codes.flip(-1), codebooks).sum(dim=0)


@rvq_decode.mutant("the entries are subtracted from the first one, as in encoding", RESIDUAL)
def _(codes, codebooks):
    found = look_up(codes, codebooks)
    return found[0] - found[1:].sum(dim=0)


@rvq_decode.mutant("the entries are concatenated instead of added", RVQ)
def _(codes, codebooks):
    return torch.cat(list(look_up(codes, codebooks)), dim=-1)


@rvq_decode.mutant("the codes are summed first, and one entry is looked up", RVQ)
def _(codes, codebooks):
    return codebooks[0][codes.sum(dim=-1) % codebooks.shape[1]]


@rvq_decode.mutant("the last codebook is left out: the loop ends one too early", RVQ)
def _(codes, codebooks):
    return look_up(codes, codebooks)[:-1].sum(dim=0)


@rvq_decode.mutant("the entries are detached: the codebooks get no gradient", RVQ)
def _(codes, codebooks):
    return look_up(codes, codebooks).detach().sum(dim=0)


@rvq_decode.mutant("the entries are multiplied instead of added", RVQ)
def _(codes, codebooks):
    return look_up(codes, codebooks).prod(dim=0)


@rvq_decode.mutant("equal codes of a frame are looked up once", RVQ)
def _(codes, codebooks):
    found = look_up(codes, codebooks)
    for i in range(1, len(found)):
        found[i] *= (codes[..., :i] != codes[..., i : i + 1]).all(dim=-1, keepdim=True)
    return found.sum(dim=0)


@rvq_decode.alternative
def _(codes, codebooks):
    return look_up(codes, codebooks).sum(dim=0)


@rvq_decode.alternative
def _(codes, codebooks):
    return codebooks[torch.arange(len(codebooks)), codes].sum(dim=2)


@rvq_decode.replaces("tinyomni.codec.RVQ.lookup")
def _(answer):
    def lookup(self, codes):
        rows = codes.reshape(1, -1, codes.shape[-1])
        return answer(rows, self.codebooks).reshape(*codes.shape[:-1], self.cfg.code_dim)

    return lookup


# ---- straight through -----------------------------------------------------------------------------------------------


@exercise("The straight-through estimator", minutes=15, level=2, answer_name="VectorQuantizer")
def vector_quantizer(
    x: Float[Tensor, "batch frames code_dim"], codebook: Float[Tensor, "codebook_size code_dim"]
) -> dict[str, Float[Tensor, "..."]]:
    """The nearest entries; and the gradients of the sum of their squares by hand: 2 · entry for x, nothing else."""
    quantized = torch.stack(
        [
            torch.stack([min(codebook, key=lambda entry, row=row: float((row - entry).square().sum())) for row in rows])
            for rows in x
        ]
    )
    return {"output": quantized, "gradient of x": 2 * quantized, "gradient of the codebook": torch.zeros_like(codebook)}


@vector_quantizer.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 5, 7), "codebook": rng.randn(3, 7)}
    yield "batch 1, one frame", {"x": rng.randn(1, 1, 2), "codebook": rng.randn(4, 2)}
    yield "one entry", {"x": rng.randn(2, 3, 2), "codebook": rng.randn(1, 2)}
    codebook = torch.tensor([[1.0, 0.0], [9.0, 9.0]])
    yield "a long, distant entry", {"x": torch.tensor([[[1.5, 0.5]]]), "codebook": codebook}
    yield "x is an entry", {"x": codebook[None], "codebook": codebook}


@vector_quantizer.random_inputs
def _(rng):
    width = rng.size(4)
    return {"x": 2 * rng.randn(rng.size(3), rng.size(4), width), "codebook": rng.randn(rng.size(6), width)}


@vector_quantizer.invoke
def _(answer, x, codebook):
    layer, x = load_weights(answer(*codebook.shape), codebook=codebook), x.clone().requires_grad_()
    quantized = layer(x)
    inputs = [x, *layer.parameters()]
    loss = quantized.square().sum()
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else [None, None]
    gradients = [
        torch.zeros_like(one) if gradient is None else gradient for one, gradient in zip(inputs, gradients, strict=True)
    ]
    return {"output": quantized.detach(), "gradient of x": gradients[0], "gradient of the codebook": gradients[1]}


class StraightThrough(nn.Module):
    """x + sg(entry - x), where sg stops the gradient; a mutant overrides `join` or `score`."""

    def __init__(self, size, width):
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(size, width))

    def score(self, x):
        return -torch.cdist(x, self.codebook[None])

    def join(self, x, entry):
        return x + (entry - x).detach()

    def forward(self, x):
        return self.join(x, self.codebook[self.score(x).argmax(dim=-1)])


vector_quantizer.alternative(StraightThrough)


def with_method(join, name="join"):
    """The layer with one method replaced."""
    return type("VectorQuantizer", (StraightThrough,), {name: join})


for cause, join in (
    (
        "the entry is returned as it is: no gradient reaches x, and nothing before it learns",
        lambda self, x, entry: entry,
    ),
    (
        "the wrong side is detached: x comes out unchanged, nothing is quantized",
        lambda self, x, entry: entry + (x - entry).detach(),
    ),
    (
        "the difference has the wrong sign: the output is beyond x, away from the entry",
        lambda self, x, entry: x + (x - entry).detach(),
    ),
    ("everything is detached: there is no gradient at all", lambda self, x, entry: (x + entry - x).detach()),
    (
        "the codebook gets the same gradient as x: it has a loss of its own",
        lambda self, x, entry: entry + x - x.detach(),
    ),
    (
        "half of the difference is added: the output is neither x nor an entry",
        lambda self, x, entry: x + (entry - x).detach() / 2,
    ),
):
    vector_quantizer.mutant(cause, ARGMIN)(with_method(join))

vector_quantizer.mutant("the largest dot product is taken for the smallest distance: long entries win", NEAREST)(
    with_method(lambda self, x: x @ self.codebook.T, "score")
)


@vector_quantizer.alternative
class NoGradGap(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(size, width))

    def forward(self, x):
        with torch.no_grad():
            distances = (x[..., None, :] - self.codebook).norm(dim=-1)
            gap = F.embedding(distances.argmin(dim=-1), self.codebook) - x
        return gap + x


# ---- commitment -----------------------------------------------------------------------------------------------------


@exercise("Codebook loss and commitment loss", minutes=15, level=2, answer_name="CodebookLoss")
def codebook_loss(
    x: Float[Tensor, "batch frames code_dim"], entry: Float[Tensor, "batch frames code_dim"], beta: float = 0.25
) -> dict[str, Float[Tensor, "..."]]:
    """The value, and the gradients by hand."""
    mean = sum(number**2 for number in (x - entry).flatten()) / x.numel()
    pull = 2 * (x - entry) / x.numel()
    return {"loss": (1 + beta) * mean, "gradient of x": beta * pull, "gradient of the entry": -pull}


@codebook_loss.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 5, 7), "entry": rng.randn(2, 5, 7)}
    yield "beta 1.5", {"x": rng.randn(2, 3, 4), "entry": rng.randn(2, 3, 4), "beta": 1.5}
    yield "beta 0: no commitment", {"x": rng.randn(2, 3, 4), "entry": rng.randn(2, 3, 4), "beta": 0.0}
    yield "batch 1, one frame, one number", {"x": rng.randn(1, 1, 1), "entry": rng.randn(1, 1, 1)}
    same = rng.randn(2, 2, 3)
    yield "x equals its entry", {"x": same, "entry": same.clone()}


@codebook_loss.random_inputs
def _(rng):
    x, entry = rng.choice((0.1, 10.0)) * rng.randn(2, rng.size(3), rng.size(4), rng.size())
    return {"x": x, "entry": entry, "beta": rng.number(0.0, 2.0)}


@codebook_loss.invoke
def _(answer, x, entry, beta=0.25):
    x, entry = x.clone().requires_grad_(), entry.clone().requires_grad_()
    loss = answer(beta)(x, entry)
    gradients = torch.autograd.grad(loss, [x, entry], allow_unused=True) if loss.requires_grad else [None, None]
    gradients = [torch.zeros_like(x) if gradient is None else gradient for gradient in gradients]
    return {"loss": loss.detach(), "gradient of x": gradients[0], "gradient of the entry": gradients[1]}


class VQLoss(nn.Module):
    """codebook loss + beta · commitment loss; a mutant overrides `terms`."""

    def __init__(self, beta=0.25):
        super().__init__()
        self.beta = beta

    def terms(self, x, entry, beta):
        return F.mse_loss(x.detach(), entry) + beta * F.mse_loss(x, entry.detach())

    def forward(self, x, entry):
        return self.terms(x, entry, self.beta)


codebook_loss.alternative(VQLoss)

for cause, terms in (
    (
        "nothing is detached: both terms pull at both sides",
        lambda self, x, e, beta: (1 + beta) * F.mse_loss(x, e),
    ),
    (
        "the two detached sides are exchanged: beta scales the codebook loss instead of the commitment",
        lambda self, x, e, beta: F.mse_loss(x, e.detach()) + beta * F.mse_loss(x.detach(), e),
    ),
    ("beta is missing", lambda self, x, e, beta: F.mse_loss(x.detach(), e) + F.mse_loss(x, e.detach())),
    ("the codebook loss is missing: the entries never move", lambda self, x, e, beta: beta * F.mse_loss(x, e.detach())),
    (
        "the commitment loss is missing: the vectors may drift away from their entries",
        lambda self, x, e, beta: F.mse_loss(x.detach(), e),
    ),
    (
        "the sum is taken instead of the mean: the loss grows with the batch",
        lambda self, x, e, beta: (x.detach() - e).square().sum() + beta * (x - e.detach()).square().sum(),
    ),
    ("distances are not squared", lambda self, x, e, beta: F.l1_loss(x.detach(), e) + beta * F.l1_loss(x, e.detach())),
    (
        "the mean runs over frames only, and the channels are summed",
        lambda self, x, e, beta: ((x.detach() - e).square() + beta * (x - e.detach()).square()).sum(dim=-1).mean(),
    ),
    (
        "beta is always 0.25, ignoring the argument",
        lambda self, x, e, beta: F.mse_loss(x.detach(), e) + F.mse_loss(x, e.detach()) / 4,
    ),
):
    codebook_loss.mutant(cause, ARGMIN)(type("CodebookLoss", (VQLoss,), {"terms": terms}))


@codebook_loss.alternative
class OneMean(nn.Module):
    def __init__(self, beta=0.25):
        super().__init__()
        self.beta = beta

    def forward(self, x, entry):
        with torch.no_grad():
            fixed_x, fixed_entry = x.clone(), entry.clone()
        return ((fixed_x - entry) ** 2 + self.beta * (x - fixed_entry) ** 2).mean()


# ---- moving average -------------------------------------------------------------------------------------------------


@exercise("Exponential moving average of a codebook", minutes=20, level=2)
def ema_update(
    x: Float[Tensor, "points code_dim"],
    nearest: Int[Tensor, "points"],
    counts: Float[Tensor, "codebook_size"],
    sums: Float[Tensor, "codebook_size code_dim"],
    gamma: float = 0.99,
) -> tuple[
    Float[Tensor, "codebook_size code_dim"], Float[Tensor, "codebook_size"], Float[Tensor, "codebook_size code_dim"]
]:
    """Entry by entry."""
    codebook, counts, sums = torch.zeros_like(sums), counts.clone(), sums.clone()
    for k in range(len(counts)):
        mine = [point for point, code in zip(x, nearest.tolist(), strict=True) if code == k]
        counts[k] = gamma * counts[k] + (1 - gamma) * len(mine)
        sums[k] = gamma * sums[k] + (1 - gamma) * sum(mine, torch.zeros_like(x[0]))
        codebook[k] = sums[k] / counts[k]
    return codebook, counts, sums


@ema_update.cases
def _(rng):
    def given(points, width, size, **more):
        return {
            "x": rng.randn(points, width),
            "nearest": rng.randint(size, points),
            "counts": 1 + rng.randn(size).abs(),
            "sums": rng.randn(size, width),
            **more,
        }

    yield "all sizes different", given(11, 5, 3, gamma=0.8)
    yield "gamma 0.99", given(6, 3, 2)
    yield "gamma 0: a step of k-means", given(9, 2, 3, gamma=0.0) | {"nearest": torch.arange(9) % 3}
    yield "an unused entry", given(4, 2, 3, gamma=0.5) | {"nearest": torch.tensor([0, 2, 2, 0])}
    yield "one point", given(1, 2, 2, gamma=0.5)


@ema_update.random_inputs
def _(rng):
    points, width, size = rng.size(8), rng.size(4), rng.size(5)
    return {
        "x": rng.randn(points, width), "nearest": rng.randint(size, points), "counts": 0.5 + rng.randn(size).abs(),
        "sums": rng.randn(size, width), "gamma": rng.number(0.1, 1.0),
    }  # fmt: skip


def ema_update_variant(
    x,
    nearest,
    counts,
    sums,
    gamma=0.99,
    *,
    new=lambda gamma: 1 - gamma,
    total=lambda s, c: s,
    over=lambda s, new_counts, old, c: s / new_counts[:, None],
    keep=lambda new_counts, old, c: new_counts,
):
    """`ema_update`; each keyword injects one fault."""
    one_hot = F.one_hot(nearest, len(counts)).to(x.dtype)
    c, s = one_hot.sum(dim=0), one_hot.T @ x
    new_counts = keep(gamma * counts + new(gamma) * c, counts, c)
    new_sums = keep(gamma * sums + new(gamma) * total(s, c[:, None]), sums, c[:, None])
    return over(new_sums, new_counts, counts, c), new_counts, new_sums


for cause, fault in (
    ("the new batch is not weighted by 1 - gamma: counts and sums grow without bound", {"new": lambda gamma: 1.0}),
    ("the batch's mean is added instead of its sum", {"total": lambda s, c: s / c.clamp(min=1)}),
    ("the new sums are divided by the old counts", {"over": lambda s, new_counts, old, c: s / old[:, None]}),
    ("the sums are returned as entries, without division", {"over": lambda s, new_counts, old, c: s}),
    (
        "the running sums are divided by the counts of this batch: unused entries are lost at once",
        {"over": lambda s, new_counts, old, c: s / c[:, None].clamp(min=1)},
    ),
    (
        "unused entries are not updated: their counts never decay, so dead codes go unnoticed",
        {"keep": lambda new_counts, old, c: torch.where(c > 0, new_counts, old)},
    ),
):
    ema_update.mutant(cause, ARGMIN)(functools.partial(ema_update_variant, **fault))


@ema_update.mutant("gamma and 1 - gamma are exchanged: nearly everything is forgotten at each step", ARGMIN)
def _(x, nearest, counts, sums, gamma=0.99):
    return ema_update_variant(x, nearest, counts, sums, 1 - gamma)


@ema_update.mutant("gamma is always 0.99, ignoring the argument", ARGMIN)
def _(x, nearest, counts, sums, gamma=0.99):
    return ema_update_variant(x, nearest, counts, sums)


@ema_update.mutant("the old counts are returned instead of the new ones", ARGMIN)
def _(x, nearest, counts, sums, gamma=0.99):
    codebook, _, new_sums = ema_update_variant(x, nearest, counts, sums, gamma)
    return codebook, counts, new_sums


@ema_update.mutant("`sums[nearest] += x` adds one point for each entry, though several may have chosen it", ARGMIN)
def _(x, nearest, counts, sums, gamma=0.99):
    new_counts, new_sums = gamma * counts, gamma * sums
    new_counts[nearest] += 1 - gamma
    new_sums[nearest] += (1 - gamma) * x
    return new_sums / new_counts[:, None], new_counts, new_sums


ema_update.alternative(ema_update_variant)


@ema_update.alternative
def _(x, nearest, counts, sums, gamma=0.99):
    counts = torch.lerp(torch.bincount(nearest, minlength=len(counts)).to(counts), counts, gamma)
    sums = torch.lerp(torch.zeros_like(sums).index_add_(0, nearest, x), sums, gamma)
    return sums / counts.unsqueeze(1), counts, sums


# ---- dead codes -----------------------------------------------------------------------------------------------------


@exercise("Expire dead codes", minutes=15, level=2)
def expire_codes(
    codebook: Float[Tensor, "codebook_size code_dim"],
    usage: Float[Tensor, "codebook_size"],
    x: Float[Tensor, "points code_dim"],
    threshold: float = 0.1,
) -> tuple[Float[Tensor, "codebook_size code_dim"], Float[Tensor, "codebook_size"]]:
    """The n-th dead entry goes to the n-th point; after the last point, start over with the first."""
    rows, usages, replaced = [], [], 0
    for entry, used in zip(codebook, usage.tolist(), strict=True):
        dead = used < threshold
        rows.append(x[replaced % len(x)] if dead else entry)
        usages.append(1.0 if dead else used)
        replaced += dead
    return torch.stack(rows), torch.tensor(usages, dtype=usage.dtype)


@expire_codes.cases
def _(rng):
    some = torch.tensor([1.0, 0.05, 0.5, 0.0, 2.0, 0.01])
    yield "all sizes different", {"codebook": rng.randn(6, 3), "usage": some, "x": rng.randn(8, 3)}
    yield "no dead entries", {"codebook": rng.randn(3, 2), "usage": torch.tensor([1.0, 0.2, 0.5]), "x": rng.randn(4, 2)}
    yield (
        "another threshold",
        {"codebook": rng.randn(3, 2), "usage": torch.tensor([1.0, 0.2, 0.4]), "x": rng.randn(4, 2), "threshold": 0.3},
    )
    yield (
        "exactly the threshold is alive",
        {"codebook": rng.randn(3, 2), "usage": torch.tensor([0.5, 0.0, 2.0]), "x": rng.randn(5, 2), "threshold": 0.5},
    )
    yield "more dead entries than points", {"codebook": rng.randn(4, 2), "usage": torch.zeros(4), "x": rng.randn(3, 2)}


@expire_codes.random_inputs
def _(rng):
    size, width, threshold = rng.size(7), rng.size(4), rng.choice((0.25, 0.5, 1.5))
    usage = torch.tensor([0.0, 0.125, 0.25, 0.5, 1.0, 1.5, 3.0])[rng.randint(7, size)]  # some equal the threshold
    return {
        "codebook": rng.randn(size, width), "usage": usage, "x": rng.randn(rng.size(), width), "threshold": threshold
    }  # fmt: skip


def expire_codes_variant(
    codebook,
    usage,
    x,
    threshold=0.1,
    *,
    is_dead=lambda usage, threshold: usage < threshold,
    take=lambda dead, x: x[torch.arange(len(dead)) % len(x)],
    after=1.0,
):
    """`expire_codes`; each keyword injects one fault."""
    dead = is_dead(usage, threshold).nonzero().flatten()
    codebook, usage = codebook.clone(), usage.clone()
    codebook[dead] = take(dead, x)
    if after is not None:
        usage[dead] = after
    return codebook, usage


for cause, fault in (
    (
        "the live entries are replaced and the dead ones are kept",
        {"is_dead": lambda usage, threshold: usage >= threshold},
    ),
    ("only entries with a usage of 0 count as dead", {"is_dead": lambda usage, threshold: usage == 0}),
    (
        "an entry whose usage equals the threshold is replaced too",
        {"is_dead": lambda usage, threshold: usage <= threshold},
    ),
    ("the threshold is always 0.1, ignoring the argument", {"is_dead": lambda usage, threshold: usage < 0.1}),
    ("all dead entries are moved to the same point", {"take": lambda dead, x: x[:1]}),
    ("all dead entries are moved to the mean, where few points are", {"take": lambda dead, x: x.mean(dim=0)}),
    (
        "entry k is moved to point k, by its own index, instead of the n-th dead one to point n",
        {"take": lambda dead, x: x[dead % len(x)]},
    ),
    ("the usage is not reset to 1: the same entries are replaced again at the next step", {"after": None}),
    ("the usage is reset to 0: a replaced entry is dead again at once", {"after": 0.0}),
):
    expire_codes.mutant(cause, DEAD)(functools.partial(expire_codes_variant, **fault))


@expire_codes.mutant("the input codebook is modified in place", DEAD)
def _(codebook, usage, x, threshold=0.1):
    new, usage = expire_codes_variant(codebook, usage, x, threshold)
    return codebook.copy_(new), usage


expire_codes.alternative(expire_codes_variant)


@expire_codes.alternative
def _(codebook, usage, x, threshold=0.1):
    dead = usage < threshold
    place = (dead.cumsum(dim=0) - 1).clamp(min=0) % len(x)
    return torch.where(dead[:, None], x[place], codebook), usage.masked_fill(dead, 1.0)
