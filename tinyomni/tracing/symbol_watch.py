"""What a run without numbers cannot answer for an ordinary one: here it is noticed, and nothing is concluded from it.

A symbol stands for a length, but it is no int, and a tensor on the meta device has no numbers. Code that asks for a
symbol's type, text or hash, or that catches an error which only such a run raises, goes another way than with numbers,
and no condition of a symbolic run says so. Watched is the code of whoever asks; installed packages know what they do.
"""

import builtins
import dis
import functools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tinyomni.tracing.functions import is_library

OURS = __name__.rpartition(".")[0]
SYMBOLS = {torch.SymInt: 0, torch.SymBool: False, torch.SymFloat: 0.0}  # and a number of that kind
ASKED = {"__format__": "the text", "__hash__": "the hash", "__repr__": "the text", "__str__": "the text"}
TYPE = "the type"
NAMED = ("LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME")  # operations that load a variable

Place = tuple[str, int, str]  # file, line, type of an error


def is_watched(frame: types.FrameType) -> bool:
    """Code that is neither installed nor ours."""
    return not is_library(frame.f_code) and not str(frame.f_globals.get("__name__", "")).startswith(OURS)


# ---- errors that are caught, and types that are asked for -----------------------------------------------------------


@functools.lru_cache(maxsize=512)
def types_asked(code: types.CodeType) -> tuple[frozenset[str], bool]:
    """The variables whose type the code asks for, as in `type(n)`; and whether it asks for that of something else."""
    names, others = set(), False
    steps = [each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "PUSH_NULL", "PRECALL")]
    for before, step, after in zip([None, *steps], steps, [*steps[1:], None], strict=False):
        if step.opname == "MATCH_CLASS":
            others = True
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval == "type":
            if after is not None and after.opname.startswith(NAMED):
                names.add(str(after.argval))
            elif after is not None and after.opname.startswith("LOAD_"):
                others = True
        elif step.opname.startswith("LOAD_ATTR") and step.argval == "__class__":
            if before is not None and before.opname.startswith(NAMED):
                names.add(str(before.argval))
            else:
                others = True
    return frozenset(names), others


class Watch:
    """As `sys.settrace`'s function: notes each error that passes a watched line, and each type that is asked for."""

    def __init__(self) -> None:
        self.errors: list[Place] = []
        self.types = False

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        """At the call of a function: whether its lines are watched."""
        if not is_watched(frame):
            return None
        names, others = types_asked(frame.f_code)
        self.types |= others
        frame.f_trace_lines = bool(names)  # a variable may hold a symbol for one line only
        return functools.partial(self.local, names)

    def local(self, names: frozenset[str], frame: types.FrameType, event: str, argument: Any) -> Any:
        """In a watched function, at a line where it has `names`, at an error, and at its end."""
        if event == "exception":
            self.errors.append((frame.f_code.co_filename, frame.f_lineno, argument[0].__name__))
        elif any(type(frame.f_locals.get(name, frame.f_globals.get(name))) in SYMBOLS for name in names):
            self.types = True
        return functools.partial(self.local, names)


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch what runs in the block, in this thread."""
    watch, before = Watch(), sys.gettrace()
    sys.settrace(watch)
    try:
        yield watch
    finally:
        sys.settrace(before)


# ---- the text, the hash and isinstance ------------------------------------------------------------------------------


@contextmanager
def questions() -> Iterator[list[str]]:
    """What code asks of a symbol that is answered otherwise than for a number: its type, its text, its hash (it has
    none, and a function may catch that error)."""
    seen: list[str] = []
    own, is_instance = {kind: {name: vars(kind).get(name) for name in ASKED} for kind in SYMBOLS}, isinstance

    def note(what: str) -> None:
        if is_watched(sys._getframe(2)):
            seen.append(what)

    def asking(what: str, real: Any) -> Callable[..., Any]:
        def ask(symbol: Any, *args: Any) -> Any:
            note(what)
            return real(symbol, *args)

        return ask

    def watched_isinstance(value: Any, kinds: Any) -> bool:
        found = is_instance(value, kinds)
        if type(value) in SYMBOLS and is_instance(SYMBOLS[type(value)], kinds) != found:
            note(TYPE)
        return found

    try:
        builtins.isinstance = watched_isinstance
        for kind in SYMBOLS:
            for name, what in ASKED.items():
                setattr(kind, name, asking(what, getattr(kind, name)))
        yield seen
    finally:
        builtins.isinstance = is_instance
        for kind, names in own.items():
            for name, real in names.items():
                if real is None:
                    delattr(kind, name)
                else:
                    setattr(kind, name, real)
