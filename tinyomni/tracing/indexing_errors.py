"""What errors about indices mean: indexing, gathering, scattering, cutting out. One function an error, as in
`operation_errors`.
"""

import ast
import re

import torch
from torch import Tensor

from tinyomni.tracing.operation_errors import argument, pair, shape, when, without
from tinyomni.tracing.statements import Statement

# ---- entries that are not there


@when(r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)")
def bounds(found: re.Match[str], statement: Statement) -> str:
    """An index beyond the end."""
    index, place, size = map(int, found.groups())
    axis = _axis_out_of_bounds(statement, index, place, size)
    return _beyond(f"Axis {axis}" if axis is not None else "An axis", size, index)


@when(r"select\(\): index (-?\d+) out of range for tensor of size \[(.*?)\] at dimension (-?\d+)")
def select(found: re.Match[str], statement: Statement) -> str:
    """`x.select(1, 9)` with fewer entries along that dim."""
    sizes = [int(each) for each in found[2].split(", ")]
    axis = int(found[3]) % len(sizes)
    return _beyond(f"Axis {axis}", sizes[axis], int(found[1]))


def _beyond(axis: str, size: int, index: int) -> str:
    where = "beyond the end" if index >= 0 else f"before the beginning, -{size}"
    return f"{axis} has {size} entries, 0 … {size - 1}; index {index} is {where}."


def _axis_out_of_bounds(statement: Statement, index: int, place: int, size: int) -> int | None:
    """The axis that torch means: of indices that are tensors, its number counts these alone. None: cannot be told."""
    if not isinstance(statement.part, ast.Subscript):
        return place
    tensor = statement.value(statement.part.value)
    if not isinstance(tensor, Tensor):
        return None
    fitting = [axis for axis, each in enumerate(tensor.shape) if each == size]
    if len(fitting) == 1:
        return fitting[0]
    axes = [(axis, statement.value(node)) for axis, node in _indexed(tensor, statement.part, statement)]
    for axis, value in axes:
        if type(value) is int and value == index and axis in fitting:
            return axis
    among = [(axis, value) for axis, value in axes if type(value) is not int]
    if place >= len(among) or not all(isinstance(value, Tensor) for _, value in among):
        return None
    axis = among[place][0]
    return axis if axis in fitting else None


def _indexed(tensor: Tensor, part: ast.Subscript, statement: Statement) -> list[tuple[int, ast.expr]]:
    """The axes that are indexed, each with its index; slices are none. A mask stands for as many axes as it has."""
    written = _indices(part)
    taken = [_width(each, statement) for each in written]
    found: list[tuple[int, ast.expr]] = []
    axis = 0
    for node, width in zip(written, taken, strict=True):
        if isinstance(node, ast.Constant) and node.value is ...:
            axis += tensor.ndim - sum(taken)
            continue
        found += [(each, node) for each in range(axis, axis + width) if not isinstance(node, ast.Slice)]
        axis += width
    return [(axis, node) for axis, node in found if axis < tensor.ndim]


def _indices(part: ast.Subscript) -> list[ast.expr]:
    return part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]


def _width(node: ast.expr, statement: Statement) -> int:
    """How many axes an index stands for."""
    if isinstance(node, ast.Constant) and (node.value is None or node.value is ...):  # a new axis; all that are left
        return 0
    value = statement.value(node)
    return value.ndim if isinstance(value, Tensor) and value.dtype == torch.bool else 1


@when(r"too many indices for tensor of dimension (\d+)")
def indices(found: re.Match[str], statement: Statement) -> str:
    """`x[:, :, 0]` of a tensor with two dims."""
    for name, value in statement.operands()[:1]:
        part = statement.part
        taken = [_width(each, statement) for each in _indices(part)] if isinstance(part, ast.Subscript) else []
        asked = f", and {sum(taken)} are indexed" if sum(taken) > 1 else ""
        by_mask = "; a mask stands for as many as it has" if max(taken, default=0) > 1 else ""
        return f"{name} {shape(value)} has {found[1]} dims{asked}{by_mask}. Was an axis dropped before?"
    return ""


@when(r"tuple index out of range")
def shape_index(found: re.Match[str], statement: Statement) -> str:
    """`x.shape[3]` of a tensor with three dims."""
    for node in ast.walk(statement.part) if statement.part is not None else ():
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            value = statement.value(node.value.value)
            at = statement.value(node.slice) if isinstance(node.slice, ast.Name) else _number(node.slice)
            if isinstance(value, Tensor) and (type(at) is not int or not -value.ndim <= at < value.ndim):
                name = ast.unparse(node.value.value)
                return f"{name} {shape(value)} has {value.ndim} dims: there is no `{ast.unparse(node)}`."
    return ""


@when(r"^index out of range in self|INDICES element is out of DATA bounds")
def table(found: re.Match[str], statement: Statement) -> str:
    """An id beyond the rows of a table."""
    if _name(statement) == "index_select":
        tensor, dim = statement.value(_receiver(statement)), _dim(statement)
        if not isinstance(tensor, Tensor) or dim is None:
            return ""
        return f"An index is beyond the {tensor.shape[dim]} entries of axis {dim % tensor.ndim}."
    written = statement.part.keywords if isinstance(statement.part, ast.Call) else []
    node = next((each.value for each in written if each.arg == "weight"), None)
    named = [(ast.unparse(node), statement.value(node))] if node is not None else statement.operands()
    for name, value in named:  # torch.embedding takes the table first, F.embedding the ids
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            return f"An id is outside 0 … {len(value) - 1}: the table {name} {shape(value)} has {len(value)} rows."
    return ""


@when(r"Index tensor must have the same number of dimensions as input tensor")
def gather(found: re.Match[str], statement: Statement) -> str:
    """`gather` with an index that has an axis too few."""
    if (both := pair(statement)) is None:
        return ""
    (a, source), (b, index) = both
    text = f"gather takes an index with as many dims as the tensor; got {a} {shape(source)} and {b} {shape(index)}."
    if (along := _along(statement, 0, source, index)) is None:
        return text
    written, axis = along
    fixes = []
    if shape(index) == without(shape(source), axis):  # one entry is taken along this dim
        fixes.append(f"`{a}.gather({written}, {b}.unsqueeze({written})).squeeze({written})`")
    if axis < index.ndim and without(shape(index), axis) == without(shape(source)[:-1], axis):  # whole rows
        spread = ", ".join(["-1"] * index.ndim + [str(source.shape[-1])])
        fixes.append(f"`{a}.gather({written}, {b}.unsqueeze(-1).expand({spread}))`")
    return f"{text} {', or '.join(fixes)}?" if fixes else text


@when(r"take_along_dim\(\): input and indices should have the same number of dimensions")
def take_along(found: re.Match[str], statement: Statement) -> str:
    """One index for each row, without the axis along which it takes."""
    if (both := pair(statement)) is None:
        return ""
    (a, source), (b, index) = both
    text = f"take_along_dim takes indices with as many dims as the tensor; got {a} {shape(source)}, {b} {shape(index)}."
    if (along := _along(statement, 1, source, index)) is None:
        return text
    written, axis = along
    if shape(index) == without(shape(source), axis):
        return f"{text} `{b}.unsqueeze({written})`?"
    return f"{text} `{b}.unsqueeze(-1)`?" if shape(index)[:axis] == shape(source)[:axis] else text


def _along(statement: Statement, place: int, source: Tensor, index: Tensor) -> tuple[str, int] | None:
    """The dim along which an index with one axis less takes: as it is written, and counted from 0."""
    node = argument(statement, "dim", place)
    dim = statement.value(node)
    if node is None or type(dim) is not int or index.ndim != source.ndim - 1 or not -source.ndim <= dim < source.ndim:
        return None
    return ast.unparse(node), dim % source.ndim


@when(r"start \((-?\d+)\) \+ length \((\d+)\) exceeds dimension size \((\d+)\)")
def narrow(found: re.Match[str], statement: Statement) -> str:
    """The end in the place of the length."""
    start, length, size = map(int, found.groups())
    text = f"narrow takes a length, not an end: {start} + {length} is more than the {size} entries of this axis."
    return f"{text} `length={length - start}`?" if start < length <= size else text


@when(r"maximum size for tensor at dimension (\d+) is (\d+) but size is (\d+)")
def unfold(found: re.Match[str], statement: Statement) -> str:
    """A window that is longer than what it slides over."""
    return f"A window of {found[3]} does not fit into the {found[2]} entries of axis {found[1]}: pad them with `F.pad`?"


# ---- indices of another kind


@when(r"tensors used as indices must be long, int, byte or bool tensors")
def index_dtype(found: re.Match[str], statement: Statement) -> str:
    """Indices that were computed as floats; probabilities in the place of their argmax."""
    part = statement.part.slice if isinstance(statement.part, ast.Subscript) else None
    for node in part.elts if isinstance(part, ast.Tuple) else [part]:
        value = statement.value(node)
        if isinstance(value, Tensor) and value.dtype.is_floating_point and node is not None:
            kind = str(value.dtype).removeprefix("torch.")
            fix = "`.argmax(-1)`" if "softmax" in ast.unparse(node) else "`.long()`, or `.bool()` of a mask"
            return f"Indices are integers, or a mask of bool; got {ast.unparse(node)} {shape(value)} {kind}: {fix}?"
    return "Indices are integers, or a mask of bool: `.long()`, or `.bool()` of a mask?"


@when(r"Expected (?:a long tensor|dtype int(?:32(?: or |/int)64|64)) for index|dtype of indices should be Long")
def index_argument(found: re.Match[str], statement: Statement) -> str:
    """Floats as the index of `gather`, `scatter` and the like."""
    name = {"take_along_dim": "indices"}.get(_name(statement), "index")
    node = argument(statement, name, 0 if "take" in _name(statement) else 1)
    value = statement.value(node)
    if isinstance(value, Tensor) and node is not None:
        kind = str(value.dtype).removeprefix("torch.")
        fix = f"`{_text(node)}.long()`"
        return f"`{_name(statement)}` takes integers as its index; got {ast.unparse(node)} {kind}: {fix}?"
    return f"`{_name(statement)}` takes integers as its index: `.long()`?"


@when(
    r"shape of the mask \[(.*?)\] at index (\d+) does not match "
    r"the shape of the indexed tensor \[(.*?)\] at index (\d+)"
)
def mask_shape(found: re.Match[str], statement: Statement) -> str:
    """`x[mask]` with a mask that is transposed, or of another length."""
    mask, tensor = ([int(size) for size in found[each].split(", ")] for each in (1, 3))
    at, axis = int(found[2]), int(found[4])
    first = axis - at  # of the axes that the mask stands for
    taken = tensor[first : first + len(mask)]
    text = f"A mask stands for as many axes as it has, here {tuple(taken)}; got {tuple(mask)}"
    if mask[::-1] == taken and len(mask) > 1:
        turned = "T" if len(mask) == 2 else f"permute{tuple(reversed(range(len(mask))))}"
        return f"{text}: transpose it, `.{turned}`?"
    return f"{text}: axis {axis} has {tensor[axis]}, and the mask {mask[at]}."


@when(r"Class values must be smaller than num_classes")
def one_hot_range(found: re.Match[str], statement: Statement) -> str:
    """A label beyond the last class."""
    count = statement.value(argument(statement, "num_classes", 0))
    if type(count) is not int:
        return ""
    return (
        f"one_hot with {count} classes takes labels 0 … {count - 1}, and one is beyond. Do they begin at 1? "
        f"Is {count} too few?"
    )


# ---- scattering


@when(r"Index tensor must have the same number of dimensions as (?:self|src) tensor")
def scatter(found: re.Match[str], statement: Statement) -> str:
    """`scatter` with one index for each row, where it takes one for each number."""
    name, dim = _name(statement), _dim(statement)
    node = argument(statement, "index", 1)
    index, source = statement.value(node), statement.value(argument(statement, "src", 2))
    if not isinstance(index, Tensor) or node is None:
        return ""
    written = _text(node)
    text = f"`{name}` takes one index for each number, with as many dims as the tensor; got {shape(index)}."
    if dim is None:
        return text
    tensor = statement.value(_receiver(statement))
    in_range = isinstance(tensor, Tensor) and -tensor.ndim <= dim < tensor.ndim
    if in_range and shape(index) == without(shape(tensor), dim % tensor.ndim):
        values = ", and so the values" * isinstance(source, Tensor)
        return f"{text} One for each along the other dims: `{written}.unsqueeze({dim})`{values}?"
    if index.ndim != 1:
        return text
    if isinstance(source, Tensor) and source.ndim > 1 and -source.ndim <= dim < source.ndim:
        if source.shape[dim] != len(index):
            return text
        rows = {"scatter_add": "index_add", "scatter_add_": "index_add_"}.get(name)
        spread = [-1 if axis == dim % source.ndim else size for axis, size in enumerate(source.shape)]
        view = f"[{', '.join(':' if size == -1 else 'None' for size in spread)}]"
        fix = f"`{written}{view}.expand({', '.join(map(str, spread))})`"
        return f"{text} One for each entry along dim {dim}: " + (f"`{rows}`, or {fix}?" if rows else f"{fix}?")
    return text


@when(
    r"[Ee]xpected index \[(.*?)\] to be (?:no larger|smaller) than (?:self|src) \[(.*?)\] apart from dimension (\d+)"
    r"(?: and to be (?:no larger size|smaller size) than src \[(.*?)\])?"
)
def scatter_sizes(found: re.Match[str], statement: Statement) -> str:
    """More indices than there are numbers to take, or places beside which to put them."""
    index, tensor, source = ([int(size) for size in each.split(", ")] if each else [] for each in found.group(1, 2, 4))
    dim = int(found[3])
    told = [
        f"axis {axis} has {size} indices, and the tensor {tensor[axis]}"
        for axis, size in enumerate(index)
        if axis != dim and size > tensor[axis]
    ]
    told += [f"axis {axis} has {size} indices for {source[axis]} values" for axis, size in enumerate(index)
             if source and size > source[axis]]  # fmt: skip
    fits = len(index) == 2 and not source and index[dim] <= tensor[1 - dim] and index[1 - dim] <= tensor[dim]
    hint = f" Is `dim={1 - dim}` meant, or `.T`?" if fits else ""
    return f"`{_name(statement)}` along dim {dim}, with an index {tuple(index)}: {'; '.join(told)}.{hint}"


@when(r"index_\w+\(\): Number of indices \((\d+)\) should be equal to source\.size\(dim\):? \((\d+)\)")
def index_count(found: re.Match[str], statement: Statement) -> str:
    """An index for each entry of the source: of another axis, or one that was cut."""
    count, entries = int(found[1]), int(found[2])
    source = statement.value(argument(statement, "source", 2))
    tensor = statement.value(_receiver(statement))
    fix = " Was one of them cut or padded?"
    for axis, size in enumerate(source.shape) if isinstance(source, Tensor) and isinstance(tensor, Tensor) else ():
        if size == count and without(shape(source), axis) == without(shape(tensor), axis):
            fix = f" `dim={axis}`?"
    dim = _dim(statement)
    along = f" along dim {dim}" if dim is not None else ""
    return f"`{_name(statement)}` takes one index for each entry of the source{along}: {count} for {entries}.{fix}"


@when(r"index_\w+\(\): (?:Index is supposed to be (?:a vector|1-dimensional)|Index should have dimension 1)")
def index_vector(found: re.Match[str], statement: Statement) -> str:
    """Indices with an axis too many."""
    node = argument(statement, "index", 1)
    index = statement.value(node)
    if not isinstance(index, Tensor) or node is None:
        return ""
    ones = [axis for axis, size in enumerate(index.shape) if size == 1]
    text = f"`{_name(statement)}` takes a list of indices, (n,); got {shape(index)}"
    if ones and index.ndim == 2:
        return f"{text}: `{_text(node)}.squeeze({ones[-1]})`?"
    return text + (f": `{_text(node)}.flatten()`?" if _name(statement) == "index_select" else ".")


@when(r"source tensor shape must match self tensor shape.*Got self.shape = \[(.*?)\],? source.shape = \[(.*?)\]")
def index_source(found: re.Match[str], statement: Statement) -> str:
    """The other axes of a source are those of the tensor."""
    tensor, source = (tuple(int(size) for size in each.split(", ")) for each in found.groups())
    dim = _dim(statement)
    if dim is None or len(tensor) != len(source):
        return f"`{_name(statement)}` needs a source with the other axes of the tensor {tensor}; got {source}."
    dim %= len(tensor)
    told = [f"axis {axis} has {source[axis]}, and the tensor {size}" for axis, size in enumerate(tensor)
            if axis != dim and size != source[axis]]  # fmt: skip
    text = f"`{_name(statement)}` along dim {dim} needs a source with the other axes of the tensor"
    return f"{text}: {'; '.join(told)}."


def _number(node: ast.expr) -> object:
    """A number as it is written, also a negative one."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _text(node: ast.expr) -> str:
    """An expression as something of which an attribute can be taken."""
    text = ast.unparse(node)
    return f"({text})" if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp)) else text


def _receiver(statement: Statement) -> ast.expr | None:
    """The tensor of the failing call: `x.scatter(…)`, `torch.scatter(x, …)`."""
    if (given := argument(statement, "input", -1)) is not None:
        return given
    func = statement.part.func if isinstance(statement.part, ast.Call) else None
    return func.value if isinstance(func, ast.Attribute) else None


def _name(statement: Statement) -> str:
    """`scatter_add`, of the failing call."""
    part = statement.part
    return ast.unparse(part.func).rpartition(".")[2] if isinstance(part, ast.Call) else "it"


def _dim(statement: Statement) -> int | None:
    """The dim of the failing call, as a number."""
    dim = statement.value(argument(statement, "dim", 0))
    return dim if type(dim) is int else None
