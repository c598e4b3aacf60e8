"""One run with a different size for each axis, so that no axis can hide behind another one."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinyomni.tracing import annotations
from tinyomni.tracing.formula import evaluate
from tinyomni.tracing.recorder import trace
from tinyomni.tracing.trace import Trace

PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


def distinct_sizes(function: Callable[..., Any], **sizes: int) -> Trace:
    """Run an annotated function or module once, on the meta device, with a different prime for the size of each axis.

    Sizes that are not free, such as a width that the weights have, are given: `distinct_sizes(attend, head_dim=64)`.
    The result is a trace: its `mismatches` say which axis was taken for another one.
    """
    inner = type(function).forward if isinstance(function, nn.Module) else function
    primes = iter(prime for prime in PRIMES if prime not in sizes.values())
    known = dict(sizes)
    arguments: dict[str, Tensor] = {}
    for name, hint in annotations.hints_of(annotations.unwrapped(inner)).items():
        if name == "return" or not annotations.is_array(hint):
            continue
        shape = []
        for word in annotations.words(hint.dim_str):
            if word.name and word.fixed is None and word.name not in known:
                known[word.name] = next(primes)
            size = word.fixed if word.fixed is not None else known.get(word.name)
            shape.append(evaluate(word.formula, known) if size is None and word.formula else size or next(primes))
        floating = isinstance(torch.empty(0), hint.dtype[hint.array_type, "..."])
        arguments[name] = torch.zeros(shape, dtype=torch.float32 if floating else torch.int64, device="meta")
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function).to("meta")
    seen = trace(f"{getattr(inner, '__qualname__', inner)} with distinct sizes", strict=False)
    with seen, torch.device("meta"), torch.no_grad():
        function(**arguments)
    return seen
