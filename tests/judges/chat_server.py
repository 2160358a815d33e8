"""An HTTP server on the loopback that speaks chat completions, with chosen faults, for the tests of judges and adapters."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    """A reply: a text as a chat completion, or another status or body."""

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes | None = None
    finish_reason: str = "stop"
    hang_up: bool = False

    def payload(self, model: str) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.text, "type": "fault"}}).encode()
        choice = {
            "index": 0,
            "finish_reason": self.finish_reason,
            "message": {"role": "assistant", "content": self.text},
        }
        usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
        completion = {"id": "1", "object": "chat.completion", "created": 0, "model": f"{model}-2024", "usage": usage}
        return json.dumps({**completion, "choices": [choice]}).encode()


@dataclass
class Served:
    """The running server: its address, and the bodies and headers of the requests it received."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    most_at_once: int = 0

    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Answer]) -> Generator[Served]:
    """Serve `answer(request body, number of the request)` until the block ends."""
    lock = threading.Lock()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal at_once
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                at_once += 1
                served.most_at_once = max(served.most_at_once, at_once)
                served.bodies.append(body)
                served.headers.append({name.lower(): value for name, value in self.headers.items()})
                number = len(served.bodies)
            try:
                reply = answer(body, number)
            finally:
                with lock:
                    at_once -= 1
            if reply.hang_up or self.path != "/v1/chat/completions":
                self.close_connection = True
                return
            payload = reply.payload(body["model"])
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait_for_judgements(folder: Path, n: int, deadline_s: float = 120) -> None:
    """Return once the ``judgements.jsonl`` in or under `folder` holds `n` judgements: a reply is logged some time after it was sent."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if sum(path.read_bytes().count(b'"key":') for path in folder.rglob("judgements.jsonl")) >= n:
            return
        time.sleep(0.01)
    raise TimeoutError(f"fewer than {n} judgements in {folder} after {deadline_s} s")
