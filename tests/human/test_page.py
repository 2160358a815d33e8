"""The rater page as a file: its policy names exactly its own script and style, and its data cannot leave their block."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import pytest
from human.studies import make_study

from dreambench.human.page import render_page

HOSTILE = "</script><script>alert(1)</script><!-- <script> ]]> \u2028 \ud800 \0 {{ 7 * 7 }} & \"'"


def blocks(page: str) -> dict[str, str]:
    found = re.findall(r"<(style|script)([^>]*)>(.*?)</\1>", page, re.DOTALL)
    return {name + attributes: text for name, attributes, text in found}


@pytest.mark.parametrize(
    ("served", "embedded", "images", "connect"),
    [(False, False, "data: 'self' file:", None), (False, True, "data:", None), (True, False, "data: 'self'", "'self'")],
)
def test_the_policy_admits_this_script_and_nothing_else(
    tmp_path: Path, served: bool, embedded: bool, images: str, connect: str | None
) -> None:
    study = make_study(tmp_path)
    public = study.public(study.raters[0]) | ({"served": {"ratings": [], "code": None}} if served else {})
    page = render_page(public, {"red.webp": "data:image/webp;base64,AAAA"} if embedded else None)
    parts = blocks(page)
    assert set(parts) == {"style", "script", 'script id="study" type="application/json"'}
    content = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0])
    policy = {rule.split(" ")[0]: rule.partition(" ")[2] for rule in content.split("; ")}
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parts[name].encode()).digest()).decode()
        assert policy.pop(f"{name}-src") == f"'sha256-{digest}'"
    expected = {"default-src": "'none'", "img-src": images, "base-uri": "'none'", "form-action": "'none'"}
    assert policy == expected | ({"connect-src": connect} if connect else {})
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_data_cannot_leave_their_block(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    public = study.public(study.raters[0]) | {"consent": HOSTILE}
    public["items"][1]["documents"] = [[{"text": HOSTILE}]]
    page = render_page(public)
    island = blocks(page)['script id="study" type="application/json"']
    assert json.loads(island) == json.loads(json.dumps(public))
    assert island.isascii()
    assert "<" not in island
    assert render_page(public) == page, "the same study gives the same bytes"


def test_a_title_is_text(tmp_path: Path) -> None:
    study = make_study(tmp_path, title="<b>\"bold\" & 'brave'</b></title><script>")
    page = render_page(study.public(study.raters[0]))
    assert html.unescape(re.findall(r"<title>(.*?)</title>", page)[0]) == study.title
    assert len(re.findall(r"<script", page)) == 2
