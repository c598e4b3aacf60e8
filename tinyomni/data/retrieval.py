"""Retrieval: what a question looks up in a description, as keyword, key and value.

    What colour is the star?   There is a big red star on the left and a small grey ring at the top. Colour star red
    Where is the grey thing?   … Where grey top

The value comes right after the key. So it can be found in one step of attention: from the key to the same word in the
description, and from there to its neighbours, as induction heads do (Olsson et al., 2022, arXiv:2209.11895). With the
question alone before it, the word to look for would first have to be carried to where the answer begins. A value is one
word, of a place the last: *on the* left and *on the* right begin alike, and copying easily goes astray between them.

Texts with many lookups teach this faster than questions. At first they are short lists of two fields of each thing.

    big star, small ring.   How ring small. Many stars one. How heart not.
"""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tinyomni.data import unanswerable, world
from tinyomni.data.world import FIELDS, QUESTION_KINDS, Question, Thing

KEY_FIELDS: dict[str, set[str]] = {colour: {"colour"} for colour in world.COLOURS} | {
    shape: {"shape"} for shape in (*world.SHAPES, *world.PLURALS.values())} | {"things": set()}  # fmt: skip
"""A word of a key → the field that has to be known to find it."""
MAX_LOOKUPS = 6  # in a text
P_ABSENT = 1 / 7  # how often something that is not there is looked up


class Lookup(NamedTuple):
    """`Colour star red`: the keyword of a question kind, what is asked about, and what is found."""

    keyword: str
    key: str
    value: str

    def __str__(self) -> str:
        return " ".join(self)


def lookup(question: Question) -> Lookup | None:
    """What answers the question; None where there is nothing to look up.

    `Is there a red star? Yes.` → `Is`, `red star`, `yes`.
    """
    if question.kind is None or question.key is None or question.value is None:
        return None
    return Lookup(QUESTION_KINDS[question.kind].keyword, question.key, question.value)


def fields_needed(question: Question) -> frozenset[str] | None:
    """The fields of things that have to be known for the answer; None where there is nothing to look up."""
    if question.kind is None or question.key is None:
        return None
    return QUESTION_KINDS[question.kind].needs.union(*(KEY_FIELDS[word] for word in question.key.split()))


def field_list(things: Sequence[Thing], fields: Iterable[str]) -> str:
    """These fields of each thing, one word each: `red left, grey top.`"""
    words = [[getattr(thing, name).split()[-1] for name in FIELDS if name in fields] for thing in things]
    return ", ".join(map(" ".join, words)) + "."


def draw(things: Sequence[Thing], rng: random.Random, short: bool) -> tuple[str, list[Lookup]]:
    """A text, and at most MAX_LOOKUPS lookups in it: every kind of question is equally likely.

    The text is the description, or `short`, a list of two fields of each thing, one of which is colour or shape.
    """
    fields = set(FIELDS)
    if short:
        first = rng.choice(("colour", "shape"))
        fields = {first, rng.choice([name for name in FIELDS if name != first])}

    def answerable(question: Question) -> bool:
        """Whether those fields are enough for the answer."""
        needed = fields_needed(question)
        return needed is not None and needed <= fields

    found: dict[Lookup, None] = {}  # in the order in which they were drawn
    kinds = world.questions_by_kind(things, answerable)
    for _ in range(MAX_LOOKUPS):
        if rng.random() < P_ABSENT and answerable(absent := unanswerable.question(things, rng, about="not there")):
            question = absent
        else:
            question = rng.choice(rng.choice(kinds[rng.choice(list(kinds))]))
        if each := lookup(question):
            found[each] = None
    return field_list(things, fields) if short else world.ordered_description(things), list(found)
