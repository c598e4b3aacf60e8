"""Why a tensor does not fit its annotation: expected, got, what the axis means, a likely fix.

Only sizes and dtypes are read, never values.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from tinyomni.tracing import annotations, tensors
from tinyomni.tracing.annotations import Word
from tinyomni.tracing.formula import SpecError, evaluate
from tinyomni.tracing.records import Record
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
    steps: Sequence[Record] = ()
    maker: Callable[[Tensor], Record | None] = lambda tensor: None  # the call that made a tensor
    joined: "Joined | None" = None  # how what a failing call was given had been put together

    def axis(self, name: str) -> str:
        """`d_model (width of each token)`."""
        return f"{name} ({self.glossary[name]})" if name in self.glossary else name

    def path(self, module: nn.Module) -> str:
        """Where a module is in its model."""
        return next((path for each, path in self.modules if each is module), "")

    def layer(self, got: Size, expected: Size, beside: str = "") -> str:
        """The linear layers that would turn one width into the other: those beside a module, if there are some."""
        found = [
            path or type(module).__name__
            for module, path in self.modules
            if isinstance(module, nn.Linear) and (module.in_features, module.out_features) == (got, expected)
        ]
        parent = beside.rpartition(".")[0]
        found = [path for path in found if parent and path.rpartition(".")[0] == parent] or found
        # more than two are layers inside a model's blocks: no hint at all
        return f"Did it go through `{'` or `'.join(found)}` ({got} → {expected})?" if 0 < len(found) <= 2 else ""


NOTHING = Context()


class Joined(NamedTuple):
    """`torch.cat([a, b], dim=1)` as it is written."""

    how: str  # cat or stack
    parts: int
    dim: int


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
        if found.kind == "dims":
            others = dict(sizes)  # what the arguments behind it say counts, too
            for each in bound:
                if each[0] != path:
                    difference(call, *each, others, context)
            parts = annotations.words(leaf.dim_str)
            fix = dims_fix(path, tensor, parts, others) or dims_fix(path, tensor, parts, sizes)
            found = dataclasses.replace(found, fix=fix)
        found = blame(found, bound, sizes, context)
        path, leaf, tensor = next(each for each in bound if each[0] == found.argument)
        if other := exchanged(path, leaf, tensor, bound, sizes):
            found = dataclasses.replace(found, fix=f"Are `{path}` and `{other}` exchanged?")
        if other := elsewhere(path, leaf, tensor, bound, hints):
            found = dataclasses.replace(found, fix=f"Is it meant for `{other}=`?")
        return found
    return Mismatch(call, name, annotations.show(hints[name]), shown(name, value))


def blame(found: Mismatch, bound: list[Bound], sizes: Mapping[str, tuple[Size, str]], context: Context) -> Mismatch:
    """Of two arguments that contradict each other, the one that is unusual."""
    if not found.source or not context.usual.get(found.axis):
        return found
    usual = context.usual[found.axis].most_common(1)[0][0]
    size, first = sizes[found.axis]
    if size == usual or found.got != usual or first == found.argument or found.argument.partition(".")[0] == "return":
        return found
    each = next(each for each in bound if each[0] == first)
    return difference(found.call, *each, {found.axis: (usual, found.argument)}, context) or found


def exchanged(
    path: str, leaf: Any, value: TensorInfo, bound: Sequence[Bound], sizes: Mapping[str, tuple[Size, str]]
) -> str:
    """Another part of the same tuple, or another argument, that would fit here, as this one would fit there."""
    group = path.rpartition(".")[0]

    def fits(leaf: Any, value: TensorInfo) -> bool:
        spread = annotations.spread(leaf, value.ndim)
        wanted = [expected_size(word, known) for word in spread]
        return (
            len(spread) == value.ndim
            and annotations.has_dtype(value, leaf)
            and any(want is not None for want in wanted)
            and all(want in (None, size) for want, size in zip(wanted, value.shape, strict=True))
        )

    for other, other_leaf, other_value in bound:
        if other == path or other.rpartition(".")[0] != group or other_leaf.dim_str == leaf.dim_str:
            continue
        known = {name: each for name, each in sizes.items() if each[1] not in (path, other)}
        if fits(leaf, other_value) and fits(other_leaf, value) and not fits(leaf, value):
            return other
    return ""


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
    if (many := _many(words)) and (told := _variadic(found, path, value, many, words, sizes)):
        return told
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


def _many(words: Sequence[Word]) -> str:
    """`*batch`, the name of several axes."""
    return next((f"*{word.name}" for word in words if word.many and word.name), "")


def _variadic(
    found: Mismatch, path: str, value: TensorInfo, name: str, words: Sequence[Word], sizes: dict[str, tuple[Any, str]]
) -> Mismatch | None:
    """Several axes of one name that are not those of another tensor. The others are judged one by one."""
    place = next(at for at, word in enumerate(words) if word.many)
    end = value.ndim - (len(words) - place - 1)
    got = value.shape[place:end]
    expected, source = sizes.setdefault(name, (got, path))
    broadcast = words[place].broadcast
    if broadcast or got == expected or len(words) - 1 + len(expected) != value.ndim:
        return None
    rest = [expected_size(word, sizes) for word in words]
    wanted = [*rest[:place], *expected, *rest[place + 1 :]]
    order = _order(path, value, wanted)
    sides = [f"({', '.join(map(str, each))})" for each in (expected, got)]
    return dataclasses.replace(found, kind="size", axis=name, expected=sides[0], got=sides[1], source=source, fix=order)


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
        if told := _lost(path, shape, words, expected):
            return told
        for place in range(len(words)):
            if expected[place] in (None, 1) and fit([*shape[:place], 1, *shape[place:]]):
                if place == 0 and shape and expected[0] == shape[0] == 1 and len(words) > 2:
                    continue  # a batch of one is there already
                missing = f"Is the {words[place].name} axis missing? " if words[place].name else ""
                return f"{missing}`{path}.unsqueeze({place})`"
    if len(shape) == len(words) + 1:
        for place in range(len(words)):
            a, b = shape[place : place + 2]
            if not isinstance(a, int) or not isinstance(b, int) or 1 in (a, b):
                continue
            if expected[place] == a * b and fit([*shape[:place], a * b, *shape[place + 2 :]]):
                return f"{a} × {b} = {a * b}: `{path}.flatten({place}, {place + 1})`?"
        places = [place for place in range(len(shape)) if fit([*shape[:place], *shape[place + 1 :]])]
        if ones := [place for place in places if shape[place] == 1]:
            return f"`{path}.squeeze({-1 if ones[-1] == len(shape) - 1 else ones[-1]})`"
        if 0 in places and (len(places) == 1 or any(size is not None for size in expected)):
            return f"One at a time: `{path}[0]`"
    return ""


def _lost(path: str, shape: Sequence[Size], words: Sequence[Word], expected: Sequence[Size | None]) -> str:
    """One axis too few: two of them are one, or one was averaged away."""
    rest = list(shape)
    for place in range(len(words) - 1):
        a, b, joined = expected[place], expected[place + 1], rest[place]
        around = [*zip(rest[:place], expected[:place], strict=True),
                  *zip(rest[place + 1 :], expected[place + 2 :], strict=True)]  # fmt: skip
        if not all(want in (None, size) for size, want in around) or not isinstance(joined, int):
            continue
        one, other = words[place].name or f"axis {place}", words[place + 1].name or f"axis {place + 1}"
        if a is None and isinstance(b, int) and b > 1 and joined % b == 0 and joined > b:
            a = joined // b
        if isinstance(a, int) and isinstance(b, int) and a * b == joined:
            how = "joined with `cat`, not `stack`, or flattened?"
            return f"{joined} = {one} {a} × {other} {b}: {how} `{path}.unflatten({place}, ({a}, {b}))`"
    for place, (word, size) in enumerate(zip(words, expected, strict=True)):
        left = [want for at, want in enumerate(expected) if at != place]
        if path.startswith("return") and size not in (None, 1) and left == rest:
            return f"The {word.name or word.formula} axis ({size}) is gone: an index, a mean or a sum over it?"
    unknown = [at for at in range(len(words) - 1) if expected[at] is None and expected[at + 1] is None]
    start = [want in (None, got) for got, want in zip(rest, expected, strict=False)]
    if unknown and all(start) and expected[0] is not None:
        names = " and ".join(words[at].name or f"axis {at}" for at in (unknown[-1], unknown[-1] + 1))
        return f"Were {names} flattened into one axis, {rest[unknown[-1]]}?"
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
    if order := _order(path, value, wanted):
        return order
    got = value.shape[place]
    if layer := context.layer(got, expected):
        return layer
    if not isinstance(got, int) or not isinstance(expected, int):
        return ""
    if joined := joined_along(value.shape, wanted):
        return f"Was it joined along the wrong axis? `torch.cat(…, dim={joined[1]})`, not {joined[0]}"
    if got == 1 and expected > 2 and is_sequence(words[place].name or words[place].formula):
        return f"Only one of {expected}: was it sliced, such as `[:, -1:]`, or averaged?"
    if "//" in words[place].formula and got >= 1.5 * expected:
        return f"{words[place].formula} is a division: was a stride, pooling or slice left out?"
    if abs(got - expected) == 1:
        more = "many" if got > expected else "few"
        if not is_sequence(words[place].name or words[place].formula):
            return f"One too {more}."
        if got > expected:
            return "One too many: a BOS or CLS token, a start frame, or the last frame of a centred STFT?"
        return "One too few: was BOS, CLS or the start frame left out, or the sequence shifted?"
    return ""


def _order(path: str, value: TensorInfo, wanted: Sequence[Size | None]) -> str:
    """The axes in another order."""
    orders = [
        order
        for order in itertools.permutations(range(value.ndim if value.ndim <= 5 else 0))
        if all(want in (None, value.shape[axis]) for axis, want in zip(order, wanted, strict=False))
    ]
    moved = min(orders, key=lambda order: sum(a != b for a, b in enumerate(order)), default=())
    swapped = [axis for axis, old in enumerate(moved) if axis != old]
    if not swapped:
        return ""
    call = f"transpose({swapped[0]}, {swapped[1]})" if len(swapped) == 2 else f"permute{moved}"
    return f"Are the axes in another order? `{path}.{call}`"


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
