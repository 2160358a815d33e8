"""The two small interfaces that everything else hangs on: a task and a model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dreambench.documents import JSON, digest
from dreambench.errors import DataError, ModelError, UsageError
from dreambench.files import read_json_lines
from dreambench.requests import Kind, Request, Response, Sample
from dreambench.scores import Protocol, TaskResult
from dreambench.spec import RunSpec

if TYPE_CHECKING:
    from dreambench.store import RunFolder

__all__ = ["Model", "ModelOptions", "OutOfMemoryError", "Task", "sample_choice"]


class OutOfMemoryError(ModelError):
    """A batch did not fit; the runner halves it and writes the halves into the plan."""


@dataclass(frozen=True)
class ModelOptions:
    """How a model is to be loaded. `location` is what follows the colon of ``--model NAME:LOCATION``."""

    name: str
    location: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False

    def only(self, *known: str) -> None:
        """Refuse ``--model-arg`` keys that this model does not have: every flag acts or errors."""
        for key in self.arguments:
            if key not in known:
                accepted = ", ".join(known) if known else "none"
                raise UsageError(
                    f"--model-arg {key}: the model {self.name} has no such argument (accepted: {accepted})"
                )

    def without_weights(self) -> None:
        """Refuse ``--dtype`` where nothing is computed with weights of ours."""
        if self.dtype != "auto":
            raise UsageError(f"--dtype {self.dtype} means nothing to the model {self.name}: leave it out")


class Model(ABC):
    """Something that answers requests. Constructed with `ModelOptions`; construction loads the weights."""

    capabilities: ClassVar[frozenset[Kind]]
    sees: ClassVar[bool] = True
    """Whether it opens the images of a request. Where it does not (answers made elsewhere), they need not be on this machine."""
    generates: ClassVar[bool] = True
    """False where the answers were made elsewhere, so that the task's settings did not act on them and are not recorded."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = options

    @abstractmethod
    def identity(self) -> Mapping[str, JSON]:
        """What is measured: at least ``name``; weights' hash; ``training`` where there is something to say. Part of the run's id."""

    @abstractmethod
    def answer(self, requests: Sequence[Request]) -> Iterator[Response]:
        """Answer a batch, in any order, each request exactly once.

        A request that cannot be answered (a broken image, a refusal of the server) yields a `Response` with an `error`; what
        makes every further request pointless (a server that is gone) raises `ModelError`. `OutOfMemoryError` has the batch halved.
        """

    def batch_size(self, kind: Kind) -> int:
        """Requests per batch under ``--batch-size auto``; must be the same in every process."""
        return 16

    def environment(self) -> Mapping[str, JSON]:
        """Device, dtype and the like: recorded, and not to be changed within a run."""
        return {}

    def notes(self) -> Sequence[str]:
        """Sentences to be shown with every score, for instance that the weights are untrained."""
        return ()


class Task(ABC):
    """A benchmark: load, prompt, score, aggregate. Constructed with the `RunSpec`; construction checks it and reads no file.

    The order of calls is `samples`, `request`, `protocols` before the model answers; `postprocess_batch` on each answered batch;
    then, over the run's folder alone, `collect_artifacts` (impure and resumable: features, judgements) and `score` (pure).
    """

    name: ClassVar[str]
    protocol_names: ClassVar[Mapping[str, str]]
    """What ``--protocol`` accepts, each with a line about it; the first is the default."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Which of the options images, real, split, features, judge, dataset mean something here; the others are refused."""
    presets: ClassVar[Mapping[str, Mapping[str, JSON]]] = {"default": {}}
    """Generation settings by name; ``default`` is the benchmark's own, and further ones start from it."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        for name in ("images", "real", "split", "features", "judge"):
            if getattr(spec, name) is not None and name not in self.uses:
                raise UsageError(f"--{name} means nothing to the task {self.name}: leave it out")
        if spec.dataset is not None and "dataset" not in self.uses:
            raise UsageError(
                f"--data datasets:{spec.dataset}: {self.name} reads official files only; give their folder"
            )
        for name in spec.protocol:
            if name not in self.protocol_names:
                raise UsageError(f"--protocol {name}: {self.name} has {', '.join(self.protocol_names)}")
        self.generation = resolve_generation(self.name, self.presets, spec.generation)

    @abstractmethod
    def samples(self) -> list[Sample]:
        """Every sample of the split, in a fixed order. A broken file is a `DataError`."""

    @abstractmethod
    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        """The protocols asked for, headline first. Whatever they need (weights, references) is looked for here, before hours of work."""

    @abstractmethod
    def request(self, sample: Sample) -> Request:
        """The sample's request; the prompt text of the benchmark is visible in here."""

    def read_responses(self, path: Path) -> Mapping[str, str]:
        """Answers made elsewhere, by sample id: our own lines, and in a task that knows it the benchmark's result format."""
        texts: dict[str, str] = {}
        for number, line in read_json_lines(path):
            if not (
                isinstance(line, dict) and isinstance(line.get("id"), str | int) and isinstance(line.get("text"), str)
            ):
                raise DataError(f'{path}, line {number}: not of the form {{"id": "...", "text": "..."}}')
            if str(line["id"]) in texts:
                raise DataError(f"{path}, line {number}: a second answer to {line['id']}")
            texts[str(line["id"])] = line["text"]
        return texts

    def postprocess_batch(self, requests: Sequence[Request], responses: Sequence[Response]) -> Sequence[Response]:
        """A last step on a batch's answers before they are written, for instance choosing among candidates."""
        return responses

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """Collect the facts that scoring needs beyond the answers, into the run's folder. Called again, it goes on."""
        return

    @abstractmethod
    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        """Rows and scores from the run's files alone: no clock, no network, no unseeded chance."""

    def estimate(self, samples: Sequence[Sample]) -> Sequence[str]:
        """Lines for ``--dry-run`` about what scoring will cost, for instance a judge's calls and tokens."""
        return ()

    def system(self) -> Mapping[str, JSON]:
        """What the benchmark leaves open and this run fixes: prompt wording and decoding."""
        return {"generation": dict(self.generation)}


def sample_choice(samples: Sequence[Sample]) -> JSON:
    """The protocol field that says which samples were taken, in which order."""
    return {"n": len(samples), "ids_sha256": digest([sample.id for sample in samples])}


def resolve_generation(
    task: str, presets: Mapping[str, Mapping[str, JSON]], asked: Sequence[str]
) -> Mapping[str, JSON]:
    """Settings from ``--generation``: a preset's name first, then KEY=VALUE pairs whose keys the default has."""
    settings: dict[str, JSON] = dict(presets["default"])
    settings["preset"] = "default"
    for word in asked:
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


def _typed(value: str, like: JSON, word: str) -> JSON:
    if isinstance(like, str):
        return value
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[value]
        typed = type(like)(value)
        if not math.isfinite(typed):
            raise ValueError(value)
        return typed
    except (KeyError, ValueError) as error:
        raise UsageError(f"--generation {word}: {value!r} is not a {type(like).__name__}") from error
