"""Stable Diffusion without a text encoder: autoencoder, UNet, schedulers, and the denoising loop.

Shapes: M images, C latent channels, h and w latent size, S pixels (height = width), Q condition vectors of width E.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast, get_type_hints

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from dreamllm.configuration import ImageDecoderConfig
from dreamllm.errors import NOT_FINITE, CheckpointError, InputError, NotFiniteError, library_errors
from dreamllm.options import SchedulerName, choose, has_type

Scheduler = Any  # diffusers has no common type for its schedulers
SCHEDULERS: dict[SchedulerName, Any] = {
    SchedulerName.ddpm: DDPMScheduler,
    SchedulerName.ddim: DDIMScheduler,
    SchedulerName.dpm_solver: DPMSolverMultistepScheduler,
}
StepCallback = Callable[[int, int, torch.Tensor], None]


def make_scheduler(name: str, config: dict[str, Any]) -> Scheduler:
    """The scheduler `name` with the noise schedule and prediction type of `config`, that of any diffusers scheduler."""
    return SCHEDULERS[choose(SchedulerName, name, "scheduler")].from_config(config)


def check_config(config: ImageDecoderConfig, where: object) -> None:
    """CheckpointError for a field of another type than diffusers declares, which it does not check itself, and for unusable schedulers.

    In configurations of networks, older versions of diffusers wrote null for what was not chosen; that is no real number.
    """
    for part, kind in (
        ("vae", AutoencoderKL),
        ("unet", UNet2DConditionModel),
        ("scheduler", DDPMScheduler),
        ("scheduler", DDIMScheduler),
    ):
        fields = getattr(config, part)
        for name, annotation in get_type_hints(kind.__init__).items():
            value = fields.get(name)
            optional = part != "scheduler" and annotation is not float
            if name in fields and not has_type(value, annotation) and not (value is None and optional):
                raise CheckpointError(
                    f"{where}: {part}.{name} is {str(value)[:80]}, which diffusers' {kind.__name__} does not take"
                )
    if config.resolution % config.downscale:
        raise CheckpointError(
            f"{where}: resolution {config.resolution} is no multiple of the autoencoder's {config.downscale}"
        )
    for name in SchedulerName:
        with library_errors(f"{where}: scheduler"):
            make_scheduler(name, config.scheduler or {}).set_timesteps(1)


class ImageDecoder(nn.Module):
    """Turns condition vectors and noise into pixels."""

    def __init__(self, config: ImageDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = cast(AutoencoderKL, AutoencoderKL.from_config(config.vae))
        self.unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config.unet))

    @property
    def scaling_factor(self) -> float:
        """The UNet works on the autoencoder's latents times this factor."""
        config: Any = self.vae.config
        return float(config.scaling_factor)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The UNet's output (M, C, h, w), float32, for latents (M, C, h, w), timesteps () or (M,) and condition (M, Q, E).

        It is noise or velocity, depending on the scheduler's prediction type.
        """
        dtype = self.unet.conv_in.weight.dtype
        output: Any = self.unet(latents.to(dtype), timesteps, encoder_hidden_states=condition.to(dtype))
        return output.sample.float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (M, C, h, w) -> pixels (M, 3, S, S), float32 in [0, 1]; all NaN for an image with a number that is not finite."""
        unscaled: Any = (latents / self.scaling_factor).to(self.vae.decoder.conv_in.weight.dtype)
        output: Any = self.vae.decode(unscaled)
        pixels = output.sample.float()
        # Here, because the limits would make white or black of an infinite pixel. Of infinite latents the norms make NaN.
        finite = pixels.isfinite().flatten(1).all(1)
        return (pixels / 2 + 0.5).clamp(0, 1).masked_fill(~finite[:, None, None, None], torch.nan)

    def encode(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Pixels (M, 3, S, S) in [-1, 1] -> a sample of the scaled latents (M, C, h, w); `noise` is standard normal of that shape."""
        return self.sample(self.posterior(pixels), noise)

    def posterior(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (M, 3, S, S) in [-1, 1] -> mean and standard deviation of their latents, (M, 2, C, h, w) float32, not scaled."""
        output: Any = self.vae.encode(pixels.to(self.vae.encoder.conv_in.weight.dtype))
        return torch.stack([output.latent_dist.mean.float(), output.latent_dist.std.float()], dim=1)

    def sample(self, posterior: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """A sample of the scaled latents (M, C, h, w) from `posterior`."""
        mean, deviation = posterior.unbind(1)
        return (mean + deviation * noise) * self.scaling_factor


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
    """Denoise latents; returns (M, C, h, w), float32 in every dtype of the model.

    Args:
        condition: (M, Q, E), or with guidance (2M, Q, E), the unconditional half first.
        latents: (M, C, h, w) standard normal noise.
        noise: a generator per image, or (steps, M, C, h, w), the noise that ancestral samplers add at each step.
    """
    guided = guidance_scale != 1
    longest = int(scheduler.config.num_train_timesteps)
    if not 1 <= num_inference_steps <= longest:
        raise InputError(f"num_inference_steps={num_inference_steps}: this noise schedule allows 1 to {longest}")
    scheduler.set_timesteps(num_inference_steps, device=latents.device)
    latents = latents * scheduler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": noise} if takes_generator and isinstance(noise, list) else {}
    for i, t in enumerate(tqdm(scheduler.timesteps, disable=not progress, desc="denoising", leave=False)):
        inputs = torch.cat([latents, latents]) if guided else latents
        prediction = decoder.predict(scheduler.scale_model_input(inputs, t), t, condition)
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
            if guidance_rescale:
                prediction = rescale_guidance(prediction, conditional, guidance_rescale)
        with _FixedNoise(noise, i) if isinstance(noise, torch.Tensor) else nullcontext():
            latents = scheduler.step(prediction, t, latents, **options).prev_sample
        if callback is not None:
            callback(i, int(t), latents)
    return latents


def rescale_guidance(guided: torch.Tensor, conditional: torch.Tensor, phi: float) -> torch.Tensor:
    """Rescale guided predictions towards the standard deviation of the conditional ones by phi (arXiv 2305.08891, section 3.4)."""
    dims = tuple(range(1, guided.dim()))
    rescaled = guided * (conditional.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True))
    return phi * rescaled + (1 - phi) * guided


def to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """(M, 3, S, S) in [0, 1] -> M RGB images, rounded to the nearest of 256 levels. NotFiniteError if a pixel is NaN."""
    if not bool(pixels.isfinite().all()):
        raise NotFiniteError(f"an image has pixels that are not finite: {NOT_FINITE}")
    levels = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in levels]


class _FixedNoise(TorchFunctionMode):
    """Makes `torch.randn` return given noise, because the step of diffusers' DDPM scheduler has no argument for it."""

    def __init__(self, noise: torch.Tensor, step: int) -> None:
        super().__init__()
        self.noise, self.step = noise, step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.randn:
            return func(*args, **kwargs)
        shape = tuple(args[0])
        if self.step >= len(self.noise) or self.noise.shape[1:] != shape:
            raise InputError(f"variance_noise {tuple(self.noise.shape)} has no {shape} for step {self.step}")
        return self.noise[self.step].to(kwargs.get("device"), kwargs.get("dtype"))
