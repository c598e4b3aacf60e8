"""Typed questions as the closed world writes them, where that needs no understanding.

    "  WHAT color is the  Traingle "  →  "What colour is the triangle?"

A model that learned one spelling of a sentence knows nothing of others: to it `star ?` and `Star?` are other tokens. So
what people type is first brought into the form that training had. Only what cannot change the meaning is changed:

    Unicode        compatibility forms (NFKC), curly quotes
    spaces         none at the ends, one between words, none before punctuation
    punctuation    one mark at the end, a question mark behind a question
    case           of words of the world; a capital letter begins a sentence
    spelling       American → British; `what's` → `what is`
    typing errors  an unknown word that is one slip away from exactly one word of the world

Words from outside of the world keep their spelling and their case. What the world's own grammar writes is unchanged.
The slips are those of Damerau (1964): a letter too many, one missing, a wrong one, two exchanged.
"""

import functools
import itertools
import math
import re
import string
import unicodedata
from collections.abc import Sequence

from tinyomni.data import unanswerable, wordings, world
from tinyomni.data.world import PHRASES, SHAPES

QUESTION_WORDS = frozenset({
    "what", "where", "which", "who", "when", "why", "how", "is", "are", "can", "do", "does", "did", "has", "have",
})  # fmt: skip
SPELLINGS = {
    "color": "colour", "colors": "colours", "colored": "coloured", "gray": "grey", "center": "centre",
    "whats": "what is", "wheres": "where is", "hows": "how is", "theres": "there is", "im": "I am", "dont": "do not",
    "what's": "what is", "where's": "where is", "how's": "how is", "there's": "there is", "i'm": "I am",
    "don't": "do not", "can't": "cannot", "it's": "it is", "isn't": "is not",
}  # fmt: skip
QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u00b4": "'", "`": "'", "\u201c": '"', "\u201d": '"'})
NAMES = {"i": "I", "omni": "Omni"}  # with a capital letter anywhere
MARKS = (".", "?", "!")
NO_SPACE = ".?!,;:)]'\""
LONG = 5  # letters of a word that is corrected wherever it is
SHORT_SHAPES = {shape for shape in SHAPES if len(shape) < LONG}
MAX_READINGS = 256  # of a sentence with several unknown words
TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+|\S")


@functools.cache
def vocabulary() -> frozenset[str]:
    """Every word of the world's questions and phrases, in lower case."""
    return frozenset(word.lower() for word in world.vocabulary() if word.isalpha())


@functools.cache
def longest_word() -> int:
    """The letters of the longest word of the world; a slip adds at most one."""
    return max(map(len, vocabulary()))


@functools.cache
def known_words() -> frozenset[str]:
    """Words that are no typing errors: those of the world, of questions that it does not answer, and the longer ones of
    what people wrote; their shortest ones hold errors (`wat`).
    """
    open_questions = {word.strip("?{}").lower() for text in unanswerable.OPEN for word in text.split()}
    written = " ".join(each for templates in wordings.WRITTEN["people"].values() for each in templates)
    people = {word for word in re.findall(r"[a-z]+", written.lower()) if len(word) >= LONG}
    return (
        vocabulary() | set(unanswerable.NOUNS) | open_questions | people | {"a", "an", "colours", "coloured", "centre"}
    )


@functools.cache
def phrases() -> dict[tuple[str, ...], str]:
    """Everyday phrases by their words alone."""
    return {tuple(re.findall(r"\w+", phrase.lower())): phrase for phrase in PHRASES}


@functools.cache
def known_questions() -> frozenset[tuple[str, ...]]:
    """The words of every question that the grammar of the world has, and of every phrase."""
    asked = {line.question for _, family in world.language().values() for line in family if line.question}
    return frozenset(tuple(re.findall(r"\w+", text.lower())) for text in (*asked, *PHRASES))


def slips(word: str) -> set[str]:
    """Every word that is one slip away."""
    splits = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    letters = string.ascii_lowercase
    return (
        {a + b[1] + b[0] + b[2:] for a, b in splits if len(b) > 1}
        | {a + b[1:] for a, b in splits if b}
        | {a + letter + b[1:] for a, b in splits if b for letter in letters}
        | {a + letter + b for a, b in splits for letter in letters}
    )


@functools.cache
def candidates(word: str) -> tuple[str, ...]:
    """The words of the world that are a slip away from this one; none for a word that is known."""
    if len(word) > longest_word() + 1 or word in known_words() or not word.isascii() or not word.isalpha():
        return ()
    near = slips(word) & vocabulary()
    # short names of shapes are a slip away from other nouns, such as wing: there only a wrong order of letters counts
    return tuple(sorted(each for each in near if each not in SHORT_SHAPES or sorted(each) == sorted(word)))


def correct(words: Sequence[str]) -> list[str]:
    """Typing errors corrected, where there is one way to.

    A long word can be meant as one word only. A short one is corrected where exactly one candidate makes the whole a
    question that the world asks: `wat` and `hat` are both a slip away from `what`.
    """
    found = [near[0] if len(near := candidates(word)) == 1 and len(word) >= LONG else word for word in words]
    choices = [candidates(word) or (word,) for word in found]
    if math.prod(map(len, choices)) <= MAX_READINGS:
        readings = [reading for reading in itertools.product(*choices) if reading in known_questions()]
        if len(readings) == 1:
            return list(readings[0])
    return found


def normalize_question(text: str) -> str:
    """The text as the closed world would write it; see above. An empty text stays empty."""
    text = unicodedata.normalize("NFKC", text).translate(QUOTES)
    text = "".join(each for each in text if each.isspace() or unicodedata.category(each) not in ("Cc", "Cf"))
    tokens = [part for token in TOKEN.findall(text) for part in SPELLINGS.get(token.lower(), token).split()]
    places = [place for place, token in enumerate(tokens) if token[0].isalnum()]
    if not places:
        return " ".join(text.split())
    words = correct([tokens[place].lower() for place in places])
    if tuple(words) in phrases():
        return phrases()[tuple(words)]
    for place, word in zip(places, words, strict=True):
        if word in known_words():
            tokens[place] = NAMES.get(word, word)
    written, capital = "", True
    for token in tokens:
        if token in MARKS and written[-1:] in MARKS:  # ?? and ?!
            written = f"{written[:-1]}?" if "?" in (token, written[-1]) else written
            continue
        if capital and token.lower() in known_words():
            token = token[0].upper() + token[1:]
        written += (" " if written and token[0] not in NO_SPACE else "") + token
        capital = token in MARKS
    if words[0] in QUESTION_WORDS:
        return written.rstrip("".join(MARKS) + ",;:") + "?"
    return written if written[-1] in MARKS else written + "."


def reading_note(typed: str, normalized: str) -> str:
    """`(read as: …)` where words were changed, not only their case and punctuation; else empty."""
    same = re.findall(r"\w+", typed.lower()) == re.findall(r"\w+", normalized.lower())
    return "" if same else f"(read as: {normalized})"
