"""VQA accuracy: how many of the other annotators gave the predicted answer, of three that would be enough.

Protocols (`RULES`):

- ``official``: GT-Vision-Lab/VQA's vqaEval.py (run under Python 2.7) in every question and every digit. Answers are normalised only
  where the ten references differ; each annotator in turn is left out by comparing whole answer records, so without answer ids equal
  records are all left out.
- ``normalised``: always normalised, also where the references agree, and each annotator left out by position.
- ``dreamllm-evaluator``: as official, but a reference counts when it occurs *inside* the prediction, as in DreamLLM's own copy of the
  evaluator (omni/eval/vqa/pyevaltools/vqaEval.py). About nine points higher; not comparable with the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from importlib import resources
from typing import Any

__all__ = ["RULES", "Rule", "accuracy", "clean", "compared", "normalise", "percent", "rounded"]

_ENOUGH = 3

# --- normalisation ----------------------------------------------------------------------------------------------------
# With the evaluator's quirks. Python 2 matters for text outside ASCII: its \d knows ASCII digits only and its lower() maps one
# character to one.

TABLES: dict[str, Any] = json.loads(
    resources.files("dreambench_tasks.vqav2").joinpath("tables.json").read_text(encoding="utf-8")
)
_CONTRACTIONS: dict[str, str] = TABLES["contractions"]
_NUMBER_WORDS: dict[str, str] = TABLES["number_words"]
_ARTICLES = frozenset[str](TABLES["articles"])
_PUNCTUATION: list[str] = TABLES["punctuation"]

_ANY_MARK = re.compile("[" + re.escape("".join(_PUNCTUATION)) + ".]")
_DIGIT_COMMA_DIGIT = re.compile(r"[0-9],[0-9]")
# The evaluator's look-behind is mistyped and never blocks, so only the digit after a period keeps it.
_PERIOD = re.compile(r"\.(?![0-9])")
# It passes the flag re.UNICODE, which is 32, where `sub` expects the count.
_PERIODS_REMOVED = 32
# Answers repeat: 480,000 references of 48,000 questions are 35,000 strings.
_MEMOISED = 1 << 16


@lru_cache(_MEMOISED)
def clean(text: str) -> str:
    """What happens to every answer: line feeds and tabs become spaces, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(_MEMOISED)
def normalise(text: str) -> str:
    """A cleaned answer in the form that is compared when the references differ."""
    return _process_words(_process_punctuation(text))


def _process_punctuation(text: str) -> str:
    """Remove or space out the 21 marks, then remove periods.

    A mark is removed everywhere if anywhere in the original text it touches a space or the text holds a digit-comma-digit; otherwise
    each of its occurrences becomes a space.
    """
    if not _ANY_MARK.search(text):
        return text
    has_thousands = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        if mark in text:
            touches = has_thousands or f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if touches else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def _process_words(text: str) -> str:
    """Lower-case, split on white space, turn number words into digits, drop articles, restore apostrophes in contractions."""
    words: list[str] = []
    for word in _lower(text).split():
        word = _NUMBER_WORDS.get(word, word)
        if word not in _ARTICLES:
            words.append(_CONTRACTIONS.get(word, word))
    return " ".join(words)


def _lower(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Character by character, so that a final sigma stays a sigma; U+0130 is the only one whose lower case is longer.
    return "".join("i" if character == "İ" else character.lower() for character in text)


# --- accuracy ---------------------------------------------------------------------------------------------------------


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


def accuracy(answers: Sequence[str], prediction: str, rule: Rule, records: Sequence[int] | None = None) -> float:
    """The accuracy of one prediction, from 0 to 1, not rounded: the mean over annotators of min(1, others who agree / 3).

    `records` are those of `Annotation`: answers that are equal and share a number are left out together.
    """
    references, prediction = compared(answers, prediction, rule)
    if rule.substring:
        hits = [reference in prediction for reference in references]
    else:
        hits = [reference == prediction for reference in references]
    if records is None or not rule.leave_out_by_record:
        return _leave_one_out(tuple(hits))
    whole = list(zip(references, records, strict=True))
    matching = [record for record, hit in zip(whole, hits, strict=True) if hit]
    return _sum([min(1.0, sum(match != record for match in matching) / _ENOUGH) for record in whole]) / len(whole)


def compared(answers: Sequence[str], prediction: str, rule: Rule) -> tuple[list[str], str]:
    """References and prediction in the form in which `rule` compares them: cleaned, and normalised unless all references agree."""
    references, prediction = list(map(clean, answers)), clean(prediction)
    if rule.always_normalise or len(set(references)) > 1:
        return list(map(normalise, references)), normalise(prediction)
    return references, prediction


@lru_cache(_MEMOISED)
def _leave_one_out(hits: tuple[bool, ...]) -> float:
    matches = sum(hits)
    return _sum([min(1.0, (matches - hit) / _ENOUGH) for hit in hits]) / len(hits)


def percent(accuracies: Sequence[float]) -> float:
    """The mean of accuracies in percent, to the evaluator's last digit if they are in the order of the annotation file."""
    return 100 * _sum(accuracies) / len(accuracies)


def _sum(values: Sequence[float]) -> float:
    """Added from left to right, as the evaluator does; since Python 3.12 `sum` gives other last digits."""
    total = 0.0
    for value in values:
        total += value
    return total


def rounded(value: float, rule: Rule) -> float:
    """A percentage as the protocol's evaluator prints it: two decimals."""
    if rule.ties_to_even:
        return round(value, 2)
    return float(Decimal(value).quantize(Decimal("0.01"), rounding=ROUND_HALF_UP))
