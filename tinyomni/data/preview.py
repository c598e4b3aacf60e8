"""A sheet of samples to look at and to listen with the eyes: pictures, what is said of them, and sound as a curve."""

import io
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from tinyomni.data.datasets import Sample


class Sheet(Figure):
    """A figure that shows itself in a notebook, without pyplot; `savefig(path)` keeps it."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


def contact_sheet(samples: Sequence[Sample], columns: int = 4) -> Sheet:
    """One cell for each sample: the picture, what is said of it, and how that sounds."""
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    silent = all(sample.question_wave is None for sample in samples)
    figure = Sheet(figsize=(3.2 * columns, (3.8 if silent else 4.6) * rows), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[5, 0.01 if silent else 1] * rows)
    for axes in grid.flat:
        axes.axis("off")
    for place, sample in enumerate(samples):
        row, column = divmod(place, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.imshow(sample.picture)
        told = [*textwrap.wrap(sample.caption, 42), *textwrap.wrap(f"{sample.question} {sample.answer}", 42)]
        above.set_title("\n".join(told), fontsize=8, loc="left")
        if sample.question_wave is not None and sample.answer_wave is not None:
            waves = [sample.question_wave.numpy(), sample.answer_wave.numpy()]
            times = [range(len(waves[0])), range(len(waves[0]), len(waves[0]) + len(waves[1]))]
            for wave, time, colour in zip(waves, times, ("#456", "#a53"), strict=True):
                below.plot(time, wave, linewidth=0.4, color=colour)
            seconds = (len(waves[0]) + len(waves[1])) / 16_000
            below.set_title(f"question, answer: {sample.speaker.voice}, {seconds:.1f} s", fontsize=7, loc="left")
    return figure
