"""Rates with their uncertainty: what all figures of the report are.

A rate is a sum over a sum: wrong characters over characters, right answers over questions, nats over nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torchaudio.functional import edit_distance


@dataclass(frozen=True)
class Rate:
    """Of each sample, a part and the whole that it is a part of."""

    parts: tuple[float, ...]
    wholes: tuple[float, ...]

    @property
    def rate(self) -> float:
        """All parts over all wholes."""
        return sum(self.parts) / sum(self.wholes)

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.parts)

    def interval(self, rounds: int = 1000) -> tuple[float, float]:
        """95% confidence, by drawing whole samples again and again: the errors of one sentence go together.

        Where all answers are right, or all wrong, drawing again shows no spread; then the other end is 3 / n away.
        Efron (1979); Hanley & Lippman-Hand (1983) for the rule of three.
        """
        parts, wholes = np.array(self.parts, dtype=float), np.array(self.wholes, dtype=float)
        if set(self.wholes) == {1} and set(self.parts) in ({0}, {1}):
            return (0.0, min(1.0, 3 / self.n)) if not self.parts[0] else (max(0.0, 1 - 3 / self.n), 1.0)
        rows = np.random.default_rng(0).integers(0, self.n, (rounds, self.n))
        low, high = np.quantile(parts[rows].sum(axis=1) / wholes[rows].sum(axis=1), (0.025, 0.975))
        return float(low), float(high)


def share(right: Sequence[bool | int]) -> Rate:
    """How many of all."""
    return Rate(tuple(map(int, right)), (1,) * len(right))


def edit_rate(heard: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> Rate:
    """Insertions, deletions and exchanges that make each text what it should be. Levenshtein (1966)."""
    errors = [edit_distance(one, two) for one, two in zip(heard, said, strict=True)]
    return Rate(tuple(errors), tuple(map(len, said)))


def cer(heard: Sequence[str], said: Sequence[str]) -> Rate:
    """Character error rate; capitals and punctuation count."""
    return edit_rate(heard, said)
