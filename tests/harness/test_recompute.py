"""Every score that names its cells follows from scores.parquet alone, for every task on the embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambench import run
from dreambench.report.runs import load
from dreambench.statistics import recompute

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "vqav2": ("echo", {"limit": 24, "protocol": "official,normalised"}),
    "mmbench": ("blind", {"limit": 8}),
    "mmvet": ("echo", {"limit": 16, "judge": "rule"}),
    "interleaved": ("dreamllm", {"limit": 2, "protocol": "free", "generation": ["num_inference_steps=1"]}),
}


@pytest.mark.parametrize("task", RUNS)
def test_scores_follow_from_their_cells(task: str, tmp_path: Path) -> None:
    model, options = RUNS[task]
    complete = load(run(task, model, out=tmp_path, **options).folder)
    declared = [score for score in complete.scores if score.cells is not None]
    assert declared, "no score of this task can be computed again"
    for score in declared:
        again = recompute(score, complete.table)
        assert again.value == pytest.approx(score.value, rel=1e-12, abs=1e-12), score
        assert again.n + score.unscored >= score.n == again.n
        assert again.interval == (None if score.interval is None else pytest.approx(score.interval, rel=1e-9))


def test_a_date_is_that_of_the_last_answer(tmp_path: Path) -> None:
    complete = load(run("vqav2", "echo", out=tmp_path, limit=3).folder)
    assert complete.date is not None
    assert complete.date.endswith("+00:00")
