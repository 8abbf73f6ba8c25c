"""The server as a plain HTTP client sees it."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from .conftest import ALICE, RunningServer

Json = dict[str, Any]


def envelope(message: object) -> bytes:
    payload = json.dumps(message).encode()
    return struct.pack(">BI", 0, len(payload)) + payload


def messages(data: bytes) -> list[Json]:
    """All messages of a stream; the last is its end."""
    found = []
    while data:
        _, length = struct.unpack_from(">BI", data)
        found.append(json.loads(data[5 : 5 + length]))
        data = data[5 + length :]
    return found


class RawClient:
    """One sandbox's worth of requests."""

    def __init__(self, server: RunningServer, http: httpx.Client) -> None:
        self.http = http
        self.server = server
        self.sandbox: Json = {}

    def api(
        self, method: str, path: str, body: object = None, *, key: str | None = ALICE, **more: Any
    ) -> httpx.Response:
        headers = {"X-API-Key": key} if key else {}
        headers.update(more.pop("headers", {}))
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        return self.http.request(method, path, content=content, headers=headers, **more)

    def headers(self, port: int = 49983) -> dict[str, str]:
        routed = {"E2b-Sandbox-Id": self.sandbox["sandboxID"], "E2b-Sandbox-Port": str(port)}
        return {**routed, "X-Access-Token": self.sandbox.get("envdAccessToken", "")}

    def envd(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {**self.headers(), **more.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **more)

    def unary(self, call: str, body: object, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"content-type": "application/json", **headers}
        return self.envd("POST", f"/{call}", content=content, headers=kind)

    def stream(self, call: str, body: object, **headers: str) -> list[Json]:
        content = body if isinstance(body, bytes) else envelope(body)
        kind = {"content-type": "application/connect+json", **headers}
        answer = self.envd("POST", f"/{call}", content=content, headers=kind)
        assert answer.status_code == 200, answer.text
        return messages(answer.content)

    def run(self, command: str, **headers: str) -> list[Json]:
        return self.stream("process.Process/Start", {"process": {"cmd": "/bin/sh", "args": ["-c", command]}}, **headers)


@contextmanager
def raw_client(server: RunningServer, **fields: object) -> Iterator[RawClient]:
    with httpx.Client(base_url=server.url, timeout=20) as http:
        client = RawClient(server, http)
        answer = client.api("POST", "/v2/sandboxes", {"templateID": "base", **fields})
        assert answer.status_code == 201, answer.text
        client.sandbox = answer.json()
        try:
            yield client
        finally:
            client.api("DELETE", f"/sandboxes/{client.sandbox['sandboxID']}")


def output(events: list[Json]) -> bytes:
    """All standard output of a stream."""
    data = [one["event"]["data"].get("stdout", "") for one in events if "data" in one.get("event", {})]
    return b"".join(base64.b64decode(part) for part in data)
