"""Audio: a file or an array becomes (samples,) floats, mono, at the rate that is asked for, or a clear error."""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import Resample

from tinyomni.config import SAMPLE_RATE
from tinyomni.errors import InputError
from tinyomni.io.sources import as_tensor, existing_file
from tinyomni.shapes import ShapeError, describe

Samples = np.ndarray | Tensor | Sequence[float] | Sequence[Sequence[float]]
AudioLike = str | os.PathLike[str] | tuple[Samples, float | np.integer]
"""A path, or a pair (samples, rate) with samples (samples,) or (channels, samples)."""

WHERE = "load_audio"
MAX_SECONDS = 1800
MAX_AMPLITUDE = 16.0  # floats beyond it were never scaled to -1…1
SILENCE_PEAK = 1e-5
TRIM_LEVEL = 0.01  # of the loudest moment: 40 dB below it


def load_audio(source: AudioLike, rate: int = SAMPLE_RATE) -> Float[Tensor, "samples"]:
    """A path, or a pair (samples, rate) → (samples,) float32 at `rate`; several channels are averaged.

    Samples are (samples,) or (channels, samples), floats in about -1…1, or integers, which are scaled.

    Raises InputError for a missing file, for what cannot be decoded, for no samples, more than 30 minutes, NaN,
    infinity, or floats that were never scaled; ShapeError for wrong axes, TypeError for another kind of object. Silence
    passes; see `check_not_silent`. A truncated MP3, or WAV of 4 GB, cannot be recognised.
    """
    if isinstance(source, (str, os.PathLike)):
        path = existing_file(WHERE, source)
        (wav, source_rate), name = read_file(path), str(path)
    else:
        if not isinstance(source, (tuple, list)) or len(source) != 2:
            raise TypeError(f"{WHERE}: expected a path or a pair (samples, rate), got {type(source).__name__}")
        source_rate, name = check_rate(source[1]), "the recording"
        wav = to_mono(as_tensor(WHERE, source[0]))
        if len(wav) > MAX_SECONDS * source_rate:
            raise too_long(name)
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
    return resample(wav, source_rate, rate)


def load_speech(source: AudioLike, rate: int = SAMPLE_RATE) -> tuple[Float[Tensor, "samples"], int]:
    """The speech in a recording as (samples, rate): `load_audio` without the silence before and after it.

    Raises what `load_audio` raises, and InputError for silence.
    """
    wav = load_audio(source, rate)
    check_not_silent(wav)
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


def check_not_silent(wav: Float[Tensor, "*batch samples"]) -> None:
    """Raise an InputError for a recording in which nothing can be heard."""
    if wav.numel() and float(wav.abs().max()) < SILENCE_PEAK:
        raise InputError(
            f"{WHERE}: the recording is silent (no sample is louder than {SILENCE_PEAK:g}). Was the microphone on?"
        )


def too_long(name: str) -> InputError:
    """The error for a recording that would fill the memory."""
    return InputError(f"{WHERE}: {name} is longer than {MAX_SECONDS // 60} minutes. Cut it into pieces.")


def check_rate(rate: object) -> int:
    """A sample rate that recordings really have, as an int."""
    if isinstance(rate, (float, np.floating)) and float(rate).is_integer():
        rate = int(rate)
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not 1000 <= rate <= 768_000:
        raise InputError(f"{WHERE}: expected a rate of 1,000 … 768,000 samples a second, an integer; got {rate!r}")
    return int(rate)


def to_mono(wav: Tensor) -> Float[Tensor, "samples"]:
    """(samples,) or (channels, samples), floats or integers → the mean of the channels, float32 in -1…1."""
    if wav.ndim not in (1, 2) or (wav.ndim == 2 and wav.shape[0] > wav.shape[1] > 0):
        fix = {0: " Are the two swapped? (samples, rate)", 2: " Are the axes swapped? samples.T"}.get(wav.ndim, "")
        fix = " One recording at a time: samples[0]" if wav.ndim == 3 else fix
        raise ShapeError(f"{WHERE}: expected samples (samples,) or (channels, samples), got {describe(wav)}.{fix}")
    if wav.is_complex() or wav.dtype == torch.bool:
        raise ShapeError(f"{WHERE}: expected samples as floats in about -1…1 or integers, got {describe(wav)}")
    if not wav.is_floating_point():
        kind = torch.iinfo(wav.dtype)
        half = (kind.max - kind.min + 1) / 2
        wav = (wav.double() - (half if kind.min == 0 else 0)) / half  # 8-bit samples are 0 … 255 with 128 as silence
    if wav.ndim == 2:
        wav = wav.double().mean(dim=0) if len(wav) else wav.new_zeros(0)
    return wav.float()


def read_file(path: Path) -> tuple[Float[Tensor, "samples"], int]:
    """Read an audio file block by block, averaging its channels; refuse a truncated one."""
    try:
        with soundfile.SoundFile(path) as file:
            rate, kind, promised = check_rate(file.samplerate), file.format, file.frames
            blocks, count = [], 0
            for block in file.blocks(2**18, dtype="float32", always_2d=True):
                count += len(block)
                if count > MAX_SECONDS * rate:
                    raise too_long(str(path))
                with np.errstate(invalid="ignore", over="ignore"):
                    blocks.append(block.mean(axis=1))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw samples, without a header
        raise InputError(f"{WHERE}: cannot decode audio {path} (expected WAV, FLAC or OGG): {error}") from error
    # an MP3's header only estimates the length; 2**62 stands for a stream whose length was never filled in
    short = kind not in ("MP3", "MPEG") and count < promised < 2**62
    if short or is_truncated(path):
        detail = f"header says {promised} frames, file has {count}" if short else "the data ends before the header says"
        raise InputError(f"{WHERE}: {path} is truncated: {detail}. Copy or download it again.")
    return torch.from_numpy(np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)), rate


def is_truncated(path: Path) -> bool:
    """Whether the header says that the file is longer than it is; libsndfile reads what is there without a word."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] in (b"RIFF", b"FORM"):
            promised = int.from_bytes(head[4:], "little" if head[:4] == b"RIFF" else "big")
            return size < promised + 8 < 2**31  # larger: a stream whose length was never filled in
        if head[:4] == b"OggS":
            file.seek(max(0, size - 2**17))
            tail = file.read()
            page = tail[tail.rfind(b"OggS") :]
            segments = page[26] if len(page) > 26 else 255
            # bit 4 marks the last page; behind its header come the lengths of its segments, then the segments
            return not page[5:6] or not page[5] & 4 or len(page) < 27 + segments + sum(page[27 : 27 + segments])
    return False


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
