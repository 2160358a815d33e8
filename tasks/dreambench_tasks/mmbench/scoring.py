"""CircularEval and VanillaEval from one set of letters (VLMEvalKit, vlmeval/dataset/utils/multiple_choice.py).

A question counts in CircularEval when it is answered rightly in every rotation of its options; VanillaEval looks at the first order
only. Letters that no rule and no judge decided are counted, not guessed: each score carries the bounds between which they would move it.
The lower bound is VLMEvalKit's own score without a judge (`exact_matching`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dreambench.errors import DataError
from dreambench_tasks.mmbench.data import ROTATION, Row

__all__ = [
    "ABBREVIATIONS",
    "Tally",
    "Unit",
    "circular_units",
    "copy_units",
    "official_table",
    "tallies",
    "vanilla_units",
]

ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "attribute_reasoning": "AR",
    "relation_reasoning": "RR",
    "logic_reasoning": "LR",
}


@dataclass(frozen=True)
class Unit:
    """What is counted once: `hit` is None while a letter that could still decide it is undecided. `row` names its groups."""

    row: Row
    hit: bool | None


@dataclass(frozen=True)
class Tally:
    """Units of one group. `lower` and `upper` are the shares if every undecided unit were wrong, or right; 0 to 1."""

    right: int
    wrong: int
    undecided: int

    @property
    def n(self) -> int:
        return self.right + self.wrong + self.undecided

    @property
    def lower(self) -> float:
        return self.right / self.n

    @property
    def upper(self) -> float:
        return (self.right + self.undecided) / self.n


Letters = Mapping[int, str | None]


def copy_units(
    rows: Sequence[Row], letters: Letters, incomplete: Literal["error", "judge-present"] = "error"
) -> list[Unit]:
    """Every row on its own. `letters` maps index to the letter given, None where undecided.

    With `incomplete` "judge-present" rows without a letter are left out, as VLMEvalKit does: a question then has fewer rotations to
    pass. This makes a score easier, so it belongs into the protocol's name.

    Raises:
        DataError: a row has no letter (unless judge-present), a letter has no row, or a row has no answer to compare with.
    """
    missing = [row.index for row in rows if row.index not in letters]
    unknown = set(letters) - {row.index for row in rows}
    if unknown:
        raise DataError(f"{len(unknown)} predictions belong to no row, for instance index {min(unknown)}")
    if missing and incomplete == "error":
        raise DataError(
            f"{len(missing)} rows have no prediction, for instance index {missing[0]}; --protocol judge-present scores the rest under "
            "its own protocol"
        )
    units: list[Unit] = []
    for row in rows:
        if row.index in letters:
            if row.answer is None:
                raise DataError(
                    f"index {row.index} has no answer in the data: export a server submission instead of a score"
                )
            letter = letters[row.index]
            units.append(Unit(row, None if letter is None else letter == row.answer))
    return units


def vanilla_units(copies: Iterable[Unit]) -> list[Unit]:
    """The first order of every question."""
    return [unit for unit in copies if unit.row.rotation == 0]


def circular_units(copies: Iterable[Unit], incomplete: Literal["error", "judge-present"] = "error") -> list[Unit]:
    """One unit per question: right if every copy is right, wrong as soon as one is wrong.

    A question whose first order is absent is left out with "judge-present".

    Raises:
        DataError: a question has not as many copies as options (unless judge-present).
    """
    groups: defaultdict[int, dict[int, Unit]] = defaultdict(dict)
    for unit in copies:
        groups[unit.row.base][unit.row.rotation] = unit
    if incomplete == "error":
        _require_complete(groups)
    return [
        Unit(group[0].row, _all_right([unit.hit for unit in group.values()])) for group in groups.values() if 0 in group
    ]


def _require_complete(groups: Mapping[int, Mapping[int, Unit]]) -> None:
    for base, group in groups.items():
        wanted = set(range(len(next(iter(group.values())).row.options)))
        if set(group) != wanted:
            missing = (
                ", ".join(str(base + rotation * ROTATION) for rotation in sorted(wanted - set(group)))
                or "none, but has others"
            )
            raise DataError(
                f"CircularEval needs one copy per option of every question; question {base} lacks index {missing}: "
                "--protocol judge-present judges what is there under its own protocol"
            )


def _all_right(hits: Sequence[bool | None]) -> bool | None:
    if False in hits:
        return False
    return None if None in hits else True


def tallies(units: Sequence[Unit]) -> dict[str | None, Tally]:
    """Counts over all units (key None) and by group: ``split=…``, ``l2_category=…``, ``category=…``, sorted; empty cells form none."""
    counted: defaultdict[str | None, list[bool | None]] = defaultdict(list)
    for unit in units:
        counted[None].append(unit.hit)
        for name in ("split", "l2_category", "category"):
            if value := getattr(unit.row, name):
                counted[f"{name}={value}"].append(unit.hit)
    order = ("split", "l2_category", "category")
    keys = sorted(counted, key=lambda key: (-1, "") if key is None else (order.index(key.partition("=")[0]), key))
    return {key: _tally(counted[key]) for key in keys}


def _tally(hits: Sequence[bool | None]) -> Tally:
    return Tally(right=hits.count(True), wrong=hits.count(False), undecided=hits.count(None))


def official_table(units: Sequence[Unit]) -> dict[str, dict[str, float | None]]:
    """VLMEvalKit's table without a judge: by split (``none`` without splits) and ``pooled``, the share right, undecided counted wrong.

    Names are Overall, the l2-categories (abbreviated) and the categories; None where a split has no question of that name.
    """
    splits = sorted({unit.row.split or "none" for unit in units})
    table: dict[str, dict[str, float | None]] = {}
    for split in (*splits, "pooled"):
        chosen = [unit for unit in units if split in ("pooled", unit.row.split or "none")]
        shares: dict[str, float | None] = {"Overall": _share(chosen)}
        for name in ("l2_category", "category"):
            for value in _values(units, name):
                members = [unit for unit in chosen if getattr(unit.row, name) == value]
                shares[ABBREVIATIONS.get(value, value)] = _share(members)
        table[split] = shares
    return table


def _values(units: Sequence[Unit], name: str) -> list[str]:
    return sorted({getattr(unit.row, name) for unit in units} - {""})


def _share(units: Sequence[Unit]) -> float | None:
    return _tally([unit.hit for unit in units]).lower if units else None
