"""The audio encoder: a waveform becomes a log-mel spectrogram, and that a sequence of tokens; CTC reads characters.

    wav (batch, 16000) → log-mel (batch, 100, 128) → two convolutions (batch, 64, 25, 32) → (batch, 25, 192)

A frame of the mel spectrogram is 10 ms, an audio token 40 ms. With `CTCHead`, the encoder is a speech recogniser.

Sources: Stevens, Volkmann & Newman (1937) for the mel scale; Radford et al., Whisper (2022) for the layout; Graves et
al., Connectionist Temporal Classification (2006).
"""

import math
import warnings

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from tinyomni.config import TINY, AudioConfig
from tinyomni.errors import InputError
from tinyomni.layers import EncoderBlock, init_weights
from tinyomni.shapes import expect
from tinyomni.stability import assert_finite, full_precision

CHARS: tuple[str, ...] = (*map(chr, range(32, 127)), "\n", "\t", "\N{REPLACEMENT CHARACTER}")
"""What the recogniser can write, as 1 … 98: printable ASCII (95), newline, tab, one sign for all others; 0 is blank."""

BLANK = 0
LOG_FLOOR = 1e-5


class MelFrontend(nn.Module):
    """Waveform → log-mel spectrogram with exactly samples // hop frames.

    Frame t is centred on sample t · hop; the waveform is padded with zeros. The usual centred STFT gives one frame
    more, centred where the waveform is already over: it is left out. Magnitudes, not powers, in natural logarithms,
    never below log(1e-5).

    Without `hop`, that of the configuration: 160, the audio encoder's (10 ms, window 64 ms). `hop=1280` is the
    single-frame codec's (80 ms, window 128 ms). Without `n_fft`, that of the configuration, doubled until the hop is at
    most half of it, or three quarters of a doubled one. A window that leaves a mel filter without a single frequency
    bin is refused.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, hop: int | None = None, n_fft: int | None = None, cfg: AudioConfig = TINY.audio) -> None:
        super().__init__()
        self.cfg, self.hop = cfg, hop or cfg.hop
        self.n_fft = n_fft or window_size(self.hop, cfg.n_fft)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torchaudio warns of empty filters; here they are an error
            filters = melscale_fbanks(
                self.n_fft // 2 + 1,
                0.0,
                cfg.sample_rate / 2,
                cfg.n_mels,
                cfg.sample_rate,
                norm="slaney",
                mel_scale="slaney",
            )
        empty = int((filters.sum(dim=0) == 0).sum())
        if empty:
            raise ValueError(
                f"MelFrontend: with n_fft={self.n_fft}, {empty} of {cfg.n_mels} mel filters hold no frequency bin. "
                f"Use n_fft={cfg.n_fft} or more."
            )
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def magnitudes(self, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frequencies mel_frames"]:
        """|STFT|: how much of each frequency there is around each frame's centre."""
        wav = F.pad(wav.float(), (self.n_fft // 2, self.n_fft // 2))
        spectrum = torch.stft(wav, self.n_fft, self.hop, window=self.window.float(), center=False, return_complex=True)
        # abs() would guard against overflow, in twice the time; the root of 0 has no gradient
        return (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-20).sqrt()

    def forward(self, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples//{self.hop} n_mels"]:
        """(batch, samples) → (batch, samples // hop, 128)."""
        expect("MelFrontend", "wav", wav, "batch samples")
        frames = wav.shape[1] // self.hop
        if frames == 0:
            raise InputError(
                "MelFrontend: "
                f"expected at least one frame of {self.hop} samples ({1000 * self.hop / self.cfg.sample_rate:g} ms), "
                f"got {wav.shape[1]} samples"
            )
        with full_precision(wav):
            mel = torch.einsum("bft,fm->btm", self.magnitudes(wav)[..., :frames], self.filters.float())
            return mel.clamp(min=LOG_FLOOR).log()


def window_size(hop: int, n_fft: int) -> int:
    """The configured window where it overlaps by half; else it is doubled, until it overlaps by a quarter at least.

    Griffin-Lim needs the overlap: without it there is nothing by which phases could agree.
    """
    if hop > n_fft // 2:
        n_fft *= 2
    while hop > 3 * n_fft // 4:
        n_fft *= 2
    return n_fft


def audio_token_count(mel_frames: int) -> int:
    """⌈mel_frames / 4⌉: two convolutions of stride 2, each of which rounds up."""
    return math.ceil(mel_frames / 4)


def sinusoids(length: int, dim: int) -> Float[Tensor, "audio_tokens audio_dim"]:
    """Fixed positions: sines and cosines from fast to slow (Vaswani et al., 2017, section 3.5)."""
    inv_freq = torch.exp(-math.log(10_000.0) * torch.arange(dim // 2) / (dim // 2 - 1))
    angle = torch.arange(length)[:, None] * inv_freq
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def valid_positions(lengths: Int[Tensor, "batch"], size: int) -> Bool[Tensor, "batch size"]:
    """True up to each sample's own length in a padded batch, False at the padding."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class AudioEncoderTiny(nn.Module):
    """`aud(mel)` → (batch, audio_tokens, 192) with audio_tokens = ⌈mel_frames / 4⌉."""

    def __init__(self, cfg: AudioConfig = TINY.audio) -> None:
        super().__init__()
        self.cfg = cfg
        channels = cfg.conv_channels
        self.down = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1), nn.GELU(),
        )  # fmt: skip
        self.proj = nn.Linear(channels * math.ceil(cfg.n_mels / 4), cfg.audio_dim)
        self.blocks = nn.ModuleList(
            EncoderBlock(cfg.audio_dim, cfg.heads, cfg.intermediate_size) for _ in range(cfg.layers)
        )
        self.norm = nn.LayerNorm(cfg.audio_dim)
        init_weights(self, cfg.layers)

    def normalize(self, mel: Float[Tensor, "batch mel_frames n_mels"]) -> Float[Tensor, "batch 1 mel_frames n_mels"]:
        """The spectrogram as an image of one channel. Log-mel values lie in about -11.5 … 4: centre them."""
        return ((mel + 4) / 4)[:, None]

    def downsample(
        self, x: Float[Tensor, "batch 1 mel_frames n_mels"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch channels (mel_frames+3)//4 (n_mels+3)//4"]:
        """A quarter of the frames and of the bins, 64 channels. What lies behind a sample's end is kept at zero."""
        for layer in self.down:
            if lengths is not None and isinstance(layer, nn.Conv2d):
                x = x * valid_positions(lengths, x.shape[2])[:, None, :, None]
                lengths = (lengths + 1) // 2
            x = layer(x)
        return x

    def flatten(
        self, x: Float[Tensor, "batch channels audio_tokens bands"]
    ) -> Float[Tensor, "batch audio_tokens channels*bands"]:
        """All channels and bands of one moment as one vector: 64 × 32 = 2048 numbers."""
        return rearrange(x, "batch channels audio_tokens bands -> batch audio_tokens (channels bands)")

    def encode(
        self,
        x: Float[Tensor, "batch audio_tokens audio_dim"],
        mask: Bool[Tensor, "batch 1 1 audio_tokens"] | None = None,
    ) -> Float[Tensor, "batch audio_tokens audio_dim"]:
        """Positions, the encoder blocks and the final norm."""
        x = x + sinusoids(x.shape[1], x.shape[2]).to(x)
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)

    def forward(
        self, mel: Float[Tensor, "batch mel_frames n_mels"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch (mel_frames+3)//4 audio_dim"]:
        """(batch, mel_frames, 128) → (batch, ⌈mel_frames / 4⌉, 192).

        `lengths` gives each sample's own mel_frames in a padded batch: padding then changes no valid token, and the
        tokens behind a sample's end are zeros. Raises ShapeError, and RuntimeError for NaN or infinity.
        """
        expect(
            "AudioEncoderTiny",
            "mel",
            mel,
            "batch mel_frames n_mels",
            n_mels=self.cfg.n_mels,
            fix="MelFrontend returns frames first, then mel bands.",
        )
        if mel.shape[1] == 0:
            raise InputError("AudioEncoderTiny: expected at least one mel frame, got none")
        if lengths is None:
            x = self.encode(self.proj(self.flatten(self.downsample(self.normalize(mel)))))
        else:
            x = self.proj(self.flatten(self.downsample(self.normalize(mel), lengths)))
            valid = valid_positions((lengths + 3) // 4, x.shape[1])
            x = self.encode(x, mask=valid[:, None, None, :]) * valid[..., None]
        assert_finite("AudioEncoderTiny", embeddings=x)
        return x


class CTCHead(nn.Module):
    """Audio tokens → scores for the blank and each of the 98 characters."""

    def __init__(self, audio_dim: int = TINY.audio.audio_dim) -> None:
        super().__init__()
        self.out = nn.Linear(audio_dim, 1 + len(CHARS))

    def forward(
        self, x: Float[Tensor, "batch audio_tokens audio_dim"]
    ) -> Float[Tensor, "batch audio_tokens characters"]:
        """Log-probabilities, as `torch.nn.functional.ctc_loss` wants them (after a transpose)."""
        return self.out(x).log_softmax(dim=-1)


def char_ids(text: str) -> list[int]:
    """Characters → 1 … 98; one that is not among them becomes the last."""
    return [CHARS.index(char) + 1 if char in CHARS else len(CHARS) for char in text]


def ctc_greedy(
    log_probs: Float[Tensor, "batch audio_tokens characters"], lengths: Int[Tensor, "batch"] | None = None
) -> list[str]:
    """The likeliest character of each token, repeats merged, blanks removed. `lengths` counts valid audio tokens."""
    texts = []
    for row, best in enumerate(log_probs.argmax(dim=-1)):
        best = best[: int(lengths[row])] if lengths is not None else best
        kept = torch.unique_consecutive(best)
        texts.append("".join(CHARS[index - 1] for index in kept.tolist() if index != BLANK))
    return texts
