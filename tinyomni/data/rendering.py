"""Images of the closed world: 224 × 224, rendered at four times the size and reduced, so that edges are smooth.

Easy images do not vary: things fill whole patches of 16, on one plain background. In hard ones the things are smaller,
shifted, rotated and resized a little, on a background that shades from one colour to another, with a little noise. No
answer depends on any of this.
"""

import functools
import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from tinyomni.config import IMAGE_SIZE
from tinyomni.data.world import Thing

SUPERSAMPLING = 4
RGB = {
    "red": (214, 40, 40), "green": (42, 157, 70), "blue": (40, 80, 214), "yellow": (250, 215, 30),
    "orange": (247, 127, 0), "purple": (123, 44, 191), "pink": (255, 130, 190), "brown": (121, 72, 30),
    "black": (20, 20, 20), "white": (255, 255, 255), "grey": (140, 140, 140), "cyan": (30, 205, 220),
}  # fmt: skip
PLACE_OFFSETS = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the middle": (0, 0),
}
"""Right and down of the middle, in steps that are whole patches."""
RADII = {"big": 32, "small": 16}
STEP = 64  # pixels from the middle to a place
HOLE = 0.55  # of a ring, as a part of its radius
BACKGROUNDS = ((233, 226, 211), (211, 224, 233), (222, 233, 211), (229, 214, 229))

Point = tuple[float, float]


def corners(shape: str, turn: float) -> list[Point]:
    """The outline of a shape with straight sides, radius 1, turned by some radians."""
    radii = {"star": [1.0, 0.42] * 5, "square": [1.0] * 4, "triangle": [1.0] * 3, "diamond": [1.0] * 4}[shape]
    start = -math.pi / 2 + (math.pi / 4 if shape == "square" else 0) + turn
    points = [
        (r * math.cos(start + 2 * math.pi * i / len(radii)), r * math.sin(start + 2 * math.pi * i / len(radii)))
        for i, r in enumerate(radii)
    ]
    # a diamond is narrower than it is high: else it would be a rotated square
    return [(x * 0.62, y) for x, y in points] if shape == "diamond" else points


def heart() -> list[Point]:
    """A classic curve: x = 16 sin³ t."""
    steps = [2 * math.pi * i / 90 for i in range(90)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in steps
    ]


def cross(arm: float = 0.32) -> list[Point]:
    """Three corners of the upper arm, then the same a quarter turn on, four times."""
    outline = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    for _ in range(3):
        outline += [(-b, a) for a, b in outline[-3:]]
    return outline


def draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, centre: Point, radius: float, turn: float) -> None:
    """One thing, with a thin dark outline, so that white and yellow are seen on any background."""
    (x, y), fill, line = centre, RGB[thing.colour], max(2, round(radius * 0.05))
    edge = (90, 90, 90) if thing.colour != "black" else (0, 0, 0)
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "circle":
        pen.ellipse(box, fill, edge, line)
    elif thing.shape == "ring":
        hole = radius * HOLE
        pen.ellipse(box, None, fill, round(radius - hole))
        pen.ellipse(box, None, edge, line)
        pen.ellipse((x - hole, y - hole, x + hole, y + hole), None, edge, line)
    else:
        curves = {"heart": heart, "cross": cross}
        outline = curves[thing.shape]() if thing.shape in curves else corners(thing.shape, turn)
        pen.polygon([(x + a * radius, y + b * radius) for a, b in outline], fill, edge, line)


def background(rng: random.Random, hard: bool) -> Image.Image:
    """Plain, or shading from one light colour to another, with a little noise."""
    if not hard:
        return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), BACKGROUNDS[0])
    plain = shading(*rng.sample(BACKGROUNDS, 2), rng.choice((0, 90, 180, 270)))
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 3, (IMAGE_SIZE, IMAGE_SIZE, 1))
    return Image.fromarray((plain + noise).clip(0, 255).round().astype(np.uint8))


@functools.cache
def shading(one: tuple[int, int, int], other: tuple[int, int, int], turn: int) -> np.ndarray:
    """From one colour to another, in one of four directions; there are 48 in all."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    shade = Image.linear_gradient("L").rotate(turn).resize(size)
    return np.asarray(Image.composite(Image.new("RGB", size, one), Image.new("RGB", size, other), shade))


def render(things: Sequence[Thing], seed: int = 0, hard: bool = True) -> Image.Image:
    """The scene as an image. The seed shifts, rotates and resizes things a little, never so that an answer changes."""
    rng = random.Random(seed)
    # each pixel of the background is repeated, so that reducing gives it back unchanged
    fine = IMAGE_SIZE * SUPERSAMPLING
    canvas = background(rng, hard).resize((fine, fine), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    for thing in things:
        (right, down), shift = PLACE_OFFSETS[thing.place], (0.0, 0.0)
        step, radius, turn = float(STEP), float(RADII[thing.size]), 0.0
        if hard:
            step, turn = rng.uniform(65, 69), rng.uniform(-0.15, 0.15)
            radius *= rng.uniform(0.82, 0.94)
            shift = rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)
        centre = (
            (IMAGE_SIZE / 2 + (right + shift[0]) * step) * SUPERSAMPLING,
            (IMAGE_SIZE / 2 + (down + shift[1]) * step) * SUPERSAMPLING,
        )
        draw_thing(pen, thing, centre, radius * SUPERSAMPLING, turn)
    return canvas.reduce(SUPERSAMPLING)
