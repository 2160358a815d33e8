"""Strengths of systems from pairwise votes: the models of Bradley and Terry (1952) and of Davidson (1970), by maximum likelihood.

With strengths s, a position effect d of being shown first and eta = s[a] - s[b] + d (or - d where b was first),
the logits of "a wins", "tie" and "b wins" are eta, eta / 2 + t and 0. Without the tie (dropped, or half a win for each) this is
Bradley-Terry; d is the order effect of Davidson and Beaver (1977). A rater's care c multiplies s[a] - s[b]: 0 is guessing, 1 the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from dreambench.human.crossed import Array, Crossed, difference, proportion, rank_intervals
from dreambench.human.votes import Vote, systems_of
from dreambench.scores import Estimate

__all__ = [
    "Fit",
    "PairRate",
    "Strength",
    "Ties",
    "WinRate",
    "fit",
    "pair_rates",
    "rater_care",
    "strengths",
    "win_rates",
]

Ties: TypeAlias = Literal["davidson", "half", "drop"]
ITERATIONS = 100
CARE_SPREAD = 0.5
"""Standard deviation of raters' care around 1 (a normal prior): a rater who never disagrees has no finite maximum-likelihood care."""


@dataclass(frozen=True)
class Fit:
    """A model at its maximum. Parameters: the strength of each system but the first relative to the first, position, tie.

    `position` and `tie` are None where the model has no such term. `influence` (votes x systems, then position and tie) are the
    influence values of the strengths with mean 0.
    """

    systems: list[str]
    votes: list[Vote]
    strengths: Array
    position: float | None
    tie: float | None
    influence: Array
    inverse_information: Array
    log_likelihood: float


def fit(
    votes: Sequence[Vote], ties: Ties, *, position: bool = False, care: Mapping[str, float] | None = None
) -> Fit | str:
    """The model's maximum, or why there is none. `position` adds the effect of being shown first; `care` scales the strengths by rater.

    The likelihood is concave, so Newton's method with halved steps finds the only maximum. Whether one exists is decided first, exactly:
    see `_no_maximum`.
    """
    kept = [vote for vote in votes if not (vote.tie and ties == "drop")]
    if not kept:
        return "there is no vote" + (" that is not a tie" if votes else "")
    if ties == "davidson" and not any(vote.tie for vote in kept):
        ties = "half"
    if ties == "davidson" and all(vote.tie for vote in kept):
        return "every vote is a tie"
    systems = systems_of(kept)
    design, wins, tied = _design(kept, systems, position, care)
    if not position:
        design = design[:, :-1]
    reason = _no_maximum(design, wins, tied, systems, ties)
    if reason:
        return reason
    with_tie = ties == "davidson"
    beta, value = np.zeros(design.shape[1] + with_tie), -math.inf
    value, score, information = _likelihood(beta, design, wins, tied, with_tie)
    for _ in range(ITERATIONS):
        step = np.linalg.solve(information, score.sum(axis=0))
        if float(np.abs(step).max()) < 1e-11:
            break
        while (trial := _likelihood(beta + step, design, wins, tied, with_tie))[0] < value - 1e-9:
            step = step / 2
        beta, (value, score, information) = beta + step, trial
    inverse = np.asarray(np.linalg.inv(information), dtype=np.float64)
    influence = score @ inverse
    k = len(systems)
    relative = np.concatenate([np.zeros((len(kept), 1)), influence[:, : k - 1]], axis=1)
    raw = np.concatenate([[0.0], beta[: k - 1]])
    return Fit(
        systems,
        kept,
        raw - raw.mean(),
        float(beta[k - 1]) if position else None,
        float(beta[-1]) if with_tie else None,
        np.concatenate([relative - relative.mean(axis=1, keepdims=True), influence[:, k - 1 :]], axis=1),
        inverse,
        value,
    )


def _design(
    votes: Sequence[Vote], systems: Sequence[str], position: bool, care: Mapping[str, float] | None
) -> tuple[Array, Array, Array]:
    """Rows of the design (strengths relative to the first system, position), shares of a win for a, and 1 for ties."""
    index = {system: number for number, system in enumerate(systems)}
    rows = np.arange(len(votes))
    design = np.zeros((len(votes), len(systems) + 1))
    design[rows, [index[vote.system_a] for vote in votes]] = 1
    design[rows, [index[vote.system_b] for vote in votes]] = -1
    if care is not None:
        design *= np.array([care[vote.rater] for vote in votes])[:, None]
    if position:
        design[:, -1] = [vote.first for vote in votes]
    wins, tied = (np.array(values, dtype=np.float64) for values in zip(*((v.score, v.tie) for v in votes), strict=True))
    return design[:, 1:], wins, tied


def _likelihood(beta: Array, design: Array, wins: Array, tied: Array, with_tie: bool) -> tuple[float, Array, Array]:
    """Log-likelihood, score of each vote, and information."""
    eta = design @ (beta[:-1] if with_tie else beta)
    tie = beta[-1] if with_tie else -math.inf
    top, middle = np.maximum(eta, 0), eta / 2 + tie
    total = top + np.log(np.exp(eta - top) + np.exp(middle - top) + np.exp(-top))
    p_tie = np.exp(middle - total)
    mean = np.exp(eta - total) + p_tie / 2
    spread = np.exp(eta - total) + p_tie / 4 - mean**2
    value = float((wins * eta - total).sum()) + (float(tied.sum() * tie) if with_tie else 0.0)
    score = (wins - mean)[:, None] * design
    information = design.T @ (spread[:, None] * design)
    if with_tie:
        score = np.column_stack([score, tied - p_tie])
        cross = design.T @ (p_tie / 2 - mean * p_tie)
        information = np.block([[information, cross[:, None]], [cross[None], (p_tie * (1 - p_tie)).sum()]])
    return value, score, information


def _no_maximum(design: Array, wins: Array, tied: Array, systems: Sequence[str], ties: Ties) -> str:
    """Why the likelihood has no single finite maximum, or an empty string.

    There is none if the parameters can move along a line on which no vote becomes less likely: a linear program looks for the line
    (Albert and Anderson 1984). For Bradley-Terry without position this is Ford's (1957) condition: the graph of wins is strongly connected.
    """
    from scipy.optimize import linprog
    from scipy.sparse.csgraph import connected_components

    k = len(systems)
    patterns = np.unique(np.column_stack([design, wins - 0.5, tied]), axis=0)
    rows, margin, is_tie = patterns[:, :-2], patterns[:, -2], np.asarray(patterns[:, -1] > 0)
    pairs = np.column_stack([-rows[:, : k - 1].sum(axis=1), rows[:, : k - 1]])  # + for system a, - for b
    count, labels = connected_components(np.abs(pairs).T @ np.abs(pairs), directed=False)
    if count > 1:
        parts = [_names([s for s, label in zip(systems, labels, strict=True) if label == i]) for i in range(count)]
        return f"no vote connects {' with '.join(parts)}"
    if np.linalg.matrix_rank(rows) < rows.shape[1]:
        return "the position cannot be told from the strengths: systems are not shown first as often as second"
    won, lost, drawn = rows[margin > 0], rows[margin < 0], rows[is_tie]
    if ties == "davidson":
        gains = [_with_tie(won / 2, -1), _with_tie(-lost / 2, -1), _with_tie(drawn / 2, 1), _with_tie(-drawn / 2, 1)]
    else:
        gains = [won, -lost, drawn, -drawn]
    better = np.concatenate(gains)  # times a direction: by how much each vote becomes more likely than another answer
    answer: Any = linprog(-better.sum(axis=0), A_ub=-better, b_ub=np.zeros(len(better)), bounds=(-1, 1), method="highs")
    if answer.status == 0 and -answer.fun < 1e-7:
        return ""
    results = pairs * margin[:, None]  # + for the winner, - for the loser
    beaten = np.maximum(results, 0).T @ np.maximum(-results, 0)
    if ties == "half":
        beaten = beaten + np.abs(pairs[is_tie]).T @ np.abs(pairs[is_tie])
    return _unbeaten(beaten, systems)


def _with_tie(rows: Array, sign: int) -> Array:
    return np.column_stack([rows, np.full(len(rows), sign)])


def _unbeaten(beaten: Array, systems: Sequence[str]) -> str:
    """The groups of systems that never lost to, or never won against, all the others. `beaten`: row above 0 where it beat the column."""
    from scipy.sparse.csgraph import connected_components

    count, labels = connected_components(beaten, directed=True, connection="strong")
    found: dict[frozenset[str], str] = {}
    for verb, table in (("never lost to", beaten.T), ("never won against", beaten)):
        for label in range(count):
            inside = np.asarray(labels == label)
            members, others = (
                [s for s, inner in zip(systems, mask, strict=True) if inner] for mask in (inside, ~inside)
            )
            if others and not table[inside][:, ~inside].any() and frozenset(others) not in found:
                found[frozenset(members)] = f"{_names(members)} {verb} {_names(others)}"
    return "; ".join(found.values()) or "strengths, position or ties could grow without end and fit ever better"


def _names(systems: Sequence[str]) -> str:
    return ", ".join(systems[:3]) + (f" and {len(systems) - 3} more" if len(systems) > 3 else "")


# --- strengths and ranks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strength:
    """A system's strength (natural logarithm, mean 0 over the systems), rank (1 is best) and rank interval."""

    estimate: Estimate
    rank: int
    rank_interval: tuple[int, int] | None


def strengths(found: Fit, confidence: float = 0.95) -> tuple[dict[str, Strength], Estimate | None]:
    """Strengths with intervals by system, best first, and the position effect."""
    clusters = Crossed([vote.rater for vote in found.votes], [vote.prompt for vote in found.votes])
    k, n = len(found.systems), len(found.votes)
    ranks = rank_intervals(found.strengths, found.influence[:, :k], clusters, confidence)
    table: dict[str, Strength] = {}
    for rank, i in enumerate(np.argsort(-found.strengths, kind="stable"), 1):
        error = clusters.error(found.influence[:, i])
        estimate = difference(float(found.strengths[i]), error, n, clusters.method, "", confidence)
        table[found.systems[i]] = Strength(estimate, rank, ranks[i])
    effect = None
    if found.position is not None:
        effect = difference(found.position, clusters.error(found.influence[:, k]), n, clusters.method, "", confidence)
    return table, effect


def rater_care(votes: Sequence[Vote], ties: Ties, position: bool) -> dict[str, float]:
    """How strongly each rater's votes follow the strengths, relative to 1; empty where the model has no maximum.

    Strengths given care and care given strengths in turn, until no care changes by 0.001.
    """
    by_rater: dict[str, list[Vote]] = {}
    for vote in votes:
        if not (vote.tie and ties == "drop"):
            by_rater.setdefault(vote.rater, []).append(vote)
    care = dict.fromkeys(sorted(by_rater), 1.0)
    for _ in range(ITERATIONS):
        found = fit(votes, ties, position=position, care=care)
        if isinstance(found, str):
            return {}
        by_system = dict(zip(found.systems, found.strengths, strict=True))
        updated: dict[str, float] = {}
        for rater in care:
            own = by_rater[rater]
            gaps = np.array([by_system[vote.system_a] - by_system[vote.system_b] for vote in own])
            offsets = np.array([(found.position or 0.0) * vote.first for vote in own])
            updated[rater] = _care(gaps, offsets, own, found.tie)
        change = max(abs(updated[rater] - care[rater]) for rater in care)
        care = updated
        if change < 1e-3:
            break
    return care


def _care(gaps: Array, offsets: Array, votes: Sequence[Vote], tie: float | None) -> float:
    """The care of one rater with the highest posterior density, at least 0.01, by bisection: the derivative falls."""
    wins = np.array([vote.score for vote in votes])
    low, care, high = 0.01, 1.0, 10.0
    for _ in range(40):
        care = (low + high) / 2
        eta = care * gaps + offsets
        middle = np.exp(eta / 2 + tie) if tie is not None else np.zeros_like(eta)
        mean = (np.exp(eta) + middle / 2) / (np.exp(eta) + middle + 1)
        slope = float((wins - mean) @ gaps) - (care - 1) / CARE_SPREAD**2
        low, high = (care, high) if slope > 0 else (low, care)
    return care


# --- win rates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WinRate:
    """A system's share of wins against all others, a tie being half a win, with its counts."""

    estimate: Estimate
    wins: int
    ties: int
    games: int


@dataclass(frozen=True)
class PairRate:
    """`system_a`'s share of wins against `system_b`, with its counts."""

    system_a: str
    system_b: str
    rate: WinRate


def win_rates(votes: Sequence[Vote], confidence: float = 0.95) -> dict[str, WinRate]:
    """The win rate of each system, highest first."""
    rates = {
        system: _rate([vote for vote in votes if system in (vote.system_a, vote.system_b)], system, confidence)
        for system in systems_of(votes)
    }
    return dict(sorted(rates.items(), key=lambda pair: -pair[1].estimate.value))


def pair_rates(votes: Sequence[Vote], confidence: float = 0.95) -> list[PairRate]:
    """The win rate of each pair that was compared, in the systems' order."""
    pairs: dict[tuple[str, str], list[Vote]] = {}
    for vote in votes:
        pairs.setdefault((vote.item[1], vote.item[2]), []).append(vote)
    return [PairRate(a, b, _rate(pairs[a, b], a, confidence)) for a, b in sorted(pairs)]


def _rate(votes: Sequence[Vote], system: str, confidence: float) -> WinRate:
    scores = [vote.score_of(system) for vote in votes]
    estimate = proportion(scores, [vote.rater for vote in votes], [vote.prompt for vote in votes], confidence)
    return WinRate(estimate, scores.count(1.0), scores.count(0.5), len(scores))
