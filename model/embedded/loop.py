"""The training loop of the surrogates: AdamW, linear warm-up and cosine decay, resumable from one checkpoint file.

The loss of a step is a function of the weights and the step number only (no dropout, no generator that lives across steps), so a run
that is killed and started again ends with the same weights as an undisturbed one.

Shapes: B batch; images are (B, 64, 64, 3) uint8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
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

__all__ = ["Settings", "finish", "generator_of", "is_finished", "object_mask", "pixels_of", "reproducible", "train"]

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

    ``folder/checkpoint.safetensors`` holds weights, averages and the moments of AdamW until `finish`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    averages = {} if settings.average is None else {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    moments = ("exp_avg", "exp_avg_sq")
    tensors = {f"model.{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"{moment}.{name}": torch.zeros_like(p) for moment in moments for name, p in parameters.items()}
    tensors |= {f"average.{name}": average for name, average in averages.items()}
    done, losses = _load(folder / CHECKPOINT, tensors, settings)
    for name, p in parameters.items():
        of_adam = {moment: tensors[f"{moment}.{name}"] for moment in moments}
        optimizer.state[p] = {"step": torch.tensor(float(done)), **of_adam}
    for step in trange(done, settings.steps, desc=folder.name, initial=done, total=settings.steps, disable=None):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * _schedule(step, settings)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        for name, average in averages.items():
            # A short memory at the start, as in diffusers' EMAModel.
            decay = min(settings.average or 0.0, (1 + step) / (10 + step))
            average.lerp_(parameters[name].detach(), 1 - decay)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise DataError(f"{folder.name}: the loss of step {step} is {losses[-1]}; lower the learning rate")
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(folder / CHECKPOINT, tensors, {**asdict(settings), "done": step + 1, "losses": losses})
    for name, average in averages.items():
        parameters[name].detach().copy_(average)
    return losses


def _save(path: Path, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as unfinished:
        save_file(contiguous, unfinished, metadata={"state": json.dumps(state)})


def _load(path: Path, tensors: Mapping[str, Tensor], settings: Settings) -> tuple[int, list[float]]:
    """The number of steps done and their losses; the tensors get the values of the checkpoint, if there is one."""
    if not path.is_file():
        return 0, []
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        expected = json.loads(json.dumps({**asdict(settings), "save_every": state["save_every"]}))
        if differing := [f"{name}={state.get(name)}" for name in expected if state.get(name) != expected[name]]:
            raise DataError(f"{path} was written with {' and '.join(differing)}: train with that, or delete the file")
        for name, tensor in tensors.items():
            tensor.copy_(file.get_tensor(name))
    return state["done"], state["losses"]


def _schedule(step: int, settings: Settings) -> float:
    warmup = min(settings.warmup, max(1, settings.steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    if not settings.decay:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def finish(folder: Path, *parts: Any) -> None:
    """Save a trained model and what belongs to it, the model last; then the checkpoint is no longer needed."""
    for part in parts:
        part.save_pretrained(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def is_finished(folder: Path) -> bool:
    """Whether a trained model was saved in ``folder`` completely."""
    return (folder / "config.json").is_file() and not (folder / CHECKPOINT).exists()


def generator_of(seed: int, step: int) -> torch.Generator:
    """The random generator of a step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@contextmanager
def reproducible(seed: int) -> Generator[None]:
    """Random numbers from ``seed``. Sums keep their order where the number of threads is the same (``OMP_NUM_THREADS``)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def pixels_of(images: NDArray[uint8]) -> Tensor:
    """``(B, 64, 64, 3)`` uint8 to ``(B, 3, 64, 64)`` float32 in -1 … 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def object_mask(scenes: Sequence[Scene], images: NDArray[uint8]) -> Tensor:
    """``(B, 1, 64, 64)``: 1.0 where the scenes' images show an object or its shadow, else 0.0."""
    empty = render_many(replace(scene, things=()) for scene in scenes)
    return torch.from_numpy((images != empty).any(axis=-1)).float()[:, None]
