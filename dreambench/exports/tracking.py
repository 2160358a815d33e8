"""MLflow and trackio: metrics, parameters (system and protocols) and metrics.json, in a local store.

Nothing is sent anywhere: `out` is a folder, and what the environment says about servers and Spaces does not count.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict

from dreambench.documents import digest
from dreambench.errors import DreambenchError, MissingExtraError, RunError, UsageError, counted
from dreambench.exports import like
from dreambench.report.runs import CompleteRun
from dreambench.report.text import flat, printable
from dreambench.spec import parse_arguments

__all__ = ["Settings", "write_mlflow", "write_trackio"]

LONGEST = 5000
"""Characters of a parameter; MLflow takes 6,000. metrics.json, which is kept beside them, has all."""


class Settings(BaseModel):
    """The experiment (MLflow) or project (trackio) that runs are added to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: Annotated[str, like(r"[\w-]+", "letters, digits, - and _")] = "dreambench"


def write_mlflow(runs: Sequence[CompleteRun], out: Path, settings: Mapping[str, str]) -> list[str]:
    """Add runs to the experiment in ``out/mlflow.db``, artifacts beside it. A run that is there already is left as it is."""
    known, folder = _settings(out, settings), out.resolve()
    with _complaints(out), _quiet(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true"):
        try:
            from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtraError("mlflow", "tracking", "--to mlflow") from error
        folder.mkdir(parents=True, exist_ok=True)
        client: Any = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        found = client.get_experiment_by_name(known.project)
        artifacts = (folder / "artifacts").as_uri()
        experiment = found.experiment_id if found else client.create_experiment(known.project, artifacts)
        added = 0
        for run in runs:
            key = digest(dict(run.metrics))
            if client.search_runs([experiment], f"tags.`dreambench.metrics_sha256` = '{key}'"):
                continue
            at = _milliseconds(run)
            tags = {"dreambench.run": run.name, "dreambench.date": str(run.date)}
            info = client.create_run(experiment, start_time=at, tags=tags, run_name=run.name).info
            for name, value in _metrics(run).items():
                client.log_metric(info.run_id, name, value, timestamp=at)
            for name, value in _parameters(run).items():
                client.log_param(info.run_id, name, value)
            client.log_artifact(info.run_id, str(run.run.path / "metrics.json"))
            client.set_terminated(info.run_id, end_time=at)
            client.set_tag(info.run_id, "dreambench.metrics_sha256", key)  # last, so that it means that all is there
            added += 1
    return [
        f"added {counted(added, 'run')} to the experiment {known.project}, {len(runs) - added} were there:"
        f" mlflow ui --backend-store-uri sqlite:///{folder / 'mlflow.db'}"
    ]


def write_trackio(runs: Sequence[CompleteRun], out: Path, settings: Mapping[str, str]) -> list[str]:
    """Add runs to the project in `out`. A run that is there already, by its name, is left as it is."""
    known, folder = _settings(out, settings), out.resolve()
    servers = ("SPACE_ID", "SERVER_URL", "WRITE_TOKEN", "BUCKET_ID", "DATASET_ID", "WEBHOOK_URL")
    with _complaints(out), _quiet(*(f"TRACKIO_{name}" for name in servers), TRACKIO_DIR=str(folder)):
        try:
            import trackio  # pyright: ignore[reportMissingImports]
            from trackio.utils import TRACKIO_DIR  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError(
                f"--to trackio needs {error.name or 'trackio'}; trackio asks for an older pillow than this package, so that no extra can"
                " bring it: pip install --no-deps trackio gradio-client, then the other packages that it lists"
            ) from error
        if Path(TRACKIO_DIR).resolve() != folder:
            raise UsageError(f"--out {out}: trackio already writes to {TRACKIO_DIR} in this process; start another one")
        folder.mkdir(parents=True, exist_ok=True)
        tracker: Any = trackio
        present: set[str] = set()
        with contextlib.suppress(ValueError):  # there is no such project yet
            present = {each.name for each in tracker.Api().runs(known.project)}
        added = [run for run in runs if run.name not in present]
        for run in added:
            config = {**_parameters(run), "date": str(run.date)}
            tracker.init(
                known.project, name=run.name, config=config, embed=False, auto_log_gpu=False, auto_log_cpu=False
            )
            tracker.log(_metrics(run))
            tracker.log_artifact(str(run.run.path / "metrics.json"), name=run.name, type="metrics")
            tracker.finish()
    return [
        f"added {counted(len(added), 'run')} to the project {known.project}, {len(runs) - len(added)} were there:"
        f" TRACKIO_DIR={folder} trackio show --project {known.project}"
    ]


def _settings(out: Path, settings: Mapping[str, str]) -> Settings:
    """The settings, once `out` is known to be no address."""
    if re.match(r"[a-z]+:/", str(out)):
        raise UsageError(f"--out {out}: name a folder; nothing is sent to a server")
    return parse_arguments(Settings, settings, "--set")


def _milliseconds(run: CompleteRun) -> int:
    return 0 if run.date is None else int(datetime.fromisoformat(run.date).timestamp() * 1000)


def _metrics(run: CompleteRun) -> dict[str, float]:
    """Every number by a name both trackers accept: the score, its interval's ends, n and unscored; other protocols by their id."""
    found: dict[str, float] = {}
    for score in run.scores:
        protocol = "" if score.protocol == run.scores[0].protocol else f"{score.protocol}/"
        name = re.sub(r"[^\w. /-]", "_", f"{protocol}{score.metric}{'/' + score.group if score.group else ''}")
        ends = {"low": score.interval[0], "high": score.interval[1]} if score.interval else {}
        for part, value in {"": score.value, **ends, "n": score.n, "unscored": score.unscored}.items():
            if value is not None:
                found[f"{name}.{part}" if part else name] = float(value)
    return found


def _parameters(run: CompleteRun) -> dict[str, str]:
    fields = {
        "task": run.metrics["task"],
        "model": run.metrics["model"],
        "system": run.metrics.get("system", {}),
        "protocol": run.metrics.get("protocol"),
        "protocols": run.metrics["protocols"],
    }
    named = {re.sub(r"[^\w. /-]", "_", name)[:200]: printable(str(value)) for name, value in flat(fields)}
    return {name: value if len(value) <= LONGEST else f"{value[:LONGEST]} …" for name, value in named.items()}


@contextlib.contextmanager
def _complaints(out: Path) -> Generator[None]:
    """What a tracker raises on a full disk or a damaged store, in one line."""
    try:
        yield
    except (DreambenchError, OSError):
        raise
    except Exception as error:  # of MLflow, SQLAlchemy, sqlite3
        said = " ".join(str(error).split())[:300]
        raise RunError(
            f"{out}: the store cannot be written ({type(error).__name__}: {said}): name another folder"
        ) from error


@contextlib.contextmanager
def _quiet(*removed: str, **changed: str) -> Generator[None]:
    """Within it, without these environment variables, with those, and with what a library prints on standard error."""
    before = dict(os.environ)
    for name in removed:
        os.environ.pop(name, None)
    os.environ.update(changed)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
