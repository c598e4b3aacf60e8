"""The error for a tensor of the wrong shape: jaxtyping's own, and a `ValueError` too."""

import signal
import threading
import traceback

from jaxtyping import TypeCheckError


class ShapeError(TypeCheckError, ValueError):
    """A tensor whose axes, sizes or dtype differ from what the annotation or the function expects."""


PLAIN = (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ShapeError, TypeCheckError)


def explained(error: Exception, text: str) -> ShapeError | None:
    """A ShapeError that `except` catches wherever it would have caught `error`; None for an error with more to it than
    its text, which is better left as it is."""
    kind = type(error)
    if kind not in PLAIN:
        return None
    if issubclass(ShapeError, kind):
        return ShapeError(text)
    return type("ShapeError", (ShapeError, kind), {"__module__": __name__, "__reduce__": _reduce})(text)


def _reduce(error: ShapeError) -> tuple[type[ShapeError], tuple[object, ...]]:
    """For pickle, which knows no class that was made at run time."""
    return ShapeError, error.args


def is_of_a_signal(error: BaseException | None) -> bool:
    """Does it come from a handler that the program has set for a signal, such as a limit of time? Then it may arrive in
    the middle of anything, and is no fault of what it meets there."""
    if threading.current_thread() is not threading.main_thread():  # signals are handled there
        return False
    handlers = [each for each in map(signal.getsignal, signal.valid_signals()) if callable(each)]
    codes = {getattr(part, "__code__", None) for each in handlers for part in (each, getattr(each, "func", None))}
    while error is not None:
        if any(frame.f_code in codes - {None} for frame, _ in traceback.walk_tb(error.__traceback__)):
            return True
        error = error.__cause__
    return False
