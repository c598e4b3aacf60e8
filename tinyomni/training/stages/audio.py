"""Stage audio: the ear learns to write down what it hears.

    wave → log-mel → AudioEncoderTiny → CTCHead → log-probabilities of a character or the blank, every 40 ms

Nobody says *when* a character is spoken. CTC adds up every way in which the characters and blanks can be laid over the
audio tokens, and makes the sum likely.

Source: Graves et al., Connectionist Temporal Classification (2006).
"""

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tinyomni.audio import AudioEncoderTiny, CTCHead, MelFrontend, char_ids, ctc_greedy
from tinyomni.data.datasets import Speaker, Speech, SpeechBatch, Utterance, collate_speech, pad
from tinyomni.data.manifests import Item
from tinyomni.io.files import SAMPLE_RATE
from tinyomni.metrics import Rate, cer
from tinyomni.training.engine import MUON, Settings, Stage
from tinyomni.training.recipe import Job, Place

SETTINGS = {
    "smoke": Settings(steps=4, batch_size=4, warmup=2, validate_freq=4, **MUON),
    "laptop": Settings(steps=2000, batch_size=16, lr=2e-3, warmup=100, validate_freq=400, **MUON),
    "gpu": Settings(steps=8000, batch_size=64, lr=1e-3, warmup=300, validate_freq=1000, workers=8, **MUON),
}
UTTERANCES = {"smoke": 24, "laptop": 12_000, "gpu": 60_000}
MOST_BANDS = 2  # of 128
EDGE = 0.2  # seconds of silence before what is said, and behind it, at most


# ---- data -----------------------------------------------------------------------------------------------------------


def speech(place: Place, split: str, size: int, **options: Any) -> Speech:
    """Utterances of the closed world, kept on disk beside the runs: stages that hear the same make it once."""
    return Speech(split, size, cache=str(place.folder / "speech"), **options)


def speech_or_own(
    place: Place, size: int, **options: Any
) -> tuple[Dataset[Any], Sequence[float], Sequence[Utterance | Item]]:
    """What is trained on, a length for each, and what is held out: of the closed world, or of `place.data`.

    Of own recordings a twentieth is held out, at least one and at most 200.
    """
    few = 8 if place.preset == "smoke" else 200
    if place.data is None:
        world, held_out = speech(place, "train", size, **options), speech(place, "validation", few, **options)
        return world, [len(world.text(index)[0]) for index in range(size)], list(map(held_out.__getitem__, range(few)))
    own = place.own("speech")
    order = random.Random(0).sample(range(len(own)), len(own))
    few = min(few, max(1, len(own) // 20))
    return Subset(own, order[few:]), [own.lengths[row] for row in order[few:]], [own[row] for row in order[:few]]


def utterance(item: Utterance | Item) -> Utterance:
    """What was said; a row of a manifest in the same form."""
    if isinstance(item, Utterance):
        return item
    if item.wave is None:
        raise ValueError(f"Training: {item.where} has no sound")
    return Utterance(item.wave, item.texts["text"], Speaker("own", 0, 0), in_order=True)


def collate(items: Sequence[Utterance | Item]) -> SpeechBatch:
    """Utterances side by side."""
    return collate_speech([utterance(item) for item in items])


# ---- the stage ------------------------------------------------------------------------------------------------------


def needed_tokens(text: str) -> int:
    """Audio tokens that CTC needs at least: one for each character, and a blank between two that are the same."""
    return len(text) + sum(one == two for one, two in pairwise(text))


def vary(mel: Float[Tensor, "batch mel_frames n_mels"]) -> Float[Tensor, "batch mel_frames n_mels"]:
    """The same words from another throat: every spectrogram a few mel bands higher or lower, louder or softer.

    Jaitly & Hinton (2013) warp the vocal tract's length; on a mel axis that is nearly a shift.
    """
    batch, _, bands = mel.shape
    shift = torch.randint(-MOST_BANDS, MOST_BANDS + 1, (batch, 1, 1), device=mel.device)
    source = (torch.arange(bands, device=mel.device) + shift).clamp(0, bands - 1).expand_as(mel)
    return mel.gather(2, source) + torch.empty(batch, 1, 1, device=mel.device).uniform_(-0.5, 0.5)


def in_a_room(
    wave: Float[Tensor, "samples"], generator: torch.Generator | None = None
) -> Float[Tensor, "more_samples"]:
    """As it is recorded: with some silence before and behind, and faint noise, 60 to 100 dB below full scale."""
    random_numbers = torch.rand(3, generator=generator).tolist()
    before, behind = (int(part * EDGE * SAMPLE_RATE) for part in random_numbers[:2])
    wave = F.pad(wave, (before, behind))
    noise = torch.randn(wave.shape, generator=generator).to(wave.device)
    return wave + noise * 10 ** (-5 + 2 * random_numbers[2])


class AudioStage(Stage):
    """Encoder and CTC head, trained together; with `rooms` on speech as it is recorded, `in_a_room`.

    The validation loss is the character error rate.
    """

    name = "audio"

    def __init__(self, held_out: Sequence[Utterance | Item] = (), rooms: bool = False) -> None:
        super().__init__()
        self.mel, self.encoder, self.head = MelFrontend(), AudioEncoderTiny(), CTCHead()
        self.held_out, self.rooms = held_out, rooms

    def log_probs(
        self, wave: Float[Tensor, "batch samples"], samples: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch audio_tokens characters"], Int[Tensor, "batch"]]:
        """Scores, and how many audio tokens of each row are sound."""
        if self.training and self.rooms:
            rows = zip(wave, samples.tolist(), strict=True)
            wave, samples = pad([in_a_room(row[:length]) for row, length in rows])
            samples = samples.to(wave.device)
        mel, lengths = self.mel(wave), samples // self.mel.hop
        if self.training:
            mel = vary(mel)
        return self.head(self.encoder(mel, lengths)), (lengths + 3) // 4

    def forward(self, batch: SpeechBatch) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """Nats for each character. A text with more characters than its sound has audio tokens is left out, counted."""
        log_probs, tokens = self.log_probs(batch.wave, batch.samples)
        fits = self.fits(batch)
        figures = {"too_long": len(batch.texts) - len(fits)}
        if not fits:
            return log_probs.sum() * 0, figures
        targets = [torch.tensor(char_ids(batch.texts[row])) for row in fits]
        loss = F.ctc_loss(
            log_probs.float().transpose(0, 1)[:, fits],
            torch.cat(targets).to(log_probs.device),
            tokens[fits],
            torch.tensor(list(map(len, targets))),
            reduction="sum",
        )
        return loss / self.weight(batch), figures

    def fits(self, batch: SpeechBatch) -> list[int]:
        """The rows whose text can be written in the time that their sound takes; the loss of others is infinite."""
        tokens = (batch.samples // self.mel.hop + 3) // 4
        return [row for row, text in enumerate(batch.texts) if needed_tokens(text) <= int(tokens[row])]

    def weight(self, batch: SpeechBatch) -> float:
        """Characters."""
        return sum(len(batch.texts[row]) for row in self.fits(batch))

    def validate(self) -> dict[str, float]:
        """Character error rate."""
        if not self.held_out:
            return {}
        return {"loss": recognition(self, self.held_out).rate}

    @torch.no_grad()
    def transcribe(self, waves: Sequence[Float[Tensor, "_"]]) -> list[str]:
        """What is said in each recording. Those of like length go together."""
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


def job(place: Place) -> Job:
    """The recipe."""
    train, lengths, held_out = speech_or_own(place, UTTERANCES[place.preset])
    return Job(AudioStage(held_out, rooms=True), train, collate, place.settings(SETTINGS), lengths)


# ---- measures -------------------------------------------------------------------------------------------------------


def recognition(stage: AudioStage, utterances: Sequence[Utterance | Item]) -> Rate:
    """How well recordings are written down."""
    spoken = [utterance(each) for each in utterances]
    return cer(stage.transcribe([each.wave for each in spoken]), [each.text for each in spoken])
