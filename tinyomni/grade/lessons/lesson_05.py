"""Lesson 05, generation: its oracles rank, rotate and look one number at a time, and read every text anew."""

import cmath
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.grade.exercise import exercise
from tinyomni.rope import apply_rope, rope_table

NOTEBOOK, TITLE = "05_generation", "Generation"

LOOP = "1. A reader who has seen it all"
CHOOSE = "2. How to choose"
WRITES = "4. The Thinker writes"
KEEP = "5. What does not change"
CACHE = "6. The KV cache"
BUGS = "7. Bugs that keep the shape"
STOP = "9. Stop, and limits"


# ---- temperature ----------------------------------------------------------------------------------------------------


@exercise("Temperature", minutes=10, level=1)
def warm(logits: Float[Tensor, "batch vocab"], temperature: float = 1.0) -> Float[Tensor, "batch vocab"]:
    """By the odds against the likeliest, one at a time."""
    shares = torch.zeros_like(logits)
    for b, row in enumerate(logits.tolist()):
        best = max(row)
        odds = [math.exp((z - best) / temperature) if temperature else float(z == best) for z in row]
        shares[b] = torch.tensor([each / sum(odds) for each in odds])
    return shares


@warm.cases
def _(rng):
    yield "colder", {"logits": rng.randn(2, 5), "temperature": 0.5}
    yield "as it is", {"logits": rng.randn(3, 4)}
    yield "hotter, batch 1", {"logits": rng.randn(1, 4), "temperature": 3.0}
    yield "temperature 0: all for the likeliest", {"logits": rng.randn(2, 4), "temperature": 0.0}
    yield "very cold", {"logits": 5 * rng.randn(2, 3), "temperature": 0.01}
    yield "a forbidden token", {"logits": torch.tensor([[1.0, -torch.inf, 2.0]]), "temperature": 2.0}


def warmed(logits, temperature=1.0, *, by=lambda z, t: z / t, dim=-1):
    """Softmax with temperature, with one thing to go wrong at a time."""
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    return by(logits, temperature).softmax(dim=dim)


@warm.mutant("the logits are multiplied by the temperature: cold is hot and hot is cold", CHOOSE)
def _(*inputs, **more):
    return warmed(*inputs, **more, by=lambda z, t: z * t)


@warm.mutant("the probabilities are divided by T, and then by their sum: T cancels out", CHOOSE)
def _(*inputs, **more):
    return warmed(*inputs, **more, by=lambda z, t: z)


@warm.mutant("the softmax runs over the texts of the batch instead of the vocabulary", CHOOSE)
def _(*inputs, **more):
    return warmed(*inputs, **more, dim=0)


@warm.mutant("the logits are divided by 1 + T", CHOOSE)
def _(*inputs, **more):
    return warmed(*inputs, **more, by=lambda z, t: z / (1 + t))


@warm.mutant("temperature 0 is divided by: 0/0 is NaN", CHOOSE)
def _(logits, temperature=1.0):
    return (logits / temperature if temperature else logits * torch.nan).softmax(dim=-1)


@warm.mutant("`temperature or 1.0` takes 0 for nothing given", CHOOSE)
def _(logits, temperature=1.0):
    return warmed(logits, temperature or 1.0)


@warm.mutant("e is raised to large logits without taking off the largest first: infinite through infinite", CHOOSE)
def _(logits, temperature=1.0):
    if temperature == 0:
        return warmed(logits, temperature)
    odds = (logits / temperature).exp()
    return odds / odds.sum(dim=-1, keepdim=True)


@warm.mutant("at temperature 0 the id comes back instead of probabilities", CHOOSE)
def _(logits, temperature=1.0):
    return warmed(logits, temperature) if temperature else logits.argmax(dim=-1)


@warm.alternative
def _(logits, temperature=1.0):
    if temperature == 0:
        return (logits == logits.amax(dim=-1, keepdim=True)).to(logits.dtype)
    return (logits / temperature - (logits / temperature).logsumexp(dim=-1, keepdim=True)).exp()


# ---- top-k ----------------------------------------------------------------------------------------------------------


@exercise("Keep the k likeliest", minutes=10, level=1)
def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Rank, then keep."""
    kept = torch.full_like(logits, -torch.inf)
    for b, row in enumerate(logits.tolist()):
        for i in sorted(range(len(row)), key=lambda i: -row[i])[:k]:
            kept[b, i] = logits[b, i]
    return kept


@keep_top_k.cases
def _(rng):
    yield "three of seven", {"logits": rng.randn(2, 7), "k": 3}
    yield "only the likeliest", {"logits": rng.randn(3, 4), "k": 1}
    yield "batch 1, all below zero", {"logits": rng.randn(1, 5) - 9, "k": 2}
    yield "more than there are", {"logits": rng.randn(2, 3), "k": 8}
    yield "all of them", {"logits": rng.randn(1, 3), "k": 3}


def cut_at(logits, k, *, largest=True, fill=-torch.inf, rows=True):
    """Below the k-th, with one thing to go wrong at a time."""
    ranked = logits if rows else logits.flatten()[None]
    least = ranked.topk(min(k, ranked.shape[-1]), dim=-1, largest=largest).values[:, -1:]
    return logits.masked_fill(logits < least if largest else logits > least, fill)


@keep_top_k.mutant("the k least likely are kept", CHOOSE)
def _(logits, k):
    return cut_at(logits, k, largest=False)


@keep_top_k.mutant("what is thrown out gets 0, not −∞: e^0 is 1, a good chance", CHOOSE)
def _(logits, k):
    return cut_at(logits, k, fill=0.0)


@keep_top_k.mutant("the k-th is thrown out as well: k − 1 are left", CHOOSE)
def _(logits, k):
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits <= least, -torch.inf)


@keep_top_k.mutant("the texts of the batch compete for the k places", CHOOSE)
def _(logits, k):
    return cut_at(logits, k, rows=False)


@keep_top_k.mutant("a k larger than the vocabulary is an error", CHOOSE)
def _(logits, k):
    return logits.masked_fill(logits < logits.topk(k, dim=-1).values[:, -1:], -torch.inf)


@keep_top_k.mutant("the first k rows of the vocabulary are kept, as if they were sorted", CHOOSE)
def _(logits, k):
    return logits.masked_fill(torch.arange(logits.shape[-1]) >= k, -torch.inf)


@keep_top_k.mutant("the logits stay sorted: position i no longer stands for token i", CHOOSE)
def _(logits, k):
    return cut_at(logits.sort(dim=-1, descending=True).values, k)


@keep_top_k.mutant("the logits that were handed over are overwritten", CHOOSE)
def _(logits, k):
    logits[logits < logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]] = -torch.inf
    return logits


@keep_top_k.mutant("the softmax is already in it: logits are due", CHOOSE)
def _(logits, k):
    return cut_at(logits, k).softmax(dim=-1)


@keep_top_k.alternative
def _(logits, k):
    best = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)


@keep_top_k.alternative
def _(logits, k):
    rank = (logits[:, None] > logits[:, :, None]).sum(dim=-1)
    return torch.where(rank < k, logits, -torch.inf)


# ---- top-p ----------------------------------------------------------------------------------------------------------


@exercise("Keep the fewest that reach p", minutes=20, level=3)
def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Take the next likeliest until they reach p."""
    kept = torch.full_like(logits, -torch.inf)
    for b, row in enumerate(logits.tolist()):
        odds, reached = [math.exp(z) for z in row], 0.0
        for i in sorted(range(len(row)), key=lambda i: -row[i]):
            if reached >= p:
                break
            kept[b, i] = logits[b, i]
            reached += odds[i] / sum(odds)
    return kept


@keep_top_p.cases
def _(rng):
    yield "p = 0.8", {"logits": rng.randn(2, 7), "p": 0.8}
    yield "the likeliest alone has more than p", {"logits": torch.tensor([[0.1, 0.6, 0.3]]).log(), "p": 0.5}
    yield "p = 1: all", {"logits": rng.randn(2, 4), "p": 1.0}
    yield "sure and unsure in a batch", {"logits": torch.tensor([[9.0, 1.0, 0.0, 2.0], [0.1, 0.3, 0.0, 0.2]]), "p": 0.7}
    yield "batch 1", {"logits": 2 * rng.randn(1, 6), "p": 0.9}
    yield "two of two", {"logits": torch.tensor([[0.45, 0.55]]).log(), "p": 0.6}


def nucleus(logits, p, *, thrown=lambda share, before, p: before >= p, descending=True, fill=-torch.inf,
            back=True, dim=-1, shares=None):  # fmt: skip
    """Sort, add up, cut, put back, with one thing to go wrong at a time."""
    ordered, order = logits.sort(dim=-1, descending=descending)
    share = ordered.softmax(dim=dim) if shares is None else shares(ordered)
    kept = ordered.masked_fill(thrown(share, share.cumsum(dim=-1) - share, p), fill)
    return torch.full_like(logits, fill).scatter(-1, order, kept) if back else kept


@keep_top_p.mutant("the token that reaches p is thrown out: at times nobody is left", CHOOSE)
def _(logits, p):
    return nucleus(logits, p, thrown=lambda share, before, p: before + share > p + 1e-6)


@keep_top_p.mutant("the token that reaches p is thrown out, and only the very first is saved", CHOOSE)
def _(logits, p):
    return nucleus(logits, p, thrown=lambda share, before, p: (before + share > p + 1e-6) & (before > 1e-9))


@keep_top_p.mutant("the sorted logits are not put back: position i no longer stands for token i", CHOOSE)
def _(logits, p):
    return nucleus(logits, p, back=False)


@keep_top_p.mutant("the sum begins with the least likely", CHOOSE)
def _(logits, p):
    return nucleus(logits, p, descending=False)


@keep_top_p.mutant("probabilities are added up in the order of the vocabulary, not from the likeliest on", CHOOSE)
def _(logits, p):
    share = logits.softmax(dim=-1)
    return logits.masked_fill(share.cumsum(dim=-1) - share >= p, -torch.inf)


@keep_top_p.mutant("each token's own probability is held against p, and not their sum", CHOOSE)
def _(logits, p):
    return nucleus(logits, p, thrown=lambda share, before, p: share < p)


@keep_top_p.mutant("what is thrown out gets 0, not −∞: e^0 is 1, a good chance", CHOOSE)
def _(logits, p):
    return nucleus(logits, p, fill=0.0)


@keep_top_p.mutant("p is taken as a share of the vocabulary: always the same number of tokens is kept", CHOOSE)
def _(logits, p):
    return cut_at(logits, math.ceil(p * logits.shape[-1]))


@keep_top_p.mutant("the softmax runs over the texts of the batch", CHOOSE)
def _(logits, p):
    return nucleus(logits, p, dim=0)


@keep_top_p.mutant("the logits themselves are added up, without a softmax", CHOOSE)
def _(logits, p):
    return nucleus(logits, p, shares=lambda ordered: ordered)


@keep_top_p.alternative
def _(logits, p):
    return nucleus(logits, p)


@keep_top_p.alternative
def _(logits, p):
    share = logits.softmax(dim=-1)
    above = ((logits[:, None] > logits[:, :, None]) * share[:, None]).sum(dim=-1)
    return torch.where(above < p, logits, -torch.inf)


# ---- one more token behind a cache ----------------------------------------------------------------------------------


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
        for share, value in zip(odds, grown_values[b, h], strict=True):
            out[b, h, 0] += share / sum(odds) * value
    return out, grown_keys, grown_values


def one_head(rng, batch, heads, new, old, head_dim):
    """Queries, keys and values of new tokens, and what the cache holds."""
    fresh = {name: rng.randn(batch, heads, new, head_dim) for name in "qkv"}
    return fresh | {name: rng.randn(batch, heads, old, head_dim) for name in ("keys", "values")}


@cached_step.cases
def _(rng):
    yield "all sizes different", one_head(rng, 2, 3, 1, 5, 7)
    yield "batch 1, one token in the cache", one_head(rng, 1, 2, 1, 1, 3)
    yield "the first token: the cache is empty", one_head(rng, 2, 1, 1, 0, 4)


def stepped(q, k, v, keys, values, *, join=lambda old, new: torch.cat([old, new], dim=2), scale=None):
    """Grow, then look."""
    keys, values = join(keys, k), join(values, v)
    return F.scaled_dot_product_attention(q, keys, values, scale=scale), keys, values


@cached_step.mutant("the new token looks before it is in the cache: it does not see itself", CACHE)
def _(q, k, v, keys, values):
    out = (q @ keys.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ values
    return out, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)


@cached_step.mutant("the new key and value are put in front: the cache is in the wrong order", CACHE)
def _(*inputs):
    return stepped(*inputs, join=lambda old, new: torch.cat([new, old], dim=2))


@cached_step.mutant("the cache comes back as it was: the next token will not know of this one", CACHE)
def _(q, k, v, keys, values):
    return stepped(q, k, v, keys, values)[0], keys, values


@cached_step.mutant("PyTorch's `is_causal=True` has its corner at the top left: the new token sees only token 0", BUGS)
def _(q, k, v, keys, values):
    _, keys, values = stepped(q, k, v, keys, values)
    return F.scaled_dot_product_attention(q, keys, values, is_causal=True), keys, values


@cached_step.mutant("the oldest token is thrown out for the new one: the cache does not grow", CACHE)
def _(*inputs):
    return stepped(*inputs, join=lambda old, new: torch.cat([old[:, :, 1:], new], dim=2))


@cached_step.mutant("the new token sees itself alone: the cache is kept but not read", CACHE)
def _(q, k, v, keys, values):
    return v, *stepped(q, k, v, keys, values)[1:]


@cached_step.mutant("the scores are not divided by √head_dim", CACHE)
def _(*inputs):
    return stepped(*inputs, scale=1.0)


@cached_step.mutant("the key is kept in the place of the value as well", KEEP)
def _(q, k, v, keys, values):
    return stepped(q, k, k, keys, values)


@cached_step.mutant("the query is kept in the place of the key: queries are never needed again", KEEP)
def _(q, k, v, keys, values):
    return stepped(q, q, v, keys, values)


@cached_step.alternative
def _(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], dim=-2), torch.cat([values, v], dim=-2)
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, keys) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, values), keys, values


# ---- a chunk behind a cache -----------------------------------------------------------------------------------------


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
    """Pairs turned as complex numbers, and each query held against each key up to its own place."""
    past, half = keys.shape[2], q.shape[3] // 2

    def turned(row, place):
        pairs = [complex(row[p], row[p + half]) * cmath.rect(1, place / 10_000 ** (p / half)) for p in range(half)]
        return row.new_tensor([z.real for z in pairs] + [z.imag for z in pairs])

    out, all_keys = torch.zeros_like(q), torch.cat([keys, torch.zeros_like(k)], dim=2)
    all_values = torch.cat([values, v], dim=2)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        all_keys[b, h, past + t] = turned(k[b, h, t], past + t)
        query, seen = turned(q[b, h, t], past + t), range(past + t + 1)
        odds = [math.exp(query @ all_keys[b, h, j] / q.shape[3] ** 0.5) for j in seen]
        out[b, h, t] = sum(odds[j] / sum(odds) * all_values[b, h, j] for j in seen)
    return out, all_keys, all_values


@cached_chunk.cases
def _(rng):
    yield "all sizes different", one_head(rng, 2, 3, 5, 7, 4)
    yield "batch 1, one query: a step", one_head(rng, 1, 2, 1, 3, 2)
    yield "the prompt: the cache is empty", one_head(rng, 2, 1, 3, 0, 4)
    yield "as many new ones as old ones", one_head(rng, 1, 1, 3, 3, 2)


def chunk(q, k, v, keys, values, *, q_at=None, k_at=None, mask=lambda seen, past: seen.tril(past), values_too=False,
          again=False, keep_plain=False, see=slice(None)):  # fmt: skip
    """Turn, grow, look, with one thing to go wrong at a time."""
    past, new = keys.shape[2], q.shape[2]

    def turn(x, start):
        cos, sin = rope_table(start + x.shape[2], x.shape[3])
        return apply_rope(x, cos[start:], sin[start:])

    q, plain = turn(q, past if q_at is None else q_at(past, new)), k
    k = turn(k, past if k_at is None else k_at(past, new))
    v = turn(v, past) if values_too else v
    keys, values = torch.cat([turn(keys, 0) if again else keys, k], dim=2), torch.cat([values, v], dim=2)
    seen = mask(torch.ones(new, past + new, dtype=torch.bool), past)
    out = F.scaled_dot_product_attention(q, keys[:, :, see], values[:, :, see], attn_mask=seen[:, see])
    return out, torch.cat([keys[:, :, :past], plain], dim=2) if keep_plain else keys, values


@cached_chunk.mutant("the new tokens are turned as if they stood at 0, 1, …: their places go on from the cache", BUGS)
def _(*inputs):
    return chunk(*inputs, q_at=lambda past, new: 0, k_at=lambda past, new: 0)


@cached_chunk.mutant("queries are turned by their places in the whole text, but keys from 0", BUGS)
def _(*inputs):
    return chunk(*inputs, k_at=lambda past, new: 0)


@cached_chunk.mutant("keys are turned by their places in the whole text, but queries from 0", BUGS)
def _(*inputs):
    return chunk(*inputs, q_at=lambda past, new: 0)


@cached_chunk.mutant(
    "the first place is one too far: behind `keys` tokens stands number `keys`, since we count from 0", BUGS
)
def _(*inputs):
    return chunk(*inputs, q_at=lambda past, new: past + 1, k_at=lambda past, new: past + 1)


@cached_chunk.mutant("the places go on from the chunk's own length instead of the cache's", BUGS)
def _(*inputs):
    return chunk(*inputs, q_at=lambda past, new: new, k_at=lambda past, new: new)


@cached_chunk.mutant("the keys in the cache, which have been turned already, are turned again", KEEP)
def _(*inputs):
    return chunk(*inputs, again=True)


@cached_chunk.mutant("keys go into the cache as they were before they were turned", KEEP)
def _(*inputs):
    return chunk(*inputs, keep_plain=True)


@cached_chunk.mutant("the values are turned too: only queries and keys have a place", CACHE)
def _(*inputs):
    return chunk(*inputs, values_too=True)


@cached_chunk.mutant("no mask: each token sees the later ones of its chunk", BUGS)
def _(*inputs):
    return chunk(*inputs, mask=lambda seen, past: seen)


@cached_chunk.mutant("the mask has its corner at the top left: most of the cache is hidden", BUGS)
def _(*inputs):
    return chunk(*inputs, mask=lambda seen, past: seen.tril())


@cached_chunk.mutant("a token does not see the newest one in the cache, or itself: the mask is one too small", BUGS)
def _(*inputs):
    return chunk(*inputs, mask=lambda seen, past: seen.tril(max(past - 1, 0)))


@cached_chunk.mutant("the chunk's tokens see only each other: the cache is kept but not read", CACHE)
def _(q, k, v, keys, values):
    return chunk(q, k, v, keys, values, see=slice(keys.shape[2], None))


@cached_chunk.alternative
def _(*inputs):
    return chunk(*inputs)


@cached_chunk.alternative
def _(q, k, v, keys, values):
    cos, sin = rope_table(keys.shape[2] + q.shape[2], q.shape[3])
    outs = []
    for t in range(q.shape[2]):  # a chunk is a few steps
        at = keys.shape[2]
        now = [apply_rope(x[:, :, t : t + 1], cos[at : at + 1], sin[at : at + 1]) for x in (q, k)]
        out, keys, values = stepped(now[0], now[1], v[:, :, t : t + 1], keys, values)
        outs.append(out)
    return torch.cat(outs, dim=2), keys, values


# ---- writing --------------------------------------------------------------------------------------------------------


class Adder(nn.Module):
    """A model whose next token depends on all that it has read."""

    def __init__(self, vocab: int, start: int = 1) -> None:
        super().__init__()
        self.vocab, self.start = vocab, start

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocab"]:
        """Logits: the likeliest is `start` plus the sum of all ids so far, modulo `vocab`."""
        return F.one_hot((ids.cumsum(dim=1) + self.start) % self.vocab, self.vocab).float()


@exercise("Write, and stop", minutes=20, level=2)
def write(
    model: nn.Module, ids: Int[Tensor, "batch tokens"], new_tokens: int, eos: int = 2
) -> Int[Tensor, "batch written"]:
    """Each text by itself; those that end early are filled up with EOS."""
    texts = []
    for row in ids.tolist():
        text: list[int] = []
        while len(text) < new_tokens and eos not in text:
            scores = model(torch.tensor([[*row, *text]]))[0, -1].tolist()
            text.append(scores.index(max(scores)))
        texts.append(text)
    longest = max(map(len, texts))
    return torch.tensor([text + [eos] * (longest - len(text)) for text in texts])


@write.cases
def _(rng):
    yield "some end early", {"model": Adder(7), "ids": torch.tensor([[1, 0, 0], [1, 3, 2]]), "new_tokens": 6}
    yield "batch 1", {"model": Adder(5, 3), "ids": torch.tensor([[1, 4]]), "new_tokens": 3}
    yield "all end early", {"model": Adder(5), "ids": torch.tensor([[1, 0], [1, 4]]), "new_tokens": 9}
    yield "one ends at once", {"model": Adder(7), "ids": torch.tensor([[1, 0, 0], [1, 4, 0]]), "new_tokens": 4}
    yield "a prompt of one token", {"model": Adder(11), "ids": torch.tensor([[4]]), "new_tokens": 5}
    yield "another EOS", {"model": Adder(6), "ids": torch.tensor([[1, 1], [1, 3]]), "new_tokens": 5, "eos": 5}
    yield "one new token", {"model": Adder(7), "ids": torch.tensor([[1, 2], [1, 5]]), "new_tokens": 1}


def written(model, ids, new_tokens, eos=2, *, fill=None, every=torch.all, feed=lambda ids: ids, at=-1):
    """The loop, with one thing to go wrong at a time."""
    start, ended = ids.shape[1], torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(new_tokens):
        new = model(feed(ids))[:, at].argmax(dim=-1)
        new = torch.where(ended, fill(new) if fill else eos, new)
        ids = torch.cat([ids, new[:, None]], dim=1)
        ended = ended | (new == eos)
        if bool(every(ended)):
            break
    return ids[:, start:]


@write.mutant("a text that has ended goes on while the others write", STOP)
def _(*inputs, **more):
    return written(*inputs, **more, fill=lambda new: new)


@write.mutant("all stop as soon as one of them has ended", STOP)
def _(*inputs, **more):
    return written(*inputs, **more, every=torch.any)


@write.mutant("it never stops before `new_tokens`, though all have ended", STOP)
def _(*inputs, **more):
    return written(*inputs, **more, every=lambda ended: torch.tensor(False))


@write.mutant("texts that have ended are filled up with 0 instead of EOS", STOP)
def _(*inputs, **more):
    return written(*inputs, **more, fill=torch.zeros_like)


@write.mutant("the number 2 is taken for EOS, whatever `eos` says", STOP)
def _(model, ids, new_tokens, eos=2):
    return written(model, ids, new_tokens)


@write.mutant("the logits at place 0 are read, not those at the last place", WRITES)
def _(*inputs, **more):
    return written(*inputs, **more, at=0)


@write.mutant("only the newest token is given to the model, which has no cache and forgets the rest", WRITES)
def _(*inputs, **more):
    return written(*inputs, **more, feed=lambda ids: ids[:, -1:])


@write.mutant("the model is never shown what it wrote: it writes the same token again and again", LOOP)
def _(model, ids, new_tokens, eos=2):
    return written(model, ids, new_tokens, eos, feed=lambda grown: grown[:, : ids.shape[1]])


@write.mutant("the prompt is in the result", WRITES)
def _(model, ids, new_tokens, eos=2):
    return torch.cat([ids, written(model, ids, new_tokens, eos)], dim=1)


@write.mutant("one token too few is written", STOP)
def _(model, ids, new_tokens, eos=2):
    return written(model, ids, new_tokens, eos)[:, :-1]


@write.alternative
def _(model, ids, new_tokens, eos=2):
    steps: list[Tensor] = []
    while len(steps) < new_tokens and not (steps and bool((steps[-1] == eos).all())):
        new = model(torch.cat([ids, *[step[:, None] for step in steps]], dim=1))[:, -1].argmax(dim=-1)
        steps.append(new.masked_fill(steps[-1] == eos, eos) if steps else new)
    return torch.stack(steps, dim=1)
