"""Scenes are a function of (split, index, seed), splits share no content, and every object is visible."""

from __future__ import annotations

import hashlib
import runpy
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreambench_tasks.playground.render import _PALETTE, CENTRES, RADII, SIDE, render, render_many
from dreambench_tasks.playground.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SPLITS,
    Rng,
    Scene,
    Thing,
    draw_scene,
    split_of,
)

anywhere = {"split": st.sampled_from(SPLITS), "index": st.integers(0, 10**9), "seed": st.integers(0, 2**40)}


def test_scenes_and_pixels_are_the_same_on_every_machine() -> None:
    # Where this fails on purpose, WORLD must be raised: published data and scores name it.
    scenes = [draw_scene(split, i) for split in SPLITS for i in range(200)]
    said = hashlib.sha256("\n".join(map(repr, scenes)).encode()).hexdigest()
    shown = hashlib.sha256(render_many(scenes).tobytes()).hexdigest()
    assert (said[:16], shown[:16]) == ("5ae6d0708d3663a5", "7b835db6e976a751")


@given(**anywhere)
def test_a_scene_belongs_to_the_split_it_was_drawn_for(split: str, index: int, seed: int) -> None:
    scene = draw_scene(split, index, seed)
    assert scene == draw_scene(split, index, seed)
    assert split_of(scene) == split


def test_no_content_is_in_two_splits() -> None:
    contents = {split: {draw_scene(split, i, seed).content for i in range(4000) for seed in (0, 1)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not contents[one] & contents[other]
    assert len(contents["train"]) > 4000


def test_the_look_does_not_decide_the_split() -> None:
    thing = Thing("star", "red", "small", 0, 2, tilt=-12)
    same = Thing("star", "red", "small", 0, 2, tilt=6)
    assert split_of(Scene("navy", (thing,), (1, 1), 2)) == split_of(Scene("navy", (same,)))


@given(**anywhere)
def test_objects_differ_and_are_in_reading_order(split: str, index: int, seed: int) -> None:
    things = draw_scene(split, index, seed).things
    assert 1 <= len(things) <= 3
    assert len({t.name for t in things}) == len(things)
    assert list(things) == sorted(things, key=lambda t: (t.row, t.column))


@given(**anywhere)
def test_objects_do_not_overlap(split: str, index: int, seed: int) -> None:
    for x, y in combinations(draw_scene(split, index, seed).things, 2):
        apart = np.hypot(CENTRES[x.column] - CENTRES[y.column], CENTRES[x.row] - CENTRES[y.row])
        assert apart + 0.5 >= RADII[x.size] + RADII[y.size]


def test_every_value_occurs_about_as_often_as_every_other() -> None:
    scenes = [draw_scene("val", i) for i in range(3000)]
    things = [t for scene in scenes for t in scene.things]
    assert abs(sum(len(s.things) == 1 for s in scenes) / 3000 - 0.45) < 0.04
    for values, found in (
        (SHAPES, [t.shape for t in things]),
        (COLOURS, [t.colour for t in things]),
        (BACKGROUNDS, [s.background for s in scenes]),
    ):
        for value in values:
            assert abs(found.count(value) / len(found) - 1 / len(values)) < 0.04


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_has_its_colour_at_its_place(shape: str, colour: str) -> None:
    for cell in range(9):
        row, column = divmod(cell, 3)
        for background in BACKGROUNDS:
            image = render(Scene(background, (Thing(shape, colour, "small", row, column),)))
            y, x = CENTRES[row], CENTRES[column]
            found = image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(axis=0)
            nearest = min(_PALETTE, key=lambda name: float(np.abs(found - _PALETTE[name]).sum()))
            assert nearest == colour


def test_images_are_antialiased_and_shapes_differ() -> None:
    empty = render(Scene("cream", ()))
    images = {s: render(Scene("cream", (Thing(s, "blue", "small", 1, 1),))) for s in SHAPES}
    for image in images.values():
        assert image.shape == (SIDE, SIDE, 3)
        assert image.dtype == np.uint8
        # A hard edge would have a few shades of blue and nothing between them and the background.
        assert len(np.unique(image[np.any(image != empty, axis=-1)], axis=0)) > 60
    for one, other in combinations(SHAPES, 2):
        assert np.any(np.abs(images[one].astype(int) - images[other]) > 60, axis=-1).sum() >= 25


def test_random_numbers_are_uniform_and_depend_on_the_key() -> None:
    rng = Rng("a", 1)
    rolls = [rng.below(6) for _ in range(6000)]
    assert all(abs(rolls.count(i) - 1000) < 120 for i in range(6))
    assert rolls[:50] != [Rng("a", 2).below(6) for _ in range(50)]
    assert sorted(Rng("b").sample(range(9), 9)) == list(range(9))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train, val, test"):
        draw_scene("dev", 0)


def test_the_scenes_in_docs_are_of_this_world() -> None:
    docs = Path(__file__).parents[2] / "docs"
    sheet = runpy.run_path(str(docs / "make_images.py"))["scene_sheet"]()
    with Image.open(docs / "playground.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(sheet))
