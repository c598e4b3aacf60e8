"""The ear: a waveform becomes a picture of frequencies over time, and that a sequence of tokens.

    wav (batch, 16000) → log-mel (batch, 100, 128) → two convolutions (batch, 64, 25, 32) → (batch, 25, 192)

A frame of the mel spectrogram is 10 ms, an audio token 40 ms. `CTCHead` reads the tokens as characters.

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
from tinyomni.shapes import expect
from tinyomni.layers import EncoderBlock, init_weights
from tinyomni.stability import assert_finite, full_precision

CHARS: tuple[str, ...] = (*map(chr, range(32, 127)), "\n", "\t", "\N{REPLACEMENT CHARACTER}")
"""What the ear can write, as 1 … 98: printable ASCII (95), newline, tab, one sign for all others. 0 is the blank."""

BLANK = 0
LOG_FLOOR = 1e-5


class MelFrontend(nn.Module):
    """Waveform → log-mel spectrogram with exactly samples // hop frames.

    Frame t is centred on sample t · hop; past the ends of the sound there is silence. The usual centred STFT gives one
    frame more, centred where the sound is already over: it is left out. Magnitudes, not powers, in natural logarithms,
    never below log(1e-5).

    `hop=160` is the ear's (10 ms, window 64 ms); `hop=1280` is the plain codec's (80 ms, window 128 ms). A window that
    is too short leaves some mel filters without a single frequency bin, so that is refused.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, hop: int = TINY.audio.hop, n_fft: int | None = None, cfg: AudioConfig = TINY.audio) -> None:
        super().__init__()
        self.hop, self.cfg = hop, cfg
        self.n_fft = n_fft or (cfg.n_fft if hop <= cfg.n_fft // 2 else 2 * cfg.n_fft)
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
                "Use n_fft=1024 or more."
            )
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def magnitudes(self, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frequencies mel_frames"]:
        """|STFT|: how much of each frequency there is around each frame's centre."""
        wav = F.pad(wav.float(), (self.n_fft // 2, self.n_fft // 2))
        spectrum = torch.stft(wav, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
        return spectrum.abs()

    def forward(self, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples//{self.hop} n_mels"]:
        """(batch, samples) → (batch, samples // hop, 128)."""
        expect("MelFrontend", "wav", wav, "batch samples")
        frames = wav.shape[1] // self.hop
        if frames == 0:
            raise ValueError(
                f"MelFrontend: a recording needs at least one frame of {self.hop} samples "
                f"({1000 * self.hop / self.cfg.sample_rate:g} ms), got {wav.shape[1]} samples"
            )
        with full_precision(wav):
            mel = torch.einsum("bft,fm->btm", self.magnitudes(wav)[..., :frames], self.filters)
            return mel.clamp(min=LOG_FLOOR).log()


def audio_token_count(mel_frames: int) -> int:
    """⌈mel_frames / 4⌉: two convolutions of stride 2, each of which rounds up."""
    return math.ceil(mel_frames / 4)


def sinusoids(length: int, features: int) -> Float[Tensor, "audio_tokens audio_dim"]:
    """Fixed positions: sines and cosines from fast to slow (Vaswani et al., 2017, section 3.5)."""
    inv_freq = torch.exp(-math.log(10_000.0) * torch.arange(features // 2) / (features // 2 - 1))
    angle = torch.arange(length)[:, None] * inv_freq
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def valid_positions(lengths: Int[Tensor, "batch"], size: int) -> Bool[Tensor, "batch size"]:
    """True where a sample of a padded batch really has something."""
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
        self.proj = nn.Linear(channels * cfg.n_mels // 4, cfg.audio_dim)
        self.blocks = nn.ModuleList(EncoderBlock(cfg.audio_dim, cfg.heads, cfg.intermediate_size) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.audio_dim)
        init_weights(self, cfg.layers)

    def picture(self, mel: Float[Tensor, "batch mel_frames n_mels"]) -> Float[Tensor, "batch 1 mel_frames n_mels"]:
        """The spectrogram as a picture of one channel. Log-mel values lie in about -11.5 … 4: centre them."""
        return ((mel + 4) / 4)[:, None]

    def downsample(
        self, x: Float[Tensor, "batch 1 mel_frames n_mels"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch channels (mel_frames+3)//4 n_mels//4"]:
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
        """All that is known of one moment as one vector: 64 channels × 32 bands = 2048 numbers."""
        return rearrange(x, "batch channels audio_tokens bands -> batch audio_tokens (channels bands)")

    def encode(
        self,
        x: Float[Tensor, "batch audio_tokens audio_dim"],
        mask: Bool[Tensor, "batch 1 1 audio_tokens"] | None = None,
    ) -> Float[Tensor, "batch audio_tokens audio_dim"]:
        """Positions, the blocks and the last norm."""
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
            fix="MelFrontend gives frames first, then the 128 bins.",
        )
        if mel.shape[1] == 0:
            raise ValueError("AudioEncoderTiny: at least one mel frame is needed, got none")
        if lengths is None:
            x = self.encode(self.proj(self.flatten(self.downsample(self.picture(mel)))))
        else:
            x = self.proj(self.flatten(self.downsample(self.picture(mel), lengths)))
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
    """The likeliest character at each token; repeats become one, blanks go. `lengths` counts valid audio tokens."""
    texts = []
    for row, best in enumerate(log_probs.argmax(dim=-1)):
        best = best[: int(lengths[row])] if lengths is not None else best
        kept = torch.unique_consecutive(best)
        texts.append("".join(CHARS[index - 1] for index in kept.tolist() if index != BLANK))
    return texts
