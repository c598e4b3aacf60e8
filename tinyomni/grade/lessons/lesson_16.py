"""Lesson 16, training codec and voice: its oracles go row by row and frame by frame."""

import functools
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "16_training_the_talker", "Training the voice"

KMEANS = "2. k-means: a good start"
LOSSES = "7. Three losses: base, residual, end"

fault: Any  # what a mutant changes


# ---- k-means --------------------------------------------------------------------------------------------------------


@exercise("One step of k-means", minutes=15, level=2)
def kmeans_step(
    x: Float[Tensor, "rows dim"], centres: Float[Tensor, "codebook_size dim"]
) -> Float[Tensor, "codebook_size dim"]:
    """Row by row to the nearest centre, then a mean for each."""
    members: list[list[Tensor]] = [[] for _ in centres]
    for row in x:
        distances = [float((row - centre).square().sum()) for centre in centres]
        members[distances.index(min(distances))].append(row)
    means = [torch.stack(rows).mean(dim=0) if rows else old for rows, old in zip(members, centres, strict=True)]
    return torch.stack(means)


@kmeans_step.cases
def _(rng):
    yield "all sizes different", {"x": rng.randn(11, 3) * torch.tensor([3.0, 1.0, 0.5]), "centres": rng.randn(4, 3)}
    yield (
        "a centre that nobody is near to",
        {"x": rng.randn(9, 2), "centres": torch.tensor([[0.3, 0.2], [90.0, 9.0], [-1.0, 0.0]])},
    )
    yield "one centre", {"x": rng.randn(6, 2) + 4, "centres": rng.randn(1, 2)}
    yield "all rows at one place", {"x": torch.ones(5, 3) * 2, "centres": rng.randn(3, 3)}
    yield "one long centre", {"x": rng.randn(12, 2), "centres": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-4.0, -4.0]])}
    yield "rows far from 0", {"x": rng.randn(14, 2) + 7, "centres": rng.randn(3, 2) + 7}


def moved(x, centres, *, near=lambda x, c: torch.cdist(x, c).argmin(dim=1), mean=lambda rows: rows.mean(dim=0),
          empty=lambda old, x: old, step=1.0):  # fmt: skip
    """The step, with one thing to go wrong at a time."""
    nearest = near(x, centres)
    new = []
    for number, old in enumerate(centres):
        rows = x[nearest == number]
        new.append(old + step * (mean(rows) - old) if len(rows) else empty(old, x))
    return torch.stack(new)


for cause, fault in (
    ("each row goes to the *farthest* centre", {"near": lambda x, c: torch.cdist(x, c).argmax(dim=1)}),
    ("the largest product is taken for the smallest distance: long centres get everybody",
     {"near": lambda x, c: (x @ c.T).argmax(dim=1)}),
    ("only the first feature decides who is nearest",
     {"near": lambda x, c: torch.cdist(x[:, :1], c[:, :1]).argmin(dim=1)}),
    ("only the angle decides, not the distance",
     {"near": lambda x, c: torch.nn.functional.cosine_similarity(x[:, None], c[None], dim=-1).argmax(dim=1)}),
    ("the middle value of each feature is taken, not the mean", {"mean": lambda rows: rows.median(dim=0).values}),
    ("the sum of the rows is not divided by their number", {"mean": lambda rows: rows.sum(dim=0)}),
    ("the mean of an empty centre is taken: NaN", {"empty": lambda old, x: old * torch.nan}),
    ("an empty centre moves to 0: it should stay where it is", {"empty": lambda old, x: old * 0}),
    ("an empty centre moves to the mean of all rows", {"empty": lambda old, x: x.mean(dim=0)}),
    ("centres move only half of the way", {"step": 0.5}),
    ("one row stands for its centre, the first", {"mean": lambda rows: rows[0]}),
):  # fmt: skip
    kmeans_step.mutant(cause, KMEANS)(functools.partial(moved, **fault))


@kmeans_step.mutant("each row gets its centre: as many come out as there are rows, not as there are centres", KMEANS)
def _(x, centres):
    return centres[torch.cdist(x, centres).argmin(dim=1)]


kmeans_step.alternative(moved)


@kmeans_step.alternative
def _(x, centres):
    nearest = (x[:, None] - centres[None]).square().sum(dim=-1).argmin(dim=1)
    member = torch.nn.functional.one_hot(nearest, len(centres)).to(x)
    count = member.sum(dim=0)[:, None]
    return torch.where(count > 0, member.T @ x / count.clamp(min=1), centres)


# ---- what counts ----------------------------------------------------------------------------------------------------


@exercise("Where speech is, and where it ends", minutes=10, level=1)
def speech_masks(
    frames: Int[Tensor, "batch"], length: int
) -> tuple[Bool[Tensor, "batch positions"], Bool[Tensor, "batch positions"]]:
    """Place by place."""
    spoken = torch.zeros(len(frames), length, dtype=torch.bool)
    ends = spoken.clone()
    for row, count in enumerate(frames.tolist()):
        for t in range(length):
            spoken[row, t] = t < count
            ends[row, t] = t == count
    return spoken, ends


@speech_masks.cases
def _(rng):
    yield "all sizes different", {"frames": torch.tensor([3, 5, 1]), "length": 6}
    yield "one that is as long as the batch: its end does not fit", {"frames": torch.tensor([4, 2]), "length": 4}
    yield "one alone", {"frames": torch.tensor([2]), "length": 3}
    yield "nothing is said", {"frames": torch.tensor([0, 3]), "length": 5}


def masked(
    frames, length, *, spoken=lambda t, n: t < n, ends=lambda t, n: t == n, out=lambda spoken, ends: (spoken, ends)
):
    """The comparisons, with one thing to go wrong at a time."""
    t, n = torch.arange(length)[None], frames[:, None]
    return out(spoken(t, n), ends(t, n))


for cause, fault in (
    ("the frame behind the last one counts as speech", {"spoken": lambda t, n: t <= n}),
    ("the last frame of speech is left out", {"spoken": lambda t, n: t < n - 1}),
    ("the end is due at the last frame of speech, not behind it", {"ends": lambda t, n: t == n - 1}),
    ("all that lies behind the speech is an end: only the first place is", {"ends": lambda t, n: t >= n}),
    ("the end is due one frame too late", {"ends": lambda t, n: t == n + 1}),
    ("the end is due at the end of the batch, for everybody", {"ends": lambda t, n: (t == t.max()) & (n > -1)}),
    ("padding is marked and speech is not", {"spoken": lambda t, n: t >= n}),
    ("the end comes first and the speech second", {"out": lambda spoken, ends: (ends, spoken)}),
):
    speech_masks.mutant(cause, LOSSES)(functools.partial(masked, **fault))


speech_masks.alternative(masked)


@speech_masks.alternative
def _(frames, length):
    ones = torch.nn.functional.one_hot(frames, length + 1).bool()
    return ~ones.cumsum(dim=1).bool()[:, :length], ones[:, :length]
