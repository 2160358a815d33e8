"""Judges grade free-form answers: a served or local model, a rule, or grades from a file. See docs/judges.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from dreambench.chat import ChatServer
from dreambench.errors import JudgeError, UsageError
from dreambench.interfaces import ModelOptions
from dreambench.judges.base import GradeRequest, GradesFile, Judge, Judgement, RuleJudge
from dreambench.judges.log import JudgementLog, ReplayJudge, grade_missing, judged, missing
from dreambench.judges.models import ModelJudge, PromptedJudge, ServedJudge
from dreambench.judges.prompt import (
    Calibration,
    GradingPrompt,
    calibrate,
    calibration_requests,
    confined,
    own_prompt,
    read_prompt,
)
from dreambench.registry import parse_model
from dreambench.spec import parse_arguments

__all__ = [
    "Calibration",
    "GradeRequest",
    "GradesFile",
    "GradingPrompt",
    "Judge",
    "Judgement",
    "JudgementLog",
    "PromptedJudge",
    "ReplayJudge",
    "calibrate",
    "calibration_requests",
    "confined",
    "grade_missing",
    "judged",
    "missing",
    "parse_judge",
]

FORMS = "openai:MODEL@BASE_URL, grades:FILE, replay:FILE, model:NAME[:LOCATION] or rule"


class _Options(BaseModel):
    """Keys of every judge that is a model."""

    model_config = ConfigDict(extra="forbid")

    prompt: Path | None = None
    runs: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    seed: NonNegativeInt = 0


class _LocalOptions(_Options):
    dtype: str = "auto"


class _ServedOptions(_Options):
    concurrency: str | None = None
    retries: str | None = None
    timeout: str | None = None
    key_env: str | None = None
    token_field: str | None = None
    price_in: float | None = Field(None, ge=0, allow_inf_nan=False)
    price_out: float | None = Field(None, ge=0, allow_inf_nan=False)

    @property
    def server(self) -> dict[str, str]:
        return self.model_dump(include=set(ChatServer.model_fields), exclude_none=True)


T = TypeVar("T", bound=_Options)


def parse_judge(
    spec: str, *, offline: bool = False, device: str = "auto", prompt: GradingPrompt | None = None
) -> Judge | GradesFile:
    """The judge of ``--judge KIND:WHAT[,KEY=VALUE]...``; nothing is loaded or contacted yet.

    Args:
        spec: One of `FORMS`. Keys of ``openai``: prompt=FILE, runs, max_tokens, seed, concurrency, retries, timeout, key_env,
            token_field, price_in, price_out; of ``model``: prompt=FILE, runs, max_tokens, seed, dtype.
        offline: Accept only servers on this machine and models in the local cache.
        device: Where a local model runs.
        prompt: A task's own prompt instead of the grading prompt; ``prompt=FILE`` is then refused.

    Raises:
        UsageError: the text is not a judge.
        JudgeError: a file is missing or has the wrong content.
    """
    kind, _, rest = spec.partition(":")
    if kind in ("grades", "replay"):
        if not rest:
            raise UsageError(f"--judge {spec}: write {kind}:FILE")
        if not Path(rest).is_file():
            raise JudgeError(f"--judge {spec}: no such file")
        return GradesFile(Path(rest)) if kind == "grades" else ReplayJudge(Path(rest))
    if spec == "rule":
        return RuleJudge()
    if kind not in ("openai", "model") or not rest:
        raise UsageError(f"--judge {spec}: a judge is {FORMS}")
    what, *words = rest.split(",")
    if kind == "openai":
        return _served(what, _options(_ServedOptions, words), prompt, offline)
    options = _options(_LocalOptions, words)
    model = ModelOptions(*parse_model(what), {}, device, options.dtype, offline)
    return ModelJudge(**_prompted(options, prompt, 1), options=model)


def _options(kind: type[T], words: list[str]) -> T:
    arguments: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key in arguments:
            raise UsageError(f"--judge: {word!r} is not KEY=VALUE with a KEY that is given once")
        arguments[key] = value
    return parse_arguments(kind, arguments, "--judge")


def _prompted(options: _Options, prompt: GradingPrompt | None, runs: int) -> dict[str, Any]:
    """The fields of every judge with a prompt; `runs` is the default of ``runs=``."""
    if prompt is not None and options.prompt is not None:
        raise UsageError("--judge: this task has a prompt of its own; leave prompt= out")
    prompt = prompt or (own_prompt() if options.prompt is None else read_prompt(options.prompt))
    return {
        "prompt": prompt,
        "runs": options.runs or runs,
        "max_tokens": options.max_tokens or 8,
        "seed": options.seed,
    }


def _served(what: str, options: _ServedOptions, prompt: GradingPrompt | None, offline: bool) -> ServedJudge:
    server = ChatServer.parse(what, options.server, "--judge", offline)
    fields = _prompted(options, prompt, 5)
    if options.max_tokens is None and fields["prompt"].official:
        fields["max_tokens"] = 3
    if (options.price_in is None) != (options.price_out is None):
        raise UsageError("--judge: give both price_in and price_out, per million tokens")
    prices = None if options.price_in is None or options.price_out is None else (options.price_in, options.price_out)
    return ServedJudge(**fields, server=server, prices=prices)
