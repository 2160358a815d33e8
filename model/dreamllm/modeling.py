"""DreamLLM (arXiv 2309.11499): a causal decoder that reads images through CLIP and paints them through dream queries."""

from __future__ import annotations

from transformers import GenerationMixin

from dreamllm.composing import DreamLLMComposing
from dreamllm.generation import DreamLLMReading


class DreamLLMForConditionalGeneration(  # pyright: ignore[reportIncompatibleMethodOverride]
    DreamLLMReading, DreamLLMComposing, GenerationMixin
):
    """The whole model: `forward` and `generate` read, `encode_prompts` and `paint` paint, `compose` does both in one document."""
