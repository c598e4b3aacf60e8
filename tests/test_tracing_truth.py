"""A row never lies: shapes, names, phases and counts of a trace are those of the very calls that it shows."""

import gc
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from tinyomni.tracing import Trace, recorder, trace


def shapes(t: Trace, call: str, which: str = "inputs") -> list[list[tuple[Any, ...]]]:
    return [[v.shape for v in getattr(record, which) if v.dtype] for record in t.steps if record.call == call]


# ---- descriptions are kept apart by all that they say ---------------------------------------------------------------


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Takes(nn.Module):
    def forward(self, given: Any) -> Any:
        return given


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Pair(torch.zeros(2), torch.zeros(3)), Pair(torch.zeros(2), torch.zeros(4))),
        ((torch.zeros(2), torch.zeros(3)), (torch.zeros(2), torch.zeros(4))),
        ((torch.zeros(2),), (torch.zeros(2).long(),)),
        (tuple(torch.zeros(2) for _ in range(19)), (*(torch.zeros(2) for _ in range(18)), torch.zeros(5))),
        ([torch.zeros(1)] * 40, [torch.zeros(1)] * 39 + [torch.zeros(1).long()]),
        ({"a": {"b": [torch.zeros(2)]}}, {"a": {"b": [torch.zeros(7)]}}),
        (((0, torch.zeros(2)),), ((1, torch.zeros(2)),)),
        ("x" * 200, "x" * 199 + "y"),
        ([torch.zeros(2), None], [torch.zeros(2)]),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bool)),
        (torch.zeros(3), torch.zeros(3, device="meta")),
        ((torch.zeros(3), None), (torch.zeros(3, device="meta"), None)),
    ],
)
def test_values_that_differ_are_described_each_as_it_is(one: Any, other: Any) -> None:
    with trace() as mixed:
        for given in (one, other, one):
            Takes()(given)
    alone = []
    for given in (one, other, one):
        with trace() as t:
            Takes()(given)
        alone.append((t.steps[0].inputs, t.steps[0].outputs))
    assert [(record.inputs, record.outputs) for record in mixed.steps] == alone


def test_packed_sequences_of_other_lengths() -> None:
    lstm = nn.LSTM(3, 5, batch_first=True)
    with trace() as t:
        for lengths in ([4, 2], [7, 6], [4, 2]):
            lstm(pack_padded_sequence(torch.zeros(2, max(lengths), 3), lengths, batch_first=True))
    assert [found[0] for found in shapes(t, "LSTM.forward")] == [(6, 3), (13, 3), (6, 3)]
    assert [found[0] for found in shapes(t, "LSTM.forward", "outputs")] == [(6, 5), (13, 5), (6, 5)]


def layers(past: tuple[Float[Tensor, "batch heads keys 4"], ...]) -> int:
    return len(past)


@pytest.mark.parametrize("count", [20, 33])
def test_a_wrong_axis_deep_in_a_cache_of_many_layers_is_found(count: int) -> None:
    past = [torch.zeros(1, 2, 6, 4) for _ in range(count)]
    with trace(strict=False) as t:
        layers(tuple(past))
        past[count - 2] = torch.zeros(1, 2, 9, 4)
        layers(tuple(past))
    assert [record.ok for record in t.steps] == [True, False]
    assert (t.mismatches[0].argument, t.mismatches[0].axis) == (f"past.{count - 2}", "keys")
    assert (t.mismatches[0].expected, t.mismatches[0].got) == (6, 9)


def test_very_long_and_deep_values_are_cut_and_it_is_said() -> None:
    deep: Any = torch.zeros(1)
    for _ in range(50):
        deep = [deep]
    with trace() as t:
        Takes()([torch.zeros(1)] * 1000)
        Takes()(deep)
    assert len(t.steps[0].inputs) < 1000 and t.steps[0].inputs[-1].text == "more"
    assert t.steps[1].inputs == ()


# ---- functions that share their code --------------------------------------------------------------------------------


def factory(width: int, name: str = "batch") -> Any:
    def f(x: Float[Tensor, f"{name} {width}"]) -> Float[Tensor, f"{name} {width}"]:
        return x

    return f


def test_functions_of_a_factory_are_judged_by_their_own_annotations() -> None:
    three, four = factory(3), factory(4)
    with trace() as t:
        three(torch.zeros(2, 3))
        four(torch.zeros(2, 4))
        three(torch.zeros(2, 3))
    assert [record.ok for record in t.steps] == [True] * 3 and not t.mismatches


def test_names_that_the_functions_of_a_factory_do_not_share_are_left_out() -> None:
    with trace() as t:
        words = factory(3, "words")
        words(torch.zeros(2, 3))
        letters = factory(3, "letters")
        letters(torch.zeros(2, 3))
    assert [axis.name for axis in t.steps[0].inputs[0].axes][:1] == ["words"]
    assert [axis.name for axis in t.steps[1].inputs[0].axes][:1] == [""]


def closures(width: int) -> Any:
    def f(x: Float[Tensor, f"batch {width}"]) -> Float[Tensor, "batch"]:
        return x.sum(1) * width

    return f


def test_what_a_closure_holds_tells_its_functions_apart() -> None:
    small, large = closures(3), closures(1000)
    with trace(strict=False) as t:
        small(torch.zeros(2, 3))
        large(torch.zeros(2, 3))
    assert [record.ok for record in t.steps] == [True, False]


def test_many_functions_of_one_code_do_not_cost_a_search_each(monkeypatch: pytest.MonkeyPatch) -> None:
    searches, search = [], gc.get_referrers
    monkeypatch.setattr(gc, "get_referrers", lambda *given: searches.append(given) or search(*given))
    with trace() as t:
        for width in range(60):
            factory(width)(torch.zeros(2, width))
    assert len(searches) <= 20 and all(record.ok for record in t.steps) and len(t.steps) == 60
    with trace() as t:  # each trace has its own limit
        factory(3, "words")(torch.zeros(2, 3))
    assert [axis.name for axis in t.steps[0].inputs[0].axes][:1] == ["words"]


# ---- folding --------------------------------------------------------------------------------------------------------


class GroupedAttention(nn.Module):
    def __init__(self, width: int, kv_width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, kv_width)
        self.v_proj, self.o_proj = nn.Linear(width, kv_width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(q) + (k + v).sum()


@pytest.mark.parametrize(("width", "kv_width"), [(8, 4), (12, 12)])
def test_q_k_v_and_o_keep_their_own_rows(width: int, kv_width: int) -> None:
    with trace() as t:
        GroupedAttention(width, kv_width)(torch.zeros(1, 3, width))
    rows = t.rows()[0].below
    assert [(row.path, row.values("outputs")) for row in rows] == [
        ("q_proj", f"(1, 3, {width})"), ("k_proj", f"(1, 3, {kv_width})"),
        ("v_proj", f"(1, 3, {kv_width})"), ("o_proj", f"(1, 3, {width})"),
    ]  # fmt: skip


def test_layers_are_joined_only_if_all_that_is_in_them_is_alike() -> None:
    class Block(nn.Module):
        def __init__(self, inner: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, inner), nn.Linear(inner, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x))

    with trace() as t:
        nn.Sequential(Block(7), Block(7), Block(9), Block(7))(torch.zeros(2, 4))
    assert [(row.path, row.count) for row in t.rows()[0].below] == [("0…1", 2), ("2", 1), ("3", 1)]


def grows(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return x


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ([3, 4, 5, 6], ["3…6"]),
        ([3, 3, 3], ["3"]),
        ([5, 9], ["5", "9"]),  # no series: 5…9 would promise 6, 7 and 8
        ([2, 4, 6], ["2…6"]),
        ([4, 1, 4], ["4", "1", "4"]),
        ([7, 7, 8, 9], ["7", "8…9"]),
    ],
)
def test_sizes_are_a_range_only_if_they_grow_by_equal_steps(sizes: list[int], rows: list[str]) -> None:
    with trace() as t:
        for size in sizes:
            grows(torch.zeros(size))
    assert [row.values("outputs") for row in t.rows()] == [f"(n {size})" for size in rows]
    assert sum(row.count for row in t.rows()) == len(sizes)


def test_different_layers_are_no_series() -> None:
    layers = [nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)]
    with trace() as t:
        x = torch.zeros(2, 3)
        for layer in layers:
            x = layer(x)
    assert [(row.count, row.values("outputs")) for row in t.rows()] == [
        (1, "(2, 4)"), (1, "(2, 5)"), (1, "(2, 6)"), (2, "(2, 6)"),
    ]  # fmt: skip


def test_of_a_result_and_an_argument_the_result_is_wrong() -> None:
    def collect(x: Float[Tensor, "n"], found: list[Tensor]) -> list[Float[Tensor, "n"]]:
        found.append(x)
        return found

    found: list[Tensor] = []
    with trace(strict=False) as t:
        for size in (2, 2, 3):
            collect(torch.zeros(size), found)
    assert "expected `return.0` (n) Float, got (2,) float32: n must be 3 as in `x`, got 2. One too few." in str(t)


def test_dtypes_statuses_and_plain_values_are_not_joined() -> None:
    def pick(x: Float[Tensor, "n"], how: str) -> int:
        return len(how)

    with trace() as t:
        pick(torch.zeros(2), "a")
        pick(torch.zeros(2, dtype=torch.float64), "a")
        pick(torch.zeros(2), "bb")
        pick(torch.zeros(2), "bb")
    assert [row.count for row in t.rows()] == [1, 1, 2]
    assert [row.values("outputs") for row in t.rows()] == ["1", "1", "2"]


def test_calls_with_other_plain_values_beside_their_tensors_are_one_row() -> None:
    takes = Takes()
    with trace() as t:
        for given in ({"x": torch.zeros(2)}, {"n": 3, "x": torch.zeros(2)}):
            takes(given)
    assert [(row.count, row.values("inputs")) for row in t.rows()] == [(2, "given.x (2,)")]


def test_a_folded_row_says_when_what_is_below_differs() -> None:
    class Loop(nn.Module):
        def forward(self, x: Float[Tensor, "n"], extra: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
            grows(extra)
            return x

    loop = Loop()
    with trace() as t:
        for size in (3, 4, 5):
            loop(torch.zeros(2), torch.zeros(size))
    first, second = str(t).splitlines()[1:3]
    assert "Loop.forward ×3" in first and "m 3…5" in first and "below: the last call" in first
    assert "grows" in second and "x (n 5) → (n 5)" in second


# ---- phases ---------------------------------------------------------------------------------------------------------


def test_every_layer_of_a_prefill_is_in_the_prefill() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=5, num_attention_heads=3, num_key_value_heads=1,
        vocab_size=40, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with trace() as t, torch.no_grad():
        model.generate(torch.ones(1, 9, dtype=torch.long), max_new_tokens=4, do_sample=False, pad_token_id=0)
    found = [(record.phase, record.cache) for record in t.steps if record.call == "LlamaDecoderLayer.forward"]
    assert found == [("prefill", 0)] * 5 + [("decode", 9)] * 5 + [("decode", 10)] * 5 + [("decode", 11)] * 5
    assert {record.phase for record in t.steps} == {"prefill", "decode"}
    names = {"LlamaAttention.forward": {"hidden_states": "batch tokens d_model"}}
    with trace(names=names, modules=False) as t, torch.no_grad():  # no call around those of a step
        model.generate(torch.ones(1, 9, dtype=torch.long), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert [(record.phase, record.cache) for record in t.steps] == found


class Growing:
    """A cache of one length for all layers, that the first layer extends."""

    size = 0


class Layer(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Int[Tensor, "batch tokens"], cache: Growing) -> Int[Tensor, "batch tokens"]:
        cache.size += x.shape[1] * self.first
        return x


class Stack(nn.Module):
    """Layers that share a cache; it is made inside, as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(n == 0) for n in range(3)])

    def forward(self, x: Int[Tensor, "batch tokens"], cache: Growing | None = None) -> Int[Tensor, "batch tokens"]:
        cache = Growing() if cache is None else cache
        for layer in self.layers:
            x = layer(x, cache)
        return x


def prefill(x: Float[Tensor, "n"], cache: Growing) -> Float[Tensor, "n"]:
    cache.size += len(x)
    return x


def decode(x: Float[Tensor, "n"], cache: Growing) -> Float[Tensor, "n"]:
    return prefill(x, cache)


def test_another_function_that_is_given_other_tokens_is_the_next_step() -> None:
    def generate(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        cache = Growing()
        prefill(x, cache)
        for _ in range(3):
            decode(x[:1], cache)
        return x

    with trace() as t:
        generate(torch.zeros(6))
    found = [(record.phase, record.cache) for record in t.steps if record.depth == 1]
    assert found == [("prefill", 0), ("decode", 6), ("decode", 7), ("decode", 8)]


def test_frozen_parts_of_a_model_that_learns_are_not_in_training() -> None:
    class Learns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.still, self.head = nn.Linear(2, 2).eval(), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.still(x)
            return self.head(self.frozen(x))

    with trace() as t:
        Learns()(torch.zeros(1, 2))
    found = [(record.path, record.phase) for record in t.steps]
    assert found == [("", "train"), ("still", ""), ("frozen", ""), ("head", "train")]


def write(model: Stack, ids: Int[Tensor, "batch tokens"], cache: Growing) -> Int[Tensor, "batch one"]:
    for _ in range(3):
        ids = model(ids, cache)[:, -1:]
    return ids


def test_a_loop_inside_a_call_that_was_given_the_cache_is_told_from_its_layers() -> None:
    with trace() as t, torch.no_grad():
        write(Stack(), torch.zeros(1, 6, dtype=torch.long), Growing())
        Stack()(torch.zeros(1, 4, dtype=torch.long))
    found = [(record.phase, record.cache) for record in t.steps if record.call == "Layer.forward"]
    assert found == [("prefill", 0)] * 3 + [("decode", 6)] * 3 + [("decode", 7)] * 3 + [("prefill", 0)] * 3
    assert [r.cache for r in t.steps if r.call == "Stack.forward"] == [0, 6, 7, None]


# ---- statuses -------------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool, depth: int) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(depth)])

    def forward(self, x: Float[Tensor, "batch 4"]) -> Float[Tensor, "batch 4"]:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_what_activation_checkpointing_runs_again_is_not_raised(reentrant: bool, depth: int) -> None:
    with trace(modules=True) as t:
        Checkpointed(reentrant, depth)(torch.zeros(2, 4, requires_grad=True)).sum().backward()
    again = [record for record in t.steps if record.phase == "recompute"]
    assert len([record for record in again if record.call == "Sequential.forward"]) == depth
    assert all(record.ok for record in t.steps) and "raised" not in str(t)


def none(x: Float[Tensor, "n"]) -> Float[Tensor, "n"] | None:
    return None


def test_none_is_a_result_and_an_exception_that_was_caught_is_none() -> None:
    def fails(x: Float[Tensor, "n"]) -> Float[Tensor, "n"] | None:
        raise LookupError("as planned")

    with trace() as t:
        none(torch.zeros(1))
        with pytest.raises(LookupError):
            fails(torch.zeros(1))
        none(torch.zeros(1))
    assert [record.status for record in t.steps] == ["ok", "raised", "ok"]
    assert [line.split("→")[1].split()[0] for line in str(t).splitlines()[1:4]] == ["—", "?", "—"]


def test_what_a_function_did_is_forgotten_with_its_trace_and_never_grows_without_end() -> None:
    watcher = recorder.Recorder("many", modules=True)
    with watcher.trace:
        for number in range(recorder.MOST_SIGNATURES + 50):
            Takes()((number, torch.zeros(1)))
        assert max(len(calls.signatures) for calls in watcher._calls.values()) <= recorder.MOST_SIGNATURES
    assert not watcher._calls and not hasattr(watcher, "_watch")


@pytest.mark.parametrize(
    ("cache", "phase"),
    [
        ([torch.zeros(1, 2, 4, 8)] * 2, "decode"),
        (((torch.zeros(1, 2, 4, 8),) * 2,) * 3, "decode"),
        ([], ""),
        ([(torch.zeros(1, 2, 0, 8),) * 2], ""),
        ({"layer 0": (torch.zeros(1, 2, 4, 8),) * 2}, "decode"),
        ({"a picture": torch.zeros(3, 8)}, ""),
        (torch.zeros(7), ""),
        (np.zeros(7), ""),
    ],
    ids=["one layer", "three layers", "empty", "no tokens yet", "by name", "results kept", "a vector", "an array"],
)
def test_not_all_that_is_called_a_cache_holds_keys_and_values(cache: Any, phase: str) -> None:
    def look(x: Float[Tensor, "n"], cache: Any) -> Float[Tensor, "n"]:
        return x + 1

    with trace() as t:
        look(torch.zeros(3), cache)
    assert [(record.phase, record.cache) for record in t.steps] == [(phase, None)]


def test_a_row_of_several_calls_shows_how_far_their_gradients_go_of_each_output() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 3, x * 2

    two, x = Two(), torch.ones(4, requires_grad=True)
    with trace(backward=True) as t:
        for k in (1, 2, 3):
            a, b = two(x)
            (a.sum() * k + b.sum()).backward()
    table, page = str(t), t.to_html()
    assert "Two.forward ×3" in table
    for text in ("grad (4,) |2…6|", "grad (4,) |2…2|"):
        assert text in table and text in page


# ---- random calls ---------------------------------------------------------------------------------------------------


class RandomCalls:
    """Calls of several kinds with random values; `told` is what they saw themselves, in the order of their begin."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.told: list[list[list[tuple[Any, ...]]]] = []
        calls = self

        class Base(nn.Module):
            def forward(self, a: Any, *rest: Any, k: Any = None, **more: Any) -> Any:
                return calls.returns(calls.begin(a=a, k=k, rest=rest, more=more))

        class Derived(Base):
            def forward(self, a: Any, b: Any = None) -> Any:
                place = calls.begin(a=a, b=b)
                held = lambda: (a, b)  # noqa: E731  (cells)
                super().forward(b)
                a = None
                return calls.returns(place) if held()[0] is None else None

        def function(m: Any, x: Any, flag: bool = False) -> Any:
            place, m = calls.begin(m=m, x=x), None
            return calls.returns(place)

        self.base, self.derived, self.function = Base(), Derived(), function

    def value(self, depth: int = 0) -> Any:
        kind, inner = self.random.randrange(9 if depth < 3 else 5), depth + 1
        if kind < 3:
            sizes = [self.random.randint(1, 3) for _ in range(self.random.randint(0, 3))]
            return torch.zeros(sizes, dtype=self.random.choice([torch.float32, torch.int64]))
        if kind < 5:
            return self.random.choice([None, 1, True, 1.0, "a", nn.Identity()])
        several = [self.value(inner) for _ in range(self.random.randint(0, 3))]
        if kind < 8:
            return (tuple(several), several, dict(zip("abc", several, strict=False)))[kind - 5]
        return Pair(self.value(inner), self.value(inner))

    def begin(self, **values: Any) -> int:
        self.told.append([[each for name, value in values.items() for each in tensors_of(name, value)]])
        return len(self.told) - 1

    def returns(self, place: int) -> Any:
        result = self.value()
        self.told[place].append(list(tensors_of("out", result)))
        return result

    def call(self) -> None:
        value = self.value
        kinds = [
            lambda: self.base(value(), value(), k=value()),
            lambda: self.base(value(), z=value()),
            lambda: self.derived(value(), value()),
            lambda: self.derived(value()),
            lambda: self.function(value(), value()),
            lambda: self.function(self.base, value(), True),
        ]
        self.random.choice(kinds)()


def tensors_of(name: str, value: Any) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, Tensor):
        yield name, tuple(value.shape), str(value.dtype).removeprefix("torch.")
    elif isinstance(value, (dict, tuple, list)):
        names = list(value) if isinstance(value, dict) else getattr(value, "_fields", range(len(value)))
        for key, part in zip(names, value.values() if isinstance(value, dict) else value, strict=True):
            yield from tensors_of(f"{name}.{key}", part)


@pytest.mark.parametrize("seed", range(4))
def test_the_records_of_random_calls_are_what_the_calls_saw(seed: int) -> None:
    calls = RandomCalls(seed)
    with trace(modules=True, strict=False, names={"function": {"x": "..."}}) as t:
        for _ in range(200):
            calls.call()
    shown = [
        [sorted((v.name, v.shape, v.dtype) for v in side if v.dtype) for side in (record.inputs, record.outputs)]
        for record in t.steps
    ]
    assert shown == [[sorted(side) for side in each] for each in calls.told]


def test_what_a_function_closes_over_is_no_input() -> None:
    kept = torch.zeros(2, 3)

    def scale(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return x * kept.sum()

    with trace() as t:
        scale(torch.ones(4))
    assert [value.name for value in t.steps[0].inputs] == ["x"]


def test_a_module_that_is_given_in_the_place_of_a_tensor_is_judged_by_its_kind() -> None:
    def take(m: Float[Tensor, "a b"] | nn.Linear, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return x

    with trace(strict=False) as t:
        for m, n in ((nn.ReLU(), 2), (nn.Linear(2, 2), 2), (nn.Linear(2, 2), 3), (nn.ReLU(), 3)):
            take(m, torch.zeros(n))
    assert [record.ok for record in t.steps if record.call == "take"] == [False, True, True, False]
