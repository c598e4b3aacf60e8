"""Output to consoles of any encoding, and argparse choices that come from the library's registries."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

PLAIN = {"✔": "ok", "✘": "XX", "→": "->", "×": "x", "·": "-", "…": "..."}


def encodable(text: str, encoding: str) -> str:
    """The text with every character that this encoding lacks replaced, the frequent signs by a plain spelling."""
    for sign, plain in PLAIN.items():
        try:
            sign.encode(encoding)
        except UnicodeEncodeError:
            text = text.replace(sign, plain)
    return text.encode(encoding, errors="replace").decode(encoding)


def stream(text: str, file: TextIO | None = None) -> None:
    """Print a piece of a line at once."""
    file = file or sys.stdout
    file.write(encodable(text, file.encoding or "ascii"))
    file.flush()


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line at once."""
    stream(f"{text}\n", file)


class Choices:
    """The choices of an option, read from a registry when an argument is checked or help is printed, not before.

    The registries live in modules that import torch; `tinyomni --help` stays fast because it asks none of them.
    """

    def __init__(self, load: Callable[[], Iterable[str]]) -> None:
        self.load = load

    def __iter__(self) -> Iterator[str]:
        return iter(self.load())

    def __contains__(self, value: object) -> bool:
        return value in tuple(self)
