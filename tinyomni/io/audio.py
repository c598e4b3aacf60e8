"""Audio: a file or an array becomes (samples,) floats, mono, at the rate that is asked for, or a clear error."""

import functools
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import Resample

from tinyomni.config import SAMPLE_RATE
from tinyomni.errors import InputError
from tinyomni.io.audio_files import read_audio_file, too_long
from tinyomni.io.sources import as_tensor, existing_file
from tinyomni.shapes import ShapeError, describe

Samples = np.ndarray | Tensor | Sequence[float] | Sequence[Sequence[float]]
AudioLike = str | os.PathLike[str] | tuple[Samples, float | np.integer]
"""A path, or a pair (samples, rate) with samples (samples,) or (channels, samples)."""

WHERE = "load_audio"
MAX_SECONDS = 1800
MAX_AMPLITUDE = 16.0  # floats beyond it were never scaled to -1…1
SILENCE_PEAK = 1e-5
CANCELLED = 1e-3  # the mean of the channels is 60 dB below the loudest of them
TRIM_LEVEL = 0.01  # of the loudest moment: 40 dB below it


def load_audio(source: AudioLike, rate: int = SAMPLE_RATE) -> Float[Tensor, "samples"]:
    """A path, or a pair (samples, rate) → (samples,) float32 at `rate`; several channels are averaged.

    Samples are (samples,) or (channels, samples), floats in about -1…1, or integers, which are scaled.

    Raises InputError for a missing file, for what cannot be decoded, for no samples, more than 30 minutes, NaN,
    infinity, or floats that were never scaled; ShapeError for wrong axes, TypeError for another kind of object. Silence
    passes; see `check_not_silent`. A truncated WAV of 4 GB, or file of a rare format such as VOC, and an MP3 that lacks
    something in its middle and does not say how many frames it has, cannot be recognised.
    """
    if isinstance(source, (str, os.PathLike)):
        path = existing_file(WHERE, source)
        found, name = read_audio_file(WHERE, path, MAX_SECONDS), str(path)
        wav, source_rate, loudest = torch.from_numpy(found.mono), check_rate(found.rate), found.peak
    else:
        if not isinstance(source, (tuple, list)) or len(source) != 2:
            raise TypeError(f"{WHERE}: expected a path or a pair (samples, rate), got {type(source).__name__}")
        source_rate, name = check_rate(source[1]), "the recording"
        raw = isinstance(source[0], memoryview) and source[0].format in ("B", "b", "c")
        if raw or isinstance(source[0], (bytes, bytearray)):
            raise TypeError(f"{WHERE}: expected an array of samples, got raw bytes. numpy.frombuffer(data, 'int16')")
        channels = to_channels(as_tensor(WHERE, source[0]))
        # float32 only where it is in range: a finite 1e39 is no infinity
        wav, loudest = channels.double().mean(dim=0), float(channels.abs().max()) if channels.numel() else 0.0
        if len(wav) > MAX_SECONDS * source_rate:
            raise too_long(WHERE, name, MAX_SECONDS)
    if len(wav) == 0:
        raise InputError(f"{WHERE}: {name} has no samples")
    if not bool(torch.isfinite(wav).all()):
        raise InputError(f"{WHERE}: {name} holds {int((~torch.isfinite(wav)).sum())} NaN or infinite samples")
    peak = float(wav.abs().max())
    if peak > MAX_AMPLITUDE:
        raise InputError(
            f"{WHERE}: expected samples in about -1…1, got a peak of {peak:g} in {name}. "
            "Divide 16-bit samples by 32768."
        )
    if peak < loudest * CANCELLED:
        raise InputError(
            f"{WHERE}: the channels of {name} cancel each other out (opposite phase): their mean is silent. "
            "Pass one of them: (samples[0], rate)."
        )
    return resample(wav.float(), source_rate, rate)


def load_speech(source: AudioLike, rate: int = SAMPLE_RATE) -> tuple[Float[Tensor, "samples"], int]:
    """The speech in a recording as (samples, rate): `load_audio` without the silence before and after it.

    Raises what `load_audio` raises, and InputError for silence.
    """
    wav = load_audio(source, rate)
    check_not_silent(wav, str(source) if isinstance(source, (str, os.PathLike)) else "the recording")
    return trim_silence(wav, rate), rate


def trim_silence(wav: Float[Tensor, "samples"], rate: int) -> Float[Tensor, "trimmed"]:
    """Cut what is 40 dB fainter than the loudest moment from both ends, but for 10 ms; silence stays as it is.

    The recogniser was trained on speech that starts at once.
    """
    step = max(1, rate // 100)
    energy = torch.nn.functional.pad(wav, (0, -len(wav) % step)).unflatten(0, (-1, step)).square().mean(dim=1)
    loud = (energy > energy.max() * TRIM_LEVEL**2).nonzero()
    if len(loud) == 0:
        return wav
    first, last = int(loud[0]), int(loud[-1])
    return wav[max(0, first - 1) * step : (last + 2) * step]


def check_not_silent(wav: Float[Tensor, "*batch samples"], name: str = "the recording") -> None:
    """Raise an InputError for a recording in which nothing can be heard."""
    if not wav.numel():
        return
    low, high = float(wav.min()), float(wav.max())
    if max(-low, high) < SILENCE_PEAK:
        raise InputError(
            f"{WHERE}: {name} is silent (no sample is louder than {SILENCE_PEAK:g}). Was the microphone on?"
        )
    if high - low < SILENCE_PEAK:
        raise InputError(f"{WHERE}: every sample of {name} is {high:g} (a constant, DC): nothing can be heard in it")


def check_rate(rate: object) -> int:
    """A sample rate that recordings really have, as an int."""
    if isinstance(rate, (float, np.floating)) and float(rate).is_integer():
        rate = int(rate)
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not 1000 <= rate <= 768_000:
        raise InputError(f"{WHERE}: expected a rate of 1,000 … 768,000 samples a second, an integer; got {rate!r}")
    return int(rate)


def to_channels(wav: Tensor) -> Float[Tensor, "channels samples"]:
    """(samples,) or (channels, samples), floats or integers → floats in -1…1, with a channel axis."""
    if wav.ndim not in (1, 2) or (wav.ndim == 2 and wav.shape[0] > wav.shape[1] > 0):
        fix = {0: " Are the two swapped? (samples, rate)", 2: " Are the axes swapped? samples.T"}.get(wav.ndim, "")
        fix = " One recording at a time: samples[0]" if wav.ndim == 3 else fix
        raise ShapeError(f"{WHERE}: expected samples (samples,) or (channels, samples), got {describe(wav)}.{fix}")
    if wav.is_complex() or wav.dtype == torch.bool:
        raise ShapeError(f"{WHERE}: expected samples as floats in about -1…1 or integers, got {describe(wav)}")
    if wav.dtype in (torch.uint16, torch.uint32, torch.uint64):
        raise ShapeError(
            f"{WHERE}: expected floats, signed integers or uint8, got {describe(wav)}. "
            "Subtract the value of silence, such as 32768, and pass int16."
        )
    if not wav.is_floating_point():
        zero = 128 if wav.dtype == torch.uint8 else 0  # 8-bit samples are 0 … 255 with 128 as silence
        wav = (wav.double() - zero) / 2 ** (integer_bits(wav) - 1)
    wav = wav[None] if wav.ndim == 1 else wav
    return wav if len(wav) else wav.new_zeros(1, 0)


def integer_bits(wav: Tensor) -> int:
    """How many bits samples have. Wide integers also carry 16-bit samples (pydub, lists), so their values decide."""
    bits = torch.iinfo(wav.dtype).bits
    if bits <= 16 or not wav.numel():
        return bits
    peak = max(-int(wav.min()), int(wav.max()))
    if peak <= 2**15:  # as 32-bit samples they would be 96 dB below full scale
        return 16
    if 2**23 < peak <= 2**31:
        return 32
    fix = "Divide by 2**23 or 2**31 and pass floats." if peak <= 2**23 else "Pass floats in about -1…1."
    raise InputError(f"{WHERE}: expected 16-bit or 32-bit samples, got {wav.dtype} with a peak of {peak:,}. {fix}")


def resample(wav: Float[Tensor, "samples"], old: int, new: int) -> Float[Tensor, "new_samples"]:
    """Another sample rate, by torchaudio's windowed sinc.

    Its table has about old × new / gcd² numbers: gigabytes for a rate such as 44,101. There the spectrum of the whole
    recording is cut or padded instead.
    """
    if max(old, new) <= 2000 * math.gcd(old, new):
        return resampler(old, new)(wav)
    seconds = math.ceil(len(wav) / old)
    spectrum = torch.fft.rfft(torch.nn.functional.pad(wav, (0, seconds * old - len(wav))))
    return torch.fft.irfft(spectrum, n=seconds * new)[: math.ceil(len(wav) * new / old)] * (new / old)


@functools.lru_cache(maxsize=8)
def resampler(old: int, new: int) -> Resample:
    """Cached: building the filter takes longer than using it."""
    return Resample(old, new)
