"""Interleaved generation: a prompt -> a document of text and images (paper, section 3.2).

Text is generated until `<dream_start>` is sampled. The dream queries follow and condition an image, which the model then reads as an
`<image>` span before the text continues. Keys and values are cached throughout. `model` is a `DreamLLMForConditionalGeneration`, whose
module imports this one.

Shapes: B rows of the batch, T tokens, n tokens fed at once, Q dream queries, H decoder width, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from dreamllm.configuration import DreamLLMConfig
from dreamllm.errors import InputError, UsageError
from dreamllm.image_decoder import Scheduler, to_pil
from dreamllm.layers import CACHE, check_room, check_seeds, derived_seed, generator_for, position_ids_from_mask
from dreamllm.processing import DreamLLMProcessor


class ImageOptions(TypedDict, total=False):
    """The arguments that `generate_interleaved` passes to `generate_images`; one negative prompt serves all images."""

    scheduler: str | Scheduler | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_rescale: float | None
    negative_prompts: Mapping[str, torch.Tensor]
    negative_prompt_embeds: torch.Tensor
    progress: bool


@dataclass(frozen=True)
class InterleavedDocument:
    """A generated document."""

    parts: tuple[str | Image.Image, ...]  # in reading order, no two texts in a row, none of them empty
    finish_reason: (
        str  # "stop": eos; "length": limit on tokens; "images": limit on images; "not-finite": NaN in logits or pixels
    )
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
    top_p: float  # 1: all tokens

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.max_images < 0 or (self.do_sample and self.temperature <= 0):
            raise UsageError("max_new_tokens must be at least 1, max_images at least 0, temperature above 0")


def image_seed(seed: int, number: int) -> int:
    """The seed of `generate_images` for image `number` (from 0) of a document generated with `seed`."""
    return derived_seed(seed, 1, number)


@dataclass
class _Row:
    """One document while it is generated."""

    index: int  # among the prompts
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
            text = _text(processor, ids)
            parts += [*([text] if text else []), *self.images[number : number + 1]]
        return InterleavedDocument(tuple(parts), self.finish or "length", tuple(self.ids))


class InterleavedGeneration:
    """`generate_interleaved` and `stream_interleaved` for one batch, whose rows may be in different states."""

    def __init__(
        self,
        model: Any,
        processor: DreamLLMProcessor,
        sampling: Sampling,
        logits_processor: LogitsProcessorList | None,
        image_options: ImageOptions,
    ) -> None:
        self.model, self.processor, self.sampling = model, processor, sampling
        self.logits_processor: Any = logits_processor
        self.image_options = image_options
        self.config: DreamLLMConfig = model.config
        self.positions = int(self.config.text_config.max_position_embeddings)
        special = self.config.special_token_ids.values()
        self.suppressed = torch.tensor([i for i in special if i != self.config.dream_start_token_id])
        self.warpers: Any = LogitsProcessorList()
        if sampling.do_sample:
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k is not None:
                self.warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p != 1:
                self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def run(self, prompts: Mapping[str, torch.Tensor], seeds: Sequence[int] | None) -> list[InterleavedDocument]:
        rows = self._rows(prompts, seeds)
        for _ in self._steps(rows, prompts):
            pass
        return [row.document(self.processor) for row in rows]

    def stream(
        self, prompts: Mapping[str, torch.Tensor], seeds: Sequence[int] | None
    ) -> Iterator[tuple[int, str | Image.Image | InterleavedDocument]]:
        # The prompts are checked here, when the iterator is made; what follows runs as it is read.
        rows = self._rows(prompts, seeds)
        return self._stream(rows, prompts)

    def _stream(
        self, rows: list[_Row], prompts: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[int, str | Image.Image | InterleavedDocument]]:
        pieces = [_Pieces(row, self.processor) for row in rows]
        for changed in self._steps(rows, prompts):
            for row in changed:
                yield from ((row.index, piece) for piece in pieces[row.index].new())
                if row.finish:
                    yield row.index, row.document(self.processor)

    @torch.no_grad()
    def _steps(self, rows: list[_Row], prompts: Mapping[str, torch.Tensor]) -> Iterator[list[_Row]]:
        """Generate the documents; yields the rows that changed after each step: by a token of text, or by an image."""
        ids, mask = self._ids_and_mask(prompts)
        context = _Context(self.model, len(rows))
        embeds = self.model.embed(ids, prompts.get("image_features"), pixel_values=prompts.get("pixel_values"))
        logits = context.logits(embeds, mask)
        aside: list[tuple[list[_Row], _Context]] = []  # rows that wait for an image
        while True:
            if writing := [index for index, row in enumerate(rows) if row.writes_text]:
                changed = [rows[index] for index in writing]
                for row, token in zip(changed, self._sample(changed, logits[writing]), strict=True):
                    self._append(row, token)
                yield changed
                writing = [index for index in writing if rows[index].writes_text]
            # The idle leave once they are a quarter: not each row at once, since this copies keys and values.
            if 4 * len(writing) <= 3 * len(rows):
                if waiting := [index for index, row in enumerate(rows) if row.needs_image]:
                    aside.append(([rows[index] for index in waiting], _Context.of([(context, waiting)])))
                rows = [rows[index] for index in context.keep(writing)] if writing else []
            if rows:
                logits = self._feed(rows, context)
            elif aside:  # every row has ended or needs an image: generate these images together
                rows = [row for part, _ in aside for row in part]
                context = _Context.of([(part, range(len(waiting))) for waiting, part in aside])
                aside = []
                logits = self._insert_images(rows, context)
                yield rows
            else:
                return

    def _ids_and_mask(self, prompts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = prompts["input_ids"].to(self.model.dream_queries.device)
        mask = prompts.get("attention_mask")
        return ids, torch.ones_like(ids) if mask is None else mask.to(ids.device)

    def _rows(self, prompts: Mapping[str, torch.Tensor], seeds: Sequence[int] | None) -> list[_Row]:
        ids, mask = self._ids_and_mask(prompts)
        if not mask[:, -1].all():
            raise InputError("prompts of interleaved generation must be padded on the left, as the processor does")
        if len(ids) > 1 and "sliding_attention" in (getattr(self.config.text_config, "layer_types", None) or ()):
            raise InputError(
                "a decoder with sliding attention generates interleaved documents one prompt at a time: its window counts padding"
            )
        seeds = check_seeds(seeds, len(ids), "prompt")
        check_room(mask.bool(), self.positions)
        return [_Row(index, ids[index][mask[index].bool()].tolist(), seed) for index, seed in enumerate(seeds)]

    def _feed(self, rows: list[_Row], context: _Context) -> torch.Tensor:
        """Feed the last token of each row that writes text. Returns the next logits (B, V), of no use for the other rows."""
        tokens = [row.ids[-1] if row.writes_text else self.config.eos_token_id for row in rows]
        active = context.select([index for index, row in enumerate(rows) if row.writes_text])
        embeds = self.model.get_input_embeddings()(torch.tensor(tokens, device=active.device)[:, None])
        return context.logits(embeds, active)

    def _sample(self, rows: list[_Row], logits: torch.Tensor) -> list[int | None]:
        """The next token of each row from its logits (rows, V); None where a logit is NaN or infinite."""
        finite: list[bool] = logits.isfinite().all(-1).tolist()
        tokens = self._tokens(rows, logits if all(finite) else logits.nan_to_num(0, 0, 0))
        return [token if sound else None for token, sound in zip(tokens, finite, strict=True)]

    def _tokens(self, rows: list[_Row], logits: torch.Tensor) -> list[int]:
        self.suppressed = self.suppressed.to(logits.device)
        scores = logits.index_fill(1, self.suppressed, -torch.inf)
        if self.logits_processor:
            ids = [torch.tensor([row.prompt + row.ids], device=scores.device) for row in rows]
            pairs = zip(ids, scores.split(1), strict=True)
            scores = torch.cat([self.logits_processor(*pair) for pair in pairs])
        if not self.sampling.do_sample:
            return scores.argmax(-1).tolist()
        # The warpers look at no ids. Each row draws from a generator of its own, on the CPU.
        probabilities = self.warpers(None, scores).softmax(-1).cpu()
        return [
            int(torch.multinomial(each, 1, generator=row.generator))
            for row, each in zip(rows, probabilities, strict=True)
        ]

    def _append(self, row: _Row, token: int | None) -> None:
        """Add a sampled token to the row's document, or end it."""
        config = self.config
        if token is None:
            row.finish = "not-finite"
            return
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
        """Generate an image for each row and feed it back. Returns the next logits (B, V)."""
        model, processor = self.model, self.processor
        everyone = context.select(range(len(rows)))
        hidden = context.hidden(model.dream_span_embeds(len(rows)), everyone)
        pixels: torch.Tensor = model.generate_images(
            prompt_embeds=hidden[:, 1:-1],
            seeds=[image_seed(row.seed, len(row.images)) for row in rows],
            output_type="tensor",
            **self.image_options,
        )
        finite = pixels.isfinite().flatten(1).all(1).tolist()
        images = to_pil(pixels.nan_to_num())
        span = model.get_input_embeddings()(torch.tensor([processor.image_span], device=hidden.device))
        span = span.repeat(len(rows), 1, 1)
        span[:, 1:-1] = model.encode_images(processor.pixel_values(images)).to(span.dtype)
        for row, image, sound in zip(rows, images, finite, strict=True):
            if not sound:
                row.needs_image, row.finish = False, "not-finite"
                continue
            row.ids += processor.dream_span + processor.image_span
            row.images.append(image)
            row.texts.append([])
            row.needs_image = False
            if row.sampled >= self.sampling.max_new_tokens or row.length == self.positions:
                row.finish = "length"
        return context.logits(span, everyone)


class _Pieces:
    """Hands out a row's document piece by piece: of a text, what later tokens cannot change."""

    def __init__(self, row: _Row, processor: DreamLLMProcessor) -> None:
        self.row, self.processor = row, processor
        self.part = self.sent = 0  # the text that is handed out, and how many of its characters have been

    def new(self) -> Iterator[str | Image.Image]:
        while self.part < len(self.row.images):
            yield from self._new_text(complete=True)
            yield self.row.images[self.part]
            self.part, self.sent = self.part + 1, 0
        yield from self._new_text(complete=not self.row.writes_text)

    def _new_text(self, complete: bool) -> Iterator[str]:
        ids = self.row.texts[self.part]
        text = _text(self.processor, ids if complete else ids[: _settled(self.processor, ids)])
        if not complete:  # a character whose other bytes are in the next tokens
            text = text.rstrip("\ufffd").rstrip()
        if len(text) > self.sent:
            yield text[self.sent :]
            self.sent = len(text)


def _text(processor: DreamLLMProcessor, ids: list[int]) -> str:
    # The library's clean-up of spaces would look across tokens.
    return processor.decode(ids, clean_up_tokenization_spaces=False).strip()


def _settled(processor: DreamLLMProcessor, ids: list[int]) -> int:
    """The number of ids before the byte tokens at the end, which are decoded together: one wrong byte makes all of them U+FFFD."""
    end = len(ids)
    while end and re.fullmatch(r"<.*>", processor.tokenizer.convert_ids_to_tokens(ids[end - 1])):
        end -= 1
    return end


class _Context:
    """Keys and values of a batch whose rows are in different states.

    Every row is fed the same number of tokens, and those of inactive rows stay masked. Positions count attended tokens, so the gaps
    change nothing.
    """

    def __init__(self, model: Any, size: int) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config.text_config)
        self.cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        self.mask = torch.zeros((size, 0), dtype=torch.long, device=model.dream_queries.device)

    def select(self, rows: Sequence[int]) -> torch.Tensor:
        """(B, 1), true for the given rows."""
        active = torch.zeros((len(self.mask), 1), dtype=torch.bool, device=self.mask.device)
        active[list(rows)] = True
        return active

    def keep(self, rows: list[int]) -> list[int]:
        """Drop all other rows. Returns the order of those that stay: the last ones move into the gaps."""
        movers = [row for row in rows if row >= len(rows)]
        order = [row if row in rows else movers.pop() for row in range(len(rows))]
        self.mask = self.mask[order]
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.keep(order)
        return order

    @classmethod
    def of(cls, parts: Sequence[tuple[_Context, Sequence[int]]]) -> _Context:
        """These rows of these contexts, padded on the left to one length. Empties the contexts if there are several."""
        context, rows = parts[0]
        if len(parts) == 1 and len(rows) == len(context.mask):
            return context
        length = max(context.mask.shape[1] for context, _ in parts)
        masks = [F.pad(context.mask[list(rows)], (length - context.mask.shape[1], 0)) for context, rows in parts]
        joined = cls(context.model, sum(map(len, masks)))
        joined.mask = torch.cat(masks)
        layers: list[Any] = joined.cache.layers
        for number, layer in enumerate(layers):
            layer.fill([(context.cache.layers[number], rows) for context, rows in parts], length)
            if len(parts) > 1:  # layer by layer, so that memory is not needed twice
                for context, _ in parts:
                    context.cache.layers[number] = _GrowingLayer()
        return joined

    def logits(self, embeds: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """Feed (B, n, H); returns the logits of the next token, (B, V) float32. `active` is (B, n), or (B, 1) for all n."""
        output = self.model.language_model(**self._arguments(embeds, active), logits_to_keep=1)
        return output.logits[:, -1].float()

    def hidden(self, embeds: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """Feed (B, n, H); returns the final hidden states, (B, n, H)."""
        return self.model.get_decoder()(**self._arguments(embeds, active)).last_hidden_state

    def _arguments(self, embeds: torch.Tensor, active: torch.Tensor) -> dict[str, Any]:
        self.mask = torch.cat([self.mask, active.long().expand(embeds.shape[:2])], dim=1)
        mask = self.mask
        if embeds.shape[1] == 1 and len(mask) > 1 and self.model.config._attn_implementation == "sdpa":
            # What each layer would make of a boolean mask.
            mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill_(mask == 0, torch.finfo(embeds.dtype).min)
            mask = mask[:, None, None]
        return {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "position_ids": position_ids_from_mask(self.mask)[:, -embeds.shape[1] :],
            CACHE: self.cache,
            "use_cache": True,
        }


class _GrowingLayer(DynamicLayer):
    """The keys and values (B, heads, T, d) of a layer, in memory with room for more tokens.

    The library's layer copies all of them at each token, which is what a large batch would spend most of its time on.
    """

    ROOM = 128  # tokens
    memory: list[torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        length = self.get_seq_length()
        end = length + key_states.shape[2]
        if self.memory is None or end > self.memory[0].shape[2]:
            old = self.keys, self.values
            self._allocate(key_states, value_states, len(key_states), end)
            if length:
                self._write(*old, slice(None), slice(length))
        self._write(key_states, value_states, slice(None), slice(length, end))
        self._show(end)
        return self.keys, self.values

    def fill(self, parts: Sequence[tuple[Any, Sequence[int]]], length: int) -> None:
        """Copy rows of other layers, padded on the left to `length`."""
        first, _ = parts[0]
        self._allocate(first.keys, first.values, sum(len(rows) for _, rows in parts), length)
        sources = [(layer, row) for layer, rows in parts for row in rows]
        for row, (layer, source) in enumerate(sources):
            begin = length - layer.get_seq_length()
            for memory in self.memory or ():
                memory[row, :, :begin] = 0  # masked, but must be finite
            self._write(layer.keys[source], layer.values[source], row, slice(begin, length))
        self._show(length)

    def keep(self, order: list[int]) -> None:
        """Keep these rows, in this order and in the same memory."""
        length = self.get_seq_length()
        for row, source in enumerate(order):
            if row != source:
                self._write(self.keys[source], self.values[source], row, slice(length))  # pyright: ignore[reportOptionalSubscript]
        self.memory = [memory[: len(order)] for memory in self.memory or ()]
        self._show(length)

    def _allocate(self, keys: torch.Tensor, values: torch.Tensor, rows: int, length: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        shapes = [(rows, states.shape[1], length + self.ROOM, states.shape[3]) for states in (keys, values)]
        self.memory = [states.new_empty(shape) for states, shape in zip((keys, values), shapes, strict=True)]

    def _write(self, keys: Any, values: Any, rows: int | slice, tokens: slice) -> None:
        for memory, states in zip(self.memory or (), (keys, values), strict=True):
            memory[rows, :, tokens] = states

    def _show(self, length: int) -> None:
        self.keys, self.values = (memory[:, :, :length] for memory in self.memory or ())
