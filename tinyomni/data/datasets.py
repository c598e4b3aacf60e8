"""The closed world as map-style data sets: any item by its index, the same on every machine.

    Lines    one line of text                                          for the language model
    Scenes   an image, captions, a question and its answer, both also as speech; all about one scene
    Speech   one utterance: a line, a reply, or words in random order  for recogniser, codec and Talker

They are `torch.utils.data.Dataset`s, so DataLoader workers and a DistributedSampler work.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tinyomni.config import STYLES
from tinyomni.data import randomization, unanswerable, wordings, world
from tinyomni.data.rendering import render
from tinyomni.data.tts import FIXED_PROSODY, TTS_VOICES, SpeechCache
from tinyomni.data.world import SPLITS, Question, Thing
from tinyomni.errors import InputError
from tinyomni.tokenizer import EOS, PAD

Encode = Callable[[str], list[int]]
PLAIN_SHARE = 0.12  # of the images of the wide style: else what was learned of them is lost
SHUFFLED = 0.25  # of the utterances are words in random order
REPLIES = 0.2  # are replies; all others are lines
SPOKEN_WORDINGS = 0.4  # of the spoken questions of the wide style are worded as people do
WORDINGS = 0.2  # of the wide style: what people say beside them


def check_size(name: str, split: str, size: int) -> None:
    """Raise InputError for an unknown split, or a size below 1."""
    world.check_split(split)
    if size < 1:
        raise InputError(f"{name}: size must be at least 1, got {size}")


def check_style(style: str) -> None:
    """Raise InputError for an unknown style."""
    if style not in STYLES:
        raise InputError(f"style must be {' or '.join(map(repr, STYLES))}, got {style!r}")


def check_index(name: str, index: int, size: int) -> int:
    """A negative index counts from the end. Raises IndexError behind the end."""
    if not -size <= index < size:
        raise IndexError(f"{name}: index {index} is outside 0 … {size - 1}")
    return index % size


class Lines(Dataset[str]):
    """Lines of text."""

    def __init__(self, split: str = "train", size: int = 100_000, seed: int = 0) -> None:
        check_size("Lines", split, size)
        self.split, self.size, self.seed = split, size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str:
        return world.draw_line(self.split, check_index("Lines", index, self.size), self.seed)


@dataclass(frozen=True)
class Speaker:
    """A synthesizer's voice, its rate in words per minute and its pitch."""

    voice: str
    rate: int
    pitch: int


def draw_speaker(rng: random.Random, voices: Sequence[str], fixed_prosody: bool = False) -> Speaker:
    """A voice with a random rate and pitch, or with those of FIXED_PROSODY."""
    voice, rate, pitch = rng.choice(voices), rng.randint(140, 190), rng.randint(35, 65)
    return Speaker(voice, *FIXED_PROSODY) if fixed_prosody else Speaker(voice, rate, pitch)


@dataclass(frozen=True)
class Sample:
    """One record: everything in it is about one scene. The waves are None where no speech was asked for."""

    index: int
    things: tuple[Thing, ...]
    image: Image.Image
    caption: str  # names every thing
    statement: str  # says one fact
    question: Question
    speaker: Speaker
    question_wave: Float[Tensor, "question_samples"] | None = None
    answer_wave: Float[Tensor, "answer_samples"] | None = None
    shown: np.ndarray | None = None  # which thing each patch shows, where the image was randomized
    unclear: str | None = None  # of unanswerable.UNCLEAR_IMAGES: then the image has no description

    @property
    def answer(self) -> str:
        """The answer to the question."""
        return self.question.answer


class Scenes(Dataset[Sample]):
    """Scenes of a split. `hard=False` renders the easy images; `speech=False` leaves out the speech, which is quicker.

    `voices` are those of training by default; `voices=[tts.HELD_OUT_VOICE]` is a speaker that no training has heard.
    `spoken_in_training` gives only questions that are spoken in training (True), or only those that never are (False);
    spoken training data have no others. `easy=7` makes every seventh image an easy one. `cache` is a folder for speech.
    `style="wide"` draws all images but PLAIN_SHARE of them by `randomization`; over the first `ramp` scenes they vary
    more and more.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 10_000,
        seed: int = 0,
        hard: bool = True,
        speech: bool = True,
        voices: Sequence[str] = TTS_VOICES,
        spoken_in_training: bool | None = None,
        cache: str | None = None,
        easy: int | None = None,
        style: str = "plain",
        ramp: int = 0,
    ) -> None:
        check_size("Scenes", split, size)
        check_style(style)
        if easy is not None and easy < 1:
            raise InputError(f"Scenes: easy must be at least 1 (every n-th image), got {easy}")
        if speech and split == "train":
            if spoken_in_training is False:
                raise InputError(
                    "Scenes: expected speech=False for questions that are never spoken in training, got speech=True"
                )
            spoken_in_training = True
        self.split, self.size, self.seed, self.hard, self.easy = split, size, seed, hard, easy
        self.spoken_in_training = spoken_in_training
        self.style, self.ramp = style, ramp
        self.speech, self.voices, self.cache = speech, tuple(voices), SpeechCache(cache)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        index = check_index("Scenes", index, self.size)
        return self.sample(index, self.things(index))

    def things(self, index: int) -> list[Thing]:
        """A scene about which an accepted question can be asked."""
        if self.spoken_in_training is None:
            return world.draw_scene(self.split, index, self.seed, self.hard)
        accept = lambda things: bool(world.questions_by_kind(things, self.accepts))  # noqa: E731
        return world.draw_scene(self.split, index, self.seed, self.hard, accept)

    def accepts(self, question: Question) -> bool:
        """Whether a question is among those that are asked here."""
        return self.spoken_in_training in (None, world.spoken_in_training(question.text))

    def sample(self, index: int, things: Sequence[Thing]) -> Sample:
        """The record of a given scene."""
        rng = random.Random(f"{self.seed} {self.split} sample {index}")
        question = world.draw_question(things, rng, self.accepts)
        if self.style == "wide" and self.speech and rng.random() < SPOKEN_WORDINGS:
            question = wordings.draw_question(things, rng, spoken=True)
        image, shown = self.draw(index, things, rng.randrange(2**32))
        sample = Sample(
            index=index,
            things=tuple(things),
            image=image,
            shown=shown,
            caption=world.description(things),
            statement=rng.choice(list(world.captions(things))),
            question=question,
            speaker=draw_speaker(rng, self.voices),
        )
        if not self.speech:
            return sample
        how = (sample.speaker.voice, sample.speaker.rate, sample.speaker.pitch)
        return replace(
            sample,
            question_wave=self.cache.utter(question.text, *how),
            answer_wave=self.cache.utter(question.answer, *how),
        )

    def draw(self, index: int, things: Sequence[Thing], seed: int) -> tuple[Image.Image, np.ndarray | None]:
        """The image of a scene, and what its patches show, if that depends on the image."""
        easy = self.easy and index % self.easy == 0
        if self.style == "plain" or easy or random.Random(f"plain {seed}").random() < PLAIN_SHARE:
            return render(things, seed, self.hard and not easy), None
        image, shown, _ = randomization.render(things, seed, self.how(index))
        return image, shown

    def unclear(self, index: int) -> Sample:
        """A sample whose image has no description; its question is about another scene, and nobody knows the answer.

        It has things only where one of them has a foreign shape.
        """
        rng = random.Random(f"{self.seed} {self.split} unclear {index}")
        kind = unanswerable.unclear_kind(rng)
        image, shown, things = unanswerable.unclear_image(kind, rng, self.split, self.how(index))
        said = unanswerable.UNCLEAR_IMAGES[kind]
        question = unanswerable.unanswered(world.draw_question(self.things(index), rng))
        return Sample(
            index, things, image, said, said, question, draw_speaker(rng, self.voices), shown=shown, unclear=kind
        )

    def how(self, index: int) -> randomization.Randomization:
        """How far the image of this index varies."""
        return randomization.WIDE.scaled(min(1.0, (index + 1) / self.ramp)) if self.ramp else randomization.WIDE

    def with_negatives(self, index: int) -> list[Sample]:
        """The scene, and every scene that differs from it by one swap: hard negatives for contrastive retrieval.

        In training, swaps that belong to another split are left out.
        """
        index = check_index("Scenes", index, self.size)
        things = self.things(index)
        splits = ("train",) if self.split == "train" else tuple(s for s in SPLITS if s != "compositional")
        swaps = [each for each in world.hard_negatives(things)
                 if self.split == "compositional" or world.split_of_scene(each) in splits]  # fmt: skip
        return [self.sample(index, each) for each in (things, *swaps)]


@dataclass(frozen=True)
class Utterance:
    """A recording, its transcript and its speaker."""

    wave: Float[Tensor, "samples"]
    text: str
    speaker: Speaker
    in_order: bool  # False: words in random order


def reply(split: str, index: int, seed: int = 0) -> str:
    """Something that the model has to say: bare answers, which are very short, descriptions, and that it does not
    know.
    """
    rng, things = random.Random(f"{seed} {split} reply {index}"), world.draw_scene(split, index, seed)
    kind = rng.random()
    if kind < 0.7:
        return world.draw_question(things, rng).answer
    return world.ordered_description(things) if kind < 0.85 else rng.choice(unanswerable.ANSWERS)


def worded(split: str, index: int, seed: int = 0) -> str:
    """What people say beside the lines of the world: other wordings of questions, small talk, sentences about images
    that have no description.
    """
    rng = random.Random(f"{seed} {split} worded {index}")
    kind = rng.random()
    if kind < 0.7:
        return wordings.draw_question(world.draw_scene(split, index, seed), rng, spoken=True).text
    talk = [*wordings.SMALL_TALK, *wordings.SMALL_TALK.values(), *wordings.DESCRIBE]
    return rng.choice(talk) if kind < 0.9 else rng.choice(list(unanswerable.UNCLEAR_IMAGES.values()))


class Speech(Dataset[Utterance]):
    """Utterances: a quarter (`shuffled`) words in random order, a fifth replies, the others lines of the world.

    A recogniser that has only heard the grammar memorizes it, and fails on the same words in another order. So every
    metric of a recogniser is reported for both: `in_order` tells them apart; `order` gives only lines (True), or only
    words in random order (False). With `fixed_prosody` all have one rate and pitch, as the Talker learns it.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 10_000,
        seed: int = 0,
        order: bool | None = None,
        voices: Sequence[str] = TTS_VOICES,
        fixed_prosody: bool = False,
        cache: str | None = None,
        shuffled: float = SHUFFLED,
        style: str = "plain",
    ) -> None:
        check_size("Speech", split, size)
        check_style(style)
        self.style = style
        self.split, self.size, self.seed, self.order = split, size, seed, order
        self.shuffled, self.fixed_prosody = shuffled, fixed_prosody
        self.voices, self.cache = tuple(voices), SpeechCache(cache)

    def __len__(self) -> int:
        return self.size

    def text(self, index: int) -> tuple[str, bool]:
        """The transcript, and whether its words are in order; nothing is synthesized."""
        index = check_index("Speech", index, self.size)
        kind = random.Random(f"{self.seed} {self.split} speech {index}").random()
        if self.order is False or (self.order is None and kind < self.shuffled):
            return world.shuffled_words(index, self.seed, self.split), False
        if self.order is None and kind >= 1 - REPLIES:
            return reply(self.split, index, self.seed), True
        if self.style == "wide" and self.order is None and kind >= 1 - REPLIES - WORDINGS:
            return worded(self.split, index, self.seed), True
        accept = world.line_spoken_in_training if self.split == "train" else lambda line: True
        return world.draw_line(self.split, index, self.seed, accept), True

    def __getitem__(self, index: int) -> Utterance:
        text, in_order = self.text(index)
        rng = random.Random(f"{self.seed} {self.split} voice {index % self.size}")
        speaker = draw_speaker(rng, self.voices, self.fixed_prosody)
        return Utterance(self.cache.utter(text, speaker.voice, speaker.rate, speaker.pitch), text, speaker, in_order)


# ---- batches --------------------------------------------------------------------------------------------------------


def pad(items: Sequence[Tensor], value: float = 0) -> tuple[Tensor, Int[Tensor, "batch"]]:
    """Tensors of different lengths → one, padded with `value`, and the lengths."""
    lengths = torch.tensor([len(item) for item in items])
    return pad_sequence(list(items), batch_first=True, padding_value=value), lengths


def encode_all(encode: Encode, texts: Sequence[str]) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch"]]:
    """Texts → ids with EOS, padded with PAD, and their lengths."""
    ids, lengths = pad([torch.tensor([*encode(text), EOS]) for text in texts], PAD)
    return ids, lengths


def pixels(image: Image.Image) -> Float[Tensor, "channels height width"]:
    """A rendered image → floats in 0…1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class SpeechBatch:
    """Padded recordings with their lengths and transcripts."""

    wave: Float[Tensor, "batch samples"]
    samples: Int[Tensor, "batch"]
    texts: tuple[str, ...]
    in_order: Bool[Tensor, "batch"]


def collate_speech(items: Sequence[Utterance]) -> SpeechBatch:
    """`DataLoader(Speech(), collate_fn=collate_speech)`."""
    wave, lengths = pad([item.wave for item in items])
    return SpeechBatch(wave, lengths, tuple(i.text for i in items), torch.tensor([i.in_order for i in items]))
