"""Reading and resizing images: each protocol against the library that it is named after, on sizes up and down."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision import transforms

from dreambench.errors import DataError, UsageError
from dreambench.images import read_rgb
from dreambench.metrics.features import read_image
from dreambench.metrics.resize import RESIZERS, get_resizer, short_side_crop

sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


def as_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image[0].permute(1, 2, 0).numpy())


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_clean_equals_clean_fid(size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid imports with deprecated calls
        from cleanfid.resize import build_resizer

        theirs = build_resizer("clean")(noise(*size)[0].permute(1, 2, 0).numpy())
    ours = RESIZERS["clean"](noise(*size), 299)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_tf1_equals_torch_fidelity_bit_for_bit(size: tuple[int, int]) -> None:
    theirs = interpolate_bilinear_2d_like_tensorflow1x(noise(*size).float(), size=(299, 299), align_corners=False)
    assert torch.equal(RESIZERS["tf1"](noise(*size), 299), theirs)


@settings(max_examples=40, deadline=None)
@given(sizes.filter(lambda size: max(size) < 6 * min(size)), st.sampled_from([64, 256]))
def test_short_side_and_crop_equal_pillow_bit_for_bit(size: tuple[int, int], side: int) -> None:
    """One axis at a time, because the order of the two is not the same in all versions of Pillow."""
    height, width = size
    short = min(size)
    width, height = int(side * width / short), int(side * height / short)
    theirs = as_pillow(noise(*size)).resize((width, size[0]), Image.Resampling.BILINEAR)
    theirs = transforms.CenterCrop(side)(theirs.resize((width, height), Image.Resampling.BILINEAR))
    assert np.array_equal(short_side_crop(noise(*size), side)[0].permute(1, 2, 0).numpy(), np.asarray(theirs))


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (640, 427), (512, 512), (256, 256), (100, 180)])
def test_short_side_and_crop_equal_torchvision_on_sizes_that_occur(size: tuple[int, int]) -> None:
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(256)])(as_pillow(noise(*size)))
    assert np.array_equal(short_side_crop(noise(*size), 256)[0].permute(1, 2, 0).numpy(), np.asarray(theirs))


def test_dreamllm_is_the_crop_and_then_pytorch_fid() -> None:
    """As its fork of pytorch-fid does it: Pillow, ToTensor, bilinear, 2x - 1."""
    image = noise(512, 384)
    crop = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(256), transforms.ToTensor()])(
        as_pillow(image)
    )
    theirs = torch.nn.functional.interpolate(crop[None], size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
    torch.testing.assert_close(RESIZERS["dreamllm"](image, 299) / 127.5 - 1, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", sorted(RESIZERS))
def test_an_image_is_resized_the_same_alone_and_in_a_batch(name: str) -> None:
    batch = torch.cat([noise(90, 120), noise(90, 120).flip(2), noise(90, 120).flip(3)])
    together = RESIZERS[name](batch, 224)
    assert together.shape == (3, 3, 224, 224)
    assert together.dtype == torch.float32
    assert torch.equal(together[1:2], RESIZERS[name](batch[1:2], 224))


def test_names_and_inputs_are_checked() -> None:
    with pytest.raises(UsageError, match="lanczos"):
        get_resizer("lanczos")
    with pytest.raises(TypeError, match="uint8"):
        RESIZERS["clean"](torch.zeros(1, 3, 8, 8), 299)
    assert len({tuple(resizer.identity.items()) for resizer in RESIZERS.values()}) == len(RESIZERS)


def test_decoding_ignores_orientation_and_transparency(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (6, 4, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.png")), pixels[..., :3])
    assert read_image(tmp_path / "a.png").shape == (3, 6, 4)


def test_damaged_images_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    damaged = {"torn.png": whole[:4000], "flipped.png": bytes(flipped), "text.jpg": b"not an image", "empty.png": b""}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_rgb(tmp_path / name)
    with pytest.raises(DataError, match=r"absent\.png: no such image"):
        read_rgb(tmp_path / "absent.png")
