"""Augmentation of speech: the same words from another speaker, in another room."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinyomni.config import SAMPLE_RATE
from tinyomni.io.levels import normalize_level

MAX_SHIFT = 2  # mel bands, of 128
MAX_SILENCE = 0.2  # seconds before the speech, and after it


def vtlp(mel: Float[Tensor, "batch mel_frames n_mels"]) -> Float[Tensor, "batch mel_frames n_mels"]:
    """Vocal tract length perturbation: every spectrogram a few mel bands higher or lower, louder or softer.

    Jaitly & Hinton (2013) warp the frequency axis; on a mel axis that is nearly a shift.
    """
    batch, _, bands = mel.shape
    shift = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (batch, 1, 1), device=mel.device)
    source = (torch.arange(bands, device=mel.device) + shift).clamp(0, bands - 1).expand_as(mel)
    return mel.gather(2, source) + torch.empty(batch, 1, 1, device=mel.device).uniform_(-0.5, 0.5)


def add_room_noise(
    wave: Float[Tensor, "samples"], generator: torch.Generator | None = None
) -> Float[Tensor, "more_samples"]:
    """As it is recorded: some silence before and after, and faint noise, 60 to 100 dB below full scale."""
    random_numbers = torch.rand(3, generator=generator).tolist()
    before, after = (int(part * MAX_SILENCE * SAMPLE_RATE) for part in random_numbers[:2])
    wave = F.pad(wave, (before, after))
    noise = torch.randn(wave.shape, generator=generator).to(wave.device)
    return wave + noise * 10 ** (-5 + 2 * random_numbers[2])


# ---- the wide style: other rooms, microphones and speakers ----------------------------------------------------------


@dataclass(frozen=True)
class SpeechAugmentation:
    """How often, and how far, a recording is changed. Probabilities of each change, and ranges."""

    speed: float = 0.5
    speed_range: tuple[float, float] = (0.87, 1.15)  # tempo and pitch together, as of a tape
    reverberation: float = 0.35
    decay: tuple[float, float] = (0.1, 0.9)  # seconds until it is 60 dB fainter
    band: float = 0.3
    low_cut: tuple[float, float] = (50.0, 400.0)  # Hz
    high_cut: tuple[float, float] = (2200.0, 7500.0)
    noise: float = 0.75
    snr: tuple[float, float] = (0.0, 40.0)  # dB
    clipping: float = 0.15
    overdrive: tuple[float, float] = (3.0, 15.0)  # dB above full scale
    codec: float = 0.2  # 8-bit μ-law, as on the telephone
    gain: tuple[float, float] = (-4.0, 4.0)  # dB around the usual level


WIDE_SPEECH = SpeechAugmentation()


def as_recorded(
    wave: Float[Tensor, "samples"], how: SpeechAugmentation = WIDE_SPEECH, generator: torch.Generator | None = None
) -> Float[Tensor, "more_samples"]:
    """A recording as another speaker, room, microphone and line would give it, at about the usual level.

    Sources: Ko et al., Audio Augmentation for Speech Recognition (2015), for the speed; Ko et al., A Study on Data
    Augmentation of Reverberant Speech (2017).
    """

    def chance(probability: float) -> bool:
        return float(torch.rand((), generator=generator)) < probability

    def between(limits: tuple[float, float]) -> float:
        return limits[0] + (limits[1] - limits[0]) * float(torch.rand((), generator=generator))

    if chance(how.speed):
        length = max(1, round(len(wave) / between(how.speed_range)))
        wave = F.interpolate(wave[None, None], size=length, mode="linear", align_corners=False)[0, 0]
    if chance(how.reverberation):
        wave = reverberate(wave, between(how.decay), generator)
    if chance(how.band):
        wave = band_limit(wave, between(how.low_cut), between(how.high_cut))
    if chance(how.noise):
        wave = add_noise(wave, between(how.snr), between((0.0, 1.0)), generator)
    if chance(how.clipping):
        wave = (wave / wave.abs().max().clamp(min=1e-6) * 10 ** (between(how.overdrive) / 20)).clamp(-1, 1)
    if chance(how.codec):
        wave = mu_law(wave)
    wave = normalize_level(wave, SAMPLE_RATE) * 10 ** (between(how.gain) / 20)
    return add_room_noise(wave, generator)


def reverberate(
    wave: Float[Tensor, "samples"], decay: float, generator: torch.Generator | None = None
) -> Float[Tensor, "samples"]:
    """The echoes of a room: noise that is 60 dB fainter after `decay` seconds, behind the sound itself."""
    time = torch.arange(max(1, int(decay * SAMPLE_RATE))) / SAMPLE_RATE
    response = torch.randn(len(time), generator=generator) * 10 ** (-3 * time / decay)
    response = response / response.norm() * float(0.2 + 0.8 * torch.rand((), generator=generator))
    response[0] = 1.0
    size = len(wave) + len(response)
    return torch.fft.irfft(torch.fft.rfft(wave, size) * torch.fft.rfft(response, size), size)[: len(wave)]


def band_limit(wave: Float[Tensor, "samples"], low: float, high: float) -> Float[Tensor, "samples"]:
    """Only what lies between two frequencies, in Hz."""
    spectrum = torch.fft.rfft(wave)
    frequency = torch.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    # the edges are an octave wide: a sharper filter would ring
    keep = (2 * frequency / low - 1).clamp(0, 1) * (2 - frequency / high).clamp(0, 1)
    return torch.fft.irfft(spectrum * keep, len(wave))


def add_noise(
    wave: Float[Tensor, "samples"], snr: float, tilt: float = 0.0, generator: torch.Generator | None = None
) -> Float[Tensor, "samples"]:
    """Noise, `snr` dB below the speech; white with a `tilt` of 0, with one of 1 as much in each octave (pink)."""
    spectrum = torch.fft.rfft(torch.randn(wave.shape, generator=generator))
    frequency = torch.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE).clamp(min=20.0)
    noise = torch.fft.irfft(spectrum * frequency ** (-tilt / 2), len(wave))
    power = wave.square().mean().sqrt() / noise.square().mean().sqrt().clamp(min=1e-12)
    return wave + noise * power * 10 ** (-snr / 20)


def mu_law(wave: Float[Tensor, "samples"], levels: int = 256) -> Float[Tensor, "samples"]:
    """Quantized as on the telephone, ITU-T G.711: finely where it is faint."""
    mu, peak = levels - 1, wave.abs().max().clamp(min=1e-6)
    x = wave / peak
    code = ((x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu) + 1) / 2 * mu).round()
    y = 2 * code / mu - 1
    return peak * y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu
