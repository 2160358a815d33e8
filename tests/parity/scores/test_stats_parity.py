"""`golden/scores/stats`: every recorded statistic, from scipy and statsmodels, against ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from parity.checks import Check, Exempt, leaves, problems, score_folder, uncovered, unnoticed

from dreambench import statistics as st

FOLDER = score_folder("stats")

TOLERANCE = 1e-9  # the fixtures' README
SEED = 20230920

EXEMPT = [
    Exempt("expected*.json:datasets/*/paired_bootstrap_percentile95/note", "a remark"),
    Exempt("expected*.json:datasets/*/cluster_bootstrap_ratio_mean/n_resamples", "how the original was drawn"),
]


def read(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The scores by dataset name and the recorded values by file name."""
    expected = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("expected*.json"))}
    datasets: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name not in expected:
            datasets |= {entry["name"]: entry["rows"] for entry in json.loads(path.read_text())}
    return datasets, expected


def value(key: str, expected: Any, actual: Any, atol: float = TOLERANCE) -> Check:
    if expected is None or actual is None:
        return Check(key, expected, actual)
    return Check(key, expected, actual, atol=atol)


def mean_checks(key: str, recorded: dict[str, Any], scores: np.ndarray, clusters: np.ndarray) -> Iterator[Check]:
    plain, cr0 = st.standard_error(scores), st.clustered_standard_error(scores, clusters)
    mean = float(scores.mean())
    ours = {
        "mean": mean,
        "se_clt_ddof1": plain,
        "se_clt_ddof0": st.standard_error(scores, ddof=0),
        "se_bernoulli_sqrt_p(1-p)/n": st.standard_error(scores, ddof=0),
        "wilson95": st.wilson_interval(float(scores.sum()), len(scores)),
        "se_cluster_CR0_miller": cr0,
        "se_cluster_statsmodels_nocorrection": cr0,
        "se_cluster_statsmodels_CR1": st.clustered_standard_error(scores, clusters, correction="CR1"),
        "ci95_normal_clt": st.normal_interval(mean, plain),
        "ci95_normal_cluster_CR0": st.normal_interval(mean, cr0),
    }
    for name in recorded:
        if name in ours:
            yield value(f"{key}/{name}", recorded[name], ours[name])


def difference_checks(
    key: str, recorded: dict[str, Any], a: np.ndarray, b: np.ndarray, clusters: np.ndarray
) -> Iterator[Check]:
    plain, clustered = st.paired_difference(a, b, test="z"), st.paired_difference(a, b, clusters, test="z")
    student, ranks = st.paired_difference(a, b, test="t"), st.wilcoxon_signed_rank(a, b)
    ours = {
        "corr_ab": plain.correlation,
        "unpaired_se_diff": plain.unpaired_standard_error,
        "paired_t/t": student.statistic,
        "paired_t/p": student.p_value,
        "paired_z/z": plain.statistic,
        "paired_z/p": plain.p_value,
        "clustered_z/z": clustered.statistic,
        "clustered_z/p": clustered.p_value,
        "wilcoxon_approx/stat": ranks and ranks[0],
        "wilcoxon_approx/p": ranks and ranks[1],
        "diff_a_minus_b/mean": plain.estimate.value,
        "diff_a_minus_b/se_clt_ddof1": plain.estimate.standard_error,
        "diff_a_minus_b/se_cluster_CR0_miller": clustered.estimate.standard_error,
        "diff_a_minus_b/ci95_normal_clt": plain.estimate.interval,
        "diff_a_minus_b/ci95_normal_cluster_CR0": clustered.estimate.interval,
    }
    for path, actual in ours.items():
        entry: Any = recorded
        for part in path.split("/"):
            entry = entry.get(part, ...) if isinstance(entry, dict) else ...
        if entry is not ...:
            yield value(f"{key}/{path}", entry, actual)
    inherited = {f"{key}/{path}" for path in ours}
    for check in mean_checks(f"{key}/diff_a_minus_b", recorded.get("diff_a_minus_b", {}), a - b, clusters):
        if check.key not in inherited:
            yield check
    if "mcnemar" in recorded:
        yield from mcnemar_checks(f"{key}/mcnemar", recorded["mcnemar"], a, b)


def mcnemar_checks(key: str, recorded: dict[str, Any], a: np.ndarray, b: np.ndarray) -> Iterator[Check]:
    ours = st.mcnemar(a, b)
    yield Check(f"{key}/table", recorded["table"], ours.table)
    yield value(f"{key}/exact_p", recorded["exact_p"], ours.exact_p)
    yield value(
        f"{key}/exact_stat_min_discordant",
        recorded["exact_stat_min_discordant"],
        min(ours.table[0][1], ours.table[1][0]),
    )
    for name, pair in (("chi2_corrTrue", ours.chi2_corrected), ("chi2_corrFalse", ours.chi2)):
        for index, part in enumerate(("stat", "p")):
            if name in recorded:
                yield value(f"{key}/{name}/{part}", recorded[name][part], pair and pair[index])


def bootstrap_checks(
    key: str, recorded: dict[str, Any], a: np.ndarray, b: np.ndarray, clusters: np.ndarray
) -> Iterator[Check]:
    """Monte-Carlo values: ends within 10 % of the standard error plus one step of the data, standard error within 5 %."""
    difference = a - b
    steps = np.diff(np.unique(np.round(difference, 9)))
    quantum = float(steps.min()) / len(difference) if len(steps) else 0.0
    for name, groups in (("paired_bootstrap_percentile95", None), ("cluster_bootstrap_ratio_mean", clusters)):
        if name not in recorded:
            continue
        ours = st.bootstrap_mean(difference, seed=SEED, clusters=groups, resamples=40_000)
        entry = recorded[name]
        yield value(f"{key}/{name}/ci", entry["ci"], ours.interval, atol=0.1 * entry["se"] + quantum)
        yield Check(f"{key}/{name}/se", entry["se"], ours.standard_error, rtol=0.05)
        if "analytic_limit_se" in entry:
            yield value(
                f"{key}/{name}/analytic_limit_se", entry["analytic_limit_se"], st.standard_error(difference, ddof=0)
            )


def repeated_checks(key: str, recorded: dict[str, Any], a: np.ndarray, questions: np.ndarray) -> Iterator[Check]:
    if "question_mean_then_clt" in recorded:
        means = np.array([a[questions == question].mean() for question in np.unique(questions)])
        yield value(f"{key}/question_mean_then_clt/mean", recorded["question_mean_then_clt"]["mean"], means.mean())
        yield value(
            f"{key}/question_mean_then_clt/se_ddof1",
            recorded["question_mean_then_clt"]["se_ddof1"],
            st.standard_error(means),
        )
    names = [name for name in ("variance_of_question_means_a", "mean_conditional_variance_a") if name in recorded]
    if names:
        between, within = st.variance_components(a, questions)
        ours = {"variance_of_question_means_a": between, "mean_conditional_variance_a": within}
        for name in names:
            yield value(f"{key}/{name}", recorded[name], ours[name])


def planning_checks(key: str, cases: list[dict[str, Any]]) -> Iterator[Check]:
    for index, case in enumerate(cases):
        settings = {"answers_a": case["KA"], "answers_b": case["KB"], "alpha": case["alpha"], "power": 1 - case["beta"]}
        variances = (case["omega2"], case["sigmaA2"], case["sigmaB2"])
        needed = st.required_questions(case["delta"], *variances, **settings)
        yield Check(f"{key}/{index}/n_required_miller_eq9", case["n_required_miller_eq9"], needed, rtol=TOLERANCE)
        if float(needed) >= 1:
            effect = st.minimum_detectable_effect(int(needed), *variances, **settings)
            yield Check(f"{key}/{index}/delta", case["delta"] * np.sqrt(needed / int(needed)), effect, rtol=TOLERANCE)


def checks(folder: Path) -> list[Check]:
    datasets, expected = read(folder)
    found: list[Check] = []
    for file, recorded in expected.items():
        for name, values in recorded.get("datasets", {}).items():
            key, rows = f"{file}:datasets/{name}", datasets[name]
            a, b = (np.array([row[model] for row in rows]) for model in ("model_a", "model_b"))
            clusters = np.array([row["cluster"] for row in rows])
            found += [
                Check(f"{key}/n", values["n"], len(rows)),
                Check(f"{key}/n_clusters", values["n_clusters"], len(set(clusters.tolist()))),
                *mean_checks(f"{key}/model_a", values["model_a"], a, clusters),
                *mean_checks(f"{key}/model_b", values["model_b"], b, clusters),
                *difference_checks(key, values, a, b, clusters),
                *bootstrap_checks(key, values, a, b, clusters),
                *repeated_checks(key, values, a, clusters),
            ]
        for index, case in enumerate(recorded.get("multiple_testing", [])):
            for method in ("bonferroni", "holm", "fdr_bh"):
                key = f"{file}:multiple_testing/{index}/{method}"
                found.append(value(key, case[method], st.adjust_p_values(case["p"], method)))
        found += planning_checks(f"{file}:power", recorded.get("power", []))
    return found


INPUTS = [
    Exempt("expected*.json:multiple_testing/*/p", "an input"),
    *(
        Exempt(f"expected*.json:power/*/{name}", "an input")
        for name in ("omega2", "sigmaA2", "sigmaB2", "KA", "KB", "alpha", "beta")
    ),
]


def test_every_recorded_statistic_is_ours() -> None:
    assert problems(checks(FOLDER)) == []


def test_every_recorded_value_is_compared_or_exempt() -> None:
    _, expected = read(FOLDER)
    keys = [key for file, recorded in expected.items() for key in leaves(recorded, file)]
    assert uncovered(keys, checks(FOLDER), [*EXEMPT, *INPUTS]) == []


def test_an_error_of_ten_tolerances_is_seen() -> None:
    assert unnoticed(checks(FOLDER)) == []
