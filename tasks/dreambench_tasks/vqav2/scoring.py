"""VQA accuracy: how many of the other annotators gave the predicted answer, of three that would be enough.

Protocols (`RULES`):

- ``official``: GT-Vision-Lab/VQA's vqaEval.py in every question and every digit. Answers are normalised only where the ten references
  differ; each annotator in turn is left out by comparing whole answer records, so without answer ids equal records all drop out.
- ``normalised``: always normalised, also where the references agree, and each annotator left out by place.
- ``dreamllm-evaluator``: as official, but a reference counts when it occurs *inside* the prediction, as in DreamLLM's own copy of the
  evaluator (omni/eval/vqa/pyevaltools/vqaEval.py). About nine points higher; not comparable with the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreambench.errors import DataError
from dreambench_tasks.vqav2.index import PAD, Numbers, ReferenceIndex
from dreambench_tasks.vqav2.normalise import clean, normalise

__all__ = ["RULES", "Rule", "VQAScores", "score_answers"]

_UNKNOWN = -2
_ENOUGH = 3


@dataclass(frozen=True)
class Rule:
    """What the protocols differ in."""

    name: str
    always_normalise: bool = False
    substring: bool = False
    leave_out_by_record: bool = True
    # Python 2 rounds an exact tie (a mean over 16 questions can be 60.625) away from zero, Python 3 to the even digit.
    ties_to_even: bool = False


RULES = {
    rule.name: rule
    for rule in (
        Rule("official"),
        Rule("normalised", always_normalise=True, leave_out_by_record=False),
        Rule("dreamllm-evaluator", substring=True, ties_to_even=True),
    )
}


@dataclass(frozen=True, eq=False)
class VQAScores:
    """Accuracy of every question of `index`, in its order, from 0 to 1, not rounded."""

    index: ReferenceIndex
    rule: Rule
    accuracies: NDArray[np.float64]
    matches: NDArray[np.int64]  # references equal to (or inside) the prediction

    @cached_property
    def overall(self) -> float:
        """Percent, unrounded."""
        return next(iter(self._percent(np.zeros(len(self.index), dtype=np.int32), ["overall"]).values()))

    @cached_property
    def per_answer_type(self) -> dict[str, float]:
        """Percent, unrounded, for the types that occur."""
        return self._percent(self.index.answer_type, self.index.answer_types)

    @cached_property
    def per_question_type(self) -> dict[str, float]:
        """Percent, unrounded, for the types that occur."""
        return self._percent(self.index.question_type, self.index.question_types)

    def _percent(self, codes: NDArray[np.int32], names: list[str]) -> dict[str, float]:
        # bincount adds one question after another, as the evaluator's sum() does: the same last digit.
        sums = np.bincount(codes, weights=self.accuracies, minlength=len(names)).tolist()
        counts = np.bincount(codes, minlength=len(names)).tolist()
        pairs = zip(names, sums, counts, strict=True)
        return {name: 100 * total / count for name, total, count in pairs if count}

    def rounded(self, percent: float) -> float:
        """A percentage as the protocol's evaluator prints it: two decimals."""
        if self.rule.ties_to_even:
            return round(percent, 2)
        return float(Decimal(percent).quantize(Decimal("0.01"), rounding=ROUND_HALF_UP))

    def report(self) -> dict[str, Any]:
        """The official evaluator's own tables: percent, two decimals."""
        ids = self.index.question_ids.tolist()
        rounded = {value: self.rounded(100 * value) for value in np.unique(self.accuracies).tolist()}
        by_question = {question: rounded[value] for question, value in zip(ids, self.accuracies.tolist(), strict=True)}
        by_type: dict[str, dict[str, dict[int, float]]] = {"evalQuesType": {}, "evalAnsType": {}}
        for table, codes, names in (
            ("evalQuesType", self.index.question_type, self.index.question_types),
            ("evalAnsType", self.index.answer_type, self.index.answer_types),
        ):
            for question, code in zip(ids, codes.tolist(), strict=True):
                by_type[table].setdefault(names[code], {})[question] = by_question[question]
        return {
            "accuracy": {
                "overall": self.rounded(self.overall),
                "perQuestionType": {name: self.rounded(value) for name, value in self.per_question_type.items()},
                "perAnswerType": {name: self.rounded(value) for name, value in self.per_answer_type.items()},
            },
            "evalQA": by_question,
            **by_type,
        }


def score_answers(index: ReferenceIndex, answers: Mapping[int, str], rule: Rule | str = "official") -> VQAScores:
    """Score one answer per question; `answers` maps question_id to text and must name exactly the questions of `index`.

    Raises:
        DataError: a question has no answer, an answer belongs to no question, or an answer is not text.
    """
    chosen = RULES[rule] if isinstance(rule, str) else rule
    texts = _in_order(index, answers)
    references = index.normalised_answers
    as_they_are = np.zeros(len(index), dtype=np.bool_)
    if not chosen.always_normalise:
        as_they_are = index.unanimous
        references = np.where(as_they_are[:, None], index.answers, references)
    if chosen.substring:
        matched = _occurring(index, references, as_they_are, texts)
    else:
        matched = references == _numbers(index, as_they_are, texts)[:, None]
    matches = np.count_nonzero(matched, axis=1)
    accuracies = _leave_one_out(matched, matches, index.counts)
    if chosen.leave_out_by_record and index.others.size:
        _correct_for_equal_records(index, references, matched, accuracies)
    return VQAScores(index, chosen, accuracies, matches)


def _in_order(index: ReferenceIndex, answers: Mapping[int, str]) -> list[str]:
    ids: list[int] = index.question_ids.tolist()
    try:
        texts = [answers[question] for question in ids]
    except KeyError:
        texts = []
    if len(texts) != len(ids) or len(answers) != len(ids):
        missing = [question for question in ids if question not in answers]
        unknown = list(set(answers) - set(ids))
        parts = [(missing, "questions without an answer"), (unknown, "answers to questions that are not in the data")]
        told = [f"{len(found)} {what} (for instance question_id {found[0]})" for found, what in parts if found]
        raise DataError(f"answers must name exactly the questions scored: {'; '.join(told)}")
    if set(map(type, texts)) != {str}:
        question, text = next((question, answers[question]) for question in ids if type(answers[question]) is not str)
        raise DataError(f"the answer to question_id {question} must be text, not {text!r}")
    return texts


def _forms(texts: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The cleaned and the normalised form of each distinct answer."""
    return {text: (cleaned, normalise(cleaned)) for text in texts for cleaned in [clean(text)]}


def _numbers(index: ReferenceIndex, as_they_are: NDArray[np.bool_], texts: list[str]) -> NDArray[np.int32]:
    """n: the number of each answer's compared form among the references' strings, _UNKNOWN where it is none of them."""
    place = Numbers()
    places = np.fromiter(map(place.__getitem__, texts), dtype=np.int64, count=len(texts))
    known = index.number_of
    table = [known.get(form, _UNKNOWN) for forms in _forms(place).values() for form in forms]
    # Two numbers per distinct answer: as it is, and normalised.
    return np.array(table, dtype=np.int32)[2 * places + ~as_they_are]


def _occurring(
    index: ReferenceIndex, references: NDArray[np.int32], as_they_are: NDArray[np.bool_], texts: list[str]
) -> NDArray[np.bool_]:
    """n x N: the reference occurs inside the prediction. An empty reference occurs in everything."""
    forms, strings = _forms(dict.fromkeys(texts)), index.strings
    rows = zip(references.tolist(), as_they_are.tolist(), texts, strict=True)
    found = [
        [number != PAD and strings[number] in forms[text][0 if raw else 1] for number in row] for row, raw, text in rows
    ]
    return np.array(found, dtype=np.bool_)


def _leave_one_out(
    matched: NDArray[np.bool_], matches: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean over annotators of min(1, others who agree / 3), added in the annotators' order as the evaluator does."""
    shares = np.array([min(1.0, agreeing / _ENOUGH) for agreeing in range(matched.shape[1] + 1)])
    left_out, kept = shares[np.maximum(matches - 1, 0)], shares[matches]
    total = np.zeros(len(matches))
    for annotator in range(matched.shape[1]):
        share = np.where(matched[:, annotator], left_out, kept)
        total += np.where(annotator < counts, share, 0.0)
    return total / counts


def _correct_for_equal_records(
    index: ReferenceIndex, references: NDArray[np.int32], matched: NDArray[np.bool_], accuracies: NDArray[np.float64]
) -> None:
    """Score again, in place, the questions in which leaving out one record leaves out its equals."""
    for row in range(len(index)):
        records = list(zip(references[row].tolist(), index.others[row].tolist(), strict=True))[: index.counts[row]]
        if len(set(records)) == len(records):
            continue
        hits = [record for record, hit in zip(records, matched[row].tolist(), strict=False) if hit]
        shares = [min(1.0, sum(hit != record for hit in hits) / _ENOUGH) for record in records]
        accuracies[row] = sum(shares) / len(shares)
