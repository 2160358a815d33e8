"""Runs made by hand, so that a test can put anything into them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image as Pillow

from dreambench.batches import Batches
from dreambench.documents import Image, Text
from dreambench.requests import Failure, Response, Sample
from dreambench.scores import Protocol, Score
from dreambench.store import FORMAT, RunFolder

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "{{ 7 * 7 }}{% for x in y %}",
    "\x1b[2J\x1b]0;owned\x07red\x9b31m",
    "a | b & c $d$ 100 % #1 ~x^2 _y_ \\end{tabular} [z] `k` *s*",
    "\u202egnp.exe",
    "=HYPERLINK(1)",
    "line\nbreak\r\ttab\u2028",
    "]]>--><!--",
    "javascript:alert(1)",
    "日本語 é 🙂",
]


def png(number: int, size: int = 32) -> bytes:
    """An image of its own colour."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (size, size), (40 * number % 256, 90, 255 - 7 * number % 256)).save(buffer, format="PNG")
    return buffer.getvalue()


def score(**changes: object) -> Score:
    fields: dict[str, object] = {"metric": "accuracy", "value": 50.0, "unit": "%", "n": 8, "protocol": "p@1-00000000"}
    fields |= {"interval": (40.0, 60.0), "interval_method": "by hand"}
    return Score(**{**fields, **changes})  # type: ignore[arg-type]


def make_run(
    folder: Path,
    samples: Sequence[Sample],
    responses: Sequence[Response],
    rows: Sequence[Mapping[str, object]],
    scores: Sequence[Score],
    *,
    task: str = "made",
    model: str = "hand",
    notes: Sequence[str] = (),
    fields: Mapping[str, object] | None = None,
) -> Path:
    """A complete run. Rows of generated samples get their image's name."""
    run = RunFolder(folder)
    protocols = {score.protocol: Protocol("p", 1, fields or {}).to_json() for score in scores}
    environment = {"device": {"device": "cpu"}, "versions": {"dreambench": "0"}, "machine": {"system": "none"}}
    fields_of_run = {"task": task, "model": model, "protocols": protocols, "environment": environment}
    run_file = {"format": FORMAT, "spec": {}, **fields_of_run, "system": {}, "notes": [], "plan": {}}
    run.begin(run_file, samples, Batches.of([list(range(len(samples)))]))
    run.append(0, "0", responses)
    stored = run.responses()
    complete: list[dict[str, object]] = []
    for row in rows:
        images = [part for part in stored[str(row["id"])].document if isinstance(part, Image)]
        image = Path(images[0].path or "").relative_to(folder.resolve()).as_posix() if images else None
        complete.append({**row, "image": image} if "caption" in row else dict(row))
    run.write_scores(complete)
    errors = [response for response in responses if response.error is not None]
    types = {error.error.type: {"n": len(errors), "ids": [error.id]} for error in errors if error.error}
    run.write_metrics(
        {
            "task": task,
            "model": model,
            "system": {"model": {"name": model}},
            "protocols": protocols,
            "protocol": next(iter(protocols)),
            "scores": [score.to_json() for score in scores],
            "errors": {"n": len(errors), "types": types},
            "notes": list(notes),
        }
    )
    return folder


def image_run(
    folder: Path, captions: Sequence[str], candidates: int = 1, kept: bool = True, failed: int = 0, task: str = "made"
) -> Path:
    """One generated image for each caption, the n-th with the n-th tenth as its score; `failed` further samples have none."""
    samples = [Sample(f"s{i}", (Text(text),), {"image_id": i}) for i, text in enumerate(captions)]
    responses: list[Response] = []
    rows: list[dict[str, object]] = []
    for i, sample in enumerate(samples):
        chosen = i % candidates
        order = [chosen, *(j for j in range(candidates) if j != chosen)] if kept else [chosen]
        scores = [i / 10 - abs(j - chosen) for j in range(candidates)]
        details = {"clip_scores": scores, "chosen": chosen, "kept": order} if candidates > 1 else {}
        images = tuple(Image(data=png(10 * i + j)) for j in order)
        responses.append(Response(sample.id, images, details=details))
        rows.append({"id": sample.id, "image_id": i, "caption": captions[i], "clip_score": i / 10})
    for i in range(failed):
        samples.append(Sample(f"f{i}", (Text("none"),), {"image_id": 1000 + i}))
        responses.append(Response(f"f{i}", error=Failure("no-image", HOSTILE[i % len(HOSTILE)])))
        rows.append({"id": f"f{i}", "image_id": 1000 + i, "caption": "none", "clip_score": None})
    mean_score = score(metric="fd[x]", value=12.5, unit="", interval=(11.0, 14.0), unscored=failed)
    return make_run(folder, samples, responses, rows, [mean_score], task=task, notes=["made by hand"])


def text_run(folder: Path, answers: Sequence[str], scores: Sequence[Score] | None = None, model: str = "hand") -> Path:
    """One answer each to a question of the same words, the n-th with the n-th tenth as its accuracy."""
    samples = [Sample(f"q{i}", (Text(f"question {text}"),)) for i, text in enumerate(answers)]
    responses = [Response(sample.id, (Text(text),)) for sample, text in zip(samples, answers, strict=True)]
    rows = [
        {"id": sample.id, "other": 0.5, "answer": text, "accuracy": i / 10}
        for i, (sample, text) in enumerate(zip(samples, answers, strict=True))
    ]
    return make_run(folder, samples, responses, rows, scores or [score()], model=model, notes=[f"note {answers[0]}"])
