"""Stage codec: 80 ms of audio become two code indices, and the codebooks learn which sounds deserve one.

    frames of log-mel → down → RVQ → up, corrected by the post-net → frames again

An argmin passes no gradient, so training a Talker on top teaches the codec nothing: the codec is trained before.

    init_from_data   the linear maps by principal components, the codebooks by k-means: closed forms, nearly right
    learn            all of it together, by gradient. Behind the argmin the gradient is passed straight through (to the
                     encoder as if nothing had been rounded, to the entries as if their choice was fixed); a commitment
                     loss keeps the encoder near the entries
    expire_codes     an entry that is hardly ever chosen moves to where the reconstruction is poor

Sources: van den Oord, Vinyals & Kavukcuoglu, VQ-VAE (2017) for straight-through and commitment; Zeghidour et al.,
SoundStream (2021), section III-C, for the k-means initialization and the expired codes.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.audio import valid_positions
from tinyomni.codec import RVQ, SpeechCodec
from tinyomni.data.datasets import Utterance, pad
from tinyomni.data.manifests import Item
from tinyomni.data.tts import TALKER_VOICES
from tinyomni.errors import InputError
from tinyomni.training import distributed
from tinyomni.training.recipe import Job, RunDir
from tinyomni.training.settings import Settings
from tinyomni.training.stage import Stage
from tinyomni.training.stages import StageSpec, register
from tinyomni.training.stages.audio import speech_data, utterance


@dataclass(frozen=True)
class CodecSettings(Settings):
    """How to train the codec, and on how many utterances."""

    utterances: int = 3000
    validation_utterances: int = 200
    single_frame: bool = False  # one log-mel frame per 80 ms, as in the reference specification


PRESETS = {
    "smoke": CodecSettings(
        steps=20, batch_size=4, lr=1e-3, warmup=2, weight_decay=0.0, eval_every=10, utterances=24,
        validation_utterances=8,
    ),
    "laptop": CodecSettings(steps=1500, batch_size=16, lr=2e-3, warmup=50, weight_decay=0.0),
    "quick": CodecSettings(
        steps=400, batch_size=16, lr=2e-3, warmup=30, weight_decay=0.0, eval_every=200, utterances=800,
        validation_utterances=64,
    ),
    "gpu": CodecSettings(
        steps=20_000, batch_size=32, lr=2e-3, warmup=200, weight_decay=0.0, eval_every=1000, utterances=20_000
    ),
}  # fmt: skip
PRESETS["shipped"] = PRESETS["laptop"]
COMMITMENT = 0.25
EMA_DECAY = 0.98  # of an entry's usage: a mean over about 50 steps
DEAD_CODE_THRESHOLD = 0.1  # an entry is dead when it is chosen less often than this fraction of the average
SPEAKERS: dict[str, Any] = {"voices": TALKER_VOICES, "fixed_prosody": True}
"""A codec is for the voices that it has learned: 14 bits for 80 ms do not describe everybody."""


# ---- closed forms to begin with -------------------------------------------------------------------------------------


def pca(x: Float[Tensor, "rows dim"], count: int) -> tuple[Float[Tensor, "dim"], Float[Tensor, "count dim"]]:
    """The mean, and the `count` orthonormal directions in which rows differ most: no linear map keeps more."""
    mean = x.mean(dim=0)
    # in float64: many directions in which audio does not differ at all confuse float32
    spread = (x - mean).T @ (x - mean)
    _, directions = torch.linalg.eigh(spread.double())
    return mean, directions.float().flip(1).T[:count].contiguous()


def kmeans(x: Float[Tensor, "rows dim"], count: int, iterations: int = 25) -> Float[Tensor, "count dim"]:
    """`count` centres, each the mean of the rows that are nearest to it. Lloyd (1982).

    The first centres are drawn far from each other: Arthur & Vassilvitskii, k-means++ (2007).
    """
    if len(x) < count:
        raise InputError(f"k-means: {count} centres need at least {count} rows, got {len(x)}. Use more audio.")
    centres = x[torch.randint(len(x), (1,))]
    distance = torch.cdist(x, centres).squeeze(1).square()
    while len(centres) < count:
        new = x[torch.multinomial(distance + 1e-12, 1)]
        centres = torch.cat([centres, new])
        distance = torch.minimum(distance, torch.cdist(x, new).squeeze(1).square())
    for _ in range(iterations):
        distance, nearest = torch.cdist(x, centres).min(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        sizes = torch.bincount(nearest, minlength=count)
        centres = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero().squeeze(1)
        centres[empty] = x[distance.topk(len(empty)).indices]
    return centres


@torch.no_grad()
def init_from_data(codec: SpeechCodec, x: Float[Tensor, "rows dim"]) -> None:
    """Principal components for the linear maps; k-means for the codebooks, first of the vectors, then of the residuals.

    The components are taken within the span of the codec's smooth DCT basis: outside of it is the ripple of the voice's
    pitch, and entries spent on that are lost to the words.
    """
    rvq = codec.rvq
    if not codec.single_frame:
        basis = codec.down.weight.clone()
        mean, directions = pca(x @ basis.T, codec.cfg.codec_dim)
        set_maps(codec.down, codec.up, mean @ basis, directions @ basis)
        x = codec.down(x)
    set_maps(rvq.in_proj, rvq.out_proj, *pca(x, codec.cfg.code_dim))
    residual = rvq.in_proj(x)
    for book in rvq.codebooks:
        book.copy_(kmeans(residual, len(book)))
        residual = residual - book[torch.cdist(residual, book).argmin(dim=1)]


def set_maps(
    down: torch.nn.Linear,
    up: torch.nn.Linear,
    mean: Float[Tensor, "dim"],
    directions: Float[Tensor, "count dim"],
) -> None:
    """Set down(x) = directions · (x - mean), and up to its inverse on their span."""
    down.weight.copy_(directions)
    down.bias.copy_(-directions @ mean)
    up.weight.copy_(directions.T)
    up.bias.copy_(mean)


# ---- the stage ------------------------------------------------------------------------------------------------------


def quantize(
    rvq: RVQ, x: Float[Tensor, "rows codec_dim"]
) -> tuple[Float[Tensor, "rows codec_dim"], Float[Tensor, ""], Int[Tensor, "rows codebooks"], list[Tensor]]:
    """The vectors of the codes, with a gradient; the commitment loss; the codes; the residuals that they quantize."""
    y = rvq.in_proj(x)
    codes = rvq.encode(x)
    residual, residuals = y, []
    commitment, quantized = torch.zeros((), device=x.device), torch.zeros_like(y)
    for i, book in enumerate(rvq.codebooks):
        entry = book[codes[:, i]]
        residuals.append(residual.detach())
        commitment = commitment + F.mse_loss(residual, entry)
        quantized, residual = quantized + entry, residual - entry.detach()
    # the value is `quantized`; the gradient reaches the entries, and y as well
    return rvq.out_proj(quantized + y - y.detach()), commitment, codes, residuals


@dataclass(frozen=True)
class FrameBatch:
    """Recordings as frames of log-mel, padded with 0, and how many frames each has."""

    x: Float[Tensor, "batch frames dim"]
    frames: Int[Tensor, "batch"]


def collate(recordings: Sequence[Float[Tensor, "_ dim"]]) -> FrameBatch:
    """Recordings as one padded batch."""
    return FrameBatch(*pad(recordings))


class CodecStage(Stage):
    """The codec. The validation loss is the fraction of the frames' variance that is lost."""

    usage: Tensor

    def __init__(self, held_out: Sequence[Float[Tensor, "_ dim"]] = (), single_frame: bool = False) -> None:
        super().__init__()
        self.name, self.weights_file = "codec", (("codec.", "codec."),)
        if single_frame:  # not part of the whole model
            self.name, self.weights_file = "codec-single-frame", ()
        self.codec, self.held_out = SpeechCodec(single_frame=single_frame), held_out
        # how often each entry is chosen, 1 being the average: an exponential moving average
        self.register_buffer("usage", torch.ones(self.codec.cfg.codebooks, self.codec.cfg.codebook_size))

    def reconstruct(
        self, batch: FrameBatch
    ) -> tuple[
        Float[Tensor, "rows dim"],
        Float[Tensor, "rows dim"],
        Float[Tensor, ""],
        Int[Tensor, "rows codebooks"],
        list[Tensor],
    ]:
        """All frames that are no padding; their reconstruction; commitment, codes and residuals of `quantize`."""
        valid = valid_positions(batch.frames, batch.x.shape[1])
        rows = batch.x[valid]
        vectors = rows if self.codec.single_frame else self.codec.down(rows)
        quantized, commitment, codes, residuals = quantize(self.codec.rvq, vectors)
        # padding is zeros for the post-net, like what lies before and after a recording
        latents = quantized.new_zeros(*valid.shape, quantized.shape[1])
        latents[valid] = quantized
        return rows, self.codec.decode_frames(latents, batch.frames)[valid], commitment, codes, residuals

    def forward(self, batch: FrameBatch) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """The squared error of the frames, and of the entries."""
        rows, reconstruction, commitment, codes, residuals = self.reconstruct(batch)
        error = F.mse_loss(reconstruction, rows)
        metrics: dict[str, Any] = {"error": error.detach(), "commitment": commitment.detach()}
        if self.training:
            metrics["expired"] = self.expire_codes(codes, residuals)
        return error + COMMITMENT * commitment * self.codec.cfg.code_dim / rows.shape[1], metrics

    def weight(self, batch: FrameBatch) -> float:
        """Frames."""
        return int(batch.frames.sum())

    @torch.no_grad()
    def expire_codes(self, codes: Int[Tensor, "rows codebooks"], residuals: Sequence[Tensor]) -> int:
        """Update how often each entry is chosen; move the dead ones to random vectors of this batch."""
        expired = 0
        for usage, book, chosen, residual in zip(self.usage, self.codec.rvq.codebooks, codes.T, residuals, strict=True):
            counts = torch.bincount(chosen, minlength=len(book)) * len(book) / len(chosen)
            usage.mul_(EMA_DECAY).add_(counts * (1 - EMA_DECAY))
            dead = (usage < DEAD_CODE_THRESHOLD).nonzero().squeeze(1)
            if len(dead):
                rows = torch.randint(len(residual), (len(dead),), device=residual.device)
                book[dead] = residual[rows].to(book.dtype)
                usage[dead] = 1.0
                expired += len(dead)
        distributed.broadcast(self.codec.rvq.codebooks, self.usage)  # each process has seen other frames
        return expired

    def validate(self) -> dict[str, float]:
        """The fraction of the variance that is lost (1 for always answering the mean), and codebook utilization."""
        if not self.held_out:
            return {}
        batch = distributed.to_device(collate(self.held_out), self.usage.device)
        rows, reconstruction, _, codes, _ = self.reconstruct(batch)
        lost = F.mse_loss(reconstruction, rows) / F.mse_loss(rows.mean(dim=0).expand_as(rows), rows)
        return {"loss": float(lost.detach()), **utilization(self.codec, codes)}


def utilization(codec: SpeechCodec, codes: Int[Tensor, "rows codebooks"]) -> dict[str, float]:
    """The fraction of each codebook's entries that occur."""
    return {f"utilization {i}": len(column.unique()) / codec.cfg.codebook_size for i, column in enumerate(codes.T)}


@torch.no_grad()
def frames_of(codec: SpeechCodec, utterances: Iterable[Utterance | Item]) -> list[Float[Tensor, "_ dim"]]:
    """Recordings as the codec's frames of log-mel, before anything that is learned."""
    return [codec.mel_blocks(utterance(each).wave[None])[0] for each in utterances]


def build(run_dir: RunDir, settings: CodecSettings) -> Job:
    """Utterances in the Talker's voices, or custom recordings; all frames are held in memory."""
    data, _, held_out = speech_data(run_dir, settings.utterances, settings.validation_utterances, **SPEAKERS)
    size = len(data)  # type: ignore[arg-type]
    chosen = random.Random(0).sample(range(size), min(settings.utterances, size))
    stage = CodecStage(single_frame=settings.single_frame)
    stage.held_out = frames_of(stage.codec, held_out)
    train = frames_of(stage.codec, (data[index] for index in chosen))
    if settings.init_from is None:
        torch.manual_seed(0)
        init_from_data(stage.codec, torch.cat(train))
    return Job(stage, train, collate, settings, [len(frames) for frames in train])  # type: ignore[arg-type]


SPEC = register(StageSpec("codec", PRESETS, build, untrained=CodecStage))
