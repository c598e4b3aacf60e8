"""The same questions as people word them, and questions that only people ask: the wide style of text.

    Question("colour", "What colour is the star?", …) → "Which color does the star have", "is the star red or blue?"

The answer and what is looked up stay those of the question, so that reading is all that has to be learned. Templates
are sorted into families; those of HELD_OUT are never trained on, and tell how well other wordings are understood. The
families `people` and `others` do not come from this grammar: they are in `assets/wordings.json`, written by authors who
had seen neither it nor one another's templates.
Beside them: typing errors, conversations, in which a question refers to the one before it, and small talk.
"""

import json
import random
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinyomni.data import unanswerable, world
from tinyomni.data.world import COLOURS, FIELDS, NUMBERS, SHAPES, SIZES, Question, Thing, with_article
from tinyomni.data.world.questions import as_sentence

NOUNS = ("thing", "object", "shape", "figure", "item")

TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        "what": ("What colour is {the}?", "What is the colour of {the}?", "What colour does {the} have?"),
        "which": ("Which colour is {the}?", "Which colour does {the} have?"),
        "tell": ("Tell me the colour of {the}.", "Please tell me what colour {the} is."),
        "choice": ("Is {the} {value} or {other}?", "Is {the} {other} or {value}?"),
        "name": ("Name the colour of {the}.",),
    },
    "shape": {
        "what": ("What shape is {the}?", "What is {the}?", "What is the shape of {the}?"),
        "which": ("Which shape is {the}?", "Which shape does {the} have?"),
        "tell": ("Tell me what {the} is.", "Tell me the shape of {the}."),
        "choice": ("Is {the} {value} or {other}?", "Is {the} {other} or {value}?"),
        "name": ("Name the shape of {the}.",),
    },
    "size": {
        "what": ("How big is {the}?", "What size is {the}?", "What is the size of {the}?"),
        "which": ("Which size is {the}?",),
        "tell": ("Tell me how big {the} is.", "Tell me the size of {the}."),
        "choice": ("Is {the} big or small?", "Is {the} small or big?"),
        "name": ("How large is {the}?",),
    },
    "place": {
        "what": ("Where is {the}?", "Where can I find {the}?", "In which place is {the}?"),
        "which": ("At which place is {the}?",),
        "tell": ("Tell me where {the} is.", "Where do you see {the}?"),
        "choice": ("Is {the} {value} or {other}?", "Is {the} {other} or {value}?"),
        "name": ("What is the place of {the}?",),
    },
    "existence": {
        "what": ("Is there {a}?", "Is there {a} in the image?"),
        "which": ("Do you see {a}?", "Can you see {a}?"),
        "tell": ("Tell me if there is {a}.", "Does the image show {a}?"),
        "choice": ("Is there {a} or not?",),
        "name": ("Is {a} there?",),
    },
    "count": {
        "what": ("How many {things} are there?", "How many {things} do you see?"),
        "which": ("How many {things}?", "How many {things} are in the image?"),
        "tell": ("Tell me how many {things} there are.", "Count the {things}."),
        "choice": ("How many {things} can you see?",),
        "name": ("What is the number of {things}?",),
    },
}
"""Of each kind of question the families of its wordings."""
WRITTEN: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent.parent / "assets" / "wordings.json").read_text(encoding="utf-8")
)
"""Families of what people wrote → kinds of questions → templates.

Beside the kinds above: `at` asks what is at a place, `is` whether a thing has a value, `choice` which of two it has,
`describe` for a description, `it_…` refers to the thing before, and `and_the` to the question before.
"""
HELD_OUT = ("name", "others")
"""Families that training never has."""
GRAMMAR = tuple(name for name in TEMPLATES["colour"] if name not in HELD_OUT)
"""Those that training has, of the grammar."""
DESCRIBE = (
    "Describe the image.", "What do you see in this image?", "What do you see?", "Describe this image.",
    "What is in the image?", "What is in this picture?", "Describe what you see.", "Tell me what you see.",
    "What can you see?", "Describe the picture.", "What does the image show?", "Describe the scene.",
)  # fmt: skip
SMALL_TALK = {
    "Hello.": "Hello, how are you?", "Hi.": "Hello, how are you?", "Hello, how are you?": "I am fine, thank you.",
    "How are you?": "I am fine, thank you.", "How are you today?": "I am fine, thank you.",
    "Good morning.": "Good morning.", "Good night.": "See you soon.", "Bye.": "See you soon.",
    "Goodbye.": "See you soon.", "Thank you.": "You are welcome.", "Thanks.": "You are welcome.",
    "Thank you very much.": "You are welcome.", "Can you help me?": "Of course I can.",
    "Who are you?": "My name is Omni.", "What is your name?": "My name is Omni.",
    "What can you do?": "I can read, see, hear and speak.", "What time is it?": "I do not know.",
    "Where are we now?": "I do not know.", "How old are you?": "I do not know.",
}  # fmt: skip
KEYS_OF_LETTERS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
P_PLAIN = 0.25  # how often a question keeps the world's own wording
P_PEOPLE = 0.6  # how often, of the others, a typed question is worded as people wrote it
P_CHOICE = 0.15  # how often such a question offers two answers
P_CARELESS = 0.35  # how often it is typed carelessly


class Turn(NamedTuple):
    """A question of a conversation, and its answer."""

    question: str
    answer: str


# ---- wordings of one question ---------------------------------------------------------------------------------------


def families(split: str) -> tuple[str, ...]:
    """The families of wordings that a split has: training those that are not held out, `held out` the others."""
    return HELD_OUT if split == "held out" else (*GRAMMAR, "people")


def the_thing(question: Question, things: Sequence[Thing], rng: random.Random) -> str:
    """`the star`, `the big star`, `the red object`: what a question of a field asks about."""
    key, noun = question.key or "", rng.choice(NOUNS)
    if key in SHAPES:
        size = next((f"{thing.size} " for thing in things if thing.shape == key and thing.size in question.text), "")
        return f"the {size}{key}"
    return f"the {key} {noun}"


def reword(question: Question, things: Sequence[Thing], rng: random.Random, family: str) -> str:
    """A question of the world in another wording of the family; its answer stays the same."""
    if question.kind is None or question.key is None or question.value is None:
        return question.text
    known = question.answer != unanswerable.DO_NOT_KNOW  # else a choice would name a right answer
    if family == "choice" and not known:
        family = "what"
    template = rng.choice(WRITTEN[family][question.kind] if family in WRITTEN else TEMPLATES[question.kind][family])
    if question.kind == "existence":
        return template.format(a=with_article(question.key))
    if question.kind == "count":
        plural = rng.choice(NOUNS) + "s" if question.key == "things" else question.key
        return template.format(things=plural)
    the, value = the_thing(question, things, rng), question.answer[0].lower() + question.answer[1:].removesuffix(".")
    other = value
    while other == value or other == question.key:
        other = rng.choice(FIELDS[question.kind])
        other = with_article(other) if question.kind == "shape" else other
    if family in WRITTEN and known and rng.random() < P_CHOICE:
        one, other = rng.sample((value, other), 2)
        return rng.choice(WRITTEN[family]["choice"]).format(the=the, one=one, other=other)
    return template.format(the=the, value=value, other=other)


# ---- more questions -------------------------------------------------------------------------------------------------


def counts_of_a_field(things: Sequence[Thing], rng: random.Random, family: str | None = None) -> Question:
    """How many big things, or red ones, are there?"""
    by = rng.choice(("size", "colour"))
    there = [getattr(thing, by) for thing in things]
    word = rng.choice(there) if there and rng.random() < 0.7 else rng.choice(SIZES if by == "size" else COLOURS)
    value, noun = NUMBERS[there.count(word)], rng.choice(NOUNS) + "s"
    templates = [f"How many {{things}}{end}?" for end in ("", " are there", " do you see")]
    text = rng.choice(WRITTEN[family]["count"] if family in WRITTEN else templates).format(things=f"{word} {noun}")
    return Question("count", text, as_sentence(value), f"{word} things", value)


def what_is_there(things: Sequence[Thing], rng: random.Random, family: str | None = None) -> Question:
    """What is on the left? Two words are looked up: `left red star`."""
    thing = rng.choice(list(things))
    templates = [f"{start} {{place}}?" for start in ("What is", "What do you see", "Which thing is", "What is there")]
    text = rng.choice(WRITTEN[family]["at"] if family in WRITTEN else templates).format(place=thing.place)
    value = f"{thing.colour} {thing.shape}"
    return Question("shape", text, as_sentence(with_article(value)), thing.place.split()[-1], value)


def is_it(things: Sequence[Thing], rng: random.Random, family: str | None = None) -> Question | None:
    """Is the star red? The field is looked up, and compared."""
    single = [thing for thing in things if world.count_shape(things, thing.shape) == 1]
    if not single:
        return None
    thing, field = rng.choice(single), rng.choice(("colour", "size", "place"))
    value = getattr(thing, field)
    asked = value if rng.random() < 0.5 else rng.choice([each for each in FIELDS[field] if each != value])
    answer = "Yes." if asked == value else "No."
    template = rng.choice(WRITTEN[family]["is"]) if family in WRITTEN else "Is {the} {value}?"
    text = template.format(the=f"the {thing.shape}", value=asked)
    return Question(field, text, answer, thing.shape, value.split()[-1])


def draw_family(rng: random.Random) -> str:
    """A family of the training split, for a question that is typed."""
    return "people" if rng.random() < P_PEOPLE else rng.choice(GRAMMAR)


def draw_question(
    things: Sequence[Thing], rng: random.Random, family: str | None = None, spoken: bool = False
) -> Question:
    """A question as a person asks it, with its answer and what is looked up; without a family, of the training split.

    What people wrote is typed, and not meant to be spoken (`pls`), so a spoken question is of the grammar.
    """
    chosen = family or ("people" if not spoken and rng.random() < P_PEOPLE else None)
    extra = rng.random() if family is None or family in WRITTEN else 1.0
    if things and extra < 0.2:
        if extra < 0.08:
            return counts_of_a_field(things, rng, chosen)
        if extra < 0.14:
            return what_is_there(things, rng, chosen)
        if found := is_it(things, rng, chosen):
            return found
    question = world.draw_question(things, rng)
    if chosen is None:
        if rng.random() < P_PLAIN:
            return question
        chosen = rng.choice(GRAMMAR)
    text = reword(question, things, rng, chosen)
    return Question(question.kind, text, question.answer, question.key, question.value)


# ---- how it is typed ------------------------------------------------------------------------------------------------


def neighbours(letter: str) -> str:
    """The letters beside this one on the keyboard."""
    row = next((row for row in KEYS_OF_LETTERS if letter in row), letter)
    at = row.index(letter)
    return row[max(0, at - 1) : at] + row[at + 1 : at + 2]


def with_slip(text: str, rng: random.Random) -> str:
    """One typing error: two letters exchanged, one left out, typed twice, or its neighbour on the keyboard."""
    places = [at for at in range(1, len(text) - 1) if text[at].isalpha() and text[at + 1].isalpha()]
    if not places:
        return text
    at, kind = rng.choice(places), rng.randrange(4)
    letter, after = text[at], text[at + 1]
    near = neighbours(letter.lower()) or rng.choice(string.ascii_lowercase)
    new = (after + letter, after, letter + letter + after, rng.choice(near) + after)[kind]
    return text[:at] + new + text[at + 2 :]


def careless(text: str, rng: random.Random) -> str:
    """As people type: without capitals or all in capitals, without the mark, with spaces too many, American, wrong."""
    kind = rng.randrange(7)
    if kind == 0:
        return text.lower()
    if kind == 1:
        return text.lower().rstrip("?.")
    if kind == 2:
        return text.upper()
    if kind == 3:
        return rng.choice((f"{text} ", f" {text}", text.replace("?", " ?"), text.replace("?", "??"), f"Please, {text}"))
    if kind == 4:
        return text.replace("colour", "color").replace("grey", "gray")
    return with_slip(text if kind == 5 else text.lower(), rng)


def typed(text: str, rng: random.Random) -> str:
    """The text, now and then typed carelessly."""
    return careless(text, rng) if rng.random() < P_CARELESS else text


# ---- conversations --------------------------------------------------------------------------------------------------

FOLLOW_UPS = {
    "colour": ("What colour is it?", "And its colour?", "Which colour does it have?"),
    "size": ("How big is it?", "Is it big or small?", "And its size?"),
    "place": ("Where is it?", "And where is it?", "Where do you see it?"),
}
SAME = ("And {the}?", "What about {the}?")
POINTS_BACK = re.compile(
    r"^(and|or|but|then|now|next|ok|also|so|what about|how about)\b|"
    r"\b(it|its|(that|this|other) ones?|they|them|those|these|same|as well|also|too|next|else)\b",
    re.IGNORECASE,
)
ASKS = re.compile(
    r"\b(what|which|where|how|who|is|are|do|does|can|could|tell|describe|name|list|say|give|show|find|count|many|"
    r"colou?r|size|position|location)\b",
    re.IGNORECASE,
)
HISTORY = 3  # questions before the last one, at most


def follow_up(before: Question, things: Sequence[Thing], rng: random.Random) -> Question | None:
    """A question that only the one before it explains: `And the star?`, `Where is it?`; None where there is none."""
    written = WRITTEN["people"]
    if before.kind not in FIELDS or before.key is None or before.value is None:
        return None
    by = "shape" if before.key in SHAPES else "colour" if before.key in COLOURS else None
    if by is None:
        return None
    asked = [thing for thing in things if getattr(thing, by) == before.key]
    if len(asked) != 1:
        return None
    if rng.random() < 0.5:  # the same field of another thing
        others = [thing for thing in things if thing is not asked[0]]
        others = [each for each in others if sum(getattr(t, by) == getattr(each, by) for t in things) == 1]
        if others:
            other = rng.choice(others)
            key, value = getattr(other, by), getattr(other, before.kind)
            the = f"the {key}" if by == "shape" else f"the {key} {rng.choice(NOUNS)}"
            answer = as_sentence(with_article(value) if before.kind == "shape" else value)
            return Question(
                before.kind, rng.choice((*SAME, *written["and_the"])).format(the=the), answer, key, value.split()[-1]
            )
    field = rng.choice([name for name in FOLLOW_UPS if name not in (before.kind, by)])
    value = getattr(asked[0], field)
    text = rng.choice((*FOLLOW_UPS[field], *written[f"it_{field}"]))
    return Question(field, text, as_sentence(value), before.key, value.split()[-1])


def conversation(things: Sequence[Thing], rng: random.Random) -> tuple[list[Turn], Question]:
    """Some questions with their answers, and the next question, which may refer to the one before it."""
    turns = [Turn(*rng.choice(list(SMALL_TALK.items())))] if rng.random() < 0.2 else []
    question = draw_question(things, rng)
    for _ in range(rng.randint(1, HISTORY)):
        turns.append(Turn(question.text, question.answer))
        found = follow_up(question, things, rng) if rng.random() < 0.7 else None
        question = found or draw_question(things, rng)
    return turns[-HISTORY:], question


def refers_back(question: str) -> bool:
    """Whether a question needs those before it: `Where is it?` points to them, `The star?` asks for nothing itself."""
    return question not in SMALL_TALK and bool(POINTS_BACK.search(question) or not ASKS.search(question))


def prompt(history: Sequence[Turn], question: str) -> str:
    """The text of a prompt: the turns before, then the question. Training and `chat` write it in the same way."""
    return " ".join([*(f"{turn.question} {turn.answer}" for turn in history), question])
