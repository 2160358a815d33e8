"""MM-Vet as a task: prompts, who grades, and the run's scores. Counting is in `scoring`, the files in `data`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from dreambench.documents import JSON, Image, Text
from dreambench.errors import DataError, UsageError, counted
from dreambench.files import read_json, sha256_file, write_atomically
from dreambench.interfaces import every_answer, sample_choice
from dreambench.judges import (
    GradeRequest,
    GradesFile,
    Judge,
    JudgementLog,
    ReplayJudge,
    calibrate,
    calibration_requests,
    grade_missing,
    judged,
    missing,
    parse_judge,
)
from dreambench.progress import progress_bar, say
from dreambench.requests import Request, Response, Sample
from dreambench.scores import Cells, Protocol, Score, TaskResult
from dreambench.store import RunFolder
from dreambench_tasks.comprehension import (
    DREAMLLM_DECODING,
    GREEDY,
    ComprehensionTask,
    answer_text,
    mean_score,
    question_text,
)
from dreambench_tasks.mmvet.data import Grade, data_file, load, read_answers, read_grades, write_grades
from dreambench_tasks.mmvet.scoring import GroupScore, MMVetScores, aggregate, integration_name

__all__ = ["MMVetTask"]

JUDGEMENTS, GRADES, CALIBRATION = "judgements.jsonl", "grades.json", "calibration.json"
# What --dry-run assumes of an answer: about 60 tokens.
TYPICAL_ANSWER = "word " * 48


class MMVetTask(ComprehensionTask):
    """MM-Vet: open questions that need several of six capabilities at once, graded from 0 to 1 by a judge

    The judge decides the protocol's name: ``official`` only with the official few-shot prompt.
    """

    name = "mmvet"
    protocol_names: ClassVar[Mapping[str, str]] = {
        "rule": "--judge rule: the share of the reference's parts that the answer contains; the embedded data's default",
        "official": "--judge openai:MODEL@URL,prompt=FILE with MM-Vet's own few-shot prompt (model: likewise)",
        "dreambench-grader": "--judge openai:MODEL@URL or model:NAME with this project's grading prompt",
        "grades": "--judge grades:FILE: grades made elsewhere, in the official evaluator's file format",
    }
    uses: ClassVar[frozenset[str]] = frozenset({"images", "judge", "dataset"})
    submission: ClassVar[tuple[str, ...]] = (".json",)
    presets: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        # The question as it stands.
        "default": {**GREEDY, "max_new_tokens": 512},
        # DreamLLM's scripts/eval/vqa/eval_vqa.sh; its README says "an accurate and detailed answer".
        "dreamllm": {
            **DREAMLLM_DECODING,
            "system_prompt": "This is an exam, please answer according to the image and question.",
            "prompt": "Please provide an accurate, detailed and comprehensive answer.",
        },
    }

    # --- requests -------------------------------------------------------------------------------------------------------

    def samples(self) -> list[Sample]:
        return [
            Sample(
                question.id,
                (Image(str(question.image)), Text(question.question)),
                {"reference": question.answer, "capabilities": list(question.capabilities)},
                group=question.image.name,
            )
            for question in load(self.data, self.spec.images)
        ]

    def request(self, sample: Sample) -> Request:
        """Image and question; the default preset adds nothing."""
        return self.ask(sample, question_text(sample))

    def read_responses(self, path: Path) -> Mapping[str, str]:
        return read_answers(path)

    @cached_property
    def judge(self) -> Judge | GradesFile:
        """The judge. Real data have no default: scores of different judges are different measures."""
        spec = self.spec.judge
        if spec is None:
            if self.spec.data_path is not None or self.spec.dataset is not None:
                raise UsageError(
                    "MM-Vet's answers are graded by a judge, and there is no default: --judge openai:MODEL@URL[,prompt=FILE],"
                    " grades:FILE, model:NAME[:LOCATION] or rule (docs/judges.md)"
                )
            spec = "rule"
        return parse_judge(spec, offline=self.spec.offline, device=self.spec.device)

    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        judge = self.judge
        if isinstance(judge, GradesFile):
            name, runs = "grades", max(map(len, self._grades_of(samples).values()), default=0)
            identity: dict[str, JSON] = {"name": "grades", "sha256": sha256_file(judge.path)}
        else:
            name, runs, identity = judge.prompt_name, judge.runs, dict(judge.identity())
        for other in self.spec.protocol:
            if other != name:
                raise UsageError(f"--protocol {other} is {self.protocol_names[other]}; this judge's is {name}")
        fields = {
            "task": self.name,
            "metric": "mean grade",
            "data_sha256": sha256_file(data_file(self.data)),
            **self.data_fields(),
            "samples": sample_choice(samples),
            "judge": identity,
            "grading_runs": runs,
            "prompt": "image and question; wording and decoding are the system's",
        }
        return [Protocol(name, 1, fields)]

    def _grades_of(self, samples: Sequence[Sample]) -> dict[str, list[Grade]]:
        """The grades of a grade file that belong to these samples."""
        if not isinstance(self.judge, GradesFile):
            return {}
        grades = read_grades(self.judge.path)
        ids = {sample.id for sample in samples}
        chosen = {id_: listed for id_, listed in grades.items() if id_ in ids}
        if not any(chosen.values()):
            raise DataError(
                f"{self.judge.path}: it grades none of the {counted(len(ids), 'question')} of this run (first ids:"
                f" {next(iter(grades), 'none')} there, {samples[0].id} here)"
            )
        return chosen

    def estimate(self, samples: Sequence[Sample]) -> Sequence[str]:
        judge = self.judge
        if isinstance(judge, GradesFile):
            return ()
        items = _items(samples, {sample.id: TYPICAL_ANSWER for sample in samples}, judge.runs)
        return judge.estimate([*items, *(calibration_requests() if _is_model(judge.identity()) else ())])

    # --- grading --------------------------------------------------------------------------------------------------------

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """Every grade into the run: ``judgements.jsonl`` one by one, then all in ``grades.json`` in the official form."""
        super().collect_artifacts(run, samples, responses)
        fields = next(iter(run.run_file()["protocols"].values()))
        identity, runs = fields["judge"], fields["grading_runs"]
        if identity["name"] == "grades":
            if not (run.path / GRADES).exists():
                write_grades(run.path / GRADES, self._grades_of(samples))
            return
        items = _items(samples, _answers(samples, responses), runs)
        log = JudgementLog(run.path / JUDGEMENTS)
        # A run that has all its grades is scored again without its judge.
        if missing(identity, items, log) and isinstance(self.judge, Judge):
            if _is_model(identity) and not isinstance(self.judge, ReplayJudge):
                _calibrate(self.judge, log, run)
            with progress_bar("grading") as progress:
                grade_missing(self.judge, items, log, progress)
        write_grades(run.path / GRADES, _graded(identity, samples, responses, runs, log))

    def write_submission(
        self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response], path: Path
    ) -> None:
        """The file of the official evaluator: ``{"v1_0": "..."}``, every question answered."""
        answers = every_answer(run, ((sample.id, answer_text(responses[sample.id])) for sample in samples))
        write_atomically(path, (json.dumps(answers, indent=4) + "\n").encode())

    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        id_, fields = next(iter(run.run_file()["protocols"].items()))
        if fields["judge"]["name"] == "grades":
            grades = read_grades(run.path / GRADES)
        else:
            log = JudgementLog(run.path / JUDGEMENTS)
            grades = _graded(fields["judge"], samples, responses, fields["grading_runs"], log)
        capabilities = {sample.id: sample.targets["capabilities"] for sample in samples}
        numbers = {question: [grade.score for grade in listed] for question, listed in grades.items()}
        scored = aggregate(capabilities, numbers, fields["grading_runs"])
        rows = _rows(samples, _answers(samples, responses), grades, scored)
        images = {sample.id: sample.group for sample in samples}
        return TaskResult(rows, _scores(scored, capabilities, images, id_), _notes(run))


def _answers(samples: Sequence[Sample], responses: Mapping[str, Response]) -> dict[str, str]:
    texts = {sample.id: answer_text(responses[sample.id]) for sample in samples}
    return {id_: text for id_, text in texts.items() if text is not None}


def _items(samples: Sequence[Sample], answers: Mapping[str, str], runs: int) -> list[GradeRequest]:
    """Every answer once per grading run, run by run; a request that failed has none to be graded."""
    return [
        GradeRequest(sample.id, run, question_text(sample), sample.targets["reference"], answers[sample.id])
        for run in range(runs)
        for sample in samples
        if sample.id in answers
    ]


def _is_model(identity: Mapping[str, JSON]) -> bool:
    """Whether the judge is a model, which is calibrated before it grades; not a rule or a file."""
    return identity["name"] in ("openai", "model")


def _calibrate(judge: Judge, log: JudgementLog, run: RunFolder) -> None:
    calibration = calibrate(judge, log)
    for line in calibration.lines():
        say(line)
    write_atomically(run.path / CALIBRATION, (json.dumps(calibration.to_json(), indent=1) + "\n").encode())


def _graded(
    identity: Mapping[str, JSON],
    samples: Sequence[Sample],
    responses: Mapping[str, Response],
    runs: int,
    log: JudgementLog,
) -> dict[str, list[Grade]]:
    """The log's grades of every sample, in grading order; a request that failed has no grade in any run."""
    answers = _answers(samples, responses)
    items = _items(samples, answers, runs)
    grades: dict[str, list[Grade]] = {
        sample.id: [] if sample.id in answers else [Grade("", "no answer", None)] * runs for sample in samples
    }
    for judgement in judged(identity, items, log):
        content = judgement.raw if judgement.reason is None else judgement.reason
        name = judgement.answered_by or str(identity["name"])
        grades[judgement.id].append(Grade(name, content, judgement.score))
    return grades


# --- scores ----------------------------------------------------------------------------------------------------------


def _rows(
    samples: Sequence[Sample], answers: Mapping[str, str], grades: Mapping[str, Sequence[Grade]], scored: MMVetScores
) -> list[dict[str, JSON]]:
    rows: list[dict[str, JSON]] = []
    for sample in samples:
        graded = [*grades.get(sample.id, ()), *[Grade("", "not graded", None)] * scored.runs][: scored.runs]
        row: dict[str, JSON] = {
            "id": sample.id,
            "image_id": sample.group,
            "integration": integration_name(sample.targets["capabilities"]),
            **{f"capability={name}": name in sample.targets["capabilities"] for name in scored.capabilities},
            "answer": answers.get(sample.id),
            "score": scored.question_means[sample.id],
            "reason": next((grade.content for grade in graded if grade.score is None), None),
        }
        rows.append(row | {f"score[{run}]": grade.score for run, grade in enumerate(graded)})
    return rows


def _scores(
    scored: MMVetScores, capabilities: Mapping[str, Sequence[str]], images: Mapping[str, str | None], protocol: str
) -> list[Score]:
    """The total, its spread over the grading runs where there are several, then by capability and by integration."""
    questions = list(capabilities)
    totals = ", ".join("none" if total is None else f"{total:.1f}" for total in scored.total.per_run)
    notes = [f"total of each grading run: {totals}"]
    if scored.total.unscored:
        notes.append(f"unscored counts grades, {scored.runs} for each question")
    scores = [_group(None, {}, scored.total, questions, scored, images, protocol, tuple(notes))]
    if scored.runs > 1:
        spread = f"none: the population standard deviation of the totals of {scored.runs} grading runs"
        scores.append(Score("score_std", scored.std, "%", scored.runs, protocol, interval_method=spread))
    for name, group in scored.capabilities.items():
        members = [question for question in questions if name in capabilities[question]]
        scores.append(
            _group(f"capability={name}", {f"capability={name}": True}, group, members, scored, images, protocol)
        )
    for name, group in scored.integrations.items():
        members = [question for question in questions if integration_name(capabilities[question]) == name]
        scores.append(_group(f"integration={name}", {"integration": name}, group, members, scored, images, protocol))
    return scores


def _group(
    group: str | None,
    where: Mapping[str, JSON],
    score: GroupScore,
    questions: Sequence[str],
    scored: MMVetScores,
    images: Mapping[str, str | None],
    protocol: str,
    notes: tuple[str, ...] = (),
) -> Score:
    """The interval is over questions, of their mean grades over the runs, so it includes the judge's spread.

    Where grades are missing, the score is no mean of these means, because it counts grades, not questions.
    """
    means = {question: mean for question in questions if (mean := scored.question_means[question]) is not None}
    return mean_score(
        "score",
        group,
        list(means.values()),
        protocol,
        value=score.value,
        clusters=[images[question] for question in means],
        cluster_name="image",
        unscored=score.unscored,
        bounds=(score.lower, score.upper) if score.unscored else None,
        notes=notes,
        cells=None if score.unscored else Cells("score", "image_id", where),
    )


def _notes(run: RunFolder) -> list[str]:
    if not (run.path / CALIBRATION).exists():
        return []
    calibration = read_json(run.path / CALIBRATION)
    return [f"calibration: the judge agrees with {calibration['agreed']} of {calibration['n']} obvious grades"]
