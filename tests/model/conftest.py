"""A tiny model with random weights, made once. Tests that change it take a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor, presets


@pytest.fixture(scope="session")
def built() -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    model, processor = presets.build("tiny", seed=3)
    # Random weights of the usual size give nearly equal logits whatever the prompt; larger ones make differences show.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name.startswith(("language_model", "vision_tower", "visual_projector")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        model.dream_queries.copy_(torch.randn(model.dream_queries.shape, generator=generator) * 0.5)
    return model, processor


@pytest.fixture(scope="session")
def model(built: tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]) -> DreamLLMForConditionalGeneration:
    return built[0]


@pytest.fixture(scope="session")
def processor(built: tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]) -> DreamLLMProcessor:
    return built[1]


@pytest.fixture
def own_model(model: DreamLLMForConditionalGeneration) -> DreamLLMForConditionalGeneration:
    return copy.deepcopy(model)


@pytest.fixture(scope="session")
def image() -> Callable[[int], Image.Image]:
    """An image of noise, another for each number."""
    return lambda seed: Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8))
