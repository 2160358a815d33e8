"""VQA accuracy written down plainly from its published definition, question by question: what the scorer must equal.

Nothing is shared with the scorer but the tables that define the metric, and nothing is memoised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dreambench_tasks.vqav2.scoring import TABLES

COMMA = re.compile(r"(\d)(,)(\d)", re.ASCII)
PERIOD = re.compile(r"(\.)(?!\d)", re.ASCII)


def stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def processed(text: str) -> str:
    out = text
    for mark in TABLES["punctuation"]:
        if (mark + " " in text or " " + mark in text) or re.search(COMMA, text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    out = PERIOD.sub("", out, count=32)
    words = []
    for word in out.lower().split():
        word = TABLES["number_words"].get(word, word)
        if word not in TABLES["articles"]:
            words.append(word)
    return " ".join(TABLES["contractions"].get(word, word) for word in words)


def accuracy(answers: Sequence[Mapping[str, Any]], prediction: str, *, substring: bool = False) -> float:
    """One question, from 0 to 1."""
    records = [{**answer, "answer": stripped(answer["answer"])} for answer in answers]
    prediction = stripped(prediction)
    if len({record["answer"] for record in records}) > 1:
        records = [{**record, "answer": processed(record["answer"])} for record in records]
        prediction = processed(prediction)
    shares: list[float] = []
    for left_out in records:
        others = [record for record in records if record != left_out]
        matching = [
            other for other in others if (other["answer"] in prediction if substring else other["answer"] == prediction)
        ]
        shares.append(min(1, float(len(matching)) / 3))
    return float(sum(shares)) / len(shares)


def evaluate(annotations: Sequence[Mapping[str, Any]], predictions: Mapping[int, str]) -> list[float]:
    """The accuracy of every annotated question, in order."""
    return [accuracy(annotation["answers"], predictions[annotation["question_id"]]) for annotation in annotations]
