"""Predict first: the learner writes the shape that they expect, and hears which axis is wrong, by name, and why.

    predict((2, 3, 5, 7), q, "batch heads tokens head_dim")

A wrong guess is no error: it gets words, not the answer, so that one can guess again.
"""

from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from tinyomni.glossary import AXES
from tinyomni.tracing import annotations


def named(tensor: Shaped[Tensor, "..."], axes: str) -> str:
    """`(batch 2, tokens 5)`: the shape with its names. Raises ValueError where the names do not fit the tensor."""
    hint = Shaped[Tensor, axes]
    if not isinstance(tensor, hint):
        raise ValueError(f"named: ({', '.join(axes.split())}) does not fit a tensor of shape {tuple(tensor.shape)}")
    return f"({', '.join(str(axis) for axis in annotations.axes(hint, tuple(tensor.shape)))})"


def predict(guess: Any, tensor: Shaped[Tensor, "..."], axes: str) -> None:
    """Print what the guess gets wrong. With None, or with ... in it, ask for a guess and give nothing away.

    `axes` names the tensor's axes, in order. Raises TypeError for a guess that is no tuple of whole numbers.
    """
    shape, names = named(tensor, axes), axes.split()
    sizes = list(guess) if isinstance(guess, (tuple, list)) else [guess]
    if any(size is None or size is ... for size in sizes):
        print(f"✎ Write your guess first, one whole number for each axis: ({', '.join(names)})")
        return
    if not isinstance(guess, (tuple, list)) or any(type(size) is not int for size in sizes):
        raise TypeError(f"predict: a guess is a tuple of whole numbers, such as (2, 5) or (5,); got {guess!r}")
    if wrong := mistakes(sizes, list(tensor.shape), names):
        print("\n".join(f"✘ {line}" for line in wrong))
    else:
        print(f"✔ {shape}")


def mistakes(guess: list[int], shape: list[int], names: list[str]) -> list[str]:
    """What is wrong with a guess, a line for each axis; nothing for a right one."""
    if len(guess) != len(shape):
        lost = [name for place, name in enumerate(names) if shape[:place] + shape[place + 1 :] == guess]
        why = f" You left out {meaning(lost[0])}." if lost else ""
        return [f"You wrote {count(len(guess))}, there are {len(shape)}: ({', '.join(names)}).{why}"]
    found = []
    for name, said, due in zip(names, guess, shape, strict=True):
        if said != due:
            others = dict.fromkeys(other for other, size in zip(names, shape, strict=True) if size == said)
            why = f" {said} is the size of {' and '.join(others)}." if others else ""
            found.append(f"{meaning(name)} is not {said} here.{why}")
    if found and sorted(guess) == sorted(shape):
        found.insert(0, f"The sizes are right, their order is not: ({', '.join(names)}).")
    return found


def meaning(name: str) -> str:
    """The glossary's sentence, without the size in brackets: that would be the answer."""
    return f"{name} ({AXES[name].split(' (')[0]})" if name in AXES else name


def count(axes: int) -> str:
    """`1 axis`, `3 axes`."""
    return f"{axes} {'axis' if axes == 1 else 'axes'}"
