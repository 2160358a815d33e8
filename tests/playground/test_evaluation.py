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
import torch
from numpy.typing import NDArray

import evaluate
from dreambench_tasks.playground import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene
from probe import _PARTS, Seen, look

N = 24


def seen_of(scene: Scene) -> Seen:
    return Seen(scene.background, {(t.row, t.column): (t.shape, t.colour, t.size) for t in scene.things})


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shares of `text_to_image` for a model that shows each caption's scene after a change."""

    def judged(change: Any) -> dict[str, float]:
        scenes = [scene for objects in (1, 2) for scene, _ in evaluate.described_scenes("test", objects, N)]
        remaining = [seen_of(change(scene)) for scene in scenes]

        def shown(_: Any, images: NDArray[np.uint8]) -> list[Seen]:
            taken, remaining[:] = remaining[: len(images)], remaining[len(images) :]
            return taken

        def generate(texts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
            assert len(set(seeds)) == len(texts)
            return np.zeros((len(texts), 64, 64, 3), np.uint8)

        monkeypatch.setattr(evaluate, "look", shown)
        shares = evaluate.text_to_image(generate, torch.nn.Identity(), N)
        return {name: share.value for name, share in shares.items()}

    return judged


def test_perfect_images_get_full_marks(generated: Any) -> None:
    assert set(generated(lambda scene: scene).values()) == {1.0}


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda s: replace(s, background="navy" if s.background != "navy" else "mint"), {"background"}),
        (lambda s: replace(s, things=tuple(replace(t, size="small") for t in s.things)), set()),
        (
            lambda s: replace(
                s, things=tuple(replace(t, shape="star" if t.shape != "star" else "heart") for t in s.things)
            ),
            {"single object exactly", "objects recalled", "scenes with two"},
        ),
        (lambda s: replace(s, things=tuple(replace(t, row=(t.row + 1) % 3) for t in s.things)), {"single object in"}),
    ],
)
def test_images_wrong_in_one_respect_lose_only_that_score(generated: Any, change: Any, lost: set[str]) -> None:
    shares = generated(change)
    for name, share in shares.items():
        right = not any(name.startswith(start) for start in lost)
        assert share == 1.0 if right else share < 0.6, name


def test_a_second_object_is_not_one_exactly_right(generated: Any) -> None:
    def doubled(scene: Scene) -> Scene:
        first = scene.things[0]
        return replace(
            scene, things=(*scene.things, replace(first, row=(first.row + 1) % 3, column=(first.column + 1) % 3))
        )

    shares = generated(doubled)
    assert shares["single object exactly right (colour, shape, nothing else)"] == 0.0


def test_repeated_contents_do_not_narrow_an_interval() -> None:
    """500 scenes with one object have 91 contents; an error comes with each of its scenes."""
    once = evaluate.Share([True, True, False, True] * 5, [str(i) for i in range(20)])
    copied = evaluate.Share([*once.hits] * 10, [*once.contents] * 10)
    assert str(once).endswith(", n = 20")
    assert str(copied).endswith(", n = 200 of 20 contents")
    ends = [[float(end) for end in str(share).split("[")[1].split("]")[0].split(", ")] for share in (once, copied)]
    assert ends[1] == pytest.approx(ends[0], abs=0.02)


@pytest.mark.parametrize(
    ("parts", "right"),
    [
        (("A story about a red star. A red star is in the center on a mint background.", 1, "The end."), True),
        (
            ("A red star is in the center on a mint background. Then it goes to the top left on a mint background.", 1),
            False,
        ),
        (("A story about a red star.", 1, "A red star is in the center on a mint background."), False),
        (("A red star is in the center on a mint background.", 1, 2), False),
        (("Here is a red star in the center on a mint background.", 1), True),
    ],
)
def test_images_stand_after_the_sentence_that_describes_them(parts: tuple[Any, ...], right: bool) -> None:
    pairs = evaluate.sentences_with_images(parts)
    assert all(evaluate.describes(text) == (image is not None) for text, image in pairs) is right


def test_an_image_shows_its_sentence_if_that_names_all_that_is_seen() -> None:
    seen = Seen("mint", {(0, 0): ("star", "blue", "small")})
    assert evaluate.names_all("The star turns blue in the top left on a mint background.", seen)
    assert not evaluate.names_all("The star turns red in the top left on a mint background.", seen)
    assert not evaluate.names_all("The star turns blue in the top left on a mint background.", Seen("mint", {}))


def test_the_probe_reads_cells_from_logits() -> None:
    class Sure(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            cells, ground = torch.zeros(len(pixels), sum(_PARTS), 3, 3), torch.zeros(len(pixels), len(BACKGROUNDS))
            cells[:, 0] = 1  # empty
            cells[:, 3, 2, 1] = 2  # the third shape in the last row
            cells[:, _PARTS[0] + 4, 2, 1] = 1
            cells[:, sum(_PARTS[:2]) + 1, 2, 1] = 1
            ground[:, 2] = 1
            return cells, ground

    (seen,) = look(Sure(), np.zeros((1, 64, 64, 3), np.uint8))
    assert seen == Seen(BACKGROUNDS[2], {(2, 1): (SHAPES[2], COLOURS[4], SIZES[1])})


def test_a_checkpoint_that_does_not_exist_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, evaluate.__file__, str(tmp_path / "nowhere")]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == 2
    assert "nowhere is not a folder" in process.stderr
