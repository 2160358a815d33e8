"""`human serve`: what is acknowledged is on disk, one rater per link, and nothing else is taken or given."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from human.studies import ACCEPT, PREFER, QUALITY, chain, make_study

from dreambench.cli import main
from dreambench.documents import canonical_json
from dreambench.errors import DataError, UsageError
from dreambench.human.serve import BODY_LIMIT, StudyServer, screening, serve_study
from dreambench.human.study import Rater, Rating, Study


class Reply(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A browser without a browser: requests to one address."""

    def __init__(self, url: str) -> None:
        self.address = url.removeprefix("http://")
        self.url = url

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection(self.address, timeout=300)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def rate(self, rater: Rater, rating: Rating | bytes, **headers: str) -> Reply:
        body = rating if isinstance(rating, bytes) else rating.model_dump_json().encode()
        return self.ask(
            "POST",
            f"/r/{rater.token}/ratings",
            body,
            **{"Content_Type": "application/json", "Origin": self.url, **headers},
        )


@contextlib.contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Client]:
    with StudyServer(folder, port=0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


def everything(study: Study, **changed: int | str) -> list[tuple[str, str, int | str]]:
    """One answer to everything, the training items as expected."""
    answers = {"accept": 1, "quality": 5, "prefer": "a"} | changed
    return [(item.id, question, answers[question]) for item in study.items for question in item.questions]


def stored(folder: Path, rater: Rater) -> list[str]:
    path = folder / "organiser" / "ratings" / f"served-{rater.id}.jsonl"
    return path.read_text().splitlines(keepends=True) if path.exists() else []


# --- ratings ----------------------------------------------------------------------------------------------------------


def test_ratings_are_appended_and_the_code_is_shown_to_those_who_finished(tmp_path: Path) -> None:
    study = make_study(tmp_path, questions=(ACCEPT, QUALITY))
    rater = study.raters[0]
    ratings = chain(study, rater, [*everything(study), ("item-1", "accept", 0)])
    with serving(tmp_path, completion_code="CODE-17") as client:
        before: list[str] = []
        for n, rating in enumerate(ratings, 1):
            reply = client.rate(rater, rating)
            lines = stored(tmp_path, rater)
            assert (reply.status, reply.json["stored"]) == (200, n)
            assert reply.json["code"] == ("CODE-17" if n >= len(ratings) - 1 else None)
            assert lines[:-1] == before, "what was there must not change"
            assert Rating.model_validate_json(lines[-1]) == rating
            assert lines[-1].endswith("\n")
            before = lines
        page = client.get(f"/r/{rater.token}/").body.decode()
        assert "CODE-17" in page
        assert page.count('"seal"') == len(ratings)
        assert "CODE-17" not in client.get(f"/r/{study.raters[1].token}/").body.decode()


def test_a_rating_sent_again_is_acknowledged_and_stored_once(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    rater = study.raters[0]
    first, second = chain(study, rater, everything(study)[:2])
    with serving(tmp_path) as client:
        assert [client.rate(rater, rating).status for rating in (first, first, second, first)] == [200] * 4
    assert len(stored(tmp_path, rater)) == 2


def test_ratings_that_do_not_belong_here_are_refused_and_not_stored(tmp_path: Path) -> None:
    study = make_study(tmp_path, questions=(ACCEPT, QUALITY))
    rater, other = study.raters[:2]
    good = chain(study, rater, everything(study))
    foreign = study.model_copy(update={"title": "another study"})

    def made(*answer: Any) -> Rating:
        return chain(study, rater, [*everything(study)[:2], answer])[-1]

    bad: dict[str, Rating | bytes] = {
        "another rater": chain(study, other, everything(study))[2],
        "another study": chain(foreign, rater, everything(study))[2],
        "unknown item": made("item-9", "accept", 1),
        "question that the item has not": made("item-1", "prefer", "a"),
        "answer out of range": made("item-1", "quality", 6),
        "answer of another kind": made("item-1", "quality", "a"),
        "true is no number": made("item-1", "accept", 1)
        .model_dump_json()
        .replace('"answer":1', '"answer":true')
        .encode(),
        "edited": good[2].model_copy(update={"seconds": 99.0}),
        "skips one": good[3],
        "trains again": made("item-0", "accept", 1),
        "negative time": good[2].model_dump_json().replace('"seconds":3.0', '"seconds":-3.0').encode(),
        "no number": good[2].model_dump_json().replace('"seconds":3.0', '"seconds":NaN').encode(),
        "one field more": good[2].model_dump_json().replace("{", '{"system":"one",', 1).encode(),
        "no JSON": b"hello",
        "not an object": b"[1, 2]",
        "deep": b"[" * 9000,
        "empty": b"",
        "not UTF-8": b'{"study": "\xff"}',
    }
    with serving(tmp_path) as client:
        assert [client.rate(rater, rating).status for rating in good[:2]] == [200, 200]
        before = stored(tmp_path, rater)
        statuses = {name: client.rate(rater, rating).status for name, rating in bad.items()}
        assert {name for name, status in statuses.items() if status == 200} == set()
        assert statuses["skips one"] == statuses["edited"] == 409
        assert set(statuses.values()) <= {400, 403, 409}
        assert stored(tmp_path, rater) == before
        assert stored(tmp_path, other) == []
        assert client.rate(rater, good[2]).status == 200, "the rater can go on"


def test_requests_of_other_sites_and_of_wrong_size_or_kind_are_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    rater = study.raters[0]
    rating = chain(study, rater, everything(study))[0]
    with serving(tmp_path) as client:
        assert client.rate(rater, rating, Origin="https://evil.example").status == 403
        assert client.rate(rater, rating, Origin="null").status == 403
        assert client.rate(rater, rating, Content_Type="text/plain").status == 415
        assert client.rate(rater, rating, Host="evil.example").status == 421
        assert client.get(f"/r/{rater.token}/", Host="evil.example").status == 421
        assert client.rate(rater, b" " * (BODY_LIMIT + 1)).status == 413
        assert client.rate(rater, rating, Content_Length="99999999999999999999").status == 413
        assert client.rate(rater, rating, Content_Length="-1").status == 411
        assert client.ask("PUT", f"/r/{rater.token}/ratings", b"{}").status == 501
        assert client.ask("POST", "/r/unknown/ratings", b"{}", Content_Type="application/json").status == 404
        assert client.get("/" + "x" * 70_000).status == 414
        assert stored(tmp_path, rater) == []
        assert client.rate(rater, rating).status == 200


def test_two_processes_do_not_serve_one_study(tmp_path: Path) -> None:
    make_study(tmp_path)
    with serve_command(tmp_path):
        command = [sys.executable, "-m", "dreambench", "human", "serve", str(tmp_path), "--port", "0"]
        second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2
    assert "being written by another launch" in second.stderr


@contextlib.contextmanager
def serve_command(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    command = [sys.executable, "-m", "dreambench", "human", "serve", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.match(r"rater-1  (http://[^/]+)/r/token-1", process.stdout.readline())
            assert address is not None
            yield process, Client(address[1])
        finally:
            process.kill()


def test_a_server_killed_between_answers_loses_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    rater = study.raters[0]
    ratings = chain(study, rater, everything(study))
    for rating in ratings:
        with serve_command(tmp_path, "--completion-code", "DONE") as (process, client):
            reply = client.rate(rater, rating)
            assert reply.status == 200
            os.kill(process.pid, signal.SIGKILL)
        with (tmp_path / "organiser" / "ratings" / f"served-{rater.id}.jsonl").open("a") as file:
            file.write('{"study": "torn')  # what a process that dies while it writes leaves
    assert reply.json == {"stored": len(ratings), "code": "DONE"}
    with serving(tmp_path) as client:
        page = client.get(f"/r/{rater.token}/").body.decode()
    assert [seal in page for seal in (rating.seal for rating in ratings)] == [True] * len(ratings)
    assert [Rating.model_validate_json(line) for line in stored(tmp_path, rater)] == ratings


def test_ctrl_c_says_that_ratings_are_safe_and_leaves_with_130(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    with serve_command(tmp_path) as (process, client):
        client.rate(study.raters[0], chain(study, study.raters[0], everything(study))[0])
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "1 rating safe in" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "organiser" / "serve.lock").exists()


def test_an_edited_file_of_ratings_stops_the_start(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    rater = study.raters[0]
    with serving(tmp_path) as client:
        for rating in chain(study, rater, everything(study)):
            client.rate(rater, rating)
    path = tmp_path / "organiser" / "ratings" / f"served-{rater.id}.jsonl"
    path.write_text(path.read_text().replace('"answer":1', '"answer":0', 2).replace('"answer":0', '"answer":1', 1))
    with pytest.raises(DataError, match=r"served-rater-1\.jsonl, line 2: its seal is wrong"):
        StudyServer(tmp_path, port=0)


# --- training items ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tries", "expected"),
    [([], "training"), ([1], "passed"), ([0], "training"), ([0, 1], "passed"), ([0, 0], "failed"), ([1, 0], "passed")],
)
def test_training_items_may_be_answered_twice(tmp_path: Path, tries: list[int], expected: str) -> None:
    study = make_study(tmp_path, questions=(ACCEPT, QUALITY))
    rater = study.raters[0]
    answers = [answer for right in tries for answer in (("item-0", "accept", right), ("item-0", "quality", 5))]
    assert screening(study, rater, chain(study, rater, answers)) == expected


def test_a_rater_who_fails_twice_is_sent_away_and_it_is_recorded(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    rater, other = study.raters[:2]
    wrong = ("item-0", "accept", 0)
    ratings = chain(study, rater, [wrong, wrong, ("item-0", "accept", 1), ("item-1", "accept", 1)])
    with serving(tmp_path) as client:
        early = chain(study, rater, [("item-1", "accept", 1)])[0]
        assert client.rate(rater, early).status == 403, "examples come first"
        assert [client.rate(rater, rating).status for rating in ratings[:3]] == [200, 200, 403]
        passed = chain(study, other, [wrong, ("item-0", "accept", 1), ("item-1", "accept", 1)])
        assert [client.rate(other, rating).status for rating in passed] == [200] * 3
    assert [json.loads(line)["answer"] for line in stored(tmp_path, rater)] == [0, 0]
    with StudyServer(tmp_path, port=0) as server:
        assert "1 sent away" in server.summary()


def test_an_example_is_answered_once_in_a_try(tmp_path: Path) -> None:
    study = make_study(tmp_path, questions=(ACCEPT, QUALITY))
    rater = study.raters[0]
    ratings = chain(study, rater, [("item-0", "accept", 0), ("item-0", "accept", 1)])
    with serving(tmp_path) as client:
        assert [client.rate(rater, rating).status for rating in ratings] == [200, 400]


# --- participants -----------------------------------------------------------------------------------------------------


def test_a_link_belongs_to_the_first_participant_who_opens_it(tmp_path: Path) -> None:
    study = make_study(tmp_path, raters=1)
    link = f"/r/{study.raters[0].token}?PROLIFIC_PID="
    with serving(tmp_path, prolific=True) as client:
        assert [client.get(f"{link}{who}").status for who in ("anna-5", "bert-6", "anna-5")] == [303, 403, 303]
        assert client.get("/join?PROLIFIC_PID=bert-6").status == 410


def test_participants_get_one_link_each_and_only_salted_hashes_are_kept(tmp_path: Path) -> None:
    study = make_study(tmp_path, raters=3)
    with serving(tmp_path, prolific=True) as client:

        def join(who: str) -> Reply:
            return client.get(f"/join?PROLIFIC_PID={who}&STUDY_ID=study-77&SESSION_ID=session-88")

        # The second link has ratings of somebody who was given it: it is not handed out.
        second = study.raters[1]
        assert client.rate(second, chain(study, second, everything(study))[0]).status == 200
        places = [join(who).headers["Location"] for who in ("anna-5", "bert-6", "anna-5")]
        assert places == [f"r/{study.raters[k].token}/" for k in (0, 2, 0)]
        assert join("carl-7").status == 410
        assert client.get("/join").status == 400
        assert client.get(f"/r/{study.raters[0].token}?PROLIFIC_PID=bert-6").status == 403
        assert client.get(f"/r/{second.token}?PROLIFIC_PID=carl-7").status == 403
        same = client.get(f"/r/{study.raters[0].token}?PROLIFIC_PID=anna-5&SESSION_ID=another")
        assert (same.status, same.headers["Location"]) == (303, f"{study.raters[0].token}/")
    with serving(tmp_path, prolific=True) as client:
        again = client.get("/join?PROLIFIC_PID=bert-6")
        assert again.headers["Location"] == f"r/{study.raters[2].token}/", "known after a restart"
    kept = [path.read_text() for path in (tmp_path / "organiser").rglob("*") if path.is_file()]
    assert not [text for text in kept for word in ("anna-5", "bert-6", "study-77", "session-88") if word in text]
    lines = (tmp_path / "organiser" / "participants.jsonl").read_text().splitlines()
    assert [json.loads(line)["rater"] for line in lines] == ["rater-1", "rater-3"]


def test_links_are_not_handed_out_unless_asked_for(tmp_path: Path) -> None:
    make_study(tmp_path)
    with serving(tmp_path) as client:
        assert client.get("/join?PROLIFIC_PID=anna-5").status == 404


# --- what is served ---------------------------------------------------------------------------------------------------


def test_nothing_of_the_key_and_no_other_file_is_served(tmp_path: Path) -> None:
    study = make_study(tmp_path, questions=(PREFER,))
    rater, other = study.raters[:2]
    (tmp_path / "raters" / rater.id / "images" / "private.webp").write_bytes(b"not of an item")
    with serving(tmp_path) as client:
        page = client.get(f"/r/{rater.token}/")
        text = page.body.decode()
        for secret in ("secret-one", "prompt-1", '"purpose"', "weather", other.token, '"two"'):
            assert secret not in text
        image = client.get(f"/r/{rater.token}/images/red.webp")
        assert (image.status, image.headers["Content-Type"]) == (200, "image/webp")
        assert image.body == (tmp_path / "raters" / rater.id / "images" / "red.webp").read_bytes()
        base = f"/r/{rater.token}"
        for path in (
            "/",
            "/r/",
            "/r/unknown/",
            "/organiser/key.json",
            "/raters/rater-1/index.html",
            f"{base}/images/",
            f"{base}/images/private.webp",
            f"{base}/images/../index.html",
            f"{base}/images/..%2Findex.html",
            f"{base}/images/..%2F..%2F..%2Forganiser%2Fkey.json",
            f"{base}/images/%2Fetc%2Fpasswd",
            f"{base}/images/red.webp%00",
            f"{base}/ratings",
            f"{base}/../../organiser/key.json",
        ):
            assert client.get(path).status == 404, path


def test_images_of_a_study_exported_as_zip_or_html(tmp_path: Path) -> None:
    rater = make_study(tmp_path).raters[0]
    (tmp_path / "organiser" / "forms").mkdir()
    (tmp_path / "raters" / rater.id / "images").rename(tmp_path / "organiser" / "forms" / "images")
    with serving(tmp_path) as client:
        assert client.get(f"/r/{rater.token}/images/red.webp").status == 200


def test_every_reply_carries_the_headers_that_confine_it(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    rater = study.raters[0]
    with serving(tmp_path) as client:
        replies = [
            client.get(f"/r/{rater.token}/"),
            client.get(f"/r/{rater.token}/images/red.webp"),
            client.get("/nothing"),
            client.rate(rater, b"nonsense"),
            client.ask("DELETE", "/"),
        ]
    for reply in replies:
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "'unsafe-" not in reply.headers["Content-Security-Policy"]
        assert "Server" not in reply.headers
        assert "Access-Control-Allow-Origin" not in reply.headers


def test_every_option_of_the_command_reaches_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_study(tmp_path)
    seen: dict[str, object] = {}

    def server(study: Path, **options: object) -> None:
        seen.update(options, study=study)
        raise UsageError("seen")

    monkeypatch.setattr("dreambench.human.serve.StudyServer", server)
    options = {"--host": "::1", "--port": "81", "--url": "https://study.example.org", "--completion-code": "C0DE"}
    with pytest.raises(SystemExit):
        main(["human", "serve", str(tmp_path), *(word for pair in options.items() for word in pair), "--prolific"])
    assert seen == {
        "study": tmp_path,
        "host": "::1",
        "port": 81,
        "url": "https://study.example.org",
        "completion_code": "C0DE",
        "prolific": True,
    }


def test_names_of_hosts_that_raters_open(tmp_path: Path) -> None:
    make_study(tmp_path)
    with pytest.raises(UsageError, match="--url"):
        StudyServer(tmp_path, host="0.0.0.0", port=0)  # noqa: S104 - it is refused
    with StudyServer(tmp_path, port=0, url="https://study.example.org/a/") as server:
        assert server.links["rater-1"].startswith("https://study.example.org/a/r/token-1")
        assert "https://study.example.org" in server.origins
        with pytest.raises(UsageError, match=f"--port {server.server_port}: .*name another"):
            StudyServer(tmp_path, port=server.server_port)
    with serving(tmp_path, url="https://study.example.org") as client:
        assert client.get("/r/unknown/", Host="study.example.org").status == 404
        assert client.get("/r/unknown/", Host="other.example.org").status == 421


def test_a_full_disk_loses_no_rating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path)
    rater = study.raters[0]
    first, second = chain(study, rater, everything(study)[:2])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with serving(tmp_path) as client:
        assert client.rate(rater, first).status == 200
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            assert client.rate(rater, second).status == 503, "the page tries again"
        assert client.rate(rater, second).status == 200
    assert [Rating.model_validate_json(line) for line in stored(tmp_path, rater)] == [first, second]


def test_a_folder_that_is_no_study_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a study"):
        serve_study(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_the_salt_is_of_one_study(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_study(tmp_path / name)
        with serving(tmp_path / name, prolific=True) as client:
            client.get("/join?PROLIFIC_PID=anna-5")
    kept = [canonical_json((tmp_path / name / "organiser" / "participants.jsonl").read_text()) for name in ("a", "b")]
    assert kept[0] != kept[1]
