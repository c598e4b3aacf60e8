"""Lesson 13, training the Thinker: its oracles enumerate every line of a grammar, and count pairs in a dictionary."""

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

ENTROPY = "4. How low can it go?"
EVALUATION = "6. Did it learn?"

fault: Any  # what a mutant changes


# ---- entropy --------------------------------------------------------------------------------------------------------


@exercise("Entropy of a grammar", minutes=15, level=2)
def grammar_entropy(
    weights: Float[Tensor, "families"], lines: Int[Tensor, "families"], tokens: Float[Tensor, "families"]
) -> Float[Tensor, ""]:
    """Line by line: its probability, its information, its length."""
    nats = length = 0.0
    for weight, count, long in zip(weights.tolist(), lines.tolist(), tokens.tolist(), strict=True):
        for _ in range(count):
            nats -= weight / count * math.log(weight / count)
            length += weight / count * long
    return weights.new_tensor(nats / length)


@grammar_entropy.cases
def _(rng):
    def given(weights, lines, tokens):
        return {"weights": torch.tensor(weights), "lines": torch.tensor(lines), "tokens": torch.tensor(tokens)}

    yield "three families", given([0.5, 0.3, 0.2], [4, 40, 9], [3.0, 8.0, 5.5])
    yield "one family of lines of equal length", given([1.0], [50], [6.0])
    yield "one line, always the same: zero entropy", given([1.0], [1], [4.0])
    yield "two families of one line each: only the family is uncertain", given([0.25, 0.75], [1, 1], [2.0, 10.0])
    yield "a rare family of many lines", given([0.99, 0.01], [3, 5000], [4.0, 12.0])


@grammar_entropy.random_inputs
def _(rng):
    families = rng.size(5)
    weights = rng.randn(families).softmax(dim=0)
    return {"weights": weights, "lines": rng.randint(30, families, low=1), "tokens": 1 + 9 * rng.randn(families).abs()}


def grammar_entropy_variant(
    weights, lines, tokens, *, nats=lambda w, n: w * (n / w).log(), length=lambda w, n, t: (w * t).sum()
):
    """`grammar_entropy`; each keyword injects one fault."""
    return nats(weights, lines.to(weights)).sum() / length(weights, lines.to(weights), tokens)


for cause, fault in (
    ("families are weighted equally, ignoring their probabilities", {"nats": lambda w, n: (n / w).log() / len(w)}),
    ("the entropy of the family is missing", {"nats": lambda w, n: w * n.log()}),
    ("the entropy of the line within its family is missing", {"nats": lambda w, n: -w * w.log()}),
    ("all lines are treated as equally likely, ignoring their families", {"nats": lambda w, n: w * n.sum().log()}),
    ("the sign is inverted", {"nats": lambda w, n: w * (w / n).log()}),
    ("it is measured in bits (log2) instead of nats", {"nats": lambda w, n: w * (n / w).log2()}),
    ("it is the entropy of a line: it is not divided by the number of tokens", {"length": lambda w, n, t: 1.0}),
    ("lengths are averaged over families, ignoring their probabilities", {"length": lambda w, n, t: t.mean()}),
    ("lengths are weighted by the number of lines, not by the probability of the family",
     {"length": lambda w, n, t: (n * t).sum() / n.sum()}),
):  # fmt: skip
    grammar_entropy.mutant(cause, ENTROPY)(functools.partial(grammar_entropy_variant, **fault))


grammar_entropy.alternative(grammar_entropy_variant)


@grammar_entropy.alternative
def _(weights, lines, tokens):
    p = weights / lines
    return -(lines * p * p.log()).sum() / (weights @ tokens)


# ---- a bigram -------------------------------------------------------------------------------------------------------


@exercise("A bigram model", minutes=25, level=2)
def bigram_loss(
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


@bigram_loss.cases
def _(rng):
    yield "all sizes different", {"train": rng.randint(5, 6, 9, low=1), "test": rng.randint(5, 2, 4, low=1), "vocab": 5}
    ends = torch.tensor([[1, 3, 4, 2, 0, 0], [1, 4, 2, 0, 0, 0], [1, 3, 3, 4, 4, 2]])
    yield "lines of different lengths", {"train": ends, "test": ends[:2], "vocab": 6}
    yield "a pair that was never seen", {"train": ends, "test": torch.tensor([[1, 2, 3]]), "vocab": 6}
    yield "another pad id", {"train": ends + 1, "test": ends[1:] + 1, "vocab": 7, "pad": 1}
    yield "the same line three times", {"train": ends[[0, 2, 2, 2]], "test": ends, "vocab": 6}
    yield "one short line", {"train": torch.tensor([[2], [1]]), "test": torch.tensor([[3, 1]]), "vocab": 4}


@bigram_loss.random_inputs
def _(rng):
    vocab = rng.size(6, 2)
    pad = rng.choice((0, vocab - 1))
    train, test = (rng.randint(vocab - 1, rng.size(6), rng.size(7, 2)) + (pad == 0) for _ in range(2))
    for rows in (train[1:], test[1:]):
        for row in rows:
            row[rng.size(len(row)) :] = pad
    return {"train": train, "test": test, "vocab": vocab, "pad": pad}


def bigram_loss_variant(
    train,
    test,
    vocab,
    pad=0,
    *,
    transpose=False,
    smoothing=1.0,
    total_smoothing=None,
    count_pad=False,
    evaluate_pad=False,
    unigram=False,
    per_line=False,
    shift=1,
):
    """`bigram_loss`; each keyword injects one fault."""
    table = torch.zeros(vocab, vocab)
    before, after = train[:, :-shift].flatten(), train[:, shift:].flatten()
    kept = torch.ones_like(after, dtype=torch.bool) if count_pad else after != pad
    table.index_put_((before[kept], after[kept]), torch.ones(int(kept.sum())), accumulate=True)
    if unigram:
        table = table.sum(dim=0).expand(vocab, vocab)
    if transpose:
        table = table.T
    total = table.sum(dim=1, keepdim=True) + (vocab * smoothing if total_smoothing is None else total_smoothing)
    nats = -((table + smoothing) / total).log()[test[:, :-1], test[:, 1:]]
    mask = torch.ones_like(nats, dtype=torch.bool) if evaluate_pad else test[:, 1:] != pad
    if per_line:
        return torch.stack([line[mask].mean() for line, mask in zip(nats, mask, strict=True)]).mean()
    return nats[mask].mean()


for cause, fault in (
    ("the previous token is ignored: that is a unigram model", {"unigram": True}),
    ("rows and columns of the table are exchanged: a token is predicted from the one *after* it", {"transpose": True}),
    ("there is no smoothing: a pair that was never seen has infinite loss", {"smoothing": 0.0}),
    (
        "1 is added to each count, but not to their sum: the probabilities add up to more than 1",
        {"total_smoothing": 0.0},
    ),
    ("1 is added to each count, and only 1 to their sum", {"total_smoothing": 1.0}),
    ("padding is counted in training", {"count_pad": True}),
    ("padding is evaluated as well, and it is easy to predict", {"evaluate_pad": True}),
    ("each line is averaged first, ignoring its length", {"per_line": True}),
    ("the token before the previous one is used", {"shift": 2}),
):
    bigram_loss.mutant(cause, EVALUATION)(functools.partial(bigram_loss_variant, **fault))


@bigram_loss.mutant("`table[before, after] += 1` counts a pair once that occurs several times", EVALUATION)
def _(train, test, vocab, pad=0):
    table, before, after = torch.ones(vocab, vocab), train[:, :-1], train[:, 1:]
    table[before[after != pad], after[after != pad]] += 1
    log_p = (table / table.sum(dim=1, keepdim=True)).log()
    return -log_p[test[:, :-1], test[:, 1:]][test[:, 1:] != pad].mean()


bigram_loss.alternative(bigram_loss_variant)


@bigram_loss.alternative
def _(train, test, vocab, pad=0):
    one_hot = torch.nn.functional.one_hot
    first, second = one_hot(train[:, :-1], vocab).float(), one_hot(train[:, 1:], vocab).float()
    second = second * (train[:, 1:] != pad)[..., None]
    table = torch.einsum("lta,ltb->ab", first, second) + 1
    return torch.nn.functional.nll_loss(
        (table / table.sum(1, keepdim=True)).log()[test[:, :-1]].flatten(0, 1),
        test[:, 1:].flatten(), ignore_index=pad,
    )  # fmt: skip
