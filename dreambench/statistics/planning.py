"""How many questions a comparison needs, and what a number of questions can show (Miller 2024, section 5).

The variance of a paired difference of one question has two parts: `between`, the variance over questions of the true difference, and
`within_a`, `within_b`, the variance of one answer's score given the question, divided by the number of answers drawn per question.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dreambench.statistics.intervals import Clusters, as_scores, cluster_codes, normal_quantile


def required_questions(
    effect: float,
    between: float,
    within_a: float = 0.0,
    within_b: float = 0.0,
    *,
    answers_a: int = 1,
    answers_b: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Questions needed to detect a true difference `effect` (two-sided level `alpha`); Miller (2024), equation 9. Not rounded.

    Raises:
        ValueError: the effect is 0, which no number of questions can show.
    """
    if effect == 0:
        raise ValueError("no number of questions shows an effect of 0")
    variance = _variance(between, within_a, within_b, answers_a, answers_b)
    return (_z(alpha, power) / effect) ** 2 * variance


def minimum_detectable_effect(
    n: int,
    between: float,
    within_a: float = 0.0,
    within_b: float = 0.0,
    *,
    answers_a: int = 1,
    answers_b: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest true difference that `n` questions detect with the given power; the inverse of `required_questions`."""
    if n < 1:
        raise ValueError(f"{n} questions")
    return _z(alpha, power) * math.sqrt(_variance(between, within_a, within_b, answers_a, answers_b) / n)


def power(effect: float, standard_error: float, *, alpha: float = 0.05) -> float:
    """The chance that a two-sided z test at level `alpha` finds a true difference measured with this standard error."""
    if standard_error <= 0:
        raise ValueError(f"a standard error of {standard_error}")
    shift, critical = abs(effect) / standard_error, normal_quantile(1 - alpha)
    return NormalDist().cdf(shift - critical) + NormalDist().cdf(-shift - critical)


def question_means(scores: ArrayLike, questions: Clusters) -> NDArray[np.float64]:
    """The mean score of each question over its repeated answers, in order of first appearance or of sorted ids (arrays).

    Their mean with a plain standard error is the clustered analysis when every question has as many answers.
    """
    values = as_scores(scores)
    codes = cluster_codes(questions, values.size)
    return np.bincount(codes, weights=values) / np.bincount(codes)


def variance_components(scores: ArrayLike, questions: Clusters) -> tuple[float, float]:
    """(variance of the questions' means, mean variance within a question) of repeated answers; both with ddof 1.

    Raises:
        ValueError: fewer than two questions, or a question with a single answer, which has no variance within.
    """
    values = as_scores(scores)
    codes = cluster_codes(questions, values.size)
    sizes = np.bincount(codes)
    if len(sizes) < 2 or sizes.min() < 2:
        raise ValueError("variance components need at least two questions with at least two answers each")
    means = np.bincount(codes, weights=values) / sizes
    within = np.bincount(codes, weights=(values - means[codes]) ** 2) / (sizes - 1)
    return float(means.var(ddof=1)), float(within.mean())


def _variance(between: float, within_a: float, within_b: float, answers_a: int, answers_b: int) -> float:
    if min(between, within_a, within_b) < 0 or min(answers_a, answers_b) < 1:
        raise ValueError("variances must not be negative, and there is at least one answer per question")
    return between + within_a / answers_a + within_b / answers_b


def _z(alpha: float, power: float) -> float:
    return normal_quantile(1 - alpha) + NormalDist().inv_cdf(power)
