"""What raters get shows no system: not in names, bytes, order, times or metadata. What the organiser gets undoes that."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from human.runs import make_run, picture, samples
from PIL import Image as Pillow

from dreambench.documents import Image, Text
from dreambench.errors import RunError, UsageError
from dreambench.human.export import HTML_BYTES, TIME, export_study, summary
from dreambench.human.study import Study
from dreambench.images import read_rgb
from dreambench.requests import Sample

MODELS = ("zebra-model", "quokka-model")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    some = samples(folder / "data", 12)
    return [make_run(folder, model, some) for model in MODELS]


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_no_file_of_a_rater_names_a_system_or_a_run(runs: list[Path], tmp_path: Path) -> None:
    export_study(runs, tmp_path / "study", references=12, votes_per_document=1)
    files = all_files(tmp_path / "study" / "raters")
    assert len(files) > 3 * 12
    secrets = [*MODELS, *(run.name for run in runs), "0a1b2c3d", "reference", "doc-", "free/", "secret-camera", "beach"]
    for name, data in files.items():
        for secret in secrets:
            found = secret in name or secret.encode() in data.replace(b'"referrer"', b"")
            assert not found, f"{secret} in {name}"
    # The search would find them: the key holds them all.
    key = (tmp_path / "study/organiser/key.json").read_text()
    assert all(secret in key for secret in (*MODELS, "references", "doc-", "beach"))


def test_images_are_lossless_and_bare(runs: list[Path], tmp_path: Path) -> None:
    study = export_study(runs, tmp_path / "study", votes_per_document=1).study
    originals = {read_rgb(path).tobytes() for run in runs for path in (run / "images").rglob("*.png")}
    images = list((tmp_path / "study/raters").rglob("*.webp"))
    assert images
    drawn = {
        part["image"]
        for item in study.items
        if item.systems[0] == "check"
        for document in item.documents
        for part in document
        if "image" in part
    }
    for path in images:
        with Pillow.open(path) as image:
            assert image.format == "WEBP"
            assert not dict(image.getexif())
            assert not {"icc_profile", "exif", "xmp", "comment"} & image.info.keys()
            assert path.name in drawn or image.convert("RGB").tobytes() in originals
    assert {path.stat().st_mtime for path in (tmp_path / "study/raters").rglob("*")} == {TIME}


def test_the_key_undoes_the_blinding(runs: list[Path], tmp_path: Path) -> None:
    export_study(runs, tmp_path / "study", votes_per_document=2)
    study = Study.read(tmp_path / "study")
    by_id = {item.id: item for item in study.items}
    assert [len(rater.id) for rater in study.raters] == [len("rater-1")] * 4
    for rater in study.raters:
        seen = Counter(by_id[id_].purpose for id_ in rater.items)
        assert seen == {"training": 2, "study": 12, "attention": 1, "repeat": 1}
        prompts = [by_id[id_].prompt for id_ in rater.items if by_id[id_].purpose == "study"]
        assert len(set(prompts)) == 12
    for item in study.items:
        if item.purpose == "study":
            texts = [part["text"] for part in item.documents[0] if "text" in part]
            assert texts == [f"A thing by seed {len(item.systems[0])}: {item.prompt[-1]}/0."] or len(item.prompt) > 5
    public = json.loads((tmp_path / "study/raters/rater-1/study.json").read_text())
    assert public == json.loads(json.dumps(study.public(study.raters[0])))
    # A check and a repeat look like any other item; only training items are marked.
    keys = {by_id[item["id"]].purpose: tuple(item) for item in public["items"]}
    assert keys["attention"] == keys["repeat"] == keys["study"]


@pytest.mark.parametrize("form", ["folder", "zip", "html"])
@pytest.mark.parametrize("mode", ["rating", "pairwise"])
def test_the_same_command_writes_the_same_bytes(runs: list[Path], tmp_path: Path, form: str, mode: str) -> None:
    for name in ("one", "two", "two"):
        export_study(runs, tmp_path / name, mode=mode, votes_per_document=2, form=form)  # type: ignore[arg-type]
    one, two = all_files(tmp_path / "one"), all_files(tmp_path / "two")
    assert one == two
    assert not [name for name in one if ".tmp" in name]


def test_moved_runs_make_the_same_study(runs: list[Path], tmp_path: Path) -> None:
    """Nothing depends on where the runs lie, nor on the order in which they are given."""
    moved = [make_run(tmp_path / "elsewhere", model, samples(tmp_path / "other", 12)) for model in reversed(MODELS)]
    one = export_study(runs, tmp_path / "one", votes_per_document=1, references=12).study
    two = export_study(moved, tmp_path / "two", votes_per_document=1, references=12).study
    assert one.id == two.id


def test_another_study_is_refused_and_ratings_stay(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "study"
    export_study(runs, out, votes_per_document=1)
    (out / "organiser/ratings").mkdir()
    (out / "organiser/ratings/mine.jsonl").write_text("kept")
    with pytest.raises(UsageError, match="another study"):
        export_study(runs, out, votes_per_document=1, seed=1)
    export_study(runs, out, votes_per_document=1, form="zip")
    assert (out / "organiser/ratings/mine.jsonl").read_text() == "kept"
    assert sorted(path.name for path in (out / "raters").iterdir()) == ["rater-1.zip", "rater-2.zip"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UsageError, match="neither a study nor an empty folder"):
        export_study(runs, tmp_path / "full")
    for here in (".", "..", "/"):
        with pytest.raises(UsageError, match="name a folder"):
            export_study(runs, Path(here))


def test_the_entries_of_a_zip_have_one_time_and_no_owner(runs: list[Path], tmp_path: Path) -> None:
    export_study(runs, tmp_path / "study", votes_per_document=1, form="zip")
    with zipfile.ZipFile(tmp_path / "study/raters/rater-1.zip") as archive:
        entries = archive.infolist()
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.extra + entry.comment for entry in entries} == {b""}
        assert {entry.external_attr >> 16 for entry in entries} == {0o644}
        assert "index.html" in archive.namelist()
        name = next(name for name in archive.namelist() if name.startswith("images/"))
        Pillow.open(io.BytesIO(archive.read(name))).load()


def test_one_html_file_has_its_images_inside_and_a_limit(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_study(runs, tmp_path / "study", votes_per_document=1, form="html")
    page = (tmp_path / "study/raters/rater-1.html").read_text()
    assert page.count("data:image/webp;base64,") >= 12
    assert HTML_BYTES == 50_000_000
    monkeypatch.setattr("dreambench.human.export.HTML_BYTES", 1000)
    with pytest.raises(UsageError, match="--form zip"):
        export_study(runs, tmp_path / "large", votes_per_document=1, form="html")


def test_a_text_that_names_a_system_is_noted_unless_the_name_is_a_common_word(tmp_path: Path) -> None:
    some = samples(tmp_path / "data", 3)
    said = {"free/doc-1/0": (Text("The cat met a ZEBRA."), Image(data=picture("x")))}
    runs = [make_run(tmp_path, model, some, documents=said) for model in ("cat", "zebra")]
    notes = export_study(runs, tmp_path / "study", votes_per_document=1).notes
    assert [note for note in notes if "recognise" in note] == [
        "2 items with the word zebra in a text: raters may recognise the system"
    ]


def test_failures_and_broken_images_leave_a_prompt_out_for_all_systems(tmp_path: Path) -> None:
    some = samples(tmp_path / "data", 12)
    unreadable = (Text("broken"), Image(data=picture("x")[:60]))
    broken = {"free/doc-2/0": unreadable, "free/doc-7/0": unreadable}
    runs = [
        make_run(tmp_path, "first", some, failed=("free/doc-1/0", "teacher-forced/doc-5/0")),
        make_run(tmp_path, "second", some, documents=broken),
    ]
    done = export_study(runs, tmp_path / "study", votes_per_document=1)
    reason = "second: image that cannot be decoded"
    assert done.left_out == {"doc-1": "first: timeout", "doc-2": reason, "doc-7": reason}
    assert done.study.design["left_out"] == done.left_out
    assert done.study.design["prompts"] == 9
    assert "left out for all systems: 3 prompts: doc-1 (first: timeout)" in "\n".join(summary(done))
    with pytest.raises(UsageError, match="9 prompts can be shown"):
        export_study(runs, tmp_path / "more", documents=10, votes_per_document=1)


def test_documents_are_taken_equally_from_all_topics(runs: list[Path], tmp_path: Path) -> None:
    study = export_study(runs, tmp_path / "study", documents=6, votes_per_document=1).study
    topics = {item.prompt: item.topic for item in study.items if item.purpose == "study"}
    assert Counter(topics.values()) == {"beach": 2, "kitchen": 2, "garden": 2}


def test_unequal_runs_are_refused(runs: list[Path], tmp_path: Path) -> None:
    some = samples(tmp_path / "data", 12)
    fewer = make_run(tmp_path / "fewer", "third", some[:-3])
    other = make_run(tmp_path / "other", "third", samples(tmp_path / "x", 13)[3:])
    changed = [*some[:-1], Sample(some[-1].id, (Text("else"),), some[-1].targets)]
    for run, words in (
        (fewer, "different samples"),
        (other, "different samples"),
        (make_run(tmp_path / "changed", "third", changed), "1 samples differ"),
        (make_run(tmp_path / "task", "third", some, task="coco_fid"), "runs of interleaved and of coco_fid"),
        (runs[0], "given twice"),
    ):
        with pytest.raises(UsageError, match=words):
            export_study([runs[0], run], tmp_path / "study")
    (fewer / "metrics.json").unlink()
    with pytest.raises(RunError, match="not complete"):
        export_study([fewer], tmp_path / "study")


def test_two_runs_of_one_model_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    some = samples(tmp_path / "data", 6)
    first = make_run(tmp_path, "model", some)
    second = make_run(tmp_path / "again", "model", some).rename(tmp_path / "other-run")
    study = export_study([first, second], tmp_path / "study", votes_per_document=1).study
    assert set(study.systems) == {first.name, "other-run"}


def test_image_sizes_that_tell_systems_apart_are_named_and_can_be_made_equal(tmp_path: Path) -> None:
    some = samples(tmp_path / "data", 6)
    runs = [make_run(tmp_path, "small", some), make_run(tmp_path, "large", some, size=(32, 32))]
    done = export_study(runs, tmp_path / "study", votes_per_document=1)
    assert any("24 × 16" in note and "32 × 32" in note and "--size" in note for note in done.notes)
    done = export_study(runs, tmp_path / "equal", votes_per_document=1, size=16)
    assert not done.notes
    sizes = {read_rgb(path).size for path in (tmp_path / "equal/raters").rglob("*.webp")}
    assert sizes == {(16, 16)}


def test_a_text_that_names_its_system_is_pointed_out(tmp_path: Path) -> None:
    some = samples(tmp_path / "data", 6)
    said = {"free/doc-0/0": (Text("I am Zebra-Model, at your service."),)}
    runs = [make_run(tmp_path, model, some, documents=said) for model in MODELS]
    done = export_study(runs, tmp_path / "study", votes_per_document=1)
    assert any(re.match(r"2 items with the word zebra-model", note) for note in done.notes)


def test_text_to_image_runs_work_too(tmp_path: Path) -> None:
    """Any task's responses are documents: here one image for a caption, the chosen one of several candidates."""
    some = [Sample(str(k), (Text(f"a photo of {k}"),), {"image_id": k}) for k in range(6)]
    study = export_study(
        [make_run(tmp_path, "painter", some, task="coco_fid")], tmp_path / "study", raters=2, votes_per_document=2
    ).study
    (item,) = (item for item in study.items if item.purpose == "study" and item.prompt == "3")
    assert item.instruction == "a photo of 3"
    with pytest.raises(UsageError, match="no reference document"):
        export_study([tmp_path / "coco_fid-painter-0a1b2c3d"], tmp_path / "other", references=6)


def test_images_of_a_prompt_are_shown_above_each_document(tmp_path: Path) -> None:
    image = tmp_path / "given.png"
    image.write_bytes(picture("given", (8, 8)))
    prompt = (Text("Make this night: "), Image(path=str(image)))
    some = [Sample(str(k), prompt, {}) for k in range(3)]
    study = export_study(
        [make_run(tmp_path, "painter", some, task="edits")], tmp_path / "study", votes_per_document=1
    ).study
    for item in study.items:
        if item.purpose == "study":
            given, *document = item.documents[0]
            assert (given["width"], given["height"]) == (8, 8)
            assert [next(iter(part)) for part in document] == ["text", "text", "image"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("questions: [{id: q, text: Good, kind: pairwise}]", "which --mode rating cannot ask"),
        ("questions: [{id: q, text: Good, kind: likert, labels: [one]}]", "1 labels"),
        ("questions: [{id: q, text: Good, kind: likert, labels: [good, 'good ']}]", "one label twice"),
        ("- {id: q, text: A}\n- {id: q, text: B}", "two questions have one id"),
        ("questions: [{id: 'a b', text: Good}]", "questions.0.id"),
        ("unknown: 1", "unknown"),
        ("{", "neither YAML nor JSON"),
        ('{"title": "x", "title": "y"}', "a key stands twice"),
        ("title: 2026-02-31", "day is out of range"),
        ("3", "give an object"),
    ],
)
def test_bad_questions_are_one_line(runs: list[Path], tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "questions.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        export_study(runs, tmp_path / "study", questions=file)
    assert "\n" not in str(caught.value)


def test_questions_of_ones_own(runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "questions.yaml"
    file.write_text(
        "title: My study\n"
        "questions:\n"
        "- {id: text, text: 'How good is the text?', kind: likert, labels: [bad, fair, good]}\n"
        "- {id: use, text: 'Would you use it?', labels: ['no', 'yes']}\n"
    )
    study = export_study(runs, tmp_path / "study", questions=file, votes_per_document=1, attention=2).study
    assert study.title == "My study"
    checks = [item for item in study.items if item.purpose in ("training", "attention")]
    assert {tuple(item.expected.items()) for item in checks} == {(("text", 1), ("use", 0)), (("text", 3), ("use", 1))}
    known = {question.id: question for question in study.questions}
    assert all(known[id_].allows(answer) for item in checks for id_, answer in item.expected.items())


def test_numbers_that_contradict_each_other_are_refused_before_anything_is_drawn(
    runs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--references 2 and --documents 3: both are the number of prompts"):
        export_study(runs, tmp_path / "study", votes_per_document=1, references=2, documents=3)
    with pytest.raises(UsageError, match="checks are fewer than items"):
        export_study(runs, tmp_path / "study", votes_per_document=1, attention=10**9)
