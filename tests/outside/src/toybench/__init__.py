"""A task of 60 questions about words, and a model that answers them: all that an outside package has to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from dreambench import Model, Protocol, Request, Response, Sample, Score, Task, TaskResult, Text
from dreambench.documents import document_text
from dreambench.interfaces import OutOfMemoryError, sample_choice
from dreambench.requests import Kind, sample_seed
from dreambench.store import RunFolder

WORDS = ("tree", "lamp", "river", "stone", "cloud", "horse")


class Toy(Task):
    """What is the last word? (60 questions in 20 groups, some with an image to generate images)"""

    name = "toy"
    protocol_names: ClassVar[Mapping[str, str]] = {"exact": "the last word, letter by letter"}
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "default": {"max_new_tokens": 4},
        "long": {"max_new_tokens": 8},
    }

    def samples(self) -> list[Sample]:
        return [
            Sample(
                id=f"toy-{i:02d}",
                prompt=(Text(f"{'very ' * (i % 7)}short {WORDS[i % 6]}"),),
                targets={"answer": WORDS[i % 6]},
                group=f"group-{i // 3}",
            )
            for i in range(60)
        ]

    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        return [Protocol("exact", 1, {"samples": sample_choice(samples)})]

    def request(self, sample: Sample) -> Request:
        kind: Kind = "generate_image" if sample.id.endswith("7") else "generate_text"
        seed = sample_seed(self.spec.seed, sample.id)
        return Request(sample.id, kind, sample.prompt, dict(self.generation), seed, sample.group)

    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        rows = [
            {"id": sample.id, "hit": float(document_text(responses[sample.id].document) == sample.targets["answer"])}
            for sample in samples
        ]
        value = sum(row["hit"] for row in rows) / len(rows)
        score = Score("accuracy", 100 * value, "%", len(rows), "exact", interval_method="none: a toy")
        return TaskResult(rows, [score])


class Parrot(Model):
    """Repeats the last word; with ``memory=N`` it can hold no more than N requests at once."""

    capabilities = frozenset({"generate_text", "generate_image"})

    def identity(self) -> Mapping[str, object]:
        return {"name": "parrot"}

    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        if len(requests) > int(self.options.arguments.get("memory", "1000")):
            raise OutOfMemoryError("too many words at once")
        for request in reversed(requests):
            yield Response(request.id, (Text(document_text(request.document).split()[-1]),))
