"""The values of a fixture folder in the format of ``golden/scores/agreement``, recorded from other packages, beside ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from parity.checks import Check, Exempt

from dreambench import statistics as st
from dreambench.human import agreement, preference
from dreambench.human.acceptance import threshold
from dreambench.human.crossed import proportion
from dreambench.human.votes import Vote

TOLERANCE, WILSON, STRENGTHS = 1e-9, 1e-12, 1e-5  # the fixtures' README
EXEMPT = [
    *(
        Exempt(
            f"expected_ratings*.json:*/cohen_pairwise/*/{name}",
            "a correlation of raters: no measure of agreement, not reported",
        )
        for name in ("spearman", "kendall_tau_b", "pearson")
    ),
    *(
        Exempt(
            f"expected_ratings*.json:*/acceptance/{name}",
            "another interval than Wilson's of independent ratings: not reported",
        )
        for name in ("beta", "agresti_coull", "jeffreys")
    ),
    Exempt(
        "expected_pairwise*.json:*/BT_*alpha0.01*",
        "regularised: strengths are of maximum likelihood, or said not to exist",
    ),
    Exempt(
        "expected_pairwise*.json:*/BT_*L2_*", "regularised: strengths are of maximum likelihood, or said not to exist"
    ),
    Exempt("expected_pairwise*.json:*/glm_converged", "a remark of another package"),
    Exempt("expected_pairwise*.json:*/elo_sequential_*", "depends on the order of the votes: not reported"),
]


def exemptions(folder: Path) -> list[Exempt]:
    """`EXEMPT`, and what a general optimiser gave where our model says that there is no maximum."""
    reason = "where an iteration stopped: there is no maximum"
    return EXEMPT + [
        Exempt(f"expected_pairwise*.json:{name}/BT_ties_dropped_glm_*", reason)
        for name, entry in entries(folder, "votes").items()
        if isinstance(preference.fit(_votes(entry), "drop"), str)
    ]


def _votes(entry: dict[str, Any]) -> list[Vote]:
    return [Vote(str(number), vote["a"], vote["b"], vote["winner"]) for number, vote in enumerate(entry["votes"])]


def read(folder: Path, prefix: str) -> dict[str, Any]:
    """The recorded values by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob(f"{prefix}*.json"))}


def entries(folder: Path, key: str) -> dict[str, dict[str, Any]]:
    """The inputs that hold `key`, by name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        if not path.name.startswith("expected"):
            found |= {entry["name"]: entry for entry in json.loads(path.read_text()) if key in entry}
    return found


def value(key: str, expected: Any, actual: float | None, atol: float = TOLERANCE) -> Check:
    if expected is None or actual is None or isinstance(expected, str):
        undefined = expected is None or isinstance(expected, str)
        return Check(key, expected, expected if undefined and actual is None else actual)
    return Check(key, expected, actual, atol=atol)


def rating_checks(key: str, recorded: dict[str, Any], ratings: np.ndarray, levels: int) -> Iterator[Check]:
    for metric, expected in recorded.get("krippendorff", {}).items():
        yield value(
            f"{key}/krippendorff/{metric}", expected, agreement.krippendorff_alpha(ratings, levels, metric).value
        )
    for name in ("fleiss_kappa", "randolph_kappa"):
        if name in recorded:
            yield value(f"{key}/{name}", recorded[name], getattr(agreement, name)(ratings, levels).value)
    for pair, entry in recorded.get("cohen_pairwise", {}).items():
        a, b = (ratings[int(number)] for number in pair.split("-"))
        both = ~(np.isnan(a) | np.isnan(b))
        yield Check(f"{key}/cohen_pairwise/{pair}/n", entry["n"], agreement.cohen_kappa(a, b, levels).n)
        equal = float((a == b)[both].mean())
        yield value(f"{key}/cohen_pairwise/{pair}/observed_agreement", entry["observed_agreement"], equal)
        for weights in ("unweighted", "linear", "quadratic"):
            kappa = agreement.cohen_kappa(a, b, levels, weights).value
            yield value(f"{key}/cohen_pairwise/{pair}/{weights}", entry[weights], kappa)
    yield from acceptance_checks(key, recorded, ratings, levels)


def acceptance_checks(key: str, recorded: dict[str, Any], ratings: np.ndarray, levels: int) -> Iterator[Check]:
    lowest, items = threshold(levels), [column[~np.isnan(column)] for column in ratings.T]
    accepted = [float(rating >= lowest) for item in items for rating in item]
    majority = [2 * (item >= lowest).sum() > len(item) for item in items if len(item)]
    for name, scores in (("acceptance", accepted), ("majority_acceptance", majority)):
        entry, n = recorded.get(name, {}), len(scores)
        total, rate = float(sum(scores)), float(np.mean(scores))
        ours = {
            "threshold_ge": lowest,
            "accepted": int(total),
            "n": n,
            "rate": proportion(scores, [""] * n, range(n)).value / 100,
            "wilson": st.wilson_interval(total, n),
            "normal": st.normal_interval(rate, st.standard_error(np.array(scores, dtype=float), ddof=0)),
        }
        for field in entry:
            if field in ours:
                exact = field in ("threshold_ge", "accepted", "n")
                yield Check(
                    f"{key}/{name}/{field}",
                    entry[field],
                    ours[field],
                    atol=0.0 if exact else WILSON if field == "wilson" else TOLERANCE,
                )


def vote_checks(key: str, recorded: dict[str, Any], entry: dict[str, Any]) -> Iterator[Check]:
    votes = _votes(entry)
    systems: list[str] = entry["models"]
    for ties, name in (("drop", "BT_ties_dropped"), ("half", "BT_ties_half_win")):
        found = preference.fit(votes, ties)
        ours = None if isinstance(found, str) else found.strengths[[found.systems.index(system) for system in systems]]
        for field in (f"{name}_alpha0_ilsr_logstrength_mean0", f"{name}_glm_mean0"):
            if field in recorded and not (ours is None and "glm" in field):
                yield value(f"{key}/{field}", recorded[field], ours, STRENGTHS)
        if not isinstance(found, str) and f"{name}_glm_se_vs_m0" in recorded:
            assert found.systems[0] == systems[0]
            errors = np.sqrt(np.concatenate([[0.0], np.diag(found.inverse_information)]))
            order = [found.systems.index(system) for system in systems]
            yield value(f"{key}/{name}_glm_se_vs_m0", recorded[f"{name}_glm_se_vs_m0"], errors[order], STRENGTHS)
    rates = preference.win_rates(votes)
    for system, expected in recorded.get("winrates", {}).items():
        rate = rates[system]
        yield Check(f"{key}/winrates/{system}/wins", expected["wins"], rate.wins)
        yield Check(f"{key}/winrates/{system}/ties", expected["ties"], rate.ties)
        yield Check(f"{key}/winrates/{system}/games", expected["games"], rate.games)
        field = "winrate_ties_half"
        yield value(f"{key}/winrates/{system}/{field}", expected[field], rate.estimate.value / 100)


def wilson_checks(key: str, recorded: dict[str, list[float]]) -> Iterator[Check]:
    successes, n = (int(part) for part in key.rpartition(":")[2].split("/"))
    for level, expected in recorded.items():
        yield Check(f"{key}/{level}", expected, st.wilson_interval(successes, n, 1 - float(level)), atol=WILSON)


def checks(folder: Path) -> list[Check]:
    found: list[Check] = []
    ratings, votes = entries(folder, "ratings"), entries(folder, "votes")
    for file, recorded in read(folder, "expected_ratings").items():
        for name, expected in recorded.items():
            array = np.array(ratings[name]["ratings"], dtype=np.float64)
            found += rating_checks(f"{file}:{name}", expected, array, ratings[name]["levels"])
    for file, recorded in read(folder, "expected_pairwise").items():
        for name, expected in recorded.items():
            found += vote_checks(f"{file}:{name}", expected, votes[name])
    for file, recorded in read(folder, "expected_wilson").items():
        for name, expected in recorded.items():
            found += wilson_checks(f"{file}:{name}", expected)
    return found
