"""The embedded model from nothing, a few steps a stage: killed in every one of them it ends in the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dreambench_tasks.playground import embedded

STAGES = ("alignment-comprehension", "alignment-generation", "igpt", "sft")
KILLED_IN = ("encoder:3", "autoencoder:3", "diffusion:3", "language:3", *(f"{stage}:3" for stage in STAGES))

# A few steps of every loop, a few scenes; and a kill within the named step, once the checkpoint of the second has been written.
SMALL = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import dreambench_tasks.playground.embedded as embedded
from dreambench_tasks.playground.surrogates import autoencoder, decoder, diffusion, encoder, loop
from dreamllm.training.trainer import DreamLLMTrainer

build, recipes, killed_in = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for module, names in (
    (encoder, ["SETTINGS"]), (autoencoder, ["SETTINGS", "FINE"]),
    (diffusion, ["FIRST", "SECOND", "THIRD", "FOURTH"]), (decoder, ["LANGUAGE", "WARM_UP"]),
):
    for name in names:
        setattr(module, name, replace(getattr(module, name), steps=4, batch=4, save_every=2))
autoencoder.CALIBRATION, diffusion.SCENES, decoder.TOKENIZED = 16, 48, 40
embedded.PICTURES, embedded.STORIES, embedded.RECIPES = 24, 6, recipes

def killing(call, step_of):
    def wrapped(*args, **kwargs):
        if killed_in == f"{current[0]}:{step_of(*args)}":
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped

current = [""]
loop._schedule = killing(loop._schedule, lambda step, settings: step + 1)
DreamLLMTrainer.training_step = killing(DreamLLMTrainer.training_step, lambda trainer, *_: trainer.state.global_step + 1)
train = embedded._train
def named(directory, name):
    current[0] = name
    train(directory, name)
embedded._train = named
for name, step in embedded.STEPS.items():
    if name == "card":  # measured elsewhere
        break
    current[0] = name
    step(build)
"""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for stage in STAGES:
        recipe = yaml.safe_load((embedded.RECIPES / f"{stage}.yaml").read_text(encoding="utf-8"))
        recipe["trainer"] |= {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 1}
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def built(folder: Path, recipes: Path, killed_in: str = "") -> int:
    arguments = [sys.executable, "-c", SMALL, str(folder), str(recipes), killed_in]
    process = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=280)
    assert process.returncode in (0, -9), process.stderr[-3000:]
    return process.returncode


def losses(folder: Path, stage: str) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / stage / "logs.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "loss" in line]


@pytest.mark.timeout(900)
def test_a_build_that_is_killed_in_every_stage_ends_in_the_same_bytes(tmp_path: Path, recipes: Path) -> None:
    undisturbed, killed = tmp_path / "one", tmp_path / "two"
    assert built(undisturbed, recipes) == 0
    for place in KILLED_IN:
        assert built(killed, recipes, place) == -9, place
    assert built(killed, recipes) == 0
    for stage in STAGES:
        assert len(losses(undisturbed, stage)) >= 4
        assert losses(killed, stage) == losses(undisturbed, stage), stage
    names = ("model.safetensors", "config.json", "tokenizer.json")
    for name in names:
        assert (killed / "embedded" / name).read_bytes() == (undisturbed / "embedded" / name).read_bytes(), name
