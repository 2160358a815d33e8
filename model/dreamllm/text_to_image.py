"""Image generation: prompt -> hidden states at the dream queries -> condition vectors -> pixels.

Shapes: B prompts, M images (B times images per prompt), T tokens, Q dream queries, H decoder width, E condition width,
C x h x w latents, S pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from PIL import Image

from dreamllm.core import DreamLLMCore
from dreamllm.errors import InputError, UsageError
from dreamllm.image_decoder import Scheduler, make_scheduler
from dreamllm.sampling import StepCallback, denoise, first_noise, make_generators, to_pil
from dreamllm.spans import position_ids_from_mask

OUTPUT_TYPES = ("pil", "tensor", "latent")


class DreamLLMImageGeneration(DreamLLMCore):
    """`encode_prompts` and `generate_images`."""

    _unconditional: tuple[Any, torch.Tensor] | None = None

    @torch.no_grad()
    def encode_prompts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What each prompt (B, T) wants generated: final hidden states at the dream queries, (B, Q, H).

        Prompts begin with bos, hold no eos, may hold images and may be padded on either side: positions count attended tokens, so
        that a prompt's result does not depend on its batch mates. Give `**processor(text)`.
        """
        input_ids = input_ids.to(self.dream_queries.device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
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

    def encode_unconditional(self) -> torch.Tensor:
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

    def _encode_empty(self) -> torch.Tensor:
        return self.encode_prompts(torch.tensor([[self.config.bos_token_id]]))

    def train(self, mode: bool = True) -> Self:
        # Sharded trainers write through `.data`, which no version counter sees; they all pass here before and after.
        self._unconditional = None
        return super().train(mode)

    @torch.no_grad()
    def generate_images(
        self,
        prompts: Mapping[str, torch.Tensor] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompts: Mapping[str, torch.Tensor] | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        num_images_per_prompt: int = 1,
        scheduler: str | Scheduler = "ddim",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        seeds: Sequence[int] | None = None,
        latents: torch.Tensor | None = None,
        variance_noise: torch.Tensor | None = None,
        output_type: str = "pil",
        callback: StepCallback | None = None,
        progress: bool = False,
    ) -> Any:
        """Generate images M = B x num_images_per_prompt images; those of one prompt stand together.

        Args:
            prompts: what the processor makes of texts, or `prompt_embeds` (B, Q, H) of `encode_prompts`.
            negative_prompts, negative_prompt_embeds: in place of the empty prompt, one for all or one each.
            scheduler: "ddpm" (the original's, ancestral), "ddim", "dpm-solver++", or a diffusers scheduler.
            guidance_scale: classifier-free guidance; 1 is none.
            guidance_rescale: phi of arXiv 2305.08891, section 3.4; acts only with guidance.
            seeds: one per image. All of an image's noise, the first and that of every step, comes from its own seed alone.
                Without seeds they are drawn from torch's global generator.
            latents: (M, C, h, w) first noise, in place of the seeds'.
            variance_noise: (steps, M, C, h, w) noise of each step, in place of the seeds'.
            output_type: "pil", M images; "tensor", (M, 3, S, S) float32 in [0, 1]; "latent", (M, C, h, w) float32, scaled.
            callback: called after each step with its number, its timestep and the latents.
        """
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output_type {output_type!r} is not known; there are {', '.join(OUTPUT_TYPES)}")
        prompt_embeds = self._embeds(prompts, prompt_embeds)
        if prompt_embeds is None:
            raise InputError("there is nothing to generate images: give prompts or prompt_embeds")
        count = len(prompt_embeds) * num_images_per_prompt
        condition = self.project(prompt_embeds, count)
        if guidance_scale != 1:
            negative = self._embeds(negative_prompts, negative_prompt_embeds)
            negative = self.encode_unconditional() if negative is None else negative
            condition = torch.cat([self.project(negative, count), condition])
        if isinstance(scheduler, str):
            scheduler = make_scheduler(scheduler, self.config.image_decoder_config.scheduler)
        generators = make_generators(seeds, count)
        if latents is None:
            latents = first_noise(generators, self.config.image_decoder_config.latent_shape)
        elif len(latents) != count:
            raise InputError(f"{len(latents)} latents are given for {count} images")
        latents = denoise(
            self.image_decoder,
            condition,
            latents.to(condition.device, torch.float32),
            scheduler,
            num_inference_steps,
            noise=generators if variance_noise is None else variance_noise,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            callback=callback,
            progress=progress,
        )
        return self.decode_latents(latents, output_type)

    def decode_latents(self, latents: torch.Tensor, output_type: str = "pil") -> torch.Tensor | list[Image.Image]:
        """Latents (M, C, h, w) as `generate_images` returns them."""
        if output_type == "latent":
            return latents
        with torch.no_grad():
            pixels = self.image_decoder.decode(latents)
        return pixels if output_type == "tensor" else to_pil(pixels)

    def project(self, embeds: torch.Tensor, count: int) -> torch.Tensor:
        """Hidden states (B or 1, Q, H) -> condition vectors (count, Q, E), each prompt's repeated."""
        if count % len(embeds):
            raise InputError(f"{len(embeds)} prompts do not divide {count} images evenly")
        weight = next(self.condition_projector.parameters())
        return self.condition_projector(embeds.to(weight.device, weight.dtype)).repeat_interleave(
            count // len(embeds), dim=0
        )

    def _embeds(self, prompts: Mapping[str, torch.Tensor] | None, embeds: torch.Tensor | None) -> torch.Tensor | None:
        if prompts is None:
            return embeds
        if embeds is not None:
            raise InputError("give prompts or their embeds, not both")
        return self.encode_prompts(**{name: prompts[name] for name in prompts})
