"""The surrogate for CLIP: transformers' ``CLIPModel``, which gives DreamLLM its image tower and the image decoder its text tower.

Contrastive training (Radford et al. 2021, section 2.3), with one thing added that 400 million pairs make unnecessary and 2,000 steps do
not: the patch tokens that DreamLLM reads (hidden state -2) must tell, through a linear layer that is thrown away afterwards, which
shape, colour and size is in their cell of the 3 x 3 grid.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from dreambench_tasks.playground.clip import clip_tokenizer, contrastive_loss, train_batch
from dreambench_tasks.playground.pixels import pixels_of
from dreambench_tasks.playground.render import render_many
from dreambench_tasks.playground.scene import COLOURS, SHAPES, SIZES, Scene
from dreambench_tasks.playground.surrogates.loop import CHECKPOINT, Report, Settings, one_thread, train

__all__ = ["CONTEXT", "SETTINGS", "WIDTH", "build_encoder", "encoder_pixels"]

SETTINGS = Settings(steps=1800, batch=128, learning_rate=1e-3)
CONTEXT = 36  # tokens of text; every short caption fits, no narrative does
WIDTH = 128
IMAGE = 96  # pixels: 64 enlarged, so that a cell of the grid is 2 x 2 patches
PATCH = 16
DENSE_WEIGHT = 1.0
VALUES = (SHAPES, COLOURS, SIZES)


class _Learner(nn.Module):
    """CLIP and the linear layers that are dropped after training: one for each of shape, colour and size, 0 being an empty cell."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        width = {"hidden_size": WIDTH, "num_attention_heads": 4, "projection_dim": 64, "hidden_act": "gelu"}
        text = {"vocab_size": vocabulary, "intermediate_size": 384, "num_hidden_layers": 3}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}  # 2 has another meaning in CLIP's pooling
        vision = {"intermediate_size": 512, "num_hidden_layers": 5, "image_size": IMAGE, "patch_size": PATCH}
        config = CLIPConfig(
            text_config={**width, **text, **ids, "max_position_embeddings": CONTEXT},
            vision_config={**width, **vision},
            projection_dim=64,
        )
        self.clip = CLIPModel(config)
        # On CPUs the backward pass of fused attention takes four times as long as two plain products at so few tokens.
        self.clip.set_attn_implementation("eager")
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(values) + 1) for values in VALUES)


def build_encoder(directory: str | Path, settings: Settings = SETTINGS, report: Report | None = None) -> Path:
    """Train into ``directory/encoder`` (model, tokenizer, image processor) and return that folder."""
    folder = Path(directory) / "encoder"
    if (folder / "config.json").is_file():
        return folder
    tokenizer = clip_tokenizer(CONTEXT)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        learner = _Learner(len(tokenizer))
        train(folder, learner, lambda step: _loss(learner, tokenizer, step, settings), settings, report)
    tokenizer.save_pretrained(folder)
    half, size = [0.5, 0.5, 0.5], {"height": IMAGE, "width": IMAGE}
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE}, crop_size=size, image_mean=half, image_std=half
    ).save_pretrained(folder)
    learner.clip.save_pretrained(folder)
    (folder / CHECKPOINT).unlink()
    return folder


def encoder_pixels(images: np.ndarray) -> Tensor:
    """``(N, 64, 64, 3)`` uint8 to ``(N, 3, 96, 96)`` float32 in -1 … 1, as the image processor resizes (bicubic)."""
    pixels = pixels_of(images)
    return F.interpolate(pixels, size=(IMAGE, IMAGE), mode="bicubic", antialias=True).clamp(-1, 1)


def _loss(learner: _Learner, tokenizer: PreTrainedTokenizerFast, step: int, settings: Settings) -> Tensor:
    scenes, texts = train_batch(step, settings.seed, settings.batch)
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    clip = learner.clip
    with torch.autocast("cpu", torch.bfloat16):
        seen = clip.vision_model(encoder_pixels(render_many(scenes)), output_hidden_states=True)
        image = clip.visual_projection(seen.pooler_output)
        said = clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        text = clip.text_projection(said.pooler_output)
        patches = seen.hidden_states[-2][:, 1:]
        guesses = [head(patches) for head in learner.heads]
    return contrastive_loss(clip, image, text, texts) + DENSE_WEIGHT * _dense(guesses, scenes)


def _dense(guesses: list[Tensor], scenes: list[Scene]) -> Tensor:
    """Mean cross-entropy of shape, colour and size in the cell of each patch; empty cells count a fifth."""
    per_side = IMAGE // PATCH
    cells = torch.zeros(len(VALUES), len(scenes), 3, 3, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            found = (thing.shape, thing.colour, thing.size)
            for k, (values, value) in enumerate(zip(VALUES, found, strict=True)):
                cells[k, i, thing.row, thing.column] = values.index(value) + 1
    patches = cells.repeat_interleave(per_side // 3, 2).repeat_interleave(per_side // 3, 3).flatten(2)
    weight = torch.where(patches[0] > 0, 1.0, 0.2)
    losses = [
        F.cross_entropy(guess.float().transpose(1, 2), target, reduction="none")
        for guess, target in zip(guesses, patches, strict=True)
    ]
    return (torch.stack(losses).mean(0) * weight).sum() / weight.sum()
