"""What each augmentation of the image encoder is worth: measured by `benchmarks/augmentations.py`, and its figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from tinyomni.evaluation.independent_renderer import LOOKS
from tinyomni.palette import FAINT, IMAGE, MODEL

MEASURED = Path(__file__).parents[1] / "assets" / "augmentations.json"
CONCERNED: dict[str, tuple[str, ...]] = {
    "place": ("shifted", "jittered", "far off"),
    "size": ("resized",),
    "rotation": ("turned",),
    "colour": ("css colours", "xkcd colours"),
    "background": ("white", "dark", "coloured", "gradient"),
    "outline": ("no outline", "thick outline"),
    "hand": ("hand-drawn",),
    "file": ("noise", "jpeg", "blur"),
}
"""The looks of the independent renderer that each family of variation is for. `plain` and `mixed` are nobody's."""


def measured() -> dict[str, Any]:
    """What the script has stored."""
    return json.loads(MEASURED.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def share(result: dict[str, Any], condition: str, looks: Sequence[str] = (), field: str = "scene") -> list[int]:
    """How much is right in these looks, or in all, in percent, of each run with this condition."""
    runs = [run["right"] for run in result["runs"] if run["condition"] == condition]
    return [round(100 * mean(run[look][field] for look in looks or LOOKS) / result["n"]) for run in runs]


def other_looks(family: str) -> list[str]:
    """The looks that a family is not for."""
    return [look for look in LOOKS if look not in CONCERNED[family]]


def draw_worth(title: str) -> tuple[Figure, str]:
    """Two marks for each family, joined: without it and with all; left in its own looks, right in the others."""
    result = measured()
    pairs = {
        name: [
            (share(result, f"all but {name}", looks), share(result, "all", looks))
            for looks in (CONCERNED[name], other_looks(name))
        ]
        for name in CONCERNED
    }
    names = sorted(pairs, key=lambda name: mean(pairs[name][0][1]) - mean(pairs[name][0][0]))
    figure = Figure(figsize=(9, 0.9 + 0.46 * len(names)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    for panel, (ax, heading) in enumerate(zip(panels, ("in the looks it is for", "in all other looks"), strict=True)):
        for row, name in enumerate(names):
            without, with_all = pairs[name][panel]
            ax.plot([mean(without), mean(with_all)], [row, row], "-", color=FAINT, linewidth=2, zorder=1)
            for runs, look, face in ((without, MODEL, "none"), (with_all, IMAGE, IMAGE.colour)):
                ax.plot(runs, [row] * len(runs), "|", color=look.colour, markersize=9)  # each run
                ax.plot(mean(runs), row, look.marker, color=look.colour, markerfacecolor=face, markersize=7)
        row, (without, with_all) = len(names) - 1, pairs[names[-1]][panel]
        for runs, text, look in ((without, "without it", MODEL), (with_all, "with all", IMAGE)):
            left = mean(runs) == min(mean(without), mean(with_all))
            at, side = mean(runs) + (-2.5 if left else 2.5), "right" if left else "left"
            ax.text(at, row, text, ha=side, va="center", color=look.colour, fontsize=8.5)
        ax.set_title(heading, fontsize=9.5, weight="normal")
        ax.set(xlim=(0, 110), ylim=(-0.6, len(names) - 0.4), xticks=range(0, 101, 20), xlabel="scenes right (%)")
    panels[0].set_yticks(range(len(names)), [f"{name}\n{', '.join(CONCERNED[name])}" for name in names], fontsize=8.5)
    told = (f"{name} {mean(own[0]):.0f} → {mean(own[1]):.0f}" for name, (own, _) in pairs.items())
    return figure, "Scenes right without and with each family of variation, in its looks: " + ", ".join(told)
