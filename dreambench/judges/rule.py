"""The judge without a model: how many parts of the reference an answer contains. For the playground, and for trying things out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from dreambench.documents import JSON
from dreambench.judges.interface import GradeRequest, Judge, Judgement

__all__ = ["RuleJudge", "contained_fraction"]

_TOKEN = re.compile(r"(?<![\w)])-\d+(?:\.\d+)*|\d+(?:\.\d+)*|[^\W\d_]+")
_ARTICLES = {"a", "an", "the"}


def _tokens(text: str) -> list[str]:
    """Words and numbers, case folded, without articles; a minus sign belongs to its number, a thousands comma does not."""
    plain = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    return [token for token in _TOKEN.findall(plain) if token not in _ARTICLES]


def _contains(prediction: str, part: str) -> bool:
    """Whether the part's tokens follow one another in the prediction. A part without any (a lone sign) is sought as it stands."""
    wanted, given = _tokens(part), _tokens(prediction)
    if not wanted:
        return part.strip().casefold() in prediction.casefold()
    return any(given[start : start + len(wanted)] == wanted for start in range(len(given) - len(wanted) + 1))


def contained_fraction(reference: str, prediction: str) -> float | None:
    """The share of the parts between ``<AND>`` of which the prediction contains an ``<OR>`` alternative; None without a part.

    ``<OR>`` binds tighter: ``red <OR> crimson <AND> two`` asks for two parts, the first in either of two words.
    """
    parts = [[one for one in part.split("<OR>") if one.strip()] for part in reference.split("<AND>")]
    parts = [part for part in parts if part]
    if not parts:
        return None
    return sum(any(_contains(prediction, one) for one in part) for part in parts) / len(parts)


class RuleJudge(Judge):
    """``rule``: normalised containment of the reference. Exact and free, and blind to paraphrase: its protocol bears its name."""

    def identity(self) -> Mapping[str, JSON]:
        return {"name": "rule", "version": 1}

    def grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        for item in items:
            score = contained_fraction(item.reference, item.prediction)
            reason = "the reference is empty" if score is None else None
            yield Judgement(item.id, item.run, score, reason=reason)
