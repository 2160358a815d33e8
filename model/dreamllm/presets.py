"""Models with random weights: `tiny` runs anywhere in milliseconds, `7b` has the sizes of the released model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig

from dreamllm.configuration import UNTRAINED, DreamLLMConfig, ImageDecoderConfig
from dreamllm.modeling import DreamLLMForConditionalGeneration
from dreamllm.options import Preset, check_tokenizer, choose
from dreamllm.processing import DreamLLMProcessor
from dreamllm.tokenizer import tiny_tokenizer, token_ids, tokenizer_from_file

# Stable Diffusion 2.1's noise schedule.
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


# Widths of the decoder and the encoder: hidden, MLP, layers, heads, image size, patch size.
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")


def _decoder(
    resolution: int, vae: list[int], unet: list[int], heads: list[int], condition: int, layers: int, groups: int
) -> ImageDecoderConfig:
    """A decoder with these channels for each level of the autoencoder and the UNet, whose innermost level has no cross-attention."""
    shared = {"layers_per_block": layers, "norm_num_groups": groups}
    attended = len(unet) - 1
    return ImageDecoderConfig(
        resolution=resolution,
        vae={
            "_class_name": "AutoencoderKL",
            "block_out_channels": vae,
            "down_block_types": ["DownEncoderBlock2D"] * len(vae),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae),
            "latent_channels": 4,
            "scaling_factor": 0.18215,
            "sample_size": resolution,
            **shared,
        },
        unet={
            "_class_name": "UNet2DConditionModel",
            "sample_size": resolution // 2 ** (len(vae) - 1),
            "block_out_channels": unet,
            "down_block_types": ["CrossAttnDownBlock2D"] * attended + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * attended,
            "attention_head_dim": heads,  # diffusers' name for the number of heads
            "cross_attention_dim": condition,
            "use_linear_projection": True,
            **shared,
        },
        scheduler=SCHEDULER,
    )


def config_fields(preset: Preset, vocab_size: int) -> dict[str, Any]:
    """The fields of a preset's `DreamLLMConfig`, without the ids of special tokens."""
    if preset == Preset.tiny:
        text, vision, fields = (64, 176, 3, 4), (48, 96, 3, 4, 64, 16), {"num_dream_queries": 8}
        decoder = _decoder(64, [16, 16, 32, 32], [32, 48], heads=[4, 4], condition=48, layers=1, groups=8)
    else:
        text, vision = (4096, 11008, 32, 32), (1024, 4096, 24, 16, 224, 14)
        names = {"clip": "openai/clip-vit-large-patch14", "diffusion": "stabilityai/stable-diffusion-2-1-base"}
        fields: dict[str, Any] = {"num_dream_queries": 64, "released_names": names}
        vae, unet, heads = [128, 256, 512, 512], [320, 640, 1280, 1280], [5, 10, 20, 20]
        decoder = _decoder(512, vae, unet, heads, condition=1024, layers=2, groups=32)
    sizes: dict[str, Any] = dict(zip(SIZES, text, strict=False))
    return {
        "text_config": LlamaConfig(vocab_size=vocab_size, max_position_embeddings=2048, rms_norm_eps=1e-6, **sizes),
        "vision_config": CLIPVisionConfig(**dict(zip(SIZES, vision, strict=True))),
        "image_decoder_config": decoder,
        **fields,
    }


def parts(name: str, tokenizer_file: str | Path | None = None) -> tuple[DreamLLMConfig, DreamLLMProcessor]:
    """Configuration and processor of a preset. `7b` needs a Llama tokenizer file; `tiny` trains a small tokenizer if there is none."""
    preset = choose(Preset, name, "preset")
    check_tokenizer(preset, tokenizer_file)
    tokenizer = tiny_tokenizer() if tokenizer_file is None else tokenizer_from_file(tokenizer_file)
    fields = config_fields(preset, len(tokenizer))
    fields |= token_ids(tokenizer) | {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = DreamLLMConfig(**fields, training=UNTRAINED)
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    size = config.vision_config.image_size
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return config, DreamLLMProcessor(tokenizer, image_processor, config.num_image_tokens, config.num_dream_queries)


def build(
    name: str = "tiny", seed: int = 0, *, tokenizer_file: str | Path | None = None, dtype: torch.dtype | None = None
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """A model with random weights, which depend on the seed alone, in eval mode, and its processor; float32 by default."""
    config, processor = parts(name, tokenizer_file)
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            torch.set_default_dtype(dtype or torch.float32)
            model = DreamLLMForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(before)
    return model.eval(), processor
