"""The surrogate for Stable Diffusion: diffusers' own ``StableDiffusionPipeline``, which is also the baseline beside DreamLLM.

Four steps. First the text tower of the surrogate CLIP learns on with a UNet, mostly on scenes with one thing; then it is frozen, as
Stable Diffusion's is, and the UNet alone goes on with all scenes; in the third step errors count more where things are, which teaches
shapes sooner, but also to expect more things than there are, and the fourth takes that back. Velocity prediction with a schedule that
ends in pure noise (arXiv 2305.08891), for flat backgrounds are what a schedule without that gets wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, PreTrainedTokenizerFast

from dreambench.errors import DataError
from dreambench_tasks.playground.language import captions
from dreambench_tasks.playground.pixels import pixels_of, things_of
from dreambench_tasks.playground.render import SIDE, render_many
from dreambench_tasks.playground.scene import Rng, Scene, draw_scene
from dreambench_tasks.playground.surrogates.encoder import CONTEXT, WIDTH
from dreambench_tasks.playground.surrogates.loop import CHECKPOINT, Report, Settings, generator_of, one_thread, train

__all__ = [
    "FIRST",
    "FOURTH",
    "SECOND",
    "THIRD",
    "build_image_decoder",
    "build_text_tower",
    "build_unet",
    "build_unet_of_things",
    "text_ids",
]

FIRST = Settings(steps=1000, batch=64, learning_rate=1.6e-3, weight_decay=0.01, average=0.995)
SECOND = replace(FIRST, steps=3600, average=0.998)
THIRD = replace(FIRST, steps=2000, learning_rate=1.2e-3, average=0.998)
FOURTH = replace(FIRST, steps=800, learning_rate=8e-4, average=0.995)
CHANNELS = (64, 128, 128)
EMPTY_PERCENT = 10  # captions left out, for classifier-free guidance
SINGLE_PERCENT = 60  # of the first step's scenes, beside those that happen to have one thing
OBJECT_WEIGHT = 4.0  # of the third step's errors in the latents that hold a thing
SCENES = 28_000  # scenes whose latents are kept
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


@dataclass
class _Data:
    """Scenes with the means of their latents, (N, 4, 8, 8), and the numbers of those with one thing."""

    scenes: list[Scene]
    latents: Tensor
    single: list[int]


def build_text_tower(directory: str | Path, settings: Settings = FIRST, report: Report | None = None) -> Path:
    """The first step, into ``directory/diffusion/{text_encoder,tokenizer,first_unet}``; needs ``encoder`` and ``vae``."""
    root = Path(directory)
    target = root / "diffusion"
    if (target / "first_unet" / "config.json").is_file():
        return target
    tokenizer = PreTrainedTokenizerFast.from_pretrained(root / "encoder", local_files_only=True)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        clip = CLIPModel.from_pretrained(root / "encoder", local_files_only=True)
        tower: Any = clip.text_model
        tower.set_attn_implementation("eager")
        unet = _unet()
        both = nn.ModuleDict({"unet": unet, "tower": tower})
        data = _data(root, settings.seed)

        def loss_of(step: int) -> Tensor:
            chosen, texts = _batch(data, settings, step, SINGLE_PERCENT)
            return _loss(unet, tower(text_ids(tokenizer, texts))[0], data.latents[chosen], settings.seed, step)

        train(target / "first", both, loss_of, settings, report)
    tokenizer.save_pretrained(target / "tokenizer")
    tower.save_pretrained(target / "text_encoder")
    unet.save_pretrained(target / "first_unet")
    (target / "first" / CHECKPOINT).unlink()
    return target


def build_unet(directory: str | Path, settings: Settings = SECOND, report: Report | None = None) -> Path:
    """The second step, into ``directory/diffusion/second_unet``: the text tower is frozen from here on."""
    return _go_on(Path(directory), "first_unet", "second_unet", settings, FIRST.steps, 1.0, report)


def build_unet_of_things(directory: str | Path, settings: Settings = THIRD, report: Report | None = None) -> Path:
    """The third step, into ``directory/diffusion/third_unet``."""
    done = FIRST.steps + SECOND.steps
    return _go_on(Path(directory), "second_unet", "third_unet", settings, done, OBJECT_WEIGHT, report)


def build_image_decoder(directory: str | Path, settings: Settings = FOURTH, report: Report | None = None) -> Path:
    """The fourth step, into ``directory/diffusion``, which is then a whole ``StableDiffusionPipeline``; needs ``vae_fine``."""
    root = Path(directory)
    target = root / "diffusion"
    if (target / "model_index.json").is_file():
        return target
    done = FIRST.steps + SECOND.steps + THIRD.steps
    unet = _go_on(root, "third_unet", "fourth_unet", settings, done, 1.0, report)
    make_pipeline: Any = (
        StableDiffusionPipeline  # the library's types know fewer tokenizers and schedulers than its code
    )
    pipeline = make_pipeline(
        vae=AutoencoderKL.from_pretrained(root / "vae_fine", local_files_only=True),
        text_encoder=CLIPTextModel.from_pretrained(target / "text_encoder", local_files_only=True),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(target / "tokenizer", local_files_only=True),
        unet=UNet2DConditionModel.from_pretrained(unet, local_files_only=True),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(target)
    return target


def _go_on(
    root: Path, begin: str, end: str, settings: Settings, first: int, object_weight: float, report: Report | None
) -> Path:
    """Train the UNet ``begin`` on to ``end``, under the frozen text tower; ``first`` is the number of its first step, for the draws."""
    folder = root / "diffusion"
    if (folder / end / "config.json").is_file():
        return folder / end
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    tower = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True).eval()
    with one_thread():
        unet: Any = UNet2DConditionModel.from_pretrained(folder / begin, local_files_only=True)
        unet.train()
        data = _data(root, settings.seed)

        def loss_of(step: int) -> Tensor:
            chosen, texts = _batch(data, settings, first + step, 0)
            with torch.no_grad():
                states = tower(text_ids(tokenizer, texts))[0]
            weight = _object_weight([data.scenes[i] for i in chosen], object_weight)
            return _loss(unet, states, data.latents[chosen], settings.seed, first + step, weight)

        train(folder / end, unet, loss_of, settings, report)
    unet.save_pretrained(folder / end)
    (folder / end / CHECKPOINT).unlink()
    return folder / end


def _unet() -> Any:
    maker: Any = UNet2DConditionModel  # the library types its tuples as of one
    return maker(
        sample_size=SIDE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4, 4),  # diffusers' name; it means the number of heads
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
        use_linear_projection=True,
    )


def _object_weight(scenes: list[Scene], weight: float) -> Tensor | None:
    """(B, 1, 8, 8): the weight where a latent's 8 x 8 pixels hold something of a thing, else 1; None where all are 1."""
    if weight == 1:
        return None
    return 1 + (weight - 1) * F.max_pool2d(things_of(scenes, render_many(scenes)), 8)


def _loss(
    unet: nn.Module, states: Tensor, latents: Tensor, seed: int, step: int, weight: Tensor | None = None
) -> Tensor:
    generator = generator_of(seed, step)
    schedule: Any = DDPMScheduler.from_config(SCHEDULER)
    noise = torch.randn(latents.shape, generator=generator)
    times: Any = torch.randint(1000, (len(latents),), generator=generator)
    noisy = schedule.add_noise(latents, noise, times)
    predicted = unet(noisy, times, encoder_hidden_states=states).sample
    error = F.mse_loss(predicted, schedule.get_velocity(latents, noise, times), reduction="none").mean(1, keepdim=True)
    return error.mean() if weight is None else (weight * error).sum() / weight.sum()


def _batch(data: _Data, settings: Settings, step: int, single_percent: int) -> tuple[list[int], list[str]]:
    """Numbers of scenes and what is said of each: one of its captions, or nothing."""
    rng = Rng("image_decoder", settings.seed, step)
    chosen, texts = [], []
    for _ in range(settings.batch):
        chosen.append(rng.pick(data.single) if rng.chance(single_percent) else rng.below(len(data.scenes)))
        said = "" if rng.chance(EMPTY_PERCENT) else rng.pick(captions(data.scenes[chosen[-1]], rng))
        texts.append(said)
    return chosen, texts


def text_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """(B, 36): padded to the full context and with no mask, as Stable Diffusion's pipelines do."""
    tokens = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
    return tokens["input_ids"]


def _data(root: Path, seed: int) -> _Data:
    """The scenes and their latents, which are encoded once and kept in ``latents.safetensors``."""
    path = root / "latents.safetensors"
    scenes = [draw_scene("train", i, seed) for i in range(SCENES)]
    source = json.dumps({"scenes": SCENES, "seed": seed})
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("source")
        if found != source:
            raise DataError(f"{path} holds the latents of {found}, not of {source}: remove it, they are made again")
    else:
        vae: Any = AutoencoderKL.from_pretrained(root / "vae", local_files_only=True).eval()
        parts: list[Tensor] = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, SCENES, 128):
                pixels = pixels_of(render_many(scenes[start : start + 128]))
                parts.append(vae.encode(pixels).latent_dist.mean.float())
        temporary = path.with_suffix(".tmp")
        save_file({"latents": torch.cat(parts).contiguous()}, temporary, metadata={"source": source})
        temporary.replace(path)
    single = [i for i, scene in enumerate(scenes) if len(scene.things) == 1]
    return _Data(scenes, load_file(path)["latents"], single)
