"""Full and failing disks: a verb that cannot write says so in one line, leaves nothing half-written, and succeeds once there is room.

Three ways to refuse: every call that writes fails from the k-th on, as with a full disk, a damaged one, one that became read-only, or a
process out of descriptors; no file may be larger than so many bytes; and a tmpfs of a few pages, which only root may mount.
"""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import Case, Outcome
from .kills import undisturbed
from .striking import FAIL, Server, Strike, leftovers, missing_compiler, tree
from .verbs import LIGHT, MODULES, Verb, make_verbs

__all__ = ["cases"]

PLACES = ("/", *("study", "made", "report", "sheet", "stats", "found", "trial", "out", "import", "recipe"))
"""Absolute paths, and what the verbs write."""
SIZES = (1000, 4096, 20_000)  # what the verb prints is a file, too
ERRORS = (errno.ENOSPC, errno.ENOSPC, errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EDQUOT)


def cases(scratch: Path, seed: int = 0, count: int | None = None, *, heavy: bool = True) -> Iterator[Case]:
    """Rounds over all verbs: five with calls that fail, one with a bound on files, one with a small tmpfs."""
    if reason := missing_compiler():
        print(f"no full disks: {reason}")
        return
    chance = random.Random(seed)
    with Server(scratch, MODULES if heavy else LIGHT) as server:
        verbs = make_verbs(server, scratch / "fixtures", heavy=heavy)
        known: dict[str, tuple[dict[str, str], int, float]] = {}
        mounts = _mounts(scratch / "mount")
        if not mounts:
            print("no small tmpfs: only root may mount one")
        for number in range(7 * len(verbs) if count is None else count):
            verb = verbs[number % len(verbs)]
            if verb.name not in known:
                known[verb.name] = undisturbed(server, verb, scratch)
            expected, calls, _ = known[verb.name]
            way = (number // len(verbs) + number) % 7  # every verb meets every way within seven rounds
            if way == 5:
                yield _case(server, verb, Strike(file_size=chance.choice(SIZES)), expected)
            elif way == 6:
                if mounts:
                    yield _tmpfs(server, verb, expected, chance.randint(1, 6))
            else:
                yield _case(server, verb, Strike(chance.randint(1, calls), FAIL, chance.choice(ERRORS)), expected)


def _case(server: Server, verb: Verb, strike: Strike, expected: dict[str, str]) -> Case:
    def run(folder: Path) -> Outcome:
        verb.prepare(folder)
        outcome = server.run(verb.arguments, folder, strike)
        # A call that may fail, such as the sync of a folder, changes nothing.
        return _with(outcome, tree(folder) if outcome.status == 0 else None)

    what = f"files of {strike.file_size} bytes" if strike.file_size is not None else _name(strike)
    check = _check(server, verb, expected)
    return Case(f"disks/{verb.name}", f"{verb.name}: {what}", run, PLACES, expected, check=check)


def _name(strike: Strike) -> str:
    return f"{errno.errorcode[strike.number]} from call {strike.at}"


def _check(server: Server, verb: Verb, expected: dict[str, str]) -> Callable[[Outcome, Path], str | None]:
    """After an error nothing unfinished is there, and the same command succeeds."""

    def check(outcome: Outcome, folder: Path) -> str | None:
        if left := leftovers(folder):
            return f"left over: {left}"
        again = server.run(verb.arguments, folder)
        if again.status != 0:
            return f"then status {again.status}: {again.stderr[-1500:]}"
        found = tree(folder)
        return (
            None if found == expected else f"then other bytes: {sorted(set(found.items()) ^ set(expected.items()))[:4]}"
        )

    return check


def _tmpfs(server: Server, verb: Verb, expected: dict[str, str], pages: int) -> Case:
    """What the verb writes goes to a tmpfs with so many pages left."""
    check = _check(server, verb, expected)

    def run(folder: Path) -> Outcome:
        verb.prepare(folder)
        used = sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())
        size = 4096 * (used + sum(1 for _ in folder.rglob("*")) + 8 + pages)
        aside = folder.with_name(f"{folder.name}-aside")
        folder.rename(aside)
        folder.mkdir()
        _mount(folder, size)
        try:
            shutil.copytree(aside, folder, dirs_exist_ok=True)
            outcome = server.run(verb.arguments, folder)
            shutil.rmtree(aside)
            shutil.copytree(folder, aside)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()
        aside.rename(folder)
        return _with(outcome, tree(folder) if outcome.status == 0 else None)

    name = f"{verb.name}: a tmpfs with {pages} pages left"
    return Case(f"disks/{verb.name}", name, run, PLACES, expected, check=check)


def _mount(folder: Path, size: int) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes=10000", "tmpfs", folder]
    subprocess.run(command, check=True, capture_output=True)


def _mounts(folder: Path) -> bool:
    folder.mkdir()
    try:
        _mount(folder, 4096)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", folder], check=True)
    return True


def _with(outcome: Outcome, values: object) -> Outcome:
    return Outcome(outcome.status, outcome.stdout, outcome.stderr, values, outcome.seconds, 0, outcome.killed)
