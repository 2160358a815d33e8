"""A run's judgements: an append-only file to which every grade is written at once, and from which grades are replayed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dreambench.documents import JSON, canonical_json, digest
from dreambench.errors import JudgeError, counted
from dreambench.files import append_lines, read_json_lines, sync_file, truncate_torn_line
from dreambench.judges.base import GradeRequest, Judge, Judgement, judgement_key
from dreambench.records import JudgementLine, parse

__all__ = ["JudgementLog", "ReplayJudge", "grade_missing", "judged", "missing"]

_SYNC_SECONDS = 0.5


class JudgementLog:
    """``judgements.jsonl`` of a run: a line ``{"judge": DIGEST, "identity": {...}}`` for each judge, and one for each judgement.

    A context manager for writing. A line is passed to the operating system before `add` returns, and synced within half a second.
    A torn last line, which a kill leaves, is skipped and then written anew; `whole` refuses it, because nobody will.
    """

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self.path = path
        self.identities: dict[str, Mapping[str, JSON]] = {}
        self._judgements: dict[str, JSON] = {}
        self._is_open = False
        self._synced = 0.0
        for number, line in (
            read_json_lines(path, JudgeError, torn=not whole, damaged=": not a judgement; remove the line")
            if path.exists()
            else ()
        ):
            try:
                if "identity" in line:
                    self.identities[str(line["judge"])] = _identity(line)
                else:
                    judgement = parse(JudgementLine, line, JudgeError, f"{path}, line {number}", "; remove the line")
                    if (judgement["score"] is None) == (judgement["reason"] is None):
                        raise KeyError("score")
                    self._judgements.setdefault(judgement["key"], judgement)
            except (KeyError, TypeError) as error:
                raise JudgeError(f"{path}, line {number}: not a judgement; remove the line") from error

    def __enter__(self) -> JudgementLog:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        truncate_torn_line(self.path)
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        if self.path.exists():
            sync_file(self.path)

    @property
    def runs(self) -> int:
        """Number of grading runs in the log."""
        return max((line["run"] + 1 for line in self._judgements.values()), default=1)

    def get(self, identity: Mapping[str, JSON], item: GradeRequest) -> Judgement | None:
        """The judgement of an item with the same content and grading run, with the item's id."""
        line = self._judgements.get(judgement_key(identity, item))
        if line is None:
            return None
        return Judgement(item.id, item.run, line["score"], line["raw"], line["reason"], line["answered_by"])

    def add(self, identity: Mapping[str, JSON], item: GradeRequest, judgement: Judgement) -> None:
        """Write a judgement."""
        judge = digest(dict(identity))
        if judge not in self.identities:
            self._write({"judge": judge, "identity": dict(identity)})
            self.identities[judge] = dict(identity)
        key = judgement_key(identity, item)
        line = {
            "key": key,
            "judge": judge,
            **item.to_json(),
            "score": judgement.score,
            "reason": judgement.reason,
            "raw": judgement.raw,
            "answered_by": judgement.answered_by,
        }
        self._write(line)
        self._judgements[key] = line

    def _write(self, line: JSON) -> None:
        if not self._is_open:
            raise RuntimeError("open the log with `with` before adding to it")
        sync = time.monotonic() - self._synced >= _SYNC_SECONDS
        append_lines(self.path, [canonical_json(line) + "\n"], sync=sync)
        if sync:
            self._synced = time.monotonic()


def _identity(line: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """A judge's identity, if it has the digest that stands beside it."""
    identity = line["identity"]
    if not isinstance(identity, dict) or not isinstance(identity.get("name"), str) or digest(identity) != line["judge"]:
        raise KeyError("identity")
    return identity


def missing(identity: Mapping[str, JSON], items: Sequence[GradeRequest], log: JudgementLog) -> list[GradeRequest]:
    """Items without a judgement in the log; of items with the same content and run, the first."""
    found: dict[str, GradeRequest] = {}
    for item in items:
        if log.get(identity, item) is None:
            found.setdefault(judgement_key(identity, item), item)
    return list(found.values())


def grade_missing(
    judge: Judge, items: Sequence[GradeRequest], log: JudgementLog, progress: Callable[[int, int], None] | None = None
) -> int:
    """Have the judge grade the missing items and log each judgement as it arrives; returns their number. Resumes after a kill.

    `progress` is called with (judgements received, judgements missing). Raises `JudgeError` if the judge cannot be reached.
    """
    identity = dict(judge.identity())
    waiting = {(item.id, item.run): item for item in missing(identity, items, log)}
    total = len(waiting)
    with log:
        for judgement in judge.grade(list(waiting.values())) if waiting else ():
            item = waiting.pop((judgement.id, judgement.run), None)
            if item is None:
                raise JudgeError(f"the judge graded {judgement.id}, run {judgement.run}, twice or without a request")
            log.add(identity, item, judgement)
            if progress is not None:
                progress(total - len(waiting), total)
    if waiting:
        raise JudgeError(f"the judge did not grade {len(waiting)} of {counted(total, 'answer')}")
    return total


def judged(identity: Mapping[str, JSON], items: Sequence[GradeRequest], log: JudgementLog) -> list[Judgement]:
    """The log's judgements in the order of the items; an item without one has no score."""
    return [log.get(identity, item) or Judgement(item.id, item.run, None, reason="not graded") for item in items]


class ReplayJudge(Judge):
    """``replay:FILE``: the judgements in a ``judgements.jsonl``, under the identity of their judge: the protocol stays the same.

    Items that the file does not contain have no score; no judge is contacted.
    """

    def __init__(self, path: Path) -> None:
        self.log = JudgementLog(path, whole=True)
        if len(self.log.identities) != 1:
            raise JudgeError(
                f"--judge replay:{path}: the file has {counted(len(self.log.identities), 'judge')}; give one with one judge"
            )
        self.runs = self.log.runs

    def identity(self) -> Mapping[str, JSON]:
        return next(iter(self.log.identities.values()))

    def grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        identity = self.identity()
        for item in items:
            yield self.log.get(identity, item) or Judgement(
                item.id, item.run, None, reason=f"{self.log.path.name} has no judgement of this answer"
            )

    def estimate(self, items: Sequence[GradeRequest]) -> Sequence[str]:
        return [f"judge replay:{self.log.path.name}: {counted(len(items), 'grade')} read from the file, no calls"]
