"""Planted overlap is found and nothing else; training data of every format are read; what is shared by many samples is a template."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from dreambench.contamination import DISTANCE, Overlap, TextIndex, find_overlap, perceptual_hash, words
from dreambench.documents import Image, Text
from dreambench.errors import DreambenchError
from dreambench.interfaces import Task
from dreambench.registry import load_task
from dreambench.requests import Sample
from dreambench.spec import RunSpec
from dreambench.training_data import TrainingData
from dreambench_tasks.playground import ensure_default, write

LONG = "the quick brown fox jumps over the lazy dog and runs away from it"


def noise(seed: int, size: int = 96) -> Pillow.Image:
    """A random image with the spectrum of photographs, 1/f."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size, 3))
    for cells in (3, 6, 12, 24, 48):
        pixels = Pillow.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += (np.asarray(pixels.resize((size, size), Pillow.Resampling.BICUBIC)) - 128.0) * 2 / cells
    return Pillow.fromarray(np.clip(128 + total, 0, 255).astype(np.uint8))


def encoded(image: Pillow.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


class Made(Task):
    """A benchmark of given samples."""

    name = "made"
    protocol_names = {"p": "one"}  # noqa: RUF012

    def samples(self) -> Sequence[Sample]: ...  # type: ignore[empty-body]
    def protocols(self, samples: Any) -> Any: ...
    def request(self, sample: Any) -> Any: ...
    def score(self, run: Any, samples: Any, responses: Any) -> Any: ...


def overlap(samples: Sequence[Sample], train: Path | list[Path], **options: Any) -> Overlap:
    training = TrainingData(train if isinstance(train, list) else [train], texts_only=options.pop("texts_only", False))
    return find_overlap(Made(RunSpec(task="made")), samples, training, **options)


def manifest(folder: Path, records: Sequence[Mapping[str, Any]], name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# --- what is found ------------------------------------------------------------------------------------------------------


def test_planted_images_touch_exactly_their_samples(tmp_path: Path) -> None:
    images = [noise(seed) for seed in range(40)]
    samples = [Sample(f"s{i}", (Image(data=encoded(image)), Text(f"text {i}"))) for i, image in enumerate(images)]
    planted = {
        "bytes.png": encoded(images[3]),
        "pixels.png": encoded(images[5], compress_level=0),
        "jpeg.jpg": encoded(images[7], "JPEG", quality=75),
        "half.png": encoded(images[9].resize((48, 48))),
        "large.png": encoded(images[11].resize((300, 300))),
        "other.png": encoded(noise(999)),
    }
    for name, data in planted.items():
        (tmp_path / name).write_bytes(data)
    found = overlap(samples, manifest(tmp_path, [{"image": name, "caption": "none"} for name in planted]))
    assert {kind: found.touched(kind) for kind in ("same bytes", "same pixels", "similar image", "text")} == {
        "same bytes": ["s3"],
        "same pixels": ["s5"],
        "similar image": ["s7", "s9", "s11"],
        "text": [],
    }
    assert found.hits["s3"]["same bytes"].train == "train.jsonl:1"
    assert len(found.clean()) == 35


def test_ngrams_are_found_inside_texts_and_short_texts_only_whole(tmp_path: Path) -> None:
    texts = {
        "long": LONG,
        "short": "Is the dog lazy?",
        "absent": "nothing of this was ever in any training data at all",
        "empty": "…",
    }
    samples = [Sample(id_, (Text(text),)) for id_, text in texts.items()]
    for line, expected in (
        (f"He said: {LONG.upper().replace(' ', ',  ')}!", ["long"]),
        ("the lazy dog and runs away from", []),
        ("<image>\nis the dog LAZY\nAnswer with one word.", ["short"]),
        ("Then he asked: is the dog lazy?", []),
    ):
        found = overlap(samples, manifest(tmp_path, [{"caption": line}]), n=8)
        assert found.touched("text") == expected, line


def test_the_length_of_ngrams_is_gpt3_s(tmp_path: Path) -> None:
    train = manifest(tmp_path, [{"text": "x"}])
    for length, n in ((3, 8), (10, 10), (50, 13)):
        samples = [Sample(str(i), (Text(" ".join(f"w{i}x{j}" for j in range(length))),)) for i in range(20)]
        assert str(overlap(samples, train).check["text"]).startswith(f"{n}-grams")


def test_what_many_groups_share_is_a_template(tmp_path: Path) -> None:
    train = manifest(tmp_path, [{"text": "What is in the image?"}] * 3)

    def of(groups: int) -> Overlap:
        samples = [Sample(str(i), (Text("What is in the image?"),), group=str(i % groups)) for i in range(30)]
        return overlap(samples, train, template=10)

    assert of(11).hits == {}
    assert of(11).templates == [("what is in the image", 11, 3)]
    assert len(of(10).hits) == 30
    assert of(10).templates == []


def test_references_count_where_they_are_long_enough_to_be_a_sample_s_own(tmp_path: Path) -> None:
    samples = [Sample("s", (Text("q"),), {"answers": "yes\nno", "deep": [{"reference": LONG}], "n": 3})]
    assert overlap(samples, manifest(tmp_path, [{"text": "yes"}])).hits == {}
    assert overlap(samples, manifest(tmp_path, [{"text": LONG}])).touched("text") == ["s"]


def test_untouched_groups_are_whole(tmp_path: Path) -> None:
    samples = [Sample(f"{g}{i}", (Text(f"{g} {i} alone"),), group=g) for g in "abc" for i in range(3)]
    assert overlap(samples, manifest(tmp_path, [{"text": "b 1 alone"}])).clean() == ["a0", "a1", "a2", "c0", "c1", "c2"]


def test_scripts_without_spaces_have_words() -> None:
    assert words("图片里有什么? <image> Yes") == [*"图片里有什么", "yes"]
    index = TextIndex(4)
    index.add(0, "图片里有什么")
    assert index.found_in("请问:图片里有")


# --- the threshold --------------------------------------------------------------------------------------------------------


def test_similar_means_copies_and_hardly_ever_another_scene() -> None:
    """Measured: 8.6e-5 of the pairs of 1,024 scenes; none of 6,105 pairs of COCO photographs, which differ in 98 bits or more."""
    paths = sorted((ensure_default() / "val2017").iterdir())[:200]
    images = [Pillow.open(path).convert("RGB") for path in paths]
    hashes = np.stack([perceptual_hash(image) for image in images])
    bits = np.bitwise_count(hashes[:, None] ^ hashes).sum(axis=2)[np.triu_indices(len(images), 1)]
    assert (bits <= DISTANCE).mean() < 5e-4
    for image, mine in zip(images[:40], hashes, strict=False):
        for copy in (
            Pillow.open(io.BytesIO(encoded(image, "JPEG", quality=75))),
            image.resize((32, 32), Pillow.Resampling.BICUBIC),
            image.resize((224, 224)),
        ):
            assert np.bitwise_count(perceptual_hash(copy) ^ mine).sum() <= DISTANCE


# --- training data ----------------------------------------------------------------------------------------------------------


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_every_format_of_the_training_recipes_is_read(tmp_path: Path) -> None:
    """Each holds the sample's image and its text, and beside it a record of neither."""
    image, url = noise(1), "https://example.org/1.jpg"
    data = encoded(image)
    sample = [Sample("s", (Image(data=data), Text(LONG)))]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(data)
    (tmp_path / "images" / f"{hashlib.sha256(url.encode()).hexdigest()}.png").write_bytes(data)
    turns = [{"from": "human", "value": f"<image>\n{LONG}"}, {"from": "gpt", "value": "Yes."}]
    records: dict[str, Any] = {
        "pairs": {"image": "1.png", "caption": LONG},
        "mmc4": {"text_list": ["One.", LONG], "image_info": [{"image_name": "1.png", "matched_text_index": 0}]},
        "obelics": {"texts": [LONG, None], "images": [None, url]},
        "conversations": {"image": ["1.png"], "conversations": turns},
        "instructions": {"instruction": LONG, "text_list": ["."], "image_info": [{"image_name": "1.png"}]},
        "messages": {"images": ["1.png"], "messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]},
    }
    files: list[Path] = []
    for name, record in records.items():
        lines = f"{json.dumps(record)}\n{json.dumps({'image': 'absent.png', 'caption': 'x'})}\n"
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text(lines)
        files.append(tmp_path / f"{name}.json.gz")
        files[-1].write_bytes(gzip.compress(f"[{json.dumps(record)}]".encode()))
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(json.dumps(records["pairs"]).encode()))
    with zipfile.ZipFile(tmp_path / "p.jsonl.zip", "w") as archive:
        archive.writestr("p.jsonl", json.dumps(records["mmc4"]))
    coco = {"images": [{"id": 7, "file_name": "1.png"}], "annotations": [{"id": 1, "image_id": 7, "caption": LONG}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    pd.DataFrame([{"image": {"bytes": data, "path": None}, "text": LONG, "other": 3}]).to_parquet(
        tmp_path / "p.parquet"
    )
    tar(tmp_path / "t.tar", {"a/0.txt": b"x", "a/1.png": data, "a/1.json": json.dumps({"caption": LONG}).encode()})
    files += [tmp_path / name for name in ("p.jsonl.gz", "p.jsonl.zip", "coco.json", "p.parquet", "t.tar")]
    for file in files:
        training = TrainingData([file], tmp_path / "images")
        found = find_overlap(Made(RunSpec(task="made")), sample, training)
        assert set(found.hits.get("s", {})) == {"same bytes", "text"}, file.name
        assert (training.broken, training.empty) == (0, 0)

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data:\n  sources:\n  - {kind: pairs, path: 'pairs.jso*l', images: images}\n  - {path: [t.tar]}\n"
    )
    assert overlap(sample, recipe).check["training_files"] == ["pairs.jsonl", "t.tar"]
    assert set(overlap(sample, recipe).hits["s"]) == {"same bytes", "text"}
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "1.png").write_bytes(data)
    (folder / "1.txt").write_text(LONG)
    (folder / "2.txt").write_text("alone")
    assert set(overlap(sample, folder).hits["s"]) == {"same bytes", "text"}
    assert set(overlap(sample, folder, texts_only=True).hits["s"]) == {"text"}


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no image")
    names = ["broken.png", "absent.png", "../../etc/hostname", "/etc/hostname", "a" * 5000, "nul\0", ""]
    train = manifest(tmp_path, [{"image": name, "caption": "c"} for name in names])
    with train.open("ab") as file:
        file.write(b'{"image": \n[1]\n\xff\xfe\n{"other": 1}\n' + b"[" * 100_000 + b"\n\n")
    samples = [Sample("s", (Image(data=encoded(noise(1))), Text(LONG))), Sample("t", (Image(data=b"no image"),))]
    counts = overlap(samples, train).counts
    assert counts["unreadable_training_images"] == counts["training_images"] == len(names) - 1
    assert (counts["broken_lines"], counts["empty_records"], counts["broken_images"]) == (4, 5, 1)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("absent.jsonl", None, "no such file"),
        ("a.txt", b"text", "the formats are"),
        ("a.jsonl", b'{"other": 1}\n', "no text and no image"),
        ("a.json", b'{"images": 1}', "neither a list"),
        ("a.json", b'{"images": [1], "annotations": [2]}', "COCO"),
        ("a.json", b"[", "not JSON"),
        ("a.jsonl.gz", b"\x1f\x8b broken", "cannot be read"),
        ("a.jsonl.zip", b"no archive", "cannot be read"),
        ("a.parquet", b"no table", "cannot be read"),
        ("a.tar", b"no archive" * 100, "cannot be read"),
        ("a.yaml", b"data: {}", "no recipe"),
        ("a.yaml", b"data: {sources: [{path: none*.jsonl}]}", "matches no file"),
        ("a.yaml", b"data: {sources: [{path: 3}]}", "no recipe"),
    ],
)
def test_files_that_are_none_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DreambenchError, match=complaint) as error:
        overlap([Sample("s", (Text(LONG),))], tmp_path / name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_training_data_are_not_held(tmp_path: Path) -> None:
    train = manifest(tmp_path, [{"text": f"{i} " * 1000} for i in range(2000)])
    tracemalloc.start()
    assert sum(1 for _ in TrainingData([train])) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < train.stat().st_size / 5


# --- the benchmarks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vqav2", "mmbench", "mmvet", "coco_fid", "interleaved"])
def test_a_benchmark_s_own_files_touch_all_of_it_and_its_training_split_no_image(name: str, tmp_path: Path) -> None:
    task = load_task(RunSpec(task=name))
    samples = list(task.first(list(task.samples()), 12))
    own: list[dict[str, Any]] = []
    for sample in samples:
        images = [self_file(image, tmp_path) for image in task.benchmark_images(sample)]
        own.append({"texts": list(task.benchmark_texts(sample)), "images": images})
    found = find_overlap(task, samples, TrainingData([manifest(tmp_path, own)]), template=1000)
    assert found.touched("same bytes") == [sample.id for sample in samples]
    assert found.touched("text") == [sample.id for sample in samples]
    assert found.clean() == []
    write(tmp_path / "train", "train", 20, 0, ["pairs"])
    counts = find_overlap(task, samples, TrainingData([tmp_path / "train"]))
    assert not counts.touched("same bytes")
    assert not counts.touched("same pixels")
    assert counts.counts["unreadable_training_images"] == 0


def self_file(image: Image, folder: Path) -> str:
    """The image as a file below `folder`; its name."""
    name = f"{image.digest()}.png"
    (folder / name).write_bytes(image.read())
    return name
