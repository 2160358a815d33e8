"""Interleaved generation: a prompt -> a document of text and images (section 3.2 of the paper: interleaved documents, free-form).

Text is generated until `<dream_start>` is sampled. The dream queries follow it, their final hidden states are generated, and the
image is read back as an `<image>` span before the text goes on. Keys and values are kept throughout.

Shapes: B prompts, T tokens, n tokens fed at once, Q dream queries, H decoder width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from PIL import Image
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dreamllm.core import CACHE, DreamLLMCore
from dreamllm.errors import InputError, UsageError
from dreamllm.image_decoder import Scheduler
from dreamllm.spans import position_ids_from_mask
from dreamllm.text_to_image import DreamLLMImageGeneration

if TYPE_CHECKING:
    from dreamllm.processing import DreamLLMProcessor

Pick = Callable[["_Row", torch.Tensor], int]


class ImageOptions(TypedDict, total=False):
    """What `generate_interleaved` hands on to `generate_images`; negative prompts are one for all."""

    scheduler: str | Scheduler
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    negative_prompts: Mapping[str, torch.Tensor]
    negative_prompt_embeds: torch.Tensor
    progress: bool


@dataclass(frozen=True)
class InterleavedDocument:
    """A document that was generated."""

    parts: tuple[str | Image.Image, ...]  # in reading order, no two texts in a row, none of them empty
    finish_reason: str  # "stop": eos; "length": no more tokens; "images": another image was begun than there may be
    token_ids: tuple[
        int, ...
    ]  # all that follows the prompt's tokens, with the spans of what was generated and read back

    @property
    def images(self) -> list[Image.Image]:
        return [part for part in self.parts if isinstance(part, Image.Image)]


def image_seed(seed: int, number: int) -> int:
    """The seed that `generate_images` is given for image `number` (from 0) of a document generated with `seed`."""
    return _derived(seed, str(number))


class DreamLLMInterleaved(DreamLLMImageGeneration):
    """`generate_interleaved`."""

    @torch.no_grad()
    def generate_interleaved(
        self,
        prompts: Mapping[str, torch.Tensor],
        processor: DreamLLMProcessor,
        *,
        max_new_tokens: int = 512,
        max_images: int = 4,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seeds: Sequence[int] | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **text_to_image: Unpack[ImageOptions],
    ) -> list[InterleavedDocument]:
        """Go on with each prompt in text and images; B documents.

        A document depends on its prompt and its seed, and on its batch mates only in floating-point rounding.

        Args:
            prompts: what `processor` makes of texts and their images, padded on the left.
            processor: decodes the text, and prepares what was generated for reading.
            max_new_tokens: limit on sampled tokens, `<dream_start>` and eos among them; tokens of spans do not count.
            max_images: limit on images; a document that begins another ends there.
            do_sample, temperature, top_k, top_p: as in transformers' `generate`; without `do_sample` the likeliest token is taken.
            seeds: one per prompt, for its text and its images; without, they are drawn from torch's global generator.
            logits_processor: called with one row at a time, its own ids (1, T) without padding and its scores (1, V).
            image generation: see `generate_images`.

        Raises:
            UsageError: a limit or a temperature is out of range.
            InputError: prompts are too long, padded on the right, or do not fit `seeds`.
        """
        if max_new_tokens < 1 or max_images < 0 or (do_sample and temperature <= 0):
            raise UsageError("compose: max_new_tokens is 1 or more, max_images 0 or more, temperature above 0")
        rows, mask = self._rows(prompts, seeds)
        pick = self._picker(_warpers(temperature, top_k, top_p) if do_sample else None, logits_processor)
        pixels = prompts.get("pixel_values")
        features = None if pixels is None else self.encode_images(pixels)
        context = _Context(self, len(rows))
        logits = context.logits(self.embed(prompts["input_ids"].to(mask.device), features), mask)
        while not all(row.finish for row in rows):
            if any(row.writes for row in rows):
                logits = self._write(rows, context, logits, pick, max_new_tokens, max_images)
            else:  # every row has ended or waits: generate images for all of them at once
                logits = self._insert_images(rows, context, processor, max_new_tokens, text_to_image)
        return [row.document(processor) for row in rows]

    def _rows(
        self, prompts: Mapping[str, torch.Tensor], seeds: Sequence[int] | None
    ) -> tuple[list[_Row], torch.Tensor]:
        ids = prompts["input_ids"].to(self.dream_queries.device)
        mask = prompts.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
        if not mask[:, -1].all():
            raise InputError("prompts to be continued are padded on the left, as the processor pads them")
        if len(ids) > 1 and "sliding_attention" in (getattr(self.config.text_config, "layer_types", None) or ()):
            raise InputError(
                "a decoder with sliding attention generates interleaved documents one prompt at a time: its window counts padding"
            )
        if seeds is None:
            seeds = torch.randint(2**62, (len(ids),)).tolist()
        if len(seeds) != len(ids):
            raise InputError(f"{len(seeds)} seeds are given for {len(ids)} prompts")
        rows = [
            _Row(row[attended.bool()].tolist(), int(seed)) for row, attended, seed in zip(ids, mask, seeds, strict=True)
        ]
        longest = max(len(row.prompt) for row in rows)
        if longest >= self._positions:
            raise InputError(
                f"a prompt has {longest} tokens and leaves no room: the model has {self._positions} positions"
            )
        return rows, mask

    @property
    def _positions(self) -> int:
        return int(self.config.text_config.max_position_embeddings)

    def _picker(self, warpers: LogitsProcessorList | None, given: LogitsProcessorList | None) -> Pick:
        """What chooses a row's next token from its scores (V,)."""
        allowed = self.config.dream_start_token_id
        unwanted = [i for i in self.config.special_token_ids.values() if i != allowed]

        def pick(row: _Row, scores: torch.Tensor) -> int:
            scores = scores.clone()
            scores[unwanted] = -torch.inf
            ids = torch.tensor([row.prompt + row.ids], device=scores.device)
            if given:
                scores = given(ids, scores[None])[0]  # pyright: ignore[reportArgumentType]
            if warpers is None:
                return int(scores.argmax())
            scores = warpers(ids, scores[None])[0]  # pyright: ignore[reportArgumentType]
            return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=row.generator))

        return pick

    def _write(
        self,
        rows: list[_Row],
        context: _Context,
        logits: torch.Tensor,
        pick: Pick,
        max_new_tokens: int,
        max_images: int,
    ) -> torch.Tensor:
        """A token more for each row that writes. Logits (B, V) in and out; those of other rows stay."""
        tokens = torch.full((len(rows), 1), self.config.eos_token_id, device=logits.device)
        for i, row in enumerate(rows):
            if row.writes:
                tokens[i] = self._take(row, pick(row, logits[i]), max_new_tokens, max_images)
        fed = context.chosen([i for i, row in enumerate(rows) if row.writes])
        if not fed.any():
            return logits
        return torch.where(fed, context.logits(self.get_input_embeddings()(tokens), fed), logits)

    def _take(self, row: _Row, token: int, max_new_tokens: int, max_images: int) -> int:
        """Put a sampled token into the row's document, or end it."""
        row.written += 1
        left = self._positions - len(row.prompt) - len(row.ids) - 1
        if token == self.config.dream_start_token_id:
            if len(row.images) == max_images:
                row.finish = "images"
            elif left < self.config.num_dream_queries + self.config.num_image_tokens + 3:  # the ends of the spans
                row.finish = "length"
            else:
                row.waits = True
            return token
        row.ids.append(token)
        if token == self.config.eos_token_id:
            row.finish = "stop"
        else:
            row.pieces[-1].append(token)
            if row.written == max_new_tokens or left == 0:
                row.finish = "length"
        return token

    def _insert_images(
        self,
        rows: list[_Row],
        context: _Context,
        processor: DreamLLMProcessor,
        max_new_tokens: int,
        text_to_image: ImageOptions,
    ) -> torch.Tensor:
        """An image for each row that waits, generated and read back. Logits (B, V) for them; other rows have ended."""
        waiting = [i for i, row in enumerate(rows) if row.waits]
        fed = context.chosen(waiting)
        hidden = context.hidden(self.dream_span_embeds(len(rows)), fed)
        embeds = hidden[waiting, 1:-1]
        images = self.generate_images(
            prompt_embeds=embeds, seeds=[rows[i].image_seed for i in waiting], **text_to_image
        )
        span = self.get_input_embeddings()(torch.tensor([processor.image_span], device=fed.device))
        span = span.repeat(len(rows), 1, 1)
        span[waiting, 1:-1] = self.encode_images(processor.pixel_values(images)).to(span.dtype)
        for i, image in zip(waiting, images, strict=True):
            row = rows[i]
            row.ids += processor.dream_span + processor.image_span
            row.images.append(image)
            row.pieces.append([])
            row.waits = False
            if row.written >= max_new_tokens or len(row.prompt) + len(row.ids) == self._positions:
                row.finish = "length"
        return context.logits(span, fed)


@dataclass
class _Row:
    """One document on its way."""

    prompt: list[int]  # token ids without padding
    seed: int
    ids: list[int] = field(default_factory=list)
    pieces: list[list[int]] = field(default_factory=lambda: [[]])  # text before, between and after the images
    images: list[Image.Image] = field(default_factory=list)
    written: int = 0
    waits: bool = False  # for an image
    finish: str | None = None

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(_derived(self.seed, "text"))

    @property
    def writes(self) -> bool:
        return self.finish is None and not self.waits

    @property
    def image_seed(self) -> int:
        return image_seed(self.seed, len(self.images))

    def document(self, processor: DreamLLMProcessor) -> InterleavedDocument:
        texts = [processor.decode(piece).strip() for piece in self.pieces]
        parts: list[str | Image.Image] = []
        for k, text in enumerate(texts):
            parts += [*([text] if text else []), *self.images[k : k + 1]]
        return InterleavedDocument(tuple(parts), self.finish or "length", tuple(self.ids))


class _Context:
    """Keys and values of a batch whose rows are in different states.

    All rows are fed the same number of tokens; those of rows that have nothing to say are masked out, for ever. Positions count attended
    tokens, so such holes change nothing.
    """

    def __init__(self, model: DreamLLMCore, size: int) -> None:
        self.model = model
        self.past = DynamicCache(config=model.config.text_config)
        self.mask = torch.zeros((size, 0), dtype=torch.long, device=model.dream_queries.device)

    def chosen(self, rows: list[int]) -> torch.Tensor:
        """(B, 1), true for some rows."""
        fed = torch.zeros((len(self.mask), 1), dtype=torch.bool, device=self.mask.device)
        fed[rows] = True
        return fed

    def logits(self, embeds: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
        """Feed (B, n, H) and return what may come next, (B, V) float32. `fed` is (B, n), or (B, 1) for all n."""
        output = self.model.language_model(**self._arguments(embeds, fed), logits_to_keep=1)
        return output.logits[:, -1].float()

    def hidden(self, embeds: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
        """Feed (B, n, H) and return its final hidden states, (B, n, H)."""
        return self.model.get_decoder()(**self._arguments(embeds, fed)).last_hidden_state

    def _arguments(self, embeds: torch.Tensor, fed: torch.Tensor) -> dict[str, Any]:
        new = fed.long().expand(embeds.shape[:2])
        self.mask = torch.cat([self.mask, new], dim=1)
        return {
            "inputs_embeds": embeds,
            "attention_mask": self.mask,
            "position_ids": position_ids_from_mask(self.mask)[:, -embeds.shape[1] :],
            CACHE: self.past,
            "use_cache": True,
        }


def _warpers(temperature: float, top_k: int | None, top_p: float | None) -> LogitsProcessorList:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def _derived(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that the noise of an image does not depend on how much text came before it."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
