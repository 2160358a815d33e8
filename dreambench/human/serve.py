"""``human serve``: the rater page over HTTP, each answer appended to a file before it is acknowledged.

GET  /r/TOKEN              binds the link to a Prolific participant if one is named, then leads to the page
GET  /r/TOKEN/             the page, with the ratings that the server holds
GET  /r/TOKEN/images/NAME  an image of one of the rater's items
POST /r/TOKEN/ratings      one `Rating`; 200 once it is on disk (or was already), 409 if it does not follow the last one
GET  /join?PROLIFIC_PID=…  with `prolific`: the next link that nobody has

STUDY/organiser/ratings/served-RATER.jsonl   the ratings of a rater, append-only
STUDY/organiser/participants.jsonl           who has which link: Prolific's identifiers as salted hashes, append-only
STUDY/organiser/participants-salt            the salt

Nothing else of the study is served, and what is served comes from `Study.public`: the key stays with the organiser.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import socket
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import ValidationError

from dreambench.documents import JSON, canonical_json
from dreambench.errors import DataError, UsageError, counted
from dreambench.files import append_lines, inside, read_json_lines, read_text, truncate_torn_line, write_once
from dreambench.human.page import policy, render_page
from dreambench.human.study import RATINGS, Rater, Rating, Study
from dreambench.lock import RunLock
from dreambench.progress import say
from dreambench.safety import is_loopback

__all__ = ["Screening", "StudyServer", "screening", "serve_study"]

BODY_LIMIT = 16_384
"""Bytes of a request's body."""
CHANGES = 50
"""Ratings that a rater may send for each answer that the study needs."""
TRIES = 2
"""Times that a rater may answer the training items."""
TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
PROLIFIC = {"participant": "PROLIFIC_PID", "study": "STUDY_ID", "session": "SESSION_ID"}
CONTINUED = "This study has been continued on another page. Reload this page to go on from there."

Screening: TypeAlias = Literal["training", "passed", "failed"]


def serve_study(
    study: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    url: str | None = None,
    completion_code: str | None = None,
    prolific: bool = False,
) -> None:
    """Serve until interrupted; prints each rater's link. `StudyServer` has the options. Raises `KeyboardInterrupt` at Ctrl-C."""
    Study.read(study)  # before the lock makes folders
    with RunLock(study / "organiser", name="serve.lock", alone=True):
        server = StudyServer(study, host=host, port=port, url=url, completion_code=completion_code, prolific=prolific)
        with server:
            for rater, link in server.links.items():
                print(f"{rater}  {link}", flush=True)
            if prolific:
                print(f"join  {server.url}/join", flush=True)
            say(f"serving study {server.study.id} at {server.url}; Ctrl-C stops, and every stored rating is kept")
            try:
                server.serve_forever()
            finally:
                server.lock.acquire()  # for good: no rating is half-written when the process ends
                say(server.summary())


def screening(study: Study, rater: Rater, ratings: Sequence[Rating]) -> Screening:
    """What the training items say of a rater: ``passed`` once they are all answered as expected, ``failed`` after two tries that were not.

    In a try, each question of each training item is answered once; so the ratings of training items, in order, fall into tries.
    """
    training = {item.id: item for item in study.items if item.purpose == "training" and item.id in rater.items}
    answers = [rating for rating in ratings if rating.item in training]
    length = sum(len(item.questions) for item in training.values())
    done = [answers[start : start + length] for start in range(0, len(answers) - length + 1, length)] if length else []

    def is_right(rating: Rating) -> bool:
        expected = training[rating.item].expected
        return expected.get(rating.question, rating.answer) == rating.answer

    if not length or any(all(map(is_right, answers)) for answers in done):
        return "passed"
    return "failed" if len(done) >= TRIES else "training"


class _RefusedError(Exception):
    """A request is not carried out; the status and the sentence that the rater sees."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StudyServer(ThreadingHTTPServer):
    """A study, its raters' state and the socket. ``with StudyServer(folder, port=0) as server: server.serve_forever()``.

    `url` is the public address where it is not ``http://host:port``, such as that of a reverse proxy with TLS. Requests are accepted
    for this host and for loopback names only. With `prolific`, ``/join`` hands out links. `completion_code` is shown to a rater who
    has answered everything.
    """

    daemon_threads = True

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        url: str | None = None,
        completion_code: str | None = None,
        prolific: bool = False,
    ) -> None:
        self.folder = folder
        self.study = Study.read(folder)
        self.items = {item.id: item for item in self.study.items}
        self.questions = {question.id: question for question in self.study.questions}
        self.raters = {rater.token: rater for rater in self.study.raters}
        self.completion_code = completion_code
        self.prolific = prolific
        self.lock = threading.RLock()
        self.ratings = {rater.id: self._stored(rater) for rater in self.study.raters}
        self._participants_file = folder / "organiser" / "participants.jsonl"
        salt = folder / "organiser" / "participants-salt"
        write_once(salt, secrets.token_hex(32).encode())
        self._salt = read_text(salt).encode()
        truncate_torn_line(self._participants_file)
        known = read_json_lines(self._participants_file) if self._participants_file.exists() else ()
        self.participants: dict[str, str] = {entry["rater"]: entry["participant"] for _, entry in known}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if url is None and host in ("", "0.0.0.0", "::"):  # noqa: S104 - refused, not bound
            raise UsageError(
                f"--host {host} needs --url, the address that raters open (such as https://study.example.org)"
            )
        if url is not None and not re.fullmatch(r"https?://[^/?#@]+(/[^?#]*)?", url):
            raise UsageError(f"--url {url}: give an address such as https://study.example.org")
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UsageError(f"--host {host} --port {port}: {error.strerror}; name another") from error
        suffix = "" if self.server_port == 80 else f":{self.server_port}"
        self.url = (url or f"http://{f'[{host}]' if ':' in host else host}{suffix}").rstrip("/")
        self.origins = {"{0.scheme}://{0.netloc}".format(urlsplit(self.url)).lower()}
        if url is not None or is_loopback(host):
            self.origins |= {f"http://{name}{suffix}" for name in ("127.0.0.1", "localhost", "[::1]")}
        self._warn_of_missing_images()

    @property
    def links(self) -> dict[str, str]:
        """The address of each rater's page."""
        return {rater.id: f"{self.url}/r/{rater.token}" for rater in self.study.raters}

    def summary(self) -> str:
        """One line: how far the raters are."""
        raters = self.study.raters
        states = [screening(self.study, rater, self.ratings[rater.id]) for rater in raters]
        complete = sum(self.is_complete(rater) for rater in raters)
        total = sum(map(len, self.ratings.values()))
        return (
            f"{counted(total, 'rating')} safe in {self.folder / RATINGS}: {complete} of {counted(len(raters), 'rater')} complete, "
            f"{states.count('failed')} sent away after the training items"
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error of ours."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    # --- raters -------------------------------------------------------------------------------------------------------

    def rater(self, token: str) -> Rater:
        if token not in self.raters:
            raise _RefusedError(404, "There is no such page. Please check that the whole link was copied.")
        return self.raters[token]

    def join(self, query: dict[str, list[str]]) -> Rater:
        """The link of a participant, or else the first that nobody has."""
        identity = self._identity(query)
        if identity is None:
            raise _RefusedError(400, "This address needs the parameter PROLIFIC_PID.")
        with self.lock:
            for rater in self.study.raters:
                if self.participants.get(rater.id) == identity["participant"]:
                    return rater
            for rater in self.study.raters:
                if rater.id not in self.participants and not self.ratings[rater.id]:
                    self._bind(rater, identity)
                    return rater
        raise _RefusedError(410, "All places in this study are taken. Thank you for your interest.")

    def open(self, rater: Rater, query: dict[str, list[str]]) -> None:
        """Bind a link to the participant that the query names, if it names one. One participant per link."""
        identity = self._identity(query)
        if identity is None:
            return
        with self.lock:
            holder = self.participants.get(rater.id)
            if holder is None and not self.ratings[rater.id]:
                self._bind(rater, identity)
            elif holder != identity["participant"]:
                raise _RefusedError(403, "This link is in use by somebody else. Please ask for one of your own.")

    def _identity(self, query: dict[str, list[str]]) -> dict[str, str] | None:
        given = {name: query.get(parameter, [""])[0] for name, parameter in PROLIFIC.items()}
        if not given["participant"]:
            return None
        if any(len(value) > 200 for value in given.values()):
            raise _RefusedError(400, "A parameter of this link is too long.")
        return {
            name: hmac.new(self._salt, f"{name} {value}".encode(), hashlib.sha256).hexdigest()[:32]
            for name, value in given.items()
        }

    def _bind(self, rater: Rater, identity: dict[str, str]) -> None:
        append_lines(self._participants_file, [canonical_json({"rater": rater.id, **identity}) + "\n"])
        self.participants[rater.id] = identity["participant"]

    # --- ratings ------------------------------------------------------------------------------------------------------

    def _file(self, rater: Rater) -> Path:
        return self.folder / RATINGS / f"served-{rater.id}.jsonl"

    def _stored(self, rater: Rater) -> list[Rating]:
        path, ratings = self._file(rater), list[Rating]()
        truncate_torn_line(path)
        for number, line in read_json_lines(path) if path.exists() else ():
            try:
                rating = Rating.model_validate_json(json.dumps(line))
            except ValidationError as error:
                raise DataError(f"{path}, line {number}: not a rating; move the file away, or restore it") from error
            if ratings and rating == ratings[-1]:
                continue  # stored twice
            if rating.seal != rating.sealed(rater.token, ratings[-1].seal if ratings else ""):
                raise DataError(
                    f"{path}, line {number}: its seal is wrong, so the file was edited or is of another study; restore it"
                )
            ratings.append(rating)
        return ratings

    def is_complete(self, rater: Rater) -> bool:
        """Whether the rater has answered every question of every item."""
        ratings = self.ratings[rater.id]
        given = {(rating.item, rating.question) for rating in ratings}
        needed = {(id_, question) for id_ in rater.items for question in self.items[id_].questions}
        return needed <= given and screening(self.study, rater, ratings) == "passed"

    def code(self, rater: Rater) -> str | None:
        return self.completion_code if self.is_complete(rater) else None

    def append(self, rater: Rater, body: bytes) -> JSON:
        """Check a rating, store it, and say what the page needs to know. A rating that is stored already is not stored again."""
        try:
            rating = Rating.model_validate_json(body)
        except ValidationError as error:
            raise _RefusedError(400, "This is not a rating.") from error
        with self.lock:
            ratings = self.ratings[rater.id]
            if rating not in ratings:
                self._check(rater, rating, ratings)
                was_complete = self.is_complete(rater)
                self._store(rater, rating)
                ratings.append(rating)
                if self.is_complete(rater) and not was_complete:
                    say(f"{rater.id} is complete")
            return {"stored": len(ratings), "code": self.code(rater)}

    def _store(self, rater: Rater, rating: Rating) -> None:
        path = self._file(rater)
        try:
            append_lines(path, [canonical_json(rating.model_dump(mode="json")) + "\n"])
        except OSError as error:
            say(f"error: {path}: {error.strerror}; the page of {rater.id} tries again until there is room")
            raise _RefusedError(503, "The server cannot store ratings now.") from error

    def _check(self, rater: Rater, rating: Rating, ratings: list[Rating]) -> None:
        """Raise `_RefusedError` unless the rating may follow the ratings of this rater."""
        if (rating.study, rating.rater) != (self.study.id, rater.id):
            raise _RefusedError(400, "This rating belongs to another study or another rater.")
        if rating.item not in rater.items or rating.question not in self.items[rating.item].questions:
            raise _RefusedError(400, "This rating is of an item or a question that is not on this page.")
        if not self.questions[rating.question].allows(rating.answer):
            raise _RefusedError(400, "This answer is not one of the question's.")
        if rating.seal != rating.sealed(rater.token, ratings[-1].seal if ratings else ""):
            raise _RefusedError(409, CONTINUED)
        if len(ratings) >= CHANGES * sum(len(self.items[id_].questions) for id_ in rater.items):
            raise _RefusedError(403, "There are too many answers from this link.")
        state = screening(self.study, rater, ratings)
        if (self.items[rating.item].purpose == "training") != (state == "training"):
            raise _RefusedError(403, "This item cannot be answered now.")
        if state == "training":
            pairs = [(each.item, each.question) for each in ratings]
            length = sum(len(self.items[id_].questions) for id_ in rater.items if self.items[id_].purpose == "training")
            if (rating.item, rating.question) in pairs[len(pairs) - len(pairs) % length :]:
                raise _RefusedError(400, "This example was answered already.")

    # --- what a rater sees --------------------------------------------------------------------------------------------

    def page(self, rater: Rater) -> str:
        with self.lock:
            ratings = [rating.model_dump(mode="json") for rating in self.ratings[rater.id]]
            served = {"ratings": ratings, "code": self.code(rater)}
        return render_page({**self.study.public(rater), "served": served})

    def image(self, rater: Rater, name: str) -> tuple[str, bytes]:
        """(media type, bytes) of an image of the rater's items."""
        kind = TYPES.get(Path(name).suffix.lower())
        if kind is None or name not in self._images(rater):
            raise _RefusedError(404, "There is no such image.")
        path = self._image_path(rater, name)
        if path is None:
            raise _RefusedError(404, "This image is missing.")
        return kind, path.read_bytes()

    def _images(self, rater: Rater) -> set[str]:
        documents = (document for id_ in rater.items for document in self.items[id_].documents)
        return {str(part["image"]) for document in documents for part in document if "image" in part}

    def _image_path(self, rater: Rater, name: str) -> Path | None:
        # Of the forms of export, only `folder` has the images beside the page; those of all forms lie in the organiser's.
        for folder in (self.folder / "raters" / rater.id, self.folder / "organiser" / "forms"):
            path = inside(folder / "images", name)
            if path is not None and path.is_file():
                return path
        return None

    def _warn_of_missing_images(self) -> None:
        missing = {
            name for rater in self.study.raters for name in self._images(rater) if not self._image_path(rater, name)
        }
        if missing:
            say(
                f"warning: {counted(len(missing), 'image')} of the study missing, such as {min(missing)}: raters see that they "
                "cannot be shown; export the study again"
            )


class _Handler(BaseHTTPRequestHandler):
    """Requests of raters' browsers. Nothing is logged: paths hold tokens and participants' identifiers."""

    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a connection may be silent
    server: StudyServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Any) -> None:
        try:
            if f"//{self.headers.get('Host', '')}" not in {origin.partition(":")[2] for origin in self.server.origins}:
                raise _RefusedError(421, "This server does not answer for that host name.")
            method()
        except _RefusedError as refused:
            if self.command == "POST":
                self.close_connection = True  # its body may be unread
                self._send(refused.status, "application/json", json.dumps({"message": str(refused)}).encode())
            else:
                self._send(refused.status, "text/plain; charset=utf-8", f"{refused}\n".encode())

    def _get(self) -> None:
        address = urlsplit(self.path)
        query = parse_qs(address.query, max_num_fields=100)
        match [unquote(part) for part in address.path.split("/")[1:]]:
            case ["r", token]:
                self.server.open(self.server.rater(token), query)
                self._redirect(f"{token}/")  # relative, for proxies that serve the study under a path
            case ["r", token, ""]:
                self._send(200, "text/html; charset=utf-8", self.server.page(self.server.rater(token)).encode())
            case ["r", token, "images", name]:
                self._send(200, *self.server.image(self.server.rater(token), name))
            case ["join"] if self.server.prolific:
                self._redirect(f"r/{self.server.join(query).token}/")
            case _:
                raise _RefusedError(404, "There is nothing here. Please open the link that you were given.")

    def _post(self) -> None:
        match [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]:
            case ["r", token, "ratings"]:
                rater = self.server.rater(token)
            case _:
                raise _RefusedError(404, "There is nothing here.")
        # A form on another site cannot send this media type, and a script there cannot hide its origin.
        if self.headers.get("Origin", self.server.url) not in {*self.server.origins, self.server.url}:
            raise _RefusedError(403, "This request comes from another site.")
        if self.headers.get_content_type() != "application/json":
            raise _RefusedError(415, "A rating is sent as application/json.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise _RefusedError(411, "A rating needs its length.")
        if len(length) > 9 or int(length) > BODY_LIMIT:
            raise _RefusedError(413, "This is too long for a rating.")
        reply = self.server.append(rater, self.rfile.read(int(length)))
        self._send(200, "application/json", json.dumps(reply).encode())

    def _redirect(self, location: str) -> None:
        self._send(303, "text/plain", b"", {"Location": location})

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        always = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "private, max-age=3600" if kind.startswith("image/") else "no-store",
            "Content-Security-Policy": f"{policy(served=True)}; frame-ancestors 'none'",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "X-Robots-Tag": "noindex",
        }
        for name, value in {**always, **(headers or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The base class's own refusals: a malformed request, an unknown method."""
        self.close_connection = True
        self._send(code, "text/plain; charset=utf-8", b"This request cannot be answered.\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass
