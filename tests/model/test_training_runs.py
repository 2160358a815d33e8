"""Complete training runs on a few images: killed and resumed, accumulated, in two processes, from parts, merged, as a dry run."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from model.made_pairs import STAGES, recipe_dict, write_pairs
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModel
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor, checkpoint, files
from dreamllm.cli import main
from dreamllm.defaults import ImageDefaults, read_defaults
from dreamllm.errors import CheckpointError, UsageError
from dreamllm.recipe import Recipe, make_recipe
from dreamllm.training import run
from dreamllm.training.assemble import assemble, merge
from dreamllm.training.dry_run import dry_run
from dreamllm.training.features import FeatureStore
from dreamllm.training.trainer import last_checkpoint

pytestmark = [
    # torch warns of this for every optimizer state that is loaded on the CPU.
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    # peft uses a deprecated name of transformers.
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
    model, processor = copy.deepcopy(built[0]), built[1]
    model.image_defaults = ImageDefaults(guidance_scale=3.0)
    checkpoint.save(folder, model, processor)
    return folder


def logs(output: Path) -> list[dict[str, Any]]:
    """The log lines except those with times."""
    lines = [json.loads(line) for line in (output / "logs.jsonl").read_text().splitlines()]
    return [line for line in lines if "train_runtime" not in line]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def train_until_killed(recipe: Recipe, lines: int) -> None:
    """Train in a separate process and kill it once the log has this many lines."""
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
def test_a_killed_run_resumes_with_the_same_losses_and_ends_with_the_same_weights(
    stage: str, data: Path, tiny: Path, tmp_path: Path
) -> None:
    undisturbed = make_recipe(recipe_dict(stage, data, tiny, tmp_path / "undisturbed"))
    raw = recipe_dict(stage, data, tiny, tmp_path / "killed")
    killed = make_recipe(raw)
    run.train(undisturbed)
    train_until_killed(killed, lines=5)
    assert last_checkpoint(killed.output / "checkpoints") is not None
    killed = make_recipe(raw | {"data": raw["data"] | {"max_broken": 5}})  # changes no result
    run.train(killed)
    assert logs(killed.output) == logs(undisturbed.output)
    assert len(logs(killed.output)) == 8
    ours, theirs = weights(killed.output), weights(undisturbed.output)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    before = load_file(tiny / "model.safetensors")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], theirs[name])}
    assert moved == set(STAGES[stage][0])
    assert read_defaults(killed.output) == read_defaults(tiny) == (ImageDefaults(guidance_scale=3.0), None)


def test_gradient_accumulation_does_not_change_the_losses(data: Path, tiny: Path, tmp_path: Path) -> None:
    """Losses are means over the labels and images of all micro-batches, and noise depends on the sample alone."""
    settings = {"max_steps": 3, "save_steps": 100}
    sizes = {"whole": (4, 1), "halves": (2, 2), "quarters": (1, 4)}
    losses = {}
    for name, (size, micro) in sizes.items():
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro}
        recipe = make_recipe(recipe_dict("sft", data, tiny, tmp_path / name, **settings, **more))
        run.train(recipe)
        losses[name] = [pytest.approx(line, rel=2e-4) for line in logs(recipe.output)]
    assert logs(tmp_path / "halves") == losses["whole"]
    assert logs(tmp_path / "quarters") == losses["whole"]
    both = [line for line in logs(tmp_path / "whole") if {"lm_loss", "vm_loss"} <= set(line)]
    assert len({line["loss"] for line in both}) >= 2  # else the comparison says little


def test_rows_by_length_and_packed_rows_do_not_change_the_losses(data: Path, tiny: Path, tmp_path: Path) -> None:
    for name, settings in {"padded": {}, "groups": {"length_groups": 3}, "packed": {"packing": True}}.items():
        raw = recipe_dict("sft", data, tiny, tmp_path / name, max_steps=3, per_device_train_batch_size=4)
        raw["loss"] = raw["loss"] | settings
        run.train(make_recipe(raw))
    padded = [pytest.approx(line, rel=1e-4) for line in logs(tmp_path / "padded")]
    assert logs(tmp_path / "groups") == padded
    assert logs(tmp_path / "packed") == padded


def test_stored_features_do_not_change_the_losses(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirrored images too, and to the last bit whatever was stored before: a resumed run finds more than the first one did."""
    raw = recipe_dict("sft", data, tiny, tmp_path / "none", max_steps=2, per_device_train_batch_size=4)
    assert make_recipe(raw).data.flip
    run.train(make_recipe(raw))
    raw["data"] |= {
        "feature_cache": str(tmp_path / "features"),
        "eval_sources": raw["data"]["sources"],
        "eval_samples": 6,
    }
    raw["trainer"] |= {"eval_steps": 2, "per_device_eval_batch_size": 3}
    run.train(make_recipe(raw | {"output": str(tmp_path / "cold")}))
    stored = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("features/*/*/*"))
    assert {path.parts[1].split("-")[0] for path in stored} == {"vision", "vae"}
    monkeypatch.setattr(AutoencoderKL, "encode", None)
    monkeypatch.setattr(CLIPVisionModel, "forward", None)
    run.train(make_recipe(raw | {"output": str(tmp_path / "warm")}))
    cold = [line for line in logs(tmp_path / "cold") if "loss" in line]
    assert cold == [pytest.approx(line, rel=1e-4) for line in logs(tmp_path / "none")]
    assert logs(tmp_path / "warm") == logs(tmp_path / "cold")
    ours, theirs = weights(tmp_path / "warm"), weights(tmp_path / "cold")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_features_of_other_weights_are_others(own_model: DreamLLMForConditionalGeneration, tmp_path: Path) -> None:
    pixels, keys = torch.zeros(1, 3, 64, 64), torch.tensor([[1, 2]])
    before = FeatureStore(tmp_path, own_model).vision_states(own_model, pixels, keys)
    with torch.no_grad():
        next(own_model.vision_tower.parameters()).add_(1.0)
    assert not torch.equal(FeatureStore(tmp_path, own_model).vision_states(own_model, pixels, keys), before)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"of data\.feature_cache cannot be read .*: remove it") as caught:
        FeatureStore(tmp_path, own_model).vision_states(own_model, pixels, keys)
    assert "\n" not in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"feature_cache: folder .* cannot be created"):
        FeatureStore(tmp_path / "file" / "below", own_model)


def test_the_recipe_sets_the_attention_implementation(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out")
    for wanted in ("eager", "sdpa"):
        raw["start"]["attention"] = wanted
        model, _ = run.start(make_recipe(raw))
        parts: Any = (model.get_decoder(), model.vision_tower)
        assert [part.config._attn_implementation for part in parts] == [wanted] * 2


def test_attention_that_is_not_installed_is_reported_in_one_line(data: Path, tiny: Path, tmp_path: Path) -> None:
    if is_flash_attn_2_available():
        pytest.skip("FlashAttention 2 is installed")
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out")
    raw["start"]["attention"] = "flash_attention_2"
    with pytest.raises(UsageError, match=r"start\.attention flash_attention_2: ") as caught:
        run.start(make_recipe(raw))
    assert "\n" not in str(caught.value)


def test_an_output_that_cannot_be_a_folder_is_reported_in_one_line(data: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        recipe = make_recipe(recipe_dict("comprehension", data, tiny, output))
        for verb in (run.train, dry_run):
            with pytest.raises(UsageError, match="cannot be created"):
                verb(recipe)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "recipe.json").write_text("{")
    with pytest.raises(UsageError, match=r"recipe\.json is not JSON"):
        run.train(make_recipe(recipe_dict("comprehension", data, tiny, tmp_path / "torn")))


def test_trainer_options_that_do_not_go_together_are_reported_in_one_line(
    data: Path, tiny: Path, tmp_path: Path
) -> None:
    # There is no data to evaluate on.
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out", eval_strategy="steps")
    with pytest.raises(UsageError, match=r"^recipe: trainer: .*eval_strategy") as caught:
        run.train(make_recipe(raw))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adam_beta1": 1.5}, "wrong options of the optimizer: .*beta"),
        ({"optim": "adamw_8bit"}, "wrong options of the optimizer: .*bitsandbytes"),
        ({"optim_args": "foo"}, "wrong options of the optimizer: "),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "wrong options of the scheduler: .*min_lr"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "wrong options of the scheduler: .*foo"),
    ],
)
def test_wrong_options_of_the_optimizer_and_the_scheduler_are_reported_in_one_line(
    data: Path, tiny: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    if options.get("optim") == "adamw_8bit" and is_bitsandbytes_available():
        pytest.skip("bitsandbytes is installed")
    recipe = make_recipe(recipe_dict("comprehension", data, tiny, tmp_path / "out", **options))
    with pytest.raises(UsageError, match=f"^recipe: trainer: {message}") as caught:
        run.train(recipe)
    assert "\n" not in str(caught.value)


def test_another_number_of_processes_does_not_resume_a_run(data: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = make_recipe(recipe_dict("comprehension", data, tiny, tmp_path / "out", max_steps=2))
    run.train(recipe)
    (tmp_path / "out" / "training.json").unlink()
    folder = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    for process in range(2):  # as two processes name them
        (folder / f"rng_state_{process}.pth").write_bytes((folder / "rng_state.pth").read_bytes())
    (folder / "rng_state.pth").unlink()
    with pytest.raises(UsageError, match=r"checkpoint-2 was written by 2 processes, not 1: .*: start 2, or") as caught:
        run.train(recipe)
    assert "\n" not in str(caught.value)
    trainer = run.make_trainer(recipe, *run.start(recipe))
    check: Any = trainer._check_checkpoint
    for size, index, states, accepted in (
        (2, 1, [0, 1], True),
        (4, 2, [0, 1], False),  # started with more processes
        (4, 2, [2, 3], True),  # a folder of the second of two machines
        (4, 2, [], True),
    ):
        for path in folder.glob("rng_state*"):
            path.unlink()
        for process in states:
            (folder / f"rng_state_{process}.pth").touch()
        trainer.args = SimpleNamespace(world_size=size, process_index=index)  # pyright: ignore[reportAttributeAccessIssue]
        with contextlib.nullcontext() if accepted else pytest.raises(UsageError, match="was written by 2"):
            check(folder)


def test_a_recipe_that_cannot_start_leaves_no_run_behind(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out")
    (tmp_path / "damaged.parquet").write_bytes(b"not parquet")
    for changes, message in (
        ({"sources": [raw["data"]["sources"][0] | {"path": "none.jsonl"}]}, "none.jsonl is missing"),
        (
            {"sources": [raw["data"]["sources"][0] | {"path": str(tmp_path / "damaged.parquet")}]},
            "cannot be read as parquet",
        ),
        ({"max_length": 2049}, "data.max_length 2049 exceeds the 2048 positions of the language model"),
    ):
        with pytest.raises(UsageError, match=message):
            run.train(make_recipe(raw | {"data": raw["data"] | changes}))
        assert [path for path in tmp_path.rglob("out/**/*") if path.is_file()] == []
    wrong = raw | {"start": {"checkpoint": "none"}, "trainer": raw["trainer"] | {"lerning_rate": 1}}
    for verb in (run.train, dry_run):
        with pytest.raises(UsageError, match=r"trainer\.lerning_rate is not a field"):  # before the weights are read
            verb(make_recipe(wrong))
    (tmp_path / "long").mkdir()
    for file in tiny.iterdir():  # a tokenizer that says nothing of the decoder's length
        (tmp_path / "long" / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    (tmp_path / "long" / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 4096}))
    longer = raw | {"start": {"checkpoint": str(tmp_path / "long")}, "data": raw["data"] | {"max_length": None}}
    with pytest.raises(UsageError, match="the tokenizer's 4096 exceeds the 2048 positions"):
        run.train(make_recipe(longer))
    raw["data"]["cache"] = str(tmp_path / "out" / "tables")  # its files are not those of a run
    (tmp_path / "out" / "tables").mkdir(parents=True)
    (tmp_path / "out" / "tables" / "part.arrow").touch()
    raw["trainer"]["max_steps"] = 1
    assert run.train(make_recipe(raw))["steps"] == 1  # in the same folder


def test_a_tilde_in_the_output_and_the_caches_is_the_home_folder(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all parts of a run: transformers writes its checkpoints there, and a second start has to find them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    raw = recipe_dict("sft", data, tiny, Path("~/out"), max_steps=1)
    raw["data"] |= {"cache": "~/out/tables", "feature_cache": "~/features"}
    run.train(make_recipe(raw))
    assert run.check_output(make_recipe(raw), "auto") == "complete"
    home = tmp_path / "home"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert last_checkpoint(home / "out" / "checkpoints") is not None
    assert list(home.glob("out/tables/**/*.arrow"))
    assert list(home.glob("features/*/*/*"))
    assert make_recipe(raw | {"start": {"checkpoint": "~/model"}}).start.checkpoint == str(home / "model")
    assert make_recipe(raw | {"output": "~nobody-of-this-name/out"}).output.parts[0] == "~nobody-of-this-name"


def test_a_dry_run_shows_sizes_and_the_first_batch_and_trains_nothing(data: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = make_recipe(recipe_dict("igpt", data, tiny, tmp_path / "out"))
    lines = dry_run(recipe)
    assert any(line.startswith("vision_tower") and line.split()[1] == "0" for line in lines)
    assert any("2 sequences x 1 micro-batches x 1 processes" in line for line in lines)
    text = (recipe.output / "dry-run" / "first-batch.txt").read_text(encoding="utf-8")
    assert text.count("--- sequence") == 2
    assert "<im_patch>x" in text
    with Image.open(recipe.output / "dry-run" / "first-batch.png") as sheet:
        assert sheet.width % 132 == 4
    assert not (recipe.output / "recipe.json").exists()


def test_a_dry_run_in_two_processes_is_printed_once(data: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_dict("igpt", data, tiny, tmp_path / "out")))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "dreamllm", "train", str(tmp_path / "recipe.yaml"), "--dry-run"],
        timeout=900,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the first batch is in") == 1
    assert "x 2 processes" in done.stdout


def test_an_error_in_a_worker_process_is_reported_in_one_line(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out", dataloader_num_workers=1)
    raw["data"]["sources"][0]["images"] = str(tiny)
    with pytest.raises(
        UsageError, match=r"^50 consecutive records of .*pairs\.jsonl are broken or too small"
    ) as caught:
        run.train(make_recipe(raw))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "broken.jsonl").is_file()
    del caught  # with its traceback goes the loader, whose worker would report further records
    gc.collect()
    assert not multiprocessing.active_children()
    raw["data"]["sources"][0]["images"] = str(data / "images")  # corrected: nothing was trained that could be lost
    raw["trainer"]["max_steps"] = 1
    assert run.train(make_recipe(raw))["broken_records"] == 0
    with pytest.raises(UsageError, match=r"holds a run of another recipe \(trainer\.max_steps differs\)"):
        run.train(make_recipe(raw | {"trainer": raw["trainer"] | {"max_steps": 2}}))


def test_two_processes_with_half_the_batch_each_equal_one_process(data: Path, tiny: Path, tmp_path: Path) -> None:
    """Evaluation too, where the second process has no sample left for its last batch."""
    raw = recipe_dict("sft", data, tiny, tmp_path / "one", max_steps=3, per_device_train_batch_size=4)
    raw["data"] |= {"eval_sources": raw["data"]["sources"], "eval_samples": 5}
    raw["trainer"] |= {"eval_steps": 3, "per_device_eval_batch_size": 2}
    run.train(make_recipe(raw))
    raw["output"] = str(tmp_path / "two")
    raw["trainer"]["per_device_train_batch_size"] = 2
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    subprocess.run(
        [sys.executable, *launch, "-m", "dreamllm", "train", str(tmp_path / "recipe.yaml")],
        check=True,
        timeout=900,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
    )
    one, two = logs(tmp_path / "one"), logs(tmp_path / "two")
    assert two == [pytest.approx(line, rel=2e-4) for line in one]
    assert [line["step"] for line in two if "eval_loss" in line] == [3]
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


def test_a_complete_run_that_is_started_again_says_that_nothing_was_trained(
    data: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_dict("sft", data, tiny, tmp_path / "out", max_steps=1)))
    for complete in (False, True):
        with pytest.raises(SystemExit, match="0"):
            main(["train", str(tmp_path / "recipe.yaml")])
        assert ("nothing was trained" in capsys.readouterr().err) == complete


def test_one_of_two_processes_on_the_cpu_is_the_main_one(tmp_path: Path) -> None:
    """Otherwise both would write the same files."""
    script = tmp_path / "who.py"
    # The processes end together: one that is still connecting fails if the other has gone.
    script.write_text(
        "from types import SimpleNamespace\n"
        "from dreamllm.training.trainer import process_state\n"
        "state = process_state(SimpleNamespace(trainer={}))\n"
        "print(state.is_main_process, flush=True)\n"
        "state.wait_for_everyone()\n"
        "state.destroy_process_group()\n"
    )
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, str(script)],
        timeout=900,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("True"), done.stdout.count("False")) == (1, 1)


def test_a_run_that_was_killed_while_it_wrote_its_first_file_starts_again(
    data: Path, tiny: Path, tmp_path: Path
) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out", max_steps=1)
    with files.temporary(tmp_path / "out" / "recipe.json") as unfinished:
        name = unfinished.name
    left = tmp_path / "out" / name.replace(f"-{os.getpid()}-", "-999999999-")
    left.write_text("{")
    assert run.check_output(make_recipe(raw), "auto") is None
    assert not left.exists()


def test_a_complete_run_is_not_repeated_and_another_recipe_is_rejected(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out", max_steps=2)
    first = run.train(make_recipe(raw))
    assert run.train(make_recipe(raw)) == first
    raw["trainer"]["logging_steps"] = 2  # does not change the result
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


def test_incomplete_checkpoints_are_removed(tmp_path: Path) -> None:
    complete, torn, begun = (tmp_path / f"checkpoint-{step}" for step in (9, 10, 11))
    for folder in (complete, torn, begun):
        folder.mkdir()
    (complete / "trainer_state.json").write_text("{}")
    (torn / "trainer_state.json").write_text('{"global_step": 1')
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == complete
    assert not torn.exists()
    assert not begun.exists()


def test_evaluation_does_not_depend_on_the_batch_size(data: Path, tiny: Path, tmp_path: Path) -> None:
    metrics = []
    for size in (2, 4):
        raw = recipe_dict("sft", data, tiny, tmp_path / str(size), eval_strategy="no", per_device_eval_batch_size=size)
        raw["data"] |= {"eval_sources": raw["data"]["sources"], "eval_samples": 6}  # no multiple of 4
        recipe = make_recipe(raw)
        recipe.output.mkdir()
        metrics.append(run.make_trainer(recipe, *run.start(recipe)).evaluate())
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert {"eval_loss", "eval_lm_loss", "eval_vm_loss"} <= set(metrics[0])


def test_only_halves_with_the_same_start_are_merged(data: Path, tiny: Path, tmp_path: Path) -> None:
    for stage in ("comprehension", "generation", "igpt"):
        short = {"max_steps": 1, "warmup_steps": 0, "save_steps": 100}
        run.train(make_recipe(recipe_dict(stage, data, tiny, tmp_path / stage, **short)))
    merge(tmp_path / "comprehension", tmp_path / "generation", tmp_path / "merged")
    merged, comprehension, generation = (weights(tmp_path / name) for name in ("merged", "comprehension", "generation"))
    before = load_file(tiny / "model.safetensors")
    for name, tensor in merged.items():
        half = generation if name.startswith(("condition_projector", "dream_queries")) else comprehension
        assert torch.equal(tensor, half[name]), name
    assert sum(not torch.equal(tensor, before[name]) for name, tensor in merged.items()) >= 3
    model, _ = checkpoint.load(tmp_path / "merged")
    assert "comprehension" in str(model.config.training)
    assert "generation (recipe" in str(model.config.training)
    with pytest.raises(CheckpointError, match=r"differ in \d+ tensors .* for instance language_model"):
        merge(tmp_path / "comprehension", tmp_path / "igpt", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_halves_with_different_numbers_of_queries_are_not_merged(tiny: Path, tmp_path: Path) -> None:
    model, processor = checkpoint.load(tiny)
    model.config.num_dream_queries = processor.num_dream_queries = 4
    model.dream_queries.data = model.dream_queries[:, :4].detach().clone()
    checkpoint.save(tmp_path / "four", model, processor)
    with pytest.raises(CheckpointError, match=r"dream_queries is \(1, 4, \d+\), expected \(1, 8, \d+\)$") as caught:
        merge(tiny, tmp_path / "four", tmp_path / "merged")
    assert "\n" not in str(caught.value)


def test_adapters_are_trained_and_merged_into_the_weights(data: Path, tiny: Path, tmp_path: Path) -> None:
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


def test_a_loss_that_is_not_finite_ends_the_run(data: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = make_recipe(recipe_dict("igpt", data, tiny, tmp_path / "out", learning_rate=1e30, max_grad_norm=1e30))
    with pytest.raises(UsageError, match="the loss is nan at step"):
        run.train(recipe)


@pytest.mark.parametrize(
    ("trainer", "step"),
    [
        ({"max_steps": 2}, 2),
        ({"max_steps": 2, "logging_steps": 500, "save_strategy": "no"}, 2),  # at the end, at the latest
        ({"max_steps": 9, "per_device_train_batch_size": 50}, 2),  # after 100 samples
    ],
)
def test_data_without_targets_for_the_weighted_losses_end_the_run(
    data: Path, tiny: Path, tmp_path: Path, trainer: dict[str, Any], step: int
) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out", **trainer)
    raw["loss"] = {"weight_lm": 0.0, "weight_vm": 1.0}  # comprehension pairs have no target images
    with pytest.raises(UsageError, match=f"nothing was learned up to step {step}: "):
        run.train(make_recipe(raw))


def test_steps_without_targets_do_not_end_a_run_that_learns_from_others(data: Path, tiny: Path, tmp_path: Path) -> None:
    """Nor one that is resumed before such a step."""
    raw = recipe_dict("igpt", data, tiny, tmp_path / "out", per_device_train_batch_size=1, save_steps=1)
    raw["trainer"]["save_total_limit"] = 100
    raw["loss"] = {"weight_lm": 0.0}
    run.train(make_recipe(raw))
    learned = [line["step"] for line in logs(tmp_path / "out") if "vm_loss" in line]
    assert 1 not in learned
    assert 8 not in learned
    assert learned
    (tmp_path / "out" / "training.json").unlink()
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "checkpoint-8")
    assert run.train(make_recipe(raw))["steps"] == 8


def test_a_resumed_run_does_not_evaluate_at_its_start_again(data: Path, tiny: Path, tmp_path: Path) -> None:
    raw = recipe_dict("comprehension", data, tiny, tmp_path / "out", max_steps=4, eval_on_start=True, eval_steps=4)
    raw["data"] |= {"eval_sources": raw["data"]["sources"], "eval_samples": 2}
    run.train(make_recipe(raw))
    lines = logs(tmp_path / "out")
    (tmp_path / "out" / "training.json").unlink()
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "checkpoint-4")
    run.train(make_recipe(raw))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 4]
    assert logs(tmp_path / "out") == lines


def test_a_damaged_checkpoint_is_named_in_the_error(data: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = make_recipe(recipe_dict("comprehension", data, tiny, tmp_path / "out"))
    train_until_killed(recipe, 3)
    newest = last_checkpoint(recipe.output / "checkpoints")
    assert newest is not None
    (newest / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=rf"remove .*{newest.name} to resume"):
        run.train(recipe)


def test_a_model_is_assembled_from_published_parts(
    tmp_path: Path, built: tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]
) -> None:
    """From folders as transformers and diffusers write them. The parts keep their weights; embeddings of new tokens are means."""
    model, processor = built
    llm, clip, diffusion = (tmp_path / name for name in ("llm", "clip", "diffusion"))
    base = copy.deepcopy(model.language_model)
    base.resize_token_embeddings(700)  # of the original vocabulary: ids from 698 on are the eight tokens and padding
    base.save_pretrained(llm)
    processor.tokenizer.save_pretrained(llm)
    model.vision_tower.save_pretrained(clip)
    processor.image_processor.save_pretrained(clip)
    model.image_decoder.vae.save_pretrained(diffusion / "vae")
    model.image_decoder.unet.save_pretrained(diffusion / "unet")
    schedule = model.config.image_decoder_config.scheduler
    (diffusion / "scheduler").mkdir()
    (diffusion / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    assembled, its_processor = assemble(llm, clip, diffusion, num_dream_queries=5, seed=3)
    again, _ = assemble(llm, clip, diffusion, num_dream_queries=5, seed=3)
    other, _ = assemble(llm, clip, diffusion, num_dream_queries=5, seed=4)
    assert torch.equal(assembled.dream_queries, again.dream_queries)
    assert not torch.equal(assembled.dream_queries, other.dream_queries)
    assert assembled.dream_queries.shape == (1, 5, model.config.text_config.hidden_size)
    assert assembled.config.image_decoder_config.resolution == model.config.image_decoder_config.resolution
    size = len(its_processor.tokenizer)
    assert size > 700
    for layer, old in (
        (assembled.get_input_embeddings(), base.get_input_embeddings()),
        (assembled.get_output_embeddings(), base.get_output_embeddings()),
    ):
        assert layer.weight.shape[0] == size
        assert torch.equal(layer.weight[:700], old.weight)
        torch.testing.assert_close(layer.weight[700:], old.weight.mean(0).expand(size - 700, -1))
    random = assemble(llm, clip, diffusion, new_embeddings="random", seed=3)[0].get_input_embeddings().weight
    assert torch.equal(random[:700], base.get_input_embeddings().weight)
    assert float(random[700:].detach().std()) == pytest.approx(base.config.initializer_range, rel=0.2)
    ours, theirs = assembled.state_dict(), model.state_dict()
    unchanged = [
        name for name in theirs if name.startswith(("vision_tower", "image_decoder", "language_model.model.layers"))
    ]
    assert [name for name in unchanged if not torch.equal(ours[name], theirs[name])] == []
    checkpoint.save(tmp_path / "saved", assembled, its_processor)
    assert checkpoint.load(tmp_path / "saved")[0].config.num_dream_queries == 5
    (clip / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is missing"):
        assemble(llm, clip, diffusion)
    with pytest.raises(CheckpointError, match="is not a folder"):
        assemble(tmp_path / "nothing", clip, diffusion)
    assembled.language_model.save_pretrained(llm)
    with pytest.raises(UsageError, match=r"new_embeddings random: .* has embeddings of the special tokens already"):
        assemble(llm, clip, diffusion, new_embeddings="random")
