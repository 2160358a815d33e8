"""A few images with captions and questions, and a recipe of each stage that trains on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 200), "yellow": (230, 200, 60)}


def write_pairs(folder: Path, count: int = 12) -> None:
    """`pairs.jsonl`, `talk.json` and `images/` in a folder."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    pairs, talks = [], []
    for index in range(count):
        name, colour = list(COLOURS.items())[index % len(COLOURS)]
        pixels = rng.integers(0, 30, (40, 48, 3)).astype(np.uint8) + np.array(colour, np.uint8)
        file = f"{index}.png"
        Image.fromarray(pixels).save(folder / "images" / file)
        pairs.append({"image": file, "caption": f"a {name} square number {index}"})
        turns = [{"from": "human", "value": "<image>\nWhat color?"}, {"from": "gpt", "value": name}]
        talks.append({"id": str(index), "image": file, "conversations": turns})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "talk.json").write_text(json.dumps(talks))


PROJECTORS = ["visual_projector", "condition_projector", "dream_queries"]
STAGES: dict[str, tuple[list[str], dict[str, Any], list[tuple[str, dict[str, Any]]]]] = {
    "comprehension": (["visual_projector"], {"weight_vm": 0.0}, [("pairs", {"mode": "comprehension"})]),
    "generation": (["condition_projector", "dream_queries"], {"weight_lm": 0.0}, [("pairs", {"mode": "generation"})]),
    "igpt": ([*PROJECTORS, "language_model"], {"drop_probability": 0.3}, [("pairs", {"mode": "either"})]),
    "sft": (
        [*PROJECTORS, "language_model"],
        {"snr_gamma": 5.0, "noise_offset": 0.1},
        [("pairs", {"mode": "either", "weight": 1.0}), ("conversations", {"weight": 1.0})],
    ),
}


def recipe_dict(stage: str, folder: Path, start: Path, output: Path, **trainer: Any) -> dict[str, Any]:
    """A recipe of this stage for the files of `write_pairs` in `folder`, from the checkpoint `start`."""
    train, loss, kinds = STAGES[stage]
    files = {"pairs": "pairs.jsonl", "conversations": "talk.json"}
    sources = [
        {"kind": kind, "path": str(folder / files[kind]), "images": str(folder / "images"), **more}
        for kind, more in kinds
    ]
    defaults = {
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return {
        "stage": stage,
        "start": {"checkpoint": str(start)},
        "output": str(output),
        "train": train,
        "loss": loss,
        "data": {"max_length": 256, "seed": 5, "sources": sources, "cache": str(folder / "cache")},
        "trainer": defaults | trainer,
    }
