"""What ends a build is one line of dreambench's own, whoever noticed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambench.errors import MissingWeightsError, UsageError
from dreambench_tasks.playground import stages
from dreamllm.errors import CheckpointError


def test_a_file_is_no_place_to_build_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file cannot be made a folder"):
        stages.build(tmp_path / "file", "igpt")


def test_what_the_library_says_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path) -> None:
        raise CheckpointError(f"{folder / 'alignment'} is not a folder")

    monkeypatch.setitem(stages.STAGES, "igpt", fails)
    with pytest.raises(UsageError, match="alignment is not a folder"):
        stages.build(tmp_path / "new", "igpt")


def test_a_checkpoint_that_is_not_there_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="nowhere is not a folder"):
        stages.evaluate(tmp_path / "nowhere")
