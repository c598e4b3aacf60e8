"""What a function keeps from one call to the next: a sweep leaves it as it was."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinyomni.tracing.functions import is_library

BUFFER = 2**20  # elements: values of larger buffers are not remembered


class State:
    """What a function keeps from one call to the next: after each run it is as it was before the first.

    Restored are the attributes of the modules and objects that the function reaches, with the dictionaries, lists and
    sets among them, the values of their buffers, and caches of `functools`, which are emptied.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.kept: dict[int, tuple[Any, Any]] = {}  # a dictionary, list or set, and a copy of it
        self.caches: dict[int, Any] = {}
        self.values: list[tuple[Tensor, Tensor]] = []  # a buffer and a copy of it
        self.versions: list[int] = []  # of the buffers: torch counts their changes
        self.seen: dict[int, Any] = {}
        owner = getattr(fn, "__self__", fn)
        self._object(owner)
        todo = [fn]
        while todo:
            each = todo.pop()
            if id(each) not in self.seen:
                self.seen[id(each)] = each
                todo += self._reached(each)

    def _object(self, owner: Any) -> None:
        """Remember the attributes of a module or another object."""
        if isinstance(owner, (type, types.ModuleType, types.FunctionType)) or not hasattr(owner, "__dict__"):
            return
        for each in (vars(owner), *vars(owner).values()):
            if isinstance(each, (dict, list, set)):
                self.kept[id(each)] = each, dict(each) if isinstance(each, dict) else list(each)
        for tensor in owner._buffers.values() if isinstance(owner, nn.Module) else ():
            if tensor is not None and tensor.numel() <= BUFFER and not tensor.is_inference():
                self.values.append((tensor, tensor.clone()))
                self.versions.append(tensor._version)

    def _reached(self, each: Any) -> list[Any]:
        """What a function, a class or an object gives access to."""
        if hasattr(each, "cache_clear") and hasattr(each, "__wrapped__"):
            if not is_library(getattr(each.__wrapped__, "__code__", State.restore.__code__)):
                self.caches[id(each)] = each
            return [each.__wrapped__]
        if isinstance(each, functools.partial):
            return [each.func, *each.args, *each.keywords.values()]
        if isinstance(each, types.MethodType):
            self._object(each.__self__)
            return [
                each.__func__,
                *([each.__self__] if isinstance(each.__self__, nn.Module) else [type(each.__self__)]),
            ]
        if isinstance(each, (list, tuple)):
            return list(each)
        if isinstance(each, nn.Module):
            self._object(each)
            return [type(each), *each.children()]
        if isinstance(each, type):
            return [value for kind in each.__mro__ for value in vars(kind).values() if callable(value)]
        if not isinstance(each, types.FunctionType):
            return [type(each)] if hasattr(each, "__dict__") and callable(each) else []
        if is_library(each.__code__):
            return []
        cells = [cell.cell_contents for cell in each.__closure__ or () if cell != types.CellType()]
        inner, names = [each.__code__], set[str]()
        while inner:
            code = inner.pop()
            names |= set(code.co_names)
            inner += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        named = [each.__globals__[name] for name in names if name in each.__globals__]
        modules = [value for value in named if isinstance(value, types.ModuleType)]
        named += [vars(module)[name] for module in modules for name in names if name in vars(module)]
        return [*cells, *(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values(), *named]

    def restore(self) -> None:
        """All as it was."""
        for now, before in self.kept.values():
            if isinstance(now, dict):
                if len(now) != len(before) or any(key not in now or now[key] is not before[key] for key in before):
                    now.clear()
                    now.update(before)
            elif len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                now.clear()
                now.extend(before) if isinstance(now, list) else now.update(before)
        for place, (tensor, copied) in enumerate(self.values):
            if tensor._version != self.versions[place]:
                with torch.no_grad():
                    tensor.copy_(copied)
                self.versions[place] = tensor._version
        for cache in self.caches.values():
            cache.cache_clear()
