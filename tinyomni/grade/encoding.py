"""What an answer gave, as JSON: the worker encodes it, the grader decodes it, and nothing of it is ever executed.

A value that no exercise expects becomes an `Opaque` of the same name, which is equal to nothing.
"""

import base64
import builtins
import math
from typing import Any

import torch
from torch import Tensor

from tinyomni.errors import InputError
from tinyomni.grade.exercise import AnswerError, Outcome
from tinyomni.grade.grading import last_function, locate_error
from tinyomni.grade.isolation import printable

MAX_BYTES, MAX_ITEMS, MAX_DEPTH, MAX_TEXT = 4 << 20, 100_000, 16, 200
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


class Opaque:
    """A value of a type that no exercise expects: its type has the name of the original."""

    text = ""

    def __repr__(self) -> str:
        return self.text


# ---- in the worker --------------------------------------------------------------------------------------------------


def encode_outcome(outcome: Outcome) -> dict[str, Any]:
    """Ready for JSON."""
    if outcome.error is None:
        return {"value": encode(outcome.value), "modified": list(outcome.modified)}
    error = outcome.error
    only = error.args[0] if len(error.args) == 1 else None
    return {
        "error": [[kind.__module__, kind.__qualname__] for kind in type(error).__mro__],
        "text": only[:2000] if isinstance(only, str) else text_of(error, str)[:2000],
        "location": locate_error(error),
        "raised_in": last_function(error),
    }


def text_of(value: Any, convert: Any = repr) -> str:
    """Its text, also if that cannot be made."""
    try:
        return str(convert(value))
    except Exception as error:
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def encode(value: Any, depth: int = 0) -> Any:
    """One value: [kind, content]."""
    if value is None or isinstance(value, (bool, str)):
        return ["plain", value] if not isinstance(value, str) or len(value) <= MAX_BYTES else opaque(value)
    if isinstance(value, int):
        return ["plain", int(value)] if value.bit_length() < 1000 else opaque(value)
    if isinstance(value, float):
        return ["plain", float(value)]
    if isinstance(value, bytes) and len(value) <= MAX_BYTES:
        return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, Tensor):
        return encode_tensor(value)
    if depth < MAX_DEPTH and isinstance(value, (list, tuple)) and len(value) <= MAX_ITEMS:
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, [encode(item, depth + 1) for item in value]]
    if depth < MAX_DEPTH and isinstance(value, dict) and len(value) <= MAX_ITEMS:
        return ["dict", [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items()]]
    return opaque(value)


def encode_tensor(tensor: Tensor) -> Any:
    """Type, shape and bytes; only type and shape where it is larger than anything that is expected."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES or tensor.layout is not torch.strided:
        return opaque(tensor)
    if tensor.is_meta or tensor.numel() * tensor.element_size() > MAX_BYTES:
        return ["tensor", [name, list(tensor.shape), None]]
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    content = base64.b64encode(bytes(flat.view(torch.uint8).tolist())).decode()
    return ["tensor", [name, list(tensor.shape), content]]


def opaque(value: Any) -> Any:
    """Its type and its text."""
    return ["opaque", [type(value).__name__, text_of(value)[:MAX_TEXT]]]


# ---- in the grader --------------------------------------------------------------------------------------------------


def decode_outcome(data: Any, inputs: dict[str, Any]) -> Outcome:
    """Raises InputError if it is not what `encode_outcome` makes."""
    try:
        if "error" not in data:
            names = tuple(name for name in inputs if name in data["modified"])
            return Outcome(decode(data["value"]), modified=names)
        location, raised_in = printable(str(data["location"])[:500]), printable(str(data["raised_in"])[:100])
        error = decode_error([(str(module), str(name)) for module, name in data["error"]], str(data["text"]))
        return Outcome(error=error, location=location, raised_in=raised_in)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        raise InputError(f"a malformed reply of the worker ({type(error).__name__}: {error})") from error


def decode_error(types: list[tuple[str, str]], text: str) -> BaseException:
    """An error of a built-in type, or of a type of the same name that is derived from the nearest built-in one."""
    text = printable(text)
    base: type[BaseException] = Exception
    for module, name in types:
        found = AnswerError if (module, name) == (AnswerError.__module__, "AnswerError") else None
        found = found or (getattr(builtins, name, None) if module == "builtins" else None)
        if isinstance(found, type) and issubclass(found, BaseException):
            base = found
            break
    module, name = types[0]
    if (base.__module__, base.__qualname__) != (module, name):
        own = {"__module__": module, "__qualname__": name, "__str__": lambda self: text}
        return type(name.rpartition(".")[2], (base,), own)()
    try:
        return base(text)
    except TypeError:  # such as UnicodeDecodeError, which wants five arguments
        return type(name, (ValueError,), {"__module__": module, "__qualname__": name})(text)


def decode(data: Any, depth: int = 0) -> Any:
    """One value."""
    kind, content = data
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if kind == "plain" and (content is None or isinstance(content, (bool, int, float, str))):
        return content
    if kind == "bytes":
        return base64.b64decode(content, validate=True)
    if kind in ("list", "tuple"):
        items = [decode(item, depth + 1) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {decode(key, depth + 1): decode(item, depth + 1) for key, item in content}
    if kind == "tensor":
        return decode_tensor(*content)
    if kind == "opaque":
        name, text = content
        return type(str(name)[:MAX_TEXT] or "object", (Opaque,), {"text": printable(str(text)[:MAX_TEXT])})()
    raise ValueError(f"expected a kind of value, got {kind!r:.100}")


def decode_tensor(name: str, shape: list[int], content: str | None) -> Tensor:
    """A tensor on the CPU; on the meta device if it was too large to be sent."""
    dtype = DTYPES[name]
    if not all(type(size) is int and 0 <= size < 2**40 for size in shape) or len(shape) > 64:
        raise ValueError("expected a shape")
    if content is None:
        if math.prod(shape) * dtype.itemsize <= MAX_BYTES:
            raise ValueError("a tensor without its numbers")
        return torch.empty(shape, dtype=dtype, device="meta")
    raw = base64.b64decode(content, validate=True)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes for shape {shape}")
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape)
