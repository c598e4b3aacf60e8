"""Log-mel spectrogram beside torchaudio, Griffin-Lim beside librosa"""

import torch
from harness import Case

from tinyomni.audio import MelFrontend
from tinyomni.config import TINY
from tinyomni.vocoder import GriffinLimVocoder


def cases(device: str) -> list[Case]:
    """3 s of noise. Griffin-Lim has the same number of iterations in both."""
    import librosa
    import torchaudio

    cfg, wave = TINY.audio, torch.randn(1, 48_000, device=device)
    mel, vocoder = MelFrontend().to(device), GriffinLimVocoder().to(device)
    theirs = torchaudio.transforms.MelSpectrogram(16_000, cfg.n_fft, hop_length=cfg.hop, n_mels=cfg.n_mels).to(device)
    size = {"n_fft": vocoder.n_fft, "hop_length": vocoder.hop}
    window = torch.hann_window(vocoder.n_fft, device=device)
    spectrum = torch.stft(wave[0], **size, window=window, return_complex=True).abs()
    numbers = spectrum.cpu().numpy()

    def ours() -> None:
        with torch.inference_mode():
            vocoder.griffin_lim(spectrum, wave.shape[1])

    def reference() -> None:
        librosa.griffinlim(numbers, n_iter=vocoder.iterations, **size, random_state=0)

    return [
        Case("log-mel, 3 s", lambda: mel(wave), lambda: theirs(wave).clamp(min=1e-5).log(), "torchaudio", 0.9),
        Case("Griffin-Lim, 3 s", ours, reference, "librosa", 0.7),
    ]
