"""What the errors of torch's operations mean, with the shapes of what they were given: one function an error.

Each takes the error's text, as a match of its pattern, and the failing statement; it returns a sentence, or "" if the
statement does not show enough to say more than torch does.
"""

import ast
import itertools
import math
import re
import types
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tinyomni.tracing import tensors
from tinyomni.tracing.layer_errors import norm_fix
from tinyomni.tracing.mismatch import NOTHING, Context
from tinyomni.tracing.statements import Statement

Explainer = Callable[[re.Match[str], Statement], str]
EXPLAINERS: list[tuple[re.Pattern[str], Explainer]] = []


def when(pattern: str) -> Callable[[Explainer], Explainer]:
    """Register an explanation of the errors that match."""

    def register(explainer: Explainer) -> Explainer:
        EXPLAINERS.append((re.compile(pattern), explainer))
        return explainer

    return register


def operation_trouble(error: BaseException, statement: Statement, context: Context = NOTHING) -> str:
    """What the error means; "" if nothing is known of it."""
    text = str(error)
    if (found := re.search(BATCH_SIZES, text)) and (told := batch_lost(found, context)):
        return told
    for pattern, explainer in EXPLAINERS:
        if (found := pattern.search(text)) and (told := explainer(found, statement)):
            return told
    return ""


def shape(tensor: Tensor) -> tuple[int, ...]:
    """A shape as a plain tuple, which prints as one."""
    return tuple(tensor.shape)


def without(sizes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """All sizes but one."""
    return sizes[:axis] + sizes[axis + 1 :]


def pair(statement: Statement) -> tuple[tuple[str, Tensor], tuple[str, Tensor]] | None:
    """The two operands, if both are known."""
    found = statement.operands()
    return (found[0], found[1]) if len(found) == 2 else None


def argument(statement: Statement, name: str, place: int) -> ast.expr | None:
    """An argument of the failing call as it is written, `place` of those behind the tensor: `x.gather(1, …)`."""
    if not isinstance(part := statement.part, ast.Call):
        return None
    is_method = isinstance(part.func, ast.Attribute) and _module(part.func.value, statement) is None
    place += not is_method  # torch.gather(x, 1, …)
    named = next((each.value for each in part.keywords if each.arg == name), None)
    return named or next(iter(part.args[place : place + 1]), None)


def _module(node: ast.expr, statement: Statement) -> types.ModuleType | None:
    """The Python module that is written: `torch`, `nn.functional`; None for everything else."""
    if isinstance(node, ast.Attribute):
        outer = _module(node.value, statement)
        found = vars(outer).get(node.attr) if outer is not None else None
    else:
        found = statement.variable(node)
    return found if isinstance(found, types.ModuleType) else None


def clash(statement: Statement) -> tuple[tuple[str, Tensor], tuple[str, Tensor]] | None:
    """The two operands; of more than two, the one that fits the fewest others, and one that it does not fit."""
    found = statement.operands()
    if len(found) == 2:
        return found[0], found[1]

    def fits(one: Tensor, other: Tensor) -> bool:
        pairs = zip(reversed(one.shape), reversed(other.shape), strict=False)
        return all(a == b or 1 in (a, b) for a, b in pairs)

    against = [[other for other in found if not fits(each[1], other[1])] for each in found]
    place = max(range(len(found)), key=lambda at: len(against[at]), default=0)
    return (found[place], against[place][0]) if found and against[place] else None


# ---- joining and splitting ------------------------------------------------------------------------------------------


@when(r"Sizes of tensors must match except in dimension (\d+)")
def cat(found: re.Match[str], statement: Statement) -> str:
    """`cat` along the wrong axis, or of tensors that cannot be joined at all."""
    operands, dim = statement.operands(), int(found[1])
    shapes = [shape(value) for _, value in operands]
    if len(shapes) < 2 or len({len(each) for each in shapes}) != 1:
        return ""
    differ = [axis for axis in range(len(shapes[0])) if len({each[axis] for each in shapes}) > 1]
    if len(differ) == 2 and differ[0] > 0 and len(shapes) == 2:
        for (name, _), other, own in zip(operands[::-1], shapes, shapes[::-1], strict=True):
            moved = _swapped(own, *differ)
            if all(a == b or axis == dim for axis, (a, b) in enumerate(zip(moved, other, strict=True))):
                return f"cat joins {shapes[0]} and {shapes[1]} along dim {dim}: `{name}.transpose{tuple(differ)}`?"
    told = ", ".join(f"{name} {each}" for (name, _), each in itertools.islice(zip(operands, shapes, strict=True), 4))
    if len(differ) == 1 and (fix := _off_by_few(operands, differ[0])):
        return f"cat joins along dim {dim}, but {told} differ on axis {differ[0]} by {fix}"
    wrong = [axis for axis in differ if axis != dim]
    if not wrong:
        return ""
    expand = _expanded(operands, wrong)
    if len(differ) == 1:
        fix = f", or {expand}" if expand else ""
        return f"cat joins along dim {dim}, but {told} differ on axis {differ[0]}: `dim={differ[0]}`{fix}?"
    if expand:
        return f"cat joins along dim {dim} and does not broadcast, but {told} differ on axis {wrong[0]}, too: {expand}?"
    text = f"cat joins along dim {dim}, but {told} differ on the axes {differ}: all but one have to be equal"
    if dim == 1 and min(wrong) > 1 and len(shapes) == 2 and len(shapes[0]) > 3:  # the grids of two images
        (a, small), (b, large) = sorted(operands, key=lambda each: math.prod(each[1].shape[2:]))
        up = f"`F.interpolate({a}, size={b}.shape[2:])`"
        if any(small.shape[axis] % 2 or not large.shape[axis] % 2 for axis in wrong):  # either may be the upsampled one
            return f"{text}. Resize the one that was upsampled: {up}, or `F.interpolate({b}, size={a}.shape[2:])`?"
        return f"{text}. An odd size loses one on its way down: {up}?"
    return f"{text}."


def _expanded(operands: list[tuple[str, Tensor]], axes: list[int]) -> str:
    """A part with one entry where the others have more: a CLS token for each of the batch, a speaker for each frame."""
    for name, value in operands:
        rest = [other for _, other in operands if other is not value]
        sizes = {axis: rest[0].shape[axis] for axis in axes} if rest else {}
        if all(value.shape[axis] == 1 and {other.shape[axis] for other in rest} == {sizes[axis]} for axis in sizes):
            return f"`{name}.expand({', '.join(str(sizes.get(axis, -1)) for axis in range(value.ndim))})`"
    return ""


def _off_by_few(operands: list[tuple[str, Tensor]], axis: int) -> str:
    """Sizes that were meant to be equal: nearly the same on one axis, as those of two parts that are joined are not."""
    sizes = [value.shape[axis] for _, value in operands]
    short, spread = min(sizes), max(sizes) - min(sizes)
    if spread > 2 or spread * 4 > max(sizes):
        return ""
    odd = " An odd size that is halved and doubled comes back one off." if spread == 1 and axis > 1 else ""
    cut = ", ".join([":"] * axis + [f":{short}"])
    longer = " and ".join(f"`{name}[{cut}]`" for name, value in operands if value.shape[axis] > short)
    shorter = " and ".join(name for name, value in operands if value.shape[axis] == short)
    return f"{spread}: crop, {longer}, or pad {shorter}?{odd}"


@when(r"Tensors must have same number of dimensions: got (\d+) and (\d+)")
def cat_dims(found: re.Match[str], statement: Statement) -> str:
    """A part without its batch or token axis."""
    if (both := pair(statement)) is None:
        return ""
    fewer, more = sorted(both, key=lambda each: each[1].ndim)
    for axis in range(more[1].ndim):
        if without(shape(more[1]), axis) == shape(fewer[1]):
            dim = _cat_dim(statement)
            spread = [size if at == axis else -1 for at, size in enumerate(more[1].shape)]
            along = dim is None or dim % more[1].ndim == axis
            fix = "" if along else f".expand({', '.join(map(str, spread))})"  # cat does not broadcast
            return f"{fewer[0]} {shape(fewer[1])} has no axis {axis}: `{fewer[0]}.unsqueeze({axis}){fix}`?"
    fix = _spread_along(*fewer, more[1], statement)
    return f"{fewer[0]} {shape(fewer[1])} and {more[0]} {shape(more[1])} need the same number of dims{fix}."


def _cat_dim(statement: Statement) -> int | None:
    """The dim along which `cat` joins, as far as it can be read; 0 if none is given."""
    node = argument(statement, "dim", 0)
    dim = statement.value(node) if node is not None else 0
    return dim if type(dim) is int else None


def _spread_along(name: str, vector: Tensor, other: Tensor, statement: Statement) -> str:
    """A vector for each of the batch, such as that of a speaker, to be joined to the features of every frame."""
    dim = _cat_dim(statement)
    if vector.ndim != 2 or dim is None or not -other.ndim <= dim < other.ndim or len(vector) != len(other):
        return ""
    features = dim % other.ndim
    if features == 0:
        return ""
    index = ", ".join(":" if axis in (0, features) else "None" for axis in range(other.ndim))
    sizes = ", ".join(str(-1 if axis in (0, features) else size) for axis, size in enumerate(other.shape))
    return f": `{name}[{index}].expand({sizes})`, one for each of the batch"


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


@when(r"number of dimensions in the tensor input does not match the length of the desired ordering")
def permute(found: re.Match[str], statement: Statement) -> str:
    """`permute` with a dim too few or too many."""
    for name, value in statement.operands()[:1]:
        dims = ", ".join(map(str, range(value.ndim)))
        return f"permute takes each dim once; {name} {shape(value)} has {value.ndim}: {dims} in some order."
    return ""


@when(
    r"(?:split_with_sizes|split) expects split_sizes to sum exactly to (\d+) .*dimension (-?\d+)\), but got .*=\[(.*)\]"
)
def split_sizes(found: re.Match[str], statement: Statement) -> str:
    """Parts that do not add up."""
    total = sum(map(int, found[3].split(",")))
    return f"The parts {found[3].replace(', ', ' + ')} = {total}, but axis {found[2]} has {found[1]}."


@when(
    r"expanded size of the tensor \((\d+)\) must match the existing size \((\d+)\) at non-singleton dimension (\d+)\."
    r"\s+Target sizes: \[(.*?)\]\.\s+Tensor sizes: \[(.*?)\]"
)
def expand(found: re.Match[str], statement: Statement) -> str:
    """A tensor that does not spread to a shape: `x.expand(…)`, or what is assigned to a part of another one."""
    wanted, have = (tuple(map(int, filter(None, each.split(",")))) for each in (found[4], found[5]))
    text = f"{have} does not spread to {wanted}: only an axis of 1 can, and axes are matched from the right"
    for axis in range(len(have), 0, -1):
        ones = (1,) * (len(wanted) - len(have))
        if ones and _broadcasts((*have[:axis], *ones, *have[axis:]), wanted):
            return f"{text}: `{f'.unsqueeze({axis})' * len(ones)}`?"
    turned = next((pair for pair in _long_axes(have) if _broadcasts(_swapped(have, *pair), wanted)), None)
    return f"{text}: `.transpose{turned}`?" if turned else f"{text}. It has {found[2]} where {found[1]} is wanted."


@when(r"expand\(.*\{\[(.*?)\]\}, size=\[(.*?)\]\).*the number of sizes provided")
def too_many_dims(found: re.Match[str], statement: Statement) -> str:
    """What is assigned has more dims than its place."""
    have, wanted = (tuple(map(int, filter(None, each.split(",")))) for each in found.groups())
    ones = [axis for axis, size in enumerate(have) if size == 1 and _broadcasts(have[:axis] + have[axis + 1 :], wanted)]
    fix = f" `.squeeze({ones[0]})`?" if ones else ""
    return f"{have} has {len(have)} dims, and where it has to go there are {len(wanted)}, {wanted}.{fix}"


@when(r"output with shape \[(.*?)\] doesn't match the broadcast shape \[(.*?)\]")
def in_place(found: re.Match[str], statement: Statement) -> str:
    """`x += y` where x would have to grow."""
    name = next((f"{name} " for name, _ in statement.operands()[:1]), "")
    fix = ""
    if isinstance(statement.part, ast.BinOp) and name:
        sign = ast.unparse(statement.part).removeprefix(name).partition(" ")[0]
        fix = f" `{name}= {name}{sign} …` makes a new one."
    return f"An operation in place cannot make {name}({found[1]}) larger, and the result is ({found[2]}).{fix}"


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
        if isinstance(value, Tensor) and not (isinstance(asked, ast.Call) and asked.args):
            name = ast.unparse(inner.value)
            fix = f" `{name}.unsqueeze(0)`?" if value.ndim == int(found[1]) - 1 else ""
            return f"{name} has {value.ndim} dims, {shape(value)}; {found[1]} names stand on the left.{fix}"
    return _parts(asked, int(found[1]), statement)


def _parts(asked: ast.expr | None, wanted: int, statement: Statement) -> str:
    """`q, k, v = x.split(size, dim=1)`, `.chunk(3)`, `.unbind(0)` along another axis than that of the parts."""
    if not isinstance(asked, ast.Call) or not isinstance(asked.func, ast.Attribute):
        return ""
    named = {each.arg: each.value for each in asked.keywords}
    arguments, inner = list(asked.args), asked.func.value
    if isinstance(inner, ast.Name) and inner.id == "torch":
        inner, *arguments = arguments
    value, kind = statement.value(inner), asked.func.attr
    if not isinstance(value, Tensor) or kind not in ("split", "chunk", "unbind"):
        return ""
    parts = statement.value(arguments[0]) if arguments and kind == "chunk" else wanted
    if parts != wanted:
        return f"`{kind}({parts})` gives {parts} parts, and {wanted} names stand on the left."
    size = statement.value(arguments[0]) if arguments and kind == "split" else None
    at = arguments[1:2] if kind != "unbind" else arguments[:1]
    dim = statement.value(named.get("dim", at[0] if at else ast.Constant(0)))

    def count(length: int) -> int:
        if kind == "split":
            return -(-length // size) if type(size) is int and size > 0 else 0
        return length if kind == "unbind" else wanted * (length % wanted == 0)

    axes = [axis for axis, length in enumerate(value.shape) if count(length) == wanted]
    if type(dim) is not int or not -value.ndim <= dim < value.ndim:
        return ""
    part, rest = divmod(value.shape[dim], wanted)
    if not axes and kind == "split" and count(value.shape[dim]) and not rest:
        return f"`split` takes the size of a part, and {wanted * part} = {wanted} × {part}: `split({part}, dim={dim})`?"
    if not axes:
        return ""
    name, call = ast.unparse(inner), f"unbind({axes[0]})" if kind == "unbind" else f"{kind}(…, dim={axes[-1]})"
    got = count(value.shape[dim]) if kind != "chunk" else value.shape[dim]
    return f"{name} {shape(value)} has {got} parts along dim {dim}, expected {wanted}: `{call}`?"


# ---- products and broadcasts ----------------------------------------------------------------------------------------


@when(r"batch[12] must be a 3D tensor")
def bmm(found: re.Match[str], statement: Statement) -> str:
    """`bmm` of matrices, or of heads."""
    if (both := pair(statement)) is None:
        return "bmm takes two tensors of 3 dims, (batch, n, m) and (batch, m, k). `a @ b` takes any number of dims."
    (a, left), (b, right) = both
    return (
        f"bmm takes two tensors of 3 dims, got {a} {shape(left)} and {b} {shape(right)}: `{a} @ {b}` takes any number."
    )


@when(r"mat1 and mat2 shapes cannot be multiplied|Expected size for first two dimensions of batch2 tensor")
def matmul(found: re.Match[str], statement: Statement) -> str:
    """The last axis of the left is not the last but one of the right."""
    if "scaled_dot_product_attention" in statement.text:
        return attention_shapes(found, statement)
    operands = statement.operands()
    if "addmm(" in statement.text:
        operands = operands[1:]
    if len(operands) != 2 or min(value.ndim for _, value in operands) < 2:
        return ""
    (a, left), (b, right) = operands
    if "linear(" in statement.text:
        fix = f" `{b}.T`?" if left.shape[-1] == right.shape[0] else ""
        return f"linear takes {a} (…, in) and a weight (out, in); got {shape(left)} and {b} {shape(right)}.{fix}"
    if left.shape[-1] == right.shape[-2]:
        return f"`{a} @ {b}`: the matrices fit, but the axes before them do not, {shape(left)} and {shape(right)}."
    text = f"`{a} @ {b}` needs the last axis of {a} {shape(left)} to be axis -2 of {b} {shape(right)}"
    if left.shape[-1] == right.shape[-1]:
        return f"{text}: `{b}.transpose(-2, -1)`?"
    matrix = right.ndim < left.ndim or right.shape[-1] == right.shape[-2]  # of a graph, or a filter bank
    if matrix and left.shape[-2] == right.shape[-1] and _broadcasts(shape(right)[:-2], shape(left)[:-2]):
        return f"{text}: `{b} @ {a}`?"
    if left.shape[-2] == right.shape[-2]:
        return f"{text}: `{a}.transpose(-2, -1)`?"
    for name, value in statement.names.items():
        for start in range(1, value.ndim - 1 if isinstance(value, Tensor) else 0):
            if math.prod(value.shape[start:]) == right.shape[-2]:
                sizes = " × ".join(map(str, value.shape[start:]))
                return f"{text}; {sizes} = {right.shape[-2]}: `{name}.flatten({start})` before it?"
    return f"{text}; they are {left.shape[-1]} and {right.shape[-2]}."


@when(r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension (\d+)")
def broadcast(found: re.Match[str], statement: Statement) -> str:
    """Two shapes that do not broadcast: sliced, transposed, not repeated, one too many, or an axis missing."""
    if "scaled_dot_product_attention" in statement.text:
        return attention_shapes(found, statement) or attention_mask(statement)
    if (both := clash(statement)) is None:
        if isinstance(statement.part, ast.BinOp):
            left_, right_ = ast.unparse(statement.part.left), ast.unparse(statement.part.right)
            return f"They do not broadcast: axis {found[3]} of `{left_}` is {found[1]}, that of `{right_}` {found[2]}."
        return ""
    if "target" in statement.given:
        return loss_shape(found, statement)
    (a, left), (b, right) = both
    text = f"{a} {shape(left)} and {b} {shape(right)} do not broadcast"
    if _is_product(statement):
        return f"{text} on axis {found[3]}{_heads(both, int(found[3]))}"
    fixes = (_axes_missing, _transposed, _causal_table, _one_differs, _coarser, _not_padded)
    pairs = (both, both[::-1])
    told = next((fix for find in fixes for one, other in pairs if (fix := find(*one, *other))), "")
    return f"{text}: {told}" if told else f"{text}."


def _is_product(statement: Statement) -> bool:
    part = statement.part
    return (isinstance(part, ast.BinOp) and isinstance(part.op, ast.MatMult)) or (
        isinstance(part, ast.Call) and ast.unparse(part.func).rpartition(".")[2] in ("matmul", "bmm")
    )


def _heads(both: tuple[tuple[str, Tensor], tuple[str, Tensor]], axis: int) -> str:
    """A product of 4 heads with 2: grouped attention repeats the keys and values."""
    (many, large), (few, small) = sorted(both, key=lambda each: -each[1].shape[axis])
    times, rest = divmod(large.shape[axis], small.shape[axis])
    told = f", {large.shape[axis]} in {many} and {small.shape[axis]} in {few}"
    if rest or times < 2 or axis != 1:
        return f"{told}."
    return f"{told}: keys and values of fewer heads are repeated, `{few}.repeat_interleave({times}, dim=1)`?"


def _axes_missing(name: str, small: Tensor, other: str, large: Tensor) -> str:
    """Both readings where two fit; a mask is one of keys, which are the last axis of scores."""
    fixes: dict[tuple[int, ...], str] = {}
    for axis in range(small.ndim, 0, -1):
        for count in range(1, large.ndim - small.ndim + 1):
            sizes = (*small.shape[:axis], *(1,) * count, *small.shape[axis:])
            if _broadcasts(sizes, shape(large)):
                full = (1,) * (large.ndim - len(sizes)) + sizes
                fixes[full] = f"`{name}{f'.unsqueeze({axis})' * count}`"
    found = list(fixes.values())
    told = found[-1:] if small.dtype == torch.bool else found[:2]
    return f"axes are matched from the right, so {', or '.join(told)}?" if told else ""


def _transposed(name: str, value: Tensor, other: str, fixed: Tensor) -> str:
    """Axes in another order. The tensor with fewer dims is turned, such as a mask; of two that are alike, the first."""
    if value.ndim == fixed.ndim == 4 and shape(fixed) == (1, value.shape[-1], 1, 1):
        return f"are the channels last? `{name}.permute(0, 3, 1, 2)`"
    fewer = fixed.ndim - value.ndim
    orders = itertools.permutations(range(value.ndim)) if fewer >= 0 and value.ndim <= 5 else ()
    for order in sorted(orders, key=lambda order: sum(a > b for a, b in itertools.combinations(order, 2))):
        sizes, moved = tuple(value.shape[axis] for axis in order), [at for at, axis in enumerate(order) if at != axis]
        if not moved or 1 in (value.shape[axis] for axis in moved) or (not fewer and len(moved) > 2):
            continue  # an axis of size 1 fits everywhere, which says nothing
        if _broadcasts(sizes, shape(fixed)) or (not fewer and _broadcasts(shape(fixed), sizes)):
            call = "T" if value.ndim == 2 else f"transpose{tuple(moved)}" if len(moved) == 2 else f"permute{order}"
            if not fewer or len(moved) > 2 or value.dtype == torch.bool:
                return f"`{name}.{call}`?"
            return f"`{name}.{call}`, or `{other}.transpose{tuple(at + fewer for at in moved)}`?"
    return ""


def _causal_table(name: str, table: Tensor, other: str, scores: Tensor) -> str:
    """A square mask for the longest sequence, not cut."""
    if scores.ndim < 3 or table.ndim < 2 or math.prod(table.shape[:-2]) != 1 or table.shape[-1] != table.shape[-2]:
        return ""
    (queries, keys), longest = scores.shape[-2:], table.shape[-1]
    if not queries <= keys < longest:
        return ""
    cut = [":"] * (table.ndim - 2) + [f"{keys - queries or ''}:{keys}", f":{keys}"]
    return f"`{name}[{', '.join(cut)}]`, if it is a mask for the longest sequence?"


def _one_differs(name: str, longer: Tensor, other: str, shorter: Tensor) -> str:
    """One axis is longer: by a token, by a factor, or because a table is not cut."""
    common = min(longer.ndim, shorter.ndim)
    ends = list(zip(range(-common, 0), shape(longer)[-common:], shape(shorter)[-common:], strict=True))
    differ = [(axis, a, b) for axis, a, b in ends if a != b and 1 not in (a, b)]
    if len(differ) != 1 or differ[0][1] < differ[0][2]:
        return ""
    axis, size, wanted = differ[0]
    place, times = longer.ndim + axis, size // wanted if wanted and size % wanted == 0 else 0
    table, shorter_table = _is_table(name, longer, other), _is_table(other, shorter, name)
    alike = longer.ndim == shorter.ndim and not table and not shorter_table
    text = f"axis {place} of {name} is longer than {other}, {size} and {wanted}"
    if axis == -1 and torch.bool not in (longer.dtype, shorter.dtype):
        if times == 2 and common > 1 and shape(longer)[:-1] != shape(shorter)[:-1]:
            return f"{text}: if these are rotary angles, `torch.cat([{other}, {other}], -1)`?"
        return f"{text}: features to project, or {f'a stride of {times} left out' if times else 'a length to cut'}?"
    if alike and place == 0:  # two batches
        return f"{text}."
    if size - wanted == 1 and axis < -1:
        if table and not shorter_table:
            return f"One too few in {other}: was a BOS or CLS token left out, or the sequence shifted?"
        return f"One too many in {name}: a BOS or CLS token, or the last frame of an even kernel?"
    if alike and place == 1 and longer.ndim in (4, 5):
        return f"{text}: if these are channels, `nn.Conv{longer.ndim - 2}d({wanted}, {size}, 1)` for {other}?"
    if times and not table:
        return f"{size} = {times} × {wanted}: was a stride or pooling of {times} left out of {name}?"
    if shorter.ndim < longer.ndim or (shorter_table and not table):
        return f"{text}: a longer table, or a shorter input?"
    if alike:
        pairs = f" For every pair of them, `{name}.unsqueeze({place + 1})` and `{other}.unsqueeze({place})`?"
        return f"{text}.{pairs if longer.ndim == 3 else ''}"
    cut = ", ".join([":"] * place + [f":{wanted}"])
    return f"axis {place} of {name} is longer. `{name}[{cut}]`, if it is a table?"


def _is_table(name: str, value: Tensor, other: str) -> bool:
    """A weight, a buffer, or what was looked up: `self.position_embeddings`, (1, 17, 32), `self.embed(places)`."""
    computed = re.search(rf"\b{re.escape(other)}\b", name.partition("(")[2]) is not None
    return not computed and ("." in name.partition("(")[0] or value.shape[0] == 1)


def _coarser(name: str, fine: Tensor, other: str, coarse: Tensor) -> str:
    """Images or sequences of two resolutions, as in a shortcut without its convolution."""
    if fine.ndim != coarse.ndim or fine.ndim < 3 or fine.shape[0] != coarse.shape[0]:
        return ""
    times = {a / b for a, b in zip(fine.shape[2:], coarse.shape[2:], strict=True)}
    if len(times) != 1 or (factor := times.pop()) < 2 or factor != int(factor):
        return ""
    channels = "" if fine.shape[1] == coarse.shape[1] else f", and has {fine.shape[1]} channels, not {coarse.shape[1]}"
    return f"{name} is {int(factor)} × as fine{channels}: was the layer with the stride left out on its way?"


def _not_padded(name: str, large: Tensor, other: str, small: Tensor) -> str:
    """A shortcut around a convolution that takes something off each side."""
    if large.ndim != small.ndim or large.ndim < 4 or large.shape[:2] != small.shape[:2]:
        return ""
    less = {a - b for a, b in zip(large.shape[2:], small.shape[2:], strict=True)}
    if len(less) != 1 or (lost := less.pop()) <= 0 or lost % 2:
        return ""
    return f"{other} has lost {lost} on each axis: a convolution without `padding={lost // 2}`?"


@when(r"Given normalized_shape=\[(\d+)\], expected input with shape")
def layer_norm(found: re.Match[str], statement: Statement) -> str:
    """Features that are not on the last axis, in `F.layer_norm`."""
    for name, value in statement.operands()[:1]:
        fix = norm_fix(shape(value), (int(found[1]),), NOTHING, "", name)
        return f"layer_norm normalizes the last axis, {found[1]}; got {name} {shape(value)}. {fix}".rstrip()
    return ""


@when(
    r"Number of heads in key and value must divide|must have the same (?:number of heads|sequence length)|"
    r"Expected query, key, and value to"
)
def attention_shapes(found: re.Match[str], statement: Statement) -> str:
    """Heads and tokens exchanged in one of queries, keys and values."""
    operands = statement.operands()[:3]
    if len(operands) < 3 or len({value.ndim for _, value in operands}) != 1 or operands[0][1].ndim != 4:
        return ""
    told = ", ".join(f"{name} {shape(value)}" for name, value in operands)
    text = f"attention takes (batch, heads, tokens, head_dim); got {told}"
    query, key, value = (shape(each) for _, each in operands)

    def agree(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> bool:
        return key[:3] == value[:3] and query[3] == key[3] and query[1] % key[1] == 0

    if agree(query, key, value):
        times, name = query[1] // key[1], operands[1][0]
        few = (
            f"{text}: for fewer heads of keys and values, `enable_gqa=True`, or `{name}.repeat_interleave({times}, 1)`."
        )
        return few if times > 1 and "enable_gqa" not in statement.text and "size of tensor a" in found[0] else ""
    for place, (name, _) in enumerate(operands):
        moved = [_swapped(each, 1, 2) if at == place else each for at, each in enumerate((query, key, value))]
        if agree(*moved):
            return f"{text}: `{name}.transpose(1, 2)`?"
    if query[3] != key[3]:
        return f"{text}: head_dim is {query[3]} and {key[3]}."
    return f"{text}."


def attention_mask(statement: Statement) -> str:
    """A mask that does not spread to (batch, heads, queries, keys)."""
    operands = statement.operands()
    if len(operands) < 4 or operands[0][1].ndim not in (3, 4):
        return ""
    (_, query), (_, key), (name, value) = operands[0], operands[1], operands[3]
    scores = (*shape(query)[:-1], key.shape[-2])
    heads = ", heads" if len(scores) == 4 else ""
    text = f"`{name}` {shape(value)} has to spread to (batch{heads}, queries, keys) {scores}"
    if len(scores) == 4 and shape(value) == (scores[0], scores[3]):
        return f"{text}: `{name}[:, None, None, :]`?"
    mask, full = (torch.empty(sizes, dtype=torch.bool, device="meta") for sizes in (shape(value), scores))
    fixes = (find(name, mask, "", full) for find in (_axes_missing, _transposed, _causal_table))
    told = next(filter(None, fixes), "")
    return f"{text}: {told}" if told else f"{text}."


def _swapped(sizes: tuple[int, ...], one: int, other: int) -> tuple[int, ...]:
    found = list(sizes)
    found[one], found[other] = found[other], found[one]
    return tuple(found)


def _long_axes(sizes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Pairs of axes that may have been exchanged: one of size 1 fits everywhere, which says nothing."""
    return itertools.combinations([axis for axis, size in enumerate(sizes) if size > 1], 2)


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


@when(r"number of subscripts in the equation \((\d+)\).*number of dimensions \((\d+)\) for operand (\d+)")
def einsum_letters(found: re.Match[str], statement: Statement) -> str:
    """More or fewer letters than dims."""
    operands = statement.operands()[int(found[3]) :]
    told = next((f"{name} {shape(value)}" for name, value in operands), f"operand {found[3]}")
    return f"In einsum, {told} has {found[2]} dims and {found[1]} letters. `...` stands for any number of dims."


# ---- losses ---------------------------------------------------------------------------------------------------------


@when(r"Expected target size \[(.*?)\], got \[(.*?)\]")
def class_axis(found: re.Match[str], statement: Statement) -> str:
    """Cross-entropy wants its classes on axis 1."""
    if (both := pair(statement)) is None:
        return "cross_entropy takes the classes on axis 1: (batch, classes, tokens) against (batch, tokens)."
    (a, logits), (b, labels) = both
    text = f"{_loss(statement)} takes the classes on axis 1; {a} {shape(logits)} has {logits.shape[1]} there"
    if shape(logits)[:-1] == shape(labels):
        return f"{text}: `{a}.flatten(0, -2), {b}.flatten()`, or `{a}.transpose(1, -1)`?"
    return f"{text}, and the labels {b} are {shape(labels)}."


BATCH_SIZES = r"Expected input batch_size \((\d+)\) to match target batch_size \((\d+)\)"


def batch_lost(found: re.Match[str], context: Context) -> str:
    """The call that took the first of the batch for the first of the tokens, `x[0]` for `x[:, 0]`."""
    rows, batch = int(found[1]), int(found[2])
    for record in reversed(context.steps):
        for value in record.inputs if len(record.outputs) == 1 and not record.op else ():
            given, gave = value.shape, record.outputs[0].shape
            if len(given) == len(gave) + 1 >= 3 and given[:2] == (batch, rows) and gave[0] == rows != batch:
                path = f" ({record.path})" if record.path else ""
                return (
                    f"cross_entropy got {rows} rows of scores and {batch} labels. The batch of {batch} was lost in "
                    f"{record.call}{path}, {record.file}:{record.end or record.line}, {given} → {gave}: "
                    "`x[:, 0]`, not `x[0]`?"
                )
    return ""


@when(BATCH_SIZES)
def batch_sizes(found: re.Match[str], statement: Statement) -> str:
    """Only one of logits and labels was flattened, or only one was shifted."""
    logits, labels = int(found[1]), int(found[2])
    text = f"{_loss(statement)} got {logits} rows of scores and {labels} labels"
    if labels and logits % labels == 0:
        return (
            f"{text}: {logits} = {labels} × {logits // labels}, so only the scores were flattened: `labels.flatten()`?"
        )
    if logits and labels % logits == 0:
        return f"{text}: {labels} = {logits} × {labels // logits}, so only the labels were flattened."
    batch = abs(logits - labels)
    scores = next((value for _, value in statement.operands()[:1]), None)
    pairs = scores is not None and shape(scores) == (logits, labels)  # each against each: no sequence was shifted
    if batch == 0 or logits % batch or labels % batch or pairs:
        return f"{text}, and needs one label for each row."
    if logits > labels:
        fix = _shifted(statement, 0, batch, logits // batch, ":-1")
        return f"{text}. Were the labels shifted by one, and the scores not? {fix}."
    fix = _shifted(statement, 1, batch, labels // batch, "1:")
    return f"{text}. Were the scores shifted by one, and the labels not? {fix}."


def _shifted(statement: Statement, place: int, batch: int, length: int, cut: str) -> str:
    """Scores (`place` 0) or labels (1) cut to the length of the others, as (batch, length) where that is known."""
    for name, value in statement.names.items():
        if (
            isinstance(value, Tensor)
            and shape(value)[:2] == (batch, length)
            and value.is_floating_point() == (place == 0)
        ):
            return f"`{name}[:, {cut}]`, before `flatten`"
    operands = statement.operands()
    if batch == 1 and len(operands) > place:  # perhaps there never was a batch
        return f"`{operands[place][0]}[{cut}]`"
    return f"`{('logits', 'labels')[place]}[:, {cut}]`, before `flatten`"


def _loss(statement: Statement) -> str:
    """Cross-entropy and what it is made of raise the same errors."""
    module = statement.modules.get(ast.unparse(statement.part.func)) if isinstance(statement.part, ast.Call) else None
    named = re.search("nll_?loss", statement.text, re.IGNORECASE) or isinstance(module, nn.NLLLoss)
    return "nll_loss" if named else "cross_entropy"


@when(r"multi-target not supported")
def one_label(found: re.Match[str], statement: Statement) -> str:
    """Labels with an axis too many."""
    operands, place, takes = statement.operands(), 1, f"{_loss(statement)} takes one class number a row, (batch,)"
    if "input1" in statement.given:
        place, takes = 2, "cosine_embedding_loss takes one 1 or -1 for each pair, (batch,)"
    for name, value in operands[place : place + 1]:
        fix = f" `{name}.squeeze(1)`?" if value.shape[1:] == (1,) else ""
        if place == 1 and value.shape == operands[0][1].shape:
            fix = f" `{name}.argmax(1)`, if they are one-hot?"
        return f"{takes}; got {name} {tensors.show(value)}.{fix}"
    return f"{takes}."


@when(r"Target (-?\d+) is out of bounds")
def class_range(found: re.Match[str], statement: Statement) -> str:
    """A class number that the scores do not have."""
    for name, value in statement.operands()[:1]:
        classes = value.shape[1 if value.ndim > 1 else 0]
        if classes == 1:
            return f"{name} {shape(value)} has one score a row: `binary_cross_entropy_with_logits`, or an output of 2?"
        return (
            f"A label is {found[1]}, and {name} {shape(value)} has the classes 0 … {classes - 1}. Do the labels begin "
            "at 1, or is it a padding? Then `ignore_index=`."
        )
    return ""


@when(r"[Ee]xpected floating point type for target with class probabilities")
def one_hot(found: re.Match[str], statement: Statement) -> str:
    """Labels of one-hot integers."""
    for name, value in statement.operands()[1:2]:
        return (
            f"Labels of the shape of the scores are probabilities, floats; got {name} {tensors.show(value)}. "
            f"`{name}.argmax(1)`, or `{name}.float()`?"
        )
    return ""


@when(r"expected scalar type Long but found (\w+)")
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


@when(r"Target size .* must be the same as input size|Using a target size .* that is different to the input size")
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


@when(r"could not infer output dtype.* Got: (\w+)|not implemented for '(\w+)'")
def no_such_dtype(found: re.Match[str], statement: Statement) -> str:
    """A mean or softmax of integers, half precision on a CPU."""
    kind = found[1] or found[2]
    fix = "a GPU, or `.float()`" if kind == "Half" else "`.float()` before it"
    return f"This operation is not there for {kind}: {fix}?"


@when(r"must have the same dtype|to have the same dtype|should be the same|expected scalar type|same dtype")
def dtypes(found: re.Match[str], statement: Statement) -> str:
    """Operands of different dtypes."""
    kinds = {name: value.dtype for name, value in statement.operands()}
    if len(kinds) > 2:  # one of them is a mask
        kinds = {name: dtype for name, dtype in kinds.items() if dtype != torch.bool}
    if len(set(kinds.values())) < 2:
        return ""
    told = " and ".join(f"{name} is {tensors.dtype_name(dtype)}" for name, dtype in kinds.items())
    odd = next((name for name, dtype in kinds.items() if dtype != torch.float32), next(iter(kinds)))
    other = next((dtype for name, dtype in kinds.items() if name != odd and dtype != kinds[odd]), torch.float32)
    return f"The operands have different dtypes: {told}. `{odd}.to({other})`?"


@when(r"on the same device|not on the expected device|device type|same device")
def devices(found: re.Match[str], statement: Statement) -> str:
    """Operands on different devices."""
    where = {name: str(value.device) for name, value in statement.operands() if name in statement.names}
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
