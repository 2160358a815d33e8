"""Curves in trackers, each read back by its own package (the extra `tracking`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model.made_pairs import recipe_dict, write_pairs

from dreamllm import DreamLLMForConditionalGeneration, DreamLLMProcessor, checkpoint
from dreamllm.recipe import make_recipe
from dreamllm.training import run


def train(
    tmp_path: Path, built: tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor], name: str
) -> tuple[Path, list[float]]:
    """The output of two steps that are reported, and their losses."""
    write_pairs(tmp_path)
    checkpoint.save(tmp_path / "tiny", *built)
    output = tmp_path / "out"
    run.train(
        make_recipe(recipe_dict("comprehension", tmp_path, tmp_path / "tiny", output, max_steps=2, report_to=name))
    )
    return output, [json.loads(line)["lm_loss"] for line in (output / "logs.jsonl").read_text().splitlines()]


def test_tensorboard_has_the_losses(tmp_path: Path, built: Any) -> None:
    pytest.importorskip("tensorboard", reason="an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, losses = train(tmp_path, built, "tensorboard")
    (events,) = output.rglob("events.out.tfevents.*")
    curves = EventAccumulator(str(events)).Reload()
    assert [point.value for point in curves.Scalars("train/lm_loss")] == pytest.approx(losses)


@pytest.mark.filterwarnings("ignore")  # of mlflow and what it imports
def test_mlflow_has_the_losses_in_a_file_of_the_output(
    tmp_path: Path, built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="an extra")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    monkeypatch.chdir(tmp_path)
    output, losses = train(tmp_path, built, "mlflow")
    client: Any = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    (found,) = client.search_runs(["0"])
    points = client.get_metric_history(found.info.run_id, "lm_loss")
    assert [point.value for point in sorted(points, key=lambda point: point.step)] == pytest.approx(losses)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "tiny", "images", "pairs.jsonl", "talk.json", "cache"}
