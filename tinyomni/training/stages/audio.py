"""Stage audio: the recogniser (ASR) learns to transcribe speech.

    wave → log-mel → AudioEncoderTiny → CTCHead → log-probabilities of a character or the blank, every 40 ms

Nobody says *when* a character is spoken. CTC adds up every way in which the characters and blanks can be laid over the
audio tokens, and makes the sum likely.

Source: Graves et al., Connectionist Temporal Classification (2006).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from tinyomni.audio import AudioEncoderTiny, CTCHead, MelFrontend, char_ids, ctc_greedy
from tinyomni.data import other_makers
from tinyomni.data.custom import train_validation_split
from tinyomni.data.datasets import Speaker, Speech, SpeechBatch, Utterance, check_style, collate_speech, pad
from tinyomni.data.manifests import Item
from tinyomni.data.tts import TTS_VOICES
from tinyomni.errors import InputError
from tinyomni.metrics import Rate, cer
from tinyomni.training.augment import add_room_noise, as_recorded, vtlp
from tinyomni.training.recipe import Job, RunDir
from tinyomni.training.settings import MUON, Settings
from tinyomni.training.stage import Stage
from tinyomni.training.stages import StageSpec, register


@dataclass(frozen=True)
class AudioSettings(Settings):
    """How to train the recogniser, and on how many utterances of the closed world."""

    utterances: int = 12_000
    validation_utterances: int = 200
    style: str = "plain"  # "wide": other wordings too, as other rooms and microphones record them
    makers: str = ""  # of speech beside eSpeak NG: names as in "flite,pico", or "installed" (data/other_makers.py)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_style(self.style)


PRESETS = {
    "smoke": AudioSettings(
        steps=4, batch_size=4, warmup=2, eval_every=4, utterances=24, validation_utterances=8, **MUON
    ),
    "laptop": AudioSettings(
        steps=4500, batch_size=16, lr=2e-3, warmup=100, eval_every=500, utterances=16_000, style="wide",
        makers=other_makers.INSTALLED, **MUON,
    ),
    "quick": AudioSettings(
        steps=600, batch_size=16, lr=2e-3, warmup=60, eval_every=300, utterances=4000, validation_utterances=64, **MUON
    ),
    "gpu": AudioSettings(
        steps=12_000, batch_size=64, lr=1e-3, warmup=300, eval_every=1000, num_workers=8, utterances=60_000,
        style="wide", makers=other_makers.INSTALLED, **MUON,
    ),
}  # fmt: skip
PRESETS["shipped"] = replace(PRESETS["laptop"], steps=11_600, cycle=8600, restart_lr=1.5e-3)


# ---- data -----------------------------------------------------------------------------------------------------------


def speech(run_dir: RunDir, split: str, size: int, **options: Any) -> Speech:
    """Utterances of the closed world, cached on disk beside the runs: stages that use the same share them."""
    return Speech(split, size, cache=str(run_dir.folder / "speech"), **options)


def speech_data(
    run_dir: RunDir, utterances: int, validation_utterances: int, **options: Any
) -> tuple[Dataset[Any], Sequence[float], Sequence[Utterance | Item]]:
    """What is trained on, a length for each, and what is held out: of the closed world, or of custom recordings."""
    if run_dir.data is None:
        train = speech(run_dir, "train", utterances, **options)
        held_out = speech(run_dir, "validation", validation_utterances, **options)
        lengths = [len(train.text(index)[0]) for index in range(utterances)]
        return train, lengths, [held_out[index] for index in range(validation_utterances)]
    rows = run_dir.custom_data("speech")
    own, own_held_out = train_validation_split(rows, validation_utterances)
    return own, [rows.lengths[row] for row in own.indices], [rows[row] for row in own_held_out.indices]


def utterance(item: Utterance | Item) -> Utterance:
    """A row of a manifest in the form of the closed world's utterances."""
    if isinstance(item, Utterance):
        return item
    if item.wave is None:
        raise InputError(f"Training: {item.where} has no audio")
    return Utterance(item.wave, item.texts["text"], Speaker("own", 0, 0), in_order=True)


def collate(items: Sequence[Utterance | Item]) -> SpeechBatch:
    """Utterances as one padded batch."""
    return collate_speech([utterance(item) for item in items])


# ---- the stage ------------------------------------------------------------------------------------------------------


def needed_tokens(text: str) -> int:
    """Audio tokens that CTC needs at least: one for each character, and a blank between two equal ones."""
    return len(text) + sum(one == two for one, two in pairwise(text))


class AudioStage(Stage):
    """Encoder and CTC head, trained together; with `room_noise`, on speech as it is recorded, of the wide style by
    other microphones in other rooms.

    The validation loss is the character error rate.
    """

    name = "audio"
    weights_file = (("audio.", "encoder."), ("ctc.", "head."))

    def __init__(
        self, held_out: Sequence[Utterance | Item] = (), room_noise: bool = False, style: str = "plain"
    ) -> None:
        super().__init__()
        self.mel, self.encoder, self.head = MelFrontend(), AudioEncoderTiny(), CTCHead()
        self.held_out, self.room_noise, self.style = held_out, room_noise, style

    def log_probs(
        self, wave: Float[Tensor, "batch samples"], samples: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch audio_tokens characters"], Int[Tensor, "batch"]]:
        """Log-probabilities, and how many audio tokens of each row are no padding."""
        if self.training and self.room_noise:
            rows = zip(wave, samples.tolist(), strict=True)
            record = as_recorded if self.style == "wide" else add_room_noise
            wave, samples = pad([record(row[:length]) for row, length in rows])
            samples = samples.to(wave.device)
        mel, lengths = self.mel(wave), samples // self.mel.hop
        if self.training:
            mel = vtlp(mel)
        return self.head(self.encoder(mel, lengths)), (lengths + 3) // 4

    def forward(self, batch: SpeechBatch) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """Nats per character. A text that needs more audio tokens than its audio has is left out, and counted."""
        log_probs, tokens = self.log_probs(batch.wave, batch.samples)
        fitting = self.fitting(batch)
        metrics = {"too_long": len(batch.texts) - len(fitting)}
        if not fitting:
            return log_probs.sum() * 0, metrics
        targets = [torch.tensor(char_ids(batch.texts[row])) for row in fitting]
        loss = F.ctc_loss(
            log_probs.float().transpose(0, 1)[:, fitting],
            torch.cat(targets).to(log_probs.device),
            tokens[fitting],
            torch.tensor(list(map(len, targets))),
            reduction="sum",
        )
        return loss / self.weight(batch), metrics

    def fitting(self, batch: SpeechBatch) -> list[int]:
        """The rows whose text CTC can emit in the time that the audio takes; the loss of others is infinite."""
        tokens = (batch.samples // self.mel.hop + 3) // 4
        return [row for row, text in enumerate(batch.texts) if needed_tokens(text) <= int(tokens[row])]

    def weight(self, batch: SpeechBatch) -> float:
        """Characters."""
        return sum(len(batch.texts[row]) for row in self.fitting(batch))

    def validate(self) -> dict[str, float]:
        """Character error rate."""
        if not self.held_out:
            return {}
        return {"loss": recognition(self, self.held_out).rate}

    @torch.no_grad()
    def transcribe(self, waves: Sequence[Float[Tensor, "_"]]) -> list[str]:
        """The text of each recording. Recordings of similar length form a batch."""
        texts = [""] * len(waves)
        order = sorted(range(len(waves)), key=lambda index: len(waves[index]))
        for at in range(0, len(order), 32):
            rows = order[at : at + 32]
            wave, samples = pad([waves[row] for row in rows])
            device = self.head.out.weight.device
            log_probs, tokens = self.log_probs(wave.to(device), samples.to(device))
            for row, text in zip(rows, ctc_greedy(log_probs, tokens), strict=True):
                texts[row] = text
        return texts


def recognition(stage: AudioStage, utterances: Sequence[Utterance | Item]) -> Rate:
    """The character error rate of the transcripts of these recordings."""
    spoken = [utterance(each) for each in utterances]
    return cer(stage.transcribe([each.wave for each in spoken]), [each.text for each in spoken])


def build(run_dir: RunDir, settings: AudioSettings) -> Job:
    """Utterances of the closed world, or custom recordings with their texts."""
    settings = replace(settings, makers=other_makers.resolve(settings.makers))  # their names stay with the run
    train, lengths, held_out = speech_data(
        run_dir,
        settings.utterances,
        settings.validation_utterances,
        style=settings.style,
        voices=TTS_VOICES + other_makers.voices_of(settings.makers),
    )
    return Job(AudioStage(held_out, room_noise=True, style=settings.style), train, collate, settings, lengths)


SPEC = register(StageSpec("audio", PRESETS, build, untrained=AudioStage))
