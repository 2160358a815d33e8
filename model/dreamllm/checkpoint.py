"""Load, save and convert checkpoints in the native layout (that of `save_pretrained`, safetensors) and in the released one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from transformers.initialization import no_init_weights

from dreamllm import released
from dreamllm.configuration import DreamLLMConfig, check_sizes
from dreamllm.defaults import FILE as GENERATION_CONFIG
from dreamllm.defaults import read_defaults
from dreamllm.errors import CheckpointError, UsageError, library_errors
from dreamllm.files import check_new_folder, find_checkpoint, new_folder, read_json_object, write_json
from dreamllm.image_decoder import check_config
from dreamllm.modeling import DreamLLMForConditionalGeneration
from dreamllm.options import Dtype, Layout, choose, has_type
from dreamllm.processing import DreamLLMProcessor, check_image_processor
from dreamllm.released import shards
from dreamllm.tokenizer import check_ids

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
    check_files(folder)
    defaults = read_defaults(folder)
    if released.is_released(folder):
        clip, diffusion = released.find_submodels(folder, clip, diffusion)
        plugins = folder if plugins is None else Path(plugins)
        config = released.read_config(folder, clip, diffusion)
        model = from_state(config, released.read_state(folder, plugins, config), dtype, where=folder)
        tokenizer_folder = folder if (folder / "tokenizer_config.json").is_file() else plugins
        processor = DreamLLMProcessor.from_released(tokenizer_folder, clip, config)
        check_processor(folder, processor, config)
    elif clip or diffusion or plugins:
        raise UsageError(
            f"{folder} has the native layout and holds all its parts: leave out clip, diffusion and plugins"
        )
    else:
        model, processor = _load_native(folder, dtype)
    check_finite(folder, model)
    images, interleaved = defaults
    if images is not None:
        model.image_defaults = images
    if interleaved is not None:
        model.interleaved_defaults = interleaved
    if device is not None:
        module: Any = model  # the library's decorated `to` has lost its types
        module.to(torch.device(device))
    return model, processor


def load_outline(
    folder_or_id: str | Path | None = None,
    *,
    clip: str | Path | None = None,
    diffusion: str | Path | None = None,
) -> tuple[DreamLLMConfig, DreamLLMProcessor]:
    """The configuration and the processor of a checkpoint, of whose weights nothing is read. Arguments as of `load`."""
    folder = find_checkpoint(folder_or_id)
    check_files(folder)
    if released.is_released(folder):
        clip, diffusion = released.find_submodels(folder, clip, diffusion)
        config = released.read_config(folder, clip, diffusion)
        return config, DreamLLMProcessor.from_released(folder, clip, config)
    config = _native_config(folder)
    with library_errors(folder):
        processor: Any = DreamLLMProcessor.from_pretrained(folder, local_files_only=True)
    check_processor(folder, processor, config)
    return config, processor


def without_weights(config: DreamLLMConfig, dtype: str | torch.dtype) -> DreamLLMForConditionalGeneration:
    """A model of this dtype whose weights hold anything, in memory that is not taken until they are written."""
    config, kind = copy.deepcopy(config), torch_dtype(dtype) or torch.float32
    for part in (config, config.text_config, config.vision_config):
        part.dtype = kind
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        with no_init_weights():
            model = DreamLLMForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    return model


def check_files(folder: Path) -> None:
    """CheckpointError for damaged files that transformers would pass over, and for values in them that it would misread."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".model") and not path.is_file():
            raise CheckpointError(f"{path} is no file: the checkpoint is damaged")
        if path.name in _READ_BY_LIBRARIES:
            fields = read_json_object(path)
            if path.name == GENERATION_CONFIG:
                _check_generation_fields(path, fields)
            elif path.name == "processor_config.json":
                check_image_processor(path, fields.get("image_processor", {}))
            elif path.name == "preprocessor_config.json":
                check_image_processor(path, fields)


_READ_BY_LIBRARIES = (
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)


# Fields of generation_config.json that generation reads; transformers declares no types for them.
_GENERATION = {
    bool: "do_sample use_cache output_attentions output_hidden_states output_scores output_logits return_dict_in_generate"
    " renormalize_logits remove_invalid_values token_healing disable_compile use_mtp",
    int: "max_length max_new_tokens min_length min_new_tokens num_beams num_beam_groups num_return_sequences top_k"
    " no_repeat_ngram_size forced_bos_token_id bos_token_id pad_token_id prefill_chunk_size max_cache_len",
    float: "max_time temperature top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty length_penalty"
    " diversity_penalty guidance_scale penalty_alpha",
    int | list[int]: "eos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens",
    bool | str: "early_stopping",
    str: "cache_implementation",
    str | list[str]: "stop_strings",
}


def _check_generation_fields(where: Path, fields: Mapping[str, Any]) -> None:
    for kind, names in _GENERATION.items():
        for name in names.split():
            value = fields.get(name)
            if value is not None and not has_type(value, kind):
                raise CheckpointError(f"{where}: {name} is {repr(value)[:80]}, which generation does not take")


def _load_native(folder: Path, dtype: str | torch.dtype | None) -> Loaded:
    dtype = torch_dtype(dtype) or "auto"
    config = _native_config(folder)
    stored = _stored_shapes(folder)
    if stored:
        expected, tied = _expected(config, folder)
        mismatched = [
            f"{name} is {size}, expected {expected[name]}"
            for name, size in stored.items()
            if size != expected.get(name, size)
        ]
        check_tensors(folder, set(expected) - set(stored) - tied, set(stored) - set(expected), mismatched)
    with library_errors(folder):
        loaded: Any = DreamLLMForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
    with library_errors(folder):
        processor: Any = DreamLLMProcessor.from_pretrained(folder, local_files_only=True)
    model, info = loaded
    mismatched = [f"{name} is {tuple(found)}, expected {tuple(size)}" for name, found, size in info["mismatched_keys"]]
    check_tensors(folder, info["missing_keys"], info["unexpected_keys"], mismatched)
    check_processor(folder, processor, model.config)
    check_generation(folder, model)
    return model.eval(), processor


def _native_config(folder: Path) -> DreamLLMConfig:
    """config.json, with numbers of a size to build a model from, and types that the libraries take."""
    path = folder / "config.json"
    fields = read_json_object(path)
    missing = [name for name in ("text_config", "vision_config", "image_decoder_config") if not fields.get(name)]
    if missing:
        raise CheckpointError(f"{path} has no {missing[0]}")
    check_sizes(fields, path)
    with library_errors(path):
        config = DreamLLMConfig(**fields)
    check_config(config.image_decoder_config, path)
    return config


def _expected(config: DreamLLMConfig, where: object) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Names and shapes of a model's tensors, built without memory, and the names that are others' too (tied weights)."""
    with torch.device("meta"), library_errors(where):
        model = DreamLLMForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return shapes, set(shapes) - own


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the headers of a native checkpoint's safetensors; empty for weights of another kind.

    They are compared with the configuration before memory for a model is asked for.
    """
    files = [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not files[0].is_file():
        if not index.is_file():
            raise CheckpointError(f"{folder} holds neither model.safetensors nor {index.name}")
        files = [folder / name for name in shards(index)]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with library_errors(file), safe_open(file, "pt") as tensors:  # pyright: ignore[reportUnknownVariableType]
            names = list(tensors.keys())
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    return shapes


def from_state(
    config: DreamLLMConfig,
    state: Mapping[str, torch.Tensor],
    dtype: str | torch.dtype | None = None,
    where: object = "the checkpoint",
) -> DreamLLMForConditionalGeneration:
    """A model with exactly these weights (native names), in eval mode."""
    with torch.device("meta"), library_errors(where):
        expected = DreamLLMForConditionalGeneration(config).state_dict()
    check_tensors(where, set(expected) - set(state), set(state) - set(expected), mismatched_tensors(state, expected))
    dtype = torch_dtype(dtype) or state["dream_queries"].dtype
    with library_errors(where):
        model = DreamLLMForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=dict(state), dtype=dtype
        )
    return model.eval()


def check_processor(folder: Path, processor: DreamLLMProcessor, config: DreamLLMConfig) -> None:
    """CheckpointError for a tokenizer or an image processor that does not work, or not with this model; both are tried."""
    with library_errors(f"{folder}: tokenizer"):
        ids = list(processor.tokenizer(text := "A red circle.")["input_ids"])
        if len(ids) > 8 * len(text):
            raise CheckpointError(f"it makes {len(ids):,} tokens of {text!r}")
        processor([text, "A"])
    with library_errors(f"{folder}: preprocessor_config.json"):
        pixels = processor.pixel_values([Image.new("RGB", (20, 10), "red")])
    side = config.vision_config.image_size
    if tuple(pixels.shape) != (1, 3, side, side) or not pixels.isfinite().all():
        raise CheckpointError(
            f"{folder}: preprocessor_config.json gives {tuple(pixels.shape)}, the encoder takes (1, 3, {side}, {side})"
        )
    check_ids(processor.tokenizer, config.special_token_ids, folder)
    if not ids or not all(0 <= i < config.text_config.vocab_size for i in ids):
        raise CheckpointError(
            f"{folder}: the tokenizer gives ids beyond the vocab_size {config.text_config.vocab_size}"
        )
    if processor.tokenizer.bos_token_id not in (None, config.bos_token_id):
        raise CheckpointError(
            f"{folder}: config.json has bos_token_id {config.bos_token_id}, the tokenizer {processor.tokenizer.bos_token_id}"
        )
    counts = processor.num_image_tokens, processor.num_dream_queries
    if counts != (config.num_image_tokens, config.num_dream_queries):
        raise CheckpointError(
            f"{folder}: processor_config.json has {counts[0]} image tokens and {counts[1]} dream queries, config.json "
            f"{config.num_image_tokens} and {config.num_dream_queries}"
        )


def check_generation(folder: Path, model: DreamLLMForConditionalGeneration) -> None:
    """CheckpointError for token ids in generation_config.json that are none."""
    size = model.config.text_config.vocab_size
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value: Any = getattr(model.generation_config, name)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and 0 <= i < size for i in listed):
            raise CheckpointError(f"{folder}: generation_config.json: {name} is {value}, must be an id below {size}")


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
            if stated := {one.field: one.stated() for one in read_defaults(folder) if one is not None}:
                write_json(unfinished / GENERATION_CONFIG, stated)
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
