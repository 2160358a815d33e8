"""MMBench's rules (VLMEvalKit): the chosen letter of a free-form reply, a judge for what the rules leave undecided, CircularEval.

Extraction is vlmeval/utils/matching_util.py at e8e78f05, counting vlmeval/dataset/utils/multiple_choice.py. Two differences in kind:
VLMEvalKit changes a rule when the environment variable VERBOSE is set, and takes a random letter where its judge fails. Here nothing
outside the reply counts, and a letter that neither a rule nor a judge decides is counted as undecided.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from dreambench.errors import DataError, UsageError, counted
from dreambench.judges import GradeRequest, GradingPrompt, Judge, Judgement, confined, parse_judge
from dreambench_tasks.mmbench.data import Row

__all__ = [
    "REJECTED",
    "Extraction",
    "MatchingPrompt",
    "Unit",
    "circular_units",
    "copy_units",
    "extract_choice",
    "grouped",
    "listed",
    "matched_letter",
    "matching_request",
    "parse_matcher",
    "vanilla_units",
]

# --- the letter by rule -----------------------------------------------------------------------------------------------

REJECTED = "Z"

_API_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# No word boundary after the letter: "The answer is blue" is B. It is the rule, so it is kept.
_ANSWER_IS = re.compile(r"answer is\s*\**([A-D])", re.IGNORECASE)
_LAST_TOKENS = 4


@dataclass(frozen=True)
class Extraction:
    """`letter` is an option's letter, ``Z`` for a refusal, or None when no rule decides (`rule` and `via` are None too).

    `rule` is ``refusal``, ``single letter``, ``reject letter``, ``answer is`` or ``option text``; `via` is the
    original's name of the stage, ``option`` or ``text``.
    """

    letter: str | None
    rule: str | None
    via: Literal["option", "text"] | None


_UNDECIDED = Extraction(None, None, None)


def extract_choice(reply: str, options: Mapping[str, str]) -> Extraction:
    """The letter that `reply` chooses among `options` (letter to text), and the rule that decided."""
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


# --- the letter by a judge --------------------------------------------------------------------------------------------

_LETTER = re.compile(r"\W*([A-EZ])\b(?!\w)")


class MatchingPrompt(GradingPrompt):
    """Rows ``question | options | reply | `` to be completed by a letter.

    What a judge calls a score is 1 here for a reply that is a letter, and none for one that is not and is asked for again; which letter
    it was stands in the judgement's `raw`.
    """

    def message(self, item: GradeRequest, attempt: int = 0) -> str:
        row = " | ".join([confined(item.question), confined(item.reference), confined(item.prediction), ""])
        return f"{self.text}\n{row}" + ("\nThe letter, and nothing else: " if attempt else "")

    def grade(self, reply: str) -> float | None:
        return None if _letter(reply) is None else 1.0


def _letter(reply: str) -> str | None:
    found = _LETTER.match(reply.strip())
    return found[1] if found else None


def parse_matcher(spec: str, *, offline: bool, device: str) -> Judge:
    """``--judge`` as a matcher of replies to options: a served or a local model, or a replay of one."""
    if spec.partition(":")[0] not in ("openai", "model", "replay"):
        raise UsageError(
            f"--judge {spec}: MMBench's rules always come first; what they leave open is matched by openai:MODEL@BASE_URL,"
            " model:NAME[:LOCATION] or replay:FILE"
        )
    text = files("dreambench_tasks.mmbench").joinpath("matcher.txt").read_text(encoding="utf-8")
    judge = parse_judge(
        spec, offline=offline, device=device, prompt=MatchingPrompt("dreambench-matcher", text.rstrip("\n"))
    )
    if not isinstance(judge, Judge) or judge.prompt_name != "dreambench-matcher":
        raise UsageError(f"--judge {spec}: its judgements are grades, not matches to options")
    return judge


def matching_request(row: Row, reply: str) -> GradeRequest:
    """A row and its reply as an item for the judge."""
    return GradeRequest(str(row.index), 0, row.question, listed(row.options, " "), reply)


def listed(options: Mapping[str, str], separator: str) -> str:
    """``A. cat`` and so on."""
    return separator.join(f"{letter}. {text}" for letter, text in options.items())


def matched_letter(judgement: Judgement, options: Mapping[str, str]) -> str | None:
    """The letter of a judgement: an option's, ``Z`` where the judge says that the reply chooses none, None where there is neither."""
    letter = None if judgement.score is None else _letter(judgement.raw)
    return letter if letter == REJECTED or letter in options else None


# --- counting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """What is counted once: a row, or a question by the row of its first order. `hit` is None while it is undecided."""

    row: Row
    hit: bool | None


def copy_units(rows: Sequence[Row], letters: Mapping[int, str | None], source: str = "the answers") -> list[Unit]:
    """Every row on its own. `letters` maps the index to the chosen letter, None where undecided; `source` names where they are from.

    Raises:
        DataError: a row has no letter. VLMEvalKit judges its question on the other rotations, which is easier.
    """
    missing = [row.index for row in rows if row.index not in letters]
    if missing:
        raise DataError(
            f"{source}: {counted(len(missing), 'row has', 'rows have')} no prediction, for instance index {missing[0]}: complete them"
        )
    units: list[Unit] = []
    for row in rows:
        if row.answer is None:
            raise DataError(f"index {row.index} has no answer in the data: held-back answers cannot be scored")
        letter = letters[row.index]
        units.append(Unit(row, None if letter is None else letter == row.answer))
    return units


def vanilla_units(copies: Iterable[Unit]) -> list[Unit]:
    """VanillaEval: the first order of every question."""
    return [unit for unit in copies if unit.row.rotation == 0]


def circular_units(copies: Iterable[Unit]) -> list[Unit]:
    """CircularEval: one unit per question, right if every copy is right, wrong as soon as one is wrong."""
    groups: defaultdict[int, dict[int, Unit]] = defaultdict(dict)
    for unit in copies:
        groups[unit.row.base][unit.row.rotation] = unit
    return [Unit(group[0].row, _all_right([unit.hit for unit in group.values()])) for group in groups.values()]


def _all_right(hits: Sequence[bool | None]) -> bool | None:
    if False in hits:
        return False
    return None if None in hits else True


def grouped(units: Sequence[Unit]) -> dict[str | None, list[Unit]]:
    """All units (key None), then by ``split=…``, ``l2_category=…`` and ``category=…``, each sorted; empty cells form none."""
    groups: dict[str | None, list[Unit]] = {None: list(units)}
    for name in ("split", "l2_category", "category"):
        for value in sorted({getattr(unit.row, name) for unit in units} - {""}):
            groups[f"{name}={value}"] = [unit for unit in units if getattr(unit.row, name) == value]
    return groups
