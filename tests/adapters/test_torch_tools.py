"""Device and dtype by name, and a digest of weights that sees every change and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dreambench.adapters.torch_tools import (
    exact_float32,
    group_by_settings,
    known_settings,
    resolve_device,
    resolve_dtype,
    seeded_generator,
    weights_digest,
)
from dreambench.errors import MissingWeightsError, ModelError, UsageError
from dreambench.requests import Request


def test_a_device_is_what_was_asked_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for text in ("cuda", "cuda:0", "cuda:", "cuda:one", "auto:0", "tpu", ""):
        with pytest.raises(UsageError, match="--device"):
            resolve_device(text)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="cuda:0 to cuda:1"):
        resolve_device("cuda:2")


def test_exact_inference_overrides_a_model_s_switches_and_gives_them_back() -> None:
    """What a model under test may have switched on for its own speed; on a CPU the numbers show only autocast."""

    def switches() -> tuple[object, ...]:
        cudnn: Any = torch.backends.cudnn
        return torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    before, precision = switches(), torch.get_float32_matmul_precision()
    fast = ("medium", True, False, True)
    try:
        torch.set_float32_matmul_precision("medium")
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True),
            torch.autocast("cpu", torch.bfloat16),
        ):
            assert switches() == fast
            with exact_float32(torch.device("cpu")):
                assert switches() == ("highest", False, True, False)
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            assert switches() == fast
            assert torch.is_autocast_enabled("cpu")
    finally:
        torch.set_float32_matmul_precision(precision)
    assert switches() == before


def test_a_dtype_has_torch_s_name() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16
    with pytest.raises(UsageError, match="int8"):
        resolve_dtype("int8", torch.device("cpu"))


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def test_the_digest_of_a_module_sees_values_names_shapes_and_dtypes() -> None:
    base = weights_digest(linear())
    assert base == weights_digest(linear())
    changed = linear()
    with torch.no_grad():
        changed.weight[1, 2] += 1e-6
    renamed = torch.nn.Sequential(linear())
    reshaped = linear()
    reshaped.weight = torch.nn.Parameter(reshaped.weight.detach().reshape(3, 2))
    buffered = linear()
    buffered.register_buffer("step", torch.tensor(1))
    others = [changed, renamed, reshaped, buffered, linear().bfloat16()]
    assert len({base, *map(weights_digest, others)}) == 6


def test_the_digest_of_a_folder_is_of_its_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="safetensors"):
        weights_digest(tmp_path)
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    before = weights_digest(tmp_path)
    (tmp_path / "README.md").write_text("words", encoding="utf-8")
    assert weights_digest(tmp_path) == before
    save_file({"w": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert weights_digest(tmp_path) != before


def test_a_seed_alone_decides_the_numbers() -> None:
    first = torch.randn(4, generator=seeded_generator(2**63 - 1))
    torch.manual_seed(1)
    assert torch.equal(first, torch.randn(4, generator=seeded_generator(2**63 - 1)))
    assert not torch.equal(first, torch.randn(4, generator=seeded_generator(0)))


def test_requests_with_other_settings_are_not_answered_together() -> None:
    asked = [Request(str(i), "generate_text", (), {"max_new_tokens": i % 2}) for i in range(5)]
    assert [[one.id for one in group] for group in group_by_settings(asked)] == [["0", "2", "4"], ["1", "3"]]
    assert known_settings(Request("x", "generate_text", (), {"a": 1, "b": None, "preset": "p"}), {"a"}, "m") == {"a": 1}
    with pytest.raises(ModelError, match="the task sets b"):
        known_settings(Request("x", "generate_text", (), {"b": 1}), {"a"}, "m")
