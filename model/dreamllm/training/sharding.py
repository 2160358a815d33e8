"""Fully sharded data parallel training (FSDP2): accelerate and torch shard; here they are kept to float32 sums and trained parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, fsdp2_canonicalize_names
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from dreamllm.errors import UsageError
from dreamllm.recipe import Recipe


def is_wanted(recipe: Recipe) -> bool:
    """Whether the recipe's trainer, or the configuration that `accelerate launch` passes on, asks for sharding."""
    return bool(recipe.trainer.get("fsdp")) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def allow_cpu() -> None:
    """Let accelerate shard on CPUs, where it ignores an FSDP configuration without a word and replicates the model.

    It shards if the kind of the processes is one of its accelerators'. Device and backend are chosen by now and stay.
    """
    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def prepare(accelerator: Accelerator, model: nn.Module) -> None:
    """Reduce gradients and return losses in float32, as without sharding; layers compute in the precision that is set.

    UsageError unless FSDP2 will shard the model, and apart from the whole only layers that every process calls at every step.
    ValueError for a configuration that accelerate refuses.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        raise UsageError(
            "FSDP is configured, but there is only one process: start it with `accelerate launch --config_file FILE`"
        )
    if not accelerator.is_fsdp2:
        raise UsageError("FSDP 1 is not supported: set fsdp_version to 2")
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.set_auto_wrap_policy(model)
    is_unit = fsdp2_prepare_auto_wrap_policy(plugin, model) or (lambda module: False)
    for name, module in model.named_modules():
        if name and not name.startswith("language_model.") and is_unit(module):
            raise UsageError(
                f"FSDP would wait for ever at {name}, which only batches with images call: set fsdp_transformer_layer_cls_to_wrap to "
                "the layers of the language model, for instance LlamaDecoderLayer"
            )
    if plugin.cpu_ram_efficient_loading:
        _check_same_model(model)
        if accelerator.mixed_precision != "no" and not accelerator.is_main_process:
            for parameter in trained_parameters(model).values():
                # accelerate would convert it, and so take memory for what is sent anyway
                if parameter.dtype != torch.float32:
                    parameter.data = torch.empty_like(parameter, dtype=torch.float32)
    if plugin.mixed_precision_policy is not None:
        changes: dict[str, Any] = {"reduce_dtype": torch.float32, "output_dtype": None}
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **changes)


def _check_same_model(model: nn.Module) -> None:
    """UsageError for what process 0 could not send, and unless its parameters have the names, shapes and dtypes of this process's."""
    state = model.state_dict(keep_vars=True)
    own = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
    buffers = [name for name, value in state.items() if not isinstance(value, nn.Parameter)]
    if buffers or broadcast_object_list([own])[0] != own:
        reason = f"{buffers[0]} is no parameter" if buffers else "processes would start from different models"
        raise UsageError(f"{reason}: set fsdp_cpu_ram_efficient_loading to false")


def optimizer_file(accelerator: Accelerator) -> str:
    """The file or folder of a checkpoint in which accelerate keeps the optimizer's state."""
    plugin: Any = accelerator.state.fsdp_plugin
    return "optimizer.bin" if plugin.state_dict_type.name == "FULL_STATE_DICT" else "optimizer_0"


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By the names that they have without the wrappers of activation checkpointing and compilation."""
    named = fsdp2_canonicalize_names(dict(model.named_parameters()))
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def gather_trained(model: nn.Module) -> dict[str, Any]:
    """The trained parameters, whole and on the CPU, in the main process; nothing in the others. All must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(model, options=options)


def scatter_trained(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """The reverse of `gather_trained`: `values` are read in the main process only. All must call it."""
    # strict, or else it would require the frozen parameters as well
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, dict(values), options=options)
