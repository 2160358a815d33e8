"""Comparisons: the statistics are those of statsmodels, what is not the same measurement is refused, and the words follow the numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dreambench import run
from dreambench.cli import main
from dreambench.compare import Comparison, Difference, compare, load_runs
from dreambench.documents import Text
from dreambench.errors import RunError, UsageError
from dreambench.report.comparison import p_text, verdict, whiskers
from dreambench.report.page import page
from dreambench.report.runs import CompleteRun, load
from dreambench.requests import Response, Sample
from dreambench.scores import Cells, Score
from dreambench.statistics import detectable_difference, unpaired_interval
from tests.report.made_runs import HOSTILE, make_run, score

Row = Mapping[str, object]
ACCURACY = Cells("hit", "image_id")


def made(folder: Path, rows: Sequence[Row], scores: Sequence[Score], **more: Any) -> CompleteRun:
    samples = [Sample(str(row["id"]), (Text("question"),)) for row in rows]
    responses = [Response(sample.id, (Text("answer"),)) for sample in samples]
    return load(make_run(folder, samples, responses, rows, scores, **more))


def rows_of(values: Sequence[float | None], per_image: int = 1, groups: int = 1) -> list[dict[str, object]]:
    return [
        {"id": f"q{i}", "image_id": i // per_image, "kind": f"k{i % groups}", "hit": value}
        for i, value in enumerate(values)
    ]


def two(tmp_path: Path, first: Sequence[Row], second: Sequence[Row], *scores: Score) -> Comparison:
    given = scores or (score(cells=ACCURACY, better="higher"),)
    return compare([made(tmp_path / "a", first, given), made(tmp_path / "b", second, given)])


def only(comparison: Comparison) -> Difference:
    ((found,),) = [pair.differences for pair in comparison.pairs]
    return found


def test_a_paired_difference_is_a_cluster_robust_regression_on_a_constant(tmp_path: Path) -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(0)
    a, b = rng.random(60), np.clip(rng.random(60) + np.repeat(rng.normal(0.1, 0.2, 20), 3), 0, 1)
    found = only(two(tmp_path, rows_of(a.tolist(), 3), rows_of(b.tolist(), 3)))
    fit = sm.OLS(100 * (b - a), np.ones(60)).fit(
        cov_type="cluster", cov_kwds={"groups": np.repeat(range(20), 3)}, use_t=True
    )
    assert found.estimate.value == pytest.approx(fit.params[0], rel=1e-12)
    assert found.estimate.standard_error == pytest.approx(fit.bse[0], rel=1e-12)
    assert found.estimate.interval == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-9)
    assert found.p_value == found.p_adjusted == pytest.approx(fit.pvalues[0], rel=1e-9)
    assert (found.first, found.second) == pytest.approx((100 * a.mean(), 100 * b.mean()), rel=1e-12)


def test_p_values_of_groups_are_adjusted_by_holm_and_that_of_the_whole_is_not(tmp_path: Path) -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(1)
    a = rng.random(90)
    b = np.clip(a + rng.normal([0.05, 0.2, 0.0], 0.4, (30, 3)).ravel(), 0, 1)
    groups = [score(group=f"kind=k{i}", cells=Cells("hit", "image_id", {"kind": f"k{i}"})) for i in range(3)]
    first, second = (rows_of(values.tolist(), groups=3) for values in (a, b))
    (pair,) = two(tmp_path, first, second, score(cells=ACCURACY), *groups).pairs
    whole, *parts = pair.differences
    assert whole.p_adjusted == whole.p_value
    expected: Any = multipletests([one.p_value for one in parts], method="holm")[1]
    assert [one.p_adjusted for one in parts] == pytest.approx(list(expected), rel=1e-12)
    assert [one.estimate.n for one in parts] == [30, 30, 30]


def test_intervals_hold_and_a_detectable_difference_is_detected(tmp_path: Path) -> None:
    """Of 400 intervals of nominal 95 %, 91 to 99 % hold (4 standard errors of the simulation), with clusters that count for much."""
    rng, clusters, per = np.random.default_rng(2), 30, 4
    base = made(tmp_path / "a", rows_of([0.5] * (clusters * per), per), [score(cells=ACCURACY)])
    error = np.sqrt(0.15**2 + 0.1**2 / per) / np.sqrt(clusters)
    shift = detectable_difference(error, clusters - 1)
    held, found = 0, 0
    for _ in range(200):
        change = (rng.normal(0, 0.15, clusters).repeat(per) + rng.normal(0, 0.1, clusters * per)) / 2
        for true in (0.0, shift / 2):
            runs = [CompleteRun(base.run, base.metrics) for _ in range(2)]
            for side, values in zip(runs, (0.5 - change / 2, 0.5 + change / 2 + true), strict=True):
                side.__dict__["table"] = base.table.assign(hit=values)
            one = only(compare(runs))
            low, high = one.estimate.interval or (0.0, 0.0)
            held += low <= 100 * true <= high
            found += one.shown if true else 0
    assert 0.91 <= held / 400 <= 0.99
    assert found / 200 == pytest.approx(0.8, abs=0.11)


@pytest.mark.parametrize("degrees", [2, 5, 19, 400])
def test_the_detectable_difference_is_that_of_statsmodels(degrees: int) -> None:
    from statsmodels.stats.power import TTestPower

    effect = TTestPower().solve_power(nobs=degrees + 1, alpha=0.05, power=0.8)
    assert detectable_difference(2.0, degrees) == pytest.approx(2 * effect * np.sqrt(degrees + 1), rel=1e-3)
    assert detectable_difference(1.0) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), rel=1e-12)


def test_scores_of_sets_get_the_interval_of_zou_and_donner(tmp_path: Path) -> None:
    """By hand: 14 [12, 17] minus 10 [8, 13] is 4 -+ sqrt(2^2 + 3^2)."""
    root = 13**0.5
    assert unpaired_interval(10, (8, 13), 14, (12, 17)) == pytest.approx((4 - root, 4 + root))
    first = score(metric="fd[x]", value=10.0, unit="", interval=(8.0, 13.0), better="lower")
    second = score(metric="fd[x]", value=14.0, unit="", interval=(12.0, 17.0), better="lower")
    rows = rows_of([0.0, 1.0])
    found = only(compare([made(tmp_path / "a", rows, [first]), made(tmp_path / "b", rows, [second])]))
    assert found.estimate.interval == pytest.approx((4 - root, 4 + root))
    assert not found.paired
    assert found.shown
    assert found.improves is False
    assert verdict(found).startswith("worse: +4.00 [+0.39, +7.61], n = 8, unpaired")


def test_samples_that_changed_are_named_by_direction(tmp_path: Path) -> None:
    """Of errors, fewer are better."""
    errors = score(metric="errors", unit="", value=0.5, better="lower", cells=Cells("hit", bounds=(0, None)))
    found = only(two(tmp_path, rows_of([0, 0, 1, 3, None]), rows_of([1, 0, 1, 0, 2]), errors))
    assert (found.higher, found.lower, found.left_out, found.estimate.n) == (("q0",), ("q3",), 1, 4)
    assert found.improves is True
    assert json.dumps(found.p_mcnemar) == "null", "3 errors are neither a hit nor a miss"


def test_hits_without_clusters_get_mcnemars_exact_test(tmp_path: Path) -> None:
    first, second = [1] * 20 + [0] * 10, [0] * 2 + [1] * 28
    found = only(two(tmp_path, rows_of(first), rows_of(second), score(cells=Cells("hit"))))
    assert found.p_mcnemar == pytest.approx(stats.binomtest(2, 12).pvalue)
    clustered = only(two(tmp_path / "c", rows_of(first, 2), rows_of(second, 2)))
    assert clustered.p_mcnemar is None


def test_what_is_not_shown_says_what_could_have_been(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    words = verdict(only(two(tmp_path, rows_of(first.tolist()), rows_of(second.tolist()))))
    assert words.startswith("no difference is shown: ")
    assert "this n could show" in words
    same = verdict(only(two(tmp_path / "s", rows_of([0, 1, 1]), rows_of([0, 1, 1]))))
    assert same == "all 3 samples score the same"
    cancel = verdict(only(two(tmp_path / "c", rows_of([0, 1, 1, 1], 2), rows_of([1, 0, 1, 1], 2))))
    assert cancel == "+0.00 points, no test (equal for every image), n = 4"
    few = verdict(only(two(tmp_path / "f", rows_of([0, 0, 1, 1], 2), rows_of([1, 1, 0, 1], 2))))
    assert few.endswith("this n could show none")
    assert [p_text(p) for p in (0.0001, 0.0123, 0.5)] == ["<0.001", "0.012", "0.50"]


def test_what_measures_something_else_is_refused_with_the_field(tmp_path: Path) -> None:
    scores = [score(cells=ACCURACY)]
    rows = rows_of([0, 1, 1, 0])
    first = made(tmp_path / "a", rows, scores, fields={"split": "dev", "data_sha256": "1" * 64})
    other = made(
        tmp_path / "b",
        rows,
        [score(cells=ACCURACY, protocol="p@1-2")],
        fields={"split": "test", "data_sha256": "2" * 64},
    )
    with pytest.raises(RunError, match=r"split: dev and test; data_sha256: 11111111… and 22222222….*--anyway"):
        compare([first, other])
    (pair,) = compare([first, other], anyway=True).pairs
    assert [field.field for field in pair.unequal] == ["split", "data_sha256"]
    assert pair.differences[0].estimate.n == 4
    fewer = made(tmp_path / "c", rows[:3], scores, fields={"split": "dev", "data_sha256": "1" * 64})
    with pytest.raises(RunError, match="samples: 4 and 3, with 3 common ones"):
        compare([first, fewer])
    assert compare([first, fewer], anyway=True).pairs[0].differences[0].estimate.n == 3
    with pytest.raises(RunError, match="compare runs of one task"):
        compare([first, made(tmp_path / "d", rows, scores, task="else")], anyway=True)
    disjoint = made(tmp_path / "e", [{**row, "id": f"x{row['id']}"} for row in rows], scores)
    with pytest.raises(RunError, match="nothing to compare"):
        compare([first, disjoint], anyway=True)


def test_a_table_that_does_not_fit_is_damage_and_no_traceback(tmp_path: Path) -> None:
    rows = rows_of([0, 1])
    fine = made(tmp_path / "a", rows, [score(cells=ACCURACY)])
    for name, column in (("b", "absent"), ("c", "kind")):
        wrong = made(tmp_path / name, rows, [score(cells=Cells(column))])
        with pytest.raises(RunError, match=r"scores.parquet is damaged.*dreambench score"):
            compare([fine, wrong])
    twice = made(tmp_path / "d", rows, [score(cells=ACCURACY)])
    twice.__dict__["table"] = pd.concat([twice.table, twice.table])
    with pytest.raises(RunError, match="the ids of the samples"):
        compare([fine, twice])


def test_seeds_and_settings_are_differences_of_the_system(tmp_path: Path) -> None:
    other: dict[str, Any] = {"seed": 3, "generation": "max_new_tokens=3"}
    runs = [run("vqav2", "echo", out=tmp_path, limit=6), run("vqav2", "echo", out=tmp_path, limit=6, **other)]
    (pair,) = compare(load_runs([one.folder for one in runs])).pairs
    assert {"seed", "generation.max_new_tokens"} <= {field.field for field in pair.system}
    assert not pair.environment


def test_the_command_line_prints_writes_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = [score(cells=ACCURACY, better="higher")]
    for name, values in (("a", [0, 0, 1, 0, 0, 0]), ("b", [1, 1, 1, 1, 1, 0])):
        made(tmp_path / name, rows_of(values), scores, model=HOSTILE[0])
    a, b, out = str(tmp_path / "a"), str(tmp_path / "b"), tmp_path / "out.json"

    def status(*arguments: str) -> int:
        with pytest.raises(SystemExit) as leaving:
            main(["compare", *arguments])
        return int(str(leaving.value.code or 0))

    html = tmp_path / "page.html"
    assert status(a, b, "--json", str(out), "--html", str(html)) == 0
    printed = capsys.readouterr().out
    assert "accuracy: better: +66.67 points" in printed
    assert "4 samples better: q0, q1, q3, q4" in printed
    ((line,),) = [one["differences"] for one in json.loads(out.read_text())["comparisons"]]
    assert line["samples"] == {"better": ["q0", "q1", "q3", "q4"], "worse": []}
    assert HOSTILE[0] not in html.read_text()
    assert "4 better, 0 worse" in html.read_text()
    first = out.read_bytes(), html.read_bytes()
    assert status(a, b, "--json", str(out), "--html", str(html)) == 0
    assert first == (out.read_bytes(), html.read_bytes())
    (tmp_path / "b" / "metrics.json").unlink()
    capsys.readouterr()
    for arguments, words in {
        (a,): "two runs at least",
        (a, a): "given twice",
        (a, str(tmp_path)): "is not a run",
        (a, b): "is not complete",
    }.items():
        assert status(*arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_a_plot_spans_its_intervals_and_contains_zero(tmp_path: Path) -> None:
    first, second = rows_of([0, 0, 1, 0, 0, 1]), rows_of([1, 1, 1, 1, 0, 1])
    comparison = two(tmp_path, first, second)
    (((unit, (row,)),),) = [whiskers(pair.differences) for pair in comparison.pairs]
    assert unit == "percentage points"
    assert row.low is not None
    assert row.high is not None
    assert 0 <= min(row.low, row.zero) < row.value < row.high <= 100
    assert "whisker" in page(comparison.runs, comparison)


def test_no_run_is_too_few() -> None:
    with pytest.raises(UsageError, match="two runs at least"):
        load_runs([])
