"""The plan: who is answered together with whom. Fixed before the first answer, because batch mates can change last digits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from dreambench.requests import Request

__all__ = ["batches", "split"]


def batches(requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Indices of `requests`, batch by batch.

    Requests of one group (one image) stay side by side, so that a model may encode their image once; groups are ordered by
    their longest request, longest first, so that a batch pads little and memory runs out early or never. A pure function.
    """
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        key = f"g{request.group}" if request.group is not None else f"r{index}"
        groups.setdefault(key, []).append(index)
    lengths = [request.length() for request in requests]
    ordered = sorted(groups.values(), key=lambda members: (-max(lengths[i] for i in members), members[0]))
    flat = [index for members in ordered for index in members]
    return [flat[start : start + batch_size] for start in range(0, len(flat), batch_size)]


def split(planned: Sequence[Sequence[int]], halved: Collection[str]) -> list[tuple[str, list[int]]]:
    """Named batches, some cut in two because memory ran out, and some of those again.

    Batch 7 is called ``"7"``, its halves ``"7.0"`` and ``"7.1"``, theirs ``"7.1.0"`` and so on; `halved` holds the names that were cut.
    """

    def pieces(name: str, members: list[int]) -> Iterator[tuple[str, list[int]]]:
        if name not in halved:
            yield name, members
        else:
            middle = (len(members) + 1) // 2
            yield from pieces(f"{name}.0", members[:middle])
            yield from pieces(f"{name}.1", members[middle:])

    return [piece for number, batch in enumerate(planned) for piece in pieces(str(number), list(batch))]
