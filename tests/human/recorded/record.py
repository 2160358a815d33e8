"""Record values of other packages, as ``expected_*.json`` and in ``ppi.json``, beside the inputs that this script draws as well.

    uv pip install krippendorff==0.9.0 statsmodels==0.15.0 scikit-learn==1.9.1 choix==0.4.1 ppi-python==0.2.3 && python record.py

The format is that of ``golden/scores/agreement``. ``r_votes.csv``, written here too, is the input of ``r_values.R``.
"""

import csv
import json
import math
import random
from pathlib import Path

import choix
import krippendorff
import numpy as np
from ppi_py import ppi_mean_ci, ppi_mean_pointestimate
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa
from statsmodels.stats.proportion import proportion_confint

HERE = Path(__file__).parent
RNG = random.Random(10)


def write(name, value):
    (HERE / name).write_text(json.dumps(value, indent=1) + "\n")


def rated(raters, items, levels, spread, missing=0.0):
    truth = [RNG.uniform(1, levels) for _ in range(items)]
    return [
        [
            None if RNG.random() < missing else min(levels, max(1, round(value + RNG.gauss(0, spread))))
            for value in truth
        ]
        for _ in range(raters)
    ]


def rating_values(entry):
    array, levels = np.array(entry["ratings"], dtype=float), entry["levels"]
    found = {
        "krippendorff": {
            metric: krippendorff.alpha(array, level_of_measurement=metric, value_domain=list(range(1, levels + 1)))
            for metric in ("nominal", "ordinal", "interval", "ratio")
        },
        "cohen_pairwise": {},
    }
    if not np.isnan(array).any():
        table = aggregate_raters(array.T.astype(int), n_cat=None)[0]
        if table.shape[1] == levels:
            found["fleiss_kappa"] = fleiss_kappa(table, "fleiss")
            found["randolph_kappa"] = fleiss_kappa(table, "randolph")
    for i in range(len(array)):
        for j in range(i + 1, len(array)):
            both = ~np.isnan(array[[i, j]]).any(axis=0)
            a, b = array[i, both].astype(int), array[j, both].astype(int)
            labels = list(range(1, levels + 1))
            found["cohen_pairwise"][f"{i}-{j}"] = {
                "n": int(both.sum()),
                **{
                    name: cohen_kappa_score(a, b, labels=labels, weights=weights)
                    for name, weights in (("unweighted", None), ("linear", "linear"), ("quadratic", "quadratic"))
                },
                "observed_agreement": float((a == b).mean()),
            }
    accepted = int(np.nansum(array >= (lowest := levels // 2 + 1 + levels % 2)))
    n = int((~np.isnan(array)).sum())
    found["acceptance"] = {
        "threshold_ge": lowest,
        "accepted": accepted,
        "n": n,
        "rate": accepted / n,
        "wilson": proportion_confint(accepted, n, method="wilson"),
    }
    return found


def voted(systems, strengths, n, tie, order):
    votes = []
    for _ in range(n):
        a, b = RNG.sample(systems, 2)
        eta = strengths[a] - strengths[b] + order
        weights = [math.exp(eta), tie * math.exp(eta / 2), 1]
        votes.append({"a": a, "b": b, "winner": RNG.choices(["a", "tie", "b"], weights)[0]})
    return votes


def vote_values(entry):
    systems = entry["models"]
    found = {}
    for name, half in (("BT_ties_dropped", False), ("BT_ties_half_win", True)):
        games = []
        for vote in entry["votes"]:
            a, b = systems.index(vote["a"]), systems.index(vote["b"])
            won, lost = (b, a) if vote["winner"] == "b" else (a, b)
            if half:
                games += [(a, b), (b, a)] if vote["winner"] == "tie" else [(won, lost)] * 2
            elif vote["winner"] != "tie":
                games.append((won, lost))
        try:
            found[f"{name}_alpha0_ilsr_logstrength_mean0"] = choix.ilsr_pairwise(
                len(systems), games, alpha=0.0, tol=1e-12
            ).tolist()
        except ValueError as error:
            found[f"{name}_alpha0_ilsr_logstrength_mean0"] = f"ERROR ValueError: {error}"
    return found


def ppi_values(labelled, others, copying, ties):
    levels = [0.0, 0.5, 1.0] if ties else [0.0, 1.0]
    truth = [RNG.choice(levels) for _ in range(labelled)]
    judged = [value if RNG.random() < copying else RNG.choice(levels) for value in truth]
    rest = [RNG.choice([*levels, 1.0]) for _ in range(others)]
    arrays = [np.array(values) for values in (truth, judged, rest)]
    cases = {}
    for name, lam in (("tuned", None), ("1", 1.0), ("0", 0.0)):
        low, high = ppi_mean_ci(*arrays, alpha=0.05, lam=lam)
        cases[name] = {
            "value": float(np.ravel(ppi_mean_pointestimate(*arrays, lam=lam))[0]),
            "interval": [low[0], high[0]],
        }
    return {"labels": truth, "judged": judged, "judged_only": rest, "expected": cases}


def main():
    ratings = [
        {"name": "5pt", "levels": 5, "ratings": rated(4, 30, 5, 1.0)},
        {"name": "4pt_missing", "levels": 4, "ratings": rated(5, 40, 4, 0.8, 0.4)},
        {"name": "binary", "levels": 2, "ratings": rated(3, 40, 2, 0.4)},
    ]
    strengths = {"s0": 0.8, "s1": 0.1, "s2": -0.2, "s3": -0.7}
    systems = list(strengths)
    undefeated = [vote for vote in voted(systems[:3], strengths, 40, 0, 0) if "s0" not in (vote["a"], vote["b"])]
    undefeated += [{"a": "s0", "b": "s1", "winner": "a"}, {"a": "s2", "b": "s0", "winner": "b"}]
    votes = [
        {"name": "ties", "models": systems, "votes": voted(systems, strengths, 200, 0.5, 0.4)},
        {"name": "no_ties", "models": systems, "votes": voted(systems, strengths, 120, 0, 0)},
        {"name": "never_lost", "models": systems[:3], "votes": undefeated},
    ]
    write("ratings.json", ratings)
    write("pairwise_votes.json", votes)
    write("expected_ratings.json", {entry["name"]: rating_values(entry) for entry in ratings})
    write("expected_pairwise.json", {entry["name"]: vote_values(entry) for entry in votes})
    write(
        "ppi.json", [ppi_values(*case) for case in ((60, 400, 0.8, False), (25, 300, 0.3, True), (40, 50, 1.0, True))]
    )
    with (HERE / "r_votes.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["a", "b", "winner"])
        table.writerows([vote["a"], vote["b"], vote["winner"]] for vote in votes[0]["votes"])


if __name__ == "__main__":
    main()
