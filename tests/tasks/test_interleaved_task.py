"""The task interleaved: what is asked, what is counted, and that scores depend on nothing but the run's answers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import dreambench
from dreambench.api import Result, plan, score_run
from dreambench.batches import in_order
from dreambench.documents import Image, Text
from dreambench.errors import DataError, ModelError, UsageError
from dreambench.metrics.compare import compare_folders
from dreambench.report.page import page
from dreambench.report.runs import load
from dreambench.spec import RunSpec
from dreambench_tasks import playground
from dreambench_tasks.interleaved.task import InterleavedTask

FD = "fd[playground-clip]"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 documents: two of six topics, one of the others."""
    return playground.write(tmp_path_factory.mktemp("world") / "data", n=36, formats=["documents"])


def run_task(world: Path, out: Path, model: str = "echo", **options: Any) -> Result:
    return dreambench.run("interleaved", model, data=world, features="playground-clip", out=out, **options)


def planned(world: Path, **options: Any) -> Any:
    spec = RunSpec(task="interleaved", model="echo", data=world, features="playground-clip", **options)
    return plan(spec, Path("nowhere"))


def records(world: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "documents.jsonl").read_text().splitlines()]


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "scores.parquet").set_index("id")


@pytest.fixture(scope="module")
def both(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_task(world, tmp_path_factory.mktemp("both"))


def test_without_a_protocol_both_modes_are_run_and_every_image_is_asked_once(world: Path, both: Result) -> None:
    found = rows(both.folder)
    images = sum("image" in part for record in records(world) for part in record["document"])
    assert found["mode"].value_counts().to_dict() == {"free": 36, "teacher-forced": images}
    heads = [score for score in both.scores if score.metric == FD and score.group is None]
    assert [score.protocol.partition("@")[0] for score in heads] == ["free", "teacher-forced"]
    assert [score.n for score in heads] == [36, images]
    assert both.scores[0] == heads[0]
    by_topic = [score for score in both.scores if score.value is not None and (score.group or "").startswith("topic=")]
    assert by_topic
    assert {score.better for score in by_topic} == {"lower"}, "distances, whose direction plots and ranks need"


def test_the_distance_is_that_of_the_images_as_folders(world: Path, both: Result, tmp_path: Path) -> None:
    run = load(both.folder)
    for score in (score for score in both.scores if score.metric == FD and score.group is None):
        mode = score.protocol.partition("@")[0]
        folder = tmp_path / mode
        folder.mkdir()
        for number, (id_, response) in enumerate(run.responses.items()):
            if id_.startswith(f"{mode}/"):
                (image,) = (part for part in response.document if isinstance(part, Image))
                (folder / f"{number}.png").write_bytes(image.read())
        alone = compare_folders(world / "documents", folder, ["clean"], "playground-clip")[0]
        # The order of images, and so the batches, differ: float32 features agree to some 1e-7.
        assert score.value == pytest.approx(alone.value, rel=1e-6)


def test_limit_counts_documents(world: Path) -> None:
    found = planned(world, limit=3)
    assert {sample.targets["document_id"] for sample in found.samples} == {"000000", "000001", "000002"}
    several = planned(world, limit=3, protocol=["free"], generation=["samples=4"])
    assert [sample.id for sample in several.samples] == [f"free/00000{d}/{k}" for d in range(3) for k in range(4)]


def test_requests_hold_what_precedes_the_image_and_nothing_else(world: Path) -> None:
    record = next(record for record in records(world) if sum("image" in part for part in record["document"]) == 3)
    names = [f"{mode}/{record['id']}/2" for mode in ("teacher-forced", "matched-text")]
    options = {"protocol": ["teacher-forced", "matched-text"], "ids": names}
    texts = [part["text"] for part in record["document"] if "text" in part]
    by_id = {request.id: request for request in planned(world, **options).requests()}
    whole = by_id[names[0]].document
    assert [part.text for part in whole if isinstance(part, Text)] == [record["instruction"], *texts[:3]]
    assert [Path(part.path or "").name for part in whole if isinstance(part, Image)] == [
        Path(part["image"]).name for part in record["document"] if "image" in part
    ][:2]
    assert by_id[names[0]].settings["user_parts"] == 1
    assert by_id[names[1]].document == (Text(record["matched"][2]),)
    assert "user_parts" not in by_id[names[1]].settings
    bare = {r.id: r for r in planned(world, **options, generation=["context_images=none"]).requests()}
    assert bare[names[0]].document == (Text(record["instruction"]), Text(" ".join(texts[:3])))


def test_seeds_depend_on_the_sample_alone(world: Path) -> None:
    everything = {request.id: request.seed for request in planned(world, generation=["samples=2"]).requests()}
    assert len(set(everything.values())) == len(everything)
    few = ["teacher-forced/000007/0", "free/000020/1"]
    assert {r.id: r.seed for r in planned(world, generation=["samples=2"], ids=few).requests()} == {
        id_: everything[id_] for id_ in few
    }
    assert next(planned(world, generation=["samples=2"], ids=few, seed=1).requests()).seed != everything[few[1]]


def test_a_protocol_is_what_defines_the_measurement(world: Path) -> None:
    def ids(**options: Any) -> dict[str, str]:
        found = planned(world, protocol=["free", "teacher-forced", "matched-text"], **options)
        return {protocol.name: protocol.id for protocol in found.protocols}

    base = ids(limit=8)
    assert ids(limit=8) == base
    assert ids(limit=8, generation=["num_inference_steps=3", "temperature=1.0", "max_images=2"]) == base

    def differ(**options: Any) -> set[str]:
        return {name for name, id_ in ids(**options).items() if base[name] != id_}

    assert differ(limit=8, generation=["context_images=none"]) == {"teacher-forced"}
    assert differ(limit=8, generation=["samples=2"]) == {"free"}
    assert differ(limit=9) == set(base)


def test_a_batch_has_requests_of_one_kind(world: Path) -> None:
    requests = list(planned(world).requests())
    kinds = [{requests[index].kind for index in batch} for batch in in_order(requests).cut(5)]
    assert all(len(kind) == 1 for kind in kinds)
    assert sorted(index for batch in in_order(requests).cut(5) for index in batch) == list(range(len(requests)))


def test_documents_of_each_topic_are_chosen_by_their_ids(world: Path, tmp_path: Path) -> None:
    options = {"protocol": ["free"], "generation": ["documents_per_topic=1"]}
    chosen = [sample.targets for sample in planned(world, **options).samples]
    assert sorted(targets["topic"] for targets in chosen) == sorted({record["topic"] for record in records(world)})
    others = [sample.targets["document_id"] for sample in planned(world, **options, seed=5).samples]
    assert others == [targets["document_id"] for targets in chosen], (
        "the seed is the system's, the choice the protocol's"
    )
    with pytest.raises(DataError, match=r"documents_per_topic=2: the topic .* has 1; take at most that"):
        planned(world, generation=["documents_per_topic=2"])


def test_data_without_instructions_or_topics_say_what_is_missing(tmp_path: Path) -> None:
    data = playground.write(tmp_path / "data", n=6, formats=["stories"])
    (data / "stories_val.jsonl").write_text(
        "".join(
            json.dumps({**json.loads(line), "topic": ""}) + "\n"
            for line in (data / "stories_val.jsonl").read_text().splitlines()
        )
    )
    with pytest.raises(DataError, match="has no instruction, which the protocol free needs"):
        planned(data)
    found = planned(data, protocol=["teacher-forced"])
    assert next(found.requests()).settings["user_parts"] == 0
    with pytest.raises(DataError, match=r"6 documents \(first stories_val-1\) have no topic"):
        planned(data, protocol=["teacher-forced"], generation=["documents_per_topic=1"])


@pytest.mark.parametrize(
    "setting", ["temperature=-1", "samples=0", "max_images=-1", "context_images=some", "clip=somewhere"]
)
def test_settings_out_of_range_are_refused(world: Path, setting: str) -> None:
    with pytest.raises(UsageError, match=f"--generation {setting}"):
        planned(world, generation=[setting], limit=2)


def test_a_model_that_writes_no_documents_is_refused_before_it_answers(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs generate_interleaved"):
        run_task(world, tmp_path, f"folder:{world / 'documents'}")


def test_the_references_themselves_are_at_distance_zero_and_lost_documents_are_counted(
    world: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    shutil.copytree(world / "documents", made / "documents")
    lines = (world / "documents.jsonl").read_text().splitlines(keepends=True)
    (made / "documents.jsonl").write_text("".join(lines))
    result = run_task(world, tmp_path / "whole", f"documents:{made}", protocol=["free"])
    scores = {score.metric: score for score in result.scores if score.group is None}
    assert scores[FD].value == pytest.approx(0, abs=1e-6)
    assert (scores["image_count_match"].value, scores["layout_agreement"].value) == (100, 1)
    assert result.metrics is not None
    assert result.metrics["system"]["generation"] == "made elsewhere"
    (made / "documents.jsonl").write_text("".join(lines[4:]))
    result = run_task(world, tmp_path / "part", f"documents:{made}", protocol=["free"])
    assert result.errors == 4
    scores = {score.metric: score for score in result.scores if score.group is None}
    assert (scores["words"].n, scores["words"].unscored, scores[FD].unscored) == (32, 4, 4)
    assert rows(result.folder)["error"].dropna().tolist() == ["no-answer"] * 4


def test_documents_left_out_of_the_data_are_in_the_protocol_and_the_notes(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    (data / "documents" / "000003_0.png").unlink()
    result = run_task(data, tmp_path / "runs", limit=6)
    assert result.metrics is not None
    assert "1 document left out of the data, missing images (first 000003)" in result.metrics["notes"]
    assert "free/000003/0" not in rows(result.folder).index


def test_scoring_again_needs_neither_data_nor_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = playground.write(tmp_path / "data", n=6, formats=["documents"])
    result = run_task(data, tmp_path / "runs")
    before = {name: (result.folder / name).read_bytes() for name in ("metrics.json", "scores.parquet")}
    shutil.rmtree(data)
    shutil.move(result.folder, tmp_path / "moved")
    for name in ("dreambench.metrics.features.load_extractor", "dreambench.metrics.encoders.ClipScorer"):
        monkeypatch.setattr(name, lambda *_a, **_k: pytest.fail("weights were loaded"))
    score_run(tmp_path / "moved")
    assert {name: (tmp_path / "moved" / name).read_bytes() for name in before} == before


def test_killed_while_answering_and_while_scoring_it_ends_in_the_same_bytes(
    world: Path, both: Result, tmp_path: Path
) -> None:
    line = [sys.executable, "-m", "dreambench", "run", "--task", "interleaved", "--data", str(world)]
    line += ["--features", "playground-clip", "--model", "echo", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    slow = [*line, "--model-arg", "delay=0.2"]

    def written() -> int:
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*/responses/rank-*.jsonl"))

    process = subprocess.Popen(slow, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not written():
        time.sleep(0.01)
    time.sleep(random.Random(1).uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < written() < len(rows(both.folder))
    process = subprocess.Popen(slow, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("*/features/*/generated.npz")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("*/metrics.json")), "the second kill came after the scores"
    subprocess.run(line, env=environment, check=True, capture_output=True)
    (killed,) = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert killed.name == both.folder.name
    for name in ("metrics.json", "scores.parquet"):
        assert (killed / name).read_bytes() == (both.folder / name).read_bytes()
    assert not list(killed.rglob("*.tmp*"))


def test_the_page_shows_random_documents_beside_their_references_and_escapes_them(world: Path, tmp_path: Path) -> None:
    data, made = tmp_path / "data", tmp_path / "made"
    shutil.copytree(world, data)
    hostile = [{**record, "instruction": "<script>alert(1)</script>"} for record in records(world)]
    (data / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in hostile))
    shutil.copytree(data, made)
    evil = [
        {"id": record["id"], "document": [{"text": "</p><img src=x onerror=alert(1)>"}, *record["document"][1:]]}
        for record in hostile
    ]
    (made / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in evil))
    result = run_task(data, tmp_path / "runs", f"documents:{made}", protocol=["free"], limit=5)
    text = page([load(result.folder)])
    assert text.count('<article class="sample">') == 5, "without the script"
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    shown = sum(2 * len(record["matched"]) for record in hostile[:5])
    assert text.count('<img src="data:image/jpeg') == shown
    assert "not kept in the run" not in text


def test_the_page_of_both_modes_ranks_images_by_similarity_and_has_their_references(both: Result) -> None:
    text = page([load(both.folder)])
    assert '"column":"similarity"' in text
    assert '"h":"nearest reference images"' in text
    assert "not kept in the run" not in text


def test_offline_holds_for_the_network_of_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(spec: str, device: object, *, offline: bool = False) -> None:
        raise UsageError(f"{spec} offline: {offline}")

    monkeypatch.setattr("dreambench.metrics.features.load_extractor", load)
    for offline in (True, False):
        task = InterleavedTask(RunSpec(task="interleaved", features="inception", offline=offline))
        with pytest.raises(UsageError, match=f"inception offline: {offline}"):
            _ = task._networks  # pyright: ignore[reportPrivateUsage]
