"""A function as a mapping from one length to another: shapes only, on the meta device, a call at a time.

A call that uses more than 30 seconds of CPU time is stopped. What counts is the CPU time of the calling thread, so that
other work on the machine changes nothing; a loop inside compiled code cannot be stopped.
"""

import ctypes
import inspect
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tinyomni.tracing import annotations
from tinyomni.tracing.formula import SpecError, evaluate, unknown
from tinyomni.tracing.indices import Indices
from tinyomni.tracing.state import State
from tinyomni.tracing.symbol_watch import Place, watched

LONGEST = 2**22  # lengths up to here are tried when the function refuses short ones
MAX_SECONDS = 30.0  # of CPU time for one call
MAX_TOTAL = 120.0  # of CPU time, after which no further length is run
REAL = 4096  # longest input for which real zeros are computed where the meta device cannot tell a shape


class TooLong(BaseException):
    """A call that goes on and on. Not an Exception, so that the function itself does not catch it."""


class CpuLimit:
    """Stops the calls of one thread that use too much of its CPU time."""

    def __init__(self) -> None:
        self.thread, self.lock, self.done = threading.get_ident(), threading.Lock(), threading.Event()
        self.began: float | None = None  # while a call runs
        self.started = 0.0
        self.fired = False
        if hasattr(time, "pthread_getcpuclockid"):
            clock = time.pthread_getcpuclockid(self.thread)
            self.now: Callable[[], float] = lambda: time.clock_gettime(clock)
        else:
            self.now = time.process_time

    def __enter__(self) -> "CpuLimit":
        self.started = self.now()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.done.set()

    def _watch(self) -> None:
        while not self.done.wait(min(0.2, MAX_SECONDS / 4)):
            with self.lock:
                if self.began is not None and self.now() - self.began > MAX_SECONDS:
                    self.fired = True
                    exception = ctypes.py_object(TooLong)  # raised before the next line of Python of that thread
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread), exception)

    def over(self) -> bool:
        """Whether all calls together have used their time."""
        return self.now() - self.started > MAX_TOTAL

    def run(self, work: Callable[[], Any]) -> Any:
        """One call. Raises TooLong."""
        self.began, self.fired = self.now(), False
        try:
            return work()
        finally:
            self.end()

    def end(self) -> None:
        """No exception is sent any more; one that is on its way arrives here."""
        with self.lock:
            self.began = None
        if self.fired:
            try:
                for _ in range(10_000):
                    pass
            except TooLong:
                pass


class ShapesOnly(Indices):
    """Every operation runs on the meta device, also those on a module's real weights: shapes, and no numbers."""

    def operate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """New tensors are made on the meta device by `torch.device("meta")`. Asked for their device, they answer as in
        an ordinary run; `is_meta` is asked by code that leaves out values.
        """
        if func.__name__ == "__get__" and isinstance(args[0], Tensor) and args[0].is_meta:
            if func.__self__.__name__ in WHERE:
                return WHERE[func.__self__.__name__]
            if func.__self__.__name__ == "is_meta":
                self.asked.append("is_meta")
        known = recurrent(func, args)
        if known is not None:
            return known
        return func(*map(_to_meta, args), **{name: _to_meta(value) for name, value in kwargs.items()})


WHERE = {"device": torch.device("cpu"), "is_cpu": True}


def recurrent(func: Any, args: tuple[Any, ...]) -> Any:
    """What a GRU, LSTM or RNN gives, by its rule: torch runs it step by step. None for other operators."""
    # input, state, weights, bias, layers, dropout, training, both directions, batch first; if packed, sizes come second
    if func not in (torch.gru, torch.lstm, torch.rnn_tanh, torch.rnn_relu) or isinstance(args[2], Tensor):
        return None
    x, state = args[:2]
    first = state if isinstance(state, Tensor) else state[0]
    out = x.new_zeros(*x.shape[:-1], first.shape[-1] * (2 if args[7] else 1))
    return (out, state) if first is state else (out, *state)


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.is_meta:
            return value
        with torch._C.DisableTorchFunctionSubclass():
            found = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            return found.requires_grad_(value.requires_grad and value.is_leaf)
    if type(value) in (list, tuple):
        return type(value)(map(_to_meta, value))
    return torch.device("meta") if isinstance(value, torch.device) else value


class Lengths:
    """The length that comes out for one that goes in, remembered for every length asked."""

    def __init__(self, fn: Callable[..., Any], over: str, sizes: Mapping[str, int], axis: int | None) -> None:
        function = type(fn).forward if isinstance(fn, nn.Module) else fn
        self.fn, self.over, self.sizes, self.axis = fn, over, sizes, axis
        self.name = type(fn).__name__ if isinstance(fn, nn.Module) else getattr(fn, "__qualname__", type(fn).__name__)
        self.inputs = _inputs(inspect.unwrap(function))
        self.axes = {
            word.name for leaf in self.inputs.values() for word in annotations.words(leaf.dim_str) if word.name
        }
        self.real = False  # real zeros are computed
        self.asks_meta = False  # the function asks whether tensors are on the meta device
        self.values: dict[int, int] = {}
        self.refusals: dict[int, str] = {}
        self.unseen: dict[str, None] = {}  # operations whose indices are not known
        self.limit = CpuLimit()
        self.state = State(fn)
        self._check_names()

    def _check_names(self) -> None:
        """A misspelt axis is no function of a length."""
        if self.inputs:
            for name in (self.over, *self.sizes):
                if name not in self.axes:
                    raise SpecError(unknown(name, self.axes, f" in the annotations of {self.name}"))
        elif isinstance(self.fn, nn.Module):
            raise SpecError(
                f"{self.name}.forward has no jaxtyping annotation with an axis {self.over!r}. Annotate it, "
                f"or sweep a function of the length: sweep(lambda n: module(torch.zeros(1, n)), over={self.over!r})"
            )

    def arguments(self, n: Any) -> dict[str, Any]:
        """Tensors as the annotations describe them; an axis without a known size has size 1."""
        sizes = {**self.sizes, self.over: n}
        found = {}
        for name, leaf in self.inputs.items():
            shape = []
            for word in annotations.words(leaf.dim_str):
                if word.fixed is not None:
                    shape.append(word.fixed)
                elif not word.many:
                    shape.append(evaluate(word.formula, sizes) if word.formula else sizes.get(word.name, 1))
            floating = isinstance(torch.empty(0), leaf.dtype[leaf.array_type, "..."])
            found[name] = torch.zeros(shape, dtype=torch.float32 if floating else torch.int64)
        return found

    def run(self, n: Any) -> Any:
        """The first tensor, or the number, that the function gives for one length."""
        out = self.fn(**self.arguments(n)) if self.inputs else self.fn(n)
        while isinstance(out, (tuple, list)) and out:
            out = out[0]
        return out

    def shape(self, n: int) -> tuple[int, ...]:
        """The shape for one length, or a number as a shape of one. Raises NoLength, or what the function raises."""
        try:
            out = self.limit.run(lambda: self._out(n))
        except TooLong:
            self.limit.end()
            raise Endless(
                f"{self.name}: no result for {self.over} = {n} within {MAX_SECONDS:g} s of CPU time. Does it end?"
            ) from None
        except RecursionError as error:
            raise Endless(
                f"{self.name}: no result for {self.over} = {n}: {error}. "
                "An endless recursion, or one too deep for this length"
            ) from error
        finally:
            self.state.restore()
        if isinstance(out, bool) or not isinstance(out, (Tensor, int)):
            raise NoLength(f"{self.name}: expected a tensor or a length, got {type(out).__name__}")
        return tuple(out.shape) if isinstance(out, Tensor) else (out,)

    def _out(self, n: int) -> Any:
        if self.real:
            return self.run(n)
        shapes = ShapesOnly(self.unseen)
        try:
            with torch.device("meta"), shapes:
                return self.run(n)
        except Exception as error:
            if n > REAL or "meta" not in str(error).lower():
                raise
            self.state.restore()
            out = self.run(n)  # something asked for a value
            self.real = True
            return out
        finally:
            self.asks_meta |= bool(shapes.asked)

    def value(self, n: int) -> int | None:
        """The length for one n; None where the function refuses it."""
        if n not in self.values and n not in self.refusals:
            try:
                assert self.axis is not None
                self.values[n] = self.shape(n)[self.axis]
            except Exception as error:
                if isinstance(error, (Endless, NoLength)):
                    raise
                self.refusals[n] = said(error)
        return self.values.get(n)

    def refusal(self, n: int) -> str:
        """What the function says to a length; nothing where it takes it."""
        return "" if self.value(n) is not None else self.refusals[n]

    def caught(self, n: int) -> list[Place] | None:
        """The errors that the function catches for a length, given real zeros; None where that cannot be known."""
        if n > REAL:
            return None
        try:
            with watched() as watch:
                self.limit.run(lambda: self.run(n))
        except TooLong:
            self.limit.end()
            return None
        except Exception:  # weights on the meta device
            return None
        finally:
            self.state.restore()
        return watch.errors

    def catches_meta(self, n: int) -> bool:
        """Whether the function catches an error that real zeros do not raise."""
        with watched() as watch:
            self.shape(n)
        return bool(watch.errors) and self.caught(n) not in (None, watch.errors)

    def parts_meta(self, n: int) -> bool:
        """Whether the function asks for the meta device and gives another shape there than for real zeros."""
        if not self.asks_meta or n > REAL:
            return False
        try:
            shape, self.real = self.shape(n), True
            return shape != self.shape(n)
        except Exception:  # whatever the function raises: weights on the meta device cannot be run with numbers
            return False
        finally:
            self.real = False

    def symbolic(self, n: Any) -> Any:
        """The length for a symbol."""
        assert self.axis is not None
        if self.limit.over():
            raise Endless(f"{MAX_TOTAL:g} s of CPU time are over")
        try:
            out = self.limit.run(lambda: self.run(n))
        except TooLong:
            self.limit.end()
            raise Endless(f"the symbolic run took more than {MAX_SECONDS:g} s of CPU time") from None
        finally:
            self.state.restore()
        return out.shape[self.axis] if isinstance(out, Tensor) else out

    def first(self, upto: int) -> int:
        """The shortest length that is taken, and the axis of the result that depends on it."""
        error: Exception | None = None
        doubled = (2**power for power in range(1, LONGEST.bit_length()) if 2**power > upto)
        for n in (*range(1, upto + 1), *doubled):
            try:
                shape = self.shape(n)
            except Exception as error_:
                if isinstance(error_, (Endless, NoLength)):
                    raise
                error = error_
                continue
            good = n
            self.real = self.real or self.catches_meta(n) or any(self.parts_meta(n + more) for more in (0, 1, n))
            shape = self.shape(n)
            break
        else:
            raise ValueError(
                f"{self.name} takes no {self.over} up to {LONGEST:,}; the last error: {said(error)}"
            ) from error
        self.axis = len(shape) - 1 if self.axis is None and len(shape) == 1 else self.axis
        if self.axis is None:
            self.axis = self._axis(good)
        bad = good // 2
        while good > upto and good - bad > 1:
            middle = (bad + good) // 2
            bad, good = (bad, middle) if self.value(middle) is not None else (middle, good)
        return good

    def _axis(self, least: int) -> int:
        """The one axis of the result that depends on the length."""
        before, further = self.shape(least), least
        while further < LONGEST:
            further *= 2
            try:
                now = self.shape(further)
            except Exception as error:
                if isinstance(error, (Endless, NoLength)):
                    raise
                break
            axes = [place for place, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]]
            if len(axes) > 1 or len(now) != len(before):
                raise ValueError(
                    f"{self.name}: axes {axes} of the result depend on {self.over} ({before}, {now}); "
                    "choose one with axis="
                )
            if axes:
                return axes[0]
        raise ValueError(f"{self.name}: {self.over} has no effect on the shape {before}; choose an axis with axis=")


def said(error: Exception | None) -> str:
    """The first line of an error, with its type."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".removesuffix(": ")


class NoLength(TypeError):
    """A result that has no length."""


class Endless(ValueError):
    """A call that was stopped."""


def _inputs(function: Callable[..., Any]) -> dict[str, Any]:
    """The array annotation of each parameter that has one and is not optional."""
    return {
        name: leaf
        for name, hint in annotations.hints_of(function).items()
        if name != "return" and type(None) not in annotations.typing.get_args(hint)
        for leaf in list(annotations.leaves(hint))[:1]
    }
