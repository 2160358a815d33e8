"""The sampling loop: noise and condition vectors in, latents out.

Shapes: M images, Q condition vectors of width E, C x h x w latents, S pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from dreamllm.errors import InputError
from dreamllm.image_decoder import ImageDecoder, Scheduler

StepCallback = Callable[[int, int, torch.Tensor], None]


def denoise(
    decoder: ImageDecoder,
    condition: torch.Tensor,
    latents: torch.Tensor,
    scheduler: Scheduler,
    num_inference_steps: int,
    *,
    noise: list[torch.Generator] | torch.Tensor,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    callback: StepCallback | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Latents (M, C, h, w), float32 in every dtype of the model.

    Args:
        condition: (M, Q, E), or with guidance (2M, Q, E), the unconditional half first.
        latents: (M, C, h, w) standard normal noise.
        noise: a generator for each image, or (steps, M, C, h, w) what ancestral samplers add at each step.
    """
    guided = guidance_scale != 1
    longest = int(scheduler.config.num_train_timesteps)
    if not 1 <= num_inference_steps <= longest:
        raise InputError(f"num_inference_steps={num_inference_steps}: this noise schedule takes 1 to {longest}")
    scheduler.set_timesteps(num_inference_steps, device=latents.device)
    latents = latents * scheduler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": noise} if takes_generator and isinstance(noise, list) else {}
    for i, t in enumerate(tqdm(scheduler.timesteps, disable=not progress, desc="text_to_image", leave=False)):
        inputs = torch.cat([latents, latents]) if guided else latents
        prediction = decoder.predict(scheduler.scale_model_input(inputs, t), t, condition)
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
            if guidance_rescale:
                prediction = rescale_guidance(prediction, conditional, guidance_rescale)
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


def make_generators(seeds: Sequence[int] | None, count: int) -> list[torch.Generator]:
    """One generator per image, on the CPU so that a seed means the same noise on every device.

    Without seeds they are drawn from torch's global generator.
    """
    if seeds is None:
        seeds = torch.randint(2**62, (count,)).tolist()
    if len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds are given for {count} images")
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def first_noise(generators: list[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """(M, *shape) standard normal, row i from generator i alone."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """(M, 3, S, S) in [0, 1] -> M RGB images, rounded to the nearest of 256 levels."""
    levels = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in levels]


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
