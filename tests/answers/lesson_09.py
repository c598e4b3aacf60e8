"""Lesson 09: vector quantization."""

import torch
import torch.nn.functional as F
from torch import nn

from answers import right, wrong


@right("rvq_encode")
def _(x, codebooks):
    rest, codes = x, []
    for book in codebooks:
        codes.append(torch.cdist(rest, book.expand(x.shape[0], -1, -1)).argmin(-1))
        rest = rest - book[codes[-1]]
    return torch.stack(codes, -1)


@right("rvq_encode")
def _(x, codebooks):
    rest, codes = x.double(), []
    for book in codebooks.double():
        d = ((rest[:, :, None] - book) ** 2).sum(-1)
        codes.append(d.min(-1).indices)
        rest = rest - F.embedding(codes[-1], book)
    return torch.stack(codes, dim=2)


@right("rvq_encode")
def _(x, codebooks):
    out = torch.zeros(*x.shape[:2], len(codebooks), dtype=torch.long)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            r = x[b, t].clone()
            for c, book in enumerate(codebooks):
                i = min(range(len(book)), key=lambda i: float((r - book[i]).norm()))
                out[b, t, c] = i
                r -= book[i]
    return out


def rvq(step, pick=lambda r, book: torch.cdist(r, book.expand(r.shape[0], -1, -1)).argmin(-1), dim=-1):
    def answer(x, codebooks):
        rest, codes = x, []
        for book in codebooks:
            codes.append(pick(rest, book))
            rest = step(x, rest, book[codes[-1]])
        return torch.stack(codes, dim)

    return answer


def _keep_going(x, rest, entry):
    return rest - entry


wrong("rvq_encode", "x minus the newest entry")(rvq(lambda x, rest, entry: x - entry))
wrong("rvq_encode", "no residual")(rvq(lambda x, rest, entry: x))
wrong("rvq_encode", "the entry itself is encoded")(rvq(lambda x, rest, entry: entry))
wrong("rvq_encode", "added")(rvq(lambda x, rest, entry: rest + entry))
wrong("rvq_encode", "the wrong sign of the residual")(rvq(lambda x, rest, entry: entry - rest))
wrong("rvq_encode", "farthest")(
    rvq(_keep_going, lambda r, book: torch.cdist(r, book.expand(len(r), -1, -1)).argmax(-1))
)
wrong("rvq_encode", "dot product")(rvq(_keep_going, lambda r, book: (r @ book.T).argmax(-1)))
wrong("rvq_encode", "cosine")(
    rvq(_keep_going, lambda r, book: (F.normalize(r, dim=-1) @ F.normalize(book, dim=-1).T).argmax(-1))
)
wrong("rvq_encode", "Manhattan distance")(
    rvq(_keep_going, lambda r, book: torch.cdist(r, book.expand(len(r), -1, -1), p=1).argmin(-1))
)
wrong("rvq_encode", "largest coordinate")(
    rvq(_keep_going, lambda r, book: torch.cdist(r, book.expand(len(r), -1, -1), p=torch.inf).argmin(-1))
)
wrong("rvq_encode", "codebooks before frames")(rvq(_keep_going, dim=1))
wrong("rvq_encode", "int32")(lambda x, codebooks: rvq(_keep_going)(x, codebooks).int())
wrong("rvq_encode", "the first codebook for all")(
    lambda x, codebooks: rvq(_keep_going)(x, codebooks[:1].expand_as(codebooks))
)
wrong("rvq_encode", "distance without the square of the book")(
    rvq(_keep_going, lambda r, book: (-2 * r @ book.T).argmin(-1))
)

right("rvq_decode")(lambda codes, codebooks: sum(book[codes[..., i]] for i, book in enumerate(codebooks)))
right("rvq_decode")(lambda codes, codebooks: codebooks[torch.arange(len(codebooks)), codes].sum(-2))
right("rvq_decode")(
    lambda codes, codebooks: torch.einsum(
        "bfcn,cnd->bfd", F.one_hot(codes, codebooks.shape[1]).to(codebooks.dtype), codebooks
    )
)
wrong("rvq_decode", "mean")(lambda codes, codebooks: codebooks[torch.arange(len(codebooks)), codes].mean(-2))
wrong("rvq_decode", "the first codebook for all")(lambda codes, codebooks: codebooks[0][codes].sum(-2))
wrong("rvq_decode", "the first one only")(lambda codes, codebooks: codebooks[0][codes[..., 0]])
wrong("rvq_decode", "the last one only")(lambda codes, codebooks: codebooks[-1][codes[..., -1]])
wrong("rvq_decode", "not added")(lambda codes, codebooks: codebooks[torch.arange(len(codebooks)), codes].flatten(2))
wrong("rvq_decode", "codebooks in reverse")(
    lambda codes, codebooks: codebooks.flip(0)[torch.arange(len(codebooks)), codes].sum(-2)
)
wrong("rvq_decode", "detached")(
    lambda codes, codebooks: codebooks.detach()[torch.arange(len(codebooks)), codes].sum(-2)
)


def quantizer(forward):
    class VectorQuantizer(nn.Module):
        def __init__(self, codebook_size, code_dim):
            super().__init__()
            self.codebook = nn.Parameter(torch.randn(codebook_size, code_dim))

        def forward(self, x):
            return forward(x, self.codebook)

    return VectorQuantizer


def _nearest(x, book):
    return book[torch.cdist(x, book.expand(x.shape[0], -1, -1)).argmin(-1)]


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, e):
        return e.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


right("vector_quantizer")(quantizer(lambda x, book: x + (_nearest(x, book) - x).detach()))
right("vector_quantizer")(quantizer(lambda x, book: Straight.apply(x, _nearest(x, book).detach())))
right("vector_quantizer")(quantizer(lambda x, book: _nearest(x, book).detach() + x - x.detach()))
wrong("vector_quantizer", "no straight-through")(quantizer(lambda x, book: _nearest(x, book)))
wrong("vector_quantizer", "nothing has a gradient")(quantizer(lambda x, book: _nearest(x, book).detach()))
wrong("vector_quantizer", "x itself")(quantizer(lambda x, book: x * 1))
wrong("vector_quantizer", "gradient to both")(
    quantizer(lambda x, book: x + (_nearest(x, book) - x).detach() + _nearest(x, book) - _nearest(x, book).detach())
)
wrong("vector_quantizer", "entry + (x - entry).detach(): x comes out")(
    quantizer(lambda x, book: _nearest(x, book) + (x - _nearest(x, book)).detach())
)
wrong("vector_quantizer", "x detached, gradient to the codebook only")(
    quantizer(lambda x, book: x.detach() + (_nearest(x, book) - x.detach()))
)
wrong("vector_quantizer", "twice the gradient")(quantizer(lambda x, book: 2 * x + (_nearest(x, book) - 2 * x).detach()))
wrong("vector_quantizer", "softmax mix")(
    quantizer(lambda x, book: (-torch.cdist(x, book.expand(x.shape[0], -1, -1))).softmax(-1) @ book)
)


def losses(forward):
    class CodebookLoss(nn.Module):
        def __init__(self, beta=0.25):
            super().__init__()
            self.beta = beta

        def forward(self, x, entry):
            return forward(x, entry, self.beta)

    return CodebookLoss


right("codebook_loss")(losses(lambda x, e, beta: F.mse_loss(e, x.detach()) + beta * F.mse_loss(x, e.detach())))
right("codebook_loss")(
    losses(lambda x, e, beta: (x.detach() - e).square().mean() + beta * (x - e.detach()).pow(2).mean())
)
right("codebook_loss")(
    losses(
        lambda x, e, beta: torch.stack([(x.data - e).norm() ** 2, beta * (x - e.data).norm() ** 2]).sum() / x.numel()
    )
)
wrong("codebook_loss", "nothing detached")(losses(lambda x, e, beta: F.mse_loss(e, x) + beta * F.mse_loss(x, e)))
wrong("codebook_loss", "both detached the wrong way")(
    losses(lambda x, e, beta: F.mse_loss(e.detach(), x) + beta * F.mse_loss(x.detach(), e))
)
wrong("codebook_loss", "beta on the other term")(
    losses(lambda x, e, beta: beta * F.mse_loss(e, x.detach()) + F.mse_loss(x, e.detach()))
)
wrong("codebook_loss", "beta on both")(
    losses(lambda x, e, beta: beta * (F.mse_loss(e, x.detach()) + F.mse_loss(x, e.detach())))
)
wrong("codebook_loss", "no commitment")(losses(lambda x, e, beta: F.mse_loss(e, x.detach())))
wrong("codebook_loss", "only commitment")(losses(lambda x, e, beta: beta * F.mse_loss(x, e.detach())))
wrong("codebook_loss", "sum of squares")(
    losses(
        lambda x, e, beta: (
            F.mse_loss(e, x.detach(), reduction="sum") + beta * F.mse_loss(x, e.detach(), reduction="sum")
        )
    )
)
wrong("codebook_loss", "L1")(losses(lambda x, e, beta: F.l1_loss(e, x.detach()) + beta * F.l1_loss(x, e.detach())))
wrong("codebook_loss", "sum over the vector, mean over the frames")(
    losses(lambda x, e, beta: ((e - x.detach()) ** 2).sum(-1).mean() + beta * ((x - e.detach()) ** 2).sum(-1).mean())
)
wrong("codebook_loss", "beta is 0.25")(losses(
    lambda x, e, beta: F.mse_loss(e, x.detach()) + 0.25 * F.mse_loss(x, e.detach())))  # fmt: skip


def ema(mix=lambda old, new, g: g * old + (1 - g) * new, book=lambda s, c: s / c[:, None], again=False):
    def answer(x, nearest, counts, sums, gamma=0.99):
        hot = F.one_hot(nearest, len(counts)).to(x.dtype)
        counts, sums = mix(counts, hot.sum(0), gamma), mix(sums, hot.T @ x, gamma)
        return book(sums, counts), counts, sums

    return answer


right("ema_update")(ema())


@right("ema_update")
def _(x, nearest, counts, sums, gamma=0.99):
    c = counts * gamma + torch.bincount(nearest, minlength=len(counts)) * (1 - gamma)
    s = (sums * gamma).index_add(0, nearest, x * (1 - gamma))
    return s / c.unsqueeze(1), c.to(counts.dtype), s


@right("ema_update")
def _(x, nearest, counts, sums, gamma=0.99):
    c, s = counts.clone() * gamma, sums.clone() * gamma
    for point, i in zip(x, nearest.tolist(), strict=True):
        c[i] += 1 - gamma
        s[i] += (1 - gamma) * point
    return torch.stack([s[i] / c[i] for i in range(len(c))]), c, s


wrong("ema_update", "gamma on the new")(ema(lambda old, new, g: (1 - g) * old + g * new))
wrong("ema_update", "sum without 1 - gamma")(ema(lambda old, new, g: g * old + new))
wrong("ema_update", "old ones in full")(ema(lambda old, new, g: old + (1 - g) * new))
wrong("ema_update", "gamma is 0.99")(ema(lambda old, new, g: 0.99 * old + 0.01 * new))
wrong("ema_update", "batch only")(ema(lambda old, new, g: new))
wrong("ema_update", "eps in the quotient")(ema(book=lambda s, c: s / (c[:, None] + 1e-2)))
wrong("ema_update", "the sums as codebook")(ema(book=lambda s, c: s))
wrong("ema_update", "divided by all counts")(ema(book=lambda s, c: s / c.sum()))


@wrong("ema_update", "codebook from the old counts")
def _(x, nearest, counts, sums, gamma=0.99):
    _, c, s = ema()(x, nearest, counts, sums, gamma)
    return s / counts[:, None], c, s


@wrong("ema_update", "moving average of the means")
def _(x, nearest, counts, sums, gamma=0.99):
    hot = F.one_hot(nearest, len(counts)).to(x.dtype)
    n = hot.sum(0)
    mean = hot.T @ x / n.clamp(min=1)[:, None]
    _, c, s = ema()(x, nearest, counts, sums, gamma)
    return gamma * sums / counts[:, None] + (1 - gamma) * mean, c, s


@wrong("ema_update", "assignment instead of addition where points repeat")
def _(x, nearest, counts, sums, gamma=0.99):
    c, s = counts * gamma, sums * gamma
    c[nearest] += 1 - gamma
    s[nearest] += (1 - gamma) * x
    return s / c[:, None], c, s


@wrong("ema_update", "entries nobody chose keep their counts")
def _(x, nearest, counts, sums, gamma=0.99):
    _, c, s = ema()(x, nearest, counts, sums, gamma)
    chosen = torch.bincount(nearest, minlength=len(counts)) > 0
    c = torch.where(chosen, c, counts)
    s = torch.where(chosen[:, None], s, sums)
    return s / c[:, None], c, s


@wrong("ema_update", "in place")
def _(x, nearest, counts, sums, gamma=0.99):
    counts.mul_(gamma).add_(torch.bincount(nearest, minlength=len(counts)), alpha=1 - gamma)
    sums.mul_(gamma).index_add_(0, nearest, x, alpha=1 - gamma)
    return sums / counts[:, None], counts, sums


def expire(dead=lambda u, t: u < t, start=0, usage=1.0, by=lambda x, n: x[torch.arange(n) % len(x)]):
    def answer(codebook, counts, x, threshold=0.1):
        where = dead(counts, threshold).nonzero().flatten()
        book, new = codebook.clone(), counts.clone()
        book[where] = by(x, len(where))
        if usage is not None:
            new[where] = usage
        return book, new

    return answer


right("expire_codes")(expire())


@right("expire_codes")
def _(codebook, usage, x, threshold=0.1):
    book, new, i = codebook.clone(), usage.clone(), 0
    for j in range(len(book)):
        if usage[j] < threshold:
            book[j], new[j] = x[i % len(x)], 1
            i += 1
    return book, new


@right("expire_codes")
def _(codebook, usage, x, threshold=0.1):
    dead = usage < threshold
    index = (dead.long().cumsum(0) - 1).clamp(min=0) % x.shape[0]
    return torch.where(dead[:, None], x[index], codebook), usage.masked_fill(dead, 1.0)


wrong("expire_codes", "<=")(expire(lambda u, t: u <= t))
wrong("expire_codes", ">")(expire(lambda u, t: u > t))
wrong("expire_codes", "0 only")(expire(lambda u, t: u == 0))
wrong("expire_codes", "threshold is 0.1")(expire(lambda u, t: u < 0.1))
wrong("expire_codes", "usage becomes 0")(expire(usage=0.0))
wrong("expire_codes", "usage stays")(expire(usage=None))
wrong("expire_codes", "usage becomes the threshold")(
    lambda c, u, x, threshold=0.1: expire(usage=threshold)(c, u, x, threshold)
)
wrong("expire_codes", "all by the first point")(expire(by=lambda x, n: x[:1].expand(n, -1)))
wrong("expire_codes", "points run out: the last one")(expire(by=lambda x, n: x[torch.arange(n).clamp(max=len(x) - 1)]))
wrong("expire_codes", "random points")(expire(by=lambda x, n: x[torch.randint(len(x), (n,))]))
wrong("expire_codes", "points run out: an error")(expire(by=lambda x, n: x[torch.arange(n)]))
wrong("expire_codes", "point j for entry j")(
    lambda c, u, x, threshold=0.1: (
        torch.where((u < threshold)[:, None], x[torch.arange(len(c)) % len(x)], c),
        u.masked_fill(u < threshold, 1.0),
    )
)
wrong("expire_codes", "relative to the mean usage")(expire(lambda u, t: u < t * u.mean()))


@wrong("expire_codes", "in place")
def _(codebook, usage, x, threshold=0.1):
    where = (usage < threshold).nonzero().flatten()
    codebook[where] = x[torch.arange(len(where)) % len(x)]
    usage[where] = 1.0
    return codebook, usage
