"""Retrieval: what a question looks up in a description, and lists that teach to find it."""

import random

import pytest

from tinyomni.data import retrieval, unanswerable, world
from tinyomni.data.retrieval import Lookup, draw, field_list, lookup
from tinyomni.data.world import FIELDS, Question, Thing

SCENE = [Thing("big", "red", "star", "on the left"), Thing("small", "orange", "ring", "at the top")]


@pytest.mark.parametrize(("question", "found"), [
    ("What colour is the big star?", "Colour star red"),
    ("What shape is the orange thing?", "Shape orange ring"),
    ("How big is the red thing?", "How red big"),
    ("Where is the ring?", "Where ring top"),
    ("Is there a red star?", "Is red star yes"),
    ("Is there an orange star?", "Is orange star no"),
    ("How many crosses are there?", "Many crosses none"),
    ("How many things are there?", "Many things two"),
])  # fmt: skip
def test_a_question_as_a_lookup(question: str, found: str) -> None:
    (asked,) = [each for each in world.questions(SCENE) if each.text == question]
    assert str(lookup(asked)) == found


def test_an_absent_thing_is_looked_up_and_an_unknown_word_is_not() -> None:
    for index in range(50):
        absent = unanswerable.question(SCENE, random.Random(index), about="not there")
        found = lookup(absent)
        assert found is not None and found.value == "not" and found.key in absent.text
        assert absent.answer == unanswerable.DO_NOT_KNOW and absent.kind in world.QUESTION_KINDS
        assert lookup(unanswerable.question(SCENE, random.Random(index), about="unknown word")) is None
    assert lookup(unanswerable.unanswered(next(world.questions(SCENE)))) is None
    assert lookup(Question(None, "Good night.", "See you soon.")) is None


def truth(things: list[Thing], each: Lookup) -> bool:
    """Worked out from the scene, without the world's own questions."""
    names = {"How": "size", "Colour": "colour", "Shape": "shape", "Where": "place"}
    if each.keyword in names:
        key = "shape" if each.key in world.SHAPES else "colour"
        of = [getattr(thing, names[each.keyword]) for thing in things if getattr(thing, key) == each.key]
        return [value.split()[-1] for value in of] == ([] if each.value == "not" else [each.value])
    if each.keyword == "Is":
        return (each.value == "yes") == (tuple(each.key.split()) in world.colour_shape_pairs(things))
    number = sum(each.key in ("things", world.PLURALS[thing.shape]) for thing in things)
    return each.value == world.NUMBERS[number]


def needed(each: Lookup) -> set[str]:
    """The fields that a text must have, worked out without the registry of question kinds."""
    fields = {"How": {"size"}, "Colour": {"colour"}, "Shape": {"shape"}, "Where": {"place"}}.get(each.keyword, set())
    for word in each.key.split():
        fields |= {"colour"} if word in world.COLOURS else set() if word == "things" else {"shape"}
    return fields


@pytest.mark.parametrize("short", [True, False])
def test_lookups_are_true_and_follow_from_the_text(short: bool) -> None:
    rng, seen = random.Random(0), set()
    for index in range(200):
        things = world.draw_scene("train", index, accept=lambda each: len(each) > 1)
        text, found = draw(things, rng, short)
        seen |= {each.keyword for each in found} | {each.value for each in found}
        assert 1 <= len(found) == len(set(found)) <= retrieval.MAX_LOOKUPS
        assert all(truth(things, each) for each in found)
        if not short:
            assert text == world.ordered_description(things)
            continue
        pairs = [{a, b} for a in FIELDS for b in FIELDS if a < b]
        (fields,) = [pair for pair in pairs if field_list(things, pair) == text]
        assert fields & {"colour", "shape"} and all(needed(each) <= fields for each in found)
    assert seen >= {"How", "Many", "Is", "Where", "Colour", "Shape", "yes", "no", "not", "none", "two"}


def test_a_field_list_names_two_fields_of_each_thing() -> None:
    things = [Thing("big", "red", "star", "on the left"), Thing("small", "grey", "ring", "at the top")]
    assert field_list(things, {"colour", "place"}) == "red left, grey top."
    assert field_list(things, {"shape", "size"}) == "big star, small ring."
