"""A run's judgements: an append-only file that each grade is safe in before the next is asked, and that can be replayed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from dreambench.documents import JSON, canonical_json, digest
from dreambench.errors import JudgeError
from dreambench.files import write_atomically
from dreambench.judges.interface import GradeRequest, Judgement, judgement_key

__all__ = ["JudgementLog"]

_SYNC_SECONDS = 0.5


class JudgementLog:
    """``judgements.jsonl`` of a run. Lines are ``{"judge": DIGEST, "identity": {...}}`` once for each judge, and one for each judgement.

    A line is handed to the system before `add` returns, so a killed process loses nothing; it is forced to disk at most half a
    second later. A torn last line is cut off when the file is next written to. Use as a context manager for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identities: dict[str, Mapping[str, JSON]] = {}
        self._lines: dict[str, JSON] = {}
        self._descriptor: int | None = None
        self._synced = 0.0
        self._whole = self._read()

    def _read(self) -> int:
        """Take in the complete lines; the length in bytes that they fill."""
        if not self.path.exists():
            return 0
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        for number, raw in enumerate(data[:end].splitlines(), 1):
            try:
                line = json.loads(raw)
                if "identity" in line:
                    self.identities[line["judge"]] = line["identity"]
                else:
                    self._lines[line["key"]] = line
            except (ValueError, KeyError, TypeError) as error:
                raise JudgeError(f"{self.path}, line {number} is not a judgement: remove the line") from error
        return end

    def __enter__(self) -> JudgementLog:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._descriptor, self._whole)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            self._whole = os.fstat(self._descriptor).st_size
            os.close(self._descriptor)
            self._descriptor = None

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def runs(self) -> int:
        """How many grading runs the judgements cover."""
        return max((line["run"] + 1 for line in self._lines.values()), default=1)

    def get(self, identity: Mapping[str, JSON], item: GradeRequest) -> Judgement | None:
        """What that judge said of that content in that grading run, under the item's own id."""
        line = self._lines.get(judgement_key(identity, item))
        if line is None:
            return None
        return Judgement(item.id, item.run, line["score"], line["raw"], line["reason"], line["answered_by"])

    def add(self, identity: Mapping[str, JSON], item: GradeRequest, judgement: Judgement) -> None:
        """Keep a judgement."""
        judge = digest(dict(identity))
        if judge not in self.identities:
            self.identities[judge] = dict(identity)
            self._write({"judge": judge, "identity": dict(identity)})
        key = judgement_key(identity, item)
        line = {
            "key": key,
            "judge": judge,
            "id": item.id,
            "run": item.run,
            "question": item.question,
            "reference": item.reference,
            "prediction": item.prediction,
            "score": judgement.score,
            "reason": judgement.reason,
            "raw": judgement.raw,
            "answered_by": judgement.answered_by,
        }
        self._lines[key] = line
        self._write(line)

    def _write(self, line: JSON) -> None:
        if self._descriptor is None:
            raise RuntimeError("open the log with `with` before adding to it")
        data = memoryview((canonical_json(line) + "\n").encode())
        while data:
            data = data[os.write(self._descriptor, data) :]
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()

    def export(self, path: Path) -> None:
        """Write the judgements to a file of their own, in an order that does not depend on when they came; ``replay:FILE`` reads it."""
        lines = [{"judge": judge, "identity": self.identities[judge]} for judge in sorted(self.identities)]
        lines += sorted(self._lines.values(), key=lambda line: line["key"])
        write_atomically(path, "".join(canonical_json(line) + "\n" for line in lines).encode())
