"""Ports of real sandboxes through the server, in the clear and over TLS."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from e2b import Sandbox
from tests.e2b.conftest import RunningServer, in_a_thread
from tests.namespaces.conftest import backend_at

# A service that only the sandbox's own loopback reaches.
_SERVICE = r"""
import hashlib, http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *words): pass
    def do_GET(self):
        if self.path == "/raw":
            self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
            while data := self.rfile.read1(100): self.wfile.write(data.upper())
            return
        if self.path == "/events":
            self.send_response(200); self.send_header("Content-Type", "text/event-stream"); self.end_headers()
            self.wfile.write(b"data: first\n\n"); self.wfile.flush(); time.sleep(600)
        size = int(self.path[1:] or 2)
        self.send_response(200); self.send_header("Content-Length", str(size)); self.end_headers()
        for _ in range(size >> 20): self.wfile.write(b"x" * (1 << 20))
        self.wfile.write(b"x" * (size & 0xfffff))
    def do_PUT(self):
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left: data = self.rfile.read(min(left, 1 << 20)); digest.update(data); left -= len(data)
        said = digest.hexdigest().encode()
        self.send_response(200); self.send_header("Content-Length", str(len(said))); self.end_headers()
        self.wfile.write(said)
http.server.ThreadingHTTPServer.request_queue_size = 128
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
print("listening", flush=True)
server.serve_forever()
"""


def _start_service(sandbox: Sandbox) -> None:
    sandbox.files.write("/tmp/service.py", _SERVICE)
    running = sandbox.commands.run("python3 /tmp/service.py", background=True, timeout=0)
    for out, _, _ in running:
        assert out == "listening\n"
        break
    running.disconnect()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state_dir = tmp_path_factory.mktemp("state")
    with in_a_thread(lambda: backend_at(state_dir)) as running:
        yield running


@pytest.fixture(scope="module")
def sandbox(server: RunningServer) -> Iterator[Sandbox]:
    sandbox = Sandbox.create("base", **server.sdk())
    try:
        _start_service(sandbox)
        yield sandbox
    finally:
        sandbox.kill()


@pytest.fixture
def http(server: RunningServer, sandbox: Sandbox) -> Iterator[httpx.Client]:
    host = {"Host": f"8080-{sandbox.sandbox_id}.sbx.test"}
    with httpx.Client(base_url=server.url, headers=host, timeout=30) as client:
        yield client


def test_a_service_on_the_inner_loopback_answers_many_at_once(http: httpx.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: http.get("/2").text, range(200)))
    assert answers == ["xx"] * 200


def test_large_bodies_pass_both_ways(http: httpx.Client) -> None:
    size = (64 << 20) + 7
    with http.stream("GET", f"/{size}") as answer:
        assert sum(len(part) for part in answer.iter_raw()) == size
    data = os.urandom(1 << 20) * 64
    assert http.put("/", content=data).text == hashlib.sha256(data).hexdigest()


def test_the_first_event_does_not_wait_for_the_second(http: httpx.Client) -> None:
    with http.stream("GET", "/events") as answer:
        assert next(answer.iter_raw()) == b"data: first\n\n"


def test_a_closed_port_is_told(server: RunningServer, sandbox: Sandbox) -> None:
    answer = httpx.get(server.url, headers={"Host": f"81-{sandbox.sandbox_id}.sbx.test"})
    assert (answer.status_code, answer.json()) == (
        502,
        {
            "sandboxId": sandbox.sandbox_id,
            "message": "The sandbox is running but port is not open",
            "port": 81,
            "code": 502,
        },
    )


@pytest.mark.parametrize("how", ["GET /raw HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: raw", "CONNECT {host} HTTP/1.1"])
def test_bytes_pass_through_a_tunnel(server: RunningServer, sandbox: Sandbox, how: str) -> None:
    host = f"8080-{sandbox.sandbox_id}.sbx.test"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client, client.makefile("rb") as answers:
        client.sendall(f"{how.format(host=host)}\r\nHost: {host}\r\n\r\n".encode())
        connected = how.startswith("CONNECT")
        assert answers.readline().split()[1] == (b"200" if connected else b"101")
        while answers.readline() != b"\r\n":
            pass
        if connected:
            client.sendall(b"GET /raw HTTP/1.1\r\nHost: any\r\n\r\n")
            while answers.readline() != b"\r\n":
                pass
        client.sendall(b"abc")
        assert answers.read(3) == b"ABC"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A whole server with a certificate of its own; its state folder and its domain."""
    state = tmp_path_factory.mktemp("tls") / "state"
    domain = f"firkin.localhost:{_free_port()}"
    firkin = [sys.executable, "-m", "firkin.cli.main"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FIRKIN_", "E2B_"))}
    made = [*firkin, "tls", "init", "--state-dir", str(state)]
    subprocess.run(made, check=True, capture_output=True, timeout=30, env=env)
    port = domain.partition(":")[2]
    served = [*firkin, "serve", "--state-dir", str(state), "--tls", "--domain", domain, "--port", port]
    process = subprocess.Popen(served, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"firkin ready: https://127.0.0.1:{port}\n"
        yield state, domain
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _env(secure: tuple[Path, str]) -> dict[str, str]:
    """What a client in a process of its own is told, and only that."""
    state, domain = secure
    key = (state / "api_key").read_text().strip()
    trust = {"SSL_CERT_FILE": str(state / "tls" / "trust.pem"), "NODE_EXTRA_CA_CERTS": str(state / "tls" / "ca.pem")}
    return {"PATH": os.environ["PATH"], "E2B_DOMAIN": domain, "E2B_API_KEY": key, **trust}


_SDK = """
import json, sys
from e2b import Sandbox
sandbox = Sandbox.create("base", timeout=120)
sandbox.files.write("/tmp/a", "written over tls")
said = sandbox.commands.run("cat /tmp/a").stdout
sandbox.files.write("/tmp/service.py", sys.stdin.read())
running = sandbox.commands.run("python3 /tmp/service.py", background=True, timeout=0)
next(iter(running))
print(json.dumps({"said": said, "host": sandbox.get_host(8080), "id": sandbox.sandbox_id}))
"""
_KILLED = """
import sys
from e2b import Sandbox
sandbox = Sandbox.connect(sys.argv[1])
running = sandbox.commands.run("sleep 100", background=True)
sandbox.kill()
try:
    running.wait()
except Exception as error:
    print(type(error).__name__)
"""
_FETCH = """
const here = {address: "127.0.0.1", family: 4}
require("dns").lookup = (name, options, done) => options.all ? done(null, [here]) : done(null, here.address, 4)
fetch(process.argv[1]).then(async answer => console.log(answer.status, await answer.text()))
"""


@pytest.mark.served
def test_clients_that_trust_the_authority_reach_everything(secure: tuple[Path, str]) -> None:
    env = _env(secure)
    done = subprocess.run(
        [sys.executable, "-c", _SDK], input=_SERVICE, capture_output=True, text=True, env=env, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["said"], found["host"]) == ("written over tls", f"8080-{found['id']}.{secure[1]}")
    name, _, port = found["host"].partition(":")
    url = f"https://{found['host']}/3"
    curl = ["curl", "-sS", "--resolve", f"{name}:{port}:127.0.0.1", url]
    bare = {"PATH": env["PATH"]}
    trusting = [*curl, "--cacert", env["NODE_EXTRA_CA_CERTS"]]
    assert subprocess.run(trusting, capture_output=True, env=bare, timeout=20, check=True).stdout == b"xxx"
    assert subprocess.run(curl, capture_output=True, env=bare, timeout=20, check=False).returncode == 60
    if node := shutil.which("node"):
        fetched = subprocess.run([node, "-e", _FETCH, url], capture_output=True, text=True, env=env, timeout=20)
        assert fetched.stdout == "200 xxx\n", fetched.stderr
    listed = [sys.executable, "-m", "firkin.cli.main", "sandbox", "list", "--state-dir", str(secure[0])]
    assert found["id"] in subprocess.run(listed, capture_output=True, text=True, timeout=20, check=True).stdout
    ended = [sys.executable, "-c", _KILLED, found["id"]]
    killed = subprocess.run(ended, capture_output=True, text=True, env=env, timeout=50, check=False)
    assert killed.stdout == "SandboxNotRunningException\n", killed.stderr


def test_an_answer_without_a_length_is_no_whole_one_when_its_sandbox_is_killed(server: RunningServer) -> None:
    sandbox = Sandbox.create("base", timeout=120, **server.sdk())
    try:
        _start_service(sandbox)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            target = f"E2b-Sandbox-Id: {sandbox.sandbox_id}\r\nE2b-Sandbox-Port: 8080"
            client.sendall(f"GET /events HTTP/1.1\r\nHost: x\r\n{target}\r\n\r\n".encode())
            seen = b""
            while b"data: first" not in seen:
                seen += client.recv(4096)
            sandbox.kill()
            with pytest.raises(ConnectionResetError):
                _all_of(client)
    finally:
        sandbox.kill()


def _all_of(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(4096):
        received += data
    return received
