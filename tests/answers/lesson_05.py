"""Lesson 05: sampling and the KV cache."""

import numpy as np
import torch
import torch.nn.functional as F

from answers import right, wrong
from tinyomni.rope import apply_rope, rope_table


@right("temperature_softmax")
def _(logits, temperature=1.0):
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    return F.softmax(logits / temperature, dim=-1)


@right("temperature_softmax")
def _(logits, temperature=1.0):
    if temperature == 0:
        out = torch.zeros_like(logits)
        for row, scores in zip(out, logits, strict=True):
            row[int(scores.argmax())] = 1.0
        return out
    scaled = logits / temperature
    e = torch.exp(scaled - scaled.max(-1, keepdim=True).values)
    return e / e.sum(-1, keepdim=True)


@right("temperature_softmax")
def _(logits, temperature=1.0):
    if not temperature:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.log_softmax(logits.div(temperature), -1).exp()


def _greedy(logits):
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)


wrong("temperature_softmax", "logits times T")(
    lambda logits, temperature=1.0: _greedy(logits) if temperature == 0
    else (logits * temperature).softmax(-1).nan_to_num(0)
)  # fmt: skip
wrong("temperature_softmax", "probabilities / T")(
    lambda logits, temperature=1.0: _greedy(logits) if temperature == 0 else logits.softmax(-1) / temperature
)
wrong("temperature_softmax", "all tokens that tie at temperature 0")(
    lambda logits, temperature=1.0: (logits == logits.max(-1, keepdim=True).values).to(logits.dtype)
    if temperature == 0 else (logits / temperature).softmax(-1)
)  # fmt: skip
wrong("temperature_softmax", "ties share at temperature 0")(
    lambda logits, temperature=1.0: (
        (m := (logits == logits.max(-1, keepdim=True).values).to(logits.dtype)) / m.sum(-1, keepdim=True)
    ) if temperature == 0 else (logits / temperature).softmax(-1)
)  # fmt: skip
wrong("temperature_softmax", "division by zero")(lambda logits, temperature=1.0: (logits / temperature).softmax(-1))
wrong("temperature_softmax", "clamped temperature")(
    lambda logits, temperature=1.0: (logits / max(temperature, 1e-2)).softmax(-1)
)
wrong("temperature_softmax", "argmax of the batch")(
    lambda logits, temperature=1.0: _greedy(logits[:1]).expand_as(logits)
    if temperature == 0 else (logits / temperature).softmax(-1)
)  # fmt: skip
wrong("temperature_softmax", "over the batch")(
    lambda logits, temperature=1.0: _greedy(logits) if temperature == 0 else (logits / temperature).softmax(0)
)
wrong("temperature_softmax", "overflowing exp")(
    lambda logits, temperature=1.0: _greedy(logits) if temperature == 0
    else (e := (logits / temperature).exp()) / e.sum(-1, keepdim=True)
)  # fmt: skip
wrong("temperature_softmax", "returns the token at 0")(
    lambda logits, temperature=1.0: logits.argmax(-1) if temperature == 0 else (logits / temperature).softmax(-1)
)
wrong("temperature_softmax", "log-probabilities")(
    lambda logits, temperature=1.0: _greedy(logits) if temperature == 0 else (logits / temperature).log_softmax(-1)
)


@right("top_k_filter")
def _(logits, k):
    values, where = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, where, values)


@right("top_k_filter")
def _(logits, k):
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[:, k:], -torch.inf)


@right("top_k_filter")
def _(logits, k):
    out = []
    for row in logits.tolist():
        best = sorted(range(len(row)), key=lambda i: -row[i])[:k]
        out.append([x if i in best else float("-inf") for i, x in enumerate(row)])
    return torch.tensor(out, dtype=logits.dtype)


wrong("top_k_filter", "threshold: all that tie stay")(lambda logits, k: logits.masked_fill(
    logits < logits.topk(min(k, logits.shape[-1])).values[:, -1:], -torch.inf))  # fmt: skip
wrong("top_k_filter", "threshold above: those that tie go")(lambda logits, k: logits.masked_fill(
    logits <= logits.sort(dim=-1, descending=True).values[:, k : k + 1], -torch.inf)
    if k < logits.shape[-1] else logits.clone())  # fmt: skip
wrong("top_k_filter", "k above the vocabulary")(
    lambda logits, k: torch.full_like(logits, -torch.inf).scatter(-1, (t := logits.topk(k)).indices, t.values)
)
wrong("top_k_filter", "in place")(
    lambda logits, k: logits.scatter_(-1, logits.argsort(dim=-1, descending=True, stable=True)[:, k:], -torch.inf)
)
wrong("top_k_filter", "sorted")(
    lambda logits, k: torch.cat(
        [(t := logits.topk(min(k, logits.shape[-1])).values),
         torch.full((logits.shape[0], logits.shape[-1] - t.shape[-1]), -torch.inf, dtype=logits.dtype)], -1
    )
)  # fmt: skip
wrong("top_k_filter", "zeros")(
    lambda logits, k: logits.scatter(-1, logits.argsort(dim=-1, descending=True, stable=True)[:, k:], 0.0)
)
wrong("top_k_filter", "the smallest")(
    lambda logits, k: logits.scatter(-1, logits.argsort(dim=-1, stable=True)[:, k:], -torch.inf)
)
wrong("top_k_filter", "k of the whole batch")(
    lambda logits, k: logits.flatten().scatter(
        0, logits.flatten().argsort(dim=0, descending=True, stable=True)[k * logits.shape[0] :], -torch.inf
    ).view_as(logits)
)  # fmt: skip
wrong("top_k_filter", "threshold of the first row")(lambda logits, k: logits.masked_fill(
    logits < logits[0].topk(min(k, logits.shape[-1])).values[-1], -torch.inf))  # fmt: skip
wrong("top_k_filter", "-1e9")(
    lambda logits, k: logits.scatter(-1, logits.argsort(dim=-1, descending=True, stable=True)[:, k:], -1e9)
)
wrong("top_k_filter", "k + 1")(
    lambda logits, k: logits.scatter(-1, logits.argsort(dim=-1, descending=True, stable=True)[:, k + 1 :], -torch.inf)
)


@right("top_p_filter")
def _(logits, p):
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    probs = values.softmax(-1)
    before = probs.cumsum(-1) - probs
    drop = before >= p
    drop[:, 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)


@right("top_p_filter")
def _(logits, p):
    out = torch.full_like(logits, float("-inf"))
    for row, line in enumerate(logits):
        probs = line.softmax(0)
        total = 0.0
        for i in sorted(range(len(line)), key=lambda i: (-float(line[i]), i)):
            out[row, i] = line[i]
            total += float(probs[i])
            if total >= p:
                break
    return out


@right("top_p_filter")
def _(logits, p):
    x = logits.double().numpy()
    e = np.exp(x - x.max(-1, keepdims=True))
    probs = e / e.sum(-1, keepdims=True)
    order = np.argsort(-x, -1, kind="stable")
    reached = np.cumsum(np.take_along_axis(probs, order, -1), -1)
    out = np.full_like(x, -np.inf)
    for i in range(len(x)):
        n = int((reached[i] < p - 1e-6).sum()) + 1
        out[i, order[i, :n]] = x[i, order[i, :n]]
    return torch.from_numpy(out).to(logits.dtype)


def _top_p(logits, p, drop):
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    probs = values.softmax(-1)
    return logits.masked_fill(torch.zeros_like(order).bool().scatter(-1, order, drop(probs, p)), -torch.inf)


wrong("top_p_filter", "the one that reaches it goes")(
    lambda logits, p: _top_p(logits, p, lambda probs, p: probs.cumsum(-1) > p)
)
wrong("top_p_filter", "one more than needed")(
    lambda logits, p: _top_p(logits, p, lambda probs, p: (probs.cumsum(-1) - probs).roll(1, -1) >= p)
)
wrong("top_p_filter", "tokens with at least p")(lambda logits, p: _top_p(logits, p, lambda probs, p: probs < p))
wrong("top_p_filter", "not moved back to their positions")(
    lambda logits, p: logits.masked_fill(
        ((s := logits.sort(dim=-1, descending=True).values.softmax(-1)).cumsum(-1) - s) >= p, -torch.inf
    )
)
wrong("top_p_filter", "scattered by gather")(
    lambda logits, p: (lambda order: logits.masked_fill(
        (((s := logits.gather(-1, order).softmax(-1)).cumsum(-1) - s) >= p).gather(-1, order), -torch.inf
    ))(logits.argsort(dim=-1, descending=True, stable=True))
)  # fmt: skip
wrong("top_p_filter", "cumulates logits")(
    lambda logits, p: (lambda order: logits.masked_fill(torch.zeros_like(order).bool().scatter(
        -1, order, ((s := logits.gather(-1, order)).cumsum(-1) - s) >= p), -torch.inf
    ))(logits.argsort(dim=-1, descending=True, stable=True))
)  # fmt: skip
wrong("top_p_filter", "from the least likely on")(
    lambda logits, p: (lambda order: logits.masked_fill(torch.zeros_like(order).bool().scatter(
        -1, order, ((s := logits.gather(-1, order).softmax(-1)).cumsum(-1) - s) >= p), -torch.inf
    ))(logits.argsort(dim=-1, stable=True))
)  # fmt: skip
wrong("top_p_filter", "zeros")(
    lambda logits, p: _top_p(logits, p, lambda probs, p: probs.cumsum(-1) - probs >= p).nan_to_num(neginf=0.0)
)
wrong("top_p_filter", "probabilities instead of logits")(
    lambda logits, p: _top_p(logits, p, lambda probs, p: probs.cumsum(-1) - probs >= p).softmax(-1)
)


@right("cached_step")
def _(q, k, v, keys, values):
    keys, values = torch.cat((keys, k), 2), torch.cat((values, v), 2)
    return F.scaled_dot_product_attention(q, keys, values), keys, values


@right("cached_step")
def _(q, k, v, keys, values):
    keys = torch.concat([keys, k], dim=-2)
    values = torch.concat([values, v], dim=-2)
    w = torch.einsum("bhqd,bhkd->bhqk", q, keys).div(q.shape[-1] ** 0.5).softmax(-1)
    return [torch.einsum("bhqk,bhkd->bhqd", w, values), keys, values]


def _attend(q, keys, values, mask=None):
    s = q @ keys.mT / q.shape[-1] ** 0.5
    return (s if mask is None else s.masked_fill(~mask, -torch.inf)).softmax(-1) @ values


@wrong("cached_step", "attends to the cache only")
def _(q, k, v, keys, values):
    out = _attend(q, keys, values) if keys.shape[2] else torch.zeros_like(v)
    return out, torch.cat([keys, k], 2), torch.cat([values, v], 2)


@wrong("cached_step", "prepended")
def _(q, k, v, keys, values):
    keys, values = torch.cat([k, keys], 2), torch.cat([v, values], 2)
    return _attend(q, keys, values), keys, values


@wrong("cached_step", "keys and values swapped in the result")
def _(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    return _attend(q, keys, values), values, keys


@wrong("cached_step", "the new value twice")
def _(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], 2), torch.cat([values, k], 2)
    return _attend(q, keys, values), keys, values


@wrong("cached_step", "causal from the first key: only the first is seen")
def _(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    return F.scaled_dot_product_attention(q, keys, values, is_causal=True), keys, values


@wrong("cached_step", "returns only the new key and value")
def _(q, k, v, keys, values):
    return _attend(q, torch.cat([keys, k], 2), torch.cat([values, v], 2)), k, v


@wrong("cached_step", "scale missing")
def _(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    return (q @ keys.mT).softmax(-1) @ values, keys, values


def _rope(x, first):
    cos, sin = rope_table(first + x.shape[2], x.shape[3])
    return apply_rope(x, cos[first:].to(x.dtype), sin[first:].to(x.dtype))


def _chunk_mask(queries, past):
    return torch.ones(queries, past + queries).tril(past).bool()


@right("cached_chunk")
def _(q, k, v, keys, values):
    past, new = keys.shape[2], q.shape[2]
    q, keys, values = _rope(q, past), torch.cat([keys, _rope(k, past)], 2), torch.cat([values, v], 2)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=_chunk_mask(new, past)), keys, values


@right("cached_chunk")
def _(q, k, v, keys, values):
    outs = []
    for i in range(q.shape[2]):
        past = keys.shape[2]
        keys = torch.cat([keys, _rope(k[:, :, i : i + 1], past)], 2)
        values = torch.cat([values, v[:, :, i : i + 1]], 2)
        outs.append(_attend(_rope(q[:, :, i : i + 1], past), keys, values))
    return torch.cat(outs, 2), keys, values


def chunk(query_start=None, key_start=None, mask=_chunk_mask, old=False):
    def answer(q, k, v, keys, values):
        past, new = keys.shape[2], q.shape[2]
        q = _rope(q, past if query_start is None else query_start)
        k = _rope(k, past if key_start is None else key_start)
        if old:
            keys = _rope(keys, 0)
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        return _attend(q, keys, values, mask(new, past)), keys, values

    return answer


wrong("cached_chunk", "positions from 0")(chunk(0, 0))
wrong("cached_chunk", "queries from 0")(chunk(0))
wrong("cached_chunk", "keys from 0")(chunk(None, 0))
wrong("cached_chunk", "the cached keys rotated again")(chunk(old=True))
wrong("cached_chunk", "no mask")(chunk(mask=lambda new, past: torch.ones(new, new + past).bool()))
wrong("cached_chunk", "causal from the first key")(
    chunk(mask=lambda new, past: torch.ones(new, new + past).tril().bool())
)
wrong("cached_chunk", "not itself")(
    chunk(mask=lambda new, past: torch.ones(new, new + past).tril(max(past - 1, 0)).bool())
)


@wrong("cached_chunk", "values rotated")
def _(q, k, v, keys, values):
    return chunk()(q, k, _rope(v, keys.shape[2]), keys, values)


@wrong("cached_chunk", "keys returned without rotation")
def _(q, k, v, keys, values):
    return chunk()(q, k, v, keys, values)[0], torch.cat([keys, k], 2), torch.cat([values, v], 2)


@right("greedy_generate")
def _(model, ids, max_new_tokens, eos=2):
    start = ids.shape[1]
    done = torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        if done.all():
            break
        new = model(ids)[:, -1].argmax(-1)
        new[done] = eos
        done = done | (new == eos)
        ids = torch.cat([ids, new[:, None]], 1)
    return ids[:, start:]


@right("greedy_generate")
def _(model, ids, max_new_tokens, eos=2):
    written = torch.zeros(ids.shape[0], 0, dtype=ids.dtype)
    while written.shape[1] < max_new_tokens and not bool((written == eos).any(1).all()):
        new = model(torch.cat([ids, written], 1))[:, -1:].argmax(-1)
        new = torch.where((written == eos).any(1, keepdim=True), eos, new)
        written = torch.cat([written, new], 1)
    return written


def greedy(stop_all=True, pad=True, prompt=False, at=-1, keep_eos=True, one_more=False, watch_prompt=False):
    def answer(model, ids, max_new_tokens, eos=2):
        start = ids.shape[1]
        done = (ids == eos).any(1) if watch_prompt else torch.zeros(len(ids), dtype=torch.bool)
        for _ in range(max_new_tokens + one_more):
            new = model(ids)[:, at].argmax(-1)
            if pad:
                new = torch.where(done, eos, new)
            done |= new == eos
            if not keep_eos and done.all():
                break
            ids = torch.cat([ids, new[:, None]], 1)
            if done.all() if stop_all else done.any():
                break
        return ids if prompt else ids[:, start:]

    return answer


wrong("greedy_generate", "stops when one text ends")(greedy(stop_all=False))
wrong("greedy_generate", "writes on after EOS")(greedy(pad=False))
wrong("greedy_generate", "prompt included")(greedy(prompt=True))
wrong("greedy_generate", "first position")(greedy(at=0))
wrong("greedy_generate", "the last EOS is not kept")(greedy(keep_eos=False))
wrong("greedy_generate", "one more")(greedy(one_more=True))
wrong("greedy_generate", "an EOS in the prompt ends the text")(greedy(watch_prompt=True))
wrong("greedy_generate", "eos is always 2")(
    lambda model, ids, max_new_tokens, eos=2: greedy()(model, ids, max_new_tokens, 2)
)
wrong("greedy_generate", "one token only, padded with EOS")(
    lambda model, ids, max_new_tokens, eos=2: F.pad(
        model(ids)[:, -1:].argmax(-1), (0, max_new_tokens - 1), value=eos)[:, :max_new_tokens]
)  # fmt: skip


@wrong("greedy_generate", "the model sees the newest token only")
def _(model, ids, max_new_tokens, eos=2):
    out, last, done = [], ids, torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        new = torch.where(done, eos, model(last)[:, -1].argmax(-1))
        done = done | (new == eos)
        out.append(new)
        last = new[:, None]
        if done.all():
            break
    return torch.stack(out, 1) if out else ids[:, :0]


@wrong("greedy_generate", "never stops early")
def _(model, ids, max_new_tokens, eos=2):
    start, done = ids.shape[1], torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        new = torch.where(done, eos, model(ids)[:, -1].argmax(-1))
        done = done | (new == eos)
        ids = torch.cat([ids, new[:, None]], 1)
    return ids[:, start:]
