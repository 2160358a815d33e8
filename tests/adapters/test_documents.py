"""documents: what was written elsewhere is the answer, image bytes unchanged, and what is broken is counted by its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from adapters.images_for_tests import image_bytes

from dreambench.adapters.precomputed import Documents
from dreambench.documents import Image, Text
from dreambench.errors import DataError, UsageError
from dreambench.interfaces import ModelOptions
from dreambench.requests import Request, Response


def load(folder: Path, *records: Any) -> Documents:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "documents.jsonl").write_text(lines, encoding="utf-8")
    return Documents(ModelOptions("documents", str(folder)))


def ask(model: Documents, id_: str, group: str | None = None) -> Response:
    (response,) = model.answer([Request(id_, "generate_interleaved", (Text("A story."),), group=group)])
    return response


def record(id_: str, *images: str) -> dict[str, Any]:
    return {"id": id_, "document": [{"text": "A cat."}, *({"image": name} for name in images)]}


def test_a_document_is_found_by_sample_id_or_document_id_with_unchanged_bytes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jpg").write_bytes(image_bytes(0, form="JPEG"))
    model = load(tmp_path, record("free/cat/1", "deep/a.jpg"), record("cat"))
    by_id, by_document = ask(model, "free/cat/1", "cat"), ask(model, "free/cat/0", "cat")
    assert by_id.details == {"matched_by": "id"}
    assert by_document.details == {"matched_by": "document"}
    assert by_document.document == (Text("A cat."),)
    text, image = by_id.document
    assert text == Text("A cat.")
    assert isinstance(image, Image)
    assert image.read() == (tmp_path / "deep" / "a.jpg").read_bytes()


def test_missing_and_broken_documents_are_typed_errors(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "a.gif").write_bytes(image_bytes(0, form="GIF"))
    records = [record(name, name) for name in ("broken.png", "gone.png", "a.gif")]
    model = load(tmp_path, *records)
    errors = {id_: ask(model, id_).error for id_ in ("broken.png", "gone.png", "a.gif", "dog")}
    assert {id_: error and error.type for id_, error in errors.items()} == {
        "broken.png": "broken-image",
        "gone.png": "no-image",
        "a.gif": "broken-image",
        "dog": "no-answer",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (record("a", "../a.png"), "not a path within the folder"),
        (record("a", "/a.png"), "not a path within the folder"),
        (record("a", "a\0.png"), "not a path within the folder"),
        (record("a", "a" * 5000), "not a path within the folder"),
        (record("a", "."), "not a path within the folder"),
        ({"id": "a", "document": [{"image": ["a.png"]}]}, "not a path within the folder"),
        ({"id": "a", "document": [{"text": 1}]}, "is neither"),
        ({"id": "a", "document": [{"text": "\ud800"}]}, "surrogate"),
        ({"id": 1, "document": []}, "not of the form"),
        ({"id": "a"}, "not of the form"),
        (record("first"), "a second document"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"documents.jsonl, line 2: .*{message}"):
        load(tmp_path, record("first"), line)


def test_the_identity_covers_texts_and_images_but_not_the_folder(tmp_path: Path) -> None:
    found: list[Any] = []
    for number, name in enumerate(("one", "two", "three")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.png").write_bytes(image_bytes(number // 2))
        found.append(load(folder, record("cat", "a.png")).identity())
    assert found[0] == found[1] != found[2]


def test_a_folder_without_documents_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no documents\.jsonl"):
        Documents(ModelOptions("documents", str(tmp_path)))
    with pytest.raises(UsageError, match="documents:DIR"):
        Documents(ModelOptions("documents"))
