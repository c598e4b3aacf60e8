"""Lesson 15, training the ear: its oracles try every length, and ask torch's own CTC."""

import functools
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "15_training_the_recogniser", "Training the ear"

TASK = "1. The task: a text, but no times"
PATHS = "2. The loss: every path, added up"

fault: Any  # what a mutant changes


# ---- room for a text ------------------------------------------------------------------------------------------------


@exercise("Room for a text", minutes=5, level=1)
def room_for(text: Int[Tensor, "text_tokens"]) -> int:
    """The first length at which torch's CTC finds a path."""
    for tokens in range(1, 3 * len(text) + 1):
        scores = torch.zeros(tokens, 1, int(text.max()) + 1).log_softmax(-1)
        loss = F.ctc_loss(scores, text[None], torch.tensor([tokens]), torch.tensor([len(text)]), reduction="sum")
        if bool(loss.isfinite()):
            return tokens
    raise AssertionError("a text has to fit into three times its length")


@room_for.cases
def _(rng):
    yield "one pair", {"text": torch.tensor([8, 5, 12, 12, 15])}
    yield "one character", {"text": torch.tensor([3])}
    yield "all the same", {"text": torch.tensor([4, 4, 4, 4])}
    yield "all different", {"text": torch.tensor([1, 2, 3, 4, 5, 6])}
    yield "equal, but not beside each other", {"text": torch.tensor([1, 2, 1, 2, 1])}
    yield "two pairs", {"text": torch.tensor([2, 2, 5, 7, 7, 2])}


for cause, fault in (
    ("equal neighbours are forgotten: without a blank between them they become one", lambda t: len(t)),
    ("a blank is put behind every character: only equal neighbours need one", lambda t: 2 * len(t)),
    ("blanks are put between all characters", lambda t: 2 * len(t) - 1),
    ("blanks are put around and between: that is the longest alignment, not the shortest", lambda t: 2 * len(t) + 1),
    ("a character that comes again anywhere needs a blank", lambda t: 2 * len(t) - len(t.unique())),
    ("equal neighbours are counted as one", lambda t: len(torch.unique_consecutive(t))),
    ("each different character is counted once", lambda t: len(t.unique())),
    ("one too many: no blank is needed at the end", lambda t: 1 + len(t) + int((t[1:] == t[:-1]).sum())),
):
    room_for.mutant(cause, TASK)(lambda text, fault=fault: int(fault(text)))


@room_for.alternative
def _(text):
    return len(text) + sum(one == two for one, two in pairwise(text.tolist()))


# ---- every path -----------------------------------------------------------------------------------------------------


@exercise("Every path, added up", minutes=40, level=3, rtol=1e-3, atol=1e-3)
def ctc(log_probs: Float[Tensor, "audio_tokens characters"], text: Int[Tensor, "text_tokens"]) -> Float[Tensor, ""]:
    """torch's own."""
    tokens, size = torch.tensor([len(log_probs)]), torch.tensor([len(text)])
    return F.ctc_loss(log_probs[:, None], text[None], tokens, size, reduction="sum")


@ctc.cases
def _(rng):
    def given(tokens, characters, *text):
        return {"log_probs": (2 * rng.randn(tokens, characters)).log_softmax(-1), "text": torch.tensor(text)}

    yield "all sizes different", given(7, 5, 3, 1, 4)
    yield "an equal pair", given(6, 4, 2, 3, 3)
    yield "one character", given(4, 3, 2)
    yield "just enough room", given(4, 3, 1, 2, 2)
    yield "much room", given(25, 6, 5, 1, 1, 2)
    yield "no room: infinite", given(3, 4, 1, 1, 2)
    yield "one token", given(1, 3, 2)


def summed(log_probs, text, *, jump=lambda signs, s: signs[s] != 0 and signs[s] != signs[s - 2], start=2, end=2,
           stay=True, blanks=True, best=torch.logaddexp, emit=True, mean=1.0):  # fmt: skip
    """The loop over alpha, with one thing to go wrong at a time."""
    signs = [0]
    for sign in text.tolist():
        signs += [sign, 0]
    signs = signs if blanks else text.tolist()
    nothing = log_probs.new_tensor(-torch.inf)
    alpha = [log_probs[0, signs[s]] if s < start else nothing for s in range(len(signs))]
    for t in range(1, len(log_probs)):
        new = []
        for s, sign in enumerate(signs):
            ways = alpha[s] if stay else nothing
            if s >= 1:
                ways = best(ways, alpha[s - 1])
            if s >= 2 and jump(signs, s):
                ways = best(ways, alpha[s - 2])
            new.append(ways + log_probs[t, sign] if emit else ways)
        alpha = new
    total = nothing
    for way in alpha[-end:]:
        total = best(total, way)
    return -total / mean


for cause, fault in (
    ("a blank is never jumped over: a text then needs one between all characters", {"jump": lambda signs, s: False}),
    ("the blank between two equal characters is jumped over too: they become one",
     {"jump": lambda signs, s: signs[s] != 0}),
    ("every jump is allowed, also from blank to blank over a character that is never said",
     {"jump": lambda signs, s: True}),
    ("a path can only begin with a blank", {"start": 1}),
    ("a path can only end with a blank", {"end": 1}),
    ("a path may end anywhere: half a text is no text", {"end": 1000}),
    ("no sign is held for longer than one token", {"stay": False}),
    ("there are no blanks between the characters",
     {"blanks": False, "jump": lambda signs, s: False, "start": 1, "end": 1}),
    ("the best path alone is taken, where all are to be added up", {"best": torch.maximum}),
    ("only the first token's probability counts", {"emit": False}),
    ("two ways that meet are multiplied by less than 1: they are to be added as they are",
     {"best": lambda one, other: torch.logaddexp(one, other) - 0.5}),
    ("the sign is turned: a loss is small where the text is likely", {"mean": -1.0}),
):  # fmt: skip
    ctc.mutant(cause, PATHS)(functools.partial(summed, **fault))


@ctc.mutant("it is divided by the number of characters", PATHS)
def _(log_probs, text):
    return summed(log_probs, text) / len(text)


ctc.alternative(summed)


@ctc.alternative
def _(log_probs, text):
    signs = torch.zeros(2 * len(text) + 1, dtype=torch.long)
    signs[1::2] = text
    free = torch.zeros(len(signs), dtype=torch.bool)
    free[2:] = (signs[2:] != 0) & (signs[2:] != signs[:-2])
    p = log_probs.exp()[:, signs]
    alpha = torch.zeros_like(p[0])
    alpha[:2] = p[0, :2]
    for now in p[1:]:
        one, two = F.pad(alpha[:-1], (1, 0)), F.pad(alpha[:-2], (2, 0)) * free
        alpha = (alpha + one + two) * now
    return -alpha[-2:].sum().log()
