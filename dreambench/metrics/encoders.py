"""Vision transformers of transformers as feature extractors (FD-CLIP, FD-DINOv2), and CLIP as a scorer of captions."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection, Dinov2Model, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dreambench.adapters.torch_tools import exact_float32, load_pretrained, threads_for
from dreambench.errors import DataError, MissingWeightsError
from dreambench.files import read_json, sha256_file
from dreambench.metrics.resize import RESIZERS, Scaling
from dreambench.records import ImageSettings, parse

__all__ = ["ClipExtractor", "ClipScorer", "Dinov2Extractor"]


class _Encoder:
    """A network of transformers in float32, with input size and normalisation from preprocessor_config.json.

    transformers' image processors are not used: they resize, which the protocol fixes, and have defaults for missing values.
    """

    def __init__(self, folder: Path, model: type[PreTrainedModel], kind: str, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self.input_size, mean, std = _preprocessing(folder)
        for name in ("config.json", "model.safetensors"):
            _file(folder, name)
        transformers_logging.disable_progress_bar()
        self._model: Any = load_pretrained(model, folder, torch.float32).to(device).requires_grad_(False)
        self._mean = 255 * torch.tensor(mean, device=device)[:, None, None]
        self._std = 255 * torch.tensor(std, device=device)[:, None, None]
        digest = sha256_file(folder / "model.safetensors")
        self.name = f"{kind}:{digest[:8]}"
        self.identity: dict[str, Any] = {
            "extractor": kind,
            "weights_sha256": digest,
            # Attention heads and activation change features but are not in the weights.
            "config": sha256_file(folder / "config.json"),
            "input_size": self.input_size,
            "normalisation": {"mean": mean, "std": std},
        }

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels - self._mean) / self._std


class ClipExtractor(_Encoder):
    """CLIP's projected image embedding, not normalised to length 1. The default `name` is `clip:HASH`.

    `has_text` says whether the folder also has the text tower and its tokenizer. Texts are truncated to the model's context (77
    tokens in the published ones); `truncated` counts them.
    """

    def __init__(self, folder: Path, *, device: torch.device, name: str | None = None) -> None:
        model = _clip_class(folder)
        super().__init__(folder, model, "clip", device)
        self.name = name or self.name
        self.identity["layer"] = "image_embeds"
        self.dim: int = self._model.visual_projection.out_features
        self.has_text = model is CLIPModel and (folder / "tokenizer.json").is_file()
        self.truncated = 0
        size = self._model.vision_model.config.image_size
        if size != self.input_size:
            raise DataError(
                f"{folder}: the model takes {size} pixels but preprocessor_config.json says {self.input_size}"
            )

    def __call__(self, pixels: Tensor, scaling: Scaling) -> Tensor:
        with exact_float32(self.device), threads_for(self._model):
            vision = self._model.vision_model(pixel_values=self._normalised(pixels))
            return self._model.visual_projection(vision.pooler_output)

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)

    def text_features(self, texts: list[str]) -> Tensor:
        """Projected features (N, dim) float32 of texts."""
        length: int = self._model.config.text_config.max_position_embeddings
        self.truncated += sum(len(ids) > length for ids in self._tokenizer(texts, verbose=False)["input_ids"])
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        with exact_float32(self.device), threads_for(self._model):
            text = self._model.text_model(
                input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
            )
            return self._model.text_projection(text.pooler_output)


class Dinov2Extractor(_Encoder):
    """DINOv2's class token after the last layer norm (Stein et al. 2023)."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        super().__init__(folder, Dinov2Model, "dinov2", device)
        self.identity["layer"] = "class token"
        self.dim: int = self._model.config.hidden_size

    def __call__(self, pixels: Tensor, scaling: Scaling) -> Tensor:
        with exact_float32(self.device):
            return self._model(pixel_values=self._normalised(pixels)).last_hidden_state[:, 0]


class ClipScorer(ClipExtractor):
    """Image and text features of one CLIP folder, for choosing among candidates by CLIPScore.

    Images are resized to a square of the input size by antialiased bicubic (`clean`).
    """

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        super().__init__(folder, device=device)
        if not isinstance(self._model, CLIPModel):
            raise DataError(f"{folder}: only the vision half of a CLIP; CLIPScore needs its text tower too")
        try:
            _ = self._tokenizer
        except (OSError, ValueError) as error:
            raise MissingWeightsError(
                f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}); CLIPScore needs it"
            ) from error
        self.identity = {
            "clip_sha256": self.identity["weights_sha256"],
            "config": self.identity["config"],
            "input_size": self.input_size,
            "resize": RESIZERS["clean"].identity,
            "normalisation": self.identity["normalisation"],
        }

    def image_features(self, images: Tensor) -> Tensor:
        """Projected features (N, dim) float32 of images uint8 (N, 3, height, width)."""
        return self(RESIZERS["clean"](images.to(self.device), self.input_size), "tf1")


def _clip_class(folder: Path) -> type[PreTrainedModel]:
    """A whole CLIP, or its vision half with projection."""
    path = _file(folder, "config.json")
    classes: dict[str, type[PreTrainedModel]] = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
    try:
        kind = read_json(path)["model_type"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: needs model_type ({error!r})") from error
    if kind not in classes:
        raise DataError(f"{path}: a {kind!r} model is not a CLIP; the accepted ones are {', '.join(classes)}")
    return classes[kind]


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise MissingWeightsError(f"{folder}: not a model folder of transformers, {name} is missing")
    return folder / name


def _preprocessing(folder: Path) -> tuple[int, list[float], list[float]]:
    """Input size, mean and standard deviation."""
    path = _file(folder, "preprocessor_config.json")
    try:
        config: Any = read_json(path)
        parse(ImageSettings, config, DataError, str(path))
        size = config.get("crop_size") or config["size"]
        side = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
        return int(side), [float(x) for x in config["image_mean"]], [float(x) for x in config["image_std"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: needs crop_size or size, image_mean and image_std ({error!r})") from error
