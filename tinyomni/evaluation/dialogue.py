"""The whole model, end to end: a spoken question about an image never seen → a spoken answer, judged by recognisers.

    question, spoken ─┐
                      ├→ transcript → answer → speech → what a recogniser reads: is it the right answer?
    image ────────────┘

Right means that the recogniser reads the words of the right answer. One recogniser is the model's own, the other is the
independent ASR judge with a list of all answers; what it makes of the training's synthesizer is the ceiling.

Then inputs from outside the model's world: whether it says that it does not know, or is called unsure. And how often
right and wrong answers are called unsure.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tinyomni.config import IMAGE_SIZE, SAMPLE_RATE
from tinyomni.data import other_makers, unanswerable
from tinyomni.data.custom import open_data
from tinyomni.data.datasets import Sample, Scenes, pixels
from tinyomni.data.manifests import RowDataset
from tinyomni.data.normalization import normalize_question
from tinyomni.data.tts import FIXED_PROSODY, TALKER_VOICES, TTS_VOICES, SpeechCache
from tinyomni.data.world import Question
from tinyomni.evaluation import asr_judge
from tinyomni.evaluation.asr_judge import words
from tinyomni.evaluation.recordings import CONDITIONS
from tinyomni.evaluation.registry import OUTSIDE, slug
from tinyomni.io.audio import AudioLike
from tinyomni.io.images import ImageLike, open_image
from tinyomni.metrics import Rate, accuracy, cer
from tinyomni.omni import Omni
from tinyomni.reply import Reply, letters_of

SAYS_SO = ("I do not know", "I can see nothing", "I can count only", "I cannot see", "I heard nothing")
"""Beginnings of sentences that make no claim."""
REAL_SPEECH = Path(__file__).resolve().parents[2] / "data" / "real_speech"
"""Recordings of a person, where the package is in its repository."""


def ask(omni: Omni, question: str | AudioLike, image: ImageLike | None) -> Reply:
    """The finished reply to a question, typed (str; normalized as in the apps) or spoken (samples, rate)."""
    if isinstance(question, str):
        return omni.reply(normalize_question(question), image).finish()
    return omni.reply(None, image, question, trim=True).finish()


# ---- spoken questions in other recordings and voices ----------------------------------------------------------------


def recorded(omni: Omni, n: int, cache: str | None) -> Iterator[tuple[str, Rate]]:
    """The metrics of the part `recordings`: how many spoken questions are answered right, in each condition; then in
    each voice of another maker that is installed here.
    """

    def right(sample: Sample, wave: Float[np.ndarray, "samples"]) -> bool:
        reply = ask(omni, (wave.astype(np.float32), SAMPLE_RATE), sample.image)
        return reply.answer.lower() == sample.question.answer.lower()

    def questions(*voices: str) -> list[tuple[Sample, Float[np.ndarray, "samples"]]]:
        scenes = Scenes("test", n, seed=5, spoken_in_training=True, cache=cache, voices=voices)
        samples = [scenes[index] for index in range(n)]
        return [(each, each.question_wave.double().numpy()) for each in samples if each.question_wave is not None]

    asked = questions(*TTS_VOICES)
    for name, change in CONDITIONS.items():
        waves = [change(wave, np.random.default_rng(index)) for index, (_, wave) in enumerate(asked)]
        found = [right(sample, wave) for (sample, _), wave in zip(asked, waves, strict=True)]
        yield f"recordings.{slug(name)}", accuracy(found)
    for voice in other_makers.installed((*other_makers.HELD_OUT, *other_makers.TRAINED)):
        yield f"recordings.{slug(voice)}", accuracy([right(*each) for each in questions(voice)])


# ---- people ---------------------------------------------------------------------------------------------------------


def people(omni: Omni, n: int) -> tuple[Rate, Rate, Rate]:
    """Recordings of a person, of words that nobody asks here: the recogniser's character error rate, that of what was
    said in another recording, and how many replies are confident claims, with an image and without one.

    A reply that repeats what was said is right, and one that does not know claims nothing.
    """
    rows, scenes = open_data(REAL_SPEECH), Scenes("test", n, speech=False)
    assert isinstance(rows, RowDataset)
    picked = [rows[row] for row in random.Random("people").sample(range(len(rows)), min(n, len(rows)))]
    said, texts, confident = [], [each.texts["text"] for each in picked], []
    for index, (item, text) in enumerate(zip(picked, texts, strict=True)):
        assert item.wave is not None
        recording = item.wave, SAMPLE_RATE
        said.append(letters_of("".join(omni.transcribe(recording))))
        for image in (None, scenes[index].image):
            reply = ask(omni, recording, image)
            claims = not reply.answer.startswith(SAYS_SO) and letters_of(reply.answer) != text
            confident.append(claims and not reply.unsure)
    return cer(said, texts), cer(texts[1:] + texts[:1], texts), accuracy(confident)


# ---- spoken question → spoken answer --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One question, the reply to it, and what two recognisers read in the spoken answer."""

    question: Question
    reply: Reply
    transcript: str  # by the model's own recogniser
    judge: list[str] | None  # words, by the independent one; None where it is not installed
    recording: list[str] | None = None  # what that one reads where the synthesizer of the training says the answer

    @property
    def understood(self) -> bool:
        """Whether the transcript of the question is exact."""
        return self.reply.transcript == self.question.text

    @property
    def answered(self) -> bool:
        """Whether the text of the answer is right."""
        return self.reply.answer.lower() == self.question.answer.lower()

    @property
    def intelligible(self) -> bool:
        """Whether the spoken answer is read as its text, right or wrong."""
        return words(self.transcript) == words(self.reply.answer)


def dialogue(omni: Omni, n: int = 200, cache: str | None = None, split: str = "test") -> list[Turn]:
    """Spoken questions about images of the split, in the voices of training; each answer is spoken too."""
    judged = asr_judge.available()
    scenes, turns = Scenes(split, n, cache=cache), []
    for index in range(n):
        sample = scenes[index]
        assert sample.question_wave is not None
        reply = ask(omni, (sample.question_wave, SAMPLE_RATE), sample.image)
        wave = omni.speak(reply.answer or ".")
        transcript = "".join(omni.transcribe((wave, SAMPLE_RATE)))
        judge = asr_judge.transcribe(wave, "answers") if judged else None
        ceiling = SpeechCache(cache).utter(sample.question.answer, TALKER_VOICES[0], *FIXED_PROSODY)
        recording = asr_judge.transcribe(ceiling, "answers") if judged else None
        turns.append(Turn(sample.question, reply, transcript, judge, recording))
    return turns


def dialogue_rates(turns: list[Turn]) -> dict[str, Rate]:
    """The whole, its parts, and the baseline: the same speech compared with the answer to the next question."""
    answers = [words(turn.question.answer) for turn in turns]
    rates = {
        "accuracy": accuracy([words(turn.transcript) == answer for turn, answer in zip(turns, answers, strict=True)]),
        "transcript": accuracy([turn.understood for turn in turns]),
        "answer": accuracy([turn.answered for turn in turns]),
        "speech": accuracy([turn.intelligible for turn in turns]),
        "baseline": accuracy([words(turn.transcript) == answer
                              for turn, answer in zip(turns, answers[1:] + answers[:1], strict=True)]),
    }  # fmt: skip
    if all(turn.judge is not None for turn in turns):
        rates["accuracy_judge"] = accuracy([turn.judge == answer for turn, answer in zip(turns, answers, strict=True)])
        rates["recording_judge"] = accuracy(
            [turn.recording == answer for turn, answer in zip(turns, answers, strict=True)]
        )
    return rates


# ---- outside of the world -------------------------------------------------------------------------------------------


def outside(omni: Omni, n: int = 100) -> Iterator[tuple[str, Rate, Rate]]:
    """For each kind of input in OUTSIDE: how often the model says that it does not know, and how often it says so or is
    called unsure.
    """
    scenes, photographs = Scenes("test", n, speech=False), crops(n)

    def reply_to(kind: str, index: int) -> Reply:
        rng, sample = random.Random(f"test outside {index}"), scenes[index]
        if kind == "no speech":
            return ask(omni, (unanswerable.audio(rng, "test"), SAMPLE_RATE), None)
        if kind in unanswerable.ABOUT:
            return ask(omni, unanswerable.question(sample.things, rng, "test", kind).text, sample.image)
        shown: dict[str, ImageLike | None] = {
            "no scene": unanswerable.image(rng, "test"), "photograph": photographs[index], "no image": None,
        }  # fmt: skip
        return ask(omni, sample.question.text, shown[kind])

    for kind in OUTSIDE:
        replies = [reply_to(kind, index) for index in range(n)]
        says = [reply.answer in unanswerable.ANSWERS for reply in replies]
        yield kind, accuracy(says), accuracy([s or bool(r.unsure) for s, r in zip(says, replies, strict=True)])


def crops(n: int) -> list[Float[Tensor, "channels height width"]]:
    """Pieces of a real photograph, the portrait that comes with matplotlib."""
    from matplotlib.cbook import get_sample_data

    photograph = open_image(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    rng, found = random.Random(0), []
    for _ in range(n):
        side = rng.randint(160, min(photograph.size))
        left, top = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
        part = photograph.crop((left, top, left + side, top + side)).resize((IMAGE_SIZE, IMAGE_SIZE))
        found.append(pixels(part))
    return found


def unsure(omni: Omni, n: int = 200) -> tuple[Rate, Rate]:
    """Typed questions about test scenes: how many right answers are called unsure, and how many wrong ones."""
    flagged: dict[bool, list[bool]] = {True: [], False: []}
    scenes = Scenes("test", n, seed=1, speech=False)
    for index in range(n):
        sample = scenes[index]
        reply = ask(omni, sample.question.text, sample.image)
        flagged[reply.answer.lower() == sample.answer.lower()].append(bool(reply.unsure))
    return accuracy(flagged[True]), accuracy(flagged[False])
