"""Data are written completely or not at all, always the same, and never over anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambench.errors import DataError, UsageError
from dreambench_tasks.playground import FORMATS, ensure_default, write
from dreambench_tasks.playground.formats import File, Pool


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    assert contents(write(tmp_path / "a", n=20)) == contents(write(tmp_path / "b", n=20))


def test_content_is_pinned(tmp_path: Path) -> None:
    # Where this fails on purpose, WORLD (scenes, texts) or LAYOUT (files, numbers) must be raised. PNG bytes are not in this hash.
    manifest = json.loads((write(tmp_path / "a", n=40) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["content"][:16] == "3c04a220aa06809c"


def test_other_arguments_make_other_data(tmp_path: Path) -> None:
    def content(name: str, **arguments: object) -> str:
        folder = write(tmp_path / name, **{"n": 8, **arguments})  # type: ignore[arg-type]
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["content"]

    made = [
        content("a"),
        content("b", seed=1),
        content("c", split="train"),
        content("d", n=9),
        content("e", formats=["coco"]),
    ]
    assert len(set(made)) == len(made)


def test_formats_can_be_chosen(tmp_path: Path) -> None:
    only = contents(write(tmp_path / "vet", n=10, formats=["mmvet"]))
    assert set(only) == {"manifest.json", "mm-vet.json", *(f"images/v1_{number}.png" for number in range(6))}
    whole = contents(write(tmp_path / "all", n=10))
    assert all(whole[name] == data for name, data in only.items() if name != "manifest.json")


def test_existing_data_are_not_changed(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", n=5)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    write(folder, n=5)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == stamps
    with pytest.raises(UsageError, match=r"another playground \(n 5 instead of 6\)"):
        write(folder, n=6)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == stamps


def test_foreign_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="something other"):
        write(tmp_path, n=5)
    with pytest.raises(UsageError, match="something other"):
        write(tmp_path / "notes.txt", n=5)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_folder_that_cannot_be_created_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file: File exists; name another place"):
        write(tmp_path / "file" / "data", n=5)


def test_an_empty_folder_is_accepted(tmp_path: Path) -> None:
    assert (write(tmp_path, n=3, formats=["coco"]) / "manifest.json").is_file()


def test_damage_is_detected(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", n=5)
    (folder / "val2017" / "000000000003.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"000000000003\.png is missing or damaged"):
        write(folder, n=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "train, val, test"),
        ({"n": 0}, "at least one scene"),
        ({"formats": ["voc"]}, "voc"),
        ({"formats": []}, "none"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "a", **arguments)  # type: ignore[arg-type]
    assert not contents(tmp_path)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(pool: Pool) -> Iterator[File]:
        yield File("mm-vet.json", b"{}", b"{}")
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMATS, "mmvet", breaks)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", n=5)
    assert list(tmp_path.iterdir()) == []


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_many_processes_make_the_embedded_data_once(tmp_path: Path) -> None:
    code = "from dreambench_tasks.playground import ensure_default; print(ensure_default())"
    processes = [python(code, XDG_CACHE_HOME=str(tmp_path)) for _ in range(3)]
    answers = [p.communicate() for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], answers
    (folder,) = (tmp_path / "dreambench").iterdir()
    assert {out.strip() for out, _ in answers} == {str(folder)}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert set(contents(folder)) == {*(str(Path(name)) for name in manifest["files"]), "manifest.json"}
    assert ensure_default(tmp_path / "dreambench") == folder
    assert sum(name.startswith("val2017/") for name in manifest["files"]) >= 512


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    code = "import sys; from dreambench_tasks.playground import write; write(sys.argv[1], n=60, seed=int(sys.argv[2]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "data"), str(seed)], stderr=subprocess.PIPE, text=True
        )
        for seed in (1, 2)
    ]
    errors = [p.communicate()[1] for p in processes]
    (winner,) = (seed for seed, p in zip((1, 2), processes, strict=True) if p.returncode == 0)
    assert "another playground" in errors[2 - winner]
    assert contents(tmp_path / "data") == contents(write(tmp_path / "alone", n=60, seed=winner))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "data"]


def test_writing_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys; from dreambench_tasks.playground import write; write(sys.argv[1], n=2); print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], check=True, capture_output=True, text=True
    ).stdout
    assert not {"torch", "transformers", "pandas", "matplotlib"} & set(out.split())
