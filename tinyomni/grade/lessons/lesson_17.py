"""Lesson 17, bringing it together: its oracles label position by position, and look at a model after `train()`."""

import contextlib
import functools
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "17_bringing_it_together", "Bringing it together"

LOSS = "2. Loss masking: only the answer counts"
FROZEN = "3. Frozen means two things"

fault: Any  # what a mutant changes


# ---- labels ---------------------------------------------------------------------------------------------------------


@exercise("Labels for the answer", minutes=15, level=2)
def make_labels(
    ids: Int[Tensor, "batch text_tokens"],
    prompts: Int[Tensor, "batch"],
    lengths: Int[Tensor, "batch"],
    ignore_index: int = -100,
) -> Int[Tensor, "batch text_tokens"]:
    """Position by position: the next token, if it is part of the answer."""
    out = torch.full_like(ids, ignore_index)
    for row, (prompt, length) in enumerate(zip(prompts.tolist(), lengths.tolist(), strict=True)):
        for position in range(prompt - 1, length - 1):
            out[row, position] = ids[row, position + 1]
    return out


@make_labels.cases
def _(rng):
    ids = rng.randint(90, 3, 7, low=3)
    yield "all sizes different", {"ids": ids, "prompts": torch.tensor([2, 4, 1]), "lengths": torch.tensor([5, 7, 3])}
    yield "one row without padding", {"ids": ids[:1], "prompts": torch.tensor([3]), "lengths": torch.tensor([7])}
    yield (
        "another ignore_index",
        {"ids": ids[:2], "prompts": torch.tensor([1, 5]), "lengths": torch.tensor([7, 6]), "ignore_index": -1},
    )
    yield (
        "only a prompt: no labels",
        {"ids": ids, "prompts": torch.tensor([2, 5, 7]), "lengths": torch.tensor([4, 5, 7])},
    )
    yield "one token", {"ids": ids[:, :1], "prompts": torch.tensor([1, 1, 1]), "lengths": torch.tensor([1, 1, 1])}


@make_labels.random_inputs
def _(rng):
    batch, tokens = rng.size(4), rng.size(7)
    lengths = rng.randint(tokens + 1, batch, low=1)
    prompts = torch.stack([rng.randint(int(length) + 1, 1, low=1)[0] for length in lengths])
    return {
        "ids": rng.randint(6, batch, tokens), "prompts": prompts, "lengths": lengths,
        "ignore_index": rng.choice((-100, -1, 7)),
    }  # fmt: skip


def make_labels_variant(
    ids, prompts, lengths, ignore_index=-100, *, first=lambda p: p - 1, last=lambda n: n - 1, after=1, fill=None
):
    """`make_labels`; each keyword injects one fault."""
    position = torch.arange(ids.shape[1])[None]
    has_label = (position >= first(prompts)[:, None]) & (position < last(lengths)[:, None])
    return ids.roll(-after, dims=1).masked_fill(~has_label, ignore_index if fill is None else fill)


for cause, fault in (
    (
        "the labels are not shifted, though they belong to the right positions: copying the input is easy to learn",
        {"after": 0},
    ),
    (
        "each token of the answer is its own label: at each position the label is the *next* token",
        {"after": 0, "first": lambda p: p, "last": lambda n: n},
    ),
    ("the labels are shifted by two", {"after": 2}),
    ("the labels are shifted the wrong way", {"after": -1}),
    ("the prompt is not masked: the model learns to ask", {"first": lambda p: p * 0}),
    (
        "the first token of the answer is masked: its label belongs *at the last token of the prompt*",
        {"first": lambda p: p},
    ),
    ("the last token of the prompt is not masked: the answer begins right after it", {"first": lambda p: p - 2}),
    ("EOS is masked: the model never learns to stop", {"last": lambda n: n - 2}),
    ("padding is not masked: the position after EOS has a label as well", {"last": lambda n: n}),
    ("masked positions are 0, which is a token", {"fill": 0}),
    ("masked positions are always -100, ignoring `ignore_index`", {"fill": -100}),
):
    make_labels.mutant(cause, LOSS)(functools.partial(make_labels_variant, **fault))


make_labels.alternative(make_labels_variant)


@make_labels.alternative
def _(ids, prompts, lengths, ignore_index=-100):
    rows = []
    for row, prompt, length in zip(ids, prompts.tolist(), lengths.tolist(), strict=True):
        answer = row[prompt:length]
        rows.append(
            torch.cat(
                [
                    row.new_full((prompt - 1,), ignore_index),
                    answer,
                    row.new_full((len(row) - length + 1,), ignore_index),
                ]
            )
        )
    return torch.stack(rows)


# ---- frozen ---------------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """An image encoder with everything that training mode changes, and a Thinker."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.vision = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(0.5)))
            self.thinker = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
            for each in (self.vision, self.thinker):
                each.register_parameter("start", nn.Parameter(torch.zeros(3)))
            self.vision_head = nn.Sequential(nn.Linear(3, 2))  # its name begins with that of another part
            self.thinker.add_module("vision", nn.Linear(2, 2))  # the same name, in another part


def training_state(model: nn.Module, when: str) -> dict[str, list[str]]:
    """What is trained and what is in training mode, by name."""
    trained = sorted(name for name, each in model.named_parameters() if each.requires_grad)
    return {
        f"trained, {when}": trained,
        f"training mode, {when}": sorted(name for name, each in model.named_modules() if each.training),
    }


@exercise("Freeze a part of a model", minutes=15, level=2, float64=False)
def freeze(model: nn.Module, part: str):
    """What is expected after `train()`, and after `eval()` and `train()` again."""
    names = [name for name, _ in model.named_modules()]
    inside = {name for name in names if name == part or name.startswith(f"{part}.")}
    outside = [(name, each) for name, each in model.named_parameters() if not name.startswith(f"{part}.")]
    trained = sorted(name for name, each in outside if each.requires_grad)
    training = sorted(name for name in names if name not in inside)
    return {
        "trained, train": trained,
        "training mode, train": training,
        "trained, eval": trained,
        "training mode, eval": [],
        "trained, train again": trained,
        "training mode, train again": training,
    }


@freeze.invoke
def _(answer, model, part):
    found: dict[str, list[str]] = {}
    with restored({type(each) for each in model.modules()}):
        answer(model, part)
        for when, mode in (("train", True), ("eval", False), ("train again", True)):
            model.train(mode)
            found |= training_state(model, when)
    return found


@contextlib.contextmanager
def restored(kinds):
    """An answer may replace `train` of a whole class: the next answer finds the class as it was."""
    before = {kind: vars(kind).get("train") for kind in {nn.Module, *kinds}}
    try:
        yield
    finally:
        for kind, train in before.items():
            if train is not None:
                kind.train = train
            elif "train" in vars(kind):
                del kind.train


@freeze.cases
def _(rng):
    yield "the image encoder", {"model": Pair(0), "part": "vision"}
    yield "the Thinker", {"model": Pair(1), "part": "thinker"}
    half = Pair(2)
    half.vision_head.requires_grad_(False)
    yield "another part was frozen before, and stays it", {"model": half, "part": "vision"}


@freeze.random_inputs
def _(rng):
    model = Pair(rng.size(100))
    names = [name for name, _ in model.named_children()]
    getattr(model, rng.choice(names)).requires_grad_(bool(rng.randbool(1)))  # a part that was frozen before
    return {"model": model, "part": rng.choice(names)}


@freeze.mutant(
    "`train()` puts the part back into training mode: no gradients, and `eval()` once, are not enough", FROZEN
)
def _(model, part):
    getattr(model, part).requires_grad_(False)
    return model


@freeze.mutant("it is in eval mode only until the next `train()`, and its weights are trained", FROZEN)
def _(model, part):
    getattr(model, part).eval()
    return model


@freeze.mutant("its mode stays, but its weights are trained", FROZEN)
def _(model, part):
    getattr(model, part).eval()
    getattr(model, part).train = lambda mode=True: getattr(model, part)
    return model


@freeze.mutant("`train` is replaced for a whole class: all other parts of that class stay in eval mode too", FROZEN)
def _(model, part):
    kind = type(getattr(model, part).requires_grad_(False).eval())
    kind.train = lambda self, mode=True: self
    return model


@freeze.mutant("everything is frozen", FROZEN)
def _(model, part):
    model.requires_grad_(False)
    for each in model.modules():
        each.training = False
    model.train = lambda mode=True: model
    return model


@freeze.mutant("the whole model stays in eval mode: the rest no longer trains", FROZEN)
def _(model, part):
    getattr(model, part).requires_grad_(False)
    model.eval()
    model.train = lambda mode=True: model
    return model


@freeze.mutant("the part is in eval mode, but not its submodules", FROZEN)
def _(model, part):
    frozen = getattr(model, part).requires_grad_(False)

    def train(mode=True):
        nn.Module.train(frozen, mode)
        frozen.training = False
        return frozen

    frozen.train = train
    return model


@freeze.mutant("parts whose names begin in the same way are frozen with it: compare up to the dot", FROZEN)
def _(model, part):
    for name, each in model.named_parameters():
        each.requires_grad_(not name.startswith(part))
    return freeze_part(model, part)


@freeze.mutant("all other parts are switched on, also those that were frozen before", FROZEN)
def _(model, part):
    model.requires_grad_(True)
    return freeze_part(model, part)


@freeze.mutant("the other part is frozen", FROZEN)
def _(model, part):
    freeze_part(model, "thinker" if part == "vision" else "vision")
    return model


def freeze_part(model, part):
    """Override the part's `train` so that it does nothing."""
    frozen = getattr(model, part).requires_grad_(False).eval()
    frozen.train = lambda mode=True: frozen


@freeze.mutant("only the weights of the part itself are frozen, not those of its submodules", FROZEN)
def _(model, part):
    freeze_part(model, part)
    for child in getattr(model, part).children():
        child.requires_grad_(True)
    return model


@freeze.mutant("biases are left to train: only names that end in `weight` are frozen", FROZEN)
def _(model, part):
    freeze_part(model, part)
    for name, each in getattr(model, part).named_parameters():
        each.requires_grad_(not name.endswith("weight"))
    return model


@freeze.mutant("every submodule of that name is frozen, also inside other parts", FROZEN)
def _(model, part):
    for name, each in model.named_modules():
        if part in name.split("."):
            each.requires_grad_(False).eval()
            each.train = lambda mode=True, each=each: each
    return model


@freeze.alternative
def _(model, part):
    freeze_part(model, part)
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
