"""Recordings as other microphones, rooms and lines give them: what spoken questions are measured in.

Nothing here shares code with the augmentation of training (`training/augment.py`): what is measured is whether that was
wide enough.
"""

import io
from collections.abc import Callable

import numpy as np
import soundfile
from jaxtyping import Float

from tinyomni.config import SAMPLE_RATE

Wave = Float[np.ndarray, "samples"]
Condition = Callable[[Wave, np.random.Generator], Wave]


def white_noise(snr: float) -> Condition:
    """White noise, so many dB below the loud half of the speech."""

    def apply(wave: Wave, rng: np.random.Generator) -> Wave:
        power = np.mean(np.square(wave[np.abs(wave) > np.median(np.abs(wave))]))
        return wave + rng.standard_normal(len(wave)) * np.sqrt(power / 10 ** (snr / 10))

    return apply


def hum_and_hiss(wave: Wave, rng: np.random.Generator) -> Wave:
    """A room: 50 Hz with harmonics, and noise that falls by 6 dB an octave, together 20 dB below the speech."""
    time = np.arange(len(wave)) / SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 6)) / k for k in (1, 2, 3, 5))
    brown = np.cumsum(rng.standard_normal(len(wave)))
    brown -= np.convolve(brown, np.ones(801) / 801, "same")
    noise = hum / np.std(hum) + brown / np.std(brown)
    return wave + noise / np.std(noise) * np.std(wave) / 10


def quieter(decibels: float) -> Condition:
    """The same, softer."""
    return lambda wave, rng: wave * 10 ** (-decibels / 20)


def room(seconds: float) -> Condition:
    """A room: a dozen early reflections, then a dense tail that is 60 dB fainter after so many seconds."""

    def apply(wave: Wave, rng: np.random.Generator) -> Wave:
        size = int(seconds * SAMPLE_RATE)
        response = np.zeros(size)
        response[0] = 1
        for delay in rng.uniform(0.004, 0.06, 12):
            response[int(delay * SAMPLE_RATE)] += rng.choice([-1, 1]) * 0.5 * 10 ** (-3 * delay / seconds)
        start = int(0.05 * SAMPLE_RATE)
        tail = rng.standard_normal(size - start) * 10 ** (-3 * np.arange(start, size) / size)
        response[start:] += tail * 0.6 / np.linalg.norm(tail)
        return np.convolve(wave, response)

    return apply


def clipped(wave: Wave, rng: np.random.Generator) -> Wave:
    """Recorded 12 dB too loud."""
    return np.clip(wave / np.abs(wave).max() * 4, -1, 1)


def telephone(wave: Wave, rng: np.random.Generator) -> Wave:
    """300 … 3400 Hz, in the 8 bits of G.711 (μ-law), as libsndfile has it."""
    spectrum, frequency = np.fft.rfft(wave), np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    wave = np.fft.irfft(spectrum * ((frequency > 300) & (frequency < 3400)), len(wave))
    return through_file(wave, "WAV", "ULAW")


def vorbis(wave: Wave, rng: np.random.Generator) -> Wave:
    """Compressed as Ogg Vorbis."""
    return through_file(wave, "OGG", "VORBIS")


def through_file(wave: Wave, container: str, subtype: str) -> Wave:
    """Written in a format, and read again."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave / max(1.0, np.abs(wave).max()), SAMPLE_RATE, subtype, format=container)
    buffer.seek(0)
    return np.asarray(soundfile.read(buffer)[0])


def faster(wave: Wave, rng: np.random.Generator) -> Wave:
    """A tenth faster and higher, as from a tape."""
    return np.interp(np.arange(0, len(wave) - 1, 1.1), np.arange(len(wave)), wave)


CONDITIONS: dict[str, Condition] = {
    "as spoken": lambda wave, rng: wave,
    "20 dB SNR": white_noise(20),
    "10 dB SNR": white_noise(10),
    "5 dB SNR": white_noise(5),
    "hum and hiss": hum_and_hiss,
    "30 dB quieter": quieter(30),
    "room of 0.8 s": room(0.8),
    "clipped": clipped,
    "telephone": telephone,
    "Vorbis": vorbis,
    "10% faster": faster,
}
