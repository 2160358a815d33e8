"""Copies for the `datasets` library, in the columns of their dataset cards: under a named mapping they are the official files."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from PIL import Image as PILImage

import dreambench
from dreambench.api import Result, plan, rerun
from dreambench.errors import DataError, UsageError
from dreambench.spec import RunSpec
from dreambench_tasks.copies import MAPPINGS
from dreambench_tasks.mmbench import data as mmbench
from dreambench_tasks.vqav2.task import VQAv2Task

NAMES = {mapping.task: mapping.name for mapping in MAPPINGS}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dreambench" / "datasets"


def encoded(number: int, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 8), (number, 40, 0)).save(buffer, kind)
    return buffer.getvalue()


def image(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def save(rows: list[dict[str, Any]], path: Path, **features: Any) -> datasets.Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    made = datasets.Dataset.from_dict(columns)
    for name, feature in {"image": datasets.Image(), **features}.items():
        if name in columns:
            made = made.cast_column(name, feature)
    made.to_parquet(str(path))
    return made


# --- one small benchmark of each kind: its official files, and the same content as a clone of the repository ------------------

QUESTIONS = [
    {"question_id": number, "image_id": 42 + number // 2, "question": f"What is {number}? «ü»"} for number in range(5)
]
ANNOTATIONS = [
    {
        "question_id": one["question_id"],
        "image_id": one["image_id"],
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": "red",
        "answers": [
            {"answer": "red" if place < 3 + one["question_id"] else "two\nred", "answer_confidence": "yes", "answer_id": place + 1}
            for place in range(10)
        ],
    }
    for one in QUESTIONS
]  # fmt: skip


def vqav2(official: Path, clone: Path) -> dict[str, str]:
    official.mkdir()
    (official / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": QUESTIONS}))
    (official / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": ANNOTATIONS}))
    for number in {one["image_id"] for one in QUESTIONS}:
        (official / f"COCO_val2014_{number:012d}.jpg").write_bytes(encoded(number, "jpeg"))
    rows = [
        {**noted, "question": one["question"], "image": image(encoded(one["image_id"], "jpeg"))}
        for one, noted in zip(QUESTIONS, ANNOTATIONS, strict=True)
    ]
    # Two shards, so that their order counts.
    save(rows[:3], clone / "data" / "validation-00000-of-00002.parquet")
    save(rows[3:], clone / "data" / "validation-00001-of-00002.parquet")
    held_back = dict.fromkeys(("question_type", "answer_type", "multiple_choice_answer", "answers"), None)
    save([{**row, **held_back} for row in rows], clone / "data" / "testdev-00000-of-00001.parquet")
    return {str(one["question_id"]): "red" for one in QUESTIONS}


def mmbench_rows() -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for index, options in {1: ["cat", "a\tdog", "hare"], 2: ["red", 'so-called "blue"']}.items():
        for k in range(len(options)):
            turned = options[-k:] + options[:-k] if k else options
            cells = dict(zip("ABCD", [*turned, "", ""], strict=False))
            answer = "ABCD"[turned.index(options[0])]
            about = {"category": "animals", "source": "here", "l2-category": "things", "comment": "", "split": "dev"}
            row = {"index": str(index + k * 1_000_000), "question": f"Which {index}?", "hint": "a\rb\n" * (index - 1)}
            rows.append({**row, **cells, "answer": answer, "image": base64.b64encode(encoded(index)).decode(), **about})
    return rows


def mmbench_files(official: Path, clone: Path) -> dict[str, str]:
    official.mkdir()
    rows = mmbench_rows()
    pd.DataFrame(rows).to_csv(official / "MMBench_DEV_EN.tsv", sep="\t", index=False, lineterminator="\r\n")
    copied: list[dict[str, Any]] = []
    for row in rows:
        cells: dict[str, Any] = {name: cell or "nan" for name, cell in row.items()}
        cells |= {"L2-category": cells.pop("l2-category"), "image": image(base64.b64decode(row["image"]))}
        copied.append(cells)
    save(copied, clone / "en" / "dev-00000-of-00001.parquet")
    lacking = ("hint", "L2-category", "comment", "split")
    plain = [{name: cell for name, cell in row.items() if name not in lacking} for row in copied[:1]]
    save([{**row, "index": int(row["index"])} for row in plain], clone / "cc" / "test-00000-of-00001.parquet")
    return {row["index"]: row["answer"] if row["index"] != "1000002" else "A." for row in rows}


def mmvet_files(official: Path, clone: Path) -> dict[str, str]:
    (official / "images").mkdir(parents=True)
    questions = {
        f"v1_{number}": {
            "imagename": f"v1_{number // 2}.png",
            "question": f"What is {number}?",
            "answer": f"thing<AND>{number}",
            "imagesource": "there",
            "capability": [["ocr", "math"], ["rec"]][number % 2],
        }
        for number in range(4)
    }
    (official / "mm-vet.json").write_text(json.dumps(questions))
    rows: list[dict[str, Any]] = []
    for number, (id_, one) in enumerate(questions.items()):
        data = encoded(number // 2)
        (official / "images" / str(one["imagename"])).write_bytes(data)
        given = {"question_id": id_, "image": image(data), "question": one["question"], "answer": one["answer"]}
        rows.append({**given, "image_source": one["imagesource"], "capability": ",".join(one["capability"])})
    save(rows, clone / "data" / "test-00000-of-00001.parquet")
    return dict.fromkeys(questions, "a thing, 2")


MAKERS = {"vqav2": vqav2, "mmbench": mmbench_files, "mmvet": mmvet_files}


def answer(task: str, data: str | Path, answers: dict[str, str], tmp_path: Path, **options: Any) -> Result:
    lines = tmp_path / "answers.jsonl"
    lines.write_text("".join(json.dumps({"id": id_, "text": text}) + "\n" for id_, text in answers.items()))
    judge = {"judge": "rule"} if task == "mmvet" else {}
    return dreambench.run(task, f"responses:{lines}", data=data, out=tmp_path / "runs", **judge, **options)


def the_folder(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


# --- claims ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", MAKERS)
def test_scores_equal_those_of_the_official_files_and_the_protocol_names_the_mapping(task: str, tmp_path: Path) -> None:
    answers = MAKERS[task](tmp_path / "official", tmp_path / "clone")
    ours = answer(task, tmp_path / "official", answers, tmp_path)
    copied = answer(task, f"datasets:{NAMES[task]}={tmp_path / 'clone'}", answers, tmp_path, offline=True)
    assert ours.metrics is not None
    assert copied.metrics is not None

    def scores(result: Result) -> list[tuple[object, ...]]:
        return [(one.metric, one.group, one.value, one.interval, one.n, one.unscored) for one in result.scores]

    assert scores(copied) == scores(ours)
    assert any(0 < (one.value or 0) < 100 for one in ours.scores)
    (official,), (mapped,) = (list(result.metrics["protocols"].values()) for result in (ours, copied))
    assert mapped["data_mapping"] == f"{NAMES[task]}@1"
    assert {name for name in mapped if mapped[name] != official.get(name)} <= {"data_mapping", "data_sha256", "hash"}
    assert mapped["hash"] != official["hash"]


def test_vqav2_is_written_as_the_official_files(tmp_path: Path, cache: Path) -> None:
    vqav2(tmp_path / "official", tmp_path / "clone")
    task = VQAv2Task(RunSpec(task="vqav2", data=f"datasets:lmms-lab/VQAv2={tmp_path / 'clone'}", split="val"))
    samples = list(task.samples())
    folder = the_folder(cache)
    for name, entries in (
        ("OpenEnded_mscoco_val2014_questions", QUESTIONS),
        ("mscoco_val2014_annotations", ANNOTATIONS),
    ):
        content = json.loads((folder / f"v2_{name}.json").read_text())
        assert content[name.rpartition("_")[2]] == entries
        assert content["data_subtype"] == "val2014"
    shown = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    assert shown == {f"{number:012d}.jpg": encoded(number, "jpeg") for number in (42, 43, 44)}
    assert Path(samples[0].prompt[0].path).is_file()  # type: ignore[union-attr]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["mapping"] == "lmms-lab/VQAv2@1"
    assert manifest["rows"] == 5
    assert manifest["fingerprint"]
    assert not (folder / "arrow").exists()


def test_answers_that_the_copy_holds_back_are_exported(tmp_path: Path) -> None:
    answers = vqav2(tmp_path / "official", tmp_path / "clone")
    result = answer("vqav2", f"datasets:lmms-lab/VQAv2={tmp_path / 'clone'}", answers, tmp_path, split="test-dev")
    assert result.scores == []
    assert len(json.loads((result.folder / "evalai.json").read_text())) == 5


def test_mmbench_is_written_as_the_official_tsv(tmp_path: Path, cache: Path) -> None:
    mmbench_files(tmp_path / "official", tmp_path / "clone")
    data = f"datasets:lmms-lab/MMBench={tmp_path / 'clone'}"
    plan(RunSpec(task="mmbench", model="echo", data=data, split="mmbench_dev_en"), tmp_path)
    ours = mmbench.load(tmp_path / "official" / "MMBench_DEV_EN.tsv")
    theirs = mmbench.load(the_folder(cache) / "MMBench_DEV_EN.tsv")
    assert theirs.rows == ours.rows
    assert theirs.images == ours.images


def test_a_configuration_that_lacks_columns_by_its_card_is_read_without_them(tmp_path: Path) -> None:
    mmbench_files(tmp_path / "official", tmp_path / "clone")
    data = f"datasets:lmms-lab/MMBench={tmp_path / 'clone'}"
    prepared = plan(RunSpec(task="mmbench", model="echo", data=data, split="CCBench"), tmp_path)
    assert [sample.id for sample in prepared.samples] == ["1"]


def test_an_option_that_the_copy_lost_is_an_error(tmp_path: Path) -> None:
    mmbench_files(tmp_path / "official", tmp_path / "clone")
    path = tmp_path / "clone" / "en" / "dev-00000-of-00001.parquet"
    rows = list(
        datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "hf")).cast_column(
            "image", datasets.Image(decode=False)
        )
    )
    save([{**rows[0], "B": "nan"}, *rows[1:]], path)
    with pytest.raises(DataError, match="index 1 has no option B but one after it"):
        answer("mmbench", f"datasets:lmms-lab/MMBench={path}", {"1": "A"}, tmp_path)


def test_mmvet_keeps_each_image_once(tmp_path: Path, cache: Path) -> None:
    answers = mmvet_files(tmp_path / "official", tmp_path / "clone")
    answer("mmvet", f"datasets:lmms-lab/MMVet={tmp_path / 'clone'}", answers, tmp_path)
    images = sorted(path.read_bytes() for path in (the_folder(cache) / "images").iterdir())
    assert images == sorted([encoded(0), encoded(1)])


def test_a_saved_folder_a_file_and_a_clone_are_one_copy(tmp_path: Path, cache: Path) -> None:
    answers = mmvet_files(tmp_path / "official", tmp_path / "clone")
    file = tmp_path / "clone" / "data" / "test-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "hf"))
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "splits"))
    places = [tmp_path / "clone", file, tmp_path / "saved", tmp_path / "splits"]
    results = [answer("mmvet", f"datasets:lmms-lab/MMVet={place}", answers, tmp_path) for place in places]
    assert len({result.folder for result in results}) == 1
    assert len(list(cache.iterdir())) == 4


def test_a_copy_is_written_out_once_and_anew_when_it_changes(tmp_path: Path, cache: Path) -> None:
    answers = mmvet_files(tmp_path / "official", tmp_path / "clone")
    spec = f"datasets:lmms-lab/MMVet={tmp_path / 'clone'}"
    first = answer("mmvet", spec, answers, tmp_path)
    marker = the_folder(cache) / "manifest.json"
    written = marker.stat().st_mtime_ns
    answer("mmvet", spec, answers, tmp_path, fresh=True)
    assert marker.stat().st_mtime_ns == written
    again = rerun(first.folder, fresh=True)
    assert again.scores == first.scores
    path = tmp_path / "clone" / "data" / "test-00000-of-00001.parquet"
    rows = list(
        datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "hf")).cast_column(
            "image", datasets.Image(decode=False)
        )
    )
    save(rows[:2], path)
    assert answer("mmvet", spec, answers, tmp_path).scores[0].n == 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("column", ["image_source", "capability"])
def test_a_column_that_is_not_there_is_named_with_the_mapping(column: str, tmp_path: Path, cache: Path) -> None:
    mmvet_files(tmp_path / "official", tmp_path / "clone")
    path = tmp_path / "clone" / "data" / "test-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "hf"))
    rows.rename_column(column, "another").to_parquet(str(path))
    with pytest.raises(DataError, match=rf"no column {column}, which the mapping lmms-lab/MMVet@1 reads as .*another"):
        answer("mmvet", f"datasets:lmms-lab/MMVet={tmp_path / 'clone'}", {"v1_0": "x"}, tmp_path)
    assert list(cache.iterdir()) == []


def broken(column: str, value: Any) -> list[dict[str, Any]]:
    row = {"question_id": "v1_0", "question": "?", "answer": "!", "image_source": "", "capability": "rec"}
    return [{**row, "image": image(encoded(1)), column: value}]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", {"bytes": None, "path": "/etc/hostname"}, "question_id v1_0 has no image, only a path"),
        ("image", image(b"GIF89a nothing"), "neither JPEG, PNG nor WebP"),
        ("capability", None, "question_id v1_0 has no capability"),
        ("question", None, "lacks an imagename, question or answer"),
    ],
)
def test_broken_rows_are_named_and_nothing_is_kept(
    column: str, value: Any, message: str, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "test-00000-of-00001.parquet"
    save(broken(column, value), path)
    with pytest.raises(DataError, match=message) as caught:
        answer("mmvet", f"datasets:lmms-lab/MMVet={path}", {"v1_0": "x"}, tmp_path)
    assert "lmms-lab/MMVet@1" in str(caught.value)
    assert ".unfinished" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_row_of_another_form_is_named(tmp_path: Path) -> None:
    vqav2(tmp_path / "official", tmp_path / "clone")
    path = tmp_path / "clone" / "data" / "testdev-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "hf"))
    rows.cast_column("image_id", datasets.Value("string")).map(lambda row: {"image_id": "x"}).to_parquet(str(path))
    with pytest.raises(DataError, match=r"VQAv2@1: a row does not have the form that the mapping expects .*'x'"):
        answer("vqav2", f"datasets:lmms-lab/VQAv2={path}", {"0": "x"}, tmp_path, split="test-dev")


def test_what_is_not_a_copy_is_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 nothing")
    for place, message in (
        ("nowhere", "no such file"),
        ("empty", "holds neither data/test-"),
        ("torn.parquet", "cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            answer("mmvet", f"datasets:lmms-lab/MMVet={tmp_path / place}", {"v1_0": "x"}, tmp_path)
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "spec", "message"),
    [
        ("vqav2", "datasets:somebody/VQAv2", "no mapping has that name; vqav2 has lmms-lab/VQAv2"),
        ("vqav2", "datasets:lmms-lab/MMBench", "is a mapping of the task mmbench, not of vqav2"),
        ("coco_fid", "datasets:lmms-lab/COCO-Caption", "coco_fid reads official files only"),
        ("vqav2", "datasets:", "write datasets:MAPPING"),
        ("vqav2", "datasets:lmms-lab/VQAv2=", "write datasets:MAPPING"),
    ],
)
def test_a_mapping_is_named_not_guessed(task: str, spec: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        dreambench.run(task, "echo", data=spec, out=tmp_path)


def test_a_split_that_the_copy_has_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--split train: the copy lmms-lab/VQAv2 has val, test-dev, test"):
        dreambench.run("vqav2", "echo", data="datasets:lmms-lab/VQAv2", split="train", out=tmp_path)


def test_offline_says_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--offline forbids downloading lmms-lab/MMVet: give the folder of a copy"):
        dreambench.run("mmvet", "echo", data="datasets:lmms-lab/MMVet", judge="rule", offline=True, out=tmp_path)


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    """conftest forbids the hub, as a machine without a network does."""
    with pytest.raises(
        DataError, match=r"lmms-lab/MMVet cannot be read through datasets .* --data datasets:lmms-lab/MMVet=DIR"
    ):
        dreambench.run("mmvet", "echo", data="datasets:lmms-lab/MMVet", judge="rule", out=tmp_path)


def test_a_copy_is_real_data_and_so_mmvet_has_no_default_judge(tmp_path: Path) -> None:
    mmvet_files(tmp_path / "official", tmp_path / "clone")
    with pytest.raises(UsageError, match="there is no default"):
        dreambench.run("mmvet", "echo", data=f"datasets:lmms-lab/MMVet={tmp_path / 'clone'}", out=tmp_path)


def test_data_is_a_path_or_a_copy() -> None:
    def data(value: str | Path | None) -> tuple[Path | None, str | None]:
        spec = RunSpec(task="vqav2", data=value)
        return spec.data_path, spec.dataset

    assert data(None) == (None, None)
    assert data("here") == (Path("here").absolute(), None)
    assert data("datasets") == (Path("datasets").absolute(), None)
    assert data("datasets:a/b") == (None, "a/b")
    assert data("datasets:a/b=c/d=e") == (None, f"a/b={Path('c/d=e').absolute()}")
    for wrong in ("datasets:", "datasets:a/b="):
        with pytest.raises(UsageError, match="--data datasets:"):
            data(wrong)


def test_the_command(tmp_path: Path) -> None:
    answers = mmvet_files(tmp_path / "official", tmp_path / "clone")
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    words = ["score", "--task", "mmvet", "--data", "datasets:lmms-lab/MMVet=clone", "--judge", "rule", "--offline"]
    line = [sys.executable, "-m", "dreambench", *words, "--responses", "answers.json"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "mmvet: score " in done.stdout


def test_official_files_need_no_datasets(tmp_path: Path) -> None:
    vqav2(tmp_path / "official", tmp_path / "clone")
    code = (
        "import sys; from pathlib import Path; from dreambench.spec import RunSpec;"
        "from dreambench_tasks.vqav2.task import VQAv2Task;"
        f"VQAv2Task(RunSpec(task='vqav2', data=Path({str(tmp_path / 'official')!r}))).samples(); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)
