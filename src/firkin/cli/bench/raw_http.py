"""One keep-alive connection that starts a command and times its first byte: a client with almost no cost."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Self
from urllib.parse import urlsplit

from firkin.cli.client import ENVD_PORT
from firkin.cli.failures import CommandFailure

_PATIENCE_S = 30.0
_LAST_CHUNK = b"0\r\n\r\n"


class RawConnection:
    """Connect's ``Start`` with a plain argv, over one TCP connection."""

    def __init__(self, url: str, sandbox_id: str, access_token: str, argv: list[str]) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port or 80), timeout=_PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = _request(parts.netloc, sandbox_id, access_token, argv)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def first_byte_ms(self) -> float:
        """Send the request; milliseconds until output has arrived. Reads the answer to its end."""
        began = time.perf_counter()
        self._socket.sendall(self._request)
        received, first = b"", 0.0
        while not received.endswith(_LAST_CHUNK):
            data = self._socket.recv(65536)
            if not data:
                raise CommandFailure("the server closed the connection in the middle of an answer")
            received += data
            if not first and b'"stdout"' in received:
                first = (time.perf_counter() - began) * 1000
        if not first:
            raise CommandFailure(f"no output came: {received[:200].decode(errors='replace')}")
        return first


def access_token(url: str, api_key: str, sandbox_id: str) -> str:
    """The token that a sandbox's data plane wants, as the control plane tells it."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_PATIENCE_S)
    try:
        connection.request("GET", f"/sandboxes/{sandbox_id}", headers={"X-API-Key": api_key})
        answer = connection.getresponse()
        detail = json.loads(answer.read())
    finally:
        connection.close()
    return str(detail.get("envdAccessToken") or "")


def _request(host: str, sandbox_id: str, access_token: str, argv: list[str]) -> bytes:
    message = json.dumps({"process": {"cmd": argv[0], "args": argv[1:], "envs": {}}, "stdin": False}).encode()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    head = (
        f"POST /process.Process/Start HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/connect+json\r\n"
        f"Connect-Protocol-Version: 1\r\nE2b-Sandbox-Id: {sandbox_id}\r\nE2b-Sandbox-Port: {ENVD_PORT}\r\n"
        f"X-Access-Token: {access_token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
