"""A training recipe: one YAML file with the parts to train, the initial weights, the data, the losses and the length of training.

Unknown keys are errors. This module imports neither torch nor transformers, so that mistakes are reported at once.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12
from yaml.composer import ComposerError

from dreamllm.errors import UsageError, one_line

Part = Literal["visual_projector", "condition_projector", "dream_queries", "language_model"]
Kind = Literal["pairs", "image_pairs", "mmc4", "obelics", "conversations", "instructions"]
MODES: dict[str, tuple[str, ...]] = {  # by kind, the default first
    "pairs": ("either", "comprehension", "generation"),
    "image_pairs": ("pair", "reconstruction"),
    "mmc4": ("both", "comprehension", "generation"),
    "obelics": ("both", "comprehension", "generation"),
    "instructions": ("both", "comprehension", "generation"),
    "conversations": ("both",),
}


MAX_NUMBER = 2**32
"""Whole numbers of a recipe lie within ±MAX_NUMBER; what they count must fit into memory or a lifetime."""


LENGTHS = ("max_steps", "num_train_epochs")  # of `trainer`: a recipe has one of them


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def expand_home(path: str | Path) -> Path:
    """The path with the home folder in place of `~`, as transformers and datasets read it."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises RuntimeError for an unknown user)


HomePath = Annotated[Path, AfterValidator(expand_home)]


def later(default: Any, **checks: Any) -> Any:
    """A field that is saved only where it differs from its default, so that older recipes keep their fingerprint and their runs."""
    return Field(default=default, exclude_if=lambda value: value == default, **checks)


class Start(Settings):
    """The initial weights: a checkpoint, or its three published parts."""

    # Folder or hub id, in our layout or the released one.
    checkpoint: Annotated[str, AfterValidator(os.path.expanduser)] | None = None
    language_model: HomePath | None = None  # folder of a Llama-like model and its tokenizer
    clip: HomePath | None = None  # folder of a CLIP model; also accepted with a released checkpoint
    diffusion: HomePath | None = None  # folder of a Stable Diffusion model; also accepted with a released checkpoint
    num_dream_queries: int | None = Field(default=None, ge=1)  # default 64
    vision_select_layer: int | None = None  # default -2
    resolution: int | None = Field(default=None, ge=8)  # pixels of generated images; default: the UNet's own
    chat_template: str | None = None  # a key of dreamllm.processing.CHAT_TEMPLATES; default vicuna_v1.1
    new_embeddings: Literal["mean", "random"] | None = later(None)  # of the added tokens; default mean
    seed: int = 0  # of the new projectors and queries
    dtype: Literal["float32", "bfloat16"] = "float32"  # of all weights
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None  # default: transformers' choice

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.checkpoint is None:
            missing = [name for name in ("language_model", "clip", "diffusion") if getattr(self, name) is None]
            if missing:
                raise ValueError(
                    f"set checkpoint, or all of language_model, clip and diffusion; {missing[0]} is missing"
                )
            return self
        fresh = (
            "language_model",
            "num_dream_queries",
            "vision_select_layer",
            "resolution",
            "chat_template",
            "new_embeddings",
        )
        surplus = [name for name in fresh if getattr(self, name) is not None]
        if surplus:
            raise ValueError(f"{surplus[0]} cannot be combined with checkpoint, which has its own")
        return self


class LossSettings(Settings):
    """total = (weight_lm x language loss + weight_vm x image loss) / scale."""

    weight_lm: float = Field(default=1.0, ge=0)
    weight_vm: float = Field(default=10.0, ge=0)
    scale: Literal["none", "l1", "l2"] = "none"  # 1, the sum of the weights, or the root of the sum of their squares
    noise_offset: float = Field(default=0.0, ge=0)
    input_perturbation: float = Field(default=0.0, ge=0)
    snr_gamma: float | None = Field(default=None, gt=0)  # min-SNR weighting (arXiv 2303.09556)
    drop_probability: float = Field(default=0.0, ge=0, le=1)  # of the condition, for classifier-free guidance
    unconditional: Literal["queries", "patches"] = "queries"  # replaces a dropped condition; patches: as the original
    length_groups: int = Field(default=1, ge=1)  # groups of rows of similar length, to pad less in the decoder
    packing: bool = later(False)  # several samples in one row of the decoder, which keeps them apart

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.packing and self.length_groups > 1:
            raise ValueError("packing leaves no padding for length_groups: set one of them")
        if self.weight_lm == self.weight_vm == 0:
            raise ValueError("weight_lm and weight_vm are both 0: nothing would be trained")
        return self


class SourceSettings(Settings):
    """One entry of `data.sources`."""

    kind: Kind
    path: str | list[str] = Field(min_length=1)  # files; * and ? are expanded
    images: str | None = None  # folder that image names are relative to; default: the folder of the first file
    name: str | None = None  # of the source in messages; default: its path
    weight: float | None = Field(
        default=None, gt=0, allow_inf_nan=False
    )  # share of the samples; for all sources or none
    mode: str | None = None  # one of MODES[kind]; default: the first
    # Mirror half of the generated images; default: data.flip, but not for image_pairs in mode pair.
    flip: bool | None = None
    columns: dict[
        Literal["image", "caption", "target"], str
    ] = {}  # pairs, image_pairs: names of the fields, if unusual
    min_size: int = later(0, ge=0)  # pixels of the shorter side; smaller images are not used
    min_similarity: float = 0.25  # mmc4, instructions: images with a lower matched_sim are dropped
    learn_dream_start: bool = True  # conversations: train the assistant to say where an image comes
    streaming: bool = False  # read the files in order, without a table on disk
    shuffle_buffer: int = Field(default=10_000, ge=1)  # streaming: number of records that the next one is drawn from

    @model_validator(mode="after")
    def _known_mode(self) -> Self:
        modes = MODES[self.kind]
        if self.mode not in (None, *modes):
            raise ValueError(f"mode {self.mode!r} is unknown for {self.kind}; choose from {', '.join(modes)}")
        return self

    @property
    def resolved_mode(self) -> str:
        return self.mode or MODES[self.kind][0]

    @property
    def label(self) -> str:
        return self.name or (self.path if isinstance(self.path, str) else self.path[0])


class DataSettings(Settings):
    """`data` of a recipe: the sources to train and to evaluate on, and how they are mixed."""

    sources: list[SourceSettings] = Field(min_length=1)
    max_length: int | None = Field(default=None, gt=0)  # tokens of a sample; default: the tokenizer's model_max_length
    seed: int = Field(default=0, ge=0, lt=2**32)  # of the order, the mixture, the noise and the timesteps
    samples: int | None = Field(default=None, gt=0)  # per epoch; default: the number of all records
    flip: bool = True  # mirror half of the generated images
    max_broken: int = Field(default=1000, ge=0)  # distinct broken records or images before training stops
    cache: str | None = None  # folder of the tables that `datasets` writes; default: its own cache
    feature_cache: str | None = later(None, min_length=1)  # folder of what CLIP and the autoencoder gave for an image
    eval_sources: list[SourceSettings] = []  # evaluated every trainer.eval_steps
    eval_samples: int = Field(default=256, ge=1)  # per evaluation

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, sources in (("sources", self.sources), ("eval_sources", self.eval_sources)):
            if len({source.weight is None for source in sources}) > 1:
                raise ValueError(
                    f"{name}: give every source a weight, or none (every record is then drawn equally often)"
                )
        streams = any(source.streaming for source in self.sources)
        if streams and (self.samples is None or self.sources[0].weight is None):
            raise ValueError("the length of a stream is unknown: set `samples`, and a weight for every source")
        if any(source.streaming for source in self.eval_sources):
            raise ValueError("eval_sources cannot be streamed: remove `streaming`")
        return self

    def evaluation(self) -> DataSettings:
        """The evaluation data as a mixture of its own; an epoch is every record once."""
        return self.model_copy(update={"sources": self.eval_sources, "eval_sources": [], "samples": None})


class Lora(Settings):
    """Low-rank adapters of the language model, trained instead of its weights and merged into them at the end."""

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


_Count = Annotated[int, Field(ge=1)]
_Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TrainerFields(TypedDict, total=False):
    """Fields of transformers.TrainingArguments. Those listed are checked here, because TrainingArguments accepts any value."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # pyright: ignore[reportGeneralTypeIssues]

    max_steps: _Count
    per_device_train_batch_size: _Count
    per_device_eval_batch_size: _Count
    gradient_accumulation_steps: _Count
    dataloader_num_workers: Annotated[int, Field(ge=0)]
    num_train_epochs: _Rate
    learning_rate: _Rate
    weight_decay: _Rate
    max_grad_norm: _Rate


class Monitor(Settings):
    """What is watched during training. It has no effect on the result and may change when a run is resumed."""

    peak_tflops: float | None = Field(default=None, gt=0)  # of a device, for `mfu`; default: that of a known GPU
    callbacks: dict[str, dict[str, Any]] = {}  # by registered name: `every`, a number of steps, and its own options


class Recipe(Settings):
    stage: str = Field(min_length=1)  # name, recorded in config.training of the result
    start: Start
    output: HomePath  # folder of the result, its checkpoints and its logs
    train: list[Part] = Field(min_length=1)  # the parts to train; all others are frozen
    loss: LossSettings = LossSettings()
    data: DataSettings
    trainer: TrainerFields = {}
    lora: Lora | None = None
    monitor: Monitor = Monitor()
    _where: str = PrivateAttr(default="")  # what errors begin with

    @model_validator(mode="after")
    def _lora_has_a_part(self) -> Self:
        if self.lora is not None and "language_model" not in self.train:
            raise ValueError("lora adapts the language model: add language_model to train")
        return self

    def error(self, message: str) -> UsageError:
        """For a value of this recipe that only the libraries or the model can refuse: names the file."""
        return UsageError(f"{self._where}{message}")

    @property
    def fingerprint(self) -> str:
        """Eight hex digits of all that the result depends on: everything but the output folder and what is watched."""
        return hashlib.sha256(self.model_dump_json(exclude={"output", "monitor"}).encode()).hexdigest()[:8]


class _Loader(yaml.SafeLoader):
    """YAML as of 1.2 where PyYAML is not: 2e-5 is a number, and a key that stands twice in one mapping an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file.

    Args:
        changes: overrides such as `trainer.max_steps=100`, which also replaces `num_train_epochs`, or `data.sources.0.path=pairs.jsonl`.

    Paths in a recipe are relative to the current folder. Raises UsageError, one line, for what is missing, unknown or out of range.
    """
    try:
        raw = _parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: a date that is none, a number of 5,000 digits
        raise UsageError(f"recipe {path} is not YAML: {one_line(error)}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"recipe {path} has no keys; it needs stage, start, output, train and data")
    for change in changes:
        _override(raw, change)
    return make_recipe(raw, f"{path}: ")


def make_recipe(raw: dict[str, Any], where: str = "recipe: ") -> Recipe:
    """The recipe in a dict, as YAML gives it; UsageError, starting with `where`, if it is not valid."""
    _check_numbers(raw, where)
    recipe = _validated(Recipe, raw, where)
    recipe._where = where  # pyright: ignore[reportPrivateUsage]  (pydantic's way to keep what is no setting)
    return recipe


def make_data_settings(raw: dict[str, Any]) -> DataSettings:
    """The settings in the `data` part of a recipe; UsageError if they are not valid."""
    return _validated(DataSettings, raw, "", "data")


def _check_numbers(value: Any, where: str, key: str = "") -> None:
    """UsageError for a number that is not finite or absurdly large, a null character, and YAML that contains itself."""
    try:
        for name, one in (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        ):
            _check_numbers(one, where, f"{key}.{name}" if key else str(name))
    except RecursionError:
        raise UsageError(f"{where.removesuffix(': ')} is nested too deeply") from None
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"{where}{key}: it has a null character, which no path or name has")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}{key}: {value} is no finite number")
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise UsageError(f"{where}{key}: {str(value)[:40]} is too large (at most {MAX_NUMBER})")


_Model = TypeVar("_Model", bound=Settings)


def _validated(model: type[_Model], raw: dict[str, Any], where: str, *prefix: str) -> _Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first, *others = error.errors()
        key = ".".join(str(item) for item in (*prefix, *first["loc"]))
        more = f" (and {len(others)} more)" if others else ""
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}{key + ': ' if key else ''}{message}{more}") from None


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)


def _override(raw: dict[str, Any], change: str) -> None:
    key, separator, value = change.partition("=")
    if not separator:
        raise UsageError(f"--set {change}: expected KEY=VALUE, for instance --set trainer.max_steps=100")
    *parents, last = key.split(".")
    node: Any = raw
    try:
        for name in parents:
            node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
        node[int(last) if isinstance(node, list) else last] = _parse_yaml(value)
        if parents == ["trainer"] and last in LENGTHS:
            for other in set(LENGTHS) - {last}:
                raw["trainer"].pop(other, None)
    except (ValueError, IndexError, TypeError, AttributeError):
        raise UsageError(f"--set {change}: the recipe has no key {key}") from None
    except (yaml.YAMLError, RecursionError):
        raise UsageError(f"--set {change}: the value is not YAML") from None
