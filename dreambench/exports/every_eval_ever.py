"""Every Eval Ever: an aggregate JSON file for each run, and a JSON Lines file of its samples.

Source: evaleval/every_eval_ever, schemas eval.schema.json and instance_level_eval.schema.json of version 0.3.0, and the layout of its
data: ``data/<benchmark>/<developer>/<model>/<uuid>.json`` with ``<uuid>_samples.jsonl`` beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict

from dreambench.documents import JSON, Document, Text, digest
from dreambench.errors import RunError, counted
from dreambench.exports import like
from dreambench.files import replacing, sha256_file, write_atomically
from dreambench.report.runs import CompleteRun
from dreambench.report.text import flat
from dreambench.requests import Sample
from dreambench.scores import Score
from dreambench.spec import parse_arguments

__all__ = ["SCHEMA", "Settings", "write"]

SCHEMA = "0.3.0"
ELSEWHERE = ("openai", "responses", "documents", "folder", "process")
"""Models whose answers may come from anywhere."""
REFERENCES = ("reference", "references", "answer", "answers")


class Settings(BaseModel):
    """What the form asks and a run does not know. `model` is ORGANISATION/NAME."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, like(r"[\w.-]*\w/[\w.-]*\w", "ORGANISATION/NAME")] | None = None
    organization: str = "unknown"
    relationship: Literal["first_party", "third_party", "collaborative", "other"] = "other"
    weights: Literal["open_weights", "closed_weights", "unknown"] = "unknown"


def write(runs: Sequence[CompleteRun], out: Path, settings: Mapping[str, str]) -> list[str]:
    """Write the files of each run below `out`; the same run gives the same names and bytes."""
    known = parse_arguments(Settings, settings, "--set")
    return [line for run in runs for line in _write(run, out, known)]


def _write(run: CompleteRun, out: Path, settings: Settings) -> Iterator[str]:
    if run.date is None:
        raise RunError(
            f"{run.run.path} does not note its date, which the form requires: it was made by an older version"
        )
    stamp = str(int(datetime.fromisoformat(run.date).timestamp()))
    known = str(run.metrics["model"]).partition("@")[0]  # without the address of a server
    model = settings.model or f"local/{_slug(known)}"
    shown = [score for score in run.scores if score.value is not None and score.better is not None]
    if not shown:
        raise RunError(
            f"{run.run.path} has no score that says whether higher or lower is better: score it again, or ask fewer errors"
        )
    name = str(uuid.UUID(bytes=bytes.fromhex(digest([run.name, dict(run.metrics), model]))[:16], version=4))
    folder = Path("data") / _slug(str(run.metrics["task"])) / model
    head = {"schema_version": SCHEMA, "evaluation_id": f"{run.name}/{model}/{stamp}"}
    samples = out / folder / f"{name}_samples.jsonl"
    aggregate: dict[str, JSON] = {
        **head,
        "evaluation_timestamp": run.date,
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_name": "dreambench",
            "source_type": "evaluation_run",
            "source_organization_name": settings.organization,
            "evaluator_relationship": settings.relationship,
            "additional_details": {"run": run.name, "notes": " ".join(run.notes)},
        },
        "eval_library": {
            "name": "dreambench",
            "version": str(run.run.run_file()["environment"]["versions"]["dreambench"]),
        },
        "model_info": _model(run, model, settings),
        "evaluation_results": [_result(run, score) for score in shown],
    }
    if n := _write_samples(run, shown, {**head, "model_id": model}, samples):
        aggregate["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": (folder / samples.name).as_posix(),
            "hash_algorithm": "sha256",
            "checksum": sha256_file(samples),
            "total_rows": n,
        }
    write_atomically(out / folder / f"{name}.json", (json.dumps(aggregate, indent=1) + "\n").encode())
    yield f"wrote {out / folder / name}.json: {counted(len(shown), 'score')}, {counted(n, 'sample')}"
    if left := sorted({score.metric for score in run.scores if score.better is None and score.value is not None}):
        yield f"left out, because the form wants lower or higher to be better: {', '.join(left)}"
    if empty := [score for score in run.scores if score.value is None]:
        yield f"left out, because the form has no place for them: {counted(len(empty), 'score')} without a value"


def _slug(text: str) -> str:
    """A piece of a path that is portable, as the form's own rules ask: of a path its last step."""
    return re.sub(r"[^\w.-]+", "-", text.rstrip("/").rpartition("/")[2], flags=re.ASCII).strip("-._") or "unnamed"


def _details(value: JSON) -> dict[str, str]:
    """Nested fields as the form's flat texts."""
    return {name: str(field) for name, field in flat(value)}


def _model(run: CompleteRun, model: str, settings: Settings) -> JSON:
    kind = str(run.metrics["model"]).partition(":")[0]
    return {
        "name": model.partition("/")[2],
        "id": model,
        "developer": model.partition("/")[0],
        "additional_details": {
            "deployment_type": "unknown" if kind in ELSEWHERE else "self_deployed",
            "model_availability": settings.weights,
            **_details(run.metrics.get("system", {}).get("model", {})),
        },
    }


def _id(score: Score) -> str:
    return "/".join(filter(None, (score.protocol, score.metric, score.group)))


def _result(run: CompleteRun, score: Score) -> JSON:
    protocol = run.metrics["protocols"][score.protocol]
    low, high = _range(score)
    uncertainty: dict[str, JSON] = {"num_samples": score.n}
    if score.interval is not None:
        uncertainty["confidence_interval"] = {
            "lower": score.interval[0],
            "upper": score.interval[1],
            "confidence_level": score.confidence,
            "method": score.interval_method,
        }
    details: dict[str, JSON] = {
        "n": score.n,
        "unscored": score.unscored,
        "protocol": score.protocol,
        "interval_method": score.interval_method,
    }
    details |= {"group": score.group} if score.group else {}
    details |= {"bounds_with_unscored": list(score.bounds)} if score.bounds else {}
    details |= {"notes": " ".join(score.notes)} if score.notes else {}
    return {
        "evaluation_result_id": _id(score),
        "evaluation_name": " ".join(filter(None, (str(run.metrics["task"]), score.group))),
        "evaluation_timestamp": run.date,
        "source_data": {
            "dataset_name": str(run.metrics["task"]),
            "source_type": "other",
            "additional_details": _details(protocol),
        },
        "metric_config": {
            "metric_id": score.metric,
            "metric_name": score.metric,
            "metric_unit": "percent" if score.unit == "%" else score.unit or "points",
            "lower_is_better": score.better == "lower",
            "score_type": "continuous",
            "min_score": low,
            "max_score": high,
            "additional_details": {"protocol": score.protocol},
        },
        "score_details": {"score": score.value, "uncertainty": uncertainty, "details": _details(details)},
        "generation_config": {"additional_details": _details(run.metrics.get("system", {}).get("generation", {}))},
    }


def _range(score: Score) -> tuple[JSON, JSON]:
    """The metric's lowest and highest values: percent, the bounds of its cells, or none that are known."""
    if score.unit == "%":
        return 0, 100
    low, high = score.cells.bounds if score.cells is not None else ("-Infinity", None)
    return low, "Infinity" if high is None else high


def _write_samples(run: CompleteRun, scores: Sequence[Score], head: Mapping[str, JSON], path: Path) -> int:
    """How many lines were written; no file where there are none."""
    if not any(score.group is None and score.cells is not None for score in scores):
        return 0
    n = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    # In ASCII, because the form's own reader takes characters such as U+2028 for the end of a line.
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for n, line in enumerate(_samples(run, scores, head), 1):  # noqa: B007 - the number of the last is what is asked
            file.write(json.dumps(line) + "\n")
    return n


def _samples(run: CompleteRun, scores: Sequence[Score], head: Mapping[str, JSON]) -> Iterator[JSON]:
    """A line for each sample and each score over all samples; the form has no line for a sample that was not scored."""
    for score in scores:
        if score.group is None and score.cells is not None:
            best = score.cells.bounds[1]
            rows = score.cells.select(run.table)
            for id_, value in zip(rows["id"], rows[score.cells.column].astype(float), strict=True):
                yield {
                    **head,
                    "evaluation_name": str(run.metrics["task"]),
                    "evaluation_result_id": _id(score),
                    **_sample(run, run.samples[id_]),
                    "evaluation": {"score": value, "is_correct": best is not None and value >= best},
                }


def _sample(run: CompleteRun, sample: Sample) -> dict[str, JSON]:
    response = run.responses[sample.id]
    raw, references = _text(sample.prompt), _references(sample.targets)
    options = sample.targets.get("options")
    line: dict[str, JSON] = {
        "sample_id": sample.id,
        "sample_hash": hashlib.sha256((raw + "".join(references)).encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": raw, "reference": references},
        "output": {"raw": [_text(response.document)]},
        "answer_attribution": [],
        "metadata": {"group": str(sample.group)} if sample.group else {},
    }
    if isinstance(options, Mapping):
        line["input"]["choices"] = [f"{letter}. {text}" for letter, text in options.items()]
    if response.prompt_tokens is not None and response.new_tokens is not None:
        total = response.prompt_tokens + response.new_tokens
        line["token_usage"] = {
            "input_tokens": response.prompt_tokens,
            "output_tokens": response.new_tokens,
            "total_tokens": total,
        }
    return line


def _references(targets: Mapping[str, JSON]) -> list[str]:
    """The texts a sample is scored against, under the names that tasks give them; the lines of a text are several."""
    found = next((targets[name] for name in REFERENCES if targets.get(name)), [])
    if isinstance(found, str):
        return found.splitlines()
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _text(document: Document) -> str:
    """A document as text; an image by its file's name."""
    return "".join(
        part.text if isinstance(part, Text) else f"[image {PurePath(part.path).name if part.path else part.digest()}]"
        for part in document
    )
