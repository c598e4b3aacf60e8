"""Domain randomization: everything varies that an answer does not depend on, and nothing else."""

import math
import random
from dataclasses import fields

import numpy as np
import pytest

from tinyomni.config import IMAGE_SIZE
from tinyomni.data import randomization, world
from tinyomni.data.datasets import Scenes
from tinyomni.data.randomization import (
    FOREIGN,
    FOREIGN_IN_TEST,
    FOREIGN_SHAPE,
    KINDS,
    MIDDLES,
    NOTHING,
    SHADES,
    SIZE_LIMITS,
    UNCLEAR,
    WIDE,
    Randomization,
    arrange,
    contrast,
    made_up,
    render,
    render_unclear,
)
from tinyomni.errors import InputError

PLAIN = WIDE.scaled(0.0)
SCENES = [world.draw_scene("train", index) for index in range(60)]


def test_things_stay_at_their_places_apart_and_within_the_image() -> None:
    rng, shifts = random.Random(0), []
    for things in SCENES:
        spots = arrange(things, rng, WIDE)
        for number, (thing, spot) in enumerate(zip(things, spots, strict=True)):
            distances = {place: math.dist((spot.x, spot.y), middle) for place, middle in MIDDLES.items()}
            assert min(distances, key=lambda place: distances[place]) == thing.place
            assert SIZE_LIMITS[thing.size][0] <= spot.radius <= SIZE_LIMITS[thing.size][1]
            assert all(0.9 * spot.radius <= at <= IMAGE_SIZE - 0.9 * spot.radius for at in (spot.x, spot.y))
            for other in spots[:number]:
                assert math.dist((spot.x, spot.y), (other.x, other.y)) > spot.radius + other.radius
            shifts.append(distances[thing.place])
    assert max(shifts) > 24 and sum(shift > 12 for shift in shifts) > len(shifts) / 3
    assert SIZE_LIMITS["small"][1] < SIZE_LIMITS["big"][0]


def test_patches_show_what_was_drawn_there() -> None:
    for seed, things in enumerate(SCENES[:20]):
        shown = render(things, seed).shown
        assert set(range(len(things))) <= set(shown.flatten().tolist()) <= {NOTHING, UNCLEAR, 0, 1, 2}
        empty = np.asarray(render([], seed, PLAIN).image, dtype=float)
        drawn = render(things, seed, PLAIN)
        changed = (np.abs(np.asarray(drawn.image) - empty).max(axis=2) > 8).reshape(14, 16, 14, 16).mean(axis=(1, 3))
        assert (changed[drawn.shown == NOTHING] < 0.05).all() and (changed[drawn.shown >= 0] > 0.03).all()
        for number, thing in enumerate(world.sort_by_place(things)):  # in the middle of its patches
            rows, columns = np.nonzero(drawn.shown == number)
            centre = (columns.mean() * 16 + 8, rows.mean() * 16 + 8)
            assert math.dist(centre, MIDDLES[thing.place]) < 16


def test_a_colour_keeps_its_name() -> None:
    rng = random.Random(0)
    means = {name: np.mean(shades, axis=0) for name, shades in SHADES.items()}
    assert set(SHADES) == set(world.COLOURS)
    for name in world.COLOURS:
        for _ in range(50):
            value = randomization.shade(name, rng, 1.0)
            nearest = sorted(means, key=lambda other: contrast(value, means[other]))[:3]
            assert name in nearest
            assert all(0 <= each <= 255 for each in value)


def test_without_variation_all_images_of_a_scene_are_the_same() -> None:
    one, two = (np.asarray(render(SCENES[0], seed, PLAIN).image) for seed in (1, 2))
    assert np.array_equal(one, two)
    again = [np.asarray(render(SCENES[0], 3).image) for _ in "ab"]
    assert np.array_equal(*again) and not np.array_equal(again[0], np.asarray(render(SCENES[0], 4).image))


@pytest.mark.parametrize("name", [each.name for each in fields(Randomization)])
def test_each_variation_alone_changes_some_images(name: str) -> None:
    alone = PLAIN.scaled(1.0).__class__(
        **{each.name: 0.0 for each in fields(Randomization)} | {name: getattr(WIDE, name)}
    )
    changed = [
        not np.array_equal(render(things, seed, alone).image, render(things, seed, PLAIN).image)
        for seed, things in enumerate(SCENES[:30])
    ]
    assert any(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_unclear_images_show_no_thing_that_could_be_named(kind: str) -> None:
    for seed in range(6):
        image, shown, things = render_unclear(kind, seed)
        assert image.size == (IMAGE_SIZE, IMAGE_SIZE) and (shown == NOTHING).all() == (kind == "empty")
        if kind == "foreign":
            assert sum(each.shape == FOREIGN_SHAPE for each in things) == 1
            assert {*shown[shown >= 0]} == {*range(len(things))}
        else:
            assert (shown < 0).all() and not things
    assert set(FOREIGN_IN_TEST) < set(FOREIGN) and not set(FOREIGN) & set(world.SHAPES)


def test_made_up_shapes_are_closed_outlines_unlike_each_other() -> None:
    outlines = [made_up(random.Random(seed)) for seed in range(60)]
    assert len({len(each) for each in outlines}) > 6
    assert all(0.3 < max(math.hypot(x, y) for x, y in each) <= 1.001 for each in outlines)
    assert len(FOREIGN["wedge"]) == 4 and min(map(len, outlines)) == 4
    for a, b, c, _ in (each for each in outlines if len(each) == 4):  # too flat for a square or a diamond
        assert math.dist(a, b) > 1.5 * math.dist(b, c)


def test_a_made_up_star_of_four_points_is_no_diamond() -> None:
    stars = [each for each in (made_up(random.Random(seed)) for seed in range(400)) if len(each) == 8]
    stars = [each for each in stars if all(math.hypot(*point) == pytest.approx(1) for point in each[::2])]
    assert len(stars) > 3 and all(math.hypot(*point) < 0.51 for each in stars for point in each[1::2])  # diamond: 0.71


def test_made_up_shapes_turn_to_any_side() -> None:
    bar = [(-1.0, -0.2), (1.0, -0.2), (1.0, 0.2), (-1.0, 0.2)]
    spot = randomization.Spot(FOREIGN_SHAPE, "red", 112, 112, 30, bar)
    fills = [randomization.masks(spot, random.Random(seed), WIDE, can_be_hollow=False)[0] for seed in range(40)]
    boxes = [box for each in fills if (box := each.getbbox())]
    upright = [right - left < 0.6 * (lower - upper) for left, upper, right, lower in boxes]
    assert 3 < sum(upright) < 37  # 0.6 radians, as far as the world's own shapes lean, leave it lying


def test_scenes_of_the_wide_style_vary_more_and_more() -> None:
    plain, wide = Scenes(size=50, speech=False), Scenes(size=50, speech=False, style="wide", ramp=40)
    samples = [wide[index] for index in range(12)]
    assert [sample.things for sample in samples] == [plain[index].things for index in range(12)]
    assert [sample.question for sample in samples] == [plain[index].question for index in range(12)]
    assert 0 < sum(sample.shown is None for sample in samples) < 6 and plain[0].shown is None
    assert wide.how(0).shift == WIDE.shift / 40 and wide.how(40) == WIDE
    with pytest.raises(InputError, match="style must be 'plain' or 'wide', got 'wild'"):
        Scenes(style="wild")
