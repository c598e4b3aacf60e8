"""All lengths: formulas of the course's own audio path, false formulas, caps, minimum lengths, and what is claimed."""

import contextlib
import functools
import math
import operator
import random
import reprlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tinyomni import sweep
from tinyomni.tracing import SpecError, SweepMismatch, lengths
from tinyomni.tracing.floors import Floor


def max_frames(text_tokens: int) -> int:
    return max(50, min(1000, 30 * text_tokens))


@pytest.fixture(scope="module")
def mel() -> nn.Module:
    """The recogniser's front end; the tracer's own tests run without the course too."""
    pytest.importorskip("torchaudio")
    from tinyomni import MelFrontend

    return MelFrontend()


def test_the_audio_path_is_proven_for_every_length(mel: nn.Module) -> None:
    from tinyomni import AudioEncoderTiny

    encoder = AudioEncoderTiny().eval()
    frames = sweep(mel, over="samples", want="samples // 160")
    both = sweep(lambda n: encoder(mel(torch.zeros(1, n))), over="samples", want="(samples // 160 + 3) // 4")
    assert (frames.form, frames.least, frames.most, frames.proven) == (Floor(1, 0, 160), 160, None, True)
    assert "at least one frame of 160 samples" in str(frames)
    assert (both.form, both.proven) == (Floor(1, 480, 640), True)
    assert "⌊(samples + 480) / 640⌋ for every samples ≥ 160\n  proven: by the shape rules of its operators" in str(both)


@pytest.mark.parametrize(
    "want", ["samples // 160 + 1", "samples // 161", "(samples + 1) // 160", "min(100, samples // 160)"]
)
def test_a_wrong_formula_is_refused_with_a_length_where_it_fails(want: str, mel: nn.Module) -> None:
    with pytest.raises(
        SweepMismatch, match=r"MelFrontend: samples = \d+ gives \d+, expected .*looks like ⌊samples / 160⌋"
    ):
        sweep(mel, over="samples", want=want)


# ---- false formulas -------------------------------------------------------------------------------------------------


def refuse(n: int, where: Callable[[int], bool], value: int) -> int:
    if where(n):
        raise ValueError("no such length")
    return value


def scaled(n: int, factor: float) -> Tensor:
    return functional.interpolate(torch.zeros(1, 1, n), scale_factor=factor)


def convolved(n: int, kernel: int, **options: int) -> Tensor:
    return functional.conv1d(torch.zeros(1, 1, n), torch.zeros(1, 1, kernel), **options)


def looked_up(n: int) -> int:
    try:
        return {3001: 1}[n]
    except (KeyError, TypeError):  # a symbol has no hash
        return 0


FALSE: dict[str, tuple[Callable[[int], Any], str, int]] = {
    # the result is right for most lengths, and the first wrong one is known
    "interpolation by a float": (lambda n: scaled(n, 0.7), "7 * n // 10", 90),
    "a float factor": (lambda n: int(n * 0.7), "7 * n // 10", 90),
    "one minus a float": (lambda n: int(n * (1 - 0.3)), "7 * n // 10", 90),
    "a float above one": (lambda n: int(n * 1.1), "11 * n // 10", 0),
    "upsampling by a float": (lambda n: scaled(n, 1.4), "7 * n // 5", 45),
    "one length": (lambda n: n // 2 + (n == 4096), "n // 2", 4096),
    "one far length": (lambda n: n // 2 + (n == 123_456_789), "n // 2", 123_456_789),
    "one residue": (lambda n: n // 160 + (n % 160 == 80), "n // 160", 80),
    "a late residue": (lambda n: n // 4 - (n % 64 == 63), "n // 4", 63),
    "a residue of a long period": (lambda n: n // 160 + (n % 48_000 == 47_999), "n // 160", 47_999),
    "an undeclared cap": (lambda n: min(n // 2, 1_500_000), "n // 2", 3_000_002),
    "an undeclared minimum, reached late": (lambda n: max(n // 3, n // 2 - 1_000_000), "n // 3", 6_000_002),
    "a cap that is not there": (lambda n: n // 2, "min(n // 2, 1_500_000)", 3_000_002),
    "another slope from one length on": (lambda n: n // 2 if n < 70_000 else n // 2 + n // 70_000, "n // 2", 70_000),
    "rounding": (lambda n: round(n / 3), "(n + 2) // 3", 1),
    "truncation below zero": (lambda n: math.trunc((n - 10) / 4), "(n - 10) // 4", 1),
    "one of many floors": (lambda n: n // 2 + n // 3 + n // 5 + n // 7, "n // 2 + n // 3 + n // 5 + (n + 1) // 7", 6),
    "padded to a multiple, but of another number": (lambda n: n + -n % 8, "(n + 7) // 8 * 8 + n // 5000", 5000),
    "the kernel is one larger": (lambda n: convolved(n, 4, stride=3), "(n - 2) // 3", 4),
    "dilation": (lambda n: convolved(n, 3, dilation=2), "n - 2", 5),
    "a square": (lambda n: n * n, "n", 2),
    "a square root from one length on": (lambda n: int(n**0.5) ** 2 if n > 10**6 else n, "n", 1_000_003),
    "a table": (lambda n: {3000: 0}.get(n, n), "n", 3000),
    "a lookup that fails for a symbol": (lambda n: n // 2 + looked_up(n), "n // 2", 3001),
    "digits": (lambda n: n // 2 + str(n).endswith("123"), "n // 2", 123),
    "a question that only a number answers": (
        lambda n: 0 if isinstance(n, int) and n == 2500 else n // 2, "n // 2", 2500),
    "data": (lambda n: torch.arange(n).float().ge(n // 2).nonzero(), "n // 2", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FALSE)
def test_a_false_formula_is_refuted_or_nothing_is_proven(name: str) -> None:
    fn, want, first = FALSE[name]
    if not first:  # right as far as anybody looked: no claim beyond that
        assert not sweep(fn, over="n", want=want).proven
        return
    with pytest.raises(SweepMismatch, match=rf"n = {first} gives "):
        sweep(fn, over="n", want=want, axis=0 if name == "data" else None)


def test_a_function_that_refuses_long_input_is_proven_only_up_to_there() -> None:
    found = sweep(lambda n: refuse(n, lambda n: n >= 2_000_000, n // 2), over="n", want="n // 2")
    assert (found.proven, found.most) == (True, 1_999_999) and "for every n in 1…1,999,999" in str(found)
    assert "n > 1,999,999: ValueError: no such length" in str(found)
    # the same without a symbolic run: a dictionary takes no symbol
    found = sweep(lambda n: refuse({}.get(n, n), lambda n: n >= 2_000_000, n // 2), over="n", want="n // 2")
    assert (found.proven, found.most) == (False, 1_999_999)
    assert "for all n in 1…4,096, checked one by one" in str(found) and "n > 1,999,999: ValueError" in str(found)


@pytest.mark.parametrize("where", [lambda n: n == 77, lambda n: n == 77_777])
def test_a_hole_among_the_lengths_is_a_counterexample(where: Callable[[int], bool]) -> None:
    with pytest.raises(SweepMismatch, match=r"n = 7+ is refused \(ValueError: no such length\), although"):
        sweep(lambda n: refuse(n, where, n // 2), over="n", want="n // 2")


def test_only_multiples_may_be_taken() -> None:
    def patches(n: int) -> int:
        if n % 16:
            raise ValueError(f"{n} is not a multiple of 16")
        return n // 16

    found = sweep(patches, over="n", want="n // 16")
    assert (found.proven, found.least, found.step) == (True, 16, 16)
    assert "⌊n / 16⌋ for every n ≥ 16 in steps of 16" in str(found) and "not a multiple of 16" in str(found)
    with pytest.raises(SweepMismatch, match="n = 32 gives 2"):
        sweep(patches, over="n", want="n // 16 + n // 32")


def test_what_has_no_symbolic_run_is_checked_and_says_so() -> None:
    found = sweep(lambda n: len(range(0, n, 3)), over="n", want="(n + 2) // 3")
    assert not found.proven and found.upto == 4096 and found.far[-1] == 2**24 + 1
    assert str(found).splitlines()[0].endswith("⌊(n + 2) / 3⌋ for all n in 1…4,096, checked one by one")
    assert "not proven beyond that: the function asks for the value of n" in str(found)
    short = sweep(lambda n: len(range(0, n, 3)), over="n", want="(n + 2) // 3", upto=100)
    assert short.upto == 100
    values = sweep(lambda n: torch.zeros(n).nonzero(), over="n", want="0", axis=0, upto=20)
    assert not values.proven and values.real and not values.far and "computed for zeros" in str(values)


def matched(n: Any) -> int:
    match n:
        case int():
            return n // 4
        case _:
            return n // 2


def converted(n: int) -> int:
    try:
        return len(torch.zeros(n).numpy()) // 2
    except (RuntimeError, TypeError):
        return n


def only_plain(n: int) -> int:
    x = torch.zeros(n)
    return len(x[:-1] if type(x) is Tensor and x.shape[0] == 54321 else x)


def summed(n: int) -> int:
    with contextlib.suppress(RuntimeError):
        return int(torch.zeros(n).sum()) + n // 3
    return n


@pytest.mark.parametrize(
    ("fn", "want", "reason"),
    [
        (lambda n: n // 2 if type(n) is int else n // 2 + 1, "n // 2", "asks for the type of n"),
        (lambda n: (n + 3) // (2 if (n + 3).__class__ is int else 1), "(n + 3) // 2", "asks for the type of n"),
        (matched, "n // 4", "asks for the type of n"),
        (lambda n: n // 2 + ((n == 54321) is True), "n // 2", "asks for the identity of n"),
        (lambda n: n // 2 + (getattr(n, "real", None) == 54321), "n // 2", "asks for `real` of n"),
        (lambda n: n // 2 + ((54321).__sub__(n) == 0), "n // 2", "asks for `__sub__` of n"),
        (lambda n: n // 2 + ((54321).__eq__(n) is True), "n // 2", "asks for `__eq__` and the identity of n"),
        (lambda n: n // 2 + (type(torch.zeros(n)) is Tensor and n == 54321), "n // 2", "asks for the type"),
        (lambda n: n // 2 + (list(map(type, [n])) == [int] and n == 54321), "n // 2", "asks for the type"),
        (only_plain, "n", "asks for the type"),
        (converted, "n // 2", "depends on values"),
        (summed, "n // 3", "depends on values"),
    ],
)
def test_what_goes_another_way_without_numbers_is_not_proven(fn: Callable[[int], int], want: str, reason: str) -> None:
    found = sweep(fn, over="n", want=want)
    assert not found.proven and reason in str(found)


def test_what_torch_logs_of_a_symbolic_run_that_fails_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    assert not sweep(lambda n: n // 2 + (n == 54321) * False, over="n", want="n // 2").proven
    assert [record.name for record in caplog.records if record.levelname != "DEBUG"] == []


def test_an_error_that_is_caught_with_numbers_too_and_the_type_of_something_else_are_no_doubt() -> None:
    def fn(n: int) -> int:
        try:
            return n // 5 + {}["missing"]
        except KeyError:
            return n // 5 + len(type(fn).__name__) - len(fn.__class__.__name__)

    assert sweep(fn, over="n", want="n // 5").proven


# ---- indices --------------------------------------------------------------------------------------------------------


class Positions(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 8)

    def forward(self, x: Float[Tensor, "batch n 8"]) -> Float[Tensor, "batch n 8"]:
        return x + self.table(torch.arange(x.shape[1], device=x.device))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(9, 8), nn.Embedding(300, 8)
        self.register_buffer("ids", torch.arange(300)[None])

    def forward(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n 8"]:
        return self.table(ids) + self.positions(self.ids[:, : ids.shape[1]])


def distances(n: int) -> Tensor:
    places = torch.arange(n)
    return torch.zeros(1023)[(places[None] - places[:, None]) + 511][0]


@pytest.mark.parametrize(
    ("fn", "most"),
    [
        (Positions(512), 512),
        (lambda n: torch.zeros(500)[torch.arange(n)], 500),
        (lambda n: torch.zeros(3, 500)[..., torch.arange(n) - n][0], 500),
        (lambda n: torch.zeros(500).index_select(0, torch.arange(n).flip(0)), 500),
        (lambda n: torch.zeros(500).gather(0, torch.arange(n).add_(100)), 400),
        (lambda n: torch.take(torch.zeros(500), torch.arange(n)[None])[0], 500),
        (lambda n: torch.zeros(500)[torch.cat([torch.arange(n), torch.arange(n) + 100])][:n], 400),
        (lambda n: functional.embedding(torch.arange(2, n + 2), torch.zeros(100, 3))[:, 0], 98),
        (lambda n: functional.one_hot(torch.arange(n), 70)[:, 0], 70),
        (lambda n: torch.zeros(500)[torch.arange(n).clamp(max=499)], None),
        (lambda n: torch.zeros(500)[torch.arange(n) % 500], None),
        (distances, 512),
    ],
)
def test_an_index_past_the_end_of_a_table_is_refused(fn: Callable[[int], Any], most: int | None) -> None:
    found = sweep(fn, over="n", want="n")
    assert (found.proven, found.most, found.unseen) == (True, most, ())
    assert most is None or "out of range for a dimension of size" in found.refusals[f"n > {most}"]


def test_indices_whose_values_are_not_known_are_named() -> None:
    found = sweep(Tokens(), over="n", want="n", axis=1)
    assert found.proven and found.most == 300 and len(found.unseen) == 1
    assert "\n  values of indices were not looked at: embedding at test_sweep.py:" in str(found)


def test_indices_that_change_through_another_tensor_are_not_known() -> None:
    def shifted(n: int) -> Tensor:
        index = torch.arange(n)
        seen = index.view(-1)
        index.add_(100)
        return torch.zeros(500)[seen]

    found = sweep(shifted, over="n", want="n")
    assert found.most is None and [each.partition(" at ")[0] for each in found.unseen] == ["indexing"]
    found = sweep(lambda n: torch.zeros(9)[torch.arange(n).cumsum(0)], over="n", want="n")
    assert found.proven and found.unseen[0].startswith("indexing at test_sweep.py:")


# ---- what it leaves behind, and what it runs under ------------------------------------------------------------------


@functools.lru_cache
def lower(n: int) -> Tensor:
    return torch.ones(n, n).tril()


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.longest, self.lengths = nn.BatchNorm1d(4), 0, list[int]()
        self.register_buffer("cos", torch.zeros(0))

    def forward(self, x: Float[Tensor, "2 4 n"]) -> Float[Tensor, "2 4 n"]:
        n = x.shape[-1]
        self.lengths.append(n)
        if n > self.longest:
            self.longest, self.cos = n, torch.arange(n) * torch.ones(4, 1)
        return self.norm(x) + self.cos[:, :n]


def test_a_model_is_afterwards_as_it_was() -> None:
    model = Growing()
    assert sweep(model, over="n", want="n").proven
    assert (model.longest, model.lengths, model.cos.shape) == (0, [], (0,))
    assert int(model.norm.num_batches_tracked) == 0
    values = sweep(lambda n: model(torch.zeros(2, 4, n)).isnan().nonzero()[:0].T.sum(0).shape[0] + n, over="n", upto=20)
    assert values.real and not model.norm.num_batches_tracked and not model.norm.running_mean.any()
    assert not model(torch.zeros(2, 4, 3)).is_meta
    sweep(lambda n: torch.zeros(1, n) @ lower(int(n)), over="n", upto=20)
    assert lower(3).device.type == "cpu"


def test_gradients_and_the_device_are_those_of_the_caller() -> None:
    def halved(n: int) -> Tensor:
        x = torch.zeros(n)
        return x[::2] if torch.is_grad_enabled() and x.device.type == "cpu" else x

    convolution = nn.Conv1d(1, 1, 1)

    def learned(n: int) -> Tensor:
        x = convolution(torch.zeros(1, 1, n))
        return x[..., ::2] if x.requires_grad else x

    for fn in (halved, learned):
        assert sweep(fn, over="n").form == Floor(1, 1, 2)
        with torch.no_grad():
            assert sweep(fn, over="n").form == Floor(1, 0, 1)
    found = sweep(lambda n: (lambda x: x[::2] if x.is_meta else x)(torch.zeros(n)), over="n", upto=40)
    assert found.form == Floor(1, 0, 1) and not found.proven and found.real


# ---- foreign code ---------------------------------------------------------------------------------------------------


@functools.singledispatch
def dispatched(n: Any) -> int:
    return n // 2


@dispatched.register(int)
def _(n: int) -> int:
    return n // 2 if n < 5000 or n > 5100 else 0


def same(n: int) -> int:
    other = n + 0
    return n // 2 + (1 if n is other and n == 5050 else 0)


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (dispatched, "what functools.singledispatch does"),
        (lambda n: n // 2 + dispatched(n) * 0, "what functools.singledispatch does"),
        (lambda n: n // 2 + (((n > 5000) == 1) and n == 5050), "asks for `==`"),
        (lambda n: n // 2 + (1 if operator.is_(n == 5050, True) else 0), "what operator.is_ does"),
        (lambda n: n // 2 + (reprlib.repr(n) == "5050"), "what reprlib.Repr.repr does"),
        (lambda n: n // 2 + hasattr(n, "node") * 0, "what hasattr does"),
        (lambda n: n // 2 + (sys.getsizeof(n) > 1000), "what sys.getsizeof does"),
        (lambda n: n // 2 + (n.__sizeof__() > 1000), "asks for `__sizeof__`"),
        (lambda n: n // 2 + ("(5050,)" in repr(torch.empty(n, device="meta"))), "asks for the text"),
        (same, "asks for the identity"),
    ],
)
def test_what_foreign_code_does_with_a_symbol_is_not_proven(fn: Callable[[int], int], reason: str) -> None:
    found = sweep(fn, over="n", want="n // 2", upto=40)
    assert not found.proven and reason in str(found)


def test_what_is_known_of_python_itself_is_no_foreign_code() -> None:
    found = sweep(
        lambda n: functools.reduce(operator.add, (n, math.ceil(n / 2), max(n, 3))),
        over="n",
        want="n + (n + 1) // 2 + max(n, 3)",
    )
    assert found.proven


# ---- limits ---------------------------------------------------------------------------------------------------------


class TooShort(Exception):
    """Of its own kind."""


def test_any_error_refuses_a_length() -> None:
    def fn(n: int) -> int:
        if n < 3:
            raise TooShort("too short")
        return {n: n}[n] if n > 40 and n % 50 else n

    found = sweep(lambda n: fn(int(n)), over="n", upto=20)
    assert found.least == 3 and found.refusals["n < 3"] == "TooShort: too short"
    with pytest.raises(ValueError, match="takes no n up to 4,194,304; the last error: KeyError: 4194304"):
        sweep(lambda n: {}[n], over="n", upto=8)


def test_few_and_large_lengths() -> None:
    with pytest.raises(ValueError, match=r"no formula found for the lengths 0, 2, 3"):
        sweep(lambda n: torch.zeros(n) + torch.zeros(n // 2), over="n", upto=40)
    found = sweep(lambda n: n**3, over="n", want="n*n*n")
    assert found.proven and found.far[-1] == 1_000_003


def test_a_sweep_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "MAX_TOTAL", -1.0)
    found = sweep(lambda n: n // 2, over="n", want="n // 2")
    assert not found.proven and found.upto == 17 and not found.far and "no further length was run" in str(found)


def test_a_function_that_remembers_is_no_function_of_the_length() -> None:
    seen: list[int] = []

    def fn(n: int) -> int:
        seen.append(n)
        return n + (n == 1 and max(seen) > 10_000)

    with pytest.raises(SweepMismatch, match="n = 1 gives 1, but 2 when it is called again"):
        sweep(fn, over="n", want="n", upto=100)


# ---- formulas it finds ----------------------------------------------------------------------------------------------


def test_declared_caps() -> None:
    found = sweep(max_frames, over="text_tokens", want="max(50, min(1000, 30 * text_tokens))")
    assert found.form == Floor(30, 0, 1, 50, 1000) and found.proven
    for want in ("min(1000, 30 * text_tokens)", "max(50, 30 * text_tokens)", "max(50, min(1001, 30 * text_tokens))",
                 "max(51, min(1000, 30 * text_tokens))", "max(50, min(1000, 31 * text_tokens))"):  # fmt: skip
        with pytest.raises(SweepMismatch):
            sweep(max_frames, over="text_tokens", want=want)


def test_integer_inputs_and_a_named_axis() -> None:
    pytest.importorskip("einops")
    from tinyomni import TalkerTiny

    found = sweep(TalkerTiny(), over="frames", want="frames", codebooks=2, axis=1)
    assert found.form == Floor(1, 0, 1) and found.most == 1513 and "frames in 1…1,513" in str(found)


def test_random_stacks_of_strided_layers_are_found_exactly() -> None:
    rng = random.Random(0)
    for _ in range(8):
        layers: list[nn.Module] = []
        for _ in range(rng.randint(1, 3)):
            kernel = rng.randint(1, 5)
            kind = rng.choice([nn.Conv1d, nn.MaxPool1d, nn.AvgPool1d])
            stride, padding = rng.randint(1, 4), rng.randint(0, kernel // 2)
            more = (1, 1) if kind is nn.Conv1d else ()
            layers.append(kind(*more, kernel, stride=stride, padding=padding))
        stack = nn.Sequential(*layers)
        found = sweep(lambda n, stack=stack: stack(torch.zeros(1, 1, n)), over="n")
        assert found.proven
        for n in (found.least, found.least + 1, 50, 51, 97, 128, 1001):
            assert stack(torch.zeros(1, 1, n)).shape[-1] == found.form.at(n)


@pytest.mark.parametrize(
    ("fn", "form"),
    [
        (lambda n: (4 * n) // 5, Floor(4, 0, 5)),
        (lambda n: (7 * n + 3) // 5, Floor(7, 3, 5)),
        (lambda n: 100 - n, Floor(-1, 100, 1)),
        (lambda n: functional.pad(torch.zeros(1, n), (0, -n % 8)), "n + (-n) mod 8"),
        (lambda n: 640 * (n // 640), "640·⌊n / 640⌋"),
        (lambda n: math.ceil(160 * n / 441), Floor(160, 440, 441)),
        (lambda n: n // 2 + n // 3, "⌊n / 2⌋ + ⌊n / 3⌋"),
        (lambda n: n * n, "n·n"),
        (lambda n: scaled(n, 1.5), "⌊3·n / 2⌋"),
        (max_frames, Floor(30, 0, 1, 50, 1000)),
        (lambda n: nn.GRU(3, 4, batch_first=True)(torch.zeros(1, n, 3)), Floor(1, 0, 1)),
    ],
)
def test_formulas_are_found_and_proven(fn: Callable[[int], Any], form: Floor | str) -> None:
    found = sweep(fn, over="n")
    assert found.proven and (found.form == form or found.form.text("n") == form), found.form.text("n")


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda n: 8 * ((n + 7) // 8), "8·⌊(n + 7) / 8⌋"),
        (lambda n: (160 * n + 440) // 441, "⌊(160·n + 440) / 441⌋"),
        (lambda n: n // 2 + n // 3, "⌊(n + 4) / 6⌋ + ⌊(n + 3) / 6⌋ + ⌊(n + 2) / 6⌋ + 2·⌊n / 6⌋"),
        (max_frames, "max(50, min(1000, 30·n))"),
        (lambda n: min(100, n // 3), "min(100, ⌊n / 3⌋)"),
    ],
)
def test_formulas_are_found_in_the_lengths_alone(fn: Callable[[int], int], text: str) -> None:
    found = sweep(lambda n: fn({}.get(n, n)), over="n")
    assert not found.proven and found.form.text("n") == text


def test_resampling_from_44100_to_16000() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    found = sweep(
        lambda n: torchaudio.functional.resample(torch.zeros(1, n), 44_100, 16_000),
        over="n",
        want="(160 * n + 440) // 441",
        upto=500,
    )
    assert not found.proven and "for all n in 1…500" in str(found)


# ---- what cannot be swept -------------------------------------------------------------------------------------------


def test_functions_that_cannot_be_decided_say_why() -> None:
    with pytest.raises(ValueError, match="n has no effect on the shape"):
        sweep(lambda n: torch.zeros(2, 3), over="n")
    with pytest.raises(ValueError, match="takes no n up to"):
        sweep(lambda n: torch.zeros(2) @ torch.zeros(3), over="n", upto=8)
    with pytest.raises(ValueError, match=r"axes \[0, 1\] of the result depend on n"):
        sweep(lambda n: torch.zeros(n, n), over="n")
    with pytest.raises(ValueError, match=r"no formula found for the lengths 1, 3, 6"):
        sweep(lambda n: sum(range(n + 1)), over="n", upto=100)
    with pytest.raises(TypeError, match="expected a tensor or a length, got str"):
        sweep(lambda n: "n", over="n")
    with pytest.raises(SpecError, match="unknown axis 'm' in 'm // 2'"):
        sweep(lambda n: n, over="n", want="m // 2")
    with pytest.raises(ValueError, match="upto must be 1 or more, got 0"):
        sweep(lambda n: n, over="n", upto=0)


def test_a_misspelt_axis(mel: nn.Module) -> None:
    with pytest.raises(SpecError, match=r"unknown axis 'sampels' in .* MelFrontend.* Did you mean 'samples'\?"):
        sweep(mel, over="sampels", want="sampels // 160")
    with pytest.raises(SpecError, match="unknown axis 'up_to'"):
        sweep(mel, over="samples", up_to=100)
    with pytest.raises(SpecError, match=r"no jaxtyping annotation with an axis 'n'.*lambda"):
        sweep(nn.Conv1d(1, 1, 3), over="n")


def test_a_function_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "MAX_SECONDS", 0.5)  # of CPU time: a busy machine does not matter

    def endless(n: int) -> int:
        while n == 3:
            try:
                raise ValueError
            except Exception:
                continue
        return n

    def deep(n: int) -> int:
        return deep(n + 1)

    with pytest.raises(ValueError, match=r"endless: no result for n = 3 within 0.5 s of CPU time. Does it end\?"):
        sweep(endless, over="n", upto=10)
    with pytest.raises(ValueError, match=r"deep: no result for n = 1: maximum recursion depth"):
        sweep(deep, over="n", upto=10)


def test_inputs_are_built_from_the_annotations() -> None:
    def shift(
        codes: Int[Tensor, "batch frames 2"],
        start: Int[Tensor, "batch 1 2"],
        mask: Float[Tensor, "batch frames"] | None = None,
    ) -> Int[Tensor, "batch frames+1 2"]:
        return torch.cat([start, codes], dim=1)

    assert sweep(shift, over="frames", want="frames + 1").form == Floor(1, 1, 1)
