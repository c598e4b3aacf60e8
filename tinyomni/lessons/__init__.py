"""What the lessons share: their style, the map of the model, diagrams, figures with descriptions, and sliders."""

from tinyomni.lessons.diagrams import DIAGRAMS
from tinyomni.lessons.map import draw_map
from tinyomni.lessons.show import apply_style, explore, show_figure, use_one_thread
from tinyomni.palette import AUDIO, IMAGE, LOOKS, MODEL, SPEECH, TEXT

__all__ = [
    "AUDIO", "DIAGRAMS", "IMAGE", "LOOKS", "MODEL", "SPEECH", "TEXT", "begin", "diagram", "explore", "show_figure",
]  # fmt: skip


def begin(lesson: int) -> None:
    """The course's style, one thread, and the map of the model: you are here."""
    apply_style()
    use_one_thread()
    show_figure(*draw_map(lesson))


def diagram(name: str) -> None:
    """Display one of `DIAGRAMS`. Raises ValueError for a name that is none."""
    if name not in DIAGRAMS:
        raise ValueError(f"diagram: expected one of {', '.join(DIAGRAMS)}, got {name!r}")
    show_figure(*DIAGRAMS[name]())
