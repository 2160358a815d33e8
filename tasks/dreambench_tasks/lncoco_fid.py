"""LN-COCO FID: images for Localized Narratives, paragraphs of some forty words, against the images of COCO val2017."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import ClassVar

from dreambench.documents import JSON, Text
from dreambench.errors import UsageError
from dreambench.requests import Sample, sample_seed
from dreambench_tasks.coco import find_images
from dreambench_tasks.narratives import Narratives, read_narratives
from dreambench_tasks.text_to_image import TextToImageTask

__all__ = ["LnCocoFid"]


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
    def data(self) -> Path:
        """The narratives' folder or file, or the embedded playground."""
        if self.spec.data_path is not None:
            return self.spec.data_path
        from dreambench_tasks.playground import ensure_default

        return ensure_default()

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
                yield image, sample_seed(self.spec.seed, f"narrative {image} {turn}") % len(texts), turn

    def _sample(self, image: int, narrative: int, turn: int) -> Sample:
        id_ = f"{image}-{narrative}" if turn == 0 else f"{image}-{narrative}-{turn}"
        text = self.narratives.by_image[image][narrative]
        targets = {"image_id": image, "caption_id": f"{image}-{narrative}"}
        return Sample(id_, (Text(text),), targets, group=str(image))

    def sampling(self) -> Mapping[str, JSON]:
        return {
            "split": self.split,
            "annotations_sha256": self.narratives.sha256,
            "caption_choice": {"rule": self.rules[self.split], "seed": self.spec.seed},
        }

    def reference_images(self) -> list[Path]:
        folder = self.data.parent if self.data.is_file() else self.data
        return find_images(list(self.narratives.by_image), folder, self.spec.images, "val2017")
