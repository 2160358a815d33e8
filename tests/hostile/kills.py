"""Kills: a verb is stopped at a system call or a moment, started again until it is done, and leaves the bytes of an undisturbed one."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

from .case import Case, Outcome
from .striking import SIGNAL_AFTER, SIGNAL_BEFORE, TORN, Server, Strike, leftovers, missing_compiler, tree
from .verbs import LIGHT, MODULES, Verb, make_verbs

__all__ = ["cases", "undisturbed"]

STATUSES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def cases(scratch: Path, seed: int = 0, count: int | None = None, *, heavy: bool = True) -> Iterator[Case]:
    """Rounds over all verbs, every verb once a round, each with one to three kills; 15 rounds unless `count` says otherwise."""
    if reason := missing_compiler():
        print(f"no kills: {reason}")
        return
    chance = random.Random(seed)
    with Server(scratch, MODULES if heavy else LIGHT) as server:
        verbs = make_verbs(server, scratch / "fixtures", heavy=heavy)
        known: dict[str, tuple[dict[str, str], int, float]] = {}
        total = 15 * len(verbs) if count is None else count
        for number in range(total):
            verb = verbs[number % len(verbs)]
            if verb.name not in known:
                known[verb.name] = undisturbed(server, verb, scratch)
            expected, calls, seconds = known[verb.name]
            strikes = [_strike(chance, calls, seconds) for _ in range(chance.choice((1, 2, 3, 3)))]
            yield _case(server, verb, strikes, expected)


def undisturbed(server: Server, verb: Verb, scratch: Path) -> tuple[dict[str, str], int, float]:
    folder = scratch / f"undisturbed {verb.name}"
    folder.mkdir()
    verb.prepare(folder)
    outcome = server.run(verb.arguments, folder)
    assert outcome.status == 0, (verb.name, outcome)
    assert not leftovers(folder), (verb.name, leftovers(folder))
    return tree(folder), outcome.values, outcome.seconds


def _strike(chance: random.Random, calls: int, seconds: float) -> Strike:
    number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    if chance.random() < 0.2:
        return Strike(number=number, seconds=chance.uniform(0, seconds))
    kinds = (SIGNAL_BEFORE, SIGNAL_AFTER, TORN) if number == signal.SIGKILL else (SIGNAL_BEFORE, SIGNAL_AFTER)
    return Strike(chance.randint(1, calls), chance.choice(kinds), number)


def _case(server: Server, verb: Verb, strikes: list[Strike], expected: dict[str, str]) -> Case:
    complaints: list[str] = []

    def run(folder: Path) -> Outcome:
        verb.prepare(folder)
        for strike in strikes:
            before = leftovers(folder)  # of an earlier kill: a signal may come before they are cleared
            outcome = server.run(verb.arguments, folder, strike)
            new = sorted(set(leftovers(folder)) - set(before))
            if outcome.status == 2 and tree(folder) == expected:
                continue  # the verb was done, and says so
            if complaint := _after_the_signal(strike, outcome, new):
                complaints.append(complaint)
        final = server.run(verb.arguments, folder)
        return Outcome(final.status, final.stdout, final.stderr, tree(folder), final.seconds, 0, final.killed)

    def check(outcome: Outcome, folder: Path) -> str | None:
        complaints.extend(f"left over: {name}" for name in leftovers(folder))
        if outcome.values != expected:  # status 2, too: a verb that was done may say so
            complaints.append(f"status {outcome.status}, other files: {outcome.stderr[-1500:]}")
        return "; ".join(complaints) or None

    name = f"{verb.name}: {', '.join(_describe(strike) for strike in strikes)}"
    return Case(f"kills/{verb.name}", name, run, expected=expected, check=check)


def _after_the_signal(strike: Strike, outcome: Outcome, new: list[str]) -> str | None:
    """What is wrong after a signal. One that came too late, or before the program was ready for it, is as good."""
    if strike.number == signal.SIGKILL or outcome.status == 0 or outcome.killed.startswith("signal"):
        return None
    name = signal.Signals(strike.number).name
    if outcome.status != STATUSES[signal.Signals(strike.number)]:
        return f"{name}: status {outcome.status}, {outcome.stderr[-1500:]}"
    if "Traceback" in outcome.stderr or "interrupted" not in outcome.stderr:
        return f"{name}: {outcome.stderr[-1500:]}"
    return f"after {name} stays {new}" if new else None


def _describe(strike: Strike) -> str:
    name = signal.Signals(strike.number).name
    if strike.seconds is not None:
        return f"{name} after {strike.seconds:.2f} s"
    return f"{name} {('', 'before', 'after', 'within')[strike.kind]} call {strike.at}"
