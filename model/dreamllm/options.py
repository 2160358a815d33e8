"""The values that options accept, named once for the library and the command line. Nothing heavy is imported here."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TypeVar

from dreamllm.errors import UsageError

__all__ = ["Dtype", "Layout", "Preset", "Resume", "SchedulerName", "check_device", "check_tokenizer", "choose"]

DEVICES = "auto, cpu, cuda or cuda:N"
Option = TypeVar("Option", bound=StrEnum)


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class SchedulerName(StrEnum):
    """`ddpm` is the original's (ancestral)."""

    ddpm = "ddpm"
    ddim = "ddim"
    dpm_solver = "dpm-solver++"


class Preset(StrEnum):
    """`tiny` runs anywhere in milliseconds, `7b` has the sizes of the released model."""

    tiny = "tiny"
    large = "7b"


class Layout(StrEnum):
    """`native` is safetensors written by `save_pretrained`; `released` is that of the original's checkpoints."""

    native = "native"
    released = "released"


class Resume(StrEnum):
    """Whether `dreamllm train` continues a run that it finds in the output folder."""

    auto = "auto"
    never = "never"


def choose(kind: type[Option], name: str, option: str) -> Option:
    """The member of an enumeration; UsageError with the accepted values for any other name."""
    try:
        return kind(name)
    except ValueError:
        raise UsageError(f"unknown {option} {name!r}; choose from {', '.join(kind)}") from None


def check_device(device: str) -> str:
    """The device as it is written; UsageError for a name that torch would not accept. Whether it exists is not checked."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(f"unknown --device {device!r}; choose from {DEVICES}")
    return device


def check_tokenizer(preset: Preset, file: object) -> None:
    """UsageError if the preset needs a tokenizer file and there is none."""
    if file is None and preset != Preset.tiny:
        raise UsageError(
            f"preset {preset} needs a Llama tokenizer: give its tokenizer.model or tokenizer.json with --tokenizer FILE"
        )
