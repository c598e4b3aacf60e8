"""Lesson 17, bringing it together: its oracles mark place by place, and look at a model after it was told to train."""

import functools
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "17_bringing_it_together", "Bringing it together"

LOSS = "2. The loss is on the answer only"
FROZEN = "3. Frozen means two things"

fault: Any  # what a mutant changes


# ---- what is due ----------------------------------------------------------------------------------------------------


@exercise("What is due", minutes=15, level=2)
def targets(
    ids: Int[Tensor, "batch text_tokens"],
    prompts: Int[Tensor, "batch"],
    lengths: Int[Tensor, "batch"],
    skip: int = -100,
) -> Int[Tensor, "batch text_tokens"]:
    """Place by place: what comes next, if it is part of the answer."""
    out = torch.full_like(ids, skip)
    for row, (prompt, length) in enumerate(zip(prompts.tolist(), lengths.tolist(), strict=True)):
        for place in range(prompt - 1, length - 1):
            out[row, place] = ids[row, place + 1]
    return out


@targets.cases
def _(rng):
    ids = rng.randint(90, 3, 7, low=3)
    yield "all sizes different", {"ids": ids, "prompts": torch.tensor([2, 4, 1]), "lengths": torch.tensor([5, 7, 3])}
    yield "one row without padding", {"ids": ids[:1], "prompts": torch.tensor([3]), "lengths": torch.tensor([7])}
    yield (
        "another number for what is not due",
        {"ids": ids[:2], "prompts": torch.tensor([1, 5]), "lengths": torch.tensor([7, 6]), "skip": -1},
    )
    yield (
        "a prompt alone: nothing is due",
        {"ids": ids, "prompts": torch.tensor([2, 5, 7]), "lengths": torch.tensor([4, 5, 7])},
    )
    yield "one token", {"ids": ids[:, :1], "prompts": torch.tensor([1, 1, 1]), "lengths": torch.tensor([1, 1, 1])}


def marked(ids, prompts, lengths, skip=-100, *, first=lambda p: p - 1, last=lambda n: n - 1, after=1, fill=None):
    """The mask, with one thing to go wrong at a time."""
    place = torch.arange(ids.shape[1])[None]
    due = (place >= first(prompts)[:, None]) & (place < last(lengths)[:, None])
    return ids.roll(-after, dims=1).masked_fill(~due, skip if fill is None else fill)


for cause, fault in (
    ("the token itself is due, not the one after it: copying is easily learned", {"after": 0}),
    ("the token after the next is due", {"after": 2}),
    ("the token before is due: the shift goes the wrong way", {"after": -1}),
    ("the prompt is due too: the model learns to ask", {"first": lambda p: p * 0}),
    ("the first token of the answer is lost: it is due *at the last token of the prompt*", {"first": lambda p: p}),
    ("the last token of the prompt is due as well: the answer begins right behind it", {"first": lambda p: p - 2}),
    ("EOS is never learned: the last token of the answer is left out", {"last": lambda n: n - 2}),
    ("padding is due: behind EOS something is learned as well", {"last": lambda n: n}),
    ("what is not due is 0, which is a token", {"fill": 0}),
    ("what is not due is always -100, whatever is asked for", {"fill": -100}),
):
    targets.mutant(cause, LOSS)(functools.partial(marked, **fault))


targets.alternative(marked)


@targets.alternative
def _(ids, prompts, lengths, skip=-100):
    rows = []
    for row, prompt, length in zip(ids, prompts.tolist(), lengths.tolist(), strict=True):
        answer = row[prompt:length]
        rows.append(
            torch.cat([row.new_full((prompt - 1,), skip), answer, row.new_full((len(row) - length + 1,), skip)])
        )
    return torch.stack(rows)


# ---- frozen ---------------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """An eye with everything that a training mode changes, and a Thinker."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.eye = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(0.5)))
            self.thinker = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))


def seen(model: nn.Module, when: str) -> dict[str, list[str]]:
    """What learns and what is in training mode, by name."""
    learn = sorted(name for name, each in model.named_parameters() if each.requires_grad)
    return {
        f"learns, {when}": learn,
        f"in training mode, {when}": sorted(name for name, each in model.named_modules() if each.training),
    }


@exercise("Frozen twice", minutes=15, level=2, float64=False)
def freeze(model: nn.Module, part: str):
    """What is due after `train()`, and after `eval()` and `train()` again."""
    names = [name for name, _ in model.named_modules()]
    inside = {name for name in names if name == part or name.startswith(f"{part}.")}
    learn = sorted(name for name, _ in model.named_parameters() if not name.startswith(f"{part}."))
    on = sorted(name for name in names if name not in inside)
    return {"learns, train": learn, "in training mode, train": on, "learns, eval": learn, "in training mode, eval": [],
            "learns, again": learn, "in training mode, again": on}  # fmt: skip


@freeze.invoke
def _(answer, model, part):
    answer(model, part)
    found: dict[str, list[str]] = {}
    for when, mode in (("train", True), ("eval", False), ("again", True)):
        model.train(mode)
        found |= seen(model, when)
    return found


@freeze.cases
def _(rng):
    yield "the eye", {"model": Pair(0), "part": "eye"}
    yield "the Thinker", {"model": Pair(1), "part": "thinker"}


@freeze.mutant("only gradients are switched off: `train()` puts the part back into training mode", FROZEN)
def _(model, part):
    getattr(model, part).requires_grad_(False)
    return model


@freeze.mutant("it is in eval mode once, until the next `train()`; its weights learn", FROZEN)
def _(model, part):
    getattr(model, part).eval()
    return model


@freeze.mutant("its mode stays, but its weights learn", FROZEN)
def _(model, part):
    getattr(model, part).train = lambda mode=True: getattr(model, part)
    getattr(model, part).eval()
    return model


@freeze.mutant("everything is frozen", FROZEN)
def _(model, part):
    model.requires_grad_(False)
    for each in model.modules():
        each.training = False
    model.train = lambda mode=True: model
    return model


@freeze.mutant("the mode of the whole model stays in eval: the rest no longer trains", FROZEN)
def _(model, part):
    getattr(model, part).requires_grad_(False)
    model.eval()
    model.train = lambda mode=True: model
    return model


@freeze.mutant("the part is in eval mode, but not what lies in it", FROZEN)
def _(model, part):
    frozen = getattr(model, part).requires_grad_(False)

    def train(mode=True):
        nn.Module.train(frozen, mode)
        frozen.training = False
        return frozen

    frozen.train = train
    return model


@freeze.mutant("the other part is frozen", FROZEN)
def _(model, part):
    hold(model, {"eye": "thinker", "thinker": "eye"}[part])
    return model


def hold(model, part):
    """The part's own `train` does nothing any more."""
    frozen = getattr(model, part).requires_grad_(False).eval()
    frozen.train = lambda mode=True: frozen


@freeze.alternative
def _(model, part):
    hold(model, part)
    return model


@freeze.alternative
def _(model, part):
    for each in getattr(model, part).parameters():
        each.requires_grad = False

    def train(mode=True):
        nn.Module.train(model, mode)
        getattr(model, part).eval()
        return model

    model.train = train
    return model
