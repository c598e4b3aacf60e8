"""Stage codec: 80 ms of sound become two whole numbers, and the codebooks learn which sounds deserve one.

    frames of log-mel → down → RVQ → up, corrected by the neighbours → frames again

An argmin passes no gradient, so nothing is learned by training a Talker on top: the codec learns by itself, before.

    start      the linear maps by principal components, the codebooks by k-means: closed forms that are nearly right
    learn      all of it together, by gradient. Behind the argmin the gradient goes straight through (to the encoder as
               if nothing had been rounded, to the entries as if they were chosen for ever); a commitment keeps the
               encoder near the entries
    revive     an entry that nobody chooses moves to where something is badly described

Sources: van den Oord, Vinyals & Kavukcuoglu, VQ-VAE (2017) for straight-through and commitment; Zeghidour et al.,
SoundStream (2021), section III-C, for the k-means start and the revival.
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
from tinyomni.training.distributed import same_everywhere
from tinyomni.training.engine import Settings, Stage
from tinyomni.training.recipe import Job, Place
from tinyomni.training.stages.audio import speech_or_own, utterance

SETTINGS = {
    "smoke": Settings(steps=20, batch_size=4, lr=1e-3, warmup=2, weight_decay=0.0, validate_freq=10),
    "laptop": Settings(steps=1500, batch_size=16, lr=2e-3, warmup=50, weight_decay=0.0),
    "gpu": Settings(steps=20_000, batch_size=32, lr=2e-3, warmup=200, weight_decay=0.0, validate_freq=1000),
}
UTTERANCES = {"smoke": 24, "laptop": 3000, "gpu": 20_000}
COMMITMENT = 0.25
FORGET = 0.98  # the usage of an entry is remembered for about 50 steps
SPEAKERS: dict[str, Any] = {"voices": TALKER_VOICES, "steady": True}
"""A codec is for the voices that it has learned: 14 bits for 80 ms do not describe everybody."""
DEAD = 0.1  # an entry is dead when it is chosen less often than this share of the average


# ---- closed forms to start from -------------------------------------------------------------------------------------


def principal(
    x: Float[Tensor, "rows features"], count: int
) -> tuple[Float[Tensor, "features"], Float[Tensor, "count features"]]:
    """The mean, and the `count` orthonormal directions in which rows differ most: no linear map keeps more."""
    mean = x.mean(dim=0)
    # in float64: many directions in which sound does not differ at all confuse float32
    spread = (x - mean).T @ (x - mean)
    _, directions = torch.linalg.eigh(spread.double())
    return mean, directions.float().flip(1).T[:count].contiguous()


def kmeans(x: Float[Tensor, "rows features"], count: int, iterations: int = 25) -> Float[Tensor, "count features"]:
    """`count` centres, each the mean of the rows that are nearest to it. Lloyd (1982).

    The first centres are drawn far from each other: Arthur & Vassilvitskii, k-means++ (2007).
    """
    if len(x) < count:
        raise ValueError(f"k-means: {count} centres need at least {count} rows, got {len(x)}. Take more sound.")
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
def start(codec: SpeechCodec, x: Float[Tensor, "rows features"]) -> None:
    """Principal components for the linear maps, k-means for the codebooks: first of the vectors, then of the rests.

    The components are taken among the codec's smooth cosines: what they leave out is the ripple of the voice's pitch,
    and entries spent on that are lost to the words.
    """
    rvq = codec.rvq
    if not codec.single_frame:
        cosines = codec.down.weight.clone()
        mean, directions = principal(x @ cosines.T, codec.cfg.codec_dim)
        set_maps(codec.down, codec.up, mean @ cosines, directions @ cosines)
        x = codec.down(x)
    set_maps(rvq.in_proj, rvq.out_proj, *principal(x, codec.cfg.code_dim))
    rest = rvq.in_proj(x)
    for book in rvq.codebooks:
        book.copy_(kmeans(rest, len(book)))
        rest = rest - book[torch.cdist(rest, book).argmin(dim=1)]


def set_maps(
    down: torch.nn.Linear,
    up: torch.nn.Linear,
    mean: Float[Tensor, "features"],
    directions: Float[Tensor, "count features"],
) -> None:
    """down(x) = directions · (x - mean), and up is the way back."""
    down.weight.copy_(directions)
    down.bias.copy_(-directions @ mean)
    up.weight.copy_(directions.T)
    up.bias.copy_(mean)


# ---- the stage ------------------------------------------------------------------------------------------------------


def quantise(
    rvq: RVQ, x: Float[Tensor, "rows codec_dim"]
) -> tuple[Float[Tensor, "rows codec_dim"], Float[Tensor, ""], Int[Tensor, "rows codebooks"], list[Tensor]]:
    """What the codes stand for, with a gradient; the commitment; the codes; and what each codebook had to describe."""
    y = rvq.in_proj(x)
    codes = rvq.encode(x)
    rest, rests, commitment, said = y, [], torch.zeros((), device=x.device), torch.zeros_like(y)
    for i, book in enumerate(rvq.codebooks):
        entry = book[codes[:, i]]
        rests.append(rest.detach())
        commitment = commitment + F.mse_loss(rest, entry)
        said, rest = said + entry, rest - entry.detach()
    # the value is `said`; the gradient reaches the entries, and y as well
    return rvq.out_proj(said + y - y.detach()), commitment, codes, rests


@dataclass(frozen=True)
class FrameBatch:
    """Recordings side by side as frames of log-mel, padded with 0, and how many frames each has."""

    x: Float[Tensor, "batch frames features"]
    frames: Int[Tensor, "batch"]


def collate(recordings: Sequence[Float[Tensor, "_ features"]]) -> FrameBatch:
    """Pad."""
    return FrameBatch(*pad(recordings))


class CodecStage(Stage):
    """The codec. The validation loss is the share of variance that is lost."""

    used: Tensor

    def __init__(self, held_out: Sequence[Float[Tensor, "_ features"]] = (), plain: bool = False) -> None:
        super().__init__()
        self.name = "plain codec" if plain else "codec"
        self.codec, self.held_out = SpeechCodec(single_frame=plain), held_out
        self.register_buffer("used", torch.ones(self.codec.cfg.codebooks, self.codec.cfg.codebook_size))

    def there_and_back(
        self, batch: FrameBatch
    ) -> tuple[
        Float[Tensor, "rows features"],
        Float[Tensor, "rows features"],
        Float[Tensor, ""],
        Int[Tensor, "rows codebooks"],
        list[Tensor],
    ]:
        """All frames that are sound; the same through the codes and back; commitment, codes and rests of `quantise`."""
        spoken = valid_positions(batch.frames, batch.x.shape[1])
        rows = batch.x[spoken]
        said, commitment, codes, rests = quantise(self.codec.rvq, rows if self.codec.single_frame else self.codec.down(rows))
        # padding is zeros for the neighbours, as what lies before and behind a recording
        packed = said.new_zeros(*spoken.shape, said.shape[1])
        packed[spoken] = said
        return rows, self.codec.decode_frames(packed, batch.frames)[spoken], commitment, codes, rests

    def forward(self, batch: FrameBatch) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """The squared error of the frames, and of the entries."""
        rows, back, commitment, codes, rests = self.there_and_back(batch)
        error = F.mse_loss(back, rows)
        figures: dict[str, Any] = {"error": error.detach(), "commitment": commitment.detach()}
        if self.training:
            figures["revived"] = self.revive(codes, rests)
        return error + COMMITMENT * commitment * self.codec.cfg.code_dim / rows.shape[1], figures

    def weight(self, batch: FrameBatch) -> float:
        """Frames."""
        return int(batch.frames.sum())

    @torch.no_grad()
    def revive(self, codes: Int[Tensor, "rows codebooks"], rests: Sequence[Tensor]) -> int:
        """Count how often each entry is chosen; move the dead ones to random vectors of this batch."""
        revived = 0
        for used, book, chosen, rest in zip(self.used, self.codec.rvq.codebooks, codes.T, rests, strict=True):
            used.mul_(FORGET).add_(torch.bincount(chosen, minlength=len(book)) * len(book) / len(chosen) * (1 - FORGET))
            dead = (used < DEAD).nonzero().squeeze(1)
            if len(dead):
                book[dead] = rest[torch.randint(len(rest), (len(dead),), device=rest.device)].to(book.dtype)
                used[dead] = 1.0
                revived += len(dead)
        same_everywhere(self.codec.rvq.codebooks, self.used)  # each process has seen other frames
        return revived

    def validate(self) -> dict[str, float]:
        """Share of the variance that is lost (1 for who always says the mean), and of the entries that are used."""
        if not self.held_out:
            return {}
        batch = collate(self.held_out)
        batch = FrameBatch(batch.x.to(self.used.device), batch.frames.to(self.used.device))
        rows, back, _, codes, _ = self.there_and_back(batch)
        lost = F.mse_loss(back, rows) / F.mse_loss(rows.mean(dim=0).expand_as(rows), rows)
        return {"loss": float(lost.detach()), **usage(self.codec, codes)}


def usage(codec: SpeechCodec, codes: Int[Tensor, "rows codebooks"]) -> dict[str, float]:
    """The share of each codebook's entries that occur."""
    return {f"used {i}": len(column.unique()) / codec.cfg.codebook_size for i, column in enumerate(codes.T)}


@torch.no_grad()
def frames_of(codec: SpeechCodec, utterances: Iterable[Utterance | Item]) -> list[Float[Tensor, "_ features"]]:
    """Recordings as the codec sees them before anything that is learned."""
    return [codec.mel_blocks(utterance(each).wave[None])[0] for each in utterances]


def job(place: Place, plain: bool = False) -> Job:
    """The recipe."""
    count = UTTERANCES[place.preset]
    data, _, held_out = speech_or_own(place, count, **SPEAKERS)
    chosen = random.Random(0).sample(range(len(data)), min(count, len(data)))  # type: ignore[arg-type]
    stage = CodecStage(plain=plain)
    stage.held_out = frames_of(stage.codec, held_out)
    train = frames_of(stage.codec, (data[index] for index in chosen))
    torch.manual_seed(0)
    start(stage.codec, torch.cat(train))
    return Job(stage, train, collate, place.settings(SETTINGS), [len(frames) for frames in train])  # type: ignore[arg-type]
