"""Exports are read and validated by the packages that they are written for: `tox -e exports` has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports.conftest import dated
from report.made_runs import HOSTILE, image_run, score, text_run

from dreambench.contamination import perceptual_hash
from dreambench.errors import RunError
from dreambench.exports import export
from dreambench.report.runs import CompleteRun
from dreambench.scores import Cells

pytestmark = [
    pytest.mark.skipif("DREAMBENCH_EXPORTS" not in os.environ, reason="`tox -e exports` has the packages"),
    pytest.mark.filterwarnings("default"),  # those of other packages among themselves
]
Runs = dict[str, CompleteRun]


def complaints(out: Path) -> list[str]:
    """What the validator of Every Eval Ever says of all files, errors and warnings."""
    from every_eval_ever.validator.validate import _local_path_context as context
    from every_eval_ever.validator.validate import main, render_report_github, validate_file

    files = sorted(path for path in out.rglob("*") if path.is_file())
    reports = []
    for path in files:
        place, local = context(path)
        known: dict[str, Any] = {"repo_path": place, "available_files": local, "read_repo_file": local.read_text}
        reports.append(validate_file(path, run_semantic_checks=True, **known))
    assert main([str(path) for path in files]) == (1 if any(report.errors for report in reports) else 0)
    return [render_report_github([report]) for report in reports if report.errors or report.warnings]


def test_every_eval_ever_accepts_the_runs(runs: Runs, tmp_path: Path) -> None:
    lower = score(metric="fd[x]", unit="", value=-0.5, interval=(-2.0, 3.0), better="lower")
    hostile = dated(
        text_run(tmp_path / "run", HOSTILE, [score(better="higher", cells=Cells("accuracy"))], model="a/../..@e\u2028")
    )
    images = dated(image_run(tmp_path / "images", ["a", "b", "c"]))
    images = CompleteRun(images.run, {**images.metrics, "scores": [lower.to_json()]})
    for run in (*runs.values(), hostile, images):
        export([run], "every-eval-ever", tmp_path / "out", {})
    assert len(list((tmp_path / "out").rglob("*.json"))) == 5
    assert complaints(tmp_path / "out") == []


def test_its_validator_is_one(runs: Runs, tmp_path: Path) -> None:
    export([runs["vqav2"]], "every-eval-ever", tmp_path, {})
    (file,) = tmp_path.rglob("*[0-9a-f].json")
    file.write_text(file.read_text().replace('"max_score": 100', '"max_score": 1'))
    assert complaints(tmp_path)


@pytest.mark.usefixtures("no_network")
def test_mlflow_reads_the_runs_back(runs: Runs, tmp_path: Path) -> None:
    first = export(list(runs.values()), "mlflow", tmp_path, {})
    assert "added 3 runs" in first[0]
    assert "added 0 runs" in export(list(runs.values()), "mlflow", tmp_path, {})[0]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dreambench")
    found = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    assert set(found) == {run.name for run in runs.values()}
    for run in runs.values():
        data, one = found[run.name].data, run.scores[0]
        assert one.interval is not None
        names = (one.metric, f"{one.metric}.low", f"{one.metric}.high", f"{one.metric}.n", f"{one.metric}.unscored")
        assert [data.metrics[name] for name in names] == [one.value, *one.interval, one.n, one.unscored]
        assert data.params["protocol"] == one.protocol
        assert data.params["system.model.name"] == "blind"
        assert data.tags["dreambench.date"] == run.date
        assert [file.path for file in client.list_artifacts(found[run.name].info.run_id)] == ["metrics.json"]


def test_a_damaged_store_is_one_line(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(RunError, match="the store cannot be written") as error:
        export([runs["vqav2"]], "mlflow", tmp_path, {})
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_network")
def test_trackio_reads_the_runs_back(runs: Runs, tmp_path: Path) -> None:
    assert "added 3 runs" in export(list(runs.values()), "trackio", tmp_path, {})[0]
    assert "added 0 runs" in export(list(runs.values()), "trackio", tmp_path, {})[0]
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    found = {each.name: each for each in trackio.Api().runs("dreambench")}
    assert set(found) == {run.name for run in runs.values()}
    for run in runs.values():
        one, (logged,) = run.scores[0], SQLiteStorage.get_logs("dreambench", run.name)
        assert logged[one.metric] == pytest.approx(one.value)
        assert logged[f"{one.metric}.n"] == one.n
        assert found[run.name].config["protocol"] == one.protocol
        assert found[run.name].config["date"] == run.date


def test_the_perceptual_hash_is_imagehash_s() -> None:
    import imagehash
    from PIL import Image

    rng = np.random.default_rng(0)
    for size in ((64, 64), (640, 422), (17, 230), (1, 1)):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        theirs = np.packbits(imagehash.phash(image, hash_size=16).hash)
        assert (perceptual_hash(image).view(np.uint8) == theirs).all()
