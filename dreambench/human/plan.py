"""How many documents, raters and votes a study needs, with raters and documents crossed.

A vote's variance p (1 - p) has three parts: the share of the document (some are better), the share of the rater (some accept more), and
the rest. D documents of a system, each with s of its votes, from R raters give a rate the variance

    p (1 - p) (document / D + rater / R + rest / (D s)) = p (1 - p) / (D s) * design effect,
    design effect = 1 + (s - 1) document + (D s / R - 1) rater

(Kish 1965 for either part alone). More documents do not make up for too few raters: rater / R stays. In a pairwise study the rate is a
pair's win rate, with a tie as half a win, whose variance is p (1 - p) - ties / 4. Normal approximation throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from dreambench.errors import UsageError
from dreambench.human.design import Mode
from dreambench.statistics import normal_quantile

__all__ = ["Assumptions", "Plan", "Row", "lines", "plan_study"]

VOTES = (1, 2, 3, 5, 10)
"""Votes for each document that a table compares."""


@dataclass(frozen=True)
class Assumptions:
    """What must be guessed before a study, or known from a pilot. Shares are fractions of the variance of a vote.

    `design_effect` replaces the shares: the squared ratio of a standard error to that of independent votes.
    """

    rate: float = 0.5
    ties: float = 0.0
    document: float = 0.2
    rater: float = 0.02
    design_effect: float | None = None

    @property
    def variance(self) -> float:
        return self.rate * (1 - self.rate) - self.ties / 4


@dataclass(frozen=True)
class Row:
    """A study. `documents` is None where no number of them is enough; then `raters_needed` says how many raters would be.

    `half_width` is that of a rate, `difference_half_width` that of the difference of two systems' rates; `detectable` is the true
    difference (pairwise: from one half) that is found with the wanted power. All are fractions.
    """

    votes_per_document: int
    raters: int
    documents: int | None
    votes: int = 0
    items_per_rater: float = 0.0
    design_effect: float = 0.0
    half_width: float = 0.0
    difference_half_width: float = 0.0
    detectable: float = 0.0
    raters_needed: int = 0


@dataclass(frozen=True)
class Plan:
    """Rows for several numbers of votes for each document, and the command that exports the study of the chosen one."""

    mode: Mode
    rows: list[Row]
    chosen: Row
    confidence: float
    power: float
    assumed: Assumptions

    @property
    def command(self) -> str | None:
        if self.chosen.documents is None:
            return None
        mode = " --mode pairwise" if self.mode == "pairwise" else ""
        return (
            f"dreambench human export RUN...{mode} --documents {self.chosen.documents} --raters {self.chosen.raters} "
            f"--votes-per-document {self.chosen.votes_per_document} --out study"
        )


def plan_study(
    *,
    mode: Mode = "rating",
    half_width: float | None = None,
    difference: float | None = None,
    documents: int | None = None,
    systems: int = 2,
    raters: int | None = None,
    votes_per_document: int = 5,
    assumed: Assumptions | None = None,
    confidence: float = 0.95,
    power: float = 0.8,
) -> Plan:
    """The fewest documents for a wanted precision, or the precision of a number of documents.

    Args:
        half_width: wanted half-width of the interval of a rate, as a fraction.
        difference: difference of two systems' rates (pairwise: of a win rate from one half) to be found with `power`.
        documents: instead of a wish, the number of prompts.
        systems: number of systems, the references among them.
        raters: default: the fewest that `dreambench human export` allows and that leave half of the wanted variance to documents.
        votes_per_document: as there: votes for each document; pairwise: for each prompt.

    Raises:
        UsageError: not exactly one of the first three is given, or a number is out of its range.
    """
    assumed = assumed or Assumptions()
    _require(mode, half_width, difference, documents, systems, assumed, confidence, power)
    planner = _Planner(mode, systems, assumed, confidence, power)
    compared = [votes_per_document] if documents else sorted({*VOTES, votes_per_document})
    rows: list[Row] = []
    for votes in compared:
        fewest = votes * (systems if mode == "rating" else 1)
        if raters is not None and raters < fewest:
            if votes != votes_per_document:
                continue
            raise UsageError(
                f"--raters {raters}: a rater sees a prompt once, so {votes} votes for each need {fewest} raters at least"
            )
        rows.append(planner.row(votes, fewest, raters, documents, half_width, difference))
    chosen = next(row for row in rows if row.votes_per_document == votes_per_document)
    return Plan(mode, rows, chosen, confidence, power, assumed)


def _require(
    mode: Mode,
    half_width: float | None,
    difference: float | None,
    documents: int | None,
    systems: int,
    assumed: Assumptions,
    confidence: float,
    power: float,
) -> None:
    wishes = [half_width, difference, documents]
    if sum(wish is not None for wish in wishes) != 1:
        raise UsageError("give one of --half-width, --difference and --documents")
    if systems < (2 if mode == "pairwise" else 1):
        raise UsageError(f"--systems {systems}: too few for --mode {mode}")
    wished = [wish for wish in (half_width, difference) if wish is not None]
    if not all(0 < number < 1 for number in (*wished, assumed.rate, confidence, power)):
        raise UsageError(
            "a rate, a half-width or a difference lies between 0 and 100 points, confidence and power between 0 and 1"
        )
    if not (assumed.document >= 0 and assumed.rater >= 0 and assumed.document + assumed.rater <= 1):  # nor NaN
        raise UsageError("--document-share and --rater-share are fractions of the variance, 1 together at most")
    if not assumed.variance > 0 or (assumed.ties and mode == "rating"):
        raise UsageError(
            f"--ties {assumed.ties:.0%} is not possible with a rate of {assumed.rate:.0%} in --mode {mode}"
        )
    if assumed.design_effect is not None and not 0 < assumed.design_effect < math.inf:
        raise UsageError("--design-effect must be a number above 0; it is 1 for independent votes")


@dataclass(frozen=True)
class _Planner:
    mode: Mode
    systems: int
    assumed: Assumptions
    confidence: float
    power: float

    def row(
        self,
        votes: int,
        fewest: int,
        raters: int | None,
        documents: int | None,
        half_width: float | None,
        difference: float | None,
    ) -> Row:
        conditions = 1 if self.mode == "rating" else math.comb(self.systems, 2)
        spread = votes / conditions  # votes for each prompt and condition
        z = normal_quantile(self.confidence)
        found = z + NormalDist().inv_cdf(self.power)
        pair = math.sqrt(2) if self.mode == "rating" else 1.0
        assumed = self.assumed
        document, rater, rest = assumed.document, assumed.rater, 1 - assumed.document - assumed.rater
        if assumed.design_effect is not None:
            document, rater, rest = 0.0, 0.0, assumed.design_effect
        # A condition is shown with all prompts, or with a part of them where votes are fewer than conditions.
        falling = document / min(1.0, spread) + rest / spread
        if documents is None:
            error = half_width / z if half_width is not None else (difference or 0.0) / found / pair
            wanted = error**2 / assumed.variance
            raters = raters or max(fewest, math.ceil(2 * rater / wanted))
            if wanted <= rater / raters:
                return Row(votes, raters, None, raters_needed=math.floor(rater / wanted) + 1)
            documents = math.ceil(falling / (wanted - rater / raters) * (1 - 1e-12))
        raters = raters or fewest
        fixed = rater / raters
        error = math.sqrt(assumed.variance * (fixed + falling / documents))
        total = documents * votes * (self.systems if self.mode == "rating" else 1)
        return Row(
            votes,
            raters,
            documents,
            total,
            total / raters,
            (fixed + falling / documents) * documents * spread,
            z * error,
            z * error * math.sqrt(2),
            found * error * pair,
        )


def lines(plan: Plan) -> list[str]:
    """The plan as a table for the terminal, in points."""
    documents = "documents of a system" if plan.mode == "rating" else "prompts"
    rate = "rate" if plan.mode == "rating" else "win rate"
    head = ["votes each", "raters", documents, "votes", "items per rater", "design effect", f"± {rate}"]
    head += ["± difference"] if plan.mode == "rating" else []
    head += [f"found with {plan.power:.0%}"]
    cells = [head, *(_cells(row, plan.mode) for row in plan.rows)]
    widths = [max(len(row[column]) for row in cells if len(row) == len(head)) for column in range(len(head))]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        if len(row) == len(head)
        else "  ".join([row[0].rjust(widths[0]), row[1].rjust(widths[1]), row[2]])
        for row in cells
    ]
    assumed = plan.assumed
    effect = (
        f"shares of the variance: document {assumed.document:g}, rater {assumed.rater:g}"
        if assumed.design_effect is None
        else f"design effect {assumed.design_effect:g}"
    )
    ties = f", ties {100 * assumed.ties:g} %" if assumed.ties else ""
    assumptions = f"assumed: {rate} {100 * assumed.rate:g} %{ties}; {effect}; intervals of {100 * plan.confidence:g} %"
    return [*table, assumptions, *([plan.command] if plan.command else [])]


def _cells(row: Row, mode: Mode) -> Sequence[str]:
    if row.documents is None:
        return [str(row.votes_per_document), str(row.raters), f"never enough: {row.raters_needed} raters at least"]
    points = [row.half_width, *([row.difference_half_width] if mode == "rating" else []), row.detectable]
    return [
        str(row.votes_per_document),
        str(row.raters),
        str(row.documents),
        str(row.votes),
        f"{row.items_per_rater:.0f}",
        f"{row.design_effect:.2f}",
        *(f"{100 * value:.1f}" for value in points),
    ]
