"""Records of each kind of data to samples.

A record that cannot be used raises InputError. In a document an image that cannot be read loses its place, and the rest stays; it is
reported by the same name as a record. What is random about a sample comes from the rng that it is given.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

from PIL import Image

from dreamllm.data.images import SUFFIXES, open_image
from dreamllm.data.recipe import SourceRecipe
from dreamllm.data.samples import Sample, comprehension_pair, conversation, document, generation_pair, matched_parts
from dreamllm.data.tables import Stream, Table, find_files, open_stream, open_table
from dreamllm.errors import InputError, UsageError
from dreamllm.processing import DreamLLMProcessor

Report = Callable[[str], None]  # told of each image that a document loses
CAPTION_FIELDS = ("caption", "text", "txt")
IMAGE_FIELDS = ("image", *(suffix[1:] for suffix in SUFFIXES))
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


class Source:
    """One source of a recipe, opened: `sample(i, rng)` makes the sample of record i."""

    def __init__(
        self,
        recipe: SourceRecipe,
        processor: DreamLLMProcessor,
        max_length: int,
        flip: bool,
        folder: Path,
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        files = find_files(recipe.path, folder)
        self.recipe, self.processor, self.max_length = recipe, processor, max_length
        self.mode = recipe.chosen_mode()
        self.flip = flip if recipe.flip is None else recipe.flip
        self.name = recipe.name or (recipe.path if isinstance(recipe.path, str) else recipe.path[0])
        self.images = folder / Path(recipe.images).expanduser() if recipe.images else Path(files[0]).parent
        if not self.images.is_dir():
            raise UsageError(f"image folder {self.images} is missing: correct `images` of source {self.name}")
        self.table: Table | Stream = (
            open_stream(files, seed, recipe.shuffle_buffer) if recipe.streaming else open_table(files, cache)
        )

    @property
    def length(self) -> int | None:
        """The number of records; None for a stream."""
        return len(self.table) if isinstance(self.table, Table) else None

    def sample(self, index: int, rng: random.Random, report: Report) -> Sample:
        """Raises InputError where the record is broken or teaches nothing."""
        # Drawn first and always, so that what one record needs does not move the next draw.
        chance, coins = rng.random(), random.Random(rng.random())  # noqa: S311
        record = self.table.record(index)
        build = {
            "pairs": self._pair,
            "mmc4": self._matched,
            "instructions": self._matched,
            "obelics": self._obelics,
            "conversations": self._conversation,
        }[self.recipe.kind]
        sample = build(record, chance, report)
        if not sample.teaches:
            raise InputError("nothing in it can be learnt: no answer, no text, or all of it beyond max_length")
        sample.source, sample.key = self.name, self.key(index)
        sample.mirrored = [self.flip and coins.random() < 0.5 for _ in sample.targets]
        return sample

    def key(self, index: int) -> str:
        """How a record is called in messages: by its number over the files, or by when a stream gave it."""
        return f"{'draw' if self.length is None else 'record'} {index}"

    def _pair(self, record: dict[str, Any], chance: float, report: Report) -> Sample:
        caption = _field(record, self.recipe.columns.get("caption"), CAPTION_FIELDS)
        if caption is None and isinstance(record.get("json"), dict):  # WebDataset: key.json with the caption in it
            caption = _field(record["json"], self.recipe.columns.get("caption"), CAPTION_FIELDS)
        if not isinstance(caption, str) or not caption.strip():
            raise InputError(self._absent("caption", CAPTION_FIELDS))
        value = _field(record, self.recipe.columns.get("image"), IMAGE_FIELDS)
        if value is None:
            raise InputError(self._absent("image", IMAGE_FIELDS))
        image = open_image(value, self.images)
        generated = self.mode == "generation" or (self.mode == "either" and chance < 0.5)
        return (generation_pair if generated else comprehension_pair)(self.processor, caption, image, self.max_length)

    def _absent(self, what: Literal["image", "caption"], usual: Sequence[str]) -> str:
        named = self.recipe.columns.get(what)
        return f"it has no {what} (looked for in {named or ', '.join(usual)}; name its field in `columns`)"

    def _matched(self, record: dict[str, Any], chance: float, report: Report) -> Sample:
        """MMC4's record: each image stands after the sentence that it is matched to. One with an `instruction` follows it."""
        texts, infos = record.get("text_list"), record.get("image_info")
        if not _all(texts, str) or not _all(infos, dict):
            raise InputError("text_list must be a list of texts, and image_info one of objects")
        instruction = None
        if self.recipe.kind == "instructions":
            instruction = record.get("instruction")
            if not isinstance(instruction, str) or not instruction.strip():
                raise InputError("it has no instruction")
        similarities = [info.get("matched_sim", 1.0) for info in infos]
        if not _all(similarities, int | float) or not _all([info.get("matched_text_index") for info in infos], int):
            raise InputError("matched_sim and matched_text_index of image_info must be numbers")
        kept = [info for info, sim in zip(infos, similarities, strict=True) if sim >= self.recipe.min_similarity]
        opened = self._opened([info.get("image_name") for info in kept], report)
        pairs = [(info, image) for info, image in zip(kept, opened, strict=True) if image is not None]
        parts = matched_parts(texts, [image for _, image in pairs], [info["matched_text_index"] for info, _ in pairs])
        return self._document(parts, instruction)

    def _obelics(self, record: dict[str, Any], chance: float, report: Report) -> Sample:
        """OBELICS's record: `images` and `texts` of equal length, one of the two set at each place."""
        texts, images = record.get("texts"), record.get("images")
        if not _all(texts, str | None) or not isinstance(images, list) or len(texts) != len(images):
            raise InputError("texts must be a list of texts and nulls, and images a list of equal length")
        named = [image for text, image in zip(texts, images, strict=True) if image is not None and text is None]
        opened = iter(self._opened(named, report))
        parts: list[str | Image.Image] = []
        for text, image in zip(texts, images, strict=True):
            if (text is None) == (image is None):
                raise InputError("at each place there must be either a text or an image")
            part = text.strip() if text is not None else next(opened)
            parts += [] if part is None else [part]
        return self._document(parts, None)

    def _document(self, parts: Sequence[str | Image.Image], instruction: str | None) -> Sample:
        comprehension, text_to_image = self.mode in ("both", "comprehension"), self.mode in ("both", "generation")
        return document(
            self.processor,
            parts,
            self.max_length,
            comprehension=comprehension,
            text_to_image=text_to_image,
            instruction=instruction,
        )

    def _opened(self, names: Sequence[Any], report: Report) -> list[Image.Image | None]:
        """The images of a document, None where one is broken; InputError where all are."""
        opened: list[Image.Image | None] = []
        for name in names:
            try:
                opened.append(open_image(name, self.images))
            except InputError as error:
                opened.append(None)
                report(str(error))
        if names and not any(opened):
            raise InputError(f"none of its {len(names)} images can be read")
        return opened

    def _conversation(self, record: dict[str, Any], chance: float, report: Report) -> Sample:
        """LLaVA's record: `image` is one name, or a list in the order of `<image>` and `<dream>` in the turns."""
        turns = record.get("conversations")
        if not turns or not _all(turns, dict) or not _all([turn.get("value") for turn in turns], str):
            raise InputError("conversations must be a list of turns with `from` and `value`")
        roles = [turn.get("from") for turn in turns]
        if not all(role in list(ROLES) for role in roles) or "system" in roles[1:]:
            raise InputError(
                f"turns must be from human or gpt, and the first may be from system; these are from {roles}"
            )
        named = record.get("image")
        names = named if isinstance(named, list) else [] if named is None else [named]
        return conversation(
            self.processor,
            [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns],
            [open_image(name, self.images) for name in names],
            self.max_length,
            learn_dream_start=self.recipe.learn_dream_start,
        )


def _all(values: Any, kind: Any) -> TypeGuard[list[Any]]:
    """Whether it is a list of nothing else."""
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _field(record: dict[str, Any], named: str | None, usual: Sequence[str]) -> Any:
    """The field that the recipe names, else the first of the usual ones that is there."""
    return next((record[name] for name in ([named] if named else usual) if record.get(name) is not None), None)
