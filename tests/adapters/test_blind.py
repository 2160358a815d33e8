"""The blind guesser learns from training answers only and never looks at an image."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from adapters.images_for_tests import image

from dreambench.adapters.blind import BlindGuesser, most_frequent, question_type
from dreambench.documents import Document, Text, document_text
from dreambench.errors import DataError, UsageError
from dreambench.interfaces import ModelOptions
from dreambench.requests import Request


def load(path: Path) -> BlindGuesser:
    return BlindGuesser(ModelOptions("blind", str(path)))


def annotations(path: Path, split: str = "train2014") -> Path:
    given = [("how many", "2"), ("how many", "3"), ("how many", "2"), ("how many people are", "4"), ("is the", "yes")]
    given += [("none of the above", "left"), ("is the", "no")]
    body = {
        "data_subtype": split,
        "annotations": [{"question_type": type_, "multiple_choice_answer": answer} for type_, answer in given],
    }
    path.write_bytes(gzip.compress(json.dumps(body).encode()))
    return path


def guess(model: BlindGuesser, *document: str) -> str:
    parts: Document = (image(1), *map(Text, document))
    (response,) = model.answer([Request("1", "generate_text", parts)])
    return document_text(response.document)


def test_the_answer_is_the_most_frequent_of_the_question_s_type(tmp_path: Path) -> None:
    model = load(annotations(tmp_path / "annotations.json.gz"))
    assert guess(model, "How many cups are there?\nAnswer the question using a single word.") == "2"
    assert guess(model, "Look at the image. Question: how many  people are here? Short answer:") == "4"
    assert guess(model, "Is the door open?") == "no"
    assert guess(model, "Which way?") == "left"
    assert guess(model, "Describe it.") == "left"


def test_types_are_first_words_and_ties_are_alphabetical() -> None:
    types = ["is", "is the", "how many"]
    assert question_type("Is there one?", types) == "is"
    assert question_type("island or not?", types) == "none of the above"
    assert question_type("Is the cat? How many?", types) == "how many"
    assert most_frequent([("a", "y"), ("a", "x"), ("b", "x")]) == {"a": "x", "b": "x", "none of the above": "x"}


def test_only_training_answers_are_accepted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="those of train"):
        load(annotations(tmp_path / "val.json.gz", "val2014"))
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"question_type": "what color", "answer": "red"}\n', encoding="utf-8")
    assert guess(load(lines), "What color is it?") == "red"
    for text in ("", "{}", '{"question_type": "x"}\n', "words", '{"question_type": "x", "answer": 3}'):
        lines.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="blind:"):
            load(lines)
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="blind:FILE"):
        BlindGuesser(ModelOptions("blind"))
