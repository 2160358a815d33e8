"""Sources mixed into one endless sequence of samples, each a function of (seed, index) alone.

Indices count samples over all epochs, because accelerate does not tell a sampler its epoch when it has both skipped batches and several
processes. Ranks share batches by index, and a resumed run skips samples without reading them. A source draws each of its records once
before it draws one again, in a new order each time. From a stream, a process reads everything before its next index but decodes only
its own samples.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from dreamllm.data.samples import Sample
from dreamllm.data.sources import Source
from dreamllm.errors import InputError, TooSmallError, UsageError
from dreamllm.files import append_json_line, write_text
from dreamllm.processing import DreamLLMProcessor
from dreamllm.recipe import DataSettings, expand_home, make_data_settings

ATTEMPTS = 50  # consecutive broken records after which a source counts as broken altogether
FIELDS = ("source", "key", "reason")


class BrokenRecords:
    """The distinct records and images that could not be used, by source, key and reason. More than `limit` of them are an error.

    Args:
        file: JSON lines that all workers and ranks append to. Those of an earlier start are read back and count.
    """

    def __init__(self, limit: int, file: Path | None = None) -> None:
        self.limit, self.file = limit, file
        self._found: dict[tuple[str, ...], None] = {}  # a set in order
        self._end = 0  # of what has been read of the file
        if file is not None and file.is_file() and not (content := file.read_bytes()).endswith(b"\n") and content:
            with file.open("ab") as lines:  # a line left incomplete by a kill must not take the next one with it
                lines.write(b"\n")
        self._read()

    def add(self, source: str, key: str, reason: str) -> None:
        entry = (source, key, reason)
        if entry in self._found:
            return
        self._found[entry] = None
        if self.file is not None:
            append_json_line(self.file, dict(zip(FIELDS, entry, strict=True)))
        self._read()  # the limit is that of all workers and processes
        if len(self._found) > self.limit:
            where = f"; all are listed in {self.file}" if self.file else ""
            raise UsageError(
                f"more than {self.limit} records or images are broken, most recently {key} of {source}: {reason}{where}. "
                "Repair them, or raise data.max_broken"
            )

    def entries(self) -> list[dict[str, str]]:
        """All of them, including those that other processes wrote to the file."""
        self._read()
        return [dict(zip(FIELDS, entry, strict=True)) for entry in self._found]

    def finish(self) -> None:
        """Write the file anew: in order, and once what several processes found."""
        entries = sorted(self.entries(), key=lambda entry: (entry["source"], len(entry["key"]), *entry.values()))
        if self.file is not None and entries:
            write_text(self.file, "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries))

    def _read(self) -> None:
        """What all workers and processes have added to the file since the last call."""
        if self.file is None or not self.file.is_file():
            return
        with self.file.open("rb") as lines:
            lines.seek(self._end)
            for line in lines:
                self._end += len(line)
                with suppress(ValueError):  # left incomplete by a kill
                    entry = json.loads(line)
                    self._found[tuple(entry[field] for field in FIELDS)] = None


class TrainingData(Dataset[Sample]):
    """Samples by index, without end; `len` is that of an epoch, and larger indices belong to later epochs.

    Args:
        weights: share of each source, in any scale; None draws all records equally often.
        samples: length of an epoch; None for the number of all records.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        broken: BrokenRecords,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        samples: int | None = None,
    ) -> None:
        self.sources, self.broken, self.seed = list(sources), broken, seed
        lengths = [source.length or 0 for source in self.sources]
        self.samples = samples or sum(lengths)
        self.counts = _shares(self.samples, weights or lengths)
        for source, count in zip(self.sources, self.counts, strict=True):
            if not count:
                raise UsageError(
                    f"source {source.name} gets none of the {self.samples} samples of an epoch: raise its weight, or data.samples"
                )
        self._make_caches()

    def __len__(self) -> int:
        return self.samples

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_mixture", "_order")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_caches()

    def _make_caches(self) -> None:
        """Of pure functions, for the current epoch or pass and the one before."""
        self._mixture = lru_cache(maxsize=2)(self._make_mixture)
        self._order = lru_cache(maxsize=len(self.sources) + 1)(self._make_order)

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the source, number of its record) of a sample; for a stream, the number of the draw."""
        epoch, position = divmod(index, self.samples)
        sources, occurrences = self._mixture(epoch)
        source = int(sources[position])
        drawn = epoch * self.counts[source] + int(occurrences[position])
        length = self.sources[source].length
        if length is None:
            return source, drawn
        turn, step = divmod(drawn, length)
        return source, int(self._order(source, turn)[step])

    def __getitem__(self, index: int) -> Sample:
        """A broken record is reported and replaced by another one of its source that is drawn from (seed, index).

        A record whose image is too small is replaced without a report.
        """
        number, record = self.locate(index)
        source = self.sources[number]
        rng = random.Random(f"{self.seed}/{index}")  # noqa: S311
        reason = ""
        for _ in range(ATTEMPTS):
            key = source.key(record)
            try:
                return source.sample(record, rng, lambda reason, key=key: self.broken.add(source.name, key, reason))
            except InputError as error:
                reason = str(error)
                if not isinstance(error, TooSmallError):
                    self.broken.add(source.name, key, reason)
            record = source.table.replacement(record, rng)
        raise UsageError(
            f"{ATTEMPTS} consecutive records of {source.name} are broken or too small, most recently: {reason}"
        )

    def _make_mixture(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position of an epoch, and how many earlier positions have the same source."""
        sources = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
        np.random.default_rng([self.seed, 0, epoch]).shuffle(sources)
        occurrences = np.empty(len(sources), dtype=np.int64)
        for source, count in enumerate(self.counts):
            occurrences[sources == source] = np.arange(count)
        return sources, occurrences

    def _make_order(self, source: int, turn: int) -> np.ndarray:
        records = np.arange(self.sources[source].length or 0, dtype=np.int32)
        return np.random.default_rng([self.seed, 1, source, turn]).permutation(records)


def training_dataset(
    data: DataSettings | dict[str, Any],
    processor: DreamLLMProcessor,
    *,
    folder: str | Path = ".",
    broken_file: str | Path | None = None,
) -> TrainingData:
    """The samples that the `data` part of a recipe (see `dreamllm.recipe.DataSettings`) describes.

    Args:
        folder: the folder that paths are relative to.
        broken_file: where all processes of a training run list broken records.

    Raises UsageError if the settings are invalid or a file is missing.
    """
    settings = make_data_settings(data) if isinstance(data, dict) else data
    max_length = settings.max_length or processor.tokenizer.model_max_length
    cache = str(Path(folder) / expand_home(settings.cache)) if settings.cache else None
    if cache is not None and not all(source.streaming for source in settings.sources):
        try:
            Path(cache).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"data.cache: folder {cache} cannot be created: {error.strerror}") from None
    options = (processor, max_length, settings.flip, Path(folder), cache, settings.seed)
    sources = [Source(source, *options) for source in settings.sources]
    weights = [source.weight for source in settings.sources if source.weight is not None]
    broken = BrokenRecords(settings.max_broken, None if broken_file is None else Path(broken_file))
    return TrainingData(sources, broken, settings.seed, weights or None, settings.samples)


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    """Integers that add up to `total` in the proportions of `weights` (largest remainders)."""
    exact = np.asarray(weights, dtype=np.float64) * total / np.sum(weights)
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[largest] += 1
    return [int(count) for count in counts]
