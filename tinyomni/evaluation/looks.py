"""Scenes in other looks than those of training, drawn by an independent renderer: captions and questions, look by look.

And what has no answer there: an empty image, four or five things, things that overlap, foreign shapes. What counts is
how often the model is *confident and wrong*: it says something else than that it does not know, and is not unsure.
"""

import random

from PIL import Image

from tinyomni.data import world
from tinyomni.data.datasets import pixels
from tinyomni.data.world import Thing
from tinyomni.evaluation import independent_renderer
from tinyomni.evaluation.dialogue import ask
from tinyomni.evaluation.questions import Answer, generate_parts, generate_replies
from tinyomni.metrics import Rate, accuracy
from tinyomni.omni import DESCRIBE, Omni
from tinyomni.tokenizer import BOS, BPETokenizer
from tinyomni.training.omni_examples import OmniExample
from tinyomni.training.stages.omni import OmniStage

SAYS_SO = ("I do not know", "I can see nothing", "I can count only", "I cannot see")
"""Beginnings of sentences that make no claim about the image."""


def scenes_in(look: str, n: int, split: str = "test") -> list[tuple[list[Thing], Image.Image]]:
    """Scenes of the split as the independent renderer draws them."""
    scenes = [world.draw_scene(split, index, seed=3) for index in range(n)]
    return [(things, independent_renderer.draw(things, look, index)) for index, things in enumerate(scenes)]


def captions_and_answers(stage: OmniStage, tokenizer: BPETokenizer, look: str, n: int) -> tuple[Rate, list[Answer]]:
    """How many captions are exact, and the answer to one typed question about each scene."""
    rng = random.Random(f"questions {look}")
    captions: list[OmniExample] = []
    asked: list[OmniExample] = []
    questions = []
    for things, image in scenes_in(look, n):
        features = stage.featurize(OmniExample([], [], pixels(image))).image
        questions.append(world.draw_question(things, rng))
        for text, into in ((DESCRIBE, captions), (questions[-1].text, asked)):
            into.append(OmniExample([BOS, *tokenizer.encode(text)], [], features))
    expected = [world.ordered_description(things) for things, _ in scenes_in(look, n)]
    said = generate_replies(stage, captions, tokenizer)
    replies = generate_parts(stage, asked, tokenizer, spoken=False)
    answers = [Answer(question, reply.answer) for question, reply in zip(questions, replies, strict=True)]
    return accuracy([one == two for one, two in zip(said, expected, strict=True)]), answers


def is_confident_claim(omni: Omni, question: str, image: Image.Image) -> bool:
    """Whether the model claims something about an image, and does not call it unsure."""
    reply = ask(omni, question, image)
    return not reply.answer.startswith(SAYS_SO) and not reply.unsure


def confident_and_wrong(omni: Omni, kind: str, n: int) -> Rate:
    """Of descriptions and answers about images of one kind of `independent_renderer.UNCLEAR`, each asked in turn.

    Questions of how many, or whether there is, have an answer there (none, no; of four or five things: not in words of
    the world), so others are asked.
    """
    claims: list[bool] = []
    for index in range(n):
        rng, image = random.Random(f"{kind} {index}"), independent_renderer.unclear(kind, index)
        text = DESCRIBE
        if index % 2:
            things = world.draw_scene("test", index)
            text = world.draw_question(things, rng, lambda each: each.kind not in ("count", "existence")).text
        claims.append(is_confident_claim(omni, text, image))
    return accuracy(claims)
