"""Recipes: the published ones hold the published values, and every mistake is reported in one line."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model.made_pairs import recipe_dict

import dreamllm
from dreamllm.errors import UsageError
from dreamllm.recipe import LENGTHS, load_recipe, make_recipe

PUBLISHED = sorted((Path(str(dreamllm.__file__)).parent / "recipes").glob("*.yaml"))
WEIGHTS = {
    "alignment-comprehension-7b": (1, 0),
    "alignment-generation-7b": (0, 1),
    "igpt-7b": (1, 10),
    "sft-7b": (1, 10),
}
RATES = {"alignment-comprehension-7b": 2e-3, "alignment-generation-7b": 2e-3, "igpt-7b": 2e-5, "sft-7b": 4e-5}


def test_all_published_recipes_exist() -> None:
    assert set(WEIGHTS) <= {path.stem for path in PUBLISHED}


@pytest.mark.parametrize("path", PUBLISHED, ids=[path.stem for path in PUBLISHED])
def test_a_published_recipe_has_the_published_values(path: Path) -> None:
    from dreamllm.training.trainer import training_arguments

    recipe = load_recipe(path, ["trainer.bf16=false"])  # which a machine without a GPU rejects
    assert f"{recipe.stage}-7b" == path.stem
    arguments = training_arguments(recipe, samples=1_000_000)
    assert arguments.max_steps > 0
    if path.stem in WEIGHTS:
        assert (recipe.loss.weight_lm, recipe.loss.weight_vm) == WEIGHTS[path.stem]
        assert arguments.learning_rate == RATES[path.stem]
        assert arguments.get_warmup_steps(10_000) == 30
        assert arguments.lr_scheduler_type == "cosine"


def raw(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return recipe_dict("igpt", tmp_path, tmp_path / "start", tmp_path / "out") | changes


SOURCE = {"kind": "pairs", "path": "pairs.jsonl"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trian": []}, "trian: Extra inputs are not permitted"),
        ({"train": ["unet"]}, "train.0: Input should be 'visual_projector'"),
        ({"start": {}}, "language_model is missing"),
        ({"start": {"checkpoint": "x", "resolution": 64}}, "resolution cannot be combined with checkpoint"),
        ({"loss": {"drop_probability": 1.5}}, "loss.drop_probability"),
        ({"train": ["dream_queries"], "lora": {}}, "add language_model to train"),
        ({"data": {"sources": []}}, "data.sources"),
        ({"data": {"sources": [SOURCE], "eval_sources": [{"kind": "films"}]}}, r"data\.eval_sources\.0\.kind"),
        (
            {"data": {"sources": [SOURCE], "eval_sources": [SOURCE | {"streaming": True, "weight": 1}]}},
            "data: eval_sources cannot be streamed",
        ),
        (
            {"data": {"sources": [SOURCE], "eval_sources": [SOURCE | {"weight": 1}, SOURCE]}},
            "data: eval_sources: give every source a weight, or none",
        ),
        ({"loss": {"weight_lm": 0, "weight_vm": 0}}, "loss: weight_lm and weight_vm are both 0"),
        (
            {"trainer": {"per_device_train_batch_size": -2}},
            "trainer.per_device_train_batch_size: .* greater than or equal to 1",
        ),
        (
            {"trainer": {"gradient_accumulation_steps": -1}},
            "trainer.gradient_accumulation_steps: .* greater than or equal to 1",
        ),
        ({"trainer": {"max_steps": 1.5}}, "trainer.max_steps: Input should be a valid integer"),
        ({"trainer": {"dataloader_num_workers": -1}}, "trainer.dataloader_num_workers: .* greater than or equal to 0"),
        ({"trainer": {"learning_rate": "fast"}}, "trainer.learning_rate: Input should be a valid number"),
    ],
)
def test_a_wrong_recipe_is_reported_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_recipe(raw(tmp_path, **changes), "r.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_steps": 3, "lerning_rate": 1}, "trainer.lerning_rate is not a field"),
        ({"max_steps": 3, "output_dir": "x"}, "trainer.output_dir cannot be set: use the recipe's output"),
        ({}, "max_steps or num_train_epochs"),
        ({"max_steps": 3, "num_train_epochs": 1}, "one of them"),
        ({"max_steps": 3, "label_smoothing_factor": 0.1}, "trainer.label_smoothing_factor cannot be set: "),
        ({"max_steps": 3, "train_sampling_strategy": "group_by_length"}, "_strategy cannot be set: .*length_groups"),
        ({"max_steps": 3, "dataloader_drop_last": True}, "trainer.dataloader_drop_last cannot be set: "),
        ({"max_steps": 3, "average_tokens_across_devices": False}, "across_devices cannot be set: "),
        ({"max_steps": 3, "save_strategy": "epoch"}, "trainer.save_strategy cannot be epoch: .* use steps"),
        ({"max_steps": 3, "save_strategy": False}, 'trainer.save_strategy: YAML reads no as false: write "no", in'),
        ({"max_steps": 3, "lr_scheduler_type": "sinus"}, "trainer: sinus is not a valid SchedulerType"),
    ],
)
def test_wrong_trainer_fields_are_reported_in_one_line(tmp_path: Path, trainer: dict[str, Any], message: str) -> None:
    from dreamllm.training.trainer import training_arguments

    with pytest.raises(UsageError, match=f"^r.yaml: .*{message}") as caught:
        training_arguments(make_recipe(raw(tmp_path, trainer=trainer), "r.yaml: "), samples=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_reporting_to_a_package_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from dreamllm.training import tracking, trainer

    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    recipe = make_recipe(raw(tmp_path, trainer={"max_steps": 3, "report_to": ["none", name], "use_cpu": True}))
    with pytest.raises(
        UsageError, match=rf"trainer\.report_to: the package {name} is missing: uv sync --extra tracking, or pip"
    ) as caught:
        trainer.training_arguments(recipe, samples=10)
    assert "\n" not in str(caught.value)


def test_mlflow_is_not_used_with_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamllm.training import tracking, trainer

    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "false")
    recipe = make_recipe(raw(tmp_path, trainer={"max_steps": 3, "report_to": "mlflow", "use_cpu": True}))
    with pytest.raises(UsageError, match=r"MLFLOW_TRACKING_URI is http.* unset it"):
        trainer.training_arguments(recipe, samples=10)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


REVIEWED = """
output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim
optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps average_tokens_across_devices
max_grad_norm label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs
gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel
liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps
logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm run_name
project eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start eval_do_concat_batches
eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model save_strategy save_steps
save_on_each_node save_total_limit enable_jit_checkpoint load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config parallelism_config dataloader_drop_last
dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
dataloader_in_order remove_unused_columns label_names train_sampling_strategy length_column_name ddp_find_unused_parameters
ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config debug skip_memory_metrics do_train
do_eval do_predict resume_from_checkpoint local_rank
"""
"""Fields of TrainingArguments that were read in transformers' source and open no connection."""


def test_every_field_of_training_arguments_is_known_to_use_no_network_or_is_refused(tmp_path: Path) -> None:
    """A field that a new transformers adds fails here until it has been looked at."""
    from transformers import TrainingArguments

    from dreamllm.training.trainer import DOORS, training_arguments

    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    doors = {name for name in fields if name.startswith(DOORS)}
    assert fields - doors - set(REVIEWED.split()) == {"report_to", "deepspeed"}
    assert {"push_to_hub", "hub_token", "hub_model_id", "hub_strategy", "trackio_space_id"} <= doors
    refused: list[tuple[str, object]] = [(name, True) for name in doors]
    refused += [("report_to", name) for name in ("wandb", "all", "codecarbon", ["tensorboard", "trackio"], None, 1)]
    (tmp_path / "ds.json").write_text('{"wandb": {"enabled": true}}')
    refused += [
        ("deepspeed", value) for value in ({"comet": {}}, str(tmp_path / "ds.json"), "eyJ3YW5kYiI6IHt9fQ==", [1])
    ]
    refused += [("resume_from_checkpoint", "somebody/model")]
    for name, value in refused:
        recipe = make_recipe(raw(tmp_path, trainer={"max_steps": 3, "use_cpu": True, name: value}))
        with pytest.raises(UsageError, match=rf"trainer\.{name}") as caught:
            training_arguments(recipe, samples=10)
        assert "\n" not in str(caught.value)


def test_epochs_are_converted_to_whole_steps(tmp_path: Path) -> None:
    from dreamllm.training.trainer import training_arguments

    trainer = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert training_arguments(make_recipe(raw(tmp_path, trainer=trainer)), samples=20).max_steps == 8


def test_options_that_came_later_do_not_change_older_recipes(tmp_path: Path) -> None:
    """A recipe without them has the fingerprint that it had, and goes on in its folder."""
    recipe = make_recipe(raw(tmp_path))
    later = raw(tmp_path)
    later["data"]["sources"][0]["min_size"] = 0
    assert make_recipe(later).fingerprint == recipe.fingerprint
    later["data"]["sources"][0]["min_size"] = 128
    assert make_recipe(later).fingerprint != recipe.fingerprint
    assert "min_size" not in recipe.model_dump_json()


def test_set_overrides_values_of_the_recipe() -> None:
    path = PUBLISHED[0]
    changes = ["trainer.learning_rate=3e-4", "data.sources.0.path=other.jsonl", "loss.snr_gamma=5", "output=elsewhere"]
    recipe = load_recipe(path, changes)
    assert recipe.trainer["learning_rate"] == 3e-4
    assert recipe.data.sources[0].path == "other.jsonl"
    assert recipe.loss.snr_gamma == 5
    assert recipe.fingerprint == load_recipe(path, changes[:-1]).fingerprint != load_recipe(path).fingerprint
    for length in ("max_steps", "num_train_epochs"):  # one replaces the other
        trainer = load_recipe(path, [f"trainer.{length}=7"]).trainer
        assert {name: trainer[name] for name in LENGTHS if name in trainer} == {length: 7}
    for wrong in ("output", "data.sources.99.path=x", "stage.name=x"):
        with pytest.raises(UsageError, match="--set"):
            load_recipe(path, [wrong])


def test_a_file_that_is_not_a_recipe_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    for text, message in (
        ("a: [", "is not YAML"),
        ("just words", "has no keys"),
        ("stage: x\nstage: y\n", "is not YAML: the key 'stage' stands twice .*line 2"),
        ('{"trainer": {"max_steps": 1, "max_steps": 2}}', "the key 'max_steps' stands twice"),
    ):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(UsageError, match=message):
            load_recipe(tmp_path / "r.yaml")


def test_a_wrong_recipe_ends_the_command_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("stage: x\n")
    code = "import sys; from dreamllm.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(tmp_path / "r.yaml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout.strip() == "False"
    assert len(done.stderr.strip().splitlines()) == 1
