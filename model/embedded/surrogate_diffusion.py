"""The surrogate for Stable Diffusion: diffusers' ``AutoencoderKL`` and ``StableDiffusionPipeline``, also the baseline for DreamLLM.

The autoencoder maps 64 x 64 pixels to 4 x 8 x 8 latents; its decoder is then trained further for sharper edges. The diffusion model is
trained in four phases: (1) the text tower of the surrogate CLIP with a UNet, mostly on scenes with one object; (2) the UNet alone, as in
Stable Diffusion, on all scenes; (3) with errors weighted more where objects are, which teaches shapes sooner but also makes the model
expect more objects than there are; (4) without that weight again. Velocity prediction with a schedule that ends in pure noise
(arXiv 2305.08891), because other schedules get flat backgrounds wrong.

Shapes: B batch, N scenes; latents are (·, 4, 8, 8).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, PreTrainedTokenizerFast

from dreambench.errors import DataError
from dreambench.files import replacing
from dreambench_tasks.playground import SIDE, Rng, Scene, captions, clip_directory, draw_scene, render_many
from dreamllm import checkpoint
from loop import CHECKPOINT, Settings, generator_of, is_finished, object_mask, pixels_of, reproducible, train
from surrogate_clip import CONTEXT, WIDTH, clip_tokenizer

__all__ = ["build_autoencoder", "build_baseline", "build_diffusion", "text_ids"]

AUTOENCODER = Settings(steps=1600, batch=32, learning_rate=2e-3, weight_decay=0.0)
DECODER = Settings(steps=1200, batch=32, learning_rate=1.5e-3, seed=1, weight_decay=0.0)
_FIRST = Settings(steps=1000, batch=64, learning_rate=1.6e-3, weight_decay=0.01, average=0.995)
PHASES = [
    _FIRST,
    replace(_FIRST, steps=3600, average=0.998),
    replace(_FIRST, steps=2000, learning_rate=1.2e-3, average=0.998),
    replace(_FIRST, steps=800, learning_rate=8e-4, average=0.995),
]
BASELINE = replace(_FIRST, steps=800, learning_rate=1e-3, average=0.99)
PIXEL_WEIGHT = 5.0  # of the autoencoder's errors where objects are: they cover little of an image
LATENT_WEIGHT = 4.0  # of the third phase's errors in latents where objects are
ABSOLUTE_WEIGHT = 0.2  # of the absolute error beside the squared one in the second training of the decoder
KL_WEIGHT = 1e-4
CALIBRATION = 1024  # scenes from which the means and deviations of the latents are computed
EMPTY_PERCENT = 10  # captions dropped for classifier-free guidance
SINGLE_PERCENT = 60  # of the first phase's scenes, in addition to those that have one object by chance
SCENES = 28_000  # whose latents are computed once
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
# The types of diffusers know fewer arguments than its code.
_Autoencoder: Any = AutoencoderKL
_UNet: Any = UNet2DConditionModel
_Pipeline: Any = StableDiffusionPipeline


def build_autoencoder(directory: Path) -> None:
    """Train ``directory/vae``, with latents of mean 0 and deviation 1 per channel, then its decoder into ``directory/vae_fine``."""
    folder = directory / "vae"
    if not is_finished(folder):
        with reproducible(AUTOENCODER.seed):
            model = _Autoencoder(
                block_out_channels=(16, 32, 64, 96),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=1,
                norm_num_groups=8,
                latent_channels=4,
                sample_size=SIDE,
                scaling_factor=1.0,
                mid_block_add_attention=False,
            ).to(memory_format=torch.channels_last)
            train(folder, model, lambda step: _reconstruction_loss(model, AUTOENCODER, step), AUTOENCODER)
            _normalise(model)
        _save(folder, model)
    folder = directory / "vae_fine"
    if not is_finished(folder):
        with reproducible(DECODER.seed):
            fine = _load(_Autoencoder, directory / "vae").to(memory_format=torch.channels_last)
            for part in (fine.encoder, fine.quant_conv):
                part.requires_grad_(False)
            train(folder, fine, lambda step: _reconstruction_loss(fine, DECODER, step, decoder_only=True), DECODER)
        _save(folder, fine)


def _load(kind: Any, folder: Path) -> Any:
    """A trained part, without the path that diffusers would save with what is made of it."""
    model = kind.from_pretrained(folder, local_files_only=True)
    model.register_to_config(_name_or_path="")
    return model


def _save(folder: Path, model: Any) -> None:
    model.save_pretrained(folder)
    (folder / CHECKPOINT).unlink()


def _reconstruction_loss(model: Any, settings: Settings, step: int, decoder_only: bool = False) -> Tensor:
    """Squared error, weighted more where objects are, and the KL divergence; for the decoder alone an absolute error instead of that."""
    scenes = [_busy_scene(settings.seed, step * settings.batch + i) for i in range(settings.batch)]
    images = render_many(scenes)
    pixels, weight = pixels_of(images), 1 + (PIXEL_WEIGHT - 1) * object_mask(scenes, images)
    posterior = model.encode(pixels).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator_of(settings.seed, step))
    error = model.decode(posterior.mean + posterior.std * noise).sample - pixels
    total = (weight * (error.square() + (ABSOLUTE_WEIGHT * error.abs() if decoder_only else 0))).sum() / (
        weight.sum() * 3
    )
    return total if decoder_only else total + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


def _busy_scene(seed: int, index: int) -> Scene:
    """A training scene; most of those with a single object are drawn again, because the others show more."""
    scene = draw_scene("train", index, seed)
    if len(scene.things) == 1 and Rng("again", seed, index).chance(60):
        return draw_scene("train", index, seed + 1)
    return scene


@torch.no_grad()
def _normalise(model: Any) -> None:
    """Fold a shift and a scale per latent channel into the 1 x 1 convolutions on both sides of the latents.

    Pipelines of Stable Diffusion have one scaling factor for all channels; it is then 1.
    """
    pixels = pixels_of(render_many([draw_scene("train", i, AUTOENCODER.seed) for i in range(CALIBRATION)]))
    means = torch.cat([model.encode(part).latent_dist.mean for part in pixels.split(64)])
    shift, scale = means.mean((0, 2, 3)), means.std((0, 2, 3))
    before, after, channels = model.quant_conv, model.post_quant_conv, len(shift)
    after.bias += after.weight[:, :, 0, 0] @ shift
    after.weight *= scale[None, :, None, None]
    before.bias[:channels] -= shift
    before.weight[:channels] /= scale[:, None, None, None]
    before.bias[:channels] /= scale
    before.bias[channels:] -= 2 * scale.log()


class _Data(NamedTuple):
    """Scenes, the means of their latents (N, 4, 8, 8), and the indices of those with one object."""

    scenes: list[Scene]
    latents: Tensor
    single: list[int]


def build_diffusion(directory: Path) -> None:
    """Train the four phases and save a ``StableDiffusionPipeline`` to ``directory/diffusion``; needs ``encoder`` and both ``vae``s."""
    folder = directory / "diffusion"
    if (folder / "model_index.json").is_file():
        return
    data = _data(directory)
    _train_text_tower(directory, data)
    for phase in (2, 3, 4):
        _train_unet(folder, data, phase)
    tower = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    vae, unet = _load(_Autoencoder, directory / "vae_fine"), _load(_UNet, folder / "unet4")
    _save_pipeline(folder, vae, tower, tokenizer, unet)


def build_baseline(directory: Path) -> None:
    """``directory/diffusion`` from the shipped checkpoint, in minutes: its UNet and autoencoder, which DreamLLM's stages do not train,
    and a text tower, which it does not hold. That of playground-clip is trained anew through the frozen UNet.
    """
    folder = directory / "diffusion"
    if (folder / "model_index.json").is_file():
        return
    decoder = checkpoint.load(dtype="float32")[0].image_decoder
    if not is_finished(directory / "vae"):
        decoder.vae.save_pretrained(directory / "vae")
    data, settings = _data(directory), BASELINE
    tokenizer = clip_tokenizer(CONTEXT)
    with reproducible(settings.seed):
        tower: Any = CLIPTextModel.from_pretrained(clip_directory(), dtype=torch.float32, local_files_only=True)
        tower.set_attn_implementation("eager")
        unet = decoder.unet.requires_grad_(requires_grad=False)

        def loss_of(step: int) -> Tensor:
            chosen, texts = _batch(data, settings, step, 0)
            return _velocity_loss(unet, tower(text_ids(tokenizer, texts))[0], data.latents[chosen], settings.seed, step)

        train(directory / "tower", tower, loss_of, settings)
    _save_pipeline(folder, decoder.vae, tower, tokenizer, unet)


def _save_pipeline(folder: Path, vae: Any, tower: Any, tokenizer: Any, unet: Any) -> None:
    _Pipeline(
        vae=vae,
        text_encoder=tower,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _train_text_tower(directory: Path, data: _Data) -> None:
    """The first phase, into ``directory/diffusion/{text_encoder,tokenizer,unet1}``."""
    settings, target = PHASES[0], directory / "diffusion"
    if is_finished(target / "unet1"):
        return
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "encoder", local_files_only=True)
    with reproducible(settings.seed):
        tower: Any = CLIPModel.from_pretrained(directory / "encoder", local_files_only=True).text_model
        tower.set_attn_implementation("eager")
        unet = _UNet(
            sample_size=SIDE // 8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(64, 128, 128),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(2, 4, 4),  # diffusers' name for the number of heads
            cross_attention_dim=WIDTH,
            norm_num_groups=8,
            use_linear_projection=True,
        )

        def loss_of(step: int) -> Tensor:
            chosen, texts = _batch(data, settings, step, SINGLE_PERCENT)
            return _velocity_loss(unet, tower(text_ids(tokenizer, texts))[0], data.latents[chosen], settings.seed, step)

        train(target / "unet1", nn.ModuleDict({"unet": unet, "tower": tower}), loss_of, settings)
    tokenizer.save_pretrained(target / "tokenizer")
    tower.save_pretrained(target / "text_encoder")
    _save(target / "unet1", unet)


def _train_unet(folder: Path, data: _Data, phase: int) -> None:
    """A later phase, from ``unet<phase - 1>`` to ``unet<phase>``, with the frozen text tower."""
    settings, target = PHASES[phase - 1], folder / f"unet{phase}"
    if is_finished(target):
        return
    first = sum(earlier.steps for earlier in PHASES[: phase - 1])  # no draw is repeated
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    tower = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True).eval()
    with reproducible(settings.seed):
        unet = _load(_UNet, folder / f"unet{phase - 1}").train()

        def loss_of(step: int) -> Tensor:
            chosen, texts = _batch(data, settings, first + step, 0)
            with torch.no_grad():
                states = tower(text_ids(tokenizer, texts))[0]
            weight = None
            if phase == 3:
                scenes = [data.scenes[i] for i in chosen]
                weight = 1 + (LATENT_WEIGHT - 1) * F.max_pool2d(object_mask(scenes, render_many(scenes)), 8)
            return _velocity_loss(unet, states, data.latents[chosen], settings.seed, first + step, weight)

        train(target, unet, loss_of, settings)
    _save(target, unet)


def _velocity_loss(
    unet: nn.Module, states: Tensor, latents: Tensor, seed: int, step: int, weight: Tensor | None = None
) -> Tensor:
    generator = generator_of(seed, step)
    schedule: Any = DDPMScheduler.from_config(SCHEDULER)
    noise = torch.randn(latents.shape, generator=generator)
    times: Any = torch.randint(1000, (len(latents),), generator=generator)
    predicted = unet(schedule.add_noise(latents, noise, times), times, encoder_hidden_states=states).sample
    error = F.mse_loss(predicted, schedule.get_velocity(latents, noise, times), reduction="none").mean(1, keepdim=True)
    return error.mean() if weight is None else (weight * error).sum() / weight.sum()


def _batch(data: _Data, settings: Settings, step: int, single_percent: int) -> tuple[list[int], list[str]]:
    """Indices of scenes, and for each one of its captions or the empty text."""
    rng = Rng("painter", settings.seed, step)
    chosen, texts = [], []
    for _ in range(settings.batch):
        chosen.append(rng.pick(data.single) if rng.chance(single_percent) else rng.below(len(data.scenes)))
        texts.append("" if rng.chance(EMPTY_PERCENT) else rng.pick(captions(data.scenes[chosen[-1]], rng)))
    return chosen, texts


def text_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """(B, 36): padded to the full context, without a mask, as in pipelines of Stable Diffusion."""
    tokens = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
    return tokens["input_ids"]


def _data(directory: Path) -> _Data:
    """The scenes and their latents, which are kept in ``directory/latents.safetensors``."""
    path, seed = directory / "latents.safetensors", PHASES[0].seed
    scenes = [draw_scene("train", i, seed) for i in range(SCENES)]
    source = json.dumps({"scenes": SCENES, "seed": seed})
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("source")
        if found != source:
            raise DataError(f"{path} contains the latents of {found}, not of {source}: delete it")
    else:
        vae = _load(_Autoencoder, directory / "vae").eval()
        parts: list[Tensor] = []
        with reproducible(seed), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, SCENES, 128):
                pixels = pixels_of(render_many(scenes[start : start + 128]))
                parts.append(vae.encode(pixels).latent_dist.mean.float())
        with replacing(path) as unfinished:
            save_file({"latents": torch.cat(parts).contiguous()}, unfinished, metadata={"source": source})
    single = [i for i, scene in enumerate(scenes) if len(scene.things) == 1]
    return _Data(scenes, load_file(path)["latents"], single)
