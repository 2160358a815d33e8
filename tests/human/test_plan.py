"""The numbers of a plan: against the paper's study, against simulated votes, and forwards against backwards."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dreambench.cli import main
from dreambench.errors import UsageError
from dreambench.human.design import design_study
from dreambench.human.plan import Assumptions, lines, plan_study

PAPER = 0.6068


@pytest.mark.parametrize(("effect", "expected"), [(1.0, 4.6), (3.0, 8.0)])
def test_the_papers_750_votes(effect: float, expected: float) -> None:
    """150 documents × 5 raters: ± 4.6 points if independent, ± 8.0 at a design effect of 3.

    Both readings of these numbers round to them: the 99 % interval of one rate (60.68 %), and the 95 % interval of its difference
    from the 77.24 % of the reference documents, with as many votes.
    """
    planned = plan_study(
        documents=150, systems=1, confidence=0.99, assumed=Assumptions(PAPER, design_effect=effect)
    ).chosen
    assert (planned.votes, planned.raters, planned.items_per_rater) == (750, 5, 150)
    assert round(100 * planned.half_width, 1) == expected
    halves = [
        plan_study(documents=150, systems=1, assumed=Assumptions(rate, design_effect=effect)).chosen.half_width
        for rate in (PAPER, 0.7724)
    ]
    assert round(100 * math.hypot(*halves), 1) == expected
    # One rate at the usual 95 % is narrower.
    assert round(100 * halves[0], 1) == {1.0: 3.5, 3.0: 6.1}[effect]


@pytest.mark.parametrize("mode", ["rating", "pairwise"])
@pytest.mark.parametrize("wish", [{"half_width": 0.05}, {"difference": 0.08}])
def test_one_document_fewer_would_not_be_enough(mode: str, wish: dict[str, float]) -> None:
    for row in plan_study(mode=mode, systems=3, raters=40, **wish).rows:  # type: ignore[arg-type]
        assert row.documents is not None
        settings = {"systems": 3, "raters": 40, "votes_per_document": row.votes_per_document}
        enough, fewer = (
            plan_study(mode=mode, documents=row.documents - less, **settings).chosen  # type: ignore[arg-type]
            for less in (0, 1)
        )
        assert enough == row
        reached = "half_width" if "half_width" in wish else "detectable"
        (wanted,) = wish.values()
        assert getattr(enough, reached) <= wanted < getattr(fewer, reached)


def test_the_variance_is_that_of_simulated_crossed_votes() -> None:
    """Linear model with the assumed shares; documents × raters as the design of an exported study has them."""
    documents, votes, raters, shares, rng = 30, 3, 6, (0.3, 0.05), np.random.default_rng(0)
    planned = plan_study(
        documents=documents, votes_per_document=votes, assumed=Assumptions(document=shares[0], rater=shares[1])
    ).chosen
    assert planned.raters == raters
    seen = np.zeros((documents, raters), bool)
    for rater, items in enumerate(design_study(documents, ["a", "b"], "rating", raters=raters, votes=2 * votes)):
        for item in items:
            seen[item.prompt, rater] = item.systems == ("a",)
    assert seen.sum() == documents * votes
    repeats = 20_000
    total = 0.25  # p (1 - p)
    effects = [
        rng.normal(0, math.sqrt(total * share), (repeats, n))
        for share, n in zip(shares, (documents, raters), strict=True)
    ]
    rest = rng.normal(0, math.sqrt(total * (1 - sum(shares)) / (documents * votes)), repeats)
    means = effects[0].mean(1) + effects[1] @ (seen.sum(0) / seen.sum()) + rest
    assert means.std() == pytest.approx(planned.half_width / 1.959964, rel=0.03)  # five standard errors of its own
    assert planned.design_effect == pytest.approx(1 + 2 * 0.3 + 14 * 0.05)


def test_a_win_rate_with_ties_has_the_variance_of_half_wins() -> None:
    win, tie = 0.5, 0.2
    values = np.array([1.0] * 50 + [0.5] * 20 + [0.0] * 30)
    assumed = Assumptions(rate=win + tie / 2, ties=tie)
    assert assumed.variance == pytest.approx(values.var())


def test_pairs_share_the_votes_of_a_prompt() -> None:
    """Three systems, three pairs: 300 prompts with 5 votes give each pair 500, as independent votes would."""
    planned = plan_study(mode="pairwise", documents=300, systems=3, assumed=Assumptions(design_effect=1)).chosen
    assert planned.votes == 1500
    assert planned.half_width == pytest.approx(1.959964 * math.sqrt(0.25 / 500))


def test_documents_do_not_make_up_for_raters() -> None:
    planned = plan_study(half_width=0.02, raters=10, assumed=Assumptions(rater=0.05))
    row = planned.chosen
    assert row.documents is None
    assert planned.command is None
    enough = plan_study(half_width=0.02, raters=row.raters_needed, assumed=Assumptions(rater=0.05)).chosen
    almost = plan_study(half_width=0.02, raters=row.raters_needed - 1, assumed=Assumptions(rater=0.05)).chosen
    assert enough.documents is not None
    assert almost.documents is None
    assert f"{row.raters_needed} raters at least" in "\n".join(lines(planned))


def test_the_printed_command_is_one_that_export_accepts() -> None:
    planned = plan_study(half_width=0.05)
    assert planned.command == lines(planned)[-1]
    assert "--raters 16 --votes-per-document 5" in planned.command
    assert plan_study(half_width=0.2).chosen.raters == 10  # two systems, five votes each: a rater sees a prompt once


def test_every_option_of_the_command_reaches_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """Percentages and points of the command are shares in the API."""
    shares = ["--document-share", "0.1", "--rater-share", "0.01", "--confidence", "0.9", "--power", "0.7"]
    votes = ["--rate", "60", "--votes-per-document", "4", "--raters", "30"]
    assumed = Assumptions(0.6, 0.0, 0.1, 0.01)
    settings: dict[str, Any] = {"raters": 30, "votes_per_document": 4, "confidence": 0.9, "power": 0.7}
    wishes: list[tuple[list[str], dict[str, Any]]] = [
        (["--half-width", "5"], {"half_width": 0.05}),
        (["--difference", "8", "--systems", "3"], {"difference": 0.08, "systems": 3}),
        (["--documents", "70"], {"documents": 70}),
        (["--mode", "pairwise", "--difference", "9", "--ties", "10"], {"mode": "pairwise", "difference": 0.09}),
    ]
    for words, wish in wishes:
        guess = replace(assumed, ties=0.1) if "--ties" in words else assumed
        with pytest.raises(SystemExit) as left:
            main(["human", "plan", *votes, *shares, *words])
        assert left.value.code == 0
        assert capsys.readouterr().out.splitlines() == lines(plan_study(**settings, **wish, assumed=guess))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give one of"),
        ({"half_width": 0.05, "documents": 10}, "give one of"),
        ({"half_width": 5.0}, "between 0 and 100 points"),
        ({"half_width": 0.0}, "between 0 and 100 points"),
        ({"difference": 0.0}, "between 0 and 100 points"),
        ({"half_width": 0.05, "assumed": Assumptions(design_effect=float("nan"))}, "design-effect"),
        ({"half_width": 0.05, "assumed": Assumptions(rater=float("nan"))}, "1 together"),
        ({"half_width": 0.05, "raters": 9}, "need 10 raters at least"),
        ({"half_width": 0.05, "assumed": Assumptions(rater=0.9, document=0.2)}, "1 together"),
        ({"half_width": 0.05, "assumed": Assumptions(ties=0.1)}, "not possible"),
        ({"half_width": 0.05, "mode": "pairwise", "systems": 1}, "too few"),
    ],
)
def test_impossible_wishes_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_study(**arguments)  # type: ignore[arg-type]
