"""``playground-clip``: a small CLIP of the playground, its feature extractor; trained here, shipped beside this file.

Contrastive training (Radford et al. 2021, section 2.3) of transformers' ``CLIPModel`` on scenes of the train part. The batch of a
step is a function of (seed, step).
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from dreambench_tasks.playground.language import captions, narrative
from dreambench_tasks.playground.pixels import pixels_of
from dreambench_tasks.playground.render import SIDE, render_many
from dreambench_tasks.playground.scene import WORLD, Rng, Scene, draw_scene
from dreambench_tasks.playground.surrogates.loop import CHECKPOINT, Report, Settings, one_thread, train

__all__ = ["build_clip", "clip_tokenizer", "contrastive_loss", "image_features", "text_features", "train_batch"]

STEPS = 1600
BATCH = 128
LEARNING_RATE = 1e-3
CONTEXT = 77
SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")  # <eos> is 3: CLIP's pooling gives an eos_token_id of 2 another meaning


def build_clip(
    directory: str | Path,
    steps: int = STEPS,
    seed: int = 0,
    save_every: int = 100,
    report: Report | None = None,
) -> Path:
    """Train playground-clip into ``directory/clip`` with one thread and return that folder.

    Args:
        directory: the build's folder; the checkpoint is ``directory/clip/checkpoint.safetensors`` until the end, and is gone on from.
        steps: length of the schedule, in batches of 128.
        seed: of the initial weights and of the scenes.
        save_every: steps between two checkpoints.
        report: called after each step with the number of steps done and the loss.
    """
    folder = Path(directory) / "clip"
    if (folder / "model.safetensors").is_file():
        return folder
    settings = Settings(steps, BATCH, LEARNING_RATE, seed, betas=(0.9, 0.999), save_every=save_every)
    with one_thread():
        tokenizer = clip_tokenizer()
        model = _start(len(tokenizer), seed)
        model.train()
        losses = train(folder, model, lambda step: _loss(model, tokenizer, step, seed), settings, report)
        _publish(folder, model, tokenizer, {"steps": steps, "seed": seed, "losses": losses})
    (folder / CHECKPOINT).unlink()
    return folder


def clip_tokenizer(context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """One token a word, over the words of captions and narratives; made anew each time, always the same."""
    split = pre_tokenizers.BertPreTokenizer()
    words: set[str] = set()
    for index in range(2000):
        scene, rng = draw_scene("train", index), Rng("words", WORLD, index)
        for text in (*captions(scene, rng), *narrative(scene, rng)):
            words.update(word for word, _ in split.pre_tokenize_str(text.lower()))
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - a token of text, not a password
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 3)]
    )
    pad, bos, unk, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, unk_token=unk, eos_token=eos, model_max_length=context
    )


def train_batch(step: int, seed: int, size: int = BATCH) -> tuple[list[Scene], list[str]]:
    """The scenes of a training step, each with one of its five captions."""
    scenes = [draw_scene("train", step * size + i, seed) for i in range(size)]
    texts: list[str] = []
    for i, scene in enumerate(scenes):
        rng = Rng("clip", WORLD, seed, step, i)
        texts.append(rng.pick(captions(scene, rng)))
    return scenes, texts


@torch.inference_mode()
def image_features(model: CLIPModel, images: np.ndarray[Any, Any], batch: int = 256) -> Tensor:
    """Projected image embeddings of ``(N, 64, 64, 3)`` uint8, ``(N, 64)`` float32, not normalised to length 1."""
    parts = [
        model.visual_projection(model.vision_model(pixels_of(images[i : i + batch])).pooler_output)
        for i in range(0, len(images), batch)
    ]
    return torch.cat(parts).float()


@torch.inference_mode()
def text_features(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Projected text embeddings, ``(N, 64)`` float32, not normalised to length 1."""
    tokens = _tokens(tokenizer, texts)
    return model.text_projection(model.text_model(**tokens).pooler_output).float()


def contrastive_loss(model: CLIPModel, image: Tensor, text: Tensor, texts: list[str]) -> Tensor:
    """The mean of both directions over projected embeddings (B, 64) of images and of what is said of them."""
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    logits = model.logit_scale.clamp(max=math.log(100)).exp() * image @ text.T
    # Two scenes may have the same caption: each is then as right as the other.
    same = torch.tensor([[a == b for b in texts] for a in texts], dtype=torch.float32)
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _loss(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, step: int, seed: int) -> Tensor:
    scenes, texts = train_batch(step, seed)
    tokens = _tokens(tokenizer, texts)
    with torch.autocast("cpu", torch.bfloat16):
        image = model.visual_projection(model.vision_model(pixels_of(render_many(scenes))).pooler_output)
        text = model.text_projection(model.text_model(**tokens).pooler_output)
    return contrastive_loss(model, image, text, texts)


def _start(vocabulary: int, seed: int) -> CLIPModel:
    width = {"hidden_size": 128, "num_attention_heads": 4, "projection_dim": 64, "hidden_act": "gelu"}
    config = CLIPConfig(
        text_config={
            **width,
            "vocab_size": vocabulary,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "max_position_embeddings": CONTEXT,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 3,
        },
        vision_config={**width, "intermediate_size": 512, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8},
        projection_dim=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        # On CPUs the backward pass of fused attention takes four times as long as two plain products at 65 tokens.
        model.set_attn_implementation("eager")
    return model


def _tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, Tensor]:
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def _publish(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerFast, training: dict[str, Any]) -> None:
    """Tokenizer, image processor and training record first, the weights (half precision) last."""
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=half, image_std=half
    ).save_pretrained(folder)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "numpy"))
    record = {"world": WORLD, "versions": versions, **training}
    (folder / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    model.half().save_pretrained(folder)
