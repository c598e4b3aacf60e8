"""The independent renderer shows the scene in every look, and shares no drawing code with training."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tinyomni.data import world
from tinyomni.evaluation import independent_renderer
from tinyomni.evaluation.independent_renderer import CENTRES, LOOKS, UNCLEAR, draw, unclear


@pytest.mark.parametrize("look", list(LOOKS))
def test_things_are_where_and_what_the_scene_says(look: str) -> None:
    things = [world.Thing("big", "red", "circle", "on the left"), world.Thing("big", "blue", "square", "at the top")]
    image, empty = (np.asarray(draw(each, look, 1), dtype=float) for each in (things, []))
    assert image.shape == (224, 224, 3)
    for thing, channel in zip(things, (0, 2), strict=True):
        x, y = CENTRES[thing.place]
        colour = image[y - 3 : y + 3, x - 3 : x + 3].mean(axis=(0, 1))
        assert colour.argmax() == channel and colour[channel] > 1.5 * np.delete(colour, channel).max()
    far = slice(150, 200)
    assert np.abs(image[far, far].mean(axis=(0, 1)) - empty[far, far].mean(axis=(0, 1))).max() < 12
    assert np.array_equal(image, np.asarray(draw(things, look, 1), dtype=float))


@pytest.mark.parametrize("kind", UNCLEAR)
def test_images_without_an_answer_differ_by_their_seed(kind: str) -> None:
    images = {unclear(kind, seed).tobytes() for seed in range(6)}
    assert len(images) > (1 if kind == "empty" else 4)


def test_it_uses_no_drawing_code_of_training() -> None:
    text = Path(str(sys.modules[independent_renderer.__name__].__file__)).read_text(encoding="utf-8")
    assert not any(name in text for name in ("data.rendering", "data.randomization", "ImageDraw"))
