"""Runs of any size: samples, plan, answers and data are streams and arrays that equal the lists they stand for."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dreambench
from dreambench import api, json_items
from dreambench.api import execute, score_run
from dreambench.batches import Batches, in_order, split
from dreambench.documents import Image, Text, digest
from dreambench.errors import DataError, RunError
from dreambench.files import parse_json
from dreambench.json_items import read_json_items
from dreambench.progress import progress_bar
from dreambench.requests import Request, Response, Sample, sample_seed
from dreambench.spec import RunSpec
from dreambench.store import Answers, RunFolder, StoredSamples

TOY = "toybench:Toy"


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan_by_lists(requests: list[Request], batch_size: int) -> list[list[int]]:
    """The rule of the plan, written with lists."""
    kinds: dict[str, dict[str, list[int]]] = {}
    for index, request in enumerate(requests):
        key = f"r{index}" if request.group is None else f"g{request.group}"
        kinds.setdefault(request.kind, {}).setdefault(key, []).append(index)
    planned: list[list[int]] = []
    for groups in kinds.values():
        ordered = sorted(groups.values(), key=lambda some: (-max(requests[i].length() for i in some), some[0]))
        flat = [index for members in ordered for index in members]
        planned += [flat[start : start + batch_size] for start in range(0, len(flat), batch_size)]
    return planned


@pytest.mark.parametrize("seed", range(20))
def test_the_plan_of_arrays_is_that_of_lists(seed: int) -> None:
    rng = random.Random(seed)
    requests = [
        Request(
            str(number),
            rng.choice(["generate_text", "generate_image", "loglikelihood"]),  # type: ignore[arg-type]
            (Text("x" * rng.randrange(6)),),
            group=rng.choice([None, None, *"abcde"]),
        )
        for number in range(rng.randrange(1, 60))
    ]
    for batch_size in (1, 4, 100):
        planned = in_order(requests).cut(batch_size)
        assert [members.tolist() for members in planned] == plan_by_lists(requests, batch_size)
        assert len(planned) == len(list(planned))


def test_halves_of_halves_are_named_after_their_batch() -> None:
    pieces = split(Batches.of([[4, 5, 6, 7, 8], [1]]), {"0", "0.1", "9"})
    assert [(name, members.tolist()) for name, members in pieces] == [
        ("0.0", [4, 5, 6]),
        ("0.1.0", [7]),
        ("0.1.1", [8]),
        ("1", [1]),
    ]


def test_a_run_of_layout_2_is_resumed_and_scored(tmp_path: Path) -> None:
    """Its plan is in run.json, as lists."""
    folder = dreambench.run("toy", "echo", out=tmp_path, batch_size=8).folder
    whole = {name: (folder / name).read_bytes() for name in ("scores.parquet", "metrics.json")}
    run_file = json.loads((folder / "run.json").read_text())
    batches = [members.tolist() for members in RunFolder(folder).plan()]
    plan = {"batch_size": 8, "batches": batches}
    (folder / "run.json").write_text(json.dumps(run_file | {"format": 2, "plan": plan}))
    (folder / "plan.npz").unlink()
    score_run(folder)
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    answers = folder / "responses" / "rank-00000.jsonl"
    answers.write_bytes(b"".join(answers.read_bytes().splitlines(keepends=True)[:20]))
    for name in whole:
        (folder / name).unlink()
    dreambench.run("toy", "echo", out=tmp_path, batch_size=8)
    assert {name: (folder / name).read_bytes() for name in whole} == whole


# --- samples ----------------------------------------------------------------------------------------------------------


def made(count: int) -> list[Sample]:
    return [
        Sample(f"s{i}", (Image(path=f"/images/{i // 3}.jpg"), Text(f"é {i}?")), {"n": [i, None, 0.5]}, f"{i // 3}")
        for i in range(count)
    ]


def test_stored_samples_are_the_list_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredSamples, "ROWS", 7)
    samples = made(30)
    stored = StoredSamples.pack(iter(samples))
    assert len(stored) == 30
    assert list(stored) == samples
    assert [stored[number] for number in (29, 0, 14, -1)] == [samples[number] for number in (29, 0, 14, -1)]
    assert list(stored[5:20]) == samples[5:20]
    assert list(stored[::-4]) == samples[::-4]
    assert list(stored.ids()) == [sample.id for sample in samples]
    with pytest.raises(IndexError):
        stored[30]


def test_a_stored_sample_without_one_of_its_texts_is_damage(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "group": ["b"], "targets": ["{}"]}), tmp_path / "samples.parquet")
    stored = StoredSamples(tmp_path / "samples.parquet")
    for read in (list, lambda samples: samples[0]):
        with pytest.raises(RunError, match=r"samples\.parquet is missing or damaged \(KeyError\)"):
            read(stored)


class Streamed(dreambench.Task):
    """A task whose samples are an iterator, and which says what it reads."""

    name = "streamed"
    protocol_names: ClassVar[Mapping[str, str]] = {"only": "the only one"}
    reads = 0

    def inputs(self) -> list[Path]:
        assert self.spec.data_path is not None
        return [self.spec.data_path]

    def samples(self) -> Iterator[Sample]:
        Streamed.reads += 1
        (file,) = self.inputs()
        for line in file.read_text().splitlines():
            yield Sample(line, (Text(line),))

    def protocols(self, samples: Any) -> list[Any]:
        return [dreambench.Protocol("only", 1, {"n": len(samples), "reads": self.spec.data})]

    def request(self, sample: Sample) -> Request:
        return Request(sample.id, "generate_text", sample.prompt)

    def score(self, run: RunFolder, samples: Any, responses: Any) -> Any:
        return dreambench.TaskResult([{"id": sample.id, "answer": str(responses[sample.id])} for sample in samples], [])


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    (tmp_path / "data").write_text("one\ntwo\nthree\n")
    return RunSpec(task=f"{__name__}:Streamed", model="echo", data=str(tmp_path / "data"), batch_size=2)


def test_unchanged_data_are_read_once_and_changed_data_again(tmp_path: Path, spec: RunSpec) -> None:
    Streamed.reads = 0
    first = execute(spec, tmp_path / "runs")
    whole = (first.folder / "metrics.json").read_bytes()
    assert execute(spec, tmp_path / "runs").repeated
    (first.folder / "metrics.json").unlink()
    answers = first.folder / "responses" / "rank-00000.jsonl"
    answers.write_bytes(answers.read_bytes()[:30])
    assert not execute(spec, tmp_path / "runs").repeated
    assert (first.folder / "metrics.json").read_bytes() == whole
    assert Streamed.reads == 1
    (tmp_path / "data").write_text("one\ntwo\nthree\nfour\n")
    other = execute(spec, tmp_path / "runs")
    assert (other.folder != first.folder, Streamed.reads) == (True, 2)
    assert execute(spec, tmp_path / "runs", fresh=True).folder == other.folder
    assert Streamed.reads == 3, "--fresh reads everything"


@pytest.mark.parametrize("change", [{"limit": 2}, {"ids": ["two"]}, {"seed": 1}, {"model_arg": {"delay": "0.001"}}])
def test_another_spec_does_not_take_the_short_way(tmp_path: Path, spec: RunSpec, change: dict[str, Any]) -> None:
    execute(spec, tmp_path / "runs")
    Streamed.reads = 0
    execute(RunSpec(**{**spec.to_json(), **change}), tmp_path / "runs")
    assert Streamed.reads == 1


def test_other_code_or_another_system_does_not_take_the_short_way(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(spec, tmp_path / "runs")
    Streamed.reads = 0
    with monkeypatch.context() as patch:
        patch.setattr(api, "code_sha256", lambda kind: "edited")
        execute(spec, tmp_path / "runs")
    assert Streamed.reads == 1
    monkeypatch.setattr("dreambench.adapters.echo.Echo.identity", lambda self: {"name": "echo", "version": 99})
    assert not execute(spec, tmp_path / "runs").repeated
    assert Streamed.reads == 2


def test_progress_tells_what_is_answered_of_the_whole_run(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    asked = RunSpec(task="toy", model="echo", batch_size=25)
    folder = execute(asked, tmp_path, progress=lambda done, total: told.append((done, total))).folder
    ends = [0]
    for members in RunFolder(folder).plan():
        ends.append(ends[-1] + len(members))
    assert told == [(end, 60) for end in ends]
    answers = folder / "responses" / "rank-00000.jsonl"
    answers.write_bytes(b"".join(answers.read_bytes().splitlines(keepends=True)[: ends[1]]))
    (folder / "metrics.json").unlink()
    told.clear()
    execute(asked, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(end, 60) for end in ends[1:]]
    told.clear()
    api.rerun(folder, fresh=True, progress=lambda done, total: told.append((done, total)))
    assert told == [(end, 60) for end in ends]


def test_a_terminals_bar_of_progress_is_no_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output is for results, which a pipe may take while the bar moves."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar("vqav2 [1]") as update:
        update(1, 4)
        update(4, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "vqav2 [1]" in captured.err
    assert "4/4" in captured.err


# --- answers ----------------------------------------------------------------------------------------------------------


def line(batch: str, of: int, id_: str, text: str = "") -> str:
    return json.dumps({"batch": batch, "of": of, **Response(id_, (Text(text or id_),)).to_json()}) + "\n"


def test_answers_of_whole_batches_are_found_where_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "responses"
    folder.mkdir()
    failed = {"batch": "2", "of": 1, **Response.failed("f", "timeout", "too long").to_json()}
    (folder / "rank-00000.jsonl").write_text(
        line("0", 2, "a", "torn off") + line("0", 2, "a") + "\n" + line("0", 2, "b", "é") + json.dumps(failed) + "\n"
    )
    again = line("0", 2, "a", "a second time") + line("0", 2, "b", "a second time")
    (folder / "rank-00001.jsonl").write_text(again + line("1", 1, "c") + line("3", 2, "d") + line("4", 1, "e")[:-1])
    answers = Answers(tmp_path)
    assert set(answers) == {"a", "b", "c", "f"}
    assert len(answers) == 4
    assert [answers[id_].document for id_ in "abc"] == [(Text("a"),), (Text("é"),), (Text("c"),)]
    assert answers.batches == {"0", "1", "2"}
    assert answers.errors == {"f": "timeout"}
    with pytest.raises(RunError, match="the answer to d is missing"):
        answers["d"]


def test_a_folder_that_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run \(no run.json in it\)"):
        RunFolder.open(tmp_path)
    folder = dreambench.run("toy", "echo", out=tmp_path).folder
    assert RunFolder.open(folder).path == folder
    for content, message in (("{", "is damaged"), ('{"format": 1}', "layout 1"), ('{"format": 3}', "is damaged")):
        (folder / "run.json").write_text(content)
        with pytest.raises(RunError, match=message):
            RunFolder.open(folder)


def test_the_seed_of_a_sample_is_drawn_from_all_63_bits() -> None:
    seeds = {sample_seed(seed, f"id {number}") for seed in (0, 1) for number in range(2000)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        assert 1700 < sum(seed >> bit & 1 for seed in seeds) < 2300, "each bit is a coin"
    assert sample_seed(0, "a") != sample_seed(0, "b")
    assert sample_seed(7, "a") == sample_seed(7, "a") != sample_seed(8, "a")


# --- JSON -------------------------------------------------------------------------------------------------------------


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind >= 6:
        some = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        return some if kind == 6 else {f"k{number}": one for number, one in enumerate(some)}
    return [None, True, rng.randrange(-(10**9), 10**9), rng.random() * 1e9, 'a "quoted\\" é\n🙂 ]}', ""][kind]


@pytest.mark.parametrize("seed", range(12))
def test_items_of_a_stream_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(json_items, "CHUNK", rng.randrange(1, 40))
    content = {"info": value(rng), "items": [value(rng) for _ in range(rng.randrange(30))], "more": value(rng)}
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(text) if seed % 2 else b"\xef\xbb\xbf" + text + b"\n ")
    assert list(read_json_items(path, "items")) == content["items"] == parse_json(text.decode())["items"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[1]", 'has no list "items"'),
        ("{}", 'has no list "items"'),
        ('{"items": 1}', 'has no list "items"'),
        ('{"items": [1, 2', "is not JSON .*after item 2 of items"),
        ('{"items": [1 2]}', "is not JSON .*after item 1 of items"),
        ('{"items": [1,]}', "is not JSON"),
        ('{"items": [1], }', "is not JSON"),
        ('{"items": [1]} x', "is not JSON"),
        ('{"items": [1]', "is not JSON"),
        ('{"items": ["' + "long" * 99, "is not JSON"),
        ('{"items": [1], "items": [2]}', "'items' stands twice"),
        ('{"items": [{"a": 1, "a": 2}]}', "stands twice"),
        ('{"items": [NaN]}', "is not JSON"),
        ('{"items": [1e999]}', "is not JSON"),
        ("{'items': []}", "is not JSON"),
        ("{1: 2}", "is not JSON"),
        ('{"items": [' + "[" * 100_000, "is not JSON"),
        ('{"items": ["\udcff"]}', "not UTF-8"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_what_is_no_such_list_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, text: str, message: str
) -> None:
    monkeypatch.setattr(json_items, "CHUNK", chunk)
    path = tmp_path / "file.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=rf"file\.json.*{message}"):
        list(read_json_items(path, "items"))


def test_damaged_gzip_data_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file.json.gz"
    whole = gzip.compress(json.dumps({"items": list(range(10_000))}).encode())
    for data in (whole[: len(whole) // 2], whole[:40] + b"spoilt" + whole[46:], b"\x1f\x8b"):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"file\.json\.gz"):
            list(read_json_items(path, "items"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_json_items(tmp_path / "nothing", "items"))


def test_the_digest_of_an_iterator_is_that_of_its_list() -> None:
    for some in ([], [1], ["a", {"b": [2.5, None]}, "é"]):
        assert digest(iter(some)) == digest(some)
