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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, CLIPVisionConfig

from dreamllm.configuration import SPECIAL_TOKEN_FIELDS, DreamLLMConfig, ImageDecoderConfig
from dreamllm.errors import CheckpointError, UsageError
from dreamllm.files import read_json, write_json

State = dict[str, torch.Tensor]
CLIP, QUERIES, DIFFUSION = "clip_vision_embedding", "dream_embedding", "stable_diffusion_head"
CLASSES = {CLIP: "CLIPVisionEmbedding", QUERIES: "DreamEmbedding", DIFFUSION: "StableDiffusionHead"}
# Recomputed from the configuration; old checkpoints hold them although they are no weights.
SURPLUS = re.compile(r"\.rotary_emb\.inv_freq$|(^|\.)embeddings\.position_ids$")
# The language model's fields that config.json is written with, beside those of rotary positions.
LLAMA_FIELDS = (
    "attention_bias",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pretraining_tp",
    "rms_norm_eps",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)
# Fields of config.json that are not the language model's.
NOT_TEXT = {
    "architectures",
    "log_attentions",
    "log_hidden_states",
    "loss_scale_schedule",
    "loss_weight_lm",
    "loss_weight_vm",
    "model_type",
    "plugins_init_kwargs",
    "plugins_type",
    "special_tokens2ids_dict",
    "torch_dtype",
    "transformers_version",
}


def is_released(folder: Path) -> bool:
    return "plugins_init_kwargs" in read_json(folder / "config.json")


def find_submodels(folder: Path, clip: str | Path | None, diffusion: str | Path | None) -> tuple[Path, Path]:
    """The folders of the sub-models that a released checkpoint names but does not hold: as given, or `folder/clip`, `folder/diffusion`."""
    plugins = read_json(folder / "config.json")["plugins_init_kwargs"]
    names = {
        "clip": plugins.get(CLIP, {}).get("clip_vision_model_name_or_path"),
        "diffusion": plugins.get(DIFFUSION, {}).get("diffusion_name_or_path"),
    }
    found: list[Path] = []
    for part, given in (("clip", clip), ("diffusion", diffusion)):
        path = folder / part if given is None else Path(given)
        if not path.is_dir() and given is not None:
            raise CheckpointError(f"{part}={given} is not a folder")
        if not path.is_dir():
            raise CheckpointError(
                f"{folder} names its {part} model {names[part]!r} but does not hold it: download it and give its folder, {part}=DIR "
                f"(in dreambench: --model-arg {part}=DIR)"
            )
        found.append(path)
    return found[0], found[1]


def read_config(folder: Path, clip: Path, diffusion: Path) -> DreamLLMConfig:
    """Our configuration for a released checkpoint, with those of its CLIP and diffusion folders."""
    raw = read_json(folder / "config.json")
    plugins = {key: raw["plugins_init_kwargs"].get(key) for key in CLASSES}
    if None in plugins.values():
        raise CheckpointError(
            f"{folder / 'config.json'}: plugins_init_kwargs lacks {[k for k, v in plugins.items() if v is None]}"
        )
    vision = read_json(clip / "config.json")
    vision = vision.get("vision_config", vision)  # a whole CLIP model's folder will do
    text = {key: value for key, value in raw.items() if key not in NOT_TEXT}
    ids = raw["special_tokens2ids_dict"]
    ids = {**ids, **ids.get("additional_special_tokens", {})}
    fields: dict[str, Any] = {field: ids.get(token) for token, field in SPECIAL_TOKEN_FIELDS.items()}
    return DreamLLMConfig(
        text_config=CONFIG_MAPPING["llama"](**text),
        vision_config=CLIPVisionConfig(**{key: value for key, value in vision.items() if key != "model_type"}),
        image_decoder_config=ImageDecoderConfig(
            resolution=plugins[DIFFUSION]["resolution"],
            vae=read_json(diffusion / "vae" / "config.json"),
            unet=read_json(diffusion / "unet" / "config.json"),
            scheduler=read_json(diffusion / "scheduler" / "scheduler_config.json"),
        ),
        num_dream_queries=plugins[QUERIES]["num_dream_queries"],
        vision_select_layer=plugins[CLIP]["select_layer"],
        visual_projector_depth=_depth(plugins[CLIP]),
        visual_projector_layernorm=bool(plugins[CLIP].get("use_additional_post_layernorm", False)),
        condition_projector_depth=_depth(plugins[DIFFUSION]),
        loss_weight_lm=raw.get("loss_weight_lm", 1.0),
        loss_weight_vm=raw.get("loss_weight_vm", 10.0),
        loss_scale_schedule=raw.get("loss_scale_schedule", "none"),
        bos_token_id=raw["bos_token_id"],
        eos_token_id=raw["eos_token_id"],
        released_names={
            "clip": plugins[CLIP]["clip_vision_model_name_or_path"],
            "diffusion": plugins[DIFFUSION]["diffusion_name_or_path"],
        },
        **fields,
    )


def _depth(plugin: Mapping[str, Any]) -> int:
    kind = plugin.get("projector_type", "linear")
    if kind not in ("linear", "mlp"):
        raise CheckpointError(f"unknown projector_type {kind!r}; choose from linear and mlp")
    return 1 if kind == "linear" else int(plugin["projector_depth"])


def read_state(folder: Path, plugins: Path, config: DreamLLMConfig) -> State:
    """All weights under our names; `plugins` is the folder of the three .bin files."""
    state: State = {}
    for source, rename in (
        (read_language_model(folder), lambda key: f"language_model.{key}"),
        (read_pickle(plugins / f"{CLIP}.bin"), _clip_name(config)),
        (read_pickle(plugins / f"{QUERIES}.bin"), lambda key: key),
        (read_pickle(plugins / f"{DIFFUSION}.bin"), _diffusion_name(config)),
    ):
        state.update({rename(key): tensor for key, tensor in source.items() if not SURPLUS.search(key)})
    return state


def _clip_name(config: DreamLLMConfig) -> Callable[[str], str]:
    def rename(key: str) -> str:
        # transformers 5 has no inner `vision_model.` any more
        key = re.sub(r"^clip_vision_model\.(vision_model\.)?", "vision_tower.", key)
        key = re.sub(r"^post_layernorm\.", "visual_projector.norm.", key)
        return _projector_name(key, "visual_projector", config.visual_projector_depth)

    return rename


def _diffusion_name(config: DreamLLMConfig) -> Callable[[str], str]:
    def rename(key: str) -> str:
        key = re.sub(r"^(vae|unet)\.", r"image_decoder.\1.", key)
        return _projector_name(key, "condition_projector", config.condition_projector_depth)

    return rename


def _projector_name(key: str, ours: str, depth: int) -> str:
    """`projector.projector.weight`, or `projector.projector.2.weight` where there is a GELU between layers, to `ours.layers.1.weight`."""
    if depth == 1:
        key = re.sub(r"^projector\.projector\.(?=weight$|bias$)", f"{ours}.layers.0.", key)
    return re.sub(r"^projector\.projector\.(\d*[02468])\.", lambda m: f"{ours}.layers.{int(m[1]) // 2}.", key)


def read_language_model(folder: Path) -> State:
    """`model.safetensors`, `pytorch_model.bin`, or the shards that either's index names."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            shards = sorted(set(read_json(folder / f"{name}.index.json")["weight_map"].values()))
            strange = [shard for shard in shards if Path(shard).name != shard]
            if strange:
                raise CheckpointError(
                    f"{folder / name}.index.json names {strange[0]!r}, which is not a file of that folder"
                )
            return {key: tensor for shard in shards for key, tensor in read_tensors(folder / shard).items()}
    raise CheckpointError(f"{folder} holds neither model.safetensors nor pytorch_model.bin nor an index of either")


def read_tensors(path: Path) -> State:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    return load_file(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_pickle(path: Path) -> State:
    """A pickled dict of tensors, by torch's restricted reader."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as plain tensors: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} holds something else than named tensors")
    return dict(state)


def write(folder: Path, config: DreamLLMConfig, state: Mapping[str, torch.Tensor]) -> None:
    """Write the released layout, beside it `clip/` and `diffusion/` with the configurations that the layout keeps elsewhere.

    The only place that writes pickles: torch's own of plain tensors, because the layout has them.
    """
    if config.text_config.model_type != "llama":
        raise UsageError(f"the released layout holds Llama decoders only, not {config.text_config.model_type!r}")
    if config.text_config.head_dim * config.text_config.num_attention_heads != config.text_config.hidden_size:
        raise UsageError("the released layout has no field for a head_dim other than hidden_size / num_attention_heads")
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, State] = {"language_model": {}, CLIP: {}, QUERIES: {}, DIFFUSION: {}}
    for key, tensor in state.items():
        part, name = _released_name(key, config)
        parts[part][name] = tensor.detach().cpu().contiguous()
    save_file(parts.pop("language_model"), folder / "model.safetensors", metadata={"format": "pt"})
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


def _released_name(key: str, config: DreamLLMConfig) -> tuple[str, str]:
    first, _, rest = key.partition(".")
    if first == "language_model":
        return "language_model", rest
    if first == "vision_tower":
        return CLIP, f"clip_vision_model.vision_model.{rest}"
    if first == "dream_queries":
        return QUERIES, key
    if first == "image_decoder":
        return DIFFUSION, rest
    if rest.startswith("norm."):
        return CLIP, f"post_layernorm.{rest.removeprefix('norm.')}"
    _, index, name = rest.split(".")
    part, depth = (
        (CLIP, config.visual_projector_depth)
        if first == "visual_projector"
        else (DIFFUSION, config.condition_projector_depth)
    )
    return part, f"projector.projector.{name}" if depth == 1 else f"projector.projector.{2 * int(index)}.{name}"


def _released_config(config: DreamLLMConfig, dtype: torch.dtype) -> dict[str, Any]:
    names = config.released_names or {"clip": "clip", "diffusion": "diffusion"}
    values = config.text_config.to_dict()
    text = {key: values[key] for key in LLAMA_FIELDS if key in values}
    rope = dict(values.get("rope_parameters") or {})
    text["rope_theta"] = rope.pop("rope_theta", 10000.0)
    kind = rope.pop("rope_type", "default")
    text["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    ids = config.special_token_ids

    def plugin(key: str, **fields: Any) -> dict[str, Any]:
        target = f"omni.models.dreamllm.modeling_plugins.{CLASSES[key]}"
        return {
            "_target_": target,
            "embed_hidden_size": config.text_config.hidden_size,
            "pretrained_model_name_or_path": None,
            **fields,
        }

    def projector(depth: int) -> dict[str, Any]:
        return {
            "projector_type": "linear" if depth == 1 else "mlp",
            "projector_depth": depth,
            "freeze_projector": False,
        }

    return {
        **text,
        "model_type": "dreamllm",
        "architectures": ["DreamLLMForCausalMLM"],
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "loss_weight_lm": config.loss_weight_lm,
        "loss_weight_vm": config.loss_weight_vm,
        "loss_scale_schedule": config.loss_scale_schedule,
        "plugins_type": {CLIP: "embedding", QUERIES: "embedding", DIFFUSION: "head"},
        "plugins_init_kwargs": {
            CLIP: plugin(
                CLIP,
                clip_vision_model_name_or_path=names["clip"],
                select_layer=config.vision_select_layer,
                use_additional_post_layernorm=config.visual_projector_layernorm,
                freeze_clip_vision_model=True,
                freeze_embedding_layers=True,
                local_files_only=True,
                **projector(config.visual_projector_depth),
            ),
            QUERIES: plugin(QUERIES, num_dream_queries=config.num_dream_queries, freeze_dream_queries=False),
            DIFFUSION: plugin(
                DIFFUSION,
                diffusion_name_or_path=names["diffusion"],
                resolution=config.image_decoder_config.resolution,
                freeze_vae=True,
                freeze_unet=True,
                local_files_only=True,
                **projector(config.condition_projector_depth),
            ),
        },
        "special_tokens2ids_dict": {
            "<unk>": 0,
            "<s>": config.bos_token_id,
            "</s>": config.eos_token_id,
            "[PAD]": ids.pop("[PAD]"),
            "additional_special_tokens": ids,
        },
    }
