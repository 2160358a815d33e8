"""A real HTTP server on the loopback that speaks chat completions, with faults to order. Used by the tests of judges and adapters."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What to send: a text as a chat completion, or a status and a body of one's own."""

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
    """The running server: its address, and the bodies and headers of the requests it got."""

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
                given = answer(body, number)
            finally:
                with lock:
                    at_once -= 1
            if given.hang_up or self.path != "/v1/chat/completions":
                self.close_connection = True
                return
            payload = given.payload(body["model"])
            self.send_response(given.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            for name, value in given.headers.items():
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
