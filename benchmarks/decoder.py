"""Would a learned vocoder speak better than Griffin-Lim from the same codes? Trains a small one, and compares.

    python benchmarks/decoder.py                        one thread, half an hour; needs the extra `bench`
    python benchmarks/decoder.py --steps 20 --lines 4   does it run?

It is a network of ConvNeXt blocks at the rate of the mel frames that says the magnitude and the phase of each bin of an
STFT, whose inverse is the wave: Vocos (Siuzdak, 2023) without its discriminators, on the mel spectrograms that the
shipped codec makes of its codes. The loss compares STFTs of three resolutions (Yamamoto et al., Parallel WaveGAN, 2020,
section 2.2). Judged on lines of the test split, in the Talker's voices: STOI beside the recording, word errors of the
independent ASR judge, character errors of our own recogniser, and time. The table is in docs/studies.md.
"""

import argparse
import random
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyomni import Omni
from tinyomni.codec import SpeechCodec
from tinyomni.config import SAMPLE_RATE
from tinyomni.data import world
from tinyomni.data.tts import FIXED_PROSODY, TALKER_VOICES, SpeechCache, trim
from tinyomni.evaluation import asr_judge
from tinyomni.metrics import cer
from tinyomni.vocoder import GriffinLimVocoder, from_log

RESOLUTIONS = (256, 512, 1024)  # samples of a window
CROP = 10  # code frames of a training sample: 0.8 s


class Block(nn.Module):
    """ConvNeXt (Liu et al., 2022) in one dimension: depthwise convolution, then an MLP for each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.GELU(), nn.Linear(3 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) → the same."""
        return x + self.mlp(self.depthwise(x.transpose(1, 2)).transpose(1, 2))


class LearnedVocoder(nn.Module):
    """Log-mel → magnitudes and phases of an STFT."""

    def __init__(self, vocoder: GriffinLimVocoder, dim: int = 192, blocks: int = 5) -> None:
        super().__init__()
        self.n_fft, self.hop = vocoder.n_fft, vocoder.hop
        self.stem = nn.Conv1d(vocoder.mel.cfg.n_mels, dim, kernel_size=7, padding=3)
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(blocks)))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * (self.n_fft // 2 + 1)))
        self.register_buffer("window", vocoder.mel.window.float())

    def spectrum(self, mel: Tensor) -> Tensor:
        """(batch, frames, n_mels) → complex (batch, frequencies, frames + 1)."""
        mel = torch.cat([mel, mel[:, -1:]], dim=1)
        normal = (mel + SpeechCodec.SHIFT) / SpeechCodec.SCALE
        x = self.head(self.blocks(self.stem(normal.transpose(1, 2)).transpose(1, 2))).transpose(1, 2)
        log_magnitude, phase = x.chunk(2, dim=1)
        return torch.polar(log_magnitude.clamp(max=6).exp(), phase)

    def forward(self, mel: Tensor) -> Tensor:
        """(batch, frames, n_mels) → (batch, frames × hop)."""
        return torch.istft(self.spectrum(mel), self.n_fft, self.hop, window=self.window, length=mel.shape[1] * self.hop)


def recordings(split: str, count: int, cache: SpeechCache) -> list[tuple[str, Tensor]]:
    """Lines of the world, in the Talker's voices by turns."""
    texts = [world.draw_line(split, index) for index in range(count)]
    voices = [TALKER_VOICES[index % len(TALKER_VOICES)] for index in range(count)]
    return [(text, trim(cache.utter(text, voice, *FIXED_PROSODY))) for text, voice in zip(texts, voices, strict=True)]


@torch.no_grad()
def as_coded(codec: SpeechCodec, wave: Tensor) -> tuple[Tensor, Tensor]:
    """The mel spectrogram that the codec makes of its codes for a recording, and the recording in as many samples."""
    mel = codec.to_mel(codec.rvq.decode(codec.encode(wave[None])))[0]
    return mel, F.pad(wave, (0, len(mel) * codec.mel.hop - len(wave)))


def spectral_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Spectral convergence and the distance of log-magnitudes, the mean of three resolutions."""
    total = torch.zeros(())
    for n_fft in RESOLUTIONS:
        window = torch.hann_window(n_fft)
        one, two = (torch.stft(each, n_fft, n_fft // 4, window=window, return_complex=True).abs().clamp(min=1e-5)
                    for each in (found, wanted))  # fmt: skip
        total = total + (two - one).norm() / two.norm() + (two.log() - one.log()).abs().mean()
    return total / len(RESOLUTIONS)


def train(codec: SpeechCodec, data: list[tuple[Tensor, Tensor]], steps: int, batch: int) -> LearnedVocoder:
    """AdamW, a cosine from 1e-3 to 0."""
    torch.manual_seed(0)
    model, rng, frames = LearnedVocoder(codec.vocoder), random.Random(0), CROP * codec.hop // codec.mel.hop
    long = [(mel, wave) for mel, wave in data if len(mel) >= frames]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        mels, waves = [], []
        for mel, wave in rng.choices(long, k=batch):
            start = rng.randrange(len(mel) - frames + 1)
            mels.append(mel[start : start + frames])
            waves.append(wave[start * codec.mel.hop : (start + frames) * codec.mel.hop])
        loss = spectral_loss(model(torch.stack(mels)), torch.stack(waves))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def griffin_lim(vocoder: GriffinLimVocoder, magnitudes: Tensor, length: int) -> Tensor:
    """A wave with a peak of 0.95, as `mel_to_audio` gives."""
    wave = vocoder.griffin_lim(magnitudes, length)
    return wave * (0.95 / wave.abs().max().clamp(min=1e-4))


def decoders(codec: SpeechCodec, model: LearnedVocoder) -> dict[str, Callable[[Tensor], Tensor]]:
    """How a mel spectrogram becomes a wave."""

    def learned(mel: Tensor) -> Tensor:
        return model(mel[None])[0]

    def learned_magnitudes(mel: Tensor) -> Tensor:
        return griffin_lim(codec.vocoder, model.spectrum(mel[None])[0].abs(), len(mel) * codec.mel.hop)

    def both(mel: Tensor) -> Tensor:
        magnitudes = codec.vocoder.invert_mel(from_log(mel))
        mixed = (torch.cat([magnitudes, magnitudes[:, -1:]], dim=1) * model.spectrum(mel[None])[0].abs()).sqrt()
        return griffin_lim(codec.vocoder, mixed, len(mel) * codec.mel.hop)

    return {
        "Griffin-Lim, as shipped": lambda mel: codec.vocoder.mel_to_audio(mel, domain="log"),
        "learned magnitudes and phases": learned,
        "learned magnitudes, Griffin-Lim": learned_magnitudes,
        "geometric mean of both magnitudes, Griffin-Lim": both,
    }


@torch.no_grad()
def main() -> None:
    """Train, and print the table."""
    from pystoi import stoi

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--train", type=int, default=1500, help="lines to train on")
    parser.add_argument("--lines", type=int, default=100, help="lines to judge")
    parser.add_argument("--cache", help="folder for the recordings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    omni, cache = Omni.from_pretrained(), SpeechCache(args.cache)
    codec = omni.codec
    data = [as_coded(codec, wave) for _, wave in recordings("train", args.train, cache)]
    with torch.enable_grad():
        model = train(codec, data, args.steps, args.batch)
    print(f"{sum(each.numel() for each in model.parameters()) / 1e6:.1f} M parameters\n")
    lines = recordings("test", args.lines, cache)
    texts = [text for text, _ in lines]
    coded = [as_coded(codec, wave) for _, wave in lines]
    seconds = sum(len(wave) for _, wave in coded) / SAMPLE_RATE
    print("| decoder | STOI | word errors, independent ASR | character errors, own ASR | RTF |\n|---|--:|--:|--:|--:|")

    def row(name: str, waves: list[Tensor], rtf: str) -> None:
        heard = ["".join(omni.transcribe((wave, SAMPLE_RATE))) for wave in waves]
        pairs = zip(coded, waves, strict=True)
        quality = sum(stoi(true.numpy(), wave.numpy(), SAMPLE_RATE) for (_, true), wave in pairs)
        words, letters = asr_judge.wer(waves, texts), cer(heard, texts)
        print(f"| {name} | {quality / len(waves):.3f} | {words.rate:.1%} | {letters.rate:.1%} | {rtf} |", flush=True)

    row("the recording itself", [wave for _, wave in coded], "")
    row("Griffin-Lim of the recording's own mel", [codec.vocoder.mel_to_audio(codec.mel(wave[None])[0], domain="log")
                                                   for _, wave in coded], "")  # fmt: skip
    for name, decode in decoders(codec, model).items():
        start = time.thread_time()
        waves = [decode(mel) for mel, _ in coded]
        row(name, waves, f"{(time.thread_time() - start) / seconds:.3f}")


if __name__ == "__main__":
    main()
