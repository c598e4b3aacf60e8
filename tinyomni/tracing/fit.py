"""A formula for a row of lengths: found from what it repeats, and equal to every one of them."""

import itertools
import math
from collections.abc import Mapping, Sequence

MAX_FLOORS = 8  # terms of a sum


def formula(values: Mapping[int, int], over: str) -> str | None:
    """The formula of consecutive lengths (or of every m-th): (a·n + b) // c, k times that, sums of floors, caps."""
    places = sorted(values)
    if len(places) < 3:
        return None
    row, start, step = [values[n] for n in places], places[0], places[1] - places[0]
    if step > 1:  # the row is a function of 0, 1, 2, …
        over, start = f"(({_sum(over, -start)}) // {step})", 0
    found = _periodic(row, start, over)
    if found is not None or len(set(row)) < 3:
        return found
    # caps: constant at the beginning, at the end, or both
    first = next(place for place, value in enumerate(row) if value != row[0])
    last = len(row) - next(place for place, value in enumerate(reversed(row)) if value != row[-1])
    begin_cap, end_cap = ("max", "min") if row[0] < row[-1] else ("min", "max")
    for begin, end in ((first, len(row)), (0, last), (first, last)):
        text = _periodic(row[begin:end], start + begin, over)
        if text is not None:
            text = text if begin == 0 else f"{begin_cap}({row[0]}, {text})"
            return text if end == len(row) else f"{end_cap}({row[-1]}, {text})"
    return None


def _periodic(row: Sequence[int], start: int, n: str) -> str | None:
    """A formula of the values at n = start, start + 1, …, if they rise by the same steps again and again."""
    steps = [b - a for a, b in itertools.pairwise(row)]
    period = _period(steps)
    if period is None:
        return None
    rise, factors = sum(steps[:period]), dict.fromkeys((1, math.gcd(*steps) or 1))
    for factor in factors:
        rest = row[0] % factor
        divisor = math.gcd(rise // factor, period)
        a, c = rise // factor // divisor, period // divisor
        bounds = [((value - rest) // factor * c, a * n) for n, value in enumerate(row, start)]
        low, high = max(top - part for top, part in bounds), min(top + c - 1 - part for top, part in bounds)
        if low <= high:
            text = _sum({0: "", 1: n, -1: f"-{n}"}.get(a, f"{a} * {n}"), min(max(low, 0), high))
            text = f"({text}) // {c}" if c > 1 else text
            return _sum(f"{factor} * ({text})" if factor > 1 else text, rest)
    rises = [(place, each) for place, each in enumerate(steps[:period]) if each]
    if len(rises) > MAX_FLOORS:
        return None
    terms = [(each, f"(({_sum(n, period - 1 - place - start)}) // {period})") for place, each in rises]
    return _sum(" + ".join(term if each == 1 else f"{each} * {term}" for each, term in terms), row[0])


def _sum(text: str, more: int) -> str:
    """`n + 3`, `n - 3`, `n`, or `3`."""
    if not text:
        return str(more)
    return text + (f" + {more}" if more > 0 else f" - {-more}" if more < 0 else "")


def _period(steps: Sequence[int]) -> int | None:
    """The shortest period that is there twice at least (the failure function of Knuth, Morris and Pratt)."""
    border = [0] * (len(steps) + 1)
    length = 0
    for place in range(1, len(steps)):
        while length and steps[place] != steps[length]:
            length = border[length]
        length += steps[place] == steps[length]
        border[place + 1] = length
    period = len(steps) - border[len(steps)]
    return period if 0 < 2 * period <= len(steps) else None
