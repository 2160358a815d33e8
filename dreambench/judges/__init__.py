"""Judges: who grades free-form answers, how they are pinned, asked, remembered and checked. docs/judges.md tells the user's side."""

from dreambench.judges.calibration import Calibration, calibrate
from dreambench.judges.grading import ask_missing, judged
from dreambench.judges.interface import GradeRequest, GradesFile, Judge, Judgement, judgement_key
from dreambench.judges.log import JudgementLog
from dreambench.judges.spec import parse_judge

__all__ = [
    "Calibration",
    "GradeRequest",
    "GradesFile",
    "Judge",
    "Judgement",
    "JudgementLog",
    "ask_missing",
    "calibrate",
    "judged",
    "judgement_key",
    "parse_judge",
]
