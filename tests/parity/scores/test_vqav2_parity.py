"""`golden/scores/vqav2`: the official evaluator's output (and DreamLLM's copy's) against ours, in every question and every table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parity.checks import Check, Exempt, leaves, problems, score_folder, uncovered, unnoticed

from dreambench_tasks.vqav2 import data
from dreambench_tasks.vqav2.scoring import RULES, Rule, accuracy, clean, compared, percent, rounded

FOLDER = score_folder("vqav2")

EXEMPT = [Exempt("*tags.json:*", "says what each question tries; no score")]
# normalized.json records the textbook leave-one-out count, by position.
STANDARD = Rule("standard", leave_out_by_record=False)
OUTPUTS = {"expected.json": RULES["official"], "expected_dreamllm_variant.json": RULES["dreamllm-evaluator"]}


def sets(folder: Path) -> list[str]:
    """The prefixes of the data sets: '' of questions.json, 'noid_' of noid_questions.json."""
    return sorted(path.name.removesuffix("questions.json") for path in folder.glob("*questions.json"))


def table_checks(key: str, recorded: Any, ours: Any) -> Iterator[Check]:
    """Every recorded leaf; a table that is missing on either side is a difference."""
    if isinstance(recorded, dict) and recorded:
        ours = {str(name): value for name, value in ours.items()} if isinstance(ours, dict) else {}
        separator = "/" if ":" in key else ":"
        for name, value in recorded.items():
            yield from table_checks(f"{key}{separator}{name}", value, ours.get(name))
    else:
        yield Check(key, recorded, ours)


def accuracies(annotations: dict[int, data.Annotation], answers: dict[str, str], rule: Rule) -> dict[int, float]:
    return {id_: accuracy(one.answers, answers[str(id_)], rule, one.records) for id_, one in annotations.items()}


def official_tables(annotations: dict[int, data.Annotation], answers: dict[str, str], rule: Rule) -> dict[str, Any]:
    """The official evaluator's own tables: percent, two decimals."""
    values = accuracies(annotations, answers, rule)
    by_question = {id_: rounded(100 * value, rule) for id_, value in values.items()}
    tables: dict[str, Any] = {
        "accuracy": {"overall": rounded(percent(list(values.values())), rule)},
        "evalQA": by_question,
    }
    for table, name, field in (
        ("evalQuesType", "perQuestionType", "question_type"),
        ("evalAnsType", "perAnswerType", "answer_type"),
    ):
        types = {id_: getattr(one, field) for id_, one in annotations.items()}
        members = {type_: [id_ for id_ in types if types[id_] == type_] for type_ in types.values()}
        tables[table] = {type_: {id_: by_question[id_] for id_ in ids} for type_, ids in members.items()}
        means = {type_: percent([values[id_] for id_ in ids]) for type_, ids in members.items()}
        tables["accuracy"][name] = {type_: rounded(mean, rule) for type_, mean in means.items()}
    return tables


def normalisation_checks(
    file: str, recorded: dict[str, Any], annotations: dict[int, data.Annotation], answers: dict[str, str]
) -> Iterator[Check]:
    for question, values in recorded.items():
        annotation = annotations[int(question)]
        references, prediction = compared(annotation.answers, answers[question], STANDARD)
        ours = {
            "processed": len(set(map(clean, annotation.answers))) > 1,
            "answers": references,
            "prediction": prediction,
            "matches": references.count(prediction),
            "accuracy": accuracy(annotation.answers, answers[question], STANDARD),
        }
        for name, value in values.items():
            yield Check(f"{file}:{question}/{name}", value, ours.get(name))


def checks(folder: Path) -> list[Check]:
    found: list[Check] = []
    for prefix in sets(folder):
        read = data.read_annotations(folder / f"{prefix}annotations.json")
        annotations = {annotation.question_id: annotation for annotation in read}
        answers = data.read_results(folder / f"{prefix}results.json")
        for name, rule in OUTPUTS.items():
            file = folder / f"{prefix}{name}"
            if file.exists():
                tables = official_tables(annotations, answers, rule)
                found += table_checks(file.name, json.loads(file.read_text()), tables)
        file = folder / f"{prefix}normalized.json"
        if file.exists():
            found += normalisation_checks(file.name, json.loads(file.read_text()), annotations, answers)
    return found


def test_every_recorded_score_is_ours() -> None:
    assert problems(checks(FOLDER)) == []


def test_every_recorded_value_is_compared_or_exempt() -> None:
    patterns = ("*expected*.json", "*normalized.json", "*tags.json")
    files = [path for pattern in patterns for path in sorted(FOLDER.glob(pattern))]
    keys = [key for path in files for key in leaves(json.loads(path.read_text()), path.name)]
    assert uncovered(keys, checks(FOLDER), EXEMPT) == []


def test_a_changed_value_is_seen() -> None:
    assert unnoticed(checks(FOLDER)) == []


def test_the_recorded_questions_load_as_a_folder() -> None:
    """questions.json + annotations.json is the smallest layout a user may have."""
    if "" not in sets(FOLDER):
        pytest.skip("no unprefixed set")
    pairs = list(data.load(FOLDER).pairs())
    assert pairs
    assert all(annotation and question.question_id == annotation.question_id for question, annotation in pairs)
