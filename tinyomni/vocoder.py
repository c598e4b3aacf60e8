"""The vocoder: a mel spectrogram says how loud each frequency is, not where its waves start. Griffin-Lim finds phases.

    mel (frames, 128) → magnitudes (frequencies, frames) → phases that fit → samples (frames × hop)

Sources: Griffin & Lim (1984); Perraudin, Balazs & Søndergaard (2013) for the momentum.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.audio import LOG_FLOOR, MelFrontend
from tinyomni.config import TINY, AudioConfig
from tinyomni.shapes import ShapeError
from tinyomni.stability import full_precision

Domain = Literal["log", "magnitude", "auto"]
PEAK = 0.95
SILENCE = 1e-4


def detect_domain(mel: Float[Tensor, "mel_frames n_mels"]) -> Literal["log", "magnitude"]:
    """The rule of `domain="auto"`: a magnitude is never negative, so one value below 0 means logarithms.

    A log-mel that is loud in every bin of every frame would be taken for magnitudes: who knows the domain says so.
    """
    return "log" if bool((mel < 0).any()) else "magnitude"


class GriffinLimVocoder(torch.nn.Module):
    """Mel spectrogram → sound, without anything learned.

    The defaults undo `MelFrontend(hop=1280)`, the document's own path; `hop=160` undoes the ear's spectrogram.
    """

    inverse: Tensor

    def __init__(
        self,
        hop: int = TINY.codec.hop,
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
        return (self.inverse @ mel.T).clamp(min=0)

    def griffin_lim(self, magnitudes: Float[Tensor, "frequencies columns"], length: int) -> Float[Tensor, "samples"]:
        """To sound and back until the phases agree with each other: length // hop + 1 columns → `length` samples."""
        window = self.mel.window
        generator = torch.Generator().manual_seed(0)
        phase = (torch.rand(magnitudes.shape, generator=generator) * 2 * torch.pi).to(magnitudes.device)
        angles, before = torch.polar(torch.ones_like(phase), phase), torch.zeros((), device=phase.device)
        for _ in range(self.iterations):
            sound = torch.istft(magnitudes * angles, self.n_fft, self.hop, window=window, length=length)
            rebuilt = torch.stft(sound, self.n_fft, self.hop, window=window, pad_mode="constant", return_complex=True)
            # overstep: move on in the direction of the last change
            angles = rebuilt - before * (self.momentum / (1 + self.momentum))
            angles = angles / angles.abs().clamp(min=1e-16)
            before = rebuilt
        return torch.istft(magnitudes * angles, self.n_fft, self.hop, window=window, length=length)

    def mel_to_audio(
        self,
        mel: Float[Tensor, "mel_frames n_mels"] | Float[np.ndarray, "mel_frames n_mels"],
        domain: Domain = "auto",
    ) -> Float[Tensor, "samples"] | Float[np.ndarray, "samples"]:
        """(frames, 128), array or tensor → exactly frames × hop samples, as the same kind, with a peak of 0.95.

        `domain` says what the numbers are: natural logarithms of magnitudes, magnitudes, or "auto" (`detect_domain`).
        Silence stays silence. Raises ShapeError for other axes, ValueError for NaN, infinity or negative magnitudes.
        """
        if domain not in ("log", "magnitude", "auto"):
            raise ValueError(f"GriffinLimVocoder: domain should be 'log', 'magnitude' or 'auto', got {domain!r}")
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
                f"GriffinLimVocoder: mel should be (mel_frames, n_mels={bins}) with at least one frame; got "
                f"{tuple(x.shape)}.{fix}"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"GriffinLimVocoder: mel holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite"
            )
        if (detect_domain(x) if domain == "auto" else domain) == "log":
            x = (x.clamp(max=20).exp() - LOG_FLOOR).clamp(min=0)  # e^20 is far above any sound: keep float32 finite
        elif bool((x < 0).any()):
            raise ValueError("GriffinLimVocoder: magnitudes are never negative; were these logarithms? domain='log'")
        magnitudes = self.invert_mel(x)
        # frames × hop samples have one STFT column more than frames: say the last one twice
        magnitudes = torch.cat([magnitudes, magnitudes[:, -1:]], dim=1)
        with full_precision(magnitudes):
            sound = self.griffin_lim(magnitudes, length=x.shape[0] * self.hop)
        peak = sound.abs().max()
        sound = sound * (PEAK / peak) if peak > SILENCE else sound
        return sound.cpu().numpy() if isinstance(mel, np.ndarray) else sound
