"""Sample sheets: what the model that is being trained makes of fixed prompts, as one HTML page and one PNG each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field, ValidationError, model_validator
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid

from dreamllm.errors import DreamLLMError
from dreamllm.files import temporary, write_text
from dreamllm.image_decoder import to_pil
from dreamllm.page import html_page
from dreamllm.recipe import Settings
from dreamllm.training.callbacks import Model, Monitored

FOLDER = "samples"
Part = str | Image.Image


class SampleOptions(Settings):
    """The options of `monitor.callbacks.samples`."""

    captions: list[str] = Field(default_factory=list[str])  # an image each
    story: str | None = None  # a user's turn; the answer is a document
    seed: int = Field(default=0, ge=0, lt=2**32)  # of the first image and of the story; the next image has the next one
    max_new_tokens: int = Field(default=256, ge=1)  # of the story
    max_images: int = Field(default=4, ge=0)  # of the story

    @model_validator(mode="after")
    def _something(self) -> SampleOptions:
        if not self.captions and self.story is None:
            raise ValueError("set captions, story, or both")
        return self


class SampleSheet:
    """Writes `samples/step-N.html` and, for the captions, `samples/step-N.png` in the output folder, with the checkpoint's own decoding.

    On one CPU, a resumed run writes the same bytes.
    """

    def __init__(self, options: dict[str, Any], monitored: Monitored) -> None:
        try:
            self.options = SampleOptions.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(("monitor.callbacks.samples", *map(str, first["loc"])))
            raise monitored.recipe.error(f"{key}: {first['msg'].removeprefix('Value error, ')}") from None
        self.monitored = monitored

    def __call__(self, model: Model, step: int) -> None:
        if not self.monitored.main:
            return
        stem = self.monitored.recipe.output / FOLDER / f"step-{step:08d}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        try:
            images = self._images(model)
            parts: list[Part] = [part for pair in zip(self.options.captions, images, strict=True) for part in pair]
            story, end = self._story(model)
        except DreamLLMError as error:  # of a model that has diverged, for instance; its loss ends the run
            parts, images, story, end = [], [], [f"There are no samples: {error}"], ""
        if images:
            _write_grid(stem.with_suffix(".png"), images)
        facts = {"stage": self.monitored.recipe.stage, "step": step, "seed": self.options.seed}
        if end:
            facts["the story's end"] = end
        write_text(stem.with_suffix(".html"), html_page([f"Samples at step {step:,}"], [*parts, *story], facts))

    def _images(self, model: Model) -> list[Image.Image]:
        captions, seed = self.options.captions, self.options.seed
        # One at a time: a caption's image depends on no other, and little memory is needed beside that of training.
        return [
            model.generate_images(self.monitored.processor(caption), seeds=[seed + number])[0]
            for number, caption in enumerate(captions)
        ]

    def _story(self, model: Model) -> tuple[list[Part], str]:
        """The prompt and the document, and why that ended."""
        options, processor = self.options, self.monitored.processor
        if options.story is None:
            return [], ""
        prompt = processor.apply_chat_template([{"role": "user", "content": options.story}])
        [document] = model.generate_interleaved(
            processor(prompt),
            processor,
            max_new_tokens=options.max_new_tokens,
            max_images=options.max_images,
            seeds=[options.seed],
        )
        return [options.story, *document.parts], document.finish_reason


def _write_grid(file: Path, images: list[Image.Image]) -> None:
    columns = min(len(images), 8)
    grid = make_grid([F.to_dtype(F.pil_to_tensor(image), scale=True) for image in images], nrow=columns, pad_value=1)
    with temporary(file) as unfinished:
        to_pil(grid[None])[0].save(unfinished, "PNG")
        unfinished.replace(file)
