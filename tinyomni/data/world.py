"""The closed world: a grammar of scenes, and of the sentences that can be said about them.

A scene holds one to three objects, each with a size, a colour, a shape and a place. From a scene come captions, and
questions with one right answer. Beside them there are everyday phrases. All text that the course's models read comes
from here, so every right answer is known.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

COLOURS = (
    "red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "cyan",
)  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
PLURALS = {"cross": "crosses"} | {shape: shape + "s" for shape in SHAPES if shape != "cross"}
SIZES = ("big", "small")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

PHRASES = (
    "Hello, how are you?",
    "How are you today?",
    "I am fine, thank you.",
    "What do you see in this image?",
    "What do you see?",
    "What did you hear?",
    "What was said?",
    "Describe what you see and hear.",
    "Describe what you can see and hear.",
    "Describe the image.",
    "This is a test of text to speech.",
    "This is a short test of text to speech.",
    "Say it again, please.",
    "Repeat what you heard.",
    "Please say that you do not know.",
    "I do not know.",
    "I heard nothing.",
    "I can see nothing.",
    "I cannot see that.",
    "Good morning.",
    "Good night.",
    "Thank you very much.",
    "You are welcome.",
    "Yes, please.",
    "No, thank you.",
    "Where are we now?",
    "What time is it?",
    "My name is Omni.",
    "I can read, see, hear and speak.",
    "Can you help me?",
    "Of course I can.",
    "See you soon.",
)


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    size: str
    colour: str
    shape: str
    place: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


def article(words: str) -> str:
    """`a red circle`, `an orange circle`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def scene(rng: random.Random) -> list[Thing]:
    """One to three objects in different places, no two of the same colour and shape."""
    things: list[Thing] = []
    places = rng.sample(PLACES, rng.randint(1, 3))
    for place in places:
        free = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in {(t.colour, t.shape) for t in things}]
        colour, shape = rng.choice(free)
        things.append(Thing(rng.choice(SIZES), colour, shape, place))
    return things


def count(things: list[Thing], shape: str) -> int:
    """How many objects of this shape there are."""
    return sum(thing.shape == shape for thing in things)


def captions(things: list[Thing]) -> Iterator[str]:
    """Sentences that are true of the scene."""
    for thing in things:
        yield f"There is {article(str(thing))} {thing.place}."
        yield f"The {thing.colour} {thing.shape} is {thing.size}."
        yield f"The {thing.size} {thing.shape} is {thing.colour}."
        yield f"I see {article(f'{thing.colour} {thing.shape}')} {thing.place}."
    for one, other in itertools.pairwise(things):
        yield f"There is {article(str(one))} and {article(str(other))}."
    for shape in {thing.shape: None for thing in things}:
        number = count(things, shape)
        yield f"There is one {shape}." if number == 1 else f"There are {NUMBERS[number]} {PLURALS[shape]}."


def questions(things: list[Thing]) -> Iterator[tuple[str, str]]:
    """Questions about the scene that have one right answer, each with it."""
    for thing in things:
        if count(things, thing.shape) == 1:
            yield f"What colour is the {thing.shape}?", f"{thing.colour}."
            yield f"What colour is the {thing.size} {thing.shape}?", f"{thing.colour}."
            yield f"How big is the {thing.shape}?", f"{thing.size}."
            yield f"Where is the {thing.shape}?", f"{thing.place}."
        if sum(other.colour == thing.colour for other in things) == 1:
            yield f"What shape is the {thing.colour} thing?", f"{article(thing.shape)}."
            yield f"Where is the {thing.colour} thing?", f"{thing.place}."
            yield f"How big is the {thing.colour} thing?", f"{thing.size}."
        yield f"Is there {article(f'{thing.colour} {thing.shape}')}?", "yes."
    for shape in SHAPES:
        yield f"How many {PLURALS[shape]} are there?", f"{NUMBERS[count(things, shape)]}."
        if not count(things, shape):
            yield f"Is there {article(shape)}?", "no."
    yield "How many things are there?", f"{NUMBERS[len(things)]}."


def sentences(count: int, seed: int = 0) -> Iterator[str]:
    """`count` lines of the world's text: everyday phrases, captions, questions with their answers."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        things = scene(rng)
        if kind < 0.1:
            yield rng.choice(PHRASES)
        elif kind < 0.5:
            yield rng.choice(list(captions(things)))
        else:
            question, answer = rng.choice(list(questions(things)))
            yield f"{question} {answer[0].upper()}{answer[1:]}" if rng.random() < 0.5 else f"{question} {answer}"


def vocabulary() -> list[str]:
    """Every word of the world, once, in lower case and with a capital letter."""
    words = {word.strip(".,?") for phrase in PHRASES for word in phrase.split()}
    words |= {*COLOURS, *SHAPES, *PLURALS.values(), *SIZES, *NUMBERS, "thing", "things"}
    for line in sentences(2000, seed=1):
        words |= {word.strip(".,?") for word in line.split()}
    return sorted(words | {word.capitalize() for word in words} | {word.lower() for word in words})


def tokenizer_text() -> Iterator[str]:
    """What the tokenizer was trained on: sentences, every word and every printable character."""
    yield from sentences(20_000)
    for _ in range(20):
        yield from PHRASES
        yield from vocabulary()
        yield from (chr(code) for code in range(33, 127))
