"""The vocoder: a mel spectrogram has magnitudes, but no phases. Griffin-Lim finds phases that fit.

    mel (frames, 128) → magnitudes (frequencies, frames) → with phases → samples (frames × hop)

Sources: Griffin & Lim (1984); Perraudin, Balazs & Søndergaard (2013) for the momentum; Zhu, Beauregard & Wyse (2007),
Real-Time Signal Estimation from Modified Short-Time Fourier Transform Magnitude Spectra, for the streaming.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinyomni.audio import LOG_FLOOR, MelFrontend
from tinyomni.config import FRAME_HOP, TINY, AudioConfig
from tinyomni.errors import InputError
from tinyomni.shapes import ShapeError
from tinyomni.stability import full_precision

Domain = Literal["log", "magnitude", "auto"]
PEAK = 0.95
GAIN = 1.7  # of streamed speech, whose peak is not known yet: that of the Talker's is 0.25 … 0.55
SILENCE = 1e-4


def detect_domain(mel: Float[Tensor, "mel_frames n_mels"]) -> Literal["log", "magnitude"]:
    """The rule of `domain="auto"`: a magnitude is never negative, so one value below 0 means logarithms.

    A log-mel above 0 in every bin of every frame would be taken for magnitudes: pass `domain` where you know it.
    """
    return "log" if bool((mel < 0).any()) else "magnitude"


def from_log(mel: Float[Tensor, "*mel"]) -> Float[Tensor, "*mel"]:
    """Log-mel → magnitudes."""
    return (mel.clamp(max=20).exp() - LOG_FLOOR).clamp(min=0)  # e^20 is far above any audio: keep float32 finite


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
            x = from_log(x)
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


class StreamingVocoder:
    """Griffin-Lim for speech that is still being written: log-mel frames in, as they come, and samples out.

    Samples that were given out stay. Behind them the phases are found as in `griffin_lim`, on the columns that reach
    beyond them; `lookahead` frames are waited for, since a column's phase depends on those after it too. Each column is
    so estimated about three times over: 16 iterations are nearly as good as twice as many. As the peak is not known
    before the end, the level is that of a fixed gain, and what would clip is compressed.
    """

    def __init__(
        self, vocoder: GriffinLimVocoder, lookahead: int = 8, gain: float = GAIN, iterations: int = 16
    ) -> None:
        self.vocoder, self.lookahead, self.gain, self.iterations = vocoder, lookahead, gain, iterations
        device = vocoder.inverse.device
        self.magnitudes = torch.zeros(vocoder.n_fft // 2 + 1, 0, device=device)  # of column 0, 1, …
        self.wave = torch.zeros(0, device=device)  # given out, and behind it the estimate of what follows
        self.done = 0  # samples given out
        self.generator = torch.Generator().manual_seed(0)

    def stream(self, mels: Iterable[Float[Tensor, "mel_frames n_mels"]]) -> Iterator[Float[Tensor, "samples"]]:
        """Log-mel frames, some at a time → samples, as soon as they are known."""
        for mel in mels:
            if len(new := self.push(mel)):
                yield new
        if len(rest := self.finish()):
            yield rest

    @torch.no_grad()
    def push(self, mel: Float[Tensor, "mel_frames n_mels"]) -> Float[Tensor, "samples"]:
        """Some more log-mel frames → the samples that are now known: hop × the frames, but for the lookahead."""
        new = self.vocoder.invert_mel(from_log(mel.float().to(self.wave.device)))
        self.magnitudes = torch.cat([self.magnitudes, new], dim=1)
        return self.give((self.magnitudes.shape[1] - self.lookahead) * self.vocoder.hop)

    @torch.no_grad()
    def finish(self) -> Float[Tensor, "samples"]:
        """The rest."""
        length = self.magnitudes.shape[1] * self.vocoder.hop
        if length == 0:
            return self.wave
        self.magnitudes = torch.cat([self.magnitudes, self.magnitudes[:, -1:]], dim=1)  # as in `mel_to_audio`
        return self.give(length)

    def give(self, end: int) -> Float[Tensor, "samples"]:
        """The samples up to `end` that were not given out yet."""
        if end <= self.done:
            return self.wave[:0]
        with full_precision(self.magnitudes):
            self.estimate()
        start, self.done = self.done, end
        return soft_clip(self.wave[start:end] * self.gain)

    def estimate(self) -> None:
        """Griffin-Lim on all columns that reach beyond what was given out; only what lies behind it changes.

        Sample 0 of `padded` is half a window before that of `wave`: column 0 has its middle at sample 0.
        """
        n_fft, hop, window = self.vocoder.n_fft, self.vocoder.hop, self.vocoder.mel.window.float()
        columns = self.magnitudes.shape[1]
        first = max(0, (self.done - n_fft // 2) // hop + 1)
        magnitudes = self.magnitudes[:, first:]
        start, length = first * hop, (columns - 1 - first) * hop + n_fft  # in `padded`
        padded = F.pad(self.wave, (n_fft // 2, max(0, columns * hop + n_fft - len(self.wave))))[start : start + length]
        given = max(0, self.done + n_fft // 2 - start)
        known = padded[:given].clone()

        overlap = F.fold(
            window.square()[None, :, None].expand(1, n_fft, columns - first), (1, length), (1, n_fft), stride=(1, hop)
        ).flatten()
        # columns without an estimate start with any phase, the others with that of the estimate
        spectrum = torch.fft.rfft(padded.unfold(0, n_fft, hop) * window).T
        phase = torch.rand(magnitudes.shape, generator=self.generator).to(magnitudes.device) * 2 * torch.pi
        random = torch.polar(torch.ones_like(phase), phase)
        angles = torch.where(spectrum.abs() > 1e-6 * magnitudes.max(), spectrum, random)
        angles, before = angles / angles.abs().clamp(min=1e-16), torch.zeros((), device=phase.device)
        for _ in range(self.iterations):
            frames = torch.fft.irfft((magnitudes * angles).T, n_fft) * window
            padded = F.fold(frames.T[None], (1, length), (1, n_fft), stride=(1, hop)).flatten()
            padded = padded / overlap.clamp(min=0.1)
            padded[:given] = known
            rebuilt = torch.fft.rfft(padded.unfold(0, n_fft, hop) * window).T
            momentum = self.vocoder.momentum / (1 + self.vocoder.momentum)
            angles = rebuilt - before * momentum
            angles, before = angles / angles.abs().clamp(min=1e-16), rebuilt
        estimate = padded[given:]
        self.wave = torch.cat([self.wave[: self.done], estimate])


def soft_clip(wave: Float[Tensor, "samples"], knee: float = 0.8) -> Float[Tensor, "samples"]:
    """Unchanged up to the knee; above it, ever less, and never more than 1."""
    over = (wave.abs() - knee).clamp(min=0)
    return wave.clamp(-knee, knee) + wave.sign() * (1 - knee) * torch.tanh(over / (1 - knee))
