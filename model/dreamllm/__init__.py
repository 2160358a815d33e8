"""DreamLLM (arXiv 2309.11499): one causal decoder that understands and generates images.

Names are imported when they are first used, so that `import dreamllm` and `dreamllm --help` load neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamllm.checkpoint import load
    from dreamllm.configuration import DreamLLMConfig, ImageDecoderConfig
    from dreamllm.modeling import DreamLLMForConditionalGeneration
    from dreamllm.processing import DreamLLMProcessor

__all__ = ["DreamLLMConfig", "DreamLLMForConditionalGeneration", "DreamLLMProcessor", "ImageDecoderConfig", "load"]

_HOMES = {
    "DreamLLMConfig": "configuration",
    "DreamLLMForConditionalGeneration": "modeling",
    "DreamLLMProcessor": "processing",
    "ImageDecoderConfig": "configuration",
    "load": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamllm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dreamllm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
