"""Build the embedded model from nothing: surrogates, assembly, the three stages of DreamLLM, and the files that are shipped.

    python model/embedded/build.py DIR                 # every step in order
    python model/embedded/build.py DIR --step clip     # playground-clip, the feature extractor, which is not part of the model
    python model/embedded/build.py DIR --step world encoder reuse sft baseline ship card    # from the shipped checkpoint, with a new CLIP

A step is skipped if its result exists and resumes from its own checkpoint if it was interrupted. The stages are ordinary recipes of
``dreamllm train``, in the folder ``recipes``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPVisionModel

import evaluate
from dreambench.errors import DreambenchError
from dreambench_tasks.playground import WORLD, write
from dreamllm import checkpoint
from dreamllm.defaults import ImageDefaults, InterleavedDefaults
from dreamllm.errors import DreamLLMError
from dreamllm.options import SchedulerName
from dreamllm.recipe import Recipe, load_recipe
from dreamllm.training.assemble import assemble, merge
from dreamllm.training.run import train
from loop import reproducible
from questions import build_places, build_questions
from surrogate_clip import build_clip, build_encoder
from surrogate_diffusion import REGISTERS, build_autoencoder, build_baseline, build_diffusion
from surrogate_language import build_language

__all__ = ["STEPS", "build"]

IMAGES, STORIES = 24_000, 8_000  # of the train split
# Chosen on the val split.
IMAGES_BY_DEFAULT = ImageDefaults(scheduler=SchedulerName.ddim, num_inference_steps=20, guidance_scale=1.5)
STORIES_BY_DEFAULT = InterleavedDefaults(do_sample=True, temperature=0.7)
HERE = Path(__file__).parent
RECIPES = HERE / "recipes"
STAGES = ("alignment-comprehension", "alignment-generation", "igpt", "sft")
WEIGHTS = "model.safetensors"


def build(directory: Path, *steps: str) -> None:
    """Run these of ``STEPS``, or all steps of the embedded model, in ``directory``; ``seconds.jsonl`` gets how long each took."""
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    for name in steps or [name for name in STEPS if name not in APART]:
        print(f"{name}: {directory}", flush=True)
        start = time.monotonic()
        STEPS[name](directory)
        line = json.dumps({"step": name, "seconds": round(time.monotonic() - start)})
        with (directory / "seconds.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def reuse(directory: Path) -> None:
    """In place of the steps from ``autoencoder`` to ``questions``: the shipped checkpoint with this build's CLIP.

    Stage I trains the projector for it, and the last phase of ``questions`` follows.
    """
    if not (directory / "start" / WEIGHTS).is_file():
        model, processor = checkpoint.load(dtype="float32")
        clip = CLIPVisionModel.from_pretrained(directory / "encoder", local_files_only=True)
        model.vision_tower.load_state_dict(clip.state_dict())
        model.config.training = f"{model.config.training}; then another CLIP"
        checkpoint.save(directory / "start", model, processor)
    stage(directory, STAGES[0])
    build_places(directory, directory / STAGES[0])


def world(directory: Path) -> None:
    """The training data: pairs, short prompts, conversations, stories and instructions."""
    write(directory / "world" / "images", "train", IMAGES, 0, ["pairs", "prompts", "conversations"])
    write(directory / "world" / "stories", "train", STORIES, 0, ["stories", "instructions"])


def start(directory: Path) -> None:
    """The surrogates as one DreamLLM checkpoint, with the queries and the condition projector of the warm-up."""
    if (directory / "start" / WEIGHTS).is_file():
        return
    parts = (directory / "warm", directory / "encoder", directory / "diffusion")
    model, processor = assemble(*parts, num_dream_queries=REGISTERS, chat_template="plain")
    model.load_state_dict({**model.state_dict(), **load_file(directory / "warm" / "dreams.safetensors")})
    model.config.training = "surrogates trained on the dreambench playground"
    model.image_defaults, model.interleaved_defaults = IMAGES_BY_DEFAULT, STORIES_BY_DEFAULT
    checkpoint.save(directory / "start", model, processor)


def alignment(directory: Path) -> None:
    """Stage I: its two halves, merged."""
    for name in STAGES[:2]:
        stage(directory, name)
    if not (directory / "alignment" / WEIGHTS).is_file():
        merge(directory / STAGES[0], directory / STAGES[1], directory / "alignment")


def stage(directory: Path, name: str) -> None:
    """Train a recipe. Its folders are relative to the build, so that no path of a machine enters its fingerprint."""
    with reproducible(0), chdir(directory):
        train(_recipe(name))


def _recipe(name: str) -> Recipe:
    changes = [] if torch.cuda.is_available() else ["trainer.use_cpu=true"]  # without it, bf16 is refused on a CPU
    return load_recipe(RECIPES.resolve() / f"{name}.yaml", changes)


def ship(directory: Path) -> None:
    """The result in half precision, ``directory/embedded``."""
    if not (directory / "embedded" / WEIGHTS).is_file():
        checkpoint.save(directory / "embedded", *checkpoint.load(directory / "sft", dtype="float16"))


def card(directory: Path) -> None:
    """The measured model card, ``directory/embedded/README.md``."""
    shipped = directory / "embedded"
    if (shipped / "README.md").is_file():
        return
    values = {
        "megabytes": f"{(shipped / WEIGHTS).stat().st_size / 1e6:.1f}",
        "world": WORLD,
        "stages": "\n".join(_stage_row(directory, name) for name in STAGES if (directory / name).is_dir()),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "diffusers", "numpy")),
        "scores": evaluate.as_markdown(evaluate.evaluate(shipped, directory / "diffusion")),
    }
    text = (HERE / "card.md").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"<{name}>", value)
    (shipped / "README.md").write_text(text, encoding="utf-8")


def _stage_row(directory: Path, name: str) -> str:
    recipe, record = _recipe(name), json.loads((directory / name / "training.json").read_text(encoding="utf-8"))
    trainer: Any = recipe.trainer
    steps, rate = f"{record['steps']:,} x {trainer['per_device_train_batch_size']}", trainer["learning_rate"]
    losses = ", ".join(f"{key} {value:.3f}" for key, value in record["last"].items() if key != "loss")
    return f"| {name} | {record['recipe']} | {steps} | {rate} | {recipe.data.seed} | {losses} |"


STEPS: dict[str, Callable[[Path], object]] = {
    "world": world,
    "encoder": build_encoder,
    "autoencoder": build_autoencoder,
    "diffusion": build_diffusion,
    "language": build_language,
    "start": start,
    "alignment": alignment,
    "igpt": lambda directory: stage(directory, "igpt"),
    "questions": lambda directory: build_questions(directory, _recipe("igpt")),
    "sft": lambda directory: stage(directory, "sft"),
    "baseline": build_baseline,
    "ship": ship,
    "card": card,
    "clip": build_clip,
    "reuse": reuse,
}
APART = ("clip", "reuse")  # no steps of the embedded model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path, help="folder for the results and checkpoints of all steps")
    help_ = (
        "run only these steps; clip is the feature extractor, and reuse replaces those from autoencoder to questions"
    )
    parser.add_argument("--step", choices=STEPS, nargs="+", default=(), help=help_)
    options = parser.parse_args()
    try:
        build(options.directory, *options.step)
    except (DreambenchError, DreamLLMError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
