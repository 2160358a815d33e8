"""CLIPScore and RefCLIPScore against the official code, with the features given."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from parity.checks import Check, Exempt, leaves, problems, score_folder, uncovered, unnoticed

from dreambench.metrics.set_metrics import clip_scores, cosine_similarities, ref_clip_scores

FOLDER = score_folder("clipscore")

TOLERANCE = 1e-5  # README
EXEMPT = [Exempt("*.npz:*", "an input")]


@functools.cache
def load(folder: Path) -> Any:
    return json.loads((folder / "expected.json").read_text())


@functools.cache
def checks(folder: Path) -> list[Check]:
    checks: list[Check] = []
    for case, expected in load(folder).items():
        with np.load(folder / f"{case}.npz") as arrays:
            image, text, references = (arrays[name].astype(np.float32) for name in ("image", "text", "refs"))
        cosine = cosine_similarities(image, text)
        ours = {
            "CLIPScore": clip_scores(image, text),
            "CLIPScore_mean": clip_scores(image, text).mean(),
            "RefOnly_text": cosine_similarities(text[:, None], references).max(axis=1),
            "RefCLIPScore": ref_clip_scores(image, text, references),
            "RefCLIPScore_mean": ref_clip_scores(image, text, references).mean(),
            "cosine": cosine,
            "torchmetrics_style_100cos_mean_then_clamp": max(100 * cosine.mean(), 0.0),
            "clip_sim_mean_x100_unclamped": 100 * cosine.mean(),
        }
        for name, value in expected.items():
            if name in ours:
                # The last two are 100 times a cosine.
                scale = 100 if "100" in name else 1
                checks.append(Check(f"expected.json:{case}/{name}", value, ours[name], atol=scale * TOLERANCE))
    return checks


def keys(folder: Path) -> list[str]:
    names = list(leaves(load(folder), "expected.json"))
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            names += [f"{path.name}:{array}" for array in arrays]
    return names


def test_agrees_with_recorded_values() -> None:
    assert problems(checks(FOLDER)) == []


def test_every_recorded_value_is_compared_or_exempt() -> None:
    assert uncovered(keys(FOLDER), checks(FOLDER), EXEMPT) == []


def test_an_error_of_ten_tolerances_is_noticed() -> None:
    assert unnoticed(checks(FOLDER)) == []
