"""Sources mixed into one sequence of samples, each a function of (seed, place) alone.

Places are counted from 0 over all epochs. Who asks, in which order, from which process or after which interruption changes nothing:
a sequential sampler whose batches are shared over ranks, as accelerate does it, is all that is needed, and a resume that skips
places reads none of them. Epochs follow one another in one sequence, because accelerate does not tell a sampler its epoch when it
has both skipped batches and several processes.
Within a source every record is drawn once before one is drawn again, in another order each time.
Of a stream a process reads all that stands before its next place, and decodes only what is its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from dreamllm.data.recipe import read_recipe
from dreamllm.data.samples import Sample
from dreamllm.data.sources import Source
from dreamllm.errors import InputError, UsageError
from dreamllm.processing import DreamLLMProcessor

ATTEMPTS = 50  # broken records in a row after which a source counts as broken as a whole


class BrokenRecords:
    """What could not be used: source, key and reason, each once. More than `limit` of them is an error.

    Args:
        file: JSON lines, appended to by every process at once (a line is one write), so that workers and ranks share one list.
            Those of an earlier start are read back and count.
    """

    def __init__(self, limit: int, file: Path | None = None) -> None:
        self.limit, self.file = limit, file
        self._found: dict[tuple[str, str, str], None] = {}
        self._read()

    def add(self, source: str, key: str, reason: str) -> None:
        entry = (source, key, reason)
        if entry in self._found:
            return
        self._found[entry] = None
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"source": source, "key": key, "reason": reason}) + "\n")
        if len(self._found) > self.limit:
            where = f"; all are listed in {self.file}" if self.file else ""
            raise UsageError(
                f"more than {self.limit} records or images are broken, the last {key} of {source}: {reason}"
                f"{where}. Mend them, or raise max_broken"
            )

    def entries(self) -> list[dict[str, str]]:
        """All that were found, by every process that writes to the same file."""
        self._read()
        return [dict(zip(("source", "key", "reason"), entry, strict=True)) for entry in self._found]

    def summary(self) -> str:
        """One line: how many, and of which sources."""
        found = self.entries()
        by_source = {name: sum(entry["source"] == name for entry in found) for name in {e["source"] for e in found}}
        counts = ", ".join(f"{count} of {name}" for name, count in sorted(by_source.items()))
        return f"{len(found)} broken records or images left out" + (f": {counts}" if counts else "")

    def _read(self) -> None:
        if self.file is None or not self.file.is_file():
            return
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the torn last line of a process that was killed
                continue
            self._found[entry["source"], entry["key"], entry["reason"]] = None


class TrainingData(Dataset[Sample]):
    """Samples by place, without end; `len` is that of an epoch, and places from there on belong to later ones.

    Args:
        weights: share of each source's samples, in any scale; None draws all records equally often.
        samples: places of an epoch; None for the number of all records.
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
                    f"source {source.name} gets none of the {self.samples} samples of an epoch: raise its weight, or `samples`"
                )
        self._remember()

    def __len__(self) -> int:
        return self.samples

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_plan", "_order")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember()

    def _remember(self) -> None:
        """Caches of pure functions: those of the current epoch or turn and of the one before."""
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._order = lru_cache(maxsize=len(self.sources) + 1)(self._make_order)

    def where(self, place: int) -> tuple[int, int]:
        """(number of the source, number of its record) at a place."""
        epoch, position = divmod(place, self.samples)
        chosen, occurrence = self._plan(epoch)
        source = int(chosen[position])
        drawn = epoch * self.counts[source] + int(occurrence[position])
        length = self.sources[source].length
        if length is None:  # a stream has its own order
            return source, drawn
        turn, step = divmod(drawn, length)
        return source, int(self._order(source, turn)[step])

    def __getitem__(self, place: int) -> Sample:
        """The sample at a place. A broken record is reported and replaced by another of its source, drawn from (seed, place)."""
        number, index = self.where(place)
        source = self.sources[number]
        rng = random.Random(f"{self.seed}/{place}")  # noqa: S311
        for _ in range(ATTEMPTS):
            key = source.key(index)
            try:
                return source.sample(index, rng, lambda reason, key=key: self.broken.add(source.name, key, reason))
            except InputError as error:
                self.broken.add(source.name, key, str(error))
            index = source.table.another(index, rng)
        raise UsageError(f"{ATTEMPTS} records of {source.name} in a row are broken, the last: {self._last(source)}")

    def _last(self, source: Source) -> str:
        return next(entry["reason"] for entry in reversed(self.broken.entries()) if entry["source"] == source.name)

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of an epoch its source, and how many places of the epoch before it have the same one."""
        chosen = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
        np.random.default_rng([self.seed, 0, epoch]).shuffle(chosen)
        occurrence = np.empty(len(chosen), dtype=np.int64)
        for source, count in enumerate(self.counts):
            occurrence[chosen == source] = np.arange(count)
        return chosen, occurrence

    def _make_order(self, source: int, turn: int) -> np.ndarray:
        numbers = np.arange(self.sources[source].length or 0, dtype=np.int32)
        return np.random.default_rng([self.seed, 1, source, turn]).permutation(numbers)


def training_dataset(
    data: dict[str, Any],
    processor: DreamLLMProcessor,
    *,
    folder: str | Path = ".",
    broken_file: str | Path | None = None,
) -> TrainingData:
    """The samples that the `data:` part of a recipe describes.

    Args:
        data: as YAML gives it; see `dreamllm.data.recipe`.
        folder: what relative paths start from.
        broken_file: where broken records are listed, by all processes of a training run.

    Raises UsageError where the recipe is wrong or a file is missing.
    """
    recipe = read_recipe(data)
    max_length = recipe.max_length or processor.tokenizer.model_max_length
    cache = str(Path(folder) / recipe.cache) if recipe.cache else None
    if cache is not None and not all(source.streaming for source in recipe.sources):
        try:
            Path(cache).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"data.cache: {cache} cannot be made a folder: {error.strerror}") from None
    sources = [
        Source(source, processor, max_length, recipe.flip, Path(folder), cache, recipe.seed)
        for source in recipe.sources
    ]
    weights = [source.weight for source in recipe.sources if source.weight is not None]
    broken = BrokenRecords(recipe.max_broken, None if broken_file is None else Path(broken_file))
    return TrainingData(sources, broken, recipe.seed, weights or None, recipe.samples)


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total` in the proportions of `weights` (largest remainders)."""
    exact = np.asarray(weights, dtype=np.float64) * total / np.sum(weights)
    counts = np.floor(exact).astype(int)
    most = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[most] += 1
    return [int(count) for count in counts]
