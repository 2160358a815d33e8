"""The plan of a run: which requests are answered together, and in which order. Arrays, because a run may have a million requests."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dreambench.requests import Kind, Request

__all__ = ["Batch", "Batches", "Indices", "Order", "halves", "in_order", "split"]

Indices = NDArray[np.int64]

Batch = tuple[str, Indices]
"""A batch's name and the indices of its requests. Batch 7 is ``"7"``, its halves ``"7.0"`` and ``"7.1"``, theirs ``"7.1.0"`` and so on."""


@dataclass(frozen=True)
class Batches:
    """The plan. Batch k has the requests ``order[starts[k]:starts[k + 1]]``; `starts` has one entry more than there are batches."""

    order: Indices
    starts: Indices

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Batches:
        """From lists of indices, as layout 2 stores them."""
        order = [index for members in lists for index in members]
        starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return cls(np.array(order, dtype=np.int64), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Indices]:
        return (self.order[start:end] for start, end in pairwise(self.starts.tolist()))


@dataclass(frozen=True)
class Order:
    """Requests in the order in which they are cut into batches, kind by kind."""

    order: Indices
    kinds: dict[Kind, int]
    """How many requests there are of each kind."""

    def cut(self, batch_size: int) -> Batches:
        """The plan; a batch has requests of one kind."""
        ends = np.cumsum(list(self.kinds.values()))
        starts = [np.arange(end - n, end, batch_size) for end, n in zip(ends, self.kinds.values(), strict=True)]
        return Batches(self.order, np.concatenate([*starts, ends[-1:]]))


def in_order(requests: Iterable[Request]) -> Order:
    """The order of a plan, a pure function of `requests`, fixed before the first answer: batch mates can change last digits.

    Requests of one group (one image) stay together, so that a model may encode their image once; groups are ordered by their longest
    request, longest first, so that a batch pads little and memory runs out early or never.
    """
    kinds: dict[Kind, int] = {}
    groups: dict[tuple[int, str], int] = {}
    numbers = array("q")  # kind, group and length of each request
    for index, request in enumerate(requests):
        kind, name = kinds.setdefault(request.kind, len(kinds)), request.group
        group = -1 - index if name is None else groups.setdefault((kind, name), len(groups))
        numbers.extend((kind, group, request.length()))
    kind, group, length = np.frombuffer(numbers, dtype=np.int64).reshape(-1, 3).T
    _, first, member_of = np.unique(group, return_index=True, return_inverse=True)
    longest = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(longest, member_of, length)
    # The last key counts first; the sort is stable, so that the members of a group keep their order.
    order = np.lexsort((first[member_of], -longest[member_of], kind))
    return Order(order, dict(zip(kinds, np.bincount(kind).tolist(), strict=True)))


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """A batch cut in two, the first half the larger."""
    name, members = batch
    middle = (len(members) + 1) // 2
    return (f"{name}.0", members[:middle]), (f"{name}.1", members[middle:])


def split(planned: Iterable[Indices], halved: Collection[str]) -> Iterator[Batch]:
    """The plan as named batches, with those in `halved` cut in two."""

    def pieces(batch: Batch) -> Iterator[Batch]:
        if batch[0] not in halved:
            yield batch
        else:
            for half in halves(batch):
                yield from pieces(half)

    for number, members in enumerate(planned):
        yield from pieces((str(number), members))
