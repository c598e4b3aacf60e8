"""Rates with confidence intervals: accuracy, character error rate, word error rate.

A rate is a sum over a sum: wrong characters over characters, right answers over questions, nats over nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torchaudio.functional import edit_distance


@dataclass(frozen=True)
class Rate:
    """For each sample a part, and the whole that it is a part of: wrong characters, and all characters."""

    parts: tuple[float, ...]
    wholes: tuple[float, ...]

    @property
    def rate(self) -> float:
        """The sum of the parts over the sum of the wholes."""
        return sum(self.parts) / sum(self.wholes)

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(self.parts)

    def interval(self, rounds: int = 1000) -> tuple[float, float]:
        """The 95% confidence interval, by a bootstrap over whole samples: errors within one sentence are correlated.

        Where all answers are right, or all wrong, the bootstrap shows no spread; then the other end is 3 / n away.
        Efron (1979); Hanley & Lippman-Hand (1983) for the rule of three.
        """
        parts, wholes = np.array(self.parts, dtype=float), np.array(self.wholes, dtype=float)
        if set(self.wholes) == {1} and set(self.parts) in ({0}, {1}):
            return (0.0, min(1.0, 3 / self.n)) if not self.parts[0] else (max(0.0, 1 - 3 / self.n), 1.0)
        rows = np.random.default_rng(0).integers(0, self.n, (rounds, self.n))
        low, high = np.quantile(parts[rows].sum(axis=1) / wholes[rows].sum(axis=1), (0.025, 0.975))
        return float(low), float(high)


def accuracy(correct: Sequence[bool | int]) -> Rate:
    """How many of all are correct."""
    return Rate(tuple(map(int, correct)), (1,) * len(correct))


def error_rate(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Rate:
    """Insertions, deletions and substitutions per unit of the reference: characters of a string, words of a list.
    Levenshtein (1966).
    """
    errors = [edit_distance(one, two) for one, two in zip(hypotheses, references, strict=True)]
    return Rate(tuple(errors), tuple(map(len, references)))


def cer(hypotheses: Sequence[str], references: Sequence[str]) -> Rate:
    """Character error rate; capitals and punctuation count."""
    return error_rate(hypotheses, references)
