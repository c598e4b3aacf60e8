"""Look-ups: what a question asks of a description, and lists that teach to find it."""

import random

import pytest

from tinyomni.data import retrieval, unanswerable, world
from tinyomni.data.retrieval import FIELDS, Lookup, draw, listed, lookup
from tinyomni.data.world import Thing


@pytest.mark.parametrize(("question", "answer", "found"), [
    ("What colour is the small star?", "red.", "Colour star red"),
    ("What shape is the red thing?", "an orange.", "Shape red orange"),
    ("How big is the red thing?", "big.", "How red big"),
    ("Where is the ring?", "On the left.", "Where ring left"),
    ("Is there a red star?", "yes.", "Is red star yes"),
    ("How many crosses are there?", "none.", "Many crosses none"),
    ("How many things are there?", "two.", "Many things two"),
    ("Where is the ring?", unanswerable.DO_NOT_KNOW, "Where ring not"),
    ("Where is the dog?", unanswerable.DO_NOT_KNOW, "None"),
    ("How old is the dog?", unanswerable.DO_NOT_KNOW, "None"),
    ("Good night.", "See you soon.", "None"),
])  # fmt: skip
def test_a_question_as_a_lookup(question: str, answer: str, found: str) -> None:
    assert str(lookup(question, answer)) == found


def truth(things: list[Thing], each: Lookup) -> bool:
    """Worked out from the scene, without the world's own questions."""
    names = {"How": "size", "Colour": "colour", "Shape": "shape", "Where": "place"}
    if each.field in names:
        key = "shape" if each.key in world.SHAPES else "colour"
        of = [getattr(thing, names[each.field]) for thing in things if getattr(thing, key) == each.key]
        return [value.split()[-1] for value in of] == ([] if each.value == "not" else [each.value])
    if each.field == "Is":
        return (each.value == "yes") == (tuple(each.key.split()) in world.pairs_of(things))
    number = sum(each.key in ("things", world.PLURALS[thing.shape]) for thing in things)
    return each.value == world.NUMBERS[number]


@pytest.mark.parametrize("short", [True, False])
def test_what_is_looked_up_is_true_and_stands_in_the_text(short: bool) -> None:
    rng, seen = random.Random(0), set()
    for index in range(200):
        things = world.draw_scene("train", index, fit=lambda each: len(each) > 1)
        text, found = draw(things, rng, short)
        seen |= {each.field for each in found} | {each.value for each in found}
        assert 1 <= len(found) == len(set(found)) <= retrieval.MOST and all(truth(things, each) for each in found)
        if not short:
            assert text == world.in_order(things)
            continue
        (fields,) = [pair for pair in ({a, b} for a in FIELDS for b in FIELDS if a < b) if listed(things, pair) == text]
        assert fields & {"colour", "shape"} and all(each.needs <= fields for each in found)
    assert seen >= {"How", "Many", "Is", "Where", "Colour", "Shape", "yes", "no", "not", "none", "two"}


def test_a_list_names_two_fields_of_each_thing() -> None:
    things = [Thing("big", "red", "star", "on the left"), Thing("small", "grey", "ring", "at the top")]
    assert listed(things, {"colour", "place"}) == "red left, grey top."
    assert listed(things, {"shape", "size"}) == "big star, small ring."
