"""Lesson 14, training the eye: its oracles compare pair by pair, and hold one picture after the other."""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "14_training_the_image_encoder", "Training the eye"

GAME = "1. A game: which caption belongs to which picture?"
SEE = "5. Did it learn to see?"

fault: Any  # what a mutant changes


# ---- how alike ------------------------------------------------------------------------------------------------------


@exercise("How alike are they?", minutes=10, level=1)
def similarities(
    seen: Float[Tensor, "pictures dim"], read: Float[Tensor, "captions dim"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, "pictures captions"]:
    """Pair by pair: the cosine of the angle between them."""
    out = seen.new_zeros(len(seen), len(read))
    for i, one in enumerate(seen.tolist()):
        for j, other in enumerate(read.tolist()):
            both = sum(a * b for a, b in zip(one, other, strict=True))
            out[i, j] = math.exp(float(log_scale)) * both / (math.hypot(*one) * math.hypot(*other))
    return out


@similarities.cases
def _(rng):
    yield "all sizes different", {"seen": rng.randn(3, 5), "read": rng.randn(4, 5) * 3, "log_scale": torch.tensor(1.5)}
    yield "as many pictures as captions", {"seen": rng.randn(4, 4), "read": rng.randn(4, 4), "log_scale": torch.tensor(0.5)}
    yield "a scale of 1", {"seen": rng.randn(2, 3) * 9, "read": rng.randn(2, 3), "log_scale": torch.tensor(0.0)}
    yield "one of each", {"seen": rng.randn(1, 6), "read": rng.randn(1, 6), "log_scale": torch.tensor(-1.0)}


def compared(seen, read, log_scale, *, one=F.normalize, other=F.normalize, scale=torch.exp, put=lambda x: x):
    """The product, with one thing to go wrong at a time."""
    return put(one(seen) @ other(read).T * scale(log_scale))


for cause, fault in (
    ("nothing is brought to length 1: long vectors are alike to everything",
     {"one": lambda x: x, "other": lambda x: x}),
    ("only the captions are brought to length 1", {"one": lambda x: x}),
    ("only the pictures are brought to length 1", {"other": lambda x: x}),
    ("each feature is brought to length 1 over the batch: the wrong axis",
     {"one": lambda x: F.normalize(x, dim=0), "other": lambda x: F.normalize(x, dim=0)}),
    ("the logarithm of the scale is put on as if it were the scale", {"scale": lambda s: s}),
    ("the products are divided by the scale instead of multiplied", {"scale": lambda s: (-s).exp()}),
    ("the scale is left out", {"scale": torch.ones_like}),
    ("captions stand in the rows and pictures in the columns", {"put": lambda x: x.T}),
    ("a softmax has been taken already: scores are due", {"put": lambda x: x.softmax(dim=1)}),
    ("vectors are divided by their squared length", {"one": lambda x: x / x.square().sum(1, keepdim=True)}),
):  # fmt: skip
    similarities.mutant(cause, GAME)(functools.partial(compared, **fault))


similarities.alternative(compared)


@similarities.alternative
def _(seen, read, log_scale):
    return F.cosine_similarity(seen[:, None], read[None], dim=-1) * log_scale.exp()


# ---- recall ---------------------------------------------------------------------------------------------------------


@exercise("Found among all", minutes=10, level=1)
def recall(logits: Float[Tensor, "pictures captions"], own: Int[Tensor, "pictures"], k: int = 1) -> float:
    """Picture by picture: how many captions score higher than its own."""
    found = 0
    for scores, mine in zip(logits.tolist(), own.tolist(), strict=True):
        found += sum(score > scores[mine] for score in scores) < k
    return found / len(logits)


@recall.cases
def _(rng):
    yield "all sizes different", {"logits": rng.randn(5, 7), "own": rng.randint(7, 5), "k": 2}
    close = torch.eye(4) * 3 + rng.randn(4, 4)
    yield "k is 1", {"logits": close, "own": torch.arange(4)}
    yield "own captions in another order", {"logits": close[[2, 0, 3, 1]], "own": torch.tensor([2, 0, 3, 1])}
    yield (
        "a caption that all pictures like best",
        {"logits": close + torch.tensor([9.0, 0, 0, 0]), "own": torch.arange(4)},
    )
    yield "all are asked for", {"logits": rng.randn(3, 4), "own": rng.randint(4, 3), "k": 4}
    yield "scores below 0", {"logits": rng.randn(6, 8) - 50, "own": rng.randint(8, 6), "k": 3}


def found(
    logits,
    own,
    k=1,
    *,
    scores=lambda x: x,
    mine=lambda own: own,
    count=lambda k: k,
    share=lambda hits: hits.float().mean(),
):
    """With `topk`, and one thing to go wrong at a time."""
    scores = scores(logits)
    best = scores.topk(min(count(k), scores.shape[1]), dim=1).indices
    return float(share((best == mine(own)[:, None]).any(dim=1)))


for cause, fault in (
    ("it is looked for among the pictures: the k best of each *column*",
     {"scores": lambda x: F.pad(x.T, (0, max(0, x.shape[1] - x.shape[0])), value=-1e9)[: x.shape[0]]}),
    ("picture i is held to belong to caption i, whatever `own` says", {"mine": lambda own: torch.arange(len(own))}),
    ("only the best one counts, whatever k is", {"count": lambda k: 1}),
    ("one too many counts: the k + 1 best", {"count": lambda k: k + 1}),
    ("the lowest scores are taken", {"scores": lambda x: -x}),
    ("scores are taken without their sign", {"scores": torch.abs}),
    ("hits are counted: they are not divided by the pictures", {"share": lambda hits: hits.sum()}),
    ("the share of those that were *not* found", {"share": lambda hits: 1 - hits.float().mean()}),
):  # fmt: skip
    recall.mutant(cause, SEE)(functools.partial(found, **fault))


recall.alternative(found)


@recall.alternative
def _(logits, own, k=1):
    mine = logits.gather(1, own[:, None])
    return ((logits > mine).sum(dim=1) < k).float().mean().item()
