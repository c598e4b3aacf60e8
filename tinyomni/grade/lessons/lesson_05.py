"""Lesson 05, generation: its oracles rank, rotate and attend one number at a time, and read every text again."""

import cmath
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.grade.exercise import exercise
from tinyomni.rope import apply_rope, rope_table

NOTEBOOK, TITLE = "05_generation", "Generation"

COUNTS = "1. Autoregressive generation with a perfect model"
SAMPLING = "2. Sampling: temperature, top-k, top-p"
GENERATES = "4. The Thinker generates"
CONSTANT = "5. What never changes: keys and values of the past"
CACHE = "6. The KV cache"
BUGS = "7. Shape-preserving bugs"
STOPPING = "9. Stopping: EOS and length limits"


# ---- temperature ----------------------------------------------------------------------------------------------------


@exercise("Softmax with temperature", minutes=10, level=1)
def temperature_softmax(logits: Float[Tensor, "batch vocab"], temperature: float = 1.0) -> Float[Tensor, "batch vocab"]:
    """The odds against the most likely token, one at a time."""
    probabilities = torch.zeros_like(logits)
    for b, row in enumerate(logits.tolist()):
        best = max(row)
        odds = [math.exp((z - best) / temperature) for z in row] if temperature else [0.0] * len(row)
        if not temperature:
            odds[row.index(best)] = 1.0
        probabilities[b] = torch.tensor([each / sum(odds) for each in odds])
    return probabilities


@temperature_softmax.invoke
def _(answer, logits, temperature=1.0):
    found = answer(logits, temperature)
    return front(found, logits == logits.amax(dim=-1, keepdim=True)) if temperature == 0 else found


def front(found, equal):
    """Which of the equal tokens is chosen is free: their results in descending order."""
    if isinstance(found, Tensor) and found.shape == equal.shape:
        found = found.clone()
        for row, same in zip(found, equal, strict=True):
            row[same] = row[same].sort(descending=True).values
    return found


@temperature_softmax.cases
def _(rng):
    yield "colder", {"logits": rng.randn(2, 5), "temperature": 0.5}
    yield "T = 1", {"logits": rng.randn(3, 4)}
    yield "hotter, batch 1", {"logits": rng.randn(1, 4), "temperature": 3.0}
    yield "temperature 0: greedy", {"logits": rng.randn(2, 4), "temperature": 0.0}
    yield "very cold", {"logits": 5 * rng.randn(2, 3), "temperature": 0.01}
    yield "temperature 0, two equally likely", {"logits": torch.tensor([[2.0, 2.0, 1.0]]), "temperature": 0.0}
    yield "a forbidden token", {"logits": torch.tensor([[1.0, -torch.inf, 2.0]]), "temperature": 2.0}


@temperature_softmax.random_inputs
def _(rng):
    logits = 3 * rng.randn(rng.size(4), rng.size(6, 2))
    logits[:, 0] -= rng.choice((0.0, torch.inf))
    logits[0, -1] = logits[0].max()
    return {"logits": logits, "temperature": rng.choice((0.0, 0.05, 0.7, 1.0, 4.0))}


def temperature_softmax_variant(logits, temperature=1.0, *, by=lambda z, t: z / t, dim=-1):
    """`temperature_softmax`; each keyword injects one fault."""
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    return by(logits, temperature).softmax(dim=dim)


@temperature_softmax.mutant("the logits are multiplied by the temperature: cold is hot and hot is cold", SAMPLING)
def _(*inputs, **more):
    return temperature_softmax_variant(*inputs, **more, by=lambda z, t: z * t)


@temperature_softmax.mutant("the probabilities are divided by T and renormalized: T cancels out", SAMPLING)
def _(*inputs, **more):
    return temperature_softmax_variant(*inputs, **more, by=lambda z, t: z)


@temperature_softmax.mutant("the softmax runs over the batch instead of the vocabulary", SAMPLING)
def _(*inputs, **more):
    return temperature_softmax_variant(*inputs, **more, dim=0)


@temperature_softmax.mutant("the logits are divided by 1 + T", SAMPLING)
def _(*inputs, **more):
    return temperature_softmax_variant(*inputs, **more, by=lambda z, t: z / (1 + t))


@temperature_softmax.mutant("the logits are divided by a temperature of 0: 0/0 is NaN", SAMPLING)
def _(logits, temperature=1.0):
    return (logits / temperature if temperature else logits * torch.nan).softmax(dim=-1)


@temperature_softmax.mutant("`temperature or 1.0` treats 0 as if it were missing", SAMPLING)
def _(logits, temperature=1.0):
    return temperature_softmax_variant(logits, temperature or 1.0)


@temperature_softmax.mutant("the exponential overflows: the largest logit must be subtracted first", SAMPLING)
def _(logits, temperature=1.0):
    if temperature == 0:
        return temperature_softmax_variant(logits, temperature)
    odds = (logits / temperature).exp()
    return odds / odds.sum(dim=-1, keepdim=True)


@temperature_softmax.mutant("at temperature 0 it returns the id instead of probabilities", SAMPLING)
def _(logits, temperature=1.0):
    return temperature_softmax_variant(logits, temperature) if temperature else logits.argmax(dim=-1)


@temperature_softmax.mutant("at temperature 0 all of several most likely tokens get 1: the row sums to more", SAMPLING)
def _(logits, temperature=1.0):
    if temperature == 0:
        return (logits == logits.amax(dim=-1, keepdim=True)).to(logits.dtype)
    return temperature_softmax_variant(logits, temperature)


@temperature_softmax.mutant(
    "at temperature 0 several most likely tokens share the probability: only one gets it", SAMPLING
)
def _(logits, temperature=1.0):
    return (logits / max(temperature, 1e-9)).softmax(dim=-1)


@temperature_softmax.alternative
def _(logits, temperature=1.0):
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return (logits / temperature - (logits / temperature).logsumexp(dim=-1, keepdim=True)).exp()


# ---- top-k ----------------------------------------------------------------------------------------------------------


@exercise("Top-k filtering", minutes=10, level=1)
def top_k_filter(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Rank, then keep."""
    kept = torch.full_like(logits, -torch.inf)
    for b, row in enumerate(logits.tolist()):
        for i in sorted(range(len(row)), key=lambda i: -row[i])[:k]:
            kept[b, i] = logits[b, i]
    return kept


@top_k_filter.invoke
def _(answer, logits, k):
    last = logits.sort(dim=-1, descending=True).values[:, min(k, logits.shape[1]) - 1 :][:, :1]
    return front(answer(logits, k), logits == last)


@top_k_filter.cases
def _(rng):
    yield "three of seven", {"logits": rng.randn(2, 7), "k": 3}
    yield "only the most likely", {"logits": rng.randn(3, 4), "k": 1}
    yield "batch 1, all below zero", {"logits": rng.randn(1, 5) - 9, "k": 2}
    yield "k larger than the vocabulary", {"logits": rng.randn(2, 3), "k": 8}
    yield "all of them", {"logits": rng.randn(1, 3), "k": 3}
    yield "equal logits: exactly k stay", {"logits": torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]]), "k": 2}


@top_k_filter.random_inputs
def _(rng):
    ties, rest = rng.size(4, 2), rng.randn(rng.size(3))
    tied = torch.cat([rest[:1], rng.randn(1).expand(ties), rest[1:]])[None]
    logits = rng.choice((tied, 50 * rng.randn(rng.size(4, 2), rng.size(6))))
    return {"logits": logits, "k": rng.size(logits.shape[1] + 1)}


def top_k_variant(logits, k, *, largest=True, fill=-torch.inf, rows=True):
    """`top_k_filter`; each keyword injects one fault."""
    ranked = logits if rows else logits.flatten()[None]
    kept = ranked.topk(min(k, ranked.shape[-1]), dim=-1, largest=largest).indices
    removed = torch.ones_like(ranked, dtype=torch.bool).scatter(-1, kept, False)
    return logits.masked_fill(removed.view_as(logits), fill)


@top_k_filter.mutant("the k least likely tokens are kept", SAMPLING)
def _(logits, k):
    return top_k_variant(logits, k, largest=False)


@top_k_filter.mutant("filtered logits are set to 0, not −∞: e^0 is 1, a good chance", SAMPLING)
def _(logits, k):
    return top_k_variant(logits, k, fill=0.0)


@top_k_filter.mutant("the k-th token is filtered out as well: k − 1 are left", SAMPLING)
def _(logits, k):
    threshold = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits <= threshold, -torch.inf)


@top_k_filter.mutant("the k largest are taken from the whole batch instead of each row", SAMPLING)
def _(logits, k):
    return top_k_variant(logits, k, rows=False)


@top_k_filter.mutant("k larger than the vocabulary raises an error", SAMPLING)
def _(logits, k):
    return logits.masked_fill(logits < logits.topk(k, dim=-1).values[:, -1:], -torch.inf)


@top_k_filter.mutant("the first k tokens of the vocabulary are kept, as if they were sorted", SAMPLING)
def _(logits, k):
    return logits.masked_fill(torch.arange(logits.shape[-1]) >= k, -torch.inf)


@top_k_filter.mutant("the logits stay sorted: position i no longer belongs to token i", SAMPLING)
def _(logits, k):
    return top_k_variant(logits.sort(dim=-1, descending=True).values, k)


@top_k_filter.mutant("the input logits are modified in place", SAMPLING)
def _(logits, k):
    logits[logits < logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]] = -torch.inf
    return logits


@top_k_filter.mutant("the softmax is already applied: the result should be logits", SAMPLING)
def _(logits, k):
    return top_k_variant(logits, k).softmax(dim=-1)


@top_k_filter.alternative
def _(logits, k):
    best = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)


@top_k_filter.mutant("all that equal the k-th stay: with equal logits those are more than k", SAMPLING)
def _(logits, k):
    return logits.masked_fill(logits < logits.topk(min(k, logits.shape[-1])).values[:, -1:], -torch.inf)


@top_k_filter.alternative
def _(logits, k):
    rank = logits.argsort(dim=-1, descending=True).argsort(dim=-1)
    return torch.where(rank < k, logits, -torch.inf)


# ---- top-p ----------------------------------------------------------------------------------------------------------


@exercise("Top-p (nucleus) filtering", minutes=20, level=3)
def top_p_filter(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Take the next most likely token until p is reached."""
    kept = torch.full_like(logits, -torch.inf)
    for b, row in enumerate(logits.tolist()):
        odds, reached = [math.exp(z) for z in row], 0.0
        for i in sorted(range(len(row)), key=lambda i: -row[i]):
            if reached >= p:
                break
            kept[b, i] = logits[b, i]
            reached += odds[i] / sum(odds)
    return kept


@top_p_filter.invoke
def _(answer, logits, p):
    kept = top_p_filter.oracle(logits, p)
    last = kept.masked_fill(kept.isinf(), torch.inf).amin(dim=-1, keepdim=True)
    return front(answer(logits, p), logits == last)


@top_p_filter.cases
def _(rng):
    yield "p = 0.8", {"logits": rng.randn(2, 7), "p": 0.8}
    yield "the most likely token alone exceeds p", {"logits": torch.tensor([[0.1, 0.6, 0.3]]).log(), "p": 0.5}
    yield "p = 1: all", {"logits": rng.randn(2, 4), "p": 1.0}
    yield (
        "peaked and flat rows in a batch",
        {"logits": torch.tensor([[9.0, 1.0, 0.0, 2.0], [0.1, 0.3, 0.0, 0.2]]), "p": 0.7},
    )
    yield "batch 1", {"logits": 2 * rng.randn(1, 6), "p": 0.9}
    yield "two of two", {"logits": torch.tensor([[0.45, 0.55]]).log(), "p": 0.6}
    yield "equal logits: not all are needed", {"logits": torch.tensor([[2.0, 0.0, 2.0, 2.0, 2.0]]), "p": 0.4}


@top_p_filter.random_inputs
def _(rng):
    logits = 2 * rng.randn(rng.size(4), rng.size(7))
    return {"logits": rng.choice((logits, logits.round())), "p": rng.number(0.01, 0.98)}


def top_p_variant(logits, p, *, filtered=lambda probability, before, p: before >= p, descending=True, fill=-torch.inf,
            scatter_back=True, dim=-1, probabilities=None):  # fmt: skip
    """`top_p_filter`; each keyword injects one fault."""
    ordered, order = logits.sort(dim=-1, descending=descending)
    probability = ordered.softmax(dim=dim) if probabilities is None else probabilities(ordered)
    kept = ordered.masked_fill(filtered(probability, probability.cumsum(dim=-1) - probability, p), fill)
    return torch.full_like(logits, fill).scatter(-1, order, kept) if scatter_back else kept


@top_p_filter.mutant("the token that reaches p is filtered out: sometimes none is left", SAMPLING)
def _(logits, p):
    return top_p_variant(logits, p, filtered=lambda probability, before, p: before + probability > p + 1e-6)


@top_p_filter.mutant("the token that reaches p is filtered out, and only the very first is always kept", SAMPLING)
def _(logits, p):
    return top_p_variant(
        logits, p, filtered=lambda probability, before, p: (before + probability > p + 1e-6) & (before > 1e-9)
    )


@top_p_filter.mutant("the sorted logits are not scattered back: position i no longer belongs to token i", SAMPLING)
def _(logits, p):
    return top_p_variant(logits, p, scatter_back=False)


@top_p_filter.mutant("the cumulative sum starts with the least likely token", SAMPLING)
def _(logits, p):
    return top_p_variant(logits, p, descending=False)


@top_p_filter.mutant("probabilities are summed in the order of the vocabulary, not from the most likely on", SAMPLING)
def _(logits, p):
    probability = logits.softmax(dim=-1)
    return logits.masked_fill(probability.cumsum(dim=-1) - probability >= p, -torch.inf)


@top_p_filter.mutant("each token's own probability is compared with p, not the cumulative sum", SAMPLING)
def _(logits, p):
    return top_p_variant(logits, p, filtered=lambda probability, before, p: probability < p)


@top_p_filter.mutant("filtered logits are set to 0, not −∞: e^0 is 1, a good chance", SAMPLING)
def _(logits, p):
    return top_p_variant(logits, p, fill=0.0)


@top_p_filter.mutant("p is used as a fraction of the vocabulary: the same number of tokens is always kept", SAMPLING)
def _(logits, p):
    return top_k_variant(logits, math.ceil(p * logits.shape[-1]))


@top_p_filter.mutant("the softmax runs over the batch", SAMPLING)
def _(logits, p):
    return top_p_variant(logits, p, dim=0)


@top_p_filter.mutant("the logits themselves are summed, without a softmax", SAMPLING)
def _(logits, p):
    return top_p_variant(logits, p, probabilities=lambda ordered: ordered)


@top_p_filter.alternative
def _(logits, p):
    return top_p_variant(logits, p)


@top_p_filter.mutant("all that equal the last one stay: with equal logits those are more than needed", SAMPLING)
def _(logits, p):
    probability = logits.softmax(dim=-1)
    above = ((logits[:, None] > logits[:, :, None]) * probability[:, None]).sum(dim=-1)
    return torch.where(above < p, logits, -torch.inf)


@top_p_filter.alternative
def _(logits, p):
    order = logits.argsort(dim=-1, descending=True)
    reached = logits.softmax(dim=-1).gather(-1, order).cumsum(dim=-1) >= p
    before = F.pad(reached[:, :-1], (1, 0), value=False)
    return logits.masked_fill(before.gather(-1, order.argsort(dim=-1)), -torch.inf)


# ---- cache: one token -----------------------------------------------------------------------------------------------


@exercise("KV cache: one token", minutes=15, level=2)
def cached_step(
    q: Float[Tensor, "batch heads 1 head_dim"],
    k: Float[Tensor, "batch heads 1 head_dim"],
    v: Float[Tensor, "batch heads 1 head_dim"],
    keys: Float[Tensor, "batch heads keys head_dim"],
    values: Float[Tensor, "batch heads keys head_dim"],
) -> tuple[
    Float[Tensor, "batch heads 1 head_dim"],
    Float[Tensor, "batch heads keys+1 head_dim"],
    Float[Tensor, "batch heads keys+1 head_dim"],
]:
    """One query, one key after the other."""
    out, length = torch.zeros_like(q), keys.shape[2]
    grown_keys, grown_values = (x.new_zeros(*x.shape[:2], length + 1, x.shape[3]) for x in (keys, values))
    grown_keys[:, :, :length], grown_keys[:, :, length:] = keys, k
    grown_values[:, :, :length], grown_values[:, :, length:] = values, v
    for b, h in torch.cartesian_prod(*map(torch.arange, q.shape[:2])).tolist():
        odds = [math.exp(q[b, h, 0] @ each / q.shape[3] ** 0.5) for each in grown_keys[b, h]]
        for probability, value in zip(odds, grown_values[b, h], strict=True):
            out[b, h, 0] += probability / sum(odds) * value
    return out, grown_keys, grown_values


def random_qkv(rng, batch, heads, new, old, head_dim):
    """Queries, keys and values of new tokens, and the contents of the cache."""
    new_qkv = {name: rng.randn(batch, heads, new, head_dim) for name in "qkv"}
    return new_qkv | {name: rng.randn(batch, heads, old, head_dim) for name in ("keys", "values")}


@cached_step.cases
def _(rng):
    yield "all sizes different", random_qkv(rng, 2, 3, 1, 5, 7)
    yield "batch 1, one token in the cache", random_qkv(rng, 1, 2, 1, 1, 3)
    yield "the first token: the cache is empty", random_qkv(rng, 2, 1, 1, 0, 4)


@cached_step.random_inputs
def _(rng):
    return random_qkv(rng, rng.size(3), rng.size(3), 1, rng.size(5, 0), rng.size())


def cached_step_variant(q, k, v, keys, values, *, join=lambda old, new: torch.cat([old, new], dim=2), scale=None):
    """`cached_step`; each keyword injects one fault."""
    keys, values = join(keys, k), join(values, v)
    return F.scaled_dot_product_attention(q, keys, values, scale=scale), keys, values


@cached_step.mutant(
    "the new key and value are appended only after attention: the token does not attend to itself", CACHE
)
def _(q, k, v, keys, values):
    out = (q @ keys.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ values
    return out, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)


@cached_step.mutant("the new key and value are put in front: the cache is in the wrong order", CACHE)
def _(*inputs):
    return cached_step_variant(*inputs, join=lambda old, new: torch.cat([new, old], dim=2))


@cached_step.mutant("the cache is returned unchanged: later tokens cannot attend to this one", CACHE)
def _(q, k, v, keys, values):
    return cached_step_variant(q, k, v, keys, values)[0], keys, values


@cached_step.mutant(
    "PyTorch's `is_causal=True` aligns the mask at the top left: the new token attends only to token 0", BUGS
)
def _(q, k, v, keys, values):
    _, keys, values = cached_step_variant(q, k, v, keys, values)
    return F.scaled_dot_product_attention(q, keys, values, is_causal=True), keys, values


@cached_step.mutant("the oldest token is dropped for the new one: the cache does not grow", CACHE)
def _(*inputs):
    return cached_step_variant(*inputs, join=lambda old, new: torch.cat([old[:, :, 1:], new], dim=2))


@cached_step.mutant("the new token attends to itself alone: the cache is never read", CACHE)
def _(q, k, v, keys, values):
    return v, *cached_step_variant(q, k, v, keys, values)[1:]


@cached_step.mutant("the scores are not divided by √head_dim", CACHE)
def _(*inputs):
    return cached_step_variant(*inputs, scale=1.0)


@cached_step.mutant("the key is stored in place of the value as well", CONSTANT)
def _(q, k, v, keys, values):
    return cached_step_variant(q, k, k, keys, values)


@cached_step.mutant("the query is stored in place of the key: queries are never needed again", CONSTANT)
def _(q, k, v, keys, values):
    return cached_step_variant(q, q, v, keys, values)


@cached_step.alternative
def _(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], dim=-2), torch.cat([values, v], dim=-2)
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, keys) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, values), keys, values


# ---- cache: a chunk -------------------------------------------------------------------------------------------------


@exercise("KV cache: a chunk", minutes=25, level=3)
def cached_chunk(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads queries head_dim"],
    v: Float[Tensor, "batch heads queries head_dim"],
    keys: Float[Tensor, "batch heads keys head_dim"],
    values: Float[Tensor, "batch heads keys head_dim"],
) -> tuple[
    Float[Tensor, "batch heads queries head_dim"],
    Float[Tensor, "batch heads keys+queries head_dim"],
    Float[Tensor, "batch heads keys+queries head_dim"],
]:
    """Pairs rotated as complex numbers, and each query compared with each key up to its own position."""
    past, half = keys.shape[2], q.shape[3] // 2

    def rotated(row, place):
        pairs = [complex(row[p], row[p + half]) * cmath.rect(1, place / 10_000 ** (p / half)) for p in range(half)]
        return row.new_tensor([z.real for z in pairs] + [z.imag for z in pairs])

    out, all_keys = torch.zeros_like(q), torch.cat([keys, torch.zeros_like(k)], dim=2)
    all_values = torch.cat([values, v], dim=2)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        all_keys[b, h, past + t] = rotated(k[b, h, t], past + t)
        query, seen = rotated(q[b, h, t], past + t), range(past + t + 1)
        odds = [math.exp(query @ all_keys[b, h, j] / q.shape[3] ** 0.5) for j in seen]
        out[b, h, t] = sum(odds[j] / sum(odds) * all_values[b, h, j] for j in seen)
    return out, all_keys, all_values


@cached_chunk.cases
def _(rng):
    yield "all sizes different", random_qkv(rng, 2, 3, 5, 7, 4)
    yield "batch 1, one query: a step", random_qkv(rng, 1, 2, 1, 3, 2)
    yield "the prompt: the cache is empty", random_qkv(rng, 2, 1, 3, 0, 4)
    yield "as many new tokens as cached ones", random_qkv(rng, 1, 1, 3, 3, 2)
    yield "after a long text", random_qkv(rng, 1, 1, 2, 1100, 4)


@cached_chunk.random_inputs
def _(rng):
    return random_qkv(rng, rng.size(2), rng.size(2), rng.size(4), rng.size(5, 0), 2 * rng.size(2))


def cached_chunk_variant(
    q,
    k,
    v,
    keys,
    values,
    *,
    q_at=None,
    k_at=None,
    mask=lambda seen, past: seen.tril(past),
    rotate_values=False,
    rotate_cached=False,
    cache_unrotated=False,
    visible_keys=slice(None),
):
    """`cached_chunk`; each keyword injects one fault."""
    past, new = keys.shape[2], q.shape[2]

    def rotate(x, offset):
        cos, sin = rope_table(offset + x.shape[2], x.shape[3])
        return apply_rope(x, cos[offset:], sin[offset:])

    q, unrotated = rotate(q, past if q_at is None else q_at(past, new)), k
    k = rotate(k, past if k_at is None else k_at(past, new))
    v = rotate(v, past) if rotate_values else v
    keys, values = torch.cat([rotate(keys, 0) if rotate_cached else keys, k], dim=2), torch.cat([values, v], dim=2)
    seen = mask(torch.ones(new, past + new, dtype=torch.bool), past)
    out = F.scaled_dot_product_attention(
        q, keys[:, :, visible_keys], values[:, :, visible_keys], attn_mask=seen[:, visible_keys]
    )
    return out, torch.cat([keys[:, :, :past], unrotated], dim=2) if cache_unrotated else keys, values


@cached_chunk.mutant(
    "the new tokens are rotated as if they were at positions 0, 1, …: positions continue from the cache", BUGS
)
def _(*inputs):
    return cached_chunk_variant(*inputs, q_at=lambda past, new: 0, k_at=lambda past, new: 0)


@cached_chunk.mutant("queries are rotated by their positions in the whole text, but keys from 0", BUGS)
def _(*inputs):
    return cached_chunk_variant(*inputs, k_at=lambda past, new: 0)


@cached_chunk.mutant("keys are rotated by their positions in the whole text, but queries from 0", BUGS)
def _(*inputs):
    return cached_chunk_variant(*inputs, q_at=lambda past, new: 0)


@cached_chunk.mutant(
    "the first position is one too high: after n cached tokens the next position is n, since we count from 0", BUGS
)
def _(*inputs):
    return cached_chunk_variant(*inputs, q_at=lambda past, new: past + 1, k_at=lambda past, new: past + 1)


@cached_chunk.mutant("positions continue from the length of the chunk instead of the cache", BUGS)
def _(*inputs):
    return cached_chunk_variant(*inputs, q_at=lambda past, new: new, k_at=lambda past, new: new)


@cached_chunk.mutant("the cached keys, which are rotated already, are rotated again", CONSTANT)
def _(*inputs):
    return cached_chunk_variant(*inputs, rotate_cached=True)


@cached_chunk.mutant("nothing is rotated: the new queries and keys have no positions", CACHE)
def _(q, k, v, keys, values):
    keys, values, past = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2), keys.shape[2]
    mask = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool).tril(past)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask), keys, values


@cached_chunk.mutant("keys are cached before they are rotated", CONSTANT)
def _(*inputs):
    return cached_chunk_variant(*inputs, cache_unrotated=True)


@cached_chunk.mutant("the values are rotated too: RoPE applies to queries and keys only", CACHE)
def _(*inputs):
    return cached_chunk_variant(*inputs, rotate_values=True)


@cached_chunk.mutant("there is no causal mask: each token attends to later ones of its chunk", BUGS)
def _(*inputs):
    return cached_chunk_variant(*inputs, mask=lambda seen, past: seen)


@cached_chunk.mutant("the causal mask is aligned at the top left: most of the cache is masked", BUGS)
def _(*inputs):
    return cached_chunk_variant(*inputs, mask=lambda seen, past: seen.tril())


@cached_chunk.mutant("the causal mask is off by one: a token does not attend to itself", BUGS)
def _(*inputs):
    return cached_chunk_variant(*inputs, mask=lambda seen, past: seen.tril(max(past - 1, 0)))


@cached_chunk.mutant("the tokens of the chunk attend only to each other: the cache is never read", CACHE)
def _(q, k, v, keys, values):
    return cached_chunk_variant(q, k, v, keys, values, visible_keys=slice(keys.shape[2], None))


@cached_chunk.alternative
def _(*inputs):
    return cached_chunk_variant(*inputs)


@cached_chunk.alternative
def _(q, k, v, keys, values):
    cos, sin = rope_table(keys.shape[2] + q.shape[2], q.shape[3])
    outs = []
    for t in range(q.shape[2]):  # a chunk is a few steps
        at = keys.shape[2]
        now = [apply_rope(x[:, :, t : t + 1], cos[at : at + 1], sin[at : at + 1]) for x in (q, k)]
        out, keys, values = cached_step_variant(now[0], now[1], v[:, :, t : t + 1], keys, values)
        outs.append(out)
    return torch.cat(outs, dim=2), keys, values


# ---- generation loop ------------------------------------------------------------------------------------------------


class Adder(nn.Module):
    """A model whose next token depends on everything it has read."""

    def __init__(self, vocab: int, start: int = 1) -> None:
        super().__init__()
        self.vocab, self.start = vocab, start

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocab"]:
        """Logits: the most likely token is `start` plus the sum of all ids so far, modulo `vocab`."""
        return F.one_hot((ids.cumsum(dim=1) + self.start) % self.vocab, self.vocab).float()


@exercise("Greedy generation with EOS", minutes=20, level=2)
def greedy_generate(
    model: nn.Module, ids: Int[Tensor, "batch tokens"], max_new_tokens: int, eos: int = 2
) -> Int[Tensor, "batch written"]:
    """One text after the other; those that end early are padded with EOS."""
    texts = []
    for row in ids.tolist():
        text: list[int] = []
        while len(text) < max_new_tokens and eos not in text:
            scores = model(torch.tensor([[*row, *text]]))[0, -1].tolist()
            text.append(scores.index(max(scores)))
        texts.append(text)
    longest = max(map(len, texts))
    return torch.tensor([text + [eos] * (longest - len(text)) for text in texts])


@greedy_generate.cases
def _(rng):
    yield "some end early", {"model": Adder(7), "ids": torch.tensor([[1, 0, 0], [1, 3, 2]]), "max_new_tokens": 6}
    yield "batch 1", {"model": Adder(5, 3), "ids": torch.tensor([[1, 4]]), "max_new_tokens": 3}
    yield "all end early", {"model": Adder(5), "ids": torch.tensor([[1, 0], [1, 4]]), "max_new_tokens": 9}
    yield "one ends at once", {"model": Adder(7), "ids": torch.tensor([[1, 0, 0], [1, 4, 0]]), "max_new_tokens": 4}
    yield "a prompt of one token", {"model": Adder(11), "ids": torch.tensor([[4]]), "max_new_tokens": 5}
    yield "another EOS", {"model": Adder(6), "ids": torch.tensor([[1, 1], [1, 3]]), "max_new_tokens": 5, "eos": 5}
    yield "one new token", {"model": Adder(7), "ids": torch.tensor([[1, 2], [1, 5]]), "max_new_tokens": 1}


@greedy_generate.random_inputs
def _(rng):
    vocab = rng.size(7, 2)
    ids = rng.randint(vocab, rng.size(4), rng.size(4))
    return {
        "model": Adder(vocab, rng.size(4)), "ids": ids, "max_new_tokens": rng.size(6), "eos": rng.size(vocab - 1, 0)
    }  # fmt: skip


def greedy_generate_variant(
    model, ids, max_new_tokens, eos=2, *, fill=None, every=torch.all, feed=lambda ids: ids, at=-1
):
    """`greedy_generate`; each keyword injects one fault."""
    offset, finished = ids.shape[1], torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        new = model(feed(ids))[:, at].argmax(dim=-1)
        new = torch.where(finished, fill(new) if fill else eos, new)
        ids = torch.cat([ids, new[:, None]], dim=1)
        finished = finished | (new == eos)
        if bool(every(finished)):
            break
    return ids[:, offset:]


@greedy_generate.mutant("a finished text goes on while the others continue", STOPPING)
def _(*inputs, **more):
    return greedy_generate_variant(*inputs, **more, fill=lambda new: new)


@greedy_generate.mutant("all stop as soon as one of them has finished", STOPPING)
def _(*inputs, **more):
    return greedy_generate_variant(*inputs, **more, every=torch.any)


@greedy_generate.mutant("it never stops before `max_new_tokens`, though all have finished", STOPPING)
def _(*inputs, **more):
    return greedy_generate_variant(*inputs, **more, every=lambda finished: torch.tensor(False))


@greedy_generate.mutant("finished texts are padded with 0 instead of EOS", STOPPING)
def _(*inputs, **more):
    return greedy_generate_variant(*inputs, **more, fill=torch.zeros_like)


@greedy_generate.mutant("2 is treated as EOS, ignoring `eos`", STOPPING)
def _(model, ids, max_new_tokens, eos=2):
    return greedy_generate_variant(model, ids, max_new_tokens)


@greedy_generate.mutant("the logits of the first position are used, not those of the last", GENERATES)
def _(*inputs, **more):
    return greedy_generate_variant(*inputs, **more, at=0)


@greedy_generate.mutant(
    "only the newest token is passed to the model, which has no cache and forgets the rest", GENERATES
)
def _(*inputs, **more):
    return greedy_generate_variant(*inputs, **more, feed=lambda ids: ids[:, -1:])


@greedy_generate.mutant("the model never sees its own output: it generates the same token again and again", COUNTS)
def _(model, ids, max_new_tokens, eos=2):
    return greedy_generate_variant(model, ids, max_new_tokens, eos, feed=lambda grown: grown[:, : ids.shape[1]])


@greedy_generate.mutant("the result includes the prompt", GENERATES)
def _(model, ids, max_new_tokens, eos=2):
    return torch.cat([ids, greedy_generate_variant(model, ids, max_new_tokens, eos)], dim=1)


@greedy_generate.mutant("one token too few is generated", STOPPING)
def _(model, ids, max_new_tokens, eos=2):
    return greedy_generate_variant(model, ids, max_new_tokens, eos)[:, :-1]


@greedy_generate.alternative
def _(model, ids, max_new_tokens, eos=2):
    steps: list[Tensor] = []
    while len(steps) < max_new_tokens and not (steps and bool((steps[-1] == eos).all())):
        new = model(torch.cat([ids, *[step[:, None] for step in steps]], dim=1))[:, -1].argmax(dim=-1)
        steps.append(new.masked_fill(steps[-1] == eos, eos) if steps else new)
    return torch.stack(steps, dim=1)
