"""The strict probe of images and of stories: exact on what is rendered, and strict about everything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dreambench_tasks.playground.probe import read_images
from dreambench_tasks.playground.render import render, render_many
from dreambench_tasks.playground.scene import Scene, Thing, draw_scene
from dreambench_tasks.playground.stories import instruction, story
from dreambench_tasks.playground.truth import Told, ToldThing, parse_sentence, story_truth


def test_every_rendered_scene_is_read_exactly_and_clearly() -> None:
    scenes = [draw_scene(split, i, 5) for i in range(60) for split in ("train", "val", "test")]
    readings = read_images(render_many(scenes))
    assert [reading.scene.content for reading in readings] == [scene.content for scene in scenes]
    assert min(reading.margin for reading in readings) > 0.8
    assert max(reading.error for reading in readings) < 2


def test_readings_stand_noise_and_fade_into_unclear_ones() -> None:
    """A blend of two objects is read as the nearer one; half-way its margin is near 0 and the reading is not clear."""
    rng = np.random.default_rng(0)
    red, heart = (Scene("mint", (Thing(shape, "red", "large", 1, 1),)) for shape in ("circle", "heart"))
    a, b = (render(scene).astype(float) for scene in (red, heart))
    noisy = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    margins: list[float] = []
    for image, shape in ((noisy, "circle"), (0.7 * a + 0.3 * b, "circle"), (0.3 * a + 0.7 * b, "heart")):
        (reading,) = read_images(image.astype(np.uint8)[None])
        assert [thing.name for thing in reading.scene.things] == [f"red {shape}"]
        assert reading.clear
        margins.append(reading.margin)
    assert margins[0] > margins[1]
    (between,) = read_images(((a + b) / 2).astype(np.uint8)[None])
    assert not between.clear
    assert between.margin < 0.1


def test_an_empty_image_has_no_objects_and_other_sizes_are_refused() -> None:
    (reading,) = read_images(render(Scene("navy", ()))[None])
    assert reading.scene.things == ()
    with pytest.raises(ValueError, match="64"):
        read_images(np.zeros((1, 32, 32, 3), np.uint8))


def test_the_reading_does_not_depend_on_the_other_images() -> None:
    images = render_many([draw_scene("val", i) for i in range(6)])
    assert read_images(images) == [read_images(image[None])[0] for image in images]


def test_every_story_and_drawing_of_the_playground_shows_what_it_tells() -> None:
    for index in range(30):
        for told in (story("test", index, 3), instruction("test", index, 3)[1]):
            values = story_truth([told.sentences[i] for i in told.matched], list(render_many(told.scenes)))
            assert values["shows_what_is_told"] == values["story_is_shown"] == 1, told
            assert values["nothing_else_changes"] in (1, None), told
            assert values["unparsed_sentences"] == values["unclear_images"] == 0, told


RED, STAR = ToldThing("circle", "red", "center"), ToldThing("star", "blue", "top left")


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("Then the circle turns red in the center on a mint background.", Told("mint", (RED,))),
        (
            "The blue star grows and is large in the center, with a red heart in the bottom center, on a gray background.",
            Told("gray", (ToldThing("star", "blue", "center", "large"), ToldThing("heart", "red", "bottom center"))),
        ),
        (
            "An orange square comes to the top center, with the red circle in the center, on a cream background.",
            Told("cream", (RED, ToldThing("square", "orange", "top center"))),
        ),
        (
            "Now the red heart leaves, and only the blue star stays in the top left on a navy background.",
            Told("navy", (STAR,)),
        ),
        ("A red circle in the center and a blue star in the top left on a mint background.", Told("mint", (RED, STAR))),
        ("The circle becomes a red square in the center on a mint background.", None),
        ("The small blue star grows and is large in the center on navy.", None),
        ("A pink circle is in the center on a mint background.", None),
        ("The end.", None),
        ("", None),
    ],
)
def test_sentences_are_parsed_by_the_forms_of_stories_only(sentence: str, told: Told | None) -> None:
    assert parse_sentence(sentence) == told


def test_each_fact_is_checked_by_itself() -> None:
    hero = Thing("star", "blue", "small", 0, 0)
    sentence = "A blue star is in the top left on a mint background."
    wrong: dict[str, tuple[Scene, set[str]]] = {
        "right": (Scene("mint", (hero,)), set()),
        "background": (Scene("navy", (hero,)), {"told_background"}),
        "color": (Scene("mint", (replace(hero, colour="red"),)), {"told_objects", "told_places"}),
        "place": (Scene("mint", (replace(hero, row=1),)), {"told_places"}),
        "another": (Scene("mint", (hero, Thing("circle", "red", "small", 2, 2))), {"told_count", "told_objects"}),
        "nothing": (Scene("mint", ()), {"told_count", "told_objects", "told_places"}),
        "size": (Scene("mint", (replace(hero, size="large"),)), set()),
    }
    for name, (scene, missed) in wrong.items():
        values = story_truth([sentence], [render(scene)])
        assert {key for key in values if key.startswith("told_") and values[key] == 0} == missed, name
        assert values["shows_what_is_told"] == (not missed), name
    sized = "The blue star shrinks and is small in the top left on a mint background."
    assert story_truth([sized], [render(wrong["size"][0])])["told_places"] == 0


def test_broken_and_odd_images_and_unknown_sentences_show_nothing() -> None:
    scene = Scene("mint", (Thing("star", "blue", "small", 0, 0),))
    sentence = "A blue star is in the top left on a mint background."
    images = [None, np.zeros((10, 10, 3), np.uint8), render(scene), render(scene), render(scene)]
    values = story_truth([sentence, sentence, None, "Once upon a time.", sentence], images)
    assert values["shows_what_is_told"] == 1 / 5
    assert values["unparsed_sentences"] == 2 / 5
    assert values["story_is_shown"] == 0
    assert set(story_truth([], []).values()) == {None}


def test_what_the_story_does_not_change_must_stay() -> None:
    hero = Thing("star", "blue", "small", 0, 0)
    told = [
        "A blue star is in the top left on a mint background.",
        "The star turns red in the top left on a mint background.",
    ]
    steps = {
        "as told": (Scene("mint", (replace(hero, colour="red"),)), 1),
        "wrong color, nothing else": (Scene("mint", (replace(hero, colour="green"),)), 1),
        "shape": (Scene("mint", (replace(hero, colour="red", shape="heart"),)), 0),
        "size": (Scene("mint", (replace(hero, colour="red", size="large"),)), 0),
        "place": (Scene("mint", (replace(hero, colour="red", row=2),)), 0),
        "background": (Scene("gray", (replace(hero, colour="red"),)), 0),
    }
    for name, (scene, kept) in steps.items():
        assert story_truth(told, [render(Scene("mint", (hero,))), render(scene)])["nothing_else_changes"] == kept, name
    assert story_truth(told[:1], [render(Scene("mint", (hero,)))])["nothing_else_changes"] is None
