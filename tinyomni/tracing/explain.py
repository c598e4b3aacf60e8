"""Why a shape does not fit, in words: expected, came, what the axis means, where the tensor came from, a likely fix.

Only sizes and dtypes are read, never values.
"""

import ast
import itertools
import linecache
import math
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinyomni.glossary import AXES
from tinyomni.tracing import annotations
from tinyomni.tracing.annotations import Word
from tinyomni.tracing.formula import SpecError, evaluate
from tinyomni.tracing.records import describe, file_of


class Known(NamedTuple):
    """What the run so far can tell about names, tensors and modules."""

    usual: Mapping[str, Counter[int]] = types.MappingProxyType({})  # axis name → sizes seen in calls that were right
    modules: Mapping[Any, str] = types.MappingProxyType({})  # module → its path
    glossary: Mapping[str, str] = types.MappingProxyType(AXES)

    def axis(self, name: str) -> str:
        """`d_model (width of the Thinker (256))`."""
        return f"{name} ({self.glossary[name]})" if name in self.glossary else name

    def layer(self, came: int, due: int) -> str:
        """The linear layers that would turn one width into the other."""
        found = [
            path or type(module).__name__
            for module, path in self.modules.items()
            if isinstance(module, nn.Linear) and (module.in_features, module.out_features) == (came, due)
        ]
        # more than two are layers inside a model's blocks: no hint at all
        return f"Did it go through `{'` or `'.join(found)}` ({came} → {due})?" if 0 < len(found) <= 2 else ""


NOTHING = Known()


def came(name: str, value: Any) -> str:
    """`(2, 5, 4) float32`, or the type of what is no tensor."""
    found = list(describe(name, value))
    return ", ".join(f"{each} {each.dtype}".strip() for each in found) or type(value).__name__


def misfit(
    call: str, name: str, values: Mapping[str, Any], hints: Mapping[str, Any], known: Known = NOTHING
) -> tuple[str, str]:
    """The value that is wrong, and why: `(name, text)`. `values` are the arguments in order, then perhaps `return`.

    Where two arguments contradict each other, the one whose size the run has not met under that name is to blame.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for other, value in values.items():
        for leaf, tensor in pairs(value, hints.get(other)):
            due, fix = difference(other, tensor, leaf, sizes, known)
            if not due:
                continue
            if meant := elsewhere(other, tensor, leaf, values, hints):
                fix = f"Is it meant for `{meant}=`?"
            axis = next((word for word in sizes if due.startswith(f"{known.axis(word)} is ")), None)
            blamed = other
            if axis is not None and known.usual.get(axis):
                usual = known.usual[axis].most_common(1)[0][0]
                size, first = sizes[axis]
                if size != usual and usual in tensor.shape and first != other:
                    blamed = first
                    due = f"{known.axis(axis)} is {usual} in the calls before and in `{other}`, {size} in `{first}`"
                    fix = known.layer(size, usual) or fix
            return blamed, f"{expected(call, blamed, values, hints)} {due}.{' ' + fix if fix else ''}"
    return name, expected(call, name, values, hints)


def expected(call: str, name: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> str:
    """The first sentence: what was due, and what came."""
    what = "the result" if name == "return" else name
    return f"{call}: {what} should be {annotations.show(hints[name])}; got {came(name, values[name])}."


def elsewhere(name: str, value: Tensor, leaf: Any, values: Mapping[str, Any], hints: Mapping[str, Any]) -> str:
    """Another argument, not given, that takes a tensor of this dtype and this many axes, where `name` does not."""
    if isinstance(value, leaf.dtype[leaf.array_type, "..."]):
        return ""
    for other, hint in hints.items():
        if other not in (name, "return") and values.get(other) is None:
            for each in annotations.leaves(hint):
                kind = isinstance(value, each.dtype[each.array_type, "..."])
                if kind and len(annotations.words(each.dim_str)) == value.ndim:
                    return other
    return ""


def pairs(value: Any, hint: Any) -> Iterable[tuple[Any, Any]]:
    """Every tensor inside a value with its annotation; a value that is no tensor where one is due counts too."""
    if hint is None or not any(annotations.leaves(hint)):
        return
    if isinstance(value, (tuple, list, Mapping)) and not annotations.is_array(hint):
        items = value.values() if isinstance(value, Mapping) else value
        for item, part in zip(items, annotations.parts(hint, value), strict=True):
            yield from pairs(item, part)
    elif isinstance(value, Tensor):
        yield annotations.choose(hint, value), value


def difference(name: str, value: Tensor, leaf: Any, sizes: dict[str, tuple[int, str]], known: Known) -> tuple[str, str]:
    """What is wrong with one tensor, and the likely fix; ("", "") if it fits. Names found are added to `sizes`."""
    words = annotations.words(leaf.dim_str)
    spread = annotations.spread(leaf, value.ndim)
    if len(spread) != value.ndim or (value.ndim == 0 and not all(word.many for word in words)):
        return count_of_axes(name, value, words, sizes)
    if not isinstance(value, leaf.dtype[leaf.array_type, "..."]):
        return wrong_dtype(name, value, leaf)
    before = dict(sizes)  # what other tensors have said
    for place, (word, size) in enumerate(zip(spread, value.shape, strict=True)):
        due = size_due(word, sizes)
        if due is not None and size != due and not (word.loose and size == 1):
            told = f" in `{sizes[word.name][1]}`" if word.name in sizes else ""
            label = known.axis(word.name) if word.name else f"axis {place}" if not word.formula else word.formula
            return f"{label} is {due}{told or ' here'}, {size} came", size_fix(
                name, value, spread, place, due, before, known
            )
        if word.name and due is None and not word.many and not (word.loose and size == 1):
            sizes[word.name] = (size, name)
    return "", ""


def size_due(word: Word, sizes: Mapping[str, tuple[int, str]]) -> int | None:
    """The size that an axis must have, where that is known."""
    if word.fixed is not None or word.many:
        return word.fixed
    if word.name:
        return sizes[word.name][0] if word.name in sizes else None
    try:
        return evaluate(word.formula, {name: size for name, (size, _) in sizes.items()}) if word.formula else None
    except SpecError:  # a formula of names that are not known yet
        return None


def count_of_axes(
    name: str, value: Tensor, words: tuple[Word, ...], sizes: Mapping[str, tuple[int, str]]
) -> tuple[str, str]:
    """Too few or too many axes."""
    due = [size_due(word, sizes) for word in words]
    shape = list(value.shape)
    axes = "axis" if len(shape) == 1 else "axes"
    text = f"{len(shape)} {axes} came, {len(words)} expected"

    def fit(sizes_: list[int]) -> bool:
        return len(sizes_) == len(due) and all(d is None or d == s for d, s in zip(due, sizes_, strict=True))

    if len(shape) == len(words) - 1:
        for place in range(len(words)):
            if due[place] in (None, 1) and fit([*shape[:place], 1, *shape[place:]]):
                missing = f"Is the {words[place].name} axis missing? " if words[place].name else ""
                return text, f"{missing}`{name}.unsqueeze({place})`"
    if len(shape) == len(words) + 1:
        for place in range(len(shape)):
            if fit([*shape[:place], *shape[place + 1 :]]):
                return text, f"`{name}.squeeze({place})`" if shape[place] == 1 else f"One at a time: `{name}[0]`"
    return text, ""


def wrong_dtype(name: str, value: Tensor, leaf: Any) -> tuple[str, str]:
    """Whole numbers where floats are due, or the other way round."""
    kind, dtype = leaf.dtype.__name__, str(value.dtype).removeprefix("torch.")
    fixes = {"Int": "long", "Float": "float", "Bool": "bool", "Integer": "long", "Floating": "float"}
    fixes |= {f"Int{bits}": f"int{bits}" for bits in (8, 16, 32)} | {"Int64": "long", "Float32": "float"}
    method = {"int8": "char", "int16": "short", "int32": "int"}.get(fixes.get(kind, ""), fixes.get(kind, ""))
    return f"dtype {kind} is due, {dtype} came", f"`{name}.{method}()`" if method else ""


def size_fix(
    name: str,
    value: Tensor,
    words: tuple[Word, ...],
    place: int,
    due: int,
    sizes: Mapping[str, tuple[int, str]],
    known: Known,
) -> str:
    """What people have usually done when one size is wrong."""
    wanted = [size_due(word, sizes) for word in words]
    if value.ndim <= 5:
        orders = [
            order
            for order in itertools.permutations(range(value.ndim))
            if all(want is None or value.shape[axis] == want for axis, want in zip(order, wanted, strict=True))
        ]
        moved = sorted(orders, key=lambda order: sum(a != b for a, b in enumerate(order)))
        if moved:
            swapped = [axis for axis, old in enumerate(moved[0]) if axis != old]
            call = f"transpose({swapped[0]}, {swapped[1]})" if len(swapped) == 2 else f"permute{moved[0]}"
            return f"Are the axes in another order? `{name}.{call}`"
    layer = known.layer(value.shape[place], due)
    if layer:
        return layer
    if value.shape[place] == due + 1:
        return "One too many: a BOS or CLS token, a start frame, or the last frame of a centred STFT?"
    if value.shape[place] == due - 1:
        return "One too few: was BOS, CLS or the start frame left out, or the sequence shifted?"
    return ""


# ---- errors that torch itself raises --------------------------------------------------------------------------------


def layer_trouble(module: nn.Module, value: Any, path: str, known: Known) -> str:
    """Why this layer cannot take this tensor; "" if it looks as if it can."""
    if not isinstance(value, Tensor):
        return ""
    shape, label = tuple(value.shape), f"`{path or type(module).__name__}`"
    got = f"got {shape} {str(value.dtype).removeprefix('torch.')}"
    match module:
        case nn.Embedding() if value.dtype not in (torch.int64, torch.int32):
            return f"{label} is an Embedding and looks up int64; {got}. `ids.long()`, or is this the wrong input?"
        case nn.Embedding():
            return (
                f"{label} is an Embedding of {module.num_embeddings} rows; {got}, and an id in it is outside "
                f"0 … {module.num_embeddings - 1}. Was another tokenizer used, or a padding of -100 left in?"
            )
        case nn.Linear() if shape and shape[-1] != module.in_features:
            due, last = module.in_features, shape[-1]
            text = f"{label} is a Linear and takes {due} features on the last axis; {got}: the last axis is {last}."
            return f"{text} {linear_fix(value, due, known)}"
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            kind, axes = type(module).__name__, len(module.kernel_size) + 2
            text = f"{label} is a {kind} and takes (batch, {module.in_channels} channels, …), {axes} axes; {got}."
            if len(shape) not in (axes, axes - 1):
                return f"{text} {'`x.unsqueeze(1)`?' if len(shape) == axes - 2 else ''}".rstrip()
            channel = len(shape) - axes + 1
            if shape[channel] != module.in_channels:
                where = [axis for axis, size in enumerate(shape) if size == module.in_channels]
                if where and where[-1] == len(shape) - 1:
                    order = [axis for axis in range(len(shape)) if axis != where[-1]]
                    order.insert(channel, where[-1])
                    return f"{text} Are the channels last? `x.permute({', '.join(map(str, order))})`"
                return f"{text} The channel axis has {shape[channel]}."
        case nn.LayerNorm() | nn.RMSNorm():
            due_shape = tuple(module.normalized_shape)
            if shape[len(shape) - len(due_shape) :] != due_shape:
                return f"{label} normalises the last axes {due_shape}; {got}. {known.layer(shape[-1], due_shape[-1])}"
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() if (
            len(shape) > 1 and shape[1] != module.num_features
        ):
            return f"{label} takes {module.num_features} channels on axis 1; {got}."
        case nn.RNNBase() if shape and shape[-1] != module.input_size:
            return f"{label} takes {module.input_size} features on the last axis; {got}."
    return ""


def linear_fix(value: Tensor, due: int, known: Known) -> str:
    """Transposed, not flattened, flattened too far, or not projected."""
    shape = tuple(value.shape)
    if due in shape:
        return f"Axis {shape.index(due)} has {due}: `x.transpose({shape.index(due)}, -1)`?"
    for start in range(1, len(shape) - 1):
        if math.prod(shape[start:]) == due:
            return f"{' × '.join(map(str, shape[start:]))} = {due}: `x.flatten({start})` before it?"
    return known.layer(shape[-1], due) or (
        f"Either the layer before it should give {due}, or this one should be Linear({shape[-1]}, …)."
    )


def line_of(frame: types.FrameType, line: int) -> str:
    """The failing line with the shape of every tensor that it names."""
    text = linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip()
    try:
        parsed = ast.parse(text + " pass" if text.endswith(":") else text)
    except SyntaxError:  # one line of a longer statement
        return f"`{text}`"
    shapes = {}
    nodes = [node for node in ast.walk(parsed) if isinstance(node, (ast.Name, ast.Attribute))]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        found = frame.f_locals.get(node.id) if isinstance(node, ast.Name) else attribute(frame, node)
        if isinstance(found, Tensor):
            shapes[ast.unparse(node)] = came("", found)
    return f"`{text}`" + (f", with {', '.join(f'{name} {shape}' for name, shape in shapes.items())}" if shapes else "")


def attribute(frame: types.FrameType, node: ast.Attribute) -> Any:
    """`self.a.b` out of a frame, without running anybody's code: only what lies in instance dictionaries."""
    names: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
    found = frame.f_locals.get(inner.id) if isinstance(inner, ast.Name) else None
    for name in reversed(names):
        if isinstance(found, nn.Module):
            found = {**found._parameters, **found._buffers, **found._modules, **vars(found)}.get(name)
        else:
            found = getattr(found, "__dict__", {}).get(name)
    return found


SHAPE_WORDS = (
    "shape",
    "size",
    "dimension",
    "mat1",
    "stride",
    "channels",
    "index out of range",
    "scalar type",
    "should contain",
)


def torch_error(error: BaseException, known: Known, ours: str) -> str:
    """What a shape error raised by torch means: the layer or the line, the shapes, a likely fix; "" if it is none."""
    if not isinstance(error, (RuntimeError, IndexError, ValueError)) or not any(
        word in str(error) for word in SHAPE_WORDS
    ):
        return ""
    frames: list[tuple[types.FrameType, int]] = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    frames = [(frame, line) for frame, line in frames if not frame.f_code.co_filename.startswith(ours)]
    users = [(frame, line) for frame, line in frames if not is_library(frame)]
    if not users:
        return ""
    frame, line = users[-1]
    where = f"{file_of(frame.f_code, frame.f_globals)}:{line}, in {frame.f_code.co_qualname}"
    text = f"{where}\n    {line_of(frame, line)}"
    for inner, _ in frames[frames.index(users[-1]) :]:
        module = inner.f_locals.get("self")
        if inner.f_code.co_name in ("forward", "_conv_forward") and isinstance(module, nn.Module):
            values = [value for name, value in inner.f_locals.items() if name != "self" and isinstance(value, Tensor)]
            trouble = layer_trouble(module, values[0], known.modules.get(module, ""), known) if values else ""
            if trouble:
                return f"{text}\n{trouble}"
    return f"{text}\ntorch says: {str(error).splitlines()[0]}"


def is_library(frame: types.FrameType) -> bool:
    """Code that the reader did not write: torch's own, and other installed packages."""
    name = frame.f_code.co_filename
    return "site-packages" in name or "dist-packages" in name or name.startswith("<frozen")
