"""A look at the judge before it is trusted: a small frozen set of answers whose grades nobody would dispute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from dreambench.documents import JSON
from dreambench.judges.grading import ask_missing, judged
from dreambench.judges.interface import GradeRequest, Judge, Judgement
from dreambench.judges.log import JudgementLog

__all__ = ["Calibration", "calibrate", "calibration_requests"]


@dataclass(frozen=True)
class Calibration:
    """How many of the frozen grades the judge agreed with, each within the item's stated range."""

    n: int
    agreed: int
    disagreements: tuple[str, ...]

    def lines(self) -> list[str]:
        """For the terminal: the agreement first, then each disagreement."""
        return [f"calibration: the judge agrees with {self.agreed} of {self.n} obvious grades", *self.disagreements]

    def to_json(self) -> JSON:
        return {"n": self.n, "agreed": self.agreed, "disagreements": list(self.disagreements)}


def _items() -> list[JSON]:
    return json.loads(files("dreambench.judges").joinpath("calibration.json").read_text(encoding="utf-8"))["items"]


def calibration_requests() -> list[GradeRequest]:
    """The frozen set, as run 0."""
    return [
        GradeRequest(f"calibration-{number}", 0, item["question"], item["reference"], item["prediction"])
        for number, item in enumerate(_items(), 1)
    ]


def calibrate(judge: Judge, log: JudgementLog) -> Calibration:
    """Have the judge grade the frozen set, unless the log holds its grades already, and compare."""
    requests = calibration_requests()
    ask_missing(judge, requests, log)
    return _compare(judged(judge.identity(), requests, log))


def _compare(judgements: list[Judgement]) -> Calibration:
    disagreements: list[str] = []
    for item, judgement in zip(_items(), judgements, strict=True):
        low, high = item["grade"]
        if judgement.score is None or not low <= judgement.score <= high:
            given = judgement.reason if judgement.score is None else f"{judgement.score:g}"
            disagreements.append(
                f"  {item['prediction']!r} for {item['reference']!r}: {given}, expected {low:g} to {high:g}"
            )
    return Calibration(len(judgements), len(judgements) - len(disagreements), tuple(disagreements))
