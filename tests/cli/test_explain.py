"""``firkin sandbox explain`` and ``firkin webhook`` against a server process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.cli.test_commands import firkin
from tests.cli.test_serving import created, start, stop

pytestmark = pytest.mark.served


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a running server."""
    folder = tmp_path_factory.mktemp("explained") / "state"
    process, _ = start(folder)
    yield folder
    code, out, err = stop(process)
    assert (code, out) == (0, ""), err
    assert "Traceback" not in err


def test_an_end_is_explained_in_words_and_in_json(state: Path) -> None:
    sandbox_id = created(state)
    running = firkin("sandbox", "explain", sandbox_id, state=state)
    assert running.stdout.startswith(b"It runs until ")
    assert firkin("sandbox", "kill", sandbox_id, state=state).returncode == 0
    told = firkin("sandbox", "explain", sandbox_id, state=state)
    assert told.returncode == 0, told.stderr
    text = told.stdout.decode()
    assert text.startswith("It was ended on purpose by key default")
    for word in ("cause", "requested", "ended by", "What happened", "stopped: requested", "at most", "of 1 GiB"):
        assert word in text
    data = json.loads(firkin("sandbox", "explain", sandbox_id, "--json", state=state).stdout)
    assert (data["cause"], data["actor"]) == ("requested", "key default")


def test_the_end_of_the_server_is_no_end_of_the_explanation(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    process, _ = start(folder, "--kill-on-exit")
    sandbox_id = created(folder)
    assert stop(process)[0] == 0
    process, _ = start(folder)
    try:
        data = json.loads(firkin("sandbox", "explain", sandbox_id, "--json", state=folder).stdout)
        assert data["cause"] == "server shut down with kill-on-exit"
    finally:
        assert stop(process)[0] == 0


def test_an_unknown_sandbox_is_one_sentence(state: Path) -> None:
    done = firkin("sandbox", "explain", "i0000", state=state)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b'firkin: Sandbox "i0000"')


def test_pauses_and_logs_after_the_end_are_there(state: Path) -> None:
    sandbox_id = created(state)
    for word in ("pause", "resume"):
        assert firkin("sandbox", word, sandbox_id, state=state).returncode == 0
    assert firkin("sandbox", "kill", sandbox_id, state=state).returncode == 0
    newest = firkin("sandbox", "logs", sandbox_id, "--limit", "2", state=state).stdout.decode().splitlines()
    assert len(newest) == 2
    assert "deleted: " in newest[1]


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' standard error."""


def test_a_webhook_is_added_tested_listed_and_removed(state: Path) -> None:
    receiver = HTTPServer(("127.0.0.1", 0), _Taking)
    serving = threading.Thread(target=receiver.serve_forever, daemon=True)
    serving.start()
    try:
        url = f"http://127.0.0.1:{receiver.server_port}/"
        added = json.loads(firkin("webhook", "add", url, "--event", "killed", "--json", state=state).stdout)
        assert added["events"] == ["sandbox.lifecycle.killed"]
        assert added["secret"]
        assert firkin("webhook", "test", added["id"], state=state).stdout == b"delivered\n"
        shown = firkin("webhook", "list", state=state).stdout.decode()
        assert added["id"] in shown
        assert "HEARD_UP_TO" in shown
        assert added["secret"] not in shown
    finally:
        receiver.shutdown()
        receiver.server_close()
        serving.join(10)
    failed = firkin("webhook", "test", added["id"], state=state)
    assert failed.returncode == 1
    assert b"did not take the event" in failed.stderr
    assert firkin("webhook", "remove", added["id"], state=state).returncode == 0
    assert firkin("webhook", "list", state=state).stdout == b"no webhooks\n"
    assert firkin("webhook", "remove", added["id"], state=state).returncode == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["add", "nowhere"], b"not an address"),
        (["add", "http://x/", "--event", "nope"], b"no event is called 'nope'"),
        (["remove", "../x"], b"is not a webhook's id"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(state: Path, args: list[str], says: bytes) -> None:
    done = firkin("webhook", *args, state=state)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr
    assert done.stderr.count(b"\n") == 1
