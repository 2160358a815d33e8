"""Every verb that writes, small enough to be struck hundreds of times, and what must be there before it starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .striking import Server

__all__ = ["LIGHT", "MODULES", "Verb", "make_verbs"]

MODULES = (
    *("torch", "transformers", "diffusers", "datasets", "pandas", "matplotlib.pyplot"),
    *("dreamllm.training.run", "dreambench.metrics.encoders", "dreambench.metrics.compare"),
)
LIGHT = ("pandas", "pyarrow.parquet", "PIL.Image")
"""What the verbs without a model import. They are the first of all, and alone where time is short."""


@dataclass(frozen=True)
class Verb:
    """A command line, the files of `fixtures` that are copied into its folder first, and whether it needs torch."""

    name: str
    arguments: tuple[str, ...]
    fixtures: Path
    copies: tuple[str, ...] = ()
    heavy: bool = False

    def prepare(self, folder: Path) -> None:
        for name in self.copies:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (self.fixtures / name).is_dir():
                shutil.copytree(self.fixtures / name, target)
            else:
                shutil.copy(self.fixtures / name, target)


def make_verbs(server: Server, fixtures: Path, *, heavy: bool) -> list[Verb]:
    """The verbs; their data, runs, study and checkpoints are made in `fixtures`."""
    fixtures.mkdir()
    world = fixtures / "world"

    def do(*arguments: object) -> None:
        outcome = server.run(arguments, fixtures)
        assert outcome.status == 0, (arguments, outcome)

    def verb(name: str, *arguments: object, copies: Sequence[str] = (), heavy: bool = False) -> Verb:
        return Verb(name, tuple(map(str, arguments)), fixtures, tuple(copies), heavy)

    def ask(task: str, data: Path, limit: int, *more: object) -> tuple[object, ...]:
        words = ("dreambench", "run", "--task", task, "--model", "echo", "--data", data, "--limit", limit)
        return (*words, "--batch-size", 2, "--out", "runs", *more)

    do("dreambench", "playground", "write", world, "--n", 12)
    do(*ask("vqav2", world, 8))
    (run,) = (f"runs/{path.name}" for path in (fixtures / "runs").iterdir())
    lines = (fixtures / run / "responses" / "rank-00000.jsonl").read_text().splitlines()
    answers = [{"id": json.loads(line)["id"], "text": "yes"} for line in lines]
    (fixtures / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    responses = ("--responses", fixtures / "answers.jsonl", "--limit", 8, "--out", "runs")
    export = ("dreambench", "export", run, "--to")
    overlap = ("dreambench", "contamination", "--task", "vqav2", "--data", world, "--train", fixtures / "answers.jsonl")
    found = [
        verb("run vqav2", *ask("vqav2", world, 8)),
        verb("run mmbench", *ask("mmbench", world, 2)),
        verb("run mmvet", *ask("mmvet", world, 6, "--judge", "rule")),
        verb("run --fresh", *ask("vqav2", world, 8, "--fresh"), copies=[run]),
        verb("score RUN", "dreambench", "score", run, copies=[run]),
        verb("score --responses", "dreambench", "score", "--task", "vqav2", "--data", world, *responses),
        verb("report --html", "dreambench", "report", run, "--html", "report.html", copies=[run]),
        verb("export every-eval-ever", *export, "every-eval-ever", "--out", "made", copies=[run]),
        verb("export submission", *export, "submission", "--out", "made.json", copies=[run]),
        verb("contamination", *overlap, "--json", "found.json", "--clean", "made.txt"),
        verb("leaderboard", "dreambench", "leaderboard", run, "--out", "tables", copies=[run]),
        verb("playground write", "dreambench", "playground", "write", "made", "--n", 6),
        verb("dreamllm init", "dreamllm", "init", "made", heavy=True),
    ]
    if heavy:
        found += _study(do, verb, ask, fixtures)
        found += _generation(do, verb, ask, fixtures, world)
        found += _training(do, verb, fixtures, world)
    return [each for each in found if heavy or not each.heavy]


def _study(do: Any, verb: Any, ask: Any, fixtures: Path) -> list[Verb]:
    """Human evaluation of two runs of text: no verb of it needs a model."""
    for seed in (0, 1):
        do(*ask("mmvet", fixtures / "world", 6, "--judge", "rule", "--seed", seed))
    runs = sorted(f"runs/{path.name}" for path in (fixtures / "runs").glob("mmvet-*"))
    export = ("dreambench", "human", "export", *runs, "--raters", 2, "--votes-per-document", 1, "--out")
    do(*export, "study")
    raters = [json.loads(line) for line in (fixtures / "study/organiser/forms/raters.jsonl").read_text().splitlines()]
    ratings = [
        {"rater": rater["rater"], "item": item, "question": "accept", "answer": place % 2, "seconds": 8.5}
        for rater in raters
        for place, item in enumerate(rater["items"])
    ]
    (fixtures / "ratings.jsonl").write_text("".join(json.dumps(rating) + "\n" for rating in ratings))
    votes = "prompt,system_a,system_b,vote,rater,position\n"
    votes += "".join(f"p{i % 5},x,y,{'ab'[i * i % 3 % 2]},r{i % 3},\n" for i in range(30))
    (fixtures / "votes.csv").write_text(votes)
    imported = ("dreambench", "human", "import", "study", "ratings.jsonl", "--json", "import.json")
    analyse = ("dreambench", "human", "analyse", "--votes", "votes.csv", "--json", "found.json", "--html", "found.html")
    return [
        verb("human export", *export, "study", copies=runs),
        verb("human export --form zip", *export, "study", "--form", "zip", copies=runs),
        verb("human import", *imported, copies=["study", "ratings.jsonl"]),
        verb("human analyse", *analyse, copies=["votes.csv"]),
    ]


def _generation(do: Any, verb: Any, ask: Any, fixtures: Path, world: Path) -> list[Verb]:
    documents = fixtures / "documents"
    do("dreambench", "playground", "write", documents, "--n", 4, "--format", "documents")
    clip = ("--features", "playground-clip")
    do(*ask("coco_fid", world, 4, *clip))
    (run,) = (f"runs/{path.name}" for path in (fixtures / "runs").glob("coco_fid-*"))
    trial = ("dreambench", "trial", "--task", "interleaved", "--data", documents, "--limit", 2, "--out", "trial")
    stats = ("dreambench", "fid-stats", world / "val2017", "--out", "stats.npz", *clip)
    return [
        verb("run coco_fid", *ask("coco_fid", world, 4, *clip), heavy=True),
        verb("run interleaved", *ask("interleaved", documents, 2, *clip), heavy=True),
        verb("score RUN (images)", "dreambench", "score", run, copies=[run], heavy=True),
        verb("report --html (images)", "dreambench", "report", run, "--html", "report.html", copies=[run], heavy=True),
        verb("report --sheet", "dreambench", "report", run, "--sheet", "sheet.png", copies=[run], heavy=True),
        verb("fid-stats", *stats, heavy=True),
        verb("trial", *trial, heavy=True),
    ]


def _training(do: Any, verb: Any, fixtures: Path, world: Path) -> list[Verb]:
    do("dreamllm", "init", "tiny")
    do("dreambench", "playground", "write", "pairs", "--n", 8, "--split", "train", "--format", "pairs")
    source = {"kind": "pairs", "path": "pairs/pairs_train.jsonl", "images": "pairs", "mode": "either"}
    trainer = {"max_steps": 4, "save_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 1}
    recipe = {
        "stage": "igpt",
        "start": {"checkpoint": "tiny"},
        "output": "out",
        "train": ["visual_projector", "condition_projector", "dream_queries"],
        "data": {"max_length": 200, "seed": 1, "sources": [source]},
        "trainer": {**trainer, "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True},
    }
    (fixtures / "recipe.yaml").write_text(json.dumps(recipe))
    return [
        verb("dreamllm convert", "dreamllm", "convert", fixtures / "tiny", "made", "--to", "released", heavy=True),
        verb("dreamllm train", "dreamllm", "train", "recipe.yaml", copies=["recipe.yaml", "tiny", "pairs"], heavy=True),
        verb("dreamllm merge", "dreamllm", "merge", fixtures / "tiny", fixtures / "tiny", "made", heavy=True),
        verb(
            "run vqav2 with dreamllm",
            *("dreambench", "run", "--task", "vqav2", "--model", f"dreamllm:{fixtures / 'tiny'}", "--data", world),
            *("--limit", 2, "--generation", "max_new_tokens=4", "--out", "runs"),
            heavy=True,
        ),
    ]
