"""VQAv2 as a task: prompts, protocols, and the run's scores. The rule itself is in `scoring`, the files in `data`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dreambench.documents import JSON, Image, Text
from dreambench.errors import DataError, counted
from dreambench.files import write_atomically
from dreambench.interfaces import every_answer, sample_choice
from dreambench.requests import Request, Response, Sample
from dreambench.scores import Cells, Protocol, Score, TaskResult
from dreambench.store import RunFolder
from dreambench_tasks.coco import image_index
from dreambench_tasks.comprehension import (
    DREAMLLM_DECODING,
    GREEDY,
    ComprehensionTask,
    answer_text,
    mean_score,
    question_text,
)
from dreambench_tasks.vqav2.data import Annotation, VQAv2, load, read_results
from dreambench_tasks.vqav2.scoring import RULES, Rule, accuracy, clean, percent, rounded

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["VQAv2Task", "clip_answer"]

UPLOAD = "evalai.json"
HELD_BACK = "held back"
_ROW = {"id": "string", "image_id": "int64", "question_type": "string", "answer_type": "string", "answer": "string"}


def clip_answer(answer: str) -> str:
    """An answer as DreamLLM's script changes it under ``--clip True``: no ``.`` and ``"``, cut at the first comma, lower case."""
    return answer.replace(".", "").replace('"', "").split(",")[0].lower()


class VQAv2Task(ComprehensionTask):
    """VQAv2: open questions about images, each with ten human answers

    test and test-dev have no public references: a run on them writes an upload file for EvalAI instead of scores.
    """

    name = "vqav2"
    protocol_names: ClassVar[Mapping[str, str]] = {
        "official": "the official evaluator (GT-Vision-Lab/VQA), equal to the last digit",
        "normalised": "answers always normalised, also where all references agree, as lmms-eval does",
        "dreamllm-evaluator": "DreamLLM's copy of the evaluator: a reference counts when it occurs inside the answer; much higher",
    }
    uses: ClassVar[frozenset[str]] = frozenset({"images", "split", "dataset"})
    submission: ClassVar[tuple[str, ...]] = (".json",)
    presets: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "default": {
            **GREEDY,
            "prompt": "\nAnswer the question using a single word or phrase.",
            "max_new_tokens": 16,
            "clip_answer": False,
        },
        # The test-dev line of DreamLLM's scripts/eval/vqa/eval_vqa.sh.
        "dreamllm": {
            **DREAMLLM_DECODING,
            "system_prompt": "Based on the image, please answer the question.",
            "prompt": "Please provide an accurate answer within one word.",
            "assistant_prefix": "The short answer '(one word)' is:",
            "clip_answer": True,
        },
    }

    # --- data and requests ----------------------------------------------------------------------------------------------

    @cached_property
    def benchmark(self) -> VQAv2:
        """The split's files."""
        return load(self.data, self.spec.split)

    def inputs(self) -> Sequence[Path]:
        files = filter(None, (self.benchmark.question_file, self.benchmark.annotation_file))
        return [*files, *(Path(root) for root, _, _ in os.walk(self.spec.images or self.data))]

    def samples(self) -> Iterator[Sample]:
        folder = self.spec.images or self.data
        if not folder.is_dir():
            raise DataError(f"--images {folder}: no such folder")
        found = image_index(folder)
        for question, annotation in self.benchmark.pairs():
            # Where there is none, the path where it is expected: it is looked for before a model that opens it is loaded.
            image = Image(found.get(question.image_id) or str(folder / f"{question.image_id:012d}.jpg"))
            document = (image, Text(question.question))
            targets = {} if annotation is None else _targets(annotation)
            yield Sample(str(question.question_id), document, targets, group=str(question.image_id))

    def request(self, sample: Sample) -> Request:
        """Image, question, and in the default preset the line that LLaVA and lmms-eval append."""
        return self.ask(sample, question_text(sample))

    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        shared = {
            "task": self.name,
            "metric": "VQA accuracy",
            "split": self.benchmark.split,
            "data_sha256": self.benchmark.fingerprint,
            **self.data_fields(),
            "references": HELD_BACK if self.benchmark.annotation_file is None else "ten human answers",
            "samples": sample_choice(samples),
            "prompt": "image and question; wording and decoding are the system's",
        }
        return [Protocol(name, 1, shared) for name in self.spec.protocol or ("official",)]

    def read_responses(self, path: Path) -> Mapping[str, str]:
        return read_results(path)

    # --- scoring --------------------------------------------------------------------------------------------------------

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """Where the references are held back, the upload file for EvalAI, if every question is answered."""
        super().collect_artifacts(run, samples, responses)
        if _held_back(run) and all(responses[sample.id].error is None for sample in samples):
            self.write_submission(run, samples, responses, run.path / UPLOAD)

    def write_submission(
        self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response], path: Path
    ) -> None:
        """The official results JSON, which EvalAI takes: ``[{question_id, answer}]``, every question answered."""
        answers = every_answer(run, ((sample.id, self._answer(responses[sample.id])) for sample in samples))
        entries = [{"question_id": int(id_), "answer": answer} for id_, answer in answers.items()]
        write_atomically(path, json.dumps(entries, ensure_ascii=False).encode())

    def _answer(self, response: Response) -> str | None:
        """The answer that is scored; None where the request failed."""
        text = answer_text(response)
        return clip_answer(text) if text is not None and self.generation["clip_answer"] else text

    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        answers = ((sample, self._answer(responses[sample.id])) for sample in samples)
        if _held_back(run):
            types = {name: _ROW[name] for name in ("id", "image_id", "answer")}
            table = _table((_row(sample, answer) for sample, answer in answers), types)
            return TaskResult(table, [], [_upload_note(run, len(samples), len(table["answer"].dropna()))])
        names = {id_: fields["name"] for id_, fields in run.run_file()["protocols"].items()}
        columns = {
            id_: f"accuracy[{name}]" if number else "accuracy" for number, (id_, name) in enumerate(names.items())
        }
        rules = {columns[id_]: RULES[name] for id_, name in names.items()}
        rows = (_row(sample, answer) | _accuracies(sample, answer, rules) for sample, answer in answers)
        table = _table(rows, {**_ROW, "index": "int64", **dict.fromkeys(rules, "float64")})
        # The order of the annotation file, in which the evaluator adds.
        scored = table[["image_id", "question_type", "answer_type", *rules]]
        ordered = scored.iloc[np.argsort(table.pop("index"), kind="stable")]
        scores = [score for id_, column in columns.items() for score in _scores(ordered, column, rules[column], id_)]
        return TaskResult(table, scores)


def _targets(annotation: Annotation) -> dict[str, JSON]:
    """What scoring needs of an annotation: the answers, a line each, and among others the `index` of the annotation in its file."""
    records = {} if annotation.records is None else {"records": annotation.records}
    return {
        "answers": "\n".join(map(clean, annotation.answers)),
        "question_type": annotation.question_type,
        "answer_type": annotation.answer_type,
        "index": annotation.index,
        **records,
    }


def _held_back(run: RunFolder) -> bool:
    return any(fields["references"] == HELD_BACK for fields in run.run_file()["protocols"].values())


def _upload_note(run: RunFolder, n: int, answered: int) -> str:
    if (run.path / UPLOAD).exists():
        return f"the references are held back: upload {UPLOAD} of this run to EvalAI ({counted(n, 'question')}; it takes whole splits)"
    return f"the references are held back, and no {UPLOAD} was written: {counted(n - answered, 'question')} ended in an error"


def _row(sample: Sample, answer: str | None) -> dict[str, JSON]:
    """A row of scores.parquet without its accuracies; the types are absent where the references are held back."""
    types = {name: sample.targets[name] for name in ("question_type", "answer_type", "index") if name in sample.targets}
    return {"id": sample.id, "image_id": int(sample.group or -1), **types, "answer": answer}


def _accuracies(sample: Sample, answer: str | None, rules: Mapping[str, Rule]) -> dict[str, float | None]:
    """Under each rule, by column; None where there is no answer."""
    references, records = sample.targets["answers"].split("\n"), sample.targets.get("records")
    return {
        column: None if answer is None else accuracy(references, answer, rule, records)
        for column, rule in rules.items()
    }


def _table(rows: Iterator[Mapping[str, JSON]], types: Mapping[str, str]) -> pd.DataFrame:
    """Rows as a data frame with columns of these types (Arrow's names); a few thousand at a time are held as objects."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.type_for_alias(type_)) for name, type_ in types.items()])
    pieces = iter(lambda: list(islice(rows, 1 << 12)), [])
    parts = (pa.RecordBatch.from_pylist(piece, schema) for piece in pieces)
    # In one piece, whose pages in a file do not depend on the parts.
    return pa.Table.from_batches(parts, schema).combine_chunks().to_pandas(use_threads=False)


def _scores(table: pd.DataFrame, column: str, rule: Rule, protocol: str) -> list[Score]:
    """Overall, by answer type, by question type; a question without an answer is counted, not scored."""
    scores = [_mean({}, table, column, rule, protocol)]
    if scores[0].n:
        for name in ("answer_type", "question_type"):
            scores += [_mean({name: value}, part, column, rule, protocol) for value, part in table.groupby(name)]
    return scores


def _mean(where: Mapping[str, JSON], table: pd.DataFrame, column: str, rule: Rule, protocol: str) -> Score:
    group = next((f"{name}={value}" for name, value in where.items()), None)
    scored = table[table[column].notna()]
    accuracies = scored[column].tolist()
    value = percent(accuracies) if accuracies else None
    notes = () if group or value is None else (f"the evaluator of this protocol prints {rounded(value, rule):.2f}",)
    return mean_score(
        "accuracy",
        group,
        accuracies,
        protocol,
        value=value,
        clusters=np.asarray(scored["image_id"]),
        cluster_name="image",
        unscored=len(table) - len(scored),
        notes=notes,
        cells=Cells(column, "image_id", where),
    )
