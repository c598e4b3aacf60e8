"""Lesson 09, the codec: its oracles compare one vector with one entry at a time, and write the slopes down by hand."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.grade.exercise import exercise, load_weights

NOTEBOOK, TITLE = "09_codec", "The codec"

NEAREST = "2. Vector quantisation: the nearest entry"
RESIDUAL = "4. The residual: what is left over gets a second code"
RVQ = "5. The library's `RVQ`"
ARGMIN = "6. No gradient comes through an argmin"
DEAD = "9. Usage: dead codes"
BUGS = "12. Two bugs that keep the shape"

fault: Any  # what a mutant changes
join: Any
terms: Any


# ---- encode ---------------------------------------------------------------------------------------------------------


@exercise("A code from each book", minutes=20, level=2)
def rvq_encode(
    x: Float[Tensor, "batch frames code_dim"], codebooks: Float[Tensor, "codebooks codebook_size code_dim"]
) -> Int[Tensor, "batch frames codebooks"]:
    """One distance at a time."""
    codes = torch.zeros(*x.shape[:2], len(codebooks), dtype=torch.long)
    for b, t in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
        rest = x[b, t].tolist()
        for i, book in enumerate(codebooks.tolist()):
            distances = [sum((one - two) ** 2 for one, two in zip(rest, entry, strict=True)) for entry in book]
            codes[b, t, i] = distances.index(min(distances))
            rest = [one - two for one, two in zip(rest, book[codes[b, t, i]], strict=True)]
    return codes


@rvq_encode.cases
def _(rng):
    yield "all sizes different", {"x": 2 * rng.randn(2, 5, 7), "codebooks": rng.randn(3, 4, 7)}
    yield "batch 1, one frame", {"x": rng.randn(1, 1, 3), "codebooks": rng.randn(2, 4, 3)}
    yield "one book", {"x": rng.randn(2, 6, 3), "codebooks": rng.randn(1, 5, 3)}
    yield "as many books as entries", {"x": 2 * rng.randn(2, 4, 3), "codebooks": rng.randn(2, 2, 3)}
    # a long entry wins every dot product, a near one every distance
    books = torch.tensor([[[1.0, 0.0], [9.0, 9.0], [0.0, 1.0]], [[0.1, 0.0], [5.0, 5.0], [0.0, 0.1]]])
    yield "one long entry", {"x": torch.tensor([[[1.1, 0.0], [0.0, 1.2]]]), "codebooks": books}
    yield (
        "the residual in figures",
        {
            "x": torch.tensor([[[10.0, 1.0], [0.0, 9.0]]]),
            "codebooks": torch.tensor([[[10.0, 0.0], [0.0, 10.0]], [[0.0, -1.0], [0.0, 1.0]]]),
        },
    )


def encoded(
    x,
    codebooks,
    *,
    rate=lambda rest, book: -torch.cdist(rest, book[None]),
    left=lambda rest, entry: rest - entry,
    at=lambda i: i,
):
    """The fast loop, with one thing to go wrong at a time."""
    rest, codes = x, []
    for i in range(len(codebooks)):
        book = codebooks[at(i)]
        nearest = rate(rest, book).argmax(dim=-1)
        codes.append(nearest)
        rest = left(rest, book[nearest])
    return torch.stack(codes, dim=-1)


for cause, fault, section in (
    (
        "nothing is subtracted: every book is asked about the same vector again",
        {"left": lambda rest, entry: rest},
        BUGS,
    ),
    ("the entry is added to the rest instead of taken from it", {"left": lambda rest, entry: rest + entry}, RESIDUAL),
    ("the next book describes the entry, not what the entry left over", {"left": lambda rest, entry: entry}, RESIDUAL),
    (
        "the farthest entry is taken instead of the nearest",
        {"rate": lambda r, book: torch.cdist(r, book[None])},
        NEAREST,
    ),
    (
        "the largest dot product is taken for the smallest distance: long entries win",
        {"rate": lambda r, book: r @ book.T},
        NEAREST,
    ),
    (
        "directions are compared, not distances",
        {"rate": lambda r, book: F.normalize(r, dim=-1) @ F.normalize(book, dim=-1).T},
        NEAREST,
    ),
    ("the first book is used for every code", {"at": lambda i: 0}, RESIDUAL),
    ("the last book comes first: its fine entries are asked for the rough place", {"at": lambda i: -1 - i}, RESIDUAL),
):
    rvq_encode.mutant(cause, section)(functools.partial(encoded, **fault))


@rvq_encode.mutant("the codes of the different books come out in reverse order", BUGS)
def _(x, codebooks):
    return encoded(x, codebooks).flip(-1)


@rvq_encode.mutant("the codes are joined as a new first axis instead of the last", RVQ)
def _(x, codebooks):
    return encoded(x, codebooks).movedim(-1, 0)


rvq_encode.alternative(encoded)


@rvq_encode.alternative
def _(x, codebooks):
    codes = []
    for book in codebooks:
        distances = (x[:, :, None] - book).square().sum(dim=-1)
        codes.append(distances.argmin(dim=2, keepdim=True))
        x = x - F.embedding(codes[-1].squeeze(2), book)
    return torch.cat(codes, dim=2)


@rvq_encode.replaces("tinyomni.codec.RVQ.encode")
def _(answer):
    def encode(self, x):
        rows = self.in_proj(x).reshape(1, -1, self.cfg.code_dim)
        return answer(rows, self.codebooks).reshape(*x.shape[:-1], self.cfg.codebooks)

    return encode


# ---- decode ---------------------------------------------------------------------------------------------------------


@exercise("From codes to vectors", minutes=10, level=1)
def rvq_decode(
    codes: Int[Tensor, "batch frames codebooks"], codebooks: Float[Tensor, "codebooks codebook_size code_dim"]
) -> Float[Tensor, "batch frames code_dim"]:
    """One entry at a time."""
    said = codebooks.new_zeros(*codes.shape[:2], codebooks.shape[2])
    for b, t, i in torch.cartesian_prod(*map(torch.arange, codes.shape)).reshape(-1, 3).tolist():
        said[b, t] += codebooks[i, codes[b, t, i]]
    return said


@rvq_decode.cases
def _(rng):
    yield "all sizes different", {"codes": rng.randint(4, 2, 5, 3), "codebooks": rng.randn(3, 4, 7)}
    yield "batch 1, one frame", {"codes": rng.randint(4, 1, 1, 2), "codebooks": rng.randn(2, 4, 3)}
    yield "one book", {"codes": rng.randint(5, 2, 3, 1), "codebooks": rng.randn(1, 5, 2)}
    yield "the same code in both books", {"codes": torch.tensor([[[2, 2], [0, 0]]]), "codebooks": rng.randn(2, 3, 4)}
    yield "the codes of two frames exchanged", {"codes": torch.tensor([[[1, 2], [2, 1]]]), "codebooks": rng.randn(2, 3, 4)}


def entries(codes, codebooks):
    """(codebooks, batch, frames, code_dim)"""
    return torch.stack([book[codes[..., i]] for i, book in enumerate(codebooks)])


@rvq_decode.mutant("every code is looked up in the first book", RVQ)
def _(codes, codebooks):
    return codebooks[0][codes].sum(dim=2)


@rvq_decode.mutant("only the first code counts: what the others describe is missing", RESIDUAL)
def _(codes, codebooks):
    return codebooks[0][codes[..., 0]]


@rvq_decode.mutant("the mean of the entries is taken: what comes out is too small", RESIDUAL)
def _(codes, codebooks):
    return entries(codes, codebooks).mean(dim=0)


@rvq_decode.mutant("the codes are read in reverse order, each in another one's book", BUGS)
def _(codes, codebooks):
    return entries(codes.flip(-1), codebooks).sum(dim=0)


@rvq_decode.mutant("the entries are subtracted from the first one, as they were when encoding", RESIDUAL)
def _(codes, codebooks):
    found = entries(codes, codebooks)
    return found[0] - found[1:].sum(dim=0)


@rvq_decode.mutant("the entries stand side by side instead of being added", RVQ)
def _(codes, codebooks):
    return torch.cat(list(entries(codes, codebooks)), dim=-1)


@rvq_decode.mutant("the codes are added up first, and one entry is looked up", RVQ)
def _(codes, codebooks):
    return codebooks[0][codes.sum(dim=-1) % codebooks.shape[1]]


@rvq_decode.alternative
def _(codes, codebooks):
    return entries(codes, codebooks).sum(dim=0)


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


@exercise("Straight through the argmin", minutes=15, level=2, answer_name="Quantiser")
def quantiser(
    x: Float[Tensor, "batch frames code_dim"], codebook: Float[Tensor, "codebook_size code_dim"]
) -> dict[str, Float[Tensor, "..."]]:
    """The nearest entries; and the slopes of the sum of their squares, written down: 2 · entry for x, nothing else."""
    said = torch.stack(
        [
            torch.stack([min(codebook, key=lambda entry, row=row: float((row - entry).square().sum())) for row in rows])
            for rows in x
        ]
    )
    return {"what comes out": said, "slope of x": 2 * said, "slope of the codebook": torch.zeros_like(codebook)}


@quantiser.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 5, 7), "codebook": rng.randn(3, 7)}
    yield "batch 1, one frame", {"x": rng.randn(1, 1, 2), "codebook": rng.randn(4, 2)}
    yield "one entry", {"x": rng.randn(2, 3, 2), "codebook": rng.randn(1, 2)}
    book = torch.tensor([[1.0, 0.0], [9.0, 9.0]])
    yield "a long entry that is far", {"x": torch.tensor([[[1.5, 0.5]]]), "codebook": book}
    yield "x is an entry", {"x": book[None], "codebook": book}


@quantiser.invoke
def _(answer, x, codebook):
    layer, x = load_weights(answer(*codebook.shape), codebook=codebook), x.clone().requires_grad_()
    said = layer(x)
    wanted = [x, *layer.parameters()]
    loss = said.square().sum()
    slopes = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else [None, None]
    slopes = [torch.zeros_like(one) if slope is None else slope for one, slope in zip(wanted, slopes, strict=True)]
    return {"what comes out": said.detach(), "slope of x": slopes[0], "slope of the codebook": slopes[1]}


class Through(nn.Module):
    """x + sg(entry - x); a mutant changes `join` or `rate`."""

    def __init__(self, size, width):
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(size, width))

    def rate(self, x):
        return -torch.cdist(x, self.codebook[None])

    def join(self, x, entry):
        return x + (entry - x).detach()

    def forward(self, x):
        return self.join(x, self.codebook[self.rate(x).argmax(dim=-1)])


quantiser.alternative(Through)


def through(join, name="join"):
    """A layer with another `join`."""
    return type("Quantiser", (Through,), {name: join})


for cause, join in (
    ("the entry is given as it is: no slope reaches x, and nothing before it learns", lambda self, x, entry: entry),
    (
        "the wrong side is detached: x comes out unchanged, nothing is quantised",
        lambda self, x, entry: entry + (x - entry).detach(),
    ),
    (
        "the difference has the wrong sign: what comes out lies beyond x, away from the entry",
        lambda self, x, entry: x + (x - entry).detach(),
    ),
    ("all of it is detached: no slope reaches anything", lambda self, x, entry: (x + entry - x).detach()),
    (
        "the entries get the same slope as x: they have a loss of their own",
        lambda self, x, entry: entry + x - x.detach(),
    ),
    (
        "half of the difference is kept: what comes out is neither x nor an entry",
        lambda self, x, entry: x + (entry - x).detach() / 2,
    ),
):
    quantiser.mutant(cause, ARGMIN)(through(join))

quantiser.mutant("the largest dot product is taken for the smallest distance: long entries win", NEAREST)(
    through(lambda self, x: x @ self.codebook.T, "rate")
)


@quantiser.alternative
class Masked(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(size, width))

    def forward(self, x):
        with torch.no_grad():
            distances = (x[..., None, :] - self.codebook).norm(dim=-1)
            gap = F.embedding(distances.argmin(dim=-1), self.codebook) - x
        return gap + x


# ---- commitment -----------------------------------------------------------------------------------------------------


@exercise("Two terms that pull", minutes=15, level=2, answer_name="CodebookLoss")
def codebook_loss(
    x: Float[Tensor, "batch frames code_dim"], entry: Float[Tensor, "batch frames code_dim"], beta: float = 0.25
) -> dict[str, Float[Tensor, "..."]]:
    """The value, and the slopes as calculus gives them."""
    mean = sum(number**2 for number in (x - entry).flatten()) / x.numel()
    pull = 2 * (x - entry) / x.numel()
    return {"loss": (1 + beta) * mean, "slope of x": beta * pull, "slope of the entry": -pull}


@codebook_loss.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 5, 7), "entry": rng.randn(2, 5, 7)}
    yield "beta 1.5", {"x": rng.randn(2, 3, 4), "entry": rng.randn(2, 3, 4), "beta": 1.5}
    yield "beta 0: nothing pulls at x", {"x": rng.randn(2, 3, 4), "entry": rng.randn(2, 3, 4), "beta": 0.0}
    yield "batch 1, one frame, one number", {"x": rng.randn(1, 1, 1), "entry": rng.randn(1, 1, 1)}
    same = rng.randn(2, 2, 3)
    yield "x is its entry", {"x": same, "entry": same.clone()}


@codebook_loss.invoke
def _(answer, x, entry, beta=0.25):
    x, entry = x.clone().requires_grad_(), entry.clone().requires_grad_()
    loss = answer(beta)(x, entry)
    slopes = torch.autograd.grad(loss, [x, entry], allow_unused=True) if loss.requires_grad else [None, None]
    slopes = [torch.zeros_like(x) if slope is None else slope for slope in slopes]
    return {"loss": loss.detach(), "slope of x": slopes[0], "slope of the entry": slopes[1]}


class Pull(nn.Module):
    """entries to vectors + beta · vectors to entries; a mutant changes `terms`."""

    def __init__(self, beta=0.25):
        super().__init__()
        self.beta = beta

    def terms(self, x, entry, beta):
        return F.mse_loss(x.detach(), entry) + beta * F.mse_loss(x, entry.detach())

    def forward(self, x, entry):
        return self.terms(x, entry, self.beta)


codebook_loss.alternative(Pull)

for cause, terms in (
    (
        "nothing is detached: both terms pull at both sides, x far too hard",
        lambda self, x, e, beta: (1 + beta) * F.mse_loss(x, e),
    ),
    (
        "the two detached sides are exchanged: beta slows the entries down, not the vectors",
        lambda self, x, e, beta: F.mse_loss(x, e.detach()) + beta * F.mse_loss(x.detach(), e),
    ),
    ("beta is left out", lambda self, x, e, beta: F.mse_loss(x.detach(), e) + F.mse_loss(x, e.detach())),
    ("the entries' term is missing: they never move", lambda self, x, e, beta: beta * F.mse_loss(x, e.detach())),
    (
        "the commitment is missing: the vectors may run away from their entries",
        lambda self, x, e, beta: F.mse_loss(x.detach(), e),
    ),
    (
        "the sum is taken instead of the mean: the loss grows with the batch",
        lambda self, x, e, beta: (x.detach() - e).square().sum() + beta * (x - e.detach()).square().sum(),
    ),
    ("distances are not squared", lambda self, x, e, beta: F.l1_loss(x.detach(), e) + beta * F.l1_loss(x, e.detach())),
    (
        "the mean runs over frames only, and the numbers of a frame are summed up",
        lambda self, x, e, beta: ((x.detach() - e).square() + beta * (x - e.detach()).square()).sum(dim=-1).mean(),
    ),
    (
        "beta is always 0.25, whatever is asked for",
        lambda self, x, e, beta: F.mse_loss(x.detach(), e) + F.mse_loss(x, e.detach()) / 4,
    ),
):
    codebook_loss.mutant(cause, ARGMIN)(type("CodebookLoss", (Pull,), {"terms": terms}))


@codebook_loss.alternative
class Weighed(nn.Module):
    def __init__(self, beta=0.25):
        super().__init__()
        self.beta = beta

    def forward(self, x, entry):
        with torch.no_grad():
            fixed_x, fixed_entry = x.clone(), entry.clone()
        return ((fixed_x - entry) ** 2 + self.beta * (x - fixed_entry) ** 2).mean()


# ---- a moving average -----------------------------------------------------------------------------------------------


@exercise("Entries as moving averages", minutes=20, level=2)
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
    book, counts, sums = torch.zeros_like(sums), counts.clone(), sums.clone()
    for k in range(len(counts)):
        mine = [point for point, code in zip(x, nearest.tolist(), strict=True) if code == k]
        counts[k] = gamma * counts[k] + (1 - gamma) * len(mine)
        sums[k] = gamma * sums[k] + (1 - gamma) * sum(mine, torch.zeros_like(x[0]))
        book[k] = sums[k] / counts[k]
    return book, counts, sums


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
    yield "it forgets everything: a step of k-means", given(9, 2, 3, gamma=0.0) | {"nearest": torch.arange(9) % 3}
    yield "an entry that nobody chose", given(4, 2, 3, gamma=0.5) | {"nearest": torch.tensor([0, 2, 2, 0])}
    yield "one point", given(1, 2, 2, gamma=0.5)


def moved(
    x,
    nearest,
    counts,
    sums,
    gamma=0.99,
    *,
    new=lambda gamma: 1 - gamma,
    total=lambda s, c: s,
    over=lambda s, fresh, old, c: s / fresh[:, None],
    keep=lambda fresh, old, c: fresh,
):
    """The fast way, with one thing to go wrong at a time."""
    chosen = F.one_hot(nearest, len(counts)).to(x.dtype)
    c, s = chosen.sum(dim=0), chosen.T @ x
    fresh = keep(gamma * counts + new(gamma) * c, counts, c)
    grown = keep(gamma * sums + new(gamma) * total(s, c[:, None]), sums, c[:, None])
    return over(grown, fresh, counts, c), fresh, grown


for cause, fault in (
    ("the new batch counts fully, not by 1 - gamma: counts and sums grow without end", {"new": lambda gamma: 1.0}),
    ("the batch's mean goes into the sums instead of its sum", {"total": lambda s, c: s / c.clamp(min=1)}),
    ("the new sums are divided by the old counts", {"over": lambda s, fresh, old, c: s / old[:, None]}),
    ("the sums are given out undivided as entries", {"over": lambda s, fresh, old, c: s}),
    (
        "the running sums are divided by this batch's counts: who is not chosen is lost at once",
        {"over": lambda s, fresh, old, c: s / c[:, None].clamp(min=1)},
    ),
    (
        "entries that nobody chose are left out: their counts never fade, and nobody sees that they are dead",
        {"keep": lambda fresh, old, c: torch.where(c > 0, fresh, old)},
    ),
):
    ema_update.mutant(cause, ARGMIN)(functools.partial(moved, **fault))


@ema_update.mutant("gamma and 1 - gamma are exchanged: nearly all is forgotten at each step", ARGMIN)
def _(x, nearest, counts, sums, gamma=0.99):
    return moved(x, nearest, counts, sums, 1 - gamma)


@ema_update.mutant("gamma is always 0.99, whatever is asked for", ARGMIN)
def _(x, nearest, counts, sums, gamma=0.99):
    return moved(x, nearest, counts, sums)


@ema_update.mutant("the new counts are used and thrown away: the old ones come back", ARGMIN)
def _(x, nearest, counts, sums, gamma=0.99):
    book, _, grown = moved(x, nearest, counts, sums, gamma)
    return book, counts, grown


ema_update.alternative(moved)


@ema_update.alternative
def _(x, nearest, counts, sums, gamma=0.99):
    counts = torch.lerp(torch.bincount(nearest, minlength=len(counts)).to(counts), counts, gamma)
    sums = torch.lerp(torch.zeros_like(sums).index_add_(0, nearest, x), sums, gamma)
    return sums / counts.unsqueeze(1), counts, sums


# ---- dead entries ---------------------------------------------------------------------------------------------------


@exercise("Wake the dead entries", minutes=15, level=2)
def revive(
    codebook: Float[Tensor, "codebook_size code_dim"],
    used: Float[Tensor, "codebook_size"],
    x: Float[Tensor, "points code_dim"],
    least: float = 0.1,
) -> tuple[Float[Tensor, "codebook_size code_dim"], Float[Tensor, "codebook_size"]]:
    """The n-th dead entry goes to the n-th point; behind the last point, the first comes again."""
    rows, shares, woken = [], [], 0
    for entry, share in zip(codebook, used.tolist(), strict=True):
        dead = share < least
        rows.append(x[woken % len(x)] if dead else entry)
        shares.append(1.0 if dead else share)
        woken += dead
    return torch.stack(rows), torch.tensor(shares, dtype=used.dtype)


@revive.cases
def _(rng):
    some = torch.tensor([1.0, 0.05, 0.5, 0.0, 2.0, 0.01])
    yield "all sizes different", {"codebook": rng.randn(6, 3), "used": some, "x": rng.randn(8, 3)}
    yield "all are alive", {"codebook": rng.randn(3, 2), "used": torch.tensor([1.0, 0.2, 0.5]), "x": rng.randn(4, 2)}
    yield (
        "another limit",
        {"codebook": rng.randn(3, 2), "used": torch.tensor([1.0, 0.2, 0.4]), "x": rng.randn(4, 2), "least": 0.3},
    )
    yield (
        "exactly the limit is alive",
        {"codebook": rng.randn(3, 2), "used": torch.tensor([0.5, 0.0, 2.0]), "x": rng.randn(5, 2), "least": 0.5},
    )
    yield "more dead entries than points", {"codebook": rng.randn(4, 2), "used": torch.zeros(4), "x": rng.randn(3, 2)}


def woken(
    codebook,
    used,
    x,
    least=0.1,
    *,
    is_dead=lambda used, least: used < least,
    take=lambda dead, x: x[torch.arange(len(dead)) % len(x)],
    after=1.0,
):
    """The fast way, with one thing to go wrong at a time."""
    dead = is_dead(used, least).nonzero().flatten()
    book, used = codebook.clone(), used.clone()
    book[dead] = take(dead, x)
    if after is not None:
        used[dead] = after
    return book, used


for cause, fault in (
    ("the living are moved and the dead are left alone", {"is_dead": lambda used, least: used >= least}),
    ("only entries that were never used count as dead", {"is_dead": lambda used, least: used == 0}),
    (
        "an entry that is used exactly as often as the limit is moved too",
        {"is_dead": lambda used, least: used <= least},
    ),
    ("the limit is always 0.1, whatever is asked for", {"is_dead": lambda used, least: used < 0.1}),
    ("all dead entries go to the same point, and will share its fate", {"take": lambda dead, x: x[:1]}),
    ("all dead entries go to the mean, where few points are", {"take": lambda dead, x: x.mean(dim=0)}),
    (
        "entry k goes to point k, by its own number, instead of the n-th dead one to point n",
        {"take": lambda dead, x: x[dead % len(x)]},
    ),
    ("the running use is not set to 1: the same entries are moved again at the next step", {"after": None}),
    ("the running use is set to 0: a woken entry is dead again at once", {"after": 0.0}),
):
    revive.mutant(cause, DEAD)(functools.partial(woken, **fault))


@revive.mutant("the codebook that was handed over is written into", DEAD)
def _(codebook, used, x, least=0.1):
    new, used = woken(codebook, used, x, least)
    return codebook.copy_(new), used


revive.alternative(woken)


@revive.alternative
def _(codebook, used, x, least=0.1):
    dead = used < least
    place = (dead.cumsum(dim=0) - 1).clamp(min=0) % len(x)
    return torch.where(dead[:, None], x[place], codebook), used.masked_fill(dead, 1.0)
