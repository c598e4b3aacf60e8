"""Scenes: one to three things in different places, and the sentences that are true of them."""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

COLOURS = (
    "red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "cyan",
)  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
PLURALS = {"cross": "crosses"} | {shape: shape + "s" for shape in SHAPES if shape != "cross"}
SIZES = ("big", "small")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
FIELDS = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "place": PLACES}
"""What a thing has, and the values of each."""
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    size: str
    colour: str
    shape: str
    place: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


def with_article(words: str) -> str:
    """`a red circle`, `an orange circle`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def colour_shape_pairs(things: Iterable[Thing]) -> set[tuple[str, str]]:
    """(colour, shape) of each thing."""
    return {(thing.colour, thing.shape) for thing in things}


def count_shape(things: Iterable[Thing], shape: str) -> int:
    """How many things have this shape."""
    return sum(thing.shape == shape for thing in things)


def scene_key(things: Iterable[Thing]) -> str:
    """The scene as one line of text that does not depend on the order of its things."""
    return "; ".join(sorted(f"{thing} {thing.place}" for thing in things))


def sort_by_place(things: Iterable[Thing]) -> list[Thing]:
    """The things in the order of PLACES."""
    return sorted(things, key=lambda thing: PLACES.index(thing.place))


# ---- drawing --------------------------------------------------------------------------------------------------------


def scene(rng: random.Random) -> list[Thing]:
    """One to three things in different places, no two of the same colour and shape."""
    things: list[Thing] = []
    places = rng.sample(PLACES, rng.randint(1, 3))
    for place in places:
        taken = colour_shape_pairs(things)
        colour, shape = rng.choice([(c, s) for c in COLOURS for s in SHAPES if (c, s) not in taken])
        things.append(Thing(rng.choice(SIZES), colour, shape, place))
    return things


def hard_scene(rng: random.Random) -> list[Thing]:
    """A scene in which one word is not enough: its things share colours, shapes and sizes."""
    things = scene(rng)
    for number in range(1, len(things)):
        before = things[number - 1]
        shared = {field: getattr(before, field) for field in ("size", "colour", "shape") if rng.random() < 0.5}
        new = replace(things[number], **shared)
        if (new.colour, new.shape) not in colour_shape_pairs(things[:number] + things[number + 1 :]):
            things[number] = new
    return things


def hard_negatives(things: Sequence[Thing]) -> list[list[Thing]]:
    """Scenes that differ from this one by a swap: shapes, colours, sizes or places of two things exchanged.

    The same colours and the same number of things stay in the image, so counting them does not help.
    """
    found: list[list[Thing]] = []
    for one, other in itertools.combinations(range(len(things)), 2):
        for field in ("shape", "colour", "size", "place"):
            a, b = things[one], things[other]
            values = {one: getattr(b, field), other: getattr(a, field)}
            swapped = [replace(t, **{field: values[i]}) if i in values else t for i, t in enumerate(things)]
            if scene_key(swapped) != scene_key(things) and len(colour_shape_pairs(swapped)) == len(things):
                found.append(swapped)
    return found


# ---- sentences ------------------------------------------------------------------------------------------------------


def captions(things: Sequence[Thing]) -> Iterator[str]:
    """Sentences that are true of the scene."""
    for thing in things:
        yield f"There is {with_article(str(thing))} {thing.place}."
        yield f"The {thing.colour} {thing.shape} is {thing.size}."
        yield f"The {thing.size} {thing.shape} is {thing.colour}."
        yield f"I see {with_article(f'{thing.colour} {thing.shape}')} {thing.place}."
    for one, other in itertools.pairwise(things):
        yield f"There is {with_article(str(one))} and {with_article(str(other))}."
    for shape in {thing.shape: None for thing in things}:
        number = count_shape(things, shape)
        yield f"There is one {shape}." if number == 1 else f"There are {NUMBERS[number]} {PLURALS[shape]}."


def description(things: Sequence[Thing]) -> str:
    """One caption that names every thing with its size, colour, shape and place."""
    parts = [f"{with_article(str(thing))} {thing.place}" for thing in things]
    return f"There is {parts[0]}." if len(parts) == 1 else f"There is {', '.join(parts[:-1])} and {parts[-1]}."


def ordered_description(things: Iterable[Thing]) -> str:
    """The description with its things in the order of PLACES: of all descriptions, the one that models learn."""
    return description(sort_by_place(things))
