"""One look for each modality: a colour that colour-blind readers can tell apart, and a marker and a hatch for print.

Curves are labelled at their ends, where the eye is, and not in a box. Figures, diagrams and pages take all this from
here. The colours are Okabe & Ito's (https://jfly.uni-koeln.de/color/), the same as in the tracer's tables and flow
diagrams.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyomni.tracing import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Look:
    """How one modality is drawn, everywhere."""

    name: str
    colour: str
    marker: str
    hatch: str

    @property
    def tint(self) -> str:
        """The colour mixed with white, for areas with text on them."""
        return looks.tint(self.colour)

    @property
    def line(self) -> dict[str, Any]:
        """Keywords for `ax.plot`: a line with marks."""
        return {"color": self.colour, "marker": self.marker}

    @property
    def bar(self) -> dict[str, Any]:
        """Keywords for `ax.bar`: filled, and hatched for print."""
        return {"facecolor": self.tint, "edgecolor": self.colour, "hatch": self.hatch, "linewidth": 1.2}

    @property
    def marks(self) -> dict[str, Any]:
        """Keywords for `ax.plot`: marks without a line."""
        return {"color": self.colour, "marker": self.marker, "linestyle": "none"}

    @property
    def cmap(self) -> Any:
        """A map from paper to a dark shade of the colour: darker is more, in print too."""
        from matplotlib.colors import LinearSegmentedColormap

        dark = "#" + "".join(f"{round(0.35 * int(self.colour[at : at + 2], 16)):02x}" for at in (1, 3, 5))
        return LinearSegmentedColormap.from_list(self.name, [PAPER, self.tint, self.colour, dark])


TEXT = Look("text", looks.TEXT.colour, "o", "")
IMAGE = Look("image", looks.IMAGE.colour, "s", "//")
AUDIO = Look("audio", looks.AUDIO.colour, "^", "..")
SPEECH = Look("speech", looks.SPEECH.colour, "D", "xx")
MODEL = Look("model", "#4d4d4d", "P", "--")
LOOKS = {look.name: look for look in (TEXT, IMAGE, AUDIO, SPEECH, MODEL)}
PAPER, INK, FAINT = "#fdfcf8", "#222222", "#8a8a8a"


def label_ends(axes: "Axes", apart: float = 0.08, **text: Any) -> None:
    """Write the label of each curve right of its last point, in its colour, and no two of them over each other.

    `apart` is the least distance of two labels, as a share of the axes' height.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()  # only a figure that is laid out knows where its points are
    to_axes = axes.transAxes.inverted()
    ends = []
    for line in axes.lines:
        if not str(line.get_label()).startswith("_"):
            points = to_axes.transform(line.get_transform().transform(line.get_xydata()))
            ends.append((float(points[-1, 0]), float(points[-1, 1]), float(points[:, 1].mean()), line))
    lowest = -1.0
    for x, y, _, line in sorted(ends, key=lambda end: (round(end[1], 3), end[2])):  # by the mean where the ends agree
        lowest = max(min(y, 1), lowest + apart)
        axes.annotate(
            str(line.get_label()), (x, y), (x + 0.015, lowest), "axes fraction", "axes fraction",
            color=line.get_color(), va="center", annotation_clip=False, **text,
        )  # fmt: skip
