"""Pictures of the closed world: 224 × 224, drawn at four times the size and made smaller, so that edges are smooth."""

import math
import random

from PIL import Image, ImageDraw

from tinyomni.data.world import Thing

SIDE, FINE = 224, 4
RGB = {
    "red": (214, 40, 40), "green": (42, 157, 70), "blue": (40, 80, 214), "yellow": (250, 215, 30),
    "orange": (247, 127, 0), "purple": (123, 44, 191), "pink": (255, 130, 190), "brown": (121, 72, 30),
    "black": (20, 20, 20), "white": (255, 255, 255), "grey": (140, 140, 140), "cyan": (30, 205, 220),
}  # fmt: skip
CENTRES = {
    "on the left": (45, 112), "on the right": (179, 112), "at the top": (112, 45), "at the bottom": (112, 179),
    "in the middle": (112, 112),
}  # fmt: skip
RADII = {"big": 31, "small": 17}
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
    # a diamond is narrower than it is high, so that it is no turned square
    return [(x * 0.62, y) for x, y in points] if shape == "diamond" else points


def heart() -> list[Point]:
    """A classic curve: x = 16 sin³ t."""
    steps = [2 * math.pi * i / 90 for i in range(90)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in steps
    ]


def draw_thing(
    pen: ImageDraw.ImageDraw, thing: Thing, centre: Point, radius: float, turn: float, ground: tuple[int, ...]
) -> None:
    """One object, with a thin dark line around it so that white and yellow are seen on any background."""
    (x, y), fill, line = centre, RGB[thing.colour], max(2, round(radius * 0.05))
    edge = (90, 90, 90) if thing.colour != "black" else (0, 0, 0)
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "circle":
        pen.ellipse(box, fill, edge, line)
    elif thing.shape == "ring":
        pen.ellipse(box, fill, edge, line)
        hole = radius * 0.55
        pen.ellipse((x - hole, y - hole, x + hole, y + hole), ground, edge, line)
    elif thing.shape == "cross":
        arm = 0.32
        # three corners of the upper arm, then the same a quarter turn on, four times
        outline = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
        for _ in range(3):
            outline += [(-b, a) for a, b in outline[-3:]]
        pen.polygon([(x + a * radius, y + b * radius) for a, b in outline], fill, edge, line)
    else:
        outline = heart() if thing.shape == "heart" else corners(thing.shape, turn)
        pen.polygon([(x + a * radius, y + b * radius) for a, b in outline], fill, edge, line)


def picture(things: list[Thing], seed: int = 0) -> Image.Image:
    """The scene as a picture. The seed moves, turns and resizes things a little, never so that an answer changes."""
    rng = random.Random(seed)
    ground = rng.choice(BACKGROUNDS)
    canvas = Image.new("RGB", (SIDE * FINE, SIDE * FINE), ground)
    pen = ImageDraw.Draw(canvas)
    for thing in things:
        x, y = CENTRES[thing.place]
        centre = ((x + rng.uniform(-5, 5)) * FINE, (y + rng.uniform(-5, 5)) * FINE)
        radius = RADII[thing.size] * rng.uniform(0.92, 1.08) * FINE
        draw_thing(pen, thing, centre, radius, rng.uniform(-0.15, 0.15), ground)
    return canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def course_picture() -> Image.Image:
    """The picture that ships with the course."""
    return picture(
        [Thing("big", "red", "circle", "on the left"), Thing("small", "blue", "star", "at the top"),
         Thing("big", "green", "triangle", "on the right")], seed=3,
    )  # fmt: skip
