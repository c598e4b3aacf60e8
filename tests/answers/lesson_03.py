"""Lesson 03: attention."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from answers import right, wrong

right("attention_scores")(lambda q, k: torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1]))
right("attention_scores")(lambda q, k: (q * q.size(-1) ** -0.5).matmul(k.transpose(-2, -1)))
right("attention_scores")(lambda q, k: (q[..., :, None, :] * k[..., None, :, :]).sum(-1) / q.shape[-1] ** 0.5)


@right("attention_scores")
def _(q, k):
    b, h, n, d = q.shape
    return torch.bmm(q.reshape(b * h, n, d), k.reshape(b * h, -1, d).mT).view(b, h, n, -1) / math.sqrt(d)


wrong("attention_scores", "not scaled")(lambda q, k: q @ k.mT)
wrong("attention_scores", "divided by head_dim")(lambda q, k: q @ k.mT / q.shape[-1])
wrong("attention_scores", "root of the keys")(lambda q, k: q @ k.mT / k.shape[-2] ** 0.5)
wrong("attention_scores", "transposed")(lambda q, k: k @ q.mT / q.shape[-1] ** 0.5)
wrong("attention_scores", "normalized vectors")(lambda q, k: F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT)
wrong("attention_scores", "scaled twice")(lambda q, k: (q / q.shape[-1] ** 0.5) @ (k / q.shape[-1] ** 0.5).mT)
wrong("attention_scores", "multiplied by the root")(lambda q, k: q @ k.mT * q.shape[-1] ** 0.5)
wrong("attention_scores", "scaling in whole numbers")(lambda q, k: q @ k.mT / int(q.shape[-1] ** 0.5))
wrong("attention_scores", "heads and batch mixed")(
    lambda q, k: torch.einsum("bhqd,bhkd->bhqk", q, k.roll(1, 1)) / math.sqrt(q.shape[-1])
)
wrong("attention_scores", "keys detached")(lambda q, k: q @ k.detach().mT / q.shape[-1] ** 0.5)


@right("attention_weights")
def _(scores, mask=None):
    if mask is None:
        return scores.softmax(-1)
    mask = mask.unsqueeze(1)
    w = torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), -1)
    return w * mask


@right("attention_weights")
def _(scores, mask=None):
    keep = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask[:, None].expand_as(scores)
    top = scores.masked_fill(~keep, -torch.inf).amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    e = torch.where(keep, torch.exp(torch.where(keep, scores - top, torch.zeros_like(scores))), 0.0)
    total = e.sum(-1, keepdim=True)
    return e / torch.where(total == 0, 1.0, total)


@right("attention_weights")
def _(scores, mask=None):
    out = torch.zeros_like(scores)
    for b in range(scores.shape[0]):
        for i in range(scores.shape[2]):
            ks = list(range(scores.shape[3])) if mask is None else mask[b, i].nonzero().flatten().tolist()
            if ks:
                out[b, :, i, ks] = F.softmax(scores[b, :, i, ks], dim=-1)
    return out


wrong("attention_weights", "mask with -1e9")(lambda scores, mask=None: F.softmax(
    scores if mask is None else scores.masked_fill(~mask[:, None], -1e9), -1))  # fmt: skip
wrong("attention_weights", "overflowing exp")(
    lambda scores, mask=None: (e := scores.exp() * (1 if mask is None else mask[:, None])) / e.sum(-1, keepdim=True)
)
wrong("attention_weights", "NaN where all is masked")(lambda scores, mask=None: F.softmax(
    scores if mask is None else scores.masked_fill(~mask[:, None], -torch.inf), -1))  # fmt: skip
wrong("attention_weights", "mask inverted")(lambda scores, mask=None: F.softmax(
    scores if mask is None else scores.masked_fill(mask[:, None], -torch.inf), -1).nan_to_num(0))  # fmt: skip
wrong("attention_weights", "softmax first, mask after")(
    lambda scores, mask=None: scores.softmax(-1) if mask is None else scores.softmax(-1) * mask[:, None]
)
wrong("attention_weights", "masked scores set to 0")(lambda scores, mask=None: F.softmax(
    scores if mask is None else scores * mask[:, None], -1))  # fmt: skip
wrong("attention_weights", "over the queries")(lambda scores, mask=None: F.softmax(
    scores if mask is None else scores.masked_fill(~mask[:, None], -torch.inf), -2).nan_to_num(0))  # fmt: skip
wrong("attention_weights", "mask ignored")(lambda scores, mask=None: scores.softmax(-1))
wrong("attention_weights", "scores clamped at 80")(lambda scores, mask=None: F.softmax(
    scores.clamp(max=80) if mask is None
    else scores.clamp(max=80).masked_fill(~mask[:, None], -torch.inf), -1).nan_to_num(0))  # fmt: skip
wrong("attention_weights", "mask over the heads")(
    lambda scores, mask=None: scores.softmax(-1) if mask is None else F.softmax(
        scores.masked_fill(~mask, -torch.inf), -1).nan_to_num(0)
)  # fmt: skip
wrong("attention_weights", "subtracts the largest score of the batch")(
    lambda scores, mask=None: (
        (e := torch.exp(scores - scores.max()) * (1 if mask is None else mask[:, None]))
        / e.sum(-1, keepdim=True).clamp(min=1e-30)
    )
)

right("causal_mask")(lambda queries, keys: torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries))
right("causal_mask")(
    lambda queries, keys: torch.tensor(
        [[j <= i + keys - queries for j in range(keys)] for i in range(queries)]
    ).reshape(queries, keys)
)
right("causal_mask")(lambda queries, keys: torch.arange(keys)[None] <= torch.arange(keys - queries, keys)[:, None])
right("causal_mask")(lambda queries, keys: ~torch.triu(torch.ones(queries, keys), keys - queries + 1).bool())
wrong("causal_mask", "first query at the first key")(lambda queries, keys: torch.ones(queries, keys).tril().bool())
wrong("causal_mask", "True where it may not")(
    lambda queries, keys: torch.ones(queries, keys).triu(keys - queries + 1).bool()
)
wrong("causal_mask", "not itself")(lambda queries, keys: torch.ones(queries, keys).tril(keys - queries - 1).bool())
wrong("causal_mask", "floats with -inf")(
    lambda queries, keys: torch.full((queries, keys), -torch.inf).triu(keys - queries + 1)
)
wrong("causal_mask", "square")(lambda queries, keys: torch.ones(keys, keys).tril().bool())
wrong("causal_mask", "uint8")(lambda queries, keys: torch.ones(queries, keys, dtype=torch.uint8).tril(keys - queries))
wrong("causal_mask", "upper triangle")(lambda queries, keys: torch.ones(queries, keys).triu(keys - queries).bool())

right("split_heads")(lambda x, heads: rearrange(x, "b t (h d) -> b h t d", h=heads))
right("split_heads")(lambda x, heads: torch.stack(x.chunk(heads, dim=-1), 1))
right("split_heads")(lambda x, heads: x.view(*x.shape[:2], heads, -1).permute(0, 2, 1, 3))
wrong("split_heads", "reshape only")(lambda x, heads: x.reshape(x.shape[0], heads, x.shape[1], -1))
wrong("split_heads", "no transpose")(lambda x, heads: x.reshape(*x.shape[:2], heads, -1))
wrong("split_heads", "interleaved heads")(lambda x, heads: rearrange(x, "b t (d h) -> b h t d", h=heads))
wrong("split_heads", "tokens and head_dim swapped")(lambda x, heads: rearrange(x, "b t (h d) -> b h d t", h=heads))
wrong("split_heads", "transposed, then reshaped")(lambda x, heads: x.mT.reshape(x.shape[0], heads, x.shape[1], -1))

right("merge_heads")(lambda x: rearrange(x, "b h t d -> b t (h d)"))
right("merge_heads")(lambda x: torch.cat(list(x.unbind(1)), dim=-1))
right("merge_heads")(lambda x: x.permute(0, 2, 1, 3).contiguous().view(x.shape[0], x.shape[2], -1))
wrong("merge_heads", "reshape only")(lambda x: x.reshape(x.shape[0], x.shape[2], -1))
wrong("merge_heads", "interleaved")(lambda x: rearrange(x, "b h t d -> b t (d h)"))
wrong("merge_heads", "tokens times heads")(lambda x: x.flatten(1, 2))
wrong("merge_heads", "mean of the heads")(lambda x: x.mean(1).repeat(1, 1, x.shape[1]))
wrong("merge_heads", "heads in reverse")(lambda x: torch.cat(list(x.unbind(1))[::-1], dim=-1))

right("repeat_kv")(lambda k, heads: k.repeat_interleave(heads // k.shape[1], dim=1))
right("repeat_kv")(lambda k, heads: repeat(k, "b g t d -> b (g r) t d", r=heads // k.shape[1]))
right("repeat_kv")(lambda k, heads: k[:, torch.arange(heads) // (heads // k.shape[1])])
right("repeat_kv")(
    lambda k, heads: k[:, :, None].expand(-1, -1, heads // k.shape[1], -1, -1).reshape(k.shape[0], heads, *k.shape[2:])
)
wrong("repeat_kv", "0 1 2 0 1 2")(lambda k, heads: k.repeat(1, heads // k.shape[1], 1, 1))
wrong("repeat_kv", "the keys repeated")(lambda k, heads: k.repeat_interleave(heads // k.shape[1], dim=2))
wrong("repeat_kv", "the first head for all")(lambda k, heads: k[:, :1].expand(-1, heads, -1, -1))
wrong("repeat_kv", "heads times")(lambda k, heads: k.repeat_interleave(heads, dim=1))
wrong("repeat_kv", "rounded index")(
    lambda k, heads: k[:, (torch.arange(heads) * k.shape[1] / heads).round().long().clamp(max=k.shape[1] - 1)]
)


def _attend(q, k, v, keep, scale=None):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return F.softmax(s.masked_fill(~keep, -torch.inf), -1).nan_to_num(0.0) @ v


def _causal(q, k):
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])


ALL = torch.ones(1, 1, 1, 1, dtype=torch.bool)


@right("attention")
def _(q, k, v, causal=False, mask=None):
    keep = ALL
    if causal:
        keep = keep & _causal(q, k)
    if mask is not None:
        keep = keep & mask
    return _attend(q, k, v, keep)


@right("attention")
def _(q, k, v, causal=False, mask=None):
    b, h, n, d = q.shape
    group = h // k.shape[1]
    keep = torch.ones(b, h, n, k.shape[2], dtype=torch.bool)
    keep = keep if mask is None else keep & mask
    keep = keep & _causal(q, k) if causal else keep
    rows = []
    for j in range(h):
        s = torch.einsum("bqd,bkd->bqk", q[:, j], k[:, j // group]) / math.sqrt(d)
        s = s + torch.where(keep[:, j], 0.0, -torch.inf).to(s.dtype)
        top = s.amax(-1, keepdim=True)
        e = torch.exp(s - torch.where(top.isinf(), 0.0, top).to(s.dtype))
        w = e / e.sum(-1, keepdim=True).clamp(min=1e-20)
        rows.append(w @ v[:, j // group])
    return torch.stack(rows, 1)


wrong("attention", "elif mask: causal alone wins")(lambda q, k, v, causal=False, mask=None: _attend(
    q, k, v, _causal(q, k) if causal else ALL if mask is None else mask))  # fmt: skip
wrong("attention", "elif causal: mask alone wins")(lambda q, k, v, causal=False, mask=None: _attend(
    q, k, v, mask if mask is not None else _causal(q, k) if causal else ALL))  # fmt: skip
wrong("attention", "| for &")(lambda q, k, v, causal=False, mask=None: _attend(
    q, k, v, (mask | _causal(q, k)) if causal and mask is not None else _causal(q, k) if causal
    else ALL if mask is None else mask))  # fmt: skip
wrong("attention", "causal from the first key")(lambda q, k, v, causal=False, mask=None: _attend(
    q, k, v, (torch.ones(q.shape[2], k.shape[2]).tril().bool() if causal else ALL)
    & (ALL if mask is None else mask)))  # fmt: skip
wrong("attention", "scale missing")(lambda q, k, v, causal=False, mask=None: _attend(
    q, k, v, (_causal(q, k) if causal else ALL) & (ALL if mask is None else mask), 1.0))  # fmt: skip
wrong("attention", "always causal")(lambda q, k, v, causal=False, mask=None: _attend(
    q, k, v, _causal(q, k) & (ALL if mask is None else mask)))  # fmt: skip
wrong("attention", "key heads tiled")(lambda q, k, v, causal=False, mask=None: _attend(
    q, k.repeat(1, q.shape[1] // k.shape[1], 1, 1), v.repeat(1, q.shape[1] // v.shape[1], 1, 1),
    (_causal(q, k) if causal else ALL) & (ALL if mask is None else mask)))  # fmt: skip
wrong("attention", "keys tiled, values right")(lambda q, k, v, causal=False, mask=None: _attend(
    q, k.repeat(1, q.shape[1] // k.shape[1], 1, 1), v,
    (_causal(q, k) if causal else ALL) & (ALL if mask is None else mask)))  # fmt: skip
wrong("attention", "a mask of -1e9: a mean where all is masked")(
    lambda q, k, v, causal=False, mask=None: F.softmax(
        (q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT / q.shape[-1] ** 0.5).masked_fill(
            ~((_causal(q, k) if causal else ALL) & (ALL if mask is None else mask)), -1e9
        ),
        -1,
    ) @ v.repeat_interleave(q.shape[1] // k.shape[1], 1)
)  # fmt: skip
wrong("attention", "exp without the maximum")(
    lambda q, k, v, causal=False, mask=None: (
        lambda e: (e / e.sum(-1, keepdim=True)).nan_to_num(0.0) @ v.repeat_interleave(q.shape[1] // k.shape[1], 1)
    )((q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT / q.shape[-1] ** 0.5).exp()
      * ((_causal(q, k) if causal else ALL) & (ALL if mask is None else mask)))
)  # fmt: skip
wrong("attention", "mask applied to the first batch row only")(lambda q, k, v, causal=False, mask=None: _attend(
    q, k, v, (_causal(q, k) if causal else ALL) & (ALL if mask is None else mask[:1])))  # fmt: skip
wrong("attention", "mask adds 1")(
    lambda q, k, v, causal=False, mask=None: F.softmax(
        q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT / q.shape[-1] ** 0.5
        + ((_causal(q, k) if causal else ALL) & (ALL if mask is None else mask)),
        -1,
    ) @ v.repeat_interleave(q.shape[1] // k.shape[1], 1)
)  # fmt: skip
