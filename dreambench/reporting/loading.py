"""A complete run as the reports read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dreambench.documents import JSON, document_text
from dreambench.errors import RunError
from dreambench.requests import Response
from dreambench.scores import Score
from dreambench.store import RunFolder

__all__ = ["Loaded", "load", "load_all"]


@dataclass(frozen=True)
class Loaded:
    """A run's folder and its metrics.json; the rest is read when it is first asked for."""

    run: RunFolder
    metrics: Mapping[str, JSON]

    @property
    def name(self) -> str:
        """The folder's name, which the same command always gives."""
        return self.run.path.resolve().name

    @property
    def title(self) -> str:
        return f"{self.metrics['task']} of {self.metrics['model']}"

    @cached_property
    def scores(self) -> list[Score]:
        return [Score.from_json(line) for line in self.metrics["scores"]]

    @cached_property
    def notes(self) -> list[str]:
        """What must be seen beside the scores, each sentence once."""
        return list(dict.fromkeys([*self.metrics["notes"], *(note for score in self.scores for note in score.notes)]))

    @cached_property
    def rows(self) -> list[dict[str, JSON]]:
        """scores.parquet: one row per sample."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.run.path / "scores.parquet"
        try:
            return pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(
                f"{path} is missing or damaged: `dreambench score {self.run.path}` writes it anew"
            ) from error

    @cached_property
    def responses(self) -> dict[str, Response]:
        return self.run.responses()

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The text of each sample's prompt."""
        return {sample.id: document_text(sample.prompt) for sample in self.run.samples()}

    @property
    def generates(self) -> bool:
        """Whether its rows are images."""
        return any(row.get("image") for row in self.rows)


def load(folder: Path) -> Loaded:
    """A complete run. One that is not complete is a `RunError` that says how to finish it."""
    run = RunFolder.open(folder)
    metrics = run.metrics()
    if metrics is None:
        raise RunError(f"{folder} is not complete: `dreambench rerun {folder}` finishes it")
    return Loaded(run, metrics)


def load_all(folders: Sequence[Path]) -> list[Loaded]:
    """Complete runs in the order given, each once."""
    return [load(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
