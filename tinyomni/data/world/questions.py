"""Questions about a scene, each with its one right answer, and the registry of their kinds.

    things → QUESTION_KINDS → Question(kind, text, answer, key, value)

A new kind is a class with two methods, or another FieldQuestion, and one line in QUESTION_KINDS. Drawing, the lines
that the language model reads, the scratchpad (`data/retrieval.py`), training and the report take it from there.
"""

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from string import Formatter

from tinyomni.data.world.scenes import (
    COLOURS,
    FIELDS,
    NUMBERS,
    PLURALS,
    SHAPES,
    Thing,
    colour_shape_pairs,
    count_shape,
    description,
    with_article,
)
from tinyomni.data.world.splits import HELD_OUT
from tinyomni.errors import InputError


@dataclass(frozen=True)
class Question:
    """A question and its right answer.

    `kind` is an id in QUESTION_KINDS, None for a question that is of none of them. `key` is what the question asks
    about (`star`, `red star`, `crosses`), `value` the one word of the answer that follows from the scene (of *on the
    left*, `left`); both are None where nothing can be looked up.
    """

    kind: str | None
    text: str
    answer: str
    key: str | None = None
    value: str | None = None

    @property
    def negative(self) -> bool:
        """Whether the answer is no, or none."""
        return self.value in ("no", NUMBERS[0])


def as_sentence(words: str) -> str:
    """`on the left` → `On the left.`"""
    return f"{words[0].upper()}{words[1:]}."


@dataclass(frozen=True)
class Line:
    """A line for the language model: its text, the (colour, shape) pairs that it joins, and its question, if any."""

    text: str
    pairs: tuple[tuple[str, str], ...] = ()
    question: str | None = None


Family = tuple[float, tuple[Line, ...]]
"""How often lines of a family are drawn, and its lines, all equally often."""


def lines(text: Callable[..., str | tuple[str, str]], *words: Iterable[str]) -> tuple[Line, ...]:
    """A line for every combination of words; a colour and a shape among them are joined. `text` gives a line, or a
    question and its answer.
    """
    found = []
    for chosen in itertools.product(*words):
        colours = [word for word in chosen if word in COLOURS]
        shapes = [word for word in chosen if word in SHAPES]
        pairs = tuple(zip(colours, shapes, strict=False))
        match text(*chosen):
            case str(line):
                found.append(Line(line, pairs))
            case question, answer:
                found.append(Line(f"{question} {as_sentence(answer)}", pairs, question))
    return tuple(found)


# ---- kinds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wording:
    """A template with fields of a thing in braces; `by` is the field that picks out the thing. Its lines for the
    language model are the family `family`, drawn with `weight`.
    """

    text: str
    by: str = ""
    family: str = ""
    weight: float = 0.0

    @property
    def fields(self) -> list[str]:
        """The fields that the template names, in order."""
        return [name for _, name, _, _ in Formatter().parse(self.text) if name]


@dataclass(frozen=True)
class QuestionKind(ABC):
    """One kind of question.

    `keyword` stands for it in the scratchpad; `needs` are the fields of things that have to be known beside that of the
    key.
    """

    id: str
    keyword: str
    needs: frozenset[str]
    wordings: tuple[Wording, ...]

    @abstractmethod
    def questions(self, things: Sequence[Thing]) -> Iterator[Question]:
        """All questions of this kind about the scene."""

    @abstractmethod
    def families(self) -> dict[str, Family]:
        """Questions with answers, as lines for the language model; {} for none."""


@dataclass(frozen=True)
class FieldQuestion(QuestionKind):
    """Asks one field of the only thing that has a given shape, or a given colour. `id` is the field."""

    def questions(self, things: Sequence[Thing]) -> Iterator[Question]:
        for thing in things:
            for wording in self.wordings:
                key = getattr(thing, wording.by)
                if sum(getattr(other, wording.by) == key for other in things) == 1:
                    value = getattr(thing, self.id)
                    answer = as_sentence(self.phrase(value))
                    yield Question(self.id, wording.text.format(**vars(thing)), answer, key, value.split()[-1])

    def families(self) -> dict[str, Family]:
        found = {}
        for wording in self.wordings:

            def pair(*chosen: str, wording: Wording = wording) -> tuple[str, str]:
                named = dict(zip(wording.fields, chosen, strict=False))
                return wording.text.format(**named), self.phrase(chosen[-1])

            words = [FIELDS[field] for field in (*wording.fields, self.id)]
            found[wording.family] = (wording.weight, lines(pair, *words))
        return found

    def phrase(self, value: str) -> str:
        """How the answer words a value."""
        return with_article(value) if self.id == "shape" else value


@dataclass(frozen=True)
class ExistenceQuestion(QuestionKind):
    """Is there a thing of this colour and shape?

    A "no" is about a colour and a shape that are both there, on different things, where there are such. A combination
    that is held out is asked about only where one is seen: else its answer would always be no.
    """

    def questions(self, things: Sequence[Thing]) -> Iterator[Question]:
        there = colour_shape_pairs(things)
        colours, shapes = {t.colour for t in things}, {t.shape for t in things}
        free = [(c, s) for c in COLOURS for s in SHAPES
                if (c, s) not in there and ((c, s) not in HELD_OUT or not HELD_OUT.isdisjoint(there))]  # fmt: skip
        absent = [(c, s) for c, s in free if c in colours and s in shapes]
        absent = absent or [(c, s) for c, s in free if c in colours or s in shapes]
        for colour, shape in (*sorted(there), *absent):
            value = "yes" if (colour, shape) in there else "no"
            yield Question(self.id, self.text(colour, shape), as_sentence(value), f"{colour} {shape}", value)

    def families(self) -> dict[str, Family]:
        (wording,) = self.wordings
        pairs = lines(lambda c, s, answer: (self.text(c, s), answer), COLOURS, SHAPES, ("yes", "no"))
        return {wording.family: (wording.weight, pairs)}

    def text(self, colour: str, shape: str) -> str:
        """The question."""
        return self.wordings[0].text.format(thing=with_article(f"{colour} {shape}"))


@dataclass(frozen=True)
class CountQuestion(QuestionKind):
    """How many things of a shape, or things at all, are there?"""

    def questions(self, things: Sequence[Thing]) -> Iterator[Question]:
        counts = {PLURALS[shape]: count_shape(things, shape) for shape in SHAPES} | {"things": len(things)}
        for key, count in counts.items():
            value = NUMBERS[count]
            yield Question(self.id, self.text(key), as_sentence(value), key, value)

    def families(self) -> dict[str, Family]:
        (wording,) = self.wordings
        of_a_shape = lines(lambda shape, n: (self.text(PLURALS[shape]), n), SHAPES, NUMBERS[:4])
        of_all = lines(lambda n: (self.text("things"), n), NUMBERS[1:4])
        return {wording.family: (wording.weight, (*of_a_shape, *of_all))}

    def text(self, plural: str) -> str:
        """The question."""
        return self.wordings[0].text.format(things=plural)


def field_question(field: str, keyword: str, *wordings: Wording) -> FieldQuestion:
    """A question about a field of a thing."""
    return FieldQuestion(field, keyword, frozenset({field}), wordings)


QUESTION_KINDS: dict[str, QuestionKind] = {kind.id: kind for kind in (
    field_question("colour", "Colour",
                   Wording("What colour is the {shape}?", "shape", "colour of a shape", 0.08),
                   Wording("What colour is the {size} {shape}?", "shape", "colour of a sized shape", 0.06)),
    field_question("shape", "Shape",
                   Wording("What shape is the {colour} thing?", "colour", "shape of a colour", 0.08)),
    field_question("size", "How",
                   Wording("How big is the {shape}?", "shape", "size of a shape", 0.04),
                   Wording("How big is the {colour} thing?", "colour", "size of a colour", 0.04)),
    field_question("place", "Where",
                   Wording("Where is the {shape}?", "shape", "place of a shape", 0.05),
                   Wording("Where is the {colour} thing?", "colour", "place of a colour", 0.05)),
    ExistenceQuestion("existence", "Is", frozenset(),
                      (Wording("Is there {thing}?", family="yes or no", weight=0.05),)),
    CountQuestion("count", "Many", frozenset(),
                  (Wording("How many {things} are there?", family="how many", weight=0.05),)),
)}  # fmt: skip
"""Every kind of question that the world asks, by its id."""


# ---- drawing --------------------------------------------------------------------------------------------------------


def questions(things: Sequence[Thing]) -> Iterator[Question]:
    """Every question about the scene that has one right answer."""
    for kind in QUESTION_KINDS.values():
        yield from kind.questions(things)


def questions_by_kind(
    things: Sequence[Thing], accept: Callable[[Question], bool] = lambda question: True
) -> dict[str, list[list[Question]]]:
    """The questions that `accept` takes, by the id of their kind, in the alphabetical order of the wordings.

    Where one answer could be guessed, those with a negative answer are a list of their own.
    """
    found: dict[str, list[list[Question]]] = {}
    for kind in sorted(QUESTION_KINDS.values(), key=lambda kind: kind.wordings[0].text):
        halves: list[list[Question]] = [[], []]
        for question in kind.questions(things):
            if accept(question):
                halves[question.negative].append(question)
        if any(halves):
            found[kind.id] = [half for half in halves if half]
    return found


def draw_question(
    things: Sequence[Thing], rng: random.Random, accept: Callable[[Question], bool] = lambda question: True
) -> Question:
    """One question: every kind is equally likely, yes as likely as no, and a count of none as likely as any other."""
    kinds = questions_by_kind(things, accept)
    if not kinds:
        raise InputError(f"closed world: no question was accepted about the scene: {description(things)}")
    return rng.choice(rng.choice(kinds[rng.choice(list(kinds))]))
