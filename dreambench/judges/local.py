"""A judge that is a model on this machine, asked through the same interface as the models under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from dreambench.documents import JSON, Text, document_text
from dreambench.errors import JudgeError
from dreambench.interfaces import Model, ModelOptions, OutOfMemoryError
from dreambench.judges.interface import GradeRequest, Judge, Judgement
from dreambench.judges.prompt import ATTEMPTS, GradingPrompt
from dreambench.registry import load_model
from dreambench.requests import Request, Response, sample_seed

__all__ = ["ModelJudge"]


class ModelJudge(Judge):
    """``model:NAME[:LOCATION]``: greedy at first, then sampled as warm as the official evaluator asks again."""

    def __init__(
        self, options: ModelOptions, prompt: GradingPrompt, runs: int = 1, max_tokens: int = 8, seed: int = 0
    ) -> None:
        self.options, self.prompt, self.runs = options, prompt, runs
        self.max_tokens, self.seed = max_tokens, seed

    @cached_property
    def model(self) -> Model:
        """The model, loaded when it is first needed."""
        model = load_model(self.options)
        if "generate_text" not in model.capabilities:
            raise JudgeError(f"judge model:{self.options.name} cannot read: choose a model that answers with text")
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
        """One batch; what is not understood goes around again, all together."""
        waiting = {str(number): item for number, item in enumerate(items)}
        for attempt in range(ATTEMPTS):
            requests = [self._request(number, item, attempt) for number, item in waiting.items()]
            for response in self._answers(requests) if requests else ():
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

    def _answers(self, requests: Sequence[Request]) -> list[Response]:
        """The model's answers; a batch that does not fit is halved."""
        try:
            return list(self.model.answer(requests))
        except OutOfMemoryError:
            if len(requests) == 1:
                raise
        middle = len(requests) // 2
        return self._answers(requests[:middle]) + self._answers(requests[middle:])

    def _request(self, number: str, item: GradeRequest, attempt: int) -> Request:
        settings: dict[str, JSON] = {"max_new_tokens": self.max_tokens}
        if attempt:
            settings |= {"do_sample": True, "temperature": self.prompt.temperature(attempt)}
        return Request(
            number,
            "generate_text",
            (Text(self.prompt.message(item, attempt)),),
            settings,
            sample_seed(self.seed, f"{item.id}\0{item.run}\0{attempt}"),
        )

    def estimate(self, items: Sequence[GradeRequest]) -> Sequence[str]:
        return [f"judge model:{self.options.name}: {len(items):,} answers to grade on this machine, at no charge"]
