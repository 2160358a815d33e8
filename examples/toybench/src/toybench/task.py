"""The task: load, prompt, score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from dreambench import Cells, Image, Protocol, Request, Response, Sample, Score, Task, TaskResult, Text
from dreambench.documents import JSON, document_text
from dreambench.files import read_json_lines, sha256_file
from dreambench.images import BrokenImageError, decode_rgb
from dreambench.interfaces import sample_choice
from dreambench.requests import sample_seed
from dreambench.statistics import mean_estimate
from dreambench.store import RunFolder
from toybench.colors import scene_colors


class Toy(Task):
    """Toy: 40 questions about the colors of 20 images, and 20 prompts to generate such an image"""

    name = "toy"
    protocol_names: ClassVar[Mapping[str, str]] = {
        "exact": "an answer must equal the color's name; a generated image must have both colors",
    }
    presets: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "default": {"prompt": "\nAnswer the question using a single word or phrase.", "max_new_tokens": 4},
        "long": {"max_new_tokens": 32},
    }

    @cached_property
    def data(self) -> Path:
        """``--data DIR``, or the files that come with this package."""
        return self.spec.data_path or Path(__file__).parent / "data"

    def samples(self) -> list[Sample]:
        samples: list[Sample] = []
        for _, line in read_json_lines(self.data / "samples.jsonl"):
            image = (Image(str(self.data / "images" / line["image"])),) if line["image"] else ()
            samples.append(
                Sample(
                    id=line["id"],
                    prompt=(*image, Text(line["text"])),
                    targets={"colors": line["colors"]},
                    group=line["group"],
                )
            )
        return samples

    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        fields = {
            "task": self.name,
            "metric": "share of right answers and right images",
            "data_sha256": sha256_file(self.data / "samples.jsonl"),
            "samples": sample_choice(samples),
        }
        return [Protocol("exact", 1, fields)]

    def request(self, sample: Sample) -> Request:
        seed = sample_seed(self.spec.seed, sample.id)
        if not any(isinstance(part, Image) for part in sample.prompt):
            return Request(sample.id, "generate_image", sample.prompt, {}, seed, sample.group)
        document = (*sample.prompt, Text(self.generation["prompt"]))
        settings = {"max_new_tokens": self.generation["max_new_tokens"]}
        return Request(sample.id, "generate_text", document, settings, seed, sample.group)

    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        rows = [score_sample(sample, responses[sample.id]) for sample in samples]
        (protocol,) = run.run_file()["protocols"]
        scores = [mean_score(rows, protocol)]
        for kind in ("generate_text", "generate_image"):
            members = [row for row in rows if row["kind"] == kind]
            if members:
                scores.append(mean_score(members, protocol, kind=kind))
        return TaskResult(rows, scores)


def score_sample(sample: Sample, response: Response) -> dict[str, JSON]:
    """One row of scores.parquet. `correct` is None where there is no answer: a failed request is not a wrong answer."""
    colors = sample.targets["colors"]
    kind = "generate_text" if any(isinstance(part, Image) for part in sample.prompt) else "generate_image"
    if response.error is not None:
        correct = None
    elif kind == "generate_text":
        correct = document_text(response.document).strip(" .").lower() == colors[0]
    else:
        correct = image_colors(response) == colors
    return {"id": sample.id, "kind": kind, "group": sample.group, "correct": correct}


def image_colors(response: Response) -> list[str] | None:
    """The colors of the generated image; None where the answer holds no image."""
    images = [part for part in response.document if isinstance(part, Image)]
    try:
        return scene_colors(decode_rgb(images[0])) if images else None
    except BrokenImageError:
        return None


def mean_score(rows: Sequence[Mapping[str, JSON]], protocol: str, **where: JSON) -> Score:
    """The share of correct answers in percent. Questions about one image are not independent: the interval is clustered by image.

    `where` are the columns and values that all rows have in common. From the score's `cells`, `dreambench compare` and
    `dreambench leaderboard --verify` compute it again.
    """
    group = next((f"{name}={value}" for name, value in where.items()), None)
    scored = [row for row in rows if row["correct"] is not None]
    unscored = len(rows) - len(scored)
    if not scored:
        return Score("accuracy", None, "%", 0, protocol, group, unscored, interval_method="none: nothing was scored")
    estimate = mean_estimate(
        [float(row["correct"]) for row in scored], [row["group"] for row in scored], cluster_name="image"
    )
    cells = Cells("correct", "group", where)
    return Score.of("accuracy", estimate, protocol, group=group, unscored=unscored, better="higher", cells=cells)
