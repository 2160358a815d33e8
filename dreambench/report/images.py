"""Small images: the thumbnails of reference images that a run keeps for its page, and the contact sheet.

``thumbnails/reference_images.json`` in a run maps image ids to file names beside it, or to null where no image is known.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambench.documents import Image
from dreambench.errors import DataError, RunError, UsageError
from dreambench.files import inside, read_arrays, temporary, write_atomically
from dreambench.images import BrokenImageError, contact_sheet, decode
from dreambench.report.runs import CompleteRun, choose
from dreambench.report.text import printable
from dreambench.store import RunFolder

if TYPE_CHECKING:
    import PIL.Image
    from PIL import ImageFont

__all__ = ["SIDE", "captioned_sheet", "nearest_reference_images", "save_reference_images", "saved_reference_images"]
__all__ += ["thumbnail"]

SIDE = 160
"""Pixels of a thumbnail's longer side, at most."""
NEAREST = 3
"""Nearest reference images that a page shows of a generated image."""


def _read(image: Path | bytes) -> PIL.Image.Image:
    try:
        return decode(image, "an image") if isinstance(image, bytes) else decode(image.read_bytes(), image.name)
    except (OSError, BrokenImageError) as error:
        where = "" if isinstance(image, bytes) else f"{image}: "
        raise DataError(f"{where}not a readable image ({error})") from error


def thumbnail(image: Path | bytes, side: int = SIDE) -> bytes:
    """The image as a JPEG whose longer side is at most `side` pixels. Raises `DataError` where it cannot be decoded."""
    from PIL import Image as Pillow

    pixels = _read(image)
    pixels.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Full colour resolution: chroma subsampling frays the edges of small images.
    pixels.save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()


def save_reference_images(
    run: RunFolder,
    images: Mapping[int, Path | bytes | None] | Mapping[str, Path | bytes | None],
    *,
    skip_broken: bool = False,
) -> None:
    """Add thumbnails of images, by image id, to those in the run, and write their index last, so that it names no missing file.

    Raises:
        DataError: an image cannot be read, unless `skip_broken`.
    """
    before = {id_: None if path is None else path.name for id_, path in saved_reference_images(run).items()}
    names = dict(before)
    for image_id, image in images.items():
        stem = f"{image_id:012d}" if isinstance(image_id, int) else hashlib.sha256(image_id.encode()).hexdigest()[:32]
        try:
            data = None if image is None else thumbnail(image)
        except DataError:
            if skip_broken:
                continue
            raise
        names[str(image_id)] = None if data is None else f"{stem}.jpg"
        if data is not None:
            # Not synced one by one: there may be a thousand, and each can be made again.
            with temporary(run.path / "thumbnails" / f"{stem}.jpg") as unfinished:
                unfinished.write_bytes(data)
                unfinished.replace(run.path / "thumbnails" / f"{stem}.jpg")
    if names != before:
        index = json.dumps(names, indent=1, sort_keys=True) + "\n"
        write_atomically(run.path / "thumbnails" / "reference_images.json", index.encode())


def saved_reference_images(run: RunFolder) -> dict[str, Path | None]:
    """Thumbnails of reference images by image id, None where no image was known; empty where the run keeps none."""
    folder = run.path / "thumbnails"
    index = folder / "reference_images.json"
    if not index.is_file():
        return {}
    try:
        names: dict[str, str | None] = json.loads(index.read_text(encoding="utf-8"))
        return {image_id: None if name is None else inside(folder, name) for image_id, name in names.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{index} is damaged: remove it, and `dreambench score {run.path}` writes it again") from error


def nearest_reference_images(run: RunFolder, ids: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """The ids of the reference images whose features are most similar to each of these samples' image, with the cosines.

    Empty where the run keeps no features of both sides (``features/<protocol>/``); of several protocols, the first counts.
    """
    import numpy as np

    found: dict[str, list[tuple[str, float]]] = {}
    for protocol in run.run_file()["protocols"]:
        folder = run.path / "features" / protocol
        if not all((folder / name).is_file() for name in ("generated.npz", "real.npz")):
            continue
        generated, real = (read_arrays(folder / name, RunError) for name in ("generated.npz", "real.npz"))
        try:
            places = {id_: place for place, id_ in reversed(list(enumerate(generated["ids"].tolist())))}
            wanted = [id_ for id_ in ids if id_ in places and id_ not in found]
            known = np.array([str(key) != "-1" for key in real["ids"].tolist()], dtype=bool)
            keys = [str(key) for key in real["ids"][known].tolist()]
            ours, theirs = generated["features"][[places[id_] for id_ in wanted]], real["features"][known]
            lengths = np.linalg.norm(ours, axis=1)[:, None] * np.linalg.norm(theirs, axis=1)[None]
            cosines = ours @ theirs.T / np.maximum(lengths, np.finfo(np.float32).tiny)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RunError(f"{folder} is damaged: remove it, and `dreambench score` computes it again") from error
        for id_, row in zip(wanted, cosines, strict=True):
            order = np.argsort(-row, kind="stable")[:NEAREST].tolist()
            found[id_] = [(keys[place], float(row[place])) for place in order]
    return found


# --- the contact sheet ------------------------------------------------------------------------------------------------

IMAGES = 48
CELL, GAP = 192, 16
LINES, LINE_HEIGHT = 3, 17
INK, GRAY, PAPER = "#1c1c1a", "#8a8a84", "#ffffff"


def captioned_sheet(run: CompleteRun, count: int = IMAGES) -> bytes:
    """A PNG of at most `count` random generated images in the run's order, each above its caption; the same in every call.

    Raises:
        UsageError: the run has no images.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    generated = [row for row in run.rows if row.get("image")]
    if not generated:
        raise UsageError(f"--sheet: {run.run.path} has no images; give a run of image generation")
    chosen = {row["id"] for row in choose(generated, count=count).random}
    rows = [row for row in generated if row["id"] in chosen]
    grid = contact_sheet([_cell(run, row) for row in rows], min(8, len(rows)), padding=GAP)
    sheet = Pillow.new("RGB", (grid.width, grid.height + 2 * GAP), PAPER)
    sheet.paste(grid, (0, 2 * GAP))
    title = f"{run.title} · {len(rows)} of {len(generated)} images · {run.metrics['protocol']} · {run.name}"
    (line,) = _wrap(title, _font(14).getlength, sheet.width - 2 * GAP, 1)
    ImageDraw.Draw(sheet).text((GAP, GAP), line, fill=INK, font=_font(14))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _cell(run: CompleteRun, row: Mapping[str, object]) -> PIL.Image.Image:
    """An image above its caption; an empty frame where the file is missing or damaged."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageOps

    cell = Pillow.new("RGB", (CELL, CELL + LINES * LINE_HEIGHT + 4), PAPER)
    draw, font = ImageDraw.Draw(cell), _font(12)
    part = next(part for part in run.responses[str(row["id"])].document if isinstance(part, Image))
    try:
        image = ImageOps.contain(_read(Path(part.path or "")), (CELL, CELL), Pillow.Resampling.BICUBIC)
        cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    except DataError:
        draw.rectangle((0, 0, CELL - 1, CELL - 1), outline=GRAY)
        draw.text((8, 8), "missing or damaged", fill=GRAY, font=font)
    for number, line in enumerate(_wrap(str(row.get("caption") or row["id"]), font.getlength, CELL, LINES)):
        draw.text((0, CELL + 4 + number * LINE_HEIGHT), line, fill=INK, font=font)
    return cell


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the same on every machine, with far more letters than Pillow's own font."""
    import matplotlib
    from PIL import ImageFont

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    # Shaping by an optional library would differ between machines.
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def _wrap(text: str, length: Callable[[str], float], width: float, most: int) -> list[str]:
    """`text` in at most `most` lines of `width` pixels; words longer than a line are broken, and an ellipsis marks what is left out."""
    lines = [""]
    words = printable(" ".join(text.split())).split(" ")
    while words and len(lines) <= most:
        word = words.pop(0)
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if length(joined) <= width:
            lines[-1] = joined
        elif lines[-1]:
            lines.append("")
            words.insert(0, word)
        else:
            end = next(n for n in range(len(word), 0, -1) if n == 1 or length(word[:n]) <= width)
            lines[-1] = word[:end]
            lines.append("")
            words.insert(0, word[end:])
    if len(lines) > most:
        last = lines[most - 1]
        while last and length(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last.rstrip() + "…"]
    return lines
