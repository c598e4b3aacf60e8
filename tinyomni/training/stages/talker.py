"""Stage talker: text becomes codes, frame by frame, until the speech is over.

    text ids, codes so far → base and residual code of the next frame, and whether there is one

The codes come from the codec, which is trained before and stays as it is. Frame t is predicted from the frames before
it: input `previous(codes)`, target `codes`, shifted once. Behind the last frame stands one more step, at which only the
end is to be said.

While it learns, the Talker always hears the right codes before each frame; when it speaks it hears its own. So some of
the codes that it hears are replaced by random ones: it learns to go on after a mistake.

Sources: Wang et al., VALL-E (2023); Bengio et al., Scheduled Sampling (2015) for the gap between the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from tinyomni.audio import valid_positions
from tinyomni.data.datasets import Speech, pad
from tinyomni.data.tts import STEADY, TALKER_VOICES, SpeechCache
from tinyomni.talker import TalkerTiny, previous, voice_token
from tinyomni.training.engine import MUON, Settings, Stage
from tinyomni.training.recipe import Job, Place
from tinyomni.training.stages.codec import CodecStage

SETTINGS = {
    "smoke": Settings(steps=4, batch_size=4, warmup=2, validate_freq=4, **MUON),
    "laptop": Settings(
        steps=2000, batch_size=32, lr=1.5e-3, warmup=100, validate_freq=300, checkpoint_freq=200, **MUON
    ),
    "gpu": Settings(steps=10_000, batch_size=64, lr=1e-3, warmup=300, validate_freq=1000, **MUON),
}
UTTERANCES = {"smoke": 16, "laptop": 20_000, "gpu": 40_000}
WRONG = 0.1  # share of the codes heard that are replaced
SHUFFLED = 0.5  # share of texts with words in random order: who knows lines by heart drops a word that is not due there
WITHOUT_TEXT = 0.1  # share of the batches in which the Talker gets no text: it babbles

Saying = tuple[Int[Tensor, "_"], Int[Tensor, "_ codebooks"]]  # a batch of them has many lengths


# ---- data -----------------------------------------------------------------------------------------------------------


class Sayings(Dataset[Saying]):
    """What `Speech` says, in the Talker's voices, as text ids and codes."""

    def __init__(self, place: Place, codec: CodecStage, split: str, size: int, order: bool | None = None) -> None:
        self.texts = Speech(split, size, seed=1, order=order, shuffled=SHUFFLED)
        self.codec, self.cache = codec.codec, SpeechCache(place.folder / "speech")
        self.encode = place.tokenizer().encode
        self.codes: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, index: int) -> str:
        """What is said."""
        return self.texts.text(index)[0]

    def wave(self, index: int) -> Float[Tensor, "samples"]:
        """How eSpeak says it."""
        return self.cache.utter(self.text(index), TALKER_VOICES[index % len(TALKER_VOICES)], *STEADY)

    def ids(self, index: int) -> Int[Tensor, "text_tokens"]:
        """The text as the Talker reads it, the voice in front."""
        return torch.tensor([*voice_token(index % len(TALKER_VOICES)), *self.encode(self.text(index))])

    @torch.no_grad()
    def __getitem__(self, index: int) -> Saying:
        if index not in self.codes:
            self.codes[index] = self.codec.encode(self.wave(index)[None])[0]
        return self.ids(index), self.codes[index]


@dataclass(frozen=True)
class CodeBatch:
    """Sayings side by side: texts padded with 0, codes with 0, and how many frames are speech."""

    codes: Int[Tensor, "batch frames codebooks"]
    text: Int[Tensor, "batch text_tokens"]
    frames: Int[Tensor, "batch"]


def collate(sayings: Sequence[Saying]) -> CodeBatch:
    """Pad. One frame more than the longest has, for its end."""
    codes, frames = pad([F.pad(codes, (0, 0, 0, 1)) for _, codes in sayings])
    text, _ = pad([ids for ids, _ in sayings])
    return CodeBatch(codes, text, frames - 1)


# ---- the stage ------------------------------------------------------------------------------------------------------


def speech_loss(
    logits: tuple[
        Float[Tensor, "batch frames codebook_size"],
        Float[Tensor, "batch frames codebook_size"],
        Float[Tensor, "batch frames"],
    ],
    codes: Int[Tensor, "batch frames codebooks"],
    frames: Int[Tensor, "batch"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Nats for each frame: of the base code, the residual code and the end. What lies behind an end does not count."""
    base, res, end = logits
    spoken = valid_positions(frames, codes.shape[1])
    ends = valid_positions(frames + 1, codes.shape[1]) & ~spoken
    over = F.binary_cross_entropy_with_logits(end, ends.float(), reduction="none")[spoken | ends]
    return (
        F.cross_entropy(base[spoken], codes[..., 0][spoken]),
        F.cross_entropy(res[spoken], codes[..., 1][spoken]),
        over.sum() / spoken.sum(),
    )


def mishear(
    codes: Int[Tensor, "batch frames codebooks"], share: float, size: int
) -> Int[Tensor, "batch frames codebooks"]:
    """Replace a share of the codes by random ones."""
    wrong = torch.rand(codes.shape, device=codes.device) < share
    return torch.where(wrong, torch.randint_like(codes, size), codes)


class TalkerStage(Stage):
    """The Talker. The validation loss is nats for each frame."""

    name = "talker"

    def __init__(self, held_out: Sequence[Saying] = ()) -> None:
        super().__init__()
        self.talker, self.held_out = TalkerTiny(), held_out

    def forward(self, batch: CodeBatch) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """Predict each frame from those before it, and the text."""
        heard = mishear(batch.codes, WRONG, self.talker.cfg.codebook_size) if self.training else batch.codes
        without_text = self.training and float(torch.rand(())) < WITHOUT_TEXT
        logits = self.talker.predict(previous(heard), None if without_text else batch.text)
        base, residual, end = speech_loss(logits, batch.codes, batch.frames)
        figures = {"base": base.detach(), "residual": residual.detach(), "end": end.detach()}
        return base + residual + end, figures

    def weight(self, batch: CodeBatch) -> float:
        """Frames of speech."""
        return int(batch.frames.sum())

    def validate(self) -> dict[str, float]:
        """The loss on held-out sayings, without wrong codes."""
        if not self.held_out:
            return {}
        batch = collate(self.held_out)
        device = self.talker.base.weight.device
        loss, parts = self(CodeBatch(batch.codes.to(device), batch.text.to(device), batch.frames.to(device)))
        return {"loss": float(loss), **{name: float(part) for name, part in parts.items()}}


def job(place: Place) -> Job:
    """The recipe."""
    codec = place.trained(CodecStage())
    train = Sayings(place, codec, "train", UTTERANCES[place.preset])
    held_out = Sayings(place, codec, "validation", 8 if place.preset == "smoke" else 64)
    stage = TalkerStage([held_out[index] for index in range(len(held_out))])
    lengths = [len(train.text(index)) for index in range(len(train))]
    return Job(stage, train, collate, place.settings(SETTINGS), lengths)
