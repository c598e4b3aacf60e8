"""Unanswerable inputs, from outside the closed world. The right answer says that the model does not know.

    an image that shows no scene       "Describe the image."  I can see nothing.     a question  I do not know.
    a question about a thing that is absent, or with a word that the world does not have        I do not know.
    audio without speech                                                                        I heard nothing.
    a question about an image, and no image                                                     I cannot see that.

Test images, words and audio are of other kinds than those of training: what counts is what was never seen or heard.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tinyomni.config import IMAGE_SIZE, SAMPLE_RATE
from tinyomni.data import randomization, world
from tinyomni.data.randomization import NOTHING, PATCH, WIDE, Randomization, Rendered
from tinyomni.data.world import QUESTION_KINDS, SHAPES, Question, Thing
from tinyomni.reply import HEARD_NOTHING

DO_NOT_KNOW, SEE_NOTHING = "I do not know.", "I can see nothing."
CANNOT_SEE = "I cannot see that."
ANSWERS = (DO_NOT_KNOW, SEE_NOTHING, HEARD_NOTHING, CANNOT_SEE)
COUNT_TO_THREE, CANNOT_TELL = "I can count only to three.", "I do not know what I see."
UNCLEAR_IMAGES = {"empty": SEE_NOTHING, "no scene": SEE_NOTHING, "too many": COUNT_TO_THREE,
                  "overlapping": CANNOT_TELL, "foreign": CANNOT_TELL}  # fmt: skip
"""What is shown in an image that has no description → what is said instead of one. In training of the wide style."""
NOT_THERE = "not"  # what the scratchpad finds where nothing is there
ABOUT = ("not there", "unknown word")  # what a question can be about

NOUNS = (
    "dog", "cat", "horse", "cow", "bird", "fish", "mouse", "sheep", "tree", "flower", "grass", "leaf", "river",
    "lake", "sea", "beach", "mountain", "hill", "cloud", "sky", "sun", "moon", "house", "door", "window", "roof",
    "wall", "garden", "road", "bridge", "street", "city", "car", "bus", "train", "bicycle", "boat", "plane", "man",
    "woman", "child", "girl", "boy", "baby", "king", "queen", "teacher", "doctor", "farmer", "friend", "hand",
    "head", "eye", "nose", "mouth", "hair", "foot", "table", "chair", "bed", "lamp", "cup", "plate", "knife",
    "spoon", "bottle", "box", "book", "pen", "paper", "letter", "clock", "phone", "camera", "radio", "piano",
    "guitar", "drum", "ball", "game", "apple", "banana", "bread", "cheese", "cake", "egg", "soup", "tea", "coffee",
    "milk", "water", "hat", "coat", "shoe", "shirt", "dress", "bag", "key", "coin", "word", "name", "song", "story",
    "number", "price", "weather", "summer", "winter", "fire", "stone", "glass", "metal", "wood",
)  # fmt: skip
OPEN = (
    "How old is the {noun}?", "What is the {noun} called?", "Why is the {noun} here?", "What colour is the {noun}?",
    "Where is the {noun}?", "How big is the {noun}?", "Who has the {noun}?", "When does the {noun} come?",
)  # fmt: skip


def question(things: Sequence[Thing], rng: random.Random, split: str = "train", about: str | None = None) -> Question:
    """A question that the scene does not answer: about a thing that is `not there`, or with an `unknown word`."""
    if (about or rng.choice(ABOUT)) == "not there":
        shapes = [shape for shape in SHAPES if not world.count_shape(things, shape)]
        colours = [colour for colour in world.COLOURS if all(thing.colour != colour for thing in things)]
        by, key = rng.choice((("shape", rng.choice(shapes)), ("colour", rng.choice(colours))))
        kind = QUESTION_KINDS[rng.choice(("place", "size", "colour" if by == "shape" else "shape"))]
        text = next(wording.text for wording in kind.wordings if wording.by == by).format(**{by: key})
        return Question(kind.id, text, DO_NOT_KNOW, key, NOT_THERE)
    kept = ("train",) if split == "train" else tuple(each for each in world.SPLITS if each != "train")
    template, nouns = rng.choice(OPEN), [noun for noun in NOUNS if world.split_of(noun) in kept]
    return Question(None, template.format(noun=rng.choice(nouns)), DO_NOT_KNOW)


def unanswered(question: Question) -> Question:
    """The same question where nothing answers it, since the image shows no scene."""
    return replace(question, answer=DO_NOT_KNOW, key=None, value=None)


def image(rng: random.Random, split: str = "train") -> Image.Image:
    """An image of nothing: coloured clouds, grain or stripes; outside of training a patchwork."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    kind = rng.choice(("clouds", "clouds", "grain", "stripes")) if split == "train" else "patchwork"
    field = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3))
    if kind == "patchwork":
        for _ in range(rng.randint(20, 60)):
            left, top = (rng.randrange(-20, IMAGE_SIZE) for _ in "xy")
            patch = slice(max(top, 0), top + rng.randint(20, 120)), slice(max(left, 0), left + rng.randint(20, 120))
            field[patch] = numbers.uniform(0, 255, 3)
    else:
        # octaves of noise, finer ones weaker, as in photographs (Field, 1987); grain is only the finest
        for octave in range(1, 8) if kind == "clouds" else (1, 7):
            coarse = numbers.normal(size=(2**octave, 2**octave, rng.choice((1, 3)))).repeat(3, axis=2)[..., :3]
            layers = [
                Image.fromarray(layer.astype(np.float32)).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
                for layer in np.moveaxis(coarse, -1, 0)
            ]
            weight = 0.7**octave if kind == "clouds" else 1.0
            field += weight * np.stack([np.asarray(layer) for layer in layers], axis=-1)
        if kind == "stripes":
            across, down = rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4)
            waves = np.sin(across * np.arange(IMAGE_SIZE)[None, :] + down * np.arange(IMAGE_SIZE)[:, None])
            field = field * 0.3 + waves[..., None] * numbers.uniform(0.3, 1.5, 3)
        field = 128 + field / field.std() * rng.uniform(20, 70) + numbers.uniform(-60, 60, 3)
    return Image.fromarray(field.clip(0, 255).astype(np.uint8))


def unclear_kind(rng: random.Random) -> str:
    """One of UNCLEAR_IMAGES: those most often that are hardest to tell from a scene."""
    kinds = [*UNCLEAR_IMAGES]
    return rng.choices(kinds, [3 if kind in ("overlapping", "foreign") else 1 for kind in kinds])[0]


def unclear_image(kind: str, rng: random.Random, split: str = "train", how: Randomization = WIDE) -> Rendered:
    """An image of one of UNCLEAR_IMAGES, and what its patches show."""
    if kind == "no scene":
        return Rendered(image(rng, split), np.full((IMAGE_SIZE // PATCH,) * 2, NOTHING))
    return randomization.render_unclear(kind, rng.randrange(2**32), how, split)


def audio(rng: random.Random, split: str = "train") -> Float[Tensor, "samples"]:
    """A second or two without speech: noise, a hum or almost silence; outside of training a sliding tone."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    time = np.arange(rng.randint(SAMPLE_RATE // 2, 2 * SAMPLE_RATE)) / SAMPLE_RATE
    kind = rng.choice(("noise", "hum", "hush")) if split == "train" else "slide"
    if kind in ("noise", "hush"):
        wave = numbers.normal(size=len(time)) * (rng.uniform(0.05, 0.3) if kind == "noise" else 1e-3)
    elif kind == "hum":
        low = rng.uniform(60, 400)
        wave = np.sum([np.sin(2 * np.pi * low * k * time) * rng.uniform(0, 0.1) for k in range(1, 6)], axis=0)
    else:
        wave = 0.2 * np.sin(2 * np.pi * (rng.uniform(200, 800) * time + rng.uniform(100, 600) * time**2))
    return torch.from_numpy(np.asarray(wave, dtype=np.float32))
