"""The surrogate for Stable Diffusion: diffusers' ``AutoencoderKL``, ``UNet2DConditionModel`` and schedulers, and its text conditions.

The autoencoder maps 64 x 64 pixels to 4 x 8 x 8 latents; its decoder is then trained further for sharper edges. The UNet is conditioned
by 16 vectors that a small text transformer makes of a caption. Layers that are discarded afterwards teach the first nine what the caption
says is in each cell of the 3 x 3 grid, the tenth the background, and the next three the objects in reading order; the last three are free.
Conditions that are sorted by place are what makes so small a UNet learn in hours to put each object where it belongs. The text transformer
is no part of DreamLLM: the language model learns its vectors in the warm-up.

Shapes: B batch, N scenes; latents are (·, 4, 8, 8).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from dreambench.errors import DataError
from dreambench.files import replacing
from dreambench_tasks.playground import clip_directory
from dreambench_tasks.playground.language import PLACES, captions
from dreambench_tasks.playground.render import SIDE, render_many
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, WORLD, Rng, Scene, draw_scene
from dreamllm import checkpoint
from dreamllm.files import embedded_checkpoint
from loop import Settings, finish, generator_of, is_finished, object_mask, pixels_of, reproducible, train
from surrogate_clip import CONTEXT, WIDTH, clip_tokenizer, kind_of

__all__ = ["REGISTERS", "Conditioner", "build_autoencoder", "build_baseline", "build_diffusion", "busy_scene"]

AUTOENCODER = Settings(steps=1600, batch=32, learning_rate=2e-3, weight_decay=0.0)
DECODER = Settings(steps=1200, batch=32, learning_rate=1.5e-3, seed=1, weight_decay=0.0)
READING = Settings(steps=1500, batch=64, learning_rate=1e-3, weight_decay=0.01)
TOGETHER = Settings(4000, batch=32, learning_rate=1e-3, weight_decay=0.01, average=0.999, decay=False, save_every=500)
ALONE = replace(TOGETHER, steps=6500)
DECAY = replace(TOGETHER, steps=8000, decay=True)
BASELINE = replace(TOGETHER, steps=1600, seed=3, decay=True)
PIXEL_WEIGHT = 5.0  # of the autoencoder's errors where objects are: they cover little of an image
OBJECT_WEIGHT = 2.0  # of the errors in latents where objects are, in all phases but the last
ABSOLUTE_WEIGHT = 0.2  # of the absolute error beside the squared one in the second training of the decoder
KL_WEIGHT = 1e-4
CALIBRATION = 1024  # scenes from which the means and deviations of the latents are computed
EMPTY_PERCENT = 10  # captions dropped for classifier-free guidance
READING_WEIGHT = 0.1  # of the discarded layers' loss while text transformer and UNet are trained together
SCENES = 48_000  # whose latents are computed once
REGISTERS = 16  # conditions of the UNet, and dream queries of DreamLLM
UNSAID = -100
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    # Pure noise at the end (arXiv 2305.08891): with other schedules, flat backgrounds come out wrong.
    **{"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
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
            blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
            sizes = {"block_out_channels": (16, 32, 64, 96), "norm_num_groups": 8, "sample_size": SIDE}
            model = _Autoencoder(**blocks, **sizes, scaling_factor=1.0, mid_block_add_attention=False)
            model.to(memory_format=torch.channels_last)
            train(folder, model, lambda step: _reconstruction_loss(model, AUTOENCODER, step), AUTOENCODER)
            _normalise(model)
        finish(folder, model)
    folder = directory / "vae_fine"
    if not is_finished(folder):
        with reproducible(DECODER.seed):
            fine = _load(_Autoencoder, directory / "vae")
            for part in (fine.encoder, fine.quant_conv):
                part.requires_grad_(False)
            train(folder, fine, lambda step: _reconstruction_loss(fine, DECODER, step, decoder_only=True), DECODER)
        finish(folder, fine)


def _load(kind: Any, folder: Path) -> Any:
    """A trained part, without the path that diffusers would save with what is made of it."""
    model = kind.from_pretrained(folder, local_files_only=True)
    model.register_to_config(_name_or_path="")
    return model.to(memory_format=torch.channels_last)


def _reconstruction_loss(model: Any, settings: Settings, step: int, decoder_only: bool = False) -> Tensor:
    """Squared error, weighted more where objects are, and the KL divergence; for the decoder alone an absolute error instead of that."""
    scenes = [busy_scene(settings.seed, step * settings.batch + i) for i in range(settings.batch)]
    images = render_many(scenes)
    pixels, weight = pixels_of(images), 1 + (PIXEL_WEIGHT - 1) * object_mask(scenes, images)
    posterior = model.encode(pixels).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator_of(settings.seed, step))
    error = model.decode(posterior.mean + posterior.std * noise).sample - pixels
    if decoder_only:
        return (weight * (error.square() + ABSOLUTE_WEIGHT * error.abs())).sum() / (weight.sum() * 3)
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return (weight * error.square()).sum() / (weight.sum() * 3) + KL_WEIGHT * divergence


def busy_scene(seed: int, index: int) -> Scene:
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


class Conditioner(nn.Module):
    """Captions to conditions, (B, 16, 128): the states of a causal text transformer at its last positions, after every caption."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.tokenizer = clip_tokenizer(CONTEXT + REGISTERS)
        if folder is None:
            ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3, "vocab_size": len(self.tokenizer)}
            widths = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "projection_dim": WIDTH}
            sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": CONTEXT + REGISTERS}
            self.tower = CLIPTextModel(CLIPTextConfig.from_dict({**ids, **widths, **sizes, "hidden_act": "gelu"}))
        else:
            self.tower = CLIPTextModel.from_pretrained(folder, local_files_only=True)
        self.tower.set_attn_implementation("eager")  # a faster backward pass on CPUs
        values = (SHAPES, COLOURS, SIZES, BACKGROUNDS)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(of_one) + 1) for of_one in values)
        if folder is not None:
            self.heads.load_state_dict(load_file(folder / "heads.safetensors"))

    def forward(self, texts: list[str]) -> Tensor:
        return self.tower(_text_ids(self.tokenizer, texts))[0][:, -REGISTERS:]

    def reading_loss(self, states: Tensor, scenes: Sequence[Scene], texts: Sequence[str]) -> Tensor:
        """Mean cross-entropy of what the captions say, from conditions (B, 16, 128)."""
        losses: list[Tensor] = []
        for head, target in zip(self.heads, registers(scenes, texts), strict=True):
            total = F.cross_entropy(head(states).transpose(1, 2), target, ignore_index=UNSAID, reduction="sum")
            losses.append(total / (target != UNSAID).sum().clamp(min=1))
        return torch.stack(losses).mean()

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_file(self.heads.state_dict(), folder / "heads.safetensors")
        finish(folder, self.tower)


def _text_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """(B, T): padded to the tokenizer's full length, without a mask, as in pipelines of Stable Diffusion."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]


def registers(scenes: Sequence[Scene], texts: Sequence[str]) -> Tensor:
    """``(4, B, 16)``: shape, colour, size and background that each condition states, counted from 1; 0 for none, -100 if it is not said."""
    targets = torch.full((4, len(scenes), REGISTERS), UNSAID)
    for i, (scene, text) in enumerate(zip(scenes, texts, strict=True)):
        if not text:
            continue
        placed, sized = is_placed(scene, text), any(size in text.lower() for size in SIZES)
        targets[3, i, 9] = BACKGROUNDS.index(scene.background) + 1
        targets[:2, i, 10:13] = 0
        if placed:
            targets[:2, i, :9] = 0
        said = 3 if sized else 2
        for order, thing in enumerate(scene.things):
            targets[:said, i, 10 + order] = kind_of(thing)[:said]
            if placed:
                targets[:said, i, 3 * thing.row + thing.column] = kind_of(thing)[:said]
    return targets


def is_placed(scene: Scene, text: str) -> bool:
    """Whether a caption of a scene says in which cell every object is."""
    return sum(text.count(f"in the {words}") for row in PLACES for words in row) >= len(scene.things)


def _train_conditioner(folder: Path) -> None:
    if is_finished(folder):
        return
    with reproducible(READING.seed):
        conditioner = Conditioner()

        def loss_of(step: int) -> Tensor:
            numbers = range(step * READING.batch, (step + 1) * READING.batch)
            scenes = [busy_scene(READING.seed, number) for number in numbers]
            rngs = [Rng("conditioner", WORLD, READING.seed, number) for number in numbers]
            texts = [rng.pick(captions(scene, rng)) for scene, rng in zip(scenes, rngs, strict=True)]
            return conditioner.reading_loss(conditioner(texts), scenes, texts)

        train(folder, conditioner, loss_of, READING)
    conditioner.save(folder)


def build_diffusion(directory: Path) -> None:
    """``directory/conditioner`` and ``directory/diffusion`` (UNet, autoencoder, scheduler); needs both ``vae``s.

    First the conditioner alone learns to read, then with the UNet; then the UNet alone, at last with the learning rate going to zero.
    """
    folder = directory / "diffusion"
    if is_finished(folder / "unet"):
        if not is_finished(directory / "conditioner"):
            raise DataError(f"{folder} is the baseline of the shipped checkpoint: build in another folder")
        return
    _train_conditioner(directory / "conditioner-alone")
    data = _data(directory)
    _train_together(directory, data)
    _train_unet(directory, "unet-together", "unet-alone", ALONE, data, TOGETHER.steps, OBJECT_WEIGHT)
    _train_unet(directory, "unet-alone", "unet-decay", DECAY, data, TOGETHER.steps + ALONE.steps, 1.0)
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    _load(_Autoencoder, directory / "vae_fine").save_pretrained(folder / "vae")
    _load(_UNet, directory / "unet-decay").save_pretrained(folder / "unet")


def _train_together(directory: Path, data: _Data) -> None:
    folder = directory / "unet-together"
    if is_finished(folder):
        return
    with reproducible(TOGETHER.seed):
        conditioner = Conditioner(directory / "conditioner-alone")
        down = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
        up = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
        # attention_head_dim is diffusers' name for the number of heads.
        widths = {"block_out_channels": (64, 128, 128), "attention_head_dim": (2, 4, 4), "cross_attention_dim": WIDTH}
        sizes = {"sample_size": SIDE // 8, "layers_per_block": 1, "norm_num_groups": 8, "use_linear_projection": True}
        unet = _UNet(down_block_types=down, up_block_types=up, **widths, **sizes)
        unet.to(memory_format=torch.channels_last)
        both = nn.ModuleDict({"unet": unet, "conditioner": conditioner})

        def loss_of(step: int) -> Tensor:
            return _diffusion_loss(unet, conditioner, data, TOGETHER, step, OBJECT_WEIGHT, READING_WEIGHT)

        train(folder, both, loss_of, TOGETHER)
    conditioner.save(directory / "conditioner")
    finish(folder, unet)


def _train_unet(
    directory: Path, source: str, target: str, settings: Settings, data: _Data, first: int, object_weight: float
) -> None:
    """A later phase; its draws begin after the ``first`` that earlier phases had."""
    folder = directory / target
    if is_finished(folder):
        return
    conditioner = Conditioner(directory / "conditioner").eval().requires_grad_(False)
    with reproducible(settings.seed):
        unet = _load(_UNet, directory / source).train()

        def loss_of(step: int) -> Tensor:
            return _diffusion_loss(unet, conditioner, data, settings, first + step, object_weight)

        train(folder, unet, loss_of, settings)
    finish(folder, unet)


def _diffusion_loss(
    unet: Any, encode: Any, data: _Data, settings: Settings, step: int, objects: float, reading: float = 0.0
) -> Tensor:
    """Squared error of the velocity for as many scenes with one, two and three objects, each with a caption or the empty text.

    It is weighted more where objects are, because they cover little of an image. The weight teaches shapes sooner, but makes the model
    expect more objects than there are, so that the last phase does without.
    """
    rng = Rng("painter", settings.seed, step)
    chosen = [rng.pick(data.by_count[i % 3]) for i in range(settings.batch)]
    texts = ["" if rng.chance(EMPTY_PERCENT) else rng.pick(captions(data.scenes[i], rng)) for i in chosen]
    states, latents, generator = encode(texts), data.latents[chosen], generator_of(settings.seed, step)
    noise = torch.randn(latents.shape, generator=generator)
    times = torch.randint(1000, (len(latents),), generator=generator)
    schedule: Any = DDPMScheduler.from_config(SCHEDULER)
    predicted = unet(schedule.add_noise(latents, noise, times), times, encoder_hidden_states=states).sample
    error = F.mse_loss(predicted, schedule.get_velocity(latents, noise, times), reduction="none").mean(1, keepdim=True)
    weight = 1 + (objects - 1) * data.objects[chosen]
    loss = (weight * error).sum() / weight.sum()
    if reading:
        loss = loss + reading * encode.reading_loss(states, [data.scenes[i] for i in chosen], texts)
    return loss


class _Data(NamedTuple):
    """Scenes, the means of their latents (N, 4, 8, 8), where their objects are (N, 1, 8, 8), and their indices by number of objects."""

    scenes: list[Scene]
    latents: Tensor
    objects: Tensor
    by_count: list[list[int]]


def _data(directory: Path) -> _Data:
    """The scenes and their latents, which are kept in ``directory/latents.safetensors``."""
    path, seed = directory / "latents.safetensors", TOGETHER.seed
    scenes = [draw_scene("train", i, seed) for i in range(SCENES)]
    source = json.dumps({"scenes": SCENES, "seed": seed})
    if not path.is_file():
        vae = _Autoencoder.from_pretrained(directory / "vae", local_files_only=True)
        latents: list[Tensor] = []
        objects: list[Tensor] = []
        with reproducible(seed), torch.inference_mode():
            for start in range(0, SCENES, 128):
                part = scenes[start : start + 128]
                images = render_many(part)
                latents.append(vae.encode(pixels_of(images)).latent_dist.mean)
                objects.append(F.max_pool2d(object_mask(part, images), 8))
        tensors = {"latents": torch.cat(latents).contiguous(), "objects": torch.cat(objects).contiguous()}
        with replacing(path) as unfinished:
            save_file(tensors, unfinished, metadata={"source": source})
    with safe_open(path, framework="pt") as file:
        if (found := (file.metadata() or {}).get("source")) != source:
            raise DataError(f"{path} contains the latents of {found}, not of {source}: delete it")
        by_count = [[i for i, scene in enumerate(scenes) if len(scene.things) == n] for n in (1, 2, 3)]
        return _Data(scenes, file.get_tensor("latents"), file.get_tensor("objects"), by_count)


def build_baseline(directory: Path) -> None:
    """Make ``directory/diffusion`` a ``StableDiffusionPipeline``: DreamLLM's UNet and autoencoder with a CLIP text tower for conditions.

    The tower, first that of playground-clip, is trained through the frozen UNet, as dream queries are in stage I. In a folder without a
    build, UNet and autoencoder are those of the shipped checkpoint.
    """
    folder = directory / "diffusion"
    if (folder / "model_index.json").is_file():
        return
    source = directory / "start" if (directory / "start").is_dir() else embedded_checkpoint()
    print(f"the image decoder is that of {source}", flush=True)
    decoder = checkpoint.load(source, dtype="float32")[0].image_decoder
    if not is_finished(directory / "vae"):
        decoder.vae.save_pretrained(directory / "vae")
    data, tokenizer, unet = _data(directory), clip_tokenizer(CONTEXT), decoder.unet.requires_grad_(requires_grad=False)
    with reproducible(BASELINE.seed):
        tower: Any = CLIPTextModel.from_pretrained(clip_directory(), dtype=torch.float32, local_files_only=True)
        tower.set_attn_implementation("eager")

        def encode(texts: list[str]) -> Tensor:
            return tower(_text_ids(tokenizer, texts))[0]

        def loss_of(step: int) -> Tensor:
            return _diffusion_loss(unet, encode, data, BASELINE, step, OBJECT_WEIGHT)

        train(directory / "baseline", tower, loss_of, BASELINE)
    parts = {"vae": decoder.vae, "unet": unet, "tokenizer": tokenizer, "text_encoder": tower}
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    _Pipeline(**parts, **without, scheduler=DDIMScheduler(**SCHEDULER)).save_pretrained(folder)
