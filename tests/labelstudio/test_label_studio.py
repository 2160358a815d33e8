"""A study through a real Label Studio server: the exported files are accepted, nothing in them is executed, and the ratings come back.

`tox -e labelstudio` installs the server; elsewhere these tests are skipped.
"""

from __future__ import annotations

import contextlib
import html
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser.conftest import chromium, chromium_type  # noqa: F401 - fixtures
from human import planted

from dreambench.human.study import Rater, Study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EMAIL = "organiser@example.org"
PROMPTS = 12
STARTS_WITHIN_S = 600
PAGE_WITHIN_MS = 180_000
HOSTILE = (
    "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'><style>body { display: none }</style>",
    '=HYPERLINK("http://example.org") ${owned} {{ 7 * 7 }} \u202eevil javascript:alert(1) data:text/html,x',
)


@dataclass
class Server:
    """Label Studio on loopback, its organiser's token, and the folder whose images it may serve."""

    url: str
    token: str
    password: str
    files: Path

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - on loopback
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:  # noqa: S310
                data = reply.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()[:2000]}") from error
        return json.loads(data) if path.startswith("/api/") else data


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if importlib.util.find_spec("label_studio") is None:
        pytest.skip("label-studio is not installed: run `tox -e labelstudio`")
    folder = tmp_path_factory.mktemp("label-studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = Server(f"http://127.0.0.1:{port}", secrets.token_hex(20), secrets.token_hex(8), folder / "files")
    found.files.mkdir()
    settings = {
        "BASE_DATA_DIR": folder / "data",
        "USERNAME": EMAIL,
        "PASSWORD": found.password,
        "USER_TOKEN": found.token,
        "ENABLE_LEGACY_API_TOKEN": "true",
        "DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": found.files,
    }
    environment = os.environ | {f"LABEL_STUDIO_{name}": str(value) for name, value in settings.items()}
    environment |= {"SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "", "HOME": str(folder)}
    command = [str(Path(sys.executable).with_name("label-studio")), "start", "--no-browser"]
    command += ["--internal-host", "127.0.0.1", "--port", str(port)]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{found.url}/health", timeout=5):  # noqa: S310
                break
            time.sleep(1)
        yield found
    finally:
        process.terminate()
        process.wait(timeout=60)


def project(server: Server, study: Path, config: str) -> int:
    """A project with the study's configuration, images and all raters' tasks."""
    forms = study / "organiser/forms"
    xml = (forms / config).read_text()
    id_ = server.call("POST", "/api/projects/", {"title": study.name, "label_config": xml, "maximum_annotations": 1})[
        "id"
    ]
    shutil.copytree(forms / "images", server.files / "images", dirs_exist_ok=True)
    images = {"project": id_, "path": str(server.files / "images"), "use_blob_urls": True, "title": "images"}
    server.call("POST", "/api/storages/localfiles/", images)
    for tasks in sorted(forms.glob("label-studio-*.json")):
        reply = server.call("POST", f"/api/projects/{id_}/import", json.loads(tasks.read_text()))
        assert reply["task_count"] == len(json.loads(tasks.read_text()))
    return id_


def exported(server: Server, id_: int) -> list[dict[str, Any]]:
    return server.call("GET", f"/api/projects/{id_}/export?exportType=JSON&download_all_tasks=true")


def result_of(study: Study, answer: int | str, tag: str) -> dict[str, Any]:
    """An answer in Label Studio's words."""
    value = {"choices": [str(answer)]} if tag == "choices" else {"selected": {"a": "left", "b": "right"}[str(answer)]}
    shown = study.questions[0].id if tag == "pairwise" else "document"
    return {"from_name": study.questions[0].id, "to_name": shown, "type": tag, "value": value}


def is_of(task: dict[str, Any], rater: Rater) -> bool:
    return task["data"]["rater"] == rater.id


def annotate(server: Server, study: Study, id_: int, tag: str) -> list[dict[str, Any]]:
    """Answers every task that has no annotation, each rater as a user, in the words in which Label Studio's page does; the export."""
    items = {item.id: item for item in study.items}
    users = {study.raters[0].id: server.call("GET", "/api/current-user/whoami")["id"]}
    for rater in study.raters[1:]:
        mail = f"{rater.id}-{id_}@example.org"
        users[rater.id] = server.call("POST", "/api/users/", {"email": mail, "username": mail})["id"]
    raters = {rater.id: rater for rater in study.raters}
    for task in exported(server, id_):
        if task["annotations"]:
            continue
        rater, item = raters[task["data"]["rater"]], items[task["data"]["item"]]
        answer = planted.answer(rater, item, study.questions[0], rater.items.index(item.id), ties=tag == "choices")
        value = (
            {"choices": [str(answer)]} if tag == "choices" else {"selected": {"a": "left", "b": "right"}[str(answer)]}
        )
        shown = study.questions[0].id if tag == "pairwise" else "document"
        result = {"from_name": study.questions[0].id, "to_name": shown, "type": tag, "value": value}
        body = {"result": [result], "lead_time": 6.5, "completed_by": users[rater.id]}
        server.call("POST", f"/api/tasks/{task['id']}/annotations/", body)
    return exported(server, id_)


@pytest.fixture(scope="module")
def page(server: Server, chromium: Browser) -> Iterator[Page]:  # noqa: F811
    """Label Studio in a browser, with the organiser logged in."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PAGE_WITHIN_MS)
    page.goto(f"{server.url}/user/login")
    page.fill("[name=email]", EMAIL)
    page.fill("[name=password]", server.password)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url)
    yield page
    page.close()


def annotate_in_page(server: Server, page: Page, id_: int, task: dict[str, Any], answer: int | str, tag: str) -> Any:
    """Answers a task by clicks; returns the result that Label Studio stores."""
    page.goto(f"{server.url}/projects/{id_}/data?task={task['id']}")
    page.wait_for_selector("[name=submit]")
    shown = page.locator(".lsf-htx-richtext")  # the instruction, then the documents
    expected = task["data"]["document" if tag == "choices" else "left"]
    text = html.unescape(expected.removeprefix('<p dir="auto">').removesuffix("</p>"))
    assert " ".join(text.split()) in " ".join(shown.nth(1).inner_text().split()), "hostile text is shown as text"
    assert page.evaluate("window.owned") is None
    if tag == "choices":
        page.click(f".lsf-choice >> nth={answer}")
    else:
        shown.nth(1 if answer == "a" else 2).click()
    with page.expect_response(lambda reply: reply.request.method == "POST" and "/annotations" in reply.url) as stored:
        page.click("[name=submit]")
    return stored.value.json()["result"]


@pytest.mark.parametrize(
    ("mode", "config", "tag"),
    [("rating", "label-studio.xml", "choices"), ("pairwise", "label-studio-pairwise.xml", "pairwise")],
)
def test_a_study_through_label_studio(
    mode: Any, config: str, tag: str, server: Server, page: Page, tmp_path: Path
) -> None:
    key = planted.export(tmp_path, mode, PROMPTS, hostile=HOSTILE)
    study = (tmp_path / "study").rename(tmp_path / f"study-{mode}")
    id_ = project(server, study, config)

    # Text arrives as it was exported, and an image is served.
    tasks = {(task["data"]["rater"], task["data"]["item"]): task["data"] for task in exported(server, id_)}
    sent = [
        task["data"]
        for file in (study / "organiser/forms").glob("label-studio-*.json")
        for task in json.loads(file.read_text())
    ]
    assert {(data["rater"], data["item"]): data for data in sent} == tasks
    assert any("window.owned" in str(data) for data in sent)
    image = next((study / "organiser/forms/images").iterdir())
    assert server.call("GET", f"/data/local-files/?d=images/{image.name}") == image.read_bytes()

    # The first rater answers a hostile task in the browser: what the page stores is what `annotate` writes.
    rater, items = key.raters[0], {item.id: item for item in key.items}
    task = next(task for task in exported(server, id_) if is_of(task, rater) and "window.owned" in str(task["data"]))
    place = rater.items.index(task["data"]["item"])
    answer = planted.answer(rater, items[rater.items[place]], key.questions[0], place, ties=tag == "choices")
    (stored,) = annotate_in_page(server, page, id_, task, answer, tag)
    assert {name: stored[name] for name in ("from_name", "to_name", "type", "value")} == result_of(key, answer, tag)

    export = tmp_path / "export.json"
    export.write_text(json.dumps(annotate(server, key, id_, tag)))
    planted.run("human", "import", str(study), str(export), "--json", str(tmp_path / "import.json"))
    report = json.loads((tmp_path / "import.json").read_text())
    source = report["sources"][0]
    assert (source["form"], source["left_out"]) == ("Label Studio", [])
    assert source["accepted"] == len(tasks)
    assert {rater["rater"] for rater in report["raters"] if rater["left_out"]} == {planted.INATTENTIVE}
    planted.check_analysis(study, mode, ties=tag == "choices", careless=False)
