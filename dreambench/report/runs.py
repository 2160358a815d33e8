"""Complete runs as the reports read them, and the choice of samples that a report shows."""

from __future__ import annotations

import glob
import hashlib
import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dreambench.documents import JSON, document_text
from dreambench.errors import RunError
from dreambench.files import read_table, sha256_file
from dreambench.progress import say
from dreambench.report.text import decimals, number
from dreambench.requests import Response, Sample
from dreambench.scores import Score
from dreambench.store import RunFolder

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["BLIND", "COUNT", "CompleteRun", "Examples", "choose", "equal_run", "load", "load_all", "random_order"]
__all__ += ["shown_documents", "shown_images", "shown_samples"]

BLIND = ("blind", "text-only")
"""Models that answer without seeing the images."""
COUNT = 12
"""Worst and best generated images, and the random samples that a page shows without its script."""
SHOWN, SHOWN_IMAGES, SHOWN_DOCUMENTS = 1024, 200, 48
"""Samples of text generation, image generation and interleaved generation on a page, at most."""
MOST_OTHERS = 50
"""Runs among which one is looked for that a new one may be compared with."""
Row = Mapping[str, JSON]


@dataclass(frozen=True)
class CompleteRun:
    """A run's folder and its metrics.json; the other files are read on first use. `beside` are the runs it is reported with."""

    run: RunFolder
    metrics: Mapping[str, JSON]
    beside: tuple[CompleteRun, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.run.path.resolve().name

    @property
    def title(self) -> str:
        return f"{self.metrics['task']} of {self.metrics['model']}"

    @cached_property
    def scores(self) -> list[Score]:
        return [Score.from_json(line) for line in self.metrics["scores"]]

    @cached_property
    def notes(self) -> list[str]:
        """Notes of the run, about the blind baseline and of the scores, each once."""
        of_scores = [note for score in self.scores for note in score.notes]
        return list(dict.fromkeys([*self.metrics["notes"], *self.blind_notes, *of_scores]))

    @cached_property
    def blind_notes(self) -> list[str]:
        """A sentence for each score over all samples, of which higher is better, that a blind baseline reaches.

        Its run is one beside this run or in the same folder, with the same protocol, and so of the same samples. metrics.json does not
        have these sentences: it depends on its own run only. Of a distance between sets there is none: real images of other captions
        have a low one, because it does not see the captions.
        """
        if self.is_blind:
            return []
        ours = {(score.metric, score.protocol): score for score in self.scores if score.group is None}
        reached: dict[tuple[str, str], tuple[Score, Score]] = {}
        for other in (*self.beside, *_blind_siblings(self)):
            for theirs in other.scores if other.is_blind else ():
                score = ours.get((theirs.metric, theirs.protocol)) if theirs.group is None and theirs.interval else None
                if score is None or score.value is None or theirs.value is None or score.value > theirs.value:
                    continue
                key = theirs.metric, str(other.metrics["model"])
                if score.better == "higher" and (key not in reached or (reached[key][1].value or 0) < theirs.value):
                    reached[key] = score, theirs  # of several seeds the highest
        return [_blind_note(model, *pair) for (_, model), pair in reached.items()]

    @property
    def is_blind(self) -> bool:
        """Whether it is a run of a blind baseline: of `blind`, or of a model without images, `text-only`."""
        return str(self.metrics["model"]).partition(":")[0] in BLIND

    @cached_property
    def date(self) -> str | None:
        """When its last answer was stored: ISO 8601, UTC. None for runs of versions that did not note it."""
        return max((str(timing["at"]) for timing in self.run.timings() if timing.get("at")), default=None)

    @cached_property
    def rows(self) -> list[dict[str, JSON]]:
        """scores.parquet: one row per sample."""
        return self._table.to_pylist()

    def rows_of(self, ids: Iterable[str]) -> dict[str, dict[str, JSON]]:
        """The rows of some samples, by id."""
        places = [self._places[id_] for id_ in ids if id_ in self._places]
        return {row["id"]: row for row in self._table.take(places).to_pylist()}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id_: place for place, id_ in enumerate(self.ids)}

    @property
    def columns(self) -> list[str]:
        """The columns of scores.parquet."""
        return self._table.column_names

    def count(self, column: str) -> int:
        """How many samples have a value in a column of scores.parquet, 0 for a column that it has not."""
        return len(self._table) - self._table[column].null_count if column in self._table.column_names else 0

    @property
    def ids(self) -> list[str]:
        """The ids of all samples, in the order of the run."""
        return self._table["id"].to_pylist()

    @cached_property
    def table(self) -> pd.DataFrame:
        """scores.parquet as a data frame, from which `dreambench.statistics.recompute` computes scores again."""
        return self._table.to_pandas()

    @cached_property
    def _table(self) -> pa.Table:
        import pyarrow as pa

        path = self.run.path / "scores.parquet"
        again = f"`dreambench score {self.run.path}` writes it again"
        wanted = self.metrics.get("files", {}).get("scores.parquet")
        if wanted is not None and path.is_file() and sha256_file(path) != wanted:
            raise RunError(f"{path} is missing or damaged (not the table of these metrics): {again}")
        try:
            return read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(f"{path} is missing or damaged: {again}") from error

    @cached_property
    def responses(self) -> Mapping[str, Response]:
        return self.run.responses()

    @cached_property
    def samples(self) -> dict[str, Sample]:
        return {sample.id: sample for sample in self.run.samples()}

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The text of each sample's prompt, by sample id."""
        return {id_: document_text(sample.prompt) for id_, sample in self.samples.items()}

    @property
    def has_images(self) -> bool:
        """Whether its samples have generated images."""
        return self.count("image") > 0


def _blind_siblings(run: CompleteRun) -> list[CompleteRun]:
    """The complete runs of blind baselines in the folder that holds a run. A damaged one is left to who reports it."""
    found: list[CompleteRun] = []
    runs = run.run.path.resolve().parent
    for folder in sorted([*runs.glob("[!.]*-blind*"), *runs.glob("[!.]*-text-only*")]):
        with suppress(RunError):
            found.append(load(folder))
    return found


def _blind_note(model: str, score: Score, theirs: Score) -> str:
    here, there = (
        f"{number(one.value, decimals([one])[one.metric, one.unit])} {one.unit}".strip() for one in (score, theirs)
    )
    how = "below it" if (score.value or 0) < (theirs.value or 0) else "no higher"
    return f"{score.metric}: the blind baseline {model} has {there}; this model's {here} is {how}"


def equal_run(folder: Path, metrics: Mapping[str, JSON]) -> Path | None:
    """Another complete run beside `folder`, of the headline's protocol, to compare it with: a blind baseline rather than another."""
    stem = folder.name.partition("-")[0]
    for prefix in (*(f"{stem}-{model}" for model in BLIND), f"{stem}-"):
        for path in sorted(folder.parent.glob(f"{glob.escape(prefix)}*/metrics.json"))[:MOST_OTHERS]:
            if path.parent.name != folder.name:
                with suppress(RunError):
                    if load(path.parent).metrics.get("protocol") == metrics.get("protocol"):
                        return path.parent
    return None


def load(folder: Path) -> CompleteRun:
    """A complete run. Raises `RunError` for an incomplete one."""
    run = RunFolder.open(folder)
    metrics = run.metrics()
    if metrics is None:
        raise RunError(f"{folder} is not complete: `dreambench rerun {folder}` completes it")
    return CompleteRun(run, metrics)


def load_all(paths: Sequence[Path]) -> list[CompleteRun]:
    """Complete runs in the order of `paths`, each once. A folder of runs stands for the complete runs in it, by name.

    Incomplete runs in a folder of runs are skipped with a line on standard error.

    Raises:
        RunError: a path is an incomplete run, or neither a run nor a folder with a complete run.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        found = [path] if (path / "run.json").is_file() else sorted(file.parent for file in path.glob("[!.]*/run.json"))
        complete = [folder for folder in found if folder == path or (folder / "metrics.json").exists()]
        if not complete:
            what = "holds no complete run" if found else "is not a run and holds no runs"
            raise RunError(f"{path} {what}: give a folder that `dreambench run` made, or the folder of such folders")
        for folder in found:
            if folder not in complete:
                say(f"skipping {folder}, which is not complete: `dreambench rerun {folder}` completes it")
        folders |= {folder.resolve(): folder for folder in complete}
    runs = [load(folder) for folder in folders.values()]
    blind = tuple(run for run in runs if run.is_blind)
    return [replace(run, beside=blind) for run in runs]


# --- samples to show --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Rows to show. `column` is what they are ranked by; without one (None), `worst` and `best` are empty."""

    column: str | None
    worst: list[Row]
    best: list[Row]
    random: list[Row]


def random_order(id_: str) -> bytes:
    """A key that puts samples into random order, the same in every call: the sha256 of the id."""
    return hashlib.sha256(id_.encode(errors="surrogatepass")).digest()


def choose(rows: Sequence[Row], metric: str = "", count: int = COUNT) -> Examples:
    """The `count` worst rows (worst first), the `count` best (best first) and `count` random ones, the same in every call.

    Rows are ranked by the column named `metric`, or else by the first column of fractions; higher is better. Ties are in random order.
    No row is both among the worst and the best.
    """
    shuffled = sorted(rows, key=lambda row: random_order(str(row["id"])))
    columns = [name for name in (rows[0] if rows else ()) if any(_is_number(row[name]) for row in rows)]
    column = metric if metric in columns else next(iter(columns), None)
    ranked: list[Row] = []
    if column is not None:
        ranked = sorted((row for row in shuffled if _is_number(row[column])), key=lambda row: row[column])
    half = min(count, len(ranked) // 2)
    return Examples(column, ranked[:half], ranked[::-1][:half], shuffled[:count])


def shown_samples(ids: Iterable[str], errors: Collection[str], count: int = SHOWN) -> list[str]:
    """The samples of text generation that a page shows: errors first, then random ones. A run keeps thumbnails of their images."""
    return heapq.nsmallest(count, ids, key=lambda id_: (id_ not in errors, random_order(id_)))


def shown_images(rows: Sequence[Row]) -> list[Row]:
    """The rows with a generated image that a page shows, each once: worst, best, then random ones.

    A run keeps thumbnails of their reference images and of the nearest ones.
    """
    generated = [row for row in rows if row["image"]]
    extreme, chosen = choose(generated), choose(generated, count=SHOWN_IMAGES)
    return list({row["id"]: row for row in (*extreme.worst, *extreme.best, *chosen.random)}.values())[:SHOWN_IMAGES]


def shown_documents(rows: Sequence[Row]) -> list[Row]:
    """Random rows of generated documents (those with the column `images`), which a page shows beside their reference documents."""
    return choose([row for row in rows if row.get("images") is not None], count=SHOWN_DOCUMENTS).random


def _is_number(value: JSON) -> bool:
    return isinstance(value, float) and math.isfinite(value)
