"""The error for a tensor of the wrong shape: jaxtyping's own, and a `ValueError` too."""

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
