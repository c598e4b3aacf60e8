"""An independent renderer, for evaluation only: scenes drawn by matplotlib's Agg, in looks that no training has.

It shares no drawing code with training: shapes, colours and backgrounds are stated here again, by other means. Each of
LOOKS changes the plain image in one way, so that the report says what the image encoder takes for granted; `mixed`
changes everything at once. The baselines that were measured with the first shipped weights gave this list.
"""

import functools
import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from tinyomni.data.world import COLOURS, PLACES, SHAPES, SIZES, Thing

SIDE = 224
CENTRES = {
    "on the left": (45, 112), "on the right": (179, 112), "at the top": (112, 45), "at the bottom": (112, 179),
    "in the middle": (112, 112),
}  # fmt: skip
RADII = {"big": 28, "small": 14}
CSS = {name: name for name in COLOURS}
XKCD = {name: f"xkcd:{name}" for name in CSS}
COURSE = {
    "red": "#d62828", "green": "#2a9d46", "blue": "#2850d6", "yellow": "#fad71e", "orange": "#f77f00",
    "purple": "#7b2cbf", "pink": "#ff82be", "brown": "#79481e", "black": "#141414", "white": "#fcfcfc",
    "grey": "#8c8c8c", "cyan": "#1ecddc",
}  # fmt: skip
"""The values of the course, so that a look can change one thing at a time."""


@dataclass(frozen=True)
class Look:
    """How an image differs from the plain one."""

    background: str = "#e9e2d3"
    colours: tuple[tuple[str, str], ...] = tuple(COURSE.items())
    shift: float = 0.0  # pixels, of the whole image
    jitter: float = 0.0  # pixels, of each thing
    turn: float = 0.0  # radians
    grow: float = 0.0  # of the radius, as a part of it
    edge: str | None = "#5a5a5a"
    edge_width: float = 1.2
    hand_drawn: bool = False
    after: Callable[[Image.Image, random.Random], Image.Image] | None = None


def gradient(image: Image.Image, rng: random.Random) -> Image.Image:
    """Light falls from one side."""
    ramp = np.linspace(0.65, 1.1, SIDE)[None, :, None]
    return Image.fromarray((np.asarray(image) * ramp).clip(0, 255).astype(np.uint8))


def noisy(image: Image.Image, rng: random.Random) -> Image.Image:
    """Noise of a camera in the evening."""
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 10, (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def compressed(image: Image.Image, rng: random.Random) -> Image.Image:
    """A strongly compressed JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=20)
    return Image.open(file).convert("RGB")


def blurred(image: Image.Image, rng: random.Random) -> Image.Image:
    """Out of focus."""
    return image.filter(ImageFilter.GaussianBlur(1.5))


LOOKS: dict[str, Look] = {
    "plain": Look(),
    "shifted": Look(shift=6),
    "jittered": Look(jitter=8),
    "far off": Look(jitter=16),
    "turned": Look(turn=0.5),
    "resized": Look(grow=0.25),
    "white": Look(background="white"),
    "dark": Look(background="#202028"),
    "coloured": Look(background="#9fc5a8"),
    "css colours": Look(colours=tuple(CSS.items())),
    "xkcd colours": Look(colours=tuple(XKCD.items())),
    "no outline": Look(edge=None),
    "thick outline": Look(edge="black", edge_width=3.0),
    "hand-drawn": Look(hand_drawn=True, jitter=6),
    "gradient": Look(after=gradient),
    "noise": Look(after=noisy),
    "jpeg": Look(after=compressed),
    "blur": Look(after=blurred),
    "mixed": Look(jitter=12, turn=0.4, grow=0.2, hand_drawn=True),  # on one of MIXED_BACKGROUNDS, in CSS colours
}
UNCLEAR = ("empty", "four", "five", "overlapping", "foreign")
VISIBLE = 0.35  # a distance of colours
MIXED_BACKGROUNDS = ("white", "#202028", "#f4d9c6", "#5b7a99", "#dfe8c8", "#303c2e")


@functools.cache
def paths() -> dict[str, Any]:
    """The outline of each shape within -1…1, y up, as matplotlib's own unit shapes where it has them."""
    from matplotlib.path import Path

    turn = np.deg2rad(np.arange(0, 360, 6))
    heart = np.stack([np.sin(turn) ** 3, (13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn)
                                          - np.cos(4 * turn)) / 16], axis=1)  # fmt: skip
    arm = 0.33
    cross = [(-arm, 1), (arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1), (-arm, -1), (-arm, -arm),
             (-1, -arm), (-1, arm), (-arm, arm)]  # fmt: skip
    square, circle = math.sqrt(0.5), Path.unit_circle()

    def polygon(points: list[tuple[float, float]]) -> Any:
        return Path([*points, points[0]], closed=True)

    return {
        "circle": circle,
        "ring": Path.make_compound_path(circle, Path(np.asarray(circle.vertices) * (-0.55, 0.55), circle.codes)),
        "square": polygon([(-square, -square), (square, -square), (square, square), (-square, square)]),
        "triangle": Path.unit_regular_polygon(3),
        "star": Path.unit_regular_star(5, innerCircle=0.42),
        "diamond": polygon([(0, 1), (0.62, 0), (0, -1), (-0.62, 0)]),
        "heart": polygon(heart.tolist()),
        "cross": polygon(cross),
    }  # fmt: skip


class Canvas:
    """An image of 224 × 224 on which matplotlib's patches are put; y goes down, in pixels."""

    def __init__(self, background: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(SIDE / 100, SIDE / 100), dpi=100, facecolor=background)
        self.canvas = FigureCanvasAgg(figure)
        self.axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.set_axis_off()
        self.axes.set(xlim=(0, SIDE), ylim=(SIDE, 0))

    def add(self, path: Any, x: float, y: float, radius: float, turn: float, sketch: int = 0, **style: Any) -> None:
        """A filled outline; `sketch` is the seed of a wobbly line."""
        from matplotlib.patches import PathPatch
        from matplotlib.transforms import Affine2D

        place = Affine2D().scale(radius, -radius).rotate(turn).translate(x, y)
        patch = PathPatch(path, transform=place + self.axes.transData, **style)
        if sketch:
            patch.set_sketch_params(scale=0.8, length=14, randomness=sketch)
        self.axes.add_patch(patch)

    def image(self) -> Image.Image:
        """What was drawn."""
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


def draw(things: Sequence[Thing], look: str | Look = "plain", seed: int = 0) -> Image.Image:
    """The scene as an image of 224 × 224."""
    style, rng = LOOKS[look] if isinstance(look, str) else look, random.Random(f"{look} {seed}")
    if look == "mixed":
        style = replace(
            style, background=rng.choice(MIXED_BACKGROUNDS), colours=tuple(CSS.items()),
            edge=rng.choice((None, "black", "#5a5a5a")), after=rng.choice((None, noisy, compressed, blurred)),
        )  # fmt: skip
    colours, canvas = dict(style.colours), Canvas(style.background)
    right, down = (rng.choice((-1, 1)) * style.shift for _ in "xy")
    for thing in things:
        centre = CENTRES[thing.place]
        x, y = (at + rng.uniform(-style.jitter, style.jitter) for at in (centre[0] + right, centre[1] + down))
        radius = RADII[thing.size] * (1 + rng.uniform(-style.grow, style.grow))
        fill, edge = colours[thing.colour], style.edge
        if edge is None and distance(fill, style.background) < VISIBLE:
            edge = "#5a5a5a"
        canvas.add(
            paths()[thing.shape], x, y, radius, rng.uniform(-style.turn, style.turn),
            rng.randint(1, 9) if style.hand_drawn else 0,
            facecolor=fill, edgecolor=edge or "none", linewidth=style.edge_width,
        )  # fmt: skip
    image = canvas.image()
    return style.after(image, rng) if style.after else image


def distance(one: str, other: str) -> float:
    """How far two colours are apart, of at most 1.7."""
    from matplotlib.colors import to_rgb

    return math.dist(to_rgb(one), to_rgb(other))


def unclear(kind: str, seed: int = 0) -> Image.Image:
    """An image that nothing true can be said of but that one does not know: see UNCLEAR."""
    from matplotlib.path import Path

    rng = random.Random(f"{kind} {seed}")
    background = rng.choice(("white", "#202028", "#e9e2d3", "#9fc5a8"))
    count = {"empty": 0, "four": 4, "five": 5}.get(kind)
    if count is not None:
        things = [Thing(rng.choice(SIZES), rng.choice(COLOURS), rng.choice(SHAPES), place)
                  for place in rng.sample(PLACES, count)]  # fmt: skip
        return draw(things, Look(background=background), seed)
    canvas = Canvas(background)
    x, y = CENTRES[rng.choice(PLACES)]
    radius, visible = rng.uniform(18, 30), [name for name in COLOURS if distance(COURSE[name], background) > VISIBLE]
    colours = rng.sample(visible, 2)
    if kind == "overlapping":
        turn = rng.uniform(0, 2 * math.pi)
        for step, colour in enumerate(colours):
            canvas.add(
                paths()[rng.choice(SHAPES)], x + step * radius * math.cos(turn), y + step * radius * math.sin(turn),
                radius, 0.0, facecolor=COURSE[colour], edgecolor="#5a5a5a",
            )  # fmt: skip
    else:
        foreign = rng.choice((Path.unit_regular_polygon(5), Path.wedge(40, 320), Path.unit_regular_star(8, 0.6),
                              Path([(-1, 0.5), (0.2, 0.5), (1, -0.5), (-0.2, -0.5)])))  # fmt: skip
        canvas.add(foreign, x, y, radius, rng.uniform(-1, 1), facecolor=COURSE[colours[0]], edgecolor="#5a5a5a")
    return canvas.image()
