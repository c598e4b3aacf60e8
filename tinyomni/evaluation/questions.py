"""Questions about images that training never had, typed and spoken, and questions that have no answer."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tinyomni.config import IMAGE_SIZE
from tinyomni.data import unanswerable, world
from tinyomni.data.datasets import Scenes, pixels
from tinyomni.data.rendering import render
from tinyomni.data.tts import HELD_OUT_VOICE, TTS_VOICES
from tinyomni.data.world import Question, Thing
from tinyomni.evaluation.registry import UNANSWERABLE
from tinyomni.generation import generate
from tinyomni.metrics import Rate, accuracy
from tinyomni.reply import ReplyParts, parse_reply, split_reply
from tinyomni.tokenizer import BOS, EOS, BPETokenizer
from tinyomni.training.distributed import to_device
from tinyomni.training.omni_examples import OmniExample, side_by_side
from tinyomni.training.stages.omni import OmniStage

SPOKEN_SETS = {"spoken": (True, TTS_VOICES), "spoken_held_out_voice": (True, (HELD_OUT_VOICE,)),
               "spoken_new": (False, TTS_VOICES)}  # fmt: skip
"""Sets of spoken questions: whether training speaks them, and who asks."""


@torch.no_grad()
def generate_ids(
    stage: OmniStage, examples: Sequence[OmniExample], tokenizer: BPETokenizer, max_new_tokens: int = 64
) -> list[list[int]]:
    """The reply to each example, without EOS. Prompts of one length are a batch, so there is no padding."""
    examples = [replace(stage.featurize(each), answer=[EOS]) for each in examples]
    by_length: dict[int, list[int]] = {}
    for number, each in enumerate(examples):
        by_length.setdefault(len(each.prompt) + (0 if each.audio is None else len(each.audio)), []).append(number)
    replies: list[list[int]] = [[]] * len(examples)
    for numbers in by_length.values():
        x, _ = stage.sequences(to_device(side_by_side([examples[i] for i in numbers]), stage.proj_v.weight.device))
        new = generate(stage.thinker, embeddings=x, max_new_tokens=max_new_tokens, vocab_limit=tokenizer.n_pieces)
        for number, ids in zip(numbers, new.tolist(), strict=True):
            replies[number] = ids[: ids.index(EOS)] if EOS in ids else ids
    return replies


def generate_replies(
    stage: OmniStage, examples: Sequence[OmniExample], tokenizer: BPETokenizer, max_new_tokens: int = 64
) -> list[str]:
    """The reply to each example as text."""
    return [tokenizer.decode(ids) for ids in generate_ids(stage, examples, tokenizer, max_new_tokens)]


def generate_parts(
    stage: OmniStage, examples: Sequence[OmniExample], tokenizer: BPETokenizer, spoken: bool
) -> list[ReplyParts]:
    """The parts of the reply to each example; a `spoken` one may begin with a transcript."""
    return [
        split_reply(ids, tokenizer) or parse_reply(tokenizer.decode(ids), spoken)
        for ids in generate_ids(stage, examples, tokenizer)
    ]


@dataclass(frozen=True)
class Answer:
    """A question with its right answer, and the model's; where a scene is known, its description, and the model's."""

    question: Question
    output: str
    expected_description: str | None = None
    description: str | None = None

    @property
    def correct(self) -> bool:
        """The same words; capital letters do not matter."""
        return self.output.lower() == self.question.answer.lower()


def accuracy_of(answers: Sequence[Answer]) -> Rate:
    """How many answers are correct."""
    return accuracy([answer.correct for answer in answers])


def accuracy_by_kind(answers: Sequence[Answer]) -> dict[str, Rate]:
    """The accuracy of each kind of question, by its id."""
    kinds: dict[str, list[Answer]] = {}
    for answer in answers:
        kinds.setdefault(str(answer.question.kind), []).append(answer)
    return {kind: accuracy_of(kinds[kind]) for kind in sorted(kinds)}


def one_of_each_kind(things: Sequence[Thing], seed: str) -> list[Question]:
    """A question of every kind that can be asked of the scene; no is as likely as yes.

    Where the scene has a held-out pair, only questions about its colour or its shape.
    """
    rng, held_out = random.Random(seed), world.colour_shape_pairs(things) & world.HELD_OUT
    words = {word for colour, shape in held_out for word in (colour, shape, world.PLURALS[shape])}

    def accept(question: Question) -> bool:
        return not held_out or not words.isdisjoint((question.key or "").split())

    return [rng.choice(rng.choice(halves)) for halves in world.questions_by_kind(things, accept).values()]


def typed_answers(
    stage: OmniStage,
    tokenizer: BPETokenizer,
    split: str = "test",
    scenes: int = 200,
    blank: bool = False,
    easy: int | None = None,
) -> list[Answer]:
    """One typed question of each kind about each scene; in `compositional`, only about its held-out pair.

    `blank` shows grey images: what the model makes of the question alone. `easy=1` shows easy ones.
    """
    data = Scenes(split, scenes, speech=False, easy=easy)
    asked: list[tuple[Question, str]] = []
    examples = []
    for index in range(scenes):
        sample = data[index]
        image = torch.full((3, IMAGE_SIZE, IMAGE_SIZE), 0.5) if blank else pixels(sample.image)
        features = stage.featurize(OmniExample([], [], image)).image
        for question in one_of_each_kind(sample.things, f"{split} {index}"):
            asked.append((question, world.ordered_description(sample.things).removesuffix(".")))
            examples.append(OmniExample([BOS, *tokenizer.encode(question.text)], [], features))
    replies = generate_parts(stage, examples, tokenizer, spoken=False)
    return [Answer(question, reply.answer, expected, reply.description)
            for (question, expected), reply in zip(asked, replies, strict=True)]  # fmt: skip


def most_frequent_answers(answers: Sequence[Answer], scenes: int = 5000) -> list[Answer]:
    """The baseline: to each question the answer that it has most often in training, whatever the image."""
    counts: dict[str, Counter[str]] = {}
    for index in range(scenes):
        for question in one_of_each_kind(world.draw_scene("train", index), f"train {index}"):
            counts.setdefault(question.text, Counter())[question.answer] += 1
    guesses = {text: count.most_common(1)[0][0] for text, count in counts.items()}
    return [replace(each, output=guesses.get(each.question.text, "")) for each in answers]


def spoken_answers(
    stage: OmniStage, tokenizer: BPETokenizer, which: str = "spoken", n: int = 200, cache: str | None = None
) -> tuple[list[Answer], Rate]:
    """Spoken questions about images of the test split, and how many transcripts are exact. `which`: see SPOKEN_SETS."""
    spoken_in_training, voices = SPOKEN_SETS[which]
    data = Scenes("test", n, spoken_in_training=spoken_in_training, voices=voices, cache=cache)
    samples = [data[index] for index in range(n)]
    examples = [OmniExample([BOS], [], pixels(each.image), each.question_wave) for each in samples]
    replies = generate_parts(stage, examples, tokenizer, spoken=True)
    answers = [Answer(each.question, reply.answer) for each, reply in zip(samples, replies, strict=True)]
    exact = [reply.transcript == each.question.text for each, reply in zip(samples, replies, strict=True)]
    return answers, accuracy(exact)


def unanswerable_answers(stage: OmniStage, tokenizer: BPETokenizer, n: int = 200) -> dict[str, list[Answer]]:
    """Unanswerable inputs by kind, of which training had none: images, words and audio."""
    found: dict[str, list[Answer]] = {}
    for kind in UNANSWERABLE:
        asked, examples = [], []
        for index in range(n):
            rng, things = random.Random(f"test {kind} {index}"), world.draw_scene("test", index)
            question, image, audio = unanswerable.unanswered(world.draw_question(things, rng)), None, None
            if kind == "no speech":
                question = Question(None, "", unanswerable.HEARD_NOTHING)
                audio = unanswerable.audio(rng, "test")
            elif kind == "no scene":
                image = pixels(unanswerable.image(rng, "test"))
            else:
                question = unanswerable.question(things, rng, "test", kind)
                image = pixels(render(things, index))
            asked.append(question)
            examples.append(stage.featurize(OmniExample([BOS, *tokenizer.encode(question.text)], [], image, audio)))
        replies = generate_parts(stage, examples, tokenizer, spoken=kind == "no speech")
        found[kind] = [Answer(question, reply.answer) for question, reply in zip(asked, replies, strict=True)]
    return found
