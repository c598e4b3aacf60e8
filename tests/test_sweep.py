"""All lengths: the formulas of the course's own sound path, wrong formulas, caps, minimum lengths."""

import random
import time

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni import sweep
from tinyomni.tracing import SpecError, SweepMismatch
from tinyomni.tracing.formula import Floor


def max_frames(text_tokens: int) -> int:
    return max(50, min(1000, 30 * text_tokens))


@pytest.fixture(scope="module")
def mel() -> nn.Module:
    """The ear's front end; the tracer's own tests run without the course too."""
    pytest.importorskip("torchaudio")
    from tinyomni import MelFrontend

    return MelFrontend()


def test_the_sound_path_for_every_length(mel: nn.Module) -> None:
    from tinyomni import AudioEncoderTiny

    front, encoder, start = mel, AudioEncoderTiny(), time.perf_counter()
    frames = sweep(front, over="samples", want="samples // 160")
    ear = sweep(encoder, over="mel_frames", want="(mel_frames + 3) // 4", n_mels=128)
    both = sweep(lambda n: encoder(front(torch.zeros(1, n))), over="samples", want="(samples // 160 + 3) // 4")
    assert (frames.form, frames.least) == (
        Floor(1, 0, 160),
        160,
    ) and "at least one frame of 160 samples" in frames.refusal
    assert (ear.form, ear.least) == (Floor(1, 3, 4), 1)
    assert (both.form, both.jumps) == (Floor(1, 480, 640), (800, 1440, 2080))
    assert "⌊(samples + 480) / 640⌋ for every samples ≥ 160" in str(both) and "two whole periods" in str(both)
    assert max(frames.calls, ear.calls, both.calls) < 60
    # not a timed test of speed, only of the right way: computing values for these lengths would take minutes
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
    "want", ["samples // 160 + 1", "samples // 161", "(samples + 1) // 160", "min(100, samples // 160)"]
)
def test_a_wrong_formula_is_refused_with_a_length_where_it_fails(want: str, mel: nn.Module) -> None:
    with pytest.raises(SweepMismatch, match=r"MelFrontend: samples = \d+ gives \d+, but .*looks like ⌊samples / 160⌋"):
        sweep(mel, over="samples", want=want)


def test_declared_caps_are_looked_at_on_both_sides() -> None:
    found = sweep(max_frames, over="text_tokens", want="max(50, min(1000, 30 * text_tokens))")
    assert found.form == Floor(30, 0, 1, 50, 1000) and "caps at 50 and 1000" in str(found)
    for want in ("min(1000, 30 * text_tokens)", "max(50, 30 * text_tokens)", "max(50, min(1001, 30 * text_tokens))",
                 "max(51, min(1000, 30 * text_tokens))", "max(50, min(1000, 31 * text_tokens))"):  # fmt: skip
        with pytest.raises(SweepMismatch):
            sweep(max_frames, over="text_tokens", want=want)
    with pytest.raises(ValueError, match="Are there caps"):
        sweep(max_frames, over="text_tokens")


def test_integer_inputs_and_a_named_axis() -> None:
    pytest.importorskip("einops")
    from tinyomni import TalkerTiny

    found = sweep(TalkerTiny(), over="frames", want="frames", codebooks=2, axis=1)
    assert found.form == Floor(1, 0, 1) and found.longest == 1513 and "up to 1513" in str(found)


def test_random_stacks_of_strided_layers_are_found_exactly() -> None:
    rng = random.Random(0)
    for _ in range(25):
        layers: list[nn.Module] = []
        for _ in range(rng.randint(1, 3)):
            kernel = rng.randint(1, 5)
            kind = rng.choice([nn.Conv1d, nn.MaxPool1d])
            stride, padding = rng.randint(1, 4), rng.randint(0, kernel // 2)
            more = (1, 1) if kind is nn.Conv1d else ()
            layers.append(kind(*more, kernel, stride=stride, padding=padding))
        stack = nn.Sequential(*layers)
        found = sweep(lambda n, stack=stack: stack(torch.zeros(1, 1, n)), over="n")
        for n in (found.least, found.least + 1, 50, 51, 97, 128, 1001):
            assert stack(torch.zeros(1, 1, n)).shape[-1] == found.form.at(n)


def test_a_formula_with_both_numbers_above_one() -> None:
    for a, b, c in ((4, 0, 5), (7, 3, 5), (3, 1, 2), (2, 5, 3)):
        assert sweep(lambda n, a=a, b=b, c=c: (a * n + b) // c, over="n").form == Floor(a, b, c)


def test_functions_that_cannot_be_decided_say_why() -> None:
    with pytest.raises(ValueError, match="has no effect"):
        sweep(lambda n: 5, over="n")
    with pytest.raises(ValueError, match="takes no n up to"):
        sweep(lambda n: torch.zeros(2) @ torch.zeros(3), over="n")
    with pytest.raises(ValueError, match=r"axes \[0, 1\] of the result depend on n"):
        sweep(lambda n: torch.zeros(n, n), over="n")
    with pytest.raises(ValueError, match="no formula"):
        sweep(lambda n: n * n, over="n")
    with pytest.raises(SweepMismatch):
        sweep(lambda n: n * n, over="n", want="n")
    with pytest.raises(SpecError, match="has no form"):
        sweep(lambda n: n, over="n", want="n * n")
    with pytest.raises(SpecError, match="does not grow"):
        sweep(lambda n: n, over="n", want="3")
    with pytest.raises(TypeError, match="a tensor or a length"):
        sweep(lambda n: "n", over="n")


def test_inputs_are_built_from_the_annotations() -> None:
    def shift(
        codes: Int[Tensor, "batch frames 2"],
        start: Int[Tensor, "batch 1 2"],
        mask: Float[Tensor, "batch frames"] | None = None,
    ) -> Int[Tensor, "batch frames+1 2"]:
        return torch.cat([start, codes], dim=1)

    assert sweep(shift, over="frames", want="frames + 1").form == Floor(1, 1, 1)
