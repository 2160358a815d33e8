"""Accepted values of options, for the library and the command line. This module imports neither torch nor transformers."""

from __future__ import annotations

import re
from enum import Enum, StrEnum
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from dreamllm.errors import UsageError

DEVICES = "auto, cpu, cuda or cuda:NUMBER"
Option = TypeVar("Option", bound=StrEnum)


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class SchedulerName(StrEnum):
    ddpm = "ddpm"  # the original's (ancestral)
    ddim = "ddim"
    dpm_solver = "dpm-solver++"


class OutputType(StrEnum):
    pil = "pil"
    tensor = "tensor"
    latent = "latent"


class Preset(StrEnum):
    tiny = "tiny"  # runs anywhere in milliseconds
    large = "7b"  # has the sizes of the released model


class ImagePreset(StrEnum):
    demo = "demo"  # the original's projects/dreamllm/inference.py
    coco = "coco"  # its images for the Fréchet distance on MS-COCO


class Layout(StrEnum):
    native = "native"  # safetensors, as `save_pretrained` writes them
    released = "released"  # that of the original's checkpoints


class Resume(StrEnum):
    auto = "auto"  # train from the last checkpoint in the output folder, if there is one
    never = "never"  # the output folder must be empty


def has_type(value: Any, annotation: Any) -> bool:
    """Whether a value from JSON or YAML is of an annotated type, as far as it names plain ones: a whole number is a real one too."""
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    allowed = _plain_types(annotation)
    if not allowed <= {bool, int, float, str, NoneType, list, dict} or not allowed:
        return True  # Any, or a type that no file can hold
    if isinstance(value, list):
        return list in allowed and all(_is_one(item, allowed) for item in _flat(value))
    return _is_one(value, allowed)


def _is_one(value: Any, allowed: set[Any]) -> bool:
    return type(value) in allowed or (type(value) is int and float in allowed)


def _flat(value: list[Any]) -> list[Any]:
    return [one for item in value for one in (_flat(item) if isinstance(item, list) else [item])]


def _plain_types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, with its containers as `list` and `dict`."""
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part is not ...]
    if origin is Literal:
        return {type(part) for part in parts}
    if origin in (tuple, list):
        return {list}.union(*map(_plain_types, parts))
    if origin is dict or annotation is dict:
        return {dict}
    if parts:
        return set[Any]().union(*map(_plain_types, parts))
    if annotation in (tuple, list):
        return {list, int, float, str, bool}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {str}
    return {NoneType if annotation is None else annotation}


def choose(kind: type[Option], name: str, option: str) -> Option:
    """The member of an enumeration; UsageError with the accepted values if there is none of this name."""
    try:
        return kind(name)
    except ValueError:
        raise UsageError(f"unknown {option} {name!r}; choose from {', '.join(kind)}") from None


def check_device(device: str) -> str:
    """The device, unchanged; UsageError for a name that torch does not accept. Does not check that the device exists."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(f"unknown --device {device!r}; choose from {DEVICES}")
    return device


def check_seed(seed: int) -> int:
    """The seed, unchanged; UsageError for one that torch does not accept."""
    if not -(2**63) <= seed < 2**64:
        raise UsageError("--seed is out of range: choose a number from -2**63 to 2**64 - 1")
    return seed


def check_temperature(temperature: float | None) -> float | None:
    """The temperature, unchanged; UsageError for one that logits cannot be divided by."""
    if temperature and not 1e-6 <= temperature <= 1e6:
        raise UsageError(f"--temperature {temperature}: choose 0, or a number from 1e-6 to 1e6")
    return temperature


def check_tokenizer(preset: Preset, file: object) -> None:
    """Raise UsageError if the preset needs a tokenizer file and there is none."""
    if file is None and preset != Preset.tiny:
        raise UsageError(
            f"preset {preset} needs a Llama tokenizer: give its tokenizer.model or tokenizer.json with --tokenizer FILE"
        )
