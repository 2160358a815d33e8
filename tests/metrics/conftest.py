"""A random Inception of the true shape, and images, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from metrics.images import draw_image


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that keep the signal's size through 20 layers, so that an error in any layer shows in the features."""
    torch = pytest.importorskip("torch")
    from dreambench.metrics.convolutional import build_network

    generator = torch.Generator().manual_seed(0)
    network = build_network()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.7, 1.3, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "random-inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def image_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of PNG files, ten images each, 96 x 80."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    folders = (root / "real", root / "generated")
    for number, folder in enumerate(folders):
        folder.mkdir()
        for index in range(10):
            Image.fromarray(draw_image(100 * number + index, 80, 96)).save(folder / f"{index:03}.png")
    return folders
