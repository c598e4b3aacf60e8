"""Augmentation of speech: the same words from another speaker, in another room."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinyomni.config import SAMPLE_RATE

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
