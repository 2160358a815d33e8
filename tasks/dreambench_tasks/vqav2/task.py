"""VQAv2 as a task: prompts, protocols, and the run's scores. The rule itself is in `scoring`, the files in `data`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from dreambench.documents import JSON, Image, Text
from dreambench.errors import DataError, RunError
from dreambench.files import replacing
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
)
from dreambench_tasks.vqav2.data import VQAv2, load, read_results, write_evalai
from dreambench_tasks.vqav2.index import ReferenceIndex, load_index, save_index
from dreambench_tasks.vqav2.scoring import VQAScores, score_answers

__all__ = ["VQAv2Task", "clip_answer"]

REFERENCES, UPLOAD = "references.npz", "evalai.json"


def clip_answer(answer: str) -> str:
    """What DreamLLM's script does to an answer under ``--clip True``: no ``.`` and ``"``, cut at the first comma, lower case."""
    return answer.replace(".", "").replace('"', "").split(",")[0].lower()


class VQAv2Task(ComprehensionTask):
    """VQAv2: open questions about images, each with ten human answers

    test and test-dev have no public references: a run leaves an upload file for EvalAI there instead of a score.
    """

    name = "vqav2"
    protocol_names: ClassVar[Mapping[str, str]] = {
        "official": "the official evaluator (GT-Vision-Lab/VQA), in every question and digit",
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

    @cached_property
    def benchmark(self) -> VQAv2:
        """The split's questions and references."""
        from dreambench.files import cache_folder

        return load(self.data, self.spec.split, cache=cache_folder() / "vqav2")

    # --- asking ---------------------------------------------------------------------------------------------------------

    def samples(self) -> list[Sample]:
        questions = self.benchmark.questions
        images = self._images({question.image_id for question in questions})
        return [
            Sample(
                str(question.question_id),
                (images[question.image_id], Text(question.question)),
                group=str(question.image_id),
            )
            for question in questions
        ]

    def _images(self, image_ids: set[int]) -> dict[int, Image]:
        """The image of each image id, or where it would be looked for: a model that opens it is not begun without it."""
        place = self.spec.images or self.data
        if not place.is_dir():
            raise DataError(f"--images {place}: no such folder")
        found = image_index(place)
        return {id_: Image(str(found.get(id_, place / f"{id_:012d}.jpg"))) for id_ in image_ids}

    def request(self, sample: Sample) -> Request:
        """Image, question, and in the default preset the line that LLaVA and lmms-eval append."""
        question = next(part.text for part in sample.prompt if isinstance(part, Text))
        return self.ask(sample, question)

    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        shared = {
            "task": self.name,
            "metric": "VQA accuracy",
            "split": self.benchmark.split,
            "data_sha256": self.benchmark.fingerprint,
            **self.data_fields(),
            "references": "ten human answers" if self.benchmark.references is not None else "held back",
            "samples": sample_choice(samples),
            "prompt": "image and question; wording and decoding are the system's",
        }
        return [Protocol(name, 1, shared) for name in self.spec.protocol or ("official",)]

    def read_responses(self, path: Path) -> Mapping[str, str]:
        return {str(question): answer for question, answer in read_results(path).items()}

    # --- scoring --------------------------------------------------------------------------------------------------------

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """The references of the run's questions, or where they are held back the upload file, into the run."""
        if (run.path / REFERENCES).exists() or (run.path / UPLOAD).exists():
            return
        wanted = {int(sample.id) for sample in samples}
        references = self.benchmark.references
        if references is not None:
            save_index(run.path / REFERENCES, references.select(wanted))
            return
        answers = self._answers(samples, responses)
        if len(answers) == len(samples):
            questions = [question for question in self.benchmark.questions if question.question_id in wanted]
            with replacing(run.path / UPLOAD) as path:
                write_evalai(path, questions, answers)

    def _answers(self, samples: Sequence[Sample], responses: Mapping[str, Response]) -> dict[int, str]:
        """Answers by question id; questions that ended in an error have none."""
        finish = clip_answer if self.generation["clip_answer"] else str
        texts = {int(sample.id): answer_text(responses[sample.id]) for sample in samples}
        return {question: finish(text) for question, text in texts.items() if text is not None}

    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        answers = self._answers(samples, responses)
        protocols = run.run_file()["protocols"]
        if any(fields["references"] == "held back" for fields in protocols.values()):
            return _unscored(run, samples, answers)
        references = load_index(run.path / REFERENCES)
        if references is None:
            raise RunError(f"{run.path / REFERENCES} is missing or damaged: remove it and score again")
        rows = _rows(samples, references, answers)
        scores: list[Score] = []
        answered = references.select(answers) if answers else None
        for number, (id_, fields) in enumerate(protocols.items()):
            scored = None if answered is None else score_answers(answered, answers, fields["name"])
            scores += _scores(references, scored, id_)
            column = "accuracy" if number == 0 else f"accuracy[{fields['name']}]"
            _add_column(rows, column, scored)
        return TaskResult(rows, scores)


def _unscored(run: RunFolder, samples: Sequence[Sample], answers: Mapping[int, str]) -> TaskResult:
    """A run over questions whose references are held back."""
    rows: list[dict[str, JSON]] = [
        {"id": sample.id, "image_id": int(sample.group or -1), "answer": answers.get(int(sample.id))}
        for sample in samples
    ]
    if (run.path / UPLOAD).exists():
        note = f"the references are held back: upload {UPLOAD} of this run to EvalAI ({len(samples)} questions; it takes whole splits)"
    else:
        failed = len(samples) - len(answers)
        note = f"the references are held back, and no {UPLOAD} was written: {failed} questions ended in an error"
    return TaskResult(rows, [], [note])


def _rows(samples: Sequence[Sample], references: ReferenceIndex, answers: Mapping[int, str]) -> list[dict[str, JSON]]:
    """One row per sample; types come from the references."""
    place = {question: row for row, question in enumerate(references.question_ids.tolist())}
    answer_type, question_type = references.answer_type.tolist(), references.question_type.tolist()
    image_ids = references.image_ids.tolist()
    rows: list[dict[str, JSON]] = []
    for sample in samples:
        row = place[int(sample.id)]
        rows.append(
            {
                "id": sample.id,
                "image_id": image_ids[row],
                "question_type": references.question_types[question_type[row]],
                "answer_type": references.answer_types[answer_type[row]],
                "answer": answers.get(int(sample.id)),
            }
        )
    return rows


def _add_column(rows: Sequence[dict[str, JSON]], name: str, scored: VQAScores | None) -> None:
    """Each question's accuracy, from 0 to 1; none where it has no answer."""
    accuracies: dict[int, float] = {}
    if scored is not None:
        accuracies = dict(zip(scored.index.question_ids.tolist(), scored.accuracies.tolist(), strict=True))
    for row in rows:
        row[name] = accuracies.get(int(row["id"]))


def _scores(references: ReferenceIndex, scored: VQAScores | None, protocol: str) -> list[Score]:
    """Overall, by answer type, by question type; questions without an answer are counted, not scored."""
    if scored is None:
        return [mean_score("accuracy", None, [], protocol, unscored=len(references))]
    index = scored.index
    missing = ~np.isin(references.question_ids, index.question_ids)
    note = f"the evaluator of this protocol prints {scored.rounded(scored.overall):.2f}"
    scores = [
        mean_score(
            "accuracy",
            None,
            scored.accuracies,
            protocol,
            value=scored.overall,
            clusters=index.image_ids,
            cluster_name="image",
            unscored=int(missing.sum()),
            notes=(note,),
        )
    ]
    for kind, values in (("answer_type", scored.per_answer_type), ("question_type", scored.per_question_type)):
        names: list[str] = getattr(references, f"{kind}s")
        everywhere, here = getattr(references, kind), getattr(index, kind)
        for code in sorted(range(len(names)), key=names.__getitem__):
            if not (everywhere == code).any():
                continue
            scores.append(
                mean_score(
                    "accuracy",
                    f"{kind}={names[code]}",
                    scored.accuracies[here == code],
                    protocol,
                    value=values.get(names[code]),
                    clusters=index.image_ids[here == code],
                    cluster_name="image",
                    unscored=int((missing & (everywhere == code)).sum()),
                )
            )
    return scores
