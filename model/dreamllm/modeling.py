"""DreamLLM (arXiv 2309.11499): a causal decoder that reads images through CLIP and generates images them through dream queries."""

from __future__ import annotations

from transformers import GenerationMixin

from dreamllm.generation import DreamLLMTextGeneration
from dreamllm.interleaved import DreamLLMInterleaved


class DreamLLMForConditionalGeneration(  # pyright: ignore[reportIncompatibleMethodOverride]
    DreamLLMTextGeneration, DreamLLMInterleaved, GenerationMixin
):
    """The whole model: `generate` for text, `encode_prompts` and `generate_images` for images, `generate_interleaved` for both."""
