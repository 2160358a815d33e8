"""The resize protocols against clean-fid, torch-fidelity, TensorFlow 1, pytorch-fid and torchmetrics, on odd files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity.checks import Check, Exempt, leaves, problems, score_folder, uncovered, unnoticed

from dreambench.images import read_rgb

torch = pytest.importorskip("torch")
from dreambench.metrics.resize import RESIZERS  # noqa: E402

FOLDER = score_folder("resize")

LOSSLESS, LOSSY = 1e-3, 2.0  # README; decoders of lossy files differ by version
SIDE = 299
SAMPLES = [  # README: row, column, channel, modulo the shape
    *[(0, 0, 0), (0, 298, 1), (298, 0, 2), (298, 298, 0), (149, 149, 1)],
    *[(37, 211, 2), (211, 37, 0), (100, 200, 1), (250, 13, 2), (5, 290, 0)],
]
ROWS = 140  # arrays hold the rows from here on
PIPELINES = {
    "cleanfid_pil_bicubic_f32": "clean",
    "torchfidelity_tf1_bilinear_f32": "tf1",
    "real_tensorflow_2.21.0_v1_resize_bilinear": "tf1",
    "cleanfid_legacy_pytorch_bilinear_f32": "pytorch",
    "pytorchfid_bilinear_then_2x_minus_1_f32": "pytorch",
    "torchmetrics_antialias_bilinear_f32": "torchmetrics",
    "torchmetrics_antialias_bilinear": "torchmetrics",
}

EXEMPT = [
    Exempt("expected.json:*/sha256", "informational, says the fixtures' README: one last place changes it"),
    Exempt("expected.json:*/max_abs_diff_vs_torchfidelity_rows140_151", "a comparison of two other programs"),
    Exempt(
        "expected.json:*/exif_orientation", "says what the file holds; decoding ignores it, which decoded_rgb shows"
    ),
    Exempt("expected.json:*/mode", "says what the file holds; decoding makes it RGB"),
    *(
        Exempt(f"expected.json:{name}", "the versions that recorded the values")
        for name in ("pillow", "torch", "numpy")
    ),
]


@functools.cache
def load(folder: Path) -> Any:
    return json.loads((folder / "expected.json").read_text())


def pipeline(name: str, rgb: np.ndarray) -> np.ndarray | None:
    """Our (height, width, 3) for a pipeline of the fixtures, None for a name that is none."""
    if name == "decoded_rgb":
        return rgb
    resizer = next((ours for theirs, ours in PIPELINES.items() if name.startswith(theirs)), None)
    if resizer is None:
        return None
    resized = RESIZERS[resizer](torch.from_numpy(rgb).permute(2, 0, 1)[None], SIDE)
    if "2x_minus_1" in name:
        resized = resized / 127.5 - 1
    return resized[0].permute(1, 2, 0).numpy()


def image_checks(folder: Path, image: str, recorded: dict[str, Any]) -> list[Check]:
    rgb = np.array(read_rgb(folder / "images" / image))
    lossy = Path(image).suffix.lower() in (".jpg", ".jpeg") or (
        Path(image).suffix == ".webp" and "lossless" not in image
    )
    checks = [Check(f"expected.json:images/{image}/size_wh", recorded["size_wh"], [rgb.shape[1], rgb.shape[0]])]
    ours = {name: values for name in recorded if (values := pipeline(name, rgb)) is not None}
    for name, values in ours.items():
        unit = 1 / 127.5 if "2x_minus_1" in name else 1.0
        tolerance = unit * (LOSSY if lossy else LOSSLESS)
        wide = values.astype(np.float64)
        described = {
            "shape": list(values.shape), "dtype": str(values.dtype), "mean": wide.mean(), "std": wide.std(),
            "min": wide.min(), "max": wide.max(), "samples": [values[tuple(np.mod(at, values.shape))] for at in SAMPLES],
        }  # fmt: skip
        for field, value in recorded[name].items():
            if field in described:
                exact = field in ("shape", "dtype")
                key = f"expected.json:images/{image}/{name}/{field}"
                checks.append(Check(key, value, described[field], atol=0.0 if exact else tolerance))
    with np.load(folder / "arrays" / f"{image}.npz") as arrays:
        for name in arrays:
            array, values = arrays[name], ours.get(name)
            tolerance = LOSSY if lossy else LOSSLESS
            if name == "decoded_rgb_sub":
                values = rgb[:: max(1, rgb.shape[0] // 20), :: max(1, rgb.shape[1] // 20)]
            elif name == "FULL_cleanfid_pil_bicubic_u8_rounded":
                # A grey level of rounding, where our value and clean-fid's lie on two sides of a half.
                values, tolerance = ours["cleanfid_pil_bicubic_f32"].round(), max(tolerance, 1.0)
            elif values is not None:
                values = values[ROWS : ROWS + len(array)]
                tolerance *= 1 / 127.5 if "2x_minus_1" in name else 1.0
            if values is not None:
                checks.append(Check(f"arrays/{image}.npz:{name}", np.ascontiguousarray(array), values, atol=tolerance))
    return checks


@functools.cache
def checks(folder: Path) -> list[Check]:
    return [
        check for image, recorded in load(folder)["images"].items() for check in image_checks(folder, image, recorded)
    ]


def keys(folder: Path) -> list[str]:
    names = list(leaves(load(folder), "expected.json"))
    for path in sorted((folder / "arrays").glob("*.npz")):
        with np.load(path) as arrays:
            names += [f"arrays/{path.name}:{array}" for array in arrays]
    return names


def test_agrees_with_recorded_values() -> None:
    assert problems(checks(FOLDER)) == []


def test_every_recorded_value_is_compared_or_exempt() -> None:
    assert uncovered(keys(FOLDER), checks(FOLDER), EXEMPT) == []


def test_an_error_of_ten_tolerances_is_noticed() -> None:
    assert unnoticed(checks(FOLDER)) == []
