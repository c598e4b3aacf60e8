"""Two programs side by side, ours and a reference, that take turns: times as ratios.

A time on a CPU is processor time, of all threads and of processes that were waited for, so that other work on the
machine counts little; on a GPU it is time by the clock between two synchronizations. The least of many rounds is the
cost; the median beside it shows the noise.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

Run = Callable[[], Any]
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One comparison. `goal` is the highest ratio, ours by the reference's, that is good enough.

    Both programs are timed; with another `unit` than ms they are run once, and each returns a number in that unit.
    """

    label: str
    ours: Run
    reference: Run
    against: str  # what the reference is
    goal: float
    unit: str = "ms"


@dataclass(frozen=True)
class Row:
    """What was measured: the least and the median of both, in seconds unless there is another unit."""

    label: str
    against: str
    goal: float
    ours: tuple[float, float]
    reference: tuple[float, float]
    rounds: int
    peak_mb: float  # of the process, after this case
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        """Ours by the reference's; below 1 ours is faster."""
        return self.ours[0] / self.reference[0]

    def cells(self) -> list[str]:
        """As texts for a table."""
        ours, reference = (
            f"{1000 * least:.2f} ms ({1000 * median:.2f})" if self.unit == "ms" else f"{least:.2f} {self.unit}"
            for least, median in (self.ours, self.reference)
        )
        met = "met" if self.ratio <= self.goal else "**missed**"
        return [self.label, ours, reference, self.against, f"{self.ratio:.2f}", f"≤ {self.goal:.2f} {met}"]


HEADINGS = ["", "ours", "reference", "reference", "ratio", "goal"]


def timer(device: str) -> Callable[[], float]:
    """The clock: processor time of this process and its children, or on a GPU the wall's, once it is idle."""

    def busy() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    if not device.startswith("cuda"):
        return busy

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def compare(case: Case, seconds: float, device: str = "cpu") -> Row:
    """Run both in turn, for about so long by the wall's clock, each first in every other round."""
    if case.unit != "ms":
        ours, reference = float(case.ours()), float(case.reference())
        return Row(case.label, case.against, case.goal, (ours, ours), (reference, reference), 1, peak_mb(), case.unit)
    now = timer(device)
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    runs = [("ours", case.ours), ("reference", case.reference)]
    for _, run in runs:
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["ours"]) < LEAST_ROUNDS:
        for name, run in runs:
            start = now()
            run()
            times[name].append(now() - start)
        runs.reverse()
    least, other = ((min(found), statistics.median(found)) for found in (times["ours"], times["reference"]))
    return Row(case.label, case.against, case.goal, least, other, len(times["ours"]), peak_mb())


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def to_json(rows: list[Row]) -> str:
    """Rows as text, for the process that asked for them."""
    return json.dumps([asdict(row) for row in rows])


def from_json(text: str) -> list[Row]:
    """What `to_json` wrote."""
    return [
        Row(**{**each, "ours": tuple(each["ours"]), "reference": tuple(each["reference"])}) for each in json.loads(text)
    ]


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = [HEADINGS, ["---", "--:", "--:", "---", "--:", "---"], *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
