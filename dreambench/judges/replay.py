"""Grades given before, from an exported log: the same scores without the judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dreambench.documents import JSON
from dreambench.errors import JudgeError
from dreambench.judges.interface import GradeRequest, Judge, Judgement
from dreambench.judges.log import JudgementLog

__all__ = ["ReplayJudge"]


class ReplayJudge(Judge):
    """``replay:FILE``: the judge of a ``judgements.jsonl``, under its own identity, so that the protocol is the same.

    Whatever the file does not hold has no score; nobody is asked.
    """

    def __init__(self, path: Path, runs: int | None = None) -> None:
        self.log = JudgementLog(path)
        if len(self.log.identities) != 1:
            raise JudgeError(
                f"judge replay:{path}: {len(self.log.identities)} judges in it, there must be one; export it from a run"
            )
        self.runs = runs if runs is not None else self.log.runs

    def identity(self) -> Mapping[str, JSON]:
        return next(iter(self.log.identities.values()))

    def grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        identity = self.identity()
        for item in items:
            yield self.log.get(identity, item) or Judgement(
                item.id, item.run, None, reason=f"{self.log.path.name} holds no judgement of this answer"
            )

    def estimate(self, items: Sequence[GradeRequest]) -> Sequence[str]:
        return [f"judge replay:{self.log.path.name}: {len(items):,} grades looked up, nobody is asked"]
