"""The small world that lessons train in: one object a scene, four colours and four shapes, so 160 scenes in all.

It has none of the combinations that are held out of the closed world: the shipped model knows all of it.
"""

import itertools
import random

from tinyomni.data.world import PLACES, SIZES, Thing

COLOURS = ("red", "green", "blue", "black")
SHAPES = ("circle", "square", "heart", "cross")


def small_world(held_out: int = 40) -> tuple[list[list[Thing]], list[list[Thing]]]:
    """Every scene, shuffled: those to train on, and those that are held out."""
    scenes = [[Thing(*values)] for values in itertools.product(SIZES, COLOURS, SHAPES, PLACES)]
    random.Random(0).shuffle(scenes)
    return scenes[held_out:], scenes[:held_out]
