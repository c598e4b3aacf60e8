"""The closed world: a grammar of scenes, and of the sentences that can be said about them.

A scene holds one to three objects, each with a size, a colour, a shape and a place. From a scene come captions, and
questions with one right answer. Beside them there are everyday phrases. All text that the course's models read comes
from here, so every right answer is known.

    scene → captions, questions        what can be said of one picture
    language → lines, entropy          what a language model reads, and how well it can possibly do
    split_of                           what is kept for validation and test, and which combinations nobody trains on
"""

import functools
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

COLOURS = (
    "red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "cyan",
)  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
PLURALS = {"cross": "crosses"} | {shape: shape + "s" for shape in SHAPES if shape != "cross"}
SIZES = ("big", "small")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

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


HELD_OUT = frozenset({
    ("green", "triangle"), ("red", "star"), ("blue", "ring"), ("yellow", "heart"), ("purple", "square"),
    ("orange", "cross"), ("pink", "diamond"), ("cyan", "circle"),
})  # fmt: skip
"""Combinations of colour and shape that no split but `compositional` has."""
SPLITS = ("train", "validation", "test", "compositional")


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
        taken = pairs_of(things)
        colour, shape = rng.choice([(c, s) for c in COLOURS for s in SHAPES if (c, s) not in taken])
        things.append(Thing(rng.choice(SIZES), colour, shape, place))
    return things


def hard_scene(rng: random.Random) -> list[Thing]:
    """A scene in which one word is not enough: its objects share colours, shapes and sizes."""
    things = scene(rng)
    for number in range(1, len(things)):
        before = things[number - 1]
        shared = {field: getattr(before, field) for field in ("size", "colour", "shape") if rng.random() < 0.5}
        new = replace(things[number], **shared)
        if (new.colour, new.shape) not in pairs_of(things[:number] + things[number + 1 :]):
            things[number] = new
    return things


def hard_negatives(things: list[Thing]) -> list[list[Thing]]:
    """Scenes that differ from this one by a swap: shapes, colours, sizes or places of two objects exchanged.

    The same colours and the same number of objects stay in the picture, so that counting them does not help.
    """
    found: list[list[Thing]] = []
    for one, other in itertools.combinations(range(len(things)), 2):
        for field in ("shape", "colour", "size", "place"):
            a, b = things[one], things[other]
            values = {one: getattr(b, field), other: getattr(a, field)}
            swapped = [replace(t, **{field: values[i]}) if i in values else t for i, t in enumerate(things)]
            if key(swapped) != key(things) and len(pairs_of(swapped)) == len(things):
                found.append(swapped)
    return found


def pairs_of(things: list[Thing]) -> set[tuple[str, str]]:
    """The colours of a scene, each with the shape that has it."""
    return {(thing.colour, thing.shape) for thing in things}


def key(things: list[Thing]) -> str:
    """The scene as one line of text, whatever the order of its objects."""
    return "; ".join(sorted(f"{thing} {thing.place}" for thing in things))


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


def description(things: list[Thing]) -> str:
    """One caption that names every object with its size, colour, shape and place."""
    parts = [f"{article(str(thing))} {thing.place}" for thing in things]
    return f"There is {parts[0]}." if len(parts) == 1 else f"There is {', '.join(parts[:-1])} and {parts[-1]}."


def sort(things: Iterable[Thing]) -> list[Thing]:
    """In the order of PLACES."""
    return sorted(things, key=lambda thing: PLACES.index(thing.place))


def in_order(things: Iterable[Thing]) -> str:
    """The description whose things stand in the order of PLACES: of all descriptions, the one that is asked for."""
    return description(sort(things))


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


Asked = tuple[str, str]


def askable(things: list[Thing], among: Callable[[str], bool] = lambda question: True) -> dict[str, list[list[Asked]]]:
    """Questions that are `among` those wanted, by kind; where one answer could be guessed, in two halves.

    A "no" is about a colour and a shape that are both there, on different objects, where there are such. A combination
    that is held out is asked about only where one is seen: else its answer would always be no.
    """
    kinds: dict[str, list[list[Asked]]] = {}
    there, colours, shapes = pairs_of(things), {t.colour for t in things}, {t.shape for t in things}
    free = [(c, s) for c in COLOURS for s in SHAPES
            if (c, s) not in there and ((c, s) not in HELD_OUT or not HELD_OUT.isdisjoint(there))]  # fmt: skip
    absent = [(c, s) for c, s in free if c in colours and s in shapes]
    absent = absent or [(c, s) for c, s in free if c in colours or s in shapes]
    yes_no = [(f"Is there {article(f'{c} {s}')}?", "yes." if (c, s) in there else "no.")
              for c, s in (*sorted(there), *absent)]  # fmt: skip
    for question, answer in (*yes_no, *(each for each in questions(things) if not each[0].startswith("Is there"))):
        if among(question):
            halves = kinds.setdefault(" ".join(question.split()[:2]), [[], []])
            halves[answer in ("no.", f"{NUMBERS[0]}.")].append((question, answer))
    return {kind: [half for half in halves if half] for kind, halves in kinds.items()}


def ask(things: list[Thing], rng: random.Random, among: Callable[[str], bool] = lambda question: True) -> Asked:
    """One question with its answer: every kind as often, yes as often as no, as many counts of what is not there."""
    kinds = askable(things, among)
    if not kinds:
        raise ValueError(f"closed world: no question that is wanted can be asked of: {description(things)}")
    return rng.choice(rng.choice(kinds[rng.choice(sorted(kinds))]))


# ---- splits ---------------------------------------------------------------------------------------------------------


def split_of(text: str, pairs: Iterable[tuple[str, str]] = ()) -> str:
    """Where a text, or a scene's key, belongs: for ever, on every machine. `pairs` are its colours and shapes."""
    if not HELD_OUT.isdisjoint(pairs):
        return "compositional"
    number = hashlib.sha256(text.encode()).digest()[0]
    return "train" if number < 230 else "validation" if number < 243 else "test"


def split_of_scene(things: list[Thing]) -> str:
    """The split of a scene."""
    return split_of(key(things), pairs_of(things))


def heard(text: str) -> bool:
    """Whether a text may be *spoken* in training: a tenth of the questions is only ever typed there.

    They tell how well speech is understood that was never heard.
    """
    question, mark, _ = text.partition("?")
    return not mark or text in PHRASES or split_of(question + mark) == "train"


def draw_scene(
    split: str, index: int, seed: int = 0, hard: bool = True, fit: Callable[[list[Thing]], bool] = lambda things: True
) -> list[Thing]:
    """The scene number `index` of a split, of those that are `fit`: the same everywhere, drawn alone."""
    check_split(split)
    for attempt in range(10_000):
        rng = random.Random(f"{seed} {split} {index} {attempt}")
        things = hard_scene(rng) if hard else scene(rng)
        if split == "compositional" and HELD_OUT.isdisjoint(pairs_of(things)):
            colour, shape = rng.choice(sorted(HELD_OUT))
            things[0] = replace(things[0], colour=colour, shape=shape)
        if len(pairs_of(things)) == len(things) and split_of_scene(things) == split and fit(things):
            return things
    raise ValueError(f"closed world: none of 10,000 scenes of the split {split!r} is fit")


def check_split(split: str) -> None:
    """Raise ValueError for a split that there is not."""
    if split not in SPLITS:
        raise ValueError(f"closed world: no split {split!r}; there are {', '.join(SPLITS)}")


# ---- what a language model reads ------------------------------------------------------------------------------------

Line = tuple[str, tuple[tuple[str, str], ...]]


def answered(question: str, answer: str) -> str:
    """`What colour is the circle? Red.`"""
    return f"{question} {answer[0].upper()}{answer[1:]}."


@functools.cache
def language() -> dict[str, tuple[float, tuple[Line, ...]]]:
    """Every line that there is, in families: how often a family comes, and its lines, all equally often.

    No line stands twice, so the probability of each is known exactly. With each line stand the colours and shapes that
    it joins.
    """
    pairs = list(itertools.product(COLOURS, SHAPES))
    sized = [(f"{size} {c} {s}", (c, s)) for size in SIZES for c, s in pairs]

    def one(text: Callable[..., str], *words: Iterable[str]) -> tuple[Line, ...]:
        """A line for every combination of words; a colour and a shape among them are joined."""
        lines = []
        for chosen in itertools.product(*words):
            colours = [word for word in chosen if word in COLOURS]
            shapes = [word for word in chosen if word in SHAPES]
            lines.append((text(*chosen), tuple(zip(colours, shapes, strict=False))))
        return tuple(lines)

    several = [(NUMBERS[n], n) for n in (2, 3)]
    return {
        "phrases": (0.10, tuple((phrase, ()) for phrase in PHRASES)),
        "there": (0.10, one(lambda z, c, s, p: f"There is {article(f'{z} {c} {s}')} {p}.",
                            SIZES, COLOURS, SHAPES, PLACES)),
        "see": (0.05, one(lambda c, s, p: f"I see {article(f'{c} {s}')} {p}.", COLOURS, SHAPES, PLACES)),
        "sizes": (0.05, one(lambda c, s, z: f"The {c} {s} is {z}.", COLOURS, SHAPES, SIZES)),
        "colours": (0.05, one(lambda z, s, c: f"The {z} {s} is {c}.", SIZES, SHAPES, COLOURS)),
        "pairs": (0.10, tuple((f"There is {article(a)} and {article(b)}.", (x, y))
                              for a, x in sized for b, y in sized if x != y)),
        "counts": (0.05, (*one(lambda s: f"There is one {s}.", SHAPES),
                          *((f"There are {word} {PLURALS[s]}.", ()) for word, _ in several for s in SHAPES))),
        "colour of a shape": (0.08, one(lambda s, c: answered(f"What colour is the {s}?", c), SHAPES, COLOURS)),
        "colour of a sized shape": (0.06, one(lambda z, s, c: answered(f"What colour is the {z} {s}?", c),
                                              SIZES, SHAPES, COLOURS)),
        "shape of a colour": (0.08, one(lambda c, s: answered(f"What shape is the {c} thing?", article(s)),
                                        COLOURS, SHAPES)),
        "size of a shape": (0.04, one(lambda s, z: answered(f"How big is the {s}?", z), SHAPES, SIZES)),
        "size of a colour": (0.04, one(lambda c, z: answered(f"How big is the {c} thing?", z), COLOURS, SIZES)),
        "place of a shape": (0.05, one(lambda s, p: answered(f"Where is the {s}?", p), SHAPES, PLACES)),
        "place of a colour": (0.05, one(lambda c, p: answered(f"Where is the {c} thing?", p), COLOURS, PLACES)),
        "yes or no": (0.05, one(lambda c, s, a: answered(f"Is there {article(f'{c} {s}')}?", a),
                                COLOURS, SHAPES, ("yes", "no"))),
        "how many": (0.05, (*one(lambda s, n: answered(f"How many {PLURALS[s]} are there?", n), SHAPES, NUMBERS[:4]),
                            *one(lambda n: answered("How many things are there?", n), NUMBERS[1:4]))),
    }  # fmt: skip


@functools.cache
def lines_of(split: str) -> dict[str, tuple[float, tuple[str, ...]]]:
    """The lines of a split, by family. Families of less than 100 lines are for training only, whole."""
    check_split(split)
    found = {}
    for name, (weight, lines) in language().items():
        place = (lambda text: "train") if len(lines) < 100 else split_of
        kept = tuple(text for text, pairs in lines
                     if split == ("compositional" if not HELD_OUT.isdisjoint(pairs) else place(text)))  # fmt: skip
        if kept:
            found[name] = (weight, kept)
    total = sum(weight for weight, _ in found.values())
    return {name: (weight / total, lines) for name, (weight, lines) in found.items()}


def draw_line(split: str, index: int, seed: int = 0, fit: Callable[[str], bool] = lambda line: True) -> str:
    """Line number `index` of a split's endless text, of the lines that are `fit`."""
    families = lines_of(split)
    rng = random.Random(f"{seed} {split} line {index}")
    while True:
        name = rng.choices(list(families), [weight for weight, _ in families.values()])[0]
        if fit(line := rng.choice(families[name][1])):
            return line


def entropy(split: str = "train") -> float:
    """Nats in one line of a split: Σ -p ln p over every one of them. No model has a lower loss on its endless text."""
    return sum(weight * math.log(len(lines) / weight) for weight, lines in lines_of(split).values())


@functools.cache
def surprise(split: str, exceptions: bool = True) -> dict[str, float]:
    """-ln p of every line of a split, for a reader who knows all that can be known of it.

    Of `train` that is the split itself: its lines, no others. Nobody can know which lines were kept for `validation`
    and `test`: who knows the grammar, and which combinations are held out, gives each of them what it gives any other
    line. `compositional` lines are a surprise to everyone: they count as what they are in the whole grammar. So does
    every line for a reader without `exceptions`, who takes all combinations for possible.
    """
    found: dict[str, float] = {}
    for name, (kept_weight, lines) in lines_of(split).items():
        weight, every = language()[name]
        allowed = [text for text, pairs in every if HELD_OUT.isdisjoint(pairs)]
        whole = math.log(len(every) / weight)
        nats = {"train": math.log(len(lines) / kept_weight), "compositional": whole} if exceptions else {split: whole}
        found |= dict.fromkeys(lines, nats.get(split, math.log(max(1, len(allowed)) / weight)))
    return found


def loss_floor(encode: Callable[[str], list[int]], split: str = "train") -> float:
    """Nats for one token, the end of the line counted, that such a reader loses on a split. On `train`: its entropy."""
    nats = tokens = 0.0
    for weight, lines in lines_of(split).values():
        nats += weight * sum(surprise(split)[line] for line in lines) / len(lines)
        tokens += weight * (sum(len(encode(line)) for line in lines) / len(lines) + 1)
    return nats / tokens


def shuffled_words(index: int, seed: int = 0, split: str = "train") -> str:
    """The words of two lines in random order: sound without the grammar."""
    rng = random.Random(f"{seed} {split} shuffled {index}")
    words = [word.strip(".,?").lower() for n in (0, 1) for word in draw_line(split, 2 * index + n, seed + 1).split()]
    rng.shuffle(words)
    return " ".join(words[: rng.randint(3, 8)])


# ---- what the tokenizer was trained on, which is frozen with it -----------------------------------------------------


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
