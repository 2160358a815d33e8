"""The training loop of the surrogates: AdamW, warm-up and cosine, and one checkpoint file from which a killed run goes on.

A step's loss is a function of the weights and of the step's number only (no dropout, no generator that lives between steps), so that
a run that is stopped and started again ends in the same weights as an undisturbed one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dreambench.errors import DataError

__all__ = ["Report", "Settings", "generator_of", "one_thread", "train"]

CHECKPOINT = "checkpoint.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")

Report = Callable[[int, float], None]
"""Called after each step with the number of steps done and the loss."""


@dataclass(frozen=True)
class Settings:
    """How a surrogate is trained. What differs from a checkpoint's record stops a run from going on with it."""

    steps: int
    batch: int
    learning_rate: float
    seed: int = 0
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    average: float | None = None  # decay of the exponential moving average of the weights, which is then what is kept
    save_every: int = 100


def train(
    folder: Path, model: nn.Module, loss_of: Callable[[int], Tensor], settings: Settings, report: Report | None = None
) -> list[float]:
    """Train the parameters of ``model`` that require gradients, and return the loss of every step.

    ``folder/checkpoint.safetensors`` holds weights, averages and both moments of AdamW until the caller has published its result.
    """
    path = folder / CHECKPOINT
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    averages = {name: p.detach().clone() for name, p in parameters.items()} if settings.average is not None else {}
    done, losses = _load(path, parameters, averages, optimizer, settings) if path.is_file() else (0, [])
    for step in range(done, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        if settings.average is not None:
            # Young averages follow the weights closely, or the start would be remembered for long.
            decay = min(settings.average, (1 + step) / (10 + step))
            for name, average in averages.items():
                average.lerp_(parameters[name].detach(), 1 - decay)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise DataError(f"{folder.name}: the loss of step {step} is {losses[-1]}; lower the learning rate")
        if report is not None:
            report(step + 1, losses[-1])
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(path, parameters, averages, optimizer, {**_record(settings), "done": step + 1, "losses": losses})
    with torch.no_grad():
        for name, average in averages.items():
            parameters[name].copy_(average)
    return losses


def generator_of(seed: int, step: int) -> torch.Generator:
    """The noise of a step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@contextmanager
def one_thread() -> Generator[None]:
    """One thread: sums keep their order, and so the weights their bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _record(settings: Settings) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(asdict(settings)))


def _schedule(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(settings.warmup, max(1, settings.steps // 10))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, settings.steps - warm)))


def _save(
    path: Path,
    parameters: dict[str, nn.Parameter],
    averages: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    tensors = {f"average.{name}": average for name, average in averages.items()}
    for name, parameter in parameters.items():
        tensors[f"model.{name}"] = parameter.detach()
        tensors |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    temporary = path.with_suffix(".tmp")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, temporary, metadata={"state": json.dumps(state)})
    temporary.replace(path)


def _load(
    path: Path,
    parameters: dict[str, nn.Parameter],
    averages: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    settings: Settings,
) -> tuple[int, list[float]]:
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        asked = {name: value for name, value in _record(settings).items() if name != "save_every"}
        differs = [f"{name}={state.get(name)}" for name, value in asked.items() if state.get(name) != value]
        if differs:
            raise DataError(f"{path} is of a run with {' and '.join(differs)}: train with that, or remove the file")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(f"model.{name}"))
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(state["done"])),
                    **{moment: file.get_tensor(f"{moment}.{name}") for moment in MOMENTS},
                }
            for name, average in averages.items():
                average.copy_(file.get_tensor(f"average.{name}"))
    return state["done"], state["losses"]
