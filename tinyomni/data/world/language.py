"""What the language model reads: every line that there is, its split, and how predictable it is.

language → families of lines → draw_line, entropy, surprisal
"""

import functools
import itertools
import math
import random
from collections.abc import Callable

from tinyomni.data.world.questions import QUESTION_KINDS, Family, Line, lines
from tinyomni.data.world.scenes import (
    COLOURS,
    NUMBERS,
    PLACES,
    PLURALS,
    SHAPES,
    SIZES,
    with_article,
)
from tinyomni.data.world.splits import HELD_OUT, check_split, split_of

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

MIN_FAMILY = 100
"""A family with fewer lines is for training only, whole."""


@functools.cache
def language() -> dict[str, Family]:
    """Every line that there is, in families: how often a family is drawn, and its lines, all equally often.

    No line occurs twice, so the probability of each is known exactly.
    """
    pairs = list(itertools.product(COLOURS, SHAPES))
    sized = [(f"{size} {c} {s}", (c, s)) for size in SIZES for c, s in pairs]
    found: dict[str, Family] = {
        "phrases": (0.10, tuple(map(Line, PHRASES))),
        "there": (0.10, lines(lambda z, c, s, p: f"There is {with_article(f'{z} {c} {s}')} {p}.",
                              SIZES, COLOURS, SHAPES, PLACES)),
        "see": (0.05, lines(lambda c, s, p: f"I see {with_article(f'{c} {s}')} {p}.", COLOURS, SHAPES, PLACES)),
        "sizes": (0.05, lines(lambda c, s, z: f"The {c} {s} is {z}.", COLOURS, SHAPES, SIZES)),
        "colours": (0.05, lines(lambda z, s, c: f"The {z} {s} is {c}.", SIZES, SHAPES, COLOURS)),
        "pairs": (0.10, tuple(Line(f"There is {with_article(a)} and {with_article(b)}.", (x, y))
                              for a, x in sized for b, y in sized if x != y)),
        "counts": (0.05, (*lines(lambda s: f"There is one {s}.", SHAPES),
                          *lines(lambda n, s: f"There are {n} {PLURALS[s]}.", NUMBERS[2:4], SHAPES))),
    }  # fmt: skip
    for kind in QUESTION_KINDS.values():
        found |= kind.families()
    total = math.fsum(weight for weight, _ in found.values())
    return {name: (weight / total, family) for name, (weight, family) in found.items()}


@functools.cache
def lines_of(split: str) -> dict[str, tuple[float, tuple[str, ...]]]:
    """The lines of a split, by family."""
    check_split(split)
    found = {}
    for name, (weight, family) in language().items():
        splits = [
            "compositional" if not HELD_OUT.isdisjoint(line.pairs) else
            "train" if len(family) < MIN_FAMILY else split_of(line.text) for line in family
        ]  # fmt: skip
        kept = tuple(line.text for line, its in zip(family, splits, strict=True) if its == split)
        if kept:
            found[name] = (weight, kept)
    total = sum(weight for weight, _ in found.values())
    return {name: (weight / total, texts) for name, (weight, texts) in found.items()}


def draw_line(split: str, index: int, seed: int = 0, accept: Callable[[str], bool] = lambda line: True) -> str:
    """Line number `index` of a split's endless text, the first that `accept` takes."""
    families = lines_of(split)
    rng = random.Random(f"{seed} {split} line {index}")
    while True:
        name = rng.choices(list(families), [weight for weight, _ in families.values()])[0]
        if accept(line := rng.choice(families[name][1])):
            return line


def shuffled_words(index: int, seed: int = 0, split: str = "train") -> str:
    """The words of two lines in random order: speech without the grammar."""
    rng = random.Random(f"{seed} {split} shuffled {index}")
    words = [word.strip(".,?").lower() for n in (0, 1) for word in draw_line(split, 2 * index + n, seed + 1).split()]
    rng.shuffle(words)
    return " ".join(words[: rng.randint(3, 8)])


# ---- questions that are never spoken in training --------------------------------------------------------------------


@functools.cache
def questions_of_lines() -> dict[str, str]:
    """Lines with a question → the question."""
    return {line.text: line.question for _, family in language().values() for line in family if line.question}


def question_of(line: str) -> str | None:
    """The question about a scene that a line holds; None where it holds none."""
    return questions_of_lines().get(line)


def spoken_in_training(question: str) -> bool:
    """Whether a question may be *spoken* in training: a tenth of the questions is only ever typed there.

    They tell how well speech is understood that was never heard.
    """
    return split_of(question) == "train"


def line_spoken_in_training(line: str) -> bool:
    """Whether a line may be spoken in training: it has no question, or one that may be."""
    question = question_of(line)
    return question is None or spoken_in_training(question)


# ---- entropy --------------------------------------------------------------------------------------------------------


def entropy(split: str = "train") -> float:
    """Nats in one line of a split: Σ -p ln p over all lines. No model has a lower loss on its endless text."""
    return sum(weight * math.log(len(texts) / weight) for weight, texts in lines_of(split).values())


@functools.cache
def surprisal(split: str, knows_held_out: bool = True) -> dict[str, float]:
    """-ln p of every line of a split, for a reader who knows all that can be known of it.

    Of `train` that is the split itself: its lines, no others. Nobody can know which lines were kept for `validation`
    and `test`: a reader who knows the grammar, and which combinations are held out, gives each of them the probability
    of any other line. `compositional` lines surprise everyone: they count as what they are in the whole grammar. So
    does every line for a reader without `knows_held_out`, who takes all combinations for possible.
    """
    found: dict[str, float] = {}
    for name, (kept_weight, texts) in lines_of(split).items():
        weight, family = language()[name]
        allowed = [line for line in family if HELD_OUT.isdisjoint(line.pairs)]
        whole = math.log(len(family) / weight)
        nats = (
            {"train": math.log(len(texts) / kept_weight), "compositional": whole} if knows_held_out else {split: whole}
        )
        found |= dict.fromkeys(texts, nats.get(split, math.log(max(1, len(allowed)) / weight)))
    return found


def loss_floor(encode: Callable[[str], list[int]], split: str = "train") -> float:
    """Nats per token, EOS included, that such a reader loses on a split. On `train`: its entropy."""
    nats = tokens = 0.0
    for weight, texts in lines_of(split).values():
        nats += weight * sum(surprisal(split)[text] for text in texts) / len(texts)
        tokens += weight * (sum(len(encode(text)) for text in texts) / len(texts) + 1)
    return nats / tokens
