"""The training curves of runs: loss and learning rate over the steps, as a file or live in a notebook."""

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyomni.errors import InputError
from tinyomni.palette import AUDIO, IMAGE, MODEL, SPEECH, TEXT, label_ends
from tinyomni.training.log import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES, RUNS = ("-", "--", ":", "-."), (MODEL, IMAGE, TEXT, AUDIO, SPEECH)
MODALITY = {"thinker": TEXT, "vision": IMAGE, "audio": AUDIO, "codec": SPEECH, "talker": SPEECH}


def save_plot(runs: Sequence[Path], out: Path) -> None:
    """Plot one or more runs into a file: PNG, SVG or PDF, by its name."""
    plot_runs(runs).savefig(out, dpi=150)


def plot_runs(runs: Sequence[Path]) -> "Figure":
    """Loss and learning rate over the steps.

    Lines are running means of the training loss, over a fiftieth of the run; the pale lines are the single batches, the
    marks are validations, a cross at the top is a skipped batch. Runs differ in line and mark, not in colour alone; a
    single run has the colour of its modality, its curves are labelled where they end, and the title says how far the
    loss went.
    """
    from matplotlib.figure import Figure  # slow to load, and only needed here

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    alone = len(runs) == 1
    for number, run in enumerate(map(Path, runs)):
        entries = read_log(run / "log.jsonl")
        steps = [entry for entry in entries if entry.get("loss") is not None]
        if not steps:
            raise InputError(f"Curves: {run / 'log.jsonl'} is missing or holds no step. Is {run} a run's folder?")
        style, look = STYLES[number % len(STYLES)], RUNS[number % len(RUNS)]
        if alone:
            look = MODALITY.get(run.name, MODEL)
        colour, of = look.colour, "" if alone else f"{run.name}: "
        at, losses = [entry["step"] for entry in steps], np.array([entry["loss"] for entry in steps])
        above.plot(at, losses, color=colour, alpha=0.2, linewidth=0.6)
        mean = running_mean(losses, width := max(1, len(at) // 50))
        above.plot(at, mean, style, color=colour, label=f"{of}training")
        checks = [e for e in entries if (e.get("validation") or {}).get("loss") is not None]
        if checks:
            above.plot(
                [entry["step"] for entry in checks],
                [entry["validation"]["loss"] for entry in checks],
                look.marker + style,
                color=colour,
                markerfacecolor="white",
                linewidth=0.8,
                label=f"{of}validation",
            )
        skipped = [entry["step"] for entry in entries if "skipped" in entry]
        if skipped:
            top = above.get_xaxis_transform()  # x in steps, y from 0 to 1
            above.plot(skipped, [0.98] * len(skipped), "x", color=colour, transform=top, label=f"{of}skipped")
        below.plot(at, [entry["lr"] for entry in steps], style, color=colour)
    above.set_ylabel("loss")
    if alone:
        above.set_title(
            f"After {at[-1]} steps the training loss is {mean[-1]:.3g}, from {mean[width - 1]:.3g}", loc="left"
        )
        label_ends(above)
    else:
        above.legend(loc="upper right", bbox_to_anchor=(1, 0.93))  # below the crosses
    below.set(ylabel="learning rate", xlabel="step", ylim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


@contextmanager
def live(run: Path, every: float = 2.0) -> Iterator[None]:
    """In a notebook, while the body trains: the curves so far, redrawn every few seconds; the last ones stay.

        with live(run_dir.of("thinker")):
            job.run(run_dir)

    Elsewhere it does nothing.
    """
    try:
        from IPython import get_ipython
        from IPython.display import Image, display
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        yield
        return
    slot, over = display("The curve appears with the first steps.", display_id=True), threading.Event()

    def show() -> None:
        if any(entry.get("loss") is not None for entry in read_log(run / "log.jsonl")):
            plot_runs([run]).savefig(file := io.BytesIO(), dpi=80, format="png")
            slot.update(Image(file.getvalue(), alt="Loss and learning rate over the steps of this run"))

    def watch() -> None:
        while not over.wait(every):
            show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        show()


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Each value with up to `width` - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
