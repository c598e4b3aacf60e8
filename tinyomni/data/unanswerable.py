"""What lies outside the closed world. The right answer is one of its own phrases: that one does not know.

    a picture that shows no scene      "Describe the image."  I can see nothing.     a question  I do not know.
    a question about what is not there, or about what the world has no word for                 I do not know.
    sound that is no speech                                                                     I heard nothing.
    a question about a picture, and no picture                                                  I cannot see that.

Test pictures, words and sounds are of other kinds than those of training: what counts is what was never met.
"""

import random

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tinyomni.data import world
from tinyomni.data.rendering import SIDE

DO_NOT_KNOW, SEE_NOTHING, HEARD_NOTHING = "I do not know.", "I can see nothing.", "I heard nothing."
CANNOT_SEE = "I cannot see that."
ANSWERS = (DO_NOT_KNOW, SEE_NOTHING, HEARD_NOTHING, CANNOT_SEE)
RATE = 16_000

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


def question(things: list[world.Thing], rng: random.Random, split: str = "train", kind: str | None = None) -> str:
    """A question to which the scene gives no answer: about what is `not there`, or with an `unknown word`."""
    if (kind or rng.choice(("not there", "unknown word"))) == "not there":
        shapes = [shape for shape in world.SHAPES if not world.count(things, shape)]
        colours = [colour for colour in world.COLOURS if all(thing.colour != colour for thing in things)]
        missing = rng.choice((rng.choice(shapes), f"{rng.choice(colours)} thing"))
        field = "shape" if missing.endswith("thing") else "colour"
        return rng.choice((f"Where is the {missing}?", f"How big is the {missing}?", f"What {field} is the {missing}?"))
    kept = ("train",) if split == "train" else tuple(each for each in world.SPLITS if each != "train")
    return rng.choice(OPEN).format(noun=rng.choice([noun for noun in NOUNS if world.split_of(noun) in kept]))


def picture(rng: random.Random, split: str = "train") -> Image.Image:
    """A picture of nothing: coloured clouds, grain or stripes; outside of training a patchwork."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    kind = rng.choice(("clouds", "clouds", "grain", "stripes")) if split == "train" else "patchwork"
    field = np.zeros((SIDE, SIDE, 3))
    if kind == "patchwork":
        for _ in range(rng.randint(20, 60)):
            left, top = (rng.randrange(-20, SIDE) for _ in "xy")
            patch = slice(max(top, 0), top + rng.randint(20, 120)), slice(max(left, 0), left + rng.randint(20, 120))
            field[patch] = numbers.uniform(0, 255, 3)
    else:
        # octaves of noise, finer ones weaker, as in photographs (Field, 1987); grain is only the finest
        for octave in range(1, 8) if kind == "clouds" else (1, 7):
            coarse = numbers.normal(size=(2**octave, 2**octave, rng.choice((1, 3)))).repeat(3, axis=2)[..., :3]
            layers = [Image.fromarray(layer.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                      for layer in np.moveaxis(coarse, -1, 0)]  # fmt: skip
            weight = 0.7**octave if kind == "clouds" else 1.0
            field += weight * np.stack([np.asarray(layer) for layer in layers], axis=-1)
        if kind == "stripes":
            across, down = rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4)
            waves = np.sin(across * np.arange(SIDE)[None, :] + down * np.arange(SIDE)[:, None])
            field = field * 0.3 + waves[..., None] * numbers.uniform(0.3, 1.5, 3)
        field = 128 + field / field.std() * rng.uniform(20, 70) + numbers.uniform(-60, 60, 3)
    return Image.fromarray(field.clip(0, 255).astype(np.uint8))


def sound(rng: random.Random, split: str = "train") -> Float[Tensor, "samples"]:
    """A second or two without speech: noise, a hum or almost silence; outside of training a sliding tone."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    time = np.arange(rng.randint(RATE // 2, 2 * RATE)) / RATE
    kind = rng.choice(("noise", "hum", "hush")) if split == "train" else "slide"
    if kind in ("noise", "hush"):
        wave = numbers.normal(size=len(time)) * (rng.uniform(0.05, 0.3) if kind == "noise" else 1e-3)
    elif kind == "hum":
        low = rng.uniform(60, 400)
        wave = np.sum([np.sin(2 * np.pi * low * k * time) * rng.uniform(0, 0.1) for k in range(1, 6)], axis=0)
    else:
        wave = 0.2 * np.sin(2 * np.pi * (rng.uniform(200, 800) * time + rng.uniform(100, 600) * time**2))
    return torch.from_numpy(np.asarray(wave, dtype=np.float32))
