"""A recipe: one YAML file that says what learns, from what, on what data, and for how long. Unknown keys are errors."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dreamllm.errors import UsageError

# Fields of the trainer that the library takes as they are, and falls over later: the least of whole numbers, and rates.
WHOLE = {
    "max_steps": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}
RATES = ("num_train_epochs", "learning_rate", "weight_decay", "max_grad_norm")

Part = Literal["visual_projector", "condition_projector", "dream_queries", "language_model"]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Start(Settings):
    """Where the weights come from: a checkpoint, or the three published parts."""

    checkpoint: str | None = None  # folder or hub id, our layout or the released one
    language_model: Path | None = None  # folder of a Llama-like model and its tokenizer
    clip: Path | None = None  # folder of a CLIP model; a released checkpoint takes one too
    diffusion: Path | None = None  # folder of a Stable Diffusion model; a released checkpoint takes one too
    num_dream_queries: int | None = Field(default=None, ge=1)  # 64 unless said
    vision_select_layer: int | None = None  # -2 unless said
    resolution: int | None = Field(
        default=None, ge=8
    )  # pixels to generate images; what the UNet was made for unless said
    chat_template: str | None = None  # one of dreamllm.processing.CHAT_TEMPLATES; vicuna_v1.1 unless said
    seed: int = 0  # of the projectors and queries, which no part brings
    dtype: Literal["float32", "bfloat16"] = "float32"  # of all weights
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None  # transformers' choice unless said

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.checkpoint is None:
            missing = [name for name in ("language_model", "clip", "diffusion") if getattr(self, name) is None]
            if missing:
                raise ValueError(
                    f"give checkpoint, or all of language_model, clip and diffusion; {missing[0]} is missing"
                )
            return self
        fresh = ("language_model", "num_dream_queries", "vision_select_layer", "resolution", "chat_template")
        surplus = [name for name in fresh if getattr(self, name) is not None]
        if surplus:
            raise ValueError(f"{surplus[0]} belongs to a start from parts; the checkpoint has its own")
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
    unconditional: Literal["queries", "patches"] = "queries"  # what stands in for it; patches is the original's way
    length_groups: int = Field(default=1, ge=1)  # of a batch's rows, by length; they go through the decoder one by one

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.weight_lm == self.weight_vm == 0:
            raise ValueError("weight_lm and weight_vm are both 0: nothing would be learnt")
        return self


class Data(BaseModel):
    """Samples to learn from and to evaluate on. Sources and the other keys are those of `dreamllm.data.recipe`, which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    seed: int = Field(default=0, ge=0, lt=2**32)  # of the order, the mixture, the noise and the timesteps
    sources: list[dict[str, Any]] = Field(min_length=1)
    eval_sources: list[dict[str, Any]] = []  # read at every trainer.eval_steps
    eval_samples: int = Field(default=256, ge=1)  # how many of them

    def part(self, evaluation: bool = False) -> dict[str, Any]:
        """What `dreamllm.data.training_dataset` takes, for training or for evaluation."""
        part = self.model_dump(exclude={"sources", "eval_sources", "eval_samples"})
        if evaluation:
            part["samples"] = None  # an epoch of the training mixture
        return part | {"sources": self.eval_sources if evaluation else self.sources}


class Lora(Settings):
    """Low-rank adapters in the language model, in place of its own weights; merged into them at the end."""

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Recipe(Settings):
    stage: str = Field(min_length=1)  # a name, for the record
    start: Start
    output: Path  # the folder of the result, its checkpoints and its logs
    train: list[Part] = Field(min_length=1)  # what learns; the rest is frozen
    loss: LossSettings = LossSettings()
    data: Data
    trainer: dict[str, Any] = {}  # fields of transformers.TrainingArguments
    lora: Lora | None = None

    @field_validator("trainer")
    @classmethod
    def _numbers(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given.keys() & WHOLE.keys():
            value, least = given[name], WHOLE[name]
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be a whole number, {least} or more; it is {value!r}")
        for name in given.keys() & set(RATES):
            value = given[name]
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number, 0 or more; it is {value!r}")
        return given

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.lora is not None and "language_model" not in self.train:
            raise ValueError("lora adapts the language model: name language_model in train")
        return self

    @property
    def fingerprint(self) -> str:
        """Eight hex digits of all that decides the result; the output folder is not among it."""
        return hashlib.sha256(self.model_dump_json(exclude={"output"}).encode()).hexdigest()[:8]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 2e-5 for a text; here it is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `changes` such as `trainer.max_steps=100` or `data.sources.0.path=pairs.jsonl` made to it.

    Raises UsageError, one line, for anything missing, unknown or out of range. Relative paths are relative to the current folder.
    """
    path = Path(path)
    try:
        raw = _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"recipe {path} holds no keys; it needs stage, start, output, train and data")
    for change in changes:
        _change(raw, change)
    return make_recipe(raw, path)


def make_recipe(raw: dict[str, Any], where: object = "the recipe") -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        first, *others = error.errors()
        key = ".".join(str(item) for item in first["loc"])
        more = f" (and {len(others)} more)" if others else ""
        raise UsageError(
            f"{where}: {key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}{more}"
        ) from None


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)


def _change(raw: dict[str, Any], change: str) -> None:
    key, separator, value = change.partition("=")
    if not separator:
        raise UsageError(f"--set {change}: write key=value, for instance --set trainer.max_steps=100")
    *parents, last = key.split(".")
    place: Any = raw
    try:
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[int(last) if isinstance(place, list) else last] = _parse(value)
    except (ValueError, IndexError, TypeError, AttributeError):
        raise UsageError(f"--set {change}: the recipe has no place {key}") from None
    except yaml.YAMLError:
        raise UsageError(f"--set {change}: the value is not YAML") from None
