"""A sheet to draw diagrams on: boxes, arrows, tables. Units are hundredths of an inch, y goes down."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from tinyomni.palette import FAINT, INK, MODEL, PAPER, Look


class Sheet:
    """A figure with one axis that fills it."""

    def __init__(self, width: float, height: float, title: str = "") -> None:
        self.figure = Figure(figsize=(width / 100, height / 100), facecolor=PAPER, layout="none")  # type: ignore[arg-type]  # missing in the stubs
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, width), ylim=(height, 0))
        self.ax.axis("off")
        if title:
            self.text(16, 22, title, size=11.5, weight="bold", ha="left")

    def text(self, x: float, y: float, text: str, size: float = 9, **more: Any) -> None:
        """Centred, unless `ha` says otherwise."""
        look: dict[str, Any] = {"fontsize": size, "ha": "center", "va": "center", "color": INK, "zorder": 5}
        self.ax.text(x, y, text, **(look | more))

    def box(
        self, x: float, y: float, width: float, height: float, title: str, shape: str = "", look: Look = MODEL,
        strong: bool = False, faded: bool = False,
    ) -> None:  # fmt: skip
        """A part of the model around (x, y), with the shape that leaves it. Strong: the reader is here."""
        edge = FAINT if faded else look.colour
        self.ax.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=6", zorder=3,
                facecolor=look.colour if strong else (PAPER if faded else look.tint), edgecolor=edge,
                linewidth=2.2 if strong else 1.2, linestyle=(0, (3, 2)) if faded else "solid",
            )
        )  # fmt: skip
        ink = "white" if strong else ("#666666" if faded else INK)
        shift = 8 if shape else 0
        if look is not MODEL:  # a second sign beside the colour, on the corner
            corner = x - width / 2 + 2, y - height / 2 + 2
            self.ax.plot(*corner, look.marker, color=edge, markersize=5, markeredgecolor=PAPER, zorder=5)
        self.text(x, y - shift, title, color=ink, weight="bold", size=8)
        if shape:
            self.text(x, y + shift, shape, color=ink, size=7)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], label: str = "", bend: float = 0.0,
        colour: str = "#555555", offset: tuple[float, float] = (0, -9), dashed: bool = False,
    ) -> None:  # fmt: skip
        """From start to end, with a label beside its middle."""
        self.ax.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=10, color=colour, linewidth=1.3, zorder=2, shrinkA=0,
                shrinkB=0, connectionstyle=f"arc3,rad={bend}", linestyle="--" if dashed else "-",
            )
        )  # fmt: skip
        if label:
            middle = ((start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1])
            self.text(*middle, label, size=7.5, color="#444444")

    def path(self, *points: tuple[float, float], colour: str = "#555555", dashed: bool = False) -> None:
        """An arrow with corners."""
        *_, before, last = points
        xs, ys = zip(*points[:-1], strict=True)
        self.ax.plot(
            xs, ys, color=colour, linewidth=1.3, zorder=2, linestyle="--" if dashed else "-", solid_capstyle="round"
        )
        self.arrow(before, last, colour=colour, dashed=dashed)

    def plus(self, x: float, y: float, sign: str = "+") -> None:
        """A sum, or a product."""
        self.ax.add_patch(Circle((x, y), 9, facecolor=PAPER, edgecolor=INK, linewidth=1.2, zorder=4))
        self.text(x, y, sign, size=10, weight="bold")

    def cells(
        self, x: float, y: float, rows: int, columns: int, size: float, look: Look = MODEL,
        filled: Sequence[Sequence[bool]] | None = None, gap: float = 2,
    ) -> None:  # fmt: skip
        """A table of squares with its top left corner at (x, y): filled, or empty where `filled` says no."""
        for row in range(rows):
            for column in range(columns):
                full = filled is None or filled[row][column]
                self.ax.add_patch(
                    Rectangle(
                        (x + column * size, y + row * size), size - gap, size - gap, linewidth=0.9, zorder=3,
                        facecolor=look.tint if full else PAPER, edgecolor=look.colour if full else "#c9c6bd",
                        hatch=look.hatch if full and look is not MODEL else "",
                    )
                )  # fmt: skip

    def token(self, x: float, y: float, label: str, look: Look, width: float = 40, height: float = 44) -> None:
        """One token: a card with its modality's mark on it."""
        self.ax.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=4", zorder=3,
                facecolor=look.tint, edgecolor=look.colour, linewidth=1.3,
            )
        )  # fmt: skip
        self.ax.plot([x], [y - height / 4], look.marker, color=look.colour, markersize=6, zorder=5)
        self.text(x, y + height / 5, label, size=7.5)
