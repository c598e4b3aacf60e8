"""Whether certainty means something: when an answer is called unsure, and how often answers of a confidence are right.

The threshold of certainty is from right and wrong answers to validation questions. Confidence is the probability of the
least likely token of an answer; a reliability diagram sets it against accuracy (Guo et al., 2017, "On Calibration of
Modern Neural Networks", section 2).
"""

import math
import random
from collections.abc import Sequence

import numpy as np

from tinyomni.data import wordings
from tinyomni.data.datasets import Sample
from tinyomni.metrics import Rate, accuracy

UNSURE_QUANTILE = 0.02  # of the right answers to validation questions, so many are called unsure
UNSURE_SCENE_QUANTILE = 0.1  # and so many since the image may be no scene: validation images are wilder than most
MAX_WRONG = 0.03  # of the answers that are called sure, on validation data of the wide style
BINS = {"up_to_50": (0.0, 0.5), "50_to_80": (0.5, 0.8), "80_to_95": (0.8, 0.95), "95_to_99": (0.95, 0.99),
        "above_99": (0.99, 1.0)}  # fmt: skip
"""Bins of confidence: their name in the id of a metric → above and up to which confidence."""


def validation_wording(sample: Sample, style: str) -> str:
    """The question of a sample; of the wide style in a wording of any family but `others`, kept for the report."""
    if style == "plain":
        return sample.question.text
    rng = random.Random(f"wording {sample.index}")
    family = rng.choice((*wordings.families("train"), *(name for name in wordings.HELD_OUT if name != "others")))
    return wordings.reword(sample.question, sample.things, rng, family)


def threshold(right: Sequence[float], wrong: Sequence[float], max_wrong: float = 1.0) -> float:
    """The certainty below which UNSURE_QUANTILE of the right answers lie, or a higher one, so that of the answers above
    it at most `max_wrong` are wrong. Where no certainty is enough, the highest of all.
    """
    lowest = float(np.quantile(right, UNSURE_QUANTILE))
    for at in sorted({lowest, *(each for each in (*right, *wrong) if each > lowest)}):
        missed, sure = sum(each >= at for each in wrong), sum(each >= at for each in (*right, *wrong))
        if missed <= max_wrong * sure:
            return at
    return max(*right, *wrong)


Judged = Sequence[tuple[float, bool]]
"""Answers: how certain each is (a log-probability), and whether it is right."""


def binned(answers: Judged) -> dict[str, list[tuple[float, bool]]]:
    """The confidence of answers, and whether they are right, bin by bin; a bin without any is left out."""
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in BINS}
    for certainty, right in answers:
        confidence = math.exp(min(certainty, 0.0))
        found[next(name for name, (_, up_to) in BINS.items() if confidence <= up_to)].append((confidence, right))
    return {name: each for name, each in found.items() if each}


def accuracy_by_confidence(answers: Judged) -> dict[str, Rate]:
    """How many answers of each bin of confidence are right."""
    return {name: accuracy([right for _, right in each]) for name, each in binned(answers).items()}


def calibration_error(answers: Judged) -> Rate:
    """The expected calibration error (ECE): how far accuracy and mean confidence lie apart in a bin, averaged over the
    answers.
    """
    gaps: list[float] = []
    for each in binned(answers).values():
        apart = [right - confidence for confidence, right in each]
        gaps += apart if sum(apart) > 0 else [-gap for gap in apart]
    return Rate(tuple(gaps), (1.0,) * len(gaps))
