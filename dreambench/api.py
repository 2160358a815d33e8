"""The verbs over runs as plain functions: what the command line calls, and what a notebook may."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambench.adapters.responses import Responses
from dreambench.documents import JSON, Image, canonical_json, digest, to_json
from dreambench.errors import DataError, ModelError, RunError, UsageError
from dreambench.interfaces import Model, ModelOptions, Task, TaskOptions, data_place
from dreambench.lock import RunLock, rank_and_world
from dreambench.plan import batches
from dreambench.registry import load_model, load_task, model_class, parse_model
from dreambench.requests import Request, Response, Sample
from dreambench.runner import Progress, Worker, unanswered
from dreambench.scores import Protocol, Score
from dreambench.store import FORMAT, RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Result", "RunPlan", "RunSpec", "execute", "prepare", "rerun", "run", "score_run"]


@dataclass(frozen=True)
class RunSpec:
    """One run as the user asked for it; run.json keeps it, so that `rerun` can ask again."""

    task: str
    model: str = "dreamllm"
    model_arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    options: TaskOptions = field(default_factory=TaskOptions)
    limit: int | None = None
    ids: Sequence[str] | None = None
    batch_size: int | None = None
    device: str = "auto"
    dtype: str = "auto"

    def to_json(self) -> JSON:
        return {
            "task": self.task,
            "model": self.model,
            "model_arguments": dict(self.model_arguments),
            "options": self.options.to_json(),
            "limit": self.limit,
            "ids": None if self.ids is None else list(self.ids),
            "batch_size": self.batch_size,
            "device": self.device,
            "dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, line: Mapping[str, JSON]) -> RunSpec:
        known: dict[str, Any] = {**line, "options": TaskOptions.from_json(line["options"])}
        return cls(**known)


@dataclass(frozen=True)
class Result:
    """Where a run lies and what came of it. `metrics` is None where other processes still owe answers."""

    folder: Path
    metrics: Mapping[str, JSON] | None
    repeated: bool = False
    """True when a complete run was found and nothing was asked."""

    @property
    def scores(self) -> list[Score]:
        return [] if self.metrics is None else [Score.from_json(line) for line in self.metrics["scores"]]

    @property
    def errors(self) -> int:
        """Requests that ended in an error instead of an answer."""
        return 0 if self.metrics is None else int(self.metrics["errors"]["n"])


@dataclass(frozen=True)
class RunPlan:
    """A run that is planned but not begun: what ``--dry-run`` shows."""

    asked: RunSpec
    task: Task
    model: Model
    samples: list[Sample]
    requests: list[Request]
    protocols: list[Protocol]
    batch_size: int
    folder: Path

    @property
    def system(self) -> JSON:
        return _system(self.model, self.task)


def _system(model: Model, task: Task) -> JSON:
    """What is measured. How answers that were made elsewhere were asked for and decoded, only their maker knows."""
    made = task.system() if model.generates else {"generation": "made elsewhere"}
    return {"model": dict(model.identity()), **made}


def prepare(asked: RunSpec, out: Path, model: Model | None = None) -> RunPlan:
    """Load task and model, choose the samples, and find the run's folder. Writes nothing."""
    task = load_task(asked.task, asked.options)
    samples = choose(task.samples(), asked.limit, asked.ids)
    requests = [task.request(sample) for sample in samples]
    protocols = task.protocols(samples)
    name, location = parse_model(asked.model)
    if (model_class(name) if model is None else type(model)).sees:
        _require_images(samples)
    if model is None:
        model = load_model(
            ModelOptions(name, location, asked.model_arguments, asked.device, asked.dtype, asked.options.offline)
        )
    if asked.options.generation and not model.generates:
        raise UsageError(
            f"--generation means nothing to answers that were made elsewhere ({asked.model}): leave it out"
        )
    if isinstance(model, Responses):
        model.bind(_known_answers(task, model.path, samples))
    for kind in sorted({request.kind for request in requests}):
        if kind not in model.capabilities:
            can = ", ".join(sorted(model.capabilities))
            raise ModelError(
                f"the task {asked.task} needs {kind}, the model {asked.model} can only {can}: choose another model"
            )
    identity = {
        "task": task.name,
        "protocols": [protocol.id for protocol in protocols],
        "system": _system(model, task),
        "requests": [request.identity() for request in requests],
    }
    folder = out / f"{_slug(task.name)}-{_slug(asked.model)}-{digest(identity)[:8]}"
    batch_size = asked.batch_size or min(model.batch_size(request.kind) for request in requests)
    return RunPlan(asked, task, model, samples, requests, protocols, batch_size, folder)


def _known_answers(task: Task, path: Path, samples: Sequence[Sample]) -> Mapping[str, str]:
    """Answers from a file, or `DataError` where none of them belongs to these samples."""
    texts = task.read_responses(path)
    if not any(sample.id in texts for sample in samples):
        raise DataError(
            f"{path}: none of its {len(texts)} answers is to a sample of these data (first ids: "
            f"{next(iter(texts), 'none')} there, {samples[0].id} here)"
        )
    return texts


def _require_images(samples: Sequence[Sample]) -> None:
    """`DataError` before hours of work where images of the chosen samples are not on this machine."""
    paths = {part.path: None for sample in samples for part in sample.prompt if isinstance(part, Image) and part.path}
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} images are missing, the first {missing[0]}: say where they are with --images DIR"
        )


def choose(samples: list[Sample], limit: int | None, ids: Sequence[str] | None) -> list[Sample]:
    """The samples a run takes: all, the first `limit`, or those of `ids` in the task's order."""
    if not samples:
        raise UsageError("the split has no samples: look at --data and --split")
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise UsageError(f"two samples have the id {sample.id}: the data hold a question twice")
        seen.add(sample.id)
        try:
            canonical_json([sample.id, to_json(sample.prompt), dict(sample.targets)]).encode()
        except (UnicodeEncodeError, ValueError) as error:
            raise DataError(
                f"sample {sample.id!r}: its text is not Unicode, or a number not finite ({error})"
            ) from error
    if ids is not None:
        unknown = [id_ for id_ in ids if id_ not in seen]
        if unknown:
            raise UsageError(f"--ids: {len(unknown)} ids are not in the data, the first {unknown[0]}")
        wanted = set(ids)
        samples = [sample for sample in samples if sample.id in wanted]
    return samples[:limit]


def _slug(text: str) -> str:
    """A readable piece of a folder's name: the last step of a path, letters, digits, dots and dashes only."""
    tail = text.rstrip("/").rpartition("/")[2] if "/" in text else text
    head = text.partition(":")[0] + "-" if "/" in text and ":" in text else ""
    return re.sub(r"[^A-Za-z0-9._]+", "-", head + tail).strip("-.")[:48]


def run(
    task: str,
    model: str = "dreamllm",
    *,
    data: str | Path | None = None,
    images: str | Path | None = None,
    real: str | Path | None = None,
    protocol: Sequence[str] = (),
    split: str | None = None,
    features: str | None = None,
    judge: str | None = None,
    generation: Sequence[str] = (),
    model_arguments: Mapping[str, str] | None = None,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    out: str | Path = "runs",
    fresh: bool = False,
) -> Result:
    """``dreambench run`` as a function; the arguments are its options."""
    place, dataset = data_place(data)
    options = TaskOptions(
        data=place,
        dataset=dataset,
        images=_absolute(images),
        real=_absolute(real),
        protocols=tuple(protocol),
        split=split,
        features=features,
        judge=judge,
        generation=tuple(generation),
        seed=seed,
        offline=offline,
        device=device,
    )
    asked = RunSpec(task, model, model_arguments or {}, options, limit, ids, batch_size, device, dtype)
    return execute(asked, Path(out), fresh=fresh)


def _absolute(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).absolute()


def execute(
    asked: RunSpec,
    out: Path = Path("runs"),
    *,
    fresh: bool = False,
    model: Model | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Predict and score; go on with what an earlier start left; return a complete run without asking anything."""
    prepared = prepare(asked, out, model)
    folder = RunFolder(prepared.folder)
    rank, world = rank_and_world()
    if fresh and rank == 0 and folder.path.exists():
        _remove(folder.path)
    if not fresh and (done := folder.metrics()) is not None:
        return Result(folder.path, done, repeated=True)
    with RunLock(folder.path):
        if folder.begin(_run_file(prepared), prepared.samples):
            say(f"began {folder.path}")
        else:
            _same_again(folder, prepared)
            say(f"going on with {folder.path}")
        planned = folder.plan_file()["plan"]["batches"]
        Worker(folder, prepared.task, prepared.model, prepared.requests, planned, rank, world).work(progress)
        if unanswered(folder, planned):
            say("this process is done; others still owe answers, and the last one of them scores")
            return Result(folder.path, None)
        return _score_in_turn(folder, prepared.task, say)


def _remove(path: Path) -> None:
    """Delete a run that nobody writes. The lock is this process's alone, so that no process of its launch joins it in the old folder."""
    with RunLock(path, alone=True):
        aside = path.with_name(f".{path.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    shutil.rmtree(aside)


def _run_file(prepared: RunPlan) -> JSON:
    from dreambench.environment import machine, versions

    return {
        "format": FORMAT,
        "spec": prepared.asked.to_json(),
        "task": prepared.task.name,
        "model": prepared.asked.model,
        "protocols": {protocol.id: protocol.to_json() for protocol in prepared.protocols},
        "system": prepared.system,
        "notes": list(prepared.model.notes()),
        "environment": {"device": dict(prepared.model.environment()), "versions": versions(), "machine": machine()},
        "plan": {"batch_size": prepared.batch_size, "batches": batches(prepared.requests, prepared.batch_size)},
    }


def _same_again(folder: RunFolder, prepared: RunPlan) -> None:
    """Refuse to go on in a way that would change the bytes of the result."""
    begun = folder.plan_file()
    device = dict(prepared.model.environment())
    if begun["environment"]["device"] != device:
        raise RunError(
            f"{folder.path} was begun with {begun['environment']['device']}, now it is {device}: use the same again, or --fresh"
        )
    planned = begun["plan"]["batch_size"]
    if prepared.asked.batch_size not in (None, planned):
        raise RunError(
            f"{folder.path} was planned with --batch-size {planned}: leave the option out, or start with --fresh"
        )


def _score_in_turn(folder: RunFolder, task: Task, say: Callable[[str], None]) -> Result:
    """Of several processes that see the last answer at once, one scores."""
    turn = RunLock(folder.path, name="scoring", alone=True)
    try:
        turn.__enter__()
    except RunError:
        return Result(folder.path, None)
    try:
        done = folder.metrics()
        metrics = done if done is not None else _score(folder, task)
        say("scored")
        return Result(folder.path, metrics)
    finally:
        turn.__exit__(None, None, None)


def score_run(path: Path) -> Result:
    """Score a run again from its own files: no model, nothing asked."""
    folder = RunFolder.open(path)
    begun = folder.plan_file()
    missing = unanswered(folder, begun["plan"]["batches"])
    if missing:
        remaining = sum(len(members) for _, members in missing)
        raise RunError(f"{path} still owes {remaining} answers: `dreambench rerun {path}` asks for them")
    asked = RunSpec.from_json(begun["spec"])
    with RunLock(path):
        return Result(path, _score(folder, load_task(asked.task, asked.options)))


def rerun(path: Path, out: Path | None = None, *, fresh: bool = False, progress: Progress | None = None) -> Result:
    """What run.json asked for, asked again: an unfinished run goes on; with `fresh` all is asked anew."""
    asked = RunSpec.from_json(RunFolder.open(path).plan_file()["spec"])
    return execute(asked, out or path.parent, fresh=fresh, progress=progress)


def _score(folder: RunFolder, task: Task) -> Mapping[str, JSON]:
    begun = folder.plan_file()
    samples, responses = folder.samples(), folder.responses()
    task.collect_artifacts(folder, samples, responses)
    scored = task.score(folder, samples, responses)
    folder.clear_leftovers()
    folder.write_scores(scored.rows)
    metrics = {
        "task": begun["task"],
        "model": begun["model"],
        "system": begun["system"],
        "protocols": begun["protocols"],
        "protocol": next(iter(begun["protocols"])),
        "scores": [score.to_json() for score in scored.scores],
        "errors": _errors(samples, responses),
        "notes": [*begun["notes"], *scored.notes],
    }
    folder.write_metrics(metrics)
    return metrics


def _errors(samples: Sequence[Sample], responses: Mapping[str, Response]) -> JSON:
    """How many requests ended in an error, of which types, and which samples."""
    failed = {sample.id: responses[sample.id].error for sample in samples if responses[sample.id].error is not None}
    types: dict[str, list[str]] = {}
    for id_, error in failed.items():
        if error is not None:
            types.setdefault(error.type, []).append(id_)
    return {"n": len(failed), "types": {name: {"n": len(ids), "ids": ids} for name, ids in sorted(types.items())}}
