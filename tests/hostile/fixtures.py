"""Small, whole inputs of every kind, made by the package itself; the tool damages copies of them."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FIXTURES"]


def _dreambench(*arguments: object) -> None:
    from dreambench.cli import main

    try:
        main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        if leaving.code:
            raise RuntimeError(f"dreambench {arguments}: status {leaving.code}") from None


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _lines(path: Path, values: Iterator[Any] | list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")


def _gzipped(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def _world(folder: Path, formats: str, n: int = 3, split: str = "val") -> None:
    _dreambench("playground", "write", folder, "--n", n, "--split", split, "--format", formats)


def vqav2(folder: Path) -> None:
    """Questions and annotations under their short names, and right answers in both forms."""
    _world(folder, "vqav2", 2)
    for path in folder.glob("v2_*.json"):
        path.rename(folder / ("questions.json" if "questions" in path.name else "annotations.json"))
    annotations = json.loads((folder / "annotations.json").read_text())["annotations"]
    pairs = [(one["question_id"], one["multiple_choice_answer"]) for one in annotations]
    _json(folder / "results.json", [{"question_id": id_, "answer": answer} for id_, answer in pairs])
    _lines(folder / "results.jsonl", [{"id": str(id_), "text": answer} for id_, answer in pairs])
    (folder / "ids.txt").write_text("".join(f"{id_}\n" for id_, _ in pairs[:3]))


def vqav2_gz(folder: Path) -> None:
    """The same, compressed."""
    vqav2(folder)
    for name in ("questions.json", "annotations.json", "results.jsonl"):
        _gzipped(folder / name)


def mmbench(folder: Path) -> None:
    """The TSV and right predictions as TSV, CSV, XLSX and JSON lines."""
    import pandas as pd

    _world(folder, "mmbench", 2)
    table = pd.read_csv(folder / "MMBench_DEV_EN.tsv", sep="\t", dtype=str, keep_default_na=False)
    table = table[table["index"].astype(int) % 1_000_000 < 3]
    # Images of a few bytes, so that damage falls on the other cells too.
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    table["image"] = [cell if len(cell) < 64 else image for cell in table["image"]]
    table.to_csv(folder / "mmbench.tsv", sep="\t", index=False)
    (folder / "MMBench_DEV_EN.tsv").unlink()
    made = pd.DataFrame({"index": table["index"], "prediction": table["answer"]})
    made.to_csv(folder / "predictions.tsv", sep="\t", index=False)
    made.to_csv(folder / "predictions.csv", index=False)
    made.to_excel(folder / "predictions.xlsx", index=False)
    _lines(folder / "predictions.jsonl", made.to_dict("records"))


def mmvet(folder: Path) -> None:
    """Questions, answers, a grade file, and the log of a judge."""
    _world(folder, "mmvet", 4)
    questions = json.loads((folder / "mm-vet.json").read_text())
    _json(folder / "answers.json", {id_: one["answer"].split("<")[0] for id_, one in questions.items()})
    grades = {id_: {"model": ["m"], "content": ["1.0"], "score": [1.0]} for id_ in questions}
    _json(folder / "grades.json", grades)
    score = ("score", "--task", "mmvet", "--data", folder, "--responses", folder / "answers.json")
    _dreambench(*score, "--judge", "rule", "--out", folder / "made")
    (log,) = folder.glob("made/*/judgements.jsonl")
    log.rename(folder / "judgements.jsonl")
    _remove(folder / "made")


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def captions(folder: Path) -> None:
    """COCO captions with their images, and localized narratives."""
    _world(folder, "coco,localized_narratives", 4)


def documents(folder: Path) -> None:
    """Interleaved documents of every form, each in a folder of its own, and answers as documents."""
    _world(folder / "plain", "documents", 3)
    _world(folder / "mmc4", "stories", 3, "train")
    _world(folder / "instructions", "instructions", 3, "train")
    for name in ("mmc4", "instructions", "plain"):
        (folder / name / "manifest.json").unlink()
    import pyarrow as pa
    import pyarrow.parquet as pq

    obelics = [
        {"texts": [None, "A red circle."], "images": [f"{k}.png", None], "metadata": "[]", "general_metadata": "{}"}
        for k in range(3)
    ]
    (folder / "obelics").mkdir()
    pq.write_table(pa.Table.from_pylist(obelics), folder / "obelics" / "part.parquet")
    for k, path in enumerate(sorted((folder / "plain").rglob("*.png"))[:3]):
        (folder / "obelics" / f"{k}.png").write_bytes(path.read_bytes())
    _json(folder / "plain" / "topics.json", {"a": "b"})


def _echo(folder: Path, task: str, **options: object) -> Path:
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    _dreambench("run", "--task", task, "--model", "echo", "--out", folder, *words)
    (run,) = folder.iterdir()
    return run


def run(folder: Path) -> None:
    """A complete run of VQAv2."""
    vqav2(folder / "data")
    _echo(folder / "runs", "vqav2", data=folder / "data").rename(folder / "run")
    (folder / "runs").rmdir()


def begun(folder: Path) -> None:
    """A run that has not been scored, with the lock of a dead process."""
    run(folder)
    for name in ("metrics.json", "scores.parquet"):
        (folder / "run" / name).unlink()
    (folder / "run" / "lock").mkdir()
    (folder / "run" / "lock" / "launch").write_text("0123456789abcdef")
    _json(folder / "run" / "lock" / "rank-00000.json", {"host": "elsewhere", "pid": 4_000_000, "started": "1"})
    for path in (folder / "run" / "lock").iterdir():
        import os

        os.utime(path, (1, 1))


def graded(folder: Path) -> None:
    """A complete run of MM-Vet with its judgements."""
    mmvet(folder / "data")
    run_folder = _echo(folder / "runs", "mmvet", data=folder / "data", judge="rule")
    run_folder.rename(folder / "run")


def stories(folder: Path) -> None:
    """Two complete runs of interleaved documents, for a study."""
    from human.runs import make_run, samples

    some = samples(folder / "data", 2)
    make_run(folder / "one", "model-a", some)
    make_run(folder / "two", "model-b", some)
    for name in ("one", "two"):
        (made,) = (folder / name).iterdir()
        made.rename(folder / f"run-{name}")
        (folder / name).rmdir()
    _json(folder / "questions.json", {"questions": [{"id": "good", "text": "Good?", "kind": "accept"}]})


def study(folder: Path) -> None:
    """A study, and ratings of it in every form that comes back."""
    from human.studies import ACCEPT, QUALITY, chain, make_study

    made = make_study(folder / "study", questions=(ACCEPT, QUALITY), items=2, raters=2)
    given: dict[str, list[Any]] = {}
    for rater in made.raters:
        answers = [(item, "accept", 1) for item in rater.items] + [(item, "quality", 4) for item in rater.items]
        given[rater.id] = chain(made, rater, answers)
        _lines(folder / f"{rater.id}.jsonl", [rating.model_dump() for rating in given[rater.id]])
    every = [rating for ratings in given.values() for rating in ratings]
    plain = [
        {"study": one.study, "rater": one.rater, "item": one.item, "question": one.question, "answer": one.answer}
        for one in every
    ]
    _lines(folder / "plain.jsonl", plain)
    _json(folder / "label-studio.json", [_label_studio(number, one) for number, one in enumerate(plain)])
    _lines(
        folder / "potato.jsonl",
        [
            {"user_id": one["rater"], "instance_id": one["item"], "labels": {one["question"]: {str(one["answer"]): 1}}}
            for one in plain
        ],
    )
    head = ["AssignmentStatus", "WorkTimeInSeconds", "WorkerId", "Input.study", "Input.rater"]
    rater = plain[0]["rater"]
    cells = {f"Answer.{one['item']}.{one['question']}": one["answer"] for one in plain if one["rater"] == rater}
    with (folder / "mturk.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *cells])
        writer.writerow(["Approved", "60", "W1", plain[0]["study"], rater, *cells.values()])


def _label_studio(number: int, one: Mapping[str, Any]) -> dict[str, Any]:
    value = {"from_name": one["question"], "type": "choices", "value": {"choices": [str(one["answer"])]}}
    data = {name: one[name] for name in ("study", "rater", "item")}
    annotation = {"result": [value], "completed_by": {"id": 1, "email": "a@b"}, "lead_time": 3.5}
    return {"id": number, "data": data, "annotations": [annotation]}


def imported(folder: Path) -> None:
    """The study with its ratings imported."""
    study(folder)
    _dreambench("human", "import", folder / "study", folder / "rater-1.jsonl", folder / "rater-2.jsonl")


def votes(folder: Path) -> None:
    """Votes as CSV and as JSON lines, and a judge's."""
    head = ("prompt", "system_a", "system_b", "vote", "rater", "position")
    rows = [
        (f"p{k % 6}", *(("x", "y") if k % 2 else ("y", "z")), ("a", "b", "tie")[k % 3], f"r{k % 3}", "a")
        for k in range(18)
    ]
    for name, some in (("votes", rows), ("judge", [(*row[:4], "judge", "a") for row in rows])):
        folder.mkdir(exist_ok=True)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            writer.writerows(some)
        _lines(folder / f"{name}.jsonl", [dict(zip(head, row, strict=True)) for row in some])


def images(folder: Path) -> None:
    """Reference and generated images, and the references' statistics."""
    _world(folder / "world", "coco", 8)
    (found,) = {path.parent for path in (folder / "world").rglob("*.png")}
    found.rename(folder / "real")
    _remove(folder / "world")
    (folder / "fake").mkdir()
    from PIL import Image

    for path in sorted((folder / "real").iterdir()):
        with Image.open(path) as image:
            image.rotate(90).save(folder / "fake" / path.name)
    _dreambench("fid-stats", folder / "real", "--features", "playground-clip", "--out", folder / "real.npz")


def checkpoint(folder: Path) -> None:
    """A native checkpoint of the tiny preset, and an image."""
    from PIL import Image

    from dreamllm import checkpoint, presets

    model, processor = presets.build("tiny", seed=3)
    checkpoint.save(folder / "model", model, processor)
    Image.new("RGB", (20, 20), "red").save(folder / "x.png")


def released(folder: Path) -> None:
    """The same in the released layout."""
    from dreamllm import checkpoint as checkpoints

    checkpoint(folder)
    checkpoints.convert(folder / "model", folder / "released", "released")
    _remove(folder / "model")


def sharded(folder: Path) -> None:
    """A native checkpoint in two files with their index."""
    from dreamllm import presets

    model, processor = presets.build("tiny", seed=3)
    model.save_pretrained(folder / "model", max_shard_size="3MB")
    processor.save_pretrained(folder / "model")


def llava(folder: Path) -> None:
    """A tiny LLaVA of transformers, with questions."""
    from adapters.tiny import save_llava

    save_llava(folder / "model")
    vqav2(folder / "data")


def stable_diffusion(folder: Path) -> None:
    """A tiny pipeline of diffusers, with captions."""
    from adapters.tiny import save_stable_diffusion

    save_stable_diffusion(folder / "model")
    captions(folder / "data")


def training(folder: Path) -> None:
    """Recipes with their data: pairs, conversations, stories and instructions."""
    import yaml

    checkpoint(folder)
    from model.made_pairs import recipe_dict, write_pairs

    write_pairs(folder, 4)
    _world(folder / "stories", "stories", 3, "train")
    _world(folder / "instructions", "instructions", 3, "train")
    for stage in ("igpt", "sft"):
        recipe = recipe_dict(stage, Path(), Path("model"), Path("out"), max_steps=1)
        recipe["trainer"].pop("save_steps")
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        _json(folder / f"{stage}.json", recipe)
    for kind in ("mmc4", "instructions"):
        name = "stories" if kind == "mmc4" else kind
        recipe = recipe_dict("igpt", Path(), Path("model"), Path("out"), max_steps=1)
        recipe["data"]["sources"] = [
            {"kind": kind, "path": f"{name}/{name}_train.jsonl", "images": f"{name}/stories", "min_similarity": 0.0}
        ]
        _json(folder / f"{kind}.json", recipe)


FIXTURES: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        vqav2, vqav2_gz, mmbench, mmvet, captions, documents, run, begun, graded, stories, study, imported, votes, images,
        checkpoint, released, sharded, llava, stable_diffusion, training,
    )
}  # fmt: skip
