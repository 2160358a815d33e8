"""Links in data: none leads out of the folder that the user named, wherever one could stand, unless the user allows it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

import dreambench
from dreambench.errors import DataError, RunError
from dreambench.files import FOLLOW_LINKS, inside
from dreambench.metrics.features import list_images
from dreambench_tasks.coco import find_images, image_index
from dreambench_tasks.playground import write
from dreamllm.data.sources import open_image
from dreamllm.errors import InputError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write(folder / "world", "val", 8, 0, ["coco", "vqav2", "mmbench", "mmvet", "documents"])
    return folder / "world"


@pytest.fixture
def data(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "data"))


def moved(path: Path) -> Path:
    """Move a file or folder out of the data, and leave a link to it."""
    store = Path(os.environ["LINK_STORE"]) / path.name
    store.parent.mkdir(exist_ok=True)
    path.rename(store)
    path.symlink_to(store)
    return path


def first_image(folder: Path) -> Path:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))[0]


def ask(task: str, **options: Any) -> Callable[[Path], object]:
    return lambda data: dreambench.run(task, "echo", data=data, out=data.parent / "runs", limit=2, **options)


CASES: dict[str, tuple[Callable[[Path], object], Callable[[Path], Path]]] = {
    "an image of COCO": (ask("coco_fid", features="playground-clip"), lambda data: first_image(data / "val2017")),
    "COCO's folder of images": (ask("coco_fid", features="playground-clip"), lambda data: data / "val2017"),
    "captions": (
        ask("coco_fid", features="playground-clip"),
        lambda data: data / "annotations" / "captions_val2017.json",
    ),
    "COCO's annotations": (ask("coco_fid", features="playground-clip"), lambda data: data / "annotations"),
    "questions": (ask("vqav2"), lambda data: next(data.glob("v2_*questions.json*"))),
    "the images of questions": (ask("vqav2"), lambda data: data / "val2017"),
    "MMBench": (ask("mmbench"), lambda data: next(data.glob("*.tsv"))),
    "MM-Vet": (ask("mmvet", judge="rule"), lambda data: data / "mm-vet.json"),
    "an image of MM-Vet": (ask("mmvet", judge="rule"), lambda data: first_image(data / "images")),
    "MM-Vet's images": (ask("mmvet", judge="rule"), lambda data: data / "images"),
    "documents": (ask("interleaved", features="playground-clip"), lambda data: data / "documents.jsonl"),
    "an image of fid": (lambda data: list_images(data / "val2017"), lambda data: first_image(data / "val2017")),
    "a folder of fid": (lambda data: list_images(data), lambda data: data / "val2017"),
    "folder:": (
        lambda data: dreambench.run("coco_fid", f"folder:{data / 'val2017'}", out=data / "runs", limit=2),
        lambda data: first_image(data / "val2017"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_link_out_of_the_data_is_one_line_and_can_be_allowed(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, choose = CASES[name]
    monkeypatch.setenv("LINK_STORE", str(tmp_path / "store"))
    link = moved(choose(data))
    with pytest.raises(DataError, match=FOLLOW_LINKS) as caught:
        read(data)
    assert link.name in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv(FOLLOW_LINKS, "1")
    read(data)


def test_the_folder_itself_may_be_a_link_and_links_may_lead_within_it(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    assert ask("vqav2")(tmp_path / "link")
    assert dreambench.run("vqav2", "echo", data=data, images=tmp_path / "link" / "val2017", out=tmp_path / "b", limit=2)
    one = first_image(data / "val2017")
    (data / "val2017" / "000000009999.png").symlink_to(one.name)
    (data / "store").mkdir()
    shutil.move(one, data / "store" / one.name)
    one.symlink_to(Path("..") / "store" / one.name)
    assert len(find_images([int(one.stem), 9999], data, None, "val2017")) == 2
    with pytest.raises(DataError, match=FOLLOW_LINKS):
        image_index(data / "val2017")  # named by itself


def test_a_snapshot_in_the_hub_s_cache_is_links_to_its_own_blobs(data: Path, tmp_path: Path) -> None:
    repository = tmp_path / "datasets--somebody--coco"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    for number, path in enumerate(sorted(path for path in data.rglob("*") if path.is_file())):
        shutil.copy(path, repository / "blobs" / str(number))
        link = snapshot / path.relative_to(data)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(repository / "blobs" / str(number), link.parent))
    assert ask("vqav2")(snapshot)
    one = first_image(snapshot / "val2017")
    shutil.copy(one, tmp_path / one.name)
    one.unlink()
    one.symlink_to(tmp_path / one.name)
    with pytest.raises(DataError, match=FOLLOW_LINKS):
        ask("vqav2")(snapshot)


def test_a_saved_copy_names_no_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "state.json").write_text('{"_data_files": [{"filename": "../other.arrow"}]}')
    with pytest.raises(DataError, match=r"other\.arrow' is not a path within its folder"):
        dreambench.run("mmvet", "echo", data=f"datasets:lmms-lab/MMVet={tmp_path / 'copy'}", judge="rule", out=tmp_path)


def test_names_never_lead_out_even_where_links_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for allowed in ("0", "1"):
        monkeypatch.setenv(FOLLOW_LINKS, allowed)
        for name in ("../b", "/etc/hostname", "x/../../b", "..", "\0", "a" * 5000):
            assert inside(tmp_path / "a", name) is None, (allowed, name)
        assert inside(tmp_path / "a", "x/../y") == (tmp_path / "a" / "y").resolve()


def test_training_images_obey_the_same_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    Pillow.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "images" / "link.png").symlink_to("../secret.png")
    (tmp_path / "images" / "circle.png").symlink_to("circle.png")
    for name in ("link.png", "circle.png", "../secret.png", "\0", "a" * 5000):
        with pytest.raises(InputError):
            open_image(name, tmp_path / "images")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "images")
    Pillow.new("RGB", (8, 8)).save(tmp_path / "images" / "own.png")
    assert open_image("own.png", tmp_path / "elsewhere").size == (8, 8)
    monkeypatch.setenv(FOLLOW_LINKS, "1")
    assert open_image("link.png", tmp_path / "images").size == (8, 8)
    with pytest.raises(InputError, match="outside"):
        open_image("../secret.png", tmp_path / "images")


@pytest.mark.parametrize("name", ["responses/rank-00000.jsonl", "judgements.jsonl", "run.json", "responses"])
def test_a_run_has_no_links_to_write_through(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = dreambench.run("mmvet", "echo", judge="rule", limit=2, out=tmp_path / "runs").folder
    monkeypatch.setenv("LINK_STORE", str(tmp_path / "store"))
    link = moved(run / name)
    before = link.read_bytes() if link.is_file() else b""
    for verb in (dreambench.api.score_run, dreambench.api.rerun):
        with pytest.raises(RunError, match="is a link"):
            verb(run)
    assert before == (link.read_bytes() if link.is_file() else b"")
