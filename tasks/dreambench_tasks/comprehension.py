"""What the comprehension benchmarks share: where the data are, the request, files of answers, a mean with its interval.

A benchmark adds its files, its prompt, its scorer and its protocols.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dreambench.documents import JSON, Image, Text, document_text
from dreambench.errors import DataError
from dreambench.files import cache_folder
from dreambench.interfaces import Task
from dreambench.progress import say
from dreambench.report.images import save_reference_images, saved_reference_images
from dreambench.report.runs import shown_samples
from dreambench.requests import Kind, Request, Response, Sample, sample_seed
from dreambench.scores import Cells, Score
from dreambench.statistics import mean_estimate
from dreambench.store import Answers, RunFolder, StoredSamples

if TYPE_CHECKING:
    from dreambench_tasks.copies import CopyMapping

__all__ = [
    "DREAMLLM_DECODING",
    "GREEDY",
    "ComprehensionTask",
    "answer_text",
    "image_name",
    "mean_score",
    "question_text",
]

# `assistant_prefix` holds the first words of the answer, from which the model continues.
GREEDY: dict[str, JSON] = {"system_prompt": "", "prompt": "", "assistant_prefix": "", "num_beams": 1}
# The decoding of all comprehension benchmarks in DreamLLM's scripts (they also pass temperature 0.2, which has no effect without
# sampling).
DREAMLLM_DECODING: dict[str, JSON] = {"num_beams": 5, "max_new_tokens": 1024}


class ComprehensionTask(Task):
    """A benchmark of image and question to text."""

    @cached_property
    def data(self) -> Path:
        """``--data``, the folder of official files that a Hub copy was converted to, or the embedded playground."""
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
        from dreambench_tasks.copies import local_files

        spec, cache = self.spec, cache_folder() / "datasets"
        return local_files(self.name, self.spec.dataset, spec.split, cache=cache, offline=spec.offline)

    def data_fields(self) -> dict[str, JSON]:
        """Protocol fields of data that are not the official files: the mapping that they were converted under."""
        return {} if self._copy is None else {"data_mapping": self._copy[0].id}

    def ask(self, sample: Sample, text: str, kind: Kind = "generate_text", choices: tuple[str, ...] = ()) -> Request:
        """The request: system prompt if any, image, then `text` and the preset's prompt, with nothing between them.

        Without a system prompt the image comes first, so that all questions about one image share a prefix.
        """
        options = self.generation
        image = next(part for part in sample.prompt if isinstance(part, Image))
        system = (Text(options["system_prompt"]),) if options["system_prompt"] else ()
        names = ("max_new_tokens", "num_beams") if kind == "generate_text" else ()
        settings: dict[str, JSON] = {name: options[name] for name in names}
        if options["assistant_prefix"]:
            settings["assistant_prefix"] = options["assistant_prefix"]
        document = (*system, image, Text(text + options["prompt"]))
        seed = sample_seed(self.spec.seed, sample.id)
        return Request(sample.id, kind, document, settings, seed, sample.group, choices)

    # --- images for reports -----------------------------------------------------------------------------------------------

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """Store thumbnails of the images of the samples that a report shows. No score depends on them."""
        ids = samples.ids() if isinstance(samples, StoredSamples) else (sample.id for sample in samples)
        errors = responses.errors if isinstance(responses, Answers) else {}
        wanted = set(shown_samples(ids, errors))
        chosen = samples.pick(wanted) if isinstance(samples, StoredSamples) else samples
        saved = saved_reference_images(run)
        images = {self.image_key(sample): sample for sample in chosen if sample.id in wanted}
        try:
            missing = {key: self.image_data(sample) for key, sample in sorted(images.items()) if key not in saved}
            save_reference_images(run, missing, skip_broken=True)
        except DataError as error:
            say(f"reports of this run will show no images: {error}")

    def image_key(self, sample: Sample) -> str:
        """What the column `image_id` of scores.parquet names a sample's image by."""
        return str(sample.group)

    def image_data(self, sample: Sample) -> Path | bytes:
        """The image of a sample that was read back from a run. Raises `DataError` where the data are gone."""
        image = sample.prompt[0]
        return Path(image.path or "") if isinstance(image, Image) else b""


def question_text(sample: Sample) -> str:
    """The question of a sample: the text after its image (which has become a text in samples read back from a run)."""
    return next(part.text for part in sample.prompt[1:] if isinstance(part, Text))


def image_name(sample: Sample) -> str:
    """What names the image of a sample: its path or hash, or the text that holds its hash in samples read back from a run."""
    image = sample.prompt[0]
    return image.text if isinstance(image, Text) else image.path or image.digest()


def answer_text(response: Response) -> str | None:
    """The model's answer; None where the request failed."""
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
    cells: Cells | None = None,
) -> Score:
    """A mean of scores in [0, 1], in percent, with its interval (`mean_estimate`).

    `value`, in percent, replaces the mean where the benchmark's own order of summation decides the last digit. `bounds` default to the
    mean if all `unscored` scores were 0, and if all were 1. `cells` of scores.parquet hold these scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = values.size
    if unscored and bounds is None:
        total = float(values.sum())
        bounds = 100 * total / (n + unscored), 100 * (total + unscored) / (n + unscored)
    fields: dict[str, Any] = {
        "group": group,
        "unscored": unscored,
        "bounds": bounds,
        "notes": notes,
        "better": "higher",
    }
    if n == 0:
        return Score(metric, None, "%", 0, protocol, interval_method="none: nothing was scored", **fields)
    if value is not None:
        fields["value"] = value
    return Score.of(metric, mean_estimate(values, clusters, cluster_name=cluster_name), protocol, cells=cells, **fields)
