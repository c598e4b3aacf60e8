"""Scenes as people and programs draw them: domain randomization, for training that shall hold outside of one renderer.

    things → places, sizes, turns → outlines → masks → colours on a background → as a camera or a file gives it

A model that saw one renderer knows that renderer: an image shifted by six pixels is another world to it. Here all that
an answer does not depend on varies, far more than in any one source of images, so that a new source is one variation
among others. Each kind of variation is a field of `Randomization`: how far it goes, or how often it occurs, so that
what each is worth can be measured by leaving it out.

Beside the image it is known which thing each patch of 16 pixels shows. Some images show what the world has no words
for: more than three things, things that overlap, foreign shapes.

Source: Tobin et al., Domain Randomization (2017), arXiv:1703.06907.
"""

import functools
import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tinyomni.config import IMAGE_SIZE
from tinyomni.data.rendering import HOLE, PLACE_OFFSETS, RADII, STEP, Point, corners, cross, heart
from tinyomni.data.world import COLOURS, PLACES, SHAPES, SIZES, Thing, colour_shape_pairs, sort_by_place

NOTHING, UNCLEAR = -1, -2  # what a patch shows, beside the number of a thing
PATCH = 16
SUPERSAMPLING = 3
Colour = tuple[float, float, float]
Outline = list[Point]


@dataclass(frozen=True)
class Randomization:
    """How far things vary, or how often (0…1). All at 0: things on their places, on plain paper."""

    shift: float = 22.0  # pixels, of a thing from its place, both ways
    image_shift: float = 14.0  # pixels, of the whole scene
    image_scale: float = 0.15  # of the whole scene
    size: float = 0.28  # of the radius, as a part of it
    rotation: float = 0.6  # radians; circles, stars and triangles turn to any side
    colour: float = 1.0  # how far a colour goes within its name
    background: float = 1.0  # how often it is not white paper
    gradient: float = 0.3
    texture: float = 0.3
    outline: float = 0.7  # how often a thing has one
    thick: float = 0.6  # how often that is up to a third of its radius wide
    hollow: float = 0.1  # only the outline of a thing is drawn, in its colour
    scribble: float = 0.12  # filled with strokes
    hand_drawn: float = 0.35  # wobbly lines, round corners
    pixel_edges: float = 0.15  # no smoothing of edges
    light: float = 0.08  # gain of each colour channel
    blur: float = 0.25
    low_resolution: float = 0.12
    noise: float = 0.35
    jpeg: float = 0.4

    def scaled(self, wildness: float) -> "Randomization":
        """The same with all fields times `wildness`: 0 for nothing, 1 for all of it."""
        return replace(self, **{each.name: getattr(self, each.name) * wildness for each in fields(self)})


WIDE = Randomization()


class Rendered(NamedTuple):
    """An image, and for each of its 14 × 14 patches the number of the thing that it shows, NOTHING or UNCLEAR; and the
    things, where one of them has a `foreign` shape.
    """

    image: Image.Image
    shown: np.ndarray
    things: tuple[Thing, ...] = ()


# ---- colours --------------------------------------------------------------------------------------------------------

SHADES: dict[str, tuple[Colour, ...]] = {
    "red": ((255, 0, 0), (214, 40, 40), (220, 20, 60), (180, 20, 25), (240, 60, 50), (200, 0, 0)),
    "green": ((0, 128, 0), (42, 157, 70), (0, 200, 60), (34, 139, 34), (80, 190, 80), (0, 100, 0), (0, 240, 0)),
    "blue": ((0, 0, 255), (40, 80, 214), (30, 60, 160), (0, 90, 200), (65, 105, 225), (0, 0, 150), (50, 115, 240)),
    "yellow": ((255, 255, 0), (250, 215, 30), (255, 235, 60), (240, 220, 0), (255, 245, 90)),
    "orange": ((255, 165, 0), (247, 127, 0), (255, 140, 0), (240, 120, 20), (255, 110, 10)),
    "purple": ((128, 0, 128), (123, 44, 191), (148, 0, 211), (90, 30, 150), (155, 60, 200), (110, 20, 120)),
    "pink": ((255, 192, 203), (255, 130, 190), (255, 105, 180), (250, 160, 200), (255, 150, 170)),
    "brown": ((165, 42, 42), (121, 72, 30), (139, 69, 19), (100, 60, 25), (150, 90, 45), (160, 82, 45)),
    "black": ((0, 0, 0), (20, 20, 20), (35, 35, 38), (10, 10, 25)),
    "white": ((255, 255, 255), (245, 245, 245), (250, 248, 240)),
    "grey": ((128, 128, 128), (140, 140, 140), (105, 105, 105), (169, 169, 169), (150, 155, 160), (120, 118, 115)),
    "cyan": ((0, 255, 255), (30, 205, 220), (0, 190, 200), (80, 225, 235), (0, 220, 250)),
}
"""Values that people and programs call by each name; the course's own is the second (of black and white: near it)."""
CONTRAST = 75.0  # between a thing and what is behind it, as a distance of RGB values
PAPER: Colour = (255, 255, 255)


def shade(name: str, rng: random.Random, width: float) -> Colour:
    """A value within a colour's name: between two of its shades; with `width` 0 the course's own."""
    own = SHADES[name][1]
    one, two = rng.choice(SHADES[name]), rng.choice(SHADES[name])
    part = rng.random()
    found = [a + (b - a) * part + rng.uniform(-6, 6) for a, b in zip(one, two, strict=True)]
    red, green, blue = (o + (f - o) * min(1.0, width) for o, f in zip(own, found, strict=True))
    return min(255.0, max(0.0, red)), min(255.0, max(0.0, green)), min(255.0, max(0.0, blue))


def contrast(one: Sequence[float] | np.ndarray, two: Sequence[float] | np.ndarray) -> float:
    """The distance of two colours."""
    return math.dist(one, two)


# ---- background -----------------------------------------------------------------------------------------------------


@functools.cache
def textures() -> tuple[np.ndarray, ...]:
    """Patterns with a mean of 0 and a standard deviation of 1: clouds, grain, ruled and squared paper, weave."""
    numbers, found = np.random.default_rng(0), []
    axis = np.arange(IMAGE_SIZE)
    for octaves in ((2, 3), (3, 4), (2, 3, 4, 5), (5, 6), (4, 5, 6, 7)):
        field = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
        for octave in octaves:
            coarse = Image.fromarray(numbers.normal(size=(2**octave, 2**octave)).astype(np.float32))
            field += 0.7**octave * np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
        found.append(field)
    for spacing in (11, 16, 23):
        lines = -(axis % spacing < 1).astype(np.float32)
        found += [np.broadcast_to(lines[:, None], (IMAGE_SIZE, IMAGE_SIZE)), lines[:, None] + lines[None]]
    found.append(np.sin(axis * 0.9)[:, None] * np.sin(axis * 0.9)[None])
    found.append(np.sin(axis[:, None] * 0.25 + axis[None] * 0.18))
    return tuple(((field - field.mean()) / field.std()).astype(np.float32) for field in found)


@functools.cache
def grain() -> np.ndarray:
    """White noise, from which each image takes another part: drawing it again would take longer than all the rest."""
    side = 2 * IMAGE_SIZE
    return np.random.default_rng(1).normal(size=(side, side, 3)).astype(np.float32)


def background_colour(rng: random.Random, how: Randomization) -> Colour:
    """White or tinted paper, a light, a dark, or any colour."""
    if rng.random() >= how.background:
        return PAPER
    kind = rng.random()
    if kind < 0.3:
        light = rng.uniform(225, 255)
        return light, light - rng.uniform(0, 10), light - rng.uniform(0, 18)
    low, high = (170, 255) if kind < 0.6 else (0, 70) if kind < 0.8 else (0, 255)
    return rng.uniform(low, high), rng.uniform(low, high), rng.uniform(low, high)


def background(rng: random.Random, how: Randomization) -> np.ndarray:
    """(224, 224, 3) floats in about 0…255."""
    colour = background_colour(rng, how)
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    canvas[:] = colour
    if rng.random() < how.gradient:
        angle, axis = rng.uniform(0, 2 * math.pi), np.linspace(-0.7, 0.7, IMAGE_SIZE, dtype=np.float32)
        ramp = math.cos(angle) * axis[None] + math.sin(angle) * axis[:, None]
        canvas += ramp[..., None] * np.array([rng.uniform(-60, 60) for _ in "rgb"], dtype=np.float32)
    if rng.random() < how.texture:
        tint = np.array([rng.uniform(0.6, 1.4) for _ in "rgb"], dtype=np.float32)
        field = np.rot90(rng.choice(textures()), rng.randrange(4))
        canvas += field[..., None] * tint * rng.uniform(2, 16)
    return canvas.clip(0, 255)


# ---- outlines -------------------------------------------------------------------------------------------------------

FOREIGN: dict[str, Outline] = {
    "arrow": [(-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)],
    "bolt": [(0.2, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.25, 1), (0.65, -0.2), (0.05, -0.2)],
    "bracket": [(-0.7, -1), (-0.15, -1), (-0.15, 0.45), (0.8, 0.45), (0.8, 1), (-0.7, 1)],
    "bar": [(-1, -0.25), (1, -0.25), (1, 0.25), (-1, 0.25)],
    "hexagon": [(math.cos(math.pi * n / 3), math.sin(math.pi * n / 3)) for n in range(6)],
    "moon": [
        *((math.cos(t), math.sin(t)) for t in np.linspace(0.6, 2 * math.pi - 0.6, 24)),
        *((0.45 + 0.68 * math.cos(t), 0.68 * math.sin(t)) for t in np.linspace(2 * math.pi - 0.98, 0.98, 18)),
    ],
    "house": [(-0.8, 1), (-0.8, -0.15), (0, -1), (0.8, -0.15), (0.8, 1)],
    "wedge": [(-1, 0.6), (-0.5, -0.6), (0.5, -0.6), (1, 0.6)],
    "letter": [(-0.9, -1), (0.9, -1), (0.9, -0.5), (0.28, -0.5), (0.28, 1), (-0.28, 1), (-0.28, -0.5), (-0.9, -0.5)],
}
"""Shapes that the world has no word for."""
FOREIGN_IN_TEST = ("house", "wedge", "letter")  # never in training
MADE_UP = 0.6  # of the foreign shapes of training are made up, so that what is learned is not a list
ANY_TURN = ("circle", "ring", "star", "triangle")


def made_up(rng: random.Random) -> Outline:
    """A shape that the world has no word for: a star, but not of five points, a polygon, regular or not, a flat
    parallelogram, an ellipse, a blob, or a circle of which a piece is missing.
    """
    kind = rng.choice(("star", "regular", "polygon", "parallelogram", "ellipse", "blob", "sector"))
    if kind == "parallelogram":
        half, shear = rng.uniform(0.3, 0.5), rng.choice((-1, 1)) * rng.uniform(0.0, 0.6)
        corners = [
            (-1 + shear * half, -half),
            (1 + shear * half, -half),
            (1 - shear * half, half),
            (-1 - shear * half, half),
        ]
        far = math.hypot(1 + abs(shear) * half, half)
        return [(x / far, y / far) for x, y in corners]
    if kind == "sector":
        half = rng.uniform(0.3, 1.3)  # of the angle that is missing
        return [(0.0, 0.0), *((math.cos(t), math.sin(t)) for t in np.linspace(half, 2 * math.pi - half, 40))]
    if kind == "star":
        count = rng.choice((4, 6, 7, 9, 10, 12))
        inner = rng.uniform(0.3, 0.5 if count == 4 else 0.75)  # a blunt star of four points is a diamond
        radii = [1.0, inner] * count
    elif kind == "regular":
        radii = [1.0] * rng.choice((5, 6))
    elif kind == "polygon":
        radii = [rng.uniform(0.4, 1.0) for _ in range(rng.randint(5, 9))]
    elif kind == "ellipse":
        radii = [1.0] * 40
    else:
        waves = [(n, rng.uniform(0.1, 0.35) / n**0.5, rng.uniform(0, 2 * math.pi)) for n in (2, 3, 5)]
        radii = [
            1 + sum(high * math.cos(n * 2 * math.pi * k / 40 + start) for n, high, start in waves) for k in range(40)
        ]
        radii = [r / max(radii) for r in radii]
    step, flat = 2 * math.pi / len(radii), rng.uniform(0.35, 0.6) if kind == "ellipse" else 1.0
    shift = [rng.uniform(-0.3, 0.3) * step if kind == "polygon" else 0.0 for _ in radii]
    angles = [(number + more) * step for number, more in enumerate(shift)]
    return [(r * math.cos(angle), flat * r * math.sin(angle)) for r, angle in zip(radii, angles, strict=True)]


def outline_of(shape: str) -> Outline:
    """The outline of a shape, radius 1, not turned; of a ring the outer one."""
    if shape in FOREIGN:
        return FOREIGN[shape]
    if shape in ("circle", "ring"):
        return [(math.cos(2 * math.pi * n / 40), math.sin(2 * math.pi * n / 40)) for n in range(40)]
    curves = {"heart": heart, "cross": cross}
    return curves[shape]() if shape in curves else corners(shape, 0.0)


def turned(points: Outline, angle: float, stretch: float) -> Outline:
    """Turned by an angle, after it was stretched a little in width."""
    c, s = math.cos(angle), math.sin(angle)
    return [(c * x * stretch - s * y, s * x * stretch + c * y) for x, y in points]


def wobbly(points: Outline, rng: random.Random, amount: float) -> Outline:
    """As a hand draws it: more corners along each side, all moved a little, neighbours alike."""
    harmonics = [(rng.uniform(0, 6.3), rng.uniform(0, 6.3), rng.gauss(0, amount / k)) for k in (1, 2, 3, 5)]
    found = []
    pieces = max(1, 36 // len(points))
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        for piece in range(pieces):
            part = piece / pieces
            x, y = ax + (bx - ax) * part, ay + (by - ay) * part
            angle = math.atan2(y, x)
            grow = 1 + sum(a * math.sin(k * angle + p) for k, (p, _, a) in zip((1, 2, 3, 5), harmonics, strict=True))
            found.append((x * grow + rng.gauss(0, amount / 5), y * grow + rng.gauss(0, amount / 5)))
    return found


# ---- one thing ------------------------------------------------------------------------------------------------------


class Spot(NamedTuple):
    """What is drawn where, and how large: one of the world's shapes, or a foreign one."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    outline: Outline | None = None  # of a made-up shape


def stroke(pen: ImageDraw.ImageDraw, points: Outline, width: float, ink: int = 255) -> None:
    """A closed line with round corners."""
    pixels = max(1, round(width))
    pen.line([*points, *points[:2]], ink, pixels, joint="curve" if pixels > 5 else None)


def masks(spot: Spot, rng: random.Random, how: Randomization, can_be_hollow: bool) -> tuple[Image.Image, Image.Image]:
    """Of one thing, on a tile of (2 × reach)²: what its colour covers, and its outline, each as a mask."""
    reach, scale = tile_reach(spot.radius), SUPERSAMPLING
    side, radius = 2 * reach * scale, spot.radius * scale
    any_turn = spot.outline is not None or spot.shape in ANY_TURN
    angle = rng.uniform(-math.pi, math.pi) if how.rotation and any_turn else 0.0
    angle = rng.uniform(-how.rotation, how.rotation) if not angle or how.rotation < 0.3 else angle
    points = turned(
        spot.outline or outline_of(spot.shape), angle, 1 + rng.uniform(-0.12, 0.12) * min(1.0, how.size * 3)
    )
    hand = rng.random() < how.hand_drawn
    if hand:
        points = wobbly(points, rng, rng.uniform(0.02, 0.07))
    # the middle lies anywhere between pixels
    cx, cy = (reach + spot.x % 1) * scale, (reach + spot.y % 1) * scale
    outer = [(cx + x * radius, cy + y * radius) for x, y in points]
    fill = Image.new("L", (side, side))
    pen = ImageDraw.Draw(fill)
    edge = Image.new("L", (side, side))
    edge_pen = ImageDraw.Draw(edge)
    line = rng.uniform(0.03, 0.1) * radius if spot.radius > 22 else rng.uniform(0.06, 0.13) * radius
    if rng.random() < how.thick:
        line = rng.uniform(0.1, 0.32) * radius
    hollow = can_be_hollow and spot.shape not in ("circle", "ring") and rng.random() < how.hollow
    if hollow:
        stroke(pen, outer, rng.uniform(0.16, 0.32) * radius)
    else:
        pen.polygon(outer, 255)
        if hand:
            stroke(pen, outer, rng.uniform(0.05, 0.16) * radius)
        if can_be_hollow and spot.radius > 14 and rng.random() < how.scribble:
            scribble(fill, outer, rng, radius)
    stroke(edge_pen, outer, line)
    if spot.shape == "ring":
        hole = HOLE + rng.uniform(-0.16, 0.2) * min(1.0, how.size * 4)
        inner = [(cx + x * radius * hole, cy + y * radius * hole) for x, y in points]
        pen.polygon(inner, 0)
        stroke(edge_pen, inner, line)
    return fill.reduce(scale), edge.reduce(scale)


def scribble(fill: Image.Image, outer: Outline, rng: random.Random, radius: float) -> None:
    """Keep of a filled shape only strokes from side to side, and its contour."""
    strokes = Image.new("L", fill.size)
    pen, side = ImageDraw.Draw(strokes), fill.size[0]
    width = rng.uniform(0.14, 0.26) * radius
    gap, slope = width * rng.uniform(1.1, 1.5), rng.uniform(-0.8, 0.8)
    at, points = 0.0, []
    while at < side:
        points += [(0.0, at + rng.gauss(0, gap / 8)), (float(side), at + slope * gap + rng.gauss(0, gap / 8))]
        at += gap
    pen.line(points, 255, max(1, round(width)), joint="curve")
    stroke(pen, outer, width)
    fill.paste(0, mask=Image.eval(strokes, lambda value: 255 - value))


def tile_reach(radius: float) -> int:
    """Half the side of the tile that a thing is drawn on: its corners and its outline fit."""
    return math.ceil(radius * 1.3) + 3


def paint(canvas: np.ndarray, spot: Spot, rng: random.Random, how: Randomization) -> np.ndarray:
    """Draw a thing on the canvas; returns what it covers of the image, 0…1."""
    reach = tile_reach(spot.radius)
    left, top = math.floor(spot.x) - reach, math.floor(spot.y) - reach
    rows = slice(max(0, top), min(IMAGE_SIZE, top + 2 * reach))
    columns = slice(max(0, left), min(IMAGE_SIZE, left + 2 * reach))
    tile = canvas[rows, columns]
    behind = tile.mean(axis=(0, 1))
    colour = shade(spot.colour, rng, how.colour)
    clear = contrast(colour, behind) >= CONTRAST
    fill, edge = (
        np.asarray(mask, dtype=np.float32)[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        / 255
        for mask in masks(spot, rng, how, can_be_hollow=clear)
    )
    if rng.random() < how.pixel_edges:
        fill, edge = (fill > 0.5).astype(np.float32), (edge > 0.4).astype(np.float32)
    ink = np.array(colour, dtype=np.float32)
    if rng.random() < how.gradient / 2:  # the thing itself is shaded
        other = np.array(shade(spot.colour, rng, how.colour), dtype=np.float32)
        ink = ink + np.linspace(0, 1, fill.shape[0], dtype=np.float32)[:, None, None] * (other - ink)
    tile += fill[..., None] * (ink - tile)
    covered = fill
    if not clear or rng.random() < how.outline:
        tile += edge[..., None] * (outline_colour(colour, behind, rng, clear) - tile)
        covered = np.maximum(fill, edge)
    whole = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    whole[rows, columns] = covered
    return whole


def outline_colour(colour: Colour, behind: np.ndarray, rng: random.Random, clear: bool) -> np.ndarray:
    """Dark, light, a darker shade of the thing's colour, or any; where the thing itself is hardly seen, one that is."""
    darker: Colour = (colour[0] * 0.55, colour[1] * 0.55, colour[2] * 0.55)
    any_colour: Colour = (rng.uniform(0, 255), rng.uniform(0, 255), rng.uniform(0, 255))
    choices: list[Colour] = [*3 * [(0, 0, 0)], (90, 90, 90), darker, darker, (255, 255, 255), any_colour]
    if not clear:
        choices = [each for each in choices if min(contrast(each, behind), contrast(each, colour)) >= CONTRAST]
        choices = choices or [max(((0, 0, 0), (255, 255, 255)), key=lambda each: contrast(each, behind))]
    return np.array(rng.choice(choices), dtype=np.float32)


# ---- the scene ------------------------------------------------------------------------------------------------------

MIDDLES = {place: (IMAGE_SIZE / 2 + STEP * right, IMAGE_SIZE / 2 + STEP * down)
           for place, (right, down) in PLACE_OFFSETS.items()}  # fmt: skip
MARGIN = 8.0  # pixels by which the own place is nearer than any other
GAP = 2.0  # pixels between two things
ROOM = 0.88  # of the course's own radius: two big things fit side by side
SIZE_LIMITS = {"big": (23.0, 42.0), "small": (9.5, 19.5)}


def is_at(place: str, x: float, y: float) -> bool:
    """Whether a point is clearly nearest to this place, of all five."""
    distances = {each: math.dist((x, y), middle) for each, middle in MIDDLES.items()}
    own = distances.pop(place)
    return own + MARGIN <= min(distances.values())


def arrange(things: Sequence[Thing], rng: random.Random, how: Randomization) -> list[Spot]:
    """A spot for each thing: clearly at its place, within the image, apart from the others."""
    width = 1.0
    while True:
        grow = 1 + rng.uniform(-how.image_scale, how.image_scale) * width
        right, down = (rng.uniform(-how.image_shift, how.image_shift) * width for _ in "xy")
        spots: list[Spot] = []
        for thing in things:
            (px, py), reach = MIDDLES[thing.place], how.shift * width
            low, high = SIZE_LIMITS[thing.size]
            radius = RADII[thing.size] * grow * (1 + rng.uniform(-how.size, how.size) * width)
            radius = min(high, max(low, radius * ROOM))
            half = IMAGE_SIZE / 2
            x = half + (px - half) * grow + right + rng.uniform(-reach, reach)
            y = half + (py - half) * grow + down + rng.uniform(-reach, reach)
            inside = all(radius * 0.95 <= at <= IMAGE_SIZE - radius * 0.95 for at in (x, y))
            if not inside or not is_at(thing.place, x, y) or any(
                math.dist((x, y), (other.x, other.y)) < radius + other.radius + GAP for other in spots
            ):  # fmt: skip
                break
            spots.append(Spot(thing.shape, thing.colour, x, y, radius))
        else:
            return spots
        width *= 0.97


def finish(canvas: np.ndarray, rng: random.Random, how: Randomization) -> Image.Image:
    """What a camera, a screen or a file does to an image."""
    if how.light:
        canvas = canvas * np.array([1 + rng.uniform(-how.light, how.light) for _ in "rgb"], dtype=np.float32)
    if rng.random() < how.noise:
        top, left = (rng.randrange(IMAGE_SIZE) for _ in "yx")
        noise = grain()[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
        canvas = canvas + (noise if rng.random() < 0.5 else noise[..., :1]) * rng.uniform(1.5, 14)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    if rng.random() < how.low_resolution:
        side = rng.randint(84, 180)
        back = rng.choice((Image.Resampling.NEAREST, Image.Resampling.BILINEAR))
        image = image.resize((side, side), Image.Resampling.BOX).resize((IMAGE_SIZE, IMAGE_SIZE), back)
    if rng.random() < how.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.5)))
    if rng.random() < how.jpeg:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(18, 85))
        image = Image.open(file).convert("RGB")
    return image


def shown_by_patches(covered: Sequence[np.ndarray]) -> np.ndarray:
    """(14, 14): the thing of which a patch shows enough; UNCLEAR for less; the patch that shows most of a thing always
    counts.
    """
    side = IMAGE_SIZE // PATCH
    shown = np.full((side, side), NOTHING, dtype=np.int64)
    parts = [each.reshape(side, PATCH, side, PATCH).mean(axis=(1, 3)) for each in covered]
    for part in parts:
        shown[(part > 0.03) & (shown == NOTHING)] = UNCLEAR
    for number, part in enumerate(parts):
        shown[part >= min(0.4, float(part.max()))] = number
    return shown


def render(things: Sequence[Thing], seed: int = 0, how: Randomization = WIDE) -> Rendered:
    """A scene of the world, things numbered in the order of `world.PLACES`; without things an empty background."""
    rng = random.Random(f"wide {seed}")
    canvas = background(rng, how)
    covered = [paint(canvas, spot, rng, how) for spot in arrange(sort_by_place(things), rng, how)]
    return Rendered(finish(canvas, rng, how), shown_by_patches(covered))


# ---- what the world has no words for --------------------------------------------------------------------------------

KINDS = ("empty", "too many", "overlapping", "foreign")
FOREIGN_SHAPE = "foreign"  # the shape of a thing that the world has no word for


def draw_things(rng: random.Random, count: int) -> list[Thing]:
    """So many things in different places, whatever their split: nobody is told what they are."""
    things: list[Thing] = []
    for place in rng.sample(PLACES, count):
        colour, shape = rng.choice(
            [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in colour_shape_pairs(things)]
        )
        things.append(Thing(rng.choice(SIZES), colour, shape, place))
    return things


def render_unclear(kind: str, seed: int, how: Randomization = WIDE, split: str = "train") -> Rendered:
    """An `empty` background; four or five things (`too many`); two of them `overlapping`; one of a `foreign` shape."""
    rng = random.Random(f"{split} {kind} {seed}")
    canvas = background(rng, how)
    counts = {"empty": (0, 0), "too many": (4, 5), "overlapping": (1, 2), "foreign": (1, 3)}
    # small changes leave room for five
    calm = replace(how, size=min(how.size, 0.12), image_scale=0.0) if kind == "too many" else how
    things = sort_by_place(draw_things(rng, rng.randint(*counts[kind])))
    spots = arrange(things, rng, calm)
    if kind == "overlapping":
        first = spots[rng.randrange(len(spots))]
        angle, radius = rng.uniform(0, 2 * math.pi), first.radius * rng.uniform(0.7, 1.2)
        apart = (first.radius + radius) * rng.uniform(0.3, 0.7)
        other = rng.choice([each for each in COLOURS if each != first.colour])
        x, y = (min(IMAGE_SIZE - 12.0, max(12.0, at)) for at in (
            first.x + apart * math.cos(angle), first.y + apart * math.sin(angle)))  # fmt: skip
        spots.append(Spot(rng.choice(SHAPES), other, x, y, radius))
    elif kind == "foreign":
        shapes = FOREIGN_IN_TEST if split != "train" else [each for each in FOREIGN if each not in FOREIGN_IN_TEST]
        chosen = rng.randrange(len(spots))
        spots[chosen] = spots[chosen]._replace(shape=rng.choice(shapes))
        if split == "train" and rng.random() < MADE_UP:
            spots[chosen] = spots[chosen]._replace(outline=made_up(rng))
        things[chosen] = replace(things[chosen], shape=FOREIGN_SHAPE)
    shown = shown_by_patches([paint(canvas, spot, rng, how) for spot in spots])
    if kind == "foreign":
        return Rendered(finish(canvas, rng, how), shown, tuple(things))
    return Rendered(finish(canvas, rng, how), np.where(shown == NOTHING, NOTHING, UNCLEAR))
