"""Our DreamLLM gives the numbers that were recorded from the original, and the comparison is complete and can fail."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from parity.checks import Check, fixture_folder, problems, uncovered, unnoticed
from parity.dreamllm import checkpoints, comprehension, text_generation, text_to_image, tokenised, training
from parity.dreamllm.golden import Golden

GROUPS = {
    module.__name__.rsplit(".", 1)[-1]: module
    for module in (checkpoints, comprehension, text_to_image, text_generation, tokenised, training)
}


def _golden(tmp_path_factory: pytest.TempPathFactory, device: str) -> Golden:
    folder = fixture_folder("DREAMLLM_GOLDEN", "../shared/golden/dreamllm")
    if folder is None:
        pytest.skip("no recorded fixtures: set DREAMLLM_GOLDEN to their folder")
    return Golden(folder, tmp_path_factory.mktemp("golden"), device)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return _golden(tmp_path_factory, "cpu")


@pytest.fixture(scope="module")
def all_checks(golden: Golden) -> dict[str, list[Check]]:
    return {name: module.checks(golden) for name, module in GROUPS.items()}


@pytest.mark.parametrize("group", GROUPS)
def test_ours_equals_the_recording(all_checks: dict[str, list[Check]], group: str) -> None:
    assert problems(all_checks[group]) == []


def test_everything_recorded_is_compared_or_exempt(golden: Golden, all_checks: dict[str, list[Check]]) -> None:
    exempt = [
        *(item for module in GROUPS.values() for item in getattr(module, "EXEMPT", [])),
        *(item for module in (text_generation, tokenised) for item in module.exempt(golden)),
    ]
    assert all(item.reason for item in exempt)
    assert uncovered(golden.all_keys(), [check for checks in all_checks.values() for check in checks], exempt) == []


@pytest.mark.parametrize("group", GROUPS)
def test_an_error_of_ten_tolerances_is_noticed(all_checks: dict[str, list[Check]], group: str) -> None:
    assert unnoticed(all_checks[group]) == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("module", GROUPS.values(), ids=list(GROUPS))
def test_ours_equals_the_recording_on_cuda(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the recording is in float32
    assert problems(module.checks(_golden(tmp_path_factory, "cuda"))) == []
