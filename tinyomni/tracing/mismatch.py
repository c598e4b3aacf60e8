"""Why a tensor does not fit its annotation: expected, got, what the axis means, a likely fix.

Only sizes and dtypes are read, never values.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tinyomni.tracing import annotations, tensors
from tinyomni.tracing.annotations import Word
from tinyomni.tracing.formula import SpecError, evaluate
from tinyomni.tracing.tensors import Size, TensorInfo
from tinyomni.tracing.values import describe

Bound = tuple[str, Any, TensorInfo]
"""An annotated tensor of a call: its path such as `past.0.key`, its annotation, and what is known of it."""


@dataclass(frozen=True)
class Context:
    """What the run so far can tell about names and modules."""

    usual: Mapping[str, Counter[Size]] = dataclasses.field(default_factory=dict)  # axis → sizes in calls that fitted
    modules: Sequence[tuple[nn.Module, str]] = ()  # with their paths
    glossary: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def axis(self, name: str) -> str:
        """`d_model (width of each token)`."""
        return f"{name} ({self.glossary[name]})" if name in self.glossary else name

    def path(self, module: nn.Module) -> str:
        """Where a module is in its model."""
        return next((path for each, path in self.modules if each is module), "")

    def layer(self, got: Size, expected: Size) -> str:
        """The linear layers that would turn one width into the other."""
        found = [
            path or type(module).__name__
            for module, path in self.modules
            if isinstance(module, nn.Linear) and (module.in_features, module.out_features) == (got, expected)
        ]
        # more than two are layers inside a model's blocks: no hint at all
        return f"Did it go through `{'` or `'.join(found)}` ({got} → {expected})?" if 0 < len(found) <= 2 else ""


NOTHING = Context()


@dataclass(frozen=True)
class Mismatch:
    """One value that is not what its annotation says, as data; `str()` of it is the sentence for a person."""

    call: str
    argument: str  # its path, such as `x` or `past.0.key`; `return` for the result
    annotation: str  # `(batch, tokens, d_model) Float`
    value: str  # `(2, 5, 4) float32`
    kind: str = "type"  # type, dims, dtype or size
    axis: str = ""  # the name of the axis whose size is wrong; where it has none, its formula or number
    expected: Size | None = None
    got: Size | None = None
    source: str = ""  # the argument that gave the axis its size
    meaning: str = ""  # of the axis, from the glossary
    fix: str = ""

    @property
    def detail(self) -> str:
        """`d_model must be 16 as in `text`, got 8`."""
        match self.kind:
            case "dims":
                return f"expected {self.expected} dim{'s' * (self.expected != 1)}, got {self.got}"
            case "dtype":
                return f"expected dtype {self.expected}, got {self.got}"
            case "size":
                label = f"{self.axis} ({self.meaning})" if self.meaning else self.axis
                return f"{label} must be {self.expected}{f' as in `{self.source}`' * bool(self.source)}, got {self.got}"
        return ""

    def __str__(self) -> str:
        what = "the result" if self.argument == "return" else f"`{self.argument}`"
        text = f"{self.call}: expected {what} {self.annotation}, got {self.value}"
        return f"{text}{f': {self.detail}' if self.detail else ''}.{f' {self.fix}' if self.fix else ''}"


def shown(name: str, value: Any) -> str:
    """`(2, 5, 4) float32`, or the type of what is no tensor."""
    if value is None:
        return "None"
    found = [f"{each} {each.dtype}".strip() for each in itertools.islice(describe(name, value), 4)]
    return ", ".join(found) or type(value).__name__


def explain(
    call: str, name: str, value: Any, bound: Iterable[Bound], hints: Mapping[str, Any], context: Context = NOTHING
) -> Mismatch:
    """Why the argument `name` (or `return`) does not fit. `bound`: all annotated tensors of the call, in order.

    Where two arguments contradict each other, the one whose size the run has not met under that name is to blame.
    """
    bound = list(bound)
    sizes: dict[str, tuple[Size, str]] = {}
    for path, leaf, tensor in bound:
        found = difference(call, path, leaf, tensor, sizes, context)
        if found is None:
            continue
        if other := elsewhere(path, leaf, tensor, bound, hints):
            found = dataclasses.replace(found, fix=f"Is it meant for `{other}=`?")
        return blame(found, bound, sizes, context)
    return Mismatch(call, name, annotations.show(hints[name]), shown(name, value))


def blame(found: Mismatch, bound: list[Bound], sizes: Mapping[str, tuple[Size, str]], context: Context) -> Mismatch:
    """Of two arguments that contradict each other, the one that is unusual."""
    if not found.source or not context.usual.get(found.axis):
        return found
    usual = context.usual[found.axis].most_common(1)[0][0]
    size, first = sizes[found.axis]
    if size == usual or found.got != usual or first == found.argument or found.argument == "return":
        return found
    leaf, tensor = next((leaf, tensor) for path, leaf, tensor in bound if path == first)
    return dataclasses.replace(
        found,
        argument=first,
        annotation=annotations.show(leaf),
        value=tensors.show(tensor),
        expected=usual,
        got=size,
        source=found.argument,
        fix=context.layer(size, usual) or found.fix,
    )


def elsewhere(path: str, leaf: Any, value: TensorInfo, bound: Sequence[Bound], hints: Mapping[str, Any]) -> str:
    """Another argument, not given, that takes a tensor of this dtype and this many dims, where this one does not."""
    if annotations.has_dtype(value, leaf):
        return ""
    given = {other.partition(".")[0] for other, _, _ in bound}
    for other, hint in hints.items():
        if other not in given and other != "return":
            for each in annotations.leaves(hint):
                if annotations.has_dtype(value, each) and len(annotations.words(each.dim_str)) == value.ndim:
                    return other
    return ""


def difference(
    call: str, path: str, leaf: Any, value: TensorInfo, sizes: dict[str, tuple[Size, str]], context: Context
) -> Mismatch | None:
    """What is wrong with one tensor, and the likely fix; None if it fits. Names found are added to `sizes`."""
    words = annotations.words(leaf.dim_str)
    spread = annotations.spread(leaf, value.ndim)
    found = Mismatch(call, path, annotations.show(leaf), tensors.show(value))
    if len(spread) != value.ndim or (value.ndim == 0 and not all(word.many for word in words)):
        fix = dims_fix(path, value, words, sizes)
        return dataclasses.replace(found, kind="dims", expected=len(words), got=value.ndim, fix=fix)
    if not annotations.has_dtype(value, leaf):
        got = tensors.dtype_name(value.dtype)
        fix = dtype_fix(path, leaf.dtype.__name__)
        return dataclasses.replace(found, kind="dtype", expected=leaf.dtype.__name__, got=got, fix=fix)
    before = dict(sizes)  # what other tensors have said
    for place, (word, size) in enumerate(zip(spread, value.shape, strict=True)):
        expected = expected_size(word, sizes)
        if expected is not None and size != expected and not (word.broadcast and size == 1):
            return dataclasses.replace(
                found,
                kind="size",
                axis=word.name or word.formula or f"axis {place}",
                expected=expected,
                got=size,
                source=sizes[word.name][1] if word.name in sizes else "",
                meaning=context.glossary.get(word.name, ""),
                fix=size_fix(path, value, spread, place, expected, before, context),
            )
        if word.name and expected is None and not word.many and not (word.broadcast and size == 1):
            sizes[word.name] = (size, path)
    return None


def expected_size(word: Word, sizes: Mapping[str, tuple[Size, str]]) -> Size | None:
    """The size that an axis must have, where that is known."""
    if word.fixed is not None or word.many:
        return word.fixed
    if word.name:
        return sizes[word.name][0] if word.name in sizes else None
    known = {name: size for name, (size, _) in sizes.items() if isinstance(size, int)}
    try:
        return evaluate(word.formula, known) if word.formula else None
    except SpecError:  # a formula of names that are not known yet
        return None


# ---- fixes ----------------------------------------------------------------------------------------------------------


def dims_fix(path: str, value: TensorInfo, words: tuple[Word, ...], sizes: Mapping[str, tuple[Size, str]]) -> str:
    """Too few or too many dims."""
    expected = [expected_size(word, sizes) for word in words]
    shape = list(value.shape)

    def fit(sizes_: list[Size]) -> bool:
        return len(sizes_) == len(expected) and all(e in (None, s) for e, s in zip(expected, sizes_, strict=True))

    if len(shape) == len(words) - 1:
        for place in range(len(words)):
            if expected[place] in (None, 1) and fit([*shape[:place], 1, *shape[place:]]):
                missing = f"Is the {words[place].name} axis missing? " if words[place].name else ""
                return f"{missing}`{path}.unsqueeze({place})`"
    if len(shape) == len(words) + 1:
        places = [place for place in range(len(shape)) if fit([*shape[:place], *shape[place + 1 :]])]
        if ones := [place for place in places if shape[place] == 1]:
            return f"`{path}.squeeze({-1 if ones[-1] == len(shape) - 1 else ones[-1]})`"
        if 0 in places and (len(places) == 1 or any(size is not None for size in expected)):
            return f"One at a time: `{path}[0]`"
    return ""


TO_DTYPE = {"Int": "long", "Float": "float", "Bool": "bool", "Integer": "long", "Floating": "float", "Int64": "long",
            "Int32": "int", "Int16": "short", "Int8": "char", "Float32": "float", "Float64": "double",
            "Float16": "half", "BFloat16": "bfloat16"}  # fmt: skip


def dtype_fix(path: str, kind: str) -> str:
    """Integers where floats are expected, or the other way round."""
    return f"`{path}.{TO_DTYPE[kind]}()`" if kind in TO_DTYPE else ""


def size_fix(
    path: str,
    value: TensorInfo,
    words: tuple[Word, ...],
    place: int,
    expected: Size,
    sizes: Mapping[str, tuple[Size, str]],
    context: Context,
) -> str:
    """What people have usually done when one size is wrong."""
    wanted = [expected_size(word, sizes) for word in words]
    if value.ndim <= 5:
        orders = [
            order
            for order in itertools.permutations(range(value.ndim))
            if all(want in (None, value.shape[axis]) for axis, want in zip(order, wanted, strict=True))
        ]
        moved = sorted(orders, key=lambda order: sum(a != b for a, b in enumerate(order)))
        if moved:
            swapped = [axis for axis, old in enumerate(moved[0]) if axis != old]
            call = f"transpose({swapped[0]}, {swapped[1]})" if len(swapped) == 2 else f"permute{moved[0]}"
            return f"Are the axes in another order? `{path}.{call}`"
    got = value.shape[place]
    if layer := context.layer(got, expected):
        return layer
    if not isinstance(got, int) or not isinstance(expected, int):
        return ""
    if joined := joined_along(value.shape, wanted):
        return f"Was it joined along the wrong axis? `torch.cat(…, dim={joined[1]})`, not {joined[0]}"
    if abs(got - expected) == 1:
        more = "many" if got > expected else "few"
        if not is_sequence(words[place].name or words[place].formula):
            return f"One too {more}."
        if got > expected:
            return "One too many: a BOS or CLS token, a start frame, or the last frame of a centred STFT?"
        return "One too few: was BOS, CLS or the start frame left out, or the sequence shifted?"
    return ""


SEQUENCE = {"token", "frame", "position", "patch", "patche", "length", "len", "seq", "sequence", "time", "step", "word",
            "key", "query", "querie", "character", "sample", "t", "l"}  # fmt: skip


def is_sequence(name: str) -> bool:
    """Is this an axis that a BOS or CLS token makes longer? A width is none."""
    return any(word.removesuffix("s") in SEQUENCE for word in re.split(r"[\W\d_]+", name.lower()))


def joined_along(shape: Sequence[Size], wanted: Sequence[Size | None]) -> tuple[int, int] | None:
    """(axis, right axis) of a tensor that looks as if its parts were joined along the wrong one."""
    wrong = [axis for axis, (got, want) in enumerate(zip(shape, wanted, strict=True)) if want not in (None, got)]
    if len(wrong) != 2:
        return None
    for grown, short in (wrong, wrong[::-1]):
        sizes = (shape[grown], wanted[grown], shape[short], wanted[short])
        if all(isinstance(size, int) for size in sizes):
            a, b, c, d = (int(size) for size in sizes if size is not None)
            if b and a > b and a % b == 0 and c < d:
                return grown, short
    return None
