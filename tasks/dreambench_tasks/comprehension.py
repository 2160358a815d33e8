"""What the reading benchmarks share: where the data are, the request, a score with its interval.

A benchmark adds its files, its prompt, its scorer and its protocols.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dreambench.documents import JSON, Image, Text, document_text
from dreambench.interfaces import Task
from dreambench.requests import Kind, Request, Response, Sample, sample_seed
from dreambench.scores import Score
from dreambench.statistics import mean_estimate

if TYPE_CHECKING:
    from dreambench_tasks.copies import CopyMapping

__all__ = ["DREAMLLM_DECODING", "GREEDY", "ComprehensionTask", "answer_text", "mean_score"]

# `assistant_prefix` are the first words of the answer, put into the model's mouth.
GREEDY: dict[str, JSON] = {"system_prompt": "", "prompt": "", "assistant_prefix": "", "num_beams": 1}
# DreamLLM's scripts decode every reading benchmark so (temperature 0.2 is passed too, without sampling, where it means nothing).
DREAMLLM_DECODING: dict[str, JSON] = {"num_beams": 5, "max_new_tokens": 1024}


class ComprehensionTask(Task):
    """A benchmark of image and question to text."""

    @cached_property
    def data(self) -> Path:
        """The benchmark's folder, or the one that a copy was written out into, or the embedded playground's."""
        if self.spec.data_path is not None:
            return self.spec.data_path
        if self._copy is not None:
            return self._copy[1]
        from dreambench_tasks.playground import ensure_default

        return ensure_default()

    @cached_property
    def _copy(self) -> tuple[CopyMapping, Path] | None:
        if self.spec.dataset is None:
            return None
        from dreambench.files import cache_folder
        from dreambench_tasks.copies import local_files
        from dreambench_tasks.mappings import MAPPINGS

        given, cache = self.spec, cache_folder() / "datasets"
        return local_files(MAPPINGS, self.name, str(given.dataset), given.split, cache=cache, offline=given.offline)

    def data_fields(self) -> dict[str, JSON]:
        """What a protocol says of data that are not the official files: the mapping they were read under."""
        return {} if self._copy is None else {"data_mapping": self._copy[0].id}

    def ask(self, sample: Sample, text: str, kind: Kind = "generate_text", choices: tuple[str, ...] = ()) -> Request:
        """System prompt if any, image, then `text` and the preset's prompt, with nothing between them.

        The image stands first where there is no system prompt, so that its prefix is the same for all its questions.
        """
        given = self.generation
        image = next(part for part in sample.prompt if isinstance(part, Image))
        system = (Text(given["system_prompt"]),) if given["system_prompt"] else ()
        names = ("max_new_tokens", "num_beams") if kind == "generate_text" else ()
        settings: dict[str, JSON] = {name: given[name] for name in names}
        if given["assistant_prefix"]:
            settings["assistant_prefix"] = given["assistant_prefix"]
        document = (*system, image, Text(text + given["prompt"]))
        seed = sample_seed(self.spec.seed, sample.id)
        return Request(sample.id, kind, document, settings, seed, sample.group, choices)


def answer_text(response: Response) -> str | None:
    """What the model said; None where it ended in an error."""
    return None if response.error is not None else document_text(response.document)


def mean_score(
    metric: str,
    group: str | None,
    scores: ArrayLike,
    protocol: str,
    *,
    value: float | None = None,
    clusters: Iterable[Hashable] | None = None,
    cluster_name: str = "question",
    unscored: int = 0,
    bounds: tuple[float, float] | None = None,
    notes: tuple[str, ...] = (),
) -> Score:
    """A mean of scores in [0, 1], in percent, with the interval that suits them.

    `value`, in percent, is given where the benchmark's own order of summation decides the last digit. `bounds` default to those between
    which `unscored` more scores, all 0 or all 1, would move the mean.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = values.size
    if unscored and bounds is None:
        total = float(values.sum())
        bounds = 100 * total / (n + unscored), 100 * (total + unscored) / (n + unscored)
    if n == 0:
        method = "none: nothing was scored"
        return Score(metric, None, "%", 0, protocol, group, unscored, None, 0.95, method, bounds, notes)
    estimate = mean_estimate(values, clusters, cluster_name=cluster_name)
    fields: dict[str, Any] = {"group": group, "unscored": unscored, "bounds": bounds, "notes": notes}
    if value is not None:
        fields["value"] = value
    return Score.of(metric, estimate, protocol, **fields)
