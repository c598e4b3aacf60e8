"""How a trace hears of the calls that begin and end in its thread.

Python 3.12 and later tell of calls of Python functions through `sys.monitoring` (PEP 669), and can be told to be silent
about a function: those that are worth no record cost nothing after their first call. Python 3.11 has the profile
function alone (`sys.setprofile`): there is one, and it hears of all calls, also of those of C functions.
"""

import sys
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

monitoring: Any = getattr(sys, "monitoring", None)  # from Python 3.12
TOOLS = (3, 4)  # numbers that it leaves to anyone


@runtime_checkable  # so that beartype can be put on this package, too
class Open(Protocol):
    """A call that has not returned yet."""

    frame: types.FrameType


@dataclass(eq=False)
class Listener:
    """What is done at a call. None of these functions raises."""

    find: Callable[[types.FrameType], Any]  # what is known of a function, None if it is worth no record; asked once
    enter: Callable[[types.FrameType, Any], object]
    leave: Callable[[types.FrameType, Any], object]  # with the result, or with None where an exception ends the call
    elsewhere: Callable[[], object]  # a call in another thread is missed: it runs there
    stack: Sequence[Open]
    # by the id of the code, which is kept so that its id stays its own
    codes: dict[int, tuple[types.CodeType, Any]] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)  # the ids of those that are worth no record: nearly all

    def known(self, code: types.CodeType, frame: types.FrameType) -> tuple[types.CodeType, Any]:
        """A code met for the first time."""
        found = self.codes[id(code)] = (code, self.find(frame))
        if found[1] is None:
            self.passed.add(id(code))
        return found


def unseen_by_dynamo(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Neither this function nor what it calls is compiled, where torch.compile is at work around it."""
    dynamo = torch._C._dynamo.eval_frame
    skip = dynamo._FrameAction.SKIP  # type: ignore[attr-defined]
    dynamo.set_code_exec_strategy(callback.__code__, dynamo._FrameExecStrategy(skip, skip))  # type: ignore[attr-defined]
    return callback


class ProfileFunction:
    """Through `sys.setprofile`; another profile function is paused meanwhile.

    RuntimeError: a profiler runs that cannot be paused.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._before, self._before_threads = sys.getprofile(), threading.getprofile()
        if self._before is not None and not callable(self._before):
            kind = type(self._before).__name__
            raise RuntimeError(f"the profiler {kind} is running, and Python can run one at a time. Stop it first.")
        name = getattr(self._before, "__qualname__", self._before)
        self.note = f"the profile function {name!r} was paused meanwhile" if self._before is not None else ""

    def begin(self) -> None:
        """From now on."""
        self._function = unseen_by_dynamo(self._hook())
        threading.setprofile(self._other_thread)
        sys.setprofile(self._function)

    def is_lost(self) -> bool:
        """Was it taken away: by another profiler, or by Python, because an exception passed through it?"""
        return sys.getprofile() is not self._function

    def end(self) -> None:
        """As it was before; a profile function that the program has set meanwhile stays."""
        if sys.getprofile() in (self._function, None):
            sys.setprofile(self._before)
        threading.setprofile(self._before_threads)  # type: ignore[arg-type]

    def _hook(self) -> Callable[[types.FrameType, str, Any], None]:
        """The profile function; its names are local because it is called for every call of the run."""
        listener = self._listener
        codes, passed, stack, first = listener.codes, listener.passed, listener.stack, listener.known
        enter, leave = listener.enter, listener.leave

        def hook(frame: types.FrameType, event: str, arg: Any) -> None:
            if event == "call":
                code = frame.f_code
                if id(code) not in passed:
                    known = codes.get(id(code)) or first(code, frame)
                    if known[1] is not None:
                        enter(frame, known[1])
            elif event == "return" and stack and stack[-1].frame is frame:
                leave(frame, arg)

        return hook

    def _other_thread(self, frame: types.FrameType, event: str, arg: Any) -> None:
        """Runs in threads that are started meanwhile: notes that there was something to see, and steps aside."""
        listener, code = self._listener, frame.f_code
        if event == "call" and (listener.codes.get(id(code)) or listener.known(code, frame))[1] is not None:
            listener.elsewhere()
            sys.setprofile(None)


class Monitoring:
    """Through `sys.monitoring`: debuggers and profilers go on beside it."""

    note = ""

    def __init__(self, listener: Listener, tool: int) -> None:
        self._listener, self._tool = listener, tool

    def begin(self) -> None:
        """From now on."""
        events = monitoring.events
        monitoring.use_tool_id(self._tool, __package__)
        for event, callback in zip(
            (events.PY_START, events.PY_RETURN, events.PY_UNWIND), self._callbacks(), strict=True
        ):
            monitoring.register_callback(self._tool, event, unseen_by_dynamo(callback))
        monitoring.restart_events()  # an earlier trace may have silenced functions that are worth a record now
        monitoring.set_events(self._tool, events.PY_START | events.PY_RETURN | events.PY_UNWIND)

    def is_lost(self) -> bool:
        """Never: others have numbers of their own."""
        return False

    def end(self) -> None:
        """As it was before."""
        events = monitoring.events
        monitoring.set_events(self._tool, events.NO_EVENTS)
        for event in (events.PY_START, events.PY_RETURN, events.PY_UNWIND):
            monitoring.register_callback(self._tool, event, None)
        monitoring.free_tool_id(self._tool)

    def _callbacks(self) -> tuple[Callable[..., Any], ...]:
        """For a call, a return, and an exception that leaves a function: of all threads."""
        listener = self._listener
        codes, stack, first = listener.codes, listener.stack, listener.known
        enter, leave, elsewhere = listener.enter, listener.leave, listener.elsewhere
        frame_of, thread_of, thread = sys._getframe, threading.get_ident, threading.get_ident()
        silence = monitoring.DISABLE

        def start(code: types.CodeType, at: int) -> Any:
            known = codes.get(id(code)) or first(code, frame_of(1))
            if known[1] is None:
                return silence
            if thread_of() == thread:
                enter(frame_of(1), known[1])
            else:
                elsewhere()
            return None

        def end(code: types.CodeType, at: int, result: Any) -> Any:
            if stack and stack[-1].frame is frame_of(1):
                leave(frame_of(1), result)
                return None
            known = codes.get(id(code))
            return silence if known is not None and known[1] is None else None

        def unwind(code: types.CodeType, at: int, error: BaseException) -> None:
            if stack and stack[-1].frame is frame_of(1):
                leave(frame_of(1), None)

        return start, end, unwind


def watch(listener: Listener) -> ProfileFunction | Monitoring:
    """What this Python has."""
    free = [tool for tool in TOOLS if monitoring.get_tool(tool) is None] if monitoring is not None else []
    return Monitoring(listener, free[0]) if free else ProfileFunction(listener)
