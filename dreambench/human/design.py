"""Who rates what, in which order: a pure function of prompts, systems, counts and a seed.

What is shown of a prompt is its *condition*: one system (rating), or a pair of systems (pairwise). For any numbers of prompts, systems,
raters and votes,

- a rater sees a prompt once, so never from two systems in rating mode (checks and repeats apart);
- each prompt has the same number of votes; raters' numbers of items differ by at most one;
- the votes of conditions differ by at most one: for each rater, for each rater within each quarter of the order, for each prompt, and
  over all, so that every pair is compared;
- in a pairwise study, left and right of a pair differ by at most one: over all, for each rater, and for each prompt.

With as many raters as votes per prompt, the conditions form a Latin square (cyclic in effect, random in order). Other numbers have no
such table; there, conditions are the colours of an equitable colouring of the votes (de Werra 1971), which always exists.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias, TypeVar

from dreambench.errors import UsageError, counted
from dreambench.human.study import Purpose
from dreambench.requests import sample_seed

__all__ = ["Mode", "Showing", "conditions", "design_study", "equitable"]

Mode: TypeAlias = Literal["rating", "pairwise"]
QUARTERS = 4
T = TypeVar("T")

Labelling: TypeAlias = Sequence[Hashable]
"""The cell of each vote, for instance its rater."""
Laminar: TypeAlias = Sequence[Labelling]
"""Labellings from fine to coarse: a cell of one lies within a cell of the next."""


@dataclass(frozen=True)
class Showing:
    """What a rater sees at one place: a prompt's document of one system, or of two in the order shown; or the check of that number."""

    purpose: Purpose
    prompt: int = -1
    systems: tuple[str, ...] = ()
    check: int = -1


def conditions(systems: Sequence[str], mode: Mode) -> list[tuple[str, ...]]:
    """What can be shown of a prompt: each system, or each pair of systems."""
    return [(system,) for system in systems] if mode == "rating" else list(combinations(systems, 2))


def design_study(
    prompts: int,
    systems: Sequence[str],
    mode: Mode,
    *,
    raters: int,
    votes: int,
    attention: int = 0,
    repeats: int = 0,
    training: int = 0,
    seed: int = 0,
) -> list[list[Showing]]:
    """The items of each rater, in order.

    Args:
        prompts: number of prompts, each with a document of every system.
        votes: votes for each prompt, spread over its conditions.
        attention: attention checks for each rater; check k is one of `attention` that all raters share.
        repeats: items for each rater that are shown a second time, at least a third of the list later.
        training: training items, which come first.

    Raises:
        UsageError: the numbers leave no design with the properties above.
    """
    shown = _shuffled(conditions(systems, mode), seed, "conditions")
    _require(prompts, shown, mode, raters, votes)
    orders = _assign(prompts, raters, votes, seed)
    ballots = [(rater, prompt, place) for rater, order in enumerate(orders) for place, prompt in enumerate(order)]
    of_rater = [rater for rater, _, _ in ballots]
    of_prompt = [prompt for _, prompt, _ in ballots]
    quarter = [(rater, QUARTERS * place // len(orders[rater])) for rater, _, place in ballots]
    everywhere = [0] * len(ballots)
    first = [sample_seed(seed, f"condition {rater} {prompt}") % len(shown) for rater, prompt, _ in ballots]
    colours = equitable(first, len(shown), ([of_prompt, everywhere], [quarter, of_rater]))
    if mode == "pairwise":
        sides = [sample_seed(seed, f"left {rater} {prompt}") % 2 for rater, prompt, _ in ballots]
        by_rater, by_prompt = list(zip(of_rater, colours, strict=True)), list(zip(of_prompt, colours, strict=True))
        sides = equitable(sides, 2, ([by_rater, colours], [by_prompt]))
    else:
        sides = everywhere
    study: list[list[Showing]] = [[] for _ in orders]
    for (rater, prompt, _), colour, side in zip(ballots, colours, sides, strict=True):
        study[rater].append(Showing("study", prompt, shown[colour][::-1] if side else shown[colour]))
    lessons = [Showing("training", check=check) for check in range(training)]
    return [lessons + _with_checks(items, attention, repeats, seed, rater) for rater, items in enumerate(study)]


def _require(prompts: int, shown: Sequence[tuple[str, ...]], mode: Mode, raters: int, votes: int) -> None:
    if not shown:
        raise UsageError("a pairwise study compares at least two systems: give another run, or --references")
    if min(prompts, raters, votes) < 1:
        raise UsageError(f"{prompts} prompts, {raters} raters, {votes} votes for each prompt: each must be at least 1")
    if mode == "rating" and votes % len(shown):
        raise UsageError(f"{votes} votes for each prompt cannot be spread equally over {len(shown)} systems")
    if votes > raters:
        raise UsageError(
            f"{counted(votes, 'vote')} for each prompt need as many raters, because a rater sees a prompt once: "
            f"--raters {votes}, or fewer --votes-per-document"
        )
    if prompts * votes < max(len(shown), raters):
        raise UsageError(
            f"{counted(prompts * votes, 'vote')} in all: too few for {counted(raters, 'rater')} and "
            f"{counted(len(shown), 'condition')}: show more prompts, or take fewer raters"
        )


def _shuffled(items: Iterable[T], seed: int, label: str) -> list[T]:
    """In an order by sha256, the same with every version of Python."""
    return sorted(items, key=lambda item: sample_seed(seed, f"{label} {item}"))


def _assign(prompts: int, raters: int, votes: int, seed: int) -> list[list[int]]:
    """The prompts of each rater, in the order shown. A prompt goes to the raters with the fewest so far."""
    orders: list[list[int]] = [[] for _ in range(raters)]
    for prompt in _shuffled(range(prompts), seed, "prompt"):
        lots = [(len(orders[rater]), sample_seed(seed, f"rater {rater} {prompt}"), rater) for rater in range(raters)]
        for _, _, rater in sorted(lots)[:votes]:
            orders[rater].append(prompt)
    return [_shuffled(order, seed, f"order {rater}") for rater, order in enumerate(orders)]


# --- balance ----------------------------------------------------------------------------------------------------------


def equitable(colours: Sequence[int], n: int, families: tuple[Laminar, Laminar]) -> list[int]:
    """Change a colouring in `n` colours until, in every cell of both families, the numbers of any two colours differ by at most one.

    Two colours at a time are dealt out anew over their items. No cell gets worse by that and an unbalanced one gets better, so it ends.
    """
    found = list(colours)
    labellings = [labelling for family in families for labelling in family]
    groups = [[item for item, colour in enumerate(found) if colour == one] for one in range(n)]
    changed = True
    while changed:
        changed = False
        for a, b in combinations(range(n), 2):
            members = sorted(groups[a] + groups[b])  # by place: what comes first must not depend on its colour
            if any(not _is_balanced(members, found, a, labelling) for labelling in labellings):
                _halve(members, found, a, b, families)
                groups[a], groups[b] = ([item for item in members if found[item] == one] for one in (a, b))
                changed = True
    return found


def _is_balanced(members: Sequence[int], colours: Sequence[int], a: int, labelling: Labelling) -> bool:
    excess: dict[Hashable, int] = {}
    for item in members:
        excess[labelling[item]] = excess.get(labelling[item], 0) + (1 if colours[item] == a else -1)
    return all(-1 <= difference <= 1 for difference in excess.values())


def _halve(members: Sequence[int], colours: list[int], a: int, b: int, families: tuple[Laminar, Laminar]) -> None:
    """Give the members the colours a and b so that both are equal within one in every cell.

    Each family couples the members within its finest cells, and what is left over within the coarser ones. Two such matchings together
    form paths and even cycles; along them the colours alternate, so that every couple gets both.
    """
    partners: dict[int, list[int]] = {item: [] for item in members}
    for family in families:
        single: Sequence[int] = members
        for labelling in family:
            waiting: dict[Hashable, int] = {}
            for item in single:
                other = waiting.pop(labelling[item], None)
                if other is None:
                    waiting[labelling[item]] = item
                else:
                    partners[item].append(other)
                    partners[other].append(item)
            single = list(waiting.values())
    done: set[int] = set()
    for start in members:
        path = [] if start in done else [start]
        done.add(start)
        while path:
            item = path.pop()
            for other in partners[item]:
                if other not in done:
                    colours[other] = b if colours[item] == a else a
                    done.add(other)
                    path.append(other)


# --- checks and repeats -----------------------------------------------------------------------------------------------


def _with_checks(items: list[Showing], attention: int, repeats: int, seed: int, rater: int) -> list[Showing]:
    """Put checks and repeats between the items, never two side by side. A repeat comes at least a third of the list after its item."""
    n = len(items)
    third = n // 3
    late = _shuffled(range(n - third, n), seed, f"late {rater}")[:repeats]
    gaps = [gap for gap in range(1, n) if gap not in late]
    if repeats > min(third, len(late)) or attention > len(gaps):
        raise UsageError(
            f"a rater has {counted(n, 'item')}: room for {third} repeats and, beside them, {max(0, n - 1 - third)} attention "
            "checks at most; lower --repeats or --attention, or show more prompts"
        )
    early = sorted(_shuffled(range(third), seed, f"early {rater}")[:repeats])
    extras: dict[int, Showing] = {}
    for gap, place in zip(sorted(late), early, strict=True):
        extras[gap] = Showing("repeat", items[place].prompt, items[place].systems)
    for check in _shuffled(range(attention), seed, f"check {rater}"):
        part = len(extras) - repeats  # one check in each of `attention` equal stretches of the list
        stretch = gaps[part * len(gaps) // attention : (part + 1) * len(gaps) // attention]
        extras[_shuffled(stretch, seed, f"gap {rater}")[0]] = Showing("attention", check=check)
    return [one for place, item in enumerate(items) for one in ([extras[place]] if place in extras else []) + [item]]
