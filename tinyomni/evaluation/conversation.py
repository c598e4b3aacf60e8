"""The figure that matters most: a spoken question about a picture never seen → a spoken answer, judged by listening.

    question, spoken ─┐
                      ├→ heard → answered → spoken → what an ear hears: is it the right answer?
    picture ──────────┘

Right means that the ear hears the words of the right answer. One ear is the model's own; the other is pocketsphinx with
a list of all answers that there are. It has to choose one, so words that are nearly right pass more easily.

And what lies outside the model's world: whether it says that it does not know, or is called unsure.
"""

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tinyomni.data import unanswerable, world
from tinyomni.data.datasets import Scenes, pixels
from tinyomni.evaluation.asr_judge import words
from tinyomni.io.files import IMAGE_SIZE, load_speech, open_image
from tinyomni.metrics import Rate, share
from tinyomni.omni import Omni, Reply

UNKNOWN = (unanswerable.DO_NOT_KNOW, unanswerable.SEE_NOTHING, unanswerable.HEARD_NOTHING, unanswerable.CANNOT_SEE)


def asked(omni: Omni, question: Any, picture: Any) -> Reply:
    """The whole reply to a question, typed or spoken (samples, rate)."""
    if isinstance(question, str):
        return omni.reply(question, picture).whole()
    return omni.reply(None, picture, load_speech(question)).whole()


# ---- spoken question → spoken answer --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One question, and what became of it."""

    question: str
    due: str
    reply: Reply
    own: str  # the spoken answer in the model's own ear
    other: list[str] | None  # in pocketsphinx's; None where there is none

    @property
    def heard(self) -> bool:
        """The question was written down without a fault."""
        return self.reply.heard == self.question

    @property
    def answered(self) -> bool:
        """The right answer, as text."""
        return self.reply.answer.lower() == self.due.lower()

    @property
    def said(self) -> bool:
        """The text of the answer, right or wrong, is heard again in its speech."""
        return words(self.own) == words(self.reply.answer)


def turns(omni: Omni, n: int = 200, cache: str | None = None, split: str = "test") -> list[Turn]:
    """Spoken questions about pictures of the split, in the voices of training; each answer is spoken too."""
    listen = other_ears()
    scenes, found = Scenes(split, n, cache=cache), []
    for index in range(n):
        sample = scenes[index]
        reply = asked(omni, (sample.question_wave, 16_000), sample.picture)
        wave = omni.speak(reply.answer or ".")
        own = "".join(omni.transcribe((wave, 16_000)))
        found.append(Turn(sample.question, sample.answer, reply, own, listen(wave) if listen else None))
    return found


def rates(found: list[Turn]) -> dict[str, Rate]:
    """The whole, its parts, and the control: the same speech held against the answer to the question before."""
    rows = {
        "right, own ear": share([words(each.own) == words(each.due) for each in found]),
        "heard right": share([each.heard for each in found]),
        "answered right": share([each.answered for each in found]),
        "spoken right, own ear": share([each.said for each in found]),
        "answers exchanged": share([words(one.own) == words(two.due) for one, two in zip(found, found[1:] + found[:1],
                                                                                        strict=True)]),
    }  # fmt: skip
    if all(each.other is not None for each in found):
        rows["right, other ears"] = share([each.other == words(each.due) for each in found])
    return rows


@functools.cache
def answers() -> tuple[str, ...]:
    """Every answer that a scene can give, and those of who does not know."""
    drawn = {answer.lower() for index in range(3000) for _, answer in world.questions(world.draw_scene("train", index))}
    return tuple(sorted({" ".join(words(each)) for each in (*drawn, *UNKNOWN)}))


@functools.cache
def other_ears() -> Any:
    """A function from sound to words, or None where pocketsphinx is not installed."""
    try:
        import pocketsphinx
    except ImportError:
        return None
    ears = pocketsphinx.Decoder(samprate=16_000, lm=None, loglevel="FATAL", bestpath=False)
    ears.add_jsgf_string("answers", f"#JSGF V1.0;\ngrammar answers;\npublic <answer> = {' | '.join(answers())};\n")
    ears.activate_search("answers")

    def hear(wave: Float[Tensor, "samples"]) -> list[str]:
        ears.start_utt()
        ears.process_raw((wave.clamp(-1, 1) * 32767).short().numpy().tobytes(), full_utt=True)
        ears.end_utt()
        found = ears.hyp()
        return words(found.hypstr) if found else []

    return hear


# ---- outside of the world -------------------------------------------------------------------------------------------


def outside(omni: Omni, n: int = 100) -> Iterator[tuple[str, Rate, Rate]]:
    """Of each kind of what it cannot know: how often it says so, and how often it says so or is called unsure."""
    scenes = Scenes("test", n, speech=False)
    photograph = crops(n)

    def ask(kind: str, index: int) -> Reply:
        rng, sample = random.Random(f"test outside {index}"), scenes[index]
        if kind == "no speech":
            return asked(omni, (unanswerable.sound(rng, "test"), 16_000), None)
        if kind in ("not there", "unknown word"):
            return asked(omni, unanswerable.question(list(sample.things), rng, "test", kind), sample.picture)
        shown = {"no scene": unanswerable.picture(rng, "test"), "photograph": photograph[index], "no picture": None}
        return asked(omni, sample.question, shown[kind])

    for kind in ("not there", "unknown word", "no scene", "photograph", "no picture", "no speech"):
        replies = [ask(kind, index) for index in range(n)]
        says = [each.answer in UNKNOWN for each in replies]
        yield kind, share(says), share([one or bool(each.unsure) for one, each in zip(says, replies, strict=True)])


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
    for index in range(n):
        sample = Scenes("test", n, seed=1, speech=False)[index]
        reply = asked(omni, sample.question, sample.picture)
        flagged[reply.answer.lower() == sample.answer.lower()].append(bool(reply.unsure))
    return share(flagged[True]), share(flagged[False])
