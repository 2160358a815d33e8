"""Painting: prompt -> hidden states at the dream queries -> latents -> pixels.

Shapes: B prompts, M pictures (B times pictures per prompt), T tokens, Q dream queries, H decoder width, C x h x w latents, S pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from diffusers import SchedulerMixin
from PIL import Image
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from dreamllm.errors import InputError, UsageError
from dreamllm.image_decoder import make_scheduler
from dreamllm.spans import position_ids_from_mask

if TYPE_CHECKING:
    from dreamllm.modeling import DreamLLMForConditionalGeneration

OUTPUT_TYPES = ("pil", "tensor", "latent")
StepCallback = Callable[[int, int, torch.Tensor], None]


class PaintingMixin:
    """`encode_prompts` and `paint` of the model."""

    _unconditional: tuple[Any, torch.Tensor] | None = None

    def dream_span_embeds(self: DreamLLMForConditionalGeneration, batch_size: int = 1) -> torch.Tensor:
        """(B, Q + 2, H): `<dream_start>`, the queries, `<dream_end>`."""
        ends = torch.tensor(
            [self.config.dream_start_token_id, self.config.dream_end_token_id], device=self.dream_queries.device
        )
        start, end = self.get_input_embeddings()(ends)[None].split(1, dim=1)
        return torch.cat([start, self.dream_queries.to(start.dtype), end], dim=1).expand(batch_size, -1, -1)

    @torch.no_grad()
    def encode_prompts(
        self: DreamLLMForConditionalGeneration,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What each prompt (B, T) wants painted: final hidden states at the dream queries, (B, Q, H).

        Prompts begin with bos, hold no eos, may hold images and may be padded on either side: positions count attended tokens, so that a
        prompt's result does not depend on its batch mates. Give `**processor(text=...)`.
        """
        device = self.dream_queries.device
        input_ids = input_ids.to(device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device)
        if pixel_values is not None:
            image_features = self.encode_images(pixel_values)
        text = self.embed(input_ids, image_features)
        queries = self.dream_span_embeds(len(input_ids))[:, :-1]  # what follows the queries cannot be seen from them
        mask = torch.cat([mask, mask.new_ones(queries.shape[:2])], dim=1)
        output = self.get_decoder()(
            inputs_embeds=torch.cat([text, queries], dim=1),
            attention_mask=mask,
            position_ids=position_ids_from_mask(mask),
            use_cache=False,
        )
        return output.last_hidden_state[:, -self.config.num_dream_queries :]

    def encode_unconditional(self: DreamLLMForConditionalGeneration) -> torch.Tensor:
        """`encode_prompts` of the empty prompt, (1, Q, H), computed once for the weights as they are."""
        if self.training:
            return self._encode_empty()
        try:  # in-place changes count up `_version`, replaced storage changes `data_ptr`
            weights = [self.dream_queries, *self.language_model.parameters()]
            key = [(p.data_ptr(), p._version, p.dtype, p.device) for p in weights]
        except RuntimeError:  # tensors made under inference_mode keep no version
            return self._encode_empty()
        if self._unconditional is None or self._unconditional[0] != key:
            self._unconditional = (key, self._encode_empty())
        return self._unconditional[1]

    def _encode_empty(self: DreamLLMForConditionalGeneration) -> torch.Tensor:
        return self.encode_prompts(torch.tensor([[self.config.bos_token_id]], device=self.dream_queries.device))

    def train(self, mode: bool = True) -> Any:
        # Sharded trainers write through `.data`, which no version counter sees; they all pass here before and after.
        self._unconditional = None
        return super().train(mode)  # type: ignore[misc]

    @torch.no_grad()
    def paint(
        self: DreamLLMForConditionalGeneration,
        prompts: Mapping[str, torch.Tensor] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompts: Mapping[str, torch.Tensor] | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        num_images_per_prompt: int = 1,
        scheduler: str | SchedulerMixin = "ddim",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        seeds: Sequence[int] | None = None,
        latents: torch.Tensor | None = None,
        variance_noise: torch.Tensor | None = None,
        output_type: str = "pil",
        callback: StepCallback | None = None,
        progress: bool = False,
    ) -> list[Image.Image] | torch.Tensor:
        """Paint M = B x num_images_per_prompt pictures; those of one prompt stand together.

        Args:
            prompts: what the processor makes of texts, or `prompt_embeds` (B, Q, H) of `encode_prompts`.
            negative_prompts, negative_prompt_embeds: in place of the empty prompt, one for all or one each.
            scheduler: "ddpm" (the original's, ancestral), "ddim", "dpm-solver++", or a diffusers scheduler.
            guidance_scale: classifier-free guidance; 1 is none.
            guidance_rescale: phi of arXiv 2305.08891, section 3.4; acts only with guidance.
            seeds: one per picture. All of a picture's noise, the first and that of every step, comes from its own seed alone.
                Without seeds they are drawn from torch's global generator.
            latents: (M, C, h, w) first noise, in place of the seeds'.
            variance_noise: (steps, M, C, h, w) noise of each step, in place of the seeds'.
            output_type: "pil"; "tensor", (M, 3, S, S) float32 in [0, 1]; "latent", (M, C, h, w) float32, scaled.
            callback: called after each step with its number, its timestep and the latents.
        """
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output_type {output_type!r} is not known; there are {', '.join(OUTPUT_TYPES)}")
        if (prompts is None) == (prompt_embeds is None):
            raise InputError("give either prompts or prompt_embeds")
        if prompt_embeds is None:
            prompt_embeds = self.encode_prompts(**prompts)
        count = len(prompt_embeds) * num_images_per_prompt
        condition = self._project(prompt_embeds, count)
        if guidance_scale != 1:
            if negative_prompts is not None:
                negative_prompt_embeds = self.encode_prompts(**negative_prompts)
            elif negative_prompt_embeds is None:
                negative_prompt_embeds = self.encode_unconditional()
            condition = torch.cat([self._project(negative_prompt_embeds, count), condition])
        if isinstance(scheduler, str):
            scheduler = make_scheduler(scheduler, self.config.image_decoder_config.scheduler)

        generators = _generators(seeds, count)
        if latents is None:
            latents = _noise(generators, self.config.image_decoder_config.latent_shape)
        elif len(latents) != count:
            raise InputError(f"{len(latents)} latents are given for {count} pictures")
        latents = self._denoise(
            condition,
            latents.to(condition.device, torch.float32),
            scheduler,
            num_inference_steps,
            guidance=(guidance_scale, guidance_rescale),
            noise=generators if variance_noise is None else variance_noise,
            callback=callback,
            progress=progress,
        )
        if output_type == "latent":
            return latents
        pixels = self.image_decoder.decode(latents)
        return pixels if output_type == "tensor" else to_pil(pixels)

    def _project(self: DreamLLMForConditionalGeneration, embeds: torch.Tensor, count: int) -> torch.Tensor:
        """Hidden states (B or 1, Q, H) -> condition vectors (count, Q, E)."""
        if count % len(embeds):
            raise InputError(f"{len(embeds)} prompts do not divide {count} pictures evenly")
        condition = self.condition_projector(
            embeds.to(self.dream_queries.device, self.condition_projector.layers[0].weight.dtype)
        )
        return condition.repeat_interleave(count // len(embeds), dim=0)

    def _denoise(
        self: DreamLLMForConditionalGeneration,
        condition: torch.Tensor,
        latents: torch.Tensor,
        scheduler: SchedulerMixin,
        num_inference_steps: int,
        guidance: tuple[float, float],
        noise: list[torch.Generator] | torch.Tensor,
        callback: StepCallback | None,
        progress: bool,
    ) -> torch.Tensor:
        """The sampling loop. With guidance, `condition` holds the unconditional half first. Latents stay float32 in every dtype."""
        scale, rescale = guidance
        scheduler.set_timesteps(num_inference_steps, device=latents.device)
        latents = latents * scheduler.init_noise_sigma
        options = _step_options(scheduler, noise)
        for i, t in enumerate(tqdm(scheduler.timesteps, disable=not progress, desc="painting", leave=False)):
            doubled = torch.cat([latents, latents]) if scale != 1 else latents
            prediction = self.image_decoder.predict(scheduler.scale_model_input(doubled, t), t, condition)
            if scale != 1:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + scale * (conditional - unconditional)
                if rescale:
                    prediction = rescale_guidance(prediction, conditional, rescale)
            with _GivenNoise(noise, i) if isinstance(noise, torch.Tensor) else nullcontext():
                latents = scheduler.step(prediction, t, latents, **options).prev_sample
            if callback is not None:
                callback(i, int(t), latents)
        return latents


def rescale_guidance(guided: torch.Tensor, conditional: torch.Tensor, phi: float) -> torch.Tensor:
    """Bring guided predictions back to the standard deviation of the conditional ones, by phi (arXiv 2305.08891, section 3.4)."""
    dims = tuple(range(1, guided.dim()))
    rescaled = guided * (conditional.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True))
    return phi * rescaled + (1 - phi) * guided


def to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """(M, 3, S, S) in [0, 1] -> M RGB pictures, rounded to the nearest of 256 levels."""
    levels = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in levels]


def _generators(seeds: Sequence[int] | None, count: int) -> list[torch.Generator]:
    """One generator per picture, on the CPU so that a seed means the same noise on every device."""
    if seeds is None:
        seeds = torch.randint(2**62, (count,)).tolist()
    if len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds are given for {count} pictures")
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def _noise(generators: list[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _step_options(scheduler: SchedulerMixin, noise: list[torch.Generator] | torch.Tensor) -> dict[str, Any]:
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": noise} if takes_generator and isinstance(noise, list) else {}


class _GivenNoise(TorchFunctionMode):
    """Within it, what a scheduler draws with `torch.randn` is given: diffusers' DDPM step has no argument for its noise."""

    def __init__(self, noise: torch.Tensor, step: int) -> None:
        super().__init__()
        self.noise, self.step = noise, step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.randn:
            return func(*args, **kwargs)
        shape = tuple(args[0])
        if self.step >= len(self.noise) or self.noise.shape[1:] != shape:
            raise InputError(f"variance_noise {tuple(self.noise.shape)} holds no {shape} for step {self.step}")
        return self.noise[self.step].to(kwargs.get("device"), kwargs.get("dtype"))
