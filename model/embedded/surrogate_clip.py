"""Two small CLIPs (transformers' ``CLIPModel``): the surrogate for CLIP ViT-L/14, and ``playground-clip``, the feature extractor.

Both are trained contrastively (Radford et al. 2021, section 2.3) with an additional objective that 400 million pairs make unnecessary and
some thousand steps do not. The surrogate, whose image tower DreamLLM uses, predicts from each patch token that DreamLLM reads (hidden
state -2) which patch it is, and the shape, colour and size of the object in its cell of the 3 x 3 grid, by linear layers that are
discarded afterwards. In the extractor, the first 26 features of an image regress what it holds, each fact with unit variance, so that a
distance between embeddings tells shapes, counts and places apart as well as colours.

Shapes: B batch, P patches, D width.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from dreambench_tasks.playground.language import PLACES, captions, narrative, place
from dreambench_tasks.playground.render import SIDE, render_many
from dreambench_tasks.playground.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, WORLD, Rng, Scene, Thing, draw_scene
from loop import Settings, finish, is_finished, pixels_of, reproducible, train

__all__ = ["CONTEXT", "WIDTH", "build_clip", "build_encoder", "clip_tokenizer", "kind_of"]

CLIP = Settings(steps=2000, batch=96, learning_rate=1e-3)
ENCODER = Settings(steps=1800, batch=128, learning_rate=1e-3)
FACTS_WEIGHT = 4.0  # of the squared error of the extractor's first features
FACTS_FROM = 4096  # scenes, which give each fact its mean and deviation
CONTEXT = 36  # text tokens of the surrogate: enough for every short caption, not for narratives
WIDTH, FEATURES = 128, 64
IMAGE, PATCH = 96, 16  # pixels of the surrogate: 64 enlarged, so that a cell of the grid is 2 x 2 patches
HALF = [0.5, 0.5, 0.5]


def build_clip(directory: Path) -> Path:
    """Train playground-clip into ``directory/clip``: half-precision weights, tokenizer, image processor, ``training.json``."""
    folder = directory / "clip"
    if is_finished(folder):
        return folder
    with reproducible(CLIP.seed):
        learner = _Learner(context=77, patches=False, num_hidden_layers=4, image_size=SIDE, patch_size=8)
        losses = train(folder, learner, lambda step: learner.loss(CLIP, step), CLIP)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "numpy"))
    record = {"world": WORLD, "versions": versions, "steps": CLIP.steps, "seed": CLIP.seed, "losses": losses}
    (folder / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(image_mean=HALF, image_std=HALF, size=size, crop_size=size, do_center_crop=False)
    finish(folder, learner.tokenizer, images, learner.clip.half())
    return folder


def build_encoder(directory: Path) -> None:
    """Train the surrogate into ``directory/encoder`` (model, tokenizer, image processor)."""
    folder = directory / "encoder"
    if is_finished(folder):
        return
    with reproducible(ENCODER.seed):
        learner = _Learner(CONTEXT, patches=True, num_hidden_layers=5, image_size=IMAGE, patch_size=PATCH)
        train(folder, learner, lambda step: learner.loss(ENCODER, step), ENCODER)
    crop = {"height": IMAGE, "width": IMAGE}
    images = CLIPImageProcessorPil(image_mean=HALF, image_std=HALF, size={"shortest_edge": IMAGE}, crop_size=crop)
    finish(folder, learner.tokenizer, images, learner.clip)


class _Learner(nn.Module):
    """CLIP and, with ``patches``, the layers by which patch tokens predict where they are and what is in their cell; class 0 is nothing."""

    def __init__(self, context: int, patches: bool, **vision: int) -> None:
        super().__init__()
        self.tokenizer = clip_tokenizer(context)
        width = {"hidden_size": WIDTH, "num_attention_heads": 4, "projection_dim": FEATURES, "hidden_act": "gelu"}
        text = {"vocab_size": len(self.tokenizer), "intermediate_size": 384, "num_hidden_layers": 3}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
        config = CLIPConfig(
            text_config={**width, **text, **ids, "max_position_embeddings": context},
            vision_config={**width, "intermediate_size": 512, **vision},
            projection_dim=FEATURES,
        )
        self.clip = CLIPModel(config)
        # With so few tokens, the backward pass of fused attention takes four times as long on CPUs as that of plain products.
        self.clip.set_attn_implementation("eager")
        kinds = (SHAPES, COLOURS, SIZES) if patches else ()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(values) + 1) for values in kinds)
        self.position = nn.Linear(WIDTH, (IMAGE // PATCH) ** 2) if patches else None
        facts = _facts([draw_scene("train", index) for index in range(FACTS_FROM)])
        self.means, self.deviations = facts.mean(0), facts.std(0)

    def loss(self, settings: Settings, step: int) -> Tensor:
        """The loss of a step: its scenes, each with one of its five captions."""
        scenes = [draw_scene("train", step * settings.batch + i, settings.seed) for i in range(settings.batch)]
        rngs = [Rng("clip", WORLD, settings.seed, step, i) for i in range(settings.batch)]
        texts = [rng.pick(captions(scene, rng)) for scene, rng in zip(scenes, rngs, strict=True)]
        pixels = pixels_of(render_many(scenes))
        if self.position is not None:  # bicubic, as the surrogate's image processor resizes
            pixels = F.interpolate(pixels, size=(IMAGE, IMAGE), mode="bicubic", antialias=True).clamp(-1, 1)
        vision = self.clip.vision_model(pixels, output_hidden_states=True)
        image = self.clip.visual_projection(vision.pooler_output)
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        encoded = self.clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        text = self.clip.text_projection(encoded.pooler_output)
        loss = self._contrastive_loss(image, text, texts)
        if self.position is not None:
            patches = vision.hidden_states[-2][:, 1:]
            numbers = torch.arange(patches.shape[1]).expand(len(scenes), -1)
            loss = loss + F.cross_entropy(self.position(patches).transpose(1, 2), numbers)
            return loss + _dense_loss([head(patches) for head in self.heads], scenes)
        facts = (_facts(scenes) - self.means) / self.deviations
        return loss + FACTS_WEIGHT * F.mse_loss(image[:, : facts.shape[1]], facts)

    def _contrastive_loss(self, image: Tensor, text: Tensor, texts: list[str]) -> Tensor:
        """The mean over both directions, for embeddings (B, 64). Two scenes may have the same caption: both are then equally right."""
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        logits = self.clip.logit_scale.clamp(max=math.log(100)).exp() * image @ text.T
        same = torch.tensor([[a == b for b in texts] for a in texts], dtype=torch.float32)
        target = same / same.sum(dim=1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _facts(scenes: Sequence[Scene]) -> Tensor:
    """(B, 26): how often each shape, colour, size, place and background occurs."""
    names = (*SHAPES, *COLOURS, *SIZES, *chain(*PLACES), *BACKGROUNDS)
    rows: list[list[int]] = []
    for scene in scenes:
        found = Counter([scene.background])
        for thing in scene.things:
            found.update((thing.shape, thing.colour, thing.size, place(thing)))
        rows.append([found[name] for name in names])
    return torch.tensor(rows).float()


def _dense_loss(logits: list[Tensor], scenes: list[Scene]) -> Tensor:
    """Mean cross-entropy of shape, colour and size, from logits (B, patches, classes); empty cells count a fifth."""
    cells = torch.zeros(3, len(scenes), 3, 3, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            cells[:, i, thing.row, thing.column] = kind_of(thing)
    repeats = math.isqrt(logits[0].shape[1]) // 3
    targets = cells.repeat_interleave(repeats, 2).repeat_interleave(repeats, 3).flatten(2)
    weight = torch.where(targets[0] > 0, 1.0, 0.2)
    pairs = zip(logits, targets, strict=True)
    losses = [F.cross_entropy(guess.transpose(1, 2), target, reduction="none") for guess, target in pairs]
    return (torch.stack(losses).mean(0) * weight).sum() / weight.sum()


def kind_of(thing: Thing) -> Tensor:
    """(3,): shape, colour and size of an object, each counted from 1."""
    return torch.tensor([SHAPES.index(thing.shape), COLOURS.index(thing.colour), SIZES.index(thing.size)]) + 1


def clip_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """One token per word of captions and narratives; always the same."""
    split = pre_tokenizers.BertPreTokenizer()
    words: set[str] = set()
    for index in range(2000):
        scene, rng = draw_scene("train", index), Rng("words", WORLD, index)
        for text in (*captions(scene, rng), *narrative(scene, rng)):
            words.update(word for word, _ in split.pre_tokenize_str(text.lower()))
    # <eos> is 3: CLIP's pooling gives an eos_token_id of 2 another meaning.
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>", "eos_token": "<eos>"}
    vocabulary = {word: i for i, word in enumerate((*special.values(), *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=context, **special)
