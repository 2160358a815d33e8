"""Acceptance: which share of the ratings of a system's documents accept them, with raters and documents as crossed clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dreambench.human.crossed import Array, Crossed, difference, proportion, rank_intervals
from dreambench.scores import Estimate
from dreambench.statistics import mean_estimate, wilson_interval

__all__ = ["Acceptance", "AcceptanceDifference", "DocumentRating", "acceptance", "acceptance_differences", "threshold"]


@dataclass(frozen=True, slots=True)
class DocumentRating:
    """One answer to an accept / reject or Likert question about the document of a system for a prompt."""

    prompt: str
    topic: str | None
    system: str
    rater: str
    answer: int
    accepted: bool


@dataclass(frozen=True)
class Acceptance:
    """The acceptance of one system.

    `independent` is Wilson's interval if all ratings were independent, `design_effect` the variance relative to that; `majority` counts
    documents that more than half of their ratings accept; `mean` is that of the answers, for Likert questions.
    """

    rate: Estimate
    rank: int
    rank_interval: tuple[int, int] | None
    raters: int
    documents: int
    independent: tuple[float, float]
    design_effect: float | None
    majority: Estimate
    mean: Estimate
    topics: dict[str, Estimate]


@dataclass(frozen=True)
class AcceptanceDifference:
    """The acceptance rate of `system_a` minus that of `system_b`, in percentage points."""

    system_a: str
    system_b: str
    estimate: Estimate


def threshold(levels: int) -> int:
    """The lowest of `levels` Likert answers that accepts: the first above the middle (4 of 5, 3 of 4)."""
    return levels // 2 + 1 + levels % 2


def acceptance(
    ratings: Sequence[DocumentRating], confidence: float = 0.95, scale: tuple[int, int] = (0, 1)
) -> dict[str, Acceptance]:
    """The acceptance of each system, highest rate first. `scale` holds the lowest and the highest answer."""
    systems, rates, influence, clusters = _crossed(ratings)
    ranks = rank_intervals(rates, influence, clusters, confidence)
    return {
        systems[i]: _of_system([r for r in ratings if r.system == systems[i]], rank, ranks[i], confidence, scale)
        for rank, i in enumerate(np.argsort(-rates, kind="stable"), 1)
    }


def acceptance_differences(ratings: Sequence[DocumentRating], confidence: float = 0.95) -> list[AcceptanceDifference]:
    """The differences of all pairs of systems. Raters and prompts that two systems share are paired."""
    systems, rates, influence, clusters = _crossed(ratings)
    found: list[AcceptanceDifference] = []
    for i, j in combinations(range(len(systems)), 2):
        rows = sum(rating.system in (systems[i], systems[j]) for rating in ratings)
        error = clusters.error(100 * (influence[:, i] - influence[:, j]))
        estimate = difference(
            100 * float(rates[i] - rates[j]), error, rows, clusters.method, "points", confidence, (-100, 100)
        )
        found.append(AcceptanceDifference(systems[i], systems[j], estimate))
    return found


def _crossed(ratings: Sequence[DocumentRating]) -> tuple[list[str], Array, Array, Crossed]:
    """Systems, their rates, the influence values (ratings x systems) and the clusters."""
    systems = sorted({rating.system for rating in ratings})
    member = np.array([[rating.system == system for system in systems] for rating in ratings], dtype=np.float64)
    accepted = np.array([rating.accepted for rating in ratings], dtype=np.float64)
    counts = member.sum(axis=0)
    rates = accepted @ member / counts
    influence = member * (accepted[:, None] - rates) / counts
    return systems, rates, influence, Crossed([r.rater for r in ratings], [r.prompt for r in ratings])


def _of_system(
    ratings: Sequence[DocumentRating],
    rank: int,
    rank_interval: tuple[int, int] | None,
    confidence: float,
    scale: tuple[int, int],
) -> Acceptance:
    accepted = np.array([rating.accepted for rating in ratings], dtype=np.float64)
    n, p = accepted.size, float(accepted.mean())
    rate = _rate(ratings, confidence)
    low, high = wilson_interval(float(accepted.sum()), n, confidence)
    effect = None
    if rate.standard_error:
        effect = (rate.standard_error / 100) ** 2 / (p * (1 - p) / n)
    by_document: dict[str, list[bool]] = {}
    by_topic: dict[str, list[DocumentRating]] = {}
    for rating in ratings:
        by_document.setdefault(rating.prompt, []).append(rating.accepted)
        if rating.topic is not None:
            by_topic.setdefault(rating.topic, []).append(rating)
    answers = np.array([rating.answer for rating in ratings], dtype=np.float64)
    clusters = Crossed([rating.rater for rating in ratings], [rating.prompt for rating in ratings])
    error = clusters.error((answers - answers.mean()) / n)
    return Acceptance(
        rate=rate,
        rank=rank,
        rank_interval=rank_interval,
        raters=len({rating.rater for rating in ratings}),
        documents=len(by_document),
        independent=(100 * low, 100 * high),
        design_effect=effect,
        majority=mean_estimate([2 * sum(votes) > len(votes) for votes in by_document.values()], confidence=confidence),
        mean=difference(float(answers.mean()), error, n, clusters.method, "", confidence, scale),
        topics={topic: _rate(by_topic[topic], confidence) for topic in sorted(by_topic)},
    )


def _rate(ratings: Sequence[DocumentRating], confidence: float) -> Estimate:
    accepted = [float(rating.accepted) for rating in ratings]
    return proportion(accepted, [r.rater for r in ratings], [r.prompt for r in ratings], confidence)
