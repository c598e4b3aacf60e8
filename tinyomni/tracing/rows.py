"""From calls to rows that a person reads: nested under their callers, and what repeats as one row with a count.

A row joins calls only if everything that it shows is true of each of them. Sizes may differ only between calls of one
function of one module, and only if they grow by equal steps, as in decoding: they are shown as `1…300`.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tinyomni.tracing.records import Record, Value

NUMBER = re.compile(r"\d+")
LONGEST_TURN = 4
"""Of so many rows at most it is noticed that they come in turn."""

Usual = tuple[str, str]  # dtype and device of most tensors, which need not be repeated


@dataclass
class Row:
    """One or several records in a row that do the same, as one line of a table."""

    records: list[Record]
    below: list["Row"] = field(default_factory=list)
    in_turn: int = 1  # how many rows, this one among them, came round and round: forward, sample, forward, sample, …
    below_differs: bool = False  # the calls made other calls or had other shapes below: those of the last are shown

    @property
    def last(self) -> Record:
        """The call that stands for all."""
        return self.records[-1]

    @property
    def count(self) -> int:
        """How many calls."""
        return len(self.records)

    @property
    def times(self) -> str:
        """` ×4`; nothing for a single call."""
        return (f" ×{self.count}" + " in turn" * (self.in_turn > 1)) if self.count > 1 else ""

    @property
    def label(self) -> str:
        """The call; of an operation, with its numbers."""
        return self.last.title if self.last.op else self.last.call

    @property
    def path(self) -> str:
        """`layers.0…3.mlp`."""
        first, last = self.records[0].path, self.last.path
        if first == last:
            return last
        numbers = zip(NUMBER.findall(first), NUMBER.findall(last), strict=True)
        texts = iter([one if one == other else f"{one}…{other}" for one, other in numbers])
        return NUMBER.sub(lambda _: next(texts), first)

    def values(self, which: str, usual: Usual | None = None) -> str:
        """Inputs or outputs as text; a size that differs between the calls as `1…300`. `usual`: the dtype and device
        that are left out."""
        sides = [getattr(record, which) for record in (self.records[0], self.last)]
        pairs = zip(*([value for value in side if shown(value, side)] for side in sides), strict=True)
        texts = Counter(text(one, value, usual, which == "inputs") for one, value in pairs)
        return ", ".join(f"{times} × {each}" if times > 1 else each for each, times in texts.items())


def shown(value: Value, values: tuple[Value, ...]) -> bool:
    """Plain values are shown only where there is no tensor."""
    return bool(value.dtype) or not any(each.dtype for each in values)


def text(one: Value, other: Value, usual: Usual | None, named: bool) -> str:
    """`x (batch 1, frames 1…300) int64`, for the first and the last of several calls."""
    if not other.dtype:
        return str(other)
    found = str(other)
    if one.shape != other.shape:
        axes = [
            f"{a.name or a.formula} {a.size}…{b.size}".strip() if a.size != b.size else str(b)
            for a, b in zip(one.axes, other.axes, strict=True)
        ]
        found = f"({', '.join(axes)})"
    if usual is not None:
        found += f" {other.dtype}" * (other.dtype != usual[0]) + f" {other.device}" * (other.device != usual[1])
    return f"{other.name} {found}" if named and other.name else found


def usual_of(records: list[Record]) -> Usual:
    """The dtype and the device of most tensors."""
    values = [value for record in records for value in record.inputs + record.outputs if value.dtype]
    kinds = [Counter(kind).most_common(1) for kind in ([v.dtype for v in values], [v.device for v in values])]
    return (kinds[0][0][0], kinds[1][0][0]) if values else ("", "")


def tree(records: list[Record]) -> list[Row]:
    """Calls under their callers, one row each."""
    rows: dict[int, Row] = {}
    top: list[Row] = []
    for record in records:
        rows[record.id] = Row([record])
        (rows[record.parent].below if record.parent in rows else top).append(rows[record.id])
    return top


def walk(rows: list[Row], depth: int = 0, deepest: int | None = None) -> Iterator[tuple[int, Row]]:
    """Every row with its depth, from top to bottom; `deepest`: none below this depth."""
    for row in rows:
        yield depth, row
        if deepest is None or depth < deepest:
            yield from walk(row.below, depth + 1, deepest)


# ---- folding --------------------------------------------------------------------------------------------------------


@dataclass
class _Folded:
    """A row with what decides whether it is joined to the next."""

    row: Row
    pattern: Any  # all that is shown but sizes, of the row and of all below
    sizes: tuple[Any, ...]  # of the row
    below: Any  # sizes and paths of all below

    @property
    def path(self) -> str:
        return self.row.last.path


def fold(rows: list[Row], turns: bool = True) -> list[Row]:
    """What repeats becomes one row with a count: layers, frames; with `turns` also rows that come in turn, as those of
    a decode step do."""
    return [each.row for each in _fold(rows, turns)]


def _fold(rows: list[Row], turns: bool) -> list[_Folded]:
    kept = [_folded(row.records, _fold(row.below, turns)) for row in rows]
    for length in range(1, 1 + (LONGEST_TURN if turns else 1)):
        folded: list[_Folded] = []
        at = 0
        while at < len(kept):
            end = _repeats(kept, at, length)
            if end == at + length:
                end = at + 1  # no repetition here
            folded += [_join(kept[place:end:length], length) for place in range(at, min(at + length, end))]
            at = end
        kept = folded
    return kept


def _folded(records: list[Record], below: list[_Folded]) -> _Folded:
    record = records[0]
    sides = (record.inputs, record.outputs)
    names = tuple(
        (value.name, value.dtype, value.device, value.text, tuple(axis[::2] for axis in value.axes))
        for values in sides
        for value in values
        if shown(value, values)
    )
    pattern = (
        Row(records).label, record.op, record.status, record.phase, record.cache is None,
        NUMBER.sub("#", record.path), names,
        tuple((each.pattern, each.row.count) for each in below),
    )  # fmt: skip
    sizes = (record.cache or 0, *(size for values in sides for value in values for size in value.shape))
    inner = tuple((each.sizes, NUMBER.sub("#", each.row.path), each.below) for each in below)
    return _Folded(Row(records, [each.row for each in below]), pattern, sizes, inner)


def _repeats(rows: list[_Folded], at: int, length: int) -> int:
    """Where the rows at `at` end that can be joined in groups of `length`; `at + length` if none can."""
    group = rows[at : at + length]
    if any(each.row.in_turn > 1 for each in group):
        return at + length
    end, steps = at + length, None
    while end + length <= len(rows):
        before, after = rows[end - length : end], rows[end : end + length]
        # layers become one row whatever their number; in turn comes only what has the same counts, too
        pairs = list(zip(before, after, strict=True))
        if any(a.pattern != b.pattern or (length > 1 and a.row.count != b.row.count) for a, b in pairs):
            break
        differences = [_difference(a, b) for a, b in pairs]
        if None in differences or (steps is not None and differences != steps):
            break
        steps, end = differences, end + length
    # two sizes are no series: 6…9 would promise 7 and 8
    jump = max((size for sizes in steps or () for size in sizes or ()), default=0)
    return at + length if end == at + 2 * length and jump > 1 else end


def _difference(one: _Folded, other: _Folded) -> tuple[int, ...] | None:
    """By how much each size grows from one row to the next; None if they cannot be joined."""
    if one.sizes == other.sizes and one.below == other.below:
        return (0,) * len(one.sizes)
    if one.path != other.path or one.row.last.root != other.row.last.root:  # layers of other sizes
        return None
    if one.row.count != other.row.count or one.row.last.op:
        return None
    pairs = list(zip(one.sizes, other.sizes, strict=True))
    if any(type(size) is str and size != now for size, now in pairs):
        return None
    steps = tuple(0 if type(size) is str else now - size for size, now in pairs)
    return steps if min(steps) >= 0 else None


def _join(rows: list[_Folded], in_turn: int) -> _Folded:
    if len(rows) == 1:
        return rows[0]
    last = rows[-1]
    last.row.records = [record for each in rows for record in each.row.records]
    last.row.in_turn = max(last.row.in_turn, in_turn)
    last.row.below_differs = any(a.below != b.below for a, b in pairwise(rows)) or last.row.below_differs
    return last
