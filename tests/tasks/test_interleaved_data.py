"""Reference documents: every form gives the same documents, and what is broken is named by file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adapters.images_for_tests import image_bytes

from dreambench.documents import Image, Text
from dreambench.errors import DataError
from dreambench_tasks import playground
from dreambench_tasks.interleaved.data import ReferenceDocument, read_documents
from dreambench_tasks.playground.stories import TOPICS

SENTENCES = ["A story.", "A cat sleeps.", "Then it wakes.", "The end."]
MMC4 = {
    "text_list": SENTENCES,
    "image_info": [
        {"image_name": "b.png", "matched_text_index": 2, "matched_sim": 0.3},
        {"image_name": "a.png", "matched_text_index": 1, "matched_sim": 0.3},
    ],
}
PLAIN = {
    "id": "cat",
    "topic": "cats",
    "instruction": "Tell a story about a cat.",
    "document": [
        {"text": "A story. A cat sleeps."},
        {"image": "a.png"},
        {"text": "Then it wakes."},
        {"image": "b.png"},
        {"text": "The end."},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(image_bytes(number))
    return tmp_path


def write(path: Path, *records: Any) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(path.stem, text)
    else:
        path.write_bytes(text)
    return path


def parts(document: ReferenceDocument) -> list[str]:
    return [part.text if isinstance(part, Text) else Path(part.path or "").name for part in document.document]


@pytest.mark.parametrize("name", ["shard.jsonl", "shard.jsonl.gz", "shard.jsonl.zip"])
def test_mmc4_images_follow_their_sentences(folder: Path, name: str) -> None:
    write(folder / name, MMC4)
    write(folder / "topics.json", {"shard-1": "cats"})
    data = read_documents(folder)
    (document,) = data.documents
    assert data.form == "mmc4"
    assert (document.id, document.topic, document.instruction) == ("shard-1", "cats", "")
    assert parts(document) == ["A story. A cat sleeps.", "a.png", "Then it wakes.", "b.png", "The end."]
    assert document.matched == ("A cat sleeps.", "Then it wakes.")


def test_topics_that_are_no_file_are_not_overlooked(folder: Path) -> None:
    write(folder / "shard.jsonl", MMC4)
    (folder / "topics.json").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"topics\.json"):
        read_documents(folder)
    (folder / "topics.json").unlink()
    (folder / "topics.json").mkdir()
    with pytest.raises(DataError, match=r"topics\.json"):
        read_documents(folder)


def test_the_plain_form_equals_mmc4_with_an_instruction(folder: Path) -> None:
    plain = read_documents(write(folder / "documents.jsonl", PLAIN)).documents[0]
    record = {**MMC4, "id": "cat", "topic": "cats", "instruction": PLAIN["instruction"]}
    assert read_documents(write(folder / "other.jsonl", record)).documents == [plain]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_obelics_finds_the_files_of_urls(folder: Path, suffix: str) -> None:
    url = "https://example.org/a.png?x=1"
    (folder / "images").mkdir()
    (folder / "images" / f"{hashlib.sha256(url.encode()).hexdigest()}.png").write_bytes(image_bytes(1))
    record = {"images": [None, url, None], "texts": [" Look. A cat. ", None, "It sleeps."], "metadata": "{}"}
    path = folder / f"shard.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist([record]), path)
    else:
        write(path, record)
    data = read_documents(folder)
    assert data.form == "obelics"
    assert [part for part in parts(data.documents[0]) if "." in part][::2] == ["Look. A cat.", "It sleeps."]
    assert data.documents[0].matched == ("A cat.",)


def test_the_playgrounds_training_format_and_its_documents_agree(tmp_path: Path) -> None:
    playground.write(tmp_path / "d", n=40, formats=["documents"])
    playground.write(tmp_path / "i", n=40, formats=["instructions"])
    documents, instructions = read_documents(tmp_path / "d"), read_documents(tmp_path / "i")
    assert instructions.form == "instructions"
    for ours, theirs in zip(documents.documents, instructions.documents, strict=True):
        assert [part for part in ours.document if isinstance(part, Text)] == [
            part for part in theirs.document if isinstance(part, Text)
        ]
        assert (ours.topic, ours.instruction, ours.matched) == (theirs.topic, theirs.instruction, theirs.matched)
        assert [image.read() for image in ours.images] == [image.read() for image in theirs.images]


def test_the_embedded_documents_are_enough_and_hold_their_scenes() -> None:
    documents = read_documents(playground.ensure_documents()).documents
    assert len(documents) >= 200
    assert sum(len(document.images) for document in documents) >= 400
    assert {document.topic for document in documents} == set(TOPICS)
    for document in documents:
        assert len(document.truth["scenes"]) == len(document.images) == len(document.matched)
        told = [document.truth["sentences"][index] for index in document.truth["matched"]]
        assert list(document.matched) == told
        asked = {"one": 1, "two": 2, "three": 3}
        counts = [n for word, n in asked.items() if f"{word} pictures" in document.instruction]
        single = len(document.images) == 1
        assert document.expected_images == (1 if single else counts[0] if counts else None)
        assert document.expected_images in (None, len(document.images))


def test_documents_without_images_are_counted_and_named(folder: Path) -> None:
    bare = {**PLAIN, "id": "bare", "document": [{"text": "Words."}]}
    lost = {**PLAIN, "id": "lost", "document": [{"text": "Words."}, {"image": "c.png"}, {"image": "a.png"}]}
    data = read_documents(write(folder / "documents.jsonl", bare, PLAIN, lost))
    assert [document.id for document in data.documents] == ["cat"]
    assert data.left_out == {"no images": ["bare"], "missing images": ["lost"]}
    with pytest.raises(DataError, match=r"no document with images in it: 1 with missing images \(first lost\)"):
        read_documents(write(folder / "documents.jsonl", lost))


def changed(**fields: Any) -> dict[str, Any]:
    return {**PLAIN, **fields}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed(document=[{"image": "../secret.png"}]), "not a path within its folder"),
        (changed(document=[{"image": "/etc/passwd"}]), "not a path within its folder"),
        (changed(document=[{"image": "..\\secret.png"}]), "not a path within its folder"),
        (changed(document=[{"image": "a\0.png"}]), "not a path within its folder"),
        (changed(document=[{"image": "a" * 5000}]), "not a path within its folder"),
        (changed(document=[{"image": 7}]), "must be a file name"),
        (changed(document=[{"text": "x", "image": "a.png"}]), "is neither"),
        (changed(document=[["a.png"]]), "is neither"),
        (changed(document="a.png"), "must be a list"),
        (changed(document=[{"text": "\ud800"}, {"image": "a.png"}]), "surrogate"),
        (changed(id=None), "id must be"),
        (changed(id=True), "id must be"),
        (changed(id=" "), "id must be"),
        (changed(topic=["cats"]), "topic must be a text"),
        (changed(instruction=" "), "its instruction is empty"),
        (changed(instruction=3), "instruction must be a text"),
        (changed(expected_images=-1), "expected_images must be"),
        (changed(matched=["one"]), "one text for each image"),
        (PLAIN, "a second document with the id cat"),
        ({"texts": ["a"], "images": ["b.png"], "document": []}, "it has no id"),
        ({"text": "a"}, "not a document of a known form"),
        (["a"], "not a document of a known form"),
        (MMC4, "a record of mmc4 after records of documents"),
    ],
)
def test_a_broken_record_is_named_by_file_and_line(folder: Path, record: Any, message: str) -> None:
    path = write(folder / "documents.jsonl", PLAIN, record)
    with pytest.raises(DataError, match=message) as caught:
        read_documents(path)
    assert f"{path}, line 2: " in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["image_info"][0].update(matched_text_index=4), "matched_text_index"),
        (lambda r: r["image_info"][0].update(matched_text_index=True), "matched_text_index"),
        (lambda r: r["image_info"][0].pop("image_name"), "must be a file name"),
        (lambda r: r.update(text_list=["a", None]), "text_list must be a list of texts"),
    ],
)
def test_a_broken_record_of_mmc4(folder: Path, change: Callable[[Any], Any], message: str) -> None:
    record = json.loads(json.dumps(MMC4))
    change(record)
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        read_documents(write(folder / "shard.jsonl", record))


def test_files_that_cannot_be_read_say_so(folder: Path) -> None:
    for name, data in {"a.parquet": b"PAR1", "b.jsonl": b"{", "c.jsonl.zip": b"PK", "d.jsonl.gz": b"\x1f\x8b0"}.items():
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            read_documents(folder / name)
    with pytest.raises(DataError, match="no such file or folder"):
        read_documents(folder / "nowhere")
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no documents\.jsonl"):
        read_documents(empty)


def test_images_may_lie_elsewhere_and_links_lead_nowhere(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = write(elsewhere / "documents.jsonl", PLAIN)
    images = read_documents(path, folder).documents[0].images
    assert images == [Image(path=str(folder / name)) for name in ("a.png", "b.png")]
    for name in ("a.png", "b.png"):
        (elsewhere / name).symlink_to(folder / name)
    with pytest.raises(DataError, match="not a path within its folder"):
        read_documents(path)
    (elsewhere / "a.png").unlink()
    (elsewhere / "a.png").symlink_to("a.png")
    with pytest.raises(DataError, match="not a path within its folder"):
        read_documents(path)
