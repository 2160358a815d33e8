"""Measure a playground-clip folder on scenes of the val split: the table of its model card. A function of its weights only.

python model/embedded/evaluate_clip.py [DIR]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedTokenizerFast

from dreambench.metrics.frechet import GaussianStatistics, frechet_distance
from dreambench_tasks.playground import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    WORLD,
    Rng,
    Scene,
    captions,
    clip_directory,
    draw_scene,
    render_many,
)
from evaluate import Share, as_markdown
from loop import pixels_of, reproducible

__all__ = ["evaluate_clip", "image_features", "text_features"]

GROUPS, CANDIDATES = 16, 64  # groups of 64 images with 64 different captions
PROBE_TRAIN, PROBE_VAL = 8000, 2000
DISTANCE_IMAGES = 1000


def evaluate_clip(folder: str | Path) -> dict[str, Any]:
    """Scores by name: retrieval and linear probes as shares, Fréchet distances as text."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    to_text, to_image = _retrieval(model, tokenizer)
    return {
        f"caption found for an image, R@1 among {CANDIDATES}": to_text,
        f"image found for a caption, R@1 among {CANDIDATES}": to_image,
        **{f"linear probe: {name}": share for name, share in _probes(model)},
        **{f"Fréchet distance, {name}": f"{value:.4f}" for name, value in _distances(model)},
    }


@torch.inference_mode()
def image_features(model: CLIPModel, images: NDArray[np.uint8]) -> Tensor:
    """Projected image embeddings of ``(N, 64, 64, 3)`` uint8, ``(N, 64)`` float32, not normalised."""
    batches = pixels_of(images).split(256)
    return torch.cat([model.visual_projection(model.vision_model(part).pooler_output) for part in batches]).float()


@torch.inference_mode()
def text_features(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Projected text embeddings, ``(N, 64)`` float32, not normalised."""
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    encoded = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return model.text_projection(encoded.pooler_output).float()


def _retrieval(model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> tuple[Share, Share]:
    """Each image against 64 different captions, one of which is its own, and the reverse."""
    indices = count()
    hits: tuple[list[float], list[float]] = [], []
    contents: list[str] = []
    for _ in range(GROUPS):
        group: dict[str, Scene] = {}
        while len(group) < CANDIDATES:
            index = next(indices)
            scene, rng = draw_scene("val", index), Rng("clip evaluation", WORLD, index)
            group.setdefault(rng.pick(captions(scene, rng)), scene)
        image = F.normalize(image_features(model, render_many(group.values())), dim=-1)
        scores = image @ F.normalize(text_features(model, tokenizer, list(group)), dim=-1).T
        truth = torch.arange(CANDIDATES)
        for found, dim in zip(hits, (1, 0), strict=True):
            found += (scores.argmax(dim=dim) == truth).tolist()
        contents += [scene.content for scene in group.values()]
    return Share(hits[0], contents), Share(hits[1], contents)


def _probes(model: CLIPModel) -> Iterator[tuple[str, Share]]:
    """Logistic regressions on the 64 features, trained on the train split; the object's attributes in scenes with one object."""
    train = [draw_scene("train", i, seed=1) for i in range(PROBE_TRAIN)]
    val = [draw_scene("val", i, seed=1) for i in range(PROBE_VAL)]
    x_train, x_val = (image_features(model, render_many(scenes)) for scenes in (train, val))

    singles, singles_val = ([i for i, s in enumerate(scenes) if len(s.things) == 1] for scenes in (train, val))
    everything, everything_val = list(range(PROBE_TRAIN)), list(range(PROBE_VAL))
    for name, rows, rows_val, label in (
        ("background", everything, everything_val, lambda s: BACKGROUNDS.index(s.background)),
        ("number of objects", everything, everything_val, lambda s: len(s.things) - 1),
        ("shape of a single object", singles, singles_val, lambda s: SHAPES.index(s.things[0].shape)),
        ("color of a single object", singles, singles_val, lambda s: COLOURS.index(s.things[0].colour)),
        ("size of a single object", singles, singles_val, lambda s: int(s.things[0].size == "large")),
        ("place of a single object", singles, singles_val, lambda s: 3 * s.things[0].row + s.things[0].column),
    ):
        labels, truth = (
            torch.tensor([label(scenes[i]) for i in index]) for scenes, index in ((train, rows), (val, rows_val))
        )
        found = _logistic(x_train[rows], labels, x_val[rows_val])
        yield name, Share((found == truth).tolist(), [val[i].content for i in rows_val])


def _logistic(x: Tensor, y: Tensor, x_new: Tensor) -> Tensor:
    """Classes of ``x_new`` by a multinomial logistic regression on standardised features."""
    mean, std = x.mean(dim=0), x.std(dim=0)
    classes = int(y.max()) + 1
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    x = (x - mean) / std
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y) + 1e-4 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return layer((x_new - mean) / std).argmax(dim=1)


def _distances(model: CLIPModel) -> Iterator[tuple[str, float]]:
    """From 1,000 val images to 1,000 others, intact and changed: with useful features the first distance is by far the smallest."""
    scenes, others = ([draw_scene("val", i, seed) for i in range(DISTANCE_IMAGES)] for seed in (2, 3))
    reference = _gaussian(model, render_many(scenes))
    images = render_many(others)
    noise = np.random.RandomState(0).randint(-24, 25, images.shape)
    for name, changed in (
        ("other images", images),
        ("first object left out in half of them", _half_changed(others, lambda s: s.things[1:])),
        ("first object red in half of them", _half_changed(others, lambda s: _first(s, colour="red"))),
        ("first object a star in half of them", _half_changed(others, lambda s: _first(s, shape="star"))),
        ("3 x 3 blur", _blurred(images)),
        ("noise of up to 24 levels", np.clip(images + noise, 0, 255).astype(np.uint8)),
        ("backgrounds only", render_many(replace(s, things=()) for s in others)),
    ):
        yield name, frechet_distance(_gaussian(model, changed), reference)


def _gaussian(model: CLIPModel, images: NDArray[np.uint8]) -> GaussianStatistics:
    return GaussianStatistics.from_features(image_features(model, images).numpy())


def _half_changed(scenes: list[Scene], things: Callable[[Scene], tuple[Any, ...]]) -> NDArray[np.uint8]:
    return render_many(replace(s, things=things(s)) if i % 2 else s for i, s in enumerate(scenes))


def _first(scene: Scene, **change: str) -> tuple[Any, ...]:
    return replace(scene.things[0], **change), *scene.things[1:]


def _blurred(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    padded = np.pad(images.astype(np.uint16), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    side = images.shape[1]
    total = sum(padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3))
    return (np.asarray(total) // 9).astype(np.uint8)


if __name__ == "__main__":
    with reproducible(0):
        print(as_markdown({"Scores": evaluate_clip(sys.argv[1] if len(sys.argv) > 1 else clip_directory())}))
