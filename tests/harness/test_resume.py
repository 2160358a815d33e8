"""Nothing lost: a run killed anywhere, or shared among processes, ends in the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import dreambench
from dreambench.files import temporary_name

RESULTS = ("scores.parquet", "metrics.json")


def command(out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "dreambench",
        "run",
        "--task",
        "toy",
        "--model",
        "echo",
        "--batch-size",
        "4",
        "--out",
        str(out),
        *more,
    ]


def folder(out: Path) -> Path:
    (found,) = [path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return found


def results(out: Path) -> dict[str, bytes]:
    return {name: (folder(out) / name).read_bytes() for name in RESULTS}


def answers_written(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*/responses/rank-*.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, outside_environment: dict[str, str]) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(out), env=outside_environment, check=True, capture_output=True)
    return results(out)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_points_it_ends_in_the_same_bytes(
    tmp_path: Path, outside_environment: dict[str, str], undisturbed: dict[str, bytes], seed: int
) -> None:
    log, chance = tmp_path / "requests.log", random.Random(seed)
    out = tmp_path / "runs"
    slow = command(out, "--model-arg", "delay=0.05", "--model-arg", f"log={log}")
    landed = 0
    for _ in range(3):
        before = answers_written(out)
        process = subprocess.Popen(slow, env=outside_environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and answers_written(out) == before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        landed += 0 < answers_written(out) < 60
    assert landed > 0, "no kill landed with some but not all answers written"
    subprocess.run(slow, env=outside_environment, check=True, capture_output=True)
    assert results(out) == undisturbed
    asked = Counter(line.split()[1] for line in log.read_text().splitlines())
    assert set(asked) == {f"toy-{i:02d}" for i in range(60)}
    # A batch that was asked but not yet on disk when the kill came is asked again: at most one per kill.
    assert sum(asked.values()) <= 60 + 3 * 4


def test_a_torn_line_is_cut_off_and_its_batch_asked_again(
    tmp_path: Path, outside_environment: dict[str, str], undisturbed: dict[str, bytes]
) -> None:
    out, log = tmp_path / "runs", tmp_path / "requests.log"
    subprocess.run(command(out), env=outside_environment, check=True, capture_output=True)
    for name in RESULTS:
        (folder(out) / name).unlink()
    answers = folder(out) / "responses" / "rank-00000.jsonl"
    whole = answers.read_bytes()
    answers.write_bytes(whole[:-25])
    subprocess.run(command(out, "--model-arg", f"log={log}"), env=outside_environment, check=True, capture_output=True)
    assert results(out) == undisturbed
    assert len(log.read_text().splitlines()) == 4
    # The three whole lines of the broken batch stay; the whole batch stands after them.
    assert answers.read_bytes().count(b"\n") == 63


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_give_the_same_bytes(
    tmp_path: Path, outside_environment: dict[str, str], undisturbed: dict[str, bytes], world: int
) -> None:
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(world),
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    out = tmp_path / "runs"
    line = [*launch, *command(out)[1:]]
    done = subprocess.run(line, env=outside_environment, capture_output=True, text=True, timeout=900, check=False)
    if "EADDRINUSE" in done.stderr or "address already in use" in done.stderr.lower():
        # The launcher looks for a free port before it binds it; another launch on this machine may have been faster.
        done = subprocess.run(line, env=outside_environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert results(out) == undisturbed
    ranks = sorted(path.name for path in (folder(out) / "responses").iterdir())
    assert ranks == [f"rank-{rank:05d}.jsonl" for rank in range(world)]


def test_a_second_launch_is_refused_and_a_dead_ones_lock_taken_over(
    tmp_path: Path, outside_environment: dict[str, str]
) -> None:
    out = tmp_path / "runs"
    slow = command(out, "--model-arg", "delay=2")
    first = subprocess.Popen(slow, env=outside_environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not answers_written(out):
        time.sleep(0.01)
    second = subprocess.run(slow, env=outside_environment, capture_output=True, text=True)
    assert second.returncode == 2
    assert "is being written by another launch" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    first.kill()
    first.wait()
    assert (folder(out) / "lock").exists()
    subprocess.run(command(out), env=outside_environment, check=True, capture_output=True)
    assert not (folder(out) / "lock").exists()


def test_interrupted_it_says_so_and_goes_on(
    tmp_path: Path, outside_environment: dict[str, str], undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "runs"
    slow = command(out, "--model-arg", "delay=0.2")
    process = subprocess.Popen(
        slow, env=outside_environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while not answers_written(out):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "run the same command again to resume" in errors
    assert "Traceback" not in errors
    subprocess.run(command(out), env=outside_environment, check=True, capture_output=True)
    assert results(out) == undisturbed


def test_a_complete_run_that_is_started_again_clears_what_a_lock_left_behind(tmp_path: Path) -> None:
    run = dreambench.run("toy", "echo", out=tmp_path).folder
    name = temporary_name(run / "scoring").name
    left = run / name.replace(f"-{os.getpid()}-", "-999999999-")
    left.mkdir()
    assert dreambench.run("toy", "echo", out=tmp_path).repeated
    assert not left.exists()
