"""Accepted values of options, for the library and the command line. This module imports neither torch nor transformers."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TypeVar

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


class Layout(StrEnum):
    native = "native"  # safetensors, as `save_pretrained` writes them
    released = "released"  # that of the original's checkpoints


class Resume(StrEnum):
    auto = "auto"  # train from the last checkpoint in the output folder, if there is one
    never = "never"  # the output folder must be empty


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


def check_tokenizer(preset: Preset, file: object) -> None:
    """Raise UsageError if the preset needs a tokenizer file and there is none."""
    if file is None and preset != Preset.tiny:
        raise UsageError(
            f"preset {preset} needs a Llama tokenizer: give its tokenizer.model or tokenizer.json with --tokenizer FILE"
        )
