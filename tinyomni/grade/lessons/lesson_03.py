"""Lesson 03, attention: its oracles are loops over every query and every key, or torch's own kernel."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "03_attention", "Attention"

LOOP = "2. Scaled dot-product attention as a loop"
ONE_LINE = "3. Attention in one line"
SCALING = r"4. Why divide by $\sqrt{D}$?"
CAUSAL = "5. The causal mask: looking back only"
HEADS = "6. Multi-head attention: several looks at once"
BUGS = "8. Three shape-preserving bugs"
THINKER = "9. Self-attention in the Thinker"


# ---- scores ---------------------------------------------------------------------------------------------------------


@exercise(
    "Attention scores",
    minutes=10,
    level=1,
    gradients=("q", "k"),
)
def attention_scores(
    q: Float[Tensor, "batch heads queries head_dim"], k: Float[Tensor, "batch heads keys head_dim"]
) -> Float[Tensor, "batch heads queries keys"]:
    """One dot product at a time."""
    scores = q.new_zeros(*q.shape[:3], k.shape[2])
    for b, h, i, j in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        scores[b, h, i, j] = sum(q[b, h, i, d] * k[b, h, j, d] for d in range(q.shape[3])) / q.shape[3] ** 0.5
    return scores


@attention_scores.cases
def _(rng):
    yield "all sizes different", {"q": rng.randn(2, 3, 5, 7), "k": rng.randn(2, 3, 6, 7)}
    yield "as many queries as keys", {"q": rng.randn(1, 2, 3, 4), "k": rng.randn(1, 2, 3, 4)}
    yield "batch 1, one query", {"q": rng.randn(1, 2, 1, 3), "k": rng.randn(1, 2, 2, 3)}
    yield "one key", {"q": rng.randn(2, 1, 3, 5), "k": rng.randn(2, 1, 1, 5)}
    yield "head_dim 1", {"q": rng.randn(2, 1, 3, 1), "k": rng.randn(2, 1, 4, 1)}


@attention_scores.random_inputs
def _(rng):
    batch, heads, head_dim = rng.size(3), rng.size(3), rng.size()
    return {"q": rng.randn(batch, heads, rng.size(4), head_dim), "k": rng.randn(batch, heads, rng.size(4), head_dim)}


@attention_scores.mutant("the scores are not divided by √head_dim", SCALING)
def _(q, k):
    return q @ k.mT


@attention_scores.mutant("the scores are divided by head_dim instead of its square root", SCALING)
def _(q, k):
    return q @ k.mT / q.shape[-1]


@attention_scores.mutant("the square root is taken of the number of keys instead of head_dim", SCALING)
def _(q, k):
    return q @ k.mT / k.shape[-2] ** 0.5


@attention_scores.mutant("the square root is taken of the width of all heads together", SCALING)
def _(q, k):
    return q @ k.mT / (q.shape[1] * q.shape[-1]) ** 0.5


@attention_scores.mutant("queries and keys are exchanged: the result is the transpose", ONE_LINE)
def _(q, k):
    return k @ q.mT / q.shape[-1] ** 0.5


@attention_scores.mutant("the scores are multiplied by √head_dim instead of divided", SCALING)
def _(q, k):
    return q @ k.mT * q.shape[-1] ** 0.5


@attention_scores.mutant("queries and keys are normalized first: that is a cosine, not a dot product", LOOP)
def _(q, k):
    return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT


@attention_scores.mutant("the softmax is already applied", ONE_LINE)
def _(q, k):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)


@attention_scores.alternative
def _(q, k):
    return torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5


@attention_scores.alternative
def _(q, k):
    return ((q[:, :, :, None] * k[:, :, None]) / q.shape[-1] ** 0.5).sum(dim=-1)


# ---- weights --------------------------------------------------------------------------------------------------------


@exercise("Attention weights", minutes=15, level=2, gradients=("scores",))
def attention_weights(
    scores: Float[Tensor, "batch heads queries keys"], mask: Bool[Tensor, "batch queries keys"] | None = None
) -> Float[Tensor, "batch heads queries keys"]:
    """Row by row, and only over the keys that the mask allows."""
    weights = torch.zeros_like(scores)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, scores.shape[:3])).tolist():
        visible = torch.arange(scores.shape[3]) if mask is None else mask[b, i].nonzero()[:, 0]
        if len(visible):
            row = scores[b, h, i, visible]
            row = (row - row.max()).exp()
            weights[b, h, i, visible] = row / row.sum()
    return weights


@attention_weights.cases
def _(rng):
    some = rng.randbool(2, 5, 6)
    some[:, :, 0] = True
    yield "all sizes different", {"scores": rng.randn(2, 3, 5, 6), "mask": some}
    yield "no mask", {"scores": rng.randn(1, 2, 3, 4)}
    yield "a causal mask", {"scores": rng.randn(1, 2, 3, 3), "mask": torch.ones(1, 3, 3, dtype=torch.bool).tril()}
    all_masked = torch.ones(2, 2, 3, dtype=torch.bool)
    all_masked[1] = False
    yield "a text that is all padding: expects zeros", {"scores": rng.randn(2, 1, 2, 3), "mask": all_masked}
    yield "large scores", {"scores": 300 * rng.randn(1, 1, 2, 3)}
    yield "one key", {"scores": rng.randn(1, 2, 3, 1)}
    hidden = torch.tensor([[[True, False, True]]])
    yield "a masked key with a huge score", {"scores": torch.tensor([[[[0.5, 1e9, 1.0]]]]), "mask": hidden}


@attention_weights.random_inputs
def _(rng):
    batch, queries, keys = rng.size(3), rng.size(4), rng.size(4)
    scores = rng.choice((1.0, 1000.0)) * rng.randn(batch, rng.size(3), queries, keys)
    return {"scores": scores, "mask": rng.choice((None, rng.randbool(batch, queries, keys)))}


def masked_softmax(scores, mask, dim=-1, fill=-torch.inf):
    """Softmax with a mask for all heads; fully masked rows are NaN where `fill` is minus infinity."""
    return (scores if mask is None else scores.masked_fill(~mask[:, None], fill)).softmax(dim=dim)


@attention_weights.mutant("the softmax runs over queries instead of keys", BUGS)
def _(scores, mask=None):
    return masked_softmax(scores, mask, dim=-2).nan_to_num(0.0)


@attention_weights.mutant("the softmax runs over heads instead of keys", BUGS)
def _(scores, mask=None):
    return masked_softmax(scores, mask, dim=1).nan_to_num(0.0)


@attention_weights.mutant("the mask is applied after the softmax, so that the rows no longer sum to 1", BUGS)
def _(scores, mask=None):
    weights = scores.softmax(dim=-1)
    return weights if mask is None else weights * mask[:, None]


@attention_weights.mutant("the mask is inverted: only masked keys are attended to", CAUSAL)
def _(scores, mask=None):
    return masked_softmax(scores, None if mask is None else ~mask).nan_to_num(0.0)


@attention_weights.mutant("the mask is ignored", CAUSAL)
def _(scores, mask=None):
    return scores.softmax(dim=-1)


@attention_weights.mutant("a fully masked query gets NaN: e^(−∞) is 0, and 0/0 is NaN", CAUSAL)
def _(scores, mask=None):
    return masked_softmax(scores, mask)


@attention_weights.mutant("a fully masked query attends evenly to all keys: a large negative number is not −∞", CAUSAL)
def _(scores, mask=None):
    return masked_softmax(scores, mask, fill=-1e9)


@attention_weights.mutant("masked scores are set to 0 before the softmax: e^0 is 1, not 0", CAUSAL)
def _(scores, mask=None):
    return masked_softmax(scores, mask, fill=0.0)


@attention_weights.mutant("the exponential overflows: the maximum of each row must be subtracted first", ONE_LINE)
def _(scores, mask=None):
    shares = scores.exp() if mask is None else scores.exp() * mask[:, None]
    return shares / shares.sum(dim=-1, keepdim=True).clamp(min=1e-30)


@attention_weights.mutant(
    "the exponential overflows, and `nan_to_num` makes zeros of it: subtract the maximum of each row first", ONE_LINE
)
def _(scores, mask=None):
    shares = scores.exp() if mask is None else scores.exp() * mask[:, None]
    return (shares / shares.sum(dim=-1, keepdim=True)).nan_to_num(0.0)


@attention_weights.mutant("the scores are divided by their sum: the exponential is missing", ONE_LINE)
def _(scores, mask=None):
    shares = scores if mask is None else scores * mask[:, None]
    return (shares / shares.sum(dim=-1, keepdim=True)).nan_to_num(0.0)


@attention_weights.alternative
def _(scores, mask=None):
    if mask is None:
        return F.softmax(scores, dim=-1)
    visible = mask.unsqueeze(1)
    shares = (
        (scores - scores.where(visible, -torch.inf).amax(-1, keepdim=True).clamp(min=-1e30)).exp().where(visible, 0)
    )
    return shares / shares.sum(-1, keepdim=True).clamp(min=1e-30)


# ---- the causal mask ------------------------------------------------------------------------------------------------


@exercise("The causal mask", minutes=10, level=1)
def causal_mask(queries: int, keys: int) -> Bool[Tensor, "queries keys"]:
    """Query i is at position keys - queries + i, and attends to keys up to there."""
    places = range(keys - queries, keys)
    return torch.tensor([[key <= place for key in range(keys)] for place in places], dtype=torch.bool)


@causal_mask.cases
def _(rng):
    yield "two new tokens after three cached ones", {"queries": 2, "keys": 5}
    yield "as many queries as keys", {"queries": 4, "keys": 4}
    yield "the last token alone", {"queries": 1, "keys": 6}
    yield "one token", {"queries": 1, "keys": 1}
    yield "a long text", {"queries": 3, "keys": 1100}


@causal_mask.random_inputs
def _(rng):
    keys = rng.size(9)
    return {"queries": rng.size(keys), "keys": keys}


@causal_mask.mutant("the mask is aligned at the top left: the last query belongs to the last key", CAUSAL)
def _(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).tril()


@causal_mask.mutant("the mask is inverted: True means that a query may attend", CAUSAL)
def _(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)


@causal_mask.mutant("a query does not attend to its own position", CAUSAL)
def _(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries - 1)


@causal_mask.mutant("a query attends to one position ahead", CAUSAL)
def _(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries + 1)


@causal_mask.mutant("queries attend to themselves and to later positions only", CAUSAL)
def _(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries)


@causal_mask.mutant("nothing is masked, as in an encoder", CAUSAL)
def _(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool)


@causal_mask.mutant("the mask holds 0 and 1 instead of False and True", CAUSAL)
def _(queries, keys):
    return torch.ones(queries, keys).tril(keys - queries)


@causal_mask.mutant("queries and keys are exchanged in the shape", CAUSAL)
def _(queries, keys):
    return torch.ones(keys, queries, dtype=torch.bool).tril()


@causal_mask.mutant("the cached keys are masked: the new tokens attend to each other alone", CAUSAL)
def _(queries, keys):
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return mask & (torch.arange(keys) >= keys - queries)


@causal_mask.mutant("a query attends to its own position only", CAUSAL)
def _(queries, keys):
    return torch.arange(keys)[None] == torch.arange(keys - queries, keys)[:, None]


@causal_mask.mutant(
    "only the newest token is hidden from the older ones: those in between see what follows them", CAUSAL
)
def _(queries, keys):
    mask = torch.ones(queries, keys, dtype=torch.bool)
    mask[:-1, -1] = False
    return mask


@causal_mask.alternative
def _(queries, keys):
    return torch.arange(keys)[None] <= torch.arange(keys - queries, keys)[:, None]


@causal_mask.replaces("tinyomni.attention.causal_mask")
def _(answer):
    return lambda queries, keys, device="cpu": answer(queries, keys).to(device)


# ---- heads ----------------------------------------------------------------------------------------------------------


@exercise("Split into heads", minutes=5, level=1, gradients=("x",))
def split_heads(x: Float[Tensor, "batch tokens dim"], heads: int) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Head by head."""
    head_dim = x.shape[2] // heads
    return torch.stack([x[:, :, h * head_dim : (h + 1) * head_dim] for h in range(heads)], dim=1)


@split_heads.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 5, 21), "heads": 3}
    yield "as many heads as tokens", {"x": rng.randn(1, 2, 6), "heads": 2}
    yield "batch 1, one token", {"x": rng.randn(1, 1, 6), "heads": 3}
    yield "one head", {"x": rng.randn(2, 3, 4), "heads": 1}
    yield "head_dim 1", {"x": rng.randn(2, 3, 4), "heads": 4}


@split_heads.random_inputs
def _(rng):
    heads = rng.size()
    return {"x": rng.randn(rng.size(), rng.size(), heads * rng.size()), "heads": heads}


@split_heads.mutant("the last axis is split, but the axes stay (batch, tokens, heads, head_dim)", HEADS)
def _(x, heads):
    return x.unflatten(-1, (heads, -1))


@split_heads.mutant("reshape goes straight to the final shape and mixes the tokens", BUGS)
def _(x, heads):
    return x.reshape(x.shape[0], heads, x.shape[1], -1)


@split_heads.mutant("each head takes every n-th number instead of a contiguous slice", HEADS)
def _(x, heads):
    return x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)


@split_heads.mutant("the heads are in reverse order", HEADS)
def _(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flip(1)


@split_heads.mutant("tokens and head_dim are exchanged", HEADS)
def _(x, heads):
    return x.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)


@split_heads.mutant("`heads` is used as head_dim", HEADS)
def _(x, heads):
    return x.unflatten(-1, (-1, heads)).transpose(1, 2)


@split_heads.mutant("the result is detached: no gradient comes back to the projections", HEADS)
def _(x, heads):
    return x.detach().unflatten(-1, (heads, -1)).transpose(1, 2)


@split_heads.mutant("every head gets the first slice", HEADS)
def _(x, heads):
    return x[..., : x.shape[-1] // heads][:, None].expand(-1, heads, -1, -1)


@split_heads.mutant("heads and batch are exchanged", HEADS)
def _(x, heads):
    return x.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)


@split_heads.mutant("the order of the tokens is reversed in each head", HEADS)
def _(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flip(2)


@split_heads.alternative
def _(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@split_heads.alternative
def _(x, heads):
    return torch.stack(x.chunk(heads, dim=-1)).movedim(0, 1)


split_heads.replaces("tinyomni.attention.split_heads")


@exercise("Merge the heads", minutes=5, level=1, gradients=("x",))
def merge_heads(x: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch tokens dim"]:
    """Head after head."""
    return torch.cat([x[:, h] for h in range(x.shape[1])], dim=-1)


@merge_heads.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(2, 3, 5, 7)}
    yield "as many heads as tokens", {"x": rng.randn(1, 2, 2, 3)}
    yield "batch 1, one token", {"x": rng.randn(1, 3, 1, 2)}
    yield "one head", {"x": rng.randn(2, 1, 3, 2)}


@merge_heads.random_inputs
def _(rng):
    return {"x": rng.randn(rng.size(), rng.size(), rng.size(), rng.size())}


@merge_heads.mutant("heads are not moved next to head_dim before they are merged: tokens get mixed", BUGS)
def _(x):
    return x.reshape(x.shape[0], x.shape[2], -1)


@merge_heads.mutant("head_dim goes before heads, so that the heads are interleaved", HEADS)
def _(x):
    return x.permute(0, 2, 3, 1).flatten(2)


@merge_heads.mutant("the heads are summed instead of concatenated", HEADS)
def _(x):
    return x.sum(dim=1)


@merge_heads.mutant("heads are merged with tokens instead of head_dim", HEADS)
def _(x):
    return x.flatten(1, 2)


@merge_heads.mutant("the heads are in reverse order", HEADS)
def _(x):
    return x.flip(1).transpose(1, 2).flatten(2)


@merge_heads.mutant("the heads are averaged instead of concatenated", HEADS)
def _(x):
    return x.mean(dim=1)


@merge_heads.mutant("the batch is merged with the tokens: there is one long text", HEADS)
def _(x):
    return x.transpose(1, 2).flatten(2).flatten(0, 1)[None]


@merge_heads.mutant("the result is detached: no gradient reaches the heads", HEADS)
def _(x):
    return x.detach().transpose(1, 2).flatten(2)


@merge_heads.mutant("the first head is repeated instead of the others", HEADS)
def _(x):
    return x[:, 0].repeat(1, 1, x.shape[1])


@merge_heads.alternative
def _(x):
    return x.movedim(1, 2).reshape(x.shape[0], x.shape[2], -1)


@merge_heads.alternative
def _(x):
    return torch.einsum("bhtd->bthd", x).flatten(-2)


merge_heads.replaces("tinyomni.attention.merge_heads")


# ---- grouped-query attention ----------------------------------------------------------------------------------------


@exercise("Grouped-query attention: repeat the key heads", minutes=10, level=2, gradients=("k",))
def repeat_kv(
    k: Float[Tensor, "batch kv_heads keys head_dim"], heads: int
) -> Float[Tensor, "batch heads keys head_dim"]:
    """Query head h uses key head h // (heads / kv_heads)."""
    group = heads // k.shape[1]
    return torch.stack([k[:, h // group] for h in range(heads)], dim=1)


@repeat_kv.cases
def _(rng):
    yield "all sizes different", {"k": rng.randn(2, 3, 5, 7), "heads": 6}
    yield "batch 1, one key", {"k": rng.randn(1, 2, 1, 3), "heads": 4}
    yield "multi-query: one key head", {"k": rng.randn(2, 1, 3, 2), "heads": 4}
    yield "multi-head: as many key heads as query heads", {"k": rng.randn(2, 3, 2, 4), "heads": 3}
    yield "groups of three", {"k": rng.randn(1, 2, 2, 2), "heads": 6}


@repeat_kv.random_inputs
def _(rng):
    kv_heads = rng.size(4)
    return {"k": rng.randn(rng.size(), kv_heads, rng.size(), rng.size()), "heads": kv_heads * rng.size(4)}


@repeat_kv.mutant("the heads come as 0 1 2 0 1 2 instead of 0 0 1 1 2 2: neighbouring query heads share", THINKER)
def _(k, heads):
    return k.repeat(1, heads // k.shape[1], 1, 1)


@repeat_kv.mutant("keys are repeated instead of heads", THINKER)
def _(k, heads):
    return k.repeat_interleave(heads // k.shape[1], dim=2)


@repeat_kv.mutant("each head is repeated `heads` times instead of heads / kv_heads times", THINKER)
def _(k, heads):
    return k.repeat_interleave(heads, dim=1)


@repeat_kv.mutant("all query heads use the first key head", THINKER)
def _(k, heads):
    return k[:, :1].expand(-1, heads, -1, -1)


@repeat_kv.mutant("a reshape after the repetition mixes keys and heads", THINKER)
def _(k, heads):
    return k.repeat_interleave(heads // k.shape[1], dim=2).reshape(k.shape[0], heads, *k.shape[2:])


@repeat_kv.mutant("the key heads that are missing are filled with zeros", THINKER)
def _(k, heads):
    return torch.cat([k, k.new_zeros(len(k), heads - k.shape[1], *k.shape[2:])], dim=1)


@repeat_kv.mutant("the last key head is repeated until there are enough", THINKER)
def _(k, heads):
    return torch.cat([k, k[:, -1:].expand(-1, heads - k.shape[1], -1, -1)], dim=1)


@repeat_kv.mutant("each head of a group is its key head divided by the size of the group", THINKER)
def _(k, heads):
    group = heads // k.shape[1]
    return k.repeat_interleave(group, dim=1) / group


@repeat_kv.mutant("the result is detached: no gradient reaches the keys", THINKER)
def _(k, heads):
    return k.detach().repeat_interleave(heads // k.shape[1], dim=1)


@repeat_kv.mutant("the groups are in reverse order", THINKER)
def _(k, heads):
    return k.repeat_interleave(heads // k.shape[1], dim=1).flip(1)


@repeat_kv.alternative
def _(k, heads):
    return k.repeat_interleave(heads // k.shape[1], dim=1)


@repeat_kv.alternative
def _(k, heads):
    return k[:, :, None].expand(-1, -1, heads // k.shape[1], -1, -1).flatten(1, 2)


# ---- attention ------------------------------------------------------------------------------------------------------


@exercise(
    "The complete attention",
    minutes=20,
    level=3,
    gradients=("q", "k", "v"),
)
def attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys head_dim"],
    causal: bool = False,
    mask: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """torch's kernel, one text, head and query at a time, over the keys that this query may attend to."""
    out = torch.zeros_like(q)
    group, behind = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    visible = torch.ones(*q.shape[:3], k.shape[2], dtype=torch.bool) if mask is None else mask
    visible = visible.expand(*q.shape[:3], k.shape[2])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        keys = [j for j in range(k.shape[2]) if visible[b, h, i, j] and (not causal or j <= behind + i)]
        if keys:
            one_k, one_v = k[b, h // group, keys], v[b, h // group, keys]
            out[b, h, i] = F.scaled_dot_product_attention(q[b, h, i : i + 1], one_k, one_v)[0]
    return out


@attention.cases
def _(rng):
    # 4 query heads share 2 key heads; 5 queries come after 1 cached key
    some = rng.randbool(3, 1, 5, 6)
    some[..., 0] = True
    q, k, v = rng.randn(3, 4, 5, 7), rng.randn(3, 2, 6, 7), rng.randn(3, 2, 6, 7)
    yield "all sizes different", {"q": q, "k": k, "v": v, "causal": True, "mask": some}
    yield "no mask", {"q": rng.randn(2, 2, 3, 4), "k": rng.randn(2, 2, 5, 4), "v": rng.randn(2, 2, 5, 4)}
    yield "causal", {"q": rng.randn(1, 2, 3, 4), "k": rng.randn(1, 2, 3, 4), "v": rng.randn(1, 2, 3, 4), "causal": True}
    yield (
        "a chunk after cached keys",
        {"q": rng.randn(1, 1, 2, 3), "k": rng.randn(1, 1, 5, 3), "v": rng.randn(1, 1, 5, 3), "causal": True},
    )
    yield (
        "scores of hundreds",
        {"q": 40 * rng.randn(1, 2, 3, 4), "k": 40 * rng.randn(1, 2, 3, 4), "v": rng.randn(1, 2, 3, 4)},
    )
    yield (
        "multi-query: one key head",
        {"q": rng.randn(1, 3, 2, 4), "k": rng.randn(1, 1, 3, 4), "v": rng.randn(1, 1, 3, 4)},
    )
    padding = torch.tensor([[True, True, False], [False, False, False]])[:, None, None]
    yield "one text is all padding: expects zeros", {"q": rng.randn(2, 2, 2, 3), "k": rng.randn(2, 2, 3, 3),
                                                     "v": rng.randn(2, 2, 3, 3), "mask": padding}  # fmt: skip
    yield (
        "batch 1, one token",
        {"q": rng.randn(1, 2, 1, 3), "k": rng.randn(1, 2, 1, 3), "v": rng.randn(1, 2, 1, 3), "causal": True},
    )


@attention.random_inputs
def _(rng):
    kv_heads, (batch, head_dim, keys) = rng.size(2), (rng.size(2), rng.size(3), rng.size(4))
    heads, queries = kv_heads * rng.size(2), rng.size(keys)
    axes = zip((batch, heads, queries), rng.randbool(3).tolist(), strict=True)
    k, v = rng.choice((1.0, 30.0)) * rng.randn(2, batch, kv_heads, keys, head_dim)
    return {
        "q": rng.randn(batch, heads, queries, head_dim), "k": k, "v": v, "causal": bool(rng.randbool(1)),
        "mask": rng.choice((None, rng.randbool(*(size if whole else 1 for size, whole in axes), keys))),
    }  # fmt: skip


def attention_variant(
    q,
    k,
    v,
    causal=False,
    mask=None,
    *,
    scale=None,
    repeat=torch.repeat_interleave,
    corner=None,
    dim=-1,
    fill=-torch.inf,
    visible=lambda allowed: allowed,
    mask_last=False,
):
    """`attention`; each keyword injects one fault."""
    k, v = (repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if causal:
        allowed = allowed.tril(k.shape[2] - q.shape[2] if corner is None else corner)
    allowed = allowed if mask is None else allowed & mask
    weights = (
        scores.softmax(dim) * visible(allowed)
        if mask_last
        else scores.masked_fill(~visible(allowed), fill).softmax(dim)
    )
    return weights.nan_to_num(0.0) @ v


@attention.mutant("the softmax runs over queries instead of keys", BUGS)
def _(*inputs, **more):
    return attention_variant(*inputs, **more, dim=-2)


@attention.mutant("the scores are not divided by √head_dim", SCALING)
def _(*inputs, **more):
    return attention_variant(*inputs, **more, scale=1.0)


@attention.mutant("the masks are applied after the softmax, so that the rows no longer sum to 1", BUGS)
def _(*inputs, **more):
    return attention_variant(*inputs, **more, mask_last=True)


@attention.mutant("the masks are inverted", CAUSAL)
def _(*inputs, **more):
    return attention_variant(*inputs, **more, visible=torch.logical_not)


@attention.mutant("the causal mask is aligned at the top left, and masks keys that the newest tokens need", CAUSAL)
def _(*inputs, **more):
    return attention_variant(*inputs, **more, corner=0)


@attention.mutant("`causal` is ignored: tokens attend to later ones", CAUSAL)
def _(q, k, v, causal=False, mask=None):
    return attention_variant(q, k, v, False, mask)


@attention.mutant("`mask` is ignored: padding is attended to", THINKER)
def _(q, k, v, causal=False, mask=None):
    return attention_variant(q, k, v, causal)


@attention.mutant("with a mask, `causal` is ignored: both must hold", CAUSAL)
def _(q, k, v, causal=False, mask=None):
    return attention_variant(q, k, v, causal and mask is None, mask)


@attention.mutant("with `causal`, `mask` is ignored, as by `if causal … elif mask`: both must hold", CAUSAL)
def _(q, k, v, causal=False, mask=None):
    return attention_variant(q, k, v, causal, None if causal else mask)


@attention.mutant("a key is seen where either mask allows it, `|`: both must, `&`", CAUSAL)
def _(q, k, v, causal=False, mask=None):
    if causal and mask is not None:
        past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        causal, mask = False, past | mask
    return attention_variant(q, k, v, causal, mask)


@attention.mutant("the key heads come as 0 1 0 1 instead of 0 0 1 1", THINKER)
def _(*inputs, **more):
    return attention_variant(*inputs, **more, repeat=lambda x, times, dim: x.repeat(1, times, 1, 1))


@attention.mutant("a fully masked query attends evenly to all keys", CAUSAL)
def _(*inputs, **more):
    return attention_variant(*inputs, **more, fill=-1e9)


@attention.mutant("a fully masked query gets NaN", CAUSAL)
def _(q, k, v, causal=False, mask=None):
    out = attention_variant(q, k, v, causal, mask)
    nowhere = torch.zeros(1, dtype=torch.bool) if mask is None else ~mask.any(dim=-1, keepdim=True)
    return out.masked_fill(nowhere, torch.nan)


@attention.mutant("the keys are averaged instead of the values", ONE_LINE)
def _(q, k, v, *inputs, **more):
    return attention_variant(q, k, k, *inputs, **more)


@attention.alternative
def _(q, k, v, causal=False, mask=None):
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]) if causal else None
    combined = mask if allowed is None else allowed if mask is None else allowed & mask
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=combined, enable_gqa=True)
    return out.nan_to_num(0.0)


@attention.alternative
def _(*inputs, **more):
    return attention_variant(*inputs, **more)


attention.replaces("tinyomni.attention.attend")
