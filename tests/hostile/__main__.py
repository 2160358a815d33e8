"""Mutated inputs, misbehaving servers, kills and full disks, each judged.

    python -m tests.hostile                                       every part, in full
    python -m tests.hostile --part inputs --cases 500 --seed 3    some of one part
    python -m tests.hostile --verdicts FILE                       goes on where it stopped; tries the faulty cases again

Exit status 0: no faults; 1: the table shows them.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path[:0] = [str(Path(__file__).parents[1])]  # the helpers of the tests, as pytest finds them

from .case import Judge, Report  # noqa: E402

PARTS = ("inputs", "servers", "kills", "disks")
"""Modules of this package with a function ``cases(scratch, seed, count)``."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__.split("\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default 0)")
    parser.add_argument("--cases", type=int, help="at most N cases of each part", metavar="N")
    parser.add_argument("--seconds", type=float, help="no new case after S seconds", metavar="S")
    parser.add_argument(
        "--verdicts",
        type=Path,
        help="JSON lines: cases that are ok in FILE count as they are, others are added",
        metavar="FILE",
    )
    parser.add_argument("--only", help="only cases whose part or name contains TEXT", metavar="TEXT")
    options = parser.parse_args(arguments)
    report, started = Report(options.verdicts, options.seed), time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="hostile-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108
    try:
        for part in options.part or PARTS:
            if not (Path(__file__).parent / f"{part}.py").exists():
                continue
            scratch = root / part
            scratch.mkdir()
            judge, make = Judge(scratch), importlib.import_module(f"{__package__}.{part}").cases
            # A part whose preparations take long leaves out those of cases that are not wanted.
            chosen = {"only": options.only} if options.only and "only" in inspect.signature(make).parameters else {}
            for case in make(scratch, options.seed, options.cases, **chosen):
                if options.seconds is not None and time.monotonic() - started > options.seconds:
                    break
                if options.only and options.only not in f"{case.part} {case.name}":
                    continue
                verdict = report.known(case) or judge(case)
                report.add(verdict)
                if not verdict.ok:
                    print(f"{verdict.part}: {verdict.name}: {verdict.kind}\n  {verdict.details}", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(report.table())
    return int(bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
