"""The surrogate for Stable Diffusion's autoencoder: diffusers' ``AutoencoderKL``, 64 x 64 pixels to 4 x 8 x 8 latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from dreambench_tasks.playground.pixels import pixels_of, things_of
from dreambench_tasks.playground.render import SIDE, render_many
from dreambench_tasks.playground.scene import Rng, Scene, draw_scene
from dreambench_tasks.playground.surrogates.loop import CHECKPOINT, Report, Settings, generator_of, one_thread, train

__all__ = ["FINE", "SETTINGS", "build_autoencoder", "build_fine_decoder"]

SETTINGS = Settings(steps=1600, batch=32, learning_rate=2e-3, weight_decay=0.0)
FINE = Settings(steps=1200, batch=32, learning_rate=1.5e-3, seed=1, weight_decay=0.0)
CHANNELS = (16, 32, 64, 96)
ABSOLUTE_WEIGHT = 0.2
OBJECT_WEIGHT = 5.0  # things cover little of an image, and a plain mean would lose the small ones
KL_WEIGHT = 1e-4
CALIBRATION = 1024  # scenes over which the latents' means and deviations are taken


def build_autoencoder(directory: str | Path, settings: Settings = SETTINGS, report: Report | None = None) -> Path:
    """Train into ``directory/vae`` and return that folder. Latents come out with mean 0 and deviation 1 in every channel."""
    folder = Path(directory) / "vae"
    if (folder / "config.json").is_file():
        return folder
    with one_thread():
        model = _start(settings.seed)
        train(folder, model, lambda step: _loss(model, step, settings), settings, report)
        _normalise(model, settings.seed)
    model.save_pretrained(folder)
    (folder / CHECKPOINT).unlink()
    return folder


def build_fine_decoder(directory: str | Path, settings: Settings = FINE, report: Report | None = None) -> Path:
    """Train the decoder on, into ``directory/vae_fine``. Latents stay as they are, so that the image decoder needs not wait for it."""
    folder = Path(directory) / "vae_fine"
    if (folder / "config.json").is_file():
        return folder
    with one_thread():
        model: Any = AutoencoderKL.from_pretrained(Path(directory) / "vae", local_files_only=True)
        for part in (model.encoder, model.quant_conv):
            part.requires_grad_(False)
        train(folder, model, lambda step: _fine_loss(model, step, settings), settings, report)
    model.save_pretrained(folder)
    (folder / CHECKPOINT).unlink()
    return folder


def _start(seed: int) -> Any:
    maker: Any = AutoencoderKL  # the library types its tuples as of one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return maker(
            block_out_channels=CHANNELS,
            down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
            up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            sample_size=SIDE,
            scaling_factor=1.0,
            mid_block_add_attention=False,
        )


def _loss(model: Any, step: int, settings: Settings) -> Tensor:
    pixels, weight = _pixels_and_weight(step, settings)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(pixels).latent_dist
        decoded = model.decode(_sample(posterior, settings.seed, step)).sample
    error = (weight * F.mse_loss(decoded.float(), pixels, reduction="none")).sum() / (weight.sum() * 3)
    return error + KL_WEIGHT * posterior.kl().float().mean() / posterior.mean[0].numel()


def _fine_loss(model: Any, step: int, settings: Settings) -> Tensor:
    """Absolute beside squared error: edges come out sharper."""
    pixels, weight = _pixels_and_weight(step, settings)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            posterior = model.encode(pixels).latent_dist
        decoded = model.decode(_sample(posterior, settings.seed, step)).sample
    error = decoded.float() - pixels
    return (weight * (error.abs() * ABSOLUTE_WEIGHT + error.square())).sum() / (weight.sum() * 3)


def _pixels_and_weight(step: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """The images of a step, (B, 3, 64, 64), and the weight of each pixel's error, (B, 1, 64, 64)."""
    scenes = [_crowded_scene(settings.seed, step * settings.batch + i) for i in range(settings.batch)]
    images = render_many(scenes)
    return pixels_of(images), 1 + (OBJECT_WEIGHT - 1) * things_of(scenes, images)


def _sample(posterior: Any, seed: int, step: int) -> Tensor:
    return posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator_of(seed, step))


def _crowded_scene(seed: int, number: int) -> Scene:
    """A scene of the train part; those with one thing only are mostly drawn again, for there is more to see in the others."""
    scene = draw_scene("train", number, seed)
    if len(scene.things) == 1 and Rng("again", seed, number).chance(60):
        return draw_scene("train", number, seed + 1)
    return scene


@torch.no_grad()
def _normalise(model: Any, seed: int) -> None:
    """Fold a shift and a scale of each latent channel into the 1 x 1 convolutions at both sides of the latents.

    Stable Diffusion's pipelines know one scaling factor for all channels; with this it is 1.
    """
    pixels = pixels_of(render_many([draw_scene("train", i, seed) for i in range(CALIBRATION)]))
    means = torch.cat([model.encode(part).latent_dist.mean for part in pixels.split(64)])
    shift, scale = means.mean((0, 2, 3)), means.std((0, 2, 3))
    before, after = model.quant_conv, model.post_quant_conv
    channels = len(shift)
    after.bias += after.weight[:, :, 0, 0] @ shift
    after.weight *= scale[None, :, None, None]
    before.bias[:channels] -= shift
    before.weight[:channels] /= scale[:, None, None, None]
    before.bias[:channels] /= scale
    before.bias[channels:] -= 2 * scale.log()
