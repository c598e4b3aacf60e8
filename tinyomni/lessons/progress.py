"""What a model says while it learns: a row for each example, a column for each time it was asked."""

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tinyomni.lessons.canvas import Sheet
from tinyomni.palette import PAPER, TEXT, Look

LABEL, CELL, ROW, TOP, MARGIN = 190, 175, 50, 66, 16


def draw_progress(
    title: str,
    examples: Sequence[str],
    times: Sequence[str],
    said: Sequence[Sequence[str]],
    right: Sequence[Sequence[bool]],
    look: Look = TEXT,
) -> Figure:
    """`said[time][example]`, on a tint and with a tick where it is right."""
    sheet = Sheet(LABEL + CELL * len(times), TOP + ROW * len(examples) + MARGIN, title)
    for row, example in enumerate(examples):
        wrapped = textwrap.fill(example, LABEL // 8)
        sheet.text(MARGIN, TOP + ROW * (row + 0.5), wrapped, size=8.5, ha="left", weight="bold")
    for column, time in enumerate(times):
        left = LABEL + CELL * column
        sheet.text(left + CELL / 2, TOP - 14, time, weight="bold")
        for row in range(len(examples)):
            good, words = right[column][row], textwrap.wrap(said[column][row], CELL // 7 + 1, max_lines=3)
            face, ink = (look.tint, "#222222") if good else (PAPER, "#666666")
            at = left, TOP + ROW * row + 3
            sheet.ax.add_patch(Rectangle(at, CELL - 6, ROW - 6, facecolor=face, edgecolor="#c9c6bd", linewidth=0.8))
            text = f"{'✔' if good else '✘'} " + ("\n".join(words) or "(nothing)")
            sheet.text(left + 6, TOP + ROW * (row + 0.5), text, size=7.5, ha="left", color=ink)
    return sheet.figure
