"""What a study shows: the documents of several runs for the prompts that they have in common, and reference documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from dreambench.documents import JSON, Document, Image, Text, canonical_json, digest, document_text, from_json
from dreambench.errors import UsageError, counted
from dreambench.report.runs import CompleteRun, load
from dreambench.requests import Response, Sample, sample_seed

__all__ = ["REFERENCES", "Prompt", "Sources", "read_sources"]

REFERENCES = "references"
"""The name of the reference documents among the systems."""


@dataclass(frozen=True)
class Prompt:
    """An instruction. `images` are those that it contains; raters see them above each document."""

    id: str
    topic: str | None
    instruction: str
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Sources:
    """Prompts and, by system and prompt id, the documents. `failed` says for prompts without all documents what is missing."""

    task: str
    prompts: list[Prompt]
    systems: dict[str, JSON]
    documents: dict[str, dict[str, Document]]
    failed: dict[str, str]

    def fingerprint(self) -> str:
        """sha256 of everything that may be shown; images without a digest count by name. Who sees a part of it cannot compute it."""
        shown = {
            system: {id_: [_content(part) for part in document] for id_, document in documents.items()}
            for system, documents in self.documents.items()
        }
        return digest([self.systems, shown])

    def in_order(self, seed: int) -> Iterator[Prompt]:
        """Prompts by seed, topic by topic in turn, so that the first N have N / topics of each, as far as there are as many."""
        ranks: dict[str | None, int] = {}
        places: list[tuple[int, int, Prompt]] = []
        for prompt in sorted(self.prompts, key=lambda prompt: sample_seed(seed, f"prompt {prompt.id}")):
            rank = ranks[prompt.topic] = ranks.get(prompt.topic, -1) + 1
            places.append((rank, sample_seed(seed, f"topic {prompt.topic}"), prompt))
        return (prompt for _, _, prompt in sorted(places, key=lambda place: place[:2]))


def read_sources(folders: Sequence[Path], *, references: bool) -> Sources:
    """The documents of complete runs on the same samples.

    Of an interleaved run only free generation is shown, one document for each instruction: the first, where there are several.

    Raises:
        UsageError: runs of different tasks or samples, a run twice, or no reference documents although `references` asks for them.
        RunError: a run is not complete.
    """
    runs = [load(folder) for folder in folders]
    first, *others = runs
    samples = first.run.samples()
    for other in others:
        _require_same(first, samples, other)
    shown = _prompts(samples)
    if not shown:
        raise UsageError(f"{first.run.path} has no free generation to show: raters judge whole documents")
    names = _names(runs)
    documents: dict[str, dict[str, Document]] = {}
    failed: dict[str, str] = {}
    for name, run in zip(names, runs, strict=True):
        documents[name] = {}
        for id_, sample in shown.items():
            response = run.responses[sample.id]
            if response.error is None:
                documents[name][id_] = _document(response)
            else:
                failed.setdefault(id_, f"{name}: {response.error.type}")
    systems: dict[str, JSON] = {
        name: {"run": run.name, "model": run.metrics["model"], "protocol": run.metrics["protocol"]}
        for name, run in zip(names, runs, strict=True)
    }
    if references:
        systems[REFERENCES] = {"references": str(first.metrics["task"])}
        documents[REFERENCES] = _references(first, shown)
    prompts = [_prompt(id_, sample) for id_, sample in shown.items() if id_ not in failed]
    return Sources(str(first.metrics["task"]), prompts, systems, documents, failed)


def _require_same(first: CompleteRun, samples: Sequence[Sample], other: CompleteRun) -> None:
    pair = f"{first.run.path} and {other.run.path}"
    if other.run.path.resolve() == first.run.path.resolve():
        raise UsageError(f"{first.run.path} is given twice")
    if other.metrics["task"] != first.metrics["task"]:
        raise UsageError(f"{pair} are runs of {first.metrics['task']} and of {other.metrics['task']}: give one task's")
    ours, theirs = ({one.id: _identity(one) for one in some} for some in (samples, other.run.samples()))
    if ours.keys() != theirs.keys():
        only = len(ours.keys() ^ theirs.keys())
        raise UsageError(
            f"{pair} have different samples ({only} are in one of them only): run both with the same --limit, --ids, --seed"
        )
    changed = [id_ for id_ in ours if ours[id_] != theirs[id_]]
    if changed:
        raise UsageError(
            f"{pair} have other data ({len(changed)} samples differ, the first {changed[0]}): run both on one"
        )


def _identity(sample: Sample) -> str:
    """Prompt and targets, with images by the names of their files, so that data may move."""
    return canonical_json([_nameless([_content(part) for part in sample.prompt]), _nameless(dict(sample.targets))])


def _nameless(value: JSON) -> JSON:
    if isinstance(value, dict):
        paths = {key for key, one in value.items() if key.endswith("image") and isinstance(one, str)}
        return {key: PurePath(one).name if key in paths else _nameless(one) for key, one in value.items()}
    return [_nameless(one) for one in value] if isinstance(value, list) else value


def _content(part: Text | Image) -> JSON:
    return (
        part.text
        if isinstance(part, Text)
        else {"image": part.sha256 or (PurePath(part.path).name if part.path else part.digest())}
    )


def _names(runs: Sequence[CompleteRun]) -> list[str]:
    """Models' names; runs' names where two are of one model."""
    models = [str(run.metrics["model"]) for run in runs]
    names = [model if models.count(model) == 1 else run.name for model, run in zip(models, runs, strict=True)]
    if len({*names, REFERENCES}) <= len(names):
        raise UsageError(f"two systems would have one name ({', '.join(sorted(names))}): rename a run's folder")
    return names


def _prompts(samples: Sequence[Sample]) -> dict[str, Sample]:
    """The first sample of each instruction, by the id of its document where the task gives one."""
    found: dict[str, Sample] = {}
    for sample in samples:
        if sample.targets.get("mode", "free") == "free":
            found.setdefault(str(sample.targets.get("document_id", sample.id)), sample)
    return found


def _prompt(id_: str, sample: Sample) -> Prompt:
    images = tuple(part for part in sample.prompt if isinstance(part, Image))
    instruction = sample.targets.get("instruction") or document_text(sample.prompt)
    return Prompt(id_, sample.targets.get("topic") or None, str(instruction), images)


def _document(response: Response) -> Document:
    """A response's document; of several candidates for one image, the one that was chosen."""
    return response.document[:1] if "kept" in response.details else response.document


def _references(run: CompleteRun, shown: Mapping[str, Sample]) -> dict[str, Document]:
    missing = [id_ for id_, sample in shown.items() if not sample.targets.get("reference")]
    if missing:
        raise UsageError(
            f"--references: {counted(len(missing), 'sample')} of {run.run.path} have no reference document, the first {missing[0]}"
        )
    return {id_: from_json(sample.targets["reference"]) for id_, sample in shown.items()}
