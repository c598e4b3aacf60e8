"""One look for each modality: a colour that colour-blind readers can tell apart, and a marker and a hatch for print.

Figures, diagrams and pages take it from here. The colours are Okabe & Ito's (https://jfly.uni-koeln.de/color/), the
same as in the tracer's tables and flow diagrams.
"""

from dataclasses import dataclass
from typing import Any

from tinyomni.tracing import looks


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
