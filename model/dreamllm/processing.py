"""The processor: text and images in, tensors out.

In a text, `<image>` stands for an image to read and `<dream>` for an image that was generated at this place and is then read. Images are
given in the order of these placeholders. A prompt for image generation is a caption, with or without `<image>`.

Shapes: B prompts, T tokens, n images over the batch, S pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    BatchFeature,
    CLIPImageProcessorPil,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TokenizersBackend,
)

from dreamllm.configuration import DreamLLMConfig
from dreamllm.errors import CheckpointError, InputError, UsageError, library_errors
from dreamllm.files import read_image, read_json_object
from dreamllm.options import has_type
from dreamllm.tokenizer import check_ids, read_tokenizer, token_ids

ImageInput = Image.Image | np.ndarray | torch.Tensor | str | Path
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_TURNS = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
    "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHAT_TEMPLATES = {
    "vicuna_v1.1": (
        "{% if messages and messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% else %}{% set system = " + json.dumps(SYSTEM) + " %}{% endif %}"
        "{{ system + ' ' }}" + _TURNS
    ),
    # Vicuna's without the default system prompt, which would take half of a small model's positions.
    "plain": _TURNS.replace(
        "{% if message.role == 'user' %}",
        "{% if message.role == 'system' %}{{ message.content + ' ' }}{% elif message.role == 'user' %}",
    ),
    "llama2": (
        "{% for message in messages %}"
        "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' ' }}"
        "{% elif message.role == 'assistant' %}{{ '[/INST] ' + message.content + ' ' + eos_token + bos_token }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '[/INST]' }}{% endif %}"
    ),
}


class DreamLLMProcessor(ProcessorMixin):
    """Tokenizer, CLIP image processor (with the original's resize, that of Pillow), chat template and expansion of placeholders.

    The chat template is the tokenizer's, or Vicuna v1.1's if it has none.
    """

    tokenizer: Any  # PreTrainedTokenizerBase
    image_processor: Any  # CLIPImageProcessorPil

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: CLIPImageProcessorPil,
        num_image_tokens: int,
        num_dream_queries: int,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(tokenizer, image_processor)
        tokenizer.chat_template = chat_template or tokenizer.chat_template or CHAT_TEMPLATES["vicuna_v1.1"]
        tokenizer.padding_side = "left"  # generate() continues from the end of every row
        self.num_image_tokens, self.num_dream_queries = num_image_tokens, num_dream_queries
        ids = token_ids(tokenizer)
        patch = ids["im_patch_token_id"]
        self.image_id, self.dream_id = ids["image_token_id"], ids["dream_token_id"]
        self.image_span = [ids["im_start_token_id"], *[patch] * num_image_tokens, ids["im_end_token_id"]]
        self.dream_span = [ids["dream_start_token_id"], *[patch] * num_dream_queries, ids["dream_end_token_id"]]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: str | Sequence[str],
        images: Sequence[ImageInput] | Sequence[Sequence[ImageInput]] | ImageInput | None = None,
        *,
        padding_side: str = "left",
        padding: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """The inputs of `generate`, `encode_prompts` and `generate_images`.

        Args:
            text: one prompt or several; the tokenizer puts bos before each and no eos after.
            images: a flat list in the order of all placeholders, or a list for each prompt; RGB images, uint8 arrays or files.

        Returns `input_ids` and `attention_mask` (B, T), and with images `pixel_values` (n, 3, S, S) float32. Raises InputError if
        there are more or fewer images than placeholders, or if a text has half of a surrogate pair.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise InputError("there is no prompt")
        for each in texts:
            try:
                each.encode()
            except UnicodeEncodeError:  # an argument or a line whose bytes are no text
                raise InputError("the prompt is not UTF-8: correct its encoding") from None
        rows: list[list[int]] = [self.tokenizer(each)["input_ids"] for each in texts]
        placeholders = [sum(i in (self.image_id, self.dream_id) for i in row) for row in rows]
        flat = self._flatten(images, placeholders)
        batch = self.tokenizer.pad(
            {"input_ids": [self.expand(row) for row in rows]},
            padding=padding,
            padding_side=padding_side,
            return_tensors=return_tensors,
        )
        data = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if flat:
            data["pixel_values"] = self.pixel_values(flat)
        return BatchFeature(data)

    def expand(self, input_ids: Sequence[int]) -> list[int]:
        """Replace `<image>` by an image span, and `<dream>` by a dream span and the image span that reads the image."""
        spans = {self.image_id: self.image_span, self.dream_id: self.dream_span + self.image_span}
        return [i for token in input_ids for i in spans.get(token, (token,))]

    def pixel_values(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """(n, 3, S, S) float32 for CLIP."""
        opened: Any = [read_image(image) if isinstance(image, str | Path) else image for image in images]
        return self.image_processor(images=opened, return_tensors="pt")["pixel_values"]

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        return_dict: bool = True,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The prompt of a conversation, or the prompts of several; with `tokenize`, the model's inputs for them.

        A conversation is a list of messages with `role` (system, user, assistant) and `content`: a text, or a list of parts
        `{"type": "text", "text": ...}`, `{"type": "image"}` and `{"type": "dream"}`. With `tokenize`, the parts of the last two types
        also hold an image or a file: `{"type": "image", "image": ...}`.
        """
        batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations: Sequence[Any] = conversation if batched else [conversation]
        flat = [
            [{**message, "content": _flat_content(message["content"])} for message in each] for each in conversations
        ]
        with library_errors("the chat template"):
            prompts: Any = self.tokenizer.apply_chat_template(
                flat, chat_template=chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        if tokenize:
            contents = [message["content"] for each in conversations for message in each]
            parts = [part for content in contents if not isinstance(content, str) for part in content]
            images = [part["image"] for part in parts if part["type"] != "text"]
            inputs = self(prompts, images, **(processor_kwargs or {}))
            return inputs if return_dict else inputs["input_ids"]
        return prompts if batched else prompts[0]

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> Any:
        """The text of one sequence of ids, or the texts of (B, T) ids."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)

    batch_decode = decode

    def _flatten(self, images: Any, placeholders: list[int]) -> list[ImageInput]:
        if images is None:
            images = []
        elif isinstance(images, ImageInput):
            images = [images]
        nested = [isinstance(item, list | tuple) for item in images]
        if any(nested) and not all(nested):
            raise InputError("images must be a flat list or a list of lists, not a mixture")
        if nested and all(nested):
            counts, expected = [len(item) for item in images], placeholders
            images = [image for item in images for image in item]
        else:
            counts, expected = len(images), sum(placeholders)
        if counts != expected:
            raise InputError(
                f"number of images ({counts}) and of image placeholders in the prompts ({expected}) differ: one <image> for each image"
            )
        return list(images)

    @classmethod
    def _get_arguments_from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        # Not the classes that the library would choose: its torchvision processor resizes slightly differently.
        classes = (TokenizersBackend, CLIPImageProcessorPil)
        return [each.from_pretrained(pretrained_model_name_or_path, **kwargs) for each in classes]

    @classmethod
    def from_released(cls, tokenizer_folder: Path, clip: Path, config: DreamLLMConfig) -> DreamLLMProcessor:
        """From a released checkpoint's tokenizer files and its CLIP model's preprocessor."""
        tokenizer = read_tokenizer(tokenizer_folder)
        check_ids(tokenizer, config.special_token_ids, tokenizer_folder)
        return cls(tokenizer, read_image_processor(clip), config.num_image_tokens, config.num_dream_queries)

    def save_released(self, folder: Path) -> None:
        """The tokenizer beside the weights, the preprocessor with the CLIP configuration."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder / "clip")


AutoProcessor.register(DreamLLMConfig, DreamLLMProcessor)


def read_image_processor(clip: Path) -> CLIPImageProcessorPil:
    """The image processor of a CLIP model's folder."""
    check_image_processor(path := clip / "preprocessor_config.json", read_json_object(path))
    with library_errors(clip):
        return CLIPImageProcessorPil.from_pretrained(clip, local_files_only=True)


def check_image_processor(where: Path, fields: Any) -> None:
    """CheckpointError for settings of an image processor that transformers would take for others, such as 0 for false."""
    if not isinstance(fields, dict):
        raise CheckpointError(f"{where}: image_processor is not an object")
    for name, annotation in get_type_hints(CLIPImageProcessorPil.valid_kwargs).items():
        value: Any = fields.get(name)
        sizes = list(value.values()) if isinstance(value, dict) else []
        spread: list[Any] = value if isinstance(value, list) else [value]
        fits = value is None or (has_type(value, annotation) and all(type(size) in (int, NoneType) for size in sizes))
        if not fits or (name == "image_std" and value is not None and not all(one > 0 for one in spread)):
            raise CheckpointError(f"{where}: {name} is {repr(value)[:80]}, which no image processor has")


def _flat_content(content: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    placeholders = {"image": "<image>", "dream": "<dream>"}
    unknown = [part.get("type") for part in content if part.get("type") not in ("text", *placeholders)]
    if unknown:
        raise UsageError(f"unknown message part {unknown[0]!r}; choose from text, image and dream")
    return "".join(part["text"] if part["type"] == "text" else placeholders[part["type"]] for part in content)
