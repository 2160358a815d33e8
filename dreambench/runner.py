"""The loop: ask for what is missing, batch by batch, and keep each batch before the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dreambench.errors import ModelError
from dreambench.interfaces import Model, OutOfMemoryError, Task
from dreambench.plan import split
from dreambench.requests import Request, Response
from dreambench.store import RunFolder

__all__ = ["Progress", "Worker", "unanswered"]

Progress = Callable[[int, int], None]
"""Called with (answers kept by this process, answers it owes in all)."""


def unanswered(run: RunFolder, planned: Sequence[Sequence[int]]) -> list[tuple[str, list[int]]]:
    """The named batches that no process has answered yet."""
    answered = run.answered()
    return [(name, members) for name, members in split(planned, run.splits()) if name not in answered]


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
        """Answer this process's missing batches. Killed anywhere, a later call goes on with the first that is not on disk."""
        self.run.truncate_torn_lines(self.rank)
        mine = [batch for batch in unanswered(self.run, self.planned) if _number(batch[0]) % self.world == self.rank]
        remaining, kept = sum(len(members) for _, members in mine), 0
        queue = list(mine)
        while queue:
            name, members = queue.pop(0)
            batch = [self.requests[index] for index in members]
            began = time.perf_counter()
            try:
                responses = ask(self.model, batch)
            except OutOfMemoryError as error:
                queue = self._halve(name, members, error) + queue
                continue
            responses = self.task.postprocess_batch(batch, responses)
            answered = time.perf_counter()
            self.run.append(self.rank, name, responses)
            kept += len(members)
            self.run.note_timing(
                self.rank,
                {
                    "batch": name,
                    "n": len(members),
                    "answer_s": round(answered - began, 6),
                    "store_s": round(time.perf_counter() - answered, 6),
                },
            )
            if progress is not None:
                progress(kept, remaining)

    def _halve(self, name: str, members: Sequence[int], error: OutOfMemoryError) -> list[tuple[str, list[int]]]:
        """Write the halving of a batch into the plan and give its two pieces."""
        if len(members) == 1:
            raise ModelError(
                f"a single request ({self.requests[members[0]].id}) does not fit into memory: {error}"
            ) from error
        self.run.note_split(self.rank, name)
        middle = (len(members) + 1) // 2
        return [(f"{name}.0", list(members[:middle])), (f"{name}.1", list(members[middle:]))]


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def ask(model: Model, requests: Sequence[Request]) -> list[Response]:
    """A model's answers in the order of `requests`; each exactly once, or `ModelError`."""
    answers: dict[str, Response] = {}
    wanted = {request.id for request in requests}
    for response in model.answer(requests):
        if response.id not in wanted:
            raise ModelError(f"the model answered a request it was not asked ({response.id}): its adapter is at fault")
        if response.id in answers:
            raise ModelError(f"the model answered {response.id} twice: its adapter is at fault")
        answers[response.id] = response
    missing = [request.id for request in requests if request.id not in answers]
    if missing:
        raise ModelError(
            f"the model left {len(missing)} of {len(requests)} requests unanswered, the first {missing[0]}"
        )
    return [answers[request.id] for request in requests]
