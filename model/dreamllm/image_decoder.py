"""Stable Diffusion as DreamLLM uses it: the autoencoder, the UNet and the noise schedule, without a text encoder.

Shapes: B images, C latent channels, h and w latent size, S pixels (height = width), Q condition vectors of width E.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
)
from torch import nn

from dreamllm.configuration import ImageDecoderConfig
from dreamllm.errors import UsageError

SCHEDULERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "dpm-solver++": DPMSolverMultistepScheduler}


def make_scheduler(name: str, config: dict) -> SchedulerMixin:
    """The sampler `name` with the noise schedule and prediction type of `config` (written by whichever diffusers scheduler)."""
    if name not in SCHEDULERS:
        raise UsageError(f"scheduler {name!r} is not known; there are {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name].from_config(config)


class ImageDecoder(nn.Module):
    """Condition vectors and noise in, pixels out."""

    def __init__(self, config: ImageDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = AutoencoderKL.from_config(config.vae)
        self.unet = UNet2DConditionModel.from_config(config.unet)

    @property
    def scaling_factor(self) -> float:
        """The UNet works on the autoencoder's latents times this."""
        return float(self.vae.config.scaling_factor)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The UNet's output (noise or velocity, by the scheduler's prediction type), float32.

        latents (B, C, h, w), timesteps () or (B,), condition (B, Q, E). The UNet runs in its own dtype.
        """
        dtype = self.unet.conv_in.weight.dtype
        return self.unet(latents.to(dtype), timesteps, encoder_hidden_states=condition.to(dtype)).sample.float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> pixels (B, 3, S, S), float32 in [0, 1]."""
        pixels = self.vae.decode((latents / self.scaling_factor).to(self.vae.decoder.conv_in.weight.dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def encode(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, S, S) in [-1, 1] -> a sample of the scaled latents (B, C, h, w); `noise` is standard normal of that shape."""
        posterior = self.vae.encode(pixels.to(self.vae.encoder.conv_in.weight.dtype)).latent_dist
        return (posterior.mean.float() + posterior.std.float() * noise) * self.scaling_factor
