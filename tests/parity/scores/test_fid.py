"""Fréchet distance, KID, Inception Score and PRDC against recorded values of five other programs."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from metrics.subsets import subset_kernel_distance
from parity.checks import Check, Exempt, leaves, problems, score_folder, uncovered, unnoticed

from dreambench.metrics.frechet import GaussianStatistics, frechet_distance
from dreambench.metrics.set_metrics import inception_score, kernel_distance, precision_recall_density_coverage

FOLDER = score_folder("fid")

RELATIVE = 1e-6  # README of the fixtures, well-conditioned sets
OF_TRACES = 1e-6  # README, rank-deficient sets: share of tr S1 + tr S2
IDENTICAL = 2e-6  # README, identical sets
SAMPLED = 1e-5  # README, sampled kernel distances
RECORDED = "expected_kid_isc_prdc.json"
TINY = 1e-14  # a few last places of an order-one sum: where the recorded value is 0

EXEMPT = [
    Exempt("*__error", "another program's exception; the value beside it is null"),
    Exempt("*_error", "another program's exception; the value beside it is null"),
    Exempt("expected_fid.json:*/set?/recipe/*", "an input"),
    Exempt("edge_gaussians.json:*", "an input"),
    Exempt("isc_logits_*.npz:*", "an input"),
    Exempt("expected_kid_isc_prdc.json:recipes/*", "an input"),
    *(Exempt(f"expected_kid_isc_prdc.json:{kind}/*/{field}", "an input") for kind, field in [
        ("kid", "set?"), ("prdc", "set_*"), ("prdc", "k"), ("isc", "recipe"), ("isc", "N"), ("isc", "C"),
        ("isc", "scale"), ("isc", "splits"), ("isc", "shuffle_seed2020"),
    ]),
]  # fmt: skip


def recipe(seed: int, N: int, d: int, kind: str = "base", shift: float = 0, scale: float = 1) -> np.ndarray:
    """The fixtures' features, as their README defines them."""
    random = np.random.RandomState(seed)
    uniform = sum(random.randint(0, 256, size=(N, d)) for _ in range(4)) - 510
    x = 3 * uniform + 2 * np.roll(uniform, 1, axis=1) + uniform[:, :1]
    columns = np.arange(d)
    x = x * (1 + (7 * columns % 13)) * scale + shift * (5 * columns % 11) * 256
    if kind == "relu":
        x = np.maximum(x, 0)
    elif kind == "dead":
        x = np.maximum(x - 9000, 0)
    elif kind == "constcols":
        x[:, ::3] = 1024
    elif kind == "lowrank":
        x = x[:, columns % max(2, d // 8)]
    elif kind not in ("base", "tiny"):
        raise ValueError(f"a recipe of the unknown kind {kind}")
    return (x / 2.0 ** (24 if kind == "tiny" else 14)).astype(np.float32)


@functools.cache
def load(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def frechet_checks(folder: Path) -> list[Check]:
    checks: list[Check] = []
    for name, case in load(folder, "expected_fid.json").items():
        sets = [recipe(**case[part]["recipe"]) for part in ("set1", "set2")]
        for part, features in zip(("set1", "set2"), sets, strict=True):
            key = f"expected_fid.json:{name}/{part}"
            digest = hashlib.sha256(np.ascontiguousarray(features, "<f4").tobytes()).hexdigest()
            checks.append(Check(f"{key}/sha256_f32le", case[part]["sha256_f32le"], digest))
            checks.append(Check(f"{key}/first_row_first4", case[part]["first_row_first4"], features[0, :4]))
            mean = float(features.astype(np.float64).mean())
            checks.append(Check(f"{key}/mean", case[part]["mean"], mean, rtol=1e-6, atol=1e-9))
        a, b = (GaussianStatistics.from_features(features) for features in sets)
        checks += distance_checks(f"expected_fid.json:{name}/expected", case["expected"], a, b)
    for name, expected in load(folder, "expected_edge_gaussians.json").items():
        case = load(folder, "edge_gaussians.json")[name]
        a, b = (GaussianStatistics.from_moments(case[f"mu{i}"], case[f"sigma{i}"]) for i in (1, 2))
        checks += distance_checks(f"expected_edge_gaussians.json:{name}", expected, a, b)
    return checks


def distance_checks(key: str, expected: dict[str, Any], a: GaussianStatistics, b: GaussianStatistics) -> list[Check]:
    ours = frechet_distance(a, b)
    full_rank = a.factor.shape[1] == a.dim == b.factor.shape[1]
    traces = OF_TRACES * (a.trace + b.trace)
    checks: list[Check] = []
    for program, value in expected.items():
        if value is None:  # the program gave up: a distance is finite all the same
            checks.append(Check(f"{key}/{program}", True, bool(np.isfinite(ours))))
        elif not isinstance(value, str):
            identical = abs(value) <= IDENTICAL
            tolerance = IDENTICAL if identical and a.n is not None else RELATIVE * abs(value) if full_rank else traces
            checks.append(Check(f"{key}/{program}", value, ours, atol=max(tolerance, TINY)))
    return checks


def saved_feature_checks(folder: Path) -> list[Check]:
    """The small sets lie there as arrays too: they must be what the recipe gives."""
    cases = load(folder, "expected_fid.json")
    checks: list[Check] = []
    for path in sorted(folder.glob("features_*.npz")):
        with np.load(path) as arrays:
            case = cases[path.stem.removeprefix("features_")]
            checks += [
                Check(f"{path.name}:{part}", np.ascontiguousarray(arrays[part]), recipe(**case[part]["recipe"]))
                for part in arrays
            ]
    return checks


SUBSETS = re.compile(r"torch_fidelity_subsets(\d+)_size(\d+)_seed(\d+)_float\d+")


def kernel_checks(folder: Path) -> list[Check]:
    recorded = load(folder, RECORDED)
    checks: list[Check] = []
    for index, case in enumerate(recorded["kid"]):
        a, b = (recipe(**recorded["recipes"][case[part]]) for part in ("set1", "set2"))
        for name, value in case.items():
            key = f"{RECORDED}:kid/{index}/{name}"
            if match := SUBSETS.fullmatch(name):
                subsets, size, seed = map(int, match.groups())
                mean, deviation = subset_kernel_distance(a, b, subsets=subsets, size=size, seed=seed)
                for part, ours in (("mean", mean), ("std", deviation)):
                    part = f"kernel_inception_distance_{part}"
                    checks.append(Check(f"{key}/{part}", value[part], ours, atol=SAMPLED))
            elif name.startswith("cleanfid"):
                subsets, size = map(int, re.findall(r"(\d+)x(\d+)", name)[0])
                mean, _ = subset_kernel_distance(a, b, subsets=subsets, size=size, convention="clean-fid")
                checks.append(Check(key, value, mean, atol=SAMPLED))
            elif name.endswith("mmd2_full"):
                checks.append(Check(key, value, kernel_distance(a, b).value, rtol=RELATIVE, atol=1e-13))
    return checks


def neighbour_checks(folder: Path) -> list[Check]:
    recorded = load(folder, RECORDED)
    checks: list[Check] = []
    for index, case in enumerate(recorded["prdc"]):
        generated, real = (recipe(**recorded["recipes"][case[part]]) for part in ("set_generated", "set_real"))
        ours = precision_recall_density_coverage(generated, real, k=case["k"])
        for name, value in case["prdc_package"].items():
            checks.append(Check(f"{RECORDED}:prdc/{index}/prdc_package/{name}", value, ours[name].value, atol=1e-9))
        closed = precision_recall_density_coverage(generated, real, k=case["k"], closed=True)
        precision, recall = closed["precision"].value, closed["recall"].value
        f_score = 2 * precision * recall / max(1e-5, precision + recall)
        values = {"precision": precision, "recall": recall, "f_score": f_score}
        for name, value in case["torch_fidelity"].items():  # it averages in float32
            checks.append(Check(f"{RECORDED}:prdc/{index}/torch_fidelity/{name}", value, values[name], atol=1e-6))
    return checks


def inception_score_checks(folder: Path) -> list[Check]:
    checks: list[Check] = []
    for index, case in enumerate(load(folder, RECORDED)["isc"]):
        with np.load(folder / f"isc_logits_{case['N']}_{case['C']}.npz") as arrays:
            logits = (arrays["logits"].astype(np.float32) / 1000 * arrays["scale"]).astype(np.float32)
        score, deviation = inception_score(logits, splits=case["splits"], shuffle=case["shuffle_seed2020"])
        key = f"{RECORDED}:isc/{index}/inception_score"
        checks.append(Check(f"{key}_mean", case["inception_score_mean"], score.value, atol=1e-6))
        checks.append(Check(f"{key}_std", case["inception_score_std"], deviation, atol=1e-6))
    return checks


@functools.cache
def checks(folder: Path) -> list[Check]:
    parts = (frechet_checks, saved_feature_checks, kernel_checks, neighbour_checks, inception_score_checks)
    return [check for part in parts for check in part(folder)]


def keys(folder: Path) -> list[str]:
    names = [key for path in sorted(folder.glob("*.json")) for key in leaves(load(folder, path.name), path.name)]
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            names += [f"{path.name}:{array}" for array in arrays]
    return names


def test_agrees_with_recorded_values() -> None:
    assert problems(checks(FOLDER)) == []


def test_every_recorded_value_is_compared_or_exempt() -> None:
    assert uncovered(keys(FOLDER), checks(FOLDER), EXEMPT) == []


def test_an_error_of_ten_tolerances_is_noticed() -> None:
    assert unnoticed(checks(FOLDER)) == []
