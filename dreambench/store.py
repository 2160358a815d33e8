"""A run's folder: every answer is stored before the next request, and nothing outside the folder is needed to score again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import weakref
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, overload

from dreambench.batches import Batches
from dreambench.documents import JSON, Document, Image, Part, canonical_json, from_json, to_json
from dreambench.errors import DataError, RunError, UsageError
from dreambench.files import (
    append_lines,
    inside,
    parse_json,
    read_arrays,
    read_json,
    read_json_lines,
    remove_leftovers,
    replacing,
    sha256_file,
    truncate_torn_line,
    write_arrays,
    write_atomically,
    write_once,
)
from dreambench.images import image_suffix
from dreambench.records import (
    AnswerLine,
    MetricsFile,
    PromptPart,
    RunFile,
    Targets,
    check_protocols,
    first_complaint,
    parse,
    parse_score,
)
from dreambench.requests import Response, Sample
from dreambench.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["FORMAT", "Answers", "RunFolder", "StoredSamples"]

FORMAT = 3
"""Version of the layout. Layout 2, whose plan is in run.json, is read, too; a run of another version is refused."""

PLANNED = ("samples.parquet", "plan.npz")
"""Files that are written with run.json, which holds their hashes."""


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
        run.refuse_links()
        return run

    def refuse_links(self) -> None:
        """`RunError` for a link among the files that a run appends to: somebody else's run would have us write into a file of ours."""
        for place in (self.path, self.path / "responses"):
            for path in place.iterdir() if place.is_dir() else ():
                if path.is_symlink():
                    raise RunError(f"{path} is a link, and would be written through: put the file in its place")

    def require_begun(self) -> None:
        """Raise `RunError` where the folder was removed or moved under a process that writes there."""
        if not (self.path / "run.json").exists():
            raise RunError(f"{self.path} was removed or moved while it was being written: start again")

    # --- the spec and the plan ------------------------------------------------------------------------------------

    def begin(self, run_file: JSON, samples: Sequence[Sample], planned: Batches) -> bool:
        """Write samples, plan and run.json; False if another process, or an earlier start, already did."""
        if (self.path / "run.json").exists():
            self.refuse_links()
            return False
        stored = samples if isinstance(samples, StoredSamples) else StoredSamples.pack(samples)
        stored.write(self.path / "samples.parquet")
        write_arrays(self.path / "plan.npz", order=planned.order, starts=planned.starts)
        files = {name: sha256_file(self.path / name) for name in PLANNED}
        run_file = parse(RunFile, {**run_file, "files": files}, RunError, str(self.path / "run.json"))
        return write_once(self.path / "run.json", (json.dumps(run_file, indent=1, ensure_ascii=False) + "\n").encode())

    def plan(self) -> Batches:
        """The batches as they were fixed when the run started."""
        planned = self.run_file()["plan"]
        if "batches" in planned:
            return Batches.of(planned["batches"])
        path = self._unchanged("plan.npz")
        arrays = read_arrays(path, RunError)
        try:
            return Batches(arrays["order"], arrays["starts"])
        except KeyError as error:
            raise RunError(f"{path} is damaged (no {error}): start again with --fresh") from error

    def run_file(self) -> dict[str, JSON]:
        """run.json; `RunError` if it is damaged or of another version."""
        path, advice = self.path / "run.json", "start again with --fresh"
        found = _json_object(path, advice)
        made = found.get("format", FORMAT)
        if type(made) is int and made not in (2, FORMAT):
            raise RunError(
                f"{self.path} has layout {made}, this version reads {FORMAT}: score it with the version that made it"
            )
        return _parse_file(RunFile, found, path, advice)

    def _unchanged(self, name: str) -> Path:
        """The path of a file that was written with run.json; `RunError` if it is not that file any more. Old runs do not know."""
        path = self.path / name
        wanted = self.run_file().get("files", {}).get(name)
        if wanted is not None and path.is_file() and sha256_file(path) != wanted:
            raise RunError(
                f"{path} is missing or damaged (not the file that the run began with): start again with --fresh"
            )
        return path

    def spec(self) -> RunSpec:
        """What the user asked for when the run was started."""
        path = self.path / "run.json"
        try:
            return RunSpec(**self.run_file()["spec"])
        except (TypeError, UsageError) as error:
            raise RunError(f"{path} is damaged ({error}): start again with --fresh") from error

    def samples(self) -> StoredSamples:
        """The samples as they were when the run started, in the task's order; image paths are absolute.

        `RunError` if the file is missing, damaged, or not that of the plan: what is absent from it would be absent from the scores.
        """
        path = self.path / "samples.parquet"
        samples, planned = StoredSamples(path), len(self.plan().order)
        if len(samples) != planned:
            raise RunError(f"{path} has {len(samples)} samples, the run's plan {planned}: start again with --fresh")
        self._unchanged("samples.parquet")
        return samples

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
        damaged = " is damaged: remove the line, or start again with --fresh"
        return {name for path in files for _, name in read_json_lines(path, RunError, torn=True, damaged=damaged)}

    def note_timing(self, rank: int, timing: Mapping[str, JSON]) -> None:
        """Seconds and time of day of a batch, apart from everything that is scored."""
        path = self.path / "timings.jsonl" if rank == 0 else self.path / f"timings-{rank:05d}.jsonl"
        append_lines(path, [canonical_json(dict(timing)) + "\n"], sync=False)

    def timings(self) -> list[dict[str, JSON]]:
        """What `note_timing` noted, of all processes; torn lines are left out."""
        found: list[dict[str, JSON]] = []
        for path in sorted(self.path.glob("timings*.jsonl")):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    timing = json.loads(line)
                    found += [timing] if isinstance(timing, dict) else []
        return found

    def responses(self) -> Answers:
        """All answers of complete batches, by request id."""
        return Answers(self.path)

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

    # --- results ------------------------------------------------------------------------------------------------------

    def clear_leftovers(self) -> None:
        """Remove the unfinished files of killed processes."""
        for folder, _, _ in os.walk(self.path):
            remove_leftovers(Path(folder))

    def write_scores(self, rows: Sequence[Mapping[str, JSON]] | pd.DataFrame) -> None:
        """scores.parquet: one row per sample, full precision."""
        import pandas as pd

        with replacing(self.path / "scores.parquet") as unfinished, unfinished.open("wb") as file:
            table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
            table.to_parquet(file, index=False, compression="zstd")

    def write_metrics(self, metrics: JSON) -> None:
        """metrics.json, written last: its existence means that the run is complete."""
        write_atomically(
            self.path / "metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode()
        )

    def metrics(self) -> dict[str, JSON] | None:
        """metrics.json, or None while the run is not complete."""
        if not (self.path / "metrics.json").exists():
            return None
        path, advice = self.path / "metrics.json", f"`dreambench score {self.path}` writes it again"
        found = _parse_file(MetricsFile, _json_object(path, advice), path, advice)
        try:
            for line in found["scores"]:
                parse_score(line)
        except ValueError as error:
            raise RunError(f"{path} is damaged ({first_complaint(error)}): {advice}") from error
        return found


def _json_object(path: Path, advice: str) -> dict[str, JSON]:
    """A file that holds one object; `RunError` with the advice if it does not."""
    try:
        found = read_json(path, RunError)
    except RunError as error:
        raise RunError(f"{path} is damaged ({error}): {advice}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} is damaged (no object): {advice}")
    return found


def _parse_file(kind: Any, found: JSON, path: Path, advice: str) -> dict[str, JSON]:
    """A file as a record, with protocols that are what their hashes say."""
    parsed = parse(kind, found, RunError, str(path), f": {advice}")
    try:
        check_protocols(parsed["protocols"])
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): {advice}") from error
    return parsed


@contextlib.contextmanager
def _whole(source: object) -> Generator[None]:
    """`RunError` where samples.parquet cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{source} is missing or damaged ({type(error).__name__}): start again with --fresh") from error


class StoredSamples(Sequence[Sample]):
    """The samples of a samples.parquet, parsed when they are asked for.

    To go through them costs the memory of a few thousand; once one is asked for by number, all are held, compressed.
    """

    ROWS = 1 << 12
    BLOCK = 16
    """Samples that are compressed together: 16 take 20 µs to open."""

    def __init__(self, source: Path | pa.Buffer) -> None:
        """From a file, or from its content. No threads: pyarrow waits for ever for one that cannot start (see `read_table`)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.source = source
        self._opened: tuple[int, list[dict[str, Any]]] = -1, []
        with _whole(source):
            opened = pa.OSFile(str(source)) if isinstance(source, Path) else pa.BufferReader(source)
            self._file = pq.ParquetFile(opened, pre_buffer=False)

    @classmethod
    def pack(cls, samples: Iterable[Sample]) -> StoredSamples:
        """A compact copy of `samples`, of which a few thousand at a time are held as objects.

        Raises:
            DataError: a text is not Unicode or a number not finite, so that no file can hold it.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, pa.string()) for name in ("id", "group", "prompt", "targets")])
        buffer = pa.BufferOutputStream()
        with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
            rows = map(_texts, samples)
            while some := list(islice(rows, cls.ROWS)):
                writer.write_table(pa.table(list(zip(*some, strict=True)), schema=schema))
        return cls(buffer.getvalue())

    def write(self, path: Path) -> None:
        """Write the file."""
        write_atomically(path, self.source.read_bytes() if isinstance(self.source, Path) else memoryview(self.source))

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def __iter__(self) -> Iterator[Sample]:
        with _whole(self.source):
            for batch in self._file.iter_batches(1024, use_threads=False):
                yield from map(_sample, batch.to_pylist())

    def ids(self) -> Iterator[str]:
        """The ids alone, which takes a tenth of the time."""
        with _whole(self.source):
            for batch in self._file.iter_batches(self.ROWS, columns=["id"], use_threads=False):
                yield from batch["id"].to_pylist()

    def pick(self, ids: Collection[str]) -> Iterator[Sample]:
        """The samples with these ids, in the order of the file; the others are not parsed."""
        import pyarrow as pa

        with _whole(self.source):
            for batch in self._file.iter_batches(self.ROWS, use_threads=False):
                wanted = pa.array([id_ in ids for id_ in batch["id"].to_pylist()], pa.bool_())
                yield from map(_sample, batch.filter(wanted).to_pylist())

    @cached_property
    def _blocks(self) -> list[tuple[int, bytes]]:
        """All rows, `BLOCK` at a time: how many bytes, and these compressed to a quarter."""
        import pyarrow as pa

        blocks = (rows.serialize() for rows in self._file.iter_batches(self.BLOCK, use_threads=False))
        return [(block.size, pa.compress(block, "lz4", asbytes=True)) for block in blocks]

    def _row(self, index: int) -> dict[str, Any]:
        """A row. The last block is kept, for the samples of a group mostly follow each other, in the file and in the plan."""
        import pyarrow as pa

        number, place = divmod(index, self.BLOCK)
        if self._opened[0] != number:
            size, block = self._blocks[number]
            rows = pa.ipc.read_record_batch(pa.decompress(block, size, "lz4"), self._file.schema_arrow)
            self._opened = number, rows.to_pylist()
        return self._opened[1][place]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> StoredSamples: ...
    def __getitem__(self, index: int | slice) -> Sample | StoredSamples:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return StoredSamples.pack(
                islice(self, start, stop, step) if step > 0 else map(self.__getitem__, range(start, stop, step))
            )
        with _whole(self.source):
            return _sample(self._row(range(len(self))[index]))


def _texts(sample: Sample) -> tuple[str, str | None, str, str]:
    """A row of samples.parquet."""
    try:
        texts = sample.id, sample.group, canonical_json(to_json(sample.prompt)), canonical_json(dict(sample.targets))
        "".join(text or "" for text in texts).encode()
    except (UnicodeEncodeError, ValueError) as error:
        raise DataError(f"sample {sample.id!r}: its text is not Unicode, or a number not finite ({error})") from error
    return texts


def _sample(row: Mapping[str, Any]) -> Sample:
    prompt, targets = json.loads(row["prompt"]), json.loads(row["targets"])
    where = f"samples.parquet, sample {row['id']}"
    prompt = parse(list[PromptPart], prompt, RunError, where)
    return Sample(row["id"], _lenient(prompt), parse(Targets, targets, RunError, where), row["group"])


class Answers(Mapping[str, Response]):
    """The answers of complete batches by request id. Their places in the files are held, and each is parsed when it is asked for.

    Answers of an incomplete batch are ignored, and so is a batch that is stored a second time. `RunError` for one that is not there.
    """

    def __init__(self, run: Path) -> None:
        self.batches: set[str] = set()
        self.errors: dict[str, str] = {}
        """The type of error of each request that has no answer."""
        self._run = run
        self._files: list[BinaryIO] = []
        self._places: dict[str, int] = {}
        """Byte times `_MOST_FILES` plus the number of the file."""
        for path in sorted((run / "responses").glob("rank-*.jsonl")):
            self._files.append(path.open("rb"))
            weakref.finalize(self, self._files[-1].close)
            self._scan(path)

    def _scan(self, path: Path) -> None:
        place, batch = len(self._files) - 1, ""
        pending: dict[str, tuple[int, JSON]] = {}
        for number, text in enumerate(self._files[-1], 1):
            if text.strip() and text.endswith(b"\n"):
                line = _answer(text, f"{path}, line {number}")
                if line["batch"] != batch or line["id"] in pending:
                    batch, pending = line["batch"], {}
                pending[line["id"]] = place, line.get("error")
                if len(pending) == line["of"]:
                    if batch not in self.batches:
                        self.batches.add(batch)
                        self._places |= {id_: where for id_, (where, _) in pending.items()}
                        self.errors |= {id_: error["type"] for id_, (_, error) in pending.items() if error}
                    pending = {}
            place += len(text) * _MOST_FILES

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._places

    def __getitem__(self, id_: str) -> Response:
        place = self._places.get(id_)
        if place is None:
            raise RunError(
                f"{self._run}/responses: the answer to {id_} is missing or damaged: start again with --fresh"
            )
        offset, number = divmod(place, _MOST_FILES)
        file = self._files[number]
        file.seek(offset)
        where = f"{file.name}, byte {offset}"
        response = Response.from_json(parse(AnswerLine, _answer(file.readline(), where), RunError, where))
        if not any(isinstance(part, Image) for part in response.document):
            return response
        parts = tuple(self._absolute(part) if isinstance(part, Image) else part for part in response.document)
        return replace(response, document=parts)

    def _absolute(self, image: Image) -> Image:
        path = inside(self._run, image.path or "")
        if path is None:
            raise RunError(f"{self._run}: an answer names {image.path}, which lies outside the run")
        return Image(path=str(path), sha256=image.sha256)


_MOST_FILES = 1 << 20


def _answer(text: bytes, where: str) -> dict[str, JSON]:
    """A line of answers; `RunError` where it is damaged."""
    try:
        line = parse_json(text.decode())
    except (ValueError, RecursionError):
        line = None
    if (
        not isinstance(line, dict)
        or not {"batch", "of", "id", "document", "finish_reason"} <= line.keys()
        or not (isinstance(line["batch"], str) and isinstance(line["id"], str) and type(line["of"]) is int)
        or not isinstance(line.get("error") or {}, dict)
    ):
        raise RunError(f"{where} is damaged: remove the line, or start again with --fresh")
    return line


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
