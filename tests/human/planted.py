"""A study whose truth is known: three systems in a planted order, and twelve raters of whom two do not look.

A rater's answer depends on rater and item alone, so that a page, a server of another make and a list give the same study.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from human.runs import make_run, samples

from dreambench.cli import main
from dreambench.documents import Document, Text
from dreambench.human.design import Mode
from dreambench.human.export import export_study
from dreambench.human.study import Item, Question, Rater, Study
from dreambench.requests import sample_seed

GOOD = {"falcon": 0.85, "heron": 0.55, "magpie": 0.2}
"""By system: how many of its documents are good."""
STRENGTHS = {"falcon": 1.0, "heron": 0.0, "magpie": -1.0}
"""By system: the logit of winning a comparison is a difference of these."""
TIES = 0.15
CARE = (1.0, 1.0, 0.95, 0.95, 0.95, 0.9, 0.9, 0.9, 0.85, 0.85, 0.0, 0.0)
"""By rater: how often the answer is the rater's own and no coin's."""
INATTENTIVE, PRETENDER = "rater-11", "rater-12"
"""Neither looks at documents; the second one answers the attention checks right."""


def export(folder: Path, mode: Mode = "rating", prompts: int = 36, hostile: Sequence[str] = ()) -> Study:
    """The study, in the folder ``study``; each rater sees each prompt once. The first documents are `hostile` texts."""
    some = [
        sample
        for sample in samples(folder / "data", prompts)
        if sample.id.endswith("/0") and sample.id.startswith("free")
    ]
    bad: dict[str, Document] = {sample.id: (Text(text),) for sample, text in zip(some, hostile, strict=False)}
    runs = [make_run(folder / "runs", system, some, documents=bad) for system in GOOD]
    votes = len(CARE) // len(GOOD) if mode == "rating" else len(CARE)
    export_study(runs, folder / "study", mode=mode, raters=12, votes_per_document=votes, attention=3, repeats=4)
    return Study.read(folder / "study")


def chance(*label: str) -> float:
    """A number in [0, 1) that belongs to the label."""
    return sample_seed(0, " ".join(label)) % 1_000_003 / 1_000_003


def care(rater: Rater) -> float:
    return CARE[int(rater.id.removeprefix("rater-")) - 1]


def is_good(system: str, prompt: str) -> bool:
    return chance("good", system, prompt) < GOOD[system]


def answer(rater: Rater, item: Item, question: Question, place: int, *, ties: bool = True) -> int | str:
    """What the rater answers at that place of the list. Somebody who looks gives a repeated item the same answer."""
    if item.purpose == "training" or (item.purpose == "attention" and rater.id != INATTENTIVE):
        return item.expected[question.id]
    options: list[int | str] = [0, 1] if question.kind == "accept" else ["a", "b"]
    if item.purpose == "attention":
        return next(option for option in options if option != item.expected[question.id])
    if chance("care", rater.id, item.prompt) >= care(rater):
        return options[int(chance("coin", rater.id, str(place)) < 0.5)]
    if question.kind == "accept":
        return int(is_good(item.systems[0], item.prompt))
    first, second = (STRENGTHS[system] for system in item.systems)
    if ties and chance("tie", rater.id, item.prompt) < TIES:
        return "tie"
    return "a" if chance("vote", rater.id, item.prompt) < 1 / (1 + math.exp(second - first)) else "b"


def expected_score(rater: Rater, item: Item, system: str, *, ties: bool = True) -> float:
    """The mean of the rater's score for the system: accepted, or won with ties as half a win; over coins, votes and ties."""
    own, coin = care(rater), 1 - care(rater)
    if len(item.systems) == 1:
        return own * is_good(system, item.prompt) + coin / 2
    other = next(name for name in item.systems if name != system)
    wins = 1 / (1 + math.exp(STRENGTHS[other] - STRENGTHS[system]))
    tie = TIES if ties else 0.0
    return own * ((1 - tie) * wins + tie / 2) + coin / 2


def check_analysis(folder: Path, mode: Mode, *, ties: bool = True, careless: bool = True) -> None:
    """The analysis of an imported study names the careless raters, and its intervals contain what was planted.

    With so few items that luck could name nobody careless, `careless` is False.
    """
    study, target = Study.read(folder), folder / "analysis.json"
    run("human", "analyse", str(folder), "--without-careless", "--json", str(target))
    found = json.loads(target.read_text())
    named = {rater for rater, row in found["raters"].items() if row["careless"]}
    if careless:
        assert named == {INATTENTIVE, PRETENDER}, found["raters"]
    items = {item.id: item for item in study.items}
    scores: dict[str, list[float]] = {system: [] for system in GOOD}
    for rater in study.raters:
        for item in (items[id_] for id_ in rater.items if rater.id not in named | {INATTENTIVE}):
            if item.purpose == "study":
                for system in item.systems:
                    scores[system].append(100 * expected_score(rater, item, system, ties=ties))
    rates = found["acceptance" if mode == "rating" else "win_rates"]
    for system, values in scores.items():
        low, high = rates[system]["interval"]
        assert rates[system]["n"] == len(values)
        assert low < sum(values) / len(values) < high, (system, sum(values) / len(values), rates[system])
    ranked = rates if mode == "rating" else found["strengths"]
    assert sorted(ranked, key=lambda system: -ranked[system]["value"]) == list(GOOD)
    for rank, system in enumerate(GOOD, 1):
        low, high = ranked[system]["rank_interval"]
        assert low <= rank <= high


def run(*arguments: str) -> None:
    """The command line, which must end with status 0."""
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    assert leaving.value.code == 0
