"""Questions about images that training never had, typed and spoken, and questions that have no answer."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tinyomni.data import unanswerable, world
from tinyomni.data.datasets import Scenes, pixels
from tinyomni.data.rendering import SIDE
from tinyomni.data.rendering import picture as draw
from tinyomni.data.tts import HELD_OUT_VOICE, VOICES
from tinyomni.generation import generate
from tinyomni.metrics import Rate, share
from tinyomni.omni import take_apart
from tinyomni.tokenizer import BOS, EOS, BPETokenizer
from tinyomni.training.distributed import to_device
from tinyomni.training.stages.omni import OmniStage, Row, side_by_side


@torch.no_grad()
def say(stage: OmniStage, rows: Sequence[Row], tokenizer: BPETokenizer, most: int = 64) -> list[str]:
    """What is written in reply to each row. Prompts of one length go together, without padding."""
    rows = [replace(stage.features(row), answer=[EOS]) for row in rows]
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(len(row.prompt) + (0 if row.sound is None else len(row.sound)), []).append(number)
    said = [""] * len(rows)
    for numbers in by_length.values():
        x, _ = stage.sequences(to_device(side_by_side([rows[i] for i in numbers]), stage.proj_v.weight.device))
        new = generate(stage.thinker, embeddings=x, max_new_tokens=most, vocab_limit=tokenizer.n_pieces)
        for number, ids in zip(numbers, new.tolist(), strict=True):
            said[number] = tokenizer.decode(ids[: ids.index(EOS)] if EOS in ids else ids)
    return said


@dataclass(frozen=True)
class Answer:
    """A question, the right answer, and what was said; and where a scene is known, how it looks, and what was seen."""

    question: str
    due: str
    said: str
    scene: str | None = None
    seen: str | None = None

    @property
    def kind(self) -> str:
        """What colour, How many, …: the first two words."""
        return " ".join(self.question.split()[:2])

    @property
    def right(self) -> bool:
        """The same words; a capital letter does not matter."""
        return self.said.lower() == self.due.lower()


def by_kind(answers: Sequence[Answer]) -> dict[str, Rate]:
    """How many are right of each kind of question."""
    return {kind: share([each.right for each in answers if each.kind == kind])
            for kind in sorted({each.kind for each in answers})}  # fmt: skip


def one_of_each_kind(things: list[world.Thing], seed: str) -> list[tuple[str, str]]:
    """A question of every kind that can be asked of the scene, with its answer; no as often as yes.

    Where the scene has a held-out pair, only questions that name its colour or its shape.
    """
    rng, unseen = random.Random(seed), world.pairs_of(things) & world.HELD_OUT
    words = {word for colour, shape in unseen for word in (colour, shape, world.PLURALS[shape])}

    def among(question: str) -> bool:
        return not unseen or not words.isdisjoint(question.strip("?").split())

    return [rng.choice(rng.choice(halves)) for _, halves in sorted(world.askable(things, among).items())]


def typed(
    stage: OmniStage,
    tokenizer: BPETokenizer,
    split: str = "test",
    scenes: int = 200,
    blank: bool = False,
    easy: int | None = None,
) -> list[Answer]:
    """One typed question of each kind about each scene; in `compositional`, only about its held-out pair.

    `blank` shows grey instead of the pictures: what the model makes of the question alone. `easy=1` shows easy ones.
    """
    data, asked, rows = Scenes(split, scenes, speech=False, easy=easy), [], []
    for index in range(scenes):
        sample = data[index]
        image = torch.full((3, SIDE, SIDE), 0.5) if blank else pixels(sample.picture)
        picture = stage.features(Row([], [], image)).picture
        for question, answer in one_of_each_kind(list(sample.things), f"{split} {index}"):
            asked.append((question, answer, world.in_order(sample.things).removesuffix(".")))
            rows.append(Row([BOS, *tokenizer.encode(question)], [], picture))
    parts = [take_apart(text, spoken=False) for text in say(stage, rows, tokenizer)]
    return [Answer(question, answer, said.answer, scene, said.seen)
            for (question, answer, scene), said in zip(asked, parts, strict=True)]  # fmt: skip


def best_guess(asked: Sequence[Answer], seen: int = 5000) -> list[Answer]:
    """The control: to each question the answer that it had most often in training, without a look at the picture."""
    counts: dict[str, Counter[str]] = {}
    for index in range(seen):
        for question, answer in one_of_each_kind(world.draw_scene("train", index), f"train {index}"):
            counts.setdefault(question, Counter())[answer] += 1
    return [replace(each, said=counts[each.question].most_common(1)[0][0] if each.question in counts else "")
            for each in asked]  # fmt: skip


def unknowable(stage: OmniStage, tokenizer: BPETokenizer, n: int = 200) -> dict[str, list[Answer]]:
    """What cannot be known, by kind, each with what was said: pictures, words and sounds that training had none of."""
    found: dict[str, list[Answer]] = {}
    for kind in ("not there", "unknown word", "no scene", "no speech"):
        asked, rows = [], []
        for index in range(n):
            rng, things = random.Random(f"test {kind} {index}"), world.draw_scene("test", index)
            question, picture, sound = world.ask(things, rng)[0], None, None
            due = unanswerable.HEARD_NOTHING if kind == "no speech" else unanswerable.DO_NOT_KNOW
            if kind == "no speech":
                question, sound = "", unanswerable.sound(rng, "test")
            elif kind == "no scene":
                picture = pixels(unanswerable.picture(rng, "test"))
            else:
                question = unanswerable.question(things, rng, "test", kind)
                picture = pixels(draw(things, index))
            asked.append((question, due))
            rows.append(stage.features(Row([BOS, *tokenizer.encode(question)], [], picture, sound)))
        found[kind] = [Answer(*pair, take_apart(said, kind == "no speech").answer)
                       for pair, said in zip(asked, say(stage, rows, tokenizer), strict=True)]  # fmt: skip
    return found


ASKED = {"heard": (True, VOICES), "new voice": (True, [HELD_OUT_VOICE]), "never heard": (False, VOICES)}


def spoken(
    stage: OmniStage, tokenizer: BPETokenizer, which: str = "heard", n: int = 200, cache: str | None = None
) -> tuple[list[Answer], Rate]:
    """Spoken questions about pictures of the test split, and how many of them were written down without a fault.

    heard: questions that are spoken in training. new voice: the same, by who is not. never heard: all others.
    """
    heard, voices = ASKED[which]
    data = Scenes("test", n, heard=heard, voices=voices, cache=cache)
    samples = [data[index] for index in range(n)]
    rows = [Row([BOS], [], pixels(each.picture), each.question_wave) for each in samples]
    parts = [take_apart(text, spoken=True) for text in say(stage, rows, tokenizer)]
    answers = [Answer(each.question, each.answer, said.answer) for each, said in zip(samples, parts, strict=True)]
    return answers, share([said.heard == each.question for each, said in zip(samples, parts, strict=True)])
