"""Batches of similar length, so that little of a batch is padding.

lengths of all samples → the batches of one epoch, each a list of indices
"""

import math
import random
from collections.abc import Sequence

from tinyomni.errors import InputError


def bucketed_batches(
    lengths: Sequence[float], batch_size: int, seed: int = 0, epoch: int = 0, window: int = 50
) -> list[list[int]]:
    """The batches of one epoch, in order; every index occurs once.

    The order is shuffled, cut into windows of `window` batches, sorted by length within each window, cut into batches,
    and the batches are shuffled. The result depends on nothing but the arguments. Only one batch may be smaller than
    the others.
    """
    if batch_size < 1 or window < 1:
        raise InputError(f"bucketed_batches: batch_size and window must be at least 1, got {batch_size} and {window}")
    if not all(math.isfinite(length) for length in lengths):
        raise InputError("bucketed_batches: every length must be finite, got NaN or infinity")
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    span = window * batch_size
    order = [i for at in range(0, len(order), span) for i in sorted(order[at : at + span], key=lengths.__getitem__)]
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches
