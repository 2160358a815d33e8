"""The judge of generated images: a small convolutional network that predicts what is in each cell of the 3 x 3 grid.

It is trained only on rendered scenes of the train split, shifted by up to two pixels and slightly noisy because generated images are
never exact. Its accuracy is measured on scenes of the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dreambench_tasks.playground import BACKGROUNDS, COLOURS, SHAPES, SIZES, draw_scene, render_many
from loop import CHECKPOINT, Settings, generator_of, pixels_of, reproducible, train
from surrogate_clip import object_grid

__all__ = ["Seen", "build_probe", "look"]

SETTINGS = Settings(steps=900, batch=128, learning_rate=3e-3, weight_decay=0.01)
WEIGHTS = "probe.safetensors"
_PARTS = (len(SHAPES) + 1, len(COLOURS), len(SIZES))  # 0 of the shapes is an empty cell


@dataclass(frozen=True, slots=True)
class Seen:
    """What the probe predicts for an image: the background, and (row, column) -> (shape, colour, size)."""

    background: str
    things: dict[tuple[int, int], tuple[str, str, str]]

    @property
    def names(self) -> list[tuple[str, str]]:
        """(shape, colour) of every object, in reading order."""
        return [(shape, colour) for _, (shape, colour, _) in sorted(self.things.items())]


class _Probe(nn.Module):
    """Pixels (B, 3, 64, 64) in -1 … 1 to logits of the cells, (B, 14, 3, 3), and of the background, (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 5 if a == 3 else 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU())
                for a, b in pairwise(widths)
            ),
            nn.Conv2d(96, 96, 3, padding=1),
            nn.GroupNorm(8, 96),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(6),
        )
        self.cells = nn.Conv2d(96, sum(_PARTS), 2, stride=2)
        self.ground = nn.Linear(96, len(BACKGROUNDS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(pixels)
        return self.cells(features), self.ground(features.mean((2, 3)))


def build_probe(folder: Path) -> nn.Module:
    """The probe, from ``folder/probe.safetensors``, or trained into it (about two minutes)."""
    with reproducible(SETTINGS.seed):
        probe = _Probe()
        if not (folder / WEIGHTS).is_file():
            train(folder, probe, lambda step: _loss(probe, step), SETTINGS)
            save_file(probe.state_dict(), folder / WEIGHTS)
            (folder / CHECKPOINT).unlink()
    probe.load_state_dict(load_file(folder / WEIGHTS))
    return probe.eval()


@torch.inference_mode()
def look(probe: nn.Module, images: np.ndarray[Any, Any]) -> list[Seen]:
    """The prediction for each of ``(N, 64, 64, 3)`` uint8 images."""
    seen: list[Seen] = []
    for part in pixels_of(images).split(256):
        cells, grounds = probe(part)
        shapes, colours, sizes = (logits.argmax(1) for logits in cells.split(_PARTS, dim=1))
        for i, ground in enumerate(grounds.argmax(1).tolist()):
            things = {
                (row, column): (
                    SHAPES[int(shapes[i, row, column]) - 1],
                    COLOURS[int(colours[i, row, column])],
                    SIZES[int(sizes[i, row, column])],
                )
                for row, column in (shapes[i] > 0).nonzero().tolist()
            }
            seen.append(Seen(BACKGROUNDS[ground], things))
    return seen


def _loss(probe: _Probe, step: int) -> Tensor:
    scenes = [draw_scene("train", step * SETTINGS.batch + i, SETTINGS.seed) for i in range(SETTINGS.batch)]
    generator = generator_of(SETTINGS.seed, step)
    pixels = pixels_of(render_many(scenes))
    right, down = (int(torch.randint(-2, 3, (), generator=generator)) for _ in range(2))
    pixels = F.pad(pixels, (2, 2, 2, 2), mode="replicate")[:, :, 2 - down : 66 - down, 2 - right : 66 - right]
    pixels = pixels + 0.05 * torch.randn(pixels.shape, generator=generator)
    cells, grounds = probe(pixels)
    shapes, *attributes = cells.split(_PARTS, dim=1)
    shape, *targets = object_grid(scenes)
    loss = F.cross_entropy(shapes, shape) * 3
    occupied = shape > 0
    for logits, target in zip(attributes, targets, strict=True):
        loss = loss + F.cross_entropy(logits.permute(0, 2, 3, 1)[occupied], target[occupied] - 1)
    return loss + F.cross_entropy(grounds, torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes]))
