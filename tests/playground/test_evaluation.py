"""The judges of the embedded model: perfect answers get full marks, and answers wrong in one respect lose only that score."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import PIL.Image
import pytest

import evaluate
from dreambench.documents import Image
from dreambench.errors import ModelError
from dreambench.images import encode_png
from dreambench.interfaces import Model, ModelOptions
from dreambench.requests import Kind, Request, Response
from dreambench_tasks.playground import SIZES, Scene, render, render_many

N = 24


class Painter(Model):
    """Generates these scenes, one after another, whatever it is asked for."""

    capabilities: ClassVar[frozenset[Kind]] = frozenset({"generate_image"})

    def __init__(self, scenes: Sequence[Scene]) -> None:
        super().__init__(ModelOptions("painter"))
        self.scenes = iter(scenes)

    def identity(self) -> Mapping[str, Any]:
        return {"name": "painter"}

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        assert len({request.seed for request in requests}) == len(requests)
        for request in requests:
            image = PIL.Image.fromarray(render(next(self.scenes)))
            yield Response(request.id, (Image(data=encode_png(image)),))


@pytest.fixture
def generated() -> Any:
    """The shares of `text_to_image` for a model that shows each caption's scene after a change."""

    def judged(change: Any) -> dict[str, float | None]:
        scenes = [scene for objects in (1, 2, 3) for scene, _ in evaluate.described_scenes("test", objects, N)]
        scores = evaluate.text_to_image(Painter([change(scene) for scene in scenes]), "test", N)
        return {score.metric: score.value for score in scores}

    return judged


def test_perfect_images_get_full_marks(generated: Any) -> None:
    shares = generated(lambda scene: scene)
    assert len(shares) >= 9 + 4
    assert set(shares.values()) == {1.0}


def elsewhere(scene: Scene) -> Scene:
    return replace(scene, things=tuple(replace(t, row=(t.row + 1) % 3, size="small") for t in scene.things))


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda s: replace(s, background="navy" if s.background != "navy" else "mint"), {"in the place"}),
        (
            lambda s: replace(s, things=tuple(replace(t, size=SIZES[0]) for t in s.things)),
            {"exactly", "nothing else", "in the place", "s"},
        ),
        (
            lambda s: replace(
                s, things=tuple(replace(t, shape="star" if t.shape != "star" else "heart") for t in s.things)
            ),
            set(),
        ),
        (elsewhere, {"nothing else", "s"}),
        (lambda s: replace(s, things=s.things[1:]), set()),
    ],
)
def test_images_wrong_in_one_respect_lose_only_the_scores_of_that(generated: Any, change: Any, kept: set[str]) -> None:
    for name, value in generated(change).items():
        kind = next((k for k in ("exactly", "nothing else", "in the place") if k in name), "s")
        # Half of the captions tell no place, and of three objects in wrong cells one may be where another belongs.
        assert value == 1.0 if kind in kept else value < 0.8, name


def test_a_second_object_is_not_one_exactly_right(generated: Any) -> None:
    def doubled(scene: Scene) -> Scene:
        first = replace(scene.things[0], size="small")
        cells = [(t.row, t.column) for t in scene.things]
        row, column = next(divmod(cell, 3) for cell in range(9) if divmod(cell, 3) not in cells)
        return replace(scene, things=(*scene.things, replace(first, row=row, column=column)))

    shares = generated(doubled)
    assert {value for name, value in shares.items() if "in the place" not in name} == {0.0}


def test_a_caption_tells_a_relation_and_not_the_places(generated: Any) -> None:
    told = [
        (s, t) for s, t in evaluate.described_scenes("test", 2, 200) if "above" in t and not evaluate.is_placed(s, t)
    ]
    assert told
    for scene, text in told:
        first, second = (replace(thing, size="small") for thing in scene.things)
        things = (
            replace(second, row=first.row, column=first.column),
            replace(first, row=second.row, column=second.column),
        )
        swapped = replace(scene, things=things)
        (right, wrong) = evaluate.read_images(render_many([scene, swapped]))
        assert evaluate.shows(scene, text, right)
        assert not evaluate.shows(scene, text, wrong)
        assert evaluate.shows_objects(scene, text, wrong)


def test_what_a_prompt_leaves_open_is_no_error() -> None:
    described = [pair for objects in (1, 2, 3) for pair in evaluate.described_scenes("test", objects, 20, short=True)]
    grounds = {scene: "navy" if scene.background != "navy" else "mint" for scene, _ in described}
    readings = evaluate.read_images(render_many([replace(scene, background=grounds[scene]) for scene, _ in described]))
    right = [evaluate.shows(scene, text, reading) for (scene, text), reading in zip(described, readings, strict=True)]
    assert right == [scene.background not in text for scene, text in described]
    assert {True, False} == set(right)
    perfect = evaluate.text_to_image(Painter([scene for scene, _ in described]), "test", 20, short=True)
    assert [score.value for score in perfect] == [1.0, 1.0, 1.0]
    wrong = evaluate.text_to_image(Painter([elsewhere(scene) for scene, _ in described]), "test", 20, short=True)
    assert all(0 < (score.value or 0) < 1 for score in wrong)  # only some tell the places


def test_repeated_contents_do_not_narrow_an_interval() -> None:
    """500 scenes with one object have 91 contents; an error comes with each of its scenes."""
    hits, contents = [True, True, False, True] * 5, [str(i) for i in range(20)]
    once, copied = (evaluate.share("right", hits * n, contents * n) for n in (1, 10))
    assert (once.n, copied.n) == (20, 200)
    assert copied.interval_method.endswith("clustered by 20 contents")
    assert copied.interval == pytest.approx(once.interval, abs=0.02)


def test_an_answer_that_failed_is_no_wrong_answer() -> None:
    class Broken(Painter):
        def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
            yield from (Response.failed(request.id, "not-finite", "pixels that are not finite") for request in requests)

    with pytest.raises(ModelError, match="not finite"):
        evaluate.text_to_image(Broken([]), "test", 1)


def test_a_checkpoint_that_does_not_exist_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, evaluate.__file__, str(tmp_path / "nowhere")]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == 2
    assert "nowhere is not a folder" in process.stderr
