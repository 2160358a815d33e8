"""Reading: what transformers' `generate` must know about images.

Shapes: B prompts, T tokens, n images over the batch, N patch tokens of an image, H decoder width.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin

from dreamllm.core import DreamLLMCore
from dreamllm.spans import count_spans


class DreamLLMTextGeneration(DreamLLMCore, GenerationMixin):
    """`generate` with images: each is encoded once, whatever the number of beams, and follows its own prompt."""

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        allow_special_tokens: bool = False,
        **kwargs: Any,
    ) -> Any:
        """`GenerationMixin.generate` for prompts with images.

        `pixel_values` (n, 3, S, S) or `image_features` (n, N, H) are those of the batch's image spans, in reading order. The eight
        added tokens ([PAD], those that begin, fill and end spans, and the placeholders) are never generated unless
        `allow_special_tokens`: plain reading has no use for them, and an image span that nobody fills means nothing.
        """
        if pixel_values is not None:
            image_features = self.encode_images(pixel_values)
        if image_features is not None:
            kwargs["image_features"] = image_features
        if not allow_special_tokens:
            unwanted = {*self.config.special_token_ids.values(), *(kwargs.get("suppress_tokens") or ())}
            kwargs["suppress_tokens"] = sorted(unwanted)
        parent: Any = super()  # the library types its mixin for its own models only
        return parent.generate(inputs, **kwargs)

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: torch.Tensor,
        *,
        image_features: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        # `inputs_embeds` is named so that generate() accepts embeddings as a prompt.
        parent: Any = super()
        prepared = parent.prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        # Without a cache every step sees the whole prompt again, images included.
        if image_features is not None and (is_first_iteration or not kwargs.get("use_cache", True)):
            prepared["image_features"] = image_features
        return prepared

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        # The library repeats each row of every tensor, which gives prompts with several images those of others: repeat per prompt.
        features = model_kwargs.pop("image_features", None)
        if features is not None and input_ids is not None:
            counts = count_spans(input_ids, *self.config.image_span)
            blocks = features.split(counts.tolist()) if int(counts.sum()) == len(features) else [features]
            features = torch.cat([block.repeat(expand_size, 1, 1) for block in blocks])
        parent: Any = super()
        input_ids, model_kwargs = parent._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if features is not None:
            model_kwargs["image_features"] = features
        return input_ids, model_kwargs
