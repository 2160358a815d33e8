"""The embedded model from nothing, a few steps a stage: killed in every one of them it ends in the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import build
import questions
import surrogate_clip
import surrogate_diffusion
from dreambench.errors import DataError
from dreamllm.files import embedded_checkpoint

KILLED_IN = (
    "encoder:3",
    "autoencoder:3",
    "diffusion:3",
    "language:3",
    *(f"{stage}:3" for stage in build.STAGES[:-1]),
    "questions:3",
    "sft:3",
    "baseline:3",
)

# A few steps of every loop on a few scenes, killed within the named step, after the checkpoint of the second step has been written.
SMALL = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import build, loop
import questions, surrogate_clip, surrogate_diffusion, surrogate_language
from dreamllm.training.trainer import DreamLLMTrainer

directory, recipes, killed_in = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def few(settings):
    return replace(settings, steps=4, batch=4, save_every=2)
for module, names in (
    (surrogate_clip, ["ENCODER"]),
    (surrogate_diffusion, ["AUTOENCODER", "DECODER", "READING", "TOGETHER", "ALONE", "DECAY", "BASELINE"]),
    (surrogate_language, ["LANGUAGE", "QUESTIONS", "WARM_UP"]),
):
    for name in names:
        setattr(module, name, few(getattr(module, name)))
questions.PHASES = tuple(replace(phase, settings=few(phase.settings)) for phase in questions.PHASES)
questions.LAST = replace(questions.LAST, settings=few(questions.LAST.settings))
surrogate_diffusion.CALIBRATION, surrogate_diffusion.SCENES, surrogate_language.TOKENIZED = 16, 48, 40
build.IMAGES, build.STORIES, build.RECIPES = 24, 6, recipes

def killing(call, step_of):
    def wrapped(*args, **kwargs):
        if killed_in == f"{current[0]}:{step_of(*args)}":
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped

current = [""]
loop._schedule = killing(loop._schedule, lambda step, settings: step + 1)
DreamLLMTrainer.training_step = killing(DreamLLMTrainer.training_step, lambda trainer, *_: trainer.state.global_step + 1)
stage = build.stage
def named(directory, name):
    current[0] = name
    return stage(directory, name)
build.stage = named
for name in build.STEPS:
    if name == "card":  # tested elsewhere
        break
    current[0] = name
    build.build(directory, name)
"""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for stage in build.STAGES:
        recipe = yaml.safe_load((build.RECIPES / f"{stage}.yaml").read_text(encoding="utf-8"))
        recipe["trainer"] |= {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 1}
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def built(folder: Path, recipes: Path, killed_in: str = "") -> int:
    arguments = [sys.executable, "-c", SMALL, str(folder), str(recipes), killed_in, str(build.HERE)]
    process = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=900)
    assert process.returncode in (0, -9), process.stderr[-3000:]
    return process.returncode


def losses(folder: Path, stage: str) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / stage / "logs.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "loss" in line]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("seconds.jsonl", "timings.jsonl")
    }


@pytest.mark.timeout(3600)
def test_a_build_that_is_killed_in_every_stage_ends_in_the_same_bytes(tmp_path: Path, recipes: Path) -> None:
    undisturbed, killed = tmp_path / "one", tmp_path / "two"
    assert built(undisturbed, recipes) == 0
    for step in KILLED_IN:
        assert built(killed, recipes, step) == -9, step
    assert built(killed, recipes) == 0
    for stage in build.STAGES:
        assert len(losses(undisturbed, stage)) >= 4
        assert losses(killed, stage) == losses(undisturbed, stage), stage
    # Wherever it is built, and however often it was killed: no path, no time, nothing left over.
    ours, theirs = files(killed), files(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_the_baseline_of_the_shipped_checkpoint_is_no_step_of_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(surrogate_diffusion.BASELINE, steps=2, batch=4)
    monkeypatch.setattr(surrogate_diffusion, "BASELINE", settings)
    monkeypatch.setattr(surrogate_diffusion, "SCENES", 48)
    build.build(tmp_path, "baseline")
    unet = load_file(tmp_path / "diffusion" / "unet" / "diffusion_pytorch_model.safetensors")
    shipped = load_file(embedded_checkpoint() / "model.safetensors")
    assert unet
    assert all(torch.equal(unet[name], shipped[f"image_decoder.unet.{name}"].float()) for name in unet)
    assert (tmp_path / "diffusion" / "text_encoder" / "config.json").is_file()
    with pytest.raises(DataError, match="build in another folder"):
        build.build(tmp_path, "diffusion")


def test_reuse_puts_a_new_clip_under_the_shipped_checkpoint(
    tmp_path: Path, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogate_clip, "ENCODER", replace(surrogate_clip.ENCODER, steps=2, batch=4))
    last = replace(questions.LAST, settings=replace(questions.LAST.settings, steps=2, batch=4))
    monkeypatch.setattr(questions, "LAST", last)
    monkeypatch.setattr(build, "IMAGES", 24)
    monkeypatch.setattr(build, "STORIES", 6)
    monkeypatch.setattr(build, "RECIPES", recipes)
    build.build(tmp_path, "world", "encoder", "reuse")
    shipped, ours = (
        load_file(folder / "model.safetensors") for folder in (embedded_checkpoint(), tmp_path / "questions")
    )
    differing = {name.split(".")[0] for name in shipped if not torch.equal(shipped[name].float(), ours[name])}
    assert {"vision_tower", "visual_projector"} <= differing
    assert differing.isdisjoint({"image_decoder", "condition_projector", "dream_queries"})
    clip = load_file(tmp_path / "encoder" / "model.safetensors")
    weight = "embeddings.patch_embedding.weight"
    assert torch.equal(ours[f"vision_tower.{weight}"], clip[f"vision_model.{weight}"])


@pytest.mark.parametrize(
    ("folder", "step", "message"),
    [
        ("file", "ship", "File exists: '{}'"),
        ("new", "ship", "{}/sft is not a folder"),
        ("new", "igpt", "data file world/stories/stories_train.jsonl is missing"),
    ],
)
def test_errors_of_the_library_end_a_build_with_one_line(tmp_path: Path, folder: str, step: str, message: str) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, str(build.HERE / "build.py"), str(tmp_path / folder), "--step", step]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.count("error: ") == 1
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert message.format(tmp_path / folder) in process.stderr
    assert "Traceback" not in process.stderr
