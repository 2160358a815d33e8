"""The two interfaces of the harness: a task and a model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar

from dreambench.documents import JSON, Image, Text, digest
from dreambench.errors import DataError, ModelError, RunError, UsageError, counted
from dreambench.files import read_json_lines
from dreambench.requests import Kind, Request, Response, Sample, parse_id
from dreambench.scores import Protocol, TaskResult
from dreambench.spec import RunSpec
from dreambench.store import RunFolder, StoredSamples

__all__ = ["Model", "ModelOptions", "OutOfMemoryError", "Task", "every_answer", "sample_choice", "unique_answers"]


class OutOfMemoryError(ModelError):
    """A batch did not fit into memory; the runner halves it and records that in the plan."""


@dataclass(frozen=True)
class ModelOptions:
    """How to load a model. `location` is what follows the colon in ``--model NAME:LOCATION``."""

    name: str
    location: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False

    def only(self, *known: str) -> None:
        """Raise `UsageError` for a ``--model-arg`` key that the model does not have: no option is ignored."""
        for key in self.arguments:
            if key not in known:
                accepted = ", ".join(known) if known else "none"
                raise UsageError(
                    f"--model-arg {key}: the model {self.name} has no such argument (accepted: {accepted})"
                )

    def without_weights(self) -> None:
        """Raise `UsageError` for ``--dtype`` in a model that runs no weights here."""
        if self.dtype != "auto":
            raise UsageError(f"--dtype {self.dtype} has no effect on the model {self.name}: leave it out")


class Model(ABC):
    """Answers requests. Constructed with `ModelOptions`; construction loads the weights."""

    capabilities: ClassVar[frozenset[Kind]]
    sees: ClassVar[bool] = True
    """Whether the model reads the images of a request. Answers made elsewhere need no images on this machine."""
    generates: ClassVar[bool] = True
    """False for answers made elsewhere: the task's generation settings had no effect on them and are not recorded."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = options

    @abstractmethod
    def identity(self) -> Mapping[str, JSON]:
        """The system under test: ``name``, the hash of its weights, ``training`` where it is known. Part of the run's id."""

    @abstractmethod
    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        """Answer a batch, in any order, each request exactly once.

        A request that cannot be answered (a broken image, a refusal) yields `Response.failed`. Raise `ModelError` when no further
        request can be answered (the server is gone), and `OutOfMemoryError` to have the batch halved.
        """

    @classmethod
    def checkpoint_settings(cls, options: ModelOptions) -> Mapping[str, JSON]:
        """Generation settings that the checkpoint carries as its own defaults, by their names in tasks; found without its weights."""
        return {}

    def batch_size(self, kind: Kind) -> int:
        """Requests per batch under ``--batch-size auto``; must be the same in every process."""
        return 16

    def environment(self) -> Mapping[str, JSON]:
        """Device, dtype and the like: recorded, and the same when a run is resumed."""
        return {}

    def parameters(self) -> int | None:
        """The number of weights; None where it is unknown. Recorded, for leaderboards."""
        return None

    def notes(self) -> Sequence[str]:
        """Sentences to print beside every score, for instance that the weights are untrained."""
        return ()


class Task(ABC):
    """A benchmark: load, prompt, score, aggregate. Constructed with the `RunSpec`; construction checks it and reads no file.

    The order of calls is `samples`, `request`, `protocols` before the model answers; `postprocess_batch` on each answered batch;
    then, over the run's folder alone, `collect_artifacts` (impure and resumable: features, judgements) and `score` (pure).
    """

    name: ClassVar[str]
    protocol_names: ClassVar[Mapping[str, str]]
    """What ``--protocol`` accepts, with one line about each; the first is the default."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Which of the options images, real, split, features, judge, dataset the task uses; it refuses the others."""
    presets: ClassVar[Mapping[str, Mapping[str, JSON]]] = {"default": {}}
    """Generation settings by name; ``default`` is the benchmark's own, and the others start from it."""
    left_to_checkpoint: ClassVar[frozenset[str]] = frozenset()
    """Settings in which a checkpoint's own default precedes the benchmark's, unless ``--generation`` says otherwise."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        for name in ("images", "real", "split", "features", "judge"):
            if getattr(spec, name) is not None and name not in self.uses:
                raise UsageError(f"--{name} has no effect on the task {self.name}: leave it out")
        if spec.dataset is not None and "dataset" not in self.uses:
            raise UsageError(
                f"--data datasets:{spec.dataset}: {self.name} reads official files only; give their folder"
            )
        for name in spec.protocol:
            if name not in self.protocol_names:
                raise UsageError(f"--protocol {name}: {self.name} has {', '.join(self.protocol_names)}")
        self.generation = resolve_generation(self.name, self.presets, spec.generation)

    def adopt(self, own: Mapping[str, JSON]) -> None:
        """Take the model's `checkpoint_settings` as defaults; called before the first request is made."""
        own = {name: value for name, value in own.items() if name in self.left_to_checkpoint}
        self.generation = resolve_generation(self.name, self.presets, self.spec.generation, own)

    @abstractmethod
    def samples(self) -> Iterable[Sample]:
        """Every sample of the split, in a fixed order. A broken file is a `DataError`.

        A list; or an iterator, of which only a compact copy is held: for more samples than fit into memory, their images in files.
        """

    def inputs(self) -> Sequence[Path] | None:
        """The files and folders that `samples` and `protocols` read, if their images are files; None: the task does not say.

        While none of them has changed in size or time, a run that has begun goes on without reading them again.
        """
        return None

    def first(self, samples: Sequence[Sample], n: int) -> Sequence[Sample]:
        """The samples that ``--limit N`` takes: the first N, and the others of their groups, so that no image's questions are cut."""
        chosen = samples[:n]
        groups = {sample.group for sample in chosen} - {None}
        others = [sample for sample in islice(samples, n, None) if sample.group in groups]
        return [*chosen, *others] if others else chosen

    @abstractmethod
    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        """The protocols of the run, headline first. What they need (weights, references) is checked here, before hours of work."""

    @abstractmethod
    def request(self, sample: Sample) -> Request:
        """The request for a sample: the prompt text of the benchmark is written here."""

    def read_responses(self, path: Path) -> Mapping[str, str]:
        """Answers made elsewhere, by sample id. Here JSON lines ``{"id", "text"}``; a task may add the benchmark's result format."""
        texts: dict[str, str] = {}
        for number, line in read_json_lines(path):
            try:
                id_, text = parse_id(line["id"]), line["text"]
                if not isinstance(text, str):
                    raise TypeError("text is no text")
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f'{path}, line {number}: not of the form {{"id": "...", "text": "..."}} ({error})'
                ) from error
            if id_ in texts:
                raise DataError(f"{path}, line {number}: a second answer to {id_}")
            texts[id_] = text
        return texts

    def postprocess_batch(self, requests: Sequence[Request], responses: Sequence[Response]) -> Sequence[Response]:
        """A last step on the answers to a batch before they are stored, for instance choosing among candidates."""
        return responses

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """Store what scoring needs beyond the answers (features, judgements) in the run. Called again, it resumes."""
        return

    @abstractmethod
    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        """Rows and scores from the run's files alone: no clock, no network, no unseeded randomness."""

    def estimate(self, samples: Sequence[Sample]) -> Sequence[str]:
        """Lines for ``--dry-run`` about the cost of scoring, for instance a judge's calls and tokens."""
        return ()

    def system(self) -> Mapping[str, JSON]:
        """What the benchmark leaves open and this run decides: prompt wording and decoding."""
        return {"generation": dict(self.generation)}

    # --- beyond a run ---------------------------------------------------------------------------------------------------

    submission: ClassVar[tuple[str, ...]] = ()
    """Suffixes of the benchmark's own result file, which `write_submission` writes; empty: the task has none."""

    def write_submission(
        self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response], path: Path
    ) -> None:
        """Write the file that the benchmark's server or official evaluator takes. `RunError` where a sample has no answer."""
        raise UsageError(f"{self.name} has no result file of its own")

    def benchmark_texts(self, sample: Sample) -> Iterable[str]:
        """Texts of a sample that training data should not hold: those of its prompt, and the long lines of its references."""
        yield from (part.text for part in sample.prompt if isinstance(part, Text))
        yield from _long_lines(sample.targets)

    def benchmark_images(self, sample: Sample) -> Iterable[Image]:
        """Images of a sample that training data should not hold: those of its prompt; a task adds its reference images."""
        return (part for part in sample.prompt if isinstance(part, Image))


def _long_lines(value: JSON) -> Iterator[str]:
    """Lines with at least eight words, however deep they lie; shorter ones, such as "yes", belong to no sample in particular."""
    if isinstance(value, str):
        yield from (line for line in value.splitlines() if len(line.split()) >= 8)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _long_lines(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _long_lines(inner)


def every_answer(run: RunFolder, answers: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """The answers by sample id, for a submission: `RunError` if one is missing, because servers accept whole splits only."""
    found = dict(answers)
    missing = [id_ for id_, answer in found.items() if answer is None]
    if missing:
        raise RunError(
            f"{run.path}: {len(missing)} of {counted(len(found), 'sample')} have no answer, the first {missing[0]}, and a submission"
            " must answer all: `dreambench report` shows the errors, and a run with --fresh asks again"
        )
    return {id_: answer for id_, answer in found.items() if answer is not None}


def sample_choice(samples: Sequence[Sample]) -> JSON:
    """The protocol field that identifies the samples and their order."""
    ids = samples.ids() if isinstance(samples, StoredSamples) else (sample.id for sample in samples)
    return {"n": len(samples), "ids_sha256": digest(ids)}


def unique_answers(path: Path, pairs: Iterable[tuple[str, JSON]]) -> dict[str, str]:
    """Answers by sample id. `DataError` where an answer is not text, or a sample has two."""
    answers: dict[str, str] = {}
    for id_, answer in pairs:
        if not isinstance(answer, str):
            raise DataError(f"{path}: the answer to {id_} is not text but {answer!r}")
        if id_ in answers:
            raise DataError(f"{path}: {id_} is answered twice")
        answers[id_] = answer
    return answers


def resolve_generation(
    task: str,
    presets: Mapping[str, Mapping[str, JSON]],
    words: Sequence[str],
    own: Mapping[str, JSON] | None = None,
) -> Mapping[str, JSON]:
    """Settings from ``--generation``: the name of a preset, then KEY=VALUE pairs whose keys the default has.

    `own` are the checkpoint's, which precede the default and are preceded by any preset that is named.
    """
    settings: dict[str, JSON] = {**presets["default"], **(own or {})}
    settings["preset"] = "default"
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            if key not in presets:
                raise UsageError(
                    f"--generation {word}: {task} has the presets {', '.join(presets)} and takes KEY=VALUE"
                )
            settings |= presets[key]
            settings["preset"] = key
        elif key not in presets["default"]:
            raise UsageError(f"--generation {word}: {task} has the settings {', '.join(presets['default']) or 'none'}")
        else:
            settings[key] = _typed(value, presets["default"][key], word)
    return settings


def _typed(value: str, default: JSON, word: str) -> JSON:
    if isinstance(default, str):
        return value
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value]
        typed = type(default)(value)
        if not math.isfinite(typed):
            raise ValueError(value)
        return typed
    except (KeyError, ValueError) as error:
        raise UsageError(f"--generation {word}: {value!r} is not a {type(default).__name__}") from error
