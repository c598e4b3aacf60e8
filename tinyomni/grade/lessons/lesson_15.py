"""Lesson 15, training the recogniser: its oracles try every length, and ask torch's own CTC."""

import functools
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "15_training_the_recogniser", "Training the recogniser"

TASK = "1. The task: a transcript without an alignment"
PATHS = "2. The CTC loss: the sum over all paths"

fault: Any  # what a mutant changes


# ---- the shortest alignment -----------------------------------------------------------------------------------------


@exercise("The shortest CTC alignment", minutes=5, level=1)
def min_ctc_length(text: Int[Tensor, "text_tokens"]) -> int:
    """The first length at which torch's CTC finds a path."""
    if not len(text):
        return 0
    for tokens in range(1, 3 * len(text) + 1):
        scores = torch.zeros(tokens, 1, int(text.max()) + 1).log_softmax(-1)
        loss = F.ctc_loss(scores, text[None], torch.tensor([tokens]), torch.tensor([len(text)]), reduction="sum")
        if bool(loss.isfinite()):
            return tokens
    raise AssertionError("CTC needs at most three tokens for each character")


@min_ctc_length.cases
def _(rng):
    yield "one pair", {"text": torch.tensor([8, 5, 12, 12, 15])}
    yield "nothing was said", {"text": torch.tensor([], dtype=torch.long)}
    yield "one character", {"text": torch.tensor([3])}
    yield "all equal", {"text": torch.tensor([4, 4, 4, 4])}
    yield "all different", {"text": torch.tensor([1, 2, 3, 4, 5, 6])}
    yield "equal, but not adjacent", {"text": torch.tensor([1, 2, 1, 2, 1])}
    yield "two pairs", {"text": torch.tensor([2, 2, 5, 7, 7, 2])}


@min_ctc_length.random_inputs
def _(rng):
    return {"text": rng.randint(4, rng.size(9, 0), low=1)}


for cause, fault in (
    ("the blank between equal neighbours is missing: without it they are merged", lambda t: len(t)),
    ("a blank is counted after every character: only equal neighbours need one", lambda t: 2 * len(t)),
    ("a blank is counted between all characters", lambda t: 2 * len(t) - 1),
    (
        "blanks are counted around and between all characters: that is not the shortest alignment",
        lambda t: 2 * len(t) + 1,
    ),
    ("every repeated character needs a blank, adjacent or not", lambda t: 2 * len(t) - len(t.unique())),
    ("equal neighbours are counted as one", lambda t: len(torch.unique_consecutive(t))),
    ("each different character is counted once", lambda t: len(t.unique())),
    ("one too many: no blank is needed at the end", lambda t: 1 + len(t) + int((t[1:] == t[:-1]).sum())),
):
    min_ctc_length.mutant(cause, TASK)(lambda text, fault=fault: int(fault(text)))


@min_ctc_length.mutant("one too few: the last character is forgotten", TASK)
def _(text):
    return max(0, len(text) - 1 + int((text[1:] == text[:-1]).sum()))


@min_ctc_length.mutant("a run of equal characters needs one blank, however long it is", TASK)
def _(text):
    return len(text) + int((text.unique_consecutive(return_counts=True)[1] > 1).sum())


@min_ctc_length.mutant("the first and the last character are compared too, as if the text were a ring", TASK)
def _(text):
    return len(text) + int((text == text.roll(1)).sum())


@min_ctc_length.mutant("characters that are next but one are compared", TASK)
def _(text):
    return len(text) + int((text[2:] == text[:-2]).sum())


@min_ctc_length.mutant("a tensor is returned instead of an integer", TASK)
def _(text):
    return len(text) + (text[1:] == text[:-1]).sum()


@min_ctc_length.alternative
def _(text):
    return len(text) + sum(previous == two for previous, two in pairwise(text.tolist()))


# ---- the forward algorithm ------------------------------------------------------------------------------------------


@exercise("The CTC forward algorithm", minutes=40, level=3, rtol=1e-3, atol=1e-3, gradients=("log_probs",))
def ctc_forward(
    log_probs: Float[Tensor, "audio_tokens characters"], text: Int[Tensor, "text_tokens"]
) -> Float[Tensor, ""]:
    """torch's own."""
    tokens, size = torch.tensor([len(log_probs)]), torch.tensor([len(text)])
    return F.ctc_loss(log_probs[:, None], text[None], tokens, size, reduction="sum")


@ctc_forward.invoke
def _(answer, log_probs, text):
    # the values stay; torch's own CTC gives the gradient of what goes into the softmax, as training does
    return answer(log_probs.log_softmax(dim=-1), text)


@ctc_forward.cases
def _(rng):
    def given(tokens, characters, *text):
        return {"log_probs": (2 * rng.randn(tokens, characters)).log_softmax(-1), "text": torch.tensor(text)}

    yield "all sizes different", given(7, 5, 3, 1, 4)
    yield "an equal pair", given(6, 4, 2, 3, 3)
    yield "one character", given(4, 3, 2)
    yield "exactly the shortest alignment", given(4, 3, 1, 2, 2)
    yield "many more tokens than needed", given(25, 6, 5, 1, 1, 2)
    yield "too few tokens: infinite", given(3, 4, 1, 1, 2)
    yield "one token", given(1, 3, 2)


@ctc_forward.random_inputs
def _(rng):
    tokens, characters = rng.size(10), rng.size(4, 2)
    log_probs = (rng.choice((0.0, 1.0, 2.0)) * rng.randn(tokens, characters)).log_softmax(-1)
    return {"log_probs": log_probs, "text": rng.randint(characters, rng.size(4), low=1)}


def log_sum(ways):
    """The logarithm of the sum of probabilities; those of impossible ways are left out: their gradient would be NaN."""
    possible = [way for way in ways if way > -torch.inf]
    return torch.stack(possible).logsumexp(dim=0) if possible else ways[0].new_tensor(-torch.inf)


def ctc_forward_variant(
    log_probs,
    text,
    *,
    skip=lambda symbols, s: symbols[s] != 0 and symbols[s] != symbols[s - 2],
    start=2,
    end=2,
    stay=True,
    blanks=True,
    combine=log_sum,
    emit=True,
    mean=1.0,
):
    """`ctc_forward`; each keyword injects one fault."""
    symbols = [0]
    for symbol in text.tolist():
        symbols += [symbol, 0]
    symbols = symbols if blanks else text.tolist()
    log_zero = log_probs.new_tensor(-torch.inf)
    alpha = [log_probs[0, symbols[s]] if s < start else log_zero for s in range(len(symbols))]
    for t in range(1, len(log_probs)):
        new = []
        for s, symbol in enumerate(symbols):
            ways = [alpha[s] if stay else log_zero]
            if s >= 1:
                ways.append(alpha[s - 1])
            if s >= 2 and skip(symbols, s):
                ways.append(alpha[s - 2])
            new.append(combine(ways) + log_probs[t, symbol] if emit else combine(ways))
        alpha = new
    return -combine(alpha[-end:]) / mean


def log_add(ways):
    """From −∞ on, one way after the other."""
    total = ways[0].new_tensor(-torch.inf)
    for way in ways:
        total = torch.logaddexp(total, way)
    return total


for cause, fault in (
    ("blanks are never skipped: a text then needs one between all characters", {"skip": lambda symbols, s: False}),
    ("the blank between two equal characters is skipped too: they are merged",
     {"skip": lambda symbols, s: symbols[s] != 0}),
    ("every skip is allowed, also from blank to blank over a character that is never emitted",
     {"skip": lambda symbols, s: True}),
    ("a path can only start with a blank", {"start": 1}),
    ("a path can only end with a blank", {"end": 1}),
    ("a path may end anywhere: half a text is not the text", {"end": 1000}),
    ("no symbol lasts longer than one token", {"stay": False}),
    ("there are no blanks between the characters",
     {"blanks": False, "skip": lambda symbols, s: False, "start": 1, "end": 1}),
    ("only the best path counts (Viterbi): all paths must be summed",
     {"combine": lambda ways: torch.stack(ways).amax(dim=0)}),
    ("only the probability of the first token counts", {"emit": False}),
    ("paths that meet are scaled down: their probabilities must be summed as they are",
     {"combine": lambda ways: log_sum(ways) - 0.5}),
    ("`logaddexp` of −∞ and −∞ has a gradient of NaN: leave out the ways that are impossible", {"combine": log_add}),
    ("the sign is inverted: the loss is small where the text is likely", {"mean": -1.0}),
):  # fmt: skip
    ctc_forward.mutant(cause, PATHS)(functools.partial(ctc_forward_variant, **fault))


@ctc_forward.mutant("the probabilities are detached: the loss can be measured, but not trained with", PATHS)
def _(log_probs, text):
    return ctc_forward_variant(log_probs.detach(), text)


@ctc_forward.mutant("it is divided by the number of characters", PATHS)
def _(log_probs, text):
    return ctc_forward_variant(log_probs, text) / len(text)


ctc_forward.alternative(ctc_forward_variant)


@ctc_forward.alternative
def _(log_probs, text):
    symbols = torch.zeros(2 * len(text) + 1, dtype=torch.long)
    symbols[1::2] = text
    free = torch.zeros(len(symbols), dtype=torch.bool)
    free[2:] = (symbols[2:] != 0) & (symbols[2:] != symbols[:-2])
    p = log_probs.exp()[:, symbols]
    alpha = torch.zeros_like(p[0])
    alpha[:2] = p[0, :2]
    for probabilities in p[1:]:
        previous, two = F.pad(alpha[:-1], (1, 0)), F.pad(alpha[:-2], (2, 0)) * free
        alpha = (alpha + previous + two) * probabilities
    return -alpha[-2:].sum().log()
