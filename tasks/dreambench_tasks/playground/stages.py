"""What ``dreambench playground build DIR --stage NAME`` does, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dreambench.progress import progress_bar, say

__all__ = ["STAGES", "build_clip_stage"]


def build_clip_stage(directory: str | Path, seed: int = 0) -> Path:
    """Train playground-clip into ``directory/clip`` (about 11 minutes on one core), measure it and write its model card."""
    from transformers.utils import logging

    from dreambench_tasks.playground.clip import STEPS, build_clip
    from dreambench_tasks.playground.clip_evaluation import evaluate_clip, write_card

    logging.disable_progress_bar()
    with progress_bar("playground-clip") as update:
        folder = build_clip(directory, STEPS, seed, report=lambda step, _: update(step, STEPS))
    scores = evaluate_clip(folder)
    for name, value in scores.items():
        say(f"{name}: {value}")
    say(f"wrote {write_card(folder, scores)}")
    return folder


STAGES: dict[str, Callable[..., Path]] = {"clip": build_clip_stage}
