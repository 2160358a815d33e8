"""Throughput: every benchmark as the whole command that a user waits for, in a process of its own, and where its time goes.

A thread of the command's process looks at the main thread every 10 ms and adds the time since its last look to what it finds there, so
that nothing else of the command is changed and each moment counts once. The speed of a command never stands without its score.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import CodeType, FrameType

    from dreambench.documents import JSON
    from dreambench.spec import RunSpec

__all__ = [
    "CASES",
    "PHASES",
    "SIZES",
    "Case",
    "bench",
    "compared",
    "measure",
    "profiled",
    "random_weights",
    "read_benchmarks",
]
__all__ += ["table", "to_benchmarks", "typical"]

SIZES = ("tiny", "standard", "7b")
EVERY_S = 0.01
GIB = 1 << 30
RANDOM_7B = "dreamllm 7b, random weights"
ROOM_7B = {"disk": 20, "gpu": 24, "memory": 48}
"""GiB. The preset has 8 billion parameters with encoder and decoder: 2 bytes each on disk and on a GPU, 4 on the CPU."""

PHASES: Mapping[str, str] = {
    "imports": r"<frozen importlib\._bootstrap>:",
    "loading": r"/dreambench/(registry\.py:load_model|metrics/features\.py:load_extractor)$",
    "storing": r"/dreambench/(store\.py:(begin|append|note_timing|write_scores|write_metrics)|images\.py:encode_png)$",
    "scoring": r"/dreambench/api\.py:_score$",
    "preprocessing": r"/dreambench/api\.py:plan$|/PIL/|/dreamllm/processing\.py:"
    r"|/transformers/(.*/)?(processing|image_processing|video_processing|tokenization|chat_template)_",
    "model": r"/dreambench/runner\.py:_answer$",
}
"""What a moment counts as: the first phase that has a frame, ``file:function``, in the stack of the main thread."""

CHILD = """
import sys
from dreambench.throughput import profiled

def command():
    from dreambench.cli import main
    main(sys.argv[2:])

profiled(sys.argv[1], command)
"""
"""The process of a case: with its imports in the profile."""


@dataclass(frozen=True)
class Case:
    """A command to time, and how many samples it takes in each of `SIZES`: as `--limit` counts them."""

    name: str
    task: str
    unit: str
    limits: tuple[int, int, int]
    options: tuple[str, ...] = ()


CASES = (
    Case("vqav2", "vqav2", "questions/s", (8, 512, 512)),
    Case("mmbench", "mmbench", "questions/s", (2, 96, 96)),
    Case("mmvet", "mmvet", "questions/s", (8, 256, 64)),
    Case("coco_fid", "coco_fid", "images/s", (4, 128, 128)),
    Case("lncoco_fid", "lncoco_fid", "images/s", (4, 128, 128)),
    Case("interleaved-free", "interleaved", "documents/min", (2, 32, 16), ("--protocol", "free")),
    Case("interleaved-teacher-forced", "interleaved", "images/s", (2, 24, 24), ("--protocol", "teacher-forced")),
)
"""Every benchmark on the embedded data; ``standard`` takes 10-30 s each on an idle core."""


def measure(case: Case, size: str = "standard", options: Sequence[str] = ()) -> dict[str, JSON]:
    """Run a case in a process of its own and a fresh folder.

    Args:
        options: further options of ``dreambench run``, for instance ``("--model", "echo")``.

    Returns:
        Rate, seconds per item, peak memory, shares of the whole time, the first score, machine; docs/throughput.md explains each.

    Raises:
        RunError: the command failed.
    """
    from dreambench.errors import RunError

    limit = str(case.limits[SIZES.index(size)])
    command = ["run", "--task", case.task, "--limit", limit, *case.options, *options]
    with tempfile.TemporaryDirectory(prefix="dreambench-bench-") as folder:
        profile, out = Path(folder) / "profile.json", Path(folder) / "runs"
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        began = time.perf_counter()
        line = [sys.executable, "-P", "-c", CHILD, str(profile), *command, "--out", str(out)]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace")  # noqa: S603 - our own command
        seconds = time.perf_counter() - began
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("dreambench: error: ")
            raise RunError(f"`dreambench {' '.join(command)}` ended with status {done.returncode}: {last}")
        profiled = loads(profile.read_text())
        found = _facts(case, next(out.glob("[!.]*/run.json")).parent, seconds)
    peak = profiled["peak_bytes"]
    shares = {f"share_{name}": round(profiled["seconds"].get(name, 0.0) / seconds, 4) for name in PHASES}
    device = f"{found['device']} ({profiled['gpu']})" if profiled["gpu"] else found["device"]
    more = {
        "seconds": round(seconds, 3),
        "cpu_s": round(profiled["cpu_s"], 3),
        "peak_mb": peak and round(peak / 1e6),
        "load": load,
    }
    return {**found, "size": size, **more, **shares, "device": device}


def _facts(case: Case, folder: Path, seconds: float) -> dict[str, JSON]:
    """What the run's own files say: speed by its batches, and the score."""
    from dreambench.store import RunFolder

    run = RunFolder(folder)
    begun, timings, metrics = run.run_file(), run.timings(), run.metrics() or {}
    items = sorted((one["answer_s"] + one["store_s"]) / one["n"] for one in timings for _ in range(one["n"]))
    percentile: Callable[[float], float] = lambda p: round(items[math.ceil(p * len(items)) - 1], 6)  # noqa: E731
    score = next(iter(metrics.get("scores", ())), {})
    environment = begun["environment"]
    return {
        "task": case.task,
        "model": begun["model"],
        "unit": case.unit,
        "rate": round(len(items) / seconds * (60 if case.unit.endswith("/min") else 1), 4),
        "p50_s": percentile(0.5),
        "p95_s": percentile(0.95),
        "items": len(items),
        "errors": metrics.get("errors", {}).get("n", 0),
        "metric": score.get("metric"),
        "value": score.get("value"),
        "unit_of_value": score.get("unit"),
        "interval": score.get("interval"),
        "n": score.get("n"),
        "protocol": score.get("protocol"),
        "device": environment["device"].get("device", "cpu"),
        "machine": environment["machine"],
        "versions": {name: version for name, version in environment["versions"].items() if version},
    }


# --- in the command's process -----------------------------------------------------------------------------------------


def profiled(path: str, command: Callable[[], None]) -> None:
    """Calls `command`; at its end seconds by phase, CPU seconds, peak memory and GPU are in the file `path`."""
    with _sampled() as seconds:
        try:
            command()
        finally:
            torch: Any = sys.modules.get("torch")
            gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_initialized() else None
            found = {"seconds": seconds, "cpu_s": time.process_time(), "peak_bytes": _peak_bytes(), "gpu": gpu}
            Path(path).write_text(dumps(found))


@contextmanager
def _sampled() -> Generator[dict[str, float]]:
    """Seconds that this thread spends in each phase meanwhile."""
    seconds: dict[str, float] = {}
    known: dict[CodeType, str | None] = {}
    watched, ended = threading.get_ident(), threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not ended.wait(EVERY_S):
            phase = _phase(sys._current_frames().get(watched), known)  # pyright: ignore[reportPrivateUsage] - its documented name
            now = time.perf_counter()
            seconds[phase] = seconds.get(phase, 0.0) + now - last
            last = now

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()


def _phase(frame: FrameType | None, known: dict[CodeType, str | None]) -> str:
    found: set[str | None] = set()
    while frame is not None:
        code = frame.f_code
        if code not in known:
            name = f"{code.co_filename.replace(os.sep, '/')}:{code.co_name}"
            known[code] = next((phase for phase, pattern in PHASES.items() if re.search(pattern, name)), None)
        found.add(known[code])
        frame = frame.f_back
    return next((phase for phase in PHASES if phase in found), "rest")


def _peak_bytes() -> int | None:
    """Of this process alone: Linux's ru_maxrss begins with that of the process that started it. None where the system does not say."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found is not None:
            return int(found[1]) * 1024
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


# --- random weights of the 7B model -----------------------------------------------------------------------------------


def random_weights(folder: Path, preset: str = "7b") -> Path:
    """A checkpoint of a preset with random weights and the embedded tokenizer, in bfloat16, for speed alone.

    Raises:
        UsageError: 7b does not fit into this machine.
    """
    from dreambench.errors import RunError, UsageError
    from dreamllm.files import embedded_checkpoint

    if preset == "7b" and (lacking := _lacking(folder)):
        raise UsageError(f"--size 7b: {lacking}; measure --size tiny here, or 7b on a larger machine")
    tokenizer = str(embedded_checkpoint() / "tokenizer.json")
    line = [sys.executable, "-P", "-m", "dreamllm", "init", str(folder / preset), "--preset", preset]
    line += ["--tokenizer", tokenizer, "--dtype", "bfloat16"]
    done = subprocess.run(line, capture_output=True, text=True, errors="replace")  # noqa: S603 - our own command
    if done.returncode:
        raise RunError(f"`{' '.join(line[2:])}` failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return folder / preset


def _lacking(folder: Path) -> str | None:
    """What a machine lacks for the 7B model: room on the disk, or a GPU and the memory to do without one."""
    import torch

    free = shutil.disk_usage(folder).free / GIB
    if free < ROOM_7B["disk"]:
        return f"its weights take {ROOM_7B['disk']} GiB in {folder}, where {free:.0f} GiB are free (TMPDIR names another place)"
    gpu = torch.cuda.mem_get_info()[0] / GIB if torch.cuda.is_available() else 0.0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB if hasattr(os, "sysconf") else 0.0
    if gpu >= ROOM_7B["gpu"] or memory >= ROOM_7B["memory"]:
        return None
    has = f"a GPU with {gpu:.0f} GiB free" if gpu else "no GPU"
    return f"it needs a GPU with {ROOM_7B['gpu']} GiB or {ROOM_7B['memory']} GiB of memory; this machine has {has} and {memory:.0f} GiB"


# --- all of them ------------------------------------------------------------------------------------------------------


def bench(
    tasks: Sequence[str] | None,
    size: str,
    rounds: int | None,
    options: Mapping[str, JSON],
    *,
    json: Path | None = None,
    compare: Path | None = None,
) -> None:
    """``dreambench bench``: measure, print, and write what is measured so far after each case. `options` are fields of `RunSpec`."""
    from dreambench.errors import UsageError
    from dreambench.files import write_atomically
    from dreambench.progress import say
    from dreambench.safety import printable
    from dreambench.spec import RunSpec, words

    names = list(words(tasks or [case.task for case in CASES]))
    if unknown := [name for name in names if name not in {case.task for case in CASES}]:
        raise UsageError(f"--task {unknown[0]}: measured are {', '.join(dict.fromkeys(case.task for case in CASES))}")
    if size == "7b" and "model" in options:
        raise UsageError("--size 7b measures a model of its own, with random weights: leave --model out")
    if json is not None and not json.absolute().parent.is_dir():
        raise UsageError(f"--json {json}: there is no folder {json.absolute().parent}")
    earlier = None if compare is None else read_benchmarks(compare)
    found: dict[str, list[dict[str, JSON]]] = {}
    with tempfile.TemporaryDirectory(prefix="dreambench-bench-") as folder:
        if size == "7b":
            options = {**options, "model": f"dreamllm:{random_weights(Path(folder))}"}
        for case in [case for case in CASES if case.task in names]:
            arguments = _arguments(RunSpec(task=case.task, **options), options)
            for number in range(n := rounds or (1 if size == "tiny" else 3)):
                say(f"{case.name}: round {number + 1} of {n}")
                one = measure(case, size, arguments)
                found.setdefault(case.name, []).append(one | ({"model": RANDOM_7B} if size == "7b" else {}))
            for line in table([typical(found[case.name])]):
                print(printable(line), flush=True)
            if json is not None:
                date = datetime.now(UTC).isoformat(timespec="seconds")
                write_atomically(json, (dumps(to_benchmarks(found, date), indent=1) + "\n").encode())
    for line in () if earlier is None else compared([typical(each) for each in found.values()], earlier):
        print(printable(line))


def _arguments(spec: RunSpec, given: Mapping[str, JSON]) -> list[str]:
    """The given fields of a spec as options of ``dreambench run``."""
    found: list[str] = []
    for name in given:
        value = getattr(spec, name)
        values = [f"{key}={one}" for key, one in value.items()] if isinstance(value, dict) else [value]
        for one in values:
            found += [f"--{name.replace('_', '-')}", *([] if one is True else [str(one)])] if one is not False else []
    return found


# --- results ----------------------------------------------------------------------------------------------------------


def to_benchmarks(rounds: Mapping[str, Sequence[dict[str, JSON]]], date: str) -> JSON:
    """The measurements of each case in the form of pytest-benchmark's JSON, which ``pytest-benchmark compare`` reads."""
    from dreambench.environment import machine

    benchmarks: list[JSON] = []
    for name, found in rounds.items():
        data = [one["seconds"] for one in found]
        low, middle, high = statistics.quantiles(data, n=4, method="inclusive") if len(data) > 1 else data * 3
        stats: dict[str, JSON] = {"min": min(data), "max": max(data), "mean": statistics.fmean(data), "median": middle}
        stats |= {"stddev": statistics.stdev(data) if len(data) > 1 else 0.0, "iqr": high - low, "q1": low, "q3": high}
        stats |= {"ops": 1 / stats["mean"], "total": sum(data), "rounds": len(data), "iterations": 1, "data": data}
        stats |= {
            "outliers": "0;0",
            "iqr_outliers": 0,
            "stddev_outliers": 0,
            "ld15iqr": min(data),
            "hd15iqr": max(data),
        }
        one = {
            "group": "throughput",
            "name": name,
            "fullname": f"dreambench bench::{name}",
            "params": None,
            "param": None,
        }
        benchmarks.append({**one, "extra_info": typical(found), "options": {}, "stats": stats})
    return {"machine_info": machine(), "commit_info": {}, "benchmarks": benchmarks, "datetime": date, "version": "5"}


def typical(found: Sequence[dict[str, JSON]]) -> dict[str, JSON]:
    """The measurement of the round that took the median time."""
    return sorted(found, key=lambda one: one["seconds"])[(len(found) - 1) // 2]


def read_benchmarks(path: Path) -> list[dict[str, JSON]]:
    """The measurements in a file of ``dreambench bench --json`` or ``pytest --benchmark-json``; other benchmarks in it are left out."""
    from dreambench.errors import DataError
    from dreambench.files import read_json

    content = read_json(path)
    try:
        infos = [one["extra_info"] for one in content["benchmarks"]]
        found = [info for info in infos if {"task", "size", "unit", "rate"} <= info.keys()]
        if any(not isinstance(info["rate"], (int, float)) or not info["rate"] > 0 for info in found):
            raise ValueError("a rate is no number above 0")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: not the JSON of `dreambench bench` or pytest-benchmark ({error})") from error
    return found


def table(found: Sequence[dict[str, JSON]]) -> Iterator[str]:
    """Three lines of about 80 columns for each measurement: speed with score, and where the time went."""
    from dreambench.errors import counted

    for one in found:
        value = "no value" if one["value"] is None else f"{one['value']:.4g} {one['unit_of_value']}".strip()
        failed = f", {counted(one['errors'], 'error')}" if one["errors"] else ""
        yield f"{one['task']}: {one['rate']:.4g} {one['unit']} with {one['metric']} {value}, n = {one['n']}{failed}"
        shares = " ".join(f"{name} {one[f'share_{name}']:.0%}" for name in PHASES if one[f"share_{name}"] >= 0.005)
        memory = "" if one["peak_mb"] is None else f", {one['peak_mb']} MB"
        yield f"  {one['seconds']:.1f} s ({one['cpu_s']:.1f} s of CPU), an item {one['p50_s']:.3g} s (p95 {one['p95_s']:.3g} s){memory}"
        yield f"  {shares}"


def compared(found: Sequence[dict[str, JSON]], before: Sequence[dict[str, JSON]]) -> Iterator[str]:
    """A line for each measurement that the other file has, too: how many times faster it is, and both scores."""

    def key(one: Mapping[str, JSON]) -> JSON:
        return [one.get(name) for name in ("task", "size", "model", "unit", "metric")]

    for one in found:
        then = next((other for other in before if key(other) == key(one)), None)
        if then is None:
            yield f"{one['task']}, {one['unit']}: not in the other file under this size, model and metric"
            continue
        differ = [name for name in ("machine", "device", "versions", "protocol") if then.get(name) != one[name]]
        note = f"; differs: {', '.join(differ)}" if differ else ""
        yield (
            f"{one['task']}: {one['rate']:.4g} {one['unit']}, was {then['rate']:.4g} ({one['rate'] / then['rate']:.2f} times);"
            f" {one['metric']} {one['value']}, was {then.get('value')}{note}"
        )
