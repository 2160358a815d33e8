"""The parts of DreamLLM and its forward pass: embeddings with images and dream queries in their places, logits, language loss.

Shapes: B batch, T tokens, H decoder width, V vocabulary, n images, N patch tokens of an image, Q dream queries, S pixels.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, CLIPVisionModel, LlamaModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from dreamllm.configuration import DreamLLMConfig
from dreamllm.errors import InputError
from dreamllm.image_decoder import ImageDecoder
from dreamllm.projector import Projector
from dreamllm.spans import find_spans, position_ids_from_mask

CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""What the installed transformers calls the argument that holds keys and values: `cache` from 5.24 on."""


class DreamLLMCore(PreTrainedModel):
    """A causal decoder, a visual encoder, dream queries, an image decoder, and two projectors between them."""

    config: DreamLLMConfig
    config_class = DreamLLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012  (the library declares a list)
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [CACHE]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DreamLLMConfig) -> None:
        super().__init__(config)
        text, vision, image_decoder = config.text_config, config.vision_config, config.image_decoder_config
        self.language_model = AutoModelForCausalLM.from_config(text)
        self.vision_tower = CLIPVisionModel._from_config(vision)
        self.visual_projector = Projector(
            vision.hidden_size,
            text.hidden_size,
            config.visual_projector_depth,
            layernorm=config.visual_projector_layernorm,
        )
        self.dream_queries = nn.Parameter(torch.empty(1, config.num_dream_queries, text.hidden_size))
        self.condition_projector = Projector(
            text.hidden_size, image_decoder.condition_size, config.condition_projector_depth, bias=False
        )
        self.image_decoder = ImageDecoder(image_decoder)
        self._tied_weights_keys = {
            f"language_model.{target}": f"language_model.{source}"
            for target, source in (self.language_model._tied_weights_keys or {}).items()
        }
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # Decoder and encoder initialise themselves (they are models of transformers). The rest keeps torch's own rules, as the
        # original does; dream queries are N(0, initializer_range).
        if module is self:
            init.normal_(self.dream_queries, mean=0.0, std=self.config.initializer_range)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, S, S), as the processor makes them, -> what stands for them in a sequence, (n, N, H)."""
        pixels = pixel_values.to(self.device, self.vision_tower.dtype)
        hidden = self.vision_tower(pixels, output_hidden_states=True).hidden_states[self.config.vision_select_layer]
        return self.visual_projector(hidden[:, 1:])

    def embed(
        self, input_ids: torch.Tensor, image_features: torch.Tensor | None = None, substitute_queries: bool = True
    ) -> torch.Tensor:
        """Token ids (B, T) -> embeddings (B, T, H) with images and dream queries in their places.

        Images are used in order over the flattened batch. Raises InputError if there are more or fewer of them than spans.
        `substitute_queries=False` leaves the patch token's embedding at query positions, as the original does when no target
        images are given.
        """
        embeds = self.get_input_embeddings()(input_ids)
        if input_ids.shape[1] == 1:  # a decoding step holds no span; do not make the device wait to find that out
            return embeds
        rows, columns = find_spans(input_ids, *self.config.image_span)
        given = 0 if image_features is None else len(image_features)
        if given != len(rows):
            raise InputError(f"{given} images are given for {len(rows)} image spans in the prompt")
        if image_features is not None:
            embeds = embeds.index_put((rows, columns), image_features.to(embeds.dtype))
        if substitute_queries:
            rows, columns = find_spans(input_ids, *self.config.dream_span)
            queries = self.dream_queries.expand(len(rows), -1, -1).to(embeds.dtype)
            embeds = embeds.index_put((rows, columns), queries)
        return embeds

    def dream_span_embeds(self, batch_size: int = 1) -> torch.Tensor:
        """(B, Q + 2, H): `<dream_start>`, the queries, `<dream_end>`."""
        ids = [self.config.dream_start_token_id, self.config.dream_end_token_id]
        ends = self.get_input_embeddings()(torch.tensor([ids], device=self.dream_queries.device))
        span = torch.cat([ends[:, :1], self.dream_queries.to(ends.dtype), ends[:, 1:]], dim=1)
        return span.expand(batch_size, -1, -1)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        substitute_queries: bool = True,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) and, with `labels`, the language loss.

        Give `input_ids` (B, T), with `pixel_values` (n, 3, S, S) or `image_features` (n, N, H) for their image spans, or else
        `inputs_embeds` (B, T, H). Positions count attended tokens unless `position_ids` says otherwise. Other arguments, the
        key-value cache among them, go to the language model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            if pixel_values is not None:
                image_features = self.encode_images(pixel_values)
            inputs_embeds = self.embed(input_ids, image_features, substitute_queries)
        assert inputs_embeds is not None  # noqa: S101  (for type checkers)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = position_ids_from_mask(attention_mask)[:, -inputs_embeds.shape[1] :]
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )
        if labels is not None:
            output.loss = language_loss(output.logits, labels, num_items_in_batch)
        return output


def language_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy of the next token, logits in float32, over labels (B, T) other than -100; 0 where there is none.

    `num_items` replaces the number of valid labels where a batch is one of several that are accumulated.
    """
    targets = labels[:, 1:].reshape(-1).to(logits.device)
    total = F.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), targets, ignore_index=-100, reduction="sum"
    )
    return total / ((targets != -100).sum().clamp(min=1) if num_items is None else num_items)
