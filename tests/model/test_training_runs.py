"""Whole training runs on made data: killed and resumed, accumulated, in two processes, from parts, merged, looked at."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from model.made_pairs import STAGES, recipe_dict, write_pairs
from safetensors.torch import load_file

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor, checkpoint
from dreamllm.errors import CheckpointError, UsageError
from dreamllm.training import run
from dreamllm.training.merge import merge
from dreamllm.training.recipe import Recipe, make_recipe
from dreamllm.training.trainer import last_checkpoint

pytestmark = [
    # The library says so of every optimizer state that it reads back on the CPU.
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_pairs(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, built: tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]
) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint.save(folder, *built)
    return folder


def logs(output: Path) -> list[dict[str, Any]]:
    """The log lines without those that hold times."""
    lines = [json.loads(line) for line in (output / "logs.jsonl").read_text().splitlines()]
    return [line for line in lines if "train_runtime" not in line]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def train_until_killed(recipe: Recipe, lines: int) -> None:
    """Train in a process of its own and kill it, without notice, once the log holds so many lines."""
    child = multiprocessing.get_context("fork").Process(target=run.train, args=(recipe,))
    child.start()
    log = recipe.output / "logs.jsonl"
    while child.is_alive() and (not log.is_file() or len(log.read_text().splitlines()) < lines):
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the run was over before it was killed"


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_with_the_same_losses_and_ends_with_the_same_weights(
    stage: str, data: Path, tiny: Path, tmp_path: Path
) -> None:
    undisturbed = make_recipe(recipe_dict(stage, data, tiny, tmp_path / "undisturbed"))
    killed = make_recipe(recipe_dict(stage, data, tiny, tmp_path / "killed"))
    run.train(undisturbed)
    train_until_killed(killed, lines=5)
    assert last_checkpoint(killed.output / "checkpoints") is not None
    run.train(killed)
    assert logs(killed.output) == logs(undisturbed.output)
    assert len(logs(killed.output)) == 8
    ours, theirs = weights(killed.output), weights(undisturbed.output)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    before = load_file(tiny / "model.safetensors")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], theirs[name])}
    assert moved == set(STAGES[stage][0])
