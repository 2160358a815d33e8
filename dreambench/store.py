"""A run's folder: every answer is stored before the next request, and nothing outside the folder is needed to score again."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dreambench.documents import JSON, Document, Image, Part, canonical_json, from_json, to_json
from dreambench.errors import RunError, UsageError
from dreambench.files import (
    append_lines,
    gc_paused,
    inside,
    read_json,
    read_json_lines,
    read_table,
    remove_leftovers,
    truncate_torn_line,
    write_atomically,
    write_once,
)
from dreambench.images import image_suffix
from dreambench.requests import Response, Sample
from dreambench.spec import RunSpec

__all__ = ["FORMAT", "RunFolder"]

FORMAT = 2
"""Version of the layout; a run of another version is refused."""


class RunFolder:
    """``runs/<task>-<model>-<8 hex>/``; see docs/runs.md for the files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises `RunError` where there is none."""
        if not (path / "run.json").is_file():
            raise RunError(f"{path} is not a run (no run.json in it): give the folder of a run")
        run = cls(path)
        run.run_file()
        return run

    def require_begun(self) -> None:
        """Raise `RunError` where the folder was removed or moved under a process that writes there."""
        if not (self.path / "run.json").exists():
            raise RunError(f"{self.path} was removed or moved while it was being written: start again")

    # --- the spec and the plan ------------------------------------------------------------------------------------

    def begin(self, run_file: JSON, samples: Sequence[Sample]) -> bool:
        """Write samples and run.json; False if another process, or an earlier start, already did."""
        if (self.path / "run.json").exists():
            return False
        write_atomically(self.path / "samples.parquet", _samples_table(samples))
        return write_once(self.path / "run.json", (json.dumps(run_file, indent=1, ensure_ascii=False) + "\n").encode())

    def run_file(self) -> dict[str, JSON]:
        """run.json; `RunError` if it is damaged or of another version."""
        path, advice = self.path / "run.json", "start again with --fresh"
        made = _json_object(path, ("format",), advice)["format"]
        if made != FORMAT:
            raise RunError(
                f"{self.path} has layout {made}, this version reads {FORMAT}: score it with the version that made it"
            )
        return _json_object(
            path, ("spec", "task", "model", "protocols", "system", "notes", "environment", "plan"), advice
        )

    def spec(self) -> RunSpec:
        """What the user asked for when the run was started."""
        path = self.path / "run.json"
        try:
            return RunSpec(**self.run_file()["spec"])
        except (TypeError, UsageError) as error:
            raise RunError(f"{path} is damaged ({error}): start again with --fresh") from error

    @gc_paused()
    def samples(self) -> list[Sample]:
        """The samples as they were when the run started, in the task's order; image paths are absolute."""
        path = self.path / "samples.parquet"
        try:
            rows = read_table(path).to_pylist()
            return [
                Sample(
                    id=row["id"],
                    prompt=_lenient(json.loads(row["prompt"])),
                    targets=json.loads(row["targets"]),
                    group=row["group"],
                )
                for row in rows
            ]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                f"{path} is missing or damaged ({type(error).__name__}): start again with --fresh"
            ) from error

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answers_file(self, rank: int) -> Path:
        return self.path / "responses" / f"rank-{rank:05d}.jsonl"

    def truncate_torn_lines(self, rank: int) -> None:
        """Cut off the incomplete last line that a killed process of this rank may have left."""
        responses = self.path / "responses"
        for path in (self._answers_file(rank), responses / f"splits-{rank:05d}.jsonl"):
            truncate_torn_line(path)

    def append(self, rank: int, batch: str, responses: Sequence[Response]) -> None:
        """Store the answers to a batch; they are on disk when this returns. Images come first, so that no line names a missing file."""
        self.require_begun()
        lines: list[str] = []
        for response in responses:
            line = {
                "batch": batch,
                "of": len(responses),
                **replace(response, document=self._keep_images(response)).to_json(),
            }
            lines.append(canonical_json(line) + "\n")
        append_lines(self._answers_file(rank), lines)

    def note_split(self, rank: int, batch: str) -> None:
        """Record in the plan that `batch` is answered in two halves."""
        append_lines(self.path / "responses" / f"splits-{rank:05d}.jsonl", [canonical_json(batch) + "\n"])

    def splits(self) -> set[str]:
        """Names of the batches that were halved."""
        files = sorted((self.path / "responses").glob("splits-*.jsonl"))
        return {name for path in files for name in _complete_lines(path)}

    def note_timing(self, rank: int, timing: Mapping[str, JSON]) -> None:
        """Seconds per batch, apart from everything that is scored."""
        path = self.path / "timings.jsonl" if rank == 0 else self.path / f"timings-{rank:05d}.jsonl"
        append_lines(path, [canonical_json(dict(timing)) + "\n"], sync=False)

    @gc_paused()
    def answered(self) -> dict[str, dict[str, Response]]:
        """Complete batches by name, each with its answers by request id. Answers of an incomplete batch are ignored."""
        complete: dict[str, dict[str, Response]] = {}
        for path in sorted((self.path / "responses").glob("rank-*.jsonl")):
            batch: str | None = None
            pending: dict[str, JSON] = {}
            for line in _complete_lines(path, ("batch", "of", "id", "document", "finish_reason")):
                if line["batch"] != batch or line["id"] in pending:
                    batch, pending = line["batch"], {}
                pending[line["id"]] = line
                if len(pending) == line["of"]:
                    kept = {id_: self._absolute(Response.from_json(one)) for id_, one in pending.items()}
                    complete.setdefault(line["batch"], kept)
                    pending = {}
        return complete

    def responses(self) -> dict[str, Response]:
        """All answers of complete batches, by request id."""
        return {id_: response for batch in self.answered().values() for id_, response in batch.items()}

    def _keep_images(self, response: Response) -> Document:
        kept: list[Part] = []
        candidate = 0
        for part in response.document:
            if isinstance(part, Image):
                data = part.read()
                name = hashlib.sha256(f"{response.id}\0{candidate}".encode()).hexdigest()[:32]
                relative = f"images/{name[:2]}/{name}.{_extension(data)}"
                write_atomically(self.path / relative, data)
                kept.append(Image(path=relative, sha256=hashlib.sha256(data).hexdigest()))
                candidate += 1
            else:
                kept.append(part)
        return tuple(kept)

    def _absolute(self, response: Response) -> Response:
        if not any(isinstance(part, Image) for part in response.document):
            return response

        def resolve(image: Image) -> Image:
            path = inside(self.path, image.path or "")
            if path is None:
                raise RunError(f"{self.path}: an answer names {image.path}, which lies outside the run")
            return Image(path=str(path), sha256=image.sha256)

        parts = tuple(resolve(part) if isinstance(part, Image) else part for part in response.document)
        return replace(response, document=parts)

    # --- results ------------------------------------------------------------------------------------------------------

    def clear_leftovers(self) -> None:
        """Remove the unfinished files of killed processes."""
        for folder, _, _ in os.walk(self.path):
            remove_leftovers(Path(folder))

    def write_scores(self, rows: Sequence[Mapping[str, JSON]]) -> None:
        """scores.parquet: one row per sample, full precision."""
        import pandas as pd

        buffer = io.BytesIO()
        pd.DataFrame(list(rows)).to_parquet(buffer, index=False, compression="zstd")
        write_atomically(self.path / "scores.parquet", buffer.getvalue())

    def write_metrics(self, metrics: JSON) -> None:
        """metrics.json, written last: its existence means that the run is complete."""
        write_atomically(
            self.path / "metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode()
        )

    def metrics(self) -> dict[str, JSON] | None:
        """metrics.json, or None while the run is not complete."""
        if not (self.path / "metrics.json").exists():
            return None
        wanted = ("task", "model", "protocols", "scores", "errors", "notes")
        return _json_object(self.path / "metrics.json", wanted, f"`dreambench score {self.path}` writes it again")


def _json_object(path: Path, wanted: Sequence[str], advice: str) -> dict[str, JSON]:
    """A file that holds one object with at least these keys; `RunError` with the advice if it does not."""
    try:
        found = read_json(path, RunError)
    except RunError as error:
        raise RunError(f"{path} is damaged ({error}): {advice}") from error
    if not isinstance(found, dict) or not all(name in found for name in wanted):
        raise RunError(f"{path} is damaged (no object with {', '.join(wanted)}): {advice}")
    return found


def _complete_lines(path: Path, wanted: Sequence[str] = ()) -> Iterator[JSON]:
    """The lines of a JSON Lines file without an incomplete last one; `RunError` for an object without the keys `wanted`."""
    damaged = " is damaged: remove the line, or start again with --fresh"
    for number, found in read_json_lines(path, RunError, torn=True, damaged=damaged):
        if wanted and not (isinstance(found, dict) and all(name in found for name in wanted)):
            raise RunError(f"{path}, line {number}{damaged}")
        yield found


def _samples_table(samples: Sequence[Sample]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.string()
    table = pa.table(
        {
            "id": pa.array([sample.id for sample in samples], texts),
            "group": pa.array([sample.group for sample in samples], texts),
            "prompt": pa.array([canonical_json(to_json(sample.prompt)) for sample in samples], texts),
            "targets": pa.array([canonical_json(dict(sample.targets)) for sample in samples], texts),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _lenient(parts: JSON) -> Document:
    """A stored prompt. Of an image that was never a file only the digest is known."""
    return from_json(
        [part if "text" in part or "image" in part else {"text": f"[image {part['sha256'][:8]}]"} for part in parts]
    )


def _extension(data: bytes) -> str:
    suffix = image_suffix(data)
    if suffix is None:
        raise RunError("a model returned an image that is neither PNG, JPEG nor WebP: its adapter must encode it")
    return suffix
