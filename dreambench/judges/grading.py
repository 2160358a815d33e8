"""Asking a judge for what the log does not hold yet, and reading the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dreambench.documents import JSON
from dreambench.errors import JudgeError
from dreambench.judges.interface import GradeRequest, Judge, Judgement, judgement_key
from dreambench.judges.log import JudgementLog

__all__ = ["ask_missing", "judged", "missing"]


def missing(identity: Mapping[str, JSON], items: Sequence[GradeRequest], log: JudgementLog) -> list[GradeRequest]:
    """Items that the log has no judgement of; of items with the same content and run, the first."""
    found: dict[str, GradeRequest] = {}
    for item in items:
        if log.get(identity, item) is None:
            found.setdefault(judgement_key(identity, item), item)
    return list(found.values())


def ask_missing(
    judge: Judge, items: Sequence[GradeRequest], log: JudgementLog, progress: Callable[[int, int], None] | None = None
) -> int:
    """Have the judge grade what is missing, each grade kept as it comes; returns how many were asked. Killed, it goes on.

    `progress` is called with (grades that came, grades that were missing). Raises `JudgeError` where the judge is gone.
    """
    identity = dict(judge.identity())
    wanted = {(item.id, item.run): item for item in missing(identity, items, log)}
    total = len(wanted)
    with log:
        for judgement in judge.grade(list(wanted.values())) if wanted else ():
            item = wanted.pop((judgement.id, judgement.run), None)
            if item is None:
                raise JudgeError(f"the judge graded {judgement.id}, run {judgement.run}, unasked or twice")
            log.add(identity, item, judgement)
            if progress is not None:
                progress(total - len(wanted), total)
    if wanted:
        raise JudgeError(f"the judge left {len(wanted)} of {total} answers without a judgement")
    return total


def judged(identity: Mapping[str, JSON], items: Sequence[GradeRequest], log: JudgementLog) -> list[Judgement]:
    """The log's judgements in the order of the items; one that was never asked for has no score and says so."""
    return [log.get(identity, item) or Judgement(item.id, item.run, None, reason="not asked") for item in items]
