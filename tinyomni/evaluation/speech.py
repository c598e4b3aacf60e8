"""How good are recogniser, codec and Talker? All are judged by what the recogniser makes of the audio."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.codec import SpeechCodec
from tinyomni.data.datasets import Utterance, pad
from tinyomni.data.tts import HELD_OUT_VOICE
from tinyomni.io.files import SAMPLE_RATE
from tinyomni.metrics import Rate, cer
from tinyomni.talker import generate_batch, generate_codes, max_frames
from tinyomni.training.recipe import Place
from tinyomni.training.stages.audio import AudioStage, recognition, speech
from tinyomni.training.stages.codec import SPEAKERS, CodecStage, frames_of
from tinyomni.training.stages.talker import Sayings, TalkerStage

# ---- the recogniser -------------------------------------------------------------------------------------------------

TEST_SETS: dict[str, dict[str, Any]] = {
    "grammar": {"order": True},
    "shuffled words": {"order": False},
    "unseen voice": {"order": True, "voices": [HELD_OUT_VOICE]},
}


def test_set(place: Place, name: str, n: int = 300, **options: Any) -> list[Utterance]:
    """Held-out utterances: lines of the grammar, the same words in random order, or lines in a voice never heard."""
    data = speech(place, "test", n, **TEST_SETS[name], **options)
    return [data[index] for index in range(n)]


def asr_cer(place: Place, n: int = 300) -> dict[str, Rate]:
    """The character error rate on each of the test sets, and with the texts exchanged: what knowing nothing gives."""
    stage = place.trained(AudioStage())
    sets = {name: test_set(place, name, n) for name in TEST_SETS}
    rates = {name: recognition(stage, utterances) for name, utterances in sets.items()}
    texts = [each.text for each in sets["grammar"]]
    heard = stage.transcribe([each.wave for each in sets["grammar"]])
    return rates | {"texts exchanged": cer(heard, texts[1:] + texts[:1])}


# ---- the codec ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def round_trips(codec: SpeechCodec, waves: Sequence[Float[Tensor, "_"]]) -> dict[str, list[Float[Tensor, "_"]]]:
    """Recordings through the codec and back: by their codes; unquantised, so that only the vocoder loses something; and
    with the mean frame all the time, which is what knowing nothing gives."""
    packed = [codec.encode_latents(wave[None]) for wave in waves]
    mean = torch.cat(packed, dim=1).mean(dim=1, keepdim=True)
    return {
        "codes": [codec.decode(codec.rvq.encode(x))[0] for x in packed],
        "unquantised": [codec.vocoder.mel_to_audio(codec.mel(wave[None])[0], domain="log") for wave in waves],
        "mean frame": [codec.decode_latents(mean.expand_as(x))[0] for x in packed],
    }


def codec_cer(place: Place, n: int = 300, plain: bool = False) -> dict[str, Rate]:
    """Round trips, heard by the trained recogniser: the character error rate on each test set, beside its controls."""
    ear, stage = place.trained(AudioStage()), place.trained(CodecStage(plain=plain))
    rates = {}
    for name in ("grammar", "shuffled words"):
        utterances = test_set(place, name, n, **SPEAKERS)
        texts = [each.text for each in utterances]
        rates[f"{name}, recordings"] = recognition(ear, utterances)
        for how, waves in round_trips(stage.codec, [each.wave for each in utterances]).items():
            heard = ear.transcribe(waves)
            rates[f"{name}, {how}"] = cer(heard, texts)
            if how == "codes":
                rates[f"{name}, texts exchanged"] = cer(heard, texts[1:] + texts[:1])
    return rates


@torch.no_grad()
def codec_statistics(place: Place, n: int = 300, plain: bool = False) -> dict[str, float]:
    """On the test split: the share of the frames' variance that is lost, and of each codebook's entries that occur."""
    stage = place.trained(CodecStage(plain=plain))
    stage.held_out = frames_of(stage.codec, test_set(place, "grammar", n, **SPEAKERS))
    return stage.validate()


# ---- the Talker -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoken:
    """What the Talker made of texts: the sound, and its frames beside those of the recording."""

    texts: tuple[str, ...]
    waves: tuple[Float[Tensor, "_"], ...]
    frames: tuple[int, ...]
    true_frames: tuple[int, ...]

    @property
    def right_length(self) -> tuple[bool, ...]:
        """Whether each ended within 20% of the recording's length."""
        return tuple(abs(one - two) <= 0.2 * two for one, two in zip(self.frames, self.true_frames, strict=True))


@torch.no_grad()
def synthesize(place: Place, n: int = 300, batch_size: int = 32, order: bool = True) -> Spoken:
    """Let the Talker, its voices in turn, say `n` lines of the test split, or with `order=False` words at random."""
    codec, talker = place.trained(CodecStage()), place.trained(TalkerStage()).talker
    sayings = Sayings(place, codec, "test", n, order)
    waves: list[Tensor] = []
    frames: list[int] = []
    for at in range(0, n, batch_size):
        rows = [sayings.ids(index) for index in range(at, min(n, at + batch_size))]
        text, lengths = pad(rows)
        codes, ends = generate_batch(talker, text, max_frames(int(lengths.max())))
        frames += ends.tolist()
        waves += [codec.codec.decode(row[None, 1 : 1 + end])[0] for row, end in zip(codes, ends.tolist(), strict=True)]
    true_frames = tuple(len(sayings[index][1]) for index in range(n))
    return Spoken(tuple(map(sayings.text, range(n))), tuple(waves), tuple(frames), true_frames)


@torch.no_grad()
def real_time_factor(place: Place, n: int = 20) -> Rate:
    """Seconds of work for a second of speech, from text to sound, one sentence at a time: below 1 nobody waits."""
    codec, talker = place.trained(CodecStage()), place.trained(TalkerStage()).talker
    sayings = Sayings(place, codec, "test", n + 1, order=True)
    work, speech = [], []
    for index in range(n + 1):
        ids, start = sayings.ids(index)[None], time.perf_counter()
        wave = codec.codec.decode(generate_codes(talker, ids, max_frames(ids.shape[1]))[:, 1:])
        work.append(time.perf_counter() - start)
        speech.append(wave.shape[1] / SAMPLE_RATE)
    return Rate(tuple(work[1:]), tuple(speech[1:]))  # the first call prepares much that stays


def tts_cer(place: Place, spoken: Spoken, order: bool = True) -> dict[str, Rate]:
    """Text → speech → recogniser: the character error rate; beside it that of the recordings' codes, the ceiling."""
    ear, codec = place.trained(AudioStage()), place.trained(CodecStage())
    sayings = Sayings(place, codec, "test", len(spoken.texts), order)
    with torch.no_grad():
        ceiling = [codec.codec.decode(sayings[index][1][None])[0] for index in range(len(sayings))]
    heard = ear.transcribe(spoken.waves)
    return {
        "talker": cer(heard, spoken.texts),
        "its codec": cer(ear.transcribe(ceiling), spoken.texts),
        "texts exchanged": cer(heard, spoken.texts[1:] + spoken.texts[:1]),
    }
