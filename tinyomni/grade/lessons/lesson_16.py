"""Lesson 16, training the codec and the Talker: its oracles go row by row and frame by frame."""

import functools
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "16_training_the_talker", "Training the Talker"

KMEANS = "2. k-means: a good initialization"
LOSSES = "7. Three losses: base, residual, end"

fault: Any  # what a mutant changes


# ---- k-means --------------------------------------------------------------------------------------------------------


@exercise("One step of k-means", minutes=15, level=2)
def kmeans_step(
    x: Float[Tensor, "rows dim"], centroids: Float[Tensor, "codebook_size dim"]
) -> Float[Tensor, "codebook_size dim"]:
    """Row by row to the nearest centroid, then a mean for each."""
    members: list[list[Tensor]] = [[] for _ in centroids]
    for row in x:
        distances = [float((row - centroid).square().sum()) for centroid in centroids]
        members[distances.index(min(distances))].append(row)
    means = [torch.stack(rows).mean(dim=0) if rows else old for rows, old in zip(members, centroids, strict=True)]
    return torch.stack(means)


@kmeans_step.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(11, 3) * torch.tensor([3.0, 1.0, 0.5]), "centroids": rng.randn(4, 3)}
    yield (
        "an empty cluster",
        {"x": rng.randn(9, 2), "centroids": torch.tensor([[0.3, 0.2], [90.0, 9.0], [-1.0, 0.0]])},
    )
    yield "one centroid", {"x": rng.randn(6, 2) + 4, "centroids": rng.randn(1, 2)}
    yield "identical rows", {"x": torch.ones(5, 3) * 2, "centroids": rng.randn(3, 3)}
    yield (
        "one long centroid",
        {"x": rng.randn(12, 2), "centroids": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-4.0, -4.0]])},
    )
    yield "rows far from 0", {"x": rng.randn(14, 2) + 7, "centroids": rng.randn(3, 2) + 7}


@kmeans_step.random_inputs
def _(rng):
    dim, scale = rng.size(4), torch.tensor([0.1, 1.0, 10.0, 1.0])
    x = rng.randn(rng.size(9), dim) * scale[:dim]
    return {"x": torch.cat([x, x[:2]]), "centroids": rng.choice((0.5, 5.0)) * rng.randn(rng.size(5), dim)}


def kmeans_step_variant(
    x,
    centroids,
    *,
    assign=lambda x, c: torch.cdist(x, c).argmin(dim=1),
    mean=lambda rows: rows.mean(dim=0),
    empty=lambda old, x: old,
    step=1.0,
):
    """`kmeans_step`; each keyword injects one fault."""
    nearest = assign(x, centroids)
    new = []
    for number, old in enumerate(centroids):
        rows = x[nearest == number]
        new.append(old + step * (mean(rows) - old) if len(rows) else empty(old, x))
    return torch.stack(new)


for cause, fault in (
    ("each row is assigned to the *farthest* centroid", {"assign": lambda x, c: torch.cdist(x, c).argmax(dim=1)}),
    ("the largest dot product is taken for the smallest distance: long centroids win",
     {"assign": lambda x, c: (x @ c.T).argmax(dim=1)}),
    ("only the first feature is compared",
     {"assign": lambda x, c: torch.cdist(x[:, :1], c[:, :1]).argmin(dim=1)}),
    ("directions are compared (cosine similarity), not distances",
     {"assign": lambda x, c: torch.nn.functional.cosine_similarity(x[:, None], c[None], dim=-1).argmax(dim=1)}),
    ("the median of each feature is taken instead of the mean", {"mean": lambda rows: rows.median(dim=0).values}),
    ("the sum of the rows is not divided by their number", {"mean": lambda rows: rows.sum(dim=0)}),
    ("the mean of an empty cluster is taken: NaN", {"empty": lambda old, x: old * torch.nan}),
    ("the centroid of an empty cluster moves to 0: it should stay where it is", {"empty": lambda old, x: old * 0}),
    ("the centroid of an empty cluster moves to the mean of all rows", {"empty": lambda old, x: x.mean(dim=0)}),
    ("centroids move only half way", {"step": 0.5}),
    ("the first row of a cluster is taken instead of the mean", {"mean": lambda rows: rows[0]}),
):  # fmt: skip
    kmeans_step.mutant(cause, KMEANS)(functools.partial(kmeans_step_variant, **fault))


@kmeans_step.mutant("the centroid of each row is returned: one for each row, not one for each cluster", KMEANS)
def _(x, centroids):
    return centroids[torch.cdist(x, centroids).argmin(dim=1)]


kmeans_step.alternative(kmeans_step_variant)


@kmeans_step.alternative
def _(x, centroids):
    nearest = (x[:, None] - centroids[None]).square().sum(dim=-1).argmin(dim=1)
    member = torch.nn.functional.one_hot(nearest, len(centroids)).to(x)
    count = member.sum(dim=0)[:, None]
    return torch.where(count > 0, member.T @ x / count.clamp(min=1), centroids)


# ---- masks ----------------------------------------------------------------------------------------------------------


@exercise("Masks for speech and end of speech", minutes=10, level=1)
def speech_masks(
    frames: Int[Tensor, "batch"], length: int
) -> tuple[Bool[Tensor, "batch positions"], Bool[Tensor, "batch positions"]]:
    """Position by position."""
    speech = torch.zeros(len(frames), length, dtype=torch.bool)
    ends = speech.clone()
    for row, count in enumerate(frames.tolist()):
        for t in range(length):
            speech[row, t] = t < count
            ends[row, t] = t == count
    return speech, ends


@speech_masks.cases
def _(rng):
    yield "all sizes different", {"frames": torch.tensor([3, 5, 1]), "length": 6}
    yield "a recording as long as the batch: its end does not fit", {"frames": torch.tensor([4, 2]), "length": 4}
    yield "one recording", {"frames": torch.tensor([2]), "length": 3}
    yield "no speech", {"frames": torch.tensor([0, 3]), "length": 5}
    yield "a long recording", {"frames": torch.tensor([1090, 7]), "length": 1100}


@speech_masks.random_inputs
def _(rng):
    length = rng.size(6)
    return {"frames": rng.randint(length + 1, rng.size()), "length": length}


def speech_masks_variant(
    frames, length, *, speech=lambda t, n: t < n, ends=lambda t, n: t == n, out=lambda speech, ends: (speech, ends)
):
    """`speech_masks`; each keyword injects one fault."""
    t, n = torch.arange(length)[None], frames[:, None]
    return out(speech(t, n), ends(t, n))


for cause, fault in (
    ("the frame after the last one counts as speech", {"speech": lambda t, n: t <= n}),
    ("the last frame of speech is masked out", {"speech": lambda t, n: t < n - 1}),
    ("the end is marked at the last frame of speech, not after it", {"ends": lambda t, n: t == n - 1}),
    ("all positions after the speech are marked as its end: only the first one is", {"ends": lambda t, n: t >= n}),
    ("the end is marked one frame too late", {"ends": lambda t, n: t == n + 1}),
    ("the end is marked at the end of the batch for all recordings", {"ends": lambda t, n: (t == t.max()) & (n > -1)}),
    ("the speech mask is inverted", {"speech": lambda t, n: t >= n}),
    ("the two masks are exchanged", {"out": lambda speech, ends: (ends, speech)}),
):
    speech_masks.mutant(cause, LOSSES)(functools.partial(speech_masks_variant, **fault))


@speech_masks.mutant("the masks hold 0 and 1 instead of False and True", LOSSES)
def _(frames, length):
    return tuple(mask.long() for mask in speech_masks_variant(frames, length))


@speech_masks.mutant("a recording that fills its row gets its end at the last position", LOSSES)
def _(frames, length):
    return speech_masks_variant(frames, length, ends=lambda t, n: t == n.clamp(max=length - 1))


@speech_masks.mutant("a recording without speech has no end", LOSSES)
def _(frames, length):
    return speech_masks_variant(frames, length, ends=lambda t, n: (t == n) & (n > 0))


@speech_masks.mutant("the end is part of the speech mask alone: nothing is left for the second one", LOSSES)
def _(frames, length):
    return speech_masks_variant(frames, length, speech=lambda t, n: t <= n, ends=lambda t, n: t < 0 * n)


speech_masks.alternative(speech_masks_variant)


@speech_masks.alternative
def _(frames, length):
    ones = torch.nn.functional.one_hot(frames, length + 1).bool()
    return ~ones.cumsum(dim=1).bool()[:, :length], ones[:, :length]
