"""The codec: 80 ms of sound become two whole numbers between 0 and 127, and sound again.

    wav (batch, samples) → pack (batch, frames, 128) → RVQ codes (batch, frames, 2) → (batch, frames, 128) → wav

Residual vector quantisation names the nearest entry of a first codebook, then the nearest entry of a second one to what
the first left over. Two codebooks of 128 entries tell 128 × 128 = 16,384 vectors apart.

Source: Zeghidour et al., SoundStream (2021), section III-C.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.audio import MelFrontend, valid_positions
from tinyomni.config import TINY, CodecConfig
from tinyomni.shapes import ShapeError, describe, expect
from tinyomni.vocoder import GriffinLimVocoder


class RVQ(nn.Module):
    """`encode`: (…, 128) → (…, 2); `decode`: (…, 2) → (…, 128). Any leading axes."""

    def __init__(self, cfg: CodecConfig = TINY.codec) -> None:
        super().__init__()
        self.cfg = cfg
        self.in_proj = nn.Linear(cfg.codec_dim, cfg.code_dim)
        self.codebooks = nn.Parameter(torch.randn(cfg.codebooks, cfg.codebook_size, cfg.code_dim))
        self.out_proj = nn.Linear(cfg.code_dim, cfg.codec_dim)

    def encode(self, x: Float[Tensor, "*batch codec_dim"]) -> Int[Tensor, "*batch codebooks"]:
        """The index of the nearest entry in each codebook, each looking at what those before it left over."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim == 0 or x.shape[-1] != self.cfg.codec_dim:
            came = describe(x) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"RVQ.encode: x should be (…, codec_dim={self.cfg.codec_dim}) floats; got {came}")
        rest = self.in_proj(x)
        codes = []
        for codebook in self.codebooks:
            nearest = (
                torch.cdist(rest.reshape(1, -1, self.cfg.code_dim), codebook[None])[0]
                .argmin(dim=-1)
                .reshape(rest.shape[:-1])
            )
            codes.append(nearest)
            rest = rest - codebook[nearest]
        return torch.stack(codes, dim=-1)

    def lookup(self, codes: Int[Tensor, "*batch codebooks"]) -> Float[Tensor, "*batch code_dim"]:
        """The sum of the entries that the codes name."""
        if (
            not isinstance(codes, Tensor)
            or codes.is_floating_point()
            or codes.ndim == 0
            or codes.shape[-1] != self.cfg.codebooks
        ):
            came = describe(codes) if isinstance(codes, Tensor) else type(codes).__name__
            raise ShapeError(
                f"RVQ.decode: codes should be (…, codebooks={self.cfg.codebooks}) whole numbers; got {came}"
            )
        try:
            return torch.stack([book[codes[..., i]] for i, book in enumerate(self.codebooks)]).sum(dim=0)
        except IndexError as error:
            raise IndexError(
                f"RVQ.decode: codes must lie in 0 … {self.cfg.codebook_size - 1}, got {int(codes.min())} … "
                f"{int(codes.max())}"
            ) from error

    def decode(self, codes: Int[Tensor, "*batch codebooks"]) -> Float[Tensor, "*batch codec_dim"]:
        """Look up, add, project: the vector that the codes stand for."""
        return self.out_proj(self.lookup(codes))


def dct_basis(count: int, length: int) -> Float[Tensor, "count length"]:
    """The first `count` rows of the orthonormal DCT-II of `length` points: from flat to wavy."""
    place = (torch.arange(length) + 0.5) * math.pi / length
    rows = torch.cos(torch.arange(count)[:, None] * place) * (2 / length) ** 0.5
    rows[0] /= 2**0.5
    return rows


class PostNet(nn.Module):
    """What the frames before and after tell of each frame: a correction to what is made of it alone.

    Two codes cannot say where in its 80 ms a sound begins, but the frames around them nearly do. The correction starts
    as zero.
    """

    def __init__(self, codec_dim: int, features: int, hidden: int = 256) -> None:
        super().__init__()
        self.look = nn.Conv1d(codec_dim, hidden, kernel_size=5, padding=2)
        self.again = nn.Conv1d(hidden, hidden, kernel_size=3, padding=1)
        self.out = nn.Linear(hidden, features)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Float[Tensor, "batch frames codec_dim"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch frames features"]:
        """(batch, frames, 128) → (batch, frames, 1024); three frames to each side are seen.

        `lengths` gives each sample's own frames in a padded batch, whose padding is zeros.
        """
        x = F.gelu(self.look(x.transpose(1, 2)))
        if lengths is not None:  # the first layer has written something behind the ends
            x = x * valid_positions(lengths, x.shape[2])[:, None]
        x = x + F.gelu(self.again(x))
        return self.out(x.transpose(1, 2))


class SpeechCodec(nn.Module):
    """Sound ↔ codes, one frame of two codes for each 80 ms.

    The 128 numbers of a frame describe the whole 80 ms: 8 log-mel frames of 128 bins through a linear map. On the way
    back, the same with a correction by the neighbouring frames, then Griffin-Lim at hop 160. The map starts as the
    lowest 4 × 32 cosines over time and frequency, and is learned.

    `single_frame=True` is the document's own path: one log-mel frame of hop 1280 for each 80 ms.
    """

    SHIFT, SCALE = 6.0, 4.0  # brings log-mel values, about -11.5 … 4, near 0 with a spread of about 1

    def __init__(self, cfg: CodecConfig = TINY.codec, single_frame: bool = False) -> None:
        super().__init__()
        self.cfg, self.single_frame = cfg, single_frame
        self.rvq = RVQ(cfg)
        self.mel = MelFrontend(cfg.hop if single_frame else TINY.audio.hop)
        self.vocoder = GriffinLimVocoder(self.mel.hop)
        self.mel_per_frame = cfg.hop // self.mel.hop
        if not single_frame:
            basis = torch.kron(dct_basis(4, self.mel_per_frame), dct_basis(cfg.codec_dim // 4, TINY.audio.n_mels))
            self.down = nn.Linear(basis.shape[1], cfg.codec_dim)
            self.up = nn.Linear(cfg.codec_dim, basis.shape[1])
            self.neighbours = PostNet(cfg.codec_dim, basis.shape[1])
            with torch.no_grad():
                self.down.weight.copy_(basis)
                self.up.weight.copy_(basis.T)
                self.down.bias.zero_()
                self.up.bias.zero_()

    def mel_blocks(self, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch (samples+1279)//1280 features"]:
        """(batch, samples) → (batch, ⌈samples / 1280⌉, 1024), 8 mel frames in each; the last is filled up with silence.

        The plain codec has one mel frame in each, 128 numbers, as they are.
        """
        expect("SpeechCodec", "wav", wav, "batch samples")
        if wav.shape[1] == 0:
            raise ValueError("SpeechCodec: the recording holds no samples")
        mel = self.mel(F.pad(wav, (0, -wav.shape[1] % self.cfg.hop)))
        if self.single_frame:
            return mel
        blocks = rearrange(mel, "batch (frames slots) n_mels -> batch frames (slots n_mels)", slots=self.mel_per_frame)
        return (blocks + self.SHIFT) / self.SCALE

    def encode_latents(self, wav: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch (samples+1279)//1280 codec_dim"]:
        """(batch, samples) → (batch, ⌈samples / 1280⌉, 128)."""
        frames = self.mel_blocks(wav)
        return frames if self.single_frame else self.down(frames)

    def decode_frames(
        self, x: Float[Tensor, "batch frames codec_dim"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch frames features"]:
        """The way back: what `mel_blocks` gave, as far as the 128 numbers tell. `lengths` as for the neighbours."""
        return x if self.single_frame else self.up(x) + self.neighbours(x, lengths)

    def to_mel(self, x: Float[Tensor, "batch frames codec_dim"]) -> Float[Tensor, "batch mel_frames n_mels"]:
        """The log-mel spectrogram that the frames describe."""
        if self.single_frame:
            return x
        blocks = self.decode_frames(x) * self.SCALE - self.SHIFT
        return rearrange(blocks, "batch frames (slots n_mels) -> batch (frames slots) n_mels", slots=self.mel_per_frame)

    def decode_latents(self, x: Float[Tensor, "batch frames codec_dim"]) -> Float[Tensor, "batch frames*1280"]:
        """(batch, frames, 128) → (batch, frames × 1280), each with a peak of 0.95."""
        expect("SpeechCodec.decode_latents", "x", x, "batch frames codec_dim", codec_dim=self.cfg.codec_dim)
        return torch.stack([self.vocoder.mel_to_audio(mel, domain="log") for mel in self.to_mel(x)])

    def encode(self, wav: Float[Tensor, "batch samples"]) -> Int[Tensor, "batch (samples+1279)//1280 codebooks"]:
        """Sound → codes."""
        return self.rvq.encode(self.encode_latents(wav))

    def decode(self, codes: Int[Tensor, "batch frames codebooks"]) -> Float[Tensor, "batch frames*1280"]:
        """Codes → sound."""
        return self.decode_latents(self.rvq.decode(codes))
