"""Why a layer of torch.nn cannot take a tensor: what it takes, what it got, a likely fix."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tinyomni.tracing import tensors
from tinyomni.tracing.mismatch import Context

NORMS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}


def layer_trouble(
    module: nn.Module, values: Mapping[str, Any], path: str, context: Context, name: str = "input"
) -> str:
    """Why this layer cannot take these arguments; "" if it looks as if it can. `name`: the first one, as written."""
    value = next((each for each in values.values() if isinstance(each, Tensor)), None)
    if value is None:
        return ""
    if isinstance(module, nn.RNNBase) and values.get("is_batched") is False:  # torch has added the batch axis by now
        value = value.squeeze(0 if module.batch_first else 1)
    label, got = f"`{path or type(module).__name__}`", f"got {tensors.show(value)}"
    shape = tuple(value.shape)
    return _shape_trouble(module, value, shape, label, got, values, context, path, name) or _kind_trouble(
        module, value, label, name
    )


def _shape_trouble(
    module: nn.Module,
    value: Tensor,
    shape: tuple[int, ...],
    label: str,
    got: str,
    values: Mapping[str, Any],
    context: Context,
    path: str,
    name: str,
) -> str:
    match module:
        case nn.Embedding() if value.dtype not in (torch.int64, torch.int32):
            one_hot = f"Are its rows one-hot? `{name}.argmax(-1)`." if shape[-1:] == (module.num_embeddings,) else ""
            fix = one_hot or f"`{name}.long()`, or is this the wrong input?"
            return f"{label} is an Embedding and looks up int64; {got}. {fix}"
        case nn.Embedding() if value.device == module.weight.device:
            if shape and shape[-1] > module.num_embeddings:
                return (
                    f"{label} is an Embedding of {module.num_embeddings} rows; {got}. "
                    f"If these are positions, there are more of them, {shape[-1]}, than the table has: "
                    "a longer table, or a shorter input?"
                )
            return (
                f"{label} is an Embedding of {module.num_embeddings} rows; {got}, "
                f"and an id in it is outside 0 … {module.num_embeddings - 1}. Was another tokenizer used, "
                "or a padding of -100 left in?"
            )
        case nn.Linear() if shape and shape[-1] != module.in_features:
            text = f"{label} is a Linear and takes {module.in_features} features on the last axis; {got}"
            fix = linear_fix(shape, module.in_features, context, path, name)
            return f"{text}: the last axis is {shape[-1]}. {fix}"
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return _convolution(module, value, label, got, context, name)
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return _convolution(module, value, label, got, context, name) or _kernel(module, shape, label, got)
        case nn.LayerNorm() | nn.RMSNorm():
            expected = tuple(module.normalized_shape)
            if shape[len(shape) - len(expected) :] != expected:
                fix = norm_fix(shape, expected, context, path, name)
                return f"{label} normalizes the last axes {expected}; {got}. {fix}".rstrip()
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            return _batch_norm(module, shape, label, got, name)
        case nn.GroupNorm() if len(shape) > 1 and shape[1] != module.num_channels:
            fix = _moved(shape, 1, module.num_channels, name)
            return f"{label} takes {module.num_channels} channels on axis 1; {got}.{fix}"
        case nn.RNNBase():
            return _recurrent(module, shape, label, got, values, name)
        case nn.MultiheadAttention():
            return _attention(module, label, values)
        case nn.TransformerEncoder() | nn.TransformerEncoderLayer():
            return _padding(module, label, values)
        case nn.Transformer():
            return _source_and_target(module, label, values)
        case nn.MaxPool1d() | nn.MaxPool2d() | nn.AvgPool1d() | nn.AvgPool2d():
            return f"{label} pools windows of {module.kernel_size}; {got}: nothing is left. {FEWER}"
        case nn.Bilinear():
            second = values.get("input2", value)
            expected, found = (module.in1_features, module.in2_features), (shape[-1], second.shape[-1])
            if expected != found:
                return f"{label} takes {expected[0]} and {expected[1]} features; got {found[0]} and {found[1]}."
    return ""


def _kind_trouble(module: nn.Module, value: Tensor, label: str, name: str) -> str:
    """Another dtype or device than the layer's own weights."""
    weight = next(iter(module._parameters.values()), None)
    if weight is None:
        weight = next(iter(module.parameters()), None)
    if weight is None or isinstance(module, nn.Embedding):
        return ""
    kind, dtype = type(module).__name__, tensors.dtype_name(weight.dtype)
    if weight.device != value.device:
        here, there = tensors.device_name(weight.device), tensors.device_name(value.device)
        return (
            f"{label} is a {kind} on {here}; its input {tensors.show(value)} is on {there}. "
            f"`model.to({str(value.device)!r})`, or `{name}.to({str(weight.device)!r})`?"
        )
    if weight.dtype != value.dtype:
        numpy = " NumPy's floats are float64." if value.dtype == torch.float64 else ""
        if value.dtype.is_complex and not weight.dtype.is_complex:
            return f"{label} is a {kind} of {dtype}; its input {tensors.show(value)} is complex. `{name}.abs()`?"
        divide = " Divide an image by 255, too." if value.dtype == torch.uint8 else ""
        return (
            f"{label} is a {kind} of {dtype}; its input {tensors.show(value)} has another dtype. "
            f"`{name}.to({weight.dtype})`?{numpy}{divide}"
        )
    return ""


FEWER = "Fewer strides or poolings before it, or a larger input?"


def norm_fix(shape: tuple[int, ...], expected: tuple[int, ...], context: Context, path: str, name: str) -> str:
    """The features on another axis, joined where they should be added, or not projected."""
    size, last = expected[-1], shape[-1] if shape else 0
    if len(expected) == 1 and size in shape:
        return _moved(shape, len(shape) - 1, size, name).strip()
    if last in (2 * size, 3 * size):
        return f"{last} = {last // size} × {size}: were tensors joined by `cat` that should be added?"
    return context.layer(last, size, path)


def linear_fix(shape: tuple[int, ...], expected: int, context: Context, path: str, name: str) -> str:
    """Transposed, not flattened, flattened too far, not pooled, the batch axis dropped, or not projected."""
    if wrong := _joined_wrong(shape, len(shape) - 1, expected, context):
        return wrong
    ones = next((start for start in range(1, len(shape) - 1) if math.prod(shape[start + 1 :]) == 1), 0)
    if ones and shape[ones] == expected:
        return f"The last axes are 1: `{name}.flatten({ones})` before it?"
    if len(shape) > 3 and shape[1] == expected > 1:  # an image: height and width keep their order
        return f"Axis 1 has {expected}. Are the channels first? `{name}.permute{(0, *range(2, len(shape)), 1)}`"
    if expected in shape and expected > 1:
        return f"Axis {shape.index(expected)} has {expected}: `{name}.transpose({shape.index(expected)}, -1)`?"
    for start in range(1, len(shape) - 1):
        if math.prod(shape[start:]) == expected:
            return f"{' × '.join(map(str, shape[start:]))} = {expected}: `{name}.flatten({start})` before it?"
    if len(shape) == 4 and shape[1] * shape[3] == expected:
        heads = f"{shape[1]} × {shape[3]} = {expected}, the axes 1 and 3: were heads not merged?"
        return f"{heads} `{name}.transpose(1, 2).flatten(2)`."
    product = " × ".join(map(str, shape))
    if len(shape) > 1 and math.prod(shape) == expected:
        return f"{product} = {expected}, so this is all of one sample: was the batch axis dropped? Keep it, `x[None]`."
    if len(shape) == 1 and expected == 1:
        return f"One number for each sample: `{name}.unsqueeze(-1)`?"
    if len(shape) == 1 and shape[0] % expected == 0:
        flat = f"{name.removesuffix('.flatten()')}.flatten(1)" if name.endswith(".flatten()") else ".flatten(1)"
        return f"{shape[0]} = {shape[0] // expected} × {expected}: was the batch flattened, too? `{flat}` keeps it."
    for record in reversed(context.steps):
        for value in record.outputs if shape[-1] % expected == 0 else ():
            grid = value.shape[2:]
            if grid and value.shape[1] == expected and math.prod(map(int, grid)) == shape[-1] // expected:
                size = " × ".join(map(str, grid))
                return f"{shape[-1]} = {expected} × {size}: was the pooling of the {size} left out before `flatten`?"
    if wrong := _grown(shape, expected, context):
        return wrong
    return context.layer(shape[-1], expected, path) or (
        f"Either the layer before it should give {expected}, or this one should be Linear({shape[-1]}, …)."
    )


def _joined_wrong(shape: tuple[int, ...], axis: int, expected: int, context: Context) -> str:
    """`cat` along another axis than that of the features, or `stack`, as it is written in the source."""
    made = context.joined
    if made is None or shape[axis] * made.parts != expected or not -len(shape) <= made.dim < len(shape):
        return ""
    at, text = -1 if axis == len(shape) - 1 else axis, f"{expected} = {made.parts} × {shape[axis]}"
    if made.how == "stack":
        return f"{text}: `stack` makes a new axis. `torch.cat(…, dim={at})`?"
    if made.dim % len(shape) == axis:
        return ""
    return f"{text}: joined along the wrong axis? `torch.cat(…, dim={at})`, not {made.dim}."


def _grown(shape: tuple[int, ...], expected: int, context: Context) -> str:
    """`cat` along another axis than the features: k times as long there as what was seen, and k times too narrow."""
    times, rest = divmod(expected, shape[-1])
    for value in (each for record in reversed(context.steps) for each in (*record.outputs, *record.inputs)):
        if rest or times == 1 or len(value.shape) != len(shape):
            continue
        grown = [axis for axis, (got, size) in enumerate(zip(shape, value.shape, strict=True)) if got != size]
        longer = [axis for axis in grown if isinstance(size := value.shape[axis], int) and shape[axis] == times * size]
        if len(grown) == 1 and longer:
            wrong = f"{expected} = {times} × {shape[-1]}: joined along the wrong axis?"
            return f"{wrong} `torch.cat(…, dim=-1)`, not {longer[0]}."
    return ""


def _moved(shape: tuple[int, ...], to: int, size: int, name: str) -> str:
    """The channels are on another axis."""
    where = [axis for axis, found in enumerate(shape) if found == size and axis != to]
    if size == 1:  # says little: a batch of one is no channel
        where = [axis for axis in where if axis == len(shape) - 1]
    if not where:
        return ""
    order = [axis for axis in range(len(shape)) if axis != where[-1]]
    order.insert(to, where[-1])
    if sum(axis != place for place, axis in enumerate(order)) == 2:
        return f" `{name}.transpose({min(to, where[-1])}, {max(to, where[-1])})`?"
    lie = "first" if to == len(shape) - 1 else "last"
    return f" Are the channels {lie}? `{name}.permute({', '.join(map(str, order))})`"


def _tokens_first(value: Tensor, context: Context) -> bool:
    """Did a recurrent layer with batch_first=False make this? The batch is axis 1 of its state, either way."""
    record = context.maker(value)
    if record is None or record.call not in ("RNN.forward", "GRU.forward", "LSTM.forward"):
        return False
    tokens, batch = record.outputs[0].shape[:2]
    return record.outputs[1].shape[1] == batch != tokens


def _convolution(module: Any, value: Tensor, label: str, got: str, context: Context, name: str) -> str:
    shape, dims, channels = tuple(value.shape), len(module.kernel_size) + 2, module.in_channels
    text = f"{label} is a {type(module).__name__} and takes (batch, {channels} channels, …), {dims} dims; {got}."
    if len(shape) not in (dims, dims - 1):
        return f"{text} {f'`{name}.unsqueeze(1)`?' if len(shape) == dims - 2 else ''}".rstrip()
    axis = len(shape) - dims + 1
    if shape[axis] != channels:
        if wrong := _joined_wrong(shape, axis, channels, context):
            return f"{text} {wrong}"
        if len(shape) == dims == 3 and shape[2] == channels and _tokens_first(value, context):
            return f"{text} It is (tokens, batch, features): batch_first is False. `{name}.permute(1, 2, 0)`?"
        if moved := _moved(shape, axis, channels, name):
            return text + moved
        batch = f" `{name}.unsqueeze(1)`, if axis 0 is the batch?" if channels == 1 and len(shape) == dims - 1 else ""
        return f"{text} The channel axis has {shape[axis]}.{batch}"
    return ""


def _kernel(module: Any, shape: tuple[int, ...], label: str, got: str) -> str:
    """A kernel that is larger than what it slides over."""
    padding = module.padding if not isinstance(module.padding, str) else (0,) * len(module.kernel_size)
    sizes = shape[-len(module.kernel_size) :]
    spans = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    if any(size + 2 * pad < span for size, pad, span in zip(sizes, padding, spans, strict=True)):
        return f"{label} slides a kernel of {module.kernel_size} over {sizes}; {got}. {FEWER}"
    return ""


def _batch_norm(module: Any, shape: tuple[int, ...], label: str, got: str, name: str) -> str:
    kind = type(module)
    if len(shape) not in NORMS.get(kind, (len(shape),)):
        better = next((other.__name__ for other, dims in NORMS.items() if len(shape) in dims), "")
        fix = f" `{better}`?" if better else ""
        return f"{label} is a {kind.__name__} and takes {' or '.join(map(str, NORMS[kind]))} dims; {got}.{fix}"
    if len(shape) > 1 and shape[1] != module.num_features:
        text = f"{label} takes {module.num_features} channels on axis 1; {got}."
        return text + _moved(shape, 1, module.num_features, name)
    if module.training and math.prod(shape) == shape[1]:
        return (
            f"{label} needs more than one value for each channel while training; {got}. A larger batch, or `.eval()`?"
        )
    return ""


def _recurrent(module: Any, shape: tuple[int, ...], label: str, got: str, values: Mapping[str, Any], name: str) -> str:
    order = "(batch, tokens, features)" if module.batch_first else "(tokens, batch, features): batch_first is False"
    if len(shape) not in (2, 3):
        return f"{label} takes {order}, 2 or 3 dims; {got}."
    if shape[-1] != module.input_size:
        where = _moved(shape, len(shape) - 1, module.input_size, name)
        return f"{label} takes {module.input_size} features on the last axis; {got}.{where}"
    hidden = state = values.get("hx")
    hidden = hidden[0] if isinstance(hidden, tuple) and hidden else hidden
    if isinstance(module, nn.LSTM) and isinstance(state, Tensor):
        only = f"got one tensor {tuple(state.shape)}. `(h, torch.zeros_like(h))`?"
        return f"{label} is an LSTM and takes its state as a tuple (h, c); {only}"
    if isinstance(hidden, Tensor) and len(shape) == 3:
        batch = shape[0 if module.batch_first else 1]
        expected = (module.num_layers * (2 if module.bidirectional else 1), batch, module.hidden_size)
        if tuple(hidden.shape) != expected:
            found, fix = tuple(hidden.shape), ""
            if (*found[1::-1], *found[2:]) == expected:
                fix = " `h.transpose(0, 1)`? batch_first does not move the axes of the state."
            elif found == (expected[0], shape[1 if module.batch_first else 0], expected[2]):
                turn = f"`{name}.transpose(0, 1)`" + (" or batch_first=True" if not module.batch_first else "")
                return f"{label} takes {order}; got {shape}, and a state of {found[1]} sequences. {turn}?"
            return f"{label} takes a state (layers, batch, features) {expected}; got {found}.{fix}"
    return ""


def _order(batch_first: bool) -> str:
    return (
        "(batch, tokens, features)" if batch_first else "(tokens, batch, features)"
    ) + f", batch_first={batch_first}"


def _padding(module: Any, label: str, values: Mapping[str, Any]) -> str:
    """A padding mask that an encoder reads itself, before its attention does."""
    x, mask = values.get("src"), values.get("src_key_padding_mask")
    layer = module.layers[0] if isinstance(module, nn.TransformerEncoder) else module
    batch_first = layer.self_attn.batch_first
    if not isinstance(x, Tensor) or not isinstance(mask, Tensor) or (x.ndim, mask.ndim) != (3, 2):
        return ""
    expected, got = tuple(x.shape[:2] if batch_first else x.shape[1::-1]), tuple(mask.shape)
    if got == expected:
        return ""
    fix = " `src_key_padding_mask.T`?" if got == expected[::-1] else ""
    takes = f"{label} is a {type(module).__name__} and takes {_order(batch_first)}"
    return f"{takes}; src_key_padding_mask must be (batch, tokens) {expected}, got {got}.{fix}"


def _source_and_target(module: nn.Transformer, label: str, values: Mapping[str, Any]) -> str:
    """Source and target of two batch sizes, most often because batch_first is off by default, or of another width."""
    found = [tuple(value.shape) for name in ("src", "tgt") if isinstance(value := values.get(name), Tensor)]
    if len(found) < 2 or {len(each) for each in found} != {3}:
        return ""
    (source, target), axis = found, 0 if module.batch_first else 1
    text = f"{label} is a Transformer and takes {_order(module.batch_first)}"
    got = f"got src {source} and tgt {target}"
    if source[axis] != target[axis]:
        fix = " Are they (batch, tokens, features)? Then batch_first=True." if source[0] == target[0] else ""
        return f"{text}; {got}: their batches are {source[axis]} and {target[axis]}.{fix}"
    if {source[-1], target[-1]} != {module.d_model}:
        return f"{text}, with {module.d_model} features; {got}."
    return ""


def _attention(module: nn.MultiheadAttention, label: str, values: Mapping[str, Any]) -> str:
    """What nn.MultiheadAttention takes: batch_first is off by default, and that is what most get wrong."""
    found = {name: tuple(value.shape) for name, value in values.items() if isinstance(value, Tensor)}
    query, key = found.get("query", ()), found.get("key", ())
    if module.batch_first and values.get("is_batched"):  # torch has exchanged the first two axes by now
        query, key = (each[1::-1] + each[2:] for each in (query, key))
    if len(query) not in (2, 3) or len(key) != len(query):
        return ""
    text = f"{label} is a MultiheadAttention and takes {_order(module.batch_first)}"
    for name, shape, width in (("query", query, module.embed_dim), ("key", key, module.kdim)):
        if shape[-1] != width:
            where = [axis for axis, size in enumerate(shape[:-1]) if size == width]
            fix = f"`{name}.transpose({where[-1]}, -1)`" if where else f"Project it to {width} first"
            return f"{text}, with {width} features; got {name} {shape}. {fix}?"
    if len(query) != 3:
        return ""
    batch, keys = key[:2] if module.batch_first else key[1::-1]
    queries = query[1] if module.batch_first else query[0]
    if batch != (samples := query[0] if module.batch_first else query[1]):
        fix = " Are they (batch, tokens, features)? Then batch_first=True." if query[0] == key[0] else ""
        return f"{text}; got query {query} and key {key}: their batches are {samples} and {batch}.{fix}"
    value = found.get("value", key)
    if module.batch_first and values.get("is_batched"):
        value = value[1::-1] + value[2:]
    if len(value) == 3 and value[:2] != key[:2]:
        return f"{text}, with a value for each key; got key {key} and value {value}."
    padding, mask = found.get("key_padding_mask"), found.get("attn_mask")
    if padding not in (None, (batch, keys)):
        fix = "`key_padding_mask.T`?" if padding == (keys, batch) else ""
        if padding == (keys, batch) and not module.batch_first:
            fix = "`key_padding_mask.T`, or is the input (batch, tokens, features)? Then batch_first=True."
        return f"{text}; key_padding_mask must be (batch, keys) {(batch, keys)}, got {padding}. {fix}".rstrip()
    if mask not in (None, (queries, keys), (batch * module.num_heads, queries, keys)):
        fixes: dict[tuple[int, ...], str] = {
            (batch, keys): "A mask of (batch, keys) is `key_padding_mask=`.",
            (keys, queries): "`attn_mask.T`?",
        }
        text = f"{text}; attn_mask must be (queries, keys) {(queries, keys)}, got {mask}. {fixes.get(mask, '')}"
        return text.rstrip()
    return ""
