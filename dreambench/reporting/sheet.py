"""The contact sheet: a run's generated images in a grid, each over its caption, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dreambench.documents import Image
from dreambench.errors import DataError, UsageError
from dreambench.reporting.examples import choose
from dreambench.reporting.loading import Loaded
from dreambench.reporting.text import printable

if TYPE_CHECKING:
    import PIL.Image
    from PIL import ImageDraw, ImageFont

__all__ = ["contact_sheet"]

IMAGES = 48
CELL = 192
GAP = 16
LINE = 17
LINES = 3
INK, FAINT, PAPER = "#1c1c1a", "#8a8a84", "#ffffff"


def contact_sheet(run: Loaded, count: int = IMAGES) -> bytes:
    """At most `count` images, taken by hash of their ids and shown in the run's order. The same run gives the same bytes.

    Raises `UsageError` where the run generated nothing.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    generated = [row for row in run.rows if row.get("image")]
    if not generated:
        raise UsageError(f"--sheet: {run.run.path} has no images; give a image generation run")
    taken = {row["id"] for row in choose(generated, count=count).unchosen}
    rows = [row for row in generated if row["id"] in taken]
    columns = min(8, len(rows))
    step_y = CELL + LINES * LINE + GAP
    size = (GAP + columns * (CELL + GAP), 3 * GAP + -(-len(rows) // columns) * step_y)
    sheet = Pillow.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    title, small = _font(14), _font(12)
    heading = f"{run.title} · {len(rows)} of {len(generated)} images · {run.metrics['protocol']} · {run.name}"
    draw.text((GAP, GAP), _wrap(heading, _width(title), size[0] - 2 * GAP, 1)[0], fill=INK, font=title)
    for place, row in enumerate(rows):
        left, top = GAP + place % columns * (CELL + GAP), 3 * GAP + place // columns * step_y
        part = next(part for part in run.responses[row["id"]].document if isinstance(part, Image))
        _paste(sheet, draw, Path(part.path or ""), left, top)
        for number, line in enumerate(_wrap(str(row.get("caption") or row["id"]), _width(small), CELL, LINES)):
            draw.text((left, top + CELL + 4 + number * LINE), line, fill=INK, font=small)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _paste(sheet: PIL.Image.Image, draw: ImageDraw.ImageDraw, path: Path, left: int, top: int) -> None:
    """The image, scaled into its cell; where the file is gone, an empty frame that says so."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    from dreambench.metrics.images import read_rgb

    try:
        image = ImageOps.contain(Pillow.fromarray(read_rgb(path)), (CELL, CELL), Pillow.Resampling.BICUBIC)
    except DataError:
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=FAINT)
        draw.text((left + 8, top + 8), "missing or damaged", fill=FAINT, font=_font(12))
        return
    sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the same letters on every machine, and far more of them than Pillow's own font."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf",
        size,
        # Shaping by an optional library would differ between machines.
        layout_engine=ImageFont.Layout.BASIC,
    )


def _width(font: ImageFont.FreeTypeFont) -> Callable[[str], float]:
    return font.getlength


def _wrap(text: str, width: Callable[[str], float], room: float, most: int) -> list[str]:
    """`text` in at most `most` lines that fit into `room`; words are broken only where they must, and what is left out is marked."""
    lines, rest = [""], printable(" ".join(text.split()))
    while rest:
        word, space, after = rest.partition(" ")
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if width(joined) <= room:
            lines[-1], rest = joined, after
        elif lines[-1]:
            lines.append("")
        else:
            fits = next(n for n in range(len(word), 0, -1) if n == 1 or width(word[:n]) <= room)
            lines[-1], rest = word[:fits], word[fits:] + space + after
            lines.append("")
        if len(lines) > most:
            return [*lines[: most - 1], _marked(lines[most - 1], width, room)]
    return [line for line in lines if line] or [""]


def _marked(line: str, width: Callable[[str], float], room: float) -> str:
    while line and width(line + "…") > room:
        line = line[:-1]
    return line.rstrip() + "…"
