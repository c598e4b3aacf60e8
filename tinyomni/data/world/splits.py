"""Splits: train, validation, test, and `compositional`, which holds out whole combinations of colour and shape."""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tinyomni.data.world.scenes import Thing, colour_shape_pairs, hard_scene, scene, scene_key
from tinyomni.errors import InputError

HELD_OUT = frozenset({
    ("green", "triangle"), ("red", "star"), ("blue", "ring"), ("yellow", "heart"), ("purple", "square"),
    ("orange", "cross"), ("pink", "diamond"), ("cyan", "circle"),
})  # fmt: skip
"""Combinations of colour and shape that no split but `compositional` has."""
SPLITS = ("train", "validation", "test", "compositional")


def check_split(split: str) -> None:
    """Raise InputError for an unknown split."""
    if split not in SPLITS:
        raise InputError(f"closed world: expected one of the splits {', '.join(SPLITS)}; got {split!r}")


def split_of(text: str, pairs: Iterable[tuple[str, str]] = ()) -> str:
    """The split of a text, or of a scene's key, by its hash: the same on every machine. `pairs` are (colour, shape)."""
    if not HELD_OUT.isdisjoint(pairs):
        return "compositional"
    number = hashlib.sha256(text.encode()).digest()[0]
    return "train" if number < 230 else "validation" if number < 243 else "test"


def split_of_scene(things: Sequence[Thing]) -> str:
    """The split of a scene."""
    return split_of(scene_key(things), colour_shape_pairs(things))


def draw_scene(
    split: str,
    index: int,
    seed: int = 0,
    hard: bool = True,
    accept: Callable[[list[Thing]], bool] = lambda things: True,
) -> list[Thing]:
    """Scene number `index` of a split, the first that `accept` takes: the same everywhere, drawn without the others."""
    check_split(split)
    for attempt in range(10_000):
        rng = random.Random(f"{seed} {split} {index} {attempt}")
        things = hard_scene(rng) if hard else scene(rng)
        if split == "compositional" and HELD_OUT.isdisjoint(colour_shape_pairs(things)):
            colour, shape = rng.choice(sorted(HELD_OUT))
            things[0] = replace(things[0], colour=colour, shape=shape)
        if len(colour_shape_pairs(things)) == len(things) and split_of_scene(things) == split and accept(things):
            return things
    raise InputError(f"closed world: none of 10,000 scenes of the split {split!r} was accepted")
