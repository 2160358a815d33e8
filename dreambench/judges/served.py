"""A judge behind a chat-completions server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dreambench.chat import (
    ChatServer,
    Conversation,
    MalformedReplyError,
    RefusedError,
    Reply,
    ServerGoneError,
    in_parallel,
)
from dreambench.documents import JSON
from dreambench.errors import JudgeError
from dreambench.judges.interface import GradeRequest, Judge, Judgement
from dreambench.judges.prompt import ATTEMPTS, GradingPrompt

__all__ = ["Prices", "ServedJudge"]


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in whatever currency the user has in mind."""

    per_million_in: float
    per_million_out: float


class ServedJudge(Judge):
    """``openai:MODEL@BASE_URL``: temperature 0; a reply that is no grade is asked for again, warmer, at most five times in all.

    Run r of the grading runs is asked with the seed `seed` + r, which servers that know no seed ignore.
    """

    def __init__(
        self,
        server: ChatServer,
        prompt: GradingPrompt,
        runs: int = 5,
        max_tokens: int = 3,
        seed: int = 0,
        prices: Prices | None = None,
    ) -> None:
        self.server, self.prompt, self.runs = server, prompt, runs
        self.max_tokens, self.seed, self.prices = max_tokens, seed, prices

    def identity(self) -> Mapping[str, JSON]:
        return {
            "name": "openai",
            "model": self.server.model,
            "host": self.server.host,
            "prompt": self.prompt.name,
            "prompt_sha256": self.prompt.sha256,
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "attempts": ATTEMPTS,
        }

    def grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        with self.server.open() as conversation:
            try:
                yield from in_parallel(lambda item: self._grade(conversation, item), items, self.server.concurrency)
            except ServerGoneError as error:
                raise JudgeError(f"judge openai:{self.server.model}: {error}") from error

    def _grade(self, conversation: Conversation, item: GradeRequest) -> Judgement:
        raw, reason, answered_by = "", "", None
        replies = 0
        for _ in range(ATTEMPTS):
            try:
                reply = self._ask(conversation, item, replies)
            except MalformedReplyError as error:
                reason = str(error)
                continue
            except RefusedError as error:
                return Judgement(item.id, item.run, None, raw, f"the judge refused: {error}", answered_by)
            raw, answered_by, replies = reply.text, reply.model, replies + 1
            score = self.prompt.grade(raw)
            if score is not None:
                return Judgement(item.id, item.run, score, raw, answered_by=answered_by)
            reason = "the reply is not a grade"
        return Judgement(item.id, item.run, None, raw, f"{reason}, after {ATTEMPTS} attempts", answered_by)

    def _ask(self, conversation: Conversation, item: GradeRequest, attempt: int) -> Reply:
        messages = [{"role": "user", "content": self.prompt.message(item, attempt)}]
        settings = {"temperature": self.prompt.temperature(attempt), "seed": self.seed + item.run}
        return conversation.ask(messages, self.max_tokens, settings)

    def estimate(self, items: Sequence[GradeRequest]) -> Sequence[str]:
        tokens_in = sum(len(self.prompt.message(item)) for item in items) / 4
        tokens_out = self.max_tokens * len(items)
        lines = [
            f"judge openai:{self.server.model} ({self.prompt.name} prompt): {len(items):,} calls, about"
            f" {tokens_in:,.0f} tokens in and at most {tokens_out:,} out (estimated at four characters a token, no retries)"
        ]
        if self.prices is None:
            lines.append("cost: unknown; give the judge price_in= and price_out= per million tokens to see it")
        else:
            cost = (tokens_in * self.prices.per_million_in + tokens_out * self.prices.per_million_out) / 1e6
            lines.append(f"cost: about {cost:,.2f} in the currency of price_in and price_out")
        return lines
