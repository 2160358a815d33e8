"""Judges that are models: one behind a chat-completions server, or one on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from dreambench.chat import (
    ChatServer,
    Conversation,
    MalformedReplyError,
    RefusedError,
    ServerUnavailableError,
    in_parallel,
    message_content,
)
from dreambench.documents import JSON, Image, document_text
from dreambench.errors import JudgeError, counted
from dreambench.images import BrokenImageError
from dreambench.interfaces import Model, ModelOptions, OutOfMemoryError
from dreambench.judges.base import GradeRequest, Judge, Judgement
from dreambench.judges.prompt import ATTEMPTS, GradingPrompt
from dreambench.registry import load_model
from dreambench.requests import Request, Response, sample_seed
from dreambench.runner import ask

__all__ = ["ModelJudge", "PromptedJudge", "ServedJudge"]


@dataclass(eq=False, kw_only=True)
class PromptedJudge(Judge):
    """A reply that is not a grade is retried at higher temperatures, `ATTEMPTS` times in all."""

    prompt: GradingPrompt
    runs: int
    max_tokens: int
    seed: int

    def with_prompt(self, prompt: GradingPrompt) -> Self:
        """The same judge with another prompt; a local model is not loaded twice."""
        other = replace(self, prompt=prompt)
        if "model" in vars(self):
            vars(other)["model"] = vars(self)["model"]
        return other


@dataclass(eq=False, kw_only=True)
class ServedJudge(PromptedJudge):
    """``openai:MODEL@BASE_URL``, at temperature 0 at first. `prices` are per million tokens in and out, in any currency.

    Requests of grading run r have the seed `seed` + r, which servers without seeds ignore.
    """

    server: ChatServer
    prices: tuple[float, float] | None = None

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
        self.server.require_said()
        try:
            yield from in_parallel(self.server, self._grade, items)
        except ServerUnavailableError as error:
            raise JudgeError(f"judge openai:{self.server.model}: {error}") from error

    def _grade(self, conversation: Conversation, item: GradeRequest) -> Judgement:
        raw, reason, answered_by = "", "", None
        replies = 0
        for _ in range(ATTEMPTS):
            settings = {"temperature": self.prompt.temperature(replies), "seed": self.seed + item.run}
            try:
                content = message_content(self.prompt.document(item, replies))
                reply = conversation.ask(content, self.max_tokens, settings)
            except BrokenImageError as error:
                return Judgement(item.id, item.run, None, raw, f"not shown to the judge: {error}", answered_by)
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

    def estimate(self, items: Sequence[GradeRequest]) -> Sequence[str]:
        messages = [self.prompt.document(item) for item in items]
        tokens_in = sum(len(document_text(message)) for message in messages) / 4
        images = sum(isinstance(part, Image) for message in messages for part in message)
        tokens_out = self.max_tokens * len(items)
        calls = (
            f"judge openai:{self.server.model} ({self.prompt.name} prompt): {len(items):,} calls, about {tokens_in:,.0f}"
            f" tokens{f' and {images:,} images' * bool(images)} in and at most {tokens_out:,} out (at four characters per"
            " token, without retries)"
        )
        if self.prices is None:
            return [calls, "cost: unknown; give the judge price_in= and price_out= per million tokens"]
        cost = (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6
        return [calls, f"cost: about {cost:,.2f} in the currency of price_in and price_out"]


@dataclass(eq=False, kw_only=True)
class ModelJudge(PromptedJudge):
    """``model:NAME[:LOCATION]``, greedy at first."""

    options: ModelOptions

    @cached_property
    def model(self) -> Model:
        """The model, loaded on first use."""
        model = load_model(self.options)
        if "generate_text" not in model.capabilities:
            raise JudgeError(f"--judge model:{self.options.name}: this model does not generate text; choose another")
        return model

    def identity(self) -> Mapping[str, JSON]:
        return {
            "name": "model",
            "model": dict(self.model.identity()),
            "prompt": self.prompt.name,
            "prompt_sha256": self.prompt.sha256,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "attempts": ATTEMPTS,
        }

    def grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        size = self.model.batch_size("generate_text")
        for start in range(0, len(items), size):
            yield from self._grade(items[start : start + size])

    def _grade(self, items: Sequence[GradeRequest]) -> Iterator[Judgement]:
        """One batch; replies that are not grades are retried together."""
        waiting = {str(index): item for index, item in enumerate(items)}
        for attempt in range(ATTEMPTS):
            requests = [self._request(id_, item, attempt) for id_, item in waiting.items()]
            for response in self._answer(requests) if requests else ():
                item = waiting[response.id]
                raw = document_text(response.document)
                score = self.prompt.grade(raw)
                if score is not None:
                    reason = None
                elif response.error is not None:
                    reason = f"the judge did not answer: {response.error.type}"
                elif attempt == ATTEMPTS - 1:
                    reason = f"the reply is not a grade, after {ATTEMPTS} attempts"
                else:
                    continue
                del waiting[response.id]
                yield Judgement(item.id, item.run, score, raw, reason)

    def _answer(self, requests: Sequence[Request]) -> list[Response]:
        """The model's answers; a batch that does not fit into memory is halved."""
        try:
            return ask(self.model, requests)
        except OutOfMemoryError:
            if len(requests) == 1:
                raise
        middle = len(requests) // 2
        return self._answer(requests[:middle]) + self._answer(requests[middle:])

    def _request(self, id_: str, item: GradeRequest, attempt: int) -> Request:
        settings: dict[str, JSON] = {"max_new_tokens": self.max_tokens}
        if attempt:
            settings |= {"do_sample": True, "temperature": self.prompt.temperature(attempt)}
        seed = sample_seed(self.seed, f"{item.id}\0{item.run}\0{attempt}")
        return Request(id_, "generate_text", self.prompt.document(item, attempt), settings, seed)

    def estimate(self, items: Sequence[GradeRequest]) -> Sequence[str]:
        return [f"judge model:{self.options.name}: {counted(len(items), 'answer')} to grade on this machine"]
