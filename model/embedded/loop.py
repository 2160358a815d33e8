"""The training loop of the surrogates: AdamW, linear warm-up and cosine decay, resumable from one checkpoint file.

The loss of a step is a function of the weights and the step number only (no dropout, no generator that lives across steps), so a run
that is killed and started again ends with the same weights as an undisturbed one.

Shapes: B batch; images are (B, 64, 64, 3) uint8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy import uint8
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import trange

from dreambench.errors import DataError
from dreambench.files import replacing
from dreambench_tasks.playground import Scene, render_many

__all__ = ["Settings", "generator_of", "is_finished", "object_mask", "pixels_of", "reproducible", "train"]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Settings:
    """How a surrogate is trained. A checkpoint is resumed only with the settings it was written with."""

    steps: int
    batch: int
    learning_rate: float
    seed: int = 0
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    decay: bool = True  # of the learning rate, along a cosine to zero; otherwise it stays constant
    average: float | None = None  # decay of the exponential moving average of the weights, which is then the result
    save_every: int = 100


def train(folder: Path, model: nn.Module, loss_of: Callable[[int], Tensor], settings: Settings) -> list[float]:
    """Train the parameters of ``model`` that require gradients; returns the loss of every step.

    ``folder/checkpoint.safetensors`` holds weights, averages and the moments of AdamW; the caller deletes it once the result is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    averages = {name: p.detach().clone() for name, p in parameters.items()} if settings.average is not None else {}
    done, losses = _load(path, parameters, averages, optimizer, settings) if path.is_file() else (0, [])
    for step in trange(done, settings.steps, desc=folder.name, initial=done, total=settings.steps, disable=None):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        if settings.average is not None:
            decay = min(
                settings.average, (1 + step) / (10 + step)
            )  # short memory at the start, as in diffusers' EMAModel
            for name, average in averages.items():
                average.lerp_(parameters[name].detach(), 1 - decay)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise DataError(f"{folder.name}: the loss of step {step} is {losses[-1]}; lower the learning rate")
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(path, parameters, averages, optimizer, {**_record(settings), "done": step + 1, "losses": losses})
    with torch.no_grad():
        for name, average in averages.items():
            parameters[name].copy_(average)
    return losses


def is_finished(folder: Path) -> bool:
    """Whether a trained model was saved in ``folder`` completely: the caller of `train` deletes the checkpoint after that."""
    return (folder / "config.json").is_file() and not (folder / CHECKPOINT).exists()


def generator_of(seed: int, step: int) -> torch.Generator:
    """The random generator of a step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@contextmanager
def reproducible(seed: int) -> Generator[None]:
    """One thread, so that sums keep their order, and initial weights from ``seed``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def pixels_of(images: NDArray[uint8]) -> Tensor:
    """``(B, 64, 64, 3)`` uint8 to ``(B, 3, 64, 64)`` float32 in -1 … 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def object_mask(scenes: Sequence[Scene], images: NDArray[uint8]) -> Tensor:
    """``(B, 1, 64, 64)``: 1.0 where the scenes' images show an object or its shadow, else 0.0."""
    empty = render_many(replace(scene, things=()) for scene in scenes)
    return torch.from_numpy((images != empty).any(axis=-1)).float()[:, None]


def _schedule(step: int, settings: Settings) -> float:
    warmup = min(settings.warmup, max(1, settings.steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    if not settings.decay:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def _record(settings: Settings) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings)))


def _save(path: Path, parameters: Any, averages: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    tensors = {f"average.{name}": average for name, average in averages.items()}
    for name, parameter in parameters.items():
        tensors[f"model.{name}"] = parameter.detach()
        tensors |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in ("exp_avg", "exp_avg_sq")}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as unfinished:
        save_file(contiguous, unfinished, metadata={"state": json.dumps(state)})


def _load(
    path: Path, parameters: Any, averages: Any, optimizer: torch.optim.Optimizer, settings: Settings
) -> tuple[int, list[float]]:
    with safe_open(path, framework="pt") as file, torch.no_grad():
        state = json.loads(file.metadata()["state"])
        expected = {name: value for name, value in _record(settings).items() if name != "save_every"}
        differing = [f"{name}={state.get(name)}" for name, value in expected.items() if state.get(name) != value]
        if differing:
            raise DataError(f"{path} was written with {' and '.join(differing)}: train with that, or delete the file")
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"model.{name}"))
            moments = {moment: file.get_tensor(f"{moment}.{name}") for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(state["done"])), **moments}
        for name, average in averages.items():
            average.copy_(file.get_tensor(f"average.{name}"))
    return state["done"], state["losses"]
