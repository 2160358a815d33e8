"""The blind guesser by its place: learns from training files only, opens no image, and answers every reading benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dreambench
from dreambench.documents import Document, Image, Text, document_text
from dreambench.errors import DataError
from dreambench.interfaces import ModelOptions
from dreambench.requests import Request
from dreambench_tasks import playground
from dreambench_tasks.blind import Blind


def folder(path: Path, name: str, split: str) -> Path:
    path.mkdir()
    given = [("how many", "2"), ("how many", "2"), ("how many", "3"), ("what color", "red"), ("is the", "no")]
    body = [{"question_type": type_, "multiple_choice_answer": answer} for type_, answer in given]
    (path / name).write_text(json.dumps({"data_subtype": split, "annotations": body}))
    return path


def guess(model: Blind, text: str) -> str:
    nowhere: Document = (Image("/nowhere/at/all.jpg"), Text(text))
    (response,) = model.answer([Request("1", "generate_text", nowhere)])
    return document_text(response.document)


def test_a_guess_is_open_or_the_letter_of_the_option_that_reads_so(tmp_path: Path) -> None:
    place = folder(tmp_path / "data", "v2_mscoco_train2014_annotations.json", "train2014")
    model = Blind(ModelOptions("blind", str(place)))
    assert guess(model, "How many cups?\nAnswer the question using a single word or phrase.") == "2"
    options = "A. 3\nB. 2\nC. 4\nAnswer with the option's letter from the given choices directly."
    assert guess(model, f"How many cups?\n{options}") == "B"
    assert guess(model, f"What color is it?\n{options}") == "A"


def test_only_training_files_teach(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no v2_mscoco_train2014_annotations"):
        Blind(ModelOptions("blind", str(folder(tmp_path / "val", "v2_mscoco_val2014_annotations.json", "val2014"))))
    with pytest.raises(DataError, match="those of train"):
        Blind(ModelOptions("blind", str(folder(tmp_path / "plain", "annotations.json", "val2014"))))


def test_what_it_learnt_is_its_identity_not_where(tmp_path: Path) -> None:
    one = Blind(ModelOptions("blind", str(folder(tmp_path / "a", "annotations.json", "train2014"))))
    other = Blind(ModelOptions("blind", str(folder(tmp_path / "b", "annotations.json", "train2014"))))
    assert one.identity() == other.identity()
    assert one.identity() != Blind(ModelOptions("blind")).identity()


def test_it_is_the_row_below_every_text_generation_score_without_an_image_in_reach(tmp_path: Path) -> None:
    data = playground.write(tmp_path / "world", n=60, formats=["vqav2"])
    for image in (data / "val2017").iterdir():
        image.unlink()
    result = dreambench.run("vqav2", "blind", data=data, out=tmp_path / "runs")
    assert result.scores[0].n == 120
    assert 5 < (result.scores[0].value or 0) < 70
