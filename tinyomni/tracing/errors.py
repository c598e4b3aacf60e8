"""The error for a tensor of the wrong shape: jaxtyping's own, and a `ValueError` too."""

from jaxtyping import TypeCheckError


class ShapeError(TypeCheckError, ValueError):
    """A tensor whose axes, sizes or dtype differ from what the annotation or the function expects."""
