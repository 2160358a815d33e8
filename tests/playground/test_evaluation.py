"""The judges of the embedded model: perfect answers get full marks, and answers wrong in one respect lose only that score."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import evaluate
from dreambench_tasks.playground import SIZES, Scene, render_many

N = 24


@pytest.fixture
def generated() -> Any:
    """The shares of `text_to_image` for a model that shows each caption's scene after a change."""

    def judged(change: Any) -> dict[str, float]:
        scenes = [scene for objects in (1, 2, 3) for scene, _ in evaluate.described_scenes("test", objects, N)]
        remaining = [change(scene) for scene in scenes]

        def generate(texts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
            assert len(set(seeds)) == len(texts)
            taken, remaining[:] = remaining[: len(texts)], remaining[len(texts) :]
            return render_many(taken)

        return {name: share.value for name, share in evaluate.text_to_image(generate, "test", N).items()}

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


def test_repeated_contents_do_not_narrow_an_interval() -> None:
    """500 scenes with one object have 91 contents; an error comes with each of its scenes."""
    once = evaluate.Share([True, True, False, True] * 5, [str(i) for i in range(20)])
    copied = evaluate.Share([*once.hits] * 10, [*once.contents] * 10)
    assert str(once).endswith(", n = 20")
    assert str(copied).endswith(", n = 200 of 20 contents")
    ends = [[float(end) for end in str(share).split("[")[1].split("]")[0].split(", ")] for share in (once, copied)]
    assert ends[1] == pytest.approx(ends[0], abs=0.02)


def test_a_checkpoint_that_does_not_exist_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, evaluate.__file__, str(tmp_path / "nowhere")]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == 2
    assert "nowhere is not a folder" in process.stderr
