"""Axis names that flow: which axis of a result is which axis of what it was made from.

Names begin at annotations. Each operation hands them on by a rule for its kind; where there is no rule, or where it
cannot be told, an axis has no name, and its size is all that is said. Names never come from sizes alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from tinyomni.tracing.operations import tensors_among
from tinyomni.tracing.tensors import Size, TensorNotes, sizes

Axes = tuple[str, ...]
"""A name for each axis of a tensor, "" where it has none."""

# fmt: off
SAME = {
    "abs", "batch_norm", "bfloat16", "bool", "ceil", "clamp", "clamp_", "clip", "clone", "contiguous", "cos", "cpu",
    "cuda", "cumprod", "cumsum", "detach", "double", "dropout", "dropout_", "elu", "empty_like", "erf", "exp", "exp_",
    "flip", "float", "floor", "full_like", "gelu", "group_norm", "half", "hardswish", "instance_norm", "int",
    "layer_norm", "leaky_relu", "log", "log1p", "log_softmax", "logical_not", "logsigmoid", "long", "masked_fill",
    "masked_fill_", "mish", "nan_to_num", "neg", "normalize", "ones_like", "rand_like", "randn_like", "relu", "relu_",
    "requires_grad_", "rms_norm", "roll", "round", "rsqrt", "rsqrt_", "sigmoid", "sign", "silu", "sin", "softmax",
    "softplus", "sort", "sqrt", "square", "tanh", "to", "tril", "triu", "type", "type_as", "zeros_like",
}
POINTWISE = {
    "add", "add_", "addcmul", "and", "atan2", "div", "div_", "eq", "floor_divide", "floordiv", "fmod", "ge", "gt",
    "iand", "invert", "ior", "le", "lerp", "logical_and", "logical_or", "lt", "maximum", "minimum", "mod", "mse_loss",
    "mul", "mul_", "ne", "or", "pow", "remainder", "sub", "sub_", "where", "xor",
}
REDUCTIONS = {
    "all", "amax", "amin", "any", "argmax", "argmin", "count_nonzero", "logsumexp", "max", "mean", "median", "min",
    "mode", "nanmean", "nansum", "norm", "prod", "std", "sum", "var",
}
# fmt: on


class NameFlow:
    """The names of the axes of tensors, for as long as the tensors live."""

    def __init__(self) -> None:
        self._names = TensorNotes[Axes]()

    def of(self, tensor: Tensor) -> Axes:
        """The names of a tensor's axes."""
        return self._names.get(tensor) or ("",) * tensor.dim()

    def annotate(self, tensor: Tensor, names: Axes) -> None:
        """Name the axes of a tensor by an annotation; where that says nothing, an axis keeps its name."""
        if len(names) == tensor.dim():
            self.give(tensor, tuple(new or old for new, old in zip(names, self.of(tensor), strict=True)))

    def give(self, tensor: Tensor, names: Axes) -> None:
        """Name the axes of a tensor."""
        if len(names) == tensor.dim():
            self._names[tensor] = names

    def operation(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Hand the names on to what an operation gave."""
        tensors = list(tensors_among((*args, *kwargs.values())))
        if not any(any(self.of(tensor)) for tensor in tensors):
            return
        results = [result] if isinstance(result, Tensor) else list(result)
        rule = RULES.get(name)
        for each in results:
            if not isinstance(each, Tensor):
                continue
            if rule is not None:
                names = rule(self, args, kwargs, each)
            elif name in SAME:
                names = self.of(tensors[0]) if tensors[0].dim() == each.dim() else ()
            elif name in POINTWISE:
                names = self.spread(tensors, each)
            elif name in REDUCTIONS:
                names = self.reduced(args, kwargs, each)
            else:
                names = self.untouched(tensors[0], each)
            self.give(each, names)

    def spread(self, tensors: Sequence[Tensor], result: Tensor) -> Axes:
        """Names of what was broadcast together, of axes that were not stretched. Two names for one axis are none."""
        found = []
        for axis, size in enumerate(sizes(result), start=-result.dim()):
            names = {
                self.of(tensor)[axis]
                for tensor in tensors
                if tensor.dim() >= -axis and (sizes(tensor)[axis] == size) and self.of(tensor)[axis]
            }
            found.append(names.pop() if len(names) == 1 else "")
        return tuple(found)

    def reduced(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
        """Names without the axes that were summed up."""
        given, names = args[0], self.of(args[0])
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if dims is None or isinstance(dims, (Tensor, bool)):
            return ()
        gone = {dim % given.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
        if result.dim() == given.dim():  # keepdim
            return tuple("" if axis in gone else name for axis, name in enumerate(names))
        return tuple(name for axis, name in enumerate(names) if axis not in gone)

    def untouched(self, given: Tensor, result: Tensor) -> Axes:
        """An operation without a rule: if it keeps a shape of different sizes, it keeps their order."""
        one, other = sizes(given), sizes(result)
        large = [size for size in one if size != 1]
        return self.of(given) if one == other and len(set(large)) == len(large) else ()


# ---- one rule an operation ------------------------------------------------------------------------------------------

Rule = Callable[[NameFlow, tuple[Any, ...], dict[str, Any], Tensor], Axes]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    """An argument by its place or its name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


@rule("transpose", "transpose_", "swapaxes", "swapdims", "t", "T", "mT")
def transpose(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """Two axes exchanged; `.T` and `.mT` exchange the last two."""
    names = list(flow.of(args[0]))
    one, other = argument(args, kwargs, 1, "dim0", -2), argument(args, kwargs, 2, "dim1", -1)
    if len(names) > 1:
        names[one], names[other] = names[other], names[one]
    return tuple(names)


@rule("permute")
def permute(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """Axes in another order."""
    dims = kwargs.get("dims", args[1:])
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    return tuple(flow.of(args[0])[dim] for dim in dims)


@rule("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "squeeze", "squeeze_", "ravel")
def regroup(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """Axes that were merged or split: equal sizes from the left are the same axis, two that became one are `a*b`."""
    before, after, names = sizes(args[0]), sizes(result), flow.of(args[0])
    return tuple(_regrouped(before, after, names))


def _regrouped(before: Sequence[Size], after: Sequence[Size], names: Axes) -> Iterator[str]:
    i = j = 0
    while j < len(after):
        if i < len(before) and before[i] == after[j]:
            yield names[i]
            i, j = i + 1, j + 1
            continue
        if i < len(before) and before[i] == 1:
            i += 1
            continue
        if after[j] == 1:
            yield ""
            j += 1
            continue
        left, right, start, first = 1, 1, i, j
        while i < len(before) or j < len(after):  # take axes on both sides until the products are equal
            if left <= right and i < len(before):
                left, i = left * _int(before[i]), i + 1
            elif j < len(after):
                right, j = right * _int(after[j]), j + 1
            else:
                break
            if left == right and i > start and j > first:
                break
        merged = [names[axis] for axis in range(start, i) if before[axis] != 1]
        whole = "*".join(merged) if j - first == 1 and all(merged) else ""
        yield from [whole] if j - first == 1 else [""] * (j - first)


def _int(size: Size) -> int:
    return size if isinstance(size, int) else 1


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """A new axis without a name."""
    names, dim = list(flow.of(args[0])), argument(args, kwargs, 1, "dim") % result.dim()
    return (*names[:dim], "", *names[dim:])


@rule("expand", "expand_as", "broadcast_to", "repeat")
def expand(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """Axes that keep their size keep their name."""
    return flow.spread([args[0]], result)


@rule("matmul", "bmm", "mm", "mv")
def matmul(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """The rows of the left, the columns of the right, and what both have before."""
    left, right = args[0], args[1]
    if min(left.dim(), right.dim()) < 2:
        return flow.of(left)[:-1] if right.dim() == 1 else ()
    return (*_before(flow, left, right, result), flow.of(left)[-2], flow.of(right)[-1])


def _before(flow: NameFlow, left: Tensor, right: Tensor, result: Tensor) -> Axes:
    """Names of the batch axes of a product."""
    found = []
    for axis in range(-result.dim(), -2):
        names = {
            flow.of(tensor)[axis]
            for tensor in (left, right)
            if tensor.dim() >= -axis and sizes(tensor)[axis] == sizes(result)[axis]
        } - {""}
        found.append(names.pop() if len(names) == 1 else "")
    return tuple(found)


@rule("linear")
def linear(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """All but the last axis; the width is the layer's."""
    return (*flow.of(args[0])[:-1], "")


@rule("einsum")
def einsum(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """The letters say it."""
    equation = args[0].replace(" ", "")
    operands = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
    inputs, arrow, output = equation.partition("->")
    if "." in equation or not arrow:
        return ()
    letters: dict[str, str] = {}
    for word, tensor in zip(inputs.split(","), operands, strict=True):
        for letter, name in zip(word, flow.of(tensor), strict=True):
            letters[letter] = letters.get(letter) or name
    return tuple(letters.get(letter, "") for letter in output)


@rule("scaled_dot_product_attention")
def attention(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """The queries with the width of the values."""
    return (*flow.of(args[0])[:-1], flow.of(args[2])[-1] if len(args) > 2 else "")


@rule("cat", "concat", "concatenate")
def cat(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """The axis that grows is `a+b`, or keeps the name that all parts give it."""
    tensors, dim = args[0], argument(args, kwargs, 1, "dim", 0) % result.dim()
    names = []
    for axis in range(result.dim()):
        found = [flow.of(tensor)[axis] for tensor in tensors]
        if axis == dim:
            names.append("" if not all(found) else found[0] if len(set(found)) == 1 else "+".join(found))
        else:
            some = set(found) - {""}
            names.append(some.pop() if len(some) == 1 else "")
    return tuple(names)


@rule("stack")
def stack(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """A new axis without a name."""
    names, dim = list(flow.of(args[0][0])), argument(args, kwargs, 1, "dim", 0) % result.dim()
    return (*names[:dim], "", *names[dim:])


@rule("split", "chunk", "tensor_split", "unbind", "topk", "narrow")
def split(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """A part of an axis has no name of its own."""
    names, given = list(flow.of(args[0])), args[0]
    if result.dim() == given.dim():
        return tuple(name if a == b else "" for name, a, b in zip(names, sizes(given), sizes(result), strict=True))
    dim = argument(args, kwargs, 1, "dim", 0) % given.dim()  # unbind
    return tuple(name for axis, name in enumerate(names) if axis != dim)


@rule("getitem")
def getitem(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """Slices keep the name, numbers drop the axis, None adds one; an index tensor brings its own axes."""
    given, index = args
    index = index if isinstance(index, tuple) else (index,)
    names, found = list(flow.of(given)), []
    used = sum(each is not None and each is not Ellipsis for each in index)
    if any(isinstance(each, Tensor) and each.dtype.is_floating_point is False and each.dim() != 1 for each in index):
        return ()
    if sum(isinstance(each, (Tensor, list)) for each in index) > 1:
        return ()
    for each in index:
        if each is None:
            found.append("")
        elif each is Ellipsis:
            rest = len(names) - used
            found += names[:rest]
            names = names[rest:]
        else:
            name, names = names[0], names[1:]
            used -= 1
            if isinstance(each, slice):
                found.append(name)
            elif isinstance(each, Tensor):
                found.append(flow.of(each)[0])
            elif not isinstance(each, int):
                found.append("")
    return (*found, *names)


@rule("embedding")
def embedding(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """The axes of the ids, and the width of the table."""
    return (*flow.of(args[0]), "")


@rule("gather", "take_along_dim")
def gather(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """The axes of the index."""
    return flow.of(args[2] if len(args) > 2 else kwargs["index"])


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "max_pool1d", "max_pool2d", "avg_pool1d",
      "avg_pool2d", "interpolate", "pad")  # fmt: skip
def convolution(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """Axes that keep their size keep their name, the batch first of all; what is newly computed has none."""
    given = args[0]
    if given.dim() != result.dim():
        return ()
    pairs = zip(flow.of(given), sizes(given), sizes(result), strict=True)
    return tuple(name if place == 0 or (a == b and place > 1) else "" for place, (name, a, b) in enumerate(pairs))


@rule("repeat_interleave")
def repeat_interleave(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """The axis that grows loses its name; without `dim` all axes became one."""
    return flow.spread([args[0]], result) if result.dim() == args[0].dim() > 1 else ()


@rule("cdist")
def cdist(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """The rows of the left and the rows of the right."""
    return (*_before(flow, args[0], args[1], result), flow.of(args[0])[-2], flow.of(args[1])[-2])


@rule("movedim", "unfold", "bincount", "one_hot", "outer", "kron", "index_select", "masked_select")
def unknown(flow: NameFlow, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Axes:
    """Nothing that could be told from the arguments alone."""
    return ()
