"""MMBench as a task: prompts, protocols, and the run's scores. Rules are in `extraction`, counting in `scoring`, files in `data`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from dreambench.documents import JSON, Image, Text
from dreambench.errors import DataError, UsageError
from dreambench.files import replacing, sha256_file
from dreambench.interfaces import sample_choice
from dreambench.judges import GradeRequest, Judge, JudgementLog, grade_missing, judged, missing
from dreambench.requests import Request, Response, Sample
from dreambench.scores import Protocol, Score, TaskResult
from dreambench.spec import RunSpec
from dreambench.store import RunFolder
from dreambench_tasks.comprehension import (
    DREAMLLM_DECODING,
    GREEDY,
    ComprehensionTask,
    answer_text,
    mean_score,
)
from dreambench_tasks.mmbench.data import MMBench, Row, load, read_predictions, write_submission
from dreambench_tasks.mmbench.extraction import extract_choice
from dreambench_tasks.mmbench.matching import listed, matched_letter, matcher, matching_request
from dreambench_tasks.mmbench.scoring import Unit, circular_units, copy_units, tallies, vanilla_units

__all__ = ["MMBenchTask"]

JUDGEMENTS = "judgements.jsonl"
BOTH, VANILLA_ONLY = "CircularEval and VanillaEval", "VanillaEval (the file has no rotated copies)"
HELD_BACK = "held back"
LAYOUTS = ("listed", "open")


class MMBenchTask(ComprehensionTask):
    """MMBench: single-choice questions, each asked once per rotation of its options

    Where the answers are held back (TEST) a run leaves a submission for the server instead of a score.
    """

    name = "mmbench"
    protocol_names: ClassVar[Mapping[str, str]] = {
        "vlmevalkit": "VLMEvalKit's rules for the chosen letter; what they leave open is unscored, or goes to --judge",
        "judge-present": "the same, and questions that lack copies are judged on those there are, as VLMEvalKit does: easier",
        "loglikelihood": "the option letter that the model gives the highest log-likelihood; exact ties are unscored",
    }
    uses: ClassVar[frozenset[str]] = frozenset({"split", "judge", "dataset"})
    presets: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "default": {
            **GREEDY,
            "layout": "listed",
            "prompt": "\nAnswer with the option's letter from the given choices directly.",
            "max_new_tokens": 16,
        },
        # DreamLLM's scripts/eval/vqa/eval_vqa.sh. Its quirks: the options are not shown, so that a matcher has to find the choice in an
        # open answer; an absent hint reads "nan". (Its script shows the options, all numbered 0, where the model first answers "no" to
        # whether the answer can be known; that first question is not asked here.)
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
                "--protocol log-likelihood asks for log-likelihood, the others for answers: run it by itself"
            )
        if self.uses_loglikelihood and (spec.judge or layout != "listed"):
            raise UsageError("--protocol log-likelihood weighs letters: it goes with layout=listed and without --judge")

    # --- data -----------------------------------------------------------------------------------------------------------

    @cached_property
    def path(self) -> Path:
        """The TSV: --data itself, the one in it, or the one that --split names."""
        if self.data.is_file():
            return self.data
        if not self.data.is_dir():
            raise DataError(f"--data {self.data}: no such file or folder; give the folder of an MMBench TSV")
        found = {
            path.name.removesuffix(".gz").removesuffix(".tsv"): path
            for path in sorted([*self.data.glob("*.tsv"), *self.data.glob("*.tsv.gz")])
        }
        wanted = self.spec.split
        if wanted is not None:
            forms = {wanted.casefold(), f"mmbench_{wanted}".casefold()}
            found = {name: path for name, path in found.items() if name.casefold() in forms}
        if len(found) != 1:
            there = ", ".join(sorted(path.name for path in self.data.glob("*.tsv*"))) or "no .tsv"
            asked = "" if wanted is None else f" for --split {wanted}"
            raise DataError(
                f"{self.data} holds {len(found)} files{asked} ({there}): choose one by its name with --split"
            )
        return next(iter(found.values()))

    @cached_property
    def benchmark(self) -> MMBench:
        return load(self.path)

    def samples(self) -> list[Sample]:
        """Question by question, each with its rotations in order."""
        first = {row.base: place for place, row in reversed(list(enumerate(self.benchmark.rows)))}
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

    # --- asking ---------------------------------------------------------------------------------------------------------

    def request(self, sample: Sample) -> Request:
        """``listed``: hint, question and lettered options, a line each. ``open``: ``Hint:…Question:…`` as DreamLLM's script has it."""
        row = _row(sample)
        if self.generation["layout"] == "open":
            return self.ask(sample, f"Hint:{row.hint or 'nan'}Question:{row.question}")
        lines = [*([row.hint] if row.hint else []), row.question, listed(row.options, "\n")]
        if self.uses_loglikelihood:
            return self.ask(sample, "\n".join(lines), "loglikelihood", tuple(row.options))
        return self.ask(sample, "\n".join(lines))

    def protocols(self, samples: Sequence[Sample]) -> list[Protocol]:
        rows = [_row(sample) for sample in samples]
        if self.benchmark.circular and any(name != "judge-present" for name in self.names):
            _require_whole_questions(rows)
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
        """Who decides what the rules leave open."""
        if self.spec.judge is None:
            return None
        return matcher(self.spec.judge, offline=self.spec.offline, device=self.spec.device)

    def read_responses(self, path: Path) -> Mapping[str, str]:
        return {str(index): reply for index, reply in read_predictions(path).items()}

    def estimate(self, samples: Sequence[Sample]) -> Sequence[str]:
        if self.matcher is None:
            return ()
        items = [matching_request(_row(sample), "") for sample in samples]
        return ["if no rule decided any reply, which is the most that can be:", *self.matcher.estimate(items)]

    # --- scoring --------------------------------------------------------------------------------------------------------

    def collect_artifacts(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        """Matches of what the rules leave open, and the submission where the answers are held back, into the run."""
        fields = next(iter(run.run_file()["protocols"].values()))
        if fields["answers"] == HELD_BACK:
            self._write_submission(run, samples, responses)
        elif fields["judge"] is not None:
            items, log = _undecided(samples, responses), JudgementLog(run.path / JUDGEMENTS)
            if self.matcher is not None and missing(fields["judge"], items, log):
                grade_missing(self.matcher, items, log)

    def _write_submission(self, run: RunFolder, samples: Sequence[Sample], responses: Mapping[str, Response]) -> None:
        replies = {int(sample.id): _reply(sample, responses[sample.id]) for sample in samples}
        given = {index: reply for index, reply in replies.items() if reply is not None}
        if len(given) < len(replies):
            return
        data = replace(self.benchmark, rows=[row for row in self.benchmark.rows if row.index in given])
        for suffix in ("tsv", "xlsx") if find_spec("openpyxl") else ("tsv",):
            with replacing(run.path / f"submission.{suffix}") as path:
                write_submission(path, data, given)

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
        for number, (id_, protocol) in enumerate(protocols.items()):
            copies, circular = _units(samples, responses, rows, protocol)
            scores += _scores("circular_accuracy", circular, id_) if circular is not None else []
            scores += _scores("vanilla_accuracy", vanilla_units(copies), id_)
            if number == 0:
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
    """The row of a sample, as far as asking and scoring need it."""
    question = next(part.text for part in sample.prompt[1:] if isinstance(part, Text))
    return Row(index=int(sample.id), question=question, image=-1, cells={}, **sample.targets)


def _require_whole_questions(rows: Sequence[Row]) -> None:
    """CircularEval is of whole questions: `DataError` where some of a question's copies are not asked."""
    seen: dict[int, set[int]] = {}
    for row in rows:
        seen.setdefault(row.base, set()).add(row.rotation)
    for row in rows:
        wanted = set(range(len(row.options)))
        if seen[row.base] != wanted:
            lacking = ", ".join(map(str, sorted(wanted - seen[row.base]))) or "none, but has others"
            raise DataError(
                f"question {row.base} lacks the rotations {lacking}: complete the file, let --limit and --ids take whole questions"
                " (each has as many rows as options), or name the easier measure with --protocol judge-present"
            )


def _reply(sample: Sample, response: Response) -> str | None:
    """The reply's text; for log-likelihood the letter of the highest one, None where two are equally high."""
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
) -> tuple[list[Unit], list[Unit] | None]:
    """Every copy, and every question under CircularEval where the file has rotations.

    A row that a file of answers leaves out makes its question incomplete; one whose request failed is undecided.
    """
    incomplete: Literal["error", "judge-present"] = "judge-present" if protocol["name"] == "judge-present" else "error"
    letters: dict[int, str | None] = {}
    for sample in samples:
        error = responses[sample.id].error
        if error is None or error.type != "no-answer":
            letters[int(sample.id)] = rows[sample.id]["letter"]
    copies = copy_units([_row(sample) for sample in samples], letters, incomplete)
    return copies, circular_units(copies, incomplete) if protocol["metric"] == BOTH else None


def _add_hits(rows: Mapping[str, dict[str, JSON]], copies: Sequence[Unit], circular: Sequence[Unit]) -> None:
    """``hit`` of every copy, and on a question's first order whether all of its copies hit; 1, 0, or none while undecided."""
    for column, units in (("hit", copies), ("circular_hit", circular)):
        hits = {str(unit.row.index): unit.hit for unit in units}
        for id_, row in rows.items():
            hit = hits.get(id_)
            row[column] = None if hit is None else float(hit)


def _scores(metric: str, units: Sequence[Unit], protocol: str) -> list[Score]:
    if not units:
        return [mean_score(metric, None, [], protocol)]
    scores: list[Score] = []
    for group, tally in tallies(units).items():
        open_ = tally.undecided > 0 and group is None
        note = ("the lower bound is VLMEvalKit's score without a judge: what no rule decides is wrong there",)
        decided = [1.0] * tally.right + [0.0] * tally.wrong
        scores.append(
            mean_score(metric, group, decided, protocol, unscored=tally.undecided, notes=note if open_ else ())
        )
    return scores


def _about_submission(run: RunFolder, samples: Sequence[Sample]) -> str:
    written = [name for name in ("submission.xlsx", "submission.tsv") if (run.path / name).exists()]
    if not written:
        return "the answers are held back, and no submission was written: the server takes none with rows unanswered"
    more = "" if len(written) > 1 else " (the server takes .xlsx: pip install 'dreambench[sheets]' and score again)"
    return f"the answers are held back: send {written[0]} of this run to the MMBench server ({len(samples)} rows){more}"
