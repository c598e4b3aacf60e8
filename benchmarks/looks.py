"""What a weights file makes of other people's drawings and wordings: an independent renderer, look by look, and
wordings of each family, those that no training had among them.

    python benchmarks/looks.py [--weights FILE] [-n 100]
"""

import argparse
import random

from tinyomni import Omni
from tinyomni.data import wordings, world
from tinyomni.evaluation import independent_renderer, looks
from tinyomni.evaluation.dialogue import ask
from tinyomni.metrics import Rate, accuracy
from tinyomni.training.stages.omni import OmniStage


def show(name: str, *rates: Rate) -> None:
    """A line with each rate and its 95% CI."""
    cells = (f"{rate.rate:6.1%} ({rate.interval()[0]:.0%} … {rate.interval()[1]:.0%})" for rate in rates)
    print(f"{name:28}", *cells, flush=True)


def stage_of(omni: Omni) -> OmniStage:
    """The stage with the weights of a model: it answers in batches."""
    stage = OmniStage()
    for name in ("thinker", "vision", "audio", "proj_v", "proj_a"):
        getattr(stage, name).load_state_dict(getattr(omni, name).state_dict())
    return stage.eval()


def worded(omni: Omni, family: str, n: int, careless: bool = False) -> tuple[Rate, Rate]:
    """Typed questions in wordings of a family: the answers that are right, and of those called sure the wrong ones."""
    right, sure_and_wrong = [], []
    for index in range(n):
        rng, things = random.Random(f"{family} {index}"), world.draw_scene("test", index, seed=4)
        question = world.draw_question(things, rng)
        text = wordings.reword(question, things, rng, family)
        image = independent_renderer.draw(things, "plain", index)
        reply = ask(omni, wordings.careless(text, rng) if careless else text, image)
        right.append(reply.answer.lower() == question.answer.lower())
        if not reply.unsure:
            sure_and_wrong.append(not right[-1])
    return accuracy(right), accuracy(sure_and_wrong or [False])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument("-n", type=int, default=100)
    args = parser.parse_args()
    omni = Omni.from_pretrained(args.weights)
    stage = stage_of(omni)
    print(f"{'look':28} caption exact, question right")
    for look in independent_renderer.LOOKS:
        captions, answers = looks.captions_and_answers(stage, omni.tokenizer, look, args.n)
        show(look, captions, accuracy([answer.correct for answer in answers]))
    print(f"{'no answer':28} confident and wrong")
    for kind in independent_renderer.UNCLEAR:
        show(kind, looks.confident_and_wrong(omni, kind, args.n))
    print(f"{'wording':28} right, wrong among those called sure")
    for family in (*wordings.families("train"), *wordings.families("held out")):
        show(f"{family}{' (held out)' * (family in wordings.HELD_OUT)}", *worded(omni, family, args.n))
    show("typed carelessly", *worded(omni, "what", args.n, careless=True))


if __name__ == "__main__":
    main()
