"""How good are recogniser, codec and Talker? All are judged by what the recogniser makes of the audio."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.codec import SpeechCodec
from tinyomni.config import SAMPLE_RATE
from tinyomni.data.datasets import Utterance, pad
from tinyomni.data.tts import HELD_OUT_VOICE
from tinyomni.metrics import Rate, cer
from tinyomni.talker import generate_batch, generate_codes, max_frames
from tinyomni.training.recipe import RunDir
from tinyomni.training.stages.audio import AudioStage, recognition, speech
from tinyomni.training.stages.codec import SPEAKERS, CodecStage, frames_of
from tinyomni.training.stages.talker import TalkerDataset, TalkerStage

# ---- the recogniser -------------------------------------------------------------------------------------------------

TEST_SETS: dict[str, dict[str, Any]] = {
    "grammar": {"order": True},
    "shuffled words": {"order": False},
    "held-out voice": {"order": True, "voices": [HELD_OUT_VOICE]},
}


def test_set(run_dir: RunDir, name: str, n: int = 300, **options: Any) -> list[Utterance]:
    """Utterances of the test split: lines of the grammar, shuffled words, or lines in a held-out voice."""
    data = speech(run_dir, "test", n, **TEST_SETS[name], **options)
    return [data[index] for index in range(n)]


def asr_cer(run_dir: RunDir, n: int = 300) -> dict[str, Rate]:
    """CER on each of the test sets; as `baseline`, with the transcripts of other recordings."""
    stage = run_dir.trained(AudioStage())
    sets = {name: test_set(run_dir, name, n) for name in TEST_SETS}
    rates = {name: recognition(stage, utterances) for name, utterances in sets.items()}
    texts = [each.text for each in sets["grammar"]]
    transcripts = stage.transcribe([each.wave for each in sets["grammar"]])
    return rates | {"baseline": cer(transcripts, texts[1:] + texts[:1])}


# ---- the codec ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def round_trips(codec: SpeechCodec, waves: Sequence[Float[Tensor, "_"]]) -> dict[str, list[Float[Tensor, "_"]]]:
    """Recordings through the codec and back: by their codes; `unquantized`, so that only the vocoder loses something;
    and, as `baseline`, with the mean frame throughout.
    """
    latents = [codec.encode_latents(wave[None]) for wave in waves]
    mean = torch.cat(latents, dim=1).mean(dim=1, keepdim=True)
    return {
        "codes": [codec.decode(codec.rvq.encode(x))[0] for x in latents],
        "unquantized": [codec.vocoder.mel_to_audio(codec.mel(wave[None])[0], domain="log") for wave in waves],
        "baseline": [codec.decode_latents(mean.expand_as(x))[0] for x in latents],
    }


def codec_cer(run_dir: RunDir, n: int = 300, single_frame: bool = False) -> dict[str, Rate]:
    """CER of round trips, by the trained recogniser, on each test set."""
    asr, stage = run_dir.trained(AudioStage()), run_dir.trained(CodecStage(single_frame=single_frame))
    rates = {}
    for name in ("grammar", "shuffled words"):
        utterances = test_set(run_dir, name, n, **SPEAKERS)
        texts = [each.text for each in utterances]
        rates[f"{name}, recordings"] = recognition(asr, utterances)
        for how, waves in round_trips(stage.codec, [each.wave for each in utterances]).items():
            rates[f"{name}, {how}"] = cer(asr.transcribe(waves), texts)
    return rates


@torch.no_grad()
def codec_statistics(run_dir: RunDir, n: int = 300, single_frame: bool = False) -> tuple[float, list[float]]:
    """On the test split: the unexplained variance of the frames, and the utilization of each codebook."""
    stage = run_dir.trained(CodecStage(single_frame=single_frame))
    stage.held_out = frames_of(stage.codec, test_set(run_dir, "grammar", n, **SPEAKERS))
    found = stage.validate()
    return found.pop("loss"), list(found.values())


# ---- the Talker -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Synthesis:
    """Texts that the Talker spoke: the audio, and its frames beside those of the reference recording."""

    texts: tuple[str, ...]
    waves: tuple[Float[Tensor, "_"], ...]
    frames: tuple[int, ...]
    reference_frames: tuple[int, ...]

    @property
    def duration_right(self) -> tuple[bool, ...]:
        """Whether each is as long as its reference, within 20%."""
        return tuple(abs(one - two) <= 0.2 * two for one, two in zip(self.frames, self.reference_frames, strict=True))


@torch.no_grad()
def synthesize(run_dir: RunDir, n: int = 300, batch_size: int = 32, order: bool = True) -> Synthesis:
    """The Talker, in its voices by turns, speaks `n` lines of the test split, or with `order=False` shuffled words."""
    codec, talker = run_dir.trained(CodecStage()), run_dir.trained(TalkerStage()).talker
    examples = TalkerDataset(run_dir, codec, "test", n, order)
    waves: list[Tensor] = []
    frames: list[int] = []
    for at in range(0, n, batch_size):
        rows = [examples.ids(index) for index in range(at, min(n, at + batch_size))]
        text, lengths = pad(rows)
        codes, ends = generate_batch(talker, text, max_frames(int(lengths.max())))
        frames += ends.tolist()
        waves += [codec.codec.decode(row[None, 1 : 1 + end])[0] for row, end in zip(codes, ends.tolist(), strict=True)]
    reference_frames = tuple(len(examples[index][1]) for index in range(n))
    return Synthesis(tuple(map(examples.text, range(n))), tuple(waves), tuple(frames), reference_frames)


@torch.no_grad()
def real_time_factor(run_dir: RunDir, n: int = 20) -> Rate:
    """RTF: seconds of work per second of speech, from text to audio, one sentence at a time. Below 1 nobody waits."""
    codec, talker = run_dir.trained(CodecStage()), run_dir.trained(TalkerStage()).talker
    examples = TalkerDataset(run_dir, codec, "test", n + 1, order=True)
    work, speech = [], []
    for index in range(n + 1):
        ids, start = examples.ids(index)[None], time.perf_counter()
        wave = codec.codec.decode(generate_codes(talker, ids, max_frames(ids.shape[1]))[:, 1:])
        work.append(time.perf_counter() - start)
        speech.append(wave.shape[1] / SAMPLE_RATE)
    return Rate(tuple(work[1:]), tuple(speech[1:]))  # the first call is a warm-up


def tts_cer(run_dir: RunDir, spoken: Synthesis, order: bool = True) -> dict[str, Rate]:
    """CER of text → speech → recogniser; `codec`, that of the recordings' own codes, is the ceiling."""
    asr, codec = run_dir.trained(AudioStage()), run_dir.trained(CodecStage())
    examples = TalkerDataset(run_dir, codec, "test", len(spoken.texts), order)
    with torch.no_grad():
        ceiling = [codec.codec.decode(examples[index][1][None])[0] for index in range(len(examples))]
    transcripts = asr.transcribe(spoken.waves)
    return {
        "talker": cer(transcripts, spoken.texts),
        "codec": cer(asr.transcribe(ceiling), spoken.texts),
        "baseline": cer(transcripts, spoken.texts[1:] + spoken.texts[:1]),
    }
