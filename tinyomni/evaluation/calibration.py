"""When an answer is called unsure: the threshold of certainty, from right and wrong answers to validation questions."""

import random
from collections.abc import Sequence

import numpy as np

from tinyomni.data import wordings
from tinyomni.data.datasets import Sample

UNSURE_QUANTILE = 0.02  # of the right answers to validation questions, so many are called unsure
MAX_WRONG = 0.03  # of the answers that are called sure, on validation data of the wide style


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
