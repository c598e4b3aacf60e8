"""The tracer: watches annotated functions while they run, and writes down what shape went in and out.

It is a profile hook (`sys.setprofile`): no decorator, no change to a model, nothing left behind. A function is found by
its code object, once; its annotations give the axis names. What a function did with tensors of one shape is worked out
once too, so that later calls cost little. No tensor is kept.
"""

import copy
import dataclasses
import gc
import inspect
import json
import sys
import sysconfig
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jaxtyping
import torch
from torch import Tensor, nn

from tinyomni.glossary import AXES
from tinyomni.tracing.errors import ShapeError
from tinyomni.tracing import annotations, explain
from tinyomni.tracing.annotations import AnnotationError, Axis
from tinyomni.tracing.records import Entry, Ledger, Record, Row, Value, describe, file_of, fold, tree, walk

if TYPE_CHECKING:
    from tinyomni.tracing.diff import Diff

F = TypeVar("F", bound=Callable[..., Any])
SCHEMA = 1
CACHES = ("cache", "kv_cache", "past_key_values", "past_key_value")
SHOWN = 60  # rows of a printed table


def step(title: str) -> Callable[[F], F]:
    """Mark a function as a step that a specification has to name. The function itself stays as it is."""

    def mark(function: F) -> F:
        function.__step__ = title  # type: ignore[attr-defined]
        return function

    return mark


# ---- which function is this? ----------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a function was given once: described, judged, and what it then returned."""

    inputs: tuple[Value, ...]
    hints: dict[str, Any]  # with the braces filled
    stand_ins: dict[str, Any]  # the arguments as tensors without values
    wrong: str | None = None  # the first argument that does not fit
    outputs: dict[Any, tuple[tuple[Value, ...], str | None]] = field(default_factory=dict)


@dataclass
class Function:
    """What is known of a function that is worth a record."""

    code: types.CodeType
    file: str
    title: str
    declared: bool
    parameters: tuple[str, ...]
    hints: dict[str, Any]
    annotated: bool
    gives: bool  # a return value with axes is promised, None is not
    braces: dict[str, types.CodeType]
    cache: str | None  # the parameter that holds a KV cache
    seen: dict[Any, Seen] = field(default_factory=dict)
    calls: int = 0

    @property
    def call(self) -> str:
        """The qualified name, without the function that it was defined in."""
        return self.code.co_qualname.rpartition("<locals>.")[2]


# by the id of the code object, which is kept so that the id stays its own; None: not worth a record
_functions: dict[int, tuple[types.CodeType, Function | None]] = {}
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_NO_CALL = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def locate(frame: types.FrameType) -> Function | None:
    """The function of a frame, if it is annotated or the `forward` of a module."""
    code = frame.f_code
    if code.co_flags & _NO_CALL or code.co_name.startswith("<"):
        return None
    count = code.co_argcount + code.co_kwonlyargcount
    starred = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    parameters = code.co_varnames[: count + starred]
    owner = frame.f_locals.get(code.co_varnames[0]) if count else None
    found = function_of(code, frame.f_globals, owner)
    hints = annotations.hints_of(found) if found is not None else {}
    # the annotation of *args and **kwargs is that of each item
    for name in parameters[count:]:
        if name in hints:
            several = name == parameters[-1] and code.co_flags & inspect.CO_VARKEYWORDS
            hints[name] = dict[str, hints[name]] if several else tuple[hints[name], ...]  # type: ignore[valid-type]
    title = getattr(found, "__step__", "")
    annotated = bool(title) or any(any(annotations.leaves(hint)) for hint in hints.values())
    if not annotated and not (code.co_name == "forward" and isinstance(owner, nn.Module)):
        return None
    due = hints.get("return")
    gives = any(annotations.leaves(due)) and types.NoneType not in annotations.typing.get_args(due)
    return Function(
        code=code,
        file=file_of(code, frame.f_globals),
        title=title or code.co_name,
        declared=bool(title),
        parameters=parameters,
        hints=hints,
        annotated=annotated,
        gives=gives,
        braces=annotations.braces(hints),
        cache=next((name for name in parameters if name in CACHES), None),
    )


def function_of(code: types.CodeType, names: Mapping[str, Any], owner: Any) -> Callable[..., Any] | None:
    """The function object that this code belongs to: by its name, by its class, at last by who refers to the code."""
    found: Any = names.get(code.co_qualname.partition(".")[0])
    for name in code.co_qualname.split(".")[1:]:
        found = inspect.getattr_static(found, name, None)
    function = annotations.unwrapped(found)
    if function is not None and function.__code__ is code:
        return function
    for kind in (owner if inspect.isclass(owner) else type(owner)).__mro__:
        function = annotations.unwrapped(vars(kind).get(code.co_name))
        if function is not None and function.__code__ is code:
            return function
    # looking through the whole memory takes long: only for functions inside functions, or behind a decorator
    hidden = "<locals>" in code.co_qualname or inspect.isfunction(found)
    if not hidden or code.co_filename.startswith((*_LIBRARIES, "<frozen", "<string>")):
        return None
    for referrer in gc.get_referrers(code):
        # a wrapper bears the annotations of the function in it, which is met next
        if inspect.isfunction(referrer) and referrer.__code__ is code and not hasattr(referrer, "__wrapped__"):
            return referrer
    return None


def key_of(value: Any) -> Any:
    """What of an argument decides how it is described and judged."""
    kind = type(value)
    if kind is Tensor or isinstance(value, Tensor):
        return value.shape, value.dtype, value.device.type, kind
    if kind in (tuple, list):
        return kind, tuple(map(key_of, value)) if len(value) <= 16 or isinstance(value[0], Tensor) else len(value)
    if kind in (int, float, bool, str):
        return kind, value
    if isinstance(value, Mapping):
        return kind, tuple((name, key_of(item)) for name, item in value.items())
    if dataclasses.is_dataclass(value):
        return kind, tuple(key_of(getattr(value, each.name)) for each in dataclasses.fields(value))
    return kind


def stand_in(value: Any) -> Any:
    """The same without values, so that nothing big is kept."""
    if isinstance(value, Tensor):
        empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
        return nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty
    if type(value) in (tuple, list):
        return type(value)(map(stand_in, value))
    if type(value) is dict:
        return {name: stand_in(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        double = copy.copy(value)
        for each in dataclasses.fields(value):
            object.__setattr__(double, each.name, stand_in(getattr(value, each.name)))
        return double
    return value if isinstance(value, (int, float, bool, str, type(None))) else None


# ---- the trace ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Open:
    """A call that has not returned yet."""

    frame: types.FrameType
    record: Record
    function: Function
    seen: Seen
    training: bool


class Trace:
    """What one run did: `steps` in order, `ledger` of tokens, `notes` on what could not be seen. See `trace`."""

    def __init__(self, title: str, glossary: Mapping[str, str] | None = None, modules: bool | None = None) -> None:
        self.title = title
        self.steps: list[Record] = []
        self.ledger = Ledger()
        self.notes: list[str] = []
        self._glossary = {**AXES, **(glossary or {})}
        self._modules = modules
        self._clear()

    def _clear(self) -> None:
        self._open: list[Open] = []
        self._annotated, self._unnamed = 0, 0
        self._numbers: Counter[int] = Counter()
        self._paths: dict[nn.Module, str] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._problem: tuple[str, int] | None = None
        self._threads: set[str] = set()

    # ---- watching

    def __enter__(self) -> "Trace":
        global _current
        if _current is not None:
            raise RuntimeError(f"trace({self.title!r}): the trace {_current.title!r} is still running; one at a time")
        before = sys.getprofile()
        if before is not None and not callable(before):
            raise RuntimeError(
                f"trace({self.title!r}): the profiler {type(before).__name__} is running, and Python can run one at a "
                "time. Stop it first."
            )
        if self.steps:
            raise RuntimeError(f"trace({self.title!r}) has run already; make a new one")
        if before is not None:
            self.notes.append(f"the profile function {getattr(before, '__qualname__', before)!r} was paused meanwhile")
        _current = self
        self._before, self._before_threads = before, threading.getprofile()
        self._checks = jaxtyping.config.jaxtyping_disable
        # jaxtyping would stop the run before the failing call is known; the tracer judges with the same annotations
        jaxtyping.config.update("jaxtyping_disable", True)
        # what is compiled would be invisible; without dynamo, nothing is compiled, and loading it takes seconds
        self._dynamo = "torch._dynamo" in sys.modules
        self._stance = torch.compiler.set_stance("force_eager") if self._dynamo else nullcontext()
        threading.setprofile(self._other_thread)
        sys.setprofile(self._hook())
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        global _current
        sys.setprofile(self._before)
        threading.setprofile(self._before_threads)  # type: ignore[arg-type]
        self._stance.__exit__(None, None, None)
        jaxtyping.config.update("jaxtyping_disable", self._checks)
        _current = None
        self._note(error)
        try:
            self._explain(error)
        finally:
            self._clear()

    def _hook(self) -> Callable[[types.FrameType, str, Any], None]:
        """The profile function; its names are local because it is called for every call of the run."""
        functions, stack, enter, leave = _functions, self._open, self._enter, self._leave

        def hook(frame: types.FrameType, event: str, arg: Any) -> None:
            if event == "call":
                code = frame.f_code
                known = functions.get(id(code))
                if known is None:
                    known = functions[id(code)] = (code, locate(frame))
                if known[1] is not None:
                    enter(frame, known[1])
            elif event == "return" and stack and stack[-1].frame is frame:
                leave(arg)

        return hook

    def _enter(self, frame: types.FrameType, function: Function) -> None:
        if not function.annotated and not (self._annotated == 0 if self._modules is None else self._modules):
            return
        local = frame.f_locals
        values = {name: local[name] for name in function.parameters if name in local}
        seen = self._seen(function, values)
        above = self._open[-1] if self._open else None
        record = Record(
            id=len(self.steps),
            parent=above.record.id if above else None,
            depth=len(self._open),
            call=function.call,
            number=self._numbers[id(function)],
            title=function.title,
            declared=function.declared,
            inputs=seen.inputs,
            file=function.file,
            line=function.code.co_firstlineno,
        )
        self._numbers[id(function)] += 1
        owner = next(iter(values.values()), None)
        training = above.training if above else False
        if isinstance(owner, nn.Module):
            record.path, training = self._path(owner), owner.training
        record.phase = above.record.phase if above else ""
        cache = values.get(function.cache) if function.cache else None
        if cache is not None:
            length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else getattr(cache, "length", None)
            record.cache = length if isinstance(length, int) else None
            record.phase = "decode" if record.cache else "prefill"
        elif training and torch.is_grad_enabled():
            record.phase = "train"
        record.sources = tuple(dict.fromkeys(self._sources(values)))
        self.steps.append(record)
        self._open.append(Open(frame, record, function, seen, training))
        self._annotated += function.annotated
        self._unnamed += not function.annotated
        if seen.wrong is not None:
            self._wrong(record, seen.wrong, values, seen.hints, frame)

    def _seen(self, function: Function, values: dict[str, Any]) -> Seen:
        """What is known of these shapes, worked out the first time."""
        told: dict[str, str] = {}
        if function.braces:
            try:
                told = annotations.told(function.braces, values)
            except AnnotationError as error:
                note = f"{function.call}: {error}"
                self.notes += [note] * (note not in self.notes)
        key = (*map(key_of, values.values()), *told.values())
        seen = function.seen.get(key)
        if seen is None:
            judged = {name: hint for name, hint in function.hints.items() if told or not function.braces}
            hints = {name: annotations.fill(hint, told) for name, hint in judged.items()} if told else judged
            # names are read from the annotation as it is written, with its braces
            due = function.hints
            inputs = tuple(each for name, value in values.items() for each in describe(name, value, due.get(name)))
            stand_ins = {name: stand_in(value) for name, value in values.items()}
            seen = function.seen[key] = Seen(inputs, hints, stand_ins, annotations.misfit(values, hints))
        return seen

    def _leave(self, result: Any) -> None:
        call = self._open.pop()
        record, seen = call.record, call.seen
        self._annotated -= call.function.annotated
        if result is None and call.function.gives:
            record.status = "raised" if record.status == "open" else record.status
            return
        key = key_of(result)
        if key not in seen.outputs:
            outputs = tuple(describe("out", result, call.function.hints.get("return")))
            wrong = None
            if seen.wrong is None:
                wrong = annotations.misfit({**seen.stand_ins, "return": result}, seen.hints, only="return")
            seen.outputs[key] = (outputs, wrong)
        record.outputs, wrong = seen.outputs[key]
        for tensor in tensors(result):
            self._made[id(tensor)] = (weakref.ref(tensor), record.id)
        if record.status == "open":
            record.status = "ok"
            if wrong is not None:
                self._wrong(record, wrong, {**seen.stand_ins, "return": result}, seen.hints, call.frame)

    def _path(self, module: nn.Module) -> str:
        """Where the module sits in the outermost one that was met."""
        if module not in self._paths:
            for name, child in module.named_modules():
                self._paths.setdefault(child, name)
                if isinstance(child, torch.jit.ScriptModule):
                    self.notes.append(f"{name or type(child).__name__} runs outside Python and could not be seen")
        return self._paths[module]

    def _sources(self, values: Mapping[str, Any]) -> Iterator[int]:
        """The calls that made these tensors, or the tensors that these are views of."""
        for value in values.values():
            for tensor in tensors(value):
                for candidate in (tensor, tensor._base):
                    reference, source = self._made.get(id(candidate), (None, -1))
                    if reference is not None and reference() is candidate:
                        yield source
                        break

    def _other_thread(self, frame: types.FrameType, event: str, arg: Any) -> None:
        """Runs in threads that are started meanwhile: notes that there was something to see, and steps aside."""
        if event == "call" and locate(frame) is not None:
            self._threads.add(threading.current_thread().name)
            sys.setprofile(None)

    # ---- what went wrong

    def _wrong(
        self, record: Record, name: str, values: Mapping[str, Any], hints: Mapping[str, Any], frame: types.FrameType
    ) -> None:
        """Mark the record; the first problem of a run is explained."""
        came = explain.came(name, values[name])
        record.status = f"{name}: {annotations.show(hints[name])} expected, {came} came"
        if self._problem is not None:
            return
        name, text = explain.misfit(record.call, name, values, hints, self._known())
        caller = frame.f_back if name != "return" else frame
        while caller is not None and explain.is_library(caller):  # torch stands between a module and who calls it
            caller = caller.f_back
        if caller is not None:
            line = f"{file_of(caller.f_code, caller.f_globals)}:{caller.f_lineno}"
            text += f"\n  called at {line}" if name != "return" else f"\n  returned at {line}"
        source = next(self._sources({name: values.get(name)}), None) if name != "return" else None
        if source is not None:
            text += f"\n  `{name}` came from {self._name(self.steps[source])}"
        self._problem = (text, record.id)

    def _name(self, record: Record) -> str:
        path = f" ({record.path})" if record.path else ""
        return f"{record.call}{path}, {record.file}:{record.line}"

    def _known(self) -> explain.Known:
        """What the run can tell so far."""
        usual: dict[str, Counter[int]] = {}
        for record in self.steps:
            if record.ok:
                for value in record.inputs + record.outputs:
                    for axis in value.axes:
                        usual.setdefault(axis.name, Counter())[axis.size] += 1
        return explain.Known(usual, self._paths, self._glossary)

    def _note(self, error: BaseException | None) -> None:
        """Say what could not be seen, and which calls an exception ended."""
        if self._threads:
            self.notes.append(f"calls in other threads were not traced: {', '.join(sorted(self._threads))}")
        compiled = sys.modules.get("torch._dynamo.utils")
        if not self._dynamo and compiled is not None and compiled.counters["frames"]["total"]:
            self.notes.append("torch.compile was first used inside the trace: what it compiled could not be seen")
        if self._unnamed:
            self.notes.append(
                f"axes of {self._unnamed} calls have no name: those functions have no jaxtyping annotations"
            )
        if error is None:
            return
        traceback, ended = error.__traceback__, set()
        while traceback is not None:
            code = traceback.tb_frame.f_code
            ended.add((file_of(code, traceback.tb_frame.f_globals), code.co_firstlineno))
            traceback = traceback.tb_next
        for record in reversed(self.steps):
            if (record.file, record.line) in ended and not record.outputs and record.status in ("ok", "open"):
                record.status = "raised"
                ended.discard((record.file, record.line))
        for call in self._open:
            call.record.status = "raised"

    def _explain(self, error: BaseException | None) -> None:
        """Raise the better-explained error, if there is one; show the way to it."""
        if error is not None and not isinstance(error, Exception):
            return
        text, at = self._problem if self._problem is not None else ("", len(self.steps))
        if not text and error is not None and not isinstance(error, jaxtyping.TypeCheckError):
            text = explain.torch_error(error, self._known(), str(Path(__file__).parent))
        way = self._way(at)
        if text:
            raise ShapeError(f"{self.title}: {text}{way}") from error
        if error is not None and self.steps:
            error.add_note(f"{self.title}:{way}")

    def _way(self, at: int) -> str:
        """The last calls before the problem, indented under one another."""
        last = self.steps[max(0, at - 4) : at + 1]
        lines = [f"{'  ' * (r.depth - min(x.depth for x in last))}{r.call}  {Row([r]).values('inputs')} → "
                 f"{Row([r]).values('outputs') or '?'}" for r in last]  # fmt: skip
        return "\n  the last calls:\n    " + "\n    ".join(lines) if lines else ""

    # ---- reading

    def rows(self) -> list[Row]:
        """Calls under their callers; those that repeat are one row with a count."""
        return fold(tree(self.steps))

    def check(self, spec: Any, given: dict[str, int] | None = None) -> Any:
        """Hold the run against a `Spec` (or the path of one): a `Report`, or SpecMismatch with every wrong line."""
        report = self.report(spec, given)
        if not report.ok:
            from tinyomni.tracing.spec import SpecMismatch

            raise SpecMismatch(report)
        return report

    def report(self, spec: Any, given: dict[str, int] | None = None) -> Any:
        """The same without raising."""
        from tinyomni.tracing.spec import Spec

        return (spec if isinstance(spec, Spec) else Spec.load(spec)).compare(self, given or {})

    def __str__(self) -> str:
        if not self.steps:
            why = "Was the model called inside the `with`? Compiled, scripted and other threads' code is not seen."
            return "\n".join([f"{self.title}: nothing was traced. {why}", *(f"note: {note}" for note in self.notes)])
        rows = list(walk(self.rows()))
        above: dict[int, str] = {}
        cells = [
            (
                "  " * depth + row.last.call + row.times,
                row.last.path if row.count == 1 else "",
                row.values("inputs"),
                row.values("outputs"),
                remark(row, above, depth),
            )
            for depth, row in rows[:SHOWN]
        ]
        width = max(len(cell[0]) for cell in cells)
        place = max(len(cell[1]) for cell in cells)
        table = [
            f"  {call:{width}}  {path:{place}}  {came} → {gone or '?'}  {rest}".rstrip()
            for call, path, came, gone, rest in cells
        ]
        more = [f"  … {len(rows) - SHOWN} more rows: t.to_html(FILE) shows all"] if len(rows) > SHOWN else []
        tokens = [f"tokens: {self.ledger}"] if self.ledger else []
        head = f"{self.title}: {len(self.steps)} calls"
        return "\n".join([head, *table, *more, *tokens, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def diff(self, other: "Trace") -> "Diff":
        """What changed from this run to the other one: rows that came, went, or have other shapes."""
        from tinyomni.tracing.diff import Diff

        return Diff(self, other)

    # ---- keeping

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON. Equal inputs of many calls are written once."""
        values: dict[Value, int] = {}

        def index(each: Value) -> int:
            return values.setdefault(each, len(values))

        steps = [
            {
                **{name: getattr(record, name) for name in Record.__slots__ if name not in ("inputs", "outputs")},
                "inputs": [index(value) for value in record.inputs],
                "outputs": [index(value) for value in record.outputs],
            }
            for record in self.steps
        ]
        data = {
            "schema": SCHEMA,
            "title": self.title,
            "notes": self.notes,
            "ledger": [list(entry) for entry in self.ledger],
            "values": [
                {
                    "name": v.name,
                    "axes": [list(a) for a in v.axes],
                    "dtype": v.dtype,
                    "device": v.device,
                    "text": v.text,
                }
                for v in values
            ],
            "steps": steps,
        }
        Path(path).write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read what `save` wrote. Raises ValueError for another file or another schema."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise ValueError(f"{path} has schema {data['schema']!r}; this version reads {SCHEMA}")
            found = cls(data["title"])
            values = [Value(**{**v, "axes": tuple(Axis(*axis) for axis in v["axes"])}) for v in data["values"]]
            for each in data["steps"]:
                ends = {name: tuple(values[i] for i in each[name]) for name in ("inputs", "outputs")}
                found.steps.append(Record(**{**each, **ends, "sources": tuple(each["sources"])}))
            found.notes = list(data["notes"])
            found.ledger = Ledger(Entry(*entry) for entry in data["ledger"])
        except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no trace that was saved with t.save(): {error!r}") from error
        return found

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page, without scripts; written to `path` if there is one."""
        from tinyomni.tracing.render import page

        return _write(page(self), path)

    def to_svg(self, path: str | Path | None = None) -> str:
        """A flow diagram of the outermost calls, with named shapes between them; written to `path` if there is one."""
        from tinyomni.tracing.render import flow

        return _write(flow(self), path)

    def _repr_html_(self) -> str:
        from tinyomni.tracing.render import fragment

        return fragment(self)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a value that a function takes or gives."""
    if isinstance(value, Tensor):
        yield value
    elif type(value) in (tuple, list):
        for item in value:
            if isinstance(item, Tensor):
                yield item


def remark(row: Row, above: dict[int, str], depth: int) -> str:
    """What else there is to say of a row: its phase where it is not its caller's, the cache, what went wrong."""
    first, last = row.records[0], row.last
    above[depth] = last.phase
    parts = [last.phase] if last.phase != above.get(depth - 1, "") else []
    if last.cache is not None and parts:
        parts.append(f"cache {last.cache}" if first.cache == last.cache else f"cache {first.cache}…{last.cache}")
    return ", ".join([*parts, *([] if last.ok else [f"✘ {last.status}"])])


def _write(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


_current: Trace | None = None


def trace(title: str = "trace", glossary: Mapping[str, str] | None = None, modules: bool | None = None) -> Trace:
    """`with trace("my run") as t: model(batch)`; then `print(t)`, `t.steps`, `t.check(spec)`.

    `glossary` explains your own axis names in error messages. `modules`: also record un-annotated `nn.Module`s: True
    all of them, False none, None (the default) those that are not inside an annotated call.
    """
    return Trace(title, glossary, modules)


def tokens(source: str, count: int, of: int) -> None:
    """Tell the running trace that `source` put `count` tokens into a sequence in which `of` fit."""
    if _current is not None:
        _current.ledger.append(Entry(source, count, of))
