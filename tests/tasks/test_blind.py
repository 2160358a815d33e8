"""The majority-answer baseline learns from training answers only, opens no image, and answers every comprehension benchmark."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import PIL.Image
import pytest

import dreambench
from dreambench.documents import Document, Image, Text, document_text
from dreambench.errors import DataError, UsageError
from dreambench.interfaces import ModelOptions
from dreambench.requests import Request
from dreambench_tasks import playground
from dreambench_tasks.blind import Blind, majority_answers, question_type

PAIRS = [("how many", "2"), ("how many", "3"), ("how many", "2"), ("how many people are", "4"), ("is the", "yes")]
PAIRS += [("none of the above", "left"), ("is the", "no"), ("what color", "red")]


def annotations(path: Path, split: str = "train2014") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"question_type": type_, "multiple_choice_answer": answer} for type_, answer in PAIRS]
    text = json.dumps({"data_subtype": split, "annotations": entries}).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def load(path: Path) -> Blind:
    return Blind(ModelOptions("blind", str(path)))


def answer(model: Blind, *texts: str) -> str:
    document: Document = (Image("/nowhere/at/all.jpg"), *map(Text, texts))
    (response,) = model.answer([Request("1", "generate_text", document)])
    return document_text(response.document)


def test_the_answer_is_the_most_frequent_one_of_the_question_s_type(tmp_path: Path) -> None:
    model = load(annotations(tmp_path / "annotations.json.gz"))
    assert answer(model, "How many cups are there?\nAnswer the question using a single word.") == "2"
    assert answer(model, "Look at the image. Question: how many  people are here? Short answer:") == "4"
    assert answer(model, "Is the door open?") == "no"
    assert answer(model, "Which way?") == "left"
    assert answer(model, "Describe it.") == "left"


def test_types_are_first_words_and_ties_are_alphabetical() -> None:
    types = ["is", "is the", "how many"]
    assert question_type("Is there one?", types) == "is"
    assert question_type("island or not?", types) == "none of the above"
    assert question_type("Is the cat? How many?", types) == "how many"
    assert majority_answers([("a", "y"), ("a", "x"), ("b", "x")]) == {"a": "x", "b": "x", "none of the above": "x"}


def test_it_remembers_how_it_was_asked_for(tmp_path: Path) -> None:
    path = annotations(tmp_path / "annotations.json")
    assert load(path).options.location == str(path)


def test_of_lettered_options_the_one_that_equals_the_answer_is_chosen(tmp_path: Path) -> None:
    model = load(annotations(tmp_path / "data" / "v2_mscoco_train2014_annotations.json").parent)
    options = "A. 3\nB. 2\nC. 4\nAnswer with the option's letter from the given choices directly."
    assert answer(model, f"How many cups?\n{options}") == "B"
    assert answer(model, f"What color is it?\n{options}") == "A"


def test_no_argument_is_ignored(tmp_path: Path) -> None:
    path = str(annotations(tmp_path / "annotations.json"))
    with pytest.raises(UsageError, match=r"split.*accepted: none"):
        Blind(ModelOptions("blind", path, {"split": "val"}))


def test_only_training_answers_are_accepted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither v2_mscoco_train2014_annotations"):
        load(annotations(tmp_path / "val" / "v2_mscoco_val2014_annotations.json", "val2014").parent)
    for path in (tmp_path / "plain" / "annotations.json", tmp_path / "val.json.gz"):
        with pytest.raises(DataError, match="those of train"):
            load(annotations(path, "val2014"))
    with pytest.raises(DataError, match=r"blind:.*cannot be read"):
        load(tmp_path / "nowhere")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"question_type": "what color", "answer": "red"}\n', encoding="utf-8")
    assert answer(load(lines), "What color is it?") == "red"
    for text in ("", "{}", '{"question_type": "x"}\n', "words", '{"question_type": "x", "answer": 3}'):
        lines.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="blind:"):
            load(lines)


def test_its_identity_is_what_it_learnt_not_where_from(tmp_path: Path) -> None:
    first = load(annotations(tmp_path / "a" / "annotations.json"))
    assert first.identity() == load(annotations(tmp_path / "b" / "annotations.json")).identity()
    assert first.identity() != Blind(ModelOptions("blind")).identity()


def test_it_needs_no_images(tmp_path: Path) -> None:
    data = playground.write(tmp_path / "world", n=60, formats=["vqav2"])
    for image in (data / "val2017").iterdir():
        image.unlink()
    result = dreambench.run("vqav2", "blind", data=data, out=tmp_path / "runs")
    assert result.scores[0].n == 120
    assert 5 < (result.scores[0].value or 0) < 70


def images(model: Blind, *texts: str, seed: int = 0, **settings: object) -> list[bytes]:
    request = Request("1", "generate_image", tuple(map(Text, texts)), settings, seed)
    (response,) = model.answer([request])
    return [part.read() for part in response.document if isinstance(part, Image)]


def test_a_caption_is_answered_by_a_training_image_that_has_nothing_to_do_with_it() -> None:
    model = Blind(ModelOptions("blind"))
    training = playground.ensure_default(split="train") / "train2017"
    known = {path.read_bytes() for path in training.iterdir()}
    assert images(model, "a red circle") == images(model, "two blue squares")
    assert len({*images(model, "a red circle"), *images(model, "a red circle", seed=7)}) == 2
    four = images(model, "a red circle", candidates=4)
    assert len(set(four)) == 4
    assert known.issuperset(four)


def test_a_folder_of_training_images_answers_captions_only(tmp_path: Path) -> None:
    for name, colour in {"a": "red", "b": "blue"}.items():
        PIL.Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    model = Blind(ModelOptions("blind", str(tmp_path)))
    assert model.capabilities == {"generate_image"}
    assert images(model, "x", seed=3) == [(tmp_path / "b.png").read_bytes()]
    before = model.identity()
    annotations(tmp_path / "annotations.json")
    both = Blind(ModelOptions("blind", str(tmp_path)))
    assert both.capabilities == {"generate_image", "generate_text"}
    with_answers = both.identity()
    assert with_answers != before
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert Blind(ModelOptions("blind", str(tmp_path))).identity() != with_answers
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"neither v2_mscoco_train2014_annotations.* nor images"):
        Blind(ModelOptions("blind", str(empty)))


def test_its_clip_score_is_that_of_shuffled_captions_and_its_documents_show_the_floor_of_image_metrics(
    tmp_path: Path,
) -> None:
    data = playground.write(tmp_path / "world", n=40, formats=["coco"])
    run = dreambench.run("coco_fid", "blind", data=data, features="playground-clip", out=tmp_path)
    (clip,) = [score for score in run.scores if score.metric == "clip_score[playground-clip]"]
    assert any("no better than with captions of other images" in note for note in clip.notes)
    run = dreambench.run("interleaved", "blind", protocol=["free"], limit=8, out=tmp_path)
    scores = {score.metric: score for score in run.scores}
    assert scores["fd[playground-clip]"].value is None
    assert scores["images"].value == scores["image_count_match"].value == 0
    assert (scores["words"].value or 0) > 10
