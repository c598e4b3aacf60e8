"""The level of speech: a recording that is fainter or louder than what the recogniser learned is brought to its level.

samples → level of its loud parts in dB → unchanged within USUAL, else scaled to TARGET
"""

import torch
from jaxtyping import Float
from torch import Tensor

USUAL = (-22.0, -10.0)
"""Levels, in dB of full scale, that need no change. Those of training lie in -21.4 … -16.3."""
TARGET = -18.5
LOUD = 0.9  # the quantile of the energy of 10 ms that is called the level: pauses do not count


def speech_level(wav: Float[Tensor, "samples"], rate: int) -> float:
    """The level of the loud parts, in dB of full scale; -120 for silence."""
    step = max(1, rate // 100)
    energy = torch.nn.functional.pad(wav, (0, -len(wav) % step)).unflatten(0, (-1, step)).square().mean(dim=1)
    return float(10 * torch.log10(torch.quantile(energy[:1_000_000], LOUD) + 1e-12))


def normalize_level(wav: Float[Tensor, "samples"], rate: int) -> Float[Tensor, "samples"]:
    """The recording at a usual level; one that has it already is returned as it is, and so is silence."""
    level = speech_level(wav, rate) if len(wav) else TARGET
    if USUAL[0] <= level <= USUAL[1] or level <= -119:
        return wav
    return wav * 10 ** ((TARGET - level) / 20)
