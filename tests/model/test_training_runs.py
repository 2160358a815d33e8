"""Whole training runs on made data: killed and resumed, accumulated, in two processes, from parts, merged, looked at."""

from __future__ import annotations

import copy
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
from transformers.utils import is_flash_attn_2_available

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor, checkpoint
from dreamllm.errors import CheckpointError, UsageError
from dreamllm.training import run
from dreamllm.training.assemble import assemble
from dreamllm.training.dry_run import dry_run
from dreamllm.training.merge import merge
from dreamllm.training.recipe import Recipe, make_recipe
from dreamllm.training.trainer import last_checkpoint

pytestmark = [
    # The library says so of every optimizer state that it reads back on the CPU.
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    # peft asks transformers by a name that is on its way out.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
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


def test_a_batch_in_micro_batches_is_the_same_batch(data: Path, tiny: Path, tmp_path: Path) -> None:
    """Losses are means over the labels and images of all micro-batches, however these fall, and noise is the sample's own."""
    settings = {"max_steps": 3, "save_steps": 100}
    sizes = {"whole": (4, 1), "halves": (2, 2), "quarters": (1, 4)}
    found = {}
    for name, (size, micro) in sizes.items():
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro}
        recipe = make_recipe(recipe_dict("sft", data, tiny, tmp_path / name, **settings, **more))
        run.train(recipe)
        found[name] = [pytest.approx(line, rel=2e-4) for line in logs(recipe.output)]
    assert logs(tmp_path / "halves") == found["whole"]
    assert logs(tmp_path / "quarters") == found["whole"]
    both = [line for line in logs(tmp_path / "whole") if {"lm_loss", "vm_loss"} <= set(line)]
    assert len({line["loss"] for line in both}) >= 2  # else the comparison says little


def test_rows_grouped_by_length_are_the_same_batch(data: Path, tiny: Path, tmp_path: Path) -> None:
    for groups in (1, 3):
        raw = recipe_dict("sft", data, tiny, tmp_path / str(groups), max_steps=3, per_device_train_batch_size=4)
        raw["loss"]["length_groups"] = groups
        run.train(make_recipe(raw))
    assert logs(tmp_path / "3") == [pytest.approx(line, rel=1e-4) for line in logs(tmp_path / "1")]


def test_the_attention_of_the_recipe_is_the_models(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out")
    for wanted in ("eager", "sdpa"):
        raw["start"]["attention"] = wanted
        model, _ = run.start(make_recipe(raw))
        parts: Any = (model.get_decoder(), model.vision_tower)
        assert [part.config._attn_implementation for part in parts] == [wanted] * 2


def test_attention_that_is_not_installed_is_one_line(data: Path, tiny: Path, tmp_path: Path) -> None:
    if is_flash_attn_2_available():
        pytest.skip("FlashAttention 2 is installed")
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out")
    raw["start"]["attention"] = "flash_attention_2"
    with pytest.raises(UsageError, match=r"start\.attention flash_attention_2: ") as caught:
        run.start(make_recipe(raw))
    assert "\n" not in str(caught.value)


def test_an_output_that_cannot_be_a_folder_is_one_line(data: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        recipe = make_recipe(recipe_dict("comprehension", data, tiny, output))
        for verb in (run.train, dry_run):
            with pytest.raises(UsageError, match="cannot be made a folder"):
                verb(recipe)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "recipe.json").write_text("{")
    with pytest.raises(UsageError, match=r"recipe\.json cannot be read"):
        run.train(make_recipe(recipe_dict("comprehension", data, tiny, tmp_path / "torn")))


def test_what_the_library_refuses_in_company_is_one_line(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict(
        "comprehension", data, tiny, tmp_path / "out", eval_strategy="steps"
    )  # and nothing to evaluate on
    with pytest.raises(UsageError, match=r"^trainer: .*eval_strategy") as caught:
        run.train(make_recipe(raw))
    assert "\n" not in str(caught.value)


def test_an_error_in_a_worker_process_is_one_line(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out", dataloader_num_workers=1)
    raw["data"]["sources"][0]["images"] = str(tiny)
    with pytest.raises(UsageError, match=r"^50 records of .*pairs\.jsonl in a row are broken") as caught:
        run.train(make_recipe(raw))
    assert "\n" not in str(caught.value)


def test_two_processes_with_half_the_batch_each_learn_what_one_learns(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict("sft", data, tiny, tmp_path / "one", max_steps=3, per_device_train_batch_size=4)
    run.train(make_recipe(raw))
    raw["output"] = str(tmp_path / "two")
    raw["trainer"]["per_device_train_batch_size"] = 2
    raw["data"]["eval_sources"] = raw["data"]["sources"]
    raw["data"]["eval_samples"] = 4
    raw["trainer"] |= {"eval_steps": 3, "per_device_eval_batch_size": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    subprocess.run(
        [sys.executable, *launch, "-m", "dreamllm", "train", str(tmp_path / "recipe.yaml")],
        check=True,
        timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
    )
    one, two = logs(tmp_path / "one"), logs(tmp_path / "two")
    assert [line for line in two if "loss" in line] == [pytest.approx(line, rel=2e-4) for line in one]
    assert [line["step"] for line in two if "eval_loss" in line] == [3]
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


def test_one_of_two_processes_on_the_cpu_is_the_main_one(tmp_path: Path) -> None:
    """Else both would write recipe and record, and one fall over the other's file."""
    script = tmp_path / "who.py"
    script.write_text(
        "from types import SimpleNamespace\n"
        "from dreamllm.training.trainer import processes_of\n"
        "print(processes_of(SimpleNamespace(trainer={})).is_main_process, flush=True)\n"
    )
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, str(script)],
        check=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.count("True"), done.stdout.count("False")) == (1, 1)


def test_the_same_command_again_does_nothing_and_another_recipe_is_refused(
    data: Path, tiny: Path, tmp_path: Path
) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out", max_steps=2)
    first = run.train(make_recipe(raw))
    assert run.train(make_recipe(raw)) == first
    raw["trainer"]["logging_steps"] = 2  # how a run is watched may change
    assert run.train(make_recipe(raw)) == first
    raw["trainer"]["learning_rate"] = 0.5
    with pytest.raises(UsageError, match=r"another recipe \(trainer.learning_rate differs\)"):
        run.train(make_recipe(raw))
    with pytest.raises(UsageError, match="not empty"):
        run.train(make_recipe(raw), resume="never")
    model, processor = checkpoint.load(tmp_path / "out")
    assert model.config.training is not None
    assert "comprehension (recipe " in model.config.training
    assert not hasattr(model.config, "use_cache")
    assert processor.num_dream_queries == model.config.num_dream_queries
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_half_written_checkpoints_are_removed_and_not_resumed_from(tmp_path: Path) -> None:
    whole, torn, begun = (tmp_path / f"checkpoint-{step}" for step in (9, 10, 11))
    for folder in (whole, torn, begun):
        folder.mkdir()
    (whole / "trainer_state.json").write_text("{}")
    (torn / "trainer_state.json").write_text('{"global_step": 1')
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == whole
    assert not torn.exists()
    assert not begun.exists()


def test_evaluation_says_the_same_whatever_the_batch_size(data: Path, tiny: Path, tmp_path: Path) -> None:
    found = []
    for size in (2, 4):
        raw = recipe_dict("sft", data, tiny, tmp_path / str(size), eval_strategy="no", per_device_eval_batch_size=size)
        raw["data"] |= {"eval_sources": raw["data"]["sources"], "eval_samples": 8}
        recipe = make_recipe(raw)
        recipe.output.mkdir()
        found.append(run.make_trainer(recipe, *run.start(recipe)).evaluate())
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert {"eval_loss", "eval_lm_loss", "eval_vm_loss"} <= set(found[0])


def test_halves_are_merged_and_strangers_are_not(data: Path, tiny: Path, tmp_path: Path) -> None:
    for stage in ("comprehension", "text_to_image", "igpt"):
        short = {"max_steps": 1, "warmup_steps": 0, "save_steps": 100}
        run.train(make_recipe(recipe_dict(stage, data, tiny, tmp_path / stage, **short)))
    merge(tmp_path / "comprehension", tmp_path / "text_to_image", tmp_path / "merged")
    merged, comprehension, text_to_image = (
        weights(tmp_path / name) for name in ("merged", "comprehension", "text_to_image")
    )
    before = load_file(tiny / "model.safetensors")
    for name, tensor in merged.items():
        half = text_to_image if name.startswith(("condition_projector", "dream_queries")) else comprehension
        assert torch.equal(tensor, half[name]), name
    assert sum(not torch.equal(tensor, before[name]) for name, tensor in merged.items()) >= 3
    model, _ = checkpoint.load(tmp_path / "merged")
    assert "comprehension" in str(model.config.training)
    assert "text_to_image" in str(model.config.training)
    with pytest.raises(CheckpointError, match=r"differ in \d+ tensors .* for instance language_model"):
        merge(tmp_path / "comprehension", tmp_path / "igpt", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_adapters_learn_and_end_in_the_weights(data: Path, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA is an extra")
    raw = recipe_dict("igpt", data, tiny, tmp_path / "lora", max_steps=2)
    raw["lora"] = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    run.train(make_recipe(raw))
    before, after = load_file(tiny / "model.safetensors"), weights(tmp_path / "lora")
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name], after[name]) and "language_model" in name}
    assert moved == {
        name for name in before if name.endswith(("q_proj.weight", "v_proj.weight")) and "language" in name
    }
    saved = load_file(tmp_path / "lora" / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert all("lora" in name for name in saved if name.startswith("language_model"))


def test_a_loss_that_is_no_number_ends_the_run(data: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = make_recipe(recipe_dict("igpt", data, tiny, tmp_path / "out", learning_rate=1e30, max_grad_norm=1e30))
    with pytest.raises(UsageError, match="the loss is nan at step"):
        run.train(recipe)


def test_data_that_teach_nothing_of_what_is_weighed_end_the_run(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out")
    raw["loss"] = {"weight_lm": 0.0, "weight_vm": 1.0}  # pairs that are read have nothing to generate images
    with pytest.raises(UsageError, match="nothing was learnt up to step"):
        run.train(make_recipe(raw))


def test_a_damaged_checkpoint_says_which_folder_to_remove(data: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = make_recipe(recipe_dict("comprehension", data, tiny, tmp_path / "out"))
    train_until_killed(recipe, 3)
    newest = last_checkpoint(recipe.output / "checkpoints")
    assert newest is not None
    (newest / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=rf"remove .*{newest.name} to go on"):
        run.train(recipe)


def test_a_model_is_put_together_from_published_parts(
    tiny: Path, tmp_path: Path, built: tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]
) -> None:
    """Folders as transformers and diffusers write them; what the parts compute is what they computed, new tokens are a mean."""
    model, processor = built
    llm, clip, diffusion = (tmp_path / name for name in ("llm", "clip", "diffusion"))
    base = copy.deepcopy(model.language_model)
    base.resize_token_embeddings(
        700
    )  # before the eight tokens: ids from 698 on are theirs and the padding of the vocabulary
    base.save_pretrained(llm)
    processor.tokenizer.save_pretrained(llm)
    model.vision_tower.save_pretrained(clip)
    processor.image_processor.save_pretrained(clip)
    model.image_decoder.vae.save_pretrained(diffusion / "vae")
    model.image_decoder.unet.save_pretrained(diffusion / "unet")
    schedule = model.config.image_decoder_config.scheduler
    (diffusion / "scheduler").mkdir()
    (diffusion / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    made, made_processor = assemble(llm, clip, diffusion, num_dream_queries=5, seed=3)
    again, _ = assemble(llm, clip, diffusion, num_dream_queries=5, seed=3)
    other, _ = assemble(llm, clip, diffusion, num_dream_queries=5, seed=4)
    assert torch.equal(made.dream_queries, again.dream_queries)
    assert not torch.equal(made.dream_queries, other.dream_queries)
    assert made.dream_queries.shape == (1, 5, model.config.text_config.hidden_size)
    assert made.config.image_decoder_config.resolution == model.config.image_decoder_config.resolution
    size = len(made_processor.tokenizer)
    assert size > 700
    for layer, old in (
        (made.get_input_embeddings(), base.get_input_embeddings()),
        (made.get_output_embeddings(), base.get_output_embeddings()),
    ):
        assert layer.weight.shape[0] == size
        assert torch.equal(layer.weight[:700], old.weight)
        torch.testing.assert_close(layer.weight[700:], old.weight.mean(0).expand(size - 700, -1))
    ours, theirs = made.state_dict(), model.state_dict()
    kept = [
        name for name in theirs if name.startswith(("vision_tower", "image_decoder", "language_model.model.layers"))
    ]
    assert [name for name in kept if not torch.equal(ours[name], theirs[name])] == []
    checkpoint.save(tmp_path / "saved", made, made_processor)
    assert checkpoint.load(tmp_path / "saved")[0].config.num_dream_queries == 5
    (clip / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is missing"):
        assemble(llm, clip, diffusion)
    with pytest.raises(CheckpointError, match="is not a folder"):
        assemble(tmp_path / "nothing", clip, diffusion)
