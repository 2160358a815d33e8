"""The loop that answers what is missing and stores each batch before the next."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dreambench.batches import Batch, Batches, Indices, halves, split
from dreambench.errors import ModelError
from dreambench.interfaces import Model, OutOfMemoryError, Task
from dreambench.requests import Request, Response, Sample
from dreambench.store import RunFolder

__all__ = ["Progress", "Worker", "ask", "unanswered"]

Progress = Callable[[int, int], None]
"""Called with (requests answered, requests in all) of the whole run, as far as this process knows."""


def unanswered(run: RunFolder, planned: Batches, answered: Collection[str]) -> Iterator[Batch]:
    """The batches whose names are not in `answered`."""
    return (batch for batch in split(planned, run.splits()) if batch[0] not in answered)


@dataclass
class Worker:
    """One process's share of a run: the batches whose number is `rank` modulo `world`."""

    run: RunFolder
    task: Task
    model: Model
    samples: Sequence[Sample]
    planned: Batches
    rank: int = 0
    world: int = 1

    def work(self, progress: Progress | None = None) -> None:
        """Answer this process's missing batches. Killed anywhere, a later call goes on with the first that is not stored."""
        self.run.truncate_torn_lines(self.rank)
        total, stored_before = len(self.samples), self.run.responses().batches
        answered = total - sum(len(members) for _, members in unanswered(self.run, self.planned, stored_before))
        if progress is not None:
            progress(answered, total)
        for batch in unanswered(self.run, self.planned, stored_before):
            if int(batch[0].partition(".")[0]) % self.world == self.rank:
                for stored in self._answer_in_parts(batch):
                    answered += stored
                    if progress is not None:
                        progress(answered, total)

    def _answer_in_parts(self, batch: Batch) -> Iterator[int]:
        """Answer a batch, or its halves where it does not fit into memory; yields the number of answers each time some are stored."""
        try:
            self._answer(*batch)
        except OutOfMemoryError as error:
            for half in self._halve(batch, error):
                yield from self._answer_in_parts(half)
        else:
            yield len(batch[1])

    def _answer(self, name: str, members: Indices) -> None:
        requests = [self.task.request(self.samples[index]) for index in members.tolist()]
        began = time.perf_counter()
        responses = self.task.postprocess_batch(requests, ask(self.model, requests))
        answered = time.perf_counter()
        self.run.append(self.rank, name, responses)
        stored = time.perf_counter()
        seconds = {"answer_s": round(answered - began, 6), "store_s": round(stored - answered, 6)}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.run.note_timing(self.rank, {"batch": name, "n": len(members), **seconds, "at": at})

    def _halve(self, batch: Batch, error: OutOfMemoryError) -> tuple[Batch, Batch]:
        """Record in the plan that a batch is answered in two halves."""
        name, members = batch
        if len(members) == 1:
            raise ModelError(
                f"a single request ({self.samples[int(members[0])].id}) does not fit into memory: {error}"
            ) from error
        self.run.note_split(self.rank, name)
        return halves(batch)


def ask(model: Model, requests: Sequence[Request]) -> list[Response]:
    """A model's answers in the order of `requests`; each exactly once, or `ModelError`. One with a score of NaN has failed."""
    answers: dict[str, Response] = {}
    expected = {request.id: len(request.choices) for request in requests}
    for response in model.answer(requests):
        if response.id not in expected:
            raise ModelError(f"the model answered {response.id}, which is not in the batch: its adapter is at fault")
        if response.id in answers:
            raise ModelError(f"the model answered {response.id} twice: its adapter is at fault")
        if response.scores is not None:
            n, choices = len(response.scores), expected[response.id]
            if n != choices:
                raise ModelError(
                    f"the model gave {response.id} {n} scores for {choices} choices: its adapter is at fault"
                )
            if not all(map(math.isfinite, response.scores)):
                response = Response.failed(response.id, "not-finite", "a log-likelihood is NaN or infinite")
        answers[response.id] = response
    missing = [request.id for request in requests if request.id not in answers]
    if missing:
        raise ModelError(
            f"the model left {len(missing)} of {len(requests)} requests unanswered, the first {missing[0]}"
        )
    return [answers[request.id] for request in requests]
