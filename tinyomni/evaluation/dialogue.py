"""The whole model, end to end: a spoken question about an image never seen → a spoken answer, judged by recognisers.

    question, spoken ─┐
                      ├→ transcript → answer → speech → what a recogniser reads: is it the right answer?
    image ────────────┘

Right means that the recogniser reads the words of the right answer. One recogniser is the model's own, the other is the
independent ASR judge with a list of all answers.

Then inputs from outside the model's world: whether it says that it does not know, or is called unsure. And how often
right and wrong answers are called unsure.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tinyomni.config import IMAGE_SIZE, SAMPLE_RATE
from tinyomni.data import other_makers, unanswerable
from tinyomni.data.datasets import Sample, Scenes, pixels
from tinyomni.data.normalization import normalize_question
from tinyomni.data.tts import TTS_VOICES
from tinyomni.data.world import Question
from tinyomni.evaluation import asr_judge
from tinyomni.evaluation.asr_judge import words
from tinyomni.evaluation.recordings import CONDITIONS
from tinyomni.evaluation.registry import OUTSIDE, slug
from tinyomni.io.audio import AudioLike
from tinyomni.io.images import ImageLike, open_image
from tinyomni.metrics import Rate, accuracy
from tinyomni.omni import Omni
from tinyomni.reply import Reply


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


# ---- spoken question → spoken answer --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One question, the reply to it, and what two recognisers read in the spoken answer."""

    question: Question
    reply: Reply
    transcript: str  # by the model's own recogniser
    judge: list[str] | None  # words, by the independent one; None where it is not installed

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
        turns.append(Turn(sample.question, reply, transcript, judge))
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
