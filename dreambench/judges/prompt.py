"""The grading prompt, one user message whose last row ``question | answer | prediction | `` the judge completes, and its calibration."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dreambench.documents import JSON, Document, Text
from dreambench.errors import JudgeError
from dreambench.files import read_text
from dreambench.judges.base import GradeRequest, Judge
from dreambench.judges.log import JudgementLog, grade_missing, judged

__all__ = [
    "ATTEMPTS",
    "Calibration",
    "GradingPrompt",
    "calibrate",
    "calibration_requests",
    "confined",
    "own_prompt",
    "parse_grade",
    "read_prompt",
]

OFFICIAL_SHA256 = "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"
"""sha256 of the few-shot prompt in MM-Vet's `mm-vet_evaluator.py` (2,290 characters), which quotes test items and is not shipped."""

ATTEMPTS = 5
"""Replies that are read before an answer counts as unscored. The official evaluator gives 0 there."""

_RETRY = "\nPredict the correctness of the answer (digit): "
_TAG = re.compile(r"<([^<>\n]{1,60})>")
_BRACKET = re.compile(r"\[(/?[A-Z_]{2,20})\]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class GradingPrompt:
    """The text before the row. Only the official prompt is named ``official``."""

    name: str
    text: str

    @property
    def official(self) -> bool:
        return self.name == "official"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def message(self, item: GradeRequest, attempt: int = 0) -> str:
        """The user message. From the second attempt on it ends with the official evaluator's additional sentence."""
        reference = item.reference.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        row = " | ".join([item.question, reference, confined(item.prediction), ""])
        return f"{self.text}\n{row}" + (_RETRY if attempt else "")

    def document(self, item: GradeRequest, attempt: int = 0) -> Document:
        """The user message as a document, for prompts that show images."""
        return (Text(self.message(item, attempt)),)

    def temperature(self, attempt: int) -> float:
        """0 at first, then 0.5 more with each attempt, as in the official evaluator."""
        return 0.5 * attempt

    def grade(self, reply: str) -> float | None:
        """The grade in a reply. Like the official evaluator, the official prompt does not accept leading white space."""
        return parse_grade(reply if self.official else reply.strip())


def confined(prediction: str) -> str:
    """An answer as one cell: it cannot end the cell, start a row, or pass for a delimiter or a token of a chat template.

    Control characters and line breaks become spaces, ``|`` becomes ``¦``, ``<AND>`` becomes ``‹AND›``, ``[INST]`` becomes
    ``(INST)``. An answer without any of these is unchanged, as in the official evaluator.
    """
    plain = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in prediction)
    return _BRACKET.sub(r"(\1)", _TAG.sub(r"‹\1›", plain.replace("|", "¦")))


def parse_grade(reply: str) -> float | None:
    """The first space-separated token as a number in [0, 1], else None."""
    token = reply.split(" ")[0].strip()
    if not _NUMBER.fullmatch(token):
        return None
    score = float(token)
    return score if 0 <= score <= 1 else None


def own_prompt() -> GradingPrompt:
    """This project's grading prompt, version 1, in ``grader.txt``."""
    text = files("dreambench.judges").joinpath("grader.txt").read_text(encoding="utf-8")
    return GradingPrompt("dreambench-grader", text.rstrip("\n"))


def read_prompt(path: Path) -> GradingPrompt:
    """The official few-shot prompt from a file of the user's, with or without a trailing newline.

    Raises:
        JudgeError: the file has another text, which would define another protocol.
    """
    text = read_text(path, JudgeError)
    for candidate in (text, text.removesuffix("\n")):
        prompt = GradingPrompt("official", candidate)
        if prompt.sha256 == OFFICIAL_SHA256:
            return prompt
    raise JudgeError(
        f"{path}: sha256 {prompt.sha256[:12]}… is not that of the official few-shot prompt ({OFFICIAL_SHA256[:12]}…):"
        " copy `prompt` from MM-Vet's mm-vet_evaluator.py unchanged, or leave prompt= out"
    )


# --- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """How many grades of a fixed set of obvious answers lie within each answer's range."""

    n: int
    agreed: int
    disagreements: tuple[str, ...]

    def lines(self) -> list[str]:
        """For the terminal: the agreement, then each disagreement."""
        return [f"calibration: the judge agrees with {self.agreed} of {self.n} obvious grades", *self.disagreements]

    def to_json(self) -> JSON:
        return {"n": self.n, "agreed": self.agreed, "disagreements": list(self.disagreements)}


def _calibration_items() -> list[JSON]:
    return json.loads(files("dreambench.judges").joinpath("calibration.json").read_text(encoding="utf-8"))["items"]


def calibration_requests() -> list[GradeRequest]:
    """The calibration set, as grading run 0."""
    return [
        GradeRequest(f"calibration-{number}", 0, item["question"], item["reference"], item["prediction"])
        for number, item in enumerate(_calibration_items(), 1)
    ]


def calibrate(judge: Judge, log: JudgementLog) -> Calibration:
    """Have the judge grade the calibration set, unless the log has its grades already, and compare."""
    requests = calibration_requests()
    grade_missing(judge, requests, log)
    judgements = judged(judge.identity(), requests, log)
    disagreements: list[str] = []
    for item, judgement in zip(_calibration_items(), judgements, strict=True):
        low, high = item["grade"]
        if judgement.score is None or not low <= judgement.score <= high:
            grade = judgement.reason if judgement.score is None else f"{judgement.score:g}"
            disagreements.append(
                f"  {item['prediction']!r} for {item['reference']!r}: {grade}, expected {low:g} to {high:g}"
            )
    return Calibration(len(judgements), len(judgements) - len(disagreements), tuple(disagreements))
