"""The judge without a model: the fraction of the reference's parts that an answer contains."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from dreambench.documents import JSON
from dreambench.judges.base import GradeRequest, Judge, Judgement

__all__ = ["RuleJudge", "contained_fraction"]

_TOKEN = re.compile(r"(?<![\w)])-\d+(?:\.\d+)*|\d+(?:\.\d+)*|[^\W\d_]+")
_ARTICLES = {"a", "an", "the"}


def _tokens(text: str) -> list[str]:
    """Words and numbers, case-folded, without articles; a minus sign belongs to its number, a thousands separator does not."""
    plain = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    return [token for token in _TOKEN.findall(plain) if token not in _ARTICLES]


def _contains(prediction: str, part: str) -> bool:
    """Whether the part's tokens occur consecutively in the prediction; a part without tokens (a sign) is searched as text."""
    wanted, tokens = _tokens(part), _tokens(prediction)
    if not wanted:
        return part.strip().casefold() in prediction.casefold()
    return any(tokens[start : start + len(wanted)] == wanted for start in range(len(tokens) - len(wanted) + 1))


def contained_fraction(reference: str, prediction: str) -> float | None:
    """The fraction of parts, separated by ``<AND>``, of which the prediction contains an ``<OR>`` alternative.

    ``<OR>`` binds tighter: ``red <OR> crimson <AND> two`` has two parts, the first with two alternatives. None for an empty reference.
    """
    parts = [[word for word in part.split("<OR>") if word.strip()] for part in reference.split("<AND>")]
    parts = [part for part in parts if part]
    if not parts:
        return None
    return sum(any(_contains(prediction, word) for word in part) for part in parts) / len(parts)


class RuleJudge(Judge):
    """``rule``: exact and free, but it knows no paraphrases and no contradictions."""

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "rule", "version": 1}

    def grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        for item in items:
            score = contained_fraction(item.reference, item.prediction)
            reason = "the reference is empty" if score is None else None
            yield Judgement(item.id, item.run, score, reason=reason)
