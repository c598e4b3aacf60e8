"""Lesson 13, training the Thinker: its oracles list every line of a grammar, and count pairs in a dictionary."""

import functools
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "13_training_the_thinker", "Training the Thinker"

FLOOR = "4. How low can it go?"
LEARN = "6. Did it learn?"

fault: Any  # what a mutant changes


# ---- the floor ------------------------------------------------------------------------------------------------------


@exercise("How low can it go", minutes=15, level=2)
def grammar_floor(
    weights: Float[Tensor, "families"], lines: Int[Tensor, "families"], tokens: Float[Tensor, "families"]
) -> Float[Tensor, ""]:
    """Line by line: how likely each is, how surprising, how long."""
    nats = length = 0.0
    for weight, count, long in zip(weights.tolist(), lines.tolist(), tokens.tolist(), strict=True):
        for _ in range(count):
            nats -= weight / count * math.log(weight / count)
            length += weight / count * long
    return weights.new_tensor(nats / length)


@grammar_floor.cases
def _(rng):
    def given(weights, lines, tokens):
        return {"weights": torch.tensor(weights), "lines": torch.tensor(lines), "tokens": torch.tensor(tokens)}

    yield "three families", given([0.5, 0.3, 0.2], [4, 40, 9], [3.0, 8.0, 5.5])
    yield "one family of one length", given([1.0], [50], [6.0])
    yield "one line, always the same: nothing is a surprise", given([1.0], [1], [4.0])
    yield "two families of one line each: all depends on the family", given([0.25, 0.75], [1, 1], [2.0, 10.0])
    yield "a rare family of many lines", given([0.99, 0.01], [3, 5000], [4.0, 12.0])


def floored(weights, lines, tokens, *, nats=lambda w, n: w * (n / w).log(), length=lambda w, n, t: (w * t).sum()):
    """The sum, with one thing to go wrong at a time."""
    return nats(weights, lines.to(weights)).sum() / length(weights, lines.to(weights), tokens)


for cause, fault in (
    ("a family is not drawn by its weight: each counts alike", {"nats": lambda w, n: (n / w).log() / len(w)}),
    ("which family comes is taken for no surprise", {"nats": lambda w, n: w * n.log()}),
    ("which line of a family comes is taken for no surprise", {"nats": lambda w, n: -w * w.log()}),
    ("all lines count as equally likely, whatever their family", {"nats": lambda w, n: w * n.sum().log()}),
    ("the sign is turned", {"nats": lambda w, n: w * (w / n).log()}),
    ("bits are counted, log2, where nats are due", {"nats": lambda w, n: w * (n / w).log2()}),
    ("it is the surprise of a line: it is not divided by tokens", {"length": lambda w, n, t: 1.0}),
    ("tokens are averaged over families, not over lines as they come", {"length": lambda w, n, t: t.mean()}),
    ("a family's length counts by its number of lines, not by how often it comes",
     {"length": lambda w, n, t: (n * t).sum() / n.sum()}),
):  # fmt: skip
    grammar_floor.mutant(cause, FLOOR)(functools.partial(floored, **fault))


grammar_floor.alternative(floored)


@grammar_floor.alternative
def _(weights, lines, tokens):
    p = weights / lines
    return -(lines * p * p.log()).sum() / (weights @ tokens)


# ---- a bigram -------------------------------------------------------------------------------------------------------


@exercise("How often after the token before", minutes=25, level=2)
def bigram_surprise(
    train: Int[Tensor, "lines text_tokens"], test: Int[Tensor, "batch positions"], vocab: int, pad: int = 0
) -> Float[Tensor, ""]:
    """Pairs in a dictionary."""
    pairs: Counter[tuple[int, int]] = Counter()
    for line in train.tolist():
        pairs.update((a, b) for a, b in pairwise(line) if b != pad)
    nats, count = 0.0, 0
    for line in test.tolist():
        for a, b in pairwise(line):
            if b != pad:
                after = sum(pairs[a, other] for other in range(vocab))
                nats -= math.log((pairs[a, b] + 1) / (after + vocab))
                count += 1
    return torch.tensor(nats / count)


@bigram_surprise.cases
def _(rng):
    yield "all sizes different", {"train": rng.randint(5, 6, 9, low=1), "test": rng.randint(5, 2, 4, low=1), "vocab": 5}
    ends = torch.tensor([[1, 3, 4, 2, 0, 0], [1, 4, 2, 0, 0, 0], [1, 3, 3, 4, 4, 2]])
    yield "lines of different lengths", {"train": ends, "test": ends[:2], "vocab": 6}
    yield "a pair that never came", {"train": ends, "test": torch.tensor([[1, 2, 3]]), "vocab": 6}
    yield "padding has another number", {"train": ends + 1, "test": ends[1:] + 1, "vocab": 7, "pad": 1}
    yield "one short line", {"train": torch.tensor([[2], [1]]), "test": torch.tensor([[3, 1]]), "vocab": 4}


def counted(train, test, vocab, pad=0, *, turn=False, plus=1.0, more=None, count_pad=False, look_pad=False,
            alone=False, rows=False, shift=1):  # fmt: skip
    """A table of counts, with one thing to go wrong at a time."""
    table = torch.zeros(vocab, vocab)
    before, after = train[:, :-shift].flatten(), train[:, shift:].flatten()
    kept = torch.ones_like(after, dtype=torch.bool) if count_pad else after != pad
    table.index_put_((before[kept], after[kept]), torch.ones(int(kept.sum())), accumulate=True)
    if alone:
        table = table.sum(dim=0).expand(vocab, vocab)
    if turn:
        table = table.T
    total = table.sum(dim=1, keepdim=True) + (vocab * plus if more is None else more)
    nats = -((table + plus) / total).log()[test[:, :-1], test[:, 1:]]
    due = torch.ones_like(nats, dtype=torch.bool) if look_pad else test[:, 1:] != pad
    if rows:
        return torch.stack([line[mask].mean() for line, mask in zip(nats, due, strict=True)]).mean()
    return nats[due].mean()


for cause, fault in (
    ("a token is guessed without a look at the one before: that is the unigram", {"alone": True}),
    ("a token is guessed from the one *behind* it: rows and columns of the table are exchanged", {"turn": True}),
    ("no one is added to the counts: a pair that never came is infinitely surprising", {"plus": 0.0}),
    ("one is added to each pair, but the sum does not know it: the shares add up to more than 1", {"more": 0.0}),
    ("one is added to each pair, and only 1 to their sum", {"more": 1.0}),
    ("padding behind the lines is counted in training", {"count_pad": True}),
    ("padding is asked for as well, and it is easy to guess", {"look_pad": True}),
    ("each line's mean counts alike, whatever its length", {"rows": True}),
    ("a token is counted after the one before the one before", {"shift": 2}),
):
    bigram_surprise.mutant(cause, LEARN)(functools.partial(counted, **fault))


bigram_surprise.alternative(counted)


@bigram_surprise.alternative
def _(train, test, vocab, pad=0):
    one_hot = torch.nn.functional.one_hot
    first, second = one_hot(train[:, :-1], vocab).float(), one_hot(train[:, 1:], vocab).float()
    second = second * (train[:, 1:] != pad)[..., None]
    table = torch.einsum("lta,ltb->ab", first, second) + 1
    return torch.nn.functional.nll_loss(
        (table / table.sum(1, keepdim=True)).log()[test[:, :-1]].flatten(0, 1),
        test[:, 1:].flatten(), ignore_index=pad,
    )  # fmt: skip
