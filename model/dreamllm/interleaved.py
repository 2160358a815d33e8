"""Interleaved generation: a prompt -> a document of text and images (paper, section 3.2).

Text is generated until `<dream_start>` is sampled. The dream queries follow and condition an image, which the model then reads as an
`<image>` span before the text continues. Keys and values are cached throughout. `model` is a `DreamLLMForConditionalGeneration`, whose
module imports this one.

Shapes: B prompts, T tokens, n tokens fed at once, Q dream queries, H decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from PIL import Image
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dreamllm.configuration import DreamLLMConfig
from dreamllm.errors import InputError, UsageError
from dreamllm.image_decoder import Scheduler, to_pil
from dreamllm.layers import CACHE, check_seeds, derived_seed, generator_for, position_ids_from_mask
from dreamllm.processing import DreamLLMProcessor


class ImageOptions(TypedDict, total=False):
    """The arguments that `generate_interleaved` passes to `generate_images`; one negative prompt serves all images."""

    scheduler: str | Scheduler
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    negative_prompts: Mapping[str, torch.Tensor]
    negative_prompt_embeds: torch.Tensor
    progress: bool


@dataclass(frozen=True)
class InterleavedDocument:
    """A generated document."""

    parts: tuple[str | Image.Image, ...]  # in reading order, no two texts in a row, none of them empty
    finish_reason: str  # "stop": eos; "length": limit on tokens; "images": limit on images; "not-finite": an image without finite pixels
    token_ids: tuple[int, ...]  # everything after the prompt, with the spans of generated images

    @property
    def images(self) -> list[Image.Image]:
        return [part for part in self.parts if isinstance(part, Image.Image)]


@dataclass(frozen=True)
class Sampling:
    """Limits of a document and settings of its sampling. Raises UsageError for values out of range."""

    max_new_tokens: int
    max_images: int
    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.max_images < 0 or (self.do_sample and self.temperature <= 0):
            raise UsageError("max_new_tokens must be at least 1, max_images at least 0, temperature above 0")


def image_seed(seed: int, number: int) -> int:
    """The seed of `generate_images` for image `number` (from 0) of a document generated with `seed`."""
    return derived_seed(seed, 1, number)


@dataclass
class _Row:
    """One document while it is generated."""

    prompt: list[int]  # token ids without padding
    seed: int
    ids: list[int] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=lambda: [[]])  # token ids before, between and after the images
    images: list[Image.Image] = field(default_factory=list)
    sampled: int = 0
    needs_image: bool = False
    finish: str | None = None

    def __post_init__(self) -> None:
        self.generator = generator_for(self.seed, 0)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.ids)

    @property
    def writes_text(self) -> bool:
        return self.finish is None and not self.needs_image

    def document(self, processor: DreamLLMProcessor) -> InterleavedDocument:
        parts: list[str | Image.Image] = []
        for number, ids in enumerate(self.texts):
            text = processor.decode(ids).strip()
            parts += [*([text] if text else []), *self.images[number : number + 1]]
        return InterleavedDocument(tuple(parts), self.finish or "length", tuple(self.ids))


class InterleavedGeneration:
    """`DreamLLMForConditionalGeneration.generate_interleaved` for one batch, whose rows may be in different states."""

    def __init__(
        self,
        model: Any,
        processor: DreamLLMProcessor,
        sampling: Sampling,
        logits_processor: LogitsProcessorList | None,
        image_options: ImageOptions,
    ) -> None:
        self.model, self.processor, self.sampling = model, processor, sampling
        self.image_options = image_options
        self.config: DreamLLMConfig = model.config
        self.positions = int(self.config.text_config.max_position_embeddings)
        special = self.config.special_token_ids.values()
        self.suppressed = torch.tensor([i for i in special if i != self.config.dream_start_token_id])
        self.logits_processors: Any = LogitsProcessorList(logits_processor or ())
        if sampling.do_sample:
            self.logits_processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k is not None:
                self.logits_processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p is not None:
                self.logits_processors.append(TopPLogitsWarper(sampling.top_p))

    def run(self, prompts: Mapping[str, torch.Tensor], seeds: Sequence[int] | None) -> list[InterleavedDocument]:
        ids = prompts["input_ids"].to(self.model.dream_queries.device)
        mask = prompts.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
        rows = self._rows(ids, mask, seeds)
        context = _Context(self.model, len(rows))
        logits = context.logits(self.model.embed(ids, pixel_values=prompts.get("pixel_values")), mask)
        while not all(row.finish for row in rows):
            if any(row.writes_text for row in rows):
                logits = self._sample_tokens(rows, context, logits)
            else:  # every row has ended or needs an image: generate these images together
                logits = self._insert_images(rows, context)
        return [row.document(self.processor) for row in rows]

    def _rows(self, ids: torch.Tensor, mask: torch.Tensor, seeds: Sequence[int] | None) -> list[_Row]:
        if not mask[:, -1].all():
            raise InputError("prompts of interleaved generation must be padded on the left, as the processor does")
        if len(ids) > 1 and "sliding_attention" in (getattr(self.config.text_config, "layer_types", None) or ()):
            raise InputError(
                "a decoder with sliding attention generates interleaved documents one prompt at a time: its window counts padding"
            )
        rows = [
            _Row(row[attended.bool()].tolist(), seed)
            for row, attended, seed in zip(ids, mask, check_seeds(seeds, len(ids), "prompt"), strict=True)
        ]
        longest = max(row.length for row in rows)
        if longest >= self.positions:
            raise InputError(
                f"a prompt of {longest} tokens leaves no room for an answer: the model has {self.positions} positions"
            )
        return rows

    def _sample_tokens(self, rows: list[_Row], context: _Context, logits: torch.Tensor) -> torch.Tensor:
        """Sample a token for each row that writes text. Takes and returns logits (B, V); those of other rows do not change."""
        self.suppressed = self.suppressed.to(logits.device)
        scores = logits.index_fill(1, self.suppressed, -torch.inf)
        tokens = [self.config.eos_token_id] * len(rows)
        for index, row in enumerate(rows):
            if row.writes_text:
                tokens[index] = self._sample(row, scores[index])
                self._append(row, tokens[index])
        writing = [index for index, row in enumerate(rows) if row.writes_text]
        if not writing:
            return logits
        active = context.select(writing)
        embeds = self.model.get_input_embeddings()(torch.tensor(tokens, device=logits.device)[:, None])
        return torch.where(active, context.logits(embeds, active), logits)

    def _sample(self, row: _Row, scores: torch.Tensor) -> int:
        """A row's next token from its scores (V,)."""
        if self.logits_processors:
            ids = torch.tensor([row.prompt + row.ids], device=scores.device)
            scores = self.logits_processors(ids, scores[None])[0]
        if not self.sampling.do_sample:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=row.generator))

    def _append(self, row: _Row, token: int) -> None:
        """Add a sampled token to the row's document, or end it."""
        config = self.config
        row.sampled += 1
        room = self.positions - row.length - 1
        if token == config.dream_start_token_id:
            if len(row.images) == self.sampling.max_images:
                row.finish = "images"
            elif room < config.num_dream_queries + config.num_image_tokens + 3:  # the spans' other start and end tokens
                row.finish = "length"
            else:
                row.needs_image = True
            return
        row.ids.append(token)
        if token == config.eos_token_id:
            row.finish = "stop"
        else:
            row.texts[-1].append(token)
            if row.sampled == self.sampling.max_new_tokens or room == 0:
                row.finish = "length"

    def _insert_images(self, rows: list[_Row], context: _Context) -> torch.Tensor:
        """Generate an image for each row that needs one and feed it back. Returns logits (B, V); all other rows have ended."""
        model, processor = self.model, self.processor
        waiting = [index for index, row in enumerate(rows) if row.needs_image]
        active = context.select(waiting)
        hidden = context.hidden(model.dream_span_embeds(len(rows)), active)
        pixels: torch.Tensor = model.generate_images(
            prompt_embeds=hidden[waiting, 1:-1],
            seeds=[image_seed(rows[index].seed, len(rows[index].images)) for index in waiting],
            output_type="tensor",
            **self.image_options,
        )
        finite = pixels.isfinite().flatten(1).all(1).tolist()
        images = to_pil(pixels.nan_to_num())
        span = model.get_input_embeddings()(torch.tensor([processor.image_span], device=active.device))
        span = span.repeat(len(rows), 1, 1)
        span[waiting, 1:-1] = model.encode_images(processor.pixel_values(images)).to(span.dtype)
        for index, image, sound in zip(waiting, images, finite, strict=True):
            row = rows[index]
            if not sound:
                row.needs_image, row.finish = False, "not-finite"
                continue
            row.ids += processor.dream_span + processor.image_span
            row.images.append(image)
            row.texts.append([])
            row.needs_image = False
            if row.sampled >= self.sampling.max_new_tokens or row.length == self.positions:
                row.finish = "length"
        return context.logits(span, active)


class _Context:
    """Keys and values of a batch whose rows are in different states.

    Every row is fed the same number of tokens, and those of inactive rows stay masked. Positions count attended tokens, so the gaps
    change nothing.
    """

    def __init__(self, model: Any, size: int) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config.text_config)
        self.mask = torch.zeros((size, 0), dtype=torch.long, device=model.dream_queries.device)

    def select(self, rows: list[int]) -> torch.Tensor:
        """(B, 1), true for the given rows."""
        active = torch.zeros((len(self.mask), 1), dtype=torch.bool, device=self.mask.device)
        active[rows] = True
        return active

    def logits(self, embeds: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """Feed (B, n, H); returns the logits of the next token, (B, V) float32. `active` is (B, n), or (B, 1) for all n."""
        output = self.model.language_model(**self._arguments(embeds, active), logits_to_keep=1)
        return output.logits[:, -1].float()

    def hidden(self, embeds: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """Feed (B, n, H); returns the final hidden states, (B, n, H)."""
        return self.model.get_decoder()(**self._arguments(embeds, active)).last_hidden_state

    def _arguments(self, embeds: torch.Tensor, active: torch.Tensor) -> dict[str, Any]:
        self.mask = torch.cat([self.mask, active.long().expand(embeds.shape[:2])], dim=1)
        return {
            "inputs_embeds": embeds,
            "attention_mask": self.mask,
            "position_ids": position_ids_from_mask(self.mask)[:, -embeds.shape[1] :],
            CACHE: self.cache,
            "use_cache": True,
        }
