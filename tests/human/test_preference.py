"""Strengths: R's values, planted values, and the cases that have no maximum."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from dreambench.human.crossed import Crossed
from dreambench.human.preference import Fit, fit, pair_rates, rater_care, strengths, win_rates
from dreambench.human.votes import Vote

RECORDED = Path(__file__).parent / "recorded"
R = json.loads((RECORDED / "r_values.json").read_text())
PLANTED = {"w": 0.9, "x": 0.3, "y": -0.3, "z": -0.9}


def r_votes() -> list[Vote]:
    with (RECORDED / "r_votes.csv").open() as file:
        return [Vote(str(k), v["a"], v["b"], v["winner"], "", "a") for k, v in enumerate(csv.DictReader(file))]


def simulated(seed: int, raters: dict[str, float], prompts: int, *, order: float = 0.0, tie: float = 0.3) -> list[Vote]:
    """Votes by Davidson's model; each rater, of the given care, compares two systems for each prompt."""
    rng = np.random.default_rng(seed)
    names = list(PLANTED)
    votes: list[Vote] = []
    for rater, care in raters.items():
        for prompt in range(prompts):
            a, b = rng.permutation(names)[:2].tolist()
            eta = care * (PLANTED[a] - PLANTED[b]) + order
            weights = np.array([math.exp(eta), tie * math.exp(eta / 2), 1])
            vote = rng.choice(["a", "tie", "b"], p=weights / weights.sum())
            votes.append(Vote(f"p{prompt}", a, b, str(vote), rater, "a"))
    return votes


def fitted(votes: list[Vote], *arguments: str, **options: bool) -> Fit:
    found = fit(votes, *arguments, **options)  # type: ignore[arg-type]
    assert isinstance(found, Fit), found
    return found


@pytest.mark.parametrize(
    ("name", "ties", "position"),
    [("bradley_terry", "drop", False), ("bradley_terry_order", "drop", True), ("davidson_order", "davidson", True)],
)
def test_strengths_order_effect_ties_and_errors_are_those_of_r(name: str, ties: str, position: bool) -> None:
    found = fitted(r_votes(), ties, position=position)
    terms = [t for t in (found.position, found.tie) if t is not None]
    ours = [*(found.strengths - found.strengths[0])[1:], *terms]
    assert ours == pytest.approx(list(R[name]["coefficients"].values()), abs=1e-6)
    # R's errors are those of the iteration before its last.
    assert np.sqrt(np.diag(found.inverse_information)) == pytest.approx(list(R[name]["errors"].values()), abs=5e-5)


def test_a_cumulative_link_model_of_ties_orders_the_systems_as_davidson_does() -> None:
    found = fitted(r_votes(), "davidson", position=True)
    other = np.array([0.0, *(R["cumulative_link"]["coefficients"][f"s{k}"] for k in (1, 2, 3))])
    assert np.argsort(other).tolist() == np.argsort(found.strengths).tolist()
    assert np.corrcoef(other, found.strengths)[0, 1] > 0.999


def test_planted_strengths_and_order_lie_within_their_intervals() -> None:
    votes = simulated(3, dict.fromkeys("abcdefgh", 1.0), 60, order=0.4)
    table, position = strengths(fitted(votes, "davidson", position=True))
    assert list(table) == ["w", "x", "y", "z"]
    for rank, (system, planted) in enumerate(PLANTED.items(), 1):
        low, high = table[system].estimate.interval or (0, 0)
        assert low < planted < high
        assert table[system].rank == rank
        assert table[system].rank_interval is not None
        assert table[system].rank_interval[0] <= rank <= table[system].rank_interval[1]
    assert position is not None
    assert position.interval is not None
    assert position.interval[0] < 0.4 < position.interval[1]


def test_intervals_of_strengths_cover_when_raters_differ() -> None:
    """A small version of the simulation in docs/human.md: raters prefer systems of their own, which few raters average badly."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(60):
        votes: list[Vote] = []
        for rater in range(6):
            taste = {name: value + rng.normal(0, 0.5) for name, value in PLANTED.items()}
            for prompt in range(40):
                a, b = rng.permutation(list(PLANTED))[:2].tolist()
                wins = rng.random() < 1 / (1 + math.exp(taste[b] - taste[a]))
                votes.append(Vote(str(prompt), a, b, "a" if wins else "b", str(rater), "a"))
        low, high = strengths(fitted(votes, "half"))[0]["x"].estimate.interval or (0, 0)
        hits += low < 0.28 < high  # tastes shrink the mean strengths a little
    assert hits >= 51  # 85 %: three standard errors below 95 %


@pytest.mark.parametrize("ties", ["davidson", "half", "drop"])
def test_a_system_that_never_lost_has_no_strength_and_is_named(ties: str) -> None:
    votes = [
        Vote("p", "best", "x", "a"),
        Vote("q", "x", "y", "a"),
        Vote("r", "y", "x", "a"),
        Vote("s", "x", "y", "tie"),
    ]
    assert fit(votes, ties) == "best never lost to x, y"  # type: ignore[arg-type]
    with_worst = [*votes, Vote("p", "x", "worst", "a")]
    assert fit(with_worst, ties) == "best never lost to worst, x, y; worst never won against best, x, y"  # type: ignore[arg-type]


def test_a_tie_bounds_strengths_only_where_it_counts_as_half_a_win() -> None:
    """With ties of their own probability, a system that won and tied becomes better without end, and ties with it more likely."""
    votes = [Vote("p", "x", "y", "a"), Vote("q", "x", "y", "tie")]
    assert np.diff(fitted(votes, "half").strengths) == pytest.approx(-math.log(3))  # 1.5 wins to 0.5
    assert fit(votes, "davidson") == fit(votes, "drop") == "x never lost to y"


def test_which_system_was_shown_first_changes_the_sign_of_the_position() -> None:
    assert [Vote("p", "x", "y", "a", "", position).first for position in ("a", "b", "")] == [1, -1, 0]
    votes = simulated(3, {"u": 1.0}, 200, order=0.8)
    turned = [dataclasses.replace(vote, position="b") for vote in votes]
    one, other = (fitted(some, "half", position=True) for some in (votes, turned))
    assert one.position is not None
    assert one.position > 0.3
    assert other.position == pytest.approx(-one.position)


def test_systems_that_were_never_compared_are_named() -> None:
    votes = [Vote("p", "a", "b", "a"), Vote("p", "b", "a", "a"), Vote("p", "c", "d", "a"), Vote("p", "d", "c", "a")]
    assert fit(votes, "half") == "no vote connects a, b with c, d"


def test_a_position_that_cannot_be_told_from_the_strengths_is_said() -> None:
    votes = [Vote("p", "a", "b", vote, "", "a") for vote in "aabbb"]
    assert "position" in str(fit(votes, "half", position=True))
    always_first = [Vote("p", a, b, "a", "", "a") for a, b in ("xy", "yx", "xy")]
    assert "without end" in str(fit(always_first, "half", position=True))


def test_only_ties_is_said_and_no_ties_need_no_tie_term() -> None:
    ties = [Vote("p", "a", "b", "both_bad")]
    assert fit(ties, "davidson") == "every vote is a tie"
    assert fit(ties, "drop") == "there is no vote that is not a tie"
    votes = [Vote("p", "a", "b", vote) for vote in "aab"]
    assert fitted(votes, "davidson").tie is None
    assert fitted(votes, "half").strengths[0] == pytest.approx(math.log(2) / 2)


def test_careless_raters_get_little_care_and_strengths_grow_sharper() -> None:
    raters = dict.fromkeys("abcde", 2.0) | dict.fromkeys("yz", 0.0)
    votes = simulated(2, raters, 80)
    care = rater_care(votes, "davidson", position=False)
    assert max(care["y"], care["z"]) < 0.5 * min(care[name] for name in "abcde")
    weighted = fit(votes, "davidson", care=care)
    assert isinstance(weighted, Fit)
    assert np.ptp(weighted.strengths) > np.ptp(fitted(votes, "davidson").strengths)


def test_win_rates_count_a_tie_as_half_a_win_wherever_the_system_stood() -> None:
    votes = [Vote("p", "a", "b", "a"), Vote("q", "b", "a", "a"), Vote("r", "b", "a", "tie"), Vote("s", "b", "a", "b")]
    rate = win_rates(votes)["a"]
    assert (rate.wins, rate.ties, rate.games, rate.estimate.value) == (2, 1, 4, 62.5)
    (pair,) = pair_rates(votes)
    assert (pair.system_a, pair.rate) == ("a", rate)


def test_an_error_by_raters_and_prompts_is_more_than_by_either() -> None:
    raters, prompts = [str(k % 4) for k in range(80)], [str(k // 4) for k in range(80)]
    effects = np.array([int(r) - 1.5 for r in raters]) + np.array([int(p) - 9.5 for p in prompts])
    both = Crossed(raters, prompts).error(effects)
    one = Crossed(raters, ["p"] * 80).error(effects)
    assert both is not None
    assert one is not None
    assert both.standard_error > one.standard_error
    assert Crossed(["r"], ["p"]).error(np.zeros(1)) is None
