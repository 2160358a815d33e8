"""Draw the images of docs/playground.md: ``python docs/make_images.py``."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from dreambench_tasks.playground import draw_scene, render, render_many, story

STORIES = (30, 7, 12, 48, 51, 25)
SCALE, WIDTH, TEXT_HEIGHT = 3, 250, 84


def scene_sheet() -> Image.Image:
    """96 scenes of the val split, twice their size."""
    images = render_many(draw_scene("val", index) for index in range(96))
    enlarged = torch.from_numpy(images).permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return to_pil_image(make_grid(enlarged, nrow=12, padding=6, pad_value=255))


def story_sheet() -> Image.Image:
    """One story per row: each image below the sentences that lead to it, then the remaining text."""
    rows: list[list[Tensor]] = []
    for index in STORIES:
        document, begin, row = story("val", index), 0, list[Tensor]()
        for scene, sentence in zip(document.scenes, document.matched, strict=True):
            row.append(_cell(" ".join(document.sentences[begin : sentence + 1]), Image.fromarray(render(scene))))
            begin = sentence + 1
        rest = " ".join(document.sentences[begin:])
        rows.append([*row, _cell(rest)] if rest else row)
    columns = max(map(len, rows))
    cells = [cell for row in rows for cell in [*row, *[_cell("")] * (columns - len(row))]]
    return to_pil_image(make_grid(torch.stack(cells), nrow=columns, padding=14, pad_value=255))


def _cell(text: str, image: Image.Image | None = None) -> Tensor:
    cell = Image.new("RGB", (WIDTH, TEXT_HEIGHT + 64 * SCALE + 14), "white")
    words = "\n".join(textwrap.wrap(text, 34))
    font = ImageFont.load_default(14)
    ImageDraw.Draw(cell).multiline_text((0, TEXT_HEIGHT), words, (40, 40, 48), font, anchor="ld", spacing=3)
    if image is not None:
        cell.paste(image.resize((64 * SCALE, 64 * SCALE), Image.Resampling.NEAREST), (0, TEXT_HEIGHT + 7))
    return torch.from_numpy(np.array(cell)).permute(2, 0, 1)


if __name__ == "__main__":
    folder = Path(__file__).parent
    scene_sheet().save(folder / "playground.png", optimize=True)
    story_sheet().save(folder / "stories.png", optimize=True)
