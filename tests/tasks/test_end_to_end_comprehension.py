"""The reading benchmarks as commands: the embedded defaults, real files, several tasks at once, a dry run, an interrupted run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import dreambench
from dreambench.errors import ModelError

SHARED = Path(__file__).parents[2].parent / "shared"
QUESTIONS, REFERENCE_IMAGES = SHARED / "data" / "vqa_v2_subset" / "on_local_images", SHARED / "data" / "coco"
GOLDEN = Path(os.environ.get("DREAMLLM_GOLDEN", SHARED / "golden" / "dreamllm"))
TASKS = ("vqav2", "mmbench", "mmvet")


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "dreambench", *words]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)


def test_three_benchmarks_at_once_on_the_embedded_data(tmp_path: Path) -> None:
    done = command("run", "--task", ",".join(TASKS), "--model", "blind", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, metric in zip(TASKS, ("accuracy", "circular_accuracy", "score"), strict=True):
        (run,) = (tmp_path / "runs").glob(f"{name}-blind-*")
        metrics = json.loads((run / "metrics.json").read_text())
        first = metrics["scores"][0]
        assert first["metric"] == metric
        assert first["interval"] is not None
        assert first["protocol"] == metrics["protocol"]
        rows = pd.read_parquet(run / "scores.parquet")
        assert len(rows) >= {"vqav2": 300, "mmbench": 300, "mmvet": 100}[name]
        assert f"{name}: {metric} " in done.stdout
    again = command("run", "--task", ",".join(TASKS), "--model", "blind", cwd=tmp_path)
    assert again.stdout.count("is complete (--fresh starts anew)") == 3


@pytest.mark.parametrize("task", TASKS)
def test_the_embedded_model_reads_the_embedded_data(task: str, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    ids.write_text("1\n1000001\n2000001\n3000001\n" if task == "mmbench" else "")
    chosen = ["--ids", str(ids)] if task == "mmbench" else ["--limit", "6"]
    done = command("run", "--task", task, *chosen, "--generation", "max_new_tokens=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    answers = [json.loads(line) for line in (run / "responses" / "rank-00000.jsonl").read_text().splitlines()]
    assert len(answers) == (4 if task == "mmbench" else 6)
    assert all(answer["prompt_tokens"] > 16 for answer in answers)
    assert not any("error" in answer for answer in answers)


def test_loglikelihoods_of_the_embedded_model(tmp_path: Path) -> None:
    ids = ["1", "1000001", "2000001", "3000001"]
    result = dreambench.run("mmbench", protocol=["loglikelihood"], ids=ids, out=tmp_path)
    rows = pd.read_parquet(result.folder / "scores.parquet")
    assert set(rows["letter"]) <= set("ABCD")
    assert result.scores[0].n + result.scores[0].unscored == 1


def test_a_model_without_loglikelihoods_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="blind can only generate_image, generate_interleaved, generate_text"):
        dreambench.run("mmbench", "blind", protocol=["loglikelihood"], out=tmp_path)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    judge = "openai:m@http://127.0.0.1:9/v1"
    done = command("run", "--task", "mmvet", "--model", "blind", "--judge", judge, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "calls, about" in done.stdout
    assert "protocol dreambench-grader@" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_unscored_answers_above_the_threshold_give_exit_status_1(tmp_path: Path) -> None:
    done = command("run", "--task", "mmbench", "--model", "echo", "--max-unscored", "3", cwd=tmp_path)
    assert done.returncode == 1
    assert "unscored samples, more than --max-unscored 3" in done.stderr


@pytest.mark.skipif(
    not (QUESTIONS.is_dir() and REFERENCE_IMAGES.is_dir() and (GOLDEN / "checkpoint").is_dir()),
    reason="real questions, images or the golden checkpoint are not beside this checkout",
)
def test_real_questions_about_real_images(tmp_path: Path) -> None:
    """A checkpoint in the released layout; random weights, so only that it reads every question is claimed."""
    result = dreambench.run(
        "vqav2",
        f"dreamllm:{GOLDEN / 'checkpoint'}",
        model_arg={"clip": str(GOLDEN / "clip"), "diffusion": str(GOLDEN / "sd")},
        data=QUESTIONS,
        images=REFERENCE_IMAGES,
        out=tmp_path,
    )
    rows = pd.read_parquet(result.folder / "scores.parquet")
    assert result.errors == 0
    assert result.scores[0].n == len(rows) == 8
    assert rows["answer"].nunique() > 4
