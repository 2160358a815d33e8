"""LN-COCO FID: images for Localized Narratives, paragraphs of some forty words, against the images of COCO val2017."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import ClassVar

from dreambench.documents import JSON, Text
from dreambench.errors import DataError, UsageError
from dreambench.files import plain_or_gzip, read_json_lines, sha256_file
from dreambench.requests import Sample, choice_order, parse_number
from dreambench_tasks.coco import find_images
from dreambench_tasks.text_to_image import TextToImageTask

__all__ = ["LnCocoFid", "Narratives", "read_narratives"]

FILES = ("coco_val_localized_narratives.jsonl", "lncoco_captions_val2017.jsonl")


@dataclass(frozen=True)
class Narratives:
    """Narratives by COCO image id, ids ascending, those of one image in the file's order."""

    sha256: str
    by_image: dict[int, list[str]]


class LnCocoFid(TextToImageTask):
    """LN-COCO FID: val2017 (every narrative once: 8,573), val2017-images (one per image: 5,000) or val2017-30k (oversampled)

    The reference is each image once, however many narratives it has. Splits differ in the number of samples on which a Fréchet
    distance depends, so they are different protocols.
    """

    name = "lncoco_fid"
    rules: ClassVar[Mapping[str, str]] = {
        "val2017": "every narrative once",
        "val2017-images": "one narrative per image, by sha256 of (seed, image id)",
        "val2017-30k": "images in turn until 30,000, the narrative by sha256 of (seed, image id, turn)",
    }

    @cached_property
    def narratives(self) -> Narratives:
        return read_narratives(self.data)

    @cached_property
    def split(self) -> str:
        chosen = self.spec.split or "val2017"
        if chosen not in self.rules:
            raise UsageError(f"--split {chosen}: {self.name} has {', '.join(self.rules)}")
        return chosen

    def samples(self) -> list[Sample]:
        if self.split == "val2017":
            chosen = ((image, k, 0) for image, texts in self.narratives.by_image.items() for k in range(len(texts)))
        elif self.split == "val2017-images":
            chosen = islice(self._turns(), len(self.narratives.by_image))
        else:
            chosen = islice(self._turns(), 30_000)
        return [self._sample(*each) for each in chosen]

    def _turns(self) -> Iterator[tuple[int, int, int]]:
        """(image id, narrative, turn), image after image, again and again."""
        for turn in count():
            for image, texts in self.narratives.by_image.items():
                yield image, choice_order(f"narrative {image} {turn}") % len(texts), turn

    def _sample(self, image: int, narrative: int, turn: int) -> Sample:
        id_ = f"{image}-{narrative}" if turn == 0 else f"{image}-{narrative}-{turn}"
        text = self.narratives.by_image[image][narrative]
        targets = {"image_id": image, "caption_id": f"{image}-{narrative}"}
        return Sample(id_, (Text(text),), targets, group=str(image))

    def sampling(self) -> Mapping[str, JSON]:
        return {
            "split": self.split,
            "annotations_sha256": self.narratives.sha256,
            "caption_choice": {"rule": self.rules[self.split], "seed": 0},
        }

    def reference_images(self) -> list[Path]:
        folder = self.data.parent if self.data.is_file() else self.data
        return find_images(list(self.narratives.by_image), folder, self.spec.images, "val2017")


def read_narratives(data: Path) -> Narratives:
    """Localized Narratives in the official JSON Lines, plain or gzipped.

    Args:
        data: the file, or a folder that holds it, itself or in its ``annotations``.

    Raises:
        DataError: there is no such file, or a line is malformed.
    """
    path = data if data.is_file() else _find(data)
    by_image: dict[int, list[str]] = {}
    for number, record in read_json_lines(path):
        try:
            image_id, caption = parse_number(record["image_id"]), record["caption"]
            if not isinstance(caption, str) or not caption.strip():
                raise TypeError("caption is empty or no text")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: needs image_id and caption ({error})") from error
        by_image.setdefault(image_id, []).append(caption.strip())
    if not by_image:
        raise DataError(f"{path} holds no narratives")
    return Narratives(sha256_file(path), dict(sorted(by_image.items())))


def _find(data: Path) -> Path:
    for folder in (data, data / "annotations"):
        for name in FILES:
            if path := plain_or_gzip(folder / name, data):
                return path
    raise DataError(
        f"{data}: no {FILES[0]} (plain or .gz) in it: give the folder that holds it, or the file, with --data"
    )
