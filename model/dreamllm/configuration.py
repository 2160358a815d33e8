"""Configuration: each part has that of its own library; the fields here are those that join them."""

from __future__ import annotations

import inspect
from types import NoneType
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, CLIPVisionConfig, PreTrainedConfig

from dreamllm.errors import CheckpointError, UsageError
from dreamllm.options import has_type

# Token strings and the configuration field that holds each one's id. Ids differ between checkpoints: never assume an order.
SPECIAL_TOKEN_FIELDS = {
    "[PAD]": "pad_token_id",
    "<image>": "image_token_id",
    "<im_patch>": "im_patch_token_id",
    "<im_start>": "im_start_token_id",
    "<im_end>": "im_end_token_id",
    "<dream>": "dream_token_id",
    "<dream_start>": "dream_start_token_id",
    "<dream_end>": "dream_end_token_id",
}
UNTRAINED = "none: random weights"


MAX_SIZE, MAX_COUNT = 1 << 24, 1024
_SIZES = {
    *("hidden_size", "intermediate_size", "vocab_size", "image_size", "patch_size", "projection_dim", "head_dim"),
    *(
        "max_position_embeddings",
        "num_channels",
        "num_dream_queries",
        "resolution",
        "sample_size",
        "num_train_timesteps",
    ),
    *("block_out_channels", "norm_num_groups", "cross_attention_dim", "latent_channels", "in_channels", "out_channels"),
}
_COUNTS = {
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "attention_head_dim", "layers_per_block"),
    *("visual_projector_depth", "condition_projector_depth"),
}
_PARTS = ("text_config", "vision_config", "image_decoder_config")


def check_sizes(value: Any, where: object, name: str = "") -> None:
    """CheckpointError for a size or a count of a configuration that is below 1 or absurd, before memory is asked for it.

    Args:
        value: the configuration, as read from JSON.
        where: its file, for the message.
        name: the field that holds `value`.
    """
    if isinstance(value, dict):
        for key, one in value.items():
            check_sizes(one, where, key)
    elif isinstance(value, list):
        for one in value:
            check_sizes(one, where, name)
    elif isinstance(value, int | float) and name in _SIZES | _COUNTS:
        most = MAX_COUNT if name in _COUNTS else MAX_SIZE
        if not 1 <= value <= most:
            raise CheckpointError(f"{where}: {name} is {value}, must be from 1 to {most}")


def _check_types(config: PreTrainedConfig, prefix: str = "") -> None:
    """CheckpointError for a value of another type than the configuration's own class declares."""
    for name, annotation in inspect.get_annotations(type(config), eval_str=True).items():
        if not has_type(value := getattr(config, name), annotation):
            kind = annotation.__name__ if isinstance(annotation, type) else annotation
            raise CheckpointError(f"{prefix}{name} is {repr(value)[:80]}, must be {kind}")


class ImageDecoderConfig(PreTrainedConfig):
    """A latent diffusion model: diffusers' configurations of its parts as unchanged dicts.

    `kind` names the conditioning interface; "stable-diffusion" (1.x, 2.x: one sequence of condition vectors) is the only one.
    """

    model_type = "dreamllm_image_decoder"
    base_config_key = "image_decoder_config"

    kind: str = "stable-diffusion"
    resolution: int = 512  # pixels, height and width
    vae: Any = None  # AutoencoderKL
    unet: Any = None  # UNet2DConditionModel
    scheduler: dict[str, Any] | None = (
        None  # of any diffusers scheduler; its noise schedule and prediction type are used
    )

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("vae", "unet", "scheduler"):
            if not isinstance(getattr(self, name), (dict, NoneType)):
                raise CheckpointError(f"image_decoder_config.{name} is not an object")
        _check_types(self, "image_decoder_config.")
        self.vae, self.unet, self.scheduler = dict(self.vae or {}), dict(self.unet or {}), dict(self.scheduler or {})
        if self.kind != "stable-diffusion":
            raise UsageError(f"unknown image decoder kind {self.kind!r}; only stable-diffusion is supported")

    def to_dict(self) -> dict[str, Any]:
        # Without the fields that PreTrainedConfig has for classifiers.
        fields = ("model_type", "transformers_version", "kind", "resolution", "vae", "unet", "scheduler")
        return {key: value for key, value in super().to_dict().items() if key in fields}

    @property
    def condition_size(self) -> int:
        """Width of the UNet's cross-attention."""
        return int(self.unet.get("cross_attention_dim", 1280))

    @property
    def downscale(self) -> int:
        """Pixels per latent, in height and width."""
        return 2 ** (len(self.vae.get("block_out_channels", (64,))) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image's latents."""
        side = self.resolution // self.downscale
        return int(self.unet.get("in_channels", 4)), side, side


class DreamLLMConfig(PreTrainedConfig):
    """A causal decoder, a CLIP visual encoder, a latent diffusion model, and how they are joined.

    `text_config` may be that of any Llama-like causal language model in transformers. `image_decoder_config` is not one of `sub_configs`,
    because transformers would look for attention implementations in it.
    """

    model_type = "dreamllm"
    sub_configs: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleMethodOverride]
        "text_config": AutoConfig,
        "vision_config": CLIPVisionConfig,
    }

    # Configurations, dicts of their fields, or None for the defaults; `__post_init__` makes configurations of them.
    text_config: Any = None  # PreTrainedConfig
    vision_config: Any = None  # CLIPVisionConfig
    image_decoder_config: Any = None  # ImageDecoderConfig

    num_dream_queries: int = 64
    vision_select_layer: int = -2  # index of CLIP's hidden state; the class token is dropped
    visual_projector_depth: int = 1  # number of linear layers, with exact GELU between them
    visual_projector_layernorm: bool = False  # LayerNorm after the visual projector
    condition_projector_depth: int = 1
    initializer_range: float = 0.02  # of the dream queries
    loss_weight_lm: float = 1.0
    loss_weight_vm: float = 10.0
    loss_scale_schedule: str = "none"

    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int | None = None
    image_token_id: int | None = None  # placeholder in prompts, never reaches the model
    im_patch_token_id: int | None = None  # stands at image positions and at dream-query positions
    im_start_token_id: int | None = None
    im_end_token_id: int | None = None
    dream_token_id: int | None = None  # placeholder in prompts, never reaches the model
    dream_start_token_id: int | None = None
    dream_end_token_id: int | None = None

    training: str | None = None  # how the weights were trained; UNTRAINED for random weights, None if unknown
    released_names: dict[str, str] | None = None  # names of the CLIP and diffusion models in a released checkpoint
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if "plugins_init_kwargs" in kwargs:
            raise CheckpointError(
                "this config.json is of the released layout: read the checkpoint with dreamllm.load(folder, clip=DIR, diffusion=DIR)"
            )
        for name in _PARTS:
            if not isinstance(getattr(self, name), (dict, PreTrainedConfig, NoneType)):
                raise CheckpointError(f"{name} is not an object")
        _check_types(self)
        text, vision, decoder = (
            part or {} for part in (self.text_config, self.vision_config, self.image_decoder_config)
        )
        if isinstance(text, dict):
            text = CONFIG_MAPPING[text.get("model_type", "llama")](
                **{k: v for k, v in text.items() if k != "model_type"}
            )
        self.text_config = text
        self.vision_config = CLIPVisionConfig(**vision) if isinstance(vision, dict) else vision
        self.image_decoder_config = ImageDecoderConfig(**decoder) if isinstance(decoder, dict) else decoder
        self.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)  # after the parts: it sets attributes on them
        self._check_special_tokens()
        layers = self.vision_config.num_hidden_layers
        if not -layers - 1 <= self.vision_select_layer <= layers:
            raise CheckpointError(f"vision_select_layer is {self.vision_select_layer}, the encoder has {layers} layers")

    def _check_special_tokens(self) -> None:
        ids: dict[str, int | None] = {**self.special_token_ids}
        known = [i for i in ids.values() if i is not None]
        if not known:  # a bare DreamLLMConfig(), from which transformers reads the defaults
            return
        if len(known) < len(ids):
            raise UsageError(
                f"the configuration gives no id for {', '.join(token for token in ids if ids[token] is None)}"
            )
        size = self.text_config.vocab_size
        if len(set(known)) < len(known) or not all(0 <= i < size for i in known):
            raise UsageError(f"special token ids must differ and lie below vocab_size {size}: {ids}")

    @property
    def num_image_tokens(self) -> int:
        """N, the number of patch tokens of an image in a sequence."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def image_span(self) -> tuple[int, int, int]:
        """Ids of the start and patch tokens of an image span, and its number of patches."""
        ids = self.special_token_ids
        return ids["<im_start>"], ids["<im_patch>"], self.num_image_tokens

    @property
    def dream_span(self) -> tuple[int, int, int]:
        """Ids of the start and patch tokens of a dream span, and its number of queries."""
        ids = self.special_token_ids
        return ids["<dream_start>"], ids["<im_patch>"], self.num_dream_queries

    @property
    def special_token_ids(self) -> dict[str, int]:
        """Token string -> id of the eight added tokens."""
        return {token: getattr(self, field) for token, field in SPECIAL_TOKEN_FIELDS.items()}

    @property
    def untrained(self) -> bool:
        return self.training == UNTRAINED


AutoConfig.register("dreamllm", DreamLLMConfig)
