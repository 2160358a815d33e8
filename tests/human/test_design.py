"""The balance of a study holds for any numbers of prompts, systems, raters and votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambench.errors import UsageError
from dreambench.human.design import Mode, Showing, conditions, design_study

Study = list[list[Showing]]
LEVELS = settings(max_examples=60, deadline=None)


def spread(labels: Iterable[Hashable], possible: Iterable[Hashable]) -> int:
    """Largest difference between the counts of the possible labels."""
    counts = Counter(labels)
    every = [counts[label] for label in possible]
    return max(every) - min(every)


@st.composite
def studies(draw: st.DrawFn, mode: Mode) -> tuple[list[str], int, int, int, Study]:
    systems = [f"system {n}" for n in range(draw(st.integers(1 if mode == "rating" else 2, 5)))]
    n = len(conditions(systems, mode))
    votes = draw(st.integers(1, 3)) * n if mode == "rating" else draw(st.integers(1, 8))
    raters = draw(st.integers(votes, votes + 9))
    enough = -(-max(n, raters) // votes)
    prompts = draw(st.integers(enough, enough + 30))
    seed = draw(st.integers(0, 2**32))
    return systems, prompts, raters, votes, design_study(prompts, systems, mode, raters=raters, votes=votes, seed=seed)


@LEVELS
@given(studies("rating") | studies("pairwise"))
def test_a_rater_sees_a_prompt_once_and_every_prompt_has_its_votes(
    made: tuple[list[str], int, int, int, Study],
) -> None:
    _, prompts, raters, votes, study = made
    assert len(study) == raters
    for items in study:
        assert len({item.prompt for item in items}) == len(items)
    assert Counter(item.prompt for items in study for item in items) == dict.fromkeys(range(prompts), votes)
    assert spread([rater for rater, items in enumerate(study) for _ in items], range(raters)) <= 1


@LEVELS
@given(studies("rating"))
def test_systems_are_equal_within_one_for_raters_and_places_and_equal_for_prompts(
    made: tuple[list[str], int, int, int, Study],
) -> None:
    systems, prompts, _, votes, study = made
    for items in study:
        shown = [item.systems[0] for item in items]
        assert spread(shown, systems) <= 1
        quarters = [4 * place // len(items) for place in range(len(items))]
        for quarter in range(4):
            there = [system for system, place in zip(shown, quarters, strict=True) if place == quarter]
            assert spread(there, systems) <= 1
    for prompt in range(prompts):
        seen = Counter(item.systems[0] for items in study for item in items if item.prompt == prompt)
        assert seen == dict.fromkeys(systems, votes // len(systems))


@LEVELS
@given(studies("pairwise"))
def test_pairs_and_sides_are_equal_within_one_and_every_pair_is_compared(
    made: tuple[list[str], int, int, int, Study],
) -> None:
    systems, prompts, _, _, study = made
    pairs = [frozenset(pair) for pair in conditions(systems, "pairwise")]
    every = [item for items in study for item in items]
    assert spread([frozenset(item.systems) for item in every], pairs) <= 1
    assert {frozenset(item.systems) for item in every} == set(pairs)
    groups = [every, *study, *([item for item in every if item.prompt == prompt] for prompt in range(prompts))]
    for group in groups:
        assert spread([frozenset(item.systems) for item in group], pairs) <= 1
        for a, b in conditions(systems, "pairwise"):
            assert spread([item.systems for item in group if set(item.systems) == {a, b}], [(a, b), (b, a)]) <= 1


def test_as_many_raters_as_votes_make_a_latin_square() -> None:
    """Three systems, three raters: each rater sees every prompt, each system a third of them; a prompt shows each system once."""
    study = design_study(30, ["a", "b", "c"], "rating", raters=3, votes=3)
    rows = [{item.prompt: item.systems[0] for item in items} for items in study]
    assert all(Counter(row.values()) == {"a": 10, "b": 10, "c": 10} for row in rows)
    assert all({row[prompt] for row in rows} == {"a", "b", "c"} for prompt in range(30))


@LEVELS
@given(
    n=st.integers(1, 60),
    attention=st.integers(0, 6),
    repeats=st.integers(0, 6),
    seed=st.integers(0, 2**32),
)
def test_checks_and_repeats_are_never_side_by_side(n: int, attention: int, repeats: int, seed: int) -> None:
    try:
        (items,) = design_study(
            n, ["a"], "rating", raters=1, votes=1, attention=attention, repeats=repeats, training=2, seed=seed
        )
    except UsageError:
        assert repeats > n // 3 or attention > n - 1 - repeats
        return
    assert [item.purpose for item in items[:2]] == ["training", "training"]
    items = items[2:]
    kinds = [item.purpose for item in items]
    assert (kinds.count("attention"), kinds.count("repeat")) == (attention, repeats)
    assert {item.check for item in items if item.purpose == "attention"} == set(range(attention))
    assert kinds[0] == "study"
    assert not any(a != "study" and b != "study" for a, b in pairwise(kinds))
    for place, item in enumerate(items):
        if item.purpose == "repeat":
            first = next(k for k, other in enumerate(items) if other.prompt == item.prompt)
            assert items[first].systems == item.systems
            assert place - first > n // 3


def test_the_seed_alone_decides() -> None:
    one, same, other = (
        design_study(20, ["a", "b"], "pairwise", raters=4, votes=2, attention=2, repeats=2, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == same != other


@pytest.mark.parametrize("mode", ["rating", "pairwise"])
def test_the_order_tells_no_system_apart(mode: Mode) -> None:
    """Over many seeds, each system comes first, and each side of a pair, equally often (within five standard errors)."""
    systems, n = ["a", "b", "c"], 600
    first = Counter(design_study(6, systems, mode, raters=3, votes=3, seed=seed)[0][0].systems for seed in range(n))
    assert len(first) == (3 if mode == "rating" else 6)
    share = 1 / len(first)
    assert max(abs(count - n * share) for count in first.values()) < 5 * (n * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"raters": 3, "votes": 4}, "as many raters"),
        ({"raters": 4, "votes": 3}, "spread equally"),
        ({"raters": 9, "votes": 2, "prompts": 4}, "too few"),
        ({"raters": 2, "votes": 2, "prompts": 5, "repeats": 2}, "room for 1 repeats"),
        ({"raters": 2, "votes": 2, "systems": ["a"], "mode": "pairwise"}, "at least two systems"),
    ],
)
def test_impossible_numbers_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        design_study(**({"prompts": 10, "systems": ["a", "b"], "mode": "rating"} | arguments))  # type: ignore[arg-type]
