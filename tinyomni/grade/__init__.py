"""What a learner does, and what the course says to it: `from tinyomni.grade import check, swap`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Loaded when they are first used: `predict` needs none of it."""
    if name == "check":
        from tinyomni.grade.catalogue import check

        return check
    if name == "swap":
        from tinyomni.grade.swapping import swap

        return swap
    raise AttributeError(f"module 'tinyomni.grade' has no attribute {name!r}")
