"""`--memory` says what training needs without loading weights: compared with what torch allocates in real runs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from model.made_pairs import recipe_dict, write_pairs
from torch.profiler import ProfilerActivity, profile

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor, checkpoint
from dreamllm.recipe import Recipe, make_recipe
from dreamllm.training import memory, run
from dreamllm.training.memory import estimate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    # peft uses a deprecated name of transformers.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
OPTIONS: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4, "save_steps": 100}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, built: tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]
) -> Path:
    """A folder with data and a checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    write_pairs(folder / "data")
    checkpoint.save(folder / "tiny", *built)
    return folder


def peak_of_training(recipe: Recipe) -> int:
    """Bytes: the weights, and the peak of all that torch's allocator hands out in a run, as torch's profiler records it."""
    model, processor = run.start(recipe)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trainer = run.make_trainer(recipe, model, processor)
    gc.collect()  # what is freed in the profile was allocated in it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer.train()
    live = peak = 0
    assert recorded.profiler is not None
    events: Any = recorded.profiler.kineto_results
    for event in events.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return weights + peak


@pytest.mark.parametrize(
    ("stage", "mode", "options", "lora"),
    [
        ("igpt", "generation", {"activation_checkpointing": True, "bf16": True}, None),
        ("comprehension", "comprehension", {"gradient_accumulation_steps": 2, "optim": "adafactor"}, None),
        ("igpt", "generation", {}, {"r": 4}),
    ],
)
def test_the_estimate_is_within_15_percent_of_what_a_run_allocates(
    stage: str,
    mode: str,
    options: dict[str, Any],
    lora: dict[str, Any] | None,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if lora:
        pytest.importorskip("peft", reason="LoRA is an extra")
    monkeypatch.setattr(memory, "INSPECTED_BATCHES", 2)  # as many as are trained on
    raw = recipe_dict(stage, made / "data", made / "tiny", tmp_path / "out", **(OPTIONS | options))
    raw["lora"] = lora
    raw["data"]["sources"][0]["mode"] = mode  # so that all batches have images
    found = estimate(make_recipe(raw), processes=1)
    assert ("FSDP2" in (found.checkpointed or found.plain)) == (lora is None)
    table = found.checkpointed if options.get("activation_checkpointing") else found.plain
    assert table["one process"].peak == pytest.approx(peak_of_training(make_recipe(raw)), rel=0.15)
