"""VQAv2 as a task: prompts, protocols, and the run's scores. The rule itself is in `scoring`, the files in `data`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dreambench.documents import JSON, Image, Text
from dreambench.errors import DataError, counted
from dreambench.files import gc_paused, write_atomically
from dreambench.interfaces import sample_choice
from dreambench.requests import Request, Response, Sample
from dreambench.scores import Protocol, Score, TaskResult
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
        """The split's questions and annotations."""
        return load(self.data, self.spec.split)

    @gc_paused()
    def samples(self) -> list[Sample]:
        questions, annotations = self.benchmark.questions, self.benchmark.annotations
        images = self._images({question.image_id for question in questions})
        targets = (
            {} if annotations is None else {id_: _targets(i, one) for i, (id_, one) in enumerate(annotations.items())}
        )
        return [
            Sample(
                str(question.question_id),
                (images[question.image_id], Text(question.question)),
                targets.get(question.question_id, {}),
                group=str(question.image_id),
            )
            for question in questions
        ]

    def _images(self, image_ids: set[int]) -> dict[int, Image]:
        """The image of each image id, or the path where it is expected: it is looked for before a model that opens it is loaded."""
        folder = self.spec.images or self.data
        if not folder.is_dir():
            raise DataError(f"--images {folder}: no such folder")
        found = image_index(folder)
        return {id_: Image(str(found.get(id_, folder / f"{id_:012d}.jpg"))) for id_ in image_ids}

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
            "references": HELD_BACK if self.benchmark.annotations is None else "ten human answers",
            "samples": sample_choice(samples),
            "prompt": "image and question; wording and decoding are the system's",
        }
        return [Protocol(name, 1, shared) for name in self.spec.protocol or ("official",)]

    def read_responses(self, path: Path) -> Mapping[str, str]:
        return read_results(path)

    # --- scoring --------------------------------------------------------------------------------------------------------

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """Where the references are held back, the upload file for EvalAI: ``[{question_id, answer}]``, every question answered."""
        if not _held_back(run):
            return
        answers = self._answers(samples, responses)
        if len(answers) == len(samples):
            entries = [{"question_id": int(id_), "answer": answer} for id_, answer in answers.items()]
            write_atomically(run.path / UPLOAD, json.dumps(entries, ensure_ascii=False).encode())

    def _answers(self, samples: Sequence[Sample], responses: Mapping[str, Response]) -> dict[str, str]:
        """Answers by question id; a request that failed has none."""
        finish = clip_answer if self.generation["clip_answer"] else str
        texts = {sample.id: answer_text(responses[sample.id]) for sample in samples}
        return {id_: finish(text) for id_, text in texts.items() if text is not None}

    @gc_paused()
    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        import pandas as pd

        answers = self._answers(samples, responses)
        rows = [_row(sample, answers.get(sample.id)) for sample in samples]
        if _held_back(run):
            return TaskResult(rows, [], [_upload_note(run, len(samples), len(answers))])
        # The order of the annotation file, in which the evaluator adds.
        order = sorted(range(len(samples)), key=lambda number: samples[number].targets["index"])
        scores: list[Score] = []
        for number, (id_, fields) in enumerate(run.run_file()["protocols"].items()):
            rule = RULES[fields["name"]]
            column = "accuracy" if number == 0 else f"accuracy[{rule.name}]"
            for sample, row in zip(samples, rows, strict=True):
                row[column] = None if row["answer"] is None else _accuracy(sample, row["answer"], rule)
            scores += _scores(pd.DataFrame([rows[number] for number in order]), column, rule, id_)
        return TaskResult(rows, scores)


def _targets(index: int, annotation: Annotation) -> dict[str, JSON]:
    """What scoring needs of an annotation: the answers, a line each, and among others the `index` of the annotation in its file."""
    records = {} if annotation.records is None else {"records": annotation.records}
    return {
        "answers": "\n".join(map(clean, annotation.answers)),
        "question_type": annotation.question_type,
        "answer_type": annotation.answer_type,
        "index": index,
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
    types = {name: sample.targets[name] for name in ("question_type", "answer_type") if name in sample.targets}
    return {"id": sample.id, "image_id": int(sample.group or -1), **types, "answer": answer}


def _accuracy(sample: Sample, answer: str, rule: Rule) -> float:
    return accuracy(sample.targets["answers"].split("\n"), answer, rule, sample.targets.get("records"))


def _scores(table: pd.DataFrame, column: str, rule: Rule, protocol: str) -> list[Score]:
    """Overall, by answer type, by question type; a question without an answer is counted, not scored."""
    scores = [_mean(None, table, column, rule, protocol)]
    if scores[0].n:
        for name in ("answer_type", "question_type"):
            scores += [_mean(f"{name}={value}", part, column, rule, protocol) for value, part in table.groupby(name)]
    return scores


def _mean(group: str | None, table: pd.DataFrame, column: str, rule: Rule, protocol: str) -> Score:
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
    )
