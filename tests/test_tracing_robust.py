"""Never in the way: a traced program gives its own result or its own error, whatever it does."""

import asyncio
import dataclasses
import functools
import gc
import importlib
import importlib.abc
import pickle
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tinyomni.tracing import ShapeError, Trace, check_shapes, trace
from tinyomni.tracing.checks import Finder, checked


class Same(nn.Module):
    def forward(self, *given: Any, **more: Any) -> Any:
        return given[0] if given else None


def both_ways(program: Callable[[], Any]) -> tuple[Any, Any, Trace]:
    """The outcome without a trace and with one: a result or an exception."""
    torch.manual_seed(0)
    plain, traced = outcome(program), None
    torch.manual_seed(0)
    t = trace(strict=False)
    try:
        with t:
            traced = program()
    except Exception as error:
        traced = error
    return plain, traced, t


def outcome(program: Callable[[], Any]) -> Any:
    try:
        return program()
    except Exception as error:
        return error


NESTED = "ignore:The PyTorch API of nested tensors is in prototype:UserWarning"

# ---- what once stopped a program that works -------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("lengths", [(5, 3), (1, 6, 2)])
@pytest.mark.filterwarnings(NESTED)
def test_an_encoder_with_a_padding_mask(grad: bool, lengths: tuple[int, ...]) -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(len(lengths), max(lengths), 12)
    mask = torch.arange(max(lengths))[None] >= torch.tensor(lengths)[:, None]
    with torch.set_grad_enabled(grad):
        plain, traced, t = both_ways(lambda: encoder(x, src_key_padding_mask=mask))
    assert torch.equal(plain, traced) and not t.problem and "could not" not in str(t)
    assert ("ragged" in str(t)) is not grad  # without gradients torch takes its path of nested tensors


@pytest.mark.filterwarnings(NESTED)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout: torch.layout) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    nested = torch.nested.nested_tensor([torch.randn(3, 6), torch.randn(2, 6), torch.randn(9, 6)], layout=layout)
    plain, traced, t = both_ways(lambda: torch.nested.to_padded_tensor(model(nested), 0.0))
    assert torch.equal(plain, traced) and t.steps[1].outputs[0].shape == (3, "ragged", 4)


def test_annotated_functions_take_nested_tensors() -> None:
    def f(x: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch n width"]:
        return x * 2

    nested = torch.nested.nested_tensor([torch.randn(3, 6), torch.randn(2, 6)], layout=torch.jagged)
    _, traced, t = both_ways(lambda: f(nested))
    assert traced.is_nested and t.steps[0].ok
    assert [(axis.name, axis.size) for axis in t.steps[0].inputs[0].axes] == [
        ("batch", 2), ("n", "ragged"), ("width", 6)]  # fmt: skip


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_inside_a_trace_is_the_same_program(strict: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2)).eval()

    def export() -> Any:
        rows = {0: torch.export.Dim("rows")}
        return torch.export.export(model, (torch.zeros(5, 4),), dynamic_shapes=(rows,), strict=strict)

    plain, traced, t = both_ways(export)
    assert str(plain.graph) == str(traced.graph) and str(plain.range_constraints) == str(traced.range_constraints)
    assert not any("could not be recorded" in note for note in t.notes)


def test_symbolic_sizes_are_shown_and_not_judged() -> None:
    class Annotated(nn.Module):
        def forward(self, x: Float[Tensor, "rows 4"]) -> Float[Tensor, "rows 4"]:
            return x + 1

    def export() -> Any:
        rows = {0: torch.export.Dim("rows", min=3)}
        return torch.export.export(Annotated(), (torch.zeros(5, 4),), dynamic_shapes=(rows,))

    plain, traced, t = both_ways(export)
    assert str(plain.range_constraints) == str(traced.range_constraints)
    sizes = [record.inputs[0].shape for record in t.steps if record.call == "Annotated.forward"]
    assert sizes and all(isinstance(size[0], str) and size[1] == 4 for size in sizes)


@pytest.mark.parametrize("name", ["jit.trace", "vmap", "fx", "functional_call", "make_fx"])
def test_other_programs_that_look_at_a_model(name: str) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU()).eval(), torch.ones(3, 4)
    programs = {
        "jit.trace": lambda: torch.jit.trace(model, x, check_trace=False).code,
        "vmap": lambda: torch.vmap(model)(x[None]).tolist(),
        "fx": lambda: str(torch.fx.symbolic_trace(model).graph),
        "functional_call": lambda: torch.func.functional_call(model, dict(model.named_parameters()), (x,)).tolist(),
        "make_fx": lambda: str(make_fx(nn.Sequential(nn.ReLU(), nn.Softmax(-1)), tracing_mode="symbolic")(x).graph),
    }
    plain, traced, t = both_ways(programs[name])
    assert plain == traced and not any("could not be recorded" in note for note in t.notes)


def test_mamba_generates() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(hidden_size=12, num_hidden_layers=2, vocab_size=30, state_size=3)
    model = transformers.MambaForCausalLM(config).eval()
    ids = torch.ones(1, 4, dtype=torch.long)
    run = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    plain, traced, t = both_ways(lambda: model.generate(ids, **run))
    assert torch.equal(plain, traced) and len(t.steps) > 20 and not any("could not" in note for note in t.notes)


class Raises:
    """A cache that answers nothing."""

    def get_seq_length(self) -> int:
        raise NotImplementedError("not before the first token")

    @property
    def size(self) -> int:
        raise RuntimeError("no size")


class Hostile:
    """An object that does not want to be looked at."""

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        raise OSError(name)

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError

    def __len__(self) -> int:
        raise ArithmeticError

    def __bool__(self) -> bool:
        raise ArithmeticError

    def __repr__(self) -> str:
        raise ArithmeticError


class Lost(dict[str, Any]):
    def items(self) -> Any:
        raise OSError("the file is gone")


@dataclasses.dataclass
class Node:
    value: Float[Tensor, "n"]
    next: "Node | None" = None


def cyclic() -> list[Any]:
    node, table, line = Node(torch.zeros(2)), {"x": torch.zeros(3)}, [torch.zeros(4)]
    node.next, table["self"] = node, table  # type: ignore[assignment]
    line.append(line)  # type: ignore[arg-type]
    return [node, table, line]


ODD: dict[str, Callable[[], Any]] = {
    "raises": Raises,
    "hostile": Hostile,
    "lost": lambda: Lost(a=1),
    "node": lambda: cyclic()[0],
    "table": lambda: cyclic()[1],
    "line": lambda: cyclic()[2],
    "inside": lambda: [Hostile(), torch.zeros(2)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_objects(name: str) -> None:
    given = ODD[name]()

    def annotated(node: Node | None, x: Float[Tensor, "n"], cache: Any) -> Float[Tensor, "n"]:
        return x

    def program() -> Any:
        annotated(given if isinstance(given, Node) else None, torch.zeros(2), given)
        return Same()(given, cache=given)

    plain, traced, _ = both_ways(program)
    assert plain is traced is given


def test_annotations_that_cannot_be_read_are_noted() -> None:
    def broken(x: "Float[Tensor, 'n'] | 1/0") -> None:
        return None

    def braces(x: Float[Tensor, "n"], y: Float[Tensor, "{1/0}"]) -> Float[Tensor, "n"]:
        return x

    _, traced, t = both_ways(lambda: (broken(torch.zeros(1)), braces(torch.zeros(1), torch.zeros(2))))
    assert not isinstance(traced, Exception) and "1/0" in str(t) and t.steps[-1].ok


class Counting(TorchFunctionMode):
    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Spied(Tensor):
    """A tensor class that counts what is done to it."""

    count = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Spied.count += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_nothing_that_counts_operations_counts_ours() -> None:
    def shaped(x: Float[Tensor, "a b"], rest: list[Float[Tensor, "b"]]) -> Float[Tensor, "a b"]:
        return x @ x.T @ x + rest[0]

    def count(make: Callable[[], Any]) -> Callable[[], int]:
        def program() -> int:
            with make() as mode:
                shaped(torch.ones(3, 5), [torch.ones(5)])
                nn.Linear(5, 2)(torch.ones(3, 5))
            return mode.get_total_flops() if isinstance(mode, FlopCounterMode) else mode.count

        return program

    for make in (Counting, Dispatched, lambda: FlopCounterMode(display=False)):
        plain, traced, t = both_ways(count(make))
        assert plain == traced > 0 and len(t.steps) == 2

    def spied() -> int:
        Spied.count = 0
        shaped(torch.ones(3, 5).as_subclass(Spied), [torch.ones(5)])
        return Spied.count

    plain, traced, t = both_ways(spied)
    assert plain == traced > 0 and t.steps[0].outputs[0].shape == (3, 5)


class Late:
    """A cache that a signal meets while the trace looks at it."""

    def get_seq_length(self) -> int:
        signal.raise_signal(signal.SIGUSR1)
        return 0


class TooLateError(Exception):
    pass


@pytest.mark.parametrize("kind", [TooLateError, KeyboardInterrupt])
def test_an_exception_of_a_signal_reaches_the_program(kind: type[BaseException]) -> None:
    def handle(*_: Any) -> None:
        raise kind

    def f(x: Float[Tensor, "n"], cache: Any) -> Float[Tensor, "n"]:
        return same(x)

    same, before = Same(), signal.signal(signal.SIGUSR1, handle)
    try:
        with trace() as t:
            same(torch.zeros(2))
            with pytest.raises(kind):
                f(torch.zeros(2), Late())
            same(torch.zeros(3))
    finally:
        signal.signal(signal.SIGUSR1, before)
    lost = any(note.startswith("from ") and "nothing was recorded" in note for note in t.notes)
    assert lost == (sys.version_info < (3, 12)) and (len(t.steps) > 1) != lost


def test_a_profiler_that_takes_the_place_of_the_trace_is_noted() -> None:
    class Profiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = Same()

        def forward(self, x: Tensor) -> Tensor:
            x = self.same(x)
            sys.setprofile(None)
            return self.same(x)

    model = Profiled()
    with trace() as t:
        model(torch.zeros(2))
        model(torch.zeros(3))
    if sys.version_info >= (3, 12):
        assert len(t.steps) == 6 and not t.notes[1:]
    else:
        assert [record.status for record in t.steps] == ["its end was not seen", "ok"]
        assert "from Same.forward on, nothing was recorded" in "".join(t.notes)
    with trace():
        sys.setprofile(mine := lambda *_: None)
    assert sys.getprofile() is mine
    sys.setprofile(None)


def test_a_recursion_as_deep_as_python_allows_is_traced() -> None:
    def down(k: int) -> int:
        return down(k - 1) if k else 0

    def deepest() -> int:
        least, most = 100, sys.getrecursionlimit()
        while most - least > 1:
            k = (least + most) // 2
            try:
                least = k + down(k)
            except RecursionError:
                most = k
        return least

    k, limit = deepest(), sys.getrecursionlimit()
    with trace() as t:
        down(k)
        Same()(torch.zeros(2))
    assert len(t.steps) == 1 and sys.getrecursionlimit() == limit


def test_models_that_are_dropped_inside_a_trace_are_let_go() -> None:
    with trace() as t:
        models = [nn.Linear(2, 2) for _ in range(3)]
        for model in models:
            model(torch.zeros(1, 2))
        left = [weakref.ref(model) for model in models]
        del model, models
        gc.collect()
        assert not any(each() for each in left)
    assert len(t.steps) == 3


def test_what_is_compiled_first_inside_a_trace_is_the_program_alone() -> None:
    code = (
        "import sys, torch\nfrom tinyomni.tracing import trace\ngraphs = []\n"
        "def backend(graph, _): graphs.append(graph); return graph.forward\n"
        "def run():\n"
        "  model = torch.compile(torch.nn.Linear(3, 4), backend=backend)\n"
        "  for n in (2, 3, 4): model(torch.zeros(n, 3))\n"
        "with trace() as t: run()\n"
        "print(t.notes[0][:13], len(graphs), torch._dynamo.utils.counters['frames']['total'])\n"
    )
    assert run_python(code) == "torch.compile 2 2\n"


def test_random_numbers_gradients_and_compiled_code_are_the_same() -> None:
    def program() -> list[float]:
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        loss = model(torch.randn(16, 4)).square().mean()
        loss.backward()
        return [loss.item(), *model[0].weight.grad.flatten().tolist()]

    plain, traced, _ = both_ways(program)
    assert plain == traced


# ---- errors ---------------------------------------------------------------------------------------------------------


class Fields(RuntimeError):
    """An error with more than a text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text}: size mismatch {code}")
        self.code = code


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape"), IndexError("size"), ValueError("dimension"), AssertionError("shape"), Fields(7, "x"),
     torch.OutOfMemoryError("size"), KeyError("shape"), NotImplementedError("stride"), OSError(2, "size"),
     UnicodeDecodeError("utf-8", b"", 0, 1, "size"), StopIteration("size"), ZeroDivisionError(), TypeError("shape")],
)  # fmt: skip
def test_the_type_of_the_programs_own_error_is_kept(error: Exception) -> None:
    def wrong(x: Float[Tensor, "n"], y: Float[Tensor, "n"]) -> None:
        raise error

    with pytest.raises(type(error)) as caught, trace(strict=False):
        wrong(torch.zeros(2), torch.zeros(3))
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "wrong: expected `y` (n) Float, got (3,) float32" in told
    if isinstance(error, Fields):
        assert caught.value is error and caught.value.code == 7
    again = pickle.loads(pickle.dumps(caught.value)) if not isinstance(error, Fields) else error
    assert isinstance(again, Exception)


def test_an_error_that_the_program_catches_is_its_own() -> None:
    def program() -> str:
        try:
            nn.Linear(3, 2)(torch.zeros(1, 4))
        except RuntimeError as error:
            return f"{type(error).__name__} {error}"
        return ""

    plain, traced, t = both_ways(program)
    assert plain == traced and t.steps[0].status == "raised"


def test_a_run_that_succeeds_raises_only_if_it_is_asked_to() -> None:
    def same(a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return a

    with trace(strict=False) as t:
        same(torch.zeros(2), torch.zeros(5))
    assert "✘ same: expected `b` (n) Float, got (5,) float32: n must be 2 as in `a`, got 5." in str(t)
    assert "called at test_tracing_robust.py" in t.problem and t.mismatches[0].axis == "n"
    with pytest.raises(ShapeError, match="n must be 2 as in `a`, got 5"), trace(strict=True):
        same(torch.zeros(2), torch.zeros(5))
    code = (
        "import torch\nfrom jaxtyping import Float\nfrom tinyomni.tracing import check_shapes, trace\n"
        "def f(x: Float[torch.Tensor, '3']): pass\n"
        "with trace() as t: f(torch.zeros(4))\n"
        "print(len(t.mismatches))\ncheck_shapes()\n"
        "try:\n  with trace(): f(torch.zeros(4))\nexcept ValueError: print('raised')\n"
    )
    assert run_python(code) == "1\nraised\n"


def test_decorated_functions_check_themselves_as_they_do_without_a_trace() -> None:
    from beartype import beartype

    @jaxtyped(typechecker=beartype)
    def f(x: Float[Tensor, "n"], y: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return x

    def program() -> str:
        f(torch.zeros(2), torch.zeros(2))
        try:
            f(torch.zeros(2), torch.zeros(3))
        except TypeCheckError:
            return "caught"
        return "passed"

    plain, traced, t = both_ways(program)
    assert plain == traced == "caught" and [record.call for record in t.steps] == ["f"]


# ---- what cannot be seen is named -----------------------------------------------------------------------------------


def annotated(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return x


@pytest.mark.parametrize("daemon", [False, True])
def test_threads_that_ran_before_the_trace_are_named(daemon: bool) -> None:
    work, done, end = threading.Event(), threading.Event(), threading.Event()

    def loop() -> None:
        work.wait()
        annotated(torch.zeros(3))
        done.set()
        end.wait()

    thread = threading.Thread(target=loop, name="feeder-7", daemon=daemon)
    thread.start()
    with trace() as t:
        work.set()
        done.wait()
    end.set()
    thread.join()
    assert "other threads are not traced: feeder-7" in str(t)
    with trace() as t:
        annotated(torch.zeros(1))
    assert "thread" not in str(t)


class Cached:
    @functools.cached_property
    def mask(self) -> Float[Tensor, "n n"]:
        return torch.zeros(2, 3)


def pieces(x: Float[Tensor, "n"]) -> Iterator[Tensor]:
    yield from (annotated(x), x)


async def later(x: Float[Tensor, "n"]) -> Tensor:
    return x


def test_async_and_generator_functions_are_noted_once_if_they_are_annotated() -> None:
    def bare(x: Tensor) -> Iterator[Tensor]:
        yield x

    with trace() as t:
        for _ in range(2):
            list(pieces(torch.zeros(3)))
            asyncio.run(later(torch.zeros(3)))
            list(bare(torch.zeros(3)))
    assert [record.call for record in t.steps] == ["annotated"] * 2
    end = " is an async or generator function: it ran, and was not recorded"
    assert [note for note in t.notes if end in note] == [f"pieces{end}", f"later{end}"]


def test_a_cached_property_is_judged_when_it_is_computed() -> None:
    cached = Cached()
    with trace(strict=False) as t:
        assert cached.mask is cached.mask
    assert [record.call for record in t.steps] == ["Cached.mask"]
    assert (t.mismatches[0].axis, t.mismatches[0].expected, t.mismatches[0].got) == ("n", 2, 3)


# ---- run-time checks ------------------------------------------------------------------------------------------------

PARTS = {
    "single": "def f(x: Float[Tensor, 'n'], y: Float[Tensor, 'n']) -> None: ...\n",
    "nested": "class A:\n  class B:\n    class C:\n"
    "      def f(self, x: Float[Tensor, 'n'], y: Float[Tensor, 'n']) -> None: ...\nf = lambda x, y: A.B.C().f(x, y)\n",
    "coroutine": "import asyncio\nasync def g(x: Float[Tensor, 'n'], y: Float[Tensor, 'n']) -> None: ...\n"
    "f = lambda x, y: asyncio.run(g(x, y))\n",
    "static": "class A:\n  @staticmethod\n"
    "  def f(x: Float[Tensor, 'n'], y: Float[Tensor, 'n']) -> None: ...\nf = A.f\n",
    "generator": "def f(x: Float[Tensor, 'n'], y: Float[Tensor, 'n']):\n  yield x\n",
    "async_generator": "async def f(x: Float[Tensor, 'n'], y: Float[Tensor, 'n']):\n  yield x\n",
    "protocol": "import typing\nclass P(typing.Protocol):\n  def p(self): ...\n"
    "def f(x: Float[Tensor, 'n'], y: Float[Tensor, 'n'], z: P | None = None) -> None: ...\n",
    "unknown": "def f(x: Float[Tensor, 'n'], y: Float[Tensor, 'n'], z: 'Nowhere' = 1) -> None: ...\n",
    "nothing": "def f(x, y): ...\n",
}
FUTURE = "from __future__ import annotations\n"  # annotations are text


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("package", [False, True])
@pytest.mark.parametrize("first", ["check", "import"])
def test_checks_reach_modules_packages_classes_coroutines_and_generators(
    part: str, package: bool, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"somebodys_{part}_{package}_{first}"
    file = tmp_path / name / "__init__.py" if package else tmp_path / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(FUTURE * package + "from jaxtyping import Float\nfrom torch import Tensor\n" + PARTS[part])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if first == "import":
            importlib.import_module(name)
        check_shapes(name)
        module = importlib.import_module(name)
    if part == "nothing":
        assert any("nothing is checked" in str(each.message) for each in told) or (package and first == "check")
        return
    assert not told and any(isinstance(each, Finder) and each.package == name for each in sys.meta_path)
    module.f(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ShapeError, match="n must be 2 as in `x`, got 3"):
        module.f(torch.zeros(2), torch.zeros(3))


def test_a_loader_that_serves_many_modules_checks_those_of_the_package_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from jaxtyping import Float\nfrom torch import Tensor\n" + PARTS["single"]
    (tmp_path / "somebodys_package").mkdir()
    (tmp_path / "somebodys_package" / "__init__.py").write_text("")
    for name in ("somebodys_package/self_test.py", "somebodys_other_test.py"):  # both are loaded by pytest's one loader
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    check_shapes("somebodys_package")
    inside = importlib.import_module("somebodys_package.self_test")
    outside = importlib.import_module("somebodys_other_test")
    assert type(inside.__spec__.loader) is type(outside.__spec__.loader)
    assert hasattr(inside.f, "__shapes_checked__") and not hasattr(outside.f, "__shapes_checked__")


class AsksAll(importlib.abc.MetaPathFinder):
    """As slipcover's: it takes what any other finder finds."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        others = [each for each in sys.meta_path if not isinstance(each, AsksAll)]
        return next(filter(None, (each.find_spec(fullname, path, target) for each in others)), None)


@pytest.mark.parametrize("place", [0, 1])
def test_a_finder_of_another_tool_that_asks_all_others(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"somebodys_found_{place}"
    (tmp_path / f"{name}.py").write_text("from jaxtyping import Float\nfrom torch import Tensor\n" + PARTS["single"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    check_shapes(name)
    sys.meta_path.insert(place, AsksAll())
    assert hasattr(importlib.import_module(name).f, "__shapes_checked__")


@pytest.mark.parametrize("name", ["somebodys_missing", "textwrap.TextWrapper", "json.nothing"])
def test_checks_of_a_module_that_is_not_there(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="no module of this name"):
        check_shapes(name)


def wrong_result(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows"]:
    return x.flatten()


def wrong_inside(x: Float[Tensor, "rows columns"]) -> tuple[Float[Tensor, "rows"], int]:
    return checked(Column.of)(x), 1


class Column:
    @staticmethod
    def of(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows 1"]:
        return x[:, 0]


def test_a_wrong_result_is_told_with_its_shape() -> None:
    with pytest.raises(ShapeError, match=r"^wrong_result: expected the result \(rows\) Float, got \(6,\) float32"):
        checked(wrong_result)(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"^Column.of: expected the result \(rows, 1\) Float, got \(2,\) float32"):
        checked(wrong_inside)(torch.zeros(2, 3))


def test_a_call_that_the_checks_refuse_is_in_the_trace() -> None:
    @checked
    def f(x: Float[Tensor, "n"], y: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return x

    with pytest.raises(ShapeError), trace() as t:
        f(torch.zeros(2), torch.zeros(2))
        f(torch.zeros(2), torch.zeros(7))
    assert [record.ok for record in t.steps] == [True, False] and t.mismatches[0].got == 7


def run_python(code: str) -> str:
    import subprocess

    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
