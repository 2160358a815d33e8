"""MS-COCO FID: an image for one caption of each image, against the images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from dreambench.documents import JSON, Text
from dreambench.errors import UsageError
from dreambench.requests import Sample, choice_order
from dreambench_tasks.coco import Captions, find_images, read_captions
from dreambench_tasks.text_to_image import TextToImageTask

__all__ = ["CocoFid"]


class CocoFid(TextToImageTask):
    """MS-COCO FID: val2014-30k (30,000 images, one caption each), val2014 or val2017 (every image, one caption each)

    The reference is every image of the annotation file (40,504 of val2014, 5,000 of val2017), whatever the number of samples.
    """

    name = "coco_fid"

    @cached_property
    def split(self) -> tuple[str, int | None]:
        """The annotation file's split and how many images are taken from it, None for all."""
        if self.spec.split is not None:
            return _thirty_thousand(self.spec.split)
        has_2014 = any((self.data / place / "captions_val2014.json").is_file() for place in ("annotations", "."))
        return ("val2014", 30_000) if has_2014 else ("val2017", None)

    @cached_property
    def captions(self) -> Captions:
        return read_captions(self.data, self.split[0])

    def samples(self) -> list[Sample]:
        """One caption per image by the image's id; of 30,000, the images whose own number by their id is lowest."""
        _, wanted = self.split
        images = list(self.captions.by_image)
        if wanted is not None:
            if len(images) < wanted:
                raise UsageError(
                    f"--split {self.split[0]}-30k: the file has only {len(images)} images; --split {self.split[0]} takes all"
                )
            images = sorted(sorted(images, key=lambda image: choice_order(f"image {image}"))[:wanted])
        samples: list[Sample] = []
        for image in images:
            captions = self.captions.by_image[image]
            caption = captions[choice_order(f"caption {image}") % len(captions)]
            targets = {"image_id": image, "caption_id": caption.id}
            samples.append(Sample(str(image), (Text(caption.text),), targets, group=str(image)))
        return samples

    def sampling(self) -> Mapping[str, JSON]:
        return {
            "split": self.split[0],
            "annotations_sha256": self.captions.sha256,
            "caption_choice": {"rule": "one per image, by sha256 of (seed, image id)", "seed": 0},
            "images_taken": self.split[1] or "all",
        }

    def reference_images(self) -> list[Path]:
        return find_images(list(self.captions.by_image), self.data, self.spec.images, self.split[0])


def _thirty_thousand(split: str) -> tuple[str, int | None]:
    """``val2014-30k`` as (``val2014``, 30000), ``val2017`` as (``val2017``, None)."""
    match = re.fullmatch(r"([A-Za-z0-9_]+)(-30k)?", split)
    if match is None:
        raise UsageError(f"--split {split}: write for instance val2017, val2014 or val2014-30k")
    return match[1], 30_000 if match[2] else None
