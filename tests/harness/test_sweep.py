"""Sweeps: the file is checked before anything runs, a run that fails stops no other, and two kinds of uncertainty are kept apart."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dreambench.api import check
from dreambench.cli import main
from dreambench.errors import UsageError
from dreambench.report.runs import CompleteRun, load
from dreambench.report.summary import plot, write_summary
from dreambench.requests import Response, Sample
from dreambench.scores import Score
from dreambench.spec import RunSpec
from dreambench.sweep import curves, label, read_sweep, summarize
from tests.report.made_runs import HOSTILE, make_run, score

SWEEP = """
- task: vqav2
  limit: 8
  each: {model: [blind, echo], seed: [0, 1]}
- {task: vqav2, model: "responses:absent.json", limit: 8}
"""

BOMB = "- &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"- &a{i + 1} [{f'*a{i}, ' * 10}]\n" for i in range(9))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["run", *arguments])
    return int(str(leaving.value.code or 0))


def made(folder: Path, spec: RunSpec, scores: Sequence[Score], **generation: object) -> tuple[RunSpec, CompleteRun]:
    make_run(folder, [Sample("s", ())], [Response("s")], [{"id": "s"}], scores, task=spec.task, model=spec.model)
    run = load(folder)
    run.metrics["system"]["generation"] = dict(generation)
    return spec, run


def test_each_is_multiplied_out_in_the_order_of_the_file(tmp_path: Path) -> None:
    specs = read_sweep(written(tmp_path, SWEEP))
    assert [(spec.model, spec.seed) for spec in specs[:4]] == [("blind", 0), ("blind", 1), ("echo", 0), ("echo", 1)]
    assert label(specs[3]) == "vqav2 of echo, limit=8, seed 1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: vqav2", "write a list of runs"),
        ("", "write a list of runs"),
        ("- 3", "run 1: write the fields of a run"),
        ("- {task: vqav2, modl: echo}", "run 1: --modl: there is no such option"),
        ("- {task: vqav2}\n- {task: vqav2}", "run 2: vqav2 of dreamllm, seed 0 is listed twice"),
        ("- {task: vqav2, each: {seed: [1, 1]}}", "listed twice"),
        ("- {task: vqav2, task: mmbench}", "a key stands twice"),
        ("- {task: vqav2, each: {seed: 1}}", "lists of values"),
        ("- {task: vqav2, each: {seed: []}}", "lists of values"),
        ("- {task: vqav2, seed: 1, each: {seed: [2]}}", "seed stands in the run and under"),
        ("- {task: vqav2, seed: 2020-01-01}", "is a date"),
        ("- {task: vqav2, limit: -1}", "run 1: --limit -1"),
        ("- {task: !!python/name:os.system , seed: 1}", "not YAML"),
        ("- &a {task: *a}", "nested too deeply"),
        ("[" * 5000, "not YAML"),
        (BOMB, "values"),
        ("- {task: vqav2, each: {seed: &a [" + "1, " * 999 + "2], limit: *a}}", "stands for more than 10,000 runs"),
        ("# " + "x" * 1_000_001, "characters"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read_sweep(written(tmp_path, text))
    assert words in str(raised.value)
    assert len(str(raised.value)) < 500


def test_all_runs_are_checked_before_the_first_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "- {task: vqav2, model: echo, limit: 4}\n- {task: vqav2, model: echo, data: nowhere}\n"
    out = tmp_path / "runs"
    assert status("--config", str(written(tmp_path, text)), "--out", str(out)) == 2
    assert "run 2 of 2, vqav2 of echo, data=nowhere, seed 0" in capsys.readouterr().err
    assert not out.exists()


def test_other_options_beside_a_file_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(written(tmp_path, SWEEP))
    assert status("--config", config, "--task", "vqav2", "--seed", "1", "--offline") == 2
    assert "leave --task, --seed, --offline out" in capsys.readouterr().err
    assert status("--task", "vqav2", "--summary", "x") == 2
    assert "--summary" in capsys.readouterr().err


def test_a_failing_run_stops_no_other_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The failing run first: the others must follow.
    head, _, failing = SWEEP.rpartition("\n- ")
    command = ["--config", str(written(tmp_path, f"- {failing}{head}")), "--out", "runs"]
    assert status(*command) == 2
    printed = capsys.readouterr()
    assert printed.err.count("failed: vqav2 of responses:absent.json, limit=8, seed 0") == 2, (
        "when it happens, and at the end"
    )
    assert len(list(Path("runs").glob("*/metrics.json"))) == 4
    files = {path.name: path.read_bytes() for path in Path("runs/summary-sweep").iterdir()}
    rows = list(csv.DictReader(files["summary.csv"].decode().splitlines()))
    assert [(row["model"], row["n_seeds"], row["between_method"]) for row in rows] == [
        ("blind", "2", "none: all seeds give the same"),
        ("echo", "2", "none: all seeds give the same"),
    ]
    assert "the summary is of 4 of 5 runs" in printed.err

    Path("absent.json").write_text('[{"question_id": 1000, "answer": "red"}]')
    assert status(*command, "--max-unscored", "0") == 1
    printed = capsys.readouterr()
    assert printed.out.count("is complete (--fresh starts anew)") == 4, "complete runs are printed, not repeated"
    assert "more than --max-unscored 0" in printed.err
    assert len(Path("runs/summary-sweep/summary.csv").read_text().splitlines()) == 4
    assert status(*command) == 0
    (tmp_path / "file").touch()
    assert status(*command, "--summary", "file/below") == 2
    assert "failed: summary: file" in capsys.readouterr().err


def test_a_dry_run_prints_every_plan_and_starts_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path, SWEEP.rpartition("- ")[0])
    assert status("--config", str(config), "--out", str(tmp_path / "runs"), "--dry-run") == 0
    assert capsys.readouterr().out.count("(new)") == 4
    assert not (tmp_path / "runs").exists()


def test_uncertainty_within_and_between_seeds_is_kept_apart(tmp_path: Path) -> None:
    values, intervals = [50.0, 54.0, 58.0], [(40.0, 60.0), (45.0, 63.0), (48.0, 68.0)]
    runs = [
        made(tmp_path / str(seed), RunSpec(task="t", seed=seed), [score(value=value, interval=interval)])
        for seed, (value, interval) in enumerate(zip(values, intervals, strict=True))
    ]
    (found,) = summarize(runs)
    assert found.mean == 54
    assert found.within == pytest.approx(tuple(np.mean(intervals, axis=0)))
    assert found.between == pytest.approx(stats.t.interval(0.95, 2, 54, np.std(values, ddof=1) / np.sqrt(3)))
    assert found.between_method == "Student's t, 2 degrees of freedom"
    (alone,) = summarize(runs[:1])
    assert (alone.between, alone.between_method) == (None, "none: a single seed")
    near = [made(tmp_path / f"n{i}", RunSpec(task="t", seed=i), [score(value=v)]) for i, v in enumerate([99.0, 100.0])]
    assert (summarize(near)[0].between or (0, 0))[1] == 100, "an interval stays within the metric's range"


def test_a_curve_runs_along_the_setting_that_varies(tmp_path: Path) -> None:
    runs = [
        made(
            tmp_path / f"{guidance}-{steps}-{seed}",
            RunSpec(task="t", model=HOSTILE[4], seed=seed, generation=[f"g={guidance}", f"s={steps}"]),
            [
                score(metric="fd[x]", value=guidance + seed, unit="", better="lower"),
                score(metric="clip_score[x]", value=guidance / 10 + seed, unit="", better="higher"),
            ],
            guidance_scale=guidance,
            steps=steps,
            scheduler="ddim",
        )
        for guidance in (7.0, 1.0, 3.0)
        for steps in (5, 10)
        for seed in (0, 1)
    ]
    found = curves(runs)
    assert [point.value for point in found] == [1, 3, 7] * 2
    assert {point.line for point in found} == {f"{HOSTILE[4]} steps=5", f"{HOSTILE[4]} steps=10"}
    assert [point.distance.mean for point in found[:3]] == [1.5, 3.5, 7.5]
    first = {path.name: path.read_bytes() for path in write_summary(tmp_path / "one", summarize(runs), found)}
    again = {path.name: path.read_bytes() for path in write_summary(tmp_path / "two", summarize(runs), curves(runs))}
    assert first == again
    assert first.keys() == {"summary.csv", "summary.md", "curve-t.png"}
    assert first["curve-t.png"].startswith(b"\x89PNG")
    assert not curves(runs[:2]), "one setting is no curve"
    plot([point for point in found if point.value == 1])


def test_the_sweep_of_the_leaderboards_is_one() -> None:
    specs = read_sweep(Path(__file__).parents[2] / "leaderboards" / "sweep.yaml")
    assert {spec.task for spec in specs} == {"vqav2", "mmbench", "mmvet", "coco_fid", "lncoco_fid", "interleaved"}
    for spec in specs:
        check(spec)
    assert all({one.seed for one in specs if one.task == task} == {0, 1, 2} for task in ("coco_fid", "interleaved"))
