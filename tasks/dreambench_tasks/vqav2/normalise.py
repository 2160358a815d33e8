"""The answer normalisation of the VQA evaluator, with its quirks (GT-Vision-Lab/VQA, vqaEval.py, run under Python 2.7).

Python 2 matters for text outside ASCII: its ``\\d`` knows ASCII digits only and its ``lower()`` maps one character to one.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

__all__ = ["clean", "normalise", "process_punctuation", "process_words"]

_TABLES: dict[str, Any] = json.loads(
    resources.files("dreambench_tasks.vqav2").joinpath("tables.json").read_text(encoding="utf-8")
)
_CONTRACTIONS: dict[str, str] = _TABLES["contractions"]
_NUMBER_WORDS: dict[str, str] = _TABLES["number_words"]
_ARTICLES = frozenset[str](_TABLES["articles"])
_PUNCTUATION: list[str] = _TABLES["punctuation"]

_ANY_MARK = re.compile("[" + re.escape("".join(_PUNCTUATION)) + ".]")
_DIGIT_COMMA_DIGIT = re.compile(r"[0-9],[0-9]")
# The evaluator's look-behind is mistyped and never blocks, so only the digit after a period keeps it.
_PERIOD = re.compile(r"\.(?![0-9])")
# It passes the flag re.UNICODE, which is 32, where `sub` expects the count.
_PERIODS_REMOVED = 32


def clean(text: str) -> str:
    """What happens to every answer: line feeds and tabs become spaces, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise(text: str) -> str:
    """A cleaned answer in the form that is compared when the references differ."""
    return process_words(process_punctuation(text))


def process_punctuation(text: str) -> str:
    """Remove or space out the 21 marks, then remove periods.

    A mark is removed everywhere if anywhere in the original text it touches a space or the text holds a digit-comma-digit; otherwise
    each of its places becomes a space.
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


def process_words(text: str) -> str:
    """Lower-case, split on white space, number words to digits, articles away, contractions mended."""
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
