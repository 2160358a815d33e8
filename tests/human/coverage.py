"""How often intervals of 95 % hold the truth: the tables of docs/human.md. ``python tests/human/coverage.py [TRIALS]``.

Raters have a leniency and documents a quality, both normal on the logit scale; the truth is the mean over all raters and documents.
Beside our interval stands the percentile bootstrap that resamples raters and documents (Owen's pigeonhole bootstrap).
"""

from __future__ import annotations

import math
import sys

import numpy as np

from dreambench.human.crossed import proportion
from dreambench.human.preference import Fit, fit, strengths
from dreambench.human.votes import Vote

STUDIES = [(5, 150, 5), (12, 60, 12), (12, 60, 3), (3, 50, 3)]
SPREADS = [(0.0, 1.0), (0.3, 1.0), (0.8, 1.0), (1.2, 1.5)]
BOOTSTRAP = 400


def logistic(x):
    return 1 / (1 + np.exp(-x))


def assigned(raters, documents, votes, rng):
    """The rater and the document of each vote: `votes` raters for each document, as evenly as possible."""
    numbers = np.add.outer(rng.permutation(documents), np.arange(votes)) % raters
    return numbers.ravel(), np.repeat(np.arange(documents), votes)


def bootstrap(accepted, rater, document, raters, documents, rng):
    scores, seen = np.zeros((raters, documents)), np.zeros((raters, documents))
    scores[rater, document], seen[rater, document] = accepted, 1
    draws = [rng.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP).astype(float) for n in (raters, documents)]
    sums, counts = (((draws[0] @ table) * draws[1]).sum(axis=1) for table in (scores, seen))
    return np.quantile(100 * sums / np.maximum(counts, 1), [0.025, 0.975])


def acceptance(trials):
    print(
        "| raters | documents | votes per document | spread of raters, documents | true rate | half-width | coverage | bootstrap |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(20231)
    normal = rng.normal(size=400_000)
    for raters, documents, votes in STUDIES:
        for mean in (0.43, 2.2):
            for of_raters, of_documents in SPREADS:
                truth = 100 * logistic(mean + math.hypot(of_raters, of_documents) * normal).mean()
                hits, plain, width = 0, 0, 0.0
                for _ in range(trials):
                    rater, document = assigned(raters, documents, votes, rng)
                    leniency, quality = rng.normal(0, of_raters, raters), rng.normal(0, of_documents, documents)
                    accepted = (rng.random(rater.size) < logistic(mean + leniency[rater] + quality[document])).astype(
                        float
                    )
                    low, high = proportion(accepted, rater.tolist(), document.tolist()).interval
                    hits += low <= truth <= high
                    width += (high - low) / 2 / trials
                    low, high = bootstrap(accepted, rater, document, raters, documents, rng)
                    plain += low <= truth <= high
                print(
                    f"| {raters} | {documents} | {votes} | {of_raters}, {of_documents} | {truth:.1f} % | {width:.1f} |"
                    f" {100 * hits / trials:.1f} % | {100 * plain / trials:.1f} % |",
                    flush=True,
                )


def preference(trials):
    print(
        "\n| raters | prompts per rater | spread of tastes | coverage of strengths | of rank intervals |\n|---|---|---|---|---|"
    )
    rng, planted = np.random.default_rng(20232), np.array([0.6, 0.1, -0.1, -0.6])
    for raters, prompts, taste in ((6, 40, 0.0), (6, 40, 0.4), (12, 60, 0.4)):
        # Differing tastes shrink the strengths of the average rater; one study of very many raters shows by how much.
        truth = np.array([row.estimate.value for row in study(rng, planted, 1500, 60, taste).values()])
        hits = ranked = total = 0
        for _ in range(trials // 4):
            for k, row in enumerate(study(rng, planted, raters, prompts, taste).values()):
                low, high = row.estimate.interval
                hits += low <= truth[k] <= high
                ranked += row.rank_interval[0] <= k + 1 <= row.rank_interval[1]
                total += 1
        print(
            f"| {raters} | {prompts} | {taste} | {100 * hits / total:.1f} % | {100 * ranked / total:.1f} % |",
            flush=True,
        )


def study(rng, planted, raters, prompts, taste):
    """Strengths by system, in the order of the planted ones, of votes by Davidson's model with an order effect of 0.3."""
    votes = []
    for rater in range(raters):
        own = planted + rng.normal(0, taste, len(planted))
        for prompt in range(prompts):
            a, b = rng.permutation(len(planted))[:2]
            weights = np.exp([own[a] - own[b] + 0.3, (own[a] - own[b] + 0.3) / 2 - 1, 0])
            vote = ("a", "tie", "b")[int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random()))]
            votes.append(Vote(str(prompt), str(a), str(b), vote, str(rater), "a"))
    found = fit(votes, "davidson", position=True)
    assert isinstance(found, Fit), found
    return dict(sorted(strengths(found)[0].items()))


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    acceptance(number)
    preference(number)
