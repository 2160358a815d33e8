"""Stories on one sheet for the eye: each image under the sentences that lead to it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from dreambench_tasks.playground.render import SIDE, render
from dreambench_tasks.playground.stories import Story

__all__ = ["story_sheet"]

_SCALE = 3
_GAP, _WIDTH, _TEXT_HEIGHT = 14, 250, 84  # pixels
_FONT_SIZE, _LINE = 14, 36  # pixels, characters
_INK = (40, 40, 48)


def story_sheet(stories: Sequence[Story]) -> Image.Image:
    """One story a row, RGB; a sentence after the last image stands beside it."""
    font = ImageFont.load_default(_FONT_SIZE)
    cells = [_cells(story) for story in stories]
    columns = max(map(len, cells))
    height = _TEXT_HEIGHT + SIDE * _SCALE + 2 * _GAP
    sheet = Image.new("RGB", (columns * (_WIDTH + _GAP) + _GAP, len(stories) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(cells):
        for column, (text, image) in enumerate(line):
            left, top = _GAP + column * (_WIDTH + _GAP), _GAP + row * height
            words = "\n".join(textwrap.wrap(text, _LINE))
            draw.multiline_text((left, top + _TEXT_HEIGHT), words, _INK, font, anchor="ld", spacing=3)
            if image is not None:
                big = image.resize((SIDE * _SCALE, SIDE * _SCALE), Image.Resampling.NEAREST)
                sheet.paste(big, (left, top + _TEXT_HEIGHT + _GAP // 2))
    return sheet


def _cells(story: Story) -> list[tuple[str, Image.Image | None]]:
    """The sentences up to each image with it, then what is left of the text."""
    cells: list[tuple[str, Image.Image | None]] = []
    begin = 0
    for scene, place in zip(story.scenes, story.matched, strict=True):
        cells.append((" ".join(story.sentences[begin : place + 1]), Image.fromarray(render(scene))))
        begin = place + 1
    rest = " ".join(story.sentences[begin:])
    return [*cells, (rest, None)] if rest else cells
