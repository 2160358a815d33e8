"""The judge of generated scenes: a small convolutional network that names what is in each cell of the 3 x 3 grid.

It is trained on real scenes of the train part only, never on anything generated, and its own accuracy is measured on scenes of the
test part. It sees images shifted by up to two pixels and a little noisy, for what is generated is never bit-exact.
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

from dreambench_tasks.playground.pixels import pixels_of
from dreambench_tasks.playground.render import render_many
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, draw_scene
from dreambench_tasks.playground.surrogates.loop import CHECKPOINT, Report, Settings, generator_of, one_thread, train

__all__ = ["SETTINGS", "Seen", "build_probe", "look"]

SETTINGS = Settings(steps=900, batch=128, learning_rate=3e-3, weight_decay=0.01)
WEIGHTS = "probe.safetensors"
_PARTS = (len(SHAPES) + 1, len(COLOURS), len(SIZES))  # 0 of the shapes is an empty cell


@dataclass(frozen=True, slots=True)
class Seen:
    """What the probe sees in an image: a background, and (row, column) -> (shape, colour, size)."""

    background: str
    things: dict[tuple[int, int], tuple[str, str, str]]

    @property
    def names(self) -> list[tuple[str, str]]:
        """(shape, colour) of every thing, in reading order."""
        return [(shape, colour) for _, (shape, colour, _) in sorted(self.things.items())]


class _Probe(nn.Module):
    """(B, 3, 64, 64) in -1 … 1 to logits of the cells, (B, 14, 3, 3), and of the background, (B, 4)."""

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


def build_probe(folder: str | Path, settings: Settings = SETTINGS, report: Report | None = None) -> nn.Module:
    """The probe, from ``folder/probe.safetensors`` or trained into it."""
    folder = Path(folder)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        probe = _Probe()
        if not (folder / WEIGHTS).is_file():
            train(folder, probe, lambda step: _loss(probe, step, settings), settings, report)
            save_file(probe.state_dict(), folder / WEIGHTS)
            (folder / CHECKPOINT).unlink()
    probe.load_state_dict(load_file(folder / WEIGHTS))
    return probe.eval()


@torch.inference_mode()
def look(probe: nn.Module, images: np.ndarray[Any, Any]) -> list[Seen]:
    """What is in each of ``(N, 64, 64, 3)`` uint8 images."""
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


def _loss(probe: _Probe, step: int, settings: Settings) -> Tensor:
    scenes = [draw_scene("train", step * settings.batch + i, settings.seed) for i in range(settings.batch)]
    generator = generator_of(settings.seed, step)
    pixels = pixels_of(render_many(scenes))
    right, down = (int(torch.randint(-2, 3, (), generator=generator)) for _ in range(2))
    pixels = F.pad(pixels, (2, 2, 2, 2), mode="replicate")[:, :, 2 - down : 66 - down, 2 - right : 66 - right]
    pixels = pixels + 0.05 * torch.randn(pixels.shape, generator=generator)
    cells, grounds = probe(pixels)
    shapes, colours, sizes = cells.split(_PARTS, dim=1)
    targets = _targets(scenes)
    held = targets[0] > 0
    loss = F.cross_entropy(shapes, targets[0]) * 3
    loss = loss + F.cross_entropy(colours.permute(0, 2, 3, 1)[held], targets[1][held])
    loss = loss + F.cross_entropy(sizes.permute(0, 2, 3, 1)[held], targets[2][held])
    ground = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
    return loss + F.cross_entropy(grounds, ground)


def _targets(scenes: list[Scene]) -> Tensor:
    """(3, B, 3, 3): shape + 1 or 0 where a cell is empty, colour, size."""
    targets = torch.zeros(3, len(scenes), 3, 3, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for t in scene.things:
            found = (SHAPES.index(t.shape) + 1, COLOURS.index(t.colour), SIZES.index(t.size))
            targets[:, i, t.row, t.column] = torch.tensor(found)
    return targets
