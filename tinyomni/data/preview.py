"""A preview of samples as one figure: images, captions, questions with answers, and waveforms."""

import io
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from tinyomni.config import SAMPLE_RATE
from tinyomni.data.datasets import Sample


class Preview(Figure):
    """A figure that shows itself in a notebook, without pyplot; `savefig(path)` keeps it."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def preview(samples: Sequence[Sample], columns: int = 4) -> Preview:
    """One cell per sample: the image, its caption and question, and the waveforms where there is speech."""
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    silent = all(sample.question_wave is None for sample in samples)
    figure = Preview(figsize=(3.2 * columns, (3.8 if silent else 4.6) * rows), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[5, 0.01 if silent else 1] * rows)
    for axes in grid.flat:
        axes.axis("off")
    for number, sample in enumerate(samples):
        row, column = divmod(number, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.imshow(sample.image)
        texts = (sample.caption, f"{sample.question.text} {sample.answer}")
        above.set_title("\n".join(line for text in texts for line in textwrap.wrap(text, 42)), fontsize=8, loc="left")
        if sample.question_wave is not None and sample.answer_wave is not None:
            waves = [sample.question_wave.numpy(), sample.answer_wave.numpy()]
            times = [range(len(waves[0])), range(len(waves[0]), len(waves[0]) + len(waves[1]))]
            for wave, time, colour in zip(waves, times, ("#456", "#a53"), strict=True):
                below.plot(time, wave, linewidth=0.4, color=colour)
            seconds = (len(waves[0]) + len(waves[1])) / SAMPLE_RATE
            below.set_title(f"question, answer: {sample.speaker.voice}, {seconds:.1f} s", fontsize=7, loc="left")
    return figure
