"""Text and images in, tensors out.

`<image>` in a text stands for an image that is read, `<dream>` for one that was generated there and is read back at once; images
are given in the order of their placeholders. A prompt for image generation holds neither, or only what it shows the image decoder.

Shapes: B prompts, T tokens, n images over the batch, S pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, CLIPImageProcessorPil, PreTrainedTokenizerBase, TokenizersBackend

from dreamllm.configuration import SPECIAL_TOKEN_FIELDS, DreamLLMConfig
from dreamllm.errors import CheckpointError, InputError, UsageError
from dreamllm.files import read_image, read_json, write_json
from dreamllm.tokenizer import check_ids, read_tokenizer

ImageInput = Image.Image | np.ndarray | torch.Tensor | str | Path
CONFIG_FILE = "processor_config.json"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CHAT_TEMPLATES = {
    "vicuna_v1.1": (
        "{% if messages and messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% else %}{% set system = " + json.dumps(SYSTEM) + " %}{% endif %}"
        "{{ system + ' ' }}"
        "{% for message in messages %}"
        "{% if message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
        "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    # Vicuna's without a text before the first turn, for small models that would spend half their positions on it.
    "plain": (
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ message.content + ' ' }}"
        "{% elif message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
        "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "llama2": (
        "{% for message in messages %}"
        "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' ' }}"
        "{% elif message.role == 'assistant' %}{{ '[/INST] ' + message.content + ' ' + eos_token + bos_token }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '[/INST]' }}{% endif %}"
    ),
}


class DreamLLMProcessor:
    """Tokenizer, CLIP image processor (PIL's resize, as recorded from the original), chat template and placeholder expansion."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: CLIPImageProcessorPil,
        num_image_tokens: int,
        num_dream_queries: int,
    ) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.num_image_tokens, self.num_dream_queries = num_image_tokens, num_dream_queries
        tokenizer.padding_side = "left"  # what generate() continues from stands at the end of every row
        if tokenizer.chat_template is None:
            tokenizer.chat_template = CHAT_TEMPLATES["vicuna_v1.1"]
        vocab = tokenizer.get_vocab()
        ids = {token: vocab[token] for token in SPECIAL_TOKEN_FIELDS}
        patch = ids["<im_patch>"]
        self.image_id, self.dream_id = ids["<image>"], ids["<dream>"]
        self.image_span = [ids["<im_start>"], *[patch] * num_image_tokens, ids["<im_end>"]]
        self.dream_span = [ids["<dream_start>"], *[patch] * num_dream_queries, ids["<dream_end>"]]

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[ImageInput] | Sequence[Sequence[ImageInput]] | ImageInput | None = None,
    ) -> BatchFeature:
        """What `generate`, `encode_prompts` and `generate_images` take.

        Args:
            text: one prompt or several; the tokenizer puts bos before each and no eos after.
            images: a flat list in the order of the placeholders over all prompts, or a list for each prompt. Each is an RGB image, a
                uint8 array or a file.

        Returns `input_ids` and `attention_mask` (B, T), padded on the left, and with images `pixel_values` (n, 3, S, S) float32.
        Raises InputError where images and placeholders differ in number.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise InputError("there is no prompt")
        rows = [self.tokenizer(each)["input_ids"] for each in texts]
        wanted = [sum(i in (self.image_id, self.dream_id) for i in row) for row in rows]
        flat = self._flatten(images, wanted)
        batch = self.tokenizer.pad({"input_ids": [self.expand(row) for row in rows]}, return_tensors="pt")
        data = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if flat:
            data["pixel_values"] = self.pixel_values(flat)
        return BatchFeature(data)

    def expand(self, input_ids: Sequence[int]) -> list[int]:
        """`<image>` becomes an image span, `<dream>` a dream span and the image span that reads it back."""
        spans = {self.image_id: self.image_span, self.dream_id: self.dream_span + self.image_span}
        return [i for token in input_ids for i in spans.get(token, (token,))]

    def pixel_values(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """(n, 3, S, S) float32 for CLIP."""
        opened: Any = [read_image(image) if isinstance(image, str | Path) else image for image in images]
        return self.image_processor(images=opened, return_tensors="pt")["pixel_values"]

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation: messages with `role` (system, user, assistant) and `content`.

        Content is a text, or a list of parts `{"type": "text", "text": ...}`, `{"type": "image"}` and `{"type": "dream"}`.
        """
        flat = [{**message, "content": _flat_content(message["content"])} for message in messages]
        return str(
            self.tokenizer.apply_chat_template(flat, tokenize=False, add_generation_prompt=add_generation_prompt)
        )

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        """The text of one sequence of ids."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def batch_decode(self, token_ids: Any, skip_special_tokens: bool = True) -> list[str]:
        """The texts of (B, T) ids."""
        return self.tokenizer.batch_decode(token_ids, skip_special_tokens=skip_special_tokens)

    def _flatten(self, images: Any, wanted: list[int]) -> list[ImageInput]:
        if images is None:
            images = []
        elif isinstance(images, ImageInput):
            images = [images]
        nested = [isinstance(item, list | tuple) for item in images]
        if nested and all(nested):
            given = [len(item) for item in images]
            flat = [image for item in images for image in item]
            if given != wanted:
                raise InputError(f"the prompts have {wanted} places for images, and {given} images are given")
        elif any(nested):
            raise InputError("images must be a flat list or a list of lists, not a mixture")
        else:
            flat = list(images)
            if len(flat) != sum(wanted):
                raise InputError(f"the prompts have {sum(wanted)} places for images, and {len(flat)} images are given")
        return flat

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        config = {
            "processor_class": type(self).__name__,
            "image_processor_class": type(self.image_processor).__name__,
            "num_image_tokens": self.num_image_tokens,
            "num_dream_queries": self.num_dream_queries,
        }
        write_json(folder / CONFIG_FILE, config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> DreamLLMProcessor:
        folder = Path(folder)
        config = read_json(folder / CONFIG_FILE)
        kind = config.get("image_processor_class")
        if kind != CLIPImageProcessorPil.__name__:
            raise CheckpointError(
                f"{folder / CONFIG_FILE}: image processor {kind!r} is not known; there is CLIPImageProcessorPil"
            )
        tokenizer = TokenizersBackend.from_pretrained(folder, local_files_only=True)
        image_processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        return cls(tokenizer, image_processor, config["num_image_tokens"], config["num_dream_queries"])

    @classmethod
    def from_released(cls, tokenizer_folder: Path, clip: Path, config: DreamLLMConfig) -> DreamLLMProcessor:
        """From a released checkpoint's tokenizer files and its CLIP model's preprocessor."""
        tokenizer = read_tokenizer(tokenizer_folder)
        check_ids(tokenizer, config.special_token_ids, tokenizer_folder)
        if not (clip / "preprocessor_config.json").is_file():
            raise CheckpointError(f"{clip / 'preprocessor_config.json'} is missing")
        image_processor = CLIPImageProcessorPil.from_pretrained(clip, local_files_only=True)
        return cls(tokenizer, image_processor, config.num_image_tokens, config.num_dream_queries)

    def save_released(self, folder: Path) -> None:
        """The tokenizer beside the weights, the preprocessor with the CLIP configuration."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder / "clip")


def _flat_content(content: str | Sequence[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    kinds = {"image": "<image>", "dream": "<dream>"}
    unknown = [part.get("type") for part in content if part.get("type") not in ("text", *kinds)]
    if unknown:
        raise UsageError(f"message part {unknown[0]!r} is not known; there are text, image and dream")
    return "".join(part["text"] if part["type"] == "text" else kinds[part["type"]] for part in content)
