"""Lesson 11, the vocoder: its oracles are least squares, torch's own inverse STFT, and explicit Fourier sums."""

import functools
import math
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "11_vocoder", "The vocoder"

OVERLAP = "2. The inverse STFT: overlap-add"
GRIFFIN_LIM = "3. Griffin-Lim: alternating projections"
MEL = "4. Invert the mel filter bank"

fault: Any  # what a mutant changes


# ---- mel ------------------------------------------------------------------------------------------------------------


@exercise("Invert the mel filterbank", minutes=15, level=2, rtol=1e-3, atol=1e-4)
def invert_mel(
    mel: Float[Tensor, "mel_frames n_mels"], filters: Float[Tensor, "frequencies n_mels"]
) -> Float[Tensor, "frequencies mel_frames"]:
    """The minimum-norm spectrum of each mel frame, by least squares, one frame at a time."""
    transposed = filters.T.double()
    found = [torch.linalg.lstsq(transposed, frame.double()[:, None], driver="gelsd").solution[:, 0] for frame in mel]
    return torch.stack(found, dim=1).clamp(min=0).to(mel.dtype)


def triangular_filters(frequencies, n_mels):
    """Overlapping triangles that get wider and wider, as mel filters are."""
    edges = torch.linspace(1, 2, n_mels + 2) ** 2
    edges = (edges - 1) / 3 * (frequencies - 1)
    place = torch.arange(float(frequencies))[:, None]
    rise, fall = (place - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - place) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)


@invert_mel.cases
def _(rng):
    filters = triangular_filters(23, 6)
    yield "all sizes different", {"mel": (rng.randn(23, 4).abs().T @ filters), "filters": filters}
    yield "alternating loud and soft bands", {"mel": torch.tensor([[5.0, 0.0, 5.0, 0.0, 5.0, 0.0]]), "filters": filters}
    yield "silence", {"mel": torch.zeros(2, 6), "filters": filters}
    yield "as many frames as bands", {"mel": rng.randn(3, 3).abs(), "filters": triangular_filters(11, 3)}
    yield (
        "filters of different heights",
        {"mel": rng.randn(2, 3).abs(), "filters": triangular_filters(11, 3) * torch.tensor([1.0, 0.5, 0.2])},
    )


@invert_mel.random_inputs
def _(rng):
    bands = rng.size(5, 2)
    filters = triangular_filters(4 * bands + rng.size(4), bands) * (0.3 + rng.randn(bands).abs())
    mel = rng.randn(rng.size(), bands).abs()
    mel[-1, ::2] = 0
    return {"mel": mel, "filters": filters}


def invert_mel_variant(
    mel, filters, *, inverse=lambda filters: torch.linalg.pinv(filters.T), floor=lambda s: s.clamp(min=0)
):
    """`invert_mel`; each keyword injects one fault."""
    return floor(inverse(filters) @ mel.T)


for cause, fault in (
    (
        "the filters themselves are applied, not their inverse: every band leaks into its neighbours",
        {"inverse": lambda f: f},
    ),
    (
        "each band is distributed by normalized filters: that is no inverse where filters overlap",
        {"inverse": lambda f: f / f.sum(dim=0, keepdim=True)},
    ),
    (
        "each frequency is divided by the sum of its filters: again, no inverse",
        {"inverse": lambda f: f / f.sum(dim=1, keepdim=True).clamp(min=1e-8)},
    ),
    ("negative magnitudes are kept", {"floor": lambda s: s}),
    ("negative magnitudes become positive instead of 0", {"floor": torch.abs}),
    (
        "the exponential is applied: these are magnitudes, not logarithms",
        {"floor": lambda s: s.clamp(min=0).exp()},
    ),
    (
        "the square root is applied: the filters were applied to magnitudes, not to power",
        {"floor": lambda s: s.clamp(min=0).sqrt()},
    ),
):
    invert_mel.mutant(cause, MEL)(functools.partial(invert_mel_variant, **fault))


@invert_mel.mutant("the bands are interpolated linearly to all frequencies: the mel scale is not linear", MEL)
def _(mel, filters):
    return torch.nn.functional.interpolate(mel[None], size=len(filters), mode="linear")[0].T


@invert_mel.mutant("the axes are exchanged: the inverse STFT expects (frequencies, frames)", MEL)
def _(mel, filters):
    return invert_mel_variant(mel, filters).T


invert_mel.alternative(invert_mel_variant)


@invert_mel.alternative
def _(mel, filters):
    return (filters @ torch.linalg.solve(filters.T @ filters, mel.T)).relu()


@invert_mel.replaces("tinyomni.vocoder.GriffinLimVocoder.invert_mel")
def _(answer):
    return lambda self, mel: answer(mel, self.mel.filters)


# ---- overlap and add ------------------------------------------------------------------------------------------------


@exercise("Overlap-add", minutes=20, level=3, atol=1e-4)
def overlap_add(
    pieces: Float[Tensor, "columns window"], hop: int, window: Float[Tensor, "window"]
) -> Float[Tensor, "samples"]:
    """torch's inverse STFT of the pieces' spectra."""
    n_fft, length = pieces.shape[1], (len(pieces) - 1) * hop
    spectrum = torch.fft.rfft(pieces, dim=1).T
    return torch.istft(spectrum, n_fft, hop, window=window, length=length)


@overlap_add.cases
def _(rng):
    yield "all sizes different", {"pieces": rng.randn(5, 16), "hop": 4, "window": torch.hann_window(16)}
    yield "half overlap", {"pieces": rng.randn(4, 12), "hop": 6, "window": torch.hann_window(12)}
    yield "little overlap", {"pieces": rng.randn(4, 16), "hop": 12, "window": torch.hann_window(16)}
    yield "two pieces", {"pieces": rng.randn(2, 8), "hop": 2, "window": torch.hann_window(8)}
    yield "a rectangular window", {"pieces": rng.randn(6, 8), "hop": 3, "window": torch.ones(8)}
    yield "an asymmetric window", {"pieces": rng.randn(6, 8), "hop": 2, "window": torch.linspace(0.3, 1.5, 8)}


@overlap_add.random_inputs
def _(rng):
    size, columns = 2 * rng.size(6, 2), rng.size(6, 2)
    window = rng.choice((torch.hann_window(size), 0.3 + rng.randn(size).abs()))
    return {"pieces": rng.randn(columns, size), "hop": rng.size(size // 2), "window": window}


def overlap_add_variant(
    pieces, hop, window, *, by=lambda piece, w: piece * w, over=lambda w: w**2, divide=True, first=None, put="add"
):
    """`overlap_add`; each keyword injects one fault."""
    columns, n = pieces.shape
    audio, total = (pieces.new_zeros((columns - 1) * hop + n) for _ in range(2))
    for j, piece in enumerate(pieces):
        place = slice(j * hop, j * hop + n)
        if put == "add":
            audio[place] += by(piece, window)
        else:
            audio[place] = by(piece, window)
        total[place] += over(window)
    audio = audio / total.clamp(min=1e-11) if divide else audio
    first = n // 2 if first is None else first
    return audio[first : first + (columns - 1) * hop]


for cause, fault in (
    ("the sum is not normalized: it is louder where more windows overlap", {"divide": False}),
    ("the sum is divided by the windows, not by their squares: the window was applied twice", {"over": lambda w: w}),
    ("the pieces are not multiplied by the window before they are added", {"by": lambda piece, w: piece}),
    ("the sum is divided by the number of pieces instead of the squared windows", {"over": torch.ones_like}),
    (
        "the first half window is not cut off: a centered window begins before the audio",
        {"first": 0},
    ),
    ("later pieces overwrite earlier ones instead of being added", {"put": "set"}),
    (
        "the pieces are divided by the window instead of multiplied",
        {"by": lambda piece, w: piece / w.clamp(min=1e-3)},
    ),
):
    overlap_add.mutant(cause, OVERLAP)(functools.partial(overlap_add_variant, **fault))


@overlap_add.mutant("half a window too much is kept at the end", OVERLAP)
def _(pieces, hop, window):
    long = overlap_add_variant(torch.cat([pieces, torch.zeros_like(pieces)]), hop, window)
    return long[: (len(pieces) - 1) * hop + pieces.shape[1] // 2]


@overlap_add.mutant("the window is reversed", OVERLAP)
def _(pieces, hop, window):
    return overlap_add_variant(pieces, hop, window.flip(0))


overlap_add.alternative(overlap_add_variant)


@overlap_add.alternative
def _(pieces, hop, window):
    columns, n = pieces.shape
    place = torch.arange(columns)[:, None] * hop + torch.arange(n)
    flat, length = place.flatten(), (columns - 1) * hop
    put = pieces.new_zeros(length + n)
    audio = put.index_add(0, flat, (pieces * window).flatten())
    total = put.index_add(0, flat, (window**2).expand(columns, -1).flatten())
    return (audio / total.clamp(min=1e-11))[n // 2 : n // 2 + length]


# ---- one round of Griffin-Lim ---------------------------------------------------------------------------------------


@exercise("One iteration of Griffin-Lim", minutes=25, level=3, rtol=1e-3, atol=1e-3, float64=False)
def griffin_lim_step(
    magnitudes: Float[Tensor, "frequencies columns"],
    spectrum: Complex[Tensor, "frequencies columns"],
    previous: Complex[Tensor, "frequencies columns"],
    hop: int,
    momentum: float = 0.99,
) -> tuple[Complex[Tensor, "frequencies columns"], Complex[Tensor, "frequencies columns"]]:
    """Inverse and forward STFT as explicit Fourier sums; then angle and magnitude of each number."""
    n, columns = 2 * (len(spectrum) - 1), spectrum.shape[1]
    window = [0.5 - 0.5 * math.cos(2 * math.pi * i / n) for i in range(n)]
    phase = torch.arange(n // 2 + 1)[:, None] * torch.arange(n) * (2 * math.pi / n)
    wave = torch.polar(torch.ones_like(phase, dtype=torch.float64), phase.double())
    twice = torch.full((n // 2 + 1, 1), 2.0, dtype=torch.float64)
    twice[0] = twice[-1] = 1
    pieces = (spectrum.to(torch.complex128).T @ (twice * wave)).real / n
    audio, total = [0.0] * ((columns - 1) * hop + n), [0.0] * ((columns - 1) * hop + n)
    for j, piece in enumerate(pieces.tolist()):
        for i, number in enumerate(piece):
            audio[j * hop + i] += number * window[i]
            total[j * hop + i] += window[i] ** 2
    ends = range(n // 2, n // 2 + (columns - 1) * hop)
    audio = [number / total[i] if i in ends else 0.0 for i, number in enumerate(audio)]
    framed = torch.tensor([[audio[j * hop + i] * window[i] for i in range(n)] for j in range(columns)]).double()
    rebuilt = (framed.to(torch.complex128) @ wave.conj().T).T
    ahead = rebuilt + momentum * (rebuilt - previous)
    new = torch.polar(magnitudes.double(), ahead.angle())
    return new.to(spectrum.dtype), rebuilt.to(spectrum.dtype)


def random_spectra(rng, n, columns):
    """Magnitudes and two spectra for a window of `n` samples."""
    size = (n // 2 + 1, columns)
    tables = [torch.polar(0.3 + rng.randn(*size).abs(), 3 * rng.randn(*size)) for _ in range(2)]
    return {"magnitudes": 0.3 + rng.randn(*size).abs(), "spectrum": tables[0], "previous": tables[1]}


@griffin_lim_step.cases
def _(rng):
    def given(n, columns, hop, **more):
        return {**random_spectra(rng, n, columns), "hop": hop, **more}

    yield "all sizes different", given(16, 6, 4, momentum=0.7)
    yield "momentum 0.99", given(8, 4, 2)
    yield "no momentum", given(8, 5, 2, momentum=0.0)
    yield "half overlap", given(12, 5, 6, momentum=0.5)
    first = given(16, 5, 4)
    yield "the first iteration: no previous spectrum", first | {"previous": torch.zeros_like(first["previous"])}
    hush = given(8, 4, 2, momentum=0.5)
    nothing = torch.zeros_like(hush["spectrum"])
    yield (
        "silence stays silence",
        hush | {"magnitudes": hush["magnitudes"] * 0, "spectrum": nothing, "previous": nothing},
    )


@griffin_lim_step.random_inputs
def _(rng):
    n, columns = rng.choice((8, 12, 16)), rng.size(6, 3)
    spectra = random_spectra(rng, n, columns)
    spectra["magnitudes"][rng.size(n // 2), 0] = 0
    return {**spectra, "hop": n // rng.choice((2, 4)), "momentum": rng.number(0.0, 0.95)}


def istft_stft(spectrum, hop, pad_mode="constant", window=torch.hann_window):
    """`stft(istft(spectrum))`: the consistent spectrum nearest to this one."""
    n, columns = 2 * (len(spectrum) - 1), spectrum.shape[1]
    shape = window(n, dtype=spectrum.real.dtype)
    audio = torch.istft(spectrum, n, hop, window=shape, length=(columns - 1) * hop)
    return torch.stft(audio, n, hop, window=shape, pad_mode=pad_mode, return_complex=True)


def griffin_lim_variant(
    magnitudes,
    spectrum,
    previous,
    hop,
    momentum=0.99,
    *,
    ahead=lambda consistent, b, m: consistent + m * (consistent - b),
    back=istft_stft,
    lengths=lambda angles, magnitudes, consistent: magnitudes * angles,
    old=lambda consistent, ahead: consistent,
):
    """`griffin_lim_step`; each keyword injects one fault."""
    consistent = back(spectrum, hop)
    moved = ahead(consistent, previous, momentum)
    return lengths(moved / moved.abs().clamp(min=1e-16), magnitudes, consistent), old(consistent, moved)


for cause, fault in (
    ("there is no momentum", {"ahead": lambda consistent, b, m: consistent}),
    (
        "the momentum has the wrong sign, and slows the search down",
        {"ahead": lambda consistent, b, m: consistent - m * (consistent - b)},
    ),
    (
        "only the change is kept, without the spectrum it starts from",
        {"ahead": lambda consistent, b, m: m * (consistent - b)},
    ),
    (
        "the momentum is always 0.99, ignoring the argument",
        {"ahead": lambda consistent, b, m: consistent + 0.99 * (consistent - b)},
    ),
    (
        "the magnitudes of the rebuilt spectrum are kept instead of the given ones",
        {"lengths": lambda angles, s, consistent: consistent.abs() * angles},
    ),
    ("the magnitudes are missing: all numbers have length 1", {"lengths": lambda angles, s, consistent: angles}),
    (
        "the spectrum with momentum is returned for the next iteration instead of the consistent one",
        {"old": lambda consistent, moved: moved},
    ),
    (
        'the audio is padded by reflection, torch\'s default: use `pad_mode="constant"`',
        {"back": lambda spectrum, hop: istft_stft(spectrum, hop, "reflect")},
    ),
    (
        "the window is rectangular instead of Hann",
        {"back": lambda spectrum, hop: istft_stft(spectrum, hop, window=torch.ones)},
    ),
    (
        "inverse and forward STFT are missing: the spectrum never becomes consistent",
        {"back": lambda spectrum, hop: spectrum},
    ),
):
    griffin_lim_step.mutant(cause, GRIFFIN_LIM)(functools.partial(griffin_lim_variant, **fault))


@griffin_lim_step.mutant("it divides by a magnitude of 0, and silence becomes NaN", GRIFFIN_LIM)
def _(magnitudes, spectrum, previous, hop, momentum=0.99):
    consistent = istft_stft(spectrum, hop)
    moved = consistent + momentum * (consistent - previous)
    return magnitudes * (moved / moved.abs()), consistent


griffin_lim_step.alternative(griffin_lim_variant)


@griffin_lim_step.alternative
def _(magnitudes, spectrum, previous, hop, momentum=0.99):
    consistent = istft_stft(spectrum, hop)
    return torch.polar(magnitudes, (consistent - previous * (momentum / (1 + momentum))).angle()).to(
        consistent.dtype
    ), consistent
