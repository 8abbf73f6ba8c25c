"""A small internet of the tests' own: hosts in a network namespace, and a record of all that came to them.

As a program inside that namespace it serves DNS, HTTP, HTTPS with certificates of
a test authority, a SOCKS5 proxy and an echo on public-looking addresses. What a web
host sees is a line of JSON in a file. Standard library only, but for the modern hosts.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

NAMES = {
    "allowed.test": "8.7.6.10",
    "api.rule.test": "8.7.6.11",
    "deep.api.rule.test": "8.7.6.11",
    "other.test": "8.7.6.12",
    "untrusted.test": "8.7.6.13",
    "proxy.test": "8.7.6.14",
    "private.test": "10.1.2.3",
    "metadata.test": "169.254.169.254",
    "loopback.test": "127.0.0.1",
    "modern.rule.test": "8.7.6.20",
    "grpc.rule.test": "8.7.6.21",
}
DNS, GATEWAY, PROXY = "8.7.6.53", "8.7.6.1", "8.7.6.14"
PRIVATE = ("10.1.2.3", "10.1.2.4")
_MODERN = frozenset(("8.7.6.20", "8.7.6.21", PRIVATE[0]))  # there tests.namespaces.modern_hosts speak HTTP/2
_ADDRESSES = sorted({address for address in NAMES.values() if address.startswith("8.7.")} | {DNS})
_NAMED = "/run/netns"


@dataclass(frozen=True)
class Internet:
    """`authority` is the file of the test authority's certificate, `namespace` where its hosts are."""

    authority: Path
    seen: Path
    namespace: str

    def records(self, **wanted: str) -> list[dict[str, Any]]:
        """What the hosts saw, of which these fields are so."""
        lines = [json.loads(line) for line in self.seen.read_text().splitlines()]
        return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def internet(folder: Path, *, modern: bool = False) -> Iterator[Internet]:
    """Up for the length of the block, with hosts that speak HTTP/2 if `modern`; nothing of it stays on the host."""
    name, mounted = f"fkinet{os.getpid()}", os.path.ismount(_NAMED)
    authority = _certificates(folder)
    seen = folder / "seen"
    seen.touch()
    _ip("netns", "add", name)
    try:
        _wire(name)
        server = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, __file__, str(folder), *["modern"] * modern]
        )
        try:
            _wait_for(folder / "ready")
            yield Internet(authority, seen, name)
        finally:
            server.kill()
            server.wait()
    finally:
        _ip("netns", "del", name)
        if not mounted:  # the first use of a name makes a mount of it that stays
            subprocess.run(["umount", _NAMED], check=False)
        subprocess.run(["ip", "link", "del", "tnet0"], check=False, capture_output=True)


@contextmanager
def proxy(world: Internet, port: int, *, certificate: str = "") -> Iterator[None]:
    """Another SOCKS5 proxy, a process of its own on `PROXY`: over TLS, if it has the certificate of some name."""
    words = [sys.executable, __file__, str(world.seen.parent), str(port), certificate]
    with subprocess.Popen(["ip", "netns", "exec", world.namespace, *words], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield
        finally:
            server.kill()


def _wire(name: str) -> None:
    _ip("link", "add", "tnet0", "type", "veth", "peer", "name", "tnet1", "netns", name)
    _ip("addr", "add", f"{GATEWAY}/24", "dev", "tnet0")
    _ip("link", "set", "tnet0", "up")
    for address in _ADDRESSES:
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "tnet1")
    for address in PRIVATE:
        _ip("-n", name, "addr", "add", f"{address}/32", "dev", "tnet1")
    _ip("-n", name, "link", "set", "tnet1", "up")
    _ip("-n", name, "link", "set", "lo", "up")
    for address in PRIVATE:
        _ip("route", "add", f"{address}/32", "dev", "tnet0")
    Path("/proc/sys/net/ipv4/conf/tnet0/forwarding").write_text("1")


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists(), "the test internet did not come up"


def _certificates(folder: Path) -> Path:
    """A certificate for each name of a test authority, and of a stranger for ``untrusted.test``."""
    from firkin.gateway.authorities import Issuer, new_authority

    trusted, stranger = new_authority([]), new_authority([])
    for name in NAMES:
        by = stranger if name == "untrusted.test" else trusted
        (folder / f"{name}.pem").write_text(Issuer(by.certificate, by.key).leaf(name) + by.certificate)
    (folder / "authority.pem").write_text(trusted.certificate)
    return folder / "authority.pem"


class _Web(BaseHTTPRequestHandler):
    """Tells each client what came from it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: ClassVar[Path]
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_GET(self) -> None:
        body = self._body()
        secure = isinstance(self.connection, ssl.SSLSocket)
        seen = {
            "host": self.headers.get("Host"),
            "path": self.path,
            "method": self.command,
            "secure": secure,
            "address": self.connection.getsockname()[0],
            "headers": [list(pair) for pair in self.headers.items()],
            "body": body[:1000].decode(errors="replace"),
            "size": len(body),
        }
        with self.lock, open(self.folder / "seen", "a") as file:
            file.write(json.dumps(seen) + "\n")
        if self.path == "/redirect":
            self._answer(302, b"", Location="https://other.test/after")
        elif self.path == "/chunks":
            self._chunks()
        elif self.path == "/upgrade":
            self._upgrade()
        elif self.path.startswith("/bytes/"):
            self._answer(200, bytes(int(self.path.rpartition("/")[2])))
        elif self.path.startswith("/locked/"):
            self._locked()
        else:
            self._answer(200, json.dumps(seen).encode())

    do_POST = do_PUT = do_HEAD = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Alt-Svc", 'h3=":443"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _chunks(self) -> None:
        """Slowly, so that one can see whether they come one by one."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            self.wfile.write(b"6\r\npart %d\r\n" % number)
            self.wfile.flush()
            time.sleep(0.3)
        self.wfile.write(b"0\r\n\r\n")

    def _locked(self) -> None:
        """Files below ``files``, for those who bring a token."""
        path = (self.folder / "files" / self.path.partition("?")[0].removeprefix("/locked/")).resolve()
        if path.is_dir():
            path /= "index"
        if not (self.headers.get("Authorization") or "").startswith("Bearer sk-"):
            self._answer(401, b"")
        elif path.is_file() and path.is_relative_to(self.folder / "files"):
            self._answer(200, path.read_bytes(), **{"Content-Type": "text/html"} if path.name == "index" else {})
        else:
            self._answer(404, b"")

    def _upgrade(self) -> None:
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.end_headers()
        while data := self.connection.recv(65536):
            self.connection.sendall(data.upper())
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """The record is kept elsewhere."""


class _Socks(socketserver.StreamRequestHandler):
    """RFC 1928 with a password (RFC 1929): user ``u``, password ``p``."""

    folder: ClassVar[Path]

    def handle(self) -> None:
        greeting = self.rfile.read(2)
        methods = self.rfile.read(greeting[1])
        assert 2 in methods
        self.wfile.write(b"\x05\x02")
        assert self.rfile.read(1) == b"\x01"
        user = self.rfile.read(self.rfile.read(1)[0])
        password = self.rfile.read(self.rfile.read(1)[0])
        self.wfile.write(b"\x01" + bytes([(user, password) != (b"u", b"p")]))
        if (user, password) != (b"u", b"p"):
            return
        _, _, _, kind = self.rfile.read(4)
        host = socket.inet_ntoa(self.rfile.read(4)) if kind == 1 else self.rfile.read(self.rfile.read(1)[0]).decode()
        (port,) = struct.unpack("!H", self.rfile.read(2))
        with open(self.folder / "seen", "a") as file:
            file.write(json.dumps({"proxied": host, "port": port}) + "\n")
        with socket.create_connection((NAMES.get(host, host), port), 5) as server:
            self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
            back = threading.Thread(target=_copy, args=(server, self.connection), daemon=True)
            back.start()
            _copy(self.connection, server)
            back.join(5)


def _serve_proxy(folder: Path, port: int, certificate: str) -> None:
    _Socks.folder = folder
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer.daemon_threads = True
    server = socketserver.ThreadingTCPServer((PROXY, port), _Socks)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{certificate}.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print("ready", flush=True)
    server.serve_forever()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class _Echo(socketserver.BaseRequestHandler):
    """Gives back what it gets, and a word at the end: half-closed connections show."""

    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)
        self.request.sendall(b"bye")


def _dns(listening: socket.socket, folder: Path) -> None:
    while True:
        data, client = listening.recvfrom(4096)
        at, labels = 12, []
        while size := data[at]:
            labels.append(data[at + 1 : at + 1 + size].decode())
            at += 1 + size
        name, question = ".".join(labels).lower(), data[12 : at + 5]
        with open(folder / "seen", "a") as file:
            file.write(json.dumps({"asked": name}) + "\n")
        alias = b""
        if name == "alias.test":  # an alias that leads to a private address
            target = b"\x07private\x04test\0"
            alias = b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 60, len(target)) + target
            at_alias = 12 + len(question) + 12
            address = NAMES["private.test"]
            record = struct.pack("!H", 0xC000 | at_alias) + struct.pack("!HHIH", 1, 1, 60, 4)
        else:
            address = NAMES.get(name, "")
            record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4)
        answers = alias + record + socket.inet_aton(address) if address else b""
        flags = 0x8180 if address else 0x8183
        count = (1 + bool(alias)) if address else 0
        listening.sendto(data[:2] + struct.pack("!5H", flags, 1, count, 0, 0) + question + answers, client)


def _serve(folder: Path, *, modern: bool) -> None:
    _Web.folder = _Socks.folder = folder
    contexts = {}
    for name in NAMES:
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        contexts[name].load_cert_chain(folder / f"{name}.pem")

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = contexts.get(name or "", context)

    first = contexts["other.test"]
    first.sni_callback = choose  # type: ignore[assignment]
    servers: list[socketserver.BaseServer] = [ThreadingHTTPServer(("0.0.0.0", 80), _Web)]
    others = {*_ADDRESSES, *PRIVATE} - (_MODERN if modern else frozenset())
    for address, port in itertools.product(others, (443, 8443)):
        secure = ThreadingHTTPServer((address, port), _Web)
        secure.socket = first.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
        servers.append(secure)
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    servers += [socketserver.ThreadingTCPServer((address, 1080), _Socks) for address in (PROXY, PRIVATE[0])]
    servers.append(socketserver.ThreadingTCPServer(("0.0.0.0", 7000), _Echo))
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    first_dns, second_dns = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    first_dns.bind((DNS, 53))
    second_dns.bind((PRIVATE[0], 53))
    threading.Thread(target=_dns, args=(second_dns, folder), daemon=True).start()
    if modern:
        from tests.namespaces import modern_hosts

        threading.Thread(target=modern_hosts.serve, args=(folder,), daemon=True).start()
        _wait_for(folder / "modern")
    (folder / "ready").touch()
    _dns(first_dns, folder)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        _serve_proxy(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    sys.path.insert(0, str(Path(__file__).parents[2]))
    _serve(Path(sys.argv[1]), modern="modern" in sys.argv)
