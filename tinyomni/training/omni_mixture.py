"""What the stage omni is trained on: a mixture of tasks in the closed world, or the rows of custom data.

An answer is preceded by a scratchpad: first the transcript and the description of the scene, then the answer.

    What colour is the star? There is a big red star on the left and a small grey ring at the top.
    Colour star red: Red.

In the wide style special tokens stand before the description and before the answer (`tokenizer.Separators`).

The answer is then retrieved from text, as a field, a key and the value right behind it (`data/retrieval.py`). Out of
one vector it has to be picked in a few layers, before a word is said; so learned, choosing among three things stayed
near guessing. Retrieval is learned first, from short lists, and continues beside the images: from questions alone it is
hardly learned, since most of an example says nothing about it.

Sources: Nye et al., Show Your Work: Scratchpads (2021), arXiv:2112.00114; Bengio et al., Curriculum Learning (2009),
ICML, for what is easy first.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from tinyomni.data import retrieval, unanswerable, wordings, world
from tinyomni.data.datasets import Encode, Lines, Sample, Scenes, Speech, Utterance, pixels
from tinyomni.data.manifests import COLUMNS, Item
from tinyomni.data.normalization import normalize_question
from tinyomni.data.world import Question
from tinyomni.reply import SCRATCHPAD_END
from tinyomni.tokenizer import BOS, EOS, Separators
from tinyomni.training.augment import add_room_noise, as_recorded
from tinyomni.training.omni_examples import OmniExample

DESCRIBE = ("Describe the image.", "What do you see in this image?", "What do you see?")
REPEAT = ("", "What was said?", "What did you hear?", "Repeat what you heard.")
BOTH = ("Describe what you see and hear.", "Describe what you can see and hear.")
REPLIES = {
    "Hello, how are you?": "I am fine, thank you.",
    "How are you today?": "I am fine, thank you.",
    "Thank you very much.": "You are welcome.",
    "Can you help me?": "Of course I can.",
    "Good night.": "See you soon.",
    "What time is it?": unanswerable.DO_NOT_KNOW,
    "Where are we now?": unanswerable.DO_NOT_KNOW,
}
TYPED = 8  # typed questions in an item
SHORT, LONG = 2, 3  # retrieval examples in it: short lists, whole descriptions
WARMUP_LISTS = 16  # short lists in an item of the warm-up, which holds nothing else

# of the wide style, of the typed questions: kinds that are learned late come more often than people ask them
P_UNCLEAR = 0.15  # about an image that has no description
P_COMPARED = 0.15  # how many are big, or whether the star is red: the looked-up value is counted, or compared
P_NORMALIZED = 0.8  # how often what is typed is read as the apps read it; the library's own calls do not

Featurize = Callable[[OmniExample], OmniExample]


def scratchpad(scene: str, question: Question) -> str:
    """`There is a big red star on the left. Colour star red: Red.`: the answer after what it follows from."""
    found = retrieval.lookup(question)
    before = f"{scene} {found}" if found else scene.removesuffix(".")
    return f"{before}{SCRATCHPAD_END}{question.answer}"


def as_typed(text: str, rng: random.Random) -> str:
    """The text as it reaches the model: typed, now and then carelessly, and mostly normalized."""
    text = wordings.typed(text, rng)
    return normalize_question(text) if rng.random() < P_NORMALIZED else text


def normalized(turns: Sequence[wordings.Turn]) -> list[wordings.Turn]:
    """Questions that were asked before, as a conversation keeps them."""
    return [turn._replace(question=normalize_question(turn.question)) for turn in turns]


class OmniMixture(Dataset[list[OmniExample]]):
    """An item holds typed questions, each about an image of its own; a caption; a spoken question; something to repeat;
    text alone; something unanswerable (`data/unanswerable.py`); and retrieval. The first `warmup_items` hold short
    lists for retrieval, and nothing else.

    Questions about one image teach little more than one of them does. Measured once, with an earlier image encoder, on
    19,000 typed questions: with eight about each image 60% of some 700 held-out ones were answered right, with one 67%.

    `featurize` replaces image and audio by the encoders' features, which stay in memory, so that a repeated image costs
    nothing. The questions differ each time. The items of seed 1 are those that would follow those of seed 0.
    """

    def __init__(
        self,
        encode: Encode,
        scenes: Scenes,
        size: int,
        spoken_questions: Scenes | None = None,
        speech: Speech | None = None,
        featurize: Featurize | None = None,
        warmup_items: int = 0,
        seed: int = 0,
        style: str = "plain",
        separators: Separators | None = None,
    ) -> None:
        self.encode, self.scenes, self.size, self.separators = encode, scenes, size, separators
        self.spoken_questions, self.speech = spoken_questions, speech
        self.featurize, self.warmup_items, self.offset = featurize, warmup_items, seed * size
        self.style = style
        self.lines = Lines(scenes.split, size + self.offset)
        self.cache: dict[tuple[Scenes | Speech, int], OmniExample] = {}

    def __len__(self) -> int:
        return self.size

    def example(self, prompt: str, answer: str, **inputs: Any) -> OmniExample:
        """Texts → ids."""
        return OmniExample([BOS, *self.encode(prompt)], [*self.encode(answer), EOS], **inputs)

    def question_example(
        self, prompt: str, scene: str, question: Question, transcript: str = "", **inputs: Any
    ) -> OmniExample:
        """A question, whose answer follows a scratchpad, and that the transcript if it was spoken."""
        written = scratchpad(scene, question)
        if self.separators is None:
            return self.example(prompt, f"{transcript} {written}".lstrip(), **inputs)
        before, _, answer = written.rpartition(SCRATCHPAD_END)
        ids = [*self.encode(transcript), self.separators.scratchpad, *self.encode(before)]
        ids += [self.separators.answer, *self.encode(answer), EOS]
        return OmniExample([BOS, *self.encode(prompt)], ids, **inputs)

    def __getitem__(self, index: int) -> list[OmniExample]:
        warmup = index < self.warmup_items
        index += self.offset
        rng = random.Random(f"{self.scenes.split} mix {index}")
        if warmup:
            return self.retrieval_examples(rng, short=WARMUP_LISTS)
        numbers = [(TYPED * index + i) % len(self.scenes) for i in range(TYPED)]
        seen = [(self.scenes.things(number), self.cached(self.scenes, number)) for number in numbers]
        typed = []
        for things, scene in seen:
            if self.style == "wide" and rng.random() < P_UNCLEAR:
                typed.append(self.with_features(self.unclear_example(things, rng)))
                continue
            text, question = self.typed_question(things, rng)
            typed.append(self.question_example(text, world.ordered_description(things), question, image=scene.image))
        things, scene = seen[0]
        describe = rng.choice(DESCRIBE) if self.style == "plain" else self.describe(rng, things)
        caption = self.example(describe, world.ordered_description(things), image=scene.image)
        return [
            *typed,
            caption,
            *self.spoken_examples(index, caption, rng),
            self.text_example(index, rng) if self.style == "plain" else self.small_talk(index, things, scene, rng),
            self.unanswerable_example(index, things, scene),
            *self.retrieval_examples(rng, SHORT, LONG),
        ]

    # -- the wide style

    def typed_question(self, things: list[world.Thing], rng: random.Random) -> tuple[str, Question]:
        """A prompt, and the question in it. Of the wide style it is worded and typed as people do, and every third one
        follows on others.
        """
        if self.style == "plain":
            question = world.draw_question(things, rng)
            return question.text, question
        if rng.random() < 1 / 3:
            turns, question = wordings.conversation(things, rng)
            return wordings.prompt(normalized(turns), as_typed(question.text, rng)), question
        question = self.compared(things, rng) if rng.random() < P_COMPARED else wordings.draw_question(things, rng)
        return as_typed(question.text, rng), question

    def compared(self, things: list[world.Thing], rng: random.Random) -> Question:
        """How many are of a size or a colour, or whether a thing is as the question has it."""
        family = rng.choice(("people", None))
        if rng.random() < 0.5 and (found := wordings.is_it(things, rng, family)):
            return found
        return wordings.counts_of_a_field(things, rng, family)

    def describe(self, rng: random.Random, things: list[world.Thing] | None = None) -> str:
        """Ask for a description; with `things`, every fourth time after a conversation about them."""
        texts = wordings.WRITTEN["people"]["describe"] if rng.random() < wordings.P_PEOPLE else wordings.DESCRIBE
        turns = wordings.conversation(things, rng)[0] if things and rng.random() < 0.25 else []
        return wordings.prompt(normalized(turns), as_typed(rng.choice(texts), rng))

    def small_talk(self, index: int, things: list[world.Thing], scene: OmniExample, rng: random.Random) -> OmniExample:
        """Text alone; a question about an image that is not there; or small talk, every other time while an image is
        there, and then every other time after a conversation about it.
        """
        kind = rng.choice(("text", "text", "no image", "talk", "talk"))
        if kind == "text":
            return self.text_example(index, rng)
        if kind == "no image":
            asked = (
                self.describe(rng) if rng.random() < 0.4 else as_typed(wordings.draw_question(things, rng).text, rng)
            )
            return self.example(asked, unanswerable.CANNOT_SEE)
        text, answer = rng.choice(list(wordings.SMALL_TALK.items()))
        image = scene.image if rng.random() < 0.5 else None
        turns = wordings.conversation(things, rng)[0] if image is not None and rng.random() < 0.5 else []
        return self.example(wordings.prompt(normalized(turns), as_typed(text, rng)), answer, image=image)

    def unclear_example(self, things: list[world.Thing], rng: random.Random) -> OmniExample:
        """An image that has no description: its sentence, or a question, whose answer is not known. In an empty one
        there are no things: that is counted.
        """
        kind = unanswerable.unclear_kind(rng)
        said = unanswerable.UNCLEAR_IMAGES[kind]
        image = unanswerable.unclear_image(kind, rng, self.scenes.split).image
        inputs: dict[str, Any] = {"image": pixels(image)}
        if rng.random() < 0.4:
            return self.example(self.describe(rng), said, **inputs)
        question = unanswerable.unanswered(wordings.draw_question(things, rng))
        if kind == "empty" and rng.random() < 0.3:
            question = wordings.draw_question([], rng)
        elif kind == "too many" and question.kind == "count":
            question = replace(question, answer=unanswerable.COUNT_TO_THREE)
        return self.question_example(as_typed(question.text, rng), said, question, **inputs)

    def retrieval_examples(self, rng: random.Random, short: int, long: int = 0) -> list[OmniExample]:
        """Short lists and whole descriptions, of two things or three, in each of which much is looked up.

        Only the values are learned: what is looked up is chosen at random, and cannot be predicted.
        """
        examples = []
        for number in range(short + long):
            things: list[world.Thing] = []
            while len(things) < 2:
                things = self.scenes.things(rng.randrange(len(self.scenes)))
            text, found = retrieval.draw(things, rng, number < short)
            ids: list[int] = []
            loss_mask: list[bool] = []
            for each in found:
                for part, learned in ((f"{each.keyword} {each.key}", False), (each.value, True), (".", False)):
                    new = self.encode(part)
                    ids += new
                    loss_mask += [learned] * len(new)
            examples.append(OmniExample([BOS, *self.encode(text)], ids, loss_mask=tuple(loss_mask)))
        return examples

    def spoken_examples(self, index: int, caption: OmniExample, rng: random.Random) -> list[OmniExample]:
        """A spoken question, and something to repeat, sometimes together with an image that is to be described."""
        questions = self.spoken_questions
        examples = [] if questions is None else [self.cached(questions, index % len(questions))]
        if self.speech is None:
            return examples
        repeat = self.cached(self.speech, index % len(self.speech))
        if rng.random() < 0.2:
            both = replace(caption, prompt=[BOS, *self.encode(rng.choice(BOTH))])
            return [*examples, replace(both, answer=[*caption.answer[:-1], *repeat.answer], audio=repeat.audio)]
        return [*examples, replace(repeat, prompt=[BOS, *self.encode(rng.choice(REPEAT))])]

    def text_example(self, index: int, rng: random.Random) -> OmniExample:
        """Text alone: a line, or one with a reply. A question about an image that is not there gets no guess."""
        if rng.random() < 0.2:
            return self.example(*rng.choice(list(REPLIES.items())))
        line = self.lines[index]
        if question := world.question_of(line):
            return self.example(question, unanswerable.CANNOT_SEE)
        return self.example("", line)

    def unanswerable_example(self, index: int, things: list[world.Thing], scene: OmniExample) -> OmniExample:
        """An example whose answer is "I do not know"; every other time about the scene itself.

        The scratchpad has the description here too: whether a thing is there is known only then.
        """
        split = self.scenes.split
        rng = random.Random(f"{split} strange {index}")
        kind = rng.choice(("question", "question", "question", "image", "image", "audio"))
        if kind == "question":
            question = unanswerable.question(things, rng, split)
            text = question.text
            if self.style == "wide":
                family = wordings.draw_family(rng)
                text = as_typed(wordings.reword(question, things, rng, family), rng)
            return self.question_example(text, world.ordered_description(things), question, image=scene.image)
        if kind == "audio":
            example = self.example("", unanswerable.HEARD_NOTHING, audio=unanswerable.audio(rng, split))
        elif self.style == "wide":
            example = self.unclear_example(things, rng)
        else:
            prompt, asked = rng.choice(DESCRIBE), None
            if rng.random() < 0.7:
                asked = unanswerable.unanswered(world.draw_question(things, rng))
            inputs: dict[str, Any] = {"image": pixels(unanswerable.image(rng, split))}
            if asked is None:
                example = self.example(prompt, unanswerable.SEE_NOTHING, **inputs)
            else:
                example = self.question_example(asked.text, unanswerable.SEE_NOTHING, asked, **inputs)
        return self.with_features(example)

    def with_features(self, example: OmniExample) -> OmniExample:
        """Of images and recordings that come once: nothing of them is kept."""
        return example if self.featurize is None else self.featurize(example)

    def cached(self, source: Scenes | Speech, number: int) -> OmniExample:
        """The example of a record, from memory where its features are kept there."""
        found = self.cache.get((source, number))
        if found is None:
            found = self.example_of(source[number], torch.Generator().manual_seed(number))
            if self.featurize is not None:
                self.cache[source, number] = found = self.featurize(found)
        return found

    def recorded(self, wave: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Speech as it is recorded."""
        if self.style == "wide":
            return as_recorded(wave, generator=generator)
        return add_room_noise(wave, generator)

    def example_of(self, record: Sample | Utterance, generator: torch.Generator) -> OmniExample:
        """Speech to repeat; a spoken question about an image; or an image alone, to ask about."""
        if isinstance(record, Utterance):
            return self.example("", record.text, audio=self.recorded(record.wave, generator))
        image = pixels(record.image)
        if record.question_wave is None:
            return OmniExample([], [], image=image)
        audio, scene = self.recorded(record.question_wave, generator), world.ordered_description(record.things)
        return self.question_example("", scene, record.question, record.question.text, image=image, audio=audio)


class CustomExamples(Dataset[list[OmniExample]]):
    """Rows of a manifest: an image and a question, an image to describe, or speech to repeat."""

    def __init__(self, encode: Encode, rows: Subset[Item], kind: str) -> None:
        self.encode, self.rows, self.kind = encode, rows, kind

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[OmniExample]:
        item = self.rows[index]
        prompt = {"caption": DESCRIBE[0], "question": item.texts.get("question", ""), "speech": ""}[self.kind]
        answer = item.texts[COLUMNS[self.kind][-1]]
        return [OmniExample([BOS, *self.encode(prompt)], [*self.encode(answer), EOS], item.pixels, item.wave)]
