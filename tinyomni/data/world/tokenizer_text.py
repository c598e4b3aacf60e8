"""The text that the tokenizer was trained on, frozen with the tokenizer: later kinds of questions do not join it."""

import random
from collections.abc import Iterator, Sequence

from tinyomni.data.world.language import PHRASES
from tinyomni.data.world.scenes import (
    COLOURS,
    NUMBERS,
    PLURALS,
    SHAPES,
    SIZES,
    Thing,
    captions,
    count_shape,
    scene,
    with_article,
)


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


def questions(things: Sequence[Thing]) -> Iterator[tuple[str, str]]:
    """Questions, each with its answer."""
    for thing in things:
        if count_shape(things, thing.shape) == 1:
            yield f"What colour is the {thing.shape}?", f"{thing.colour}."
            yield f"What colour is the {thing.size} {thing.shape}?", f"{thing.colour}."
            yield f"How big is the {thing.shape}?", f"{thing.size}."
            yield f"Where is the {thing.shape}?", f"{thing.place}."
        if sum(other.colour == thing.colour for other in things) == 1:
            yield f"What shape is the {thing.colour} thing?", f"{with_article(thing.shape)}."
            yield f"Where is the {thing.colour} thing?", f"{thing.place}."
            yield f"How big is the {thing.colour} thing?", f"{thing.size}."
        yield f"Is there {with_article(f'{thing.colour} {thing.shape}')}?", "yes."
    for shape in SHAPES:
        yield f"How many {PLURALS[shape]} are there?", f"{NUMBERS[count_shape(things, shape)]}."
        if not count_shape(things, shape):
            yield f"Is there {with_article(shape)}?", "no."
    yield "How many things are there?", f"{NUMBERS[len(things)]}."


def vocabulary() -> list[str]:
    """Every word of the world, once, in lower case and with a capital letter."""
    words = {word.strip(".,?") for phrase in PHRASES for word in phrase.split()}
    words |= {*COLOURS, *SHAPES, *PLURALS.values(), *SIZES, *NUMBERS, "thing", "things"}
    for line in sentences(2000, seed=1):
        words |= {word.strip(".,?") for word in line.split()}
    return sorted(words | {word.capitalize() for word in words} | {word.lower() for word in words})


def tokenizer_text() -> Iterator[str]:
    """Sentences, every word and every printable character."""
    yield from sentences(20_000)
    for _ in range(20):
        yield from PHRASES
        yield from vocabulary()
        yield from (chr(code) for code in range(33, 127))
