"""Look-ups: what a question asks of a description, as field, key and value.

    What colour is the star?   There is a big red star on the left and a small grey ring at the top. Colour star red
    Where is the grey thing?   … Where grey top

The value stands right behind the key. So it can be found in one step of attention: from the key to the same word in the
description, and from there to what stands beside it, as induction heads do (Olsson et al., 2022, arXiv:2209.11895).
With the question alone before it, the word to look for has first to be carried to where the answer begins. A value is
one word: of a place, its last; *on the* left and *on the* right begin alike, and what is copied goes astray between.

Texts in which much is looked up teach this faster than questions. They are short at first: two fields of each thing.

    big star, small ring.   How ring small. Many stars one. How heart not.
"""

import random
from typing import NamedTuple

from tinyomni.data import unanswerable, world

FIELDS = ("size", "colour", "shape", "place")
WORDS = {"How big": "How", "What colour": "Colour", "What shape": "Shape", "Where is": "Where", "Is there": "Is",
         "How many": "Many"}  # fmt: skip
"""A kind of question → the word for it in a look-up."""
NEEDS = {"How": {"size"}, "Colour": {"colour"}, "Shape": {"shape"}, "Where": {"place"}, "Is": set(), "Many": set()}
KEYS: dict[str, set[str]] = {colour: {"colour"} for colour in world.COLOURS} | {
    shape: {"shape"} for shape in (*world.SHAPES, *world.PLURALS.values())} | {"things": set()}  # fmt: skip
"""A word that can be looked up → the field that it is in."""
ABSENT = "not"  # the value of what is not there
MOST = 6  # look-ups in a text


class Lookup(NamedTuple):
    """`Colour`, `star`, `red`."""

    field: str
    key: str
    value: str

    def __str__(self) -> str:
        return " ".join(self)

    @property
    def needs(self) -> set[str]:
        """The fields of things that have to be known."""
        return NEEDS[self.field].union(*(KEYS[word] for word in self.key.split()))


def lookup(question: str, answer: str) -> Lookup | None:
    """What a question looks up, and finds; None where it has no word of the closed world to look for.

    `Is there a red star?`, `yes.` → `Is`, `red star`, `yes`.
    """
    first, second, *rest = (*question.strip("?.").split(), "", "")
    words = [word for word in rest if word in KEYS]
    if f"{first} {second}" not in WORDS or not words:
        return None
    key = " ".join(words) if first == "Is" else words[-1]
    value = answer.lower().strip(".").split()[-1]
    return Lookup(WORDS[f"{first} {second}"], key, ABSENT if answer == unanswerable.DO_NOT_KNOW else value)


def listed(things: list[world.Thing], fields: set[str]) -> str:
    """Those fields of each thing, a word for each: `red left, grey top.`"""
    words = [[getattr(thing, name).split()[-1] for name in FIELDS if name in fields] for thing in things]
    return ", ".join(map(" ".join, words)) + "."


def draw(things: list[world.Thing], rng: random.Random, short: bool) -> tuple[str, list[Lookup]]:
    """A text, and what can be looked up in it, at most MOST: every kind of question as often.

    The text is the description, or `short`, a list of two fields of each thing, one of which is colour or shape.
    """
    fields = set(FIELDS)
    if short:
        first = rng.choice(("colour", "shape"))
        fields = {first, rng.choice([name for name in FIELDS if name != first])}

    def known(question: str) -> bool:
        """Whether those fields are enough for the answer."""
        each = lookup(question, ABSENT)
        return each is not None and each.needs <= fields

    found: dict[Lookup, None] = {}  # in the order in which they were drawn
    kinds = world.askable(things, known)
    for _ in range(MOST):
        if rng.random() < 1 / 7 and known(absent := unanswerable.question(things, rng, kind="not there")):
            asked = absent, unanswerable.DO_NOT_KNOW
        else:
            asked = rng.choice(rng.choice(kinds[rng.choice(sorted(kinds))]))
        if each := lookup(*asked):
            found[each] = None
    return listed(things, fields) if short else world.in_order(things), list(found)
