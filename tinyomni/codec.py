"""The speech codec: 80 ms of audio become two integers between 0 and 127, and audio again.

    wav (batch, samples) → latents (batch, frames, 128) → RVQ codes (batch, frames, 2) → latents → wav

Residual vector quantization names the nearest entry of a first codebook, then the nearest entry of a second one to what
the first left over. Two codebooks of 128 entries tell 128 × 128 = 16,384 vectors apart.

Source: Zeghidour et al., SoundStream (2021), section III-C.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.audio import MelFrontend, valid_positions
from tinyomni.config import TINY, AudioConfig, CodecConfig, dct_size
from tinyomni.errors import InputError
from tinyomni.shapes import ShapeError, describe, expect
from tinyomni.vocoder import GriffinLimVocoder, StreamingVocoder

BLOCK = 2048  # vectors that are quantized at once: what is computed of them stays in a processor's cache


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
            got = describe(x) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"RVQ.encode: expected x as floats (…, codec_dim={self.cfg.codec_dim}), got {got}")
        rows = self.in_proj(x).float().reshape(-1, self.cfg.code_dim)
        with torch.autocast(x.device.type, enabled=False):  # half precision would choose other entries
            codes = torch.cat([self._nearest(block) for block in rows.split(BLOCK)])
        return codes.reshape(*x.shape[:-1], self.cfg.codebooks)

    def _nearest(self, residual: Float[Tensor, "rows code_dim"]) -> Int[Tensor, "rows codebooks"]:
        """`encode` behind the projection.

        |r − c|² = |r|² − 2 (r·c − |c|²/2), and |r|² is the same for all entries: the nearest has the largest bracket.
        """
        codebooks = self.codebooks.float()
        codes: list[Tensor] = []
        for number, codebook in enumerate(codebooks):
            if codes:
                residual = residual - codebooks[number - 1][codes[-1]]
            scores = F.linear(residual, codebook, codebook.square().sum(dim=-1) / -2)
            codes.append(scores.max(dim=-1).indices)  # faster than argmax
        return torch.stack(codes, dim=-1)

    def lookup(self, codes: Int[Tensor, "*batch codebooks"]) -> Float[Tensor, "*batch code_dim"]:
        """The quantized vector: the sum of the entries that the codes name."""
        if (
            not isinstance(codes, Tensor)
            or codes.is_floating_point()
            or codes.ndim == 0
            or codes.shape[-1] != self.cfg.codebooks
        ):
            got = describe(codes) if isinstance(codes, Tensor) else type(codes).__name__
            raise ShapeError(f"RVQ.decode: expected codes as integers (…, codebooks={self.cfg.codebooks}), got {got}")
        try:
            return torch.stack([book[codes[..., i]] for i, book in enumerate(self.codebooks)]).sum(dim=0)
        except IndexError as error:
            raise IndexError(
                f"RVQ.decode: expected codes in 0 … {self.cfg.codebook_size - 1}, "
                f"got {int(codes.min())} … {int(codes.max())}"
            ) from error

    def decode(self, codes: Int[Tensor, "*batch codebooks"]) -> Float[Tensor, "*batch codec_dim"]:
        """Look up, add, project: the vector that the codes stand for."""
        return self.out_proj(self.lookup(codes))


def dct_basis(count: int, length: int) -> Float[Tensor, "count length"]:
    """The first `count` rows of the orthonormal DCT-II of `length` points, lowest frequency first."""
    angle = (torch.arange(length) + 0.5) * math.pi / length
    rows = torch.cos(torch.arange(count)[:, None] * angle) * (2 / length) ** 0.5
    rows[0] /= 2**0.5
    return rows


class PostNet(nn.Module):
    """A correction to each decoded frame from the frames around it, zero at initialization.

    Two codes cannot say where in its 80 ms a sound begins, but the neighbouring frames nearly do. (Shen et al.,
    Tacotron 2 (2018), correct mel frames by a convolutional post-net, too.)
    """

    REACH = 3  # frames to each side

    def __init__(self, codec_dim: int, block_dim: int, channels: int = 256) -> None:
        super().__init__()
        self.look = nn.Conv1d(codec_dim, channels, kernel_size=5, padding=2)
        self.again = nn.Conv1d(channels, channels, kernel_size=3, padding=1)
        self.out = nn.Linear(channels, block_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Float[Tensor, "batch frames codec_dim"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch frames block_dim"]:
        """(batch, frames, 128) → (batch, frames, 1024); the receptive field is three frames to each side.

        `lengths` gives each sample's own frames in a padded batch, whose padding is zeros.
        """
        x = F.gelu(self.look(x.transpose(1, 2)))
        if lengths is not None:  # the first layer has written something behind the ends
            x = x * valid_positions(lengths, x.shape[2])[:, None]
        x = x + F.gelu(self.again(x))
        return self.out(x.transpose(1, 2))


class SpeechCodec(nn.Module):
    """Audio ↔ codes, one frame of two codes for each 80 ms.

    The 128 numbers of a frame describe the whole 80 ms: a block of 8 log-mel frames of 128 bands, through a linear map.
    Decoding is another linear map, a correction from the neighbouring frames (`PostNet`), then Griffin-Lim at hop 160.
    The maps start as the lowest 4 × 32 DCT components over time and frequency, and are learned.

    `single_frame=True` is the codec of the reference specification: one log-mel frame of hop 1280 for each 80 ms.
    """

    SHIFT, SCALE = 6.0, 4.0  # brings log-mel values, about -11.5 … 4, near 0 with a spread of about 1

    def __init__(
        self, cfg: CodecConfig = TINY.codec, single_frame: bool = False, audio: AudioConfig = TINY.audio
    ) -> None:
        super().__init__()
        self.cfg, self.hop, self.single_frame = cfg, cfg.hop, single_frame
        self.rvq = RVQ(cfg)
        self.mel = MelFrontend(cfg.hop if single_frame else audio.hop, cfg=audio)
        self.vocoder = GriffinLimVocoder(self.mel.hop, cfg=audio)
        if single_frame:
            if cfg.codec_dim != audio.n_mels:
                raise ValueError(
                    "SpeechCodec: with single_frame=True a frame is one mel frame, so codec_dim must equal n_mels; "
                    f"got {cfg.codec_dim} and {audio.n_mels}"
                )
            return
        times, bands = dct_size(cfg, audio)
        basis = torch.kron(dct_basis(times, cfg.hop // audio.hop), dct_basis(bands, audio.n_mels))
        self.down = nn.Linear(basis.shape[1], cfg.codec_dim)
        self.up = nn.Linear(cfg.codec_dim, basis.shape[1])
        self.neighbours = PostNet(cfg.codec_dim, basis.shape[1])
        with torch.no_grad():
            self.down.weight.copy_(basis)
            self.up.weight.copy_(basis.T)
            self.down.bias.zero_()
            self.up.bias.zero_()

    def mel_blocks(
        self, wav: Float[Tensor, "batch samples"]
    ) -> Float[Tensor, "batch (samples+{self.hop-1})//{self.hop} block_dim"]:
        """(batch, samples) → (batch, ⌈samples / 1280⌉, 1024): 8 normalized mel frames in each, the last zero-padded.

        The single-frame codec has one mel frame in each, 128 numbers, not normalized.
        """
        expect("SpeechCodec", "wav", wav, "batch samples")
        if wav.shape[1] == 0:
            raise InputError("SpeechCodec: expected at least one sample, got an empty recording")
        mel = self.mel(F.pad(wav, (0, -wav.shape[1] % self.hop)))
        if self.single_frame:
            return mel
        blocks = rearrange(
            mel, "batch (frames slots) n_mels -> batch frames (slots n_mels)", slots=self.hop // self.mel.hop
        )
        return (blocks + self.SHIFT) / self.SCALE

    def encode_latents(
        self, wav: Float[Tensor, "batch samples"]
    ) -> Float[Tensor, "batch (samples+{self.hop-1})//{self.hop} codec_dim"]:
        """(batch, samples) → (batch, ⌈samples / 1280⌉, 128), before quantization."""
        blocks = self.mel_blocks(wav)
        return blocks if self.single_frame else self.down(blocks.to(self.down.weight.dtype))

    def decode_frames(
        self, x: Float[Tensor, "batch frames codec_dim"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch frames block_dim"]:
        """Latents → mel blocks, the inverse of `encode_latents` but for its `mel_blocks`; `lengths` as in `PostNet`."""
        return x if self.single_frame else self.up(x) + self.neighbours(x, lengths)

    def to_mel(self, x: Float[Tensor, "batch frames codec_dim"]) -> Float[Tensor, "batch mel_frames n_mels"]:
        """The log-mel spectrogram that the latents describe."""
        if self.single_frame:
            return x
        blocks = self.decode_frames(x) * self.SCALE - self.SHIFT
        return rearrange(
            blocks, "batch frames (slots n_mels) -> batch (frames slots) n_mels", slots=self.hop // self.mel.hop
        )

    def decode_latents(self, x: Float[Tensor, "batch frames codec_dim"]) -> Float[Tensor, "batch frames*{self.hop}"]:
        """(batch, frames, 128) → (batch, frames × 1280), each with a peak of 0.95."""
        expect("SpeechCodec.decode_latents", "x", x, "batch frames codec_dim", codec_dim=self.cfg.codec_dim)
        if x.shape[1] == 0:
            raise InputError("SpeechCodec: expected at least one code frame, got none")
        return torch.stack([self.vocoder.mel_to_audio(mel, domain="log") for mel in self.to_mel(x)])

    def encode(
        self, wav: Float[Tensor, "batch samples"]
    ) -> Int[Tensor, "batch (samples+{self.hop-1})//{self.hop} codebooks"]:
        """Audio → codes: (batch, samples) → (batch, ⌈samples / 1280⌉, 2)."""
        return self.rvq.encode(self.encode_latents(wav))

    def decode(self, codes: Int[Tensor, "batch frames codebooks"]) -> Float[Tensor, "batch frames*{self.hop}"]:
        """Codes → audio: (batch, frames, 2) → (batch, frames × 1280)."""
        return self.decode_latents(self.rvq.decode(codes))

    def stream(self, frames: Iterable[Int[Tensor, "codebooks"]]) -> Iterator[Float[Tensor, "samples"]]:
        """Codes, frame by frame → audio, 80 ms by 80 ms, four frames behind: speech before it is written to its end.

        The mel spectrogram is that of `decode`; phases and level are not (`StreamingVocoder`).
        """
        vocoder = StreamingVocoder(self.vocoder, self.hop // self.vocoder.hop)
        reach = 0 if self.single_frame else PostNet.REACH
        return vocoder.stream(stream_mel(frames, lambda codes: self.to_mel(self.rvq.decode(codes)), reach))


def stream_mel(
    frames: Iterable[Int[Tensor, "codebooks"]],
    to_mel: Callable[[Int[Tensor, "1 frames codebooks"]], Float[Tensor, "1 mel_frames n_mels"]],
    reach: int,
) -> Iterator[Float[Tensor, "mel_frames n_mels"]]:
    """The mel frames of each code frame as soon as the `reach` frames behind it, on which they depend, are there."""
    seen: list[Tensor] = []

    def mel_of(number: int) -> Tensor:
        start = max(0, number - reach)
        codes = torch.stack(seen[start : number + reach + 1])
        with torch.no_grad():
            mel = to_mel(codes[None])[0]
        return mel.unflatten(0, (len(codes), -1))[number - start]

    for frame in frames:
        seen.append(frame)
        if len(seen) > reach:
            yield mel_of(len(seen) - 1 - reach)
    for number in range(max(0, len(seen) - reach), len(seen)):
        yield mel_of(number)
