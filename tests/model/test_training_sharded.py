"""Training sharded by FSDP2 as docs/training/fsdp2.yaml says, in two processes on the CPU."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from model.made_pairs import STAGES, recipe_dict, write_pairs
from safetensors.torch import load_file

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor, checkpoint
from dreamllm.defaults import ImageDefaults, read_defaults
from dreamllm.errors import UsageError
from dreamllm.recipe import make_recipe
from dreamllm.training import run, sharding

pytestmark = [
    # torch warns of this for every optimizer state that is loaded on the CPU.
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    # peft uses a deprecated name of transformers.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

CONFIG = Path(__file__).parents[2] / "docs" / "training" / "fsdp2.yaml"

WATCHED = """
import json, sys
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from dreamllm import checkpoint
from dreamllm.recipe import load_recipe
from dreamllm.training import run, sharding
from dreamllm.training.trainer import DreamLLMTrainer

load, prepare, save = checkpoint.load, DreamLLMTrainer._prepare_for_training, run.save
recipe, state = load_recipe(sys.argv[1]), {"read": False}

def watched_load(*args, **options):
    state["read"] = True
    return load(*args, **options)

def watched_prepare(trainer, *args, **options):
    prepared = prepare(trainer, *args, **options)
    stored = load_file(recipe.start.checkpoint + "/model.safetensors")
    named = sharding.fsdp2_canonicalize_names(dict(trainer.model.named_parameters()))
    state["as_stored"] = all([torch.equal(value.full_tensor(), stored[name]) for name, value in named.items()])
    return prepared

def watched_save(folder, trainer, processor):
    parameters = dict(trainer.model.named_parameters())
    report = state | {
        "whole": [name for name, parameter in parameters.items() if not isinstance(parameter, DTensor)],
        "held": sum(parameter.to_local().numel() for parameter in parameters.values()),
        "all": sum(parameter.numel() for parameter in parameters.values()),
        "wrapped": sum("_checkpoint_wrapped_module" in name for name in parameters),
    }
    print(json.dumps(report) + "\\n", end="", flush=True)
    save(folder, trainer, processor)

checkpoint.load, DreamLLMTrainer._prepare_for_training, run.save = watched_load, watched_prepare, watched_save
run.train(recipe)
"""
"""`dreamllm train`, where each process says at the end what it read at the start, what it began with, and how much it holds."""


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, built: tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]
) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    write_pairs(folder)
    model, processor = copy.deepcopy(built[0]), built[1]
    model.image_defaults = ImageDefaults(guidance_scale=3.0)
    checkpoint.save(folder / "tiny", model, processor)
    return folder


def launch(raw: dict[str, Any], folder: Path, *more: str) -> list[dict[str, Any]]:
    """Train in two processes; what each of them said."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw))
    (folder / "watched.py").write_text(WATCHED)
    options = ["--config_file", str(CONFIG), "--num_processes", "2", "--main_process_port", "0", *more]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, "watched.py", "recipe.yaml"],
        cwd=folder,
        timeout=900,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"read"')]


def test_a_sharded_run_resumes_bit_for_bit_from_checkpoints_of_what_learns(made: Path, tmp_path: Path) -> None:
    """The recipe drops conditions, so that a process without images must take part in what the others compute for theirs."""
    raw = recipe_dict("igpt", made, made / "tiny", tmp_path / "undisturbed", max_steps=4)
    processes = launch(raw, tmp_path)
    assert sorted(process["read"] for process in processes) == [False, True]
    for process in processes:
        assert process["as_stored"]
        assert process["whole"] == []
        assert process["held"] < 0.6 * process["all"]
        assert process["wrapped"] > 0
    before, after = (
        load_file(made / "tiny" / "model.safetensors"),
        load_file(tmp_path / "undisturbed" / "model.safetensors"),
    )
    assert set(after) == set(before)
    assert read_defaults(tmp_path / "undisturbed") == (ImageDefaults(guidance_scale=3.0), None)
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == set(
        STAGES["igpt"][0]
    )

    last = tmp_path / "undisturbed" / "checkpoints" / "checkpoint-4"
    learned = load_file(last / "model.safetensors")
    assert set(learned) == {name for name in before if name.startswith(tuple(STAGES["igpt"][0]))}
    assert all(torch.equal(learned[name], after[name]) for name in learned)
    size = sum(tensor.nbytes for tensor in learned.values())
    assert (
        sum(file.stat().st_size for file in last.iterdir()) < 3 * size + 200_000
    )  # weights, two moments, and small files

    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "undisturbed", killed)
    shutil.rmtree(killed / "checkpoints" / "checkpoint-4")
    (killed / "training.json").unlink()
    (killed / "model.safetensors").unlink()
    # Here each process reads the weights.
    again = launch(raw | {"output": str(killed)}, tmp_path, "--fsdp_cpu_ram_efficient_loading", "false")
    assert [process["read"] for process in again] == [True, True]
    for name in ("logs.jsonl", "model.safetensors", "training.json"):
        assert (killed / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("more", "message"), [({}, "only one process"), ({"lora": {"r": 2}}, "lora: adapters cannot be sharded")]
)
def test_sharding_that_cannot_be_is_refused_in_one_line(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], message: str
) -> None:
    if more:
        pytest.importorskip("peft", reason="LoRA is an extra")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    recipe = make_recipe(recipe_dict("igpt", made, made / "tiny", tmp_path / "out") | more)
    with pytest.raises(UsageError, match=message) as caught:
        run.train(recipe)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "recipe.json").exists()


def test_layers_that_only_images_call_are_not_sharded_apart(model: DreamLLMForConditionalGeneration) -> None:
    """A process without images would not call them, and the others would wait for it for ever."""
    for names, message in ((["LlamaDecoderLayer"], None), (["CLIPEncoderLayer"], r"wait for ever at vision_tower\.")):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=names
        )
        second: Any = SimpleNamespace(
            distributed_type=DistributedType.FSDP, is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin)
        )
        with contextlib.nullcontext() if message is None else pytest.raises(UsageError, match=message):
            sharding.prepare(second, model)


def test_the_first_version_of_fsdp_is_refused() -> None:
    first: Any = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(UsageError, match="FSDP 1 is not supported"):
        sharding.prepare(first, torch.nn.Linear(1, 1))


def test_a_checkpoint_without_this_optimizer_is_refused_in_one_line(made: Path, tmp_path: Path) -> None:
    """transformers would go on with a new optimizer, or stumble over the file of another kind of sharding."""
    recipe = make_recipe(recipe_dict("comprehension", made, made / "tiny", tmp_path / "out", max_steps=2))
    run.train(recipe)
    (tmp_path / "out" / "training.json").unlink()
    folder = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    (folder / "optimizer.pt").rename(folder / "optimizer.bin")  # as FSDP calls it
    with pytest.raises(UsageError, match=r"checkpoint-2 has no optimizer\.pt: resume with the sharding") as caught:
        run.train(recipe)
    assert "\n" not in str(caught.value)
