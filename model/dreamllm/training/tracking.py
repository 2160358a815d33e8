"""Curves in trackers that write files: TensorBoard and MLflow, by transformers' own callbacks. Nothing leaves the machine."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dreamllm.errors import CheckpointError
from dreamllm.files import read_json
from dreamllm.recipe import Recipe

REPORTS = ("none", "tensorboard", "mlflow")  # their names in `report_to` are those of their packages
MLFLOW_STORE = "MLFLOW_TRACKING_URI"
DEEPSPEED_TRACKERS = ("wandb", "comet")  # sections of DeepSpeed's configuration


def check_reports(recipe: Recipe, options: Mapping[str, Any]) -> None:
    """UsageError for a tracker that sends figures to a server, or whose package is missing."""
    reports = options.get("report_to", "none")
    for name in reports if isinstance(reports, list) else [reports]:
        if name not in REPORTS:
            raise recipe.error(
                f"trainer.report_to: {name} would use the network, which training does not: choose from {', '.join(REPORTS)}, "
                "or read logs.jsonl"
            )
        if name != "none" and find_spec(name) is None:
            raise recipe.error(
                f"trainer.report_to: the package {name} is missing: uv sync --extra tracking, or "
                "pip install 'dreambench[tracking]'; logs.jsonl has the same numbers"
            )
        if name == "mlflow":
            os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")  # read when it is imported
            if not (store := os.environ.get(MLFLOW_STORE, "sqlite:")).startswith("sqlite:"):
                raise recipe.error(
                    f"trainer.report_to: {MLFLOW_STORE} is {store}, and training does not use the network: unset it, or set it to "
                    "sqlite:///FILE"
                )
    config: Any = options.get("deepspeed") or {}
    if isinstance(config, str):
        try:
            config = read_json(Path(config))
        except CheckpointError as error:
            raise recipe.error(f"trainer.deepspeed: {error}") from None
    for name in DEEPSPEED_TRACKERS:
        if not isinstance(config, dict) or name in config:
            raise recipe.error(
                f"trainer.deepspeed: it must be a JSON object without {name}: training does not use the network"
            )


@contextmanager
def mlflow_store(output: Path) -> Generator[None]:
    """MLflow's database is `mlflow.db` in the output folder, unless the environment names another."""
    if MLFLOW_STORE in os.environ:
        yield
        return
    os.environ[MLFLOW_STORE] = f"sqlite:///{output.resolve() / 'mlflow.db'}"
    try:
        yield
    finally:
        del os.environ[MLFLOW_STORE]
