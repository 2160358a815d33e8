"""The FID Inception network: torch-fidelity's blocks with the weights of the TensorFlow graph of 2015-12-05.

torch-fidelity, torchmetrics and pytorch-fid ship one file under two names; its SHA-256 begins with 6726825d. Only that file
gives a metric called `fid`; other weights of the shape are used under the name `inception-unverified:HASH`.
"""

from __future__ import annotations

import urllib.error
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch_fidelity import feature_extractor_inceptionv3 as blocks

from dreambench.errors import MissingWeightsError
from dreambench.files import sha256_file
from dreambench.metrics.networks import exact_float32, fold_batch_norm, load_strictly, read_weights
from dreambench.metrics.resize import Scaling

__all__ = ["InceptionExtractor", "build_network", "load_inception"]

HASH = "6726825d"
FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")


def build_network() -> nn.Sequential:
    """The network as a plain sequence: input (N, 3, 299, 299) scaled to about -1..1; `fc` (2048 -> 1008) is its last part.

    The names are torch-fidelity's and pytorch-fid's, so the state dictionaries are interchangeable.
    """
    conv = blocks.BasicConv2d
    return nn.Sequential(
        OrderedDict(
            Conv2d_1a_3x3=conv(3, 32, kernel_size=3, stride=2),
            Conv2d_2a_3x3=conv(32, 32, kernel_size=3),
            Conv2d_2b_3x3=conv(32, 64, kernel_size=3, padding=1),
            MaxPool_1=nn.MaxPool2d(kernel_size=3, stride=2),
            Conv2d_3b_1x1=conv(64, 80, kernel_size=1),
            Conv2d_4a_3x3=conv(80, 192, kernel_size=3),
            MaxPool_2=nn.MaxPool2d(kernel_size=3, stride=2),
            Mixed_5b=blocks.InceptionA(192, pool_features=32),
            Mixed_5c=blocks.InceptionA(256, pool_features=64),
            Mixed_5d=blocks.InceptionA(288, pool_features=64),
            Mixed_6a=blocks.InceptionB(288),
            Mixed_6b=blocks.InceptionC(768, channels_7x7=128),
            Mixed_6c=blocks.InceptionC(768, channels_7x7=160),
            Mixed_6d=blocks.InceptionC(768, channels_7x7=160),
            Mixed_6e=blocks.InceptionC(768, channels_7x7=192),
            Mixed_7a=blocks.InceptionD(768),
            Mixed_7b=blocks.InceptionE_1(1280),
            Mixed_7c=blocks.InceptionE_2(2048),
            AvgPool=nn.AdaptiveAvgPool2d(1),
            Flatten=nn.Flatten(),
            fc=nn.Linear(2048, 1008),
        )
    )


class InceptionExtractor:
    """Features (N, 2048): the average-pooled last layer. Input 299 x 299.

    Batch norm is folded into the convolutions, average pools stand behind their 1 x 1 convolutions, and the network runs in
    channels_last: 1.7 times as fast as torch-fidelity's, features within 1e-6.
    """

    dim = 2048
    input_size = 299

    def __init__(self, path: Path, *, device: torch.device) -> None:
        digest = sha256_file(path)
        self.verified = digest.startswith(HASH)
        self.name = "inception" if self.verified else f"inception-unverified:{digest[:8]}"
        self.identity: dict[str, Any] = {
            "extractor": "inception",
            "weights_sha256": digest,
            "input_size": self.input_size,
            "layer": "pool3 (2048)",
            "normalisation": "the resize protocol's inception_scaling",
        }
        self.device = device
        with torch.device("meta"):
            network = build_network()
        load_strictly(network, read_weights(path), path)
        for module in network.modules():
            if isinstance(module, blocks.BasicConv2d):
                fold_batch_norm(module.conv, module.bn)
                setattr(module, "bn", nn.Identity())  # noqa: B010 - the block declares a BatchNorm2d
        self._last: Tensor = network.get_parameter("fc.weight").to(device)
        body = _pool_after_convolution(network[:-1].eval())
        self._body = body.to(device=device).to(memory_format=torch.channels_last)

    def __call__(self, pixels: Tensor, scaling: Scaling) -> Tensor:
        scaled = (pixels - 128) / 128 if scaling == "tf1" else pixels / 127.5 - 1
        with exact_float32(self.device):
            return self._body(scaled.contiguous(memory_format=torch.channels_last))

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, 1008) without bias, from features: what the Inception Score is computed on."""
        with exact_float32(self.device):
            return features.to(self.device) @ self._last.T


def _pool_after_convolution(body: nn.Module) -> fx.GraphModule:
    """Swap each average pool with the 1 x 1 convolution that follows it: the two commute, and there are fewer channels behind."""
    traced = fx.symbolic_trace(body)
    for pool in traced.graph.find_nodes(op="call_function", target=F.avg_pool2d):
        [convolution] = pool.users
        module = traced.get_submodule(str(convolution.target))
        if not (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            raise RuntimeError(f"expected a 1 x 1 convolution behind {pool.name}, found {convolution.target}")
        convolution.replace_all_uses_with(pool)
        convolution.replace_input_with(pool, pool.args[0])
        pool.replace_input_with(pool.args[0], convolution)
        convolution.append(pool)
    traced.graph.lint()
    traced.recompile()
    return traced


def load_inception(location: str | None, *, device: torch.device, offline: bool) -> InceptionExtractor:
    """From a file, or from the torch hub cache, which is filled by a download unless `offline`."""
    if location is not None:
        path = Path(location).expanduser()
        if not path.is_file():
            raise MissingWeightsError(f"--features inception:{location}: no such file")
        return InceptionExtractor(path, device=device)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    path = found or _download(folder, offline)
    extractor = InceptionExtractor(path, device=device)
    if not extractor.verified:
        raise MissingWeightsError(
            f"{path}: its SHA-256 does not begin with {HASH}, so it is not the FID Inception network; delete it, or use it "
            f"under another metric's name with --features inception:{path}"
        )
    return extractor


def _download(folder: Path, offline: bool) -> Path:
    target = folder / FILES[0]
    ways_out = (
        f"put {FILES[0]} or {FILES[1]} there, name a file with --features inception:PATH, or choose "
        "--features efficientnet-lite0, clip:DIR or dinov2:DIR"
    )
    if offline:
        raise MissingWeightsError(f"the FID Inception weights are not in {folder} (and --offline is set): {ways_out}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(blocks.URL_INCEPTION_V3, str(target), hash_prefix=HASH, progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise MissingWeightsError(
            f"the FID Inception weights are not in {folder} and could not be downloaded from {blocks.URL_INCEPTION_V3} "
            f"({error}): {ways_out}"
        ) from error
    return target
