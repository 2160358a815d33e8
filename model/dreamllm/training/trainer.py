"""transformers' Trainer for two losses: exact under gradient accumulation, over several processes, and after a resume."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, save_fsdp_optimizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks, is_deepspeed_zero3_enabled
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from dreamllm.checkpoint import check_tensors
from dreamllm.data import TrainingData
from dreamllm.errors import CheckpointError, UsageError, one_line
from dreamllm.files import append_json_line, errors_of_writing, read_json, write_text
from dreamllm.layers import count_spans
from dreamllm.options import has_type
from dreamllm.processing import DreamLLMProcessor
from dreamllm.recipe import LENGTHS, Recipe
from dreamllm.training import sharding, tracking
from dreamllm.training.callbacks import FlopsOf, Monitored, Monitors, Throughput, count_work, peak_tflops
from dreamllm.training.losses import Draws, DreamLLMForTraining, count_targets, draw, weighted_loss

PATIENCE = 100  # samples without anything to learn, from the start of a run, that end it
CHECKPOINTS, LOGS, TIMINGS, WEIGHTS = "checkpoints", "logs.jsonl", "timings.jsonl", "model.safetensors"
FIXED = {
    "output_dir": "use the recipe's output",
    "seed": "use data.seed",
    "data_seed": "use data.seed",
    "remove_unused_columns": "the collator returns what the model accepts",
    "ignore_data_skip": "a resumed run skips the data it has seen by itself",
    "resume_from_checkpoint": "use --resume",
    "load_best_model_at_end": "the last weights are the result",
    "auto_find_batch_size": "the result depends on the batch size",
}
IGNORED = {  # by this trainer's own losses and data loaders
    "label_smoothing_factor": "the language loss has no smoothing",
    "train_sampling_strategy": "data.seed alone gives the order of the samples; loss.length_groups avoids padding",
    "length_column_name": "data.seed alone gives the order of the samples; loss.length_groups avoids padding",
    "average_tokens_across_devices": "losses are always means over all processes",
    "dataloader_drop_last": "all batches of training are full",
}
STRATEGIES = ("save_strategy", "eval_strategy", "logging_strategy")

# Doors to the network: training uses none beyond the processes of its own launch.
DOORS = ("push_to_hub", "hub_", "trackio_")


def process_state(recipe: Recipe) -> PartialState:
    """The processes of this run. Without an accelerator, accelerate finds the others only with `cpu=True`."""
    return PartialState(cpu=bool(recipe.trainer.get("use_cpu")) or not torch.accelerator.is_available())


def check_fields(recipe: Recipe) -> None:
    """UsageError for a field of `recipe.trainer` that transformers does not have, or that other parts of the recipe determine."""
    options: dict[str, Any] = {**recipe.trainer}
    known = {field.name for field in fields(TrainingArguments) if field.init}
    declared = get_type_hints(TrainingArguments)
    for name in options:
        if reason := (FIXED | IGNORED).get(name):
            raise recipe.error(f"trainer.{name} cannot be set: {reason}")
        if name in STRATEGIES and options[name] is False:
            raise recipe.error(f'trainer.{name}: YAML reads no as false: write "no", in quotes')
        if name in STRATEGIES and options[name] == "epoch":
            raise recipe.error(f"trainer.{name} cannot be epoch: samples are one sequence without epochs; use steps")
        if name.startswith(DOORS):
            raise recipe.error(
                f"trainer.{name} cannot be set: training does not use the network; upload the result yourself"
            )
        if name not in known:
            raise recipe.error(f"trainer.{name} is not a field of transformers.TrainingArguments")
        if not has_type(options[name], declared[name]):  # which transformers does not check
            raise recipe.error(f"trainer.{name} is {str(options[name])[:80]!r}, must be {declared[name]}")
    tracking.check_reports(recipe, options)
    lengths = [name for name in LENGTHS if name in options]
    if len(lengths) != 1 or not options[lengths[0]] > 0:
        raise recipe.error("trainer: set max_steps or num_train_epochs, one of them and above 0")


def training_arguments(recipe: Recipe, samples: int) -> TrainingArguments:
    """`recipe.trainer` as transformers' arguments, for an epoch of so many samples. Raises UsageError as `check_fields`."""
    check_fields(recipe)
    options: dict[str, Any] = {**recipe.trainer}
    if "num_train_epochs" in options:
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        batch = math.prod(options.get(name, getattr(TrainingArguments, name)) for name in names)
        batch *= process_state(recipe).num_processes
        options["max_steps"] = math.ceil(options.pop("num_train_epochs") * samples / batch)
    defaults: dict[str, Any] = {
        "report_to": "none",
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,
        "ddp_find_unused_parameters": False,  # every trained part has a gradient at every step
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps" if recipe.data.eval_sources else "no",
        # Without an accelerator the processes of a launch find each other only on demand, see `process_state`.
        "use_cpu": not torch.accelerator.is_available() and process_state(recipe).num_processes > 1,
    }
    fixed: dict[str, Any] = {
        "output_dir": str(recipe.output / CHECKPOINTS),
        "seed": recipe.data.seed,
        "remove_unused_columns": False,
        "ignore_data_skip": True,
    }
    try:
        arguments = TrainingArguments(**(defaults | options | fixed))
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()  # RuntimeError if its package cannot be used
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise recipe.error(f"trainer: {one_line(error)}") from None
    return arguments


def receives_weights(recipe: Recipe) -> bool:
    """Whether FSDP sends this process the weights, which process 0 alone reads: the option `cpu_ram_efficient_loading`."""
    if process_state(recipe).is_main_process or not sharding.is_wanted(recipe):
        return False
    training_arguments(recipe, samples=1)  # puts the recipe's own `fsdp_config` into the environment
    return parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING")


@dataclass
class BatchIndices:
    """The sample indices of one process's `count` batches, from batch `first` on.

    With `samples`, only indices below it: the last batches are then shorter. All processes have equally many batches, because sharded
    ones wait for each other at each; where nothing is left for one, its batch is sample 0.
    """

    batch_size: int
    first: int
    count: int
    process: int
    processes: int
    samples: int | None = None

    def begin(self, number: int) -> int:
        """The first index of a batch; `samples` or more if nothing is left for it."""
        return (number * self.processes + self.process) * self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.first, self.first + self.count):
            indices = range(self.begin(number), self.begin(number) + self.batch_size)
            yield [index for index in indices if self.samples is None or index < self.samples] or [0]


class LogAtCheckpoints(TrainerCallback):
    """Logs at every checkpoint: a log line holds means since the line before, and a resumed run must log the same means.

    And after the last step, so that the progress of every run is checked.
    """

    def on_step_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_log |= control.should_save or state.global_step >= state.max_steps
        return control


class DreamLLMTrainer(Trainer):
    """Trainer for `DreamLLMForTraining`.

    The language loss is the mean over all labels of a step (of its micro-batches in all processes), and the image loss over all
    images. The random numbers of the image loss depend on the seed and the sample alone. Checkpoints hold the trained parameters only.
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
        # Since the last log line: summed losses of this process; labels and images of all processes.
        self._sums, self._counted = torch.zeros(2), [0, 0]
        self._micro_batch = (-1, 0)  # step, number within the step
        self._first_step = 0
        self.throughput = Throughput()
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
            callbacks=[LogAtCheckpoints()],
        )
        if self.args.n_gpu > 1:
            raise UsageError(
                f"one process sees {self.args.n_gpu} GPUs: start it with `accelerate launch`, or set CUDA_VISIBLE_DEVICES"
            )

    def create_accelerator_and_postprocess(self) -> None:
        wanted = sharding.is_wanted(self.recipe)
        if wanted:
            sharding.allow_cpu()
        super().create_accelerator_and_postprocess()
        if self.recipe.lora is not None and (wanted or self.is_deepspeed_enabled):
            raise self.recipe.error("lora: adapters cannot be sharded: use `accelerate launch --multi_gpu`")
        if wanted:
            sharding.prepare(self.accelerator, cast("nn.Module", self.model))

    def train(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        history: list[dict[str, Any]] = []
        if resume_from_checkpoint:
            # The data loader, which is made before the library reads its own state, needs the step.
            state = TrainerState.load_from_json(str(Path(str(resume_from_checkpoint)) / TRAINER_STATE_NAME))
            self._first_step, history = state.global_step, state.log_history
            self._check_checkpoint(Path(str(resume_from_checkpoint)))
            self.args.eval_on_start = False  # the start is over, and its line is in the history
        if self.is_world_process_zero():
            # Without the lines that a killed run logged after its last checkpoint: they will be logged again.
            lines = "".join(json.dumps(line, sort_keys=True) + "\n" for line in history)
            write_text(self.recipe.output / LOGS, lines)
            rotate_checkpoints(str(self.args.output_dir), self.args.save_total_limit)  # what a kill prevented
        with tracking.mlflow_store(self.recipe.output):
            return super().train(resume_from_checkpoint, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        with self._refused("optimizer"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with self._refused("scheduler"):
            return super().create_scheduler(*args, **kwargs)

    @contextmanager
    def _refused(self, what: str) -> Generator[None]:
        """UsageError for options of the recipe that the library refuses only when it makes the optimizer or the scheduler."""
        try:
            yield
        except (ValueError, TypeError, ImportError) as error:
            raise self.recipe.error(f"trainer: wrong options of the {what}: {one_line(error)}") from None

    def _check_checkpoint(self, folder: Path) -> None:
        """UsageError for a checkpoint of another number of processes, or without an optimizer's state of this kind.

        The library would go on with other data, or without the state, or stumble over it.
        """
        states, size = {path.stem for path in folder.glob("rng_state*.pth")}, self.args.world_size
        # One of each process; a folder of one machine alone has those of its own processes.
        expected = [f"rng_state_{process}" for process in range(size)] if size > 1 else ["rng_state"]
        if states and (states - {*expected} or expected[self.args.process_index] not in states):
            raise UsageError(
                f"{folder} was written by {len(states)} processes, not {size}: the size of a batch, and which samples have been seen, "
                f"depend on their number: start {len(states)}, or choose another output"
            )
        name = sharding.optimizer_file(self.accelerator) if self.is_fsdp_enabled else OPTIMIZER_NAME
        if not self.is_deepspeed_enabled and not (folder / name).exists():
            raise UsageError(
                f"{folder} has no {name}: resume with the sharding that it was written with, or remove that folder "
                "(save_only_model leaves nothing to resume from)"
            )

    # Data

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Workers read no further than the last step. A run that was killed after it only lacks its result.
        micro_batches = self.args.gradient_accumulation_steps
        first, count = self._first_step * micro_batches, (self.args.max_steps - self._first_step) * micro_batches
        return self._loader(self.data, self.args.per_device_train_batch_size, first, count)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        if self.eval_data is None:
            raise UsageError("evaluation needs data.eval_sources in the recipe")
        size, samples = self.args.per_device_eval_batch_size, self.recipe.data.eval_samples
        count = math.ceil(samples / (size * self.args.world_size))
        return self._loader(self.eval_data, size, 0, count, samples)

    def _loader(
        self, data: TrainingData, batch_size: int, first: int, count: int, samples: int | None = None
    ) -> DataLoader[Any]:
        # Not prepared by accelerate: the sampler gives each process its own indices, and starts where a resumed run continues.
        workers = self.args.dataloader_num_workers
        return DataLoader(
            data,
            batch_sampler=BatchIndices(
                batch_size, first, count, self.args.process_index, self.args.world_size, samples
            ),
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            generator=torch.Generator(),  # not the global one, or dropout would differ after a resume
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        self.throughput.fetch()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    # Losses

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The numbers of labels and images in a step's batches of all processes."""
        self.throughput.fetched()
        own = torch.tensor([[*count_targets(batch), *count_work(batch)] for batch in batch_samples], device=device)
        labels, images, *work = (int(total) for total in self._sum_over_processes(own.reshape(-1, 5).sum(0)))
        self._counted = [self._counted[0] + labels, self._counted[1] + images]
        self.throughput.count(labels, images, *work)
        return labels, images

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        (last, micro_batch), step = self._micro_batch, self.state.global_step
        micro_batch = micro_batch + 1 if last == step else 0
        self._micro_batch = (step, micro_batch)
        number = step * self.args.gradient_accumulation_steps + micro_batch
        draws = self.draws(inputs, number, self.args.per_device_train_batch_size)
        losses = model(**inputs, draws=draws, counts=num_items_in_batch)
        tokens, images = num_items_in_batch
        self._sums = self._sums.to(losses.lm.device) + torch.stack([losses.lm * tokens, losses.vm * images]).float()
        # Gradients are averaged over processes, while the counts are sums over them.
        loss = losses.total * self.args.world_size
        return (loss, losses) if return_outputs else loss

    def draws(self, batch: dict[str, Any], number: int, batch_size: int, evaluation: bool = False) -> Draws | None:
        """The draws of this process's batch `number`; an image's key is the seed, its sample's index, and its number in the sample."""
        if "target_pixels" not in batch:
            return None
        counts = count_spans(batch["input_ids"], *self._dream_span).tolist()
        first = (number * self.args.world_size + self.args.process_index) * batch_size
        stem = (self.recipe.data.seed, int(evaluation))
        keys = [(*stem, first + row, index) for row, count in enumerate(counts) for index in range(count)]
        return draw(keys, self._latent_shape, self._num_timesteps, self.recipe.loss)

    def _sum_over_processes(self, values: torch.Tensor) -> list[float]:
        if self.args.world_size > 1:
            reduced: Any = self.accelerator.reduce(values.to(self.args.device))
            return reduced.tolist()
        return values.tolist()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        speed = self.throughput.read() if "loss" in logs else {}
        if "loss" in logs:
            logs = logs | _mean_losses(self._sum_over_processes(self._sums), self._counted)
            self._sums, self._counted = torch.zeros(2), [0, 0]
            self._check_progress(logs)
        # The sequence of samples has no epochs; the fraction of the run is also right after a resume.
        state: Any = self.state
        state.epoch = state.global_step / state.max_steps if state.max_steps else None
        super().log(logs, start_time)
        # The line at the end has times, which are not the same again, and means since the last start.
        if self.is_world_process_zero() and "train_runtime" not in logs:
            append_json_line(self.recipe.output / LOGS, state.log_history[-1])
        if speed:
            self.report(speed)
            if self.is_world_process_zero():
                append_json_line(self.recipe.output / TIMINGS, {"step": state.global_step} | speed)

    def report(self, values: dict[str, float]) -> None:
        """Show numbers on the terminal and in the trackers. They may be times, so no file that a resumed run repeats gets them."""
        due = self.control.should_log
        self.callback_handler.on_log(self.args, self.state, self.control, dict(values))
        self.control.should_log = due  # a report is no log line

    def watch(self, processor: DreamLLMProcessor, flops: Callable[[], FlopsOf]) -> None:
        """Measure throughput, and call the monitors of the recipe.

        Args:
            flops: makes the function that `Throughput` needs for `mfu`; called if the peak of the device is known.
        """
        recipe, main, device = self.recipe, self.is_world_process_zero(), self.args.device
        dtype = torch.bfloat16 if self.args.bf16 or self.args.fp16 else getattr(torch, recipe.start.dtype)
        self.throughput.device, self.throughput.processes = device, self.args.world_size
        self.throughput.peak = recipe.monitor.peak_tflops or peak_tflops(device, dtype)
        if self.throughput.peak is not None and main:
            self.throughput.flops = flops()
        if recipe.monitor.callbacks and (self.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
            raise recipe.error(
                "monitor.callbacks need whole weights in each process: remove them, or do not shard weights"
            )
        self.add_callback(Monitors(Monitored(recipe, processor, self.report, main), self.throughput))

    def _check_progress(self, logs: dict[str, float]) -> None:
        """UsageError for a loss that is not finite, and for a run in which no loss with a weight has had a target so far."""
        loss, step, args, settings = logs["loss"], self.state.global_step, self.args, self.recipe.loss
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss is {loss} at step {step}: lower trainer.learning_rate or trainer.max_grad_norm; "
                f"the last checkpoint is in {args.output_dir}"
            )
        samples = step * args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        weighted = [name for name in ("lm_loss", "vm_loss") if getattr(settings, f"weight_{name[:2]}")]
        learned = any(name in line for line in (logs, *self.state.log_history) for name in weighted)
        if not learned and (samples >= PATIENCE or step >= self.state.max_steps):
            raise UsageError(
                f"nothing was learned up to step {step}: the data have no labels or target images for the losses with a weight above 0; "
                "change the weights in `loss`, or the `mode` of the sources"
            )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 x tokens x parameters, as in transformers, without counting the parameters again at every step."""
        return 6 * inputs["input_ids"].numel() * self._num_parameters

    # Evaluation

    @torch.no_grad()
    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Both losses on `data.eval_samples` samples, with the same noise every time."""
        self.throughput.stop()
        model: Any = self.model_wrapped
        model.eval()
        sums = torch.zeros(4)
        loader = self.get_eval_dataloader()
        indices = cast("BatchIndices", loader.batch_sampler)
        for number, batch in enumerate(loader):
            inputs = self._prepare_inputs(batch)
            counted = indices.begin(number) < self.recipe.data.eval_samples
            tokens, images = counts = count_targets(inputs) if counted else (0, 0)
            draws = self.draws(inputs, number, indices.batch_size, evaluation=True)
            losses = model(**inputs, draws=draws, counts=counts)
            sums += torch.tensor([float(losses.lm) * tokens, float(losses.vm) * images, tokens, images])
        model.train()
        lm, vm, tokens, images = self._sum_over_processes(sums)
        means = _mean_losses([lm, vm], [tokens, images])
        means["loss"] = weighted_loss(self.recipe.loss, means.get("lm_loss", 0), means.get("vm_loss", 0))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        try:
            with errors_of_writing(folder):
                super()._save_checkpoint(model, trial)
        except Exception:
            last_checkpoint(folder)  # removes what is incomplete
            raise

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.is_fsdp_enabled:  # the library would gather the frozen parameters as well
            self._save(output_dir, sharding.gather_trained(cast("nn.Module", self.model)))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The trained parameters only, and no pickle of the arguments."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained: Any = sharding.trained_parameters(cast("nn.Module", self.model))
        values = trained if state_dict is None else state_dict
        save_file({name: values[name].detach().cpu().contiguous() for name in trained}, folder / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # As the library, but without `save_fsdp_model`, which writes the whole model.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(cast("Any", self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the trainer's state, which makes a checkpoint complete, is written next

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint) / WEIGHTS
        own = cast("nn.Module", self.model)
        parameters = sharding.trained_parameters(own)
        saved: dict[str, torch.Tensor] = {}
        if not self.is_fsdp_enabled or self.accelerator.is_main_process:
            try:
                saved = load_file(path)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{path} cannot be read ({error}): remove {path.parent} to resume from the checkpoint before it"
                ) from None
            names, found = set(parameters), set(saved)
            check_tensors(f"{path}, read for this recipe,", names - found, found - names)
        if self.is_fsdp_enabled:
            sharding.scatter_trained(own, saved)
            return
        with torch.no_grad():
            for name, tensor in saved.items():
                parameters[name].copy_(tensor)


def _mean_losses(sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    """Language and image loss from their sums over labels and images; a loss without any is left out."""
    named = zip(("lm_loss", "vm_loss"), sums, counts, strict=True)
    return {name: total / count for name, total, count in named if count}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. Incomplete ones, left by a kill, are removed; the trainer's state is written last."""
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))):
        try:
            read_json(Path(newest) / TRAINER_STATE_NAME)
            return Path(newest)
        except CheckpointError:
            shutil.rmtree(newest)
    return None
