"""Samples from every format on disk; broken records are listed, and no image takes the position of another."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamllm.data import training_dataset
from dreamllm.data.sources import open_image
from dreamllm.errors import InputError, UsageError

COLORS = ["#ff0000", "#00ff00", "#0000ff", "#ffff00"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`images/0.png` … `3.png`, each of one colour, and `images/bad.png`, which is not an image."""
    (tmp_path / "images").mkdir()
    for i, color in enumerate(COLORS):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(color))
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    return tmp_path


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), color).save(buffer, "PNG")
    return buffer.getvalue()


def lines(records: list) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def opened(processor, folder: Path, source: dict, **data):
    recipe = {"max_length": 600, "cache": "cache", "sources": [{"images": "images", **source}], **data}
    return training_dataset(recipe, processor, folder=folder)


def numbers(images: list[Image.Image]) -> list[int]:
    """The numbers of these images in COLORS."""
    colors = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (image.getpixel((0, 0)) for image in images)]
    return [COLORS.index(color) for color in colors]


def words(processor, sample) -> str:
    text = processor.decode(sample.input_ids, skip_special_tokens=True)
    return " ".join(text.split())


def in_order(data, count: int) -> list:
    """The first samples of a stream, sorted by image."""
    source = data.sources[0]
    samples = [source.sample(i, random.Random(0), lambda reason: None) for i in range(count)]
    return sorted(samples, key=lambda sample: numbers(sample.images))


def by_record(data, count: int | None = None) -> list:
    """The samples of a source's records in the order of the file."""
    source = data.sources[0]
    return [source.sample(i, random.Random(0), lambda reason: None) for i in range(count or len(source.table))]


CAPTIONS = [f"image {i}" for i in range(4)]
PAIRS = [{"image": f"{i}.png", "caption": caption} for i, caption in enumerate(CAPTIONS)]


def write_jsonl(folder: Path) -> str:
    (folder / "pairs.jsonl").write_text(lines(PAIRS))
    return "pairs.jsonl"


def write_gz(folder: Path) -> str:
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as file:
        file.write(lines(PAIRS))
    return "pairs.jsonl.gz"


def write_zip(folder: Path) -> str:
    with zipfile.ZipFile(folder / "pairs.jsonl.zip", "w") as archive:
        archive.writestr("pairs.jsonl", lines(PAIRS))
    return "pairs.jsonl.zip"


def write_json(folder: Path) -> str:
    (folder / "pairs.json").write_text(json.dumps(PAIRS))
    return "pairs.json"


def write_coco(folder: Path) -> str:
    images = [{"id": 10 + i, "file_name": f"{i}.png"} for i in range(4)]
    notes = [{"id": i, "image_id": 10 + i, "caption": caption} for i, caption in enumerate(CAPTIONS)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return "captions.json"


def write_parquet(folder: Path) -> str:
    """Bytes in a column of images, which `datasets` would decode."""
    rows = {"image": [{"bytes": png(color), "path": None} for color in COLORS], "text": CAPTIONS}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "pairs.parquet")
    return "pairs.parquet"


def _tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_tar_txt(folder: Path) -> str:
    """Two shards that a pattern matches."""
    for shard in range(2):
        files: dict[str, bytes] = {}
        for i in (2 * shard, 2 * shard + 1):
            files |= {f"{i:05}.png": png(COLORS[i]), f"{i:05}.txt": CAPTIONS[i].encode()}
        _tar(folder / f"{shard:03}.tar", files)
    return "*.tar"


def write_tar_json(folder: Path) -> str:
    files: dict[str, bytes] = {}
    for i in range(4):
        record = json.dumps({"caption": CAPTIONS[i], "width": 20}).encode()
        files |= {f"{i:05}.png": png(COLORS[i]), f"{i:05}.json": record}
    _tar(folder / "pairs.tar", files)
    return "pairs.tar"


@pytest.mark.parametrize(
    "write", [write_jsonl, write_gz, write_zip, write_json, write_coco, write_parquet, write_tar_txt, write_tar_json]
)
def test_pairs_are_read_from_every_format(processor, folder, write) -> None:
    path = write(folder)
    for mode in ("comprehension", "generation"):
        samples = by_record(opened(processor, folder, {"kind": "pairs", "path": path, "mode": mode}))
        assert [words(processor, sample) for sample in samples] == CAPTIONS
        images = [sample.images if mode == "comprehension" else sample.targets for sample in samples]
        assert [numbers(each) for each in images] == [[0], [1], [2], [3]]


@pytest.mark.parametrize(
    "write", [write_jsonl, write_gz, write_zip, write_json, write_coco, write_parquet, write_tar_txt, write_tar_json]
)
def test_every_format_can_be_streamed(processor, folder, monkeypatch, write) -> None:
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s at the end of Parquet files
    source = {"kind": "pairs", "path": write(folder), "mode": "comprehension", "streaming": True, "weight": 1}
    samples = in_order(opened(processor, folder, source, samples=4), 4)
    assert [words(processor, sample) for sample in samples] == CAPTIONS
    assert [numbers(sample.images) for sample in samples] == [[0], [1], [2], [3]]
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_images_with_texts_beside_them_is_pairs(processor, folder, streaming) -> None:
    photos = folder / "photos"
    for i, name in enumerate(("a.PNG", "b/c.jpeg", "b/c.d.png", "b/e.webp")):
        file = photos / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(COLORS[i]))
        file.with_suffix(".txt").write_text(f"{CAPTIONS[i]}\n", encoding="utf-8-sig" if i else "utf-8")
    source = {"kind": "pairs", "path": "photos", "images": None, "mode": "comprehension"}
    source |= {"streaming": True, "weight": 1} if streaming else {}
    data = opened(processor, folder, source, **({"samples": 4} if streaming else {}))
    found = in_order(data, 4)
    assert [words(processor, sample) for sample in found] == CAPTIONS
    assert [numbers(sample.images) for sample in found] == [[0], [1], [2], [3]]


def test_an_image_or_a_text_without_the_other_is_broken(processor, folder) -> None:
    (folder / "images" / "0.txt").write_text("image 0")
    (folder / "images" / "bad.png").rename(folder / "images" / "bad.txt")
    (folder / "images" / "2.txt").write_text(" \n")
    (folder / "images" / "3.txt").write_bytes("café".encode("latin-1"))
    source = {"kind": "pairs", "path": "images", "images": None, "mode": "comprehension"}
    data = opened(processor, folder, source)
    reasons = []
    for i in range(len(data.sources[0].table)):
        try:
            sample = data.sources[0].sample(i, random.Random(0), lambda reason: None)
            reasons.append(words(processor, sample))
        except InputError as error:
            reasons.append(str(error).removeprefix(f"{folder}/images/"))
    assert reasons == [
        "image 0",
        "1.png has no text beside it: 1.txt is missing",
        "2.txt is empty",
        "3.txt is not UTF-8",
        "bad.txt has no image beside it",
    ]
    (folder / "images" / "1.txt").write_text("another")  # a changed folder is read anew
    assert words(processor, by_record(opened(processor, folder, source), 2)[1]) == "another"


def test_a_folder_without_texts_or_with_images_elsewhere_is_refused(processor, folder) -> None:
    with pytest.raises(UsageError, match=r"images is a folder: name its files .* a \.txt file beside each image"):
        opened(processor, folder, {"kind": "pairs", "path": "images", "images": None})
    (folder / "images" / "0.txt").write_text("image 0")
    with pytest.raises(UsageError, match="remove `images` of source"):
        opened(processor, folder, {"kind": "pairs", "path": "images"})
    with pytest.raises(UsageError, match="is a folder of images: give it a source of its own"):
        opened(processor, folder, {"kind": "pairs", "path": [write_jsonl(folder), "images"]})


def test_columns_name_other_fields(processor, folder) -> None:
    (folder / "x.jsonl").write_text(lines([{"file": "2.png", "words": "hello", "caption": "not this"}]))
    columns = {"image": "file", "caption": "words"}
    (sample,) = by_record(
        opened(processor, folder, {"kind": "pairs", "path": "x.jsonl", "columns": columns, "mode": "comprehension"})
    )
    assert (words(processor, sample), numbers(sample.images)) == ("hello", [2])


def test_mmc4_drops_images_below_the_minimal_similarity(processor, folder) -> None:
    infos = [(3, 1, 0.3), (0, 0, 0.25), (1, 1, 0.2)]
    record = {
        "text_list": ["One.", "Two.", "Three."],
        "image_info": [
            {"image_name": f"{n}.png", "matched_text_index": at, "matched_sim": sim} for n, at, sim in infos
        ],
    }
    (folder / "docs.jsonl").write_text(lines([record]))
    (sample,) = by_record(opened(processor, folder, {"kind": "mmc4", "path": "docs.jsonl"}))
    assert numbers(sample.images) == numbers(sample.targets) == [0, 3]
    (sample,) = by_record(
        opened(
            processor, folder, {"kind": "mmc4", "path": "docs.jsonl", "min_similarity": 0.1, "mode": "comprehension"}
        )
    )
    assert (numbers(sample.images), sample.targets) == ([0, 3, 1], [])


def test_obelics_has_an_image_at_each_null_text(processor, folder) -> None:
    url = "https://example.org/a.png"
    record = {"texts": ["One.", None, "Two.", None], "images": [None, "1.png", None, url]}
    datasets.Dataset.from_list([record]).to_parquet(folder / "obelics.parquet")
    data = opened(processor, folder, {"kind": "obelics", "path": "obelics.parquet", "mode": "generation"})
    reasons: list[str] = []
    sample = data.sources[0].sample(0, random.Random(0), reasons.append)
    assert numbers(sample.targets) == [1]
    assert url in reasons[0]
    name = reasons[0].split("download it as ")[1]
    (folder / "images" / name).write_bytes(png(COLORS[2]))
    assert numbers(by_record(data)[0].targets) == [1, 2]


def test_conversations_may_differ_in_their_fields(processor, folder) -> None:
    """As in LLaVA's own file: ids of two types; no image, one or several."""
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "An image."}]
    generated = [{"from": "human", "value": "<image>\nMirror it."}, {"from": "gpt", "value": "Here: <dream>"}]
    records = [
        {"id": 1, "image": "0.png", "conversations": turns},
        {"id": "two", "image": ["1.png", "2.png"], "conversations": generated},
        {"id": "3", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    ]
    (folder / "talk.json").write_text(json.dumps(records))
    samples = by_record(opened(processor, folder, {"kind": "conversations", "path": "talk.json"}))
    assert [numbers(sample.images) for sample in samples] == [[0], [1, 2], []]
    assert [numbers(sample.targets) for sample in samples] == [[], [2], []]


def test_instructions_are_followed_by_their_document(processor, folder) -> None:
    record = {
        "instruction": "Tell a story.",
        "text_list": ["One.", "Two."],
        "image_info": [{"image_name": "1.png", "matched_text_index": 0}],
    }
    (folder / "instructions.jsonl").write_text(lines([record]))
    (sample,) = by_record(opened(processor, folder, {"kind": "instructions", "path": "instructions.jsonl"}))
    assert words(processor, sample).endswith("USER: Tell a story. ASSISTANT: One. Two.")
    assert numbers(sample.targets) == [1]


def test_an_image_is_generated_from_another_or_from_itself(processor, folder) -> None:
    records = [{"image": "0.png", "target": "1.png"}, {"image": "2.png", "target": "3.png", "caption": "Paint it."}]
    (folder / "edits.jsonl").write_text(lines(records))
    source = {"kind": "image_pairs", "path": "edits.jsonl"}
    samples = by_record(opened(processor, folder, source))
    assert [(numbers(s.images), numbers(s.targets), words(processor, s)) for s in samples] == [
        ([0], [1], ""),
        ([2], [3], "Paint it."),
    ]
    drawn = [opened(processor, folder, source | more) for more in ({}, {"flip": True}, {"mode": "reconstruction"})]
    mirrored = [any(data[index].mirrored[0] for index in range(20)) for data in drawn]
    assert mirrored == [False, True, True]  # the image of a pair is not
    samples = by_record(opened(processor, folder, source | {"mode": "reconstruction"}))
    assert [(numbers(s.images), numbers(s.targets)) for s in samples] == [([0], [0]), ([2], [2])]
    (folder / "edits.jsonl").write_text(lines([{"image": "0.png", "goal": "1.png"}]))
    (sample,) = by_record(opened(processor, folder, source | {"columns": {"target": "goal"}}))
    assert numbers(sample.targets) == [1]
    with pytest.raises(InputError, match="no target"):
        by_record(opened(processor, folder, source))


def test_images_below_the_minimal_size_are_not_used_and_not_broken(processor, folder) -> None:
    Image.new("RGB", (64, 19)).save(folder / "images" / "small.png")
    rows = [*PAIRS, {"image": "small.png", "caption": "small"}]
    (folder / "pairs.jsonl").write_text(lines(rows))
    source = {"kind": "pairs", "path": "pairs.jsonl", "min_size": 20}  # the others have 20 x 20 pixels
    data = opened(processor, folder, source)
    assert {words(processor, data[index]) for index in range(40)} == set(CAPTIONS)
    assert data.broken.entries() == []
    infos = [{"image_name": name, "matched_text_index": 0} for name in ("0.png", "small.png", "bad.png")]
    (folder / "docs.jsonl").write_text(lines([{"text_list": ["One."], "image_info": infos}]))
    documents = opened(processor, folder, source | {"kind": "mmc4", "path": "docs.jsonl"})
    assert numbers(documents[0].targets) == [0]
    assert [entry["key"] for entry in documents.broken.entries()] == ["record 0"]  # the damaged one
    with pytest.raises(
        UsageError, match=r"50 consecutive .* too small, most recently: an image of 20 x 20 is below min_size 21"
    ):
        opened(processor, folder, source | {"min_size": 21})[0]


def test_broken_records_are_listed_and_images_stay_with_their_captions(processor, folder) -> None:
    good = [{"image": f"{i % 4}.png", "caption": f"image {i % 4}"} for i in range(40)]
    broken = {
        5: ("{broken", "not JSON"),
        9: (json.dumps({"image": "bad.png", "caption": "x"}), "cannot be read"),
        13: (json.dumps({"image": "none.png", "caption": "x"}), "cannot be read"),
        17: (json.dumps({"image": "../images/0.png", "caption": "x"}), "outside its folder"),
        21: (json.dumps({"image": "0.png", "caption": " "}), "no caption"),
        25: (json.dumps({"caption": "x"}), "no image"),
        29: ("[1, 2]", "expected a JSON object"),
    }
    rows = [broken[i][0] if i in broken else json.dumps(record) for i, record in enumerate(good)]
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    data = opened(processor, folder, {"kind": "pairs", "path": "pairs.jsonl", "name": "mine"})
    for index in range(len(data)):
        sample = data[index]
        assert words(processor, sample) == f"image {numbers(sample.images + sample.targets)[0]}"
    found = {entry["key"]: entry for entry in data.broken.entries()}
    assert set(found) == {f"record {i}" for i in broken}
    for i, (_, reason) in broken.items():
        assert reason in found[f"record {i}"]["reason"]
        assert found[f"record {i}"]["source"] == "mine"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(allow_nan=False) | st.sampled_from(["", "x", "0.png"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["image_name", "from", "x"]), inner),
    max_leaves=5,
)
INFO = {"image_name": "0.png", "matched_text_index": 0, "matched_sim": 0.5}
GOOD: dict[str, dict] = {
    "pairs": {"image": "0.png", "caption": "x"},
    "image_pairs": {"image": "0.png", "target": "1.png", "caption": "x"},
    "mmc4": {"text_list": ["One.", "Two."], "image_info": [INFO]},
    "instructions": {"instruction": "Go.", "text_list": ["One.", "Two."], "image_info": [INFO]},
    "obelics": {"texts": ["One.", None], "images": [None, "0.png"]},
    "conversations": {
        "image": "0.png",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}],
    },
}


@pytest.mark.parametrize("kind", GOOD)
def test_no_record_can_crash_training(processor, folder, kind) -> None:
    """With any value in any field at any depth, the record gives a sample or an InputError."""
    (folder / "x.jsonl").write_text(lines([GOOD[kind]]))
    source = opened(processor, folder, {"kind": kind, "path": "x.jsonl"}).sources[0]
    good = source.sample(0, random.Random(0), lambda reason: None)
    assert good.images or good.targets
    source.table = table = SimpleNamespace()

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def check(data) -> None:
        record = json.loads(json.dumps(GOOD[kind]))
        spot, inside = record, True
        while inside:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            key = data.draw(st.sampled_from(keys))
            inside = isinstance(spot[key], dict | list) and bool(spot[key]) and data.draw(st.booleans())
            spot, parent = spot[key], spot
        parent[key] = data.draw(JUNK)
        table.record = lambda index: record
        with contextlib.suppress(InputError):
            assert source.sample(0, random.Random(0), lambda reason: None).has_loss

    check()


def test_a_document_only_loses_the_broken_image(processor, folder) -> None:
    names = ["0.png", "bad.png", "2.png"]
    record = {
        "text_list": ["One.", "Two.", "Three."],
        "image_info": [{"image_name": name, "matched_text_index": i} for i, name in enumerate(names)],
    }
    without = {**record, "image_info": [{"image_name": "bad.png", "matched_text_index": 0}]}
    (folder / "docs.jsonl").write_text(lines([record, without]))
    data = opened(processor, folder, {"kind": "mmc4", "path": "docs.jsonl", "min_similarity": 0})
    for index in range(2):
        sample = data[index]
        assert numbers(sample.images) == numbers(sample.targets) == [0, 2]
        assert words(processor, sample) == "One. Two. Three."
    reasons = [(entry["key"], entry["reason"]) for entry in data.broken.entries()]
    assert any(key == "record 0" and "bad.png" in reason for key, reason in reasons)
    assert any(
        key == "record 1" and "none of its images can be read (1), the first: image" in why for key, why in reasons
    )


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/passwd", "C:\\x.png", "..\\x.png", "", None, 3])
def test_images_cannot_be_outside_their_folder(folder, name) -> None:
    (folder / "x.png").write_bytes(png(COLORS[0]))
    with pytest.raises(InputError, match=r"outside its folder|must be a file name"):
        open_image(name, folder / "images")


def test_a_truncated_image_is_an_error(folder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    for length in (10, 60, 2000):
        with pytest.raises(InputError, match="cannot be read"):
            open_image(buffer.getvalue()[:length], folder)


def test_an_image_is_turned_upright_and_damaged_exif_is_no_reason_to_refuse_it(folder) -> None:
    image, exif = Image.new("RGB", (2, 4)), Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    for data, size in ((exif.tobytes(), (4, 2)), (b"Exif\0\0MM\0", (2, 4)), (exif.tobytes()[:-4], (4, 2))):
        image.save(folder / "images" / "turned.png", exif=data)
        assert open_image("turned.png", folder / "images").size == size


def test_too_many_broken_records_are_an_error(processor, folder) -> None:
    rows = [{"image": f"{i}.png" if i < 4 else f"none{i}.png", "caption": "x"} for i in range(12)]
    (folder / "pairs.jsonl").write_text(lines(rows))
    data = opened(processor, folder, {"kind": "pairs", "path": "pairs.jsonl"}, max_broken=3)
    with pytest.raises(UsageError, match="more than 3 records or images are broken"):
        [data[index] for index in range(len(data))]
    (folder / "all.jsonl").write_text(lines(rows[4:]))
    data = opened(processor, folder, {"kind": "pairs", "path": "all.jsonl"})
    with pytest.raises(
        UsageError, match=r"are broken or too small, most recently: image .*none\d+\.png cannot be read"
    ):
        data[0]


def test_processes_share_a_file_of_broken_records(processor, folder) -> None:
    (folder / "pairs.jsonl").write_text(lines([*PAIRS, {"image": "none.png", "caption": "x"}]))
    recipe = {"cache": "cache", "sources": [{"kind": "pairs", "path": "pairs.jsonl", "images": "images"}]}
    listed = folder / "out" / "broken.jsonl"
    first, second = (training_dataset(recipe, processor, folder=folder, broken_file=listed) for _ in range(2))
    for index in range(5):
        first[index]
    assert len(listed.read_text().splitlines()) == 1
    assert [entry["key"] for entry in second.broken.entries()] == ["record 4"]
    for index in range(5):
        second[index]
    assert len(listed.read_text().splitlines()) == 1
    for data, key in (
        (first, "record 10"),
        (second, "record 10"),
        (first, "record 9"),
    ):  # each has not read the other's
        data.broken.add("a", key, "torn")
    second.broken.finish()
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [entry["key"] for entry in entries] == ["record 9", "record 10", "record 4"]


def test_a_changed_file_is_read_anew(processor, folder) -> None:
    for name, text in (("x.jsonl", lines), ("x.json", json.dumps)):
        for count in (2, 3):
            (folder / name).write_text(text(PAIRS[:count]))
            assert len(opened(processor, folder, {"kind": "pairs", "path": name})) == count


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "pairs", "path": "none.jsonl"}, r"none\.jsonl is missing"),
        ({"kind": "pairs", "path": "x.csv"}, "format of data file .* is unknown"),
        ({"kind": "pairs", "path": "pairs.jsonl", "images": "none"}, "image folder .* is missing"),
        ({"kind": "films", "path": "x"}, r"data\.sources\.0\.kind"),
        ({"kind": "pairs", "path": "pairs.jsonl", "wieght": 1}, r"data\.sources\.0\.wieght"),
        ({"kind": "pairs", "path": "pairs.jsonl", "mode": "both"}, "choose from either, comprehension, generation"),
        ({"kind": "pairs", "path": "pairs.jsonl", "weight": 0}, "greater than 0"),
        ({"kind": "pairs", "path": ["pairs.jsonl", "pairs.json"]}, "must have one format, not json and text"),
        ({"kind": "pairs", "path": "number.json"}, "neither a list nor an object with COCO's"),
        ({"kind": "pairs", "path": "empty.json"}, "has no records"),
        ({"kind": "pairs", "path": "empty.jsonl"}, r"empty\.jsonl is empty"),
        ({"kind": "pairs", "path": "broken.parquet"}, "cannot be read as parquet"),
        ({"kind": "pairs", "path": "broken.tar"}, "cannot be read as webdataset"),
        ({"kind": "pairs", "path": "coco.json"}, "not have the layout of COCO's captions"),
        ({"kind": "pairs", "path": "."}, "is a folder: name its files"),
        ({"kind": "pairs", "path": []}, r"data\.sources\.0\.path"),
        ({"kind": "pairs", "path": "pairs.jsonl", "weight": float("inf")}, "finite"),
        (
            {"kind": "pairs", "path": "pairs.jsonl", "columns": {"caption": "words"}},
            r"no caption \(tried words;",
        ),
    ],
)
def test_a_wrong_source_is_reported_in_one_line(processor, folder, source, message) -> None:
    write_jsonl(folder)
    write_json(folder)
    (folder / "x.csv").write_text("a,b")
    (folder / "number.json").write_text("3")
    (folder / "empty.json").write_text("[]")
    (folder / "empty.jsonl").touch()
    (folder / "broken.parquet").write_bytes(b"not parquet")
    (folder / "broken.tar").write_bytes(b"x" * 2000)
    (folder / "coco.json").write_text('{"images": [{}], "annotations": []}')
    with pytest.raises(UsageError, match=message) as raised:
        opened(processor, folder, source)[0]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["x.json", "x.json.gz", "x.jsonl.gz", "x.jsonl.zip", "x.parquet", "x.tar"])
def test_a_damaged_stream_is_reported_in_one_line(processor, folder, name) -> None:
    (folder / name).write_bytes(b"{damaged" * 200)
    source = {"kind": "pairs", "path": name, "streaming": True, "weight": 1}
    with pytest.raises(UsageError, match=f"{name} cannot be read as") as raised:
        opened(processor, folder, source, samples=4)[0]
    assert "\n" not in str(raised.value)
