"""Tiny models with random weights and tokenizers trained on the spot, saved in the layout that their libraries publish."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

_TEXT = ["What is on the table? A cat, a dog and two red cups.", "How many kites are there? Answer: yes, no, one, two."]

_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of some 300 words that ends with ``</s>``."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = ["<pad>", "<s>", "</s>", *special]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=names, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
        extra_special_tokens={f"token_{number}": name for number, name in enumerate(special)},
    )


def _save(folder: Path, config: LlavaConfig | Qwen2VLConfig) -> None:
    """A model whose words depend strongly on its input, so that a wrong mask or position shows."""
    torch.manual_seed(5)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "norm" not in name:
                weight.mul_(6.0)
    model.generation_config.eos_token_id = [2, 7]
    model.generation_config.repetition_penalty = 1.7
    model.save_pretrained(folder)


def save_llava(folder: Path) -> Path:
    """LLaVA: a CLIP tower and a Llama, one fixed number of image tokens."""
    words = tokenizer("<image>")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    _save(
        folder,
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=words.convert_tokens_to_ids("<image>")),
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)
    return folder


def save_qwen(folder: Path) -> Path:
    """Qwen2-VL: images of any size as so many tokens, and positions in three axes."""
    words = tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    start, end, image, video = (
        words.convert_tokens_to_ids(name)
        for name in ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    )
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    _save(folder, config)
    pixels = {"min_pixels": 64, "max_pixels": 64 * 16, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    ).save_pretrained(folder)
    return folder


def save_stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion: a CLIP text tower, a UNet and an autoencoder of a few thousand weights; images of 16 x 16."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(3)
    words = tokenizer()
    words.model_max_length = 16
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
