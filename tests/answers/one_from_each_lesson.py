"""An exercise or two from most lessons, answered once more: slips of a word, and the same thing said differently."""

import heapq
import itertools
import math
import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from answers import right, wrong
from tinyomni.rope import apply_rope, rope_table

# ---- 01: best_pair --------------------------------------------------------------------------------------------------


def _counted(words, counts):
    pairs = Counter()
    for word, symbols in words.items():
        for pair in itertools.pairwise(symbols):
            pairs[pair] += counts[word]
    return pairs


def _pair_key(pairs):
    return lambda pair: (-pairs[pair], len("".join(pair)), "".join(pair))


@right("best_pair")
def _(words, counts):
    pairs = _counted(words, counts)
    return heapq.nsmallest(1, pairs, key=_pair_key(pairs))[0]


@right("best_pair")
def _(words, counts):
    best, best_count = None, 0
    for (left, right_), count in _counted(words, counts).items():
        if best is None or count > best_count:
            best, best_count = (left, right_), count
        elif count == best_count:
            text, other = left + right_, best[0] + best[1]
            if len(text) < len(other) or (len(text) == len(other) and text < other):
                best = (left, right_)
    return best


@right("best_pair")
def _(words, counts):
    everything = [p for w, s in words.items() for p in itertools.pairwise(s) for _ in range(counts[w])]
    return sorted(sorted(set(everything), key="".join), key=lambda p: (-everything.count(p), len(p[0] + p[1])))[0]


@wrong("best_pair", "counts the texts of pairs, so that a+bc is ab+c")
def _(words, counts):
    pairs = _counted(words, counts)
    texts = Counter()
    for pair, count in pairs.items():
        texts["".join(pair)] += count
    return min(pairs, key=lambda pair: (-texts["".join(pair)], len("".join(pair)), "".join(pair)))


@wrong("best_pair", "a symbol belongs to one pair only")
def _(words, counts):
    pairs = Counter()
    for word, symbols in words.items():
        index = 0
        while index < len(symbols) - 1:
            pair = (symbols[index], symbols[index + 1])
            pairs[pair] += counts[word]
            index += 2 if symbols[index + 1 : index + 3] == list(pair) else 1
    return min(pairs, key=_pair_key(pairs))


@wrong("best_pair", "the length of the pair, which is always 2")
def _(words, counts):
    pairs = _counted(words, counts)
    return min(pairs, key=lambda pair: (-pairs[pair], len(pair), "".join(pair)))


@wrong("best_pair", "the longest of equals")
def _(words, counts):
    pairs = _counted(words, counts)
    return min(pairs, key=lambda pair: (-pairs[pair], -len("".join(pair)), "".join(pair)))


@wrong("best_pair", "the last in alphabetical order")
def _(words, counts):
    pairs = _counted(words, counts)
    return max(pairs, key=lambda pair: (pairs[pair], -len("".join(pair)), "".join(pair)))


@wrong("best_pair", "letters in bytes")
def _(words, counts):
    pairs = _counted(words, counts)
    return min(pairs, key=lambda pair: (-pairs[pair], len("".join(pair).encode()), "".join(pair)))


# ---- 02: apply_rope_qkv ---------------------------------------------------------------------------------------------


def _turned(x, first, theta):
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(first, first + x.shape[2], dtype=torch.float64), frequencies)
    a, b = x[..., :half].double(), x[..., half:].double()
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1).to(x.dtype)


@right("apply_rope_qkv")
def _(q, k, v, offset=0, theta=10_000.0):
    return _turned(q, offset, theta), _turned(k, offset, theta), v


@right("apply_rope_qkv")
def _(q, k, v, offset=0, theta=10_000.0):
    def turn(x):
        half = x.shape[-1] // 2
        frequencies = theta ** (-2 * torch.arange(half) / x.shape[-1])
        angles = (torch.arange(x.shape[2])[:, None] + offset) * frequencies
        numbers = torch.complex(*(each.float() for each in x.split(half, -1))) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.cat([numbers.real, numbers.imag], -1).to(x.dtype)

    return turn(q), turn(k), v


@right("apply_rope_qkv")
def _(q, k, v, offset=0, theta=10_000.0):
    def turn(x):
        dim = x.shape[-1]
        pairs = []
        for p in range(dim // 2):
            angle = torch.arange(offset, offset + x.shape[-2]).to(x) / theta ** (2 * p / dim)
            pairs.append((x[..., p] * angle.cos() - x[..., p + dim // 2] * angle.sin(),
                          x[..., p + dim // 2] * angle.cos() + x[..., p] * angle.sin()))  # fmt: skip
        return torch.stack([a for a, _ in pairs] + [b for _, b in pairs], dim=-1)

    return [turn(q), turn(k), v]


@wrong("apply_rope_qkv", "keys from 0, queries from the offset")
def _(q, k, v, offset=0, theta=10_000.0):
    return _turned(q, offset, theta), _turned(k, 0, theta), v


@wrong("apply_rope_qkv", "a table of 1024 positions")
def _(q, k, v, offset=0, theta=10_000.0):
    where = torch.arange(offset, offset + q.shape[2]).clamp(max=1023)
    half = q.shape[-1] // 2
    angles = torch.outer(where.double(), theta ** (-torch.arange(half, dtype=torch.float64) / half)).repeat(1, 2)

    def turn(x):
        a, b = x.chunk(2, -1)
        return (x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()).to(x.dtype)

    return turn(q), turn(k), v


@wrong("apply_rope_qkv", "theta of the default")
def _(q, k, v, offset=0, theta=10_000.0):
    return _turned(q, offset, 10_000.0), _turned(k, offset, 10_000.0), v


@wrong("apply_rope_qkv", "the offset counts from 1")
def _(q, k, v, offset=0, theta=10_000.0):
    return _turned(q, offset + 1, theta), _turned(k, offset + 1, theta), v


@wrong("apply_rope_qkv", "offset only where there is one token")
def _(q, k, v, offset=0, theta=10_000.0):
    first = offset if q.shape[2] == 1 else 0
    return _turned(q, first, theta), _turned(k, first, theta), v


@wrong("apply_rope_qkv", "the keys without gradient")
def _(q, k, v, offset=0, theta=10_000.0):
    return _turned(q, offset, theta), _turned(k.detach(), offset, theta), v


# ---- tables of 1024 positions, as in models that are read about ------------------------------------------------------


@wrong("cached_chunk", "a table of 1024 positions")
def _(q, k, v, keys, values):
    past, new = keys.shape[2], q.shape[2]
    cos, sin = (each[past : past + new] for each in rope_table(1024, q.shape[-1]))
    keys, values = torch.cat([keys, apply_rope(k, cos, sin)], 2), torch.cat([values, v], 2)
    seen = torch.ones(new, past + new, dtype=torch.bool).tril(past)
    return F.scaled_dot_product_attention(apply_rope(q, cos, sin), keys, values, seen), keys, values


wrong("causal_mask", "a table of 1024 positions")(
    lambda queries, keys: torch.ones(1024, 1024, dtype=torch.bool).tril()[:keys, :keys][-queries:]
)
wrong("padding_mask", "a table of 1024 positions")(
    lambda lengths, tokens: (torch.arange(1024) < lengths[:, None])[:, :tokens]
)
wrong("speech_masks", "a table of 1024 positions")(
    lambda frames, length: tuple(
        each[:, :length] for each in (torch.arange(1024) < frames[:, None], torch.arange(1024) == frames[:, None])
    )
)

# ---- 03: repeat_kv --------------------------------------------------------------------------------------------------

right("repeat_kv")(lambda k, heads: k[:, torch.arange(heads) // (heads // k.shape[1])])
right("repeat_kv")(
    lambda k, heads: torch.cat([each for key in k.unbind(1) for each in [key[:, None]] * (heads // k.shape[1])], dim=1)
)
right("repeat_kv")(
    lambda k, heads: torch.einsum(
        "bgkd,hg->bhkd", k, torch.eye(k.shape[1]).to(k).repeat_interleave(heads // k.shape[1], 0)
    )
)
right("repeat_kv")(
    lambda k, heads: torch.kron(k.transpose(1, -1).contiguous(), torch.ones(1, 1, 1, heads // k.shape[1]).to(k))
    .transpose(1, -1)
)  # fmt: skip
wrong("repeat_kv", "head h takes key head h modulo their number")(
    lambda k, heads: k[:, torch.arange(heads) % k.shape[1]]
)
wrong("repeat_kv", "always twice")(lambda k, heads: k.repeat_interleave(2, dim=1))
wrong("repeat_kv", "the keys are repeated, not their heads")(
    lambda k, heads: k.repeat_interleave(heads // k.shape[1], dim=2).reshape(k.shape[0], heads, k.shape[2], k.shape[3])
)
wrong("repeat_kv", "the last ones fill up")(
    lambda k, heads: torch.cat([k, k[:, -1:].expand(-1, heads - k.shape[1], -1, -1)], dim=1)
)
wrong("repeat_kv", "a copy without gradient")(
    lambda k, heads: torch.tensor(np.repeat(k.detach().numpy(), heads // k.shape[1], axis=1))
)

# ---- 05: greedy_generate --------------------------------------------------------------------------------------------


@right("greedy_generate")
def _(model, ids, max_new_tokens, eos=2):
    start = ids.shape[1]
    ended = [False] * len(ids)
    for _ in range(max_new_tokens):
        if all(ended):
            break
        best = model(ids)[:, -1].argmax(-1).tolist()
        best = [eos if over else one for over, one in zip(ended, best, strict=True)]
        ended = [over or one == eos for over, one in zip(ended, best, strict=True)]
        ids = torch.hstack([ids, torch.tensor(best)[:, None]])
    return ids[:, start:]


@right("greedy_generate")
def _(model, ids, max_new_tokens, eos=2):
    new = ids[:, :0]
    while new.shape[1] < max_new_tokens and not (new == eos).any(1).all():
        logits = model(torch.cat([ids, new], 1))[:, -1]
        column = logits.max(-1).indices
        column[(new == eos).any(1)] = eos
        new = torch.cat([new, column[:, None]], 1)
    return new


@right("greedy_generate")
def _(model, ids, max_new_tokens, eos=2):
    rows = []
    for row in ids:
        written = []
        while len(written) < max_new_tokens and (not written or written[-1] != eos):
            whole = torch.cat([row, torch.tensor(written, dtype=torch.int64)])
            written.append(model(whole[None])[0, -1].argmax().item())
        rows.append(written)
    width = max(len(each) for each in rows)
    return torch.tensor([each + [eos] * (width - len(each)) for each in rows], dtype=torch.int64).reshape(-1, width)


@wrong("greedy_generate", "an EOS in the prompt ends the text")
def _(model, ids, max_new_tokens, eos=2):
    start = ids.shape[1]
    done = (ids == eos).any(1)
    for _ in range(max_new_tokens):
        if done.all():
            break
        new = model(ids)[:, -1].argmax(-1).masked_fill(done, eos)
        done = done | (new == eos)
        ids = torch.cat([ids, new[:, None]], 1)
    return ids[:, start:]


@wrong("greedy_generate", "only the newest decides whether a text is done")
def _(model, ids, max_new_tokens, eos=2):
    start = ids.shape[1]
    for _ in range(max_new_tokens):
        new = model(ids)[:, -1].argmax(-1)
        ids = torch.cat([ids, new[:, None]], 1)
        if (new == eos).all():
            break
    return ids[:, start:]


@wrong("greedy_generate", "always as many columns as allowed")
def _(model, ids, max_new_tokens, eos=2):
    start = ids.shape[1]
    done = torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        new = model(ids)[:, -1].argmax(-1).masked_fill(done, eos)
        done |= new == eos
        ids = torch.cat([ids, new[:, None]], 1)
    return ids[:, start:]


@wrong("greedy_generate", "EOS is 2 whatever is asked")
def _(model, ids, max_new_tokens, eos=2):
    new = ids[:, :0]
    while new.shape[1] < max_new_tokens and not (new == 2).any(1).all():
        column = model(torch.cat([ids, new], 1))[:, -1].argmax(-1)
        column[(new == 2).any(1)] = 2
        new = torch.cat([new, column[:, None]], 1)
    return new


@wrong("greedy_generate", "stops at the first text that is done")
def _(model, ids, max_new_tokens, eos=2):
    new = ids[:, :0]
    while new.shape[1] < max_new_tokens and not (new == eos).any():
        column = model(torch.cat([ids, new], 1))[:, -1].argmax(-1)
        new = torch.cat([new, column[:, None]], 1)
    return new


@wrong("greedy_generate", "the prompt is extended in place of a copy: its last token is overwritten")
def _(model, ids, max_new_tokens, eos=2):
    new = ids[:, :0]
    while new.shape[1] < max_new_tokens and not (new == eos).any(1).all():
        column = model(torch.cat([ids, new], 1))[:, -1].argmax(-1)
        column[(new == eos).any(1)] = eos
        new = torch.cat([new, column[:, None]], 1)
    if new.numel():
        ids[:, -1] = new[:, -1]
    return new


# ---- 05: top_p_filter -----------------------------------------------------------------------------------------------


@right("top_p_filter")
def _(logits, p):
    result = torch.full_like(logits, -torch.inf)
    for row, scores in enumerate(logits):
        total = 0.0
        probabilities = scores.softmax(-1)
        for index in probabilities.argsort(descending=True, stable=True):
            result[row, index] = scores[index]
            total = total + probabilities[index]
            if total >= p:
                break
    return result


@right("top_p_filter")
def _(logits, p):
    ordered, where = logits.softmax(-1).sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    drop = before >= p
    drop[:, 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(1, where, drop), -torch.inf)


@right("top_p_filter")
def _(logits, p):
    ordered, where = logits.sort(descending=True)
    reached = F.pad(ordered.softmax(-1).cumsum(-1)[:, :-1] >= p, (1, 0))
    kept = torch.where(reached, torch.tensor(-torch.inf, dtype=logits.dtype), ordered)
    return torch.empty_like(logits).scatter_(1, where, kept)


@wrong("top_p_filter", "the one that reaches p goes")
def _(logits, p):
    ordered, where = logits.softmax(-1).sort(descending=True)
    drop = ordered.cumsum(-1) > p
    drop[:, 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(1, where, drop), -torch.inf)


@wrong("top_p_filter", "sorted, and left so")
def _(logits, p):
    ordered = logits.sort(descending=True).values
    probabilities = ordered.softmax(-1)
    return ordered.masked_fill(probabilities.cumsum(-1) - probabilities >= p, -torch.inf)


@wrong("top_p_filter", "gather for scatter")
def _(logits, p):
    ordered, where = logits.softmax(-1).sort(descending=True)
    drop = ordered.cumsum(-1) - ordered >= p
    drop[:, 0] = False
    return logits.masked_fill(drop.gather(1, where), -torch.inf)


@wrong("top_p_filter", "every token whose own probability is at least 1 - p")
def _(logits, p):
    probabilities = logits.softmax(-1)
    keep = (probabilities >= 1 - p) | (probabilities == probabilities.max(-1, keepdim=True).values)
    return logits.masked_fill(~keep, -torch.inf)


@wrong("top_p_filter", "p of the first text for all")
def _(logits, p):
    ordered, where = logits.softmax(-1).sort(descending=True)
    count = int(((ordered.cumsum(-1) - ordered)[0] < p).sum().clamp(min=1))
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter(1, where[:, :count], True)
    return logits.masked_fill(~keep, -torch.inf)


# ---- 07: frame ------------------------------------------------------------------------------------------------------


@right("frame")
def _(wav, size, hop):
    count = wav.shape[1] // hop
    index = torch.arange(count)[:, None] * hop - size // 2 + torch.arange(size)
    inside = (index >= 0) & (index < wav.shape[1])
    return wav[:, index.clamp(0, wav.shape[1] - 1)] * inside


@right("frame")
def _(wav, size, hop):
    padded = F.pad(wav, (size // 2, size // 2))
    windows = F.conv1d(padded[:, None], torch.eye(size).to(wav)[:, None], stride=hop).mT
    return windows[:, : wav.shape[1] // hop]


@right("frame")
def _(wav, size, hop):
    result = wav.new_zeros(wav.shape[0], wav.shape[1] // hop, size)
    for t in range(result.shape[1]):
        begin, end = t * hop - size // 2, t * hop + size // 2
        piece = wav[:, max(begin, 0) : min(end, wav.shape[1])]
        result[:, t, max(-begin, 0) : max(-begin, 0) + piece.shape[1]] = piece
    return result


@wrong("frame", "a negative start counts from the end")
def _(wav, size, hop):
    padded = F.pad(wav, (0, size))
    rows = []
    for t in range(wav.shape[1] // hop):
        row = padded[:, t * hop - size // 2 : t * hop + size // 2]
        rows.append(F.pad(row, (0, size - row.shape[1])))
    return torch.stack(rows, 1)


@wrong("frame", "zeros only before")
def _(wav, size, hop):
    return F.pad(wav, (size // 2, 0)).unfold(1, size, hop)[:, : wav.shape[1] // hop]


@wrong("frame", "reflected at the ends")
def _(wav, size, hop):
    return F.pad(wav[:, None], (size // 2, size // 2), mode="replicate")[:, 0].unfold(1, size, hop)[
        :, : wav.shape[1] // hop
    ]


@wrong("frame", "one frame more")
def _(wav, size, hop):
    return F.pad(wav, (size // 2, size // 2)).unfold(1, size, hop)[:, : wav.shape[1] // hop + 1]


@wrong("frame", "the last frames, not the first")
def _(wav, size, hop):
    return F.pad(wav, (size // 2, size // 2)).unfold(1, size, hop)[:, -(wav.shape[1] // hop) :]


@wrong("frame", "centered half a sample early")
def _(wav, size, hop):
    return F.pad(wav, (size // 2 + 1, size)).unfold(1, size, hop)[:, : wav.shape[1] // hop]


# ---- 08: remaining_tokens -------------------------------------------------------------------------------------------


@right("remaining_tokens")
def _(image, samples, text_tokens, ctx_len=512):
    audio = math.ceil((samples // 160) / 4)
    if 4 * audio > ctx_len:
        raise ValueError(f"expected at most {ctx_len // 4} audio tokens, got {audio}")
    left = ctx_len - sum((bool(image), audio, text_tokens))
    if left < 0:
        raise ValueError(f"{-left} tokens too many")
    return left


@right("remaining_tokens")
def _(image, samples, text_tokens, ctx_len=512):
    audio, rest = divmod(samples // 160, 4)
    audio += rest > 0
    prompt = (1 if image else 0) + audio + text_tokens
    if audio > ctx_len // 4 or prompt > ctx_len:
        raise ValueError("too long")
    return ctx_len - prompt


@right("remaining_tokens")
def _(image, samples, text_tokens, ctx_len=512):
    class TooLong(ValueError):
        """A ValueError, too."""

    audio = len(range(0, len(range(160, samples + 1, 160)), 4))
    if audio > ctx_len / 4:
        raise TooLong(audio)
    if (left := ctx_len - int(image) - audio - text_tokens) < 0:
        raise TooLong(left)
    return left


def _remaining(frames, limit, fits=lambda prompt, ctx_len: prompt <= ctx_len, error=ValueError):
    def answer(image, samples, text_tokens, ctx_len=512):
        audio = frames(samples)
        prompt = int(image) + audio + text_tokens
        if audio > limit(ctx_len) or not fits(prompt, ctx_len):
            raise error("too long")
        return ctx_len - prompt

    return answer


wrong("remaining_tokens", "rounded once, at the end")(_remaining(lambda n: -(-n // 640), lambda c: c // 4))
wrong("remaining_tokens", "mel frames rounded up")(
    _remaining(lambda n: math.ceil(math.ceil(n / 160) / 4), lambda c: c // 4)
)
wrong("remaining_tokens", "rounded to the nearest")(_remaining(lambda n: round(n // 160 / 4), lambda c: c // 4))
wrong("remaining_tokens", "0 tokens left is an error")(
    _remaining(lambda n: -(-(n // 160) // 4), lambda c: c // 4, lambda prompt, ctx_len: prompt < ctx_len)
)
wrong("remaining_tokens", "a quarter may not be reached")(
    _remaining(lambda n: -(-(n // 160) // 4), lambda c: c // 4 - 1)
)
wrong("remaining_tokens", "128 audio tokens, whatever the context")(
    _remaining(lambda n: -(-(n // 160) // 4), lambda c: 128)
)
wrong("remaining_tokens", "an assertion")(
    _remaining(lambda n: -(-(n // 160) // 4), lambda c: c // 4, error=AssertionError)
)
wrong("remaining_tokens", "half of the context for audio")(_remaining(lambda n: -(-(n // 160) // 4), lambda c: c // 2))


@wrong("remaining_tokens", "the image takes part of the audio's quarter")
def _(image, samples, text_tokens, ctx_len=512):
    audio = -(-(samples // 160) // 4)
    if audio + image > ctx_len // 4 or image + audio + text_tokens > ctx_len:
        raise ValueError("too long")
    return ctx_len - image - audio - text_tokens


# ---- 09: expire_codes -----------------------------------------------------------------------------------------------


@right("expire_codes")
def _(codebook, usage, x, threshold=0.1):
    dead = usage < threshold
    point = (dead.cumsum(0) - 1).clamp(min=0) % len(x)
    return torch.where(dead[:, None], x[point], codebook), torch.where(dead, torch.ones_like(usage), usage)


@right("expire_codes")
def _(codebook, usage, x, threshold=0.1):
    points = itertools.cycle(x)
    rows, used = [], []
    for entry, often in zip(codebook, usage, strict=True):
        rows.append(next(points) if often < threshold else entry)
        used.append(torch.ones_like(often) if often < threshold else often)
    return torch.stack(rows), torch.stack(used)


@right("expire_codes")
def _(codebook, usage, x, threshold=0.1):
    dead = torch.nonzero(usage < threshold)[:, 0]
    repeated = x.repeat(len(dead) // len(x) + 1, 1)[: len(dead)]
    return codebook.index_copy(0, dead, repeated), usage.index_fill(0, dead, 1.0)


def _expire(dead, point, reset=1.0, copy=True):
    def answer(codebook, usage, x, threshold=0.1):
        gone = dead(usage, threshold).nonzero()[:, 0].tolist()
        if copy:
            codebook, usage = codebook.clone(), usage.clone()
        for number, entry in enumerate(gone):
            codebook[entry] = x[point(number, entry, len(x), len(gone))]
            usage[entry] = reset
        return codebook, usage

    return answer


wrong("expire_codes", "the threshold is dead, too")(_expire(lambda u, t: u <= t, lambda n, e, x, g: n % x))
wrong("expire_codes", "a point by the entry's own number")(_expire(lambda u, t: u < t, lambda n, e, x, g: e % x))
wrong("expire_codes", "the last point again, when they run out")(
    _expire(lambda u, t: u < t, lambda n, e, x, g: min(n, x - 1))
)
wrong("expire_codes", "from the last dead entry on")(_expire(lambda u, t: u < t, lambda n, e, x, g: (g - 1 - n) % x))
wrong("expire_codes", "usage reset to 0")(_expire(lambda u, t: u < t, lambda n, e, x, g: n % x, reset=0.0))
wrong("expire_codes", "in place")(_expire(lambda u, t: u < t, lambda n, e, x, g: n % x, copy=False))
wrong("expire_codes", "only what is never used")(_expire(lambda u, t: u == 0, lambda n, e, x, g: n % x))
wrong("expire_codes", "the share of all uses")(_expire(lambda u, t: u / u.sum() < t, lambda n, e, x, g: n % x))
wrong("expire_codes", "backwards when the points run out")(
    _expire(lambda u, t: u < t, lambda n, e, x, g: n % x if n // x % 2 == 0 else x - 1 - n % x)
)

# ---- 11: overlap_add ------------------------------------------------------------------------------------------------


def _added(pieces, hop, window, weight, scale, begin=lambda size: size // 2):
    size = len(window)
    total = pieces.new_zeros((len(pieces) - 1) * hop + size)
    divisor = torch.zeros_like(total)
    for j, piece in enumerate(pieces):
        total[j * hop : j * hop + size] += piece * weight(window)
        divisor[j * hop : j * hop + size] += scale(window)
    first = begin(size)
    length = (len(pieces) - 1) * hop
    return total[first : first + length] / divisor[first : first + length]


@right("overlap_add")
def _(pieces, hop, window):
    return _added(pieces, hop, window, lambda w: w, lambda w: w**2)


@right("overlap_add")
def _(pieces, hop, window):
    columns, size = pieces.shape
    length = (columns - 1) * hop + size

    def fold(rows):
        return F.fold(rows.mT[None], (1, length), (1, size), stride=(1, hop)).flatten()

    middle = slice(size // 2, size // 2 + (columns - 1) * hop)
    return fold(pieces * window)[middle] / fold((window * window).expand(columns, -1))[middle]


@right("overlap_add")
def _(pieces, hop, window):
    columns, size = pieces.shape
    where = (torch.arange(columns)[:, None] * hop + torch.arange(size)).flatten()
    total = torch.zeros((columns - 1) * hop + size, dtype=pieces.dtype)
    sound = total.index_add(0, where, (pieces * window).flatten())
    squares = total.index_add(0, where, window.square().repeat(columns))
    return (sound / squares.clamp(min=1e-12))[size // 2 :][: (columns - 1) * hop]


wrong("overlap_add", "divided by the sum of the windows")(
    lambda pieces, hop, window: _added(pieces, hop, window, lambda w: w, lambda w: w)
)
wrong("overlap_add", "not windowed again")(
    lambda pieces, hop, window: _added(pieces, hop, window, torch.ones_like, lambda w: w**2)
)
wrong("overlap_add", "begins one sample late")(
    lambda pieces, hop, window: _added(pieces, hop, window, lambda w: w, lambda w: w**2, lambda size: size // 2 + 1)
)
wrong("overlap_add", "begins one hop late")(
    lambda pieces, hop, window: (lambda y: F.pad(y, (0, (len(pieces) - 1) * hop - len(y))))(
        _added(pieces, hop, window, lambda w: w, lambda w: w**2, lambda size: hop)
    )
)
wrong("overlap_add", "windowed backwards")(
    lambda pieces, hop, window: _added(pieces, hop, window, lambda w: w.flip(0), lambda w: w.flip(0) ** 2)
)

# ---- 12: atomic_save ------------------------------------------------------------------------------------------------


@right("atomic_save")
def _(path, data):
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file)
    os.replace(name, path)


@right("atomic_save")
def _(path, data):
    beside = path.with_name(path.name + ".partial")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    beside.rename(path)


@right("atomic_save")
def _(path, data):
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.rename(file.name, path)
    except OSError:
        os.unlink(file.name)
        raise


@right("atomic_save")
def _(path, data):
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder, "new")
        with new.open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        new.replace(path)


@wrong("atomic_save", "fsync before the buffer is flushed")
def _(path, data):
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    beside.replace(path)


@wrong("atomic_save", "renamed inside of the with, before fsync")
def _(path, data):
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(data)
        beside.replace(path)
        file.flush()
        os.fsync(file.fileno())


@wrong("atomic_save", "flush, and no fsync")
def _(path, data):
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
    beside.replace(path)


@wrong("atomic_save", "the old file is removed first")
def _(path, data):
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.unlink(missing_ok=True)
    beside.rename(path)


@wrong("atomic_save", "copied over it, not renamed")
def _(path, data):
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.write_bytes(beside.read_bytes())
    beside.unlink()


@wrong("atomic_save", "the error of a full disk is swallowed")
def _(path, data):
    beside = path.with_suffix(".tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)


@wrong("atomic_save", "a backup stays")
def _(path, data):
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        Path(f"{path}.bak").write_bytes(path.read_bytes())
    beside.replace(path)


@wrong("atomic_save", "the temporary file is in the folder for temporary files")
def _(path, data):
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


# ---- 12: check_finite -----------------------------------------------------------------------------------------------


@right("check_finite")
def _(where, values):
    values = values.detach().cpu().numpy().ravel()
    bad = [v for v in values.tolist() if not math.isfinite(v)]
    if bad:
        nans = sum(v != v for v in bad)
        raise RuntimeError(f"Numerical instability in {where}: NaN={nans}, Inf={len(bad) - nans}")


@right("check_finite")
def _(where, values):
    if not torch.isfinite(values).all():
        raise RuntimeError(
            f"Numerical instability in {where}: NaN={torch.isnan(values).sum()}, Inf={torch.isinf(values).sum()}"
        )


@right("check_finite")
def _(where, values):
    counts = {"NaN": (values != values).sum().item(), "Inf": (values.abs() == torch.inf).sum().item()}
    if any(counts.values()):
        raise RuntimeError(f"Numerical instability in {where}: " + ", ".join(f"{k}={v}" for k, v in counts.items()))


def _finite(nan=torch.isnan, inf=torch.isinf, error=RuntimeError, test=None):
    def answer(where, values):
        nans, infs = int(nan(values).sum()), int(inf(values).sum())
        if test(values) if test else nans or infs:
            raise error(f"Numerical instability in {where}: NaN={nans}, Inf={infs}")

    return answer


wrong("check_finite", "only plus infinity")(_finite(inf=torch.isposinf))
wrong("check_finite", "NaN and infinity together")(_finite(nan=lambda x: ~x.isfinite()))
wrong("check_finite", "a ValueError")(_finite(error=ValueError))
wrong("check_finite", "the sum is tested: large numbers overflow")(_finite(test=lambda x: not x.sum().isfinite()))
wrong("check_finite", "only if there is NaN")(_finite(test=lambda x: x.isnan().any()))
wrong("check_finite", "the mean is tested")(_finite(test=lambda x: x.mean().isnan() or x.mean().isinf()))
wrong("check_finite", "only the first row")(_finite(test=lambda x: not x[:1].isfinite().all()))

# ---- 13: bigram_loss ------------------------------------------------------------------------------------------------


@right("bigram_loss")
def _(train, test, vocab, pad=0):
    follows, before = Counter(), Counter()
    for line in train.tolist():
        for a, b in itertools.pairwise(line):
            if pad not in (a, b):
                follows[a, b] += 1
                before[a] += 1
    losses = [
        -math.log((follows[a, b] + 1) / (before[a] + vocab))
        for line in test.tolist()
        for a, b in itertools.pairwise(line)
        if pad not in (a, b)
    ]
    return torch.tensor(sum(losses) / len(losses) if losses else math.nan)


@right("bigram_loss")
def _(train, test, vocab, pad=0):
    a, b = train[:, :-1], train[:, 1:]
    real = (a != pad) & (b != pad)
    table = torch.bincount((a * vocab + b)[real], minlength=vocab * vocab).reshape(vocab, vocab).double() + 1
    surprise = -(table / table.sum(1, keepdim=True)).log()
    c, d = test[:, :-1], test[:, 1:]
    return surprise[c, d][(c != pad) & (d != pad)].mean().float()


@right("bigram_loss")
def _(train, test, vocab, pad=0):
    one = F.one_hot(train, vocab).float() * (train != pad)[..., None]
    table = torch.einsum("lta,ltb->ab", one[:, :-1], one[:, 1:]) + 1
    logs = table.log() - table.sum(1, keepdim=True).log()
    return F.nll_loss(logs[test[:, :-1]].flatten(0, 1), test[:, 1:].flatten(), ignore_index=pad)


def _bigram(train, test, vocab, pad, *, count_of=None, smooth=1.0, real=None, flat=False, mean=None):
    if flat:
        train = train[train != pad][None]
    a, b = train[:, :-1], train[:, 1:]
    keep = (a != pad) & (b != pad) if real is None else real(a, b, pad)
    table = torch.zeros(vocab, vocab).index_put((a[keep], b[keep]), torch.ones(int(keep.sum())), accumulate=True)
    below = table.sum(1) if count_of is None else count_of(train, table, vocab, pad)
    p = (table + smooth) / (below[:, None] + smooth * vocab)
    c, d = test[:, :-1], test[:, 1:]
    losses, counted = -p[c, d].log(), (c != pad) & (d != pad)
    return mean(losses, counted) if mean else losses[counted].mean()


wrong("bigram_loss", "the last tokens of lines count as predecessors")(
    lambda train, test, vocab, pad=0: _bigram(
        train, test, vocab, pad, count_of=lambda t, c, v, p: torch.bincount(t[t != p], minlength=v).float()
    )
)
wrong("bigram_loss", "from the end of a line to the next line")(
    lambda train, test, vocab, pad=0: _bigram(train, test, vocab, pad, flat=True)
)
wrong("bigram_loss", "padding is counted as a follower")(
    lambda train, test, vocab, pad=0: _bigram(train, test, vocab, pad, real=lambda a, b, p: a != p)
)
wrong("bigram_loss", "a tenth added")(lambda train, test, vocab, pad=0: _bigram(train, test, vocab, pad, smooth=0.1))
wrong("bigram_loss", "a mean of the lines' means")(
    lambda train, test, vocab, pad=0: _bigram(
        train, test, vocab, pad, mean=lambda x, m: ((x * m).sum(1) / m.sum(1)).nanmean()
    )
)
wrong("bigram_loss", "in bits")(lambda train, test, vocab, pad=0: _bigram(train, test, vocab, pad) / math.log(2))
wrong("bigram_loss", "the tokens before are evaluated")(
    lambda train, test, vocab, pad=0: _bigram(train.flip(1), test.flip(1), vocab, pad)
)
wrong("bigram_loss", "padding is 0 whatever is asked")(lambda train, test, vocab, pad=0: _bigram(train, test, vocab, 0))

# ---- 14: recall_at_k ------------------------------------------------------------------------------------------------

right("recall_at_k")(
    lambda logits, targets, k=1: float(np.mean([
        int(t) in np.argsort(-row, kind="stable")[:k] for row, t in zip(logits.numpy(), targets, strict=True)
    ]))
)  # fmt: skip
right("recall_at_k")(
    lambda logits, targets, k=1: (
        (logits.argsort(dim=1, descending=True, stable=True)[:, :k] == targets[:, None]).any(1).double().mean().item()
    )
)
right("recall_at_k")(
    lambda logits, targets, k=1: (
        sum(sorted(row, reverse=True).index(row[t]) < k
            for row, t in zip(logits.tolist(), targets.tolist(), strict=True)) / len(targets)
    )
)  # fmt: skip
wrong("recall_at_k", "captions that find their image")(
    lambda logits, targets, k=1: (
        (logits.topk(min(k, len(logits)), dim=0).indices[:, targets] == torch.arange(len(logits))).any(0).float().mean()
        .item()
    )
)  # fmt: skip
wrong("recall_at_k", "the targets are the diagonal")(
    lambda logits, targets, k=1: (
        (logits.topk(min(k, logits.shape[1]), 1).indices == torch.arange(len(logits))[:, None]).any(1).float().mean()
        .item()
    )
)  # fmt: skip
wrong("recall_at_k", "divided by k")(
    lambda logits, targets, k=1: (
        (logits.topk(min(k, logits.shape[1]), 1).indices == targets[:, None]).float().mean().item()
    )
)
wrong("recall_at_k", "divided by the captions")(
    lambda logits, targets, k=1: (
        (logits.topk(min(k, logits.shape[1]), 1).indices == targets[:, None]).any(1).float().sum().item()
        / logits.shape[1]
    )
)
wrong("recall_at_k", "a percentage")(
    lambda logits, targets, k=1: (
        100 * (logits.topk(min(k, logits.shape[1]), 1).indices == targets[:, None]).any(1).float().mean().item()
    )
)
wrong("recall_at_k", "a tensor")(
    lambda logits, targets, k=1: (
        (logits.topk(min(k, logits.shape[1]), 1).indices == targets[:, None]).any(1).float().mean()
    )
)

# ---- 15: ctc_forward ------------------------------------------------------------------------------------------------


@right("ctc_forward")
def _(log_probs, text):
    symbols = [0]
    for each in text.tolist():
        symbols += [each, 0]
    alpha = [log_probs[0, symbols[s]].exp() if s < 2 else log_probs.new_zeros(()) for s in range(len(symbols))]
    for row in log_probs[1:]:
        new = []
        for s, symbol in enumerate(symbols):
            ways = alpha[s]
            if s >= 1:
                ways = ways + alpha[s - 1]
            if s >= 2 and symbol != 0 and symbol != symbols[s - 2]:
                ways = ways + alpha[s - 2]
            new.append(ways * row[symbol].exp())
        alpha = new
    return -sum(alpha[-2:]).log()


@right("ctc_forward")
def _(log_probs, text):
    symbols = torch.zeros(2 * len(text) + 1, dtype=torch.int64)
    symbols[1::2] = text
    size = len(symbols)
    move = torch.eye(size) + torch.eye(size).roll(1, 1).triu(1)
    for s in range(2, size):
        if symbols[s] != 0 and symbols[s] != symbols[s - 2]:
            move[s - 2, s] = 1
    p = log_probs.exp()[:, symbols]
    move = move.to(p)
    alpha = p[0] * (torch.arange(size) < 2)
    for row in p[1:]:
        alpha = (alpha @ move) * row
    return -alpha[-2:].sum().log()


@right("ctc_forward")
def _(log_probs, text):
    symbols = [0]
    for each in text.tolist():
        symbols += [each, 0]
    alpha = {s: log_probs[0, symbols[s]] for s in range(min(2, len(symbols)))}
    for row in log_probs[1:]:
        new = {}
        for s, symbol in enumerate(symbols):
            skip = symbol != 0 and s >= 2 and symbol != symbols[s - 2]
            ways = [alpha[b] for b in (s, s - 1, s - 2)[: 3 if skip else 2] if b in alpha]
            if ways:
                new[s] = torch.stack(ways).logsumexp(0) + row[symbol]
        alpha = new
    ends = [alpha[s] for s in (len(symbols) - 1, len(symbols) - 2) if s in alpha]
    if not ends:
        return torch.tensor(torch.inf, dtype=log_probs.dtype)
    return -torch.stack(ends).logsumexp(0)


def _forward(log_probs, text, *, start=2, ends=2, skip=lambda s, z: s[z] != 0 and s[z] != s[z - 2], join=sum):
    symbols = [0]
    for each in text.tolist():
        symbols += [each, 0]
    zero = log_probs.new_zeros(())
    alpha = [log_probs[0, symbols[s]].exp() if s < start else zero for s in range(len(symbols))]
    for row in log_probs[1:]:
        new = []
        for s, symbol in enumerate(symbols):
            ways = [alpha[s]] + ([alpha[s - 1]] if s else [])
            if s >= 2 and skip(symbols, s):
                ways.append(alpha[s - 2])
            new.append(join(ways) * row[symbol].exp())
        alpha = new
    return -sum(alpha[-ends:]).log()


wrong("ctc_forward", "begins with a blank")(lambda p, t: _forward(p, t, start=1))
wrong("ctc_forward", "ends with a blank")(lambda p, t: _forward(p, t, ends=1))
wrong("ctc_forward", "ends with one of three")(lambda p, t: _forward(p, t, ends=3))
wrong("ctc_forward", "skips between equal characters")(lambda p, t: _forward(p, t, skip=lambda s, z: s[z] != 0))
wrong("ctc_forward", "skips a character")(lambda p, t: _forward(p, t, skip=lambda s, z: s[z] != s[z - 2] or s[z] == 0))
wrong("ctc_forward", "never skips")(lambda p, t: _forward(p, t, skip=lambda s, z: False))
wrong("ctc_forward", "compared with the symbol before")(
    lambda p, t: _forward(p, t, skip=lambda s, z: s[z] != 0 and s[z] != s[z - 1])
)
wrong("ctc_forward", "the best path")(lambda p, t: _forward(p, t, join=lambda ways: torch.stack(ways).max()))
wrong("ctc_forward", "for each character")(lambda p, t: _forward(p, t) / len(t))
wrong("ctc_forward", "for each audio token")(lambda p, t: _forward(p, t) / len(p))
wrong("ctc_forward", "no path gives 1000")(lambda p, t: _forward(p, t).clamp(max=1000))

# ---- 16: kmeans_step ------------------------------------------------------------------------------------------------


@right("kmeans_step")
def _(x, centroids):
    nearest = torch.cdist(x, centroids).argmin(1)
    return torch.stack(
        [x[nearest == c].mean(0) if (nearest == c).any() else centroids[c] for c in range(len(centroids))]
    )


@right("kmeans_step")
def _(x, centroids):
    nearest = (x[:, None] - centroids[None]).pow(2).sum(-1).min(1).indices
    chosen = F.one_hot(nearest, len(centroids)).to(x)
    count = chosen.sum(0)[:, None]
    return torch.where(count > 0, chosen.mT @ x / count.clamp(min=1), centroids)


@right("kmeans_step")
def _(x, centroids):
    rows = [[] for _ in centroids]
    for row in x:
        rows[min(range(len(centroids)), key=lambda c: float((row - centroids[c]).norm()))].append(row)
    return torch.stack([sum(each) / len(each) if each else old for each, old in zip(rows, centroids, strict=True)])


def _kmeans(distance, move):
    def answer(x, centroids):
        nearest = distance(x, centroids).argmin(1)
        return torch.stack([move(x[nearest == c], centroids[c]) for c in range(len(centroids))])

    return answer


def _mean_or(rows, old):
    return rows.mean(0) if len(rows) else old


wrong("kmeans_step", "by the dot product")(_kmeans(lambda x, c: -x @ c.mT, _mean_or))
wrong("kmeans_step", "by the sum of the differences")(_kmeans(lambda x, c: torch.cdist(x, c, p=1), _mean_or))
wrong("kmeans_step", "by the cosine")(_kmeans(lambda x, c: -F.normalize(x, dim=1) @ F.normalize(c, dim=1).mT, _mean_or))
wrong("kmeans_step", "by the largest difference")(_kmeans(lambda x, c: torch.cdist(x, c, p=torch.inf), _mean_or))
wrong("kmeans_step", "the median")(_kmeans(torch.cdist, lambda rows, old: rows.median(0).values if len(rows) else old))
wrong("kmeans_step", "NaN without rows")(_kmeans(torch.cdist, lambda rows, old: rows.mean(0)))
wrong("kmeans_step", "0 without rows")(_kmeans(torch.cdist, lambda rows, old: rows.sum(0) / max(len(rows), 1)))
wrong("kmeans_step", "the old centroid is one of the rows")(
    _kmeans(torch.cdist, lambda rows, old: torch.cat([rows, old[None]]).mean(0))
)


@wrong("kmeans_step", "in place")
def _(x, centroids):
    nearest = torch.cdist(x, centroids).argmin(1)
    for c in range(len(centroids)):
        if (nearest == c).any():
            centroids[c] = x[nearest == c].mean(0)
    return centroids


@wrong("kmeans_step", "assigned again after each move")
def _(x, centroids):
    centroids = centroids.clone()
    for c in range(len(centroids)):
        mine = torch.cdist(x, centroids).argmin(1) == c
        if mine.any():
            centroids[c] = x[mine].mean(0)
    return centroids


# ---- 17: make_labels ------------------------------------------------------------------------------------------------


@right("make_labels")
def _(ids, prompts, lengths, ignore_index=-100):
    labels = torch.full_like(ids, ignore_index)
    for row, (begin, end) in enumerate(zip(prompts.tolist(), lengths.tolist(), strict=True)):
        labels[row, begin - 1 : end - 1] = ids[row, begin:end]
    return labels


@right("make_labels")
def _(ids, prompts, lengths, ignore_index=-100):
    position = torch.arange(1, ids.shape[1] + 1)
    answer = (position >= prompts[:, None]) & (position < lengths[:, None])
    return torch.where(answer, ids.roll(-1, 1), ignore_index)


@right("make_labels")
def _(ids, prompts, lengths, ignore_index=-100):
    rows = []
    for row, p, n in zip(ids.tolist(), prompts.tolist(), lengths.tolist(), strict=True):
        rows.append([row[t + 1] if p <= t + 1 < n else ignore_index for t in range(len(row))])
    return torch.tensor(rows)


def _labels(inside, shift=1):
    def answer(ids, prompts, lengths, ignore_index=-100):
        t = torch.arange(ids.shape[1])
        following = F.pad(ids[:, shift:], (0, shift), value=ignore_index)
        return torch.where(inside(t, prompts[:, None], lengths[:, None]), following, ignore_index)

    return answer


wrong("make_labels", "without shift")(_labels(lambda t, p, n: (t >= p) & (t < n), shift=0))
wrong("make_labels", "the first token of the answer is missing")(_labels(lambda t, p, n: (t >= p) & (t < n - 1)))
wrong("make_labels", "EOS is missing")(_labels(lambda t, p, n: (t >= p - 1) & (t < n - 2)))
wrong("make_labels", "the first padding, too")(_labels(lambda t, p, n: (t >= p - 1) & (t < n)))
wrong("make_labels", "the prompt's last token, too")(_labels(lambda t, p, n: (t >= p - 2) & (t < n - 1)))
wrong("make_labels", "the lengths are those of the answers")(_labels(lambda t, p, n: (t >= p - 1) & (t < p + n - 1)))
wrong("make_labels", "the shortest prompt for all")(_labels(lambda t, p, n: (t >= p.min() - 1) & (t < n - 1)))


@wrong("make_labels", "padding found by its id")
def _(ids, prompts, lengths, ignore_index=-100):
    t = torch.arange(ids.shape[1])
    following = F.pad(ids[:, 1:], (0, 1), value=0)
    return torch.where((t >= prompts[:, None] - 1) & (following != 0), following, ignore_index)


@wrong("make_labels", "−100 whatever is asked")
def _(ids, prompts, lengths, ignore_index=-100):
    return _labels(lambda t, p, n: (t >= p - 1) & (t < n - 1))(ids, prompts, lengths)


# ---- 18: answer_within ----------------------------------------------------------------------------------------------


def _written(thinker, ids, new_tokens):
    for _ in range(new_tokens):
        ids = torch.cat([ids, thinker(ids)[:, -1:].argmax(dim=-1)], dim=1)
    return ids


@right("answer_within")
def _(thinker, ids, new_tokens, ctx_len=512):
    if ids.shape[1] + new_tokens > ctx_len:
        raise ValueError(f"prompt {ids.shape[1]} + answer {new_tokens} > {ctx_len}")
    return _written(thinker, ids, new_tokens)


@right("answer_within")
def _(thinker, ids, new_tokens, ctx_len=512):
    batch, tokens = ids.shape
    if not tokens <= ctx_len - new_tokens:
        raise ValueError
    whole = ids.new_zeros(batch, tokens + new_tokens)
    whole[:, :tokens] = ids
    for t in range(tokens, tokens + new_tokens):
        whole[:, t] = thinker(whole[:, :t])[:, -1].argmax(-1)
    return whole


@right("answer_within")
def _(thinker, ids, new_tokens, ctx_len=512):
    if len(ids[0]) + new_tokens >= ctx_len + 1:
        raise ValueError(f"at most {ctx_len}")
    new = []
    for _ in range(new_tokens):
        new.append(thinker(torch.hstack([ids, *new])).argmax(-1)[:, [-1]])
    return torch.hstack([ids, *new])


def _within(too_long):
    def answer(thinker, ids, new_tokens, ctx_len=512):
        if too_long(ids, new_tokens, ctx_len):
            raise ValueError("too long")
        return _written(thinker, ids, new_tokens)

    return answer


wrong("answer_within", "exactly the context is refused")(_within(lambda i, n, c: i.shape[1] + n >= c))
wrong("answer_within", "the texts' tokens together")(_within(lambda i, n, c: i.numel() + n > c))
wrong("answer_within", "the batch instead of the tokens")(_within(lambda i, n, c: i.shape[0] + n > c))
wrong("answer_within", "the last token is not read")(_within(lambda i, n, c: i.shape[1] + n - 1 > c))
wrong("answer_within", "512 whatever is asked")(_within(lambda i, n, c: i.shape[1] + n > 512))
wrong("answer_within", "each text's answer counts")(_within(lambda i, n, c: i.shape[1] + n * len(i) > c))


@wrong("answer_within", "checked when it is too late")
def _(thinker, ids, new_tokens, ctx_len=512):
    ids = _written(thinker, ids, new_tokens)
    if ids.shape[1] > ctx_len:
        raise ValueError("too long")
    return ids


@wrong("answer_within", "checked at each token")
def _(thinker, ids, new_tokens, ctx_len=512):
    for _ in range(new_tokens):
        if ids.shape[1] >= ctx_len:
            raise ValueError("too long")
        ids = _written(thinker, ids, 1)
    return ids


@wrong("answer_within", "a shorter answer instead of an error")
def _(thinker, ids, new_tokens, ctx_len=512):
    return _written(thinker, ids, min(new_tokens, ctx_len - ids.shape[1]))


# ---- 20: patch_activation -------------------------------------------------------------------------------------------


@right("patch_activation")
def _(model, x, source, layer, position):
    for each in model[: layer + 1]:
        source = each(source)
    for number, each in enumerate(model):
        x = each(x)
        if number == layer:
            x = torch.cat([x[:, :position], source[:, position : position + 1], x[:, position + 1 :]], dim=1)
    return x


@right("patch_activation")
def _(model, x, source, layer, position):
    kept = {}

    def keep(module, inputs, output):
        kept["output"] = output

    def put(module, inputs, output):
        output = output.clone()
        output[:, position] = kept["output"][:, position]
        return output

    for hook, batch in ((keep, source), (put, x)):
        handle = model[layer].register_forward_hook(hook)
        try:
            result = model(batch)
        finally:
            handle.remove()
    return result


@right("patch_activation")
def _(model, x, source, layer, position):
    below, above = model[: layer + 1], model[layer + 1 :]
    here = (torch.arange(x.shape[1]) == position)[:, None]
    return above(torch.where(here, below(source), below(x)))


def _patched(model, x, source, layer, position, *, kept=None, put=None):
    inner = model[: layer + 1](source) if kept is None else kept(model, source, layer)
    x = model[: layer + 1](x)
    if put:
        return model[layer + 1 :](put(x, inner, position))
    x = x.clone()
    x[:, position] = inner[:, position]
    return model[layer + 1 :](x)


wrong("patch_activation", "the layer's input")(
    lambda m, x, s, layer, p: _patched(m, x, s, layer, p, kept=lambda m, s, n: m[:n](s))
)
wrong("patch_activation", "the model's output")(
    lambda m, x, s, layer, p: _patched(m, x, s, layer, p, kept=lambda m, s, n: m(s))
)
wrong("patch_activation", "all positions")(
    lambda m, x, s, layer, p: _patched(m, x, s, layer, p, put=lambda x, inner, p: inner)
)
wrong("patch_activation", "the first text only")(
    lambda m, x, s, layer, p: _patched(
        m, x, s, layer, p, put=lambda x, i, p: torch.cat([torch.cat([x[:1, :p], i[:1, p : p + 1], x[:1, p + 1 :]], 1),
                                                          x[1:]])
    )
)  # fmt: skip
wrong("patch_activation", "the first text's activation for all")(
    lambda m, x, s, layer, p: _patched(
        m, x, s, layer, p, put=lambda x, i, p: torch.where((torch.arange(x.shape[1]) == p)[:, None], i[:1], x)
    )
)
wrong("patch_activation", "all positions from there on")(
    lambda m, x, s, layer, p: _patched(m, x, s, layer, p, put=lambda x, i, p: torch.cat([x[:, :p], i[:, p:]], 1))
)
wrong("patch_activation", "added")(
    lambda m, x, s, layer, p: _patched(
        m, x, s, layer, p, put=lambda x, i, p: x + i * (torch.arange(x.shape[1]) == p)[:, None]
    )
)
wrong("patch_activation", "the layer after it")(
    lambda m, x, s, layer, p: _patched(m, x, s, min(layer + 1, len(m) - 1), p)
)
wrong("patch_activation", "the one before the last, if -1 is meant")(
    lambda m, x, s, layer, p: _patched(m, x, s, layer - 1 if layer else 0, p)
)


@wrong("patch_activation", "the hook that keeps stays")
def _(model, x, source, layer, position):
    kept = []
    model[layer].register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
    model(source)

    def put(module, inputs, output):
        return torch.where((torch.arange(output.shape[1]) == position)[:, None], kept[0], output)

    handle = model[layer].register_forward_hook(put)
    result = model(x)
    handle.remove()
    return result


# ---- 21: compute_optimal --------------------------------------------------------------------------------------------


@right("compute_optimal")
def _(parameters, tokens, losses, budgets):
    result = []
    for budget in budgets.tolist():
        best = -1
        for run, (n, d) in enumerate(zip(parameters.tolist(), tokens.tolist(), strict=True)):
            if 6 * n * d <= budget and (best < 0 or losses[run] < losses[best]):
                best = run
        result.append(best)
    return torch.tensor(result)


@right("compute_optimal")
def _(parameters, tokens, losses, budgets):
    cost = 6 * parameters.double() * tokens.double()
    affordable = cost[None] <= budgets[:, None].double()
    best = losses.expand(len(budgets), -1).masked_fill(~affordable, torch.inf).argmin(1)
    return torch.where(affordable.any(1), best, -1)


@right("compute_optimal")
def _(parameters, tokens, losses, budgets):
    cost = 6.0 * parameters.numpy().astype(np.float64) * tokens.numpy().astype(np.float64)
    order = np.argsort(losses.numpy(), kind="stable")
    return torch.tensor([next((int(run) for run in order if cost[run] <= b), -1) for b in budgets.double().tolist()])


def _optimal(cost=lambda n, d: 6 * n.double() * d, allowed=lambda c, b: c <= b, key=lambda c, loss: loss, none=-1):
    def answer(parameters, tokens, losses, budgets):
        spent = cost(parameters, tokens)
        may = allowed(spent[None], budgets[:, None].double())
        worth = key(spent, losses.double()).expand(len(budgets), -1)
        best = worth.masked_fill(~may, torch.inf).argmin(1)
        return torch.where(may.any(1), best, none)

    return answer


wrong("compute_optimal", "less than the budget")(_optimal(allowed=lambda c, b: c < b))
wrong("compute_optimal", "whole numbers overflow")(_optimal(cost=lambda n, d: 6 * n * d))
wrong("compute_optimal", "forward only, 2ND")(_optimal(cost=lambda n, d: 2 * n.double() * d))
wrong("compute_optimal", "ND without the 6")(_optimal(cost=lambda n, d: n.double() * d))
wrong("compute_optimal", "the dearest run")(_optimal(key=lambda c, loss: -c))
wrong("compute_optimal", "0 where there is none")(_optimal(none=0))
wrong("compute_optimal", "the run nearest to the budget")(
    lambda n, d, loss, b: (
        (6 * n.double() * d)[None] / b[:, None].double()
    ).log().abs().argmin(1)
)  # fmt: skip
wrong("compute_optimal", "budgets below the cheapest run get it")(
    lambda n, d, loss, b: _optimal(allowed=lambda c, b: c <= torch.maximum(b, c.min()))(n, d, loss, b)
)


@wrong("compute_optimal", "an index into the runs that are left")
def _(parameters, tokens, losses, budgets):
    result = []
    for budget in budgets.double():
        may = 6 * parameters.double() * tokens <= budget
        result.append(int(losses[may].argmin()) if may.any() else -1)
    return torch.tensor(result)


# ---- 22: policy_loss ------------------------------------------------------------------------------------------------


@right("policy_loss")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    rows = []
    for new, old, advantage, keep in zip(log_probs, old_log_probs, advantages, mask, strict=True):
        ratio = torch.exp(new - old)
        gain = torch.stack([ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage]).amin(0)
        rows.append(gain[keep.bool()].mean())
    return -torch.stack(rows).mean()


@right("policy_loss")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    ratio = torch.exp(log_probs - old_log_probs)
    a = advantages.unsqueeze(1)
    limit = torch.where(a > 0, (1 + clip) * a, (1 - clip) * a)
    gain = torch.minimum(ratio * a, limit)
    return -((gain * mask).sum(1) / mask.sum(1)).mean()


@right("policy_loss")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    ratio = log_probs.exp() / old_log_probs.exp()
    loss = torch.maximum(-advantages[:, None] * ratio, -advantages[:, None] * torch.clip(ratio, 1 - clip, 1 + clip))
    return torch.einsum("bt,bt->", loss, mask / mask.sum(1, keepdim=True)) / len(mask)


def _policy(gain=None, ratio=lambda n, o: (n - o).exp(), mean=lambda g, m: ((g * m).sum(1) / m.sum(1)).mean(), sign=-1):
    def answer(log_probs, old_log_probs, advantages, mask, clip=0.2):
        r, a = ratio(log_probs, old_log_probs), advantages[:, None]
        inner = gain or (lambda r, a, c: torch.minimum(r * a, r.clamp(1 - c, 1 + c) * a))
        return sign * mean(inner(r, a, clip), mask)

    return answer


wrong("policy_loss", "the larger gain")(_policy(lambda r, a, c: torch.maximum(r * a, r.clamp(1 - c, 1 + c) * a)))
wrong("policy_loss", "always clipped")(_policy(lambda r, a, c: r.clamp(1 - c, 1 + c) * a))
wrong("policy_loss", "the smaller ratio, not the smaller gain")(
    _policy(lambda r, a, c: torch.minimum(r, r.clamp(1 - c, 1 + c)) * a)
)
wrong("policy_loss", "never clipped")(_policy(lambda r, a, c: r * a))
wrong("policy_loss", "the old policy over the new")(_policy(ratio=lambda n, o: (o - n).exp()))
wrong("policy_loss", "the logarithm of the ratio")(_policy(ratio=lambda n, o: n - o + 1))
wrong("policy_loss", "the mean of all tokens")(_policy(mean=lambda g, m: (g * m).sum() / m.sum()))
wrong("policy_loss", "padding counts in the mean")(_policy(mean=lambda g, m: (g * m).mean(1).mean()))
wrong("policy_loss", "the sum of the tokens")(_policy(mean=lambda g, m: (g * m).sum(1).mean()))
wrong("policy_loss", "the gain is minimized")(_policy(sign=1))
wrong("policy_loss", "clipped at 0.2 whatever is asked")(
    _policy(lambda r, a, c: torch.minimum(r * a, r.clamp(0.8, 1.2) * a))
)
wrong("policy_loss", "clipped above only")(_policy(lambda r, a, c: torch.minimum(r * a, r.clamp(max=1 + c) * a)))
wrong("policy_loss", "the ratio is a constant")(_policy(ratio=lambda n, o: (n - o).exp().detach() + 0 * n))

# ---- 23: split_by_words ---------------------------------------------------------------------------------------------


@right("split_by_words")
def _(transcripts, every):
    number = {word: n for n, word in enumerate(sorted(set(transcripts)))}
    train, held = [], []
    for row, word in enumerate(transcripts):
        (train if number[word] % every else held).append(row)
    return train, held


@right("split_by_words")
def _(transcripts, every):
    held = set(sorted({*transcripts})[::every])
    rows = range(len(transcripts))
    return [r for r in rows if transcripts[r] not in held], [r for r in rows if transcripts[r] in held]


@right("split_by_words")
def _(transcripts, every):
    _, number = np.unique(np.array(transcripts, dtype=object).astype(str), return_inverse=True)
    return np.flatnonzero(number % every).tolist(), np.flatnonzero(number % every == 0).tolist()


def _split(order, held, each=lambda rows: rows):
    def answer(transcripts, every):
        words = order(transcripts)
        out = {word for number, word in enumerate(words) if held(number, every)}
        rows = [[], []]
        for row, word in enumerate(transcripts):
            rows[word in out].append(row)
        return each(rows[0]), each(rows[1])

    return answer


wrong("split_by_words", "in the order of their first occurrence")(_split(dict.fromkeys, lambda n, e: n % e == 0))
wrong("split_by_words", "numbered from 1")(_split(lambda t: sorted(set(t)), lambda n, e: (n + 1) % e == 0))
wrong("split_by_words", "each recording has its number")(_split(sorted, lambda n, e: n % e == 0))
wrong("split_by_words", "the first of every few are trained on")(
    _split(lambda t: sorted(set(t)), lambda n, e: n % e != 0)
)
wrong("split_by_words", "the first share of the alphabet")(_split(lambda t: sorted(set(t)), lambda n, e: n < 2))
wrong("split_by_words", "words of the same length are told apart by it")(
    _split(lambda t: sorted(set(t), key=len), lambda n, e: n % e == 0)
)
wrong("split_by_words", "descending")(
    _split(lambda t: sorted(set(t)), lambda n, e: n % e == 0, each=lambda rows: rows[::-1])
)
wrong("split_by_words", "a set in place of a list")(_split(lambda t: sorted(set(t)), lambda n, e: n % e == 0, each=set))
wrong("split_by_words", "rows, not words")(
    lambda t, every: ([r for r in range(len(t)) if r % every], list(range(0, len(t), every)))
)
wrong("split_by_words", "only the first recording of each word")(
    lambda t, every: (
        [r for r in range(len(t)) if sorted(set(t)).index(t[r]) % every],
        [r for r in range(len(t)) if not sorted(set(t)).index(t[r]) % every and t.index(t[r]) == r],
    )
)
