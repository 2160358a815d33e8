"""Runs as plain functions: what the command line calls, and what a notebook may."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambench.adapters.precomputed import Responses
from dreambench.batches import Batches, Order, in_order
from dreambench.documents import JSON, Image, canonical_json, digest
from dreambench.environment import code_sha256, machine, versions
from dreambench.errors import DataError, ModelError, RunError, UsageError, counted
from dreambench.files import remove_leftovers, sha256_file, temporary
from dreambench.interfaces import Model, ModelOptions, Task
from dreambench.lock import RunLock, rank_and_world
from dreambench.progress import say as print_line
from dreambench.registry import load_model, load_task, model_class, parse_model
from dreambench.requests import Request, Sample
from dreambench.runner import Progress, Worker, unanswered
from dreambench.scores import Protocol, Score
from dreambench.spec import RunSpec
from dreambench.store import FORMAT, Answers, RunFolder, StoredSamples
from dreambench.trust import obeyed_run, obeying

__all__ = ["Result", "RunPlan", "check", "execute", "plan", "rerun", "run", "score_run"]


@dataclass(frozen=True)
class Result:
    """Where a run is stored and its metrics, which are None while other processes have batches left."""

    folder: Path
    metrics: Mapping[str, JSON] | None
    repeated: bool = False
    """True when the run was already complete and nothing was computed."""
    changed: tuple[str, ...] = ()
    """What of its code has changed since the run was made, a sentence each."""

    @property
    def scores(self) -> list[Score]:
        return [] if self.metrics is None else [Score.from_json(line) for line in self.metrics["scores"]]

    @property
    def errors(self) -> int:
        """Requests that ended in an error instead of an answer."""
        return 0 if self.metrics is None else int(self.metrics["errors"]["n"])


@dataclass(frozen=True)
class RunPlan:
    """A run before its first request: what ``--dry-run`` shows."""

    spec: RunSpec
    task: Task
    model: Model
    samples: Sequence[Sample]
    protocols: list[Protocol]
    system: JSON
    batch_size: int
    batches: Batches
    inputs: str | None
    """Digest of all that `samples` depends on; None where the task does not say what it reads."""
    folder: Path

    def requests(self) -> Iterator[Request]:
        """The requests, in the order of the samples."""
        return map(self.task.request, self.samples)


def run(task: str, model: str = "dreamllm", *, out: str | Path = "runs", fresh: bool = False, **options: Any) -> Result:
    """``dreambench run`` as a function; `options` are the other fields of `RunSpec`."""
    return execute(RunSpec(task=task, model=model, **options), Path(out), fresh=fresh)


def check(spec: RunSpec, *, data: bool = False) -> None:
    """Raise for every mistake in a spec that can be found without the model's weights; without `data`, without reading data, too."""
    task = load_task(spec)
    model_class(parse_model(spec.model)[0])
    if data:
        task.protocols(_chosen(spec, task))


def plan(spec: RunSpec, out: Path = Path("runs"), model: Model | None = None, *, fresh: bool = False) -> RunPlan:
    """Load task and model, choose the samples, and name the run's folder. Writes nothing.

    Unless `fresh`, a run that has begun on inputs that have not changed since gives its own samples and plan: the data are not read again.
    """
    task = load_task(spec)
    kind, options = _model(spec) if model is None else (type(model), model.options)
    task.adopt(kind.checkpoint_settings(options))
    inputs = _inputs(spec, task)
    begun = None if fresh else _begun(spec, task, out, inputs)
    if begun is not None:
        samples, run_file = begun.samples(), begun.run_file()
        model, system = _load(spec, task, model, samples)
        if canonical_json(system) == canonical_json(run_file["system"]):
            protocols = [Protocol.from_json(fields) for fields in run_file["protocols"].values()]
            size = run_file["plan"]["batch_size"]
            return RunPlan(spec, task, model, samples, protocols, system, size, begun.plan(), inputs, begun.path)
    samples = _chosen(spec, task)
    protocols = task.protocols(samples)
    ordered, hashed = _survey(task, samples, protocols, images=kind.sees)
    model, system = _load(spec, task, model, samples)
    for kind in sorted(ordered.kinds):
        if kind not in model.capabilities:
            can = ", ".join(sorted(model.capabilities))
            raise ModelError(
                f"the task {spec.task} needs {kind}, the model {spec.model} can only {can}: choose another model"
            )
    hashed.update(f"],{canonical_json({'system': system, 'task': task.name})[1:]}".encode())
    folder = out / f"{_name(spec, task)}-{hashed.hexdigest()[:8]}"
    size = spec.batch_size or min(map(model.batch_size, ordered.kinds))
    return RunPlan(spec, task, model, samples, protocols, system, size, ordered.cut(size), inputs, folder)


def _model(spec: RunSpec) -> tuple[type[Model], ModelOptions]:
    """The class of the spec's model and how to load it; nothing is loaded yet."""
    name, location = parse_model(spec.model)
    return model_class(name), ModelOptions(name, location, spec.model_arg, spec.device, spec.dtype, spec.offline)


def _chosen(spec: RunSpec, task: Task) -> Sequence[Sample]:
    samples = choose(task.samples(), spec.ids)
    return samples if spec.limit is None else task.first(samples, spec.limit)


def _name(spec: RunSpec, task: Task) -> str:
    return f"{_slug(task.name)}-{_slug(spec.model)}"


def _load(spec: RunSpec, task: Task, model: Model | None, samples: Sequence[Sample]) -> tuple[Model, JSON]:
    """The model, and the system: what is measured."""
    if model is None:
        model = load_model(_model(spec)[1])
    if spec.generation and not model.generates:
        raise UsageError(f"--generation has no effect on answers that were made elsewhere ({spec.model}): leave it out")
    if isinstance(model, Responses):
        model.bind(_known_answers(spec, task, model.path, samples))
    # How answers that were made elsewhere were prompted and decoded, only their maker knows.
    settings = task.system() if model.generates else {"generation": "made elsewhere"}
    return model, {"model": dict(model.identity()), **settings}


def _survey(task: Task, samples: Sequence[Sample], protocols: Sequence[Protocol], *, images: bool) -> tuple[Order, Any]:
    """The order of the requests, and the sha256 over what a run's id depends on, as far as the last request.

    Raises:
        DataError: before hours of work, where `images` are needed and some are missing.
    """
    hashed = hashlib.sha256(f'{{"protocols":{canonical_json([each.id for each in protocols])},"requests":['.encode())
    paths: dict[str, None] = {}

    def requests() -> Iterator[Request]:
        before = ""
        for sample in samples:
            request = task.request(sample)
            hashed.update((before + canonical_json(request.identity())).encode())
            before = ","
            for part in sample.prompt:
                if isinstance(part, Image) and part.path:
                    paths[part.path] = None
            yield request

    ordered = in_order(requests())
    missing = [path for path in paths if not Path(path).is_file()] if images else []
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} images are missing, the first {missing[0]}: say where they are with --images DIR"
        )
    return ordered, hashed


def _inputs(spec: RunSpec, task: Task) -> str | None:
    """A digest of the spec, of the code, and of the size and time of change of all that the task reads; None where it does not say."""
    paths = task.inputs()
    if paths is None:
        return None
    try:
        stamps = [(str(path), status.st_size, status.st_mtime_ns) for path in paths for status in [path.stat()]]
    except OSError:
        return None
    code = [code_sha256(type(task)), code_sha256(_model(spec)[0])]
    return digest([spec.to_json(), versions(), code, stamps])


def _begun(spec: RunSpec, task: Task, out: Path, inputs: str | None) -> RunFolder | None:
    """The run that was begun with these inputs."""
    for path in sorted(out.glob(f"{_name(spec, task)}-*/run.json")) if inputs else ():
        with contextlib.suppress(RunError):
            if RunFolder(path.parent).run_file().get("inputs") == inputs:
                return RunFolder(path.parent)
    return None


def _known_answers(spec: RunSpec, task: Task, path: Path, samples: Sequence[Sample]) -> Mapping[str, str]:
    """Answers from a file; `DataError` where none of them belongs to these samples."""
    texts = task.read_responses(path)
    if not any(sample.id in texts for sample in samples):
        raise DataError(
            f"{path}: none of its {len(texts)} answers belongs to a sample of these data (first ids: "
            f"{next(iter(texts), 'none')} there, {samples[0].id} here)"
        )
    if spec.ids is None and spec.limit is None:
        known = {sample.id for sample in samples}
        if others := [id_ for id_ in texts if id_ not in known]:
            what = counted(len(others), "answer belongs", "answers belong")
            print_line(f"{path}: {what} to no sample of these data, the first to {others[0][:80]}")
    return texts


def choose(samples: Iterable[Sample], ids: Sequence[str] | None) -> Sequence[Sample]:
    """The samples of a run: all, or those of `ids` in the task's order. `DataError` where one cannot be stored or two have one id."""
    seen: set[str] = set()

    def unique() -> Iterator[Sample]:
        for sample in samples:
            if sample.id in seen:
                raise UsageError(f"two samples have the id {sample.id}: the data hold a question twice")
            seen.add(sample.id)
            yield sample

    packed = StoredSamples.pack(unique())
    if not seen:
        raise UsageError("the split has no samples: look at --data and --split")
    found = samples if isinstance(samples, Sequence) else packed
    if ids is None:
        return found
    unknown = [id_ for id_ in ids if id_ not in seen]
    if unknown:
        raise UsageError(f"--ids: {len(unknown)} ids are not in the data, the first {unknown[0]}")
    wanted = set(ids)
    chosen = (sample for sample in found if sample.id in wanted)
    return list(chosen) if found is samples else StoredSamples.pack(chosen)


def _slug(text: str) -> str:
    """A readable piece of a folder's name: the last step of a path, letters, digits, dots and dashes only."""
    tail = text.rstrip("/").rpartition("/")[2] if "/" in text else text
    head = text.partition(":")[0] + "-" if "/" in text and ":" in text else ""
    return re.sub(r"[^A-Za-z0-9._]+", "-", head + tail).strip("-.")[:48]


def execute(
    spec: RunSpec,
    out: Path = Path("runs"),
    *,
    fresh: bool = False,
    model: Model | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Predict and score. An interrupted run is resumed; a complete one is returned as it is."""
    planned = plan(spec, out, model, fresh=fresh)
    folder = RunFolder(planned.folder)
    if (path := obeyed_run()) is not None:
        begun = RunFolder(path).run_file()
        before, now = list(begun["protocols"]), [protocol.id for protocol in planned.protocols]
        if before != now:
            say(f"{path} has the protocol {before[0]}, its repetition {now[0]}: the data or the version are others now")
        was, is_ = begun["system"].get("generation"), planned.system.get("generation")
        if was != is_:
            say(f"{path} has {_settings(was, is_)}, its repetition {_settings(is_, was)}: the defaults are others now")
    rank, world = rank_and_world()
    remove_leftovers(out)
    if fresh and rank == 0 and folder.path.exists():
        _remove(folder.path)
    if not fresh and (metrics := folder.metrics()) is not None:
        for name in ("lock", "scoring"):
            RunLock(folder.path, name=name).clear_dead()
        remove_leftovers(folder.path)  # a lock may be interrupted between its last file and its end
        changed = tuple(_changed_code(folder, planned, metrics))
        for line in changed:
            say(line)
        return Result(folder.path, metrics, repeated=True, changed=changed)
    with RunLock(folder.path):
        if folder.begin(_run_file(planned), planned.samples, planned.batches):
            say(f"starting {folder.path}")
        else:
            _require_same(folder, planned)
            say(f"resuming {folder.path}")
            for line in _changed_code(folder, planned):
                say(line)
        task, model, samples, batches = planned.task, planned.model, planned.samples, folder.plan()
        del planned  # what is stored need not stay in memory, and scoring needs neither samples nor model
        if isinstance(samples, StoredSamples):
            samples = folder.samples()
        Worker(folder, task, model, samples, batches, rank, world).work(progress)
        del model, samples
        answers = folder.responses()
        if any(unanswered(folder, batches, answers.batches)):
            folder.require_begun()
            if world == 1:
                raise RunError(f"{folder.path}: answers disappeared while it was being written: start again")
            say("this process is done; the last of the others to finish will score the run")
            return Result(folder.path, None)
        return _score_once(folder, task, answers, say)


def _settings(generation: JSON, other: JSON) -> str:
    """The generation settings that are not those of `other`, for people."""
    known = other if isinstance(other, Mapping) else {}
    settings = generation if isinstance(generation, Mapping) else {}
    return ", ".join(f"{name}={value}" for name, value in settings.items() if known.get(name) != value) or "none of it"


def _remove(path: Path) -> None:
    """Delete a run that nobody writes. The lock is this process's alone, so that no process of its launch joins it in the old folder."""
    with RunLock(path, alone=True), temporary(path) as aside:
        path.rename(aside)


def _run_file(planned: RunPlan) -> JSON:
    return {
        "format": FORMAT,
        "spec": planned.spec.to_json(),
        "inputs": planned.inputs,
        "task": planned.task.name,
        "model": planned.spec.model,
        "protocols": {protocol.id: protocol.to_json() for protocol in planned.protocols},
        "system": planned.system,
        "parameters": planned.model.parameters(),
        "notes": list(planned.model.notes()),
        "environment": {"device": dict(planned.model.environment()), "versions": versions(), "machine": machine()},
        "code": {"model": code_sha256(type(planned.model))},
        "plan": {"batch_size": planned.batch_size},
    }


def _changed_code(folder: RunFolder, planned: RunPlan, metrics: Mapping[str, JSON] | None = None) -> Iterator[str]:
    """A sentence for the model, and where there are scores for the task, whose code is not what it was. Old runs do not know theirs."""
    answered_by = folder.run_file().get("code", {}).get("model")
    if answered_by not in (None, code_sha256(type(planned.model))):
        yield f"the code of the model {planned.spec.model} has changed since it answered in {folder.path}: --fresh asks it anew"
    scored_by = (metrics or {}).get("code", {}).get("task")
    if scored_by not in (None, code_sha256(type(planned.task))):
        task = planned.spec.task
        again = f"dreambench score {folder.path}" + (f" --task {task}" if ":" in task else "")
        yield f"the code of the task {task} has changed since it scored {folder.path}: `{again}` scores the answers again"


def _require_same(folder: RunFolder, planned: RunPlan) -> None:
    """Refuse to resume in a way that would change the bytes of the result."""
    begun = folder.run_file()
    device = dict(planned.model.environment())
    if begun["environment"]["device"] != device:
        raise RunError(
            f"{folder.path} was started with {begun['environment']['device']}, now it is {device}: use the same again, or --fresh"
        )
    batch_size = begun["plan"]["batch_size"]
    if planned.spec.batch_size not in (None, batch_size):
        raise RunError(
            f"{folder.path} was planned with --batch-size {batch_size}: leave the option out, or start with --fresh"
        )


def _score_once(folder: RunFolder, task: Task, answers: Answers, say: Callable[[str], None]) -> Result:
    """Of several processes that finish at the same time, one scores."""
    turn = RunLock(folder.path, name="scoring", alone=True)
    try:
        turn.__enter__()
    except RunError:
        return Result(folder.path, None)
    try:
        metrics = folder.metrics() or _score(folder, task, answers)
        say("scored")
        return Result(folder.path, metrics)
    finally:
        turn.__exit__(None, None, None)


def score_run(path: Path, *, task: str | None = None, judge: str | None = None) -> Result:
    """Score a run again from its own files: no model is loaded.

    A task that is not installed under its name, and a judge on another machine that has answers left to grade, must be repeated.
    """
    folder = RunFolder.open(path)
    answers = folder.responses()
    missing = sum(len(members) for _, members in unanswered(folder, folder.plan(), answers.batches))
    if missing:
        raise RunError(f"{path} has {missing} requests without an answer: `dreambench rerun {path}` answers them")
    spec = folder.spec()
    with RunLock(path), obeying(path, spec, task=task, model=None, judge=judge):
        return Result(path, _score(folder, load_task(spec), answers))


def rerun(
    path: Path,
    out: Path | None = None,
    *,
    fresh: bool = False,
    task: str | None = None,
    model: str | None = None,
    judge: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Execute the spec in run.json again: an interrupted run is resumed; with `fresh` everything is computed anew.

    A task or model that is not installed under its name, and a model or judge on another machine, must be repeated.
    """
    spec = RunFolder.open(path).spec()
    with obeying(path, spec, task=task, model=model, judge=judge):
        return execute(spec, out or path.parent, fresh=fresh, progress=progress)


def _score(folder: RunFolder, task: Task, answers: Answers) -> Mapping[str, JSON]:
    begun, samples = folder.run_file(), folder.samples()
    task.collect_artifacts(folder, samples, answers)
    result = task.score(folder, samples, answers)
    folder.clear_leftovers()
    folder.write_scores(result.rows)
    metrics = {
        "task": begun["task"],
        "model": begun["model"],
        "system": begun["system"],
        "protocols": begun["protocols"],
        "protocol": next(iter(begun["protocols"])),
        "scores": [score.to_json() for score in result.scores],
        "errors": _errors(samples, answers.errors),
        "notes": [*begun["notes"], *result.notes],
        "code": {"task": code_sha256(type(task))},
        "files": {"scores.parquet": sha256_file(folder.path / "scores.parquet")},
    }
    folder.write_metrics(metrics)
    return metrics


def _errors(samples: Sequence[Sample], errors: Mapping[str, str]) -> JSON:
    """How many requests ended in an error, by type, and which samples."""
    types: dict[str, list[str]] = {}
    for sample in samples if errors else ():
        if sample.id in errors:
            types.setdefault(errors[sample.id], []).append(sample.id)
    n = sum(map(len, types.values()))
    return {"n": n, "types": {name: {"n": len(ids), "ids": ids} for name, ids in sorted(types.items())}}
