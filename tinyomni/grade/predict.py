"""Predict first: the learner writes the expected shape, and is told which axis is wrong, by name, and why.

    predict((2, 3, 5, 7), q, "batch heads tokens head_dim")

Behaviour is predicted the same way, by a letter or a number. The answer is measured, it is written nowhere:

    choose("b", {"a": "it rises", "b": "it falls"}, "a" if last > first else "b")
    estimate(0.5, measured, within=0.1)

A wrong guess is not an error: it gets hints, not the answer, so that one can guess again.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from tinyomni.glossary import AXES
from tinyomni.tracing import annotations


def named(tensor: Shaped[Tensor, "..."], axes: str) -> str:
    """`(batch 2, tokens 5)`: the shape with its axis names. Raises ValueError if the names do not fit the tensor."""
    hint = Shaped[Tensor, axes]
    if not isinstance(tensor, hint):
        raise ValueError(f"the axes ({', '.join(axes.split())}) do not fit a tensor of shape {tuple(tensor.shape)}")
    return f"({', '.join(str(axis) for axis in annotations.axes(hint, tuple(tensor.shape)))})"


def predict(guess: Any, tensor: Shaped[Tensor, "..."], axes: str) -> None:
    """Print what is wrong with the guess. With None, or with ... in it, ask for a guess and reveal nothing.

    `axes` names the tensor's axes, in order. Raises TypeError for a guess that is not a tuple of ints.
    """
    shape, names = named(tensor, axes), axes.split()
    sizes = list(guess) if isinstance(guess, (tuple, list)) else [guess]
    if any(size is None or size is ... for size in sizes):
        print(f"✎ Write your guess first, one int for each axis: ({', '.join(names)})")
        return
    if not isinstance(guess, (tuple, list)) or any(type(size) is not int for size in sizes):
        raise TypeError(f"predict: expected a tuple of ints, such as (2, 5) or (5,); got {guess!r}")
    if mistakes := find_mistakes(sizes, list(tensor.shape), names):
        print("\n".join(f"✘ {line}" for line in mistakes))
    else:
        print(f"✔ {shape}")


def choose(guess: Any, options: Mapping[str, str], answer: str) -> None:
    """Print whether the letter of an option is right. With None, print the options. Raises ValueError for no option."""
    if answer not in options:
        raise ValueError(f"choose: expected the answer to be one of {', '.join(options)}, got {answer!r}")
    if guess is None:
        listed = "\n".join(f"  {letter}  {text}" for letter, text in options.items())
        print(f"✎ Write the letter of your guess first:\n{listed}")
    elif guess not in options:
        raise ValueError(f"choose: expected one of {', '.join(options)}, got {guess!r}")
    elif guess == answer:
        print(f"✔ {options[answer]}")
    else:
        print(f"✘ Not {guess}: {options[guess]}. Guess again, or look what the next cells measure.")


def estimate(guess: Any, value: float, within: float) -> None:
    """Print whether a number lies near the measured one; a wrong one is told the direction. With None, ask for one."""
    if guess is None:
        print("✎ Write a number as your guess first")
    elif isinstance(guess, bool) or not isinstance(guess, (int, float)):
        raise TypeError(f"estimate: expected a number, got {guess!r}")
    elif abs(guess - value) <= within:
        print(f"✔ measured: {value:.4g}")
    else:
        print(f"✘ {guess} is too {'small' if guess < value else 'large'}.")


def find_mistakes(guess: list[int], shape: list[int], names: list[str]) -> list[str]:
    """What is wrong with a guess, a line for each axis; empty for a right one."""
    if len(guess) != len(shape):
        forgotten = [name for index, name in enumerate(names) if shape[:index] + shape[index + 1 :] == guess]
        hint = f" You forgot {explain_axis(forgotten[0])}." if forgotten else ""
        axes = f"{len(guess)} {'axis' if len(guess) == 1 else 'axes'}"
        return [f"You wrote {axes}, there are {len(shape)}: ({', '.join(names)}).{hint}"]
    mistakes = []
    for name, size, actual in zip(names, guess, shape, strict=True):
        if size != actual:
            others = dict.fromkeys(other for other, real in zip(names, shape, strict=True) if real == size)
            hint = f" {size} is the size of {' and '.join(others)}." if others else ""
            mistakes.append(f"{explain_axis(name)} is not {size} here.{hint}")
    if mistakes and sorted(guess) == sorted(shape):
        mistakes.insert(0, f"The sizes are right, the order of the axes is not: ({', '.join(names)}).")
    return mistakes


def explain_axis(name: str) -> str:
    """The glossary's sentence, without the size in brackets: that would be the answer."""
    return f"{name} ({AXES[name].split(' (')[0]})" if name in AXES else name
