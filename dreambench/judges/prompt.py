"""The grading prompt: one user message whose last line is a row ``question | answer | prediction | `` to be completed by a number."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dreambench.errors import JudgeError
from dreambench.judges.interface import GradeRequest

__all__ = ["ATTEMPTS", "OFFICIAL_SHA256", "GradingPrompt", "confined", "own_prompt", "parse_grade", "read_prompt"]

OFFICIAL_SHA256 = "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"
"""sha256 of the few-shot prompt in MM-Vet's own `mm-vet_evaluator.py` (2,290 characters). It quotes test items, so it is not shipped."""

ATTEMPTS = 5
"""Replies that are read before an answer counts as unscored. The official evaluator gives 0 there."""

_AGAIN = "\nPredict the correctness of the answer (digit): "
_TAG = re.compile(r"<([^<>\n]{1,60})>")
_BRACKET = re.compile(r"\[(/?[A-Z_]{2,20})\]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class GradingPrompt:
    """The text before the row. `name` is ``official`` for the official one only."""

    name: str
    text: str

    @property
    def official(self) -> bool:
        return self.name == "official"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def message(self, item: GradeRequest, attempt: int = 0) -> str:
        """The whole user message. From the second attempt on it ends with the official evaluator's extra sentence."""
        reference = item.reference.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        row = " | ".join([item.question, reference, confined(item.prediction), ""])
        return f"{self.text}\n{row}" + (_AGAIN if attempt else "")

    def temperature(self, attempt: int) -> float:
        """0 at first, then half a degree more each time, as the official evaluator has it."""
        return 0.5 * attempt

    def grade(self, reply: str) -> float | None:
        """The grade in a reply; our own prompt forgives white space in front, the official evaluator does not."""
        return parse_grade(reply if self.official else reply.strip())


def confined(prediction: str) -> str:
    """An answer as one cell of one row: it cannot end the cell, start a row, or pass for a delimiter or a chat template's token.

    Control characters and line breaks become spaces, ``|`` becomes ``¦``, ``<AND>`` becomes ``‹AND›``, ``[INST]`` becomes
    ``(INST)``. Other answers are left as they are, so that their row is the official evaluator's.
    """
    plain = "".join(" " if unicodedata.category(sign) in ("Cc", "Zl", "Zp") else sign for sign in prediction)
    return _BRACKET.sub(r"(\1)", _TAG.sub(r"‹\1›", plain.replace("|", "¦")))


def parse_grade(reply: str) -> float | None:
    """The first space-separated token as a number in [0, 1], else None."""
    token = reply.split(" ")[0].strip()
    if not _NUMBER.fullmatch(token):
        return None
    score = float(token)
    return score if 0 <= score <= 1 else None


def own_prompt() -> GradingPrompt:
    """The project's grading prompt, version 1: another wording and other examples than the official one, hence its own name."""
    text = files("dreambench.judges").joinpath("grader.txt").read_text(encoding="utf-8")
    return GradingPrompt("dreambench-grader", text.rstrip("\n"))


def read_prompt(path: Path) -> GradingPrompt:
    """The official few-shot prompt from the user's file; any other text is a `JudgeError`, for it would be another protocol.

    A trailing newline that an editor put there is taken off.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeError(f"grading prompt {path}: cannot be read as UTF-8 text ({type(error).__name__})") from error
    for candidate in (text, text.removesuffix("\n")):
        prompt = GradingPrompt("official", candidate)
        if prompt.sha256 == OFFICIAL_SHA256:
            return prompt
    raise JudgeError(
        f"grading prompt {path}: sha256 {prompt.sha256[:12]}… is not that of the official few-shot prompt"
        f" ({OFFICIAL_SHA256[:12]}…): copy `prompt` from MM-Vet's mm-vet_evaluator.py unchanged, or leave prompt= out"
    )
