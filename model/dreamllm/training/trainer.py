"""transformers' Trainer for two losses: exact under accumulation and over processes, and exact after a kill."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from dreamllm.data import TrainingData
from dreamllm.errors import CheckpointError, UsageError
from dreamllm.spans import count_spans
from dreamllm.training.losses import Draws, count_targets, draw, loss_scale
from dreamllm.training.recipe import Recipe
from dreamllm.training.records import Records
from dreamllm.training.trainable import DreamLLMForTraining, learnt_names

CHECKPOINTS, WEIGHTS = "checkpoints", "model.safetensors"
OURS = {
    "output_dir": "the recipe's output",
    "seed": "data.seed",
    "data_seed": "data.seed",
    "remove_unused_columns": "nothing: the collator makes what the model takes",
    "ignore_data_skip": "nothing: the data go on where they were",
    "resume_from_checkpoint": "--resume",
    "load_best_model_at_end": "nothing: the last weights are the result",
    "auto_find_batch_size": "nothing: the batch size decides the result",
}


def processes_of(recipe: Recipe) -> PartialState:
    """The processes of this run. Without an accelerator the library takes each for the only one, unless it is told of the CPU."""
    return PartialState(cpu=bool(recipe.trainer.get("use_cpu")) or not torch.accelerator.is_available())


def training_arguments(recipe: Recipe, samples: int) -> TrainingArguments:
    """`recipe.trainer` as transformers has it; `samples` are those of an epoch.

    Raises UsageError for a field that transformers does not know or that is decided elsewhere.
    """
    given = dict(recipe.trainer)
    known = {field.name for field in fields(TrainingArguments) if field.init}
    for name in given:
        if name in OURS:
            raise UsageError(f"trainer.{name} cannot be set; it is decided by {OURS[name]}")
        if name not in known:
            raise UsageError(f"trainer.{name} is not a field of transformers.TrainingArguments")
    lengths = [name for name in ("max_steps", "num_train_epochs") if name in given]
    if len(lengths) != 1 or not isinstance(given[lengths[0]], int | float) or given[lengths[0]] <= 0:
        raise UsageError("trainer must say max_steps or num_train_epochs, one of them and more than 0")
    if "num_train_epochs" in given:
        together = (
            given.get("per_device_train_batch_size", TrainingArguments.per_device_train_batch_size)
            * given.get("gradient_accumulation_steps", TrainingArguments.gradient_accumulation_steps)
            * processes_of(recipe).num_processes
        )
        given["max_steps"] = math.ceil(given.pop("num_train_epochs") * samples / together)
    defaults: dict[str, Any] = {
        "report_to": "none",
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,
        "ddp_find_unused_parameters": False,  # every part that learns has a gradient at every step
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps" if recipe.data.eval_sources else "no",
    }
    ours: dict[str, Any] = {
        "output_dir": str(recipe.output / CHECKPOINTS),
        "seed": recipe.data.seed,
        "remove_unused_columns": False,
        "ignore_data_skip": True,
    }
    try:
        return TrainingArguments(**(defaults | given | ours))
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from None


class Places(Sampler[list[int]]):
    """The places of this process's batches, from batch `first` on; `count` batches or without end."""

    def __init__(self, batch_size: int, first: int, count: int | None, process: int, processes: int) -> None:
        self.batch_size, self.first, self.count = batch_size, first, count
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[list[int]]:
        numbers = itertools.count(self.first) if self.count is None else range(self.first, self.first + self.count)
        for number in numbers:
            begin = (number * self.processes + self.process) * self.batch_size
            yield list(range(begin, begin + self.batch_size))


class DreamLLMTrainer(Trainer):
    """Trainer with our losses.

    The language loss is a mean over all labels, the image loss over all images, of the whole accumulated batch of all processes. What
    is random in the image loss depends on seed and sample alone. Checkpoints hold what learns; the rest is where the
    recipe starts from.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: DreamLLMForTraining,
        recipe: Recipe,
        collator: Callable[[Any], dict[str, torch.Tensor]],
        data: TrainingData,
        eval_data: TrainingData | None = None,
    ) -> None:
        self.recipe, self.data, self.eval_data = recipe, data, eval_data
        # Since the last log line: losses of this process, counts of all.
        self._sums, self._counted = torch.zeros(2), [0, 0]
        self._micro = (-1, 0)  # step, micro-batch
        self._first_step = 0
        config: Any = model.config.image_decoder_config
        self._dream_span = model.config.dream_span
        self._latent_shape = config.latent_shape
        self._num_timesteps = int(model.noise_scheduler.config.num_train_timesteps)
        self._num_parameters = sum(parameter.numel() for parameter in model.parameters())
        super().__init__(
            model=model,
            args=training_arguments(recipe, len(data)),
            data_collator=collator,
            eval_dataset=eval_data,
            callbacks=[Records(recipe.output)],
        )
        if self.args.n_gpu > 1:
            raise UsageError(
                f"{self.args.n_gpu} GPUs are visible to one process: start with `accelerate launch`, or set CUDA_VISIBLE_DEVICES"
            )

    def train(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        if resume_from_checkpoint:
            # The data are asked for before the library reads its own state.
            state = TrainerState.load_from_json(str(Path(str(resume_from_checkpoint)) / TRAINER_STATE_NAME))
            self._first_step = state.global_step
        return super().train(resume_from_checkpoint, **kwargs)

    # Data

    def get_train_dataloader(self) -> DataLoader[Any]:
        first = self._first_step * self.args.gradient_accumulation_steps
        return self._loader(self.data, self.args.per_device_train_batch_size, first)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        if self.eval_data is None:
            raise UsageError("there is nothing to evaluate on: the recipe has no data.eval_sources")
        together = self.args.per_device_eval_batch_size * self.args.world_size
        count = math.ceil(self.recipe.data.eval_samples / together)
        return self._loader(self.eval_data, self.args.per_device_eval_batch_size, 0, count)

    def _loader(self, data: TrainingData, batch_size: int, first: int, count: int | None = None) -> DataLoader[Any]:
        # Not prepared by accelerate: every process takes its own places, and a resume begins at the right one.
        workers = self.args.dataloader_num_workers
        return DataLoader(
            data,
            batch_sampler=Places(batch_size, first, count, self.args.process_index, self.args.world_size),
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            generator=torch.Generator(),  # else beginning to read draws from the global one, and dropout after a resume differs
        )

    # Losses

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """(labels, images) of the accumulated batch, over all processes."""
        own = [count_targets(batch) for batch in batch_samples]
        sums = torch.tensor([sum(tokens for tokens, _ in own), sum(images for _, images in own)])
        total = self._over_processes(sums.to(device))
        counts = (int(total[0]), int(total[1]))
        self._counted = [old + new for old, new in zip(self._counted, counts, strict=True)]
        return counts

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        step, micro = self._micro
        self._micro = (self.state.global_step, micro + 1 if step == self.state.global_step else 0)
        number = self._micro[0] * self.args.gradient_accumulation_steps + self._micro[1]
        draws = self.draws(inputs, number, self.args.per_device_train_batch_size)
        losses = model(**inputs, draws=draws, counts=num_items_in_batch)
        tokens, images = num_items_in_batch
        self._sums = self._sums.to(losses.lm.device) + torch.stack([losses.lm * tokens, losses.vm * images]).float()
        # Gradients are averaged over processes, and counts are of all of them.
        loss = losses.total * self.args.world_size
        return (loss, losses) if return_outputs else loss

    def draws(self, batch: dict[str, Any], number: int, batch_size: int, evaluation: bool = False) -> Draws | None:
        """What the image loss of this process's batch `number` draws: for each image by seed, place of its sample, and its number
        there."""
        if "target_pixels" not in batch:
            return None
        counts = count_spans(batch["input_ids"], *self._dream_span).tolist()
        first = (number * self.args.world_size + self.args.process_index) * batch_size
        keys = [
            (self.recipe.data.seed, int(evaluation), first + row, index)
            for row, count in enumerate(counts)
            for index in range(count)
        ]
        return draw(keys, self._latent_shape, self._num_timesteps, self.recipe.loss)

    def _over_processes(self, values: torch.Tensor) -> list[float]:
        """Sums over all processes."""
        if self.args.world_size > 1:
            reduced: Any = self.accelerator.reduce(values.to(self.args.device))
            return reduced.tolist()
        return values.tolist()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            if not torch.isfinite(torch.tensor(logs["loss"])):
                raise UsageError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: lower trainer.learning_rate or trainer.max_grad_norm; "
                    f"the last checkpoint is in {self.args.output_dir}"
                )
            weights = (self.recipe.loss.weight_lm, self.recipe.loss.weight_vm)
            if not any(weight and count for weight, count in zip(weights, self._counted, strict=True)):
                raise UsageError(
                    f"nothing was learnt up to step {self.state.global_step}: the losses that the recipe weighs have neither words to say "
                    "nor images to generate images in its data; change loss or the sources' mode"
                )
            logs = logs | mean_losses(self._over_processes(self._sums), self._counted)
            self._sums, self._counted = torch.zeros(2), [0, 0]
        # The stream has no epochs; the part of the run that is done is also right after a resume.
        state: Any = self.state
        state.epoch = state.global_step / state.max_steps if state.max_steps else None
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The usual 6 x tokens x parameters, without counting the parameters again at every step."""
        return 6 * inputs["input_ids"].numel() * self._num_parameters

    # Evaluation

    @torch.no_grad()
    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Both losses on `data.eval_samples` samples, the same ones with the same noise every time."""
        model: Any = self.model_wrapped
        model.eval()
        sums = torch.zeros(4)
        for index, batch in enumerate(self.get_eval_dataloader()):
            inputs = self._prepare_inputs(batch)
            tokens, images = counts = count_targets(inputs)
            draws = self.draws(inputs, index, self.args.per_device_eval_batch_size, evaluation=True)
            losses = model(**inputs, draws=draws, counts=counts)
            sums += torch.tensor([float(losses.lm) * tokens, float(losses.vm) * images, tokens, images])
        model.train()
        lm, vm, tokens, images = self._over_processes(sums)
        means = mean_losses([lm, vm], [tokens, images])
        settings = self.recipe.loss
        weighted = settings.weight_lm * means.get("lm_loss", 0) + settings.weight_vm * means.get("vm_loss", 0)
        means["loss"] = weighted / loss_scale(settings)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What learns, and no more. No pickle of our arguments: the recipe says what they were."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model: Any = self.model
        names = learnt_names(model)
        values = dict(model.named_parameters()) if state_dict is None else state_dict
        save_file({name: values[name].detach().cpu().contiguous() for name in names}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        path = Path(resume_from_checkpoint) / WEIGHTS
        learner: Any = self.model
        own = dict(learner.named_parameters())
        try:
            saved = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): remove {path.parent} to go on from the one before"
            ) from None
        if set(saved) != set(learnt_names(learner)):
            raise CheckpointError(f"{path} does not hold what this recipe trains")
        with torch.no_grad():
            for name, tensor in saved.items():
                own[name].copy_(tensor)


def mean_losses(sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    """Language and image loss from their sums over labels and images; one of which there was nothing is left out."""
    named = zip(("lm_loss", "vm_loss"), sums, counts, strict=True)
    return {name: total / count for name, total, count in named if count}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; what a kill left half-written is removed. The trainer's state is written last."""
    found = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")}
    numbered = {path: int(number) for path, number in found.items() if number.isdecimal()}
    for path in sorted(numbered, key=lambda path: numbered[path], reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path)
            continue
        return path
    return None
