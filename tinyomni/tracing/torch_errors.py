"""What a shape error that torch raises means: the line, the shapes in it, the layer, a likely fix.

Only sizes and dtypes are read, never values.
"""

import ast
import linecache
import math
import types
from typing import Any

import torch
from torch import Tensor, nn

from tinyomni.tracing import tensors
from tinyomni.tracing.functions import file_of, is_library
from tinyomni.tracing.mismatch import Context


def layer_trouble(module: nn.Module, value: Any, path: str, context: Context) -> str:
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
            expected, last = module.in_features, shape[-1]
            text = (
                f"{label} is a Linear and takes {expected} features on the last axis; {got}: the last axis is {last}."
            )
            return f"{text} {linear_fix(value, expected, context)}"
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
            expected_shape = tuple(module.normalized_shape)
            if shape[len(shape) - len(expected_shape) :] != expected_shape:
                fix = context.layer(shape[-1], expected_shape[-1])
                return f"{label} normalizes the last axes {expected_shape}; {got}. {fix}"
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() if (
            len(shape) > 1 and shape[1] != module.num_features
        ):
            return f"{label} takes {module.num_features} channels on axis 1; {got}."
        case nn.RNNBase() if shape and shape[-1] != module.input_size:
            return f"{label} takes {module.input_size} features on the last axis; {got}."
    return ""


def linear_fix(value: Tensor, expected: int, context: Context) -> str:
    """Transposed, not flattened, flattened too far, or not projected."""
    shape = tuple(value.shape)
    if expected in shape:
        return f"Axis {shape.index(expected)} has {expected}: `x.transpose({shape.index(expected)}, -1)`?"
    for start in range(1, len(shape) - 1):
        if math.prod(shape[start:]) == expected:
            return f"{' × '.join(map(str, shape[start:]))} = {expected}: `x.flatten({start})` before it?"
    return context.layer(shape[-1], expected) or (
        f"Either the layer before it should give {expected}, or this one should be Linear({shape[-1]}, …)."
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
            shapes[ast.unparse(node)] = tensors.show(found)
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


def explain(error: BaseException, context: Context) -> str:
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
    package = __name__.rpartition(".")[0]
    frames = [(frame, line) for frame, line in frames if not frame.f_globals.get("__name__", "").startswith(package)]
    users = [(frame, line) for frame, line in frames if not is_library(frame.f_code)]
    if not users:
        return ""
    frame, line = users[-1]
    where = f"{file_of(frame.f_code, frame.f_globals)}:{line}, in {frame.f_code.co_qualname}"
    text = f"{where}\n    {line_of(frame, line)}"
    for inner, _ in frames[frames.index(users[-1]) :]:
        module = inner.f_locals.get("self")
        if inner.f_code.co_name in ("forward", "_conv_forward") and isinstance(module, nn.Module):
            values = [value for name, value in inner.f_locals.items() if name != "self" and isinstance(value, Tensor)]
            trouble = layer_trouble(module, values[0], context.path(module), context) if values else ""
            if trouble:
                return f"{text}\n{trouble}"
    return f"{text}\ntorch says: {str(error).splitlines()[0]}"
