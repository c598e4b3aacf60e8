"""What lesson 20 asks the Thinker, and how far the right answer leads when heads are ablated.

    draw_lookups → texts (batch, tokens) that end where the colour of a shape is looked up, and their colours exchanged
    lead         → logit of the right colour − logit of the other one (batch,), with any heads ablated

Since both scenes are known, what a head does can be graded: ablate it, and see whether the right colour still leads.

Sources: Wang et al., Interpretability in the Wild (2022), arXiv:2211.00593, for the difference of two logits and for
the mean as what an ablated head says; Olsson et al. (2022), arXiv:2209.11895, for heads that look a word up.
"""

import random
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.data import retrieval, world
from tinyomni.data.world import COLOURS, PLACES, SHAPES, SIZES, Thing
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BOS, BPETokenizer

Head = tuple[int, int]
"""Layer and head, each counted from 0."""


class Lookups(NamedTuple):
    """Texts of one length, each about two things; in the swapped ones the two colours are exchanged, nothing else."""

    things: list[list[Thing]]
    ids: Int[Tensor, "batch tokens"]
    swapped_ids: Int[Tensor, "batch tokens"]
    right: Int[Tensor, "batch"]
    other: Int[Tensor, "batch"]


def exchange_colours(things: list[Thing]) -> list[Thing]:
    """The same two things, each with the colour of the other."""
    one, two = things
    return [replace(one, colour=two.colour), replace(two, colour=one.colour)]


def lookup_text(things: list[Thing], asked: int) -> tuple[str, str]:
    """The question about the colour of one thing, and the scratchpad up to where that colour comes next."""
    questions = world.questions(things)
    thing = things[asked]
    question = next(each for each in questions if (each.kind, each.key) == ("colour", thing.shape))
    found = retrieval.lookup(question)
    assert found is not None
    return question.text, f"{world.ordered_description(things)} {found.keyword} {found.key}"


def draw_lookups(tokenizer: BPETokenizer, count: int, seed: int = 0) -> Lookups:
    """`count` pairs of texts, all of one length in tokens, in which the colours of two things are told apart."""
    rng = random.Random(f"lookups {seed}")
    start = [tokenizer.separators.scratchpad] if tokenizer.separators else []
    rows: list[tuple[list[Thing], list[int], list[int], int, int]] = []
    while len(rows) < count:
        places = sorted(rng.sample(PLACES, 2), key=PLACES.index)
        colours, shapes = rng.sample(COLOURS, 2), rng.sample(SHAPES, 2)
        things = [Thing(rng.choice(SIZES), *each) for each in zip(colours, shapes, places, strict=True)]
        asked = rng.randrange(2)
        both = []
        for scene in (things, exchange_colours(things)):
            question, text = lookup_text(scene, asked)
            written = tokenizer.encode(text)
            # the first piece of the colour, behind this text
            answer = tokenizer.encode(f"{text} {scene[asked].colour}")[len(written)]
            both.append(([BOS, *tokenizer.encode(question), *start, *written], answer))
        (ids, right), (swapped, other) = both
        if right != other and len(ids) == len(swapped) == len(rows[0][1] if rows else ids):
            rows.append((things, ids, swapped, right, other))
    scenes, *numbers = zip(*rows, strict=True)
    return Lookups(list(scenes), *map(torch.tensor, numbers))


def ablated(
    merged: Float[Tensor, "batch tokens dim"], heads: int, which: Iterable[int]
) -> Float[Tensor, "batch tokens dim"]:
    """The heads' outputs, side by side; those of `which` say the same everywhere: their mean over batch and tokens."""
    parts = merged.unflatten(-1, (heads, -1)).clone()
    for head in which:
        parts[:, :, head] = parts[:, :, head].mean(dim=(0, 1))
    return parts.flatten(-2)


@torch.no_grad()
def lead(
    think: ThinkerLM,
    ids: Int[Tensor, "batch tokens"],
    right: Int[Tensor, "batch"],
    other: Int[Tensor, "batch"],
    heads: Iterable[Head] = (),
) -> Float[Tensor, "batch"]:
    """How far the right word's logit is above the other's at the end of each text, with these heads ablated."""
    layers: dict[int, list[int]] = {}
    for layer, head in heads:
        layers.setdefault(layer, []).append(head)
    with ExitStack() as hooks:
        for layer, which in layers.items():
            attn: Any = think.blocks[layer].attn

            def change(_: object, args: tuple[Tensor], n: int = attn.heads, which: list[int] = which) -> Tensor:
                return ablated(args[0], n, which)

            hooks.callback(attn.o_proj.register_forward_pre_hook(change).remove)
        logits = think(ids)[:, -1]
    return (logits.gather(1, right[:, None]) - logits.gather(1, other[:, None]))[:, 0]
