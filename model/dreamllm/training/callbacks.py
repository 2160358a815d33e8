"""What is watched while a model trains, without a trace in the result: throughput, sample sheets, benchmark scores."""

from __future__ import annotations

import copy
import random
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dreamllm.modeling import DreamLLMForConditionalGeneration
from dreamllm.processing import DreamLLMProcessor
from dreamllm.recipe import Recipe

GROUP = "dreamllm.monitors"  # entry points: NAME -> function that makes a Monitor from its options and a `Monitored`
Model = DreamLLMForConditionalGeneration
Monitor = Callable[[Model, int], None]
"""Called with the model that is being trained, in inference mode, and the number of steps."""
FlopsOf = Callable[..., float]

# Dense bfloat16 TFLOP/s of a device, from the vendors' data sheets; the first that the device's name contains as a word.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H200": 989.4,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "MI300X": 1307.4,
}


@dataclass(frozen=True)
class Monitored:
    """What a monitor is made with."""

    recipe: Recipe
    processor: DreamLLMProcessor
    report: Callable[[dict[str, float]], None]
    """Shows numbers on the terminal and in the trackers (`trainer.report_to`), not in `logs.jsonl`."""
    main: bool
    """Whether this is the process that writes. Monitors are called in all processes."""


def peak_tflops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The most that a known GPU can do in bfloat16 or float16; None for all others, and for CPUs."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_TFLOPS.items() if re.search(rf"\b{key}\b", name)), None)


def count_work(batch: dict[str, torch.Tensor]) -> list[int]:
    """Tokens without padding, the sum of the rows' squared lengths, and input images of a batch."""
    lengths = batch["attention_mask"].sum(1)
    return [int(lengths.sum()), int((lengths**2).sum()), len(batch.get("pixel_values", ()))]


class Throughput:
    """The speed of training since the last reading, without evaluations, checkpoints and monitors.

    The trainer says when it begins to wait for data, when it has them, and when it stops to do something else.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.processes = 1
        self.peak: float | None = None  # TFLOP/s of one device
        self.flops: FlopsOf | None = None
        self._reset()

    def _reset(self) -> None:
        self.steps, self.seconds, self.waiting = 0, 0.0, 0.0
        self.counts = np.zeros(5)  # tokens, squared lengths, labels, input images, generated images
        self._began: float | None = None

    def fetch(self) -> None:
        """The next step begins: the process waits for its batches."""
        self._now = time.perf_counter()
        self._began = self._now if self._began is None else self._began

    def fetched(self) -> None:
        """The batches are there."""
        self.waiting += time.perf_counter() - self._now
        self.steps += 1

    def count(self, labels: int, generated_images: int, tokens: int, squares: int, input_images: int) -> None:
        """What is in the step, of all processes; see `count_work`."""
        self.counts += (tokens, squares, labels, input_images, generated_images)

    def stop(self) -> None:
        """The time that follows is not training's, until the next step."""
        if self._began is not None:
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
            self.seconds += time.perf_counter() - self._began
            self._began = None

    def read(self) -> dict[str, float]:
        """Of all processes together, if not said otherwise; starts again at 0. Empty if there was no step.

        `tokens_per_second` (without padding), `images_per_second` (input and generated ones), `seconds_per_step`, `data_share` (the
        share of this process's time that it waits for batches), and for a device of known peak `tflops` (of one device) and `mfu`
        (their share of the peak).
        """
        self.stop()
        if not self.steps or not self.seconds:
            return {}
        values = {
            "tokens_per_second": self.counts[0] / self.seconds,
            "images_per_second": self.counts[3:].sum() / self.seconds,
            "seconds_per_step": self.seconds / self.steps,
            "data_share": self.waiting / self.seconds,
        }
        if self.flops is not None and self.peak is not None:
            tflops = self.flops(*self.counts) / self.seconds / self.processes / 1e12
            values |= {"tflops": tflops, "mfu": tflops / self.peak}
        self._reset()
        return {name: float(f"{value:.4g}") for name, value in values.items()}


@contextmanager
def inference(model: Any) -> Generator[Model]:
    """The model that is being trained, as it generates: in eval mode, without gradients. Afterwards, all is as before.

    That includes the mode of each part and the states of all random generators, so that training goes on as if nothing had been.
    """
    modes = [(module, module.training) for module in model.modules()]
    kind, generation = type(model), copy.deepcopy(model.generation_config)
    forward = model.__dict__.pop("forward", None)  # in mixed precision, accelerate puts its own around it
    python, numpy = random.getstate(), np.random.get_state()
    devices = [model.device] if model.device.type != "cpu" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            model.__class__ = Model
            yield model.eval()
    finally:
        model.__class__, model.generation_config = kind, generation
        if forward is not None:
            model.forward = forward
        for module, training in modes:
            module.training = training
        model._unconditional = None  # made without gradients
        random.setstate(python)
        np.random.set_state(numpy)


class Monitors(TrainerCallback):
    """Calls each monitor of a recipe after every so many steps and after the last one.

    UsageError for a name that is not registered, and for wrong options.
    """

    def __init__(self, monitored: Monitored, throughput: Throughput) -> None:
        self.throughput = throughput
        self.monitors: list[tuple[int, Monitor]] = []
        recipe, registered = monitored.recipe, {point.name: point for point in entry_points(group=GROUP)}
        for name, options in recipe.monitor.callbacks.items():
            where = f"monitor.callbacks.{name}"
            if name not in registered:
                raise recipe.error(f"{where} is not registered; choose from {', '.join(sorted(registered))}")
            every = options.get("every")
            if not isinstance(every, int) or isinstance(every, bool) or every < 1:
                raise recipe.error(f"{where}.every is {every!r}, must be a number of steps above 0")
            make = registered[name].load()
            self.monitors.append((every, make({k: v for k, v in options.items() if k != "every"}, monitored)))

    def on_step_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        step = state.global_step
        for every, monitor in self.monitors:
            if step % every == 0 or step == state.max_steps:
                self.throughput.stop()
                with inference(model) as live:
                    monitor(live, step)
