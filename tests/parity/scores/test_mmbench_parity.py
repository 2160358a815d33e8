"""`golden/scores/mmbench`: VLMEvalKit's letters, hits and tables without a judge, against ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parity.checks import Check, Exempt, leaves, problems, score_folder, uncovered, unnoticed

from dreambench_tasks.mmbench.data import MMBench, load, read_predictions
from dreambench_tasks.mmbench.scoring import (
    Extraction,
    Unit,
    circular_units,
    copy_units,
    extract_choice,
    vanilla_units,
)

FOLDER = score_folder("mmbench")

TOLERANCE = 1e-9  # the fixtures' README
EXEMPT = [
    Exempt("*.jsonl:*/index", "names the item"),
    Exempt("*.jsonl:*/form", "says what each prediction tries"),
    Exempt("*.jsonl:*/legacy_2023_inferred", "the older rules, recorded for information only"),
    Exempt("expected*.json:dropped_indices", "an input"),
]


ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "attribute_reasoning": "AR",
    "relation_reasoning": "RR",
    "logic_reasoning": "LR",
}


def official_table(units: Sequence[Unit]) -> dict[str, dict[str, float | None]]:
    """VLMEvalKit's table without a judge: by split (``none`` without splits) and ``pooled``, the share right, undecided counted wrong.

    Names are Overall, the l2-categories (abbreviated) and the categories; None where a split has no question of that name.
    """

    def share(members: Sequence[Unit]) -> float | None:
        return sum(unit.hit is True for unit in members) / len(members) if members else None

    table: dict[str, dict[str, float | None]] = {}
    for split in (*sorted({unit.row.split or "none" for unit in units}), "pooled"):
        chosen = [unit for unit in units if split in ("pooled", unit.row.split or "none")]
        table[split] = {"Overall": share(chosen)}
        for name in ("l2_category", "category"):
            for value in {getattr(unit.row, name) for unit in units} - {""}:
                members = [unit for unit in chosen if getattr(unit.row, name) == value]
                table[split][ABBREVIATIONS.get(value, value)] = share(members)
    return table


def inputs(folder: Path) -> tuple[MMBench, dict[str, str]]:
    (table,) = folder.glob("*.tsv")
    (predictions,) = (path for path in folder.glob("*.jsonl") if not path.name.startswith("expected"))
    return load(table), read_predictions(predictions)


def recorded(folder: Path) -> dict[str, Any]:
    """The content of every expected file; JSON lines as a dictionary by index."""
    files: dict[str, Any] = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("expected*.json"))}
    for path in sorted(folder.glob("expected*.jsonl")):
        items = [json.loads(line) for line in path.read_text().split("\n") if line]
        files[path.name] = {str(item["index"]): item for item in items}
    return files


def item_checks(
    file: str, items: dict[str, Any], copies: dict[int, Unit], found: dict[int, Extraction]
) -> Iterator[Check]:
    for key, item in items.items():
        unit, extraction = copies[int(key)], found[int(key)]
        ours = {
            "inferred": extraction.letter,
            "via": extraction.via,
            "gt": unit.row.answer,
            "vanilla_hit": int(unit.hit is True),
            "goes_to_judge": extraction.letter is None,
        }
        for name in item.keys() & ours.keys():
            yield Check(f"{file}:{key}/{name}", item[name], ours[name])


def score_checks(file: str, expected: dict[str, Any], data: MMBench, letters: dict[int, str | None]) -> Iterator[Check]:
    # Where rows are dropped, VLMEvalKit judges the others, and leaves out a question whose first order is dropped. Our task refuses.
    dropped = set(expected.get("dropped_indices", []))
    copies = copy_units([row for row in data.rows if row.index not in dropped], letters)
    circular = circular_units(unit for unit in copies if unit.row.base not in dropped)
    ours = {"CircularEval": circular, "VanillaEval_circ0": vanilla_units(copies), "VanillaEval_all_copies": copies}
    for name, units in ours.items():
        table = official_table(units)
        assert set(expected[name]["by_split"]) == set(table) - {"pooled"}
        for split, values in [*expected[name]["by_split"].items(), ("pooled", expected[name]["pooled"])]:
            path = split if split == "pooled" else f"by_split/{split}"
            assert set(values) == set(table[split])
            for group, value in values.items():
                atol = 0 if value is None else TOLERANCE
                yield Check(f"{file}:{name}/{path}/{group}", value, table[split][group], atol=atol)
    yield Check(f"{file}:n_groups", expected["n_groups"], len(circular))
    yield Check(f"{file}:n_rows", expected["n_rows"], len(copies))
    yield Check(f"{file}:n_judge_rows", expected["n_judge_rows"], sum(unit.hit is None for unit in copies))
    hits = {str(unit.row.index): int(unit.hit is True) for unit in circular}
    assert set(hits) == set(expected["circular_hit"])
    for index, hit in expected["circular_hit"].items():
        yield Check(f"{file}:circular_hit/{index}", hit, hits[index])


def checks(folder: Path) -> list[Check]:
    data, predictions = inputs(folder)
    found = {row.index: extract_choice(predictions[str(row.index)], row.options) for row in data.rows}
    letters = {index: extraction.letter for index, extraction in found.items()}
    copies = {unit.row.index: unit for unit in copy_units(data.rows, letters)}
    compared: list[Check] = []
    for file, content in recorded(folder).items():
        if file.endswith(".jsonl"):
            compared += item_checks(file, content, copies, found)
        else:
            compared += score_checks(file, content, data, letters)
    return compared


def test_every_recorded_letter_and_score_is_ours() -> None:
    assert problems(checks(FOLDER)) == []


def test_every_recorded_value_is_compared_or_exempt() -> None:
    keys = [key for file, content in recorded(FOLDER).items() for key in leaves(content, file)]
    assert uncovered(keys, checks(FOLDER), EXEMPT) == []


def test_an_error_of_ten_tolerances_is_seen() -> None:
    assert unnoticed(checks(FOLDER)) == []
