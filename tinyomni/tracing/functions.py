"""Which function does a running frame belong to, and what do its annotations say?

A frame knows its code, not its function. The function is looked up by its name and its class; one that was defined
inside another function is found by asking the garbage collector who refers to the code. A factory makes several
functions of one code, perhaps with different annotations: those are told apart by what their closures hold.
"""

import ast
import builtins
import functools
import gc
import inspect
import sys
import sysconfig
import textwrap
import types
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from tinyomni.tracing import annotations

F = TypeVar("F", bound=Callable[..., Any])
CACHES = ("cache", "kv_cache", "past_key_values", "past_key_value", "layer_past", "cache_params")
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
NO_CALL = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
MOST_SEARCHES = 20  # of the whole memory, for the functions of one code, in one trace


def step(title: str) -> Callable[[F], F]:
    """Mark a function as a step that a specification has to name. The function itself stays as it is."""

    def mark(function: F) -> F:
        function.__step__ = title  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(eq=False)
class Function:
    """What is known of a function that is worth a record."""

    call: str  # the qualified name, without the function that it was defined in
    module: str
    file: str
    line: int
    title: str
    declared: bool
    parameters: tuple[str, ...]
    hints: dict[str, Any]
    annotated: bool
    lenient: bool  # its names are from outside, and say nothing of arguments that are None
    braces: dict[str, types.CodeType]
    cache: str | None  # the parameter that holds a KV cache
    has_names: bool = field(init=False)  # of its own, or from outside

    def __post_init__(self) -> None:
        self.has_names = self.annotated or self.lenient


def describe_function(
    frame: types.FrameType, found: Callable[..., Any] | None, owner: Any, names: Mapping[str, Any] | None = None
) -> Function | None:
    """The function of a frame, if it is annotated, or the `forward` of a module, or has names from outside."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    starred = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    parameters = code.co_varnames[: count + starred]
    hints = annotations.hints_of(found) if found is not None else {}
    # the annotation of *args and **kwargs is that of each item
    for name in parameters[count:]:
        if name in hints:
            several = name == parameters[-1] and code.co_flags & inspect.CO_VARKEYWORDS
            hints[name] = dict[str, hints[name]] if several else tuple[hints[name], ...]  # type: ignore[valid-type]
    hints = {name: hint for name, hint in hints.items() if annotations.leaves(hint)}
    title = getattr(found, "__step__", "")
    plain = code.co_name == "forward" and isinstance(owner, nn.Module) and code.co_filename != "<string>"
    if not title and not hints and not plain and not names:
        return None
    return Function(
        call=code.co_qualname.rpartition("<locals>.")[2],
        module=str(frame.f_globals.get("__name__", "__main__")),
        file=file_of(code, frame.f_globals),
        line=code.co_firstlineno,
        title=title or code.co_name,
        declared=bool(title),
        parameters=parameters,
        hints={**hints, **(names or {})},
        annotated=bool(title or hints),
        lenient=bool(names),
        braces=annotations.braces({**hints, **(names or {})}),
        cache=next((name for name in parameters if name in CACHES), None),
    )


@dataclass
class Named:
    """In the place of `Located`: a function that got its names from outside."""

    only: Function | None
    shared: bool = False

    def at(self, frame: types.FrameType) -> Function | None:
        """The function, whatever the frame."""
        return self.only


def owner_of(frame: types.FrameType) -> Any:
    """The first argument: `self`, of a method."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


class Located:
    """The functions that share one code. `at(frame)` is the one that runs, or None if it is not worth a record."""

    def __init__(self, frame: types.FrameType) -> None:
        code, owner = frame.f_code, owner_of(frame)
        named = function_of(code, frame.f_globals, owner)
        self._found: list[tuple[weakref.ref[Any], Function]] = []
        self._common: dict[tuple[int, ...], Function] = {}
        self.searches, self._references = 0, 0
        self.only: Function | None = None
        self.shared = False  # may be several functions with different annotations
        self._bare: Function | None = None  # without annotations, for when it was searched too often
        if named is not None or not _is_hidden(code, frame.f_globals):
            self.only = describe_function(frame, named, owner)
            return
        self._search(frame)
        if self.only is not None and self.only.annotated and not _is_constant(code, frame.f_globals):
            self.shared = True
            self._bare = replace(self.only, hints={}, braces={})

    def at(self, frame: types.FrameType) -> Function | None:
        """The function of this frame; where that cannot be told, what all candidates have in common."""
        if not self.shared:
            return self.only
        code = frame.f_code
        if self._references == 0:
            self._references = sys.getrefcount(code)
        gone = any(function() is None for function, _ in self._found)
        # each function of this code refers to it; the count is always taken here, where as much else does
        if gone or sys.getrefcount(code) > self._references:
            if self.searches >= MOST_SEARCHES:
                return self._bare
            self._search(frame)
            self._references = sys.getrefcount(code)
        running = [place for place, (function, _) in enumerate(self._found) if _may_be(function(), frame)]
        places = tuple(running or range(len(self._found)))
        if places not in self._common:
            self._common[places] = common([self._found[place][1] for place in places])
        return self._common[places]

    def _search(self, frame: types.FrameType) -> None:
        """Ask the garbage collector for all functions of this code: it takes some 50 ms."""
        code, owner = frame.f_code, owner_of(frame)
        self.searches += 1
        self._common.clear()
        self._found.clear()
        referrers = gc.get_referrers(code)
        for each in referrers:
            # a wrapper has the annotations of the function that it wraps, which is recorded itself
            if inspect.isfunction(each) and each.__code__ is code and not hasattr(each, "__wrapped__"):
                found = describe_function(frame, each, owner)
                if found is not None:
                    self._found.append((weakref.ref(each), found))
        each = None
        self.only = (
            common([found for _, found in self._found]) if self._found else describe_function(frame, None, owner)
        )


def _is_hidden(code: types.CodeType, names: Mapping[str, Any]) -> bool:
    """Is it worth a search through the whole memory? For functions inside functions, or behind a decorator."""
    hidden = "<locals>" in code.co_qualname or inspect.isfunction(names.get(code.co_qualname.partition(".")[0]))
    return hidden and not code.co_filename.startswith((*LIBRARIES, "<frozen", "<string>"))


def _is_constant(code: types.CodeType, names: Mapping[str, Any]) -> bool:
    """Do all functions of this code have the same annotations, because no local name is in them?"""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):  # no source, or a lambda in the middle of a line
        return False
    if not isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    arguments = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs, tree.args.vararg, tree.args.kwarg]
    written = [each.annotation for each in arguments if each is not None and each.annotation is not None]
    used = {
        node.id
        for annotation in [*written, *([tree.returns] if tree.returns is not None else [])]
        for node in ast.walk(annotation)
        if isinstance(node, ast.Name)
    }
    return all(name in names or hasattr(builtins, name) for name in used)


def function_of(code: types.CodeType, names: Mapping[str, Any], owner: Any) -> Callable[..., Any] | None:
    """The function object of this code, by its name or by its class."""
    found: Any = names.get(code.co_qualname.partition(".")[0])
    for name in code.co_qualname.split(".")[1:]:
        found = inspect.getattr_static(found, name, None)
    function = _unwrapped(found)
    if function is not None and function.__code__ is code:
        return function
    if "<locals>" in code.co_qualname and "." not in code.co_qualname.rpartition("<locals>.")[2]:
        return None  # a plain function inside a function
    for kind in (owner if inspect.isclass(owner) else type(owner)).__mro__:
        function = _unwrapped(vars(kind).get(code.co_name))
        if function is not None and function.__code__ is code:
            return function
    return None


def _unwrapped(found: Any) -> Callable[..., Any] | None:
    return annotations.unwrapped(found.func if isinstance(found, functools.cached_property) else found)


def _may_be(function: Any, frame: types.FrameType) -> bool:
    """Does the closure of the function hold what the frame sees?"""
    if function is None:
        return False
    local = frame.f_locals
    for name, cell in zip(frame.f_code.co_freevars, function.__closure__ or (), strict=False):
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if name in local and local[name] is not value:
            return False
    return True


def common(found: list[Function]) -> Function:
    """One function for several candidates: what they all say. Annotations that differ are left out."""
    first = found[0]
    # every evaluation of Float[Tensor, "a"] may make a new class: equal ones are written alike
    written = [{name: str(hint) for name, hint in each.hints.items()} for each in found]
    agreed = {name: hint for name, hint in first.hints.items() if all(each.get(name) == str(hint) for each in written)}
    if len(agreed) == len(first.hints):
        return first
    return replace(first, hints=agreed, braces=annotations.braces(agreed))


# by the id of the code, for as long as the code lives
_located: dict[int, tuple[weakref.ref[types.CodeType], Located | None]] = {}


def locate(frame: types.FrameType) -> Located | None:
    """What is known of the code of a frame; None if none of its functions is worth a record."""
    return None if is_paused(frame.f_code) else _locate(frame)


def is_paused(code: types.CodeType) -> bool:
    """An async or generator function: its frame is left and entered again before it returns."""
    return bool(code.co_flags & NO_CALL)


def is_annotated(frame: types.FrameType) -> bool:
    """Is it a function of the reader's own with annotations, whether or not its calls can be recorded?"""
    located = None if is_library(frame.f_code) else _locate(frame)
    return located is not None and located.only is not None and located.only.annotated


def _locate(frame: types.FrameType) -> Located | None:
    code = frame.f_code
    if code.co_name.startswith("<") or code.co_filename.startswith("<@beartype"):
        return None
    key = id(code)
    if key not in _located:
        located = Located(frame)
        _located[key] = (
            weakref.ref(code, lambda _, table=_located: table.pop(key, None)),
            located if located.only else None,
        )
    return _located[key][1]


def allow_searches() -> None:
    """A trace begins: functions that an earlier one searched for too often may be searched for again."""
    for _, located in list(_located.values()):
        if located is not None:
            located.searches = 0


def file_of(code: types.CodeType, names: Mapping[str, Any]) -> str:
    """The file of a function, as `package/module.py` wherever it was installed; a notebook's cell has no file."""
    return _shown(code.co_filename, str(names.get("__name__", "__main__")))


@functools.lru_cache(maxsize=4096)
def _shown(path: str, module: str) -> str:
    if "ipykernel_" in path or path.startswith("<"):
        return "cell"
    name = Path(path).name
    return (
        name if module == "__main__" else "/".join([*module.split(".")[: -1 if name != "__init__.py" else None], name])
    )


def is_library(code: types.CodeType) -> bool:
    """Code that the reader did not write: Python's own, torch's, and that of other installed packages."""
    return is_installed(code.co_filename)


@functools.lru_cache(maxsize=4096)
def is_installed(name: str) -> bool:
    return "site-packages" in name or "dist-packages" in name or name.startswith(("<frozen", *LIBRARIES))
