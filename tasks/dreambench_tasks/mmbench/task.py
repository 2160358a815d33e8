"""MMBench as a task: prompts, protocols, and the run's scores. Rules and counting are in `scoring`, files in `data`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from dreambench.documents import JSON, Image, Text
from dreambench.errors import DataError, RunError, UsageError, counted
from dreambench.files import not_led_out, replacing, sha256_file
from dreambench.interfaces import every_answer, sample_choice
from dreambench.judges import GradeRequest, Judge, JudgementLog, grade_missing, judged, missing
from dreambench.requests import Request, Response, Sample
from dreambench.scores import Cells, Protocol, Score, TaskResult
from dreambench.spec import RunSpec
from dreambench.store import RunFolder
from dreambench_tasks.comprehension import (
    DREAMLLM_DECODING,
    GREEDY,
    ComprehensionTask,
    answer_text,
    image_name,
    mean_score,
    question_text,
)
from dreambench_tasks.mmbench.data import MMBench, Row, load, read_predictions, write_submission
from dreambench_tasks.mmbench.scoring import (
    Unit,
    circular_units,
    copy_units,
    extract_choice,
    grouped,
    listed,
    matched_letter,
    matching_request,
    parse_matcher,
    vanilla_units,
)

__all__ = ["MMBenchTask"]

JUDGEMENTS = "judgements.jsonl"
BOTH, VANILLA_ONLY = "CircularEval and VanillaEval", "VanillaEval (the file has no rotated copies)"
HELD_BACK = "held back"
LAYOUTS = ("listed", "open")


class MMBenchTask(ComprehensionTask):
    """MMBench: single-choice questions, each asked once per rotation of its options

    Where the answers are held back (TEST) a run writes a submission for the server instead of scores.
    """

    name = "mmbench"
    protocol_names: ClassVar[Mapping[str, str]] = {
        "vlmevalkit": "VLMEvalKit's rules for the chosen letter; what they leave open is unscored, or goes to --judge",
        "loglikelihood": "the option letter that the model gives the highest log-likelihood; exact ties are unscored",
    }
    uses: ClassVar[frozenset[str]] = frozenset({"split", "judge", "dataset"})
    submission: ClassVar[tuple[str, ...]] = (".xlsx", ".tsv")
    presets: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "default": {
            **GREEDY,
            "layout": "listed",
            "prompt": "\nAnswer with the option's letter from the given choices directly.",
            "max_new_tokens": 16,
        },
        # DreamLLM's scripts/eval/vqa/eval_vqa.sh. Its quirks: the options are not shown, so that a judge has to find the choice in an
        # open answer; an absent hint reads "nan". (The script first asks whether the answer can be known, and shows the options, all
        # numbered 0, if the model says no; that first question is not asked here.)
        "dreamllm": {
            **DREAMLLM_DECODING,
            "layout": "open",
            "system_prompt": "This is an exam, please answer according to the image, hint and question.",
            "prompt": "Please provide an accurate and detailed answer.",
        },
    }

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self.names = spec.protocol or ("vlmevalkit",)
        self.uses_loglikelihood = "loglikelihood" in self.names
        layout = self.generation["layout"]
        if layout not in LAYOUTS:
            raise UsageError(f"--generation layout={layout}: mmbench has {', '.join(LAYOUTS)}")
        if self.uses_loglikelihood and len(self.names) > 1:
            raise UsageError(
                "--protocol loglikelihood requests log-likelihoods, the other protocols text: run it by itself"
            )
        if self.uses_loglikelihood and (spec.judge or layout != "listed"):
            raise UsageError(
                "--protocol loglikelihood compares option letters: use it with layout=listed and without --judge"
            )

    # --- data -----------------------------------------------------------------------------------------------------------

    @cached_property
    def path(self) -> Path:
        """The TSV: --data itself, the only one in it, or the one that --split names."""
        if self.data.is_file():
            return self.data
        if not self.data.is_dir():
            raise DataError(f"--data {self.data}: no such file or folder; give the folder of an MMBench TSV")
        files = sorted([*self.data.glob("*.tsv"), *self.data.glob("*.tsv.gz")])
        split = self.spec.split
        # A plain file and its .gz are one.
        by_name = {path.name.removesuffix(".gz").removesuffix(".tsv"): path for path in reversed(files)}
        found = list(by_name.values())
        if split is not None:
            names = {split.casefold(), f"mmbench_{split}".casefold()}
            found = [path for name, path in by_name.items() if name.casefold() in names]
        if len(found) != 1:
            present = ", ".join(path.name for path in files) or "no .tsv"
            which = "" if split is None else f" for --split {split}"
            raise DataError(
                f"{self.data} holds {counted(len(found), 'file')}{which} ({present}): choose one by its name with --split"
            )
        return not_led_out(self.data, found[0])

    @cached_property
    def benchmark(self) -> MMBench:
        return load(self.path)

    def samples(self) -> list[Sample]:
        """Question by question, each with its rotations in order."""
        first = {row.base: index for index, row in reversed(list(enumerate(self.benchmark.rows)))}
        rows = sorted(self.benchmark.rows, key=lambda row: (first[row.base], row.rotation))
        images: dict[int, Image] = {}
        for row in rows:
            if row.image not in images:
                data = self.benchmark.image_bytes(row)
                images[row.image] = Image(data=data, sha256=hashlib.sha256(data).hexdigest())
        return [
            Sample(str(row.index), (images[row.image], Text(row.question)), _targets(row), group=str(row.base))
            for row in rows
        ]

    def first(self, samples: Sequence[Sample], n: int) -> list[Sample]:
        """``--limit`` counts questions, each with all of its rotations."""
        questions = set(list(dict.fromkeys(sample.group for sample in samples))[:n])
        return [sample for sample in samples if sample.group in questions]

    # --- requests -------------------------------------------------------------------------------------------------------

    def request(self, sample: Sample) -> Request:
        """``listed``: hint, question and lettered options, a line each. ``open``: ``Hint:…Question:…`` as in DreamLLM's script."""
        row = _row(sample)
        if self.generation["layout"] == "open":
            return self.ask(sample, f"Hint:{row.hint or 'nan'}Question:{row.question}")
        lines = [*([row.hint] if row.hint else []), row.question, listed(row.options, "\n")]
        if self.uses_loglikelihood:
            return self.ask(sample, "\n".join(lines), "loglikelihood", tuple(row.options))
        return self.ask(sample, "\n".join(lines))

    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        rows = [_row(sample) for sample in samples]
        if self.benchmark.circular:
            _require_whole_questions(rows, self.benchmark.rows)
        shared = {
            "task": self.name,
            "metric": BOTH if self.benchmark.circular else VANILLA_ONLY,
            "data_sha256": sha256_file(self.path),
            **self.data_fields(),
            "answers": HELD_BACK if any(row.answer is None for row in rows) else "in the file",
            "samples": sample_choice(samples),
            "judge": None if self.matcher is None else dict(self.matcher.identity()),
            "choices": "the letters, after the lettered options" if self.uses_loglikelihood else None,
            "prompt": "image, hint and question; wording and decoding are the system's",
        }
        return [Protocol(name, 1, shared) for name in self.names]

    @cached_property
    def matcher(self) -> Judge | None:
        """The judge of the replies that no rule decides."""
        if self.spec.judge is None:
            return None
        return parse_matcher(self.spec.judge, offline=self.spec.offline, device=self.spec.device)

    def read_responses(self, path: Path) -> Mapping[str, str]:
        return read_predictions(path)

    def estimate(self, samples: Sequence[Sample]) -> Sequence[str]:
        if self.matcher is None:
            return ()
        items = [matching_request(_row(sample), "") for sample in samples]
        return ["at most, if no rule decides any reply:", *self.matcher.estimate(items)]

    # --- scoring --------------------------------------------------------------------------------------------------------

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """The judge's matches of undecided replies, or the submission where the answers are held back, into the run."""
        super().collect_artifacts(run, samples, responses)
        fields = next(iter(run.run_file()["protocols"].values()))
        if fields["answers"] == HELD_BACK:
            if any(_reply(sample, responses[sample.id]) is None for sample in samples):
                return
            for suffix in (".tsv", ".xlsx") if find_spec("openpyxl") else (".tsv",):
                self.write_submission(run, samples, responses, run.path / f"submission{suffix}")
        elif fields["judge"] is not None:
            items, log = _undecided(samples, responses), JudgementLog(run.path / JUDGEMENTS)
            if self.matcher is not None and missing(fields["judge"], items, log):
                grade_missing(self.matcher, items, log)

    def image_key(self, sample: Sample) -> str:
        return image_name(sample)

    def image_data(self, sample: Sample) -> bytes:
        row = self._rows_by_id.get(sample.id)
        data = b"" if row is None else self.benchmark.image_bytes(row)
        # Where a run is scored again, the file may be another one.
        return data if hashlib.sha256(data).hexdigest()[:8] in image_name(sample) else b""

    @cached_property
    def _rows_by_id(self) -> dict[str, Row]:
        return {str(row.index): row for row in self.benchmark.rows}

    def write_submission(
        self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response], path: Path
    ) -> None:
        """The sheet for the MMBench server: the file's own rows with a `prediction`, every row answered."""
        replies = every_answer(run, ((sample.id, _reply(sample, responses[sample.id])) for sample in samples))
        made_on = next(iter(run.run_file()["protocols"].values()))["data_sha256"]
        if sha256_file(self.path) != made_on:
            raise RunError(f"{self.path} has changed since {run.path} was made on it: restore it")
        with replacing(path) as temporary:
            write_submission(temporary, [row for row in self.benchmark.rows if str(row.index) in replies], replies)

    def score(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> TaskResult:
        protocols = run.run_file()["protocols"]
        fields = next(iter(protocols.values()))
        rows = {sample.id: _result(sample, responses[sample.id]) for sample in samples}
        if fields["answers"] == HELD_BACK:
            return TaskResult(list(rows.values()), [], [_about_submission(run, samples)])
        if fields["judge"] is not None:
            items = _undecided(samples, responses)
            verdicts = judged(fields["judge"], items, JudgementLog(run.path / JUDGEMENTS))
            options = {sample.id: _row(sample).options for sample in samples}
            for verdict in verdicts:
                letter = matched_letter(verdict, options[verdict.id])
                rows[verdict.id] |= {"letter": letter, "rule": "judge" if letter else None, "reason": verdict.reason}
        scores: list[Score] = []
        images = {int(sample.id): image_name(sample) for sample in samples}
        for number, (id_, protocol) in enumerate(protocols.items()):
            copies, circular = _units(samples, responses, rows, protocol, str(run.run_file()["model"]))
            first = number == 0  # the protocol whose hits the rows have
            if circular is not None:
                scores += _scores("circular_accuracy", circular, images, id_, Cells("circular_hit") if first else None)
            vanilla = Cells("hit", where={"rotation": 0}) if first else None
            scores += _scores("vanilla_accuracy", vanilla_units(copies), images, id_, vanilla)
            if first:
                _add_hits(rows, copies, circular or [])
        return TaskResult(list(rows.values()), scores)


def _targets(row: Row) -> dict[str, JSON]:
    return {
        "hint": row.hint,
        "options": dict(row.options),
        "answer": row.answer,
        "category": row.category,
        "l2_category": row.l2_category,
        "split": row.split,
    }


def _row(sample: Sample) -> Row:
    """The row of a sample, without its image and the cells that only a submission needs."""
    return Row(index=int(sample.id), question=question_text(sample), image=-1, cells={}, **sample.targets)


def _require_whole_questions(rows: Sequence[Row], file: Sequence[Row]) -> None:
    """CircularEval is over the rotations that the file has: `DataError` where their numbers have a gap, or one is not among the samples.

    A question may have fewer rotations than options: an option such as "all of the above" is not rotated.
    """
    present, chosen = _rotations(file), _rotations(rows)
    for row in rows:
        here = present[row.base]
        if len(here) > len(row.options) or here != set(range(len(here))):
            raise DataError(
                f"question {row.base} has the rotations {_numbers(here)} of its {len(row.options)} options, which are not numbered"
                " from 0 without a gap: complete the file"
            )
        if chosen[row.base] != here:
            raise DataError(
                f"question {row.base} lacks the rotations {_numbers(here - chosen[row.base])}: let --ids name whole questions"
            )


def _rotations(rows: Sequence[Row]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for row in rows:
        found.setdefault(row.base, set()).add(row.rotation)
    return found


def _numbers(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _reply(sample: Sample, response: Response) -> str | None:
    """The reply's text; for log-likelihoods the letter of the highest, None where two are equally high."""
    if response.scores is None:
        return answer_text(response)
    best = max(response.scores)
    letters = [letter for letter, score in zip(_row(sample).options, response.scores, strict=True) if score == best]
    return letters[0] if len(letters) == 1 else None


def _undecided(samples: Sequence[Sample], responses: Mapping[str, Response]) -> list[GradeRequest]:
    """Replies that no rule decides, for the judge."""
    items: list[GradeRequest] = []
    for sample in samples:
        row, reply = _row(sample), answer_text(responses[sample.id])
        if reply is not None and extract_choice(reply, row.options).letter is None:
            items.append(matching_request(row, reply))
    return items


def _result(sample: Sample, response: Response) -> dict[str, JSON]:
    """A row of scores.parquet, before any judge."""
    row, reply = _row(sample), _reply(sample, response)
    if response.scores is not None:
        letter, rule = reply, "loglikelihood" if reply else None
    else:
        found = extract_choice(reply, row.options) if reply is not None else None
        letter, rule = (found.letter, found.rule) if found else (None, None)
    return {
        "id": sample.id,
        "question_id": row.base,
        "rotation": row.rotation,
        "split": row.split,
        "l2_category": row.l2_category,
        "category": row.category,
        "image_id": image_name(sample),
        "answer": reply,
        "letter": letter,
        "rule": rule,
        "reason": None if response.error is None else response.error.type,
        "right": row.answer,
    }


def _units(
    samples: Sequence[Sample],
    responses: Mapping[str, Response],
    rows: Mapping[str, Mapping[str, JSON]],
    protocol: Mapping[str, JSON],
    source: str,
) -> tuple[list[Unit], list[Unit] | None]:
    """Every copy, and every question under CircularEval where the file has rotations.

    A row that a file of answers leaves out is an error; one whose request failed is undecided.
    """
    letters: dict[int, str | None] = {}
    for sample in samples:
        error = responses[sample.id].error
        if error is None or error.type != "no-answer":
            letters[int(sample.id)] = rows[sample.id]["letter"]
    copies = copy_units([_row(sample) for sample in samples], letters, source)
    return copies, circular_units(copies) if protocol["metric"] == BOTH else None


def _add_hits(rows: Mapping[str, dict[str, JSON]], copies: Sequence[Unit], circular: Sequence[Unit]) -> None:
    """``hit`` of every copy, and on a question's first order whether all of its copies hit; 1, 0, or none while undecided."""
    for column, units in (("hit", copies), ("circular_hit", circular)):
        hits = {str(unit.row.index): unit.hit for unit in units}
        for id_, row in rows.items():
            hit = hits.get(id_)
            row[column] = None if hit is None else float(hit)


def _scores(
    metric: str, units: Sequence[Unit], images: Mapping[int, str], protocol: str, cells: Cells | None
) -> list[Score]:
    """`images` names the image of each index: questions about one image are not independent. `cells` have all hits of the metric."""
    if not units:
        return [mean_score(metric, None, [], protocol)]
    scores: list[Score] = []
    for group, members in grouped(units).items():
        decided = [unit for unit in members if unit.hit is not None]
        unscored = len(members) - len(decided)
        name, _, value = (group or "").partition("=")
        where = {name: value} if group else {}
        note = "the lower bound is VLMEvalKit's score without a judge: there a reply that no rule decides is wrong"
        scores.append(
            mean_score(
                metric,
                group,
                [float(bool(unit.hit)) for unit in decided],
                protocol,
                clusters=[images[unit.row.index] for unit in decided],
                cluster_name="image",
                unscored=unscored,
                notes=(note,) if unscored and group is None else (),
                cells=cells and replace(cells, cluster="image_id", where={**cells.where, **where}),
            )
        )
    return scores


def _about_submission(run: RunFolder, samples: Sequence[Sample]) -> str:
    written = [name for name in ("submission.xlsx", "submission.tsv") if (run.path / name).exists()]
    if not written:
        return "the answers are held back, and no submission was written: the server accepts none that leaves rows unanswered"
    more = "" if len(written) > 1 else " (the server accepts .xlsx: pip install 'dreambench[sheets]' and score again)"
    return f"the answers are held back: send {written[0]} of this run to the MMBench server ({counted(len(samples), 'row')}){more}"
