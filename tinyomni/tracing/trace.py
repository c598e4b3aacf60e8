"""The tracer: watches annotated functions while they run, and writes down what shape went in and out.

It is a profile hook (`sys.setprofile`): no decorator, no change to a model, nothing left behind. A function is found by
its code object, once; its annotations give the axis names. No tensor is kept.
"""

import functools
import inspect
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import jaxtyped
from torch import Tensor

from tinyomni.axes import ShapeError
from tinyomni.tracing import annotations
from tinyomni.tracing.annotations import Axis

F = TypeVar("F", bound=Callable[..., Any])


def step(title: str) -> Callable[[F], F]:
    """Mark a function as a step that a specification has to name. The function itself stays as it is."""

    def mark(function: F) -> F:
        function.__step__ = title  # type: ignore[attr-defined]
        return function

    return mark


@dataclass
class Value:
    """One tensor or plain value, as data."""

    name: str
    axes: list[Axis] = field(default_factory=list)
    dtype: str = ""
    device: str = ""
    text: str = ""  # of a plain value

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes alone."""
        return tuple(size for _, size in self.axes)

    def __str__(self) -> str:
        if not self.dtype:
            return self.text
        sizes = [f"{name} {size}" if name else str(size) for name, size in self.axes]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 and not self.axes[0][0] else ''})"


@dataclass
class Record:
    """One call: plain data."""

    id: int
    parent: int | None
    depth: int
    call: str
    title: str = ""
    declared: bool = False
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    status: str = "open"
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class Function:
    """What is known of an annotated function."""

    qualname: str
    title: str
    declared: bool
    parameters: tuple[str, ...]
    hints: dict[str, Any]


@functools.cache
def locate(code: types.CodeType, module: str) -> Function | None:
    """The annotated function that this code belongs to, or None."""
    if "<" in code.co_qualname or code.co_flags & (
        inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    ):
        return None
    found: Any = sys.modules.get(module)
    for name in code.co_qualname.split("."):
        found = inspect.getattr_static(found, name, None)
        if isinstance(found, (staticmethod, classmethod)):
            found = found.__func__
        if isinstance(found, property):
            found = found.fget
    if found is None or getattr(inspect.unwrap(found), "__code__", None) is not code:
        return None
    function = inspect.unwrap(found)
    title = getattr(function, "__step__", "")
    hints = annotations.hints_of(function)
    if not title and not any(any(annotations.leaves(hint)) for hint in hints.values()):
        return None
    count = code.co_argcount + code.co_kwonlyargcount
    return Function(code.co_qualname, title or function.__name__, bool(title), code.co_varnames[:count], hints)


def describe(name: str, value: Any, hint: Any) -> list[Value]:
    """A value and its parts as data."""
    if isinstance(value, Tensor):
        arrays = [leaf for leaf in annotations.leaves(hint) if len(annotations.words(leaf, value.ndim)) == value.ndim]
        axes = annotations.axes(arrays[0], value) if arrays else [("", size) for size in value.shape]
        return [Value(name, axes, str(value.dtype).removeprefix("torch."), str(value.device))]
    if isinstance(value, tuple):
        parts = annotations.typing.get_args(hint) or (None,) * len(value)
        return [
            each
            for i, (item, part) in enumerate(zip(value, parts, strict=False))
            for each in describe(f"{name}{i}", item, part)
        ]
    if isinstance(value, (str, int, float, bool)):
        return [Value(name, text=repr(value) if isinstance(value, str) else str(value))]
    return []


class Trace:
    """What one run did: `steps` in order, `ledger` of tokens. A context manager; see `trace`."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.steps: list[Record] = []
        self.ledger: list[tuple[str, int, int]] = []
        self._open: list[tuple[types.FrameType, Record, Function, dict[str, Any]]] = []
        self._problem = ""

    def __enter__(self) -> "Trace":
        global _current
        if _current is not None:
            raise RuntimeError(f"trace({self.title!r}): the trace {_current.title!r} is still running; one at a time")
        _current = self
        self._before = sys.getprofile()
        # what is compiled would be invisible; without dynamo, nothing is compiled, and loading it takes seconds
        self._stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        sys.setprofile(self._hook)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        global _current
        sys.setprofile(self._before)
        self._stance.__exit__(None, None, None)
        _current = None
        self._open.clear()
        if error is None and self._problem:
            raise ShapeError(self._problem)

    def _hook(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if event == "call":
            function = locate(frame.f_code, frame.f_globals.get("__name__", ""))
            if function is not None:
                self._enter(frame, function)
        elif event == "return" and self._open and self._open[-1][0] is frame:
            self._leave(arg)

    def _enter(self, frame: types.FrameType, function: Function) -> None:
        arguments = {name: frame.f_locals[name] for name in function.parameters if name in frame.f_locals}
        record = Record(
            id=len(self.steps),
            parent=self._open[-1][1].id if self._open else None,
            depth=len(self._open),
            call=function.qualname,
            title=function.title,
            declared=function.declared,
            file=Path(frame.f_code.co_filename).name,
            line=frame.f_code.co_firstlineno,
        )
        for name, value in arguments.items():
            record.inputs += describe(name, value, function.hints.get(name))
        self.steps.append(record)
        self._open.append((frame, record, function, arguments))

    def _leave(self, result: Any) -> None:
        _, record, function, arguments = self._open.pop()
        hint = function.hints.get("return")
        if result is None and hint is not None and any(annotations.leaves(hint)):
            record.status = "raised"
            return
        record.outputs = describe("out", result, hint)
        with jaxtyped("context"):
            for name, value in [*arguments.items(), ("return", result)]:
                due = function.hints.get(name)
                if due is not None and not annotations.fits(value, due, arguments):
                    came = " and ".join(str(each) for each in describe(name, value, None)) or type(value).__name__
                    record.status = f"{name}: {annotations.show(due)} expected, {came} came"
                    self._problem = (
                        self._problem or f"{self.title}, {record.call}: {record.status} ({record.file}:{record.line})"
                    )
                    return
        record.status = "ok"

    def check(self, spec: Any, given: dict[str, int] | None = None) -> Any:
        """Hold the run against a `Spec` (or the path of one): a `Report`, or SpecMismatch with every wrong line."""
        report = self.report(spec, given)
        if not report.ok:
            from tinyomni.tracing.spec import SpecMismatch

            raise SpecMismatch(report)
        return report

    def report(self, spec: Any, given: dict[str, int] | None = None) -> Any:
        """The same without raising."""
        from tinyomni.tracing.spec import Spec

        return (spec if isinstance(spec, Spec) else Spec.load(spec)).compare(self, given or {})

    def __str__(self) -> str:
        rows = [
            ("  " * s.depth + s.call, ", ".join(map(str, s.inputs)), ", ".join(map(str, s.outputs)), s.status)
            for s in self.steps
        ]
        return (
            "\n".join(f"{call:40} {came} → {gone}  {status}" for call, came, gone, status in rows)
            or "nothing was traced"
        )


_current: Trace | None = None


def trace(title: str = "trace") -> Trace:
    """`with trace("my run") as t: model(batch)`; then `print(t)`, `t.steps`, `t.check(spec)`."""
    return Trace(title)


def tokens(source: str, count: int, of: int) -> None:
    """Tell the running trace that `source` put `count` tokens into a sequence in which `of` fit."""
    if _current is not None:
        _current.ledger.append((source, count, of))
