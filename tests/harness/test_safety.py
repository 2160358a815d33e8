"""Keys and control characters: what a server, a file or a user writes reaches no file and no terminal with them."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from judges.chat_server import Answer, serving

import dreambench
from dreambench import doctor
from dreambench.cli import main
from dreambench.errors import UsageError
from dreambench.safety import keep_secret, redact, redacted_output
from dreambench.spec import RunSpec

KEY = "sk-Zq8/+very=secret_0"


def completion(**fields: object) -> bytes:
    message = {"role": "assistant", "content": fields.pop("content", "red"), "refusal": fields.pop("refusal", None)}
    choice = {"index": 0, "finish_reason": fields.pop("finish_reason", "stop"), "message": message}
    return json.dumps({"model": "m", "choices": [choice], **fields}).encode()


ECHOES = {
    "text": Answer(body=completion(content=f"red; Authorization: Bearer {KEY}")),
    "model": Answer(body=completion(model=f"m {KEY}")),
    "finish reason": Answer(body=completion(finish_reason=KEY)),
    "refusal": Answer(body=completion(content=None, refusal=f"not with {KEY}")),
    "a bad request": Answer(KEY, 400),
    "escaped JSON": Answer(
        body=completion().replace(b'"red"', b'"' + "".join(f"\\u{ord(c):04x}" for c in KEY).encode() + b'"')
    ),
    "URL": Answer(body=completion(content=quote(KEY, safe=""))),
    "base64": Answer(body=completion(content=base64.b64encode(f"user:{KEY}\n".encode()).decode())),
    "wrong key": Answer(KEY, 401),
    "redirect": Answer("moved", 302, {"Location": f"/v2?key={KEY}"}),
    "page": Answer(body=f"<html>{KEY}".encode()),
}


def leaks(text: str) -> list[str]:
    """The forms of the key in a text."""
    forms = [KEY, quote(KEY, safe=""), json.dumps(KEY)[1:-1], KEY.encode().hex()]
    forms += [base64.b64encode(bytes(n) + KEY.encode()).decode()[4:-4] for n in range(3)]
    return [form for form in forms if form in text]


@pytest.mark.parametrize("judge", [False, True])
@pytest.mark.parametrize("where", ["every reply", "wrong key", "redirect"])
def test_a_key_that_the_server_repeats_reaches_no_file_and_no_terminal(
    where: str, judge: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TEST_VARIABLE", KEY)
    replies = [
        answer
        for name, answer in ECHOES.items()
        if (name == where) or (where == "every reply" and answer.status in (200, 400))
    ]
    with serving(lambda body, number: replies[number % len(replies)]) as server:
        url = f"openai:m@{server.url}"
        words = ["--judge", f"{url},runs=1,retries=0,key_env=MY_TEST_VARIABLE", "--model", "echo"]
        if not judge:
            pairs = ("--model-arg", "retries=0", "--model-arg", "key_env=MY_TEST_VARIABLE")
            words = ["--model", url, *pairs, "--judge", "rule"]
        with pytest.raises(SystemExit) as left:
            main(["run", "--task", "mmvet", "--limit", "20", "--out", str(tmp_path / "runs"), *words])
        assert left.value.code == (0 if where == "every reply" else 2)
        if left.value.code == 0:
            (run,) = (tmp_path / "runs").iterdir()
            with pytest.raises(SystemExit):
                main(["report", str(run), "--html", str(tmp_path / "page.html"), "--csv"])
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert len(server.bodies) > 10 or where != "every reply"
    captured = capsys.readouterr()
    assert not leaks(captured.out + captured.err)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 1
    for path in files:
        assert not leaks(path.read_bytes().decode("latin-1")), path
        if path.suffix == ".parquet":
            import pandas as pd

            assert not leaks(pd.read_parquet(path).to_csv()), path


def test_a_short_key_is_a_word_that_answers_may_have() -> None:
    keep_secret("EMPTY")
    assert redact("the box is EMPTY") == "the box is EMPTY"
    keep_secret("not-EMPTY")
    assert redact("the box is not-empty") == "the box is [redacted]"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "openai:m@http://user:pass-word@host/v1"}, "--model"),
        ({"judge": "openai:m@http://user:pass-word@host/v1"}, "--judge"),
        ({"model_arg": ["api_key=sk-123456"]}, "--model-arg api_key"),
        ({"model_arg": {"hf_token": "hf_123456"}}, "--model-arg hf_token"),
        ({"generation": ["prompt=value-of-a-secret"]}, "--generation"),
        ({"data": "/somewhere/value-of-a-secret"}, "--data"),
    ],
)
def test_no_secret_becomes_part_of_a_run(options: dict[str, object], says: str) -> None:
    keep_secret("value-of-a-secret")
    with pytest.raises(UsageError, match=says) as caught:
        RunSpec(task="vqav2", **options)
    assert not any(word in str(caught.value) for word in ("pass-word", "123456", "value-of"))


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://h:0/v1",
        "http://h:99999/v1",
        "http://h/v1?key=1",
        "http://h/#v1",
        "http://localhost\\@h/v1",
        "http://a@h/v1",
        "http://h\n/v1",
        "http://h /v1",
        "http://[::1/v1",
        "http:///v1",
        "https://h:80:80/",
    ],
)
def test_a_base_url_is_a_plain_address(url: str) -> None:
    with pytest.raises(UsageError, match="BASE_URL"):
        dreambench.run("vqav2", f"openai:m@{url}")


def test_a_key_in_place_of_a_variable_s_name_is_not_repeated() -> None:
    with pytest.raises(UsageError, match="named by key_env is empty") as caught:
        dreambench.run("vqav2", "openai:m@http://localhost/v1", model_arg={"key_env": "sk_live_4711"})
    assert "4711" not in str(caught.value)


def test_a_redacting_stream_takes_all_that_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    """`io.TextIOBase.write` tells how much of the text was taken; a caller with a smaller number would write the rest again."""
    keep_secret(KEY)
    with redacted_output():
        text = f"the key is {KEY}\n"
        assert sys.stdout.write(text) == len(text)
    assert capsys.readouterr().out == "the key is [redacted]\n"


def test_a_bug_s_traceback_is_redacted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keep_secret(KEY)
    monkeypatch.setattr("dreambench.doctor.examine", lambda: 1 / int(f"x{KEY}"))
    with pytest.raises(SystemExit) as left:
        main(["doctor"])
    captured = capsys.readouterr()
    assert left.value.code == 1
    assert "ValueError" in captured.err
    assert not leaks(captured.out + captured.err)


def test_an_exit_of_a_verb_s_own_keeps_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `sys.exit` in the command of another package: it is no error of ours."""
    monkeypatch.setattr("dreambench.doctor.examine", lambda: sys.exit(7))
    with pytest.raises(SystemExit) as left:
        main(["doctor"])
    assert left.value.code == 7
    assert capsys.readouterr().err == ""


def test_the_doctor_tells_free_space_in_gib_and_when_it_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, line in ((6, "ok 6.0 GiB free here"), (5, "!! 5.0 GiB free here: 30,000 images")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free * 1024**3))
        *_, told = doctor._machine()  # pyright: ignore[reportPrivateUsage]
        assert told.startswith(line)


def test_terminals_get_no_control_characters_of_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
    for answer in (Answer(escape, 401), Answer(escape, 302, {"Location": "/\x1b[2J"}), Answer(body=escape.encode())):
        with serving(lambda body, number, answer=answer: answer) as server:
            words = ["--model", f"openai:m@{server.url}", "--model-arg", "retries=0", "--judge", "rule"]
            with pytest.raises(SystemExit) as left:
                main(["run", "--task", "mmvet", "--limit", "2", "--out", str(tmp_path), *words])
        captured = capsys.readouterr()
        assert left.value.code == 2
        assert not set("\x1b\x07\x9b\u202e") & set(captured.out + captured.err)
