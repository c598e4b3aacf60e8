"""The vocoder: a mel spectrogram has magnitudes, but no phases. Griffin-Lim finds phases that fit.

    mel (frames, 128) → magnitudes (frequencies, frames) → with phases → samples (frames × hop)

Sources: Griffin & Lim (1984); Perraudin, Balazs & Søndergaard (2013) for the momentum.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.audio import LOG_FLOOR, MelFrontend
from tinyomni.config import FRAME_HOP, TINY, AudioConfig
from tinyomni.errors import InputError
from tinyomni.shapes import ShapeError
from tinyomni.stability import full_precision

Domain = Literal["log", "magnitude", "auto"]
PEAK = 0.95
SILENCE = 1e-4


def detect_domain(mel: Float[Tensor, "mel_frames n_mels"]) -> Literal["log", "magnitude"]:
    """The rule of `domain="auto"`: a magnitude is never negative, so one value below 0 means logarithms.

    A log-mel above 0 in every bin of every frame would be taken for magnitudes: pass `domain` where you know it.
    """
    return "log" if bool((mel < 0).any()) else "magnitude"


class GriffinLimVocoder(torch.nn.Module):
    """Mel spectrogram → audio, without anything learned.

    The defaults invert `MelFrontend(hop=1280)`, as the reference specification has it; `hop=160` inverts the audio
    encoder's spectrogram.
    """

    inverse: Tensor

    def __init__(
        self,
        hop: int = FRAME_HOP,
        n_fft: int | None = None,
        iterations: int = 32,
        momentum: float = 0.99,
        cfg: AudioConfig = TINY.audio,
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"GriffinLimVocoder: momentum must lie in [0, 1), got {momentum}")
        self.mel = MelFrontend(hop, n_fft, cfg)
        self.hop, self.n_fft, self.iterations, self.momentum = hop, self.mel.n_fft, iterations, momentum
        self.register_buffer("inverse", torch.linalg.pinv(self.mel.filters.T), persistent=False)

    def invert_mel(self, mel: Float[Tensor, "mel_frames n_mels"]) -> Float[Tensor, "frequencies mel_frames"]:
        """Mel magnitudes → magnitudes of all frequencies, by the pseudo-inverse of the filters; never below 0."""
        return (self.inverse.float() @ mel.T).clamp(min=0)

    def griffin_lim(self, magnitudes: Float[Tensor, "frequencies columns"], length: int) -> Float[Tensor, "samples"]:
        """STFT and inverse in turns until the phases are consistent: length // hop + 1 columns → `length` samples."""
        window = self.mel.window.float()
        generator = torch.Generator().manual_seed(0)
        phase = (torch.rand(magnitudes.shape, generator=generator) * 2 * torch.pi).to(magnitudes.device)
        angles, previous = torch.polar(torch.ones_like(phase), phase), torch.zeros((), device=phase.device)
        for _ in range(self.iterations):
            wav = torch.istft(magnitudes * angles, self.n_fft, self.hop, window=window, length=length)
            rebuilt = torch.stft(wav, self.n_fft, self.hop, window=window, pad_mode="constant", return_complex=True)
            # momentum: overshoot in the direction of the last change
            angles = rebuilt - previous * (self.momentum / (1 + self.momentum))
            angles = angles / angles.abs().clamp(min=1e-16)
            previous = rebuilt
        return torch.istft(magnitudes * angles, self.n_fft, self.hop, window=window, length=length)

    def mel_to_audio(
        self,
        mel: Float[Tensor, "mel_frames n_mels"] | Float[np.ndarray, "mel_frames n_mels"],
        domain: Domain = "auto",
    ) -> Float[Tensor, "samples"] | Float[np.ndarray, "samples"]:
        """(frames, 128), array or tensor → exactly frames × hop samples, of the same type, with a peak of 0.95.

        `domain` says what the numbers are: natural logarithms of magnitudes, magnitudes, or "auto" (`detect_domain`).
        Silence stays silence. Raises ShapeError for other axes, ValueError for NaN, infinity or negative magnitudes.
        """
        if domain not in ("log", "magnitude", "auto"):
            raise ValueError(f"GriffinLimVocoder: domain must be 'log', 'magnitude' or 'auto', got {domain!r}")
        x = torch.as_tensor(mel, dtype=torch.float32, device=self.inverse.device).detach()
        bins = self.mel.cfg.n_mels
        if x.ndim != 2 or x.shape[1] != bins or x.shape[0] == 0:
            fix = (
                " Take one sample of the batch: mel[0]."
                if x.ndim == 3
                else " Are the axes swapped? mel.T"
                if x.ndim == 2 and x.shape[0] == bins
                else ""
            )
            raise ShapeError(
                f"GriffinLimVocoder: expected mel (mel_frames, n_mels={bins}) with at least one frame, "
                f"got {tuple(x.shape)}.{fix}"
            )
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"GriffinLimVocoder: mel holds {int((~torch.isfinite(x)).sum())} NaN or infinite values")
        if (detect_domain(x) if domain == "auto" else domain) == "log":
            x = (x.clamp(max=20).exp() - LOG_FLOOR).clamp(min=0)  # e^20 is far above any audio: keep float32 finite
        elif bool((x < 0).any()):
            raise InputError(
                "GriffinLimVocoder: expected magnitudes of at least 0, got negative values. Use domain='log'?"
            )
        magnitudes = self.invert_mel(x)
        # frames × hop samples have one STFT column more than frames: repeat the last one
        magnitudes = torch.cat([magnitudes, magnitudes[:, -1:]], dim=1)
        with full_precision(magnitudes):
            wav = self.griffin_lim(magnitudes, length=x.shape[0] * self.hop)
        peak = wav.abs().max()
        wav = wav * (PEAK / peak) if peak > SILENCE else wav
        return wav.cpu().numpy() if isinstance(mel, np.ndarray) else wav
