"""The rater page in the system's Firefox, from disk: by keyboard to the end, over a reload and a kill of the browser.

Firefox is driven through Marionette, its own remote protocol, so that no driver is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from human.studies import ACCEPT, QUALITY, make_study

from dreambench.human.study import Rating

WAIT_S = 120.0
ENTER = "\ue007"  # WebDriver's name of the key
PREFERENCES = {
    "marionette.port": 0,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.normandy.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.server": "",
}
PLACE = "document.querySelector('#item') && document.querySelector('#place').textContent"


class Firefox:
    """A Firefox with this profile, and what Marionette is asked of it: ``LENGTH:[0, id, command, parameters]`` over TCP."""

    def __init__(self, program: str, profile: Path) -> None:
        profile.mkdir(exist_ok=True)
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items()]
        (profile / "user.js").write_text("".join(lines))
        port = profile / "MarionetteActivePort"
        port.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [program, "--headless", "--marionette", "--no-remote", "--profile", str(profile)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile), "MOZ_CRASHREPORTER_DISABLE": "1"},
        )
        try:
            deadline = time.monotonic() + WAIT_S
            while not (port.exists() and port.read_text()):
                assert time.monotonic() < deadline, "Firefox did not start"
                assert self._process.poll() is None, "Firefox ended"
                time.sleep(0.1)
            self._socket = socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=WAIT_S)
            self._stream = self._socket.makefile("rb")
            self._receive()
            self.ask("WebDriver:NewSession")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def kill(self) -> None:
        """SIGKILL, as a crash would be."""
        self._process.kill()
        self._process.wait()
        self._stream.close()
        self._socket.close()

    def ask(self, command: str, **parameters: Any) -> Any:
        message = json.dumps([0, 1, command, parameters])
        self._socket.sendall(f"{len(message)}:{message}".encode())
        _, _, error, result = self._receive()
        assert error is None, error
        return result["value"] if isinstance(result, dict) and "value" in result else result

    def _receive(self) -> Any:
        length = b""
        while (character := self._stream.read(1)) != b":":
            assert character, "Firefox has gone"
            length += character
        return json.loads(self._stream.read(int(length)))

    def script(self, expression: str) -> Any:
        return self.ask("WebDriver:ExecuteScript", script=f"return {expression}", args=[])

    def wait_for(self, expression: str) -> Any:
        deadline = time.monotonic() + WAIT_S
        while not (found := self.script(expression)):
            assert time.monotonic() < deadline, expression
            time.sleep(0.05)
        return found

    def press(self, *keys: str) -> None:
        for key in keys:
            actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
            self.ask("WebDriver:PerformActions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])


def test_a_study_in_firefox(tmp_path: Path) -> None:
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("no firefox on this machine")
    if "DREAMBENCH_BROWSERS" not in os.environ:
        pytest.skip("starting Firefox takes a while: `tox -e browser` does")
    study = make_study(tmp_path / "study", questions=(ACCEPT, QUALITY), items=3)
    url = (tmp_path / "study" / "raters" / "rater-1" / "index.html").as_uri()
    firefox = Firefox(program, tmp_path / "profile")
    try:
        firefox.ask("WebDriver:Navigate", url=url)
        firefox.wait_for("document.body.dataset.step === 'consent'")
        firefox.press("\ue004", ENTER)  # Tab leads to the button
        firefox.wait_for("document.body.dataset.step === 'training'")
        firefox.press("2", "5", ENTER, "1", "2", ENTER, "2")
        assert firefox.wait_for("document.images[0].naturalWidth") == 96
        firefox.ask("WebDriver:Refresh")
        assert firefox.wait_for(PLACE) == "2 of 3"
        firefox.press("4", ENTER, "1")
        assert firefox.wait_for(PLACE) == "3 of 3"
        firefox.wait_for("document.querySelector('#status').textContent === 'Saved'")
        firefox.kill()
        firefox = Firefox(program, tmp_path / "profile")
        firefox.ask("WebDriver:Navigate", url=url)
        assert firefox.wait_for(PLACE) == "3 of 3"
        assert firefox.script("document.querySelector('[aria-pressed=true]').dataset.answer") == "0"
        firefox.press("3", ENTER)
        firefox.wait_for("document.querySelector('#download')")
        kept = json.loads(firefox.script(f"localStorage.getItem('dreambench {study.id} rater-1')"))
    finally:
        firefox.kill()
    ratings = [Rating.model_validate_json(json.dumps(each)) for each in kept["ratings"]]
    before = ""
    for rating in ratings:
        assert rating.seal == rating.sealed(study.raters[0].token, before)
        before = rating.seal
    assert [rating.answer for rating in ratings] == [1, 5, 0, 2, 1, 4, 0, 3]
