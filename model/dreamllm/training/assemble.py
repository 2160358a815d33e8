"""Checkpoints from parts: a model from a language model, CLIP and Stable Diffusion, and one from the two halves of stage I."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

from dreamllm import checkpoint
from dreamllm.configuration import DreamLLMConfig, ImageDecoderConfig
from dreamllm.errors import CheckpointError, UsageError, first_line
from dreamllm.files import check_new_folder, read_json
from dreamllm.layers import Projector, generator_for
from dreamllm.modeling import DreamLLMForConditionalGeneration
from dreamllm.processing import CHAT_TEMPLATES, DreamLLMProcessor, read_image_processor
from dreamllm.tokenizer import token_ids, tokenizer_from_file

READ_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)
# What each half of stage I trains.
COMPREHENSION, GENERATION = ("visual_projector.",), ("condition_projector.", "dream_queries")


def assemble(
    language_model: str | Path,
    clip: str | Path,
    diffusion: str | Path,
    *,
    num_dream_queries: int = 64,
    vision_select_layer: int = -2,
    resolution: int | None = None,
    chat_template: str = "vicuna_v1.1",
    new_embeddings: str | None = None,
    seed: int = 0,
    dtype: str | torch.dtype = torch.float32,
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """A model of three published parts, in eval mode, and its processor.

    The eight special tokens follow the language model's vocabulary.
    Projectors (as torch's linear layers) and dream queries (N(0, 0.02)) are initialised from `seed`.

    Args:
        language_model: folder of a causal language model of transformers with `tokenizer.model` or `tokenizer.json`.
        clip: folder of a CLIP model or its vision tower, with `preprocessor_config.json`.
        diffusion: folder of a Stable Diffusion model: `vae`, `unet`, `scheduler`.
        resolution: pixels of generated images; default: the UNet's sample size times the autoencoder's factor.
        new_embeddings: of the special tokens, in and out: "mean" of the others, the default, or "random", N(0, the language
            model's initializer_range) from `seed`.

    Raises CheckpointError if a folder lacks a file or a tensor.
    """
    if new_embeddings not in (None, "mean", "random"):
        raise UsageError(f"new_embeddings {new_embeddings!r} is unknown; choose from mean, random")
    dtype = checkpoint.torch_dtype(dtype) or torch.float32
    llm, clip, diffusion = (_folder(part) for part in (language_model, clip, diffusion))
    tokenizer = _tokenizer(llm, chat_template)
    decoder = _load(AutoModelForCausalLM, llm, dtype)
    if not _add_embeddings(decoder, len(tokenizer), seed if new_embeddings == "random" else None) and new_embeddings:
        raise UsageError(
            f"new_embeddings {new_embeddings}: {llm} has embeddings of the special tokens already; leave it out"
        )
    tower = _load(CLIPVisionModel, clip, dtype)
    for part in (decoder, tower):
        part.config._name_or_path = ""
    config, processor = _compose(
        tokenizer, decoder.config, tower.config, clip, diffusion, num_dream_queries, vision_select_layer, resolution
    )
    parts = {
        "language_model": decoder,
        "vision_tower": tower,
        "image_decoder.vae": _load(AutoencoderKL, diffusion / "vae", dtype),
        "image_decoder.unet": _load(UNet2DConditionModel, diffusion / "unet", dtype),
    }
    state = _new_weights(config, seed) | _joint_state(parts)
    model = checkpoint.from_state(config, state, dtype, where="the assembled model")
    return model, processor


def assemble_outline(
    language_model: str | Path,
    clip: str | Path,
    diffusion: str | Path,
    *,
    num_dream_queries: int = 64,
    vision_select_layer: int = -2,
    resolution: int | None = None,
    chat_template: str = "vicuna_v1.1",
    **of_weights: Any,
) -> tuple[DreamLLMConfig, DreamLLMProcessor]:
    """The configuration and the processor of what `assemble` makes; the parts' weights are not read."""
    llm, clip, diffusion = (_folder(part) for part in (language_model, clip, diffusion))
    tokenizer = _tokenizer(llm, chat_template)
    text, vision = _read_config(AutoConfig, llm), _read_config(CLIPVisionConfig, clip)
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    return _compose(tokenizer, text, vision, clip, diffusion, num_dream_queries, vision_select_layer, resolution)


def _read_config(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except READ_ERRORS as error:
        raise CheckpointError(f"{folder} has no configuration to read: {first_line(error)}") from error


def _compose(
    tokenizer: Any,
    text: Any,
    vision: Any,
    clip: Path,
    diffusion: Path,
    num_dream_queries: int,
    vision_select_layer: int,
    resolution: int | None,
) -> tuple[DreamLLMConfig, DreamLLMProcessor]:
    """The configuration and the processor of a model with these parts."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    token_fields: dict[str, Any] = {**token_ids(tokenizer), **ends}
    config = DreamLLMConfig(
        text_config=text,
        vision_config=vision,
        image_decoder_config=_image_decoder_config(diffusion, resolution),
        num_dream_queries=num_dream_queries,
        vision_select_layer=vision_select_layer,
        **token_fields,
    )
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    processor = DreamLLMProcessor(tokenizer, read_image_processor(clip), config.num_image_tokens, num_dream_queries)
    return config, processor


def _folder(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise CheckpointError(f"{path} is not a folder")
    return Path(path)


def _joint_state(parts: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state_dict().items()}


def _tokenizer(folder: Path, chat_template: str) -> Any:
    if chat_template not in CHAT_TEMPLATES:
        raise UsageError(f"chat_template {chat_template!r} is unknown; choose from {', '.join(CHAT_TEMPLATES)}")
    tokenizer = tokenizer_from_file(_tokenizer_file(folder))
    tokenizer.chat_template = CHAT_TEMPLATES[chat_template]
    return tokenizer


def _tokenizer_file(folder: Path) -> Path:
    # The sentencepiece file first, because it says how the original treats spaces (see dreamllm.tokenizer).
    for name in ("tokenizer.model", "tokenizer.json"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"language model {folder} has neither tokenizer.model nor tokenizer.json")


def _load(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A part with all its weights; CheckpointError if the folder or one of them is missing."""
    key = "torch_dtype" if ModelMixin in kind.__mro__ else "dtype"  # diffusers' name and transformers'
    options: dict[str, Any] = {"output_loading_info": True, "local_files_only": True, key: dtype}
    folder = _folder(folder)
    try:
        part, info = kind.from_pretrained(folder, **options)
    except READ_ERRORS as error:
        raise CheckpointError(f"{folder} cannot be read as {kind.__name__}: {first_line(error)}") from error
    checkpoint.check_tensors(f"{folder}, read as {kind.__name__},", info["missing_keys"])
    return part


@torch.no_grad()
def _add_embeddings(decoder: PreTrainedModel, size: int, seed: int | None) -> bool:
    """Grow the input and output embeddings to `size` tokens; new rows are the mean of the old ones, or random from `seed`.

    Returns whether there are new ones.
    """
    layers: Any = decoder
    old = layers.get_input_embeddings().weight.shape[0]
    if size <= old:
        return False
    layers.resize_token_embeddings(size, mean_resizing=False)
    spread = float(getattr(decoder.config, "initializer_range", 0.02))
    for number, layer in enumerate((layers.get_input_embeddings(), layers.get_output_embeddings())):
        weight = layer.weight
        if seed is None:
            weight[old:] = weight[:old].float().mean(0).to(weight.dtype)
        else:
            weight[old:] = torch.randn(weight[old:].shape, generator=generator_for(seed, number)) * spread
    return True


def _image_decoder_config(diffusion: Path, resolution: int | None) -> ImageDecoderConfig:
    vae, unet = (read_json(diffusion / part / "config.json") for part in ("vae", "unet"))
    for part in (vae, unet):
        part.pop("_name_or_path", None)  # a path on the machine that made the part
    scheduler = read_json(diffusion / "scheduler" / "scheduler_config.json")
    size = unet.get("sample_size")
    if resolution is None and not isinstance(size, int):
        raise CheckpointError(f"{diffusion / 'unet' / 'config.json'} has no sample_size: set start.resolution")
    config = ImageDecoderConfig(vae=vae, unet=unet, scheduler=scheduler)
    config.resolution = resolution or size * config.downscale
    return config


def _new_weights(config: DreamLLMConfig, seed: int) -> dict[str, torch.Tensor]:
    """Projectors and dream queries, which no part provides."""
    width, condition = config.text_config.hidden_size, config.image_decoder_config.condition_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projectors = {
            "visual_projector": Projector(config.vision_config.hidden_size, width, config.visual_projector_depth),
            "condition_projector": Projector(width, condition, config.condition_projector_depth, bias=False),
        }
        queries = torch.randn(1, config.num_dream_queries, width) * config.initializer_range
    return _joint_state(projectors) | {"dream_queries": queries}


def merge(comprehension: str | Path, generation: str | Path, target: str | Path) -> None:
    """Merge the halves of stage I into the new folder `target`.

    The visual projector comes from `comprehension`, the condition projector and the dream queries from `generation`.
    Raises CheckpointError if anything else differs: stage I does not train it, so the halves have different starts.
    """
    folder = check_new_folder(target)
    model, processor = checkpoint.load(comprehension)
    other, other_processor = checkpoint.load(generation)
    ours, theirs = model.state_dict(), other.state_dict()
    both = f"{comprehension} and {generation}"
    if set(ours) != set(theirs):
        raise CheckpointError(f"{both} do not have the same parts: only one has {min(set(ours) ^ set(theirs))}")
    frozen = [name for name in ours if not name.startswith((*COMPREHENSION, *GENERATION))]
    different = [name for name in frozen if not torch.equal(ours[name], theirs[name])]
    if different:
        raise CheckpointError(
            f"{both} differ in {len(different)} tensors that stage I does not train, for instance {different[0]}: "
            "merge halves that were trained from the same start"
        )
    mismatched = checkpoint.mismatched_tensors(theirs, ours)
    if mismatched:
        raise CheckpointError(f"{both} differ in the sizes of what stage I trains: {', '.join(mismatched)}")
    if processor.tokenizer.get_vocab() != other_processor.tokenizer.get_vocab():
        raise CheckpointError(f"{both} have different tokenizers")
    if model.config.image_decoder_config.to_dict() != other.config.image_decoder_config.to_dict():
        raise CheckpointError(f"{both} have different image decoders in their config.json")
    model.load_state_dict({name: theirs[name] for name in theirs if name.startswith(GENERATION)}, strict=False)
    first, second = (half.config.training or "unknown" for half in (model, other))
    if other.image_defaults != model.image_defaults:
        model.image_defaults = other.image_defaults
    model.config.training = f"comprehension: {first}; generation: {second}"
    checkpoint.save(folder, model, processor)
