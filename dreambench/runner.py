"""The plan of batches, and the loop that answers what is missing and stores each batch before the next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from dreambench.errors import ModelError
from dreambench.interfaces import Model, OutOfMemoryError, Task
from dreambench.requests import Request, Response
from dreambench.store import RunFolder

__all__ = ["Batch", "Progress", "Worker", "ask", "batches", "split", "unanswered"]

Progress = Callable[[int, int], None]
"""Called with (requests answered, requests in all) of the whole run, as far as this process knows."""

Batch = tuple[str, list[int]]
"""A batch's name and the indices of its requests. Batch 7 is ``"7"``, its halves ``"7.0"`` and ``"7.1"``, theirs ``"7.1.0"`` and so on."""


def batches(requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """The plan: indices of `requests`, batch by batch. A pure function, fixed before the first answer: batch mates can change last digits.

    A batch has requests of one kind. Those of one group (one image) stay together, so that a model may encode their image once; groups
    are ordered by their longest request, longest first, so that a batch pads little and memory runs out early or never.
    """
    kinds: dict[str, dict[str, list[int]]] = {}
    for index, request in enumerate(requests):
        key = f"g{request.group}" if request.group is not None else f"r{index}"
        kinds.setdefault(request.kind, {}).setdefault(key, []).append(index)
    lengths = [request.length() for request in requests]
    planned: list[list[int]] = []
    for groups in kinds.values():
        ordered = sorted(groups.values(), key=lambda members: (-max(lengths[i] for i in members), members[0]))
        flat = [index for members in ordered for index in members]
        planned += [flat[start : start + batch_size] for start in range(0, len(flat), batch_size)]
    return planned


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """A batch cut in two, the first half the larger."""
    name, members = batch
    middle = (len(members) + 1) // 2
    return (f"{name}.0", members[:middle]), (f"{name}.1", members[middle:])


def split(planned: Sequence[Sequence[int]], halved: Collection[str]) -> list[Batch]:
    """The plan as named batches, with those in `halved` cut in two."""

    def pieces(batch: Batch) -> Iterator[Batch]:
        if batch[0] not in halved:
            yield batch
        else:
            for half in halves(batch):
                yield from pieces(half)

    return [piece for number, members in enumerate(planned) for piece in pieces((str(number), list(members)))]


def unanswered(run: RunFolder, planned: Sequence[Sequence[int]]) -> list[Batch]:
    """The batches that no process has answered yet."""
    answered = run.answered()
    return [batch for batch in split(planned, run.splits()) if batch[0] not in answered]


@dataclass
class Worker:
    """One process's share of a run: the batches whose number is `rank` modulo `world`."""

    run: RunFolder
    task: Task
    model: Model
    requests: Sequence[Request]
    planned: Sequence[Sequence[int]]
    rank: int = 0
    world: int = 1

    def work(self, progress: Progress | None = None) -> None:
        """Answer this process's missing batches. Killed anywhere, a later call goes on with the first that is not stored."""
        self.run.truncate_torn_lines(self.rank)
        missing = unanswered(self.run, self.planned)
        queue = deque(batch for batch in missing if int(batch[0].partition(".")[0]) % self.world == self.rank)
        total = len(self.requests)
        answered = total - sum(len(members) for _, members in missing)
        if progress is not None:
            progress(answered, total)
        while queue:
            batch = queue.popleft()
            try:
                self._answer(*batch)
            except OutOfMemoryError as error:
                queue.extendleft(reversed(self._halve(batch, error)))
                continue
            answered += len(batch[1])
            if progress is not None:
                progress(answered, total)

    def _answer(self, name: str, members: Sequence[int]) -> None:
        requests = [self.requests[index] for index in members]
        began = time.perf_counter()
        responses = self.task.postprocess_batch(requests, ask(self.model, requests))
        answered = time.perf_counter()
        self.run.append(self.rank, name, responses)
        stored = time.perf_counter()
        seconds = {"answer_s": round(answered - began, 6), "store_s": round(stored - answered, 6)}
        self.run.note_timing(self.rank, {"batch": name, "n": len(members), **seconds})

    def _halve(self, batch: Batch, error: OutOfMemoryError) -> tuple[Batch, Batch]:
        """Record in the plan that a batch is answered in two halves."""
        name, members = batch
        if len(members) == 1:
            raise ModelError(
                f"a single request ({self.requests[members[0]].id}) does not fit into memory: {error}"
            ) from error
        self.run.note_split(self.rank, name)
        return halves(batch)


def ask(model: Model, requests: Sequence[Request]) -> list[Response]:
    """A model's answers in the order of `requests`; each exactly once, or `ModelError`."""
    answers: dict[str, Response] = {}
    expected = {request.id for request in requests}
    for response in model.answer(requests):
        if response.id not in expected:
            raise ModelError(f"the model answered {response.id}, which is not in the batch: its adapter is at fault")
        if response.id in answers:
            raise ModelError(f"the model answered {response.id} twice: its adapter is at fault")
        answers[response.id] = response
    missing = [request.id for request in requests if request.id not in answers]
    if missing:
        raise ModelError(
            f"the model left {len(missing)} of {len(requests)} requests unanswered, the first {missing[0]}"
        )
    return [answers[request.id] for request in requests]
