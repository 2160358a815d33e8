"""folder: images matched by name, their bytes unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapters.images_for_tests import image_bytes

from dreambench.adapters.precomputed import Folder
from dreambench.documents import Image, Text
from dreambench.errors import DataError, UsageError
from dreambench.interfaces import ModelOptions
from dreambench.requests import Request, Response


def put(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, form="JPEG" if name.endswith("jpg") else "PNG"))
    return folder


def load(folder: Path, **arguments: str) -> Folder:
    return Folder(ModelOptions("folder", str(folder), arguments))


def ask(model: Folder, id_: str, group: str | None = None, candidates: int | None = None) -> Response:
    request = Request(id_, "generate_image", (Text("a cat"),), {"candidates": candidates}, group=group)
    (response,) = model.answer([request])
    return response


@pytest.mark.parametrize(
    ("name", "id_", "group", "matched_by"),
    [
        ("scene-7.png", "scene-7", None, "id"),
        ("139.png", "139", None, "id"),
        ("000000000139.jpg", "139", None, "id"),
        ("000000000139.png", "000000000139", None, "id"),
        ("COCO_val2014_000000000139.jpg", "139", "139", "id"),
        ("COCO_val2014_000000000139.jpg", "000000000139", None, "id"),
        ("deep/er/000000000139.png", "caption-5", "139", "image"),
        ("cat.v2.png", "cat.v2", None, "id"),
        ("only_0.png", "only", None, "id"),
    ],
)
def test_an_image_is_found_by_sample_id_or_image_id(
    tmp_path: Path, name: str, id_: str, group: str | None, matched_by: str
) -> None:
    put(tmp_path, "other.png", name)
    response = ask(load(tmp_path), id_, group)
    assert response.details == {"files": [Path(name).name], "matched_by": matched_by}
    (part,) = response.document
    assert isinstance(part, Image)
    assert part.read() == (tmp_path / name).read_bytes()


def test_missing_and_broken_files_are_typed_errors(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2_0.png", "2_1.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    model = load(tmp_path)
    for id_, candidates, failure in (
        ("9", 1, "no-image"),
        ("1", 2, "no-image"),
        ("2", 3, "no-image"),
        ("3", 1, "broken-image"),
    ):
        error = ask(model, id_, candidates=candidates).error
        assert error is not None
        assert error.type == failure
        assert id_ in error.message
    assert ask(model, "13").error is not None


def test_candidates_come_in_order(tmp_path: Path) -> None:
    names = [f"5_{j}.png" for j in range(11)] + [f"COCO_val2014_000000000139_{j}.png" for j in range(2)]
    model = load(put(tmp_path, *names))
    assert ask(model, "5", candidates=11).details["files"] == names[:11]
    assert ask(model, "139", candidates=2).details["files"] == names[11:]


def test_matching_can_be_restricted(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    assert ask(load(tmp_path, match="image"), "1", "2").details["files"] == ["2.png"]
    assert ask(load(tmp_path, match="id"), "x", "2").error is not None
    with pytest.raises(UsageError, match="any, id, image"):
        load(tmp_path, match="guess")


def test_identity_is_names_and_bytes(tmp_path: Path) -> None:
    one, two = put(tmp_path / "one", "1.png", "2.png"), put(tmp_path / "two", "1.png", "2.png")
    (one / "notes.txt").write_text("not an image", encoding="utf-8")
    before = load(one).identity()
    assert before == load(two).identity()
    (two / "2.png").write_bytes(image_bytes(9))
    assert load(two).identity() != before
    (one / "2.png").rename(one / "3.png")
    assert load(one).identity() != before


def test_an_unusable_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no image files in it"):
        load(tmp_path)
    with pytest.raises(DataError, match="the same name"):
        load(put(tmp_path, "1.png", "sub/1.jpg"))
