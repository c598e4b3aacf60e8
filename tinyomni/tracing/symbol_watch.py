"""What a run without numbers cannot answer for an ordinary one: here it is noticed, and nothing is concluded from it.

A symbol stands for a length, but it is no int, and its tensors are of a class of their own, without numbers. Code that
asks for the type, the identity, the text, the hash or a missing attribute of a symbol, or that catches an error which
only such a run raises, goes another way than with numbers, and no condition of a symbolic run says so. Watched is the
code of whoever asks. torch and packages made for it know what they do with a symbol; of all others nobody knows, so
that a symbol given to one of them is noted too. For those in C, a line that names one and has a symbol is such a call.
"""

import builtins
import dis
import functools
import operator
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tinyomni.tracing.functions import is_installed, is_library
from tinyomni.tracing.statements import variable

OURS = __name__.rpartition(".")[0]
SYMBOLS = {torch.SymInt: 0, torch.SymBool: False, torch.SymFloat: 0.0}  # and a number of that kind
ASKED = {"__format__": "the text", "__hash__": "the hash", "__repr__": "the text", "__str__": "the text"}
TYPE = "the type"
IDENTITY = "the identity"  # `(n == 5) is True` is never so for a symbol
COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
COUNTED = ("add", "sub", "mul", "floordiv", "truediv", "mod", "divmod", "pow", "and", "or", "xor", "lshift", "rshift")
# `(5).__eq__(n)` is NotImplemented for a symbol, where `5 == n` would ask the symbol next
DUNDERS = {f"__{side}{name}__" for side in ("", "r") for name in COMPARED + COUNTED}
DUNDERS |= {"__sizeof__", "__reduce__", "__reduce_ex__", "__dict__", "__dir__", "__getattribute__"}
KNOWN = set("torch torchaudio torchvision einops jaxtyping tinyomni contextlib typing".split())  # noqa: SIM905
KNOWN_C = KNOWN | set("builtins math cmath _operator _functools itertools collections _collections types".split())  # noqa: SIM905
ODD = (hasattr, getattr, id, bytes, bytearray, callable, dir, vars, eval, exec, operator.is_, operator.is_not)
NAMED = ("LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME")  # operations that load a variable

Place = tuple[str, int, str]  # file, line, type of an error


def is_watched(frame: types.FrameType) -> bool:
    """Code that is neither installed nor ours."""
    return not is_library(frame.f_code) and not str(frame.f_globals.get("__name__", "")).startswith(OURS)


# ---- errors that are caught, and types that are asked for -----------------------------------------------------------


@functools.lru_cache(maxsize=512)
def asked_by(code: types.CodeType) -> dict[int, list[tuple[str, str]]]:
    """By line, what the code asks, and of which variable, as in `type(n)`; no name: of whatever value there is."""
    found: dict[int, list[tuple[str, str]]] = {}
    steps: list[Any] = [
        each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "PUSH_NULL", "PRECALL")
    ]
    nothing: list[Any] = [None, None]
    for before, step, after, call in zip([None, *steps], steps, steps[1:] + nothing, steps[2:] + nothing, strict=False):
        kind, value, asked = step.opname, step.argval, []
        if kind == "MATCH_CLASS":
            asked.append(("", TYPE))
        elif kind in ("LOAD_GLOBAL", "LOAD_NAME") and value == "type":
            direct = after is not None and after.opname.startswith(NAMED) and call is not None and "CALL" in call.opname
            asked.append((str(after.argval) if after is not None and direct else "", TYPE))
        elif kind.startswith(("LOAD_ATTR", "LOAD_METHOD")) and value == "__class__":
            direct = before is not None and before.opname.startswith(NAMED)
            asked.append((str(before.argval) if before is not None and direct else "", TYPE))
        elif kind.startswith(("LOAD_ATTR", "LOAD_METHOD")) and value in DUNDERS:
            asked.append(("", f"`{value}`"))
        elif kind == "IS_OP" and before is not None and type(before.argval) in (bool, int):
            asked.append(("", IDENTITY))
        elif kind == "IS_OP" and before is not None and before.opname.startswith(NAMED):  # of two variables
            asked.append((str(before.argval), IDENTITY))
        if asked and step.positions is not None:
            found.setdefault(step.positions.lineno or 0, []).extend(asked)
    return found


@functools.lru_cache(maxsize=512)
def names_by(code: types.CodeType) -> dict[int, tuple[list[list[str]], list[str]]]:
    """By line, the dotted names that the code loads, as in `np.isscalar`, and their variables."""
    found: dict[int, tuple[list[list[str]], list[str]]] = {}
    path: list[str] | None = None
    for step in dis.get_instructions(code):
        line = step.positions.lineno if step.positions is not None else None
        paths, names = found.setdefault(line or 0, ([], []))
        if step.opname.startswith(NAMED):
            for name in step.argval if isinstance(step.argval, tuple) else [step.argval]:
                path = [name]
                paths.append(path)
                names.append(name)
        elif path is not None and step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            path.append(step.argval)
        elif step.opname not in ("CACHE", "PUSH_NULL"):
            path = None
    return found


def is_foreign(value: Any) -> bool:
    """Something in C that may look at a symbol otherwise than at a number."""
    if not callable(value) or isinstance(value, (types.FunctionType, types.MethodType)):
        return False
    name = str(getattr(value, "__module__", None) or type(value).__module__)
    if name == "__main__" or name.partition(".")[0] in KNOWN_C:
        return any(value is each for each in ODD)
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or is_installed(file)


def reached(path: list[str], frame: types.FrameType) -> Any:
    """What a dotted name of modules means."""
    names = (frame.f_locals, frame.f_globals, vars(builtins))
    value = next((each[path[0]] for each in names if path[0] in each), None)
    for name in path[1:]:
        if not isinstance(value, types.ModuleType):
            return None
        value = getattr(value, name, None)
    return value


def has_symbol(value: Any) -> bool:
    """A symbol, or a container with one."""
    if isinstance(value, dict):
        value = tuple(value.values())
    return any(map(has_symbol, value)) if type(value) in (tuple, list, torch.Size) else type(value) in SYMBOLS


def stands_in(value: Any) -> bool:
    """A symbol, or a tensor that has symbols for sizes: neither is of the type that the program has otherwise."""
    return type(value) in SYMBOLS or type(value).__module__ == "torch._subclasses.fake_tensor"


class Watch:
    """As `sys.settrace`'s function: notes each error that passes a watched line, and what its code asks for."""

    def __init__(self) -> None:
        self.errors: list[Place] = []
        self.asked: set[str] = set()
        self.given: set[str] = set()  # foreign code that receives a symbol
        self.foreign: dict[types.CodeType, dict[int, list[list[str]]]] = {}  # what watched code may call of it, by line
        # code that is not watched, by its id, which stays its own; and whether it knows what a symbol is
        self.passed: dict[int, tuple[types.CodeType, bool]] = {}

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        """At the call of a function, millions of times: whether its lines are watched."""
        code = frame.f_code
        passed = self.passed.get(id(code))
        if passed is None and not is_watched(frame):
            module = str(frame.f_globals.get("__name__", ""))
            passed = self.passed[id(code)] = code, module.partition(".")[0] in KNOWN
        if passed is not None:
            if not passed[1]:
                self.hand_over(frame)
            return None
        asked = asked_by(code)
        if code not in self.foreign:
            local = {*code.co_varnames} if "IMPORT_NAME" in {each.opname for each in dis.get_instructions(code)} else ()
            self.foreign[code] = {
                line: some
                for line, (paths, _) in names_by(code).items()
                if (some := [path for path in paths if path[0] in local or is_foreign(reached(path, frame))])
            }
        frame.f_trace_lines = bool(asked or self.foreign[code])
        return functools.partial(self.local, asked, 0)

    def hand_over(self, frame: types.FrameType) -> None:
        """Note a function of another package that the swept function calls with a symbol, or that is swept itself."""
        caller = frame.f_back
        swept = caller is not None and caller.f_globals.get("__name__") == f"{OURS}.lengths"
        if caller is None or (id(caller.f_code) in self.passed and not swept):
            return
        if (swept or is_watched(caller)) and any(map(has_symbol, frame.f_locals.values())):
            name = f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}"
            self.given.add(name.partition(".<locals>")[0])

    def local(
        self, asked: dict[int, list[tuple[str, str]]], before: int, frame: types.FrameType, event: str, argument: Any
    ) -> Any:
        """In a watched function, before each line that asks and after it, at an error, and at its end."""
        if event == "exception":
            self.errors.append((frame.f_code.co_filename, frame.f_lineno, argument[0].__name__))
        # a variable may hold a symbol for one line only
        for name, what in (*asked.get(before, ()), *asked.get(frame.f_lineno, ())):
            value = variable(frame, name)
            if not name or (has_symbol(value) if what == IDENTITY else stands_in(value)):
                self.asked.add(what)
        for line in {before, frame.f_lineno} & self.foreign[frame.f_code].keys():
            values = [variable(frame, name) for name in names_by(frame.f_code)[line][1]]
            if any(has_symbol(value) or stands_in(value) for value in values):
                paths = self.foreign[frame.f_code][line]
                self.given |= {".".join(path) for path in paths if is_foreign(reached(path, frame))}
        return functools.partial(self.local, asked, frame.f_lineno)


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch what runs in the block, in this thread."""
    watch, before = Watch(), sys.gettrace()
    sys.settrace(watch)
    try:
        yield watch
    finally:
        sys.settrace(before)


# ---- the text, the hash and isinstance ------------------------------------------------------------------------------


@contextmanager
def questions() -> Iterator[list[str]]:
    """What code asks of a symbol that is answered otherwise than for a number: its type, its text, its hash and some
    attributes (it has none, and `getattr` with a default or a function may catch that error)."""
    seen: list[str] = []
    changed = (*ASKED, "__getattr__", "__eq__")
    own, is_instance = {kind: {name: vars(kind).get(name) for name in changed} for kind in SYMBOLS}, isinstance

    def note(what: str) -> None:
        if is_watched(sys._getframe(2)):
            seen.append(what)

    def asking(what: str, real: Any) -> Callable[..., Any]:
        def ask(symbol: Any, *args: Any) -> Any:
            note(what)
            return real(symbol, *args)

        return ask

    def missing(symbol: Any, name: str) -> Any:
        if hasattr(SYMBOLS[type(symbol)], name):
            note(f"`{name}`")
        raise AttributeError(f"{type(symbol).__name__!r} object has no attribute {name!r}")

    def equal(symbol: Any, other: Any) -> Any:
        if type(other) not in (bool, torch.SymBool):  # True == 1, but a symbol is not 1
            note("`==`")
        return own[torch.SymBool]["__eq__"](symbol, other)

    def watched_isinstance(value: Any, kinds: Any) -> bool:
        found = is_instance(value, kinds)
        if type(value) in SYMBOLS and is_instance(SYMBOLS[type(value)], kinds) != found:
            note(TYPE)
        return found

    try:
        builtins.isinstance = watched_isinstance
        for kind in SYMBOLS:
            for name, what in ASKED.items():
                setattr(kind, name, asking(what, getattr(kind, name)))
            setattr(kind, "__getattr__", missing)  # noqa: B010 (no type of torch's declares it)
        setattr(torch.SymBool, "__eq__", equal)  # noqa: B010
        yield seen
    finally:
        builtins.isinstance = is_instance
        for kind, names in own.items():
            for name, real in names.items():
                if real is None:
                    delattr(kind, name)
                else:
                    setattr(kind, name, real)
