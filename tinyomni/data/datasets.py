"""The closed world as data sets: text, whole scenes, speech. Any item by its number, the same on every machine.

    Lines    one line of text                                          for the language model
    Scenes   a picture, what is said of it, a question and its answer, both also as speech; all of one scene
    Speech   one utterance: a line, a reply, or words in random order  for recogniser, codec and Talker

They are plain `torch.utils.data.Dataset`s, so DataLoader workers and a DistributedSampler work. `collate_*` pads them
to batches that carry their lengths.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tinyomni.data import unanswerable, world
from tinyomni.data.rendering import picture
from tinyomni.data.tts import STEADY, VOICES, SpeechCache
from tinyomni.data.world import SPLITS, Thing
from tinyomni.tokenizer import EOS, PAD

Encode = Callable[[str], list[int]]
WORDS_IN_RANDOM_ORDER = 0.25
REPLIES = 0.2


def check_size(name: str, split: str, size: int) -> None:
    """Raise ValueError for a split that there is not, or no items."""
    world.check_split(split)
    if size < 1:
        raise ValueError(f"{name}: size should be at least 1, got {size}")


def check_index(name: str, index: int, size: int) -> int:
    """Indices behind the end are an error, negative ones count from the end."""
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
    """How something is said."""

    voice: str
    rate: int
    pitch: int


def speaker(rng: random.Random, voices: Sequence[str], steady: bool = False) -> Speaker:
    """A voice, a rate and a pitch; `steady` is the same rate and pitch for all."""
    voice, rate, pitch = rng.choice(voices), rng.randint(140, 190), rng.randint(35, 65)
    return Speaker(voice, *STEADY) if steady else Speaker(voice, rate, pitch)


@dataclass(frozen=True)
class Sample:
    """One record: everything in it is about one scene. Speech is None where it was not asked for."""

    index: int
    things: tuple[Thing, ...]
    picture: Image.Image
    caption: str  # names every object
    statement: str  # says one thing
    question: str
    answer: str
    speaker: Speaker
    question_wave: Float[Tensor, "question_samples"] | None = None
    answer_wave: Float[Tensor, "answer_samples"] | None = None


class Scenes(Dataset[Sample]):
    """Scenes of a split. `hard=False` draws the easy pictures; `speech=False` leaves the sound out, which is quicker.

    `voices` are those of training; `voices=[speech.HELD_OUT_VOICE]` is a speaker that nobody has trained on. `heard`
    gives only questions that are spoken in training (True), or only those that never are (False); spoken training has
    no others. `easy=7` makes every seventh picture an easy one. `cache` is a folder in which speech is kept.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 10_000,
        seed: int = 0,
        hard: bool = True,
        speech: bool = True,
        voices: Sequence[str] = VOICES,
        heard: bool | None = None,
        cache: str | None = None,
        easy: int | None = None,
    ) -> None:
        check_size("Scenes", split, size)
        if easy is not None and easy < 1:
            raise ValueError(f"Scenes: easy should be 1 or more (every so many-th picture), got {easy}")
        if speech and split == "train":
            if heard is False:
                raise ValueError(
                    "Scenes: questions that are never heard in training cannot be spoken there: speech=False"
                )
            heard = True
        self.split, self.size, self.seed, self.hard, self.heard = split, size, seed, hard, heard
        self.speech, self.voices, self.cache = speech, tuple(voices), SpeechCache(cache)
        self.easy = easy

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        index = check_index("Scenes", index, self.size)
        return self.sample(index, self.things(index))

    def things(self, index: int) -> list[Thing]:
        """A scene in which there is something to ask that is wanted."""
        fit = (lambda things: True) if self.heard is None else (lambda things: bool(world.askable(things, self.wanted)))
        return world.draw_scene(self.split, index, self.seed, self.hard, fit)

    def wanted(self, question: str) -> bool:
        """Whether a question is among those that are asked here."""
        return self.heard is None or world.heard(question) == self.heard

    def sample(self, index: int, things: list[Thing]) -> Sample:
        """The record of a scene that is already there."""
        rng = random.Random(f"{self.seed} {self.split} sample {index}")
        question, answer = world.ask(things, rng, self.wanted)
        said = Sample(
            index=index,
            things=tuple(things),
            picture=picture(things, rng.randrange(2**32), self.hard and not (self.easy and index % self.easy == 0)),
            caption=world.description(things),
            statement=rng.choice(list(world.captions(things))),
            question=question,
            answer=answer[0].upper() + answer[1:],
            speaker=speaker(rng, self.voices),
        )
        if not self.speech:
            return said
        how = (said.speaker.voice, said.speaker.rate, said.speaker.pitch)
        return replace(
            said,
            question_wave=self.cache.utter(said.question, *how),
            answer_wave=self.cache.utter(said.answer, *how),
        )

    def with_negatives(self, index: int) -> list[Sample]:
        """The scene, and every scene that differs from it by one swap: a batch in which colours alone say nothing.

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
    """Something said."""

    wave: Float[Tensor, "samples"]
    text: str
    speaker: Speaker
    in_order: bool  # False: words in random order


def reply(split: str, index: int, seed: int = 0) -> str:
    """What the model has to say itself: bare answers, which are very short; descriptions; that it does not know."""
    rng, things = random.Random(f"{seed} {split} reply {index}"), world.draw_scene(split, index, seed)
    kind = rng.random()
    if kind < 0.7:
        return world.ask(things, rng)[1].capitalize()
    return world.in_order(things) if kind < 0.85 else rng.choice(unanswerable.ANSWERS)


class Speech(Dataset[Utterance]):
    """Utterances: a quarter (`shuffled`) words in random order, a fifth replies, the rest lines of the world.

    A recogniser that has only heard the grammar learns it by heart, and fails on the same words in another order. Every
    figure of a recogniser is reported for both: `in_order` says which is which; `order` gives only lines (True), or
    only words in random order. `steady` has all of them spoken at one rate and pitch, as the Talker learns to.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 10_000,
        seed: int = 0,
        order: bool | None = None,
        voices: Sequence[str] = VOICES,
        steady: bool = False,
        cache: str | None = None,
        shuffled: float = WORDS_IN_RANDOM_ORDER,
    ) -> None:
        check_size("Speech", split, size)
        self.split, self.size, self.seed, self.order, self.steady = split, size, seed, order, steady
        self.shuffled = shuffled
        self.voices, self.cache = tuple(voices), SpeechCache(cache)

    def __len__(self) -> int:
        return self.size

    def text(self, index: int) -> tuple[str, bool]:
        """What is said, and whether its words are in order; without saying it."""
        index = check_index("Speech", index, self.size)
        kind = random.Random(f"{self.seed} {self.split} speech {index}").random()
        if self.order is False or (self.order is None and kind < self.shuffled):
            return world.shuffled_words(index, self.seed, self.split), False
        if self.order is None and kind >= 1 - REPLIES:
            return reply(self.split, index, self.seed), True
        spoken = world.heard if self.split == "train" else lambda line: True
        return world.draw_line(self.split, index, self.seed, spoken), True

    def __getitem__(self, index: int) -> Utterance:
        text, in_order = self.text(index)
        who = speaker(random.Random(f"{self.seed} {self.split} voice {index % self.size}"), self.voices, self.steady)
        return Utterance(self.cache.utter(text, who.voice, who.rate, who.pitch), text, who, in_order)


# ---- batches --------------------------------------------------------------------------------------------------------


def pad(items: Sequence[Tensor], value: float = 0) -> tuple[Tensor, Int[Tensor, "batch"]]:
    """Tensors of different lengths → one, filled up with `value`, and the lengths."""
    lengths = torch.tensor([len(item) for item in items])
    return pad_sequence(list(items), batch_first=True, padding_value=value), lengths


def encode_all(encode: Encode, texts: Sequence[str]) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch"]]:
    """Texts → ids, each with its end, filled up with PAD; and how many there are of each."""
    ids, lengths = pad([torch.tensor([*encode(text), EOS]) for text in texts], PAD)
    return ids, lengths


class Movable:
    """A batch that can be sent to a device, or pinned, as one."""

    def to(self, device: torch.device | str) -> "Movable":
        """All tensors on another device."""
        moved = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        return replace(  # type: ignore[type-var]
            self, **{name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()}
        )

    def pin_memory(self) -> "Movable":
        """For DataLoader(pin_memory=True)."""
        moved = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        return replace(  # type: ignore[type-var]
            self, **{name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in moved.items()}
        )


@dataclass(frozen=True)
class SceneBatch(Movable):
    """Scenes side by side; texts end with EOS and are padded with PAD."""

    pixels: Float[Tensor, "batch channels height width"]
    caption: Int[Tensor, "batch caption_tokens"]
    caption_lengths: Int[Tensor, "batch"]
    question: Int[Tensor, "batch question_tokens"]
    question_lengths: Int[Tensor, "batch"]
    answer: Int[Tensor, "batch answer_tokens"]
    answer_lengths: Int[Tensor, "batch"]
    question_wave: Float[Tensor, "batch question_samples"] | None
    question_samples: Int[Tensor, "batch"] | None
    answer_wave: Float[Tensor, "batch answer_samples"] | None
    answer_samples: Int[Tensor, "batch"] | None


def pixels(image: Image.Image) -> Float[Tensor, "channels height width"]:
    """A drawn picture → floats in 0…1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def collate_scenes(samples: Sequence[Sample], encode: Encode) -> SceneBatch:
    """`DataLoader(Scenes(), collate_fn=functools.partial(collate_scenes, encode=tokenizer.encode))`."""
    waves: list[Tensor | None] = [None] * 4
    if all(sample.question_wave is not None for sample in samples):
        waves = [*pad([s.question_wave for s in samples if s.question_wave is not None]),
                 *pad([s.answer_wave for s in samples if s.answer_wave is not None])]  # fmt: skip
    return SceneBatch(
        torch.stack([pixels(sample.picture) for sample in samples]),
        *encode_all(encode, [sample.caption for sample in samples]),
        *encode_all(encode, [sample.question for sample in samples]),
        *encode_all(encode, [sample.answer for sample in samples]),
        *waves,
    )


@dataclass(frozen=True)
class SpeechBatch(Movable):
    """Utterances side by side, with their texts as they are."""

    wave: Float[Tensor, "batch samples"]
    samples: Int[Tensor, "batch"]
    texts: tuple[str, ...]
    in_order: Bool[Tensor, "batch"]


def collate_speech(items: Sequence[Utterance]) -> SpeechBatch:
    """`DataLoader(Speech(), collate_fn=collate_speech)`."""
    wave, lengths = pad([item.wave for item in items])
    return SpeechBatch(wave, lengths, tuple(i.text for i in items), torch.tensor([i.in_order for i in items]))
