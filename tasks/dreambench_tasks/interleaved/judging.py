"""Judges of whole documents: nine rubrics, each a prompt of its own, graded from 0 to 10 by a model that sees the images.

Four rubrics follow the levels of ISG-Bench (structure, block, image, whole) and five the aspects of InterleavedEval (text quality,
perceptual quality, image coherence, text-image coherence, helpfulness). The wording is this project's, in ``rubrics/<name>.txt``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from dreambench.documents import JSON, Document, Image, Text, from_json
from dreambench.errors import UsageError
from dreambench.judges import (
    GradeRequest,
    GradingPrompt,
    Judge,
    JudgementLog,
    PromptedJudge,
    confined,
    grade_missing,
    judged,
    missing,
    parse_judge,
)
from dreambench.progress import progress_bar
from dreambench.requests import Sample

__all__ = ["ASPECTS", "LEVELS", "RUBRICS", "Rubric", "estimate_grading", "grade_documents", "graded", "metric_name"]
__all__ += ["grade_requests", "read_rubric", "rubric_judges", "ungraded"]

LEVELS = ("structure", "block", "image", "whole")
"""The levels of ISG-Bench (Chen et al. 2024, "Interleaved Scene Graphs")."""
ASPECTS = ("text-quality", "perceptual-quality", "image-coherence", "text-image-coherence", "helpfulness")
"""The aspects of InterleavedEval (Liu et al. 2024, "Holistic Evaluation for Interleaved Text-and-Image Generation")."""
RUBRICS = (*LEVELS, *ASPECTS)

_SLOT = re.compile(r"\{(instruction|reference|document)\}")
_GRADE = re.compile(r"(?:10(?:\.0)?|[0-9](?:\.[0-9])?)")
_AGAIN = "\nThe number from 0 to 10, and nothing else: "


@dataclass(frozen=True, slots=True)
class Rubric(GradingPrompt):
    """A rubric as a prompt. Its slots are filled with the instruction, the reference document and the document."""

    def document(self, item: GradeRequest, attempt: int = 0) -> Document:
        """The user message: texts and images in turn. Texts of the model cannot end their place in it (see `confined`)."""
        slots = {
            "instruction": (Text(confined(item.question)),),
            "reference": _shown(item.reference_document),
            "document": _shown(item.document),
        }
        pieces = _SLOT.split(self.text)
        parts = [part for i, piece in enumerate(pieces) for part in (slots[piece] if i % 2 else (Text(piece),))]
        return _joined([*parts, Text(_AGAIN)] if attempt else parts)

    def message(self, item: GradeRequest, attempt: int = 0) -> str:
        """The texts of the message, without its images."""
        return "".join(part.text for part in self.document(item, attempt) if isinstance(part, Text))

    def grade(self, reply: str) -> float | None:
        """A reply that is one number from 0 to 10, with at most one decimal, as a grade from 0 to 1; else None."""
        reply = reply.strip()
        return float(reply) / 10 if _GRADE.fullmatch(reply) else None


def _joined(parts: Sequence[Text | Image]) -> Document:
    """The parts with neighbouring texts in one."""
    joined: list[Text | Image] = []
    for part in parts:
        before = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(before, Text):
            joined[-1] = Text(before.text + part.text)
        else:
            joined.append(part)
    return tuple(joined)


def _shown(document: Document) -> Document:
    """Texts and numbered images, each behind its name, so that no text can pass for another part of the prompt."""
    parts: list[Text | Image] = []
    images = 0
    for part in document:
        if isinstance(part, Text):
            parts.append(Text(f"Text: {confined(part.text).strip()}\n"))
        else:
            images += 1
            parts += [Text(f"Image {images}:\n"), part, Text("\n")]
    return tuple(parts) or (Text("(It is empty.)\n"),)


def read_rubric(name: str) -> Rubric:
    """The rubric of that name. The file's first line is its version, which is part of the prompt's name."""
    text = files("dreambench_tasks.interleaved").joinpath("rubrics", f"{name}.txt").read_text(encoding="utf-8")
    first, _, rest = text.partition("\n")
    return Rubric(f"interleaved-{name}@{first.removeprefix('# version ')}", rest.rstrip("\n"))


def rubric_judges(spec: str, *, offline: bool = False, device: str = "auto") -> dict[str, PromptedJudge]:
    """For each rubric the judge of ``--judge``; a local model is loaded once. Raises `UsageError` for a judge that sees no images."""
    first, *others = RUBRICS
    judge = parse_judge(spec, offline=offline, device=device, prompt=read_rubric(first))
    if not isinstance(judge, PromptedJudge):
        raise UsageError(
            f"--judge {spec}: documents are judged by a model that sees images, openai:MODEL@BASE_URL or model:NAME"
        )
    judge.identity()  # loads a local model, which the other rubrics share
    return {first: judge, **{name: judge.with_prompt(read_rubric(name)) for name in others}}


def grade_documents(judges: Mapping[str, Judge], items: Mapping[str, GradeRequest], log: Path) -> None:
    """Have every judge grade every document, in each of its runs; what the log holds is not asked again."""
    for name, judge in judges.items():
        identity = judge.identity()
        requests = _requests(name, items, judge.runs)
        if missing(identity, requests, JudgementLog(log)):
            with progress_bar(f"grading by {name}") as progress:
                grade_missing(judge, requests, JudgementLog(log), progress)


def ungraded(
    identities: Mapping[str, Mapping[str, JSON]], runs: int, items: Mapping[str, GradeRequest], log: Path
) -> bool:
    """Whether the log lacks a grade; a run that has them all is scored again without its judge."""
    kept = JudgementLog(log)
    return any(missing(identity, _requests(name, items, runs), kept) for name, identity in identities.items())


def graded(
    identities: Mapping[str, Mapping[str, JSON]], runs: int, items: Mapping[str, GradeRequest], log: Path
) -> dict[str, dict[str, float | None]]:
    """The log's grades: for each document id and each ``judge_<rubric>`` the mean over the runs, None where a run has no grade."""
    kept = JudgementLog(log)
    grades: dict[str, dict[str, float | None]] = {id_: {} for id_ in items}
    for name, identity in identities.items():
        found: dict[str, list[float | None]] = {id_: [] for id_ in items}
        for judgement in judged(identity, _requests(name, items, runs), kept):
            found[judgement.id].append(judgement.score)
        for id_, scores in found.items():
            known = [score for score in scores if score is not None]
            grades[id_][metric_name(name)] = sum(known) / runs if len(known) == runs else None
    return grades


def estimate_grading(judges: Mapping[str, Judge], items: Mapping[str, GradeRequest]) -> list[str]:
    """Lines for ``--dry-run``: the calls, tokens and cost of each rubric."""
    return [line for name, judge in judges.items() for line in judge.estimate(_requests(name, items, judge.runs))]


def metric_name(rubric: str) -> str:
    """``judge_text_quality`` of ``text-quality``."""
    return f"judge_{rubric.replace('-', '_')}"


def _requests(rubric: str, items: Mapping[str, GradeRequest], runs: int) -> Sequence[GradeRequest]:
    """Each document once per run, under its id; only the rubric `whole` sees the reference."""
    return [
        replace(item, id=id_, run=run, reference_document=item.reference_document if rubric == "whole" else ())
        for run in range(runs)
        for id_, item in items.items()
    ]


def grade_requests(samples: Sequence[Sample], documents: Mapping[str, Document]) -> dict[str, GradeRequest]:
    """What judges grade: the documents by sample id, each with its instruction and its reference."""
    return {
        sample.id: GradeRequest(
            sample.id,
            0,
            sample.targets["instruction"],
            "",
            "",
            documents[sample.id],
            from_json(sample.targets["reference"]),
        )
        for sample in samples
    }
