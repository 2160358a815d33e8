"""Vision transformers of transformers as feature extractors (FD-CLIP, FD-DINOv2), and CLIP as a scorer of captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Model,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from dreambench.errors import DataError, MissingWeightsError
from dreambench.files import sha256_file
from dreambench.metrics.networks import exact_float32
from dreambench.metrics.resize import RESIZERS, Scaling
from dreambench.threads import threads_for

__all__ = ["ClipExtractor", "ClipScorer", "Dinov2Extractor"]


class _FolderExtractor:
    """What both have in common: normalisation and input size from the folder, weights that are all there."""

    def __init__(self, folder: Path, model: type[PreTrainedModel], kind: str, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self.input_size, mean, std = _preprocessing(folder)
        self._model = _load(model, folder, device)
        self._mean = 255 * torch.tensor(mean, device=device)[:, None, None]
        self._std = 255 * torch.tensor(std, device=device)[:, None, None]
        digest = sha256_file(folder / "model.safetensors")
        self.name = f"{kind}:{digest[:8]}"
        self.identity: dict[str, Any] = {
            "extractor": kind,
            "weights_sha256": digest,
            "config": _hashed_config(folder),
            "input_size": self.input_size,
            "normalisation": {"mean": mean, "std": std},
        }

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels - self._mean) / self._std


class ClipExtractor(_FolderExtractor):
    """CLIP's projected image embedding, not normalised to length 1. `name` is `clip:HASH` unless the folder has a name."""

    def __init__(self, folder: Path, *, device: torch.device, name: str | None = None) -> None:
        super().__init__(folder, _clip_class(folder), "clip", device)
        self.name = name or self.name
        self.identity["layer"] = "image_embeds"
        self.dim: int = self._model.visual_projection.out_features
        size = self._model.vision_model.config.image_size
        if size != self.input_size:
            raise DataError(
                f"{folder}: the model takes {size} pixels but preprocessor_config.json says {self.input_size}"
            )

    def __call__(self, pixels: Tensor, scaling: Scaling) -> Tensor:
        with exact_float32(self.device), threads_for(self._model):
            vision = self._model.vision_model(pixel_values=self._normalised(pixels))
            return self._model.visual_projection(vision.pooler_output)


class Dinov2Extractor(_FolderExtractor):
    """DINOv2's class token after the last layer norm (Stein et al. 2023)."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        super().__init__(folder, Dinov2Model, "dinov2", device)
        self.identity["layer"] = "class token"
        self.dim: int = self._model.config.hidden_size

    def __call__(self, pixels: Tensor, scaling: Scaling) -> Tensor:
        with exact_float32(self.device):
            return self._model(pixel_values=self._normalised(pixels)).last_hidden_state[:, 0]


class ClipScorer:
    """Image and text features of one CLIP folder, for CLIPScore and for choosing among candidates.

    Images: antialiased bicubic to a square of the input size (`clean`). Texts are cut at the model's length, 77 tokens for
    the published ones: `truncated` counts how many were, because a cut caption is another caption.
    """

    def __init__(self, folder: str | Path, *, device: str | torch.device = "cpu") -> None:
        self.folder = Path(folder)
        self.device = torch.device(device)
        self.input_size, mean, std = _preprocessing(self.folder)
        self._model = _load(CLIPModel, self.folder, self.device)
        self._tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        self._mean = 255 * torch.tensor(mean, device=self.device)[:, None, None]
        self._std = 255 * torch.tensor(std, device=self.device)[:, None, None]
        self.truncated = 0
        self.identity: dict[str, Any] = {
            "clip_sha256": sha256_file(self.folder / "model.safetensors"),
            "config": _hashed_config(self.folder),
            "input_size": self.input_size,
            "resize": RESIZERS["clean"].identity,
            "normalisation": {"mean": mean, "std": std},
        }

    def image_features(self, images: Tensor) -> Tensor:
        """Projected features (N, d) float32 of images uint8 (N, 3, height, width)."""
        pixels = RESIZERS["clean"](images.to(self.device), self.input_size)
        with exact_float32(self.device), threads_for(self._model):
            vision = self._model.vision_model(pixel_values=(pixels - self._mean) / self._std)
            return self._model.visual_projection(vision.pooler_output)

    def text_features(self, texts: list[str]) -> Tensor:
        """Projected features (N, d) float32 of texts."""
        length: int = self._model.config.text_config.max_position_embeddings
        self.truncated += sum(len(ids) > length for ids in self._tokenizer(texts, verbose=False)["input_ids"])
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        with exact_float32(self.device), threads_for(self._model):
            text = self._model.text_model(
                input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
            )
            return self._model.text_projection(text.pooler_output)


def _clip_class(folder: Path) -> type[PreTrainedModel]:
    """A whole CLIP, or its vision half with projection; a whole one keeps the projection's width in another place."""
    path = folder / "config.json"
    if not path.is_file():
        raise MissingWeightsError(f"{folder}: not a model folder of transformers, {path.name} is missing")
    try:
        kind = json.loads(path.read_text())["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: needs model_type ({error!r})") from error
    classes: dict[str, type[PreTrainedModel]] = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
    if kind not in classes:
        raise DataError(f"{path}: a {kind!r} model is not a CLIP; the accepted ones are {', '.join(classes)}")
    return classes[kind]


def _load(model: type[PreTrainedModel], folder: Path, device: torch.device) -> Any:
    """The model in float32; a missing or misshapen tensor is an error, where transformers would draw a random one."""
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise MissingWeightsError(f"{folder}: not a model folder of transformers, {name} is missing")
    transformers_logging.disable_progress_bar()
    loaded: Any = model.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    network, info = loaded
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            first = sorted(map(str, info[problem]))[0]
            raise DataError(
                f"{folder}: not the weights of a {model.__name__}: {problem.replace('_', ' ')}, first {first}"
            )
    return network.to(device).eval().requires_grad_(False)


def _preprocessing(folder: Path) -> tuple[int, list[float], list[float]]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise MissingWeightsError(f"{folder}: not a model folder of transformers, {path.name} is missing")
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        size = config.get("crop_size") or config["size"]
        side = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
        return int(side), [float(x) for x in config["image_mean"]], [float(x) for x in config["image_std"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: needs crop_size or size, image_mean and image_std ({error!r})") from error


def _hashed_config(folder: Path) -> str:
    """Attention heads and activation change features but are not in the weights."""
    return sha256_file(folder / "config.json")
