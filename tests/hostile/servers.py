"""Servers that misbehave, as the model under test and as the judge: to one request, or to all."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import socket
import threading
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .case import Case, Limits, Outcome, call, forked
from .misbehaviour import KEY, MISBEHAVIOUR, Misbehaviour, leaked, reply, respond

__all__ = ["cases"]

VARIABLE = "HOSTILE_TEST_VARIABLE"
IMPORTED = (
    *("pandas", "pyarrow.parquet", "rich.table", "dreambench.api", "dreambench.cli.runs", "dreambench.report.terminal"),
    *(
        "dreambench.adapters.echo",
        "dreambench.adapters.openai_server",
        "dreambench.post",
        "dreambench_tasks.mmvet.task",
    ),
)
"""So that the children find it imported."""
LIMITS = Limits(cpu_s=60, wall_s=40.0, memory=1 << 30)


class Server:
    """Answers on the loopback; the request that came first, or every one, meets the misbehaviour."""

    def __init__(self, misbehaviour: Misbehaviour, everyone: bool) -> None:
        self.misbehaviour, self.everyone = misbehaviour, everyone
        self.seen: dict[str, int] = {}
        self.keys: set[str] = set()
        self.elsewhere = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Generator[str]:
        """Gives the base URL. A second address counts who comes there; nobody may."""
        with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("127.0.0.1", 0)) as other:
            self.other = other.getsockname()[1]
            for listener, handle in ((own, self._answer), (other, self._count)):
                threading.Thread(target=self._serve, args=(listener, handle), daemon=True).start()
            yield f"http://127.0.0.1:{own.getsockname()[1]}/v1"

    def _serve(self, listener: socket.socket, handle: Any) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._one, args=(listener.accept()[0], handle), daemon=True).start()

    @staticmethod
    def _one(connection: socket.socket, handle: Any) -> None:
        with contextlib.suppress(OSError), connection:
            handle(connection)

    def _count(self, connection: socket.socket) -> None:
        self.elsewhere += 1

    def _answer(self, connection: socket.socket) -> None:
        head, _, body = _received(connection)
        with self._lock:
            self.keys |= {line for line in head.splitlines() if line.lower().startswith("authorization:")}
            asked = json.dumps(json.loads(body)["messages"])
            hostile = self.everyone or asked == next(iter(self.seen), asked)
            self.seen[asked] = number = self.seen.get(asked, 0) + 1
        if not hostile:
            connection.sendall(respond(reply()))
            return

        def send(data: bytes) -> None:
            connection.sendall(data.replace(b"ELSEWHERE", f"127.0.0.1:{self.other}".encode()))

        self.misbehaviour.act(send, connection, number)


def _received(connection: socket.socket) -> tuple[str, str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        raise ConnectionError  # the client gave up
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length and (piece := connection.recv(65536)):
        body += piece
    return head.decode(), "", body


def cases(scratch: Path, seed: int, count: int | None, only: str = "") -> Iterator[Case]:
    """Every misbehaviour to one request of a model, to all of them, and to one request of a judge."""
    from dreambench import cli

    data = scratch / "data"
    words = ["playground", "write", data, "--n", "5", "--format", "mmvet"]
    made = forked(partial(call, cli.main, words), scratch, limits=Limits(wall_s=300, memory=8 << 30))
    if made.status != 0:
        raise RuntimeError(made.stderr)
    for module in IMPORTED:
        importlib.import_module(module)
    answers = len(json.loads((data / "mm-vet.json").read_text()))
    chosen = [(part, one) for part in ("model", "all of a model", "judge") for one in MISBEHAVIOUR]
    random.Random(seed).shuffle(chosen)
    for part, misbehaviour in chosen[:count]:
        yield _case(data, answers, part, misbehaviour)


def _case(data: Path, answers: int, part: str, misbehaviour: Misbehaviour) -> Case:
    becomes = str(misbehaviour.becomes)
    if part == "all of a model":
        becomes = {"fails": "down", "fails or down": "down", "good or fails": "anything"}.get(becomes, becomes)
    becomes = "fails" if becomes == "no text" else becomes
    return Case(
        f"servers/{part}",
        misbehaviour.name,
        lambda folder: forked(partial(_run, data, folder, part, misbehaviour), folder, limits=LIMITS),
        places=("http://127.0.0.1:",),
        must_fail=becomes == "down",
        check=partial(_check, answers, part, becomes),
    )


def _run(data: Path, folder: Path, part: str, misbehaviour: Misbehaviour) -> int:
    """The command, in the child, with the server in threads beside it."""
    from dreambench import cli

    os.environ[VARIABLE] = KEY
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ[name] = os.environ[name.upper()] = "http://127.0.0.1:1"  # not to be used on the way to this machine
    server = Server(misbehaviour, part == "all of a model")
    with server.running() as url:
        options = {
            "retries": "1",
            "timeout": "0.6" if misbehaviour.slow else "20",
            "concurrency": "2",
            "key_env": VARIABLE,
        }
        if part == "judge":
            pairs = "".join(f",{name}={value}" for name, value in options.items())
            asked = ["--model", "echo", "--judge", f"openai:m@{url},runs=1{pairs}"]
        else:
            pairs = [word for name, value in options.items() for word in ("--model-arg", f"{name}={value}")]
            asked = ["--model", f"openai:m@{url}", "--judge", "rule", *pairs]
        words = [
            "run",
            "--task",
            "mmvet",
            "--data",
            data,
            "--offline",
            *asked,
            "--out",
            folder / "runs",
        ]
        status = call(cli.main, words)
    facts = {"elsewhere": server.elsewhere, "keys": sorted(server.keys)}
    (folder.parent / f"{folder.name}.facts").write_text(json.dumps(facts))
    return status


def _check(answers: int, part: str, becomes: str, outcome: Outcome, folder: Path) -> str | None:
    facts_file = folder.parent / f"{folder.name}.facts"
    facts = json.loads(facts_file.read_text())
    facts_file.unlink()
    if facts["elsewhere"]:
        return "somebody followed the redirect"
    if [line.lower() for line in facts["keys"]] != [f"authorization: bearer {KEY}".lower()]:
        return f"the server got {facts['keys']}"
    printed = outcome.stdout + outcome.stderr
    if set(printed) & set("\x1b\x07\x9b\u202e\x00"):
        return f"control characters on the terminal: {printed!r}"
    texts = {"the terminal": printed} | {str(path.relative_to(folder)): _text(path) for path in _files(folder)}
    leaks = [name for name, text in texts.items() if leaked(text) or KEY.lower() in text.lower()]
    if leaks:
        return f"the key is in {', '.join(leaks)}"
    if outcome.status == 2:
        return (
            None
            if becomes in ("down", "fails or down", "anything")
            else f"the run ended: {outcome.stderr.splitlines()[-1]}"
        )
    return None if becomes == "anything" else _answers(answers, part, becomes, folder)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _text(path: Path) -> str:
    if path.suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(path).to_csv()
    return path.read_bytes().decode("latin-1")


def _answers(answers: int, part: str, becomes: str, folder: Path) -> str | None:
    """Whether the one request came to what it should, and the others kept their answers."""
    (run,) = (folder / "runs").iterdir()
    name, failed = ("judgements.jsonl", "reason") if part == "judge" else ("responses/rank-00000.jsonl", "error")
    lines = [json.loads(line) for line in (run / name).read_text().split("\n") if line]
    lines = [line for line in lines if "identity" not in line]
    failures = [line[failed] for line in lines if line.get(failed)]
    wanted = answers + 12 if part == "judge" else answers
    if len(lines) != wanted:
        return f"{len(lines)} of {wanted} answers"
    allowed = {"good": (0,), "fails": (1, answers), "good or fails": (0, 1, answers), "fails or down": (1, answers)}[
        becomes
    ]
    if len(failures) not in allowed:
        return f"{len(failures)} failures, not {allowed}: {failures[:2]}"
    if any(len(str(failure)) > 500 for failure in failures):
        return "a failure has more than 500 characters"
    return None
