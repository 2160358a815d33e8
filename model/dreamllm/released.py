"""The released checkpoints' layout, both ways.

    config.json                    Llama fields, special_tokens2ids_dict, plugins_init_kwargs
    model.safetensors              or shards with their index, safetensors or .bin: model.*, lm_head.*
    clip_vision_embedding.bin      clip_vision_model.*, projector.projector.*, post_layernorm.*
    dream_embedding.bin            dream_queries
    stable_diffusion_head.bin      vae.*, unet.*, projector.projector.*
    tokenizer.model, tokenizer_config.json, ...

Names in plugins_init_kwargs are read as data, never imported. Pickles hold plain tensors: `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig

from dreamllm.configuration import (
    MAX_COUNT,
    MAX_SIZE,
    SPECIAL_TOKEN_FIELDS,
    DreamLLMConfig,
    ImageDecoderConfig,
    check_sizes,
)
from dreamllm.errors import CheckpointError, UsageError, first_line, library_errors
from dreamllm.files import read_json_object, write_json
from dreamllm.image_decoder import check_config

State = dict[str, torch.Tensor]
LANGUAGE, CLIP, QUERIES, DIFFUSION = (
    "language_model",
    "clip_vision_embedding",
    "dream_embedding",
    "stable_diffusion_head",
)
CLASSES = {CLIP: "CLIPVisionEmbedding", QUERIES: "DreamEmbedding", DIFFUSION: "StableDiffusionHead"}
# Buffers that old checkpoints hold; they are computed from the configuration.
SURPLUS = re.compile(r"\.rotary_emb\.inv_freq$|(^|\.)embeddings\.position_ids$")
# File, prefix of its names, our prefix. Where several match, the longest is read and the first is written.
PREFIXES = (
    (LANGUAGE, "", "language_model."),
    (CLIP, "clip_vision_model.vision_model.", "vision_tower."),
    (CLIP, "clip_vision_model.", "vision_tower."),
    (CLIP, "post_layernorm.", "visual_projector.norm."),
    (QUERIES, "dream_queries", "dream_queries"),
    (DIFFUSION, "vae.", "image_decoder.vae."),
    (DIFFUSION, "unet.", "image_decoder.unet."),
)
# Fields that config.json and our configuration have in common, and those of Llama that are written to config.json.
SHARED_FIELDS = ("bos_token_id", "eos_token_id", "loss_weight_lm", "loss_weight_vm", "loss_scale_schedule")
LLAMA_FIELDS = set(LlamaConfig.__annotations__) - {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "head_dim",
    "rope_parameters",
}
# Fields of config.json that are not the language model's.
NOT_TEXT = re.compile(
    r"architectures|log_.*|loss_.*|model_type|plugins_.*|special_tokens2ids_dict|torch_dtype|.*_version"
)


def is_released(folder: Path) -> bool:
    return "plugins_init_kwargs" in read_json_object(folder / "config.json")


def find_submodels(folder: Path, clip: str | Path | None, diffusion: str | Path | None) -> tuple[Path, Path]:
    """The folders of the sub-models that a released checkpoint names but does not hold; by default `clip` and `diffusion` in it."""
    config = _parse(folder)
    names = {"clip": config.plugins_init_kwargs.clip.clip_vision_model_name_or_path}
    names["diffusion"] = config.plugins_init_kwargs.diffusion.diffusion_name_or_path
    found: list[Path] = []
    for part, path in (("clip", clip), ("diffusion", diffusion)):
        found.append(folder / part if path is None else Path(path))
        if found[-1].is_dir():
            continue
        if path is not None:
            raise CheckpointError(f"{part}={path} is not a folder")
        raise CheckpointError(
            f"{folder} names its {part} model {names[part]!r} but does not hold it: download it and give its "
            f"folder, {part}=DIR (in dreambench: --model-arg {part}=DIR)"
        )
    return found[0], found[1]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Projector(_Fields):
    projector_type: Literal["linear", "mlp"] = "linear"
    projector_depth: int = Field(default=1, ge=1, le=MAX_COUNT)

    @property
    def depth(self) -> int:
        return 1 if self.projector_type == "linear" else self.projector_depth


class _Clip(_Projector):
    clip_vision_model_name_or_path: str | None = None
    select_layer: int
    use_additional_post_layernorm: bool = False


class _Queries(_Fields):
    num_dream_queries: int = Field(ge=1, le=MAX_SIZE)


class _Diffusion(_Projector):
    diffusion_name_or_path: str | None = None
    resolution: int = Field(ge=8, le=MAX_SIZE)


class _Plugins(_Fields):
    clip: _Clip = Field(alias=CLIP)
    queries: _Queries = Field(alias=QUERIES)
    diffusion: _Diffusion = Field(alias=DIFFUSION)


class _Config(_Fields):
    """The fields of a released config.json that are not Llama's."""

    plugins_init_kwargs: _Plugins
    special_tokens2ids_dict: dict[str, int | dict[str, int]]
    bos_token_id: int = 1
    eos_token_id: int = 2
    loss_weight_lm: float = 1.0
    loss_weight_vm: float = 10.0
    loss_scale_schedule: str = "none"


def _parse(folder: Path) -> _Config:
    path = folder / "config.json"
    try:
        return _Config.model_validate(read_json_object(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CheckpointError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def read_config(folder: Path, clip: Path, diffusion: Path) -> DreamLLMConfig:
    """The configuration of a released checkpoint and of its CLIP and diffusion folders as one of ours."""
    path = folder / "config.json"
    raw, ours = read_json_object(path), _parse(folder)
    plugins = ours.plugins_init_kwargs
    vision = read_json_object(clip / "config.json")
    vision = vision.get("vision_config", vision)  # of a CLIP model, or of its vision tower alone
    parts: dict[str, Any] = {part: read_json_object(diffusion / part / "config.json") for part in ("vae", "unet")}
    parts["scheduler"] = read_json_object(diffusion / "scheduler" / "scheduler_config.json")
    for value, where in ((raw, path), (vision, clip / "config.json"), (parts, diffusion)):
        check_sizes(value, where)
    ids: dict[str, Any] = ours.special_tokens2ids_dict
    more = ids.get("additional_special_tokens", {})
    ids = {**ids, **(more if isinstance(more, dict) else {})}
    fields: dict[str, Any] = {field: ids.get(token) for token, field in SPECIAL_TOKEN_FIELDS.items()}
    fields |= {field: getattr(ours, field) for field in SHARED_FIELDS if field in raw}
    with library_errors(path):
        text = LlamaConfig(**{key: value for key, value in raw.items() if not NOT_TEXT.fullmatch(key)})
    with library_errors(clip / "config.json"):
        encoder = CLIPVisionConfig(**{key: value for key, value in vision.items() if key != "model_type"})
    decoder = ImageDecoderConfig(resolution=plugins.diffusion.resolution, **parts)
    check_config(decoder, diffusion)
    with library_errors(path):
        return DreamLLMConfig(
            text_config=text,
            vision_config=encoder,
            image_decoder_config=decoder,
            num_dream_queries=plugins.queries.num_dream_queries,
            vision_select_layer=plugins.clip.select_layer,
            visual_projector_depth=plugins.clip.depth,
            visual_projector_layernorm=plugins.clip.use_additional_post_layernorm,
            condition_projector_depth=plugins.diffusion.depth,
            released_names={
                "clip": plugins.clip.clip_vision_model_name_or_path or "clip",
                "diffusion": plugins.diffusion.diffusion_name_or_path or "diffusion",
            },
            **fields,
        )


def _prefixes(config: DreamLLMConfig) -> list[tuple[str, str, str]]:
    """`PREFIXES` with those of the projectors, whose layers have even numbers because a GELU stands between two of them."""
    rows = list(PREFIXES)
    for file, name, depth in (
        (CLIP, "visual_projector", config.visual_projector_depth),
        (DIFFUSION, "condition_projector", config.condition_projector_depth),
    ):
        if depth == 1:  # a single layer has no number
            rows.append((file, "projector.projector.", f"{name}.layers.0."))
        rows += [(file, f"projector.projector.{2 * layer}.", f"{name}.layers.{layer}.") for layer in range(depth)]
    return rows


def read_state(folder: Path, plugins: Path, config: DreamLLMConfig) -> State:
    """All weights under our names; `plugins` is the folder of the three .bin files."""
    state: State = {}
    prefixes = sorted(_prefixes(config), key=lambda row: -len(row[1]))
    for file in (LANGUAGE, *CLASSES):
        rows = [(theirs, ours) for other, theirs, ours in prefixes if other == file]
        for key, tensor in (
            read_language_model(folder) if file == LANGUAGE else read_pickle(plugins / f"{file}.bin")
        ).items():
            if not SURPLUS.search(key):
                theirs, ours = next((row for row in rows if key.startswith(row[0])), ("", ""))
                state[ours + key.removeprefix(theirs)] = tensor
    return state


def released_name(key: str, config: DreamLLMConfig) -> tuple[str, str]:
    """The file that holds our tensor `key`, and its name there."""
    return next(
        (file, theirs + key.removeprefix(ours)) for file, theirs, ours in _prefixes(config) if key.startswith(ours)
    )


def read_language_model(folder: Path) -> State:
    """`model.safetensors`, `pytorch_model.bin`, or the shards that either's index names."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            files = [folder / shard for shard in shards(folder / f"{name}.index.json")]
            return {key: tensor for file in files for key, tensor in read_tensors(file).items()}
    raise CheckpointError(f"{folder} holds neither model.safetensors nor pytorch_model.bin nor an index of either")


def shards(index: Path) -> list[str]:
    """The files that an index of tensors names, all in its own folder."""
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} has no weight_map of tensors and files")
    strange = [name for name in names.values() if Path(name).name != name]
    if strange:
        raise CheckpointError(f"{index} names {strange[0]!r}, which is not a file of that folder")
    return sorted(set(names.values()))


def read_tensors(path: Path) -> State:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.suffix != ".safetensors":
        return read_pickle(path)
    with library_errors(path):
        return load_file(path)


def read_pickle(path: Path) -> State:
    """A pickled dict of tensors, read with `weights_only=True`."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as plain tensors: {first_line(error)}") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} holds something else than named tensors")
    return dict(state)


def write(folder: Path, config: DreamLLMConfig, state: Mapping[str, torch.Tensor]) -> None:
    """Write the released layout, and in `clip/` and `diffusion/` the configurations of the sub-models, which it does not hold.

    Nothing else writes pickles; these hold plain tensors, as the layout requires.
    """
    if config.text_config.model_type != "llama":
        raise UsageError(f"the released layout holds Llama decoders only, not {config.text_config.model_type!r}")
    if config.text_config.head_dim * config.text_config.num_attention_heads != config.text_config.hidden_size:
        raise UsageError("the released layout has no field for a head_dim other than hidden_size / num_attention_heads")
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, State] = {LANGUAGE: {}, CLIP: {}, QUERIES: {}, DIFFUSION: {}}
    for key, tensor in state.items():
        part, name = released_name(key, config)
        parts[part][name] = tensor.detach().cpu().contiguous()
    save_file(parts.pop(LANGUAGE), folder / "model.safetensors", metadata={"format": "pt"})
    for part, tensors in parts.items():
        torch.save(tensors, folder / f"{part}.bin")
    decoder = config.image_decoder_config
    for path, value in {
        "config.json": _released_config(config, next(iter(state.values())).dtype),
        "clip/config.json": config.vision_config.to_diff_dict() | {"model_type": "clip_vision_model"},
        "diffusion/vae/config.json": decoder.vae,
        "diffusion/unet/config.json": decoder.unet,
        "diffusion/scheduler/scheduler_config.json": decoder.scheduler,
    }.items():
        write_json(folder / path, value, sort_keys=True)


def _released_config(config: DreamLLMConfig, dtype: torch.dtype) -> dict[str, Any]:
    values = config.text_config.to_dict()
    rope = dict(values.get("rope_parameters") or {})
    theta, kind = rope.pop("rope_theta", 10000.0), rope.pop("rope_type", "default")
    names = config.released_names or {"clip": "clip", "diffusion": "diffusion"}
    plugins: dict[str, dict[str, Any]] = {
        CLIP: {
            "clip_vision_model_name_or_path": names["clip"],
            "select_layer": config.vision_select_layer,
            "use_additional_post_layernorm": config.visual_projector_layernorm,
            "freeze_clip_vision_model": True,
            "freeze_embedding_layers": True,
            "local_files_only": True,
            **_projector_fields(config.visual_projector_depth),
        },
        QUERIES: {"num_dream_queries": config.num_dream_queries, "freeze_dream_queries": False},
        DIFFUSION: {
            "diffusion_name_or_path": names["diffusion"],
            "resolution": config.image_decoder_config.resolution,
            "freeze_vae": True,
            "freeze_unet": True,
            "local_files_only": True,
            **_projector_fields(config.condition_projector_depth),
        },
    }
    for name, fields in plugins.items():
        fields["_target_"] = f"omni.models.dreamllm.modeling_plugins.{CLASSES[name]}"
        fields |= {"embed_hidden_size": config.text_config.hidden_size, "pretrained_model_name_or_path": None}
    ids = config.special_token_ids
    return {
        **{key: values[key] for key in LLAMA_FIELDS if key in values},
        **{field: getattr(config, field) for field in SHARED_FIELDS},
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, **rope},
        "model_type": "dreamllm",
        "architectures": ["DreamLLMForCausalMLM"],
        "torch_dtype": str(dtype).removeprefix("torch."),
        "plugins_type": {CLIP: "embedding", QUERIES: "embedding", DIFFUSION: "head"},
        "plugins_init_kwargs": plugins,
        "special_tokens2ids_dict": {
            "<unk>": 0,
            "<s>": config.bos_token_id,
            "</s>": config.eos_token_id,
            "[PAD]": ids.pop("[PAD]"),
            "additional_special_tokens": ids,
        },
    }


def _projector_fields(depth: int) -> dict[str, Any]:
    kind = "linear" if depth == 1 else "mlp"
    return {"projector_type": kind, "projector_depth": depth, "freeze_projector": False}
