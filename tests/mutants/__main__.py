"""A sample of mutants of the source, each tried against the tests that run the changed statement.

    python -m tests.mutants --sample 400 --seed 0 --json verdicts.jsonl    # try them, or go on where it stopped
    python -m tests.mutants --sample 400 --seed 0 --json verdicts.jsonl --show    # the table and the survivors so far

The first run records which test runs which statement, in `.mutants/`; later ones record only test files that have changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests.mutants.mutations import Mutant, mutants
from tests.mutants.server import ROOT, Coverage, Verdict, preload, record, try_mutant

# What the sample is drawn from: path -> area. The first match counts; None leaves a file out.
AREAS: dict[str, str | None] = {
    "dreambench/report/tables.py": "report tables",
    "dreambench/report/terminal.py": "report tables",
    "dreambench/report/": None,  # pages
    "dreambench/human/page.py": None,
    "dreambench/human/": "human evaluation",
    "dreambench/metrics/": "metrics",
    "dreambench/judges/": "judges",
    "dreambench/adapters/": "adapters",
    "dreambench/cli/": "commands",
    "dreambench/": "harness",
    "model/dreamllm/training/losses.py": "dreamllm",
    "model/dreamllm/interleaved.py": "dreamllm",
    "model/dreamllm/modeling.py": "dreamllm",
    "model/dreamllm/image_decoder.py": "dreamllm",
    "model/dreamllm/layers.py": "dreamllm",
    "model/dreamllm/processing.py": "dreamllm",
    "model/dreamllm/data/": "dreamllm",
    "model/": None,
    "tasks/dreambench_tasks/playground/": None,
    "tasks/dreambench_tasks/cli.py": None,
    "tasks/dreambench_tasks/copies.py": None,  # writes the embedded data
    "tasks/dreambench_tasks/": "tasks",
}
HARMLESS = Path(__file__).with_name("harmless.txt")


def area(path: str) -> str | None:
    return next((name for prefix, name in AREAS.items() if path.startswith(prefix)), None)


def population() -> list[Mutant]:
    files = (
        path.relative_to(ROOT).as_posix()
        for folder in ("dreambench", "model/dreamllm", "tasks/dreambench_tasks")
        for path in (ROOT / folder).rglob("*.py")
    )
    return [m for path in sorted(files) if area(path) for m in mutants((ROOT / path).read_text("utf-8"), path)]


def sample(everything: list[Mutant], seed: int, size: int, match: str = "") -> list[Mutant]:
    """The first `size` mutants in the order of a hash of seed and key, at most one of a statement; or all whose key contains `match`.

    A mutant's place depends on nothing but itself: editing one function changes nothing in the sample of the others.
    """
    if match:
        return [mutant for mutant in everything if match in mutant.key]
    ordered = sorted(everything, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.key}".encode()).digest())
    taken: dict[tuple[str, str, str], Mutant] = {}
    for mutant in ordered:
        taken.setdefault((mutant.path, mutant.function, mutant.statement), mutant)
    return list(taken.values())[:size]


def harmless() -> dict[str, str]:
    """Mutant key -> why no test can or should fail; in the file a key, then its reason on an indented line."""
    reasons: dict[str, str] = {}
    key = ""
    for line in HARMLESS.read_text("utf-8").splitlines():
        if line.startswith("    "):
            reasons[key] = f"{reasons.get(key, '')} {line.strip()}".strip()
        elif line and not line.startswith("#"):
            key = line
    return reasons


def read_verdicts(path: Path) -> dict[str, Verdict]:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {verdict.key: verdict for line in lines if (verdict := Verdict(**json.loads(line)))}


def table(drawn: list[Mutant], verdicts: dict[str, Verdict]) -> str:
    reasons = harmless()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    lines: list[str] = []
    for mutant in drawn:
        if mutant.key not in verdicts:
            continue
        verdict = verdicts[mutant.key]
        word = "killed" if verdict.killed else "harmless" if mutant.key in reasons else "survived"
        for row in (str(area(mutant.path)), "all"):
            counts[row][word] += 1
            counts[row]["tried"] += 1
        if word == "survived":
            lines += [f"{mutant.path}:{mutant.line} {mutant.kind}, {verdict.tests} tests", f"  {mutant.key}"]
    columns = ("tried", "killed", "harmless", "survived")
    lines += ["", f"{'area':<18}" + "".join(f"{name:>10}" for name in columns) + "  killed %"]
    for row in sorted(counts, key=lambda name: (name == "all", name)):
        share = 100 * counts[row]["killed"] / counts[row]["tried"]
        lines.append(f"{row:<18}" + "".join(f"{counts[row][name]:>10}" for name in columns) + f"{share:>10.1f}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sample", type=int, default=400, metavar="N", help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", nargs="*", default=[], help="of the sample, only files whose path begins so")
    parser.add_argument(
        "--match", default="", metavar="TEXT", help="instead of a sample, all mutants with this text, e.g. a function"
    )
    parser.add_argument("--json", type=Path, default=ROOT / ".mutants" / "verdicts.jsonl", help="one line per verdict")
    parser.add_argument("--cache", type=Path, default=ROOT / ".mutants", help="the record of what the tests run")
    parser.add_argument(
        "--cpu", type=float, default=40, help="CPU seconds of tests to try against a mutant, cheapest first"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--again", action="store_true", help="try survivors again, after the tests have changed")
    parser.add_argument(
        "--tests", nargs="*", default=[], help="record only test files with one of these words in their path"
    )
    parser.add_argument("--record", action="store_true", help="record all test files anew, changed or not")
    parser.add_argument("--show", action="store_true", help="only the table and the survivors so far")
    return parser.parse_args()


def main() -> int:
    options = parse()
    until = time.monotonic() + 60 * options.minutes
    drawn = sample(population(), options.seed, options.sample, options.match)
    drawn = [mutant for mutant in drawn if mutant.path.startswith(tuple(options.paths or [""]))]
    verdicts = read_verdicts(options.json)
    if not options.show:
        options.cache.mkdir(parents=True, exist_ok=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        preload(options.cache)
        record(options.cache, options.record, until, options.tests)
        coverage = Coverage(options.cache)
        for number, mutant in enumerate(drawn, 1):
            old = verdicts.get(mutant.key)
            if time.monotonic() > until or (old and (old.killed or not options.again)):
                continue
            verdict = try_mutant(mutant, coverage, options.cpu)
            verdicts[mutant.key] = verdict
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(vars(verdict)) + "\n")
            print(f"{number}/{len(drawn)} {verdict.how:<9}{verdict.seconds:6.1f} s  {mutant.key}", flush=True)
    print(table(drawn, verdicts))
    reasons: Any = harmless()
    return int(any(not verdicts[m.key].killed and m.key not in reasons for m in drawn if m.key in verdicts))


if __name__ == "__main__":
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    sys.exit(main())
