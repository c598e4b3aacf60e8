"""What a trace keeps: plain data, no tensor. It can be saved, loaded, compared and drawn."""

from dataclasses import dataclass, field
from typing import NamedTuple

from tinyomni.tracing.annotations import Axis
from tinyomni.tracing.tensors import Size


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor (it has a dtype) or one plain value (it has a text)."""

    name: str
    axes: tuple[Axis, ...] = ()
    dtype: str = ""
    device: str = ""
    text: str = ""

    @property
    def shape(self) -> tuple[Size, ...]:
        """The sizes alone; a text stands for a size that is no number."""
        return tuple(axis.size for axis in self.axes)

    def __str__(self) -> str:
        if not self.dtype:
            return self.text
        # (3,) as Python writes it, but (frames 3)
        comma = "," if len(self.axes) == 1 and not (self.axes[0].name or self.axes[0].formula) else ""
        return f"({', '.join(map(str, self.axes))}{comma})"


class Gradient(NamedTuple):
    """The gradient of one tensor that a call gave, and its norm."""

    value: Value
    norm: float

    def __str__(self) -> str:
        return f"grad {self.value} |{self.norm:.2g}|"


STOPPED = "stopped early"
"""Status of a call that activation checkpointing ran again, and ended as soon as it had what it needed."""
UNSEEN = "its end was not seen"
"""Status of a call that went on when the trace was interrupted."""


@dataclass(slots=True)
class Record:
    """One call: of which function, in which module, with what in and out."""

    id: int
    parent: int | None
    depth: int
    call: str  # qualified name of the function
    path: str = ""  # of the module it belongs to, such as blocks.0.attn
    root: int = 0  # which of the outermost modules that is in, from 1; 0 for a function
    number: int = 0  # which call of this function in this trace, from 0
    phase: str = ""  # prefill, decode or train, where that can be told
    cache: int | None = None  # tokens in the KV cache before the call
    title: str = ""
    declared: bool = False  # marked with @step
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    sources: tuple[int, ...] = ()  # the calls that gave the inputs, as far as they are known
    status: str = "open"  # ok, raised, stopped early (checkpointing), its end was not seen, or what was wrong
    file: str = ""
    line: int = 0
    end: int = 0  # the line of its `return`
    called: str = ""  # where from: file:line, the nearest that no library wrote
    op: bool = False  # an operation of torch, not a call of a function
    gradients: tuple[Gradient, ...] = ()  # of its outputs, with `backward=True`

    @property
    def ok(self) -> bool:
        """Did it return what its annotations say?"""
        return self.status in ("ok", STOPPED)


class Entry(NamedTuple):
    """One line of the token ledger."""

    source: str
    tokens: int
    of: int
    at: str = ""  # where it was counted: file:line


class Ledger(list[Entry]):
    """Who put how many tokens into the sequence, of how many that fit."""

    def __str__(self) -> str:
        if not self:
            return "no tokens were counted"
        total, limits = sum(entry.tokens for entry in self), {entry.of for entry in self}
        parts = " + ".join(f"{entry.source} {entry.tokens}" for entry in self)
        return f"{parts} = {total} of {' / '.join(map(str, sorted(limits)))}"


@dataclass
class Run:
    """What one run did: `steps` in order, `ledger` of tokens, `notes` on what could not be seen."""

    title: str
    steps: list[Record] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    notes: list[str] = field(default_factory=list)
