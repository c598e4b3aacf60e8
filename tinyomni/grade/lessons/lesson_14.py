"""Lesson 14, training the image encoder: its oracles compare pair by pair, image after image."""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "14_training_the_image_encoder", "Training the image encoder"

CONTRASTIVE = "1. Contrastive learning: which caption belongs to which image?"
EVALUATION = "5. Did it learn to see?"

fault: Any  # what a mutant changes


# ---- similarity -----------------------------------------------------------------------------------------------------


@exercise(
    "Scaled cosine similarities",
    minutes=10,
    level=1,
    gradients=("image_features", "text_features", "logit_scale"),
)
def similarities(
    image_features: Float[Tensor, "images dim"],
    text_features: Float[Tensor, "captions dim"],
    logit_scale: Float[Tensor, ""],
) -> Float[Tensor, "images captions"]:
    """Pair by pair: the cosine of the angle between them."""
    out = image_features.new_zeros(len(image_features), len(text_features))
    for i, one in enumerate(image_features.tolist()):
        for j, other in enumerate(text_features.tolist()):
            both = sum(a * b for a, b in zip(one, other, strict=True))
            out[i, j] = math.exp(float(logit_scale)) * both / (math.hypot(*one) * math.hypot(*other))
    return out


@similarities.cases
def _(rng):
    yield (
        "all sizes different",
        {"image_features": rng.randn(3, 5), "text_features": rng.randn(4, 5) * 3, "logit_scale": torch.tensor(1.5)},
    )
    yield (
        "as many images as captions",
        {"image_features": rng.randn(4, 4), "text_features": rng.randn(4, 4), "logit_scale": torch.tensor(0.5)},
    )
    yield (
        "a scale of 1",
        {"image_features": rng.randn(2, 3) * 9, "text_features": rng.randn(2, 3), "logit_scale": torch.tensor(0.0)},
    )
    yield (
        "a scale of 400",
        {"image_features": rng.randn(2, 3), "text_features": rng.randn(3, 3), "logit_scale": torch.tensor(6.0)},
    )
    yield (
        "one of each",
        {"image_features": rng.randn(1, 6), "text_features": rng.randn(1, 6), "logit_scale": torch.tensor(-1.0)},
    )


@similarities.random_inputs
def _(rng):
    dim = rng.size(6, 2)
    images, captions = (rng.choice((0.01, 1.0, 50.0)) * rng.randn(rng.size(), dim) for _ in range(2))
    return {"image_features": images, "text_features": captions, "logit_scale": 3 * rng.randn(1)[0]}


def similarities_variant(
    image_features, text_features, logit_scale, *, one=F.normalize, other=F.normalize, scale=torch.exp, put=lambda x: x
):
    """`similarities`; each keyword injects one fault."""
    return put(one(image_features) @ other(text_features).T * scale(logit_scale))


for cause, fault in (
    ("the vectors are not normalized: long vectors are similar to everything",
     {"one": lambda x: x, "other": lambda x: x}),
    ("only the captions are normalized", {"one": lambda x: x}),
    ("only the images are normalized", {"other": lambda x: x}),
    ("vectors are normalized over the batch: the wrong axis",
     {"one": lambda x: F.normalize(x, dim=0), "other": lambda x: F.normalize(x, dim=0)}),
    ("the logarithm of the scale is used as the scale", {"scale": lambda s: s}),
    ("the similarities are divided by the scale instead of multiplied", {"scale": lambda s: (-s).exp()}),
    ("the scale is missing", {"scale": torch.ones_like}),
    ("the result is transposed: images belong in the rows", {"put": lambda x: x.T}),
    ("the softmax is already applied: the result should be scores", {"put": lambda x: x.softmax(dim=1)}),
    ("vectors are divided by their squared length", {"one": lambda x: x / x.square().sum(1, keepdim=True)}),
):  # fmt: skip
    similarities.mutant(cause, CONTRASTIVE)(functools.partial(similarities_variant, **fault))


similarities.alternative(similarities_variant)


@similarities.alternative
def _(image_features, text_features, logit_scale):
    return F.cosine_similarity(image_features[:, None], text_features[None], dim=-1) * logit_scale.exp()


# ---- recall ---------------------------------------------------------------------------------------------------------


@exercise("Recall at k", minutes=10, level=1)
def recall_at_k(logits: Float[Tensor, "images captions"], targets: Int[Tensor, "images"], k: int = 1) -> float:
    """Image by image: how many captions score higher than its own."""
    hits = 0
    for scores, target in zip(logits.tolist(), targets.tolist(), strict=True):
        hits += sum(score > scores[target] for score in scores) < k
    return hits / len(logits)


@recall_at_k.cases
def _(rng):
    yield "all sizes different", {"logits": rng.randn(5, 7), "targets": rng.randint(7, 5), "k": 2}
    close = torch.eye(4) * 3 + rng.randn(4, 4)
    yield "k is 1", {"logits": close, "targets": torch.arange(4)}
    yield "captions in another order", {"logits": close[[2, 0, 3, 1]], "targets": torch.tensor([2, 0, 3, 1])}
    yield (
        "a caption with the highest score for all images",
        {"logits": close + torch.tensor([9.0, 0, 0, 0]), "targets": torch.arange(4)},
    )
    yield "k is the number of captions", {"logits": rng.randn(3, 4), "targets": rng.randint(4, 3), "k": 4}
    yield "negative scores", {"logits": rng.randn(6, 8) - 50, "targets": rng.randint(8, 6), "k": 3}


@recall_at_k.random_inputs
def _(rng):
    images, captions = rng.size(6), rng.size(6)
    return {
        "logits": rng.randn(images, captions) - 2,
        "targets": rng.randint(captions, images),
        "k": rng.size(captions),
    }


def recall_at_k_variant(
    logits,
    targets,
    k=1,
    *,
    scores=lambda x: x,
    mine=lambda targets: targets,
    count=lambda k: k,
    rate=lambda hits: hits.float().mean(),
):
    """`recall_at_k`, with `topk`; each keyword injects one fault."""
    scores = scores(logits)
    best = scores.topk(min(count(k), scores.shape[1]), dim=1).indices
    return float(rate((best == mine(targets)[:, None]).any(dim=1)))


for cause, fault in (
    (
        "the k best are taken from each *column*: images are ranked instead of captions",
        {"scores": lambda x: F.pad(x.T, (0, max(0, x.shape[1] - x.shape[0])), value=-1e9)[: x.shape[0]]},
    ),
    (
        "image i is assumed to belong to caption i, ignoring `targets`",
        {"mine": lambda targets: torch.arange(len(targets))},
    ),
    ("only the best caption counts, ignoring k", {"count": lambda k: 1}),
    ("one too many counts: the k + 1 best", {"count": lambda k: k + 1}),
    ("the lowest scores are taken", {"scores": lambda x: -x}),
    ("the absolute values of the scores are ranked", {"scores": torch.abs}),
    ("the number of hits is returned: it is not divided by the number of images", {"rate": lambda hits: hits.sum()}),
    ("the fraction of images that were *not* found is returned", {"rate": lambda hits: 1 - hits.float().mean()}),
):
    recall_at_k.mutant(cause, EVALUATION)(functools.partial(recall_at_k_variant, **fault))


@recall_at_k.mutant("percent are returned", EVALUATION)
def _(logits, targets, k=1):
    return 100 * recall_at_k_variant(logits, targets, k)


@recall_at_k.mutant("one too few counts: the k − 1 best", EVALUATION)
def _(logits, targets, k=1):
    return ((logits > logits.gather(1, targets[:, None])).sum(dim=1) < k - 1).float().mean().item()


@recall_at_k.mutant("a tensor is returned instead of a float", EVALUATION)
def _(logits, targets, k=1):
    return ((logits > logits.gather(1, targets[:, None])).sum(dim=1) < k).float().mean()


@recall_at_k.mutant("hits are divided by the number of captions", EVALUATION)
def _(logits, targets, k=1):
    return float(((logits > logits.gather(1, targets[:, None])).sum(dim=1) < k).sum()) / logits.shape[1]


recall_at_k.alternative(recall_at_k_variant)


@recall_at_k.alternative
def _(logits, targets, k=1):
    mine = logits.gather(1, targets[:, None])
    return ((logits > mine).sum(dim=1) < k).float().mean().item()
