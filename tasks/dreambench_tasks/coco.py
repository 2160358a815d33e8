"""COCO's caption files and folders of images."""

from __future__ import annotations

import contextlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambench.errors import DataError, counted
from dreambench.files import files_below, not_led_out, read_json, sha256_file
from dreambench.requests import parse_number

__all__ = ["Caption", "Captions", "find_images", "image_index", "read_captions"]

COCO_FILE_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.(?:jpg|jpeg|png|webp)", re.IGNORECASE)


@dataclass(frozen=True)
class Caption:
    """One caption with its ids."""

    id: int
    image_id: int
    text: str


@dataclass(frozen=True)
class Captions:
    """An annotation file: captions by image id, in the order of their ids."""

    sha256: str
    by_image: dict[int, list[Caption]]


def read_captions(data: Path, split: str) -> Captions:
    """``annotations/captions_{split}.json`` of a COCO folder, through pycocotools; DataError where it is missing or malformed."""
    candidates = [data / "annotations" / f"captions_{split}.json", data / f"captions_{split}.json"]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        there = sorted(file.name for folder in (data / "annotations", data) for file in folder.glob("captions_*.json"))
        raise DataError(
            f"{data}: no annotations/captions_{split}.json ({', '.join(there) or 'no captions_*.json at all'} there): "
            "choose with --split, or give COCO's folder with --data"
        )
    not_led_out(data, path)
    from pycocotools.coco import COCO

    coco: Any = COCO()
    coco.dataset = read_json(path)
    try:
        # pycocotools reports its progress on standard output, which is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        if len(coco.anns) < len(coco.dataset["annotations"]) or len(coco.imgs) < len(coco.dataset["images"]):
            raise ValueError("two annotations, or two images, have one id")
        by_image: dict[int, list[Caption]] = {parse_number(image): [] for image in coco.imgs}
        for annotation in coco.loadAnns(sorted(coco.anns)):
            caption = Caption(
                parse_number(annotation["id"]), parse_number(annotation["image_id"]), annotation["caption"].strip()
            )
            if not caption.text:
                raise ValueError(f"the caption {caption.id} is empty")
            by_image[caption.image_id].append(caption)
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a COCO captions file ({type(error).__name__}: {error})") from error
    if not by_image:
        raise DataError(f"{path}: no images in it; is it a COCO captions file?")
    without = [image for image, captions in by_image.items() if not captions]
    if without:
        many = counted(len(without), "image has", "images have")
        raise DataError(f"{path}: {many} no caption, the first {without[0]}: complete the file")
    return Captions(sha256_file(path), dict(sorted(by_image.items())))


def image_index(folder: Path, root: Path | None = None) -> dict[int, str]:
    """Paths of the images below a folder by COCO id; names of 2014 and 2017 are both recognised. The first in order of path wins.

    Links may lead within `root`, if it is not `folder`. Raises `DataError` for one that leads out.
    """
    found: dict[int, str] = {}
    for path in files_below(folder, COCO_FILE_NAME.fullmatch, root):
        match = COCO_FILE_NAME.fullmatch(path.rpartition(os.sep)[2])
        if match:
            found.setdefault(int(match[1]), path)
    return found


def find_images(image_ids: list[int], data: Path, images: Path | None, split: str) -> list[Path]:
    """The image of each image id, below `images`, or else below ``data/split``, ``data/images`` or `data`."""
    if images is not None and not images.is_dir():
        raise DataError(f"--images {images}: no such folder")
    places = [images] if images is not None else [data / split, data / "images" / split, data / "images", data]
    place = next(folder for folder in places if folder.is_dir())
    index = image_index(place) if images is not None else image_index(not_led_out(data, place), data)
    missing = [image_id for image_id in image_ids if image_id not in index]
    if missing:
        raise DataError(
            f"{place}: {len(missing)} of {len(image_ids)} images are missing, the first {missing[0]:012d}.jpg: "
            "say where they are with --images DIR, or give the reference with --real DIR or --real STATS.npz"
        )
    return [Path(index[image_id]) for image_id in image_ids]
