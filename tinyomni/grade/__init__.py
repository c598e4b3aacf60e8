"""What a learner does, and what the course says to it: `from tinyomni.grade import check, swap`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Imported on first use: `predict`, which every lesson starts with, needs none of the exercises."""
    if name == "check":
        from tinyomni.grade.checker import check

        return check
    if name == "swap":
        from tinyomni.grade.swapping import swap

        return swap
    if name == "milestone":
        from tinyomni.grade.milestones import milestone

        return milestone
    if name == "quiz":
        from tinyomni.grade.self_test import quiz

        return quiz
    raise AttributeError(f"module 'tinyomni.grade' has no attribute {name!r}")
