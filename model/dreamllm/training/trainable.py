"""The model as it is trained: some parts learn, the rest is frozen, and a forward pass gives losses."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import nn

from dreamllm.errors import UsageError
from dreamllm.image_decoder import Scheduler, make_scheduler
from dreamllm.modeling import DreamLLMForConditionalGeneration
from dreamllm.training.losses import Draws, Losses, check_decoder, compute_losses
from dreamllm.training.recipe import Lora, Recipe


class DreamLLMForTraining(DreamLLMForConditionalGeneration):
    """The same weights under the same names, with the losses as forward pass.

    Replicated and sharded trainers gather weights and gradients around `forward`, so that the losses are made inside of it.
    """

    loss_settings: Any
    noise_scheduler: Scheduler

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        target_pixels: torch.Tensor | None = None,
        draws: Draws | None = None,
        counts: tuple[int, int] | None = None,
    ) -> Losses:
        """See `compute_losses`."""
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        optional = {"pixel_values": pixel_values, "target_pixels": target_pixels}
        batch |= {name: value for name, value in optional.items() if value is not None}
        return compute_losses(self, self.noise_scheduler, self.loss_settings, batch, draws, counts)

    def train(self, mode: bool = True) -> Self:
        if (
            mode and self.training
        ):  # asked for before every batch; hundreds of modules take as long as a small one's forward pass
            return self
        super().train(mode)
        self.vision_tower.eval()  # frozen: no dropout, should their configurations have any
        self.image_decoder.eval()
        return self


def make_trainable(model: DreamLLMForConditionalGeneration, recipe: Recipe) -> DreamLLMForTraining:
    """This very model, whose parts named in `recipe.train` learn and whose other parts are frozen."""
    check_decoder(model)
    model.requires_grad_(False)
    for name in recipe.train:
        part: Any = getattr(model, name)
        part.requires_grad_(True)
    if recipe.lora is not None:
        _add_adapters(model, recipe.lora, recipe.start.seed)
    model.__class__ = DreamLLMForTraining
    trainable = cast(DreamLLMForTraining, model)
    trainable.loss_settings = recipe.loss
    trainable.noise_scheduler = make_scheduler("ddpm", model.config.image_decoder_config.scheduler)
    return trainable


def finished(model: DreamLLMForTraining) -> DreamLLMForConditionalGeneration:
    """This very model for use: adapters merged into the weights they adapt."""
    wrapped: Any = model.language_model
    if hasattr(wrapped, "merge_and_unload"):
        model.language_model = wrapped.merge_and_unload()
    whole = cast(DreamLLMForConditionalGeneration, model)
    whole.__class__ = DreamLLMForConditionalGeneration
    return whole.eval()


def learnt_names(model: nn.Module) -> list[str]:
    """The names of all parameters that learn."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def count_by_part(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Part -> (parameters that learn, parameters that do not)."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        first, second, *_ = [*name.split("."), ""]
        part = f"{first}.{second}" if first == "image_decoder" else first
        learnt, frozen = counts.get(part, (0, 0))
        size = parameter.numel()
        counts[part] = (learnt + size, frozen) if parameter.requires_grad else (learnt, frozen + size)
    return counts


def _add_adapters(model: DreamLLMForConditionalGeneration, lora: Lora, seed: int) -> None:
    try:
        from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("lora needs the package peft: pip install 'dreambench[lora]'") from None
    make_config: Any = LoraConfig  # typed for whole numbers only
    config = make_config(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.target_modules)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a resumed run begins from the same adapters
        try:
            model.language_model = get_peft_model(model.language_model, config)
        except ValueError as error:
            raise UsageError(f"lora: {str(error).splitlines()[0]}") from None
