"""`golden/scores/mmvet`: the official evaluator's tables against ours, for every grade file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from parity.checks import Check, Exempt, leaves, problems, score_folder, uncovered, unnoticed

from dreambench_tasks.mmvet.data import read_capabilities, read_grades
from dreambench_tasks.mmvet.scoring import MMVetScores, aggregate

FOLDER = score_folder("mmvet")

TOLERANCE = 1e-9  # the fixtures' README, for `unrounded`
EXEMPT = [Exempt("expected*.json:*/num_run", "an input"), Exempt("expected*.json:*/decimal_places", "an input")]


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("expected*.json"))}


def questions(folder: Path) -> dict[str, tuple[str, ...]]:
    """The one file that is neither grades nor expected."""
    (path,) = (path for path in folder.glob("*.json") if not path.name.startswith(("grades_", "expected")))
    return read_capabilities(path)


def official_tables(scores: MMVetScores, decimals: int) -> dict[str, Any]:
    """The two tables of the official evaluator, rounded as numpy rounds (ties to even after scaling)."""
    assert scores.total.unscored == 0

    def rounded(value: float | None) -> float:
        assert value is not None
        return float(np.round(np.float64(value), decimals))

    shared = {"std": rounded(scores.std), "runs": [rounded(total) for total in scores.total.per_run]}
    tables: dict[str, Any] = {}
    for name, groups in (("cap-score", scores.capabilities), ("cap-int-score", scores.integrations)):
        values = {group: rounded(score.value) for group, score in groups.items()}
        tables[name] = {**values, "total": rounded(scores.total.value), **shared}
    return tables


def checks(folder: Path) -> list[Check]:
    found: list[Check] = []
    capabilities = questions(folder)
    for file, cases in recorded(folder).items():
        for name, expected in cases.items():
            graded = read_grades(folder / f"grades_{name}.json")
            grades = {question: [grade.score for grade in given] for question, given in graded.items()}
            scores = aggregate(capabilities, grades, expected["num_run"])
            tables = official_tables(scores, expected["decimal_places"])
            for table in ("cap-score", "cap-int-score"):
                assert set(expected[table]) == set(tables[table])
                found += [
                    Check(f"{file}:{name}/{table}/{key}", value, tables[table][key])
                    for key, value in expected[table].items()
                ]
            ours = {"total": scores.total.value, "std_population_ddof0": scores.std, "runs": scores.total.per_run}
            for key, value in expected["unrounded"].items():
                found.append(Check(f"{file}:{name}/unrounded/{key}", value, ours[key], atol=TOLERANCE))
    return found


def test_every_recorded_score_is_ours() -> None:
    assert problems(checks(FOLDER)) == []


def test_every_recorded_value_is_compared_or_exempt() -> None:
    keys = [key for file, content in recorded(FOLDER).items() for key in leaves(content, file)]
    assert uncovered(keys, checks(FOLDER), EXEMPT) == []


def test_a_changed_value_is_seen() -> None:
    assert unnoticed(checks(FOLDER)) == []
