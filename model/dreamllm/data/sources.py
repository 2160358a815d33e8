"""From records on disk to samples, for each kind of source.

A record that cannot be used raises InputError. A document only loses an image that cannot be read, which is reported.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

from PIL import Image

from dreamllm.data.samples import (
    Sample,
    comprehension_pair,
    conversation,
    document,
    generation_pair,
    image_pair,
    matched_parts,
)
from dreamllm.data.tables import SUFFIXES, Stream, Table, find_files
from dreamllm.errors import InputError, TooSmallError, UsageError
from dreamllm.files import inside, read_image
from dreamllm.processing import DreamLLMProcessor
from dreamllm.recipe import SourceSettings

Report = Callable[[str], None]  # called with the reason for each image that a document loses
Field = Literal["image", "caption", "target"]
USUAL_FIELDS: dict[Field, tuple[str, ...]] = {
    "caption": ("caption", "text", "txt"),
    "image": ("image", *(suffix[1:] for suffix in SUFFIXES)),
    "target": ("target",),
}
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


class Source:
    """An opened source of a recipe: `sample(i, rng, report)` makes the sample of record i."""

    def __init__(
        self,
        settings: SourceSettings,
        processor: DreamLLMProcessor,
        max_length: int,
        flip: bool,
        folder: Path,
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        files, self.images = locate(settings, folder)
        self.settings, self.processor, self.max_length = settings, processor, max_length
        self.mode = settings.resolved_mode
        # A mirrored target would not belong to its image.
        flip = flip and (settings.kind, self.mode) != ("image_pairs", "pair")
        self.flip = flip if settings.flip is None else settings.flip
        self.name = settings.label
        self.table = Stream(files, seed, settings.shuffle_buffer) if settings.streaming else Table(files, cache)

    @property
    def length(self) -> int | None:
        """The number of records; None for a stream."""
        return len(self.table) if isinstance(self.table, Table) else None

    def key(self, index: int) -> str:
        """The name of a record in messages: its number over the files, or in a stream the number of the draw."""
        return f"{'draw' if self.length is None else 'record'} {index}"

    def sample(self, index: int, rng: random.Random, report: Report) -> Sample:
        """Raises InputError if the record is broken or contributes to no loss."""
        # Drawn before the record is read, so that the draws do not depend on it.
        chance, mirroring = rng.random(), random.Random(rng.random())  # noqa: S311
        record = self.table.record(index)
        if self.settings.kind == "pairs":
            sample = self._pair(record, chance)
        elif self.settings.kind == "image_pairs":
            sample = self._image_pair(record)
        elif self.settings.kind == "conversations":
            sample = self._conversation(record)
        elif self.settings.kind == "obelics":
            sample = self._obelics(record, report)
        else:
            sample = self._matched(record, report)
        if not sample.has_loss:
            raise InputError("it has nothing to learn: no answer, no text, or all of it beyond max_length")
        sample.mirrored = [self.flip and mirroring.random() < 0.5 for _ in sample.targets]
        return sample

    def _pair(self, record: dict[str, Any], chance: float) -> Sample:
        extra = record.get("json")  # WebDataset: key.json with the caption in it
        caption = self._field("caption", record, extra if isinstance(extra, dict) else {})
        image = self._open(self._field("image", record))
        generated = self.mode == "generation" or (self.mode == "either" and chance < 0.5)
        return (generation_pair if generated else comprehension_pair)(self.processor, caption, image, self.max_length)

    def _image_pair(self, record: dict[str, Any]) -> Sample:
        """An image and the `target` that is generated from it; a caption between them is optional."""
        source = self._open(self._field("image", record))
        target = source if self.mode == "reconstruction" else self._open(self._field("target", record))
        named = any(record.get(name) is not None for name in self._names("caption"))
        text = self._field("caption", record) if named else ""
        return image_pair(self.processor, source, text, target, self.max_length)

    def _open(self, value: Any) -> Image.Image:
        """`open_image`; TooSmallError if the shorter side has less than `min_size` pixels."""
        image = open_image(value, self.images)
        if min(image.size) < self.settings.min_size:
            raise TooSmallError(
                f"an image of {image.width} x {image.height} is below min_size {self.settings.min_size}"
            )
        return image

    def _names(self, name: Field) -> Sequence[str]:
        return [self.settings.columns[name]] if name in self.settings.columns else USUAL_FIELDS[name]

    def _field(self, name: Field, *records: dict[str, Any]) -> Any:
        """The field that `columns` names, else the first of the usual ones that is set; InputError without it, or a blank caption."""
        names = self._names(name)
        values = [record[field] for record in records for field in names if record.get(field) is not None]
        if not values or (name == "caption" and not (isinstance(values[0], str) and values[0].strip())):
            raise InputError(f"no {name} (tried {', '.join(names)}; set its field in `columns`)")
        return values[0]

    def _matched(self, record: dict[str, Any], report: Report) -> Sample:
        """A record of MMC4, whose images are matched to sentences, or of instructions, which has an `instruction` as well."""
        texts, infos = record.get("text_list"), record.get("image_info")
        if not _all(texts, str) or not _all(infos, dict):
            raise InputError("text_list must be a list of strings, and image_info a list of objects")
        instruction = None
        if self.settings.kind == "instructions":
            instruction = record.get("instruction")
            if not isinstance(instruction, str) or not instruction.strip():
                raise InputError("it has no instruction")
        similarities = [info.get("matched_sim", 1.0) for info in infos]
        if not _all(similarities, int | float) or not _all([info.get("matched_text_index") for info in infos], int):
            raise InputError("matched_sim and matched_text_index of image_info must be numbers")
        infos = [info for info, sim in zip(infos, similarities, strict=True) if sim >= self.settings.min_similarity]
        images = self._open_images([info.get("image_name") for info in infos], report)
        pairs = [(info, image) for info, image in zip(infos, images, strict=True) if image is not None]
        parts = matched_parts(texts, [image for _, image in pairs], [info["matched_text_index"] for info, _ in pairs])
        return self._document(parts, instruction)

    def _obelics(self, record: dict[str, Any], report: Report) -> Sample:
        """A record of OBELICS: `images` and `texts` of equal length, exactly one of which is set at each index."""
        texts, names = record.get("texts"), record.get("images")
        if not _all(texts, str | None) or not isinstance(names, list) or len(texts) != len(names):
            raise InputError("texts must be a list of strings and nulls, and images a list of equal length")
        if any((text is None) == (name is None) for text, name in zip(texts, names, strict=True)):
            raise InputError("at each index there must be either a text or an image")
        images = iter(self._open_images([name for name in names if name is not None], report))
        parts = [next(images) if text is None else text.strip() for text in texts]
        return self._document([part for part in parts if part is not None], None)

    def _document(self, parts: Sequence[str | Image.Image], instruction: str | None) -> Sample:
        return document(
            self.processor,
            parts,
            self.max_length,
            comprehension=self.mode in ("both", "comprehension"),
            generation=self.mode in ("both", "generation"),
            instruction=instruction,
        )

    def _open_images(self, names: Sequence[Any], report: Report) -> list[Image.Image | None]:
        """The images of a document, None for those that are broken or too small; InputError if all are broken."""
        images: list[Image.Image | None] = []
        broken: list[str] = []
        for name in names:
            try:
                images.append(self._open(name))
            except InputError as error:
                images.append(None)
                if not isinstance(error, TooSmallError):
                    broken.append(str(error))
                    report(str(error))
        if names and len(broken) == len(names):
            raise InputError(f"none of its images can be read ({len(names)}), the first: {broken[0]}")
        return images

    def _conversation(self, record: dict[str, Any]) -> Sample:
        """A record of LLaVA: `image` is a name, or a list of names in the order of `<image>` and `<dream>` in the turns."""
        turns = record.get("conversations")
        if not turns or not _all(turns, dict) or not _all([turn.get("value") for turn in turns], str):
            raise InputError("conversations must be a list of turns with `from` and `value`")
        roles = [turn.get("from") for turn in turns]
        if not all(role in list(ROLES) for role in roles) or "system" in roles[1:]:
            raise InputError(f"turns must be from human or gpt, or the first from system, not from {roles}")
        image = record.get("image")
        names = image if isinstance(image, list) else [] if image is None else [image]
        return conversation(
            self.processor,
            [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns],
            [self._open(name) for name in names],
            self.max_length,
            learn_dream_start=self.settings.learn_dream_start,
        )


def locate(settings: SourceSettings, folder: Path) -> tuple[list[str], Path]:
    """The files of a source and the folder of its images; UsageError if one is missing."""
    files = find_files(settings.path, folder, pairs=settings.kind == "pairs")
    if Path(files[0]).is_dir():
        if settings.images:
            raise UsageError(
                f"{files[0]} is a folder of images with their captions: remove `images` of source {settings.label}"
            )
        return files, Path(files[0])
    images = folder / Path(settings.images).expanduser() if settings.images else Path(files[0]).parent
    if not images.is_dir():
        raise UsageError(f"image folder {images} is missing: correct `images` of source {settings.label}")
    return files, images


def open_image(value: Any, folder: Path) -> Image.Image:
    """An RGB image of a record.

    Args:
        value: the name of a file below `folder`; a URL, whose image is the file `<hex SHA-256 of the URL>.jpg` (or .jpeg, .png,
            .webp) there; bytes; or a dict of `bytes` and `path` as `datasets` writes images.

    Raises InputError if there is no such image, or if its name leads out of the folder.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return read_image(value)
    if not isinstance(value, str) or not value:
        raise InputError(f"an image must be a file name, a URL or bytes, not {type(value).__name__}")
    if value.startswith(("http://", "https://")):
        stem = hashlib.sha256(value.encode()).hexdigest()
        files = [folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()]
        if not files:
            raise InputError(f"image {value} is not in {folder}: download it as {stem}{SUFFIXES[0]}")
        return read_image(inside(folder, files[0].name))
    return read_image(inside(folder, value))


def _all(values: Any, kind: Any) -> TypeGuard[list[Any]]:
    """Whether it is a list of this type alone."""
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
