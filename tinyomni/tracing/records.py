"""What a trace keeps: plain data, no tensor. It can be saved, loaded, compared and drawn."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tinyomni.tracing import annotations
from tinyomni.tracing.annotations import Axis

LONGEST_TEXT = 80


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor (it has a dtype) or one plain value (it has a text)."""

    name: str
    axes: tuple[Axis, ...] = ()
    dtype: str = ""
    device: str = ""
    text: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes alone."""
        return tuple(axis.size for axis in self.axes)

    def __str__(self) -> str:
        if not self.dtype:
            return self.text
        # (3,) as Python writes it, but (frames 3)
        comma = "," if len(self.axes) == 1 and not (self.axes[0].name or self.axes[0].formula) else ""
        return f"({', '.join(map(str, self.axes))}{comma})"


@dataclass(slots=True)
class Record:
    """One call: of which function, in which module, with what in and out."""

    id: int
    parent: int | None
    depth: int
    call: str  # qualified name of the function
    path: str = ""  # of the module it belongs to, such as blocks.0.attn
    number: int = 0  # which call of this function in this trace, from 0
    phase: str = ""  # prefill, decode or train, where that can be told
    cache: int | None = None  # tokens in the KV cache before the call
    title: str = ""
    declared: bool = False  # marked with @step
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    sources: tuple[int, ...] = ()  # the calls that gave the inputs, as far as they are known
    status: str = "open"  # ok, raised, open (never returned), or what was wrong
    file: str = ""
    line: int = 0

    @property
    def ok(self) -> bool:
        """Did it return what it says?"""
        return self.status == "ok"


def file_of(code: types.CodeType, names: Mapping[str, Any]) -> str:
    """The file of a function, as `package/module.py` wherever it was installed; a notebook's cell has no file."""
    module = str(names.get("__name__", "__main__"))
    if "ipykernel_" in code.co_filename or code.co_filename.startswith("<"):
        return "cell"
    name = Path(code.co_filename).name
    return (
        name if module == "__main__" else "/".join([*module.split(".")[: -1 if name != "__init__.py" else None], name])
    )


class Entry(NamedTuple):
    """One line of the token ledger."""

    source: str
    tokens: int
    of: int


class Ledger(list[Entry]):
    """Who put how many tokens into the sequence, of how many that fit."""

    def __str__(self) -> str:
        if not self:
            return "no tokens were counted"
        total, limits = sum(entry.tokens for entry in self), {entry.of for entry in self}
        parts = " + ".join(f"{entry.source} {entry.tokens}" for entry in self)
        return f"{parts} = {total} of {' / '.join(map(str, sorted(limits)))}"


def describe(name: str, value: Any, hint: Any = None) -> Iterator[Value]:
    """A value and its parts as data; what is neither tensor nor number nor text is left out."""
    if isinstance(value, Tensor):
        axes = annotations.axes(annotations.choose(hint, value), tuple(value.shape))
        yield Value(name, axes, str(value.dtype).removeprefix("torch."), value.device.type)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = annotations.hints_of(type(value))
        for each in dataclasses.fields(value):
            part = getattr(value, each.name)
            if isinstance(part, Tensor) or any(annotations.leaves(hints.get(each.name))):
                yield from describe(f"{name}.{each.name}", part, hints.get(each.name))
    elif isinstance(value, (tuple, list, Mapping)):
        keys = value.keys() if isinstance(value, Mapping) else range(len(value))
        parts = annotations.parts(hint, value)
        if any(any(annotations.leaves(part)) for part in parts) or _holds_tensors(value):
            for key, part in zip(keys, parts, strict=True):
                yield from describe(f"{name}.{key}", value[key], part)
    elif isinstance(value, (str, int, float, bool)):
        text = repr(value) if isinstance(value, str) else str(value)
        yield Value(name, text=text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 2] + "…" + text[0])


def _holds_tensors(value: Any) -> bool:
    """A container without an annotation is described where its first item is a tensor, or a container of such."""
    items = value.values() if isinstance(value, Mapping) else value
    first = next(iter(items), None)
    return isinstance(first, Tensor) or (isinstance(first, (tuple, list, Mapping)) and _holds_tensors(first))


# ---- rows: what a person reads --------------------------------------------------------------------------------------


@dataclass
class Row:
    """One or several records in a row that do the same, as one line of a table."""

    records: list[Record]
    below: list["Row"] = field(default_factory=list)
    in_turn: int = 1  # how many rows, this one among them, came round and round: forward, sample, forward, sample, …

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

    def values(self, which: str) -> str:
        """Inputs or outputs as text; a size that differs between the calls is shown as `1…300`."""
        first, last = (getattr(record, which) for record in (self.records[0], self.records[-1]))
        tensors = any(value.dtype for value in last)
        texts = [
            f"{value.name} {_range(one, value)}" if which == "inputs" and value.dtype else _range(one, value)
            for one, value in zip(first if len(first) == len(last) else last, last, strict=True)
            if value.dtype or not tensors
        ]
        # q, k and v of one shape are written once
        return ", ".join(dict.fromkeys(texts))


def _range(one: Value, other: Value) -> str:
    """`(batch 1, frames 1…300)`."""
    if one.shape == other.shape or len(one.axes) != len(other.axes):
        return str(other)
    axes = [
        f"{a.name or a.formula} {a.size}…{b.size}".strip() if a.size != b.size else str(b)
        for a, b in zip(one.axes, other.axes, strict=True)
    ]
    return f"({', '.join(axes)})"


def tree(records: list[Record]) -> list[Row]:
    """Calls under their callers, one row each."""
    rows: dict[int, Row] = {}
    top: list[Row] = []
    for record in records:
        rows[record.id] = Row([record])
        (rows[record.parent].below if record.parent in rows else top).append(rows[record.id])
    return top


LONGEST_TURN = 4
"""Of so many rows at most it is noticed that they come in turn."""


def fold(rows: list[Row], turns: bool = True) -> list[Row]:
    """What repeats becomes one row with a count: layers, frames; with `turns` also rows that come in turn, as those of
    a decode step do."""
    kept = [(row, _alike(row)) for row in (Row(row.records, fold(row.below, turns)) for row in rows)]
    for length in range(1, 1 + (LONGEST_TURN if turns else 1)):
        # layers become one row whatever their number; in turn comes only what has the same counts, too
        marks = [(alike, row.count if length > 1 else 1) for row, alike in kept]
        folded: list[tuple[Row, Any]] = []
        at = 0
        while at < len(kept):
            group, mark = kept[at : at + length], marks[at : at + length]
            again = at + length
            while marks[again : again + length] == mark and all(row.in_turn == 1 for row, _ in group):
                again += length
            if again == at + length:
                group, again = group[:1], at + 1
            for place, (row, _) in enumerate(group):
                others = [other for other, _ in kept[at + place : again : len(group)]]
                row.records = [record for other in others for record in other.records]
                row.below, row.in_turn = others[-1].below, max(row.in_turn, len(group))
            folded += group
            at = again
        kept = folded
    return [row for row, _ in kept]


def _alike(row: Row) -> tuple[Any, ...]:
    """What has to be the same for two rows to be one: the call, how it ended, the names, and all calls below."""
    record = row.records[0]
    names = tuple((value.name, value.dtype, len(value.axes)) for value in record.inputs + record.outputs)
    return record.call, record.status, record.phase, names, tuple((_alike(each), each.count) for each in row.below)


def walk(rows: list[Row], depth: int = 0) -> Iterator[tuple[int, Row]]:
    """Every row with its depth, from top to bottom."""
    for row in rows:
        yield depth, row
        yield from walk(row.below, depth + 1)
