"""What is watched during training leaves no trace in its result: throughput, sample sheets, benchmark scores."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model.made_pairs import recipe_dict, write_pairs
from PIL import Image

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor, checkpoint
from dreamllm.errors import UsageError
from dreamllm.recipe import make_recipe
from dreamllm.training import callbacks, run
from dreamllm.training.callbacks import Throughput, inference
from dreamllm.training.simulate import BatchShape, FlopsModel

Built = tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]
Make = Callable[..., dict[str, Any]]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, built: Built) -> Make:
    """A recipe for an output folder."""
    folder = tmp_path_factory.mktemp("made")
    write_pairs(folder / "data")
    checkpoint.save(folder / "tiny", *built)
    return lambda output, stage="igpt", **trainer: recipe_dict(
        stage, folder / "data", folder / "tiny", output, **({"max_steps": 4, "save_steps": 2} | trainer)
    )


def files(output: Path) -> dict[str, bytes]:
    """All of an output that has to be the same again."""
    outside = ("timings.jsonl", "benchmarks")
    paths = {path.relative_to(output): path for path in output.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in paths.items() if name.parts[0] not in outside}


SAMPLES = {"every": 2, "captions": ["a red square"], "story": "Tell a story.", "max_new_tokens": 4, "seed": 3}
SCORES = {"every": 3, "tasks": [{"task": "vqav2", "limit": 2}]}


def test_monitors_write_samples_and_scores_and_leave_losses_weights_and_logs_as_they_are(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dropout draws from the global generator, so a disturbed generator shows in the losses."""
    lora = {"r": 2, "dropout": 0.2}
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    run.train(make_recipe(make(plain) | {"lora": lora}))
    capsys.readouterr()
    raw = make(watched) | {"lora": lora, "monitor": {"callbacks": {"samples": SAMPLES, "benchmarks": SCORES}}}
    run.train(make_recipe(raw))
    printed = capsys.readouterr().out
    before, after = files(plain), files(watched)
    new = set(after) - set(before)
    assert new == {"scores.jsonl", *(f"samples/step-0000000{n}.{kind}" for n in (2, 4) for kind in ("html", "png"))}
    assert {name for name in before if before[name] != after[name]} == {"recipe.json"}
    with Image.open(watched / "samples" / "step-00000002.png") as sheet:
        assert sheet.size == (64, 64)
    page = (watched / "samples" / "step-00000002.html").read_text()
    assert "a red square" in page
    assert "Tell a story." in page
    scores = [json.loads(line) for line in (watched / "scores.jsonl").read_text().splitlines()]
    assert {line["step"] for line in scores} == {3, 4}
    assert all((watched / line["run"] / "metrics.json").is_file() for line in scores)
    assert "vqav2/" in printed


def test_a_resumed_run_writes_the_same_samples(make: Make, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    monitor = {"monitor": {"callbacks": {"samples": SAMPLES | {"story": None, "every": 1}}}}
    run.train(make_recipe(make(whole) | monitor))
    recipe = make_recipe(make(halves) | monitor)
    stopped = pytest.MonkeyPatch()
    calls: list[int] = []

    def stop_at_the_third(self: Any, model: Any, step: int) -> None:
        calls.append(step)
        if step == 3:
            raise KeyboardInterrupt

    from dreamllm.training.samples import SampleSheet

    original = SampleSheet.__call__
    with stopped.context() as patched:
        patched.setattr(SampleSheet, "__call__", lambda *a: (original(*a), stop_at_the_third(*a)))
        with pytest.raises(KeyboardInterrupt):
            run.train(recipe)
    assert calls == [1, 2, 3]
    run.train(recipe)
    assert files(halves) == files(whole)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sheet", {"every": 1}, r"monitor\.callbacks\.sheet is not registered; choose from benchmarks, samples"),
        ("samples", {"captions": ["a"]}, r"monitor\.callbacks\.samples\.every is None, must be a number of steps"),
        ("samples", {"every": 1}, r"monitor\.callbacks\.samples: set captions, story, or both"),
        ("samples", {"every": 1, "caption": ["a"]}, r"monitor\.callbacks\.samples\.caption: Extra inputs"),
        ("benchmarks", {"every": 1}, r"monitor\.callbacks\.benchmarks: it takes every and tasks"),
        ("benchmarks", {"every": 1, "tasks": [{"task": "vqa"}]}, r"benchmarks: no task is called vqa: .*vqav2"),
        ("benchmarks", {"every": 1, "tasks": [{"task": "vqav2", "model": "echo"}]}, r"benchmarks: model cannot be set"),
        ("benchmarks", {"every": 1, "tasks": [{"task": "vqav2", "limits": 3}]}, r"benchmarks: .*limits"),
    ],
)
def test_a_wrong_monitor_ends_the_run_before_it_begins(
    name: str, options: dict[str, Any], message: str, make: Make, tmp_path: Path
) -> None:
    recipe = make_recipe(make(tmp_path / "out") | {"monitor": {"callbacks": {name: options}}})
    with pytest.raises(UsageError, match=rf"^recipe: .*{message}") as caught:
        run.train(recipe)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "recipe.json").exists()


def test_what_is_watched_belongs_to_no_fingerprint_and_may_change_when_a_run_is_resumed(
    make: Make, tmp_path: Path
) -> None:
    raw = make(tmp_path / "out")
    watched = make_recipe(raw | {"monitor": {"peak_tflops": 2.0}})
    assert watched.fingerprint == make_recipe(raw).fingerprint
    run.train(make_recipe(raw))
    assert "monitor" not in json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert run.check_output(watched, "auto") == "complete"


def test_timings_hold_throughput_and_no_utilisation_of_a_cpu_unless_its_peak_is_given(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(make_recipe(make(tmp_path / "cpu", max_steps=2)))
    names = ["data_share", "images_per_second", "seconds_per_step", "step", "tokens_per_second"]
    lines = [json.loads(line) for line in (tmp_path / "cpu" / "timings.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [names, names]
    assert all(0 < line["data_share"] < 1 for line in lines)
    run.train(make_recipe(make(tmp_path / "peak", max_steps=2) | {"monitor": {"peak_tflops": 0.5}}))
    for line in map(json.loads, (tmp_path / "peak" / "timings.jsonl").read_text().splitlines()):
        assert line["mfu"] == pytest.approx(line["tflops"] / 0.5, rel=1e-3)
        assert 0 < line["mfu"] < 1


def test_throughput_counts_the_time_of_steps_only() -> None:
    meter = Throughput()
    meter.processes, meter.peak, meter.flops = 2, 1e-6, lambda *counts: counts[0] * 1e3
    for _ in range(2):
        meter.fetch()
        time.sleep(0.02)
        meter.fetched()
        meter.count(labels=5, generated_images=1, tokens=10, squares=100, input_images=2)
        time.sleep(0.06)
    meter.stop()
    time.sleep(0.3)  # an evaluation
    found = meter.read()
    assert 0.08 <= found["seconds_per_step"] < 0.2
    assert 0.04 / 0.4 < found["data_share"] < 0.5
    assert found["tokens_per_second"] == pytest.approx(10 / found["seconds_per_step"], rel=2e-3)
    assert found["images_per_second"] == pytest.approx(3 / found["seconds_per_step"], rel=2e-3)
    assert found["tflops"] == pytest.approx(found["tokens_per_second"] * 1e3 / 2 / 1e12, rel=2e-3)
    assert found["mfu"] == pytest.approx(found["tflops"] / 1e-6, rel=2e-3)
    assert meter.read() == {}


def test_only_known_gpus_have_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert callbacks.peak_tflops(torch.device("cpu"), torch.bfloat16) is None
    for name, peak in {
        "NVIDIA H100 80GB HBM3": 989.4,
        "NVIDIA H100 PCIe": 756.0,
        "NVIDIA A10G": None,
        "X": None,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert callbacks.peak_tflops(torch.device("cuda", 0), torch.bfloat16) == peak
        assert callbacks.peak_tflops(torch.device("cuda", 0), torch.float32) is None


def test_inference_restores_modes_generators_and_the_way_it_is_called(
    own_model: DreamLLMForConditionalGeneration, make: Make, tmp_path: Path
) -> None:
    model = run.make_trainable(own_model, make_recipe(make(tmp_path)))
    model.train()
    modes = [module.training for module in model.modules()]
    states = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=True)]
    own: Any = lambda **batch: None  # noqa: E731  (accelerate does this in mixed precision)
    model.forward = own
    with inference(model) as live:
        assert type(live) is DreamLLMForConditionalGeneration
        assert not any(module.training for module in live.modules())
        live.encode_unconditional()
        assert not live(input_ids=torch.tensor([[1, 5]])).logits.requires_grad
        live.generation_config.max_length = 7
        drawn = [torch.rand(3), random.random(), np.random.rand(3)]
        assert len(drawn) == 3
    assert type(model) is not DreamLLMForConditionalGeneration
    assert model.forward is own
    assert model.generation_config.max_length != 7
    assert [module.training for module in model.modules()] == modes
    after = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=True)]
    assert repr(after) == repr(states)


def test_flops_are_those_of_the_parts_that_compute(make: Make, tmp_path: Path, built: Built) -> None:
    config = built[0].config
    text: Any = config.text_config
    everything = run.simulated(make_recipe(make(tmp_path, "igpt")), config)
    flops = FlopsModel(everything)
    shape = BatchShape(rows=3, tokens=150, labels=77, input_images=2, generated_images=3)
    # A formula from five steps gives the cost of a sixth.
    expected = flops(3 * 150, 3 * 150**2, 77, 2, 3)
    assert everything.step(shape).flops == pytest.approx(expected, rel=1e-3)
    # A linear layer costs 2 FLOPs a weight and token forward, and as many for each of its two gradients.
    linear = sum(p.numel() for n, p in built[0].language_model.named_parameters() if "layers" in n and p.dim() == 2)
    head = text.vocab_size * text.hidden_size
    assert flops.factors[0] == pytest.approx(6 * linear, rel=0.02)
    assert flops.factors[2] == pytest.approx(6 * head, rel=0.02)
    # With a frozen decoder, the gradient of its weights is not computed: a third less.
    frozen = FlopsModel(run.simulated(make_recipe(make(tmp_path, "comprehension")), config))
    assert frozen.factors[0] == pytest.approx(4 * linear, rel=0.02)


def test_flops_of_adapters_are_those_of_a_frozen_decoder_and_their_own(
    make: Make, tmp_path: Path, built: Built
) -> None:
    pytest.importorskip("peft", reason="LoRA is an extra")
    training = run.simulated(make_recipe(make(tmp_path) | {"lora": {"r": 2}}), built[0].config)
    linear = sum(p.numel() for n, p in built[0].language_model.named_parameters() if "layers" in n and p.dim() == 2)
    adapters = sum(p.numel() for n, p in training.model.named_parameters() if "lora" in n)
    assert adapters > 0
    assert FlopsModel(training).factors[0] == pytest.approx(4 * linear + 6 * adapters, rel=0.02)
