"""The letter of a reply that no rule decides, asked of a judge. The prompt is the project's own; VLMEvalKit has another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

from dreambench.errors import UsageError
from dreambench.judges import GradeRequest, GradingPrompt, Judge, Judgement, confined, parse_judge
from dreambench_tasks.mmbench.data import Row
from dreambench_tasks.mmbench.extraction import REJECTED

__all__ = ["MatchingPrompt", "listed", "matched_letter", "matcher", "matching_request"]

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


def matcher(spec: str, *, offline: bool, device: str) -> Judge:
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
