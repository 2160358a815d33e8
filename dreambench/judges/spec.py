"""``--judge``: from its text to a judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dreambench.chat import ChatServer
from dreambench.errors import JudgeError, UsageError
from dreambench.interfaces import ModelOptions
from dreambench.judges.interface import GradesFile, Judge
from dreambench.judges.local import ModelJudge
from dreambench.judges.prompt import GradingPrompt, own_prompt, read_prompt
from dreambench.judges.replay import ReplayJudge
from dreambench.judges.rule import RuleJudge
from dreambench.judges.served import Prices, ServedJudge
from dreambench.registry import parse_model

__all__ = ["FORMS", "parse_judge"]

FORMS = "openai:MODEL@BASE_URL, grades:FILE, replay:FILE, model:NAME[:LOCATION] or rule"

_SERVER = ("concurrency", "retries", "timeout", "key_env", "token_field")
_GRADING = ("prompt", "runs", "max_tokens", "seed")
_PRICES = ("price_in", "price_out")


def parse_judge(
    spec: str, *, offline: bool = False, device: str = "auto", prompt: GradingPrompt | None = None
) -> Judge | GradesFile:
    """A judge from ``KIND:WHAT[,KEY=VALUE]...``. Reads the files that the text names, and asks nobody anything.

    `prompt` is what a task asks instead of the project's grading prompt; ``prompt=FILE`` is then refused.

    Keys of ``openai``: prompt=FILE, runs, max_tokens, seed, concurrency, retries, timeout, key_env, token_field, price_in, price_out;
    of ``model``: prompt, runs, max_tokens, seed, dtype. What follows ``grades:`` and ``replay:`` is a path to its end.
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
    known = (*_GRADING, *_SERVER, *_PRICES) if kind == "openai" else (*_GRADING, "dtype")
    arguments = _arguments(spec, words, known)
    if "prompt" in arguments:
        if prompt is not None:
            raise UsageError(f"--judge {spec}: this task has a prompt of its own, leave prompt= out")
        prompt = read_prompt(Path(arguments["prompt"]))
    prompt = prompt or own_prompt()
    if kind == "openai":
        return _served(what, prompt, arguments, offline)
    name, location = parse_model(what)
    options = ModelOptions(name, location, {}, device, arguments.get("dtype", "auto"), offline)
    runs, max_tokens = _whole(arguments, "runs", 1, 1), _whole(arguments, "max_tokens", 8, 1)
    return ModelJudge(options, prompt, runs, max_tokens, _whole(arguments, "seed", 0, 0))


def _served(what: str, prompt: GradingPrompt, arguments: Mapping[str, str], offline: bool) -> ServedJudge:
    server = ChatServer.parse(what, arguments, "--judge", offline)
    prices = None
    if any(key in arguments for key in _PRICES):
        if not all(key in arguments for key in _PRICES):
            raise UsageError("--judge: give both price_in and price_out, per million tokens")
        prices = Prices(_price(arguments, "price_in"), _price(arguments, "price_out"))
    max_tokens = _whole(arguments, "max_tokens", 3 if prompt.official else 8, 1)
    return ServedJudge(
        server, prompt, _whole(arguments, "runs", 5, 1), max_tokens, _whole(arguments, "seed", 0, 0), prices
    )


def _arguments(spec: str, words: list[str], known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known or key in found:
            raise UsageError(f"--judge {spec}: {word!r} is not KEY=VALUE, given once, of the keys {', '.join(known)}")
        found[key] = value
    return found


def _whole(arguments: Mapping[str, str], key: str, default: int, least: int) -> int:
    text = arguments.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise UsageError(f"--judge: {key}={text} is not a whole number of at least {least}")
    return int(text)


def _price(arguments: Mapping[str, str], key: str) -> float:
    try:
        price = float(arguments[key])
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise UsageError(f"--judge: {key}={arguments[key]} is not a price per million tokens")
    return price
