"""The embedded model's scores and its model card.

``dreambench playground evaluate CHECKPOINT`` prints the scores; ``dreambench playground build DIR`` ends by writing them, with the
recipes and the loss curves' ends, into ``DIR/embedded/README.md``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

import dreamllm
from dreambench.api import run
from dreambench.scores import Score
from dreambench_tasks.playground.evaluation import GUIDANCE, STEPS, painting, probe_accuracy, reading, stories
from dreambench_tasks.playground.probe import build_probe
from dreambench_tasks.playground.scene import WORLD
from dreambench_tasks.playground.standins.loop import one_thread

__all__ = ["evaluate", "write_card"]

Rows = dict[str, str]
Painter = Callable[[Sequence[str], Sequence[int]], NDArray[np.uint8]]


def evaluate(checkpoint: str | Path, work: str | Path, baseline: str | Path | None = None) -> dict[str, Rows]:
    """Scores by section, as text with n and 95 % intervals.

    Args:
        checkpoint: a DreamLLM folder.
        work: where the probe lies or is trained (about two minutes, once).
        baseline: folder of the stand-in Stable Diffusion, painted by its own pipeline from the same captions and seeds.
    """
    with one_thread():
        probe = build_probe(work)
        model, processor = dreamllm.load(checkpoint, dtype="float32")
        painter = _dreamllm_painter(model, processor)
        sections: dict[str, Rows] = {
            "Reading: benchmarks on the embedded data (val part)": _benchmarks(checkpoint),
            "Reading: single objects (test part)": _text(reading(model, processor)),
            f"Painting (test part, DDIM, {STEPS} steps, guidance {GUIDANCE:g})": _text(painting(painter, probe)),
            "Stories (requests of the val part)": _text(stories(model, processor, probe)),
        }
        if baseline is not None:
            sections["The same captions painted by the stand-in Stable Diffusion, the baseline"] = _text(
                painting(_pipeline_painter(baseline), probe)
            )
        sections["The judge of pictures itself, on real scenes (test part)"] = _text(probe_accuracy(probe))
    return sections


def write_card(checkpoint: Path, build: Path, sections: dict[str, Rows]) -> Path:
    """Write ``README.md`` beside the weights."""
    tables = [
        "\n".join(
            [f"### {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
        )
        for title, rows in sections.items()
    ]
    stages = "\n".join(_stage(build, name) for name in ("alignment-reading", "alignment-painting", "igpt", "sft"))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "diffusers", "numpy"))
    megabytes = (checkpoint / "model.safetensors").stat().st_size / 1e6
    text = _CARD.format(
        megabytes=f"{megabytes:.1f}", world=WORLD, stages=stages, versions=versions, tables="\n\n".join(tables)
    )
    path = checkpoint / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _stage(build: Path, name: str) -> str:
    recipe: Any = yaml.safe_load((Path(__file__).parent / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    record = json.loads((build / name / "training.json").read_text(encoding="utf-8"))
    losses = ", ".join(f"{key} {value:.3f}" for key, value in record["last"].items() if key != "loss")
    trainer = recipe["trainer"]
    return (
        f"| {name} | {record['recipe']} | {record['steps']:,} x {trainer['per_device_train_batch_size']} "
        f"| {trainer['learning_rate']} | {recipe['data']['seed']} | {losses} |"
    )


def _benchmarks(checkpoint: str | Path) -> Rows:
    """VQAv2 beside the best that is known without looking, and the other reading benchmarks, by the harness itself."""
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as out:
        for task, model, judge in (
            ("vqav2", f"dreamllm:{checkpoint}", None),
            ("vqav2", "blind", None),
            ("mmbench", f"dreamllm:{checkpoint}", None),
            ("mmbench", "blind", None),
            ("mmvet", f"dreamllm:{checkpoint}", "rule"),
        ):
            result = run(task, model, judge=judge, out=out)
            name = "the blind guesser" if model == "blind" else "this model"
            rows |= {f"{task}, {s.metric}: {name}": _score(s) for s in result.scores if s.group is None}
    return rows


def _score(score: Score) -> str:
    between = f" [{score.interval[0]:.1f}, {score.interval[1]:.1f}]" if score.interval else ""
    return f"{score.value:.1f} {score.unit}{between}, n = {score.n:,}, {score.protocol}"


def _text(shares: dict[str, Any]) -> Rows:
    return {name: str(share) for name, share in shares.items()}


def _dreamllm_painter(model: Any, processor: Any) -> Painter:
    def paint(texts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        painted = model.paint(
            processor(list(texts)), seeds=list(seeds), num_inference_steps=STEPS, guidance_scale=GUIDANCE
        )
        return np.stack([np.asarray(picture) for picture in painted])

    return paint


def _pipeline_painter(folder: str | Path) -> Painter:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def paint(texts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        painted = pipeline(
            list(texts),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
        )
        return np.stack([np.asarray(picture) for picture in painted.images])

    return paint


_CARD = """# The embedded DreamLLM

A whole DreamLLM (arXiv 2309.11499) of {megabytes} MB in half precision, which reads, paints and tells illustrated stories of the
dreambench playground, a world of coloured shapes in 64 x 64 pixels. It knows nothing else: it is there so that everything runs on any
laptop, and to be measured.

- **Data**: the playground's train part, version {world}; no content of the val and test parts occurs in it.
- **Recipe**: `dreambench playground build DIR`, from nothing. First the stand-ins for the published parts: a CLIP (contrastive, with one
  layer, thrown away afterwards, that makes patch tokens tell what is in their cell), an autoencoder, a latent diffusion model under that
  CLIP's text tower (which learns on during its first steps, then is frozen), and a language model on the playground's texts. The language
  model then warms up: its states at the dream queries regress those of the painter's text tower. That regression is *not* DreamLLM's
  objective; it stands for what a large language model brings along, and belongs to the preparation alone.
- Then DreamLLM's three stages, with the losses, freezing and data formats of the 7B recipe and `dreamllm train`'s ordinary code (in
  stages II and III the image loss weighs 2, not 10; conditions are dropped with probability 0.1):

| stage | recipe | steps x batch | lr | seed | last losses |
|---|---|---|---|---|---|
{stages}

- **Versions**: {versions}.

## Scores

Held-out scenes; Wilson intervals at 95 % for shares. `dreambench playground evaluate` gives them again.

{tables}
"""
