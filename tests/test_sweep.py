"""All lengths: formulas of the course's own audio path, false formulas, caps, minimum lengths, and what is claimed."""

import contextlib
import math
import random
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
