"""Lesson 01: byte-pair encoding, padded batches, embeddings."""

import re
from collections import Counter, defaultdict
from itertools import groupby, pairwise

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from answers import right, wrong


@right("best_pair")
def _(words, counts):
    table = defaultdict(int)
    for word, symbols in words.items():
        for i in range(1, len(symbols)):
            table[symbols[i - 1], symbols[i]] += counts[word]
    top = max(table.values())
    return min((p for p in table if table[p] == top), key=lambda p: (len(p[0]) + len(p[1]), p))


@right("best_pair")
def _(words, counts):
    pairs = Counter()
    for word, s in words.items():
        pairs.update({p: counts[word] * n for p, n in Counter(pairwise(s)).items()})
    return sorted(pairs.items(), key=lambda item: (-item[1], len("".join(item[0])), item[0]))[0][0]


@wrong("best_pair", "counts each pair once per word")
def _(words, counts):
    pairs = Counter()
    for word, s in words.items():
        for p in set(pairwise(s)):
            pairs[p] += counts[word]
    return min(pairs, key=lambda p: (-pairs[p], len("".join(p)), p))


@wrong("best_pair", "max over (count, -length, pair): the last in the alphabet")
def _(words, counts):
    pairs = Counter()
    for word, s in words.items():
        for p in pairwise(s):
            pairs[p] += counts[word]
    return max(pairs, key=lambda p: (pairs[p], -len("".join(p)), p))


@wrong("best_pair", "ignores overlapping pairs such as aaa")
def _(words, counts):
    pairs = Counter()
    for word, s in words.items():
        last = None
        for i, p in enumerate(pairwise(s)):
            if p == last:
                last = None
                continue
            pairs[p] += counts[word]
            last = p if p[0] == p[1] and i is not None else None
    return min(pairs, key=lambda p: (-pairs[p], len("".join(p)), p))


@wrong("best_pair", "pairs across words")
def _(words, counts):
    pairs = Counter()
    flat = [(x, counts[w]) for w, s in words.items() for x in s]
    for (a, n), (b, _) in pairwise(flat):
        pairs[a, b] += n
    return min(pairs, key=lambda p: (-pairs[p], len("".join(p)), p))


@wrong("best_pair", "ties by the length of the first symbol")
def _(words, counts):
    pairs = Counter()
    for word, s in words.items():
        for p in pairwise(s):
            pairs[p] += counts[word]
    return min(pairs, key=lambda p: (-pairs[p], len(p[0]), "".join(p)))


@wrong("best_pair", "length counted in symbols")
def _(words, counts):
    pairs = Counter()
    for word, s in words.items():
        for p in pairwise(s):
            pairs[p] += counts[word]
    return min(pairs, key=lambda p: (-pairs[p], len(p), p))


@right("merge_pair")
def _(symbols, pair):
    out = []
    for s in symbols:
        if out and (out[-1], s) == tuple(pair):
            out[-1] += s
        else:
            out.append(s)
    return out


@right("merge_pair")
def _(symbols, pair):
    if len(symbols) < 2:
        return list(symbols)
    done = []
    rest = list(symbols)
    while rest:
        if tuple(rest[:2]) == pair:
            done, rest = [*done, pair[0] + pair[1]], rest[2:]
        else:
            done, rest = [*done, rest[0]], rest[1:]
    return done


@wrong("merge_pair", "string replace over a joined word")
def _(symbols, pair):
    return " ".join(symbols).replace(" ".join(pair), "".join(pair)).split(" ")


@wrong("merge_pair", "string replace without separators, then split into letters")
def _(symbols, pair):
    return re.findall(re.escape("".join(pair)) + "|.", "".join(symbols))


@wrong("merge_pair", "works on the input in place")
def _(symbols, pair):
    i = 0
    while i < len(symbols) - 1:
        if (symbols[i], symbols[i + 1]) == pair:
            symbols[i : i + 2] = ["".join(pair)]
        i += 1
    return symbols


@wrong("merge_pair", "the last symbol is lost when nothing is merged there")
def _(symbols, pair):
    out, i = [], 0
    while i < len(symbols) - 1:
        if (symbols[i], symbols[i + 1]) == pair:
            out.append("".join(pair))
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


@wrong("merge_pair", "from right to left")
def _(symbols, pair):
    out, i = [], len(symbols) - 1
    while i >= 0:
        if i and (symbols[i - 1], symbols[i]) == pair:
            out.insert(0, "".join(pair))
            i -= 2
        else:
            out.insert(0, symbols[i])
            i -= 1
    return out


@wrong("merge_pair", "merges the pair in either order")
def _(symbols, pair):
    out, i = [], 0
    while i < len(symbols):
        if i + 1 < len(symbols) and {symbols[i], symbols[i + 1]} == set(pair):
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


@wrong("merge_pair", "only the first occurrence")
def _(symbols, pair):
    for i in range(len(symbols) - 1):
        if (symbols[i], symbols[i + 1]) == pair:
            return [*symbols[:i], "".join(pair), *symbols[i + 2 :]]
    return list(symbols)


@right("make_batch")
def _(rows, bos=1, eos=2, pad=0):
    full = [torch.tensor([bos, *row, eos]) for row in rows]
    return pad_sequence(full, batch_first=True, padding_value=pad), torch.tensor([len(row) for row in full])


@right("make_batch")
def _(rows, bos=1, eos=2, pad=0):
    lengths = [len(row) + 2 for row in rows]
    out = np.full((len(rows), max(lengths)), pad)
    for i, row in enumerate(rows):
        out[i, 0] = bos
        out[i, 1 : 1 + len(row)] = row
        out[i, lengths[i] - 1] = eos
    return torch.from_numpy(out.astype(np.int64)), torch.tensor(lengths)


@wrong("make_batch", "EOS at the end of the padded row")
def _(rows, bos=1, eos=2, pad=0):
    longest = max(map(len, rows))
    ids = [[bos, *row, *[pad] * (longest - len(row)), eos] for row in rows]
    return torch.tensor(ids), torch.tensor([len(row) + 2 for row in rows])


@wrong("make_batch", "length by counting what is not pad")
def _(rows, bos=1, eos=2, pad=0):
    longest = max(map(len, rows)) + 2
    ids = torch.tensor([[bos, *row, eos] + [pad] * (longest - len(row) - 2) for row in rows])
    return ids, (ids != pad).sum(1)


@wrong("make_batch", "pad is always 0")
def _(rows, bos=1, eos=2, pad=0):
    longest = max(map(len, rows)) + 2
    out = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row) + 2] = torch.tensor([bos, *row, eos])
    return out, torch.tensor([len(row) + 2 for row in rows])


@wrong("make_batch", "padding one too long")
def _(rows, bos=1, eos=2, pad=0):
    longest = max(map(len, rows)) + 3
    ids = torch.tensor([[bos, *row, eos] + [pad] * (longest - len(row) - 2) for row in rows])
    return ids, torch.tensor([len(row) + 2 for row in rows])


@wrong("make_batch", "sorts the texts by length")
def _(rows, bos=1, eos=2, pad=0):
    rows = sorted(rows, key=len, reverse=True)
    longest = len(rows[0]) + 2
    ids = torch.tensor([[bos, *row, eos] + [pad] * (longest - len(row) - 2) for row in rows])
    return ids, torch.tensor([len(row) + 2 for row in rows])


@wrong("make_batch", "int32")
def _(rows, bos=1, eos=2, pad=0):
    longest = max(map(len, rows)) + 2
    ids = torch.tensor([[bos, *row, eos] + [pad] * (longest - len(row) - 2) for row in rows], dtype=torch.int32)
    return ids, torch.tensor([len(row) + 2 for row in rows], dtype=torch.int32)


@right("padding_mask")
def _(lengths, tokens):
    return torch.stack([torch.cat([torch.ones(int(n)), torch.zeros(tokens - int(n))]).bool() for n in lengths])


@right("padding_mask")
def _(lengths, tokens):
    return torch.tensor([[t < n for t in range(tokens)] for n in lengths.tolist()])


@wrong("padding_mask", "one position too many")
def _(lengths, tokens):
    return torch.arange(tokens) <= lengths[:, None]


@wrong("padding_mask", "True at padding")
def _(lengths, tokens):
    return torch.arange(tokens) >= lengths[:, None]


@wrong("padding_mask", "as long as the longest text")
def _(lengths, tokens):
    return torch.arange(int(lengths.max())) < lengths[:, None]


@wrong("padding_mask", "numbers instead of bools")
def _(lengths, tokens):
    return (torch.arange(tokens) < lengths[:, None]).long()


@wrong("padding_mask", "text on the right")
def _(lengths, tokens):
    return torch.arange(tokens).flip(0) < lengths[:, None]


@right("embed")
def _(ids, table):
    return torch.nn.functional.one_hot(ids, table.shape[0]).to(table.dtype) @ table


@right("embed")
def _(ids, table):
    return torch.stack([torch.stack([table[i] for i in row]) for row in ids])


@wrong("embed", "columns")
def _(ids, table):
    return table[:, ids.flatten() % table.shape[1]].T.reshape(*ids.shape, -1)


@wrong("embed", "a fresh, untrained nn.Embedding")
def _(ids, table):
    return torch.nn.Embedding(*table.shape)(ids)


@wrong("embed", "detached from the table")
def _(ids, table):
    return torch.nn.Embedding.from_pretrained(table)(ids)


@wrong("embed", "through .data")
def _(ids, table):
    return table.data[ids]


@wrong("embed", "index minus one")
def _(ids, table):
    return table[ids - 1]


@wrong("embed", "id 0 is taken for padding")
def _(ids, table):
    return table[ids] * (ids != 0)[..., None]


@wrong("best_pair", "runs of equal symbols are collapsed before counting")
def _(words, counts):
    pairs = Counter()
    for word, symbols in words.items():
        s = [key for key, _ in groupby(symbols)]
        for p in pairwise(s):
            pairs[p] += counts[word]
    return min(pairs, key=lambda p: (-pairs[p], len("".join(p)), p))
