"""Checkpoints in and out: ours (`save_pretrained` of model and processor, safetensors) and the released layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from dreamllm import released
from dreamllm.configuration import DreamLLMConfig
from dreamllm.errors import CheckpointError, UsageError
from dreamllm.files import read_json
from dreamllm.modeling import DreamLLMForConditionalGeneration

if TYPE_CHECKING:
    from dreamllm.processing import DreamLLMProcessor

LAYOUTS = ("ours", "released")
SENTENCEPIECE = "tokenizer.model"  # only the original needs it; kept so that a checkpoint can go back
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    folder_or_id: str | Path,
    *,
    clip: str | Path | None = None,
    diffusion: str | Path | None = None,
    plugins: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """A model in eval mode and its processor, from a folder or a hub id, in our layout or the released one.

    Args:
        clip, diffusion: folders of the CLIP and Stable Diffusion models that a released checkpoint names but does not hold. They give
            configurations, scheduler and preprocessor; weights come from the checkpoint.
        plugins: folder of a released checkpoint's three .bin files where that is another one.
        dtype: float32, bfloat16 or float16; as stored by default.

    Raises CheckpointError if anything is missing, surplus or misshapen. `model.config.untrained` says whether the weights are random.
    """
    folder = find_folder(folder_or_id)
    if released.is_released(folder):
        model, processor = load_released(folder, clip=clip, diffusion=diffusion, plugins=plugins, dtype=dtype)
    elif clip or diffusion or plugins:
        raise UsageError(f"{folder} is in our layout and holds all its parts: it takes no clip, diffusion or plugins")
    else:
        model, processor = load_ours(folder, dtype=dtype)
    if device is not None:
        moved: Any = model  # the library's decorated `to` has lost its types
        moved.to(torch.device(device))
    return model, processor


def find_folder(folder_or_id: str | Path) -> Path:
    """The folder itself, or the local copy of a hub repository, fetched if need be."""
    if Path(folder_or_id).is_dir():
        return Path(folder_or_id)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(folder_or_id)))
    except HFValidationError:
        raise CheckpointError(f"{folder_or_id} is not a folder") from None
    except Exception as error:  # offline, refused, unknown: each with its own exception
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{folder_or_id} is no folder here, and cannot be had from the hub: {reason}") from None


def load_ours(
    folder: Path, *, dtype: str | torch.dtype | None = None
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    from dreamllm.processing import DreamLLMProcessor

    dtype = torch_dtype(dtype) or "auto"
    try:
        loaded: Any = DreamLLMForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True
        )
        processor = DreamLLMProcessor.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        # What the library raises on files that are cut short, empty, absent or of another kind.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder} cannot be read as a checkpoint: {reason}") from error
    model, info = loaded
    problems = [
        *(f"missing {name}" for name in sorted(info["missing_keys"])),
        *(f"surplus {name}" for name in sorted(info["unexpected_keys"])),
        *(f"misshapen {item[0]}" for item in sorted(info["mismatched_keys"])),
    ]
    if problems:
        raise CheckpointError(f"{folder} does not fit its config.json; tensors {', '.join(problems[:8])}")
    return model.eval(), processor


def load_released(
    folder: str | Path,
    *,
    clip: str | Path | None = None,
    diffusion: str | Path | None = None,
    plugins: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    from dreamllm.processing import DreamLLMProcessor

    folder, clip, diffusion = find_parts(folder, clip, diffusion)
    config = released.read_config(folder, clip, diffusion)
    plugins = folder if plugins is None else Path(plugins)
    state = released.read_state(folder, plugins, config)
    model = from_state(config, state, dtype, where=folder)
    tokenizer_folder = folder if (folder / "tokenizer_config.json").is_file() else plugins
    return model, DreamLLMProcessor.from_released(tokenizer_folder, clip, config)


def find_parts(folder: str | Path, clip: str | Path | None, diffusion: str | Path | None) -> tuple[Path, Path, Path]:
    folder = Path(folder)
    plugins = read_json(folder / "config.json")["plugins_init_kwargs"]
    names = {
        "clip": plugins.get(released.CLIP, {}).get("clip_vision_model_name_or_path"),
        "diffusion": plugins.get(released.DIFFUSION, {}).get("diffusion_name_or_path"),
    }
    return (
        folder,
        released.find_submodel(folder, clip, "clip", str(names["clip"])),
        released.find_submodel(folder, diffusion, "diffusion", str(names["diffusion"])),
    )


def from_state(
    config: DreamLLMConfig,
    state: released.State,
    dtype: str | torch.dtype | None = None,
    where: object = "the checkpoint",
) -> DreamLLMForConditionalGeneration:
    """A model with exactly these weights (our names), in eval mode."""
    with torch.device("meta"):
        expected = DreamLLMForConditionalGeneration(config).state_dict()
    released.check_state(state, expected, where)
    dtype = torch_dtype(dtype) or state["dream_queries"].dtype
    model = DreamLLMForConditionalGeneration.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    return model.eval()


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    clip: str | Path | None = None,
    diffusion: str | Path | None = None,
) -> None:
    """Write the checkpoint `source`, of either layout, to the new folder `target` in the layout `to`: "ours" or "released"."""
    if to not in LAYOUTS:
        raise UsageError(f"layout {to!r} is not known; there are {', '.join(LAYOUTS)}")
    target = check_new(target)
    folder = find_folder(source)
    model, processor = load(folder, clip=clip, diffusion=diffusion)
    if to == "ours":
        save(target, model, processor)
    else:
        released.write(target, model.config, model.state_dict())
        processor.save_released(target)
    if (folder / SENTENCEPIECE).is_file():
        shutil.copy(folder / SENTENCEPIECE, target / SENTENCEPIECE)


def check_new(folder: str | Path) -> Path:
    """The folder, if nothing is there yet and it can be made; UsageError otherwise."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: give a new one")
    above = next((parent for parent in folder.absolute().parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        raise UsageError(f"{folder} cannot be made a folder: {above} is a file")
    return folder


def save(folder: str | Path, model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor) -> None:
    """Our layout: safetensors, configuration, tokenizer, image processor, chat template."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name; None stays None."""
    if not isinstance(dtype, str):
        return dtype
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known; there are {', '.join(DTYPES)}")
    return DTYPES[dtype]
