"""DreamLLM (arXiv 2309.11499): a causal decoder that reads images through CLIP and generates images through dream queries.

An image is a span of a sequence: a start token, exactly N (to read) or Q (to generate) patch tokens, and an end token.

Shapes: B prompts, T tokens, H decoder width, V vocabulary, n images to read, N patch tokens of an image, Q dream queries,
M images to generate (B times images per prompt), E condition width, C x h x w latents, S pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Self, Unpack

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionModel,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from dreamllm.configuration import DreamLLMConfig
from dreamllm.defaults import ImageDefaults, InterleavedDefaults
from dreamllm.errors import InputError
from dreamllm.image_decoder import ImageDecoder, Scheduler, StepCallback, denoise, make_scheduler, to_pil
from dreamllm.interleaved import ImageOptions, InterleavedDocument, InterleavedGeneration, Sampling
from dreamllm.layers import (
    CACHE,
    Projector,
    check_seeds,
    count_spans,
    find_spans,
    position_ids_from_mask,
)
from dreamllm.options import OutputType, choose
from dreamllm.processing import DreamLLMProcessor


class DreamLLMForConditionalGeneration(  # pyright: ignore[reportIncompatibleMethodOverride]
    PreTrainedModel, GenerationMixin
):
    """A causal decoder, a visual encoder, dream queries, an image decoder, and two projectors between them.

    `generate` gives text, `encode_prompts` and `generate_images` give images, `generate_interleaved` and
    `stream_interleaved` give documents of both.
    """

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
    _unconditional: tuple[Any, torch.Tensor] | None = None

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
        # Decoder and encoder are models of transformers and initialise themselves. As in the original, dream queries are drawn from
        # N(0, initializer_range) and all other weights as torch does by default.
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

    def train(self, mode: bool = True) -> Self:
        # Sharded trainers write through `.data`, which does not change `_version`; all of them call this before and after.
        self._unconditional = None
        return super().train(mode)

    # --- how the checkpoint generates unless it is told otherwise ---------------------------------------------------------

    @property
    def image_defaults(self) -> ImageDefaults:
        """The arguments of `generate_images` that are not given: the checkpoint's own or the library's. Assign to change them."""
        return ImageDefaults.of(vars(self.generation_config), "generation_config") or ImageDefaults()

    @image_defaults.setter
    def image_defaults(self, defaults: ImageDefaults) -> None:
        self._set_defaults(defaults)

    @property
    def interleaved_defaults(self) -> InterleavedDefaults:
        """The arguments of `generate_interleaved` that are not given, likewise."""
        return InterleavedDefaults.of(vars(self.generation_config), "generation_config") or InterleavedDefaults()

    @interleaved_defaults.setter
    def interleaved_defaults(self, defaults: InterleavedDefaults) -> None:
        self._set_defaults(defaults)

    def _set_defaults(self, defaults: ImageDefaults | InterleavedDefaults) -> None:
        # The library drops all fields that are not its own when it reads a file with this mark, which it gives to its own defaults.
        config: Any = self.generation_config
        config._from_model_config = None
        setattr(config, defaults.field, defaults.stated())

    # --- images and dream queries in a sequence ---------------------------------------------------------------------------

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, S, S) from the processor -> their embeddings in a sequence, (n, N, H)."""
        return self.visual_projector(self.vision_states(pixel_values))

    def vision_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, S, S) from the processor -> CLIP's states of their patches, (n, N, width of CLIP)."""
        pixels = pixel_values.to(self.device, self.vision_tower.dtype)
        hidden = self.vision_tower(pixels, output_hidden_states=True).hidden_states[self.config.vision_select_layer]
        return hidden[:, 1:]

    def get_image_features(
        self, pixel_values: torch.Tensor | None, image_features: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """The embeddings (n, N, H) of a batch's images: those of `pixel_values` if given, else `image_features`; None without images."""
        return image_features if pixel_values is None else self.encode_images(pixel_values)

    def embed(
        self,
        input_ids: torch.Tensor,
        image_features: torch.Tensor | None = None,
        substitute_queries: bool = True,
        pixel_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids (B, T) -> embeddings (B, T, H) with images and dream queries in their spans.

        Images (`image_features` or `pixel_values`) fill the image spans of the batch in reading order; InputError if their numbers
        differ. A single token (T = 1) is embedded as it is: it holds no span. `substitute_queries=False` keeps the patch token's
        embedding at query positions, as the original does without target images.
        """
        embeds = self.get_input_embeddings()(input_ids)
        if input_ids.shape[1] == 1:  # a decoding step has no span; finding that out would synchronise the device
            return embeds
        image_features = self.get_image_features(pixel_values, image_features)
        rows, columns = find_spans(input_ids, *self.config.image_span)
        count = 0 if image_features is None else len(image_features)
        if count != len(rows):
            raise InputError(f"number of images ({count}) and of image spans in the prompt ({len(rows)}) differ")
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
        logits_to_keep: int | torch.Tensor = 0,
        cache: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) and, with `labels`, the language loss.

        Takes `input_ids` (B, T), with `pixel_values` (n, 3, S, S) or `image_features` (n, N, H) for their image spans, or else
        `inputs_embeds` (B, T, H). Positions count attended tokens unless `position_ids` is given. Keys and values are accepted under
        both names and returned under `CACHE`. Other arguments go to the language model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            inputs_embeds = self.embed(input_ids, image_features, substitute_queries, pixel_values)
        assert inputs_embeds is not None  # noqa: S101  (for type checkers)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = position_ids_from_mask(attention_mask)[:, -inputs_embeds.shape[1] :]
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            **{CACHE: past_key_values if cache is None else cache},
            **kwargs,
        )
        if labels is not None:
            output.loss = language_loss(output.logits, labels, num_items_in_batch)
        return output

    # --- text generation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        allow_special_tokens: bool = False,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`GenerationMixin.generate` for prompts with images; each image is encoded once, whatever the number of beams.

        `pixel_values` (n, 3, S, S) or `image_features` (n, N, H) fill the image spans of the batch in reading order. Without
        `allow_special_tokens`, the eight added tokens are never generated, since an image span in generated text has no image.
        """
        image_features = self.get_image_features(pixel_values, image_features)
        if image_features is not None:
            kwargs["image_features"] = image_features
        if cache is not None:
            kwargs[CACHE] = cache
        if not allow_special_tokens:
            suppressed = {*self.config.special_token_ids.values(), *(kwargs.pop("suppress_tokens", None) or ())}
            if (given := kwargs.get("generation_config")) is None:
                kwargs["suppress_tokens"] = sorted(suppressed)
            else:  # transformers wants no option beside a whole configuration
                suppressed.update(given.suppress_tokens or ())
                kwargs["generation_config"] = copy(given)
                kwargs["generation_config"].suppress_tokens = sorted(suppressed)
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
        # generate() accepts embeddings as a prompt only if `inputs_embeds` is among the parameters.
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
        # The library repeats each row of every tensor, which would mix up the images of prompts with several of them.
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

    # --- image generation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_prompts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The final hidden states at the dream queries after each prompt (B, T), the condition of its image: (B, Q, H).

        Prompts begin with bos, have no eos, may hold images and may be padded on either side, because positions count attended tokens.
        Call it with `**processor(text)`.
        """
        input_ids = input_ids.to(self.dream_queries.device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
        text = self.embed(input_ids, image_features, pixel_values=pixel_values)
        queries = self.dream_span_embeds(len(input_ids))[:, :-1]  # the queries do not see what follows them
        mask = torch.cat([mask, mask.new_ones(queries.shape[:2])], dim=1)
        output = self.get_decoder()(
            inputs_embeds=torch.cat([text, queries], dim=1),
            attention_mask=mask,
            position_ids=position_ids_from_mask(mask),
            use_cache=False,
        )
        return output.last_hidden_state[:, -self.config.num_dream_queries :]

    def encode_unconditional(self) -> torch.Tensor:
        """`encode_prompts` of the empty prompt, (1, Q, H), cached until a weight changes."""
        empty = torch.tensor([[self.config.bos_token_id]])
        if self.training:
            return self.encode_prompts(empty)
        try:  # in-place changes increase `_version`, replaced storage changes `data_ptr`
            weights = [self.dream_queries, *self.language_model.parameters()]
            key = [(p.data_ptr(), p._version, p.dtype, p.device) for p in weights]
        except RuntimeError:  # tensors made under inference_mode have no version
            return self.encode_prompts(empty)
        if self._unconditional is None or self._unconditional[0] != key:
            self._unconditional = (key, self.encode_prompts(empty))
        return self._unconditional[1]

    @torch.no_grad()
    def generate_images(
        self,
        prompts: Mapping[str, torch.Tensor] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompts: Mapping[str, torch.Tensor] | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        num_images_per_prompt: int = 1,
        scheduler: str | Scheduler | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        seeds: Sequence[int] | None = None,
        latents: torch.Tensor | None = None,
        variance_noise: torch.Tensor | None = None,
        output_type: str = "pil",
        callback: StepCallback | None = None,
        progress: bool = False,
    ) -> Any:
        """Generate M = B x num_images_per_prompt images; those of one prompt stand together.

        Scheduler, steps and guidance are by default those of `image_defaults`.

        Args:
            prompts: the processor's output, or `prompt_embeds` (B, Q, H) from `encode_prompts`.
            negative_prompts, negative_prompt_embeds: replace the empty prompt; one for all or one each.
            scheduler: "ddpm" (the original's, ancestral), "ddim", "dpm-solver++", or a diffusers scheduler.
            guidance_scale: classifier-free guidance; 1 turns it off.
            guidance_rescale: phi of arXiv 2305.08891, section 3.4; acts only with guidance.
            seeds: one per image, for all its noise; by default drawn from torch's global generator.
            latents, variance_noise: noise at the start (M, C, h, w) and of each step (steps, M, C, h, w), instead of the seeds'.
            output_type: "pil", M images; "tensor", (M, 3, S, S) float32 in [0, 1]; "latent", (M, C, h, w) float32, scaled.
            callback: called after each step with its number, its timestep and the latents.
        """
        choose(OutputType, output_type, "output_type")
        prompt_embeds = self._prompt_embeds(prompts, prompt_embeds)
        if prompt_embeds is None:
            raise InputError("generate_images needs prompts or prompt_embeds")
        count = len(prompt_embeds) * num_images_per_prompt
        condition = self._condition(prompt_embeds, count)
        settings = self.image_defaults.override(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, guidance_rescale=guidance_rescale
        )
        if settings.guidance_scale != 1:
            negative = self._prompt_embeds(negative_prompts, negative_prompt_embeds)
            negative = self.encode_unconditional() if negative is None else negative
            condition = torch.cat([self._condition(negative, count), condition])
        scheduler = settings.scheduler if scheduler is None else scheduler
        if isinstance(scheduler, str):
            scheduler = make_scheduler(scheduler, self.config.image_decoder_config.scheduler)
        generators = [torch.Generator().manual_seed(seed) for seed in check_seeds(seeds, count, "image")]
        if latents is not None and len(latents) != count:
            raise InputError(f"number of latents ({len(latents)}) and of images ({count}) differ")
        latents = denoise(
            self.image_decoder,
            condition,
            (self._initial_noise(generators) if latents is None else latents).to(condition.device, torch.float32),
            scheduler,
            settings.num_inference_steps,
            noise=generators if variance_noise is None else variance_noise,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
            callback=callback,
            progress=progress,
        )
        return self.decode_latents(latents, output_type)

    def _initial_noise(self, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Standard normal (M, C, h, w); that of an image comes from its own generator."""
        shape = self.config.image_decoder_config.latent_shape
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def decode_latents(self, latents: torch.Tensor, output_type: str = "pil") -> torch.Tensor | list[Image.Image]:
        """Latents (M, C, h, w) in the form that `generate_images` returns for `output_type`."""
        if output_type == "latent":
            return latents
        with torch.no_grad():
            pixels = self.image_decoder.decode(latents)
        return pixels if output_type == "tensor" else to_pil(pixels)

    def _prompt_embeds(
        self, prompts: Mapping[str, torch.Tensor] | None, embeds: torch.Tensor | None
    ) -> torch.Tensor | None:
        if prompts is None:
            return embeds
        if embeds is not None:
            raise InputError("give prompts or their embeds, not both")
        return self.encode_prompts(**prompts)

    def _condition(self, embeds: torch.Tensor, count: int) -> torch.Tensor:
        """Hidden states (B or 1, Q, H) -> condition vectors (count, Q, E), each prompt's repeated."""
        if count % len(embeds):
            raise InputError(f"number of images ({count}) is no multiple of the number of prompts ({len(embeds)})")
        weight = next(self.condition_projector.parameters())
        condition = self.condition_projector(embeds.to(weight.device, weight.dtype))
        return condition.repeat_interleave(count // len(embeds), dim=0)

    # --- interleaved generation -------------------------------------------------------------------------------------------

    def generate_interleaved(
        self,
        prompts: Mapping[str, torch.Tensor],
        processor: DreamLLMProcessor,
        *,
        max_new_tokens: int = 512,
        max_images: int = 4,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seeds: Sequence[int] | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **image_options: Unpack[ImageOptions],
    ) -> list[InterleavedDocument]:
        """Continue each prompt with text and images; returns B documents.

        A document depends on its prompt and its seed; the other prompts of the batch affect it only through rounding.

        Args:
            prompts: the processor's output for texts and their images, padded on the left.
            processor: decodes text and preprocesses generated images, which the model then reads.
            max_new_tokens: limit on sampled tokens, including `<dream_start>` and eos but not the other tokens of spans.
            max_images: limit on images; a document that begins another ends there.
            do_sample, temperature, top_k, top_p: as in transformers' `generate`; by default those of `interleaved_defaults`.
            seeds: one per prompt, for its text and its images; by default drawn from torch's global generator.
            logits_processor: called for one row at a time, with its ids (1, T) without padding and its scores (1, V).
            image_options: arguments of `generate_images`, with its defaults.

        Raises:
            UsageError: a limit or the temperature is out of range.
            InputError: prompts are too long, padded on the right, or do not match `seeds`.
        """
        text = self.interleaved_defaults.override(do_sample=do_sample, temperature=temperature, top_p=top_p)
        sampling = Sampling(max_new_tokens, max_images, top_k=top_k, **text.model_dump())
        return InterleavedGeneration(self, processor, sampling, logits_processor, image_options).run(prompts, seeds)

    def stream_interleaved(
        self,
        prompts: Mapping[str, torch.Tensor],
        processor: DreamLLMProcessor,
        *,
        max_new_tokens: int = 512,
        max_images: int = 4,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seeds: Sequence[int] | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **image_options: Unpack[ImageOptions],
    ) -> Iterator[tuple[int, str | Image.Image | InterleavedDocument]]:
        """`generate_interleaved` as an iterator, with the same arguments: yields pieces of documents as soon as they are decided.

        A piece is a pair of the number of its prompt and a text, an image, or at the end of each document the InterleavedDocument.
        Joined, the texts before, between and after the images of a document are its parts, to the character. Whatever is not read
        is not generated: to stop early, stop reading.
        """
        text = self.interleaved_defaults.override(do_sample=do_sample, temperature=temperature, top_p=top_p)
        sampling = Sampling(max_new_tokens, max_images, top_k=top_k, **text.model_dump())
        return InterleavedGeneration(self, processor, sampling, logits_processor, image_options).stream(prompts, seeds)


def language_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy of the next token, logits in float32, over labels (B, T) other than -100; 0 if there is none.

    `num_items` replaces the number of valid labels when a batch is one of several that are accumulated.
    """
    targets = labels[:, 1:].reshape(-1).to(logits.device)
    total = F.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), targets, ignore_index=-100, reduction="sum"
    )
    return total / ((targets != -100).sum().clamp(min=1) if num_items is None else num_items)


AutoModelForImageTextToText.register(DreamLLMConfig, DreamLLMForConditionalGeneration)
