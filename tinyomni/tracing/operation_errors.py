"""What the errors of torch's operations mean, with the shapes of what they were given: one function an error.

Each takes the error's text, as a match of its pattern, and the failing statement; it returns a sentence, or "" if the
statement does not show enough to say more than torch does.
"""

import ast
import itertools
import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from tinyomni.tracing import tensors
from tinyomni.tracing.statements import Statement

Explainer = Callable[[re.Match[str], Statement], str]
EXPLAINERS: list[tuple[re.Pattern[str], Explainer]] = []


def when(pattern: str) -> Callable[[Explainer], Explainer]:
    """Register an explanation of the errors that match."""

    def register(explainer: Explainer) -> Explainer:
        EXPLAINERS.append((re.compile(pattern), explainer))
        return explainer

    return register


def operation_trouble(error: BaseException, statement: Statement) -> str:
    """What the error means; "" if nothing is known of it."""
    text = str(error)
    for pattern, explainer in EXPLAINERS:
        if (found := pattern.search(text)) and (told := explainer(found, statement)):
            return told
    return ""


def shape(tensor: Tensor) -> tuple[int, ...]:
    """A shape as a plain tuple, which prints as one."""
    return tuple(tensor.shape)


def pair(statement: Statement) -> tuple[tuple[str, Tensor], tuple[str, Tensor]] | None:
    """The two operands, if both are known."""
    found = statement.operands()
    return (found[0], found[1]) if len(found) == 2 else None


# ---- joining and splitting ------------------------------------------------------------------------------------------


@when(r"Sizes of tensors must match except in dimension (\d+)")
def cat(found: re.Match[str], statement: Statement) -> str:
    """`cat` along the wrong axis, or of tensors that cannot be joined at all."""
    operands, dim = statement.operands(), int(found[1])
    shapes = [shape(value) for _, value in operands]
    if len(shapes) < 2 or len({len(each) for each in shapes}) != 1:
        return ""
    differ = [axis for axis in range(len(shapes[0])) if len({each[axis] for each in shapes}) > 1]
    told = ", ".join(f"{name} {each}" for (name, _), each in itertools.islice(zip(operands, shapes, strict=True), 4))
    if len(differ) == 1:
        return f"cat joins along dim {dim}, but {told} differ on axis {differ[0]}: `dim={differ[0]}`?"
    return f"cat joins along dim {dim}, but {told} differ on the axes {differ}: all but one have to be equal."


@when(r"Tensors must have same number of dimensions: got (\d+) and (\d+)")
def cat_dims(found: re.Match[str], statement: Statement) -> str:
    """A part without its batch or token axis."""
    if (both := pair(statement)) is None:
        return ""
    fewer, more = sorted(both, key=lambda each: each[1].ndim)
    for axis in range(more[1].ndim):
        rest = shape(more[1])[:axis] + shape(more[1])[axis + 1 :]
        if rest == shape(fewer[1]):
            return f"{fewer[0]} {shape(fewer[1])} has no axis {axis}: `{fewer[0]}.unsqueeze({axis})`?"
    return f"{fewer[0]} {shape(fewer[1])} and {more[0]} {shape(more[1])} need the same number of dims."


@when(r"stack expects each tensor to be equal size, but got (\[.*?\]) at entry 0 and (\[.*?\]) at entry (\d+)")
def stack(found: re.Match[str], statement: Statement) -> str:
    """Sequences of different lengths."""
    return (
        f"stack takes tensors of one shape, got {found[1]} and {found[2]} (number {found[3]}). "
        "Pad them to one length (`nn.utils.rnn.pad_sequence`), or join them with `torch.cat`?"
    )


@when(r"shape '\[(.*)\]' is invalid for input of size (\d+)")
def view(found: re.Match[str], statement: Statement) -> str:
    """A view that needs more or fewer numbers than there are."""
    wanted = [int(size) for size in found[1].split(",")]
    have, known = int(found[2]), math.prod(size for size in wanted if size >= 0)
    asked = " × ".join(str(size) if size >= 0 else "?" for size in wanted)
    if -1 in wanted:
        return f"The tensor has {have} numbers, which {asked} cannot hold: {have} is no multiple of {known}."
    last = f" {have} = {have // known} × {known}." if known and have % known == 0 and have != known else ""
    return f"The tensor has {have} numbers, but {asked} = {known}.{last}"


@when(r"view size is not compatible with input tensor's size and stride")
def stride(found: re.Match[str], statement: Statement) -> str:
    """A view of a transposed tensor."""
    return (
        "The tensor was transposed or sliced, so that its numbers are not in this order: `.reshape(…)`, not `.view(…)`."
    )


@when(r"(?:not enough|too many) values to unpack \(expected (?:at least )?(\d+)")
def unpack(found: re.Match[str], statement: Statement) -> str:
    """`batch, tokens = x.shape` of a tensor with three dims."""
    tree = ast.parse(statement.text).body[0] if not statement.text.endswith("…") else None
    asked = getattr(tree, "value", None)
    inner = asked.func if isinstance(asked, ast.Call) else asked
    if isinstance(inner, ast.Attribute) and inner.attr in ("shape", "size"):
        value = statement.value(inner.value)
        if isinstance(value, Tensor):
            name = ast.unparse(inner.value)
            fix = f" `{name}.unsqueeze(0)`?" if value.ndim == int(found[1]) - 1 else ""
            return f"{name} has {value.ndim} dims, {shape(value)}; {found[1]} names stand on the left.{fix}"
    return ""


# ---- products and broadcasts ----------------------------------------------------------------------------------------


@when(r"mat1 and mat2 shapes cannot be multiplied|Expected size for first two dimensions of batch2 tensor")
def matmul(found: re.Match[str], statement: Statement) -> str:
    """The last axis of the left is not the last but one of the right."""
    if (both := pair(statement)) is None or min(value.ndim for _, value in both) < 2:
        return ""
    (a, left), (b, right) = both
    if "linear(" in statement.text:
        fix = f" `{b}.T`?" if left.shape[-1] == right.shape[0] else ""
        return f"linear takes {a} (…, in) and a weight (out, in); got {shape(left)} and {b} {shape(right)}.{fix}"
    text = f"`{a} @ {b}` needs the last axis of {a} {shape(left)} to be axis -2 of {b} {shape(right)}"
    if left.shape[-1] == right.shape[-1]:
        return f"{text}: `{b}.transpose(-2, -1)`?"
    if left.shape[-2] == right.shape[-2]:
        return f"{text}: `{a}.transpose(-2, -1)`?"
    return f"{text}; they are {left.shape[-1]} and {right.shape[-2]}."


@when(r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension (\d+)")
def broadcast(found: re.Match[str], statement: Statement) -> str:
    """Two shapes that do not broadcast: sliced, transposed, or an axis missing."""
    if "scaled_dot_product_attention" in statement.text:
        return attention_mask(statement)
    if (both := pair(statement)) is None:
        return ""
    (a, left), (b, right) = both
    one, other = shape(left), shape(right)
    text = f"{a} {one} and {b} {other} do not broadcast"
    for name, small, name_large, large in ((a, one, b, other), (b, other, a, one)):
        if len(small) < len(large):
            for axis in range(len(small), 0, -1):
                for count in range(1, len(large) - len(small) + 1):
                    if _broadcasts((*small[:axis], *(1,) * count, *small[axis:]), large):
                        fix = "".join([f".unsqueeze({axis})"] * count)
                        return f"{text}: axes are matched from the right, so `{name}{fix}`?"
        if len(small) == len(large):
            moved = [axis for axis in range(len(small)) if small[axis] not in (1, large[axis]) and large[axis] != 1]
            if len(moved) == 2 and _broadcasts(_swapped(small, *moved), large):
                return f"{text}: `{name}.transpose({moved[0]}, {moved[1]})`?"
            if len(moved) == 1 and small[moved[0]] < large[moved[0]]:
                axis = moved[0]
                cut = ", ".join([":"] * axis + [f":{small[axis]}"])
                return f"{text}: axis {axis} of {name_large} is longer. `{name_large}[{cut}]`, if it is a table?"
    return f"{text}."


def attention_mask(statement: Statement) -> str:
    """A mask that does not spread to (batch, heads, queries, keys)."""
    operands = statement.operands()
    if len(operands) < 4 or operands[0][1].ndim < 3:
        return ""
    (_, query), (_, key), (name, value) = operands[0], operands[1], operands[3]
    scores = (*shape(query)[:-1], key.shape[-2])
    text = f"`{name}` {shape(value)} has to spread to (batch, heads, queries, keys) {scores}"
    if len(scores) == 4 and shape(value) == (scores[0], scores[3]):
        return f"{text}: `{name}[:, None, None, :]`?"
    return f"{text}."


def _swapped(sizes: tuple[int, ...], one: int, other: int) -> tuple[int, ...]:
    found = list(sizes)
    found[one], found[other] = found[other], found[one]
    return tuple(found)


def _broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Does this shape spread to that one?"""
    pairs = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(a == b or 1 in (a, b) for a, b in pairs)


@when(r"subscript (\w) has size (\d+) for operand (\d+) which does not broadcast with previously seen size (\d+)")
def einsum(found: re.Match[str], statement: Statement) -> str:
    """One letter, two sizes."""
    operands = statement.operands()
    text = f"the letter {found[1]} is {found[4]} before and {found[2]} in operand {found[3]}"
    if int(found[3]) < len(operands):
        name, value = operands[int(found[3])]
        where = [axis for axis, size in enumerate(value.shape) if size == int(found[4])]
        fix = f" Its axis {where[-1]} has {found[4]}: are its letters in this order?" if where else ""
        return f"In einsum, {text}, {name} {shape(value)}.{fix}"
    return f"In einsum, {text}."


# ---- losses ---------------------------------------------------------------------------------------------------------


@when(r"Expected target size \[(.*?)\], got \[(.*?)\]")
def class_axis(found: re.Match[str], statement: Statement) -> str:
    """Cross-entropy wants its classes on axis 1."""
    if (both := pair(statement)) is None:
        return "cross_entropy takes the classes on axis 1: (batch, classes, tokens) against (batch, tokens)."
    (a, logits), (b, labels) = both
    text = f"cross_entropy takes the classes on axis 1; {a} {shape(logits)} has {logits.shape[1]} there"
    if shape(logits)[:-1] == shape(labels):
        return f"{text}: `{a}.flatten(0, -2), {b}.flatten()`, or `{a}.transpose(1, -1)`?"
    return f"{text}, and the labels {b} are {shape(labels)}."


@when(r"Expected input batch_size \((\d+)\) to match target batch_size \((\d+)\)")
def batch_sizes(found: re.Match[str], statement: Statement) -> str:
    """Only one of logits and labels was flattened, or only one was shifted."""
    logits, labels = int(found[1]), int(found[2])
    text = f"cross_entropy got {logits} rows of scores and {labels} labels"
    if labels and logits % labels == 0:
        return (
            f"{text}: {logits} = {labels} × {logits // labels}, so only the scores were flattened: `labels.flatten()`?"
        )
    if logits and labels % logits == 0:
        return f"{text}: {labels} = {logits} × {labels // logits}, so only the labels were flattened."
    return f"{text}. Were the labels shifted by one, and the scores not? `logits[:, :-1]` goes with `labels[:, 1:]`."


@when(r"multi-target not supported")
def one_label(found: re.Match[str], statement: Statement) -> str:
    """Labels with an axis too many."""
    for name, value in statement.operands()[1:2]:
        fix = f"`{name}.squeeze(1)`" if value.shape[-1:] == (1,) else f"`{name}.argmax(1)`, if they are one-hot"
        return f"cross_entropy takes one class number a row, (batch,); got {name} {tensors.show(value)}. {fix}?"
    return "cross_entropy takes one class number a row, (batch,)."


@when(r"expected scalar type Long but found (\w+)|(expected floating point type for target)")
def label_dtype(found: re.Match[str], statement: Statement) -> str:
    """Class numbers that are floats."""
    for name, value in statement.operands()[1:2]:
        if value.ndim <= 2 and "cross_entropy" in statement.text:
            return f"Class numbers are int64; got {name} {tensors.show(value)}. `{name}.long()`?"
    return ""


@when(r"result type (\w+) can't be cast to the desired output type (\w+)")
def loss_dtype(found: re.Match[str], statement: Statement) -> str:
    """A loss over labels that are integers."""
    for name, value in statement.operands()[1:2]:
        return f"This loss takes labels as floats; got {name} {tensors.show(value)}. `{name}.float()`?"
    return ""


@when(r"Target size \(torch.Size\((.*?)\)\) must be the same as input size \(torch.Size\((.*?)\)\)")
def loss_shape(found: re.Match[str], statement: Statement) -> str:
    """Predictions with an axis of one, labels without."""
    if (both := pair(statement)) is None:
        return ""
    (a, scores), (b, labels) = both
    text = f"This loss takes two tensors of one shape; got {a} {shape(scores)} and {b} {shape(labels)}"
    if scores.shape[-1:] == (1,) and shape(scores)[:-1] == shape(labels):
        return f"{text}: `{a}.squeeze(-1)`?"
    if labels.shape[-1:] == (1,) and shape(labels)[:-1] == shape(scores):
        return f"{text}: `{b}.squeeze(-1)`?"
    return f"{text}."


# ---- dtypes and devices ---------------------------------------------------------------------------------------------


@when(r"must have the same dtype|to have the same dtype|should be the same|expected scalar type|same dtype")
def dtypes(found: re.Match[str], statement: Statement) -> str:
    """Operands of different dtypes."""
    kinds = {name: value.dtype for name, value in statement.operands()}
    if len(set(kinds.values())) < 2:
        return ""
    told = " and ".join(f"{name} is {tensors.dtype_name(dtype)}" for name, dtype in kinds.items())
    odd = next((name for name, dtype in kinds.items() if dtype != torch.float32), next(iter(kinds)))
    other = next((dtype for name, dtype in kinds.items() if name != odd and dtype != kinds[odd]), torch.float32)
    return f"The operands have different dtypes: {told}. `{odd}.to({other})`?"


@when(r"on the same device|not on the expected device|device type|same device")
def devices(found: re.Match[str], statement: Statement) -> str:
    """Operands on different devices."""
    where = {name: str(value.device) for name, value in statement.operands()}
    if len(set(where.values())) < 2:
        return ""
    told = " and ".join(f"{name} is on {device}" for name, device in where.items())
    names = list(where)
    return f"The operands are on different devices: {told}. `{names[1]}.to({names[0]}.device)`, or a buffer?"


# ---- indices --------------------------------------------------------------------------------------------------------


@when(r"Dimension out of range \(expected to be in range of \[(-?\d+), (-?\d+)\], but got (-?\d+)\)")
def dim_range(found: re.Match[str], statement: Statement) -> str:
    """A dim that the tensor does not have."""
    dims = int(found[2]) + 1
    for name, value in statement.operands()[:1]:
        if value.ndim == dims:
            return f"{name} {shape(value)} has {dims} dims, 0 … {dims - 1}; dim {found[3]} is none of them. `dim=-1`?"
    return f"The tensor has {dims} dims, 0 … {dims - 1}; dim {found[3]} is none of them."


@when(r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)")
def bounds(found: re.Match[str], statement: Statement) -> str:
    """An index beyond the end."""
    return f"Axis {found[2]} has {found[3]} entries, 0 … {int(found[3]) - 1}; index {found[1]} is beyond the end."


@when(r"tuple index out of range")
def shape_index(found: re.Match[str], statement: Statement) -> str:
    """`x.shape[3]` of a tensor with three dims."""
    for node in ast.walk(statement.part) if statement.part is not None else ():
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            value = statement.value(node.value.value)
            if isinstance(value, Tensor):
                name = ast.unparse(node.value.value)
                return f"{name} {shape(value)} has {value.ndim} dims: there is no `{ast.unparse(node)}`."
    return ""


@when(r"^index out of range in self")
def table(found: re.Match[str], statement: Statement) -> str:
    """An id beyond the rows of a table."""
    for name, value in statement.operands()[1:2]:
        return f"An id is outside 0 … {value.shape[0] - 1}: the table {name} {shape(value)} has {value.shape[0]} rows."
    return ""


@when(r"Index tensor must have the same number of dimensions as input tensor")
def gather(found: re.Match[str], statement: Statement) -> str:
    """`gather` with an index that has an axis too few."""
    if (both := pair(statement)) is None:
        return ""
    (a, source), (b, index) = both
    fix = f" `{a}.gather(-1, {b}.unsqueeze(-1)).squeeze(-1)`?" if index.ndim == source.ndim - 1 else ""
    return (
        f"gather takes an index with as many dims as the tensor; got {a} {shape(source)} and {b} {shape(index)}.{fix}"
    )


@when(r"Mask size should match input size|[Mm]ask.*(?:size|shape)")
def padding_mask(found: re.Match[str], statement: Statement) -> str:
    """A padding mask that is not (batch, tokens)."""
    keywords = statement.part.keywords if isinstance(statement.part, ast.Call) else []
    masks = [(ast.unparse(each.value), statement.value(each.value)) for each in keywords if "mask" in (each.arg or "")]
    inputs = [value for _, value in statement.operands()[:1] if value.ndim == 3]
    for name, value in masks:
        if inputs and isinstance(value, Tensor) and value.ndim == 2:
            expected = shape(inputs[0])[:2]
            fix = f" `{name}.T`?" if shape(value)[::-1] == expected != shape(value) else ""
            return f"A padding mask is (batch, tokens) {expected}; got {name} {shape(value)}.{fix}"
    return ""
