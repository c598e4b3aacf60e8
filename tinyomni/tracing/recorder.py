"""The tracer: watches functions while they run, and records what shapes go in and out.

Python tells it of each call (see `watch`): no decorator, no change to a model, nothing left behind. What a function did
with values of one description is worked out once, so that later calls cost little. No tensor is kept.

It never gets in the way: it makes no tensor, runs no operation, and what goes wrong in it becomes a note.
"""

import dis
import functools
import sys
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import jaxtyping
import torch
from torch import Tensor, nn

from tinyomni.tracing import annotations, mismatch, tensors, torch_errors
from tinyomni.tracing.annotations import AnnotationError, Axis
from tinyomni.tracing.errors import ShapeError, explained, is_of_a_signal
from tinyomni.tracing.flow import NameFlow
from tinyomni.tracing.functions import (
    Function,
    Located,
    Named,
    allow_searches,
    describe_function,
    file_of,
    function_of,
    is_annotated,
    is_library,
    is_paused,
    locate,
    owner_of,
)
from tinyomni.tracing.glossaries import glossary_of
from tinyomni.tracing.lines import Lines, LineTracer
from tinyomni.tracing.mismatch import Bound, Context, Mismatch
from tinyomni.tracing.names import Given, Names
from tinyomni.tracing.operations import Operations, is_plain, tensors_among, users_frame
from tinyomni.tracing.origins import return_line, returned_names
from tinyomni.tracing.records import STOPPED, UNSEEN, Entry, Gradient, Record, Value
from tinyomni.tracing.rows import Row
from tinyomni.tracing.suspicions import columns_against_rows, masks
from tinyomni.tracing.table import between
from tinyomni.tracing.trace import Trace
from tinyomni.tracing.values import SCALAR, TENSOR, annotated_tensors, describe, keys_of, text_of, walk
from tinyomni.tracing.watch import Listener, watch

PASSED_ON = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d")  # give back what they are given
MOST_SUSPICIONS = 5  # that are printed
CHECKS = f"{__package__}.checks"  # the module that stands between a checked function and who calls it
MOST_SIGNATURES = 512  # of one function, that are remembered
MOST_LAYERS = 256  # of a KV cache, that are looked into
FRAMES = 100  # more than the trace itself needs at a call
RETURNS = frozenset(dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in dis.opmap)

strict_by_default = False
"""Do traces raise at their end if a value did not fit? `check_shapes()` says so: the checks would have raised, too."""

current: "Recorder | None" = None


@dataclass
class CallSignature:
    """What a function was given once: described and judged, and what it then returned."""

    inputs: tuple[Value, ...]
    hints: dict[str, Any]  # with the braces filled
    bound: tuple[Bound, ...]
    wrong: str | None = None  # the first argument that does not fit
    outputs: dict[Any, tuple[tuple[Value, ...], bool]] = field(default_factory=dict)  # and whether they fit
    told: dict[Any, Mismatch] = field(default_factory=dict)  # why something did not fit: explained once


@dataclass(eq=False)
class Calls:
    """One function in one trace."""

    function: Function
    count: int = 0
    signatures: dict[Any, CallSignature] = field(default_factory=dict)


@dataclass
class CacheState:
    """A KV cache as it was when a call met it first: the layers inside that call see it grow, and still prefill."""

    cache: Any
    length: int | None
    phase: str
    first: Record | None  # that call
    met: set[tuple[int, int]]  # (function, module or 0) pairs that had it; one that comes again begins the next step

    def is_over(self, who: tuple[int, int], record: Record) -> bool:
        """Does this call belong to the next step? It comes again, or another function is given other tokens."""
        if who in self.met or self.first is None or self.first.call == record.call:
            return who in self.met
        shape, before = first_shape(record), first_shape(self.first)
        return len(shape) == len(before) and shape != before


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call that has not returned yet."""

    frame: types.FrameType
    record: Record
    function: Function
    signature: CallSignature
    training: bool
    locals: tuple[Bound, ...] = ()  # annotated variables, so far
    caches: dict[int, CacheState] = field(default_factory=dict)


class Recorder:
    """Fills a `Trace` while it is entered. See `trace`."""

    def __init__(
        self,
        title: str,
        glossary: Mapping[str, str] | None = None,
        modules: bool | None = None,
        strict: bool | None = None,
        model: nn.Module | None = None,
        names: Given | None = None,
        lines: bool | frozenset[types.CodeType] = False,
        ops: bool = False,
        backward: bool = False,
    ) -> None:
        self.trace = Trace(title, recorder=self)
        self._model = model
        self._names = Names(names)
        self._lines, self._ops, self._backward = lines, ops, backward
        self._glossary = dict(glossary or {})
        self._modules = modules
        self._strict = strict
        self._clear()

    def _clear(self) -> None:
        """Let go of the program's objects."""
        self._passed: dict[int, bool] = {}  # by the id of the code
        self._codes: list[types.CodeType] = []  # which are kept so that their ids stay their own
        self._calls: dict[Function, Calls] = {}
        self._open: list[OpenCall] = []
        self._outermost: dict[int, tuple[weakref.ref[Any], CacheState]] = {}  # caches of calls that none encloses
        self._annotated = 0  # of the open calls
        self._modules_met: dict[int, tuple[weakref.ref[nn.Module], tuple[str, int]]] = {}
        self._roots = 0
        self._made = tensors.Makers()
        self._faults: Counter[str] = Counter()
        self._threads: set[str] = set()
        self._problem_at: int | None = None
        self._flow = NameFlow() if self._lines or self._ops else None
        self._gradients: list[tuple[Record, Value, Tensor]] = []
        self._followed: set[types.CodeType] = set()

    # ---- on and off

    def __enter__(self) -> None:
        global current
        title = self.trace.title
        if current is not None:
            raise RuntimeError(f"trace({title!r}): the trace {current.trace.title!r} is still running; one at a time")
        self._watch = watch(self._listener())
        self.trace.notes += [self._watch.note] if self._watch.note else []
        current = self
        allow_searches()
        if self._model is not None:
            self._path(self._model)
        # what is compiled would be invisible; without dynamo, nothing is compiled, and loading it takes seconds
        self._dynamo = "torch._dynamo" in sys.modules
        self._stance = torch.compiler.set_stance("force_eager") if self._dynamo else nullcontext()
        self._operations = (
            Operations(self._operation, self._before_it_changes) if self._lines or self._ops else nullcontext()
        )
        self._operations.__enter__()
        self._before_lines = sys.gettrace()
        if self._lines:
            tracer = LineTracer(self._flow or NameFlow(), self._follows, self._local, self._returns, self._quietly)
            self.trace.lines = tracer.found
            if self._before_lines is not None:
                self.trace.notes.append("the trace function of a debugger or a coverage tool was paused meanwhile")
            sys.settrace(tracer)
        self._thread = threading.get_ident()
        self._threads = running_threads()
        self._limit = sys.getrecursionlimit()
        sys.setrecursionlimit(self._limit + FRAMES)
        self._watch.begin()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        global current
        self._lost = self._watch.is_lost()
        self._watch.end()
        if sys.getrecursionlimit() == self._limit + FRAMES:
            sys.setrecursionlimit(self._limit)
        del self._watch  # it knows the program's functions
        if self._lines:
            sys.settrace(self._before_lines)
        self._operations.__exit__(None, None, None)
        if not self._dynamo or sys.modules["torch._dynamo.eval_frame"]._stance.stance == "force_eager":
            self._stance.__exit__(None, None, None)
        current = None
        better: Exception | None = None
        try:
            better = self._finish(error)
        except Exception as fault:  # whatever it is, the program's own result or error counts
            self.trace.notes.append(f"the end of the trace could not be explained: {fault!r}")
        finally:
            self._clear()
        if better is not None:
            raise better from error

    def _listener(self) -> Listener:
        find = functools.partial(self._quietly, self._find)
        return Listener(find, self._often(self._enter), self._often(self._leave), self._elsewhere, self._open)

    def _often(self, action: Callable[[types.FrameType, Any], None]) -> Callable[[types.FrameType, Any], None]:
        """`_quietly` for what is done at every call, so with as little as that takes."""
        is_traced, silent = torch._C._get_tracing_state, torch._C.DisableTorchFunction

        def act(frame: types.FrameType, about: Any) -> None:
            if is_traced() is not None:
                self._quietly(action, frame, about)
                return
            try:
                with silent():
                    action(frame, about)
            except Exception as error:
                self._went_wrong(frame, error)

        return act

    def _quietly(self, action: Callable[..., Any], frame: types.FrameType, *rest: Any) -> Any:
        """Act so that the program does not notice: neither its tensor classes and modes, nor torch.jit.trace, see what
        is read; an exception, be it ours or that of an object that was looked at, is said at the end."""
        tracing = torch._C._get_tracing_state()
        if tracing is not None:
            torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            with torch._C.DisableTorchFunction():
                return action(frame, *rest)
        except Exception as error:
            self._went_wrong(frame, error)
            return None
        finally:
            if tracing is not None:
                torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]

    def _went_wrong(self, frame: types.FrameType, error: Exception) -> None:
        """What the hook could not do is said at the end; an exception of a signal's handler is the program's."""
        if is_of_a_signal(error):
            raise error
        what = f"{frame.f_code.co_qualname} could not be recorded"
        self._faults[f"{what}: {type(error).__name__}: {str(error)[:200]}"] += 1

    def _elsewhere(self) -> None:
        """A thread that was started meanwhile has something to see: it is named at the end."""
        self._threads.add(threading.current_thread().name)

    # ---- calls

    def _find(self, frame: types.FrameType) -> Located | Named | None:
        """The function of a frame, with the names that were given for it."""
        located = locate(frame)
        code = frame.f_code
        call = code.co_qualname.rpartition("<locals>.")[2]
        hints = self._names.find(str(frame.f_globals.get("__name__", "")), call)
        if is_paused(code):
            if hints or is_annotated(frame):
                self.trace.notes.append(f"{call} is an async or generator function: it ran, and was not recorded")
            return None
        if not hints:
            return located
        function = describe_function(frame, function_of(code, frame.f_globals, owner_of(frame)), owner_of(frame), hints)
        if function is not None:
            self._names.check(call, hints, function.parameters)
        return Named(function)

    def _enter(self, frame: types.FrameType, located: Located | Named) -> None:
        function = located.at(frame) if located.shared else located.only
        if function is None:
            return
        if not function.has_names and not (self._annotated == 0 if self._modules is None else self._modules):
            return
        calls = self._calls.get(function)
        if calls is None:
            calls = self._calls[function] = Calls(function)
        values, names = frame.f_locals, function.parameters
        if len(values) != len(names) or type(values) is not dict:  # from Python 3.13 on it is a view of the frame
            values = {name: values[name] for name in names if name in values}
        above = self._open[-1] if self._open else None
        given: list[Tensor] = []
        signature = self._signature(calls, values, keys_of(values.values(), given))
        record = Record(
            id=len(self.trace.steps),
            parent=above.record.id if above else None,
            depth=len(self._open),
            call=function.call,
            number=calls.count,
            title=function.title,
            declared=function.declared,
            inputs=signature.inputs,
            file=function.file,
            line=function.line,
            called=self._called(frame.f_back, above),
            sources=self._made.of(given),
        )
        owner, training = values.get(names[0]) if names else None, above.training if above else False
        if isinstance(owner, nn.Module):
            (record.path, record.root), training = self._path(owner), owner.training
        call = OpenCall(frame, record, function, signature, training)
        self._phase(call, values, owner, above)
        calls.count += 1
        self.trace.steps.append(record)
        self._open.append(call)
        if function.annotated:
            self._annotated += 1
        if self._flow is not None:
            name_axes(self._flow, *((values[name], hint) for name, hint in function.hints.items() if name in values))
        if signature.wrong is not None:
            self._wrong(call, signature.wrong, values, signature.bound)

    def _called(self, frame: types.FrameType | None, above: OpenCall | None) -> str:
        """Where a call comes from; below a call from within a library, where that one comes from."""
        passed, end = self._passed, above.frame if above else None
        while frame is not None:
            code = frame.f_code
            known = passed.get(id(code))
            if known is None:
                known = passed[id(code)] = is_passed_over(frame)
                self._codes.append(code)
            if not known:
                break
            if frame is end:
                return above.record.called if above else ""
            frame = frame.f_back
        return place_of(frame)

    def _signature(self, calls: Calls, values: dict[str, Any], keys: list[Any]) -> CallSignature:
        """What is known of these values, worked out the first time. `keys`: what tells calls apart."""
        function, braces = calls.function, {}
        if function.braces:
            try:
                braces = annotations.brace_values(function.braces, values)
            except AnnotationError as error:
                self._faults[f"{function.call}: {error}"] += 1
            keys += braces.values()
        key = tuple(keys)
        found = calls.signatures.get(key)
        if found is None:
            judged = function.hints if braces or not function.braces else {}
            hints = {name: annotations.fill(hint, braces) for name, hint in judged.items()} if braces else judged
            if len(calls.signatures) >= MOST_SIGNATURES:
                calls.signatures.clear()
            told = {name: tensors.info(value) if isinstance(value, Tensor) else value for name, value in values.items()}
            # names are read from the annotation as it is written, with its braces
            inputs = [each for name in told for each in describe(name, told[name], function.hints.get(name))]
            given = [name for name in told if name in hints and not (function.lenient and told[name] is None)]
            bound = [each for name in given for each in annotated_tensors(name, told[name], hints[name])]
            found = calls.signatures[key] = CallSignature(tuple(inputs), hints, tuple(bound))
            found.wrong = annotations.mismatched({name: told[name] for name in given}, hints)
        return found

    def _leave(self, frame: types.FrameType, result: Any) -> None:
        call = self._open.pop()
        record, signature = call.record, call.signature
        if call.function.annotated:
            self._annotated -= 1
        if result is None and frame.f_code.co_code[frame.f_lasti] not in RETURNS:  # an exception ends it
            if record.status == "open":
                record.status = STOPPED if record.phase == "recompute" else "raised"
            return
        made: list[Tensor] = []
        key = keys_of((result,), made)[0]
        known = signature.outputs.get(key)
        if known is None:
            fits = signature.wrong is not None or self._result_fits(call, result)
            outputs = tuple(describe("out", result, call.function.hints.get("return")))
            known = signature.outputs[key] = (outputs, fits)
        record.outputs, fits = known
        record.end = frame.f_lineno
        self._made.note(made, record.id)
        if self._flow is not None:
            name_axes(self._flow, (result, call.function.hints.get("return")))
        if self._backward:
            self._watch_gradients(record, result, call.function.hints.get("return"))
        if record.status == "open":
            record.status = "ok"
            if not fits:
                hint = signature.hints["return"]
                bound = (*signature.bound, *annotated_tensors("return", result, hint))
                self._wrong(call, "return", {"return": result}, bound, key)

    def _result_fits(self, call: OpenCall, result: Any) -> bool:
        """Is it what its annotation says? What cannot be judged, such as `n+1` where no argument says n, is noted."""
        bound, hint = [each[1:] for each in call.signature.bound], call.signature.hints.get("return")
        try:
            return annotations.result_fits(bound, result, hint)
        except jaxtyping.AnnotationError as error:
            self._faults[f"{call.function.call}: {str(error).partition('. ')[0]}"] += 1
            return True

    # ---- lines and operations

    def _follows(self, frame: types.FrameType) -> bool:
        """Is this a function whose lines are to be shown? The first call of each."""
        code = frame.f_code
        if isinstance(self._lines, frozenset):
            wanted = code in self._lines
        else:
            wanted = not is_library(code) and locate(frame) is not None
        if not wanted or code in self._followed:
            return False
        self._followed.add(code)
        if "locals" in code.co_names or "vars" in code.co_names:  # to look at its variables would change what it sees
            self.trace.notes.append(f"{code.co_qualname} calls locals() or vars(): its lines are not shown")
            return False
        return True

    def _returns(self, frame: types.FrameType, result: Any) -> None:
        """Name the axes of a result by its annotation, before its line is shown."""
        if self._flow is not None and self._open and self._open[-1].frame is frame:
            name_axes(self._flow, (result, self._open[-1].function.hints.get("return")))

    def _local(self, frame: types.FrameType, name: str, value: Any, hint: Any, line: int) -> None:
        """Judge the annotation of a local variable."""
        call = self._open[-1] if self._open and self._open[-1].frame is frame else None
        bound = [*call.signature.bound, *call.locals] if call is not None else []
        mine = list(annotated_tensors(name, value, hint))
        if annotations.result_fits([each[1:] for each in bound], value, hint):
            if call is not None:
                call.locals += tuple(mine)
            return
        qualname = frame.f_code.co_qualname.rpartition("<locals>.")[2]
        context = self._context(str(frame.f_globals.get("__name__", "")))
        found = mismatch.explain(qualname, name, value, [*bound, *mine], {name: hint}, context)
        where = f"\n  assigned at {file_of(frame.f_code, frame.f_globals)}:{line}"
        self._mismatch(found, call.record if call is not None else None, where)

    def _operation(
        self, frame: types.FrameType, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, before: Any
    ) -> None:
        """Called after each operation."""
        self._quietly(self._note_operation, frame, name, args, kwargs, result, before)

    def _before_it_changes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called before an operation such as `resize_`: what it is given."""
        return self._quietly(lambda _: self._operands(args, kwargs), sys._getframe()) if self._ops else None

    def _operands(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Value, ...]:
        """The tensors that an operation is given."""
        given = [("", each) for each in tensors_among(args)]
        given += [(key, each) for key, each in kwargs.items() if isinstance(each, Tensor)]
        return tuple(each for key, value in given for each in self._described(key, value))

    def _note_operation(
        self, frame: types.FrameType, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, before: Any
    ) -> None:
        if self._flow is not None:
            self._flow.operation(name, args, kwargs, result)
        above = self._open[-1] if self._open else None
        if not self._ops or threading.get_ident() != self._thread or (above and _is_leaf(above.function)):
            return
        caller = users_frame(frame)
        if caller is None:
            return
        plain = [text_of(each) for each in args if is_plain(each)]
        plain += [f"{key}={text_of(each)}" for key, each in kwargs.items() if is_plain(each)]
        record = Record(
            id=len(self.trace.steps),
            parent=above.record.id if above else None,
            depth=len(self._open),
            call=name,
            title=f"{name}({', '.join(plain)})" if plain else name,
            phase=above.record.phase if above else "",
            op=True,
            inputs=self._operands(args, kwargs) if before is None else before,
            outputs=tuple(self._described("out", result)),
            status="ok",
            file=file_of(caller.f_code, caller.f_globals),
            line=caller.f_lineno,
            sources=self._made.of(tensors_among((*args, *kwargs.values()))),
        )
        self.trace.steps.append(record)
        self._made.note(tensors_among((result,)), record.id)

    def _described(self, name: str, value: Any) -> Iterator[Value]:
        """A value with the names that have flowed to it."""
        for path, part, _, how in walk(name, value, hinted=False):
            if how == TENSOR and self._flow is not None:
                pairs = zip(self._flow.of(part), tensors.sizes(part), strict=True)
                kind = tensors.dtype_name(part.dtype), tensors.device_name(part.device)
                yield Value(path, tuple(Axis(each, size) for each, size in pairs), *kind)
            elif how == SCALAR and name == path:
                yield Value(path, text=text_of(part))

    def _watch_gradients(self, record: Record, result: Any, hint: Any) -> None:
        """Have torch tell of the gradients of what a call gave."""
        for path, part, _, how in walk("out", result, hint):
            if how == TENSOR and part.requires_grad and not part.is_leaf:
                value = next((each for each in record.outputs if each.name == path), None)
                if value is not None:
                    part.register_hook(functools.partial(self._gradient, record, value))

    def _gradient(self, record: Record, value: Value, gradient: Tensor) -> None:
        """Called in the backward pass: keeps the norm, which is read at the end of the trace."""
        if current is self:
            self._quietly(lambda _: self._gradients.append((record, value, gradient.detach().norm())), sys._getframe())

    def _path(self, module: nn.Module) -> tuple[str, int]:
        """Where the module is in the outermost one that was met, and which of these that is."""
        known = self._modules_met.get(id(module))
        if known is None or known[0]() is not module:
            self._roots += 1
            for name, child in module.named_modules():
                if (met := self._modules_met.get(id(child))) is None or met[0]() is not child:
                    self._modules_met[id(child)] = weakref.ref(child), (name, self._roots)
                if isinstance(child, torch.jit.ScriptModule):
                    self.trace.notes.append(f"{name or type(child).__name__} runs outside Python and could not be seen")
            known = self._modules_met.get(id(module))
        return known[1] if known is not None else ("", self._roots)

    def _phase(self, call: OpenCall, values: dict[str, Any], owner: Any, above: OpenCall | None) -> None:
        """Prefill, decode, train or recompute, where that can be told."""
        record, learns = call.record, torch.is_grad_enabled()
        phase = above.record.phase if above else ""
        if phase == "recompute" or (learns and _is_recomputed(call.frame, above)):
            record.phase = "recompute"
            return
        record.phase = phase if phase != "train" else ""
        cache = values.get(call.function.cache) if call.function.cache else None
        if cache is None:
            if learns and call.training:
                record.phase = "train"
            return
        who = (id(call.function), id(owner) if isinstance(owner, nn.Module) else 0)
        state = next((each.caches[id(cache)] for each in reversed(self._open) if id(cache) in each.caches), None)
        if state is None and id(cache) in self._outermost and self._outermost[id(cache)][0]() is cache:
            state = self._outermost[id(cache)][1]
        if state is None or state.is_over(who, record):
            length = cache_length(cache)
            phase = "decode" if length else "prefill"
            if length is None:
                phase = "decode" if holds_keys(cache) else record.phase
            state = CacheState(cache, length, phase, record, {who})
            if above is not None:
                above.caches[id(cache)] = state
            elif type(cache).__weakrefoffset__:  # a list could not be watched; a layer's own needs no watching
                self._outermost[id(cache)] = weakref.ref(cache), CacheState(None, length, phase, record, state.met)
        state.met.add(who)
        record.cache, record.phase = state.length, state.phase
        call.caches[id(cache)] = CacheState(cache, state.length, state.phase, None, set())

    # ---- what went wrong

    def refused(self, function: Any, values: Mapping[str, Any], found: Mismatch) -> None:
        """A call that the run-time checks did not let begin: it is recorded, too."""
        if threading.get_ident() != self._thread:
            return
        code = function.__code__
        above = self._open[-1].record if self._open else None
        hints = annotations.hints_of(function)
        record = Record(
            id=len(self.trace.steps),
            parent=above.id if above else None,
            depth=len(self._open),
            call=code.co_qualname.rpartition("<locals>.")[2],
            title=getattr(function, "__step__", code.co_name),
            declared=hasattr(function, "__step__"),
            inputs=tuple(each for name, value in values.items() for each in describe(name, value, hints.get(name))),
            file=file_of(code, function.__globals__),
            line=code.co_firstlineno,
            phase=above.phase if above else "",
            status=_status(found),
        )
        self.trace.steps.append(record)
        self.trace.mismatches.append(found)
        self.trace.problem = self.trace.problem or str(found)

    def _wrong(
        self, call: OpenCall, name: str, values: Mapping[str, Any], bound: tuple[Bound, ...], key: Any = None
    ) -> None:
        """Mark the record; the first problem of a run is explained in full. `key`: of the result, if that is wrong."""
        record, told = call.record, call.signature.told
        record.status = f"{name}: does not fit its annotation"
        if (name, key) not in told:
            context = self._context(call.function.module)
            told[name, key] = mismatch.explain(record.call, name, values[name], bound, call.signature.hints, context)
        found = told[name, key]
        value = values.get(found.argument.partition(".")[0])
        self._mismatch(found, record, "" if self.trace.problem else self._where(call, found.argument, value))

    def _mismatch(self, found: Mismatch, record: Record | None, where: str) -> None:
        """Keep a mismatch; the first one is the trace's problem."""
        self.trace.mismatches.append(found)
        if record is not None:
            record.status = _status(found)
        if not self.trace.problem:
            self._problem_at = record.id if record is not None else len(self.trace.steps) - 1
            self.trace.problem = f"{found}{where}"

    def _where(self, call: OpenCall, path: str, value: Any) -> str:
        """The line of the call or of the result, and the call that made the tensor. `path`: such as `parts.audio`."""
        name = path.partition(".")[0]
        frame: types.FrameType | None = call.frame
        if name != "return":
            frame = readers_frame(call.frame.f_back)
        text = ""
        if frame is not None:
            line = return_line(frame) if name == "return" else frame.f_lineno
            text += f"\n  {'returned' if name == 'return' else 'called'} at "
            text += f"{file_of(frame.f_code, frame.f_globals)}:{line}"
            text += "".join(f"\n  {each}" for each in returned_names(frame, line)) if name == "return" else ""
        tensor = next((part for at, part, _, how in walk(name, value) if how == TENSOR and at == path), None)
        record = self._maker(tensor) if tensor is not None and name != "return" else None
        if record is not None:
            text += f"\n  `{path}` came from {_name(record)}"
        return text

    def _context(self, module: str) -> Context:
        """What the run can tell so far to a function of this module."""
        usual: dict[str, Counter[Any]] = {}
        for record in self.trace.steps:
            if record.ok:
                for value in record.inputs + record.outputs:
                    for axis in value.axes:
                        usual.setdefault(axis.name, Counter())[axis.size] += 1
        glossary = {**glossary_of(module), **self._glossary}
        modules = [(each, path) for met, (path, _) in self._modules_met.values() if (each := met()) is not None]
        return Context(usual, modules, glossary, self.trace.steps, self._maker)

    def _maker(self, tensor: Tensor) -> Record | None:
        """The call that made a tensor, if that is known; one that gave back what it was given made nothing."""
        sources = self._made.of([tensor])
        record = self.trace.steps[sources[0]] if sources else None
        while record is not None and record.call.partition(".")[0] in PASSED_ON and record.sources:
            record = self.trace.steps[record.sources[0]]
        return record

    def _finish(self, error: BaseException | None) -> Exception | None:
        """Say what could not be seen; the error that explains more than the program's own, if there is one."""
        notes = self.trace.notes
        notes += [f"{text}{f' ({count} times)' if count > 1 else ''}" for text, count in self._faults.items()]
        for record, value, norm in self._gradients:
            record.gradients = (*record.gradients, Gradient(value, float(norm)))
        if self._threads:
            notes.append(f"calls in other threads are not traced: {', '.join(sorted(self._threads))}")
        compiled = sys.modules.get("torch._dynamo.utils")
        if not self._dynamo and compiled is not None and compiled.counters["frames"]["total"]:
            notes.append("torch.compile was first used inside the trace: what it compiled could not be seen")
        unnamed = sum(each.count for each in self._calls.values() if not each.function.has_names)
        if unnamed:
            notes.append(f"axes of {unnamed} calls have no name: those functions have no jaxtyping annotations")
        found = [*columns_against_rows(self.trace), *masks(self.trace)]
        notes += [f"look at {text}" for text in dict.fromkeys(found)][:MOST_SUSPICIONS]
        notes += self._names.notes(record.call for record in self.trace.steps)
        if self._lost:
            last = self.trace.steps[-1].call if self.trace.steps else "its beginning"
            notes.append(
                f"from {last} on, nothing was recorded: another profiler took the place of the trace, or an exception "
                "that came from outside (Ctrl-C, a signal) met it at work"
            )
        for call in self._open:
            if call.record.status == "open":
                call.record.status = UNSEEN if self._lost else "raised"
        if error is not None and not isinstance(error, Exception):
            return None
        return self._explain(error)

    def _explain(self, error: Exception | None) -> Exception | None:
        trace = self.trace
        strict = strict_by_default if self._strict is None else self._strict
        at = len(trace.steps) if self._problem_at is None else self._problem_at
        if error is None:
            return ShapeError(f"{trace.title}: {trace.problem}{self._way(at)}") if strict and trace.problem else None
        told = "" if isinstance(error, jaxtyping.TypeCheckError) else torch_errors.explain(error, self._context(""))
        if told and trace.problem:
            # a call that did not return ended at its own mismatch; after one that did, this is another error
            over = at >= len(trace.steps) or bool(trace.steps[at].end)
            said = f"It ended at {told.splitlines()[0]}\ntorch says: {str(error).splitlines()[0]}"
            told = f"{trace.problem}\n{f'The run went on, and ended at {told}' if over else said}"
        trace.problem = trace.problem or told
        way = self._way(at)
        if told and (better := explained(error, f"{trace.title}: {told}{way}")) is not None:
            return better
        if trace.steps or trace.problem:
            error.add_note(f"{trace.title}: {trace.problem}{way}")
        return None

    def _way(self, at: int) -> str:
        """The last calls before the problem, indented under one another."""
        last = self.trace.steps[max(0, at - 4) : at + 1]
        least = min((record.depth for record in last), default=0)
        lines = [
            f"{'  ' * (record.depth - least)}{record.call}  {between(Row([record]))}"
            + (f"  called at {record.called}" if record.called and not record.file.startswith("torch/") else "")
            for record in last
        ]
        return "\n  the last calls:\n    " + "\n    ".join(lines) if lines else ""


def _name(record: Record) -> str:
    path = f" ({record.path})" if record.path else ""
    return f"{record.call}{path}, {record.file}:{record.end or record.line}"


def readers_frame(frame: types.FrameType | None) -> types.FrameType | None:
    """The nearest frame of the reader's own code."""
    while frame is not None and is_passed_over(frame):
        frame = frame.f_back
    return frame


def is_passed_over(frame: types.FrameType) -> bool:
    """Code of a library, of a check of shapes, or of `annotate`: they stand between a function and who calls it."""
    return is_library(frame.f_code) or frame.f_globals.get("__name__") in (CHECKS, __name__)


def place_of(frame: types.FrameType | None) -> str:
    """The file and line that are run there, or in the nearest frame above that no library runs."""
    frame = readers_frame(frame)
    return "" if frame is None else f"{file_of(frame.f_code, frame.f_globals)}:{frame.f_lineno}"


def _status(found: Mismatch) -> str:
    return f"{found.argument}: expected {found.annotation}, got {found.value}"


def name_axes(flow: NameFlow, *annotated: tuple[Any, Any]) -> None:
    """Let names flow from the annotations of values. A tensor that is given twice, under two names, has neither."""
    named: dict[int, tuple[Tensor, tuple[str, ...]]] = {}
    for value, hint in annotated:
        for _, part, each, how in walk("", value, hint) if annotations.leaves(hint) else ():
            if how == TENSOR and (leaf := annotations.choose(each, part)) is not None:
                names = tuple(axis.name or axis.formula for axis in annotations.axes(leaf, tensors.sizes(part)))
                other = named.get(id(part), (part, names))[1]
                names = tuple(a if a == b else "" for a, b in zip(names, other, strict=True))
                named[id(part)] = (part, names)
    for part, names in named.values():
        flow.annotate(part, names)


def _is_leaf(function: Function) -> bool:
    """A layer of torch.nn: what it does inside is its own affair."""
    return function.module.startswith("torch.nn.")


def running_threads() -> set[str]:
    """The names of other threads that may be at work: Python lets nobody watch a thread that has begun. Left out are
    daemons that run libraries' code only, such as those of Jupyter and progress bars, and the main thread."""
    frames = sys._current_frames()
    del frames[threading.get_ident()]  # it would hold this very frame, in a cycle
    found = set()
    for thread in threading.enumerate():
        frame, names = frames.get(thread.ident or 0), []
        while frame is not None:
            names.append(frame.f_code)
            frame = frame.f_back
        if thread not in (threading.current_thread(), threading.main_thread()) and (
            not thread.daemon or any(not is_library(code) for code in names)
        ):
            found.add(thread.name)
    return found


def first_shape(record: Record) -> tuple[Any, ...]:
    """Of the first tensor that a call was given."""
    return next((value.shape for value in record.inputs if value.shape), ())


def _is_recomputed(frame: types.FrameType, above: OpenCall | None) -> bool:
    """Is activation checkpointing between this call and the one above it?"""
    if "torch.utils.checkpoint" not in sys.modules:
        return False
    outer, end = frame.f_back, above.frame if above else None
    while outer is not None and outer is not end:
        code = outer.f_code
        if code.co_name in ("recompute_fn", "backward") and outer.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        outer = outer.f_back
    return False


def cache_length(cache: Any) -> int | None:
    """How many tokens a KV cache holds; None if it does not say."""
    try:
        length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else None
    except Exception as error:  # somebody's cache: some say so only for some layers, or not before the first token
        if is_of_a_signal(error):
            raise
        return None
    for name in ("size", "length") if not hasattr(cache, "__array__") else ():  # an array's size says something else
        length = getattr(cache, name, None) if length is None else length
    if isinstance(length, Tensor) and length.device.type == "cpu" and not torch._C._len_torch_dispatch_stack():
        return int(length)
    return length if type(length) is int else None


def holds_keys(cache: Any) -> bool:
    """Is it keys and values as bare tensors, (keys, values) or one such pair for each layer? They have at least three
    dims, (batch or heads, tokens, features), which other things that are called a cache seldom have."""
    parts = cache.values() if isinstance(cache, dict) else [cache]
    parts = [*parts, *cache[:MOST_LAYERS]] if isinstance(cache, (tuple, list)) else parts
    return any(tensor.dim() >= 3 and 0 not in tensors.sizes(tensor) for tensor in tensors_among(parts))


def trace(
    title: str = "trace",
    glossary: Mapping[str, str] | None = None,
    modules: bool | None = None,
    strict: bool | None = None,
    model: nn.Module | None = None,
    names: Given | None = None,
    lines: bool = False,
    ops: bool = False,
    backward: bool = False,
) -> Trace:
    """`with trace("my run") as t: model(batch)`; then `print(t)`, `t.steps`, `t.check(spec)`.

    glossary  explains your own axis names in error messages
    modules   also record un-annotated `nn.Module`s: True all of them, False none, None (the default) those that are
              not inside an annotated call
    strict    raise a ShapeError at the end if a value did not fit its annotation although the program went on; None
              (the default) does so while `check_shapes()` is on
    model     module paths are those inside it; by default those inside the first module that is called
    names     axis names for functions without annotations: a dict or a TOML file, see `names`
    lines     also show the source of each function with shapes behind its lines, see `lines`
    ops       also record the operations between calls: `cat`, `view`, `matmul`, …
    backward  also record the gradients of what each call gave, with their norms
    """
    return Recorder(title, glossary, modules, strict, model, names, lines, ops, backward).trace


def annotate(function: Callable[..., Any]) -> Callable[..., Lines]:
    """`annotate(f)(x)` runs `f(x)` and gives its source with the shapes behind each line; `.result` is what f gave."""
    inner = type(function).forward if isinstance(function, nn.Module) else annotations.unwrapped(function)
    if inner is None and hasattr(function, "__func__"):
        inner = annotations.unwrapped(function.__func__)
    if inner is None:
        raise TypeError(f"annotate: expected a Python function or a module, got {type(function).__name__}")
    code = inner.__code__

    @functools.wraps(inner)
    def run(*args: Any, **kwargs: Any) -> Lines:
        with Recorder("annotate", lines=frozenset({code})).trace as seen:
            result = function(*args, **kwargs)
        if not seen.lines:
            raise RuntimeError(f"annotate: {inner.__qualname__} did not run, or has no source. {' '.join(seen.notes)}")
        seen.lines[0].result = result
        return seen.lines[0]

    return run


def tokens(source: str, count: int, of: int) -> None:
    """Tell the running trace that `source` put `count` tokens into a sequence in which `of` fit."""
    if current is not None:
        current.trace.ledger.append(Entry(source, count, of, place_of(sys._getframe(1))))
