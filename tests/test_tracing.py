"""The tracer on code that is not the course's: what it records, what it leaves alone, what it cannot see."""

import cProfile
import dataclasses
import gc
import inspect
import json
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from jaxtyping import Bool, Float, Int, TypeCheckError, jaxtyped
from torch import Tensor, nn

from tinyomni import finite_checks
from tinyomni.tracing import Trace, step, tokens, trace, watch
from tinyomni.tracing.checks import checked
from tinyomni.tracing.svg import flow


class Toy(nn.Module):
    """Somebody's annotated model."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out, self.hop = nn.Embedding(11, 6), nn.Linear(6, 4), 2

    def forward(self, ids: Int[Tensor, "batch words"]) -> Float[Tensor, "batch words classes"]:
        return self.out(self.mix(self.table(ids)))

    def mix(self, x: Float[Tensor, "batch words width"]) -> Float[Tensor, "batch words width"]:
        return x + x.mean(dim=1, keepdim=True)

    def strided(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n//{self.hop}"]:
        return x[:, : x.shape[1] // self.hop]


@step("Ends")
def ends(
    x: Float[Tensor, "batch words classes"],
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    return x[:, 0], x[:, -1]


def lies(x: Float[Tensor, "batch words classes"]) -> Float[Tensor, "batch classes words"]:
    return x


def grow(x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n+1"]:
    return torch.cat([x, x[..., :1]], dim=-1)


class Cache:
    """A KV cache as people write it."""

    length = 0


def decode(ids: Int[Tensor, "batch words"], cache: Cache) -> Int[Tensor, "batch words"]:
    cache.length += ids.shape[1]
    return ids


IDS = torch.zeros(2, 5, dtype=torch.long)


def names(record: Any, which: str = "inputs") -> list[tuple[str, int]]:
    return [(axis.name or axis.formula, axis.size) for axis in getattr(record, which)[0].axes]


# ---- what is recorded -----------------------------------------------------------------------------------------------


def test_calls_nest_and_carry_names_from_annotations_and_sizes_from_tensors() -> None:
    model = Toy()
    with trace("toy") as seen:
        ends(model(IDS))
    forward, mix, last = seen.steps
    assert [record.call for record in seen.steps] == ["Toy.forward", "Toy.mix", "ends"]
    assert (forward.depth, mix.depth, mix.parent, last.parent) == (0, 1, 0, None)
    assert names(forward) == [("batch", 2), ("words", 5)] and forward.inputs[0].dtype == "int64"
    assert names(mix, "outputs") == [("batch", 2), ("words", 5), ("width", 6)]
    assert [value.shape for value in last.outputs] == [(2, 4), (2, 4)]
    assert (forward.declared, last.declared, last.title) == (False, True, "Ends")
    assert all(record.ok and record.phase == ("" if record is last else "train") for record in seen.steps)
    assert last.sources == (0,) and mix.sources == ()
    assert mix.file == "tests/test_tracing.py".removeprefix("tests/") or mix.file.endswith("test_tracing.py")
    assert mix.line == Toy.mix.__code__.co_firstlineno and mix.inputs[0].device == "cpu"


def test_renaming_an_axis_in_one_signature_changes_the_trace() -> None:
    source = "def f(x: Float[Tensor, 'batch {0}']) -> Float[Tensor, 'batch {0}']:\n    return x"
    for name in ("words", "letters"):
        space: dict[str, Any] = {"Float": Float, "Tensor": Tensor, "__name__": "somebody"}
        exec(source.format(name), space)
        with trace() as seen:
            space["f"](torch.zeros(2, 3))
        assert names(seen.steps[0]) == names(seen.steps[0], "outputs") == [("batch", 2), (name, 3)]


def test_variadic_computed_and_filled_axes() -> None:
    model = Toy()
    with trace() as seen:
        grow(torch.zeros(2, 3, 7))
        model.strided(torch.zeros(1, 9))
        model.hop = 3
        model.strided(torch.zeros(1, 9))
    assert names(seen.steps[0]) == [("*lead", 2), ("*lead", 3), ("n", 7)]
    assert names(seen.steps[0], "outputs") == [("*lead", 2), ("*lead", 3), ("n+1", 8)]
    assert names(seen.steps[1], "outputs") == [("batch", 1), ("n//self.hop", 4)]
    assert names(seen.steps[2], "outputs") == [("batch", 1), ("n//self.hop", 3)]
    assert [record.status for record in seen.steps] == ["ok"] * 3


@dataclasses.dataclass
class Pair:
    left: Float[Tensor, "batch words"]
    right: Float[Tensor, "batch words"]
    title: str = "pair"


def containers(
    one: Float[Tensor, "batch words"] | None,
    some: list[Float[Tensor, "batch words"]],
    named: dict[str, Int[Tensor, "batch"]],
    pair: Pair,
    *rest: Float[Tensor, "words"],
    mask: Bool[Tensor, "batch words"] | None = None,
    **more: Float[Tensor, "batch"],
) -> dict[str, Float[Tensor, "batch words"]]:
    return {"sum": some[0] + pair.left}


def call_containers(**change: Any) -> Trace:
    x, n = torch.zeros(2, 3), torch.zeros(2)
    given = {"one": None, "some": [x, x], "named": {"n": n.long()}, "pair": Pair(x, x), "mask": x.bool(), "extra": n}
    given |= change
    positional = [given.pop(name) for name in ("one", "some", "named", "pair")]
    with trace(strict=True) as seen:
        containers(*positional, torch.zeros(3), **given)
    return seen


def test_unions_optionals_lists_dicts_dataclasses_and_keywords() -> None:
    (record,) = call_containers().steps
    found = {value.name: [axis.name for axis in value.axes] for value in record.inputs}
    two = ["batch", "words"]
    assert found == {
        "some.0": two, "some.1": two, "named.n": ["batch"], "pair.left": two, "pair.right": two,
        "rest.0": ["words"], "mask": two, "more.extra": ["batch"],
    }  # fmt: skip
    assert [(value.name, value.shape) for value in record.outputs] == [("out.sum", (2, 3))]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"one": torch.zeros(2, 4)}, "some"),  # the first to speak of words is believed
        ({"some": [torch.zeros(2, 3), torch.zeros(3, 3)]}, "some"),
        ({"named": {"n": torch.zeros(2)}}, "named"),
        ({"pair": Pair(torch.zeros(2, 3), torch.zeros(2, 9))}, "pair"),
        ({"mask": torch.zeros(2, 3)}, "mask"),
        ({"extra": torch.zeros(7)}, "more"),
    ],
)
def test_a_wrong_part_of_a_container_is_found(change: dict[str, Any], name: str) -> None:
    with pytest.raises(TypeCheckError, match=rf"containers: expected `{name}"):
        call_containers(**change)


def test_phases_cache_lengths_and_folding() -> None:
    cache = Cache()
    with trace() as seen, torch.no_grad():
        decode(IDS, cache)
        for _ in range(4):
            decode(IDS[:, :1], cache)
    assert [(r.phase, r.cache, r.number) for r in seen.steps] == [
        ("prefill", 0, 0), ("decode", 5, 1), ("decode", 6, 2), ("decode", 7, 3), ("decode", 8, 4),
    ]  # fmt: skip
    assert [(row.last.call, row.count) for row in seen.rows()] == [("decode", 1), ("decode", 4)]
    assert "decode ×4" in str(seen) and "cache 5…8" in str(seen)
    model = Toy()
    with trace() as seen:
        model.train()(IDS).sum().backward()
        model.eval()(IDS)
        with torch.no_grad():
            model.train()(IDS)
    assert [r.phase for r in seen.steps if r.call == "Toy.forward"] == ["train", "", ""]


@pytest.mark.parametrize(
    ("calls", "rows"),
    [
        ("gdgdgd", "g3 d3 in turn"),
        ("lgdgdgdl", "l1 g3 d3 in turn l1"),
        ("gdgdg", "g2 d2 in turn g1"),  # a round that is not whole is no round
        ("ggdggdggd", "g6 d3 in turn"),
        ("ggdgd", "g2 d1 g1 d1"),  # not as often: an order that the counts could not tell
        ("gggg", "g4"),
        ("gdlgdlgdl", "g3 d3 l3 in turn"),
        ("gdglgdgl", "g2 d2 g2 l2 in turn"),
    ],
)
def test_what_comes_in_turn_is_folded_and_no_call_is_lost(calls: str, rows: str) -> None:
    kinds: dict[str, Any] = {"g": lambda: grow(torch.zeros(3)), "d": lambda: decode(IDS, Cache()), "l": lambda: ends(
        torch.zeros(2, 5, 4))}  # fmt: skip
    with trace() as seen:
        for kind in calls:
            kinds[kind]()
    folded = seen.rows()
    found = [f"{row.last.call[0].replace('e', 'l')}{row.count}" for row in folded]
    for place, row in enumerate(folded):
        if row.in_turn > 1 and (place + 1 == len(folded) or folded[place + 1].in_turn == 1):
            found[place] += " in turn"
    assert " ".join(found) == rows
    assert sorted(record.id for row in folded for record in row.records) == list(range(len(calls)))
    assert "in turn" not in flow(seen)  # its arrows have one direction
    assert str(seen).count("in turn") == rows.count("in turn") * max(row.in_turn for row in folded)


def test_modules_without_annotations_are_recorded_and_it_is_said() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with trace() as seen:
        plain(torch.zeros(5, 3))
    assert [(r.call, r.path) for r in seen.steps] == [
        ("Sequential.forward", ""), ("Linear.forward", "0"), ("ReLU.forward", "1"), ("Linear.forward", "2"),
    ]  # fmt: skip
    assert names(seen.steps[1], "outputs") == [("", 5), ("", 4)]
    assert "4 calls have no name" in str(seen)
    with trace(modules=True) as both:
        Toy()(IDS)
    assert [r.call for r in both.steps] == ["Toy.forward", "Embedding.forward", "Toy.mix", "Linear.forward"]
    with trace(modules=False) as none:
        plain(torch.zeros(5, 3))
    assert none.steps == []


def test_functions_inside_functions_static_class_methods_properties_and_decorators() -> None:
    def inner(x: Float[Tensor, "a"]) -> Float[Tensor, "a"]:
        return x

    class Local:
        @staticmethod
        def static(x: Float[Tensor, "a"]) -> Float[Tensor, "a"]:
            return x

        @classmethod
        def klass(cls, x: Float[Tensor, "a"]) -> Float[Tensor, "a"]:
            return x

        @property
        def size(self) -> Float[Tensor, "a"]:
            return torch.zeros(3)

        @torch.no_grad()
        @jaxtyped(typechecker=None)
        def wrapped(self, x: Float[Tensor, "a"]) -> Float[Tensor, "a"]:
            return x

    with trace() as seen:
        inner(torch.zeros(1))
        Local.static(torch.zeros(2))
        Local.klass(torch.zeros(2))
        _ = Local().size
        Local().wrapped(torch.zeros(2))
    assert [r.call for r in seen.steps] == ["inner", "Local.static", "Local.klass", "Local.size", "Local.wrapped"]
    assert all([axis.name for axis in r.outputs[0].axes] == ["a"] for r in seen.steps)


# ---- no trace left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["good", "error", "interrupt", "exit"])
def test_a_trace_restores_everything_however_it_ends(ending: str) -> None:
    errors = {"error": ZeroDivisionError, "interrupt": KeyboardInterrupt, "exit": SystemExit}
    sys.setprofile(before := lambda *_: None)
    threading.setprofile(before_threads := lambda *_: None)
    try:
        if ending == "good":
            with trace() as seen:
                assert not jaxtyping.config.jaxtyping_disable  # decorated functions check as they do without a trace
        else:
            with pytest.raises(errors[ending]), trace() as seen:
                raise errors[ending]
        assert sys.getprofile() is before and threading.getprofile() is before_threads
        assert not jaxtyping.config.jaxtyping_disable
        if sys.version_info < (3, 12):  # later, both can run
            assert "was paused" in seen.notes[0]
        if "torch._dynamo" in sys.modules:
            assert torch._dynamo.eval_frame._stance.stance == "default"
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def test_results_are_the_same_and_no_tensor_is_kept() -> None:
    model = Toy()
    bare = model(IDS)
    with trace() as seen:
        inside = model(IDS)
    assert torch.equal(bare, inside) and len(seen.steps) == 2
    gone = weakref.ref(inside)
    del inside
    gc.collect()
    assert gone() is None


def test_the_function_itself_stays_plain() -> None:
    forward, code = Toy.forward, Toy.forward.__code__
    with trace():
        Toy()(IDS)
    assert Toy.forward is forward and forward.__code__ is code and not hasattr(forward, "__wrapped__")


def test_one_trace_at_a_time_and_each_once() -> None:
    with trace("outer"), pytest.raises(RuntimeError, match="'outer' is still running"), trace("inner"):
        pass
    with trace("once") as seen:
        grow(torch.zeros(1))
    with pytest.raises(RuntimeError, match="has run already"), seen:
        pass


def test_what_one_trace_passed_over_another_may_look_at() -> None:
    def plain(x: Any) -> Any:
        return x * 2

    with trace() as first:
        plain(torch.zeros(3))
    with trace(names={plain.__qualname__.rpartition(".")[2]: {"x": "tokens"}}) as second:
        plain(torch.zeros(3))
    assert len(first.steps) == 0 and [str(record.inputs[0]) for record in second.steps] == ["(tokens 3)"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs sys.monitoring")
def test_a_profiler_may_run_beside_it() -> None:
    calls = []
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        with trace() as seen:
            grow(torch.zeros(1))
        sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name))
        with trace() as again:
            grow(torch.zeros(1))
    finally:
        sys.setprofile(None)
        profiler.disable()
    assert [len(each.steps) for each in (seen, again)] == [1, 1] and "grow" in calls


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs sys.monitoring")
def test_where_others_have_taken_all_numbers_the_profile_function_serves() -> None:
    for tool in watch.TOOLS:
        watch.monitoring.use_tool_id(tool, "other")
    try:
        with trace() as seen:
            grow(torch.zeros(1))
            assert sys.getprofile() is not None
    finally:
        for tool in watch.TOOLS:
            watch.monitoring.free_tool_id(tool)
    assert [record.call for record in seen.steps] == ["grow"]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="cProfile no longer uses the profile function")
def test_another_profiler_is_refused_by_name() -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        with pytest.raises(RuntimeError, match="profiler Profile is running"), trace():
            pass
    finally:
        profiler.disable()


def test_other_threads_are_named() -> None:
    with trace() as seen:
        thread = threading.Thread(target=lambda: grow(torch.zeros(2)), name="worker")
        thread.start()
        thread.join()
    assert seen.steps == [] and "worker" in str(seen) and "nothing was traced" in str(seen)


def test_exported_and_scripted_programs() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    exported = torch.export.export(plain, (torch.zeros(5, 3),)).module()
    with trace() as seen:
        exported(torch.zeros(5, 3))
    assert seen.steps and "have no name" in str(seen)
    scripted = torch.jit.trace(plain, torch.zeros(5, 3))
    with trace() as seen:
        nn.Sequential(scripted)(torch.zeros(5, 3))
    assert [record.call for record in seen.steps] == ["Sequential.forward"] and "0 runs outside Python" in str(seen)


def test_a_compiled_model_is_seen_as_it_is_written() -> None:
    model = Toy().eval()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(IDS)
        with trace() as seen:
            assert torch.equal(compiled(IDS), model(IDS))
    assert [r.call for r in seen.steps].count("Toy.mix") == 2


def test_autocast_meta_train_and_finite_checks() -> None:
    model = Toy()
    with trace() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        model(IDS).float().sum().backward()
    assert seen.steps[0].ok and any(value.dtype == "bfloat16" for r in seen.steps for value in r.outputs)
    assert model.out.weight.grad is not None
    with torch.device("meta"):
        ghost = Toy()
    with trace() as seen:
        ghost(IDS.to("meta"))
    assert seen.steps[0].outputs[0].device == "meta" and all(record.ok for record in seen.steps)
    with finite_checks(False), trace() as seen:
        model(IDS)
    assert all(record.ok for record in seen.steps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    model = Toy().cuda()
    with trace() as seen:
        model(IDS.cuda()).sum().backward()
    assert seen.steps[0].outputs[0].device == "cuda" and all(record.ok for record in seen.steps)


# ---- reading and keeping --------------------------------------------------------------------------------------------


def run(words: int = 5, times: int = 3) -> Trace:
    torch.manual_seed(0)
    with trace("toy <run>") as seen:
        tokens("words", words, of=9)
        x = ends(Toy()(torch.zeros(2, words, dtype=torch.long)))[0]
        for _ in range(times):
            x = grow(x)
    return seen


def test_two_runs_print_and_save_the_same_and_come_back(tmp_path: Path) -> None:
    one, other = run(), run()
    assert str(one) == str(other) and one.to_html() == other.to_html() and one.to_svg() == other.to_svg()
    one.save(tmp_path / "a.json")
    back = Trace.load(tmp_path / "a.json")
    assert back.steps == one.steps and back.ledger == one.ledger and str(back) == str(one)
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == 2
    back.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


NO_TRACES = [b"", b"[]", b"{}", b'{"schema": 2}', b'{"schema": 1, "title": "x", "values": 3}', b"\xff", b"[" * 200_000]


@pytest.mark.parametrize("content", NO_TRACES, ids=lambda content: content[:40].decode(errors="replace"))
def test_another_file_is_no_trace(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        Trace.load(tmp_path / "a.json")


def test_a_difference_names_only_what_changed() -> None:
    assert not run().diff(run()) and str(run().diff(run())) == "no difference"
    told = str(run().diff(run(words=4, times=2)))
    assert "words 5" in told and "words 4" in told and "3 calls, now 2" in told and "tokens" in told
    assert "~ ends outputs" not in told  # its result has no words axis
    assert "- grow" in str(run().diff(run(times=0)))


def test_the_ledger_adds_up() -> None:
    ledger = run().ledger
    assert str(ledger) == "words 5 = 5 of 9" and [entry[:3] for entry in ledger] == [("words", 5, 9)]
    assert re.fullmatch(r"test_tracing\.py:\d+", ledger[0].at)


def test_a_record_says_which_line_of_the_reader_it_came_from() -> None:
    """However deep in a library."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    line = inspect.currentframe().f_lineno + 2  # type: ignore[union-attr]
    with trace("net") as t:
        net(torch.zeros(5, 3))
    assert len(t.steps) > 2 and {record.called for record in t.steps} == {f"test_tracing.py:{line}"}


# ---- checks at run time ---------------------------------------------------------------------------------------------


def test_checks_explain_in_our_words_first() -> None:
    def both(a: Float[Tensor, "tokens d_model"], b: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens"]:
        return (a * b).sum(-1)

    guarded = checked(both)
    assert guarded(torch.ones(2, 3), torch.ones(2, 3)).tolist() == [3.0, 3.0]
    with pytest.raises(TypeCheckError, match=r"(?s)both: expected `b` .* must be 3 as in `a`, got 5.*Type-check"):
        guarded(torch.ones(2, 3), torch.ones(2, 5))
    with pytest.raises(TypeCheckError, match=r"unsqueeze\(0\)"):
        guarded(torch.ones(3), torch.ones(2, 3))
    with pytest.raises(TypeCheckError, match="dtype"):
        guarded(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3))
    with pytest.raises(TypeCheckError, match="expected the result"):
        checked(lies)(torch.ones(2, 3, 4))


@pytest.mark.parametrize("first", ["check", "import"])
def test_checks_switch_on_before_or_after_the_first_import(first: str) -> None:
    switch, room = "import tinyomni; tinyomni.check_shapes()", "import tinyomni.rope"
    order = f"{switch}; {room}" if first == "check" else f"{room}; {switch}"
    code = f"""
import torch
{order}
from tinyomni.rope import apply_rope
from tinyomni import ShapeError
try:
    apply_rope(torch.zeros(1, 2, 3, 4), torch.zeros(5, 4), torch.zeros(5, 4))
except ShapeError as error:
    print(str(error).splitlines()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("apply_rope: expected `cos`") and "must be 3 as in `x`, got 5" in done.stdout


def test_tensors_of_a_subclass_are_followed_from_call_to_call() -> None:
    class Marked(torch.Tensor):
        pass

    model, x = nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), torch.ones(1, 2).as_subclass(Marked)
    with trace("marked") as t:
        model(x)
    assert [step.call for step in t.steps][1:] == ["ReLU.forward", "Linear.forward"]
    assert t.steps[2].sources == (t.steps[1].id,)


@pytest.mark.parametrize("kind", ["dataclass", "nested", "named"])
def test_tensors_in_containers_are_followed_from_call_to_call(kind: str) -> None:
    @dataclasses.dataclass
    class Given:
        states: Tensor

    class Pack(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {
                "dataclass": lambda: Given(x + 1),
                "nested": lambda: {"layers": [(x + 1, None)]},
                "named": lambda: (x + 1).max(0),
            }[kind]()

    class Unpack(nn.Module):
        def forward(self, packed: Any) -> Tensor:
            return torch.ones(1)

    with trace("containers") as t:
        nn.Sequential(Pack(), Unpack())(torch.ones(2, 3))
    assert [step.call.rpartition(".<locals>.")[2] for step in t.steps[1:]] == ["Pack.forward", "Unpack.forward"]
    assert t.steps[2].sources == (1,)
