"""Draw the images of docs/playground.md and docs/interleaved.md: ``python docs/make_images.py [RUNS [BUILD]]``.

The documents are those of ``dreambench run --task interleaved``, which is run into the folder RUNS (default: runs) unless it is there.
The curves are drawn if there is a BUILD, the folder that ``model/embedded/build.py`` wrote.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

import dreambench
from dreambench.documents import Document, Text, from_json
from dreambench.images import decode_rgb
from dreambench.report.runs import load, shown_documents
from dreambench_tasks.playground import draw_scene, render, render_many, story

STORIES = (30, 7, 12, 48, 51, 25)
DOCUMENTS = 3
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
    return _grid(rows)


def document_sheet(runs: Path) -> Image.Image:
    """The first random documents of the report of the default run whose references have several images, each above its reference."""
    run = load(dreambench.run("interleaved", out=runs).folder)
    rows: list[list[Tensor]] = []
    for row in shown_documents(run.rows):
        reference = from_json(run.samples[row["id"]].targets["reference"])
        if len(rows) < 2 * DOCUMENTS and sum(not isinstance(part, Text) for part in reference) > 1:
            asked = f"{row['document_id']}, generated for: {run.prompts[row['id']]}"
            rows.append([_cell(asked), *_cells(run.responses[row["id"]].document)])
            rows.append([_cell("reference"), *_cells(reference)])
    return _grid(rows)


def curve_sheet(build: Path) -> Figure:
    """The losses of the recipes that were run, in the order of their stages."""
    figure = Figure(figsize=(12, 2.6), layout="constrained")
    names = ("alignment-comprehension", "alignment-generation", "igpt", "sft")
    stages = [stage for stage in names if (build / stage).is_dir()]
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        logs = pd.read_json(build / stage / "logs.jsonl", lines=True)
        for name, label, color in (("lm_loss", "language loss", "tab:blue"), ("vm_loss", "image loss", "tab:orange")):
            if name in logs:
                axes.plot(logs["step"], logs[name], label=label, color=color, linewidth=1)
        axes.set(title=stage, xlabel="step", ylim=(0, 1.1))
        axes.legend(frameon=False)
    return figure


def _cells(document: Document) -> list[Tensor]:
    """Each image below the text before it."""
    cells: list[Tensor] = []
    text = ""
    for part in document:
        if isinstance(part, Text):
            text = part.text
        else:
            cells.append(_cell(text, decode_rgb(part)))
            text = ""
    return [*cells, _cell(text)] if text else cells


def _grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
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
    document_sheet(Path(*sys.argv[1:2] or ["runs"])).save(folder / "interleaved.png", optimize=True)
    if sys.argv[2:]:
        curve_sheet(Path(sys.argv[2])).savefig(folder / "embedded-curves.png", dpi=110)
