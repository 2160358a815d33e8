"""The command line: light to start, one line for an error, exit statuses as the contract says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def dreambench(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dreambench", *arguments], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("statement", ["import dreambench", "from dreambench.cli import _build; _build()"])
def test_nothing_heavy_is_loaded_to_start(statement: str) -> None:
    heavy = "{'torch', 'transformers', 'diffusers', 'pandas', 'scipy', 'numpy', 'matplotlib'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


VERBS = [
    "run",
    "score",
    "rerun",
    "report",
    "leaderboard",
    "export",
    "contamination",
    "fid",
    "fid-stats",
    "bench",
    "playground write",
    "human plan",
    "human export",
    "human serve",
    "human import",
    "human analyse",
    "list",
    "doctor",
]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example(verb: str) -> None:
    done = dreambench(*verb.split(), "--help", env=dict(os.environ))
    assert done.returncode == 0
    assert f"Example: dreambench {verb}" in done.stdout


def test_the_result_names_metric_n_and_protocol(tmp_path: Path, outside_environment: dict[str, str]) -> None:
    done = dreambench("run", "--task", "toy", "--model", "palette", "--out", str(tmp_path), env=outside_environment)
    assert done.returncode == 0, done.stderr
    assert "toy: accuracy 100.00 %" in done.stdout
    assert "n = 60" in done.stdout
    (run,) = tmp_path.iterdir()
    shown = dreambench("report", str(run), env=outside_environment)
    assert "accuracy" in shown.stdout
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"task", "model", "system", "protocols", "protocol", "scores"} <= metrics.keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--task", "nothing"], "no task is called nothing"),
        (["run"], "--task"),
        (["run", "--task", "toy", "--batch-size", "none"], "--batch-size none"),
        (["run", "--task", "toy", "--model-arg", "alone"], "KEY=VALUE"),
        (["run", "--task", "toy", "--ids", "absent.txt"], "--ids"),
        (["run", "--task", "toy", "--wrong"], "--wrong"),
        (["score"], "score needs a run"),
        (["score", "absent"], "is not a run"),
        (["score", "absent", "--limit", "3", "--fresh"], "leave --fresh, --limit out"),
        (["report", "absent"], "is not a run"),
        (["compare", "absent", "nowhere"], "is not a run"),
        (["run", "--config", "absent.yaml"], "absent.yaml: cannot be read"),
        (["score", "--task", "toy", "--responses", "absent"], "no such file"),
        (["export", "absent", "--to", "model-card", "--out", "x"], "is not a run"),
        (["contamination", "--task", "nothing", "--train", "x"], "no task is called nothing"),
        (["contamination", "--task", "vqav2", "--train", "absent"], "no such file or folder"),
        (["fid", "absent", "nowhere"], "nowhere: no such folder of images"),
        (["list", "everything"], "everything"),
        (["human", "plan"], "give one of"),
        (["human", "export", "absent", "--out", "study"], "is not a run"),
        (["human", "export", "absent", "--out", "study", "--consent", "nowhere"], "nowhere"),
        (["unknown"], "unknown"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    arguments: list[str], words: str, outside_environment: dict[str, str]
) -> None:
    done = dreambench(*arguments, env=outside_environment)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_threshold_that_is_not_met_is_status_1(tmp_path: Path, outside_environment: dict[str, str]) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": "toy-00", "text": "tree"}\n')
    ids = tmp_path / "ids"
    ids.write_text("toy-00\ntoy-01\n")
    run = [
        "run",
        "--task",
        "toy",
        "--model",
        f"responses:{answers}",
        "--ids",
        str(ids),
        "--out",
        str(tmp_path / "runs"),
    ]
    assert dreambench(*run, "--max-errors", "1", env=outside_environment).returncode == 0
    done = dreambench(*run, "--max-errors", "0", env=outside_environment)
    assert done.returncode == 1
    assert "--max-errors 0" in done.stderr


def test_a_dry_run_asks_nothing(tmp_path: Path, outside_environment: dict[str, str]) -> None:
    done = dreambench(
        "run", "--task", "toy", "--model", "echo", "--dry-run", "--out", str(tmp_path), env=outside_environment
    )
    assert done.returncode == 0
    assert "60 requests" in done.stdout
    assert not list(tmp_path.iterdir())
