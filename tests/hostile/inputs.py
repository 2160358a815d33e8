"""Damaged files under every loader: each case damages one file of a whole fixture and runs a command on it."""

from __future__ import annotations

import importlib
import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dreambench import lock

from .case import Case, Limits, Outcome, call, forked
from .fixtures import FIXTURES
from .mutations import Mutation, mutations
from .targets import TARGETS, Target

__all__ = ["cases", "counted_as_lost", "is_valid"]

Values = Callable[[Path], Any]
"""What a command has made of a folder; run in the child."""


# --- what is compared -------------------------------------------------------------------------------------------------


def _metrics(run: Path) -> Any:
    """The scores of a run and its table, row by row; protocols' ids depend on the data's bytes."""
    import pyarrow.parquet as pq

    metrics = json.loads((run / "metrics.json").read_text())
    scores = [{name: value for name, value in score.items() if name != "protocol"} for score in metrics["scores"]]
    return {"scores": scores, "rows": pq.read_table(run / "scores.parquet").to_pylist()}


def _scores(folder: Path) -> Any:
    (run,) = (path for path in (folder / "runs").iterdir() if not path.name.startswith("."))
    return _metrics(run)


def _study(folder: Path) -> Any:
    key = json.loads((folder / "study/organiser/key.json").read_text())
    return {"items": len(key["items"]), "raters": len(key["raters"])}


def _ratings(folder: Path) -> Any:
    """What was imported: what is not among the undisturbed ratings is wrong; what was left out, the command has counted."""
    lines = [line for path in (folder / "study/organiser/ratings").glob("*") for line in path.read_text().splitlines()]
    names = ("rater", "item", "question", "answer")
    return sorted([rating[name] for name in names] for rating in map(json.loads, lines))


VALUES: dict[str, Values] = {
    "scores": _scores,
    "metrics": lambda folder: _metrics(folder / "run"),
    "anywhere": lambda folder: _scores(folder) if (folder / "runs").exists() else _metrics(folder / "run"),
    "made": lambda folder: json.loads((folder / "made.json").read_text()),
    "ratings": _ratings,
    "study": _study,
    "image": lambda folder: (folder / "made.png").read_bytes().hex(),
    "nothing": lambda folder: None,
}
HEAVY = ("torch", "torchvision", "transformers", "diffusers", "pandas", "pyarrow.parquet", "openpyxl")
PER_TARGET = 15
"""Cases of a target, if only some are wanted."""
WHOLE = Limits(cpu_s=300, wall_s=600, memory=64 << 30)
"""Of undamaged inputs."""
_HASHES = re.compile(r"\b[0-9a-f]{8}(?:[0-9a-f]{8})*\b")


# --- cases ------------------------------------------------------------------------------------------------------------


def cases(scratch: Path, seed: int, count: int | None, only: str = "") -> Iterator[Case]:
    """Cases of all targets in turn, so that any number of them is a sample of all."""
    _import(HEAVY)
    lock.HEARTBEAT_S = 0.25  # a lock of another host is watched for two beats, not for half a minute
    workshop = _Workshop(scratch)
    streams: list[list[Case]] = []
    targets = list(TARGETS)
    if count is not None:  # making all fixtures would take longer than the cases
        random.Random(f"{seed} targets").shuffle(targets)
        targets = targets[: max(1, count // PER_TARGET)]
    for target in targets:
        if only and not any(only in f"inputs: {target.part} {_name(target.command, file)}" for file in target.files):
            continue
        streams += _streams(workshop, target, seed)
    limits = [len(stream) for stream in streams]
    order = [(place / limit, at, place) for at, limit in enumerate(limits) for place in range(limit)]
    for number, (_, at, place) in enumerate(sorted(order)):
        if count is not None and number >= count:
            return
        yield streams[at][place]


class _Workshop:
    """Makes fixtures when they are first needed, and knows what commands do to them undamaged."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._fixtures: dict[str, Path] = {}
        self._expected: dict[tuple[str, ...], Any] = {}

    def fixture(self, name: str) -> Path:
        if name not in self._fixtures:
            folder = self.scratch / "fixtures" / name
            folder.mkdir(parents=True)
            # In a child, so that no library starts threads in the process that forks.
            outcome = forked(lambda: FIXTURES[name](folder) or 0, folder, values=_modules, limits=WHOLE)
            if outcome.status != 0:
                raise RuntimeError(f"the fixture {name} cannot be made:\n{outcome.stderr}")
            _import(outcome.values)
            self._fixtures[name] = folder
        return self._fixtures[name]

    def expected(self, target: Target, command: tuple[str, ...]) -> Any:
        """What the undamaged fixture gives."""
        if (target.fixture, *command) not in self._expected:
            folder = self.scratch / "undamaged"
            shutil.copytree(self.fixture(target.fixture), folder)
            outcome = run(target, command, folder, values=lambda: [_modules(), _values(target, folder)], limits=WHOLE)
            if outcome.status != 0:
                raise RuntimeError(f"{' '.join(command)} fails on its fixture:\n{outcome.stderr}")
            modules, values = outcome.values
            _import(modules)
            self._expected[target.fixture, *command] = _normal(target, values, outcome)
            shutil.rmtree(folder)
        return self._expected[target.fixture, *command]


def _modules() -> list[str]:
    return [name for name, module in sys.modules.items() if module is not None and name != "__main__"]


def _import(names: Sequence[str]) -> None:
    """Import what a child had to import, so that the next child finds it."""
    for name in names:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # noqa: S112 - a module that only its package can import
                continue


def _values(target: Target, folder: Path) -> Any:
    return VALUES[target.values](folder) if target.values in VALUES else None


def _normal(target: Target, values: Any, outcome: Outcome) -> Any:
    if target.values in VALUES:
        return values
    return _HASHES.sub("#", outcome.stdout)


def run(
    target: Target,
    command: tuple[str, ...],
    folder: Path,
    *,
    values: Callable[[], Any] | None = None,
    limits: Limits | None = None,
) -> Outcome:
    """The command in a child."""
    from dreambench import cli as dreambench
    from dreamllm import cli as dreamllm

    main = dreambench.main if command[0] == "dreambench" else dreamllm.main
    return forked(
        partial(call, main, command[1:]), folder, values=values or (lambda: _values(target, folder)), limits=limits
    )


def _streams(workshop: _Workshop, target: Target, seed: int) -> Iterator[list[Case]]:
    folder = workshop.fixture(target.fixture)
    for pattern in target.files:
        for path in sorted(folder.glob(pattern)):
            name = str(path.relative_to(folder))
            rng = random.Random(f"{seed} {target.part} {target.command} {name}")
            found = list(mutations(path, rng))
            rng.shuffle(found)
            yield [_case(workshop, target, name, mutation) for mutation in found[: target.weight]]


def _name(command: tuple[str, ...], file: str) -> str:
    return f"{' '.join(command[:3])}: {file}"


def _case(workshop: _Workshop, target: Target, name: str, mutation: Mutation) -> Case:
    command = tuple(name if word == "FILE" else word for word in target.command)
    must_fail = mutation.must_fail and not _not_read(target, name, mutation)
    expected = workshop.expected(target, command)
    # The data of a run's spec are the user's to choose: others give other numbers, and the command says that they are others.
    other_data = target.command[1] == "rerun" and mutation.name.startswith("spec.data")

    def damaged(folder: Path) -> Outcome:
        folder.rmdir()
        shutil.copytree(workshop.fixture(target.fixture), folder)
        mutation.apply(folder / name)
        outcome = run(target, command, folder)
        values = _normal(target, outcome.values, outcome)
        if counted_as_lost(expected, values) or (other_data and "the data or the version are others" in outcome.stderr):
            values = expected
        return replace(outcome, values=values)

    return Case(
        part=f"inputs: {target.part}",
        name=f"{_name(command, name)}: {mutation.name}",
        run=damaged,
        places=(Path(name).name.removesuffix(".gz"), name.split("/")[0], *target.places),
        expected=expected,
        changes=mutation.changes or is_valid(name, mutation),
        must_fail=must_fail and target.values != "ratings",
        check=_counted if must_fail and target.values == "ratings" else None,
    )


def _not_read(target: Target, name: str, mutation: Mutation) -> bool:
    """Whether the command need not meet the damage; the numbers must be the same.

    The name of a dead launch is not read, a rerun elsewhere reads nothing of the lock, and a dry run not every record (training lists
    broken ones in broken.jsonl, and goes on).
    """
    return (
        name.endswith("lock/launch")
        or (target.command[1] == "rerun" and "/lock/" in name)
        or (target.part == "training data" and mutation.name.startswith("line "))
    )


def is_valid(name: str, mutation: Mutation) -> bool:
    """Whether the file is another valid one.

    Images or documents without one of them; questions whose answers are held back; what may stand twice, as it has no id; a rater or a
    position that is not given; an answer without a word; no scores, as where references are held back.
    """
    if name.endswith("metrics.json") and mutation.name == "scores = empty list":
        return True
    if mutation.name == "missing":
        return name.startswith(("fake/", "annotations.json"))
    if mutation.name == "one row less":
        return name.startswith("obelics/")
    if name in ("votes.jsonl", "coco_val_localized_narratives.jsonl") and re.fullmatch(
        r"(line \d+ )?twice", mutation.name
    ):
        return True
    if "/responses/" in name and re.fullmatch(r"line \d+: document = empty list", mutation.name):
        return True
    return name == "votes.jsonl" and bool(re.fullmatch(r"line \d+: (rater|position) = null", mutation.name))


def counted_as_lost(expected: Any, found: Any) -> bool:
    """Whether the scores differ only by answers or grades that are lost, and counted as unscored."""
    kinds = [value.keys() if isinstance(value, dict) else set[str]() for value in (expected, found)]
    if not all({"rows", "scores"} <= kind for kind in kinds) or len(expected["rows"]) != len(found["rows"]):
        return False
    pairs = [(before, after) for before, after in zip(expected["rows"], found["rows"], strict=True) if before != after]
    emptied = all(
        before.keys() == after.keys() and all(after[key] in (None, old) or old is None for key, old in before.items())
        for before, after in pairs
    )
    return emptied and any(score["unscored"] >= len(pairs) > 0 for score in found["scores"] if score["group"] is None)


def _counted(outcome: Outcome, folder: Path) -> str | None:
    """A complaint about damaged ratings of which the import says nothing. It may take the others: raters' files are torn by crashes."""
    said = outcome.status != 0 or "incomplete or damaged line" in outcome.stdout
    return None if said else f"accepted, and not counted: {outcome.stdout[-500:]}"
