"""The chosen letter of a free-form reply, by rule, and which rule decided (VLMEvalKit, vlmeval/utils/matching_util.py at e8e78f05).

A reply that no rule decides goes to a judge, or stays undecided; nothing is guessed. One difference in kind: VLMEvalKit changes a rule
when the environment variable VERBOSE is set; here nothing outside the reply counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["REJECTED", "Extraction", "extract_choice"]

REJECTED = "Z"

_API_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# No word boundary after the letter: "The answer is blue" is B. It is the rule, so it stays.
_ANSWER_IS = re.compile(r"answer is\s*\**([A-D])", re.IGNORECASE)
_LAST_TOKENS = 4


@dataclass(frozen=True)
class Extraction:
    """`letter` is an option's letter, ``Z`` for a refusal, or None when no rule decides (`rule` and `via` are None too).

    `rule` is ``refusal``, ``single letter``, ``reject letter``, ``answer is`` or ``option text``; `via` is the stage as the original
    names it, ``option`` or ``text``.
    """

    letter: str | None
    rule: str | None
    via: Literal["option", "text"] | None


_UNDECIDED = Extraction(None, None, None)


def extract_choice(reply: str, options: Mapping[str, str]) -> Extraction:
    """The letter that `reply` chooses among `options` (letter to text, absent options left out)."""
    if _API_FAILURE not in reply:
        if any(refusal in reply for refusal in _REFUSALS):
            return Extraction(REJECTED, "refusal", "option")
        found = _from_letters(reply, options)
        if found:
            return found
    letter = _from_texts(reply, options)
    return Extraction(letter, "option text", "text") if letter else _UNDECIDED


def _from_letters(reply: str, options: Mapping[str, str]) -> Extraction | None:
    tokens = reply.translate(_MARKS_TO_SPACES).split()
    letters = [letter for letter in options if letter in tokens]
    # A lone letter early in a long reply may be the article "A", so it has to stand near the end.
    if len(letters) == 1 and tokens.index(letters[0]) >= len(tokens) - _LAST_TOKENS:
        return Extraction(letters[0], "single letter", "option")
    if not letters and REJECTED in tokens:
        return Extraction(REJECTED, "reject letter", "option")
    stated = _ANSWER_IS.search(reply)
    if stated and stated[1].upper() in options:
        return Extraction(stated[1].upper(), "answer is", "option")
    return None


def _from_texts(reply: str, options: Mapping[str, str]) -> str | None:
    lowered = reply.lower()
    # Longer than twice all options together, it is an essay that may mention any of them.
    if len(lowered) > 2 * sum(map(len, options.values())):
        return None
    contained = [letter for letter, text in options.items() if text.lower() in lowered]
    return contained[0] if len(contained) == 1 else None
