"""What the tools of `dreambench.human.forms` give back, as claims: somebody says that a rater gave an answer. Nothing is believed here.

JSON Lines with seals    the rater page's download, and the files of ``human serve``
JSON Lines               ``{"rater": ..., "item": ..., "question": ..., "answer": ...}``, and ``study`` and ``seconds`` if known
Label Studio             its export format JSON; Choices by alias or words, Rating, and Pairwise
Potato                   ``user_state.json`` or, exported, ``annotations.jsonl`` of version 2; ``annotated_instances.jsonl`` of version 1
                         in a folder that is named after the rater
Mechanical Turk          the results CSV of a batch

Only the first has seals, so that only there edits can be seen.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambench.documents import JSON
from dreambench.errors import DataError
from dreambench.files import parse_json
from dreambench.human.study import VOTES, Question, Study

__all__ = ["FORMS", "Claim", "read_claims"]

FORMS = "the rater page's or other JSON Lines, Label Studio's JSON, Potato's JSON or JSON Lines, Mechanical Turk's CSV"
CELL_BYTES = 1 << 30
"""A HIT holds everything that one rater sees; the csv module stops at 128 kB otherwise."""
SIDES = {"left": "a", "right": "b"}


@dataclass(frozen=True)
class Claim:
    """`fields` are those of a `Rating`, as far as the file has them; `where` names line or task, for the report."""

    where: str
    fields: Mapping[str, JSON]
    sealed: bool = False
    person: str = ""
    """Who gave the answer, where the tool knows it beside the rater for whom it was meant."""


def read_claims(file: Path, data: bytes, study: Study) -> tuple[str, list[Claim]]:
    """The form of a file by its content, and what it claims. Raises `DataError` for a file of no known form."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start}); ratings come as {FORMS}") from error
    start = text.lstrip()[:1]
    questions = {question.id: question for question in study.questions}
    if start == "[":
        return "Label Studio", list(_label_studio(file, text, questions))
    if start == "{" and '"instance_id_to_label_to_value"' in text:
        return "Potato", list(_potato_state(file, text, questions))
    if start == "{":
        return _json_lines(file, text, questions)
    if "Answer." in text.partition("\n")[0]:
        return "Mechanical Turk", list(_mechanical_turk(file, text, study, questions))
    raise DataError(f"{file} holds no ratings of a known form; they come as {FORMS}")


def _code(question: Question | None, value: JSON) -> JSON:
    """An answer's code from its code as text, or from its words."""
    if question is None or not isinstance(value, str) or value in VOTES:
        return value
    first = 1 if question.kind == "likert" else 0
    codes = {label: code for code, label in enumerate(question.labels, first)}
    codes |= {str(code): code for code in codes.values()}
    return codes.get(value, value) if question.kind != "pairwise" else SIDES.get(value, value)


# --- JSON Lines -------------------------------------------------------------------------------------------------------


def _json_lines(file: Path, text: str, questions: Mapping[str, Question]) -> tuple[str, list[Claim]]:
    """A line that is not JSON becomes a claim without fields: a crash may have torn it."""
    lines: list[tuple[str, dict[str, JSON]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = parse_json(line)
            except (ValueError, RecursionError):
                value = None
            lines.append((f"line {number}", value if isinstance(value, dict) else {}))
    keys = {key for _, value in lines for key in value}
    if "labels" in keys or "label_annotations" in keys:
        return "Potato", [claim for where, value in lines for claim in _potato(file, where, value, questions)]
    if not {"rater", "item", "question", "answer"} <= keys:
        raise DataError(f"{file} holds no ratings of a known form; they come as {FORMS}")
    if "seal" in keys:  # one seal is enough: taking the others away is an edit
        return "rater page", [Claim(where, value, sealed=True) for where, value in lines]
    return "JSON Lines, no seals", [Claim(where, _plain(value, questions)) for where, value in lines]


def _plain(line: Mapping[str, JSON], questions: Mapping[str, Question]) -> dict[str, JSON]:
    fields = {name: line[name] for name in ("study", "rater", "item", "question", "answer", "seconds") if name in line}
    question = _named(questions, line.get("question"))
    return fields | ({"answer": _code(question, line["answer"])} if "answer" in line else {})


def _named(questions: Mapping[str, Question], id_: JSON) -> Question | None:
    return questions.get(id_) if isinstance(id_, str) else None


def _potato(file: Path, where: str, line: Mapping[str, JSON], questions: Mapping[str, Question]) -> Iterator[Claim]:
    labels = line.get("labels", line.get("label_annotations"))
    if not isinstance(labels, dict):
        yield Claim(where, {})
        return
    ids = {"rater": line.get("user_id") or file.parent.name, "item": line.get("instance_id", line.get("id"))}
    for question, chosen in labels.items():
        names = list(chosen) if isinstance(chosen, dict) else [chosen]
        answer = _code(questions.get(question), names[0]) if len(names) == 1 else None
        yield Claim(where, {**ids, "question": question, "answer": answer})


def _potato_state(file: Path, text: str, questions: Mapping[str, Question]) -> Iterator[Claim]:
    """What Potato keeps of an annotator; its own export lags behind this by up to a minute, and for ever after the last answer."""
    try:
        state = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error})") from error
    stored = state.get("instance_id_to_label_to_value")
    for item, pairs in stored.items() if isinstance(stored, dict) else []:
        labels: dict[str, JSON] = {}
        for pair in pairs if isinstance(pairs, list) else []:
            label = pair[0] if isinstance(pair, list) and pair else None
            if isinstance(label, dict) and isinstance(label.get("schema"), str):
                labels.setdefault(label["schema"], {})[str(label.get("name"))] = True
        line = {"user_id": state.get("user_id"), "instance_id": item, "labels": labels or None}
        yield from _potato(file, f"item {item}", line, questions)


# --- Label Studio -----------------------------------------------------------------------------------------------------


def _label_studio(file: Path, text: str, questions: Mapping[str, Question]) -> Iterator[Claim]:
    try:
        tasks = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error})") from error
    if not all(isinstance(task, dict) and "annotations" in task for task in tasks):
        raise DataError(f"{file} has no annotations: export the project from Label Studio as JSON (not JSON-MIN)")
    for number, task in enumerate(tasks, 1):
        where = f"task {task.get('id', number)}"
        data = task.get("data")
        annotations = task["annotations"]
        if not isinstance(data, dict) or not isinstance(annotations, list):
            yield Claim(where, {})
            continue
        ids = {name: data[name] for name in ("study", "rater", "item") if name in data}
        for annotation in annotations:
            results = annotation.get("result") if isinstance(annotation, dict) else None
            if not isinstance(results, list):
                yield Claim(where, {})
            elif not annotation.get("was_cancelled"):  # skipped by the annotator: no answer
                by = annotation.get("completed_by")
                person = str(by.get("email", by.get("id"))) if isinstance(by, dict) else str(by)
                seconds = annotation.get("lead_time") or 0.0
                for result in results:
                    question, answer = _label_studio_answer(result, questions)
                    fields = {**ids, "question": question, "answer": answer, "seconds": seconds}
                    yield Claim(where, fields, person=person)


def _label_studio_answer(result: JSON, questions: Mapping[str, Question]) -> tuple[JSON, JSON]:
    """(question, answer) of one control tag; None for what is not one answer."""
    if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
        return None, None
    question, value = result.get("from_name"), result["value"]
    chosen = value.get("choices", value.get("selected"))
    if isinstance(chosen, list):
        chosen = chosen[0] if len(chosen) == 1 else None
    if not isinstance(chosen, str):  # a choice is its words or its alias; only stars are a number
        chosen = value.get("rating")
    return question, _code(_named(questions, question), chosen)


# --- Mechanical Turk --------------------------------------------------------------------------------------------------


def _mechanical_turk(file: Path, text: str, study: Study, questions: Mapping[str, Question]) -> Iterator[Claim]:
    """A row is an assignment; its time is shared out equally among its items. Rejected assignments are not ratings."""
    shown = {rater.id: max(1, len(rater.items)) for rater in study.raters}
    limit = csv.field_size_limit(CELL_BYTES)
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), 1):
            where = f"assignment {number}"
            if None in row or None in row.values():
                yield Claim(where, {})
                continue
            if row.get("AssignmentStatus") == "Rejected":
                continue
            ids = {name: row.get(f"Input.{name}") or row.get(f"Answer.{name}") for name in ("study", "rater")}
            seconds = _seconds(row.get("WorkTimeInSeconds")) / shown.get(str(ids["rater"]), 1)
            for name, value in _answers(row):
                item, _, question = name.partition(".")
                answer = _code(questions.get(question), value)
                fields = {**ids, "item": item, "question": question, "answer": answer, "seconds": seconds}
                yield Claim(where, fields, person=row.get("WorkerId") or "")
    except csv.Error as error:
        raise DataError(f"{file} is not CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _answers(row: Mapping[str, str]) -> Iterator[tuple[str, JSON]]:
    """``Answer.ITEM.QUESTION`` of an HTML form; ``Answer.taskAnswers`` of a form of Crowd HTML elements."""
    for column, value in row.items():
        name = column.removeprefix("Answer.")
        if name != column and "." in name and value:
            yield name, value
    try:
        forms: JSON = parse_json(row.get("Answer.taskAnswers") or "[]")
    except (ValueError, RecursionError):
        forms = []
    for form in forms if isinstance(forms, list) else []:
        for name, value in form.items() if isinstance(form, dict) else []:
            if "." in name:
                on: Sequence[Any] = (
                    [code for code, is_on in value.items() if is_on] if isinstance(value, dict) else [value]
                )
                yield name, on[0] if len(on) == 1 else None


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
