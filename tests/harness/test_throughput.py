"""What `dreambench bench` measures is so: the time that a command spends is where it says, and others read its file."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
from transformers import ProcessorMixin

from dreambench import api, cli, images, registry, throughput
from dreambench.errors import DataError, RunError, UsageError
from dreambench.leaderboard import throughput as rows
from dreambench.metrics import features
from dreambench.runner import Worker
from dreambench.store import RunFolder
from dreambench.throughput import CASES, PHASES, SIZES, Case, measure, to_benchmarks, typical
from dreamllm import cli as dreamllm_cli
from dreamllm.processing import DreamLLMProcessor

DATE = "2026-01-02T03:04:05+00:00"
SECONDS = 0.5


def made(**changes: Any) -> dict[str, Any]:
    shares = {f"share_{name}": 0.1 for name in PHASES}
    score = {
        "metric": "accuracy",
        "value": 50.0,
        "unit_of_value": "%",
        "interval": [4.0, 60.0],
        "n": 8,
        "protocol": "p@1-0",
    }
    speed = {
        "unit": "questions/s",
        "rate": 4.0,
        "p50_s": 0.1,
        "p95_s": 0.2,
        "items": 8,
        "errors": 0,
        "seconds": 2.0,
        "cpu_s": 1.0,
        "peak_mb": 100,
    }
    where = {"device": "cpu", "machine": {"cpu_count": 2}, "versions": {"torch": "2"}, "load": 0.5}
    return {"task": "vqav2", "model": "echo", "size": "tiny", **speed, **score, **where, **shares} | changes


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """One command: two batches of a model that waits."""
    case = Case("made", "vqav2", "questions/s", (8, 8, 8))
    return measure(case, "tiny", ("--model", "echo", "--model-arg", f"delay={SECONDS}", "--batch-size", "4"))


def test_each_moment_counts_once_and_where_it_was_spent(measured: dict[str, Any]) -> None:
    spent = {name: measured[f"share_{name}"] * measured["seconds"] for name in PHASES}
    assert sum(spent.values()) <= measured["seconds"]
    assert 2 * SECONDS - 0.1 < spent["model"] < 2 * SECONDS + 0.5 * measured["seconds"]
    assert spent["imports"] > 0.1
    assert 0.3 < measured["cpu_s"] < measured["seconds"] - SECONDS, "waiting is no work"
    assert measured["items"] == 8
    assert measured["rate"] == pytest.approx(8 / measured["seconds"], rel=1e-3)
    assert SECONDS / 4 <= measured["p50_s"] <= measured["p95_s"] < measured["seconds"] / 4
    assert 30 < measured["peak_mb"] < 600, "of the command alone, not of the process that started it"
    assert (measured["task"], measured["model"], measured["metric"], measured["n"]) == ("vqav2", "echo", "accuracy", 8)
    assert measured["protocol"].startswith("official@1-")


def test_a_thread_that_waits_is_not_taken_for_another_one() -> None:
    with throughput._sampled() as seconds:
        time.sleep(0.2)
    assert set(seconds) == {"rest"}
    assert seconds["rest"] == pytest.approx(0.2, abs=0.15)


@pytest.mark.parametrize(
    ("phase", "function"),
    [
        ("loading", registry.load_model),
        ("loading", features.load_extractor),
        ("storing", RunFolder.begin),
        ("storing", RunFolder.append),
        ("storing", RunFolder.note_timing),
        ("storing", RunFolder.write_scores),
        ("storing", RunFolder.write_metrics),
        ("storing", images.encode_png),
        ("scoring", api._score),
        ("preprocessing", api.plan),
        ("preprocessing", PIL.Image.open),
        ("preprocessing", DreamLLMProcessor.pixel_values),
        ("preprocessing", ProcessorMixin.apply_chat_template),
        ("model", Worker._answer),
        (None, Worker.work),
    ],
)
def test_the_functions_by_which_time_is_told_apart_have_their_names(phase: str | None, function: Any) -> None:
    code = inspect.unwrap(function).__code__
    known: dict[Any, Any] = {}
    throughput._phase(SimpleNamespace(f_code=code, f_back=None), known)  # type: ignore[arg-type]
    assert known == {code: phase}


def test_pytest_benchmark_and_the_leaderboard_read_its_file(measured: dict[str, Any], tmp_path: Path) -> None:
    slower = measured | {"seconds": 2 * measured["seconds"]}
    for name, found in {"before": [slower], "after": [measured, slower, slower]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(to_benchmarks({"vqav2": found}, DATE)))
    line = [
        sys.executable,
        "-m",
        "pytest_benchmark",
        "compare",
        "before.json",
        "after.json",
        "--columns=min,max,rounds",
    ]
    shown = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"^vqav2 ", shown, re.MULTILINE)) == 2
    assert "(2.0" in shown, "times slower"
    rows.add(tmp_path / "after.json", tmp_path)
    (row,) = rows.read_all(tmp_path)
    assert (row["task"], row["date"], row["rate"]) == ("vqav2", DATE[:19], slower["rate"])


def test_the_verb_measures_writes_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str, Sequence[str]]] = []

    def fake(case: Case, size: str, options: Sequence[str]) -> dict[str, Any]:
        asked.append((case.name, size, options))
        return made(task=case.task, unit=case.unit, size=size, seconds=float(len(asked)), rate=8.0)

    monkeypatch.setattr(throughput, "measure", fake)
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(to_benchmarks({"vqav2": [made(versions={"torch": "1"})]}, DATE)))
    line = [
        "bench",
        "--size",
        "tiny",
        "--task",
        "vqav2,mmvet",
        "--model",
        "echo",
        "--model-arg",
        "delay=1",
        "--offline",
    ]
    with pytest.raises(SystemExit) as left:
        cli.main([*line, "--rounds", "3", "--json", str(after), "--compare", str(before)])
    assert left.value.code == 0
    options = ["--model", "echo", "--model-arg", "delay=1", "--offline"]
    assert asked == [(name, "tiny", options) for name in ("vqav2", "mmvet") for _ in range(3)]
    shown = capsys.readouterr().out
    assert "vqav2: 8 questions/s, was 4 (2.00 times); accuracy 50.0, was 50.0; differs: versions" in shown
    assert "mmvet, questions/s: not in the other file" in shown
    assert max(map(len, shown.splitlines()[:6])) <= 80
    written = json.loads(after.read_text())["benchmarks"]
    assert [one["extra_info"]["seconds"] for one in written] == [2.0, 5.0], "the round of median time"


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in (
        ((["vqa"], "tiny", 1, {}), "--task vqa: measured are vqav2"),
        ((None, "7b", 1, {"model": "echo"}), "leave --model out"),
        ((["vqav2"], "tiny", 1, {"dtype": "int4"}), "--dtype int4"),
    ):
        with pytest.raises(UsageError, match=message):
            throughput.bench(*arguments)
    for text in ("[]", '{"benchmarks": [{}]}', '{"benchmarks": [{"extra_info": 3}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match="not the JSON of"):
            throughput.bench(["vqav2"], "tiny", 1, {}, compare=tmp_path / "bad.json")
    with pytest.raises(UsageError, match="there is no folder"):
        throughput.bench(["vqav2"], "tiny", 1, {}, json=tmp_path / "absent" / "b.json")
    monkeypatch.setattr(throughput, "ROOM_7B", {"disk": 0, "gpu": 10**6, "memory": 10**6})
    with pytest.raises(
        UsageError, match=r"--size 7b: it needs a GPU with 1000000 GiB or 1000000 GiB of memory; this machine"
    ):
        throughput.bench(["vqav2"], "7b", 1, {})
    monkeypatch.setattr(throughput, "ROOM_7B", {"disk": 10**9, "gpu": 0, "memory": 0})
    with pytest.raises(UsageError, match=r"weights take 1000000000 GiB"):
        throughput.random_weights(tmp_path)


def test_a_command_that_fails_is_named_with_what_it_said() -> None:
    with pytest.raises(
        RunError, match=r"`dreambench run --task vqav2 --limit 8 --model ehco` ended with status 2: no model is called"
    ):
        measure(CASES[0], "tiny", ("--model", "ehco"))


def test_random_weights_of_a_preset_are_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to 7b, with the preset tiny: the embedded tokenizer and bfloat16."""

    def here(line: Sequence[str], **_: Any) -> SimpleNamespace:
        assert line[1:4] == ["-P", "-m", "dreamllm"]
        dreamllm_cli.app(list(line[4:]), standalone_mode=False)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(throughput.subprocess, "run", here)
    folder = throughput.random_weights(tmp_path, "tiny")
    config = json.loads((folder / "config.json").read_text())
    assert config["training"]
    assert (folder / "tokenizer.json").is_file()


def test_every_task_is_measured() -> None:
    ours = {
        name for name, point in registry.names(registry.TASKS).items() if point.value.startswith("dreambench_tasks")
    }
    assert {case.task for case in CASES} == ours
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(len(case.limits) == len(SIZES) for case in CASES)
    assert typical([made(seconds=3.0), made(seconds=1.0), made(seconds=2.0)])["seconds"] == 2.0
