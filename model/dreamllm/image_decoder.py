"""Stable Diffusion as DreamLLM uses it: the autoencoder, the UNet and the noise schedule, without a text encoder.

Shapes: B images, C latent channels, h and w latent size, S pixels (height = width), Q condition vectors of width E.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from torch import nn

from dreamllm.configuration import ImageDecoderConfig
from dreamllm.errors import UsageError

Scheduler = Any  # diffusers has no type for what its schedulers have in common
SCHEDULERS: dict[str, Any] = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "dpm-solver++": DPMSolverMultistepScheduler}


def make_scheduler(name: str, config: dict[str, Any]) -> Scheduler:
    """The sampler `name` with the noise schedule and prediction type of `config` (written by whichever diffusers scheduler)."""
    if name not in SCHEDULERS:
        raise UsageError(f"scheduler {name!r} is not known; there are {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name].from_config(config)


class ImageDecoder(nn.Module):
    """Condition vectors and noise in, pixels out."""

    def __init__(self, config: ImageDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = cast(AutoencoderKL, AutoencoderKL.from_config(config.vae))
        self.unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config.unet))

    @property
    def scaling_factor(self) -> float:
        """The UNet works on the autoencoder's latents times this."""
        config: Any = self.vae.config
        return float(config.scaling_factor)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The UNet's output (noise or velocity, by the scheduler's prediction type), float32.

        latents (B, C, h, w), timesteps () or (B,), condition (B, Q, E). The UNet runs in its own dtype.
        """
        dtype = self.unet.conv_in.weight.dtype
        output: Any = self.unet(latents.to(dtype), timesteps, encoder_hidden_states=condition.to(dtype))
        return output.sample.float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> pixels (B, 3, S, S), float32 in [0, 1]."""
        unscaled: Any = (latents / self.scaling_factor).to(self.vae.decoder.conv_in.weight.dtype)
        output: Any = self.vae.decode(unscaled)
        return (output.sample.float() / 2 + 0.5).clamp(0, 1)

    def encode(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, S, S) in [-1, 1] -> a sample of the scaled latents (B, C, h, w); `noise` is standard normal of that shape."""
        output: Any = self.vae.encode(pixels.to(self.vae.encoder.conv_in.weight.dtype))
        posterior = output.latent_dist
        return (posterior.mean.float() + posterior.std.float() * noise) * self.scaling_factor
