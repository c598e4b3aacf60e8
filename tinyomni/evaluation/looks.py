"""Scenes in other looks than those of training, drawn by an independent renderer: captions and questions, look by look.

The same for wordings of each family, those among them that no training had, and for typing errors.

And what has no answer: an empty image, four or five things, things that overlap, foreign shapes. What counts is
how often the model is *confident and wrong*: it says something else than that it does not know, and is not unsure.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from tinyomni.data import wordings, world
from tinyomni.data.datasets import pixels
from tinyomni.data.world import Thing
from tinyomni.evaluation import independent_renderer
from tinyomni.evaluation.calibration import accuracy_by_confidence, calibration_error
from tinyomni.evaluation.dialogue import SAYS_SO, ask
from tinyomni.evaluation.questions import Answer, generate_parts, generate_replies
from tinyomni.evaluation.registry import slug
from tinyomni.metrics import Rate, accuracy
from tinyomni.omni import DESCRIBE, Omni
from tinyomni.tokenizer import BOS, BPETokenizer
from tinyomni.training.omni_examples import OmniExample
from tinyomni.training.stages.omni import OmniStage


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


def stage_of(omni: Omni) -> OmniStage:
    """The stage with the weights of a model: it answers in batches."""
    stage = OmniStage()
    for name in ("thinker", "vision", "audio", "proj_v", "proj_a"):
        getattr(stage, name).load_state_dict(getattr(omni, name).state_dict())
    return stage.eval()


def looks(omni: Omni, n: int) -> Iterator[tuple[str, Rate]]:
    """The metrics of the part `looks`: captions and questions in each look, their means; then what is unclear."""
    stage, captions, questions = stage_of(omni), [], []
    for look in independent_renderer.LOOKS:
        exact, answers = captions_and_answers(stage, omni.tokenizer, look, n)
        captions.append(exact)
        questions.append(accuracy([answer.correct for answer in answers]))
        yield f"looks.caption_{slug(look)}", captions[-1]
        yield f"looks.question_{slug(look)}", questions[-1]
    yield "looks.caption", joined(captions)
    yield "looks.caption_worst", min(captions, key=lambda rate: rate.rate)
    yield "looks.question", joined(questions)
    for kind in independent_renderer.UNCLEAR:
        yield f"looks.claims_{slug(kind)}", confident_and_wrong(omni, kind, n)


def joined(rates: list[Rate]) -> Rate:
    """All samples as one rate."""
    return Rate(tuple(part for rate in rates for part in rate.parts), tuple(w for rate in rates for w in rate.wholes))


@dataclass(frozen=True)
class Worded:
    """An answer to a typed question: whether it is right, how certain it is, and whether it is called unsure."""

    right: bool
    certainty: float
    unsure: bool | None


def worded(omni: Omni, family: str, n: int, careless: bool = False) -> list[Worded]:
    """Answers to typed questions in wordings of a family, about scenes of an independent renderer."""
    found = []
    for index in range(n):
        rng, things = random.Random(f"{family} {index}"), world.draw_scene("test", index, seed=4)
        question = wordings.draw_question(things, rng, family)
        image = independent_renderer.draw(things, "plain", index)
        reply = ask(omni, wordings.careless(question.text, rng) if careless else question.text, image)
        right = reply.answer.lower() == question.answer.lower()
        found.append(Worded(right, reply.certainty, reply.unsure))
    return found


def wordings_of_people(omni: Omni, n: int) -> Iterator[tuple[str, Rate]]:
    """The metrics of the part `wordings`: each family's, and how well certainty is calibrated over all of them."""
    answers: list[Worded] = []
    for family in (*wordings.families("train"), *wordings.families("held out")):
        answers += (found := worded(omni, family, n))
        yield f"wordings.{family}", accuracy([each.right for each in found])
        sure = [not each.right for each in found if not each.unsure]
        yield f"wordings.{family}_sure_and_wrong", accuracy(sure or [False])
    answers += (found := worded(omni, "what", n, careless=True))
    yield "wordings.careless", accuracy([each.right for each in found])
    judged = [(each.certainty, each.right) for each in answers]
    for name, rate in accuracy_by_confidence(judged).items():
        yield f"calibration.{name}", rate
    yield "calibration.error", calibration_error(judged)
