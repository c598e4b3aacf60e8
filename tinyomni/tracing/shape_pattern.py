"""Shapes in a specification: `"1, tokens, d_model"`, `"_, tokens, 64"`, `"..., 64"`, `"float32[1, tokens]"`.

Each axis is a formula, or `_` for any size; `...` stands for any number of axes. A dtype may stand before brackets,
with `*` for a part of it: `"int*[tokens]"`.
"""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tinyomni.tracing.formula import SpecError, evaluate, split
from tinyomni.tracing.records import Value

TYPED = re.compile(r"\s*([a-z][a-z0-9_*?]*)\s*\[(.*)\]\s*", re.DOTALL)
ANY, MANY = "_", "..."


@dataclass(frozen=True)
class ShapePattern:
    """One shape as it is written."""

    axes: tuple[str, ...]
    dtype: str = ""

    @classmethod
    def read(cls, text: str) -> "ShapePattern":
        """Raises SpecError for two `...`; formulas are read when they are evaluated."""
        typed = TYPED.fullmatch(text)
        axes = tuple(split(typed[2] if typed else text))
        if axes.count(MANY) > 1:
            raise SpecError(f"shape {text!r}: expected at most one '...'")
        return cls(axes, typed[1] if typed else "")

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
