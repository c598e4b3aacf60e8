"""Shapes in a specification: `"1, tokens, d_model"`, `"_, tokens, 64"`, `"..., 64"`, `"float32[1, tokens]"`.

Each axis is a formula, or `_` for any size; `...` stands for any number of axes. A dtype may stand before brackets,
with `*` for a part of it: `"int*[tokens]"`.
"""

import difflib
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tinyomni.tracing.formula import SpecError, evaluate, split
from tinyomni.tracing.records import Value

TYPED = re.compile(r"\s*([a-z][a-z0-9_*?]*)\s*\[(.*)\]\s*", re.DOTALL)
ANY, MANY = "_", "..."
DTYPES = sorted({str(each).removeprefix("torch.") for each in vars(torch).values() if isinstance(each, torch.dtype)})


@dataclass(frozen=True)
class ShapePattern:
    """One shape as it is written."""

    axes: tuple[str, ...]
    dtype: str = ""

    @classmethod
    def read(cls, text: str) -> "ShapePattern":
        """Raises SpecError for two `...`, wrong commas, an unknown dtype; formulas are read when they are evaluated."""
        typed = TYPED.fullmatch(text)
        inner, dtype = (typed[2], typed[1]) if typed else (text, "")
        axes = tuple(split(inner))
        if axes.count(MANY) > 1:
            raise SpecError(f"shape {text!r}: expected at most one '...'")
        if re.search(r"(^|,)\s*,", inner):
            raise SpecError(f"shape {text!r}: expected an axis before each comma")
        for axis in axes:
            if re.search(r"\w\s+\w", axis):
                raise SpecError(f"shape {text!r}: expected commas between the axes, got {axis!r}")
        if dtype and not fnmatch.filter(DTYPES, dtype):
            near = difflib.get_close_matches(dtype, DTYPES, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise SpecError(f"shape {text!r}: unknown dtype {dtype!r}{meant}")
        return cls(axes, dtype)

    @property
    def formulas(self) -> list[str]:
        """The axes that have a formula."""
        return [axis for axis in self.axes if axis not in (ANY, MANY)]

    def show(self, names: Mapping[str, int]) -> str:
        """`float32 (1, _, 64)`, with the sizes filled in."""
        sizes = [axis if axis in (ANY, MANY) else str(evaluate(axis, names)) for axis in self.axes]
        comma = "," if len(sizes) == 1 else ""
        return f"{self.dtype} ({', '.join(sizes)}{comma})".strip()

    def matches(self, value: Value, names: Mapping[str, int]) -> bool:
        """Is this the shape of a tensor?"""
        if not value.dtype or (self.dtype and not fnmatch.fnmatchcase(value.dtype, self.dtype)):
            return False
        expected, got = list(self.axes), list(value.shape)
        if MANY in expected:
            place, more = expected.index(MANY), len(got) - len(expected) + 1
            if more < 0:
                return False
            expected[place : place + 1] = [ANY] * more
        return len(expected) == len(got) and all(
            axis == ANY or evaluate(axis, names) == size for axis, size in zip(expected, got, strict=True)
        )

    def describe(self, value: Value) -> str:
        """What is there instead; with the dtype where that is asked for."""
        return f"{value.dtype} {value}" if self.dtype and value.dtype else str(value)
