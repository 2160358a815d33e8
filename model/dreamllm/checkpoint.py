"""Load, save and convert checkpoints in the native layout (that of `save_pretrained`, safetensors) and in the released one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dreamllm import released
from dreamllm.configuration import DreamLLMConfig
from dreamllm.errors import CheckpointError, UsageError, first_line
from dreamllm.files import check_new_folder, find_checkpoint, new_folder
from dreamllm.modeling import DreamLLMForConditionalGeneration
from dreamllm.options import Dtype, Layout, choose
from dreamllm.processing import DreamLLMProcessor

Loaded = tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]
SENTENCEPIECE = "tokenizer.model"  # copied for the original, which needs it


def load(
    folder_or_id: str | Path | None = None,
    *,
    clip: str | Path | None = None,
    diffusion: str | Path | None = None,
    plugins: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Loaded:
    """A model in eval mode and its processor, from a folder or a hub id, in the native or the released layout.

    Args:
        folder_or_id: default: the embedded checkpoint, a small trained model that is installed with the package.
        clip, diffusion: folders of the CLIP and Stable Diffusion models that a released checkpoint names but does not hold; they provide
            configurations, scheduler and preprocessor, while all weights come from the checkpoint.
        plugins: folder of a released checkpoint's three .bin files, if they are not in its own.
        dtype: float32, bfloat16 or float16; default: as stored.

    Raises CheckpointError for a missing, unexpected or mismatched tensor, and for one with NaN or infinite values.
    `model.config.untrained` is true for random weights.
    """
    folder = find_checkpoint(folder_or_id)
    if released.is_released(folder):
        clip, diffusion = released.find_submodels(folder, clip, diffusion)
        plugins = folder if plugins is None else Path(plugins)
        config = released.read_config(folder, clip, diffusion)
        model = from_state(config, released.read_state(folder, plugins, config), dtype, where=folder)
        tokenizer_folder = folder if (folder / "tokenizer_config.json").is_file() else plugins
        processor = DreamLLMProcessor.from_released(tokenizer_folder, clip, config)
    elif clip or diffusion or plugins:
        raise UsageError(
            f"{folder} has the native layout and holds all its parts: leave out clip, diffusion and plugins"
        )
    else:
        model, processor = _load_native(folder, dtype)
    check_finite(folder, model)
    if device is not None:
        module: Any = model  # the library's decorated `to` has lost its types
        module.to(torch.device(device))
    return model, processor


def _load_native(folder: Path, dtype: str | torch.dtype | None) -> Loaded:
    dtype = torch_dtype(dtype) or "auto"
    try:
        loaded: Any = DreamLLMForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True
        )
        processor: Any = DreamLLMProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        # The library's errors for files that are missing, empty, truncated or of another kind.
        raise CheckpointError(f"{folder} cannot be read as a checkpoint: {first_line(error)}") from error
    model, info = loaded
    mismatched = [f"{name} is {tuple(found)}, expected {tuple(size)}" for name, found, size in info["mismatched_keys"]]
    check_tensors(folder, info["missing_keys"], info["unexpected_keys"], mismatched)
    return model.eval(), processor


def from_state(
    config: DreamLLMConfig,
    state: Mapping[str, torch.Tensor],
    dtype: str | torch.dtype | None = None,
    where: object = "the checkpoint",
) -> DreamLLMForConditionalGeneration:
    """A model with exactly these weights (native names), in eval mode."""
    with torch.device("meta"):
        expected = DreamLLMForConditionalGeneration(config).state_dict()
    check_tensors(where, set(expected) - set(state), set(state) - set(expected), mismatched_tensors(state, expected))
    dtype = torch_dtype(dtype) or state["dream_queries"].dtype
    model = DreamLLMForConditionalGeneration.from_pretrained(None, config=config, state_dict=dict(state), dtype=dtype)
    return model.eval()


def mismatched_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """The tensors of both that differ in shape, with their shapes, sorted by name."""
    return [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(set(found) & set(expected))
        if found[name].shape != expected[name].shape
    ]


def check_tensors(
    where: object, missing: Iterable[str] = (), unexpected: Iterable[str] = (), mismatched: Iterable[str] = ()
) -> None:
    """Raise CheckpointError, naming the first tensors, unless all three are empty."""
    problems = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
    found = [f"{kind}: {_enumerate(sorted(names))}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{where} does not match its configuration; tensors {'; '.join(found)}")


def check_finite(where: object, model: torch.nn.Module) -> None:
    """Raise CheckpointError, naming the first tensors, if a weight is NaN or infinite."""
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.numel()]
    found = [name for name, weight in weights if not bool(torch.stack(weight.aminmax()).isfinite().all())]
    if found:
        raise CheckpointError(
            f"{where} has NaN or infinite values in {_enumerate(found)}: take an undamaged checkpoint, or --dtype float32 if the dtype is"
            " too narrow"
        )


def _enumerate(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    clip: str | Path | None = None,
    diffusion: str | Path | None = None,
) -> None:
    """Write the checkpoint `source` to the new folder `target` in the layout `to`, "native" or "released"."""
    layout, target = choose(Layout, to, "layout"), check_new_folder(target)
    folder = find_checkpoint(source)
    model, processor = load(folder, clip=clip, diffusion=diffusion)
    with new_folder(target) as unfinished:
        if layout == Layout.native:
            _write_native(unfinished, model, processor)
        else:
            released.write(unfinished, model.config, model.state_dict())
            processor.save_released(unfinished)
        if (folder / SENTENCEPIECE).is_file():
            shutil.copy(folder / SENTENCEPIECE, unfinished / SENTENCEPIECE)


def save(folder: str | Path, model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor) -> None:
    """Write the native layout: safetensors, configuration, tokenizer, image processor, chat template. An error leaves nothing behind."""
    with new_folder(folder) as unfinished:
        _write_native(unfinished, model, processor)


def _write_native(folder: Path, model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name; None stays None."""
    return getattr(torch, choose(Dtype, dtype, "dtype")) if isinstance(dtype, str) else dtype
