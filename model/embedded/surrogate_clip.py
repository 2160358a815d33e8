"""Two small CLIPs (transformers' ``CLIPModel``): the surrogate for CLIP ViT-L/14, and ``playground-clip``, the feature extractor.

Both are trained contrastively (Radford et al. 2021, section 2.3) with an additional objective that 400 million pairs make unnecessary and
some thousand steps do not: linear layers that are discarded afterwards predict the shape, colour and size of the object in each cell of the
3 x 3 grid. The surrogate, whose image tower DreamLLM uses, predicts them from the patch tokens of that cell which DreamLLM reads (hidden
state -2); the extractor from the image's embedding, so that distances between embeddings tell shapes, counts and places apart.

Shapes: B batch, P patches, D width.
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from dreambench_tasks.playground import (
    COLOURS,
    SHAPES,
    SIDE,
    SIZES,
    WORLD,
    Rng,
    Scene,
    captions,
    draw_scene,
    narrative,
    render_many,
)
from loop import CHECKPOINT, Settings, is_finished, pixels_of, reproducible, train

__all__ = ["CONTEXT", "WIDTH", "build_clip", "build_encoder", "object_grid"]

CLIP = Settings(steps=2400, batch=96, learning_rate=1e-3)
ENCODER = Settings(steps=1800, batch=128, learning_rate=1e-3)
CONTEXT = 36  # text tokens of the surrogate: enough for every short caption, not for narratives
WIDTH, FEATURES = 128, 64
IMAGE, PATCH = 96, 16  # pixels of the surrogate: 64 enlarged, so that a cell of the grid is 2 x 2 patches
SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")  # <eos> is 3: CLIP's pooling gives an eos_token_id of 2 another meaning


class _Learner(nn.Module):
    """CLIP and the layers, discarded afterwards, that predict shape, colour and size in each cell of the grid (class 0 is an empty cell).

    They read the patch tokens of the cell in the surrogate, and the whole image's embedding in the feature extractor.
    """

    def __init__(self, vocabulary: int, context: int, patches: bool, **vision: int) -> None:
        super().__init__()
        width = {"hidden_size": WIDTH, "num_attention_heads": 4, "projection_dim": FEATURES, "hidden_act": "gelu"}
        text = {"vocab_size": vocabulary, "intermediate_size": 384, "num_hidden_layers": 3}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
        config = CLIPConfig(
            text_config={**width, **text, **ids, "max_position_embeddings": context},
            vision_config={**width, "intermediate_size": 512, **vision},
            projection_dim=FEATURES,
        )
        self.clip = CLIPModel(config)
        # With so few tokens, the backward pass of fused attention takes four times as long on CPUs as that of plain products.
        self.clip.set_attn_implementation("eager")
        self.patches = patches
        classes = [len(values) + 1 for values in (SHAPES, COLOURS, SIZES)]
        sizes = [(WIDTH, count) if patches else (FEATURES, 9 * count) for count in classes]
        self.heads = nn.ModuleList(nn.Linear(*size) for size in sizes)


def build_clip(directory: Path) -> Path:
    """Train playground-clip into ``directory/clip``: half-precision weights, tokenizer, image processor, ``training.json``."""
    settings, folder = CLIP, directory / "clip"
    if is_finished(folder):
        return folder
    with reproducible(settings.seed):
        tokenizer = clip_tokenizer(context=77)
        learner = _Learner(len(tokenizer), 77, False, num_hidden_layers=4, image_size=SIDE, patch_size=8)
        losses = train(folder, learner.train(), lambda step: _loss(learner, tokenizer, step, settings), settings)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "numpy"))
    record = {"world": WORLD, "versions": versions, "steps": settings.steps, "seed": settings.seed, "losses": losses}
    (folder / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    size = {"height": SIDE, "width": SIDE}
    _save(folder, learner.clip.half(), tokenizer, size=size, crop_size=size, do_center_crop=False)
    return folder


def build_encoder(directory: Path) -> Path:
    """Train the surrogate into ``directory/encoder`` (model, tokenizer, image processor)."""
    settings, folder = ENCODER, directory / "encoder"
    if is_finished(folder):
        return folder
    with reproducible(settings.seed):
        tokenizer = clip_tokenizer(CONTEXT)
        learner = _Learner(len(tokenizer), CONTEXT, True, num_hidden_layers=5, image_size=IMAGE, patch_size=PATCH)
        train(folder, learner.train(), lambda step: _loss(learner, tokenizer, step, settings), settings)
    size = {"height": IMAGE, "width": IMAGE}
    _save(folder, learner.clip, tokenizer, size={"shortest_edge": IMAGE}, crop_size=size)
    return folder


def _save(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> None:
    """Everything, the weights last; then the checkpoint is no longer needed."""
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    CLIPImageProcessorPil(image_mean=half, image_std=half, **sizes).save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / CHECKPOINT).unlink()


def clip_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """One token per word of captions and narratives; always the same."""
    split = pre_tokenizers.BertPreTokenizer()
    words: set[str] = set()
    for index in range(2000):
        scene, rng = draw_scene("train", index), Rng("words", WORLD, index)
        for text in (*captions(scene, rng), *narrative(scene, rng)):
            words.update(word for word, _ in split.pre_tokenize_str(text.lower()))
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *sorted(words)))}
    pad, bos, unk, eos = SPECIAL
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, unk_token=unk, eos_token=eos, model_max_length=context
    )


def object_grid(scenes: list[Scene]) -> Tensor:
    """``(3, B, 3, 3)``: shape, colour and size in each cell of the grid, counted from 1; 0 where the cell is empty."""
    cells = torch.zeros(3, len(scenes), 3, 3, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for t in scene.things:
            found = (SHAPES.index(t.shape) + 1, COLOURS.index(t.colour) + 1, SIZES.index(t.size) + 1)
            cells[:, i, t.row, t.column] = torch.tensor(found)
    return cells


def _loss(learner: _Learner, tokenizer: PreTrainedTokenizerFast, step: int, settings: Settings) -> Tensor:
    """The loss of a step: its scenes, each with one of its five captions."""
    scenes = [draw_scene("train", step * settings.batch + i, settings.seed) for i in range(settings.batch)]
    texts: list[str] = []
    for i, scene in enumerate(scenes):
        rng = Rng("clip", WORLD, settings.seed, step, i)
        texts.append(rng.pick(captions(scene, rng)))
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    clip, pixels = learner.clip, pixels_of(render_many(scenes))
    if learner.patches:  # bicubic, as the surrogate's image processor resizes
        pixels = F.interpolate(pixels, size=(IMAGE, IMAGE), mode="bicubic", antialias=True).clamp(-1, 1)
    vision = clip.vision_model(pixels, output_hidden_states=True)
    image = clip.visual_projection(vision.pooler_output)
    encoded = clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    text = clip.text_projection(encoded.pooler_output)
    read = vision.hidden_states[-2][:, 1:] if learner.patches else image
    logits = [head(read) if learner.patches else head(read).unflatten(1, (9, -1)) for head in learner.heads]
    return _contrastive_loss(clip, image, text, texts) + _dense_loss(logits, scenes)


def _contrastive_loss(clip: CLIPModel, image: Tensor, text: Tensor, texts: list[str]) -> Tensor:
    """The mean over both directions, for embeddings (B, 64)."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = clip.logit_scale.clamp(max=math.log(100)).exp() * image @ text.T
    # Two scenes may have the same caption: both are then equally right.
    same = torch.tensor([[a == b for b in texts] for a in texts], dtype=torch.float32)
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _dense_loss(logits: list[Tensor], scenes: list[Scene]) -> Tensor:
    """Mean cross-entropy of shape, colour and size, from logits (B, cells or patches, classes); empty cells count a fifth."""
    repeats = math.isqrt(logits[0].shape[1]) // 3
    targets = object_grid(scenes).repeat_interleave(repeats, 2).repeat_interleave(repeats, 3).flatten(2)
    weight = torch.where(targets[0] > 0, 1.0, 0.2)
    losses = [
        F.cross_entropy(guess.transpose(1, 2), target, reduction="none")
        for guess, target in zip(logits, targets, strict=True)
    ]
    return (torch.stack(losses).mean(0) * weight).sum() / weight.sum()
