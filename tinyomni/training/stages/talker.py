"""Stage talker: text becomes codes, frame by frame, until the speech ends.

    text ids, codes so far → base and residual code of the next frame, and whether there is one

The codes are those of the codec, which is trained before and frozen. Frame t is predicted from the frames before it:
input `previous(codes)`, target `codes`, shifted once. After the last frame there is one more step, whose only target is
the end.

In training the Talker always gets the right codes before each frame (teacher forcing); when it speaks it gets its own.
So some of its input codes are replaced by random ones: it learns to continue after a mistake.

Sources: Wang et al., VALL-E (2023); Bengio et al., Scheduled Sampling (2015) for the gap between the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from tinyomni.audio import valid_positions
from tinyomni.data.datasets import Speech, check_style, pad
from tinyomni.data.tts import FIXED_PROSODY, TALKER_VOICES, SpeechCache
from tinyomni.errors import InputError
from tinyomni.talker import TalkerTiny, previous, voice_token
from tinyomni.training.distributed import to_device
from tinyomni.training.recipe import Job, RunDir
from tinyomni.training.settings import MUON, Settings
from tinyomni.training.stage import Stage
from tinyomni.training.stages import StageSpec, register
from tinyomni.training.stages.codec import CodecStage


@dataclass(frozen=True)
class TalkerSettings(Settings):
    """How to train the Talker, and on how many utterances."""

    utterances: int = 20_000
    validation_utterances: int = 64
    style: str = "plain"  # "wide": also what people say, and all sentences that answer them

    def __post_init__(self) -> None:
        super().__post_init__()
        check_style(self.style)


PRESETS = {
    "smoke": TalkerSettings(
        steps=4, batch_size=4, warmup=2, eval_every=4, utterances=16, validation_utterances=8, **MUON
    ),
    "laptop": TalkerSettings(
        steps=2000, batch_size=32, lr=1.5e-3, warmup=100, eval_every=300, checkpoint_freq=200, style="wide", **MUON
    ),
    "quick": TalkerSettings(
        steps=600,
        batch_size=32,
        lr=1.5e-3,
        warmup=60,
        eval_every=300,
        utterances=4000,
        validation_utterances=32,
        **MUON,
    ),
    "gpu": TalkerSettings(
        steps=10_000, batch_size=64, lr=1e-3, warmup=300, eval_every=1000, utterances=40_000, style="wide", **MUON
    ),
}
PRESETS["shipped"] = replace(PRESETS["laptop"], steps=6000, cycle=3600, restart_lr=1e-3)
CORRUPTION_RATE = 0.1  # fraction of the input codes that are replaced
SHUFFLED = 0.5  # fraction of texts with words in random order: a memorized line would hide a word that it lacks
WITHOUT_TEXT = 0.1  # fraction of the batches in which the Talker gets no text: it babbles

TalkerExample = tuple[Int[Tensor, "_"], Int[Tensor, "_ codebooks"]]  # text ids, codes; a batch has many lengths


# ---- data -----------------------------------------------------------------------------------------------------------


class TalkerDataset(Dataset[TalkerExample]):
    """The texts of `Speech`, spoken in the Talker's voices, as text ids and codes."""

    def __init__(
        self,
        run_dir: RunDir,
        codec: CodecStage,
        split: str,
        size: int,
        order: bool | None = None,
        style: str = "plain",
    ) -> None:
        self.texts = Speech(split, size, seed=1, order=order, shuffled=SHUFFLED, style=style)
        self.codec, self.cache = codec.codec, SpeechCache(run_dir.folder / "speech")
        self.encode = run_dir.tokenizer().encode
        self.codes: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, index: int) -> str:
        """The text of an example."""
        return self.texts.text(index)[0]

    def wave(self, index: int) -> Float[Tensor, "samples"]:
        """Its speech by eSpeak."""
        return self.cache.utter(self.text(index), TALKER_VOICES[index % len(TALKER_VOICES)], *FIXED_PROSODY)

    def ids(self, index: int) -> Int[Tensor, "text_tokens"]:
        """The text as the Talker's input, the token of the voice in front."""
        return torch.tensor([*voice_token(index % len(TALKER_VOICES)), *self.encode(self.text(index))])

    @torch.no_grad()
    def __getitem__(self, index: int) -> TalkerExample:
        if index not in self.codes:
            self.codes[index] = self.codec.encode(self.wave(index)[None])[0]
        return self.ids(index), self.codes[index]


@dataclass(frozen=True)
class CodeBatch:
    """Examples side by side: texts padded with 0, codes with 0, and how many frames are speech."""

    codes: Int[Tensor, "batch frames codebooks"]
    text: Int[Tensor, "batch text_tokens"]
    frames: Int[Tensor, "batch"]


def collate(examples: Sequence[TalkerExample]) -> CodeBatch:
    """Examples as one padded batch, with one frame more than the longest has, for its end."""
    codes, frames = pad([F.pad(codes, (0, 0, 0, 1)) for _, codes in examples])
    text, _ = pad([ids for ids, _ in examples])
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
    """Nats per frame: of the base code, the residual code and the end. What lies behind an end does not count."""
    base, res, end = logits
    spoken = valid_positions(frames, codes.shape[1])
    ends = valid_positions(frames + 1, codes.shape[1]) & ~spoken
    over = F.binary_cross_entropy_with_logits(end, ends.float(), reduction="none")[spoken | ends]
    return (
        F.cross_entropy(base[spoken], codes[..., 0][spoken]),
        F.cross_entropy(res[spoken], codes[..., 1][spoken]),
        over.sum() / spoken.sum(),
    )


def corrupt_codes(
    codes: Int[Tensor, "batch frames codebooks"], rate: float, size: int
) -> Int[Tensor, "batch frames codebooks"]:
    """Replace a fraction of the codes by random ones."""
    wrong = torch.rand(codes.shape, device=codes.device) < rate
    return torch.where(wrong, torch.randint_like(codes, size), codes)


class TalkerStage(Stage):
    """The Talker. The validation loss is nats per frame."""

    name = "talker"
    weights_file = (("talker.", "talker."),)

    def __init__(self, held_out: Sequence[TalkerExample] = ()) -> None:
        super().__init__()
        self.talker, self.held_out = TalkerTiny(), held_out

    def forward(self, batch: CodeBatch) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """Predict each frame from those before it, and the text."""
        codes = batch.codes
        if self.training:
            codes = corrupt_codes(codes, CORRUPTION_RATE, self.talker.cfg.codebook_size)
        without_text = self.training and float(torch.rand(())) < WITHOUT_TEXT
        logits = self.talker(previous(codes), None if without_text else batch.text, with_end=True)
        base, residual, end = speech_loss(logits, batch.codes, batch.frames)
        metrics = {"base": base.detach(), "residual": residual.detach(), "end": end.detach()}
        return base + residual + end, metrics

    def weight(self, batch: CodeBatch) -> float:
        """Frames of speech."""
        return int(batch.frames.sum())

    def validate(self) -> dict[str, float]:
        """The loss on held-out examples, without corrupted codes."""
        if not self.held_out:
            return {}
        loss, parts = self(to_device(collate(self.held_out), self.talker.base.weight.device))
        return {"loss": float(loss), **{name: float(part) for name, part in parts.items()}}


def build(run_dir: RunDir, settings: TalkerSettings) -> Job:
    """Utterances of the closed world, as codes of the codec that was trained before."""
    if run_dir.data is not None:
        raise InputError("Training: the stage talker learns the voices of eSpeak and takes no custom data (--data)")
    codec = run_dir.trained(CodecStage(), settings.init_from)
    train = TalkerDataset(run_dir, codec, "train", settings.utterances, style=settings.style)
    held_out = TalkerDataset(run_dir, codec, "validation", settings.validation_utterances, style=settings.style)
    stage = TalkerStage([held_out[index] for index in range(len(held_out))])
    lengths = [len(train.text(index)) for index in range(len(train))]
    return Job(stage, train, collate, settings, lengths)


SPEC = register(StageSpec("talker", PRESETS, build, requires=("tokenizer", "codec"), untrained=TalkerStage))
