"""Everything that can be wrong with a request gets one clear answer, and changes nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from firkin.e2b.file_access import UNAUTHORIZED

from .conftest import ALICE, BOB, RunningServer
from .raw import RawClient, messages, raw_client


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


RULE = {"transform": {"headers": {"A": "b"}}}
PROXY = {"address": "192.0.2.9:1080"}


def new(**fields: object) -> dict[str, object]:
    return {"templateID": "base", **fields}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not valid JSON"),
        (b"\xff", 400, "not"),
        (b"[]", 400, "Expected `object`"),
        ({}, 400, "templateID"),
        ({"templateID": 7}, 400, "$.templateID"),
        (new(timeout="5"), 400, "$.timeout"),
        (new(timeout=0), 400, "Timeout must be greater than 0"),
        (new(timeout=-3), 400, "Timeout must be greater than 0"),
        (new(timeout=86401), 400, "Timeout cannot be greater than 24 hours"),
        (new(timeout=10**30), 400, "Timeout cannot be greater"),
        (new(templateID="no/such"), 404, "not found"),
        (new(templateID="../etc"), 404, "not found"),
        (new(templateID="alice/nothing:v1"), 404, "not found"),
        (new(templateID=""), 400, "not a template"),
        (new(templateID="nothing"), 404, "template 'nothing' not found"),
        (new(templateID="base:v2"), 404, "not found"),
        (new(wrong=1), 400, "unknown field `wrong`"),
        (new(secure=True), 400, "unknown field `secure`"),
        (new(metadata={"a": 1}), 400, "$.metadata"),
        (new(envVars={"A=B": "x"}), 400, "A=B"),
        (new(envVars={"A": "x\0"}), 400, "NUL"),
        (new(autoPauseMemory=False), 400, "autoPauseMemory"),
        (new(autoPause=True, autoPauseMemory=False, autoResume={"enabled": True}), 400, "autoPauseMemory"),
        (new(autoPause="yes"), 400, "$.autoPause"),
        (new(autoResume={"odd": True}), 400, "unknown field `odd`"),
        (new(mcp={"x": {}}), 400, "mcp is not supported"),
        (new(iam={"tokens": {}}), 400, "iam is not supported"),
        (new(volumeMounts=[{"name": "v", "path": "/v"}]), 400, "keeps no volumes"),
        (new(network={"allowOut": ["1.1.1.1"]}), 400, "network.policy is not offered here"),
        (new(network={"allowOut": ["1.1.1.1:80"]}), 400, "neither an address, a network nor a domain"),
        (new(network={"allowOut": ["example.com"]}), 400, "you must include 'ALL_TRAFFIC' in deny out"),
        (new(network={"denyOut": ["10.0.0.0/33"]}), 400, "invalid denied CIDR 10.0.0.0/33"),
        (new(network={"allowPorts": [0]}), 400, "port 0 is not 1…65535"),
        (new(network={"peers": ["../x"]}), 400, "network.peers: "),
        (new(network={"denyOut": ["9.9.9.9"] * 257}), 400, "at most 256 are allowed"),
        (new(network={"denyOut": ["not-a-cidr"]}), 400, "invalid denied CIDR not-a-cidr"),
        (new(network={"allowOut": ["a..b"], "denyOut": ["0.0.0.0/0"]}), 400, "neither an address, a network nor"),
        (new(network={"rules": {"x": []}}), 400, "must have one rule"),
        (new(network={"rules": {"*": [{"transform": {"headers": {"A": "b"}}}]}}), 400, "is not a domain"),
        (new(network={"rules": {"A.com": [RULE], "a.com": [RULE]}}), 400, "names 'a.com' twice"),
        (new(network={"rules": {"x": [{"transform": {"headers": {"A b": "b"}}}]}}), 400, "is no name of a header"),
        (new(network={"rules": {"x": [{"transform": {"headers": {"A": "b\r\nC: d"}}}]}}), 400, "must be one line"),
        (new(network={"egressProxy": {"address": "x"}}), 400, "must be HOST:PORT"),
        (new(network={"egressProxy": {**PROXY, "password": "p"}}), 400, "only valid together with username"),
        (
            new(network={"egressProxy": {**PROXY, "tls": {"enabled": True, "caCert": "zz"}}}),
            400,
            "must be certificates",
        ),
        (new(network={"maskRequestHost": "a\r\nb: c"}), 400, "network.maskRequestHost must be"),
        (new(network={"maskRequestHost": "${PATH}"}), 400, "network.maskRequestHost must be"),
        (new(network={"httpsPorts": [443]}), 400, "network.httpsPorts is not supported"),
        (new(network={"dnsServers": ["ns.test"]}), 400, "is no address of a DNS server"),
        (new(network={"odd": 1}), 400, "unknown field `odd`"),
        (b" " * 1_100_000, 413, "at most"),
    ],
)
def test_a_create_that_cannot_be_is_refused(client: RawClient, body: object, status: int, says: str) -> None:
    before = client.api("GET", "/sandboxes").json()
    answer = client.api("POST", "/v2/sandboxes", body)
    assert (answer.status_code, answer.json()["code"]) == (status, status)
    assert says in answer.json()["message"]
    assert "Traceback" not in answer.text
    assert client.api("GET", "/sandboxes").json() == before


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/sandboxes/nothere", None, 404),
        ("GET", "/sandboxes/..%2f..%2fetc", None, 404),
        ("GET", "/sandboxes/%00", None, 404),
        ("DELETE", "/sandboxes/UPPER", None, 404),
        ("POST", "/sandboxes/nothere/timeout", {"timeout": 5}, 404),
        ("POST", "/sandboxes/ID/timeout", {"timeout": -1}, 400),
        ("POST", "/sandboxes/ID/timeout", {}, 400),
        ("POST", "/sandboxes/ID/connect", {}, 400),
        ("POST", "/sandboxes/ID/resume", {}, 409),
        ("POST", "/sandboxes/ID/pause", {"memory": "no"}, 400),
        ("POST", "/sandboxes/ID/pause", {"odd": 1}, 400),
        ("POST", "/sandboxes/nothere/pause", {}, 404),
        ("POST", "/sandboxes/ID/fork", {"count": 0}, 400),
        ("POST", "/sandboxes/ID/fork", {"count": 101}, 400),
        ("POST", "/sandboxes/ID/fork", {"timeout": 0}, 400),
        ("POST", "/sandboxes/ID/fork", {"odd": 1}, 400),
        ("POST", "/sandboxes/nothere/fork", {}, 404),
        ("POST", "/sandboxes/ID/snapshots", None, 400),
        ("POST", "/sandboxes/ID/snapshots", {"memory": True}, 400),
        ("POST", "/sandboxes/ID/snapshots", {"name": "a b"}, 400),
        ("POST", "/sandboxes/ID/snapshots", {"name": "other/a"}, 400),
        ("POST", "/sandboxes/ID/snapshots", {"name": "a:"}, 400),
        ("POST", "/sandboxes/ID/snapshots", {"name": ":a"}, 400),
        ("POST", "/sandboxes/ID/snapshots", {"name": "base"}, 409),
        ("POST", "/sandboxes/nothere/snapshots", {}, 404),
        ("GET", "/snapshots?limit=0", None, 400),
        ("GET", "/snapshots?nextToken=x", None, 400),
        ("GET", "/snapshots?odd=1", None, 400),
        ("DELETE", "/templates/alice%2Fnothing%3Av1", None, 404),
        ("PUT", "/sandboxes/ID/network", {"denyOut": ["not-a-cidr"]}, 400),
        ("PUT", "/sandboxes/ID/network", {"denyOut": ["9.9.9.9"]}, 400),
        ("PUT", "/sandboxes/ID/network", {"rules": {"example.com": [{}]}}, 400),
        ("PUT", "/sandboxes/ID/network", {"allowPublicTraffic": True}, 400),
        ("PUT", "/sandboxes/ID/network", {"odd": 1}, 400),
        ("PUT", "/sandboxes/nothing/network", {}, 404),
        ("GET", "/v2/sandboxes?limit=0", None, 400),
        ("GET", "/v2/sandboxes?limit=101", None, 400),
        ("GET", "/v2/sandboxes?limit=x", None, 400),
        ("GET", "/v2/sandboxes?state=broken", None, 400),
        ("GET", "/v2/sandboxes?order=up", None, 400),
        ("GET", "/v2/sandboxes?nextToken=%20", None, 400),
        ("GET", "/v2/sandboxes?startedAfter=noon", None, 400),
        ("GET", "/v2/sandboxes?template=base:x", None, 400),
        ("GET", "/v2/sandboxes?metadata=x", None, 400),
        ("GET", "/v2/sandboxes?odd=1", None, 400),
        ("GET", "/sandboxes/ID/metrics?start=x", None, 400),
        ("GET", "/sandboxes/ID/metrics?start=9&end=1", None, 400),
        ("GET", "/sandboxes/metrics", None, 400),
        ("GET", "/v2/sandboxes/ID/logs?direction=up", None, 400),
        ("GET", "/templates/nothing", None, 404),
        ("GET", "/templates/aliases/nothing", None, 404),
        ("DELETE", "/templates/base", None, 403),
        ("POST", "/v3/templates", {}, 400),
        ("GET", "/volumes", None, 400),
        ("GET", "/no/such/path", None, 404),
        ("PATCH", "/sandboxes", None, 405),
    ],
)
def test_a_call_that_cannot_be_is_refused(client: RawClient, method: str, path: str, body: object, status: int) -> None:
    answer = client.api(method, path.replace("ID", client.sandbox["sandboxID"]), body)
    assert (answer.status_code, answer.json()["code"]) == (status, status), answer.text
    assert len(answer.json()["message"]) > 10


@pytest.mark.parametrize("key", [None, "", "e2b_" + "f" * 40, "x", ALICE + "a"])
def test_no_key_and_a_wrong_key_read_alike(client: RawClient, key: str | None) -> None:
    for method, path in [("GET", "/v2/sandboxes"), ("POST", "/v2/sandboxes"), ("GET", "/nowhere")]:
        answer = client.api(method, path, key=key)
        assert (answer.status_code, answer.json()["message"]) == (401, "the API key is missing or not valid")


def test_somebody_elses_sandbox_reads_like_an_unknown_one(client: RawClient) -> None:
    mine, unknown = client.sandbox["sandboxID"], "i" + "0" * 20
    calls = [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/connect", {"timeout": 5}),
        ("POST", "/timeout", {"timeout": 5}),
        ("POST", "/refreshes", {}),
        ("POST", "/resume", {}),
        ("POST", "/pause", {}),
        ("POST", "/fork", {}),
        ("POST", "/snapshots", {}),
        ("GET", "/metrics", None),
        ("GET", "/logs", None),
    ]
    for method, rest, body in calls:
        theirs = client.api(method, f"/sandboxes/{mine}{rest}", body, key=BOB)
        nobodys = client.api(method, f"/sandboxes/{unknown}{rest}", body, key=BOB)
        assert (theirs.status_code, nobodys.status_code) == (404, 404)
        assert theirs.text.replace(mine, "") == nobodys.text.replace(unknown, "")
    assert client.api("GET", f"/sandboxes/metrics?sandbox_ids={mine}", key=BOB).json() == {"sandboxes": {}}
    assert client.api("GET", f"/sandboxes/{mine}").status_code == 200


def test_what_is_paused_has_no_deadline_to_be_moved(client: RawClient) -> None:
    made = client.api("POST", "/v2/sandboxes", {"templateID": "base"}).json()["sandboxID"]
    assert client.api("POST", f"/sandboxes/{made}/refreshes", {"duration": 60}).status_code == 204
    assert client.api("POST", f"/sandboxes/{made}/pause", {}).status_code == 204
    for call, body in (("refreshes", {"duration": 60}), ("timeout", {"timeout": 60})):
        answer = client.api("POST", f"/sandboxes/{made}/{call}", body)
        assert (answer.status_code, answer.json()["message"]) == (409, f'Sandbox "{made}" is not running')
    client.api("DELETE", f"/sandboxes/{made}")


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({"E2b-Sandbox-Id": "iabc"}, 400, "missing header E2b-Sandbox-Port"),
        ({"E2b-Sandbox-Port": "49983"}, 400, "missing header E2b-Sandbox-Id"),
        ({"E2b-Sandbox-Id": "../x", "E2b-Sandbox-Port": "49983"}, 400, "invalid sandbox id"),
        ({"E2b-Sandbox-Id": "iabc", "E2b-Sandbox-Port": "99999"}, 400, "invalid sandbox port"),
        ({"E2b-Sandbox-Id": "iabc", "E2b-Sandbox-Port": "49983"}, 502, "The sandbox was not found"),
        ({"E2b-Sandbox-Id": "iabc", "E2b-Sandbox-Port": "80"}, 502, "The sandbox was not found"),
    ],
)
def test_a_bad_address_is_refused(client: RawClient, headers: dict[str, str], status: int, says: str) -> None:
    answer = client.http.get("/health", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, status)
    assert says in answer.json()["message"]


@pytest.mark.parametrize("path", ["/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw"])
def test_the_reserved_calls_are_not_reachable(client: RawClient, path: str) -> None:
    answer = client.envd("POST", path)
    assert answer.status_code == 404
    assert answer.json()["message"].startswith("This endpoint is reserved for the E2B control plane")
    assert answer.json()["path"] == path


def test_the_data_plane_asks_for_its_token(client: RawClient) -> None:
    for token in ("", "wrong"):
        headers = {"X-Access-Token": token}
        assert client.envd("GET", "/envs", headers=headers).status_code == 401
        assert client.unary("process.Process/List", {}, **headers).status_code == 401
    assert client.envd("GET", "/health", headers={"X-Access-Token": ""}).status_code == 204
    wrong = client.envd("GET", "/files?path=/etc/passwd", headers={"X-Access-Token": "wrong"})
    assert wrong.json() == {"code": 401, "message": "access token present in header but does not match"}
    bare = {name: value for name, value in client.headers().items() if name != "X-Access-Token"}
    missing = client.http.get("/files?path=/etc/passwd", headers=bare)
    assert missing.json() == {"code": 401, "message": "missing signature query parameter"}
    forged = client.http.get("/files?path=/etc/passwd&signature=v1_x", headers=bare)
    assert forged.json() == {"code": 401, "message": "invalid signature"}
    assert client.http.get("/files?path=/etc/passwd&signature=v1_x").status_code == 401
    for method, path in (("GET", "/nope"), ("POST", "/health"), ("POST", "/process.Process/Nope"), ("PUT", "/files")):
        unknown = client.http.request(method, path, headers=bare)
        assert unknown.json() == {"code": 401, "message": UNAUTHORIZED}
        assert client.envd(method, path).status_code == 404


@pytest.mark.parametrize(
    ("call", "body", "code"),
    [
        ("process.Process/SendSignal", {"process": {"pid": 99999}, "signal": "SIGNAL_SIGKILL"}, "not_found"),
        ("process.Process/SendSignal", {"process": {"pid": "99999"}, "signal": 9}, "not_found"),
        ("process.Process/SendSignal", {"process": {"pid": 1}, "signal": "SIGNAL_SIGHUP"}, "unimplemented"),
        ("process.Process/SendSignal", {"process": {}, "signal": 9}, "invalid_argument"),
        ("process.Process/SendSignal", {"process": {"pid": -4}, "signal": 9}, "invalid_argument"),
        ("process.Process/SendInput", {"process": {"pid": 5}}, "invalid_argument"),
        ("process.Process/SendInput", {"process": {"pid": 5}, "input": {"stdin": "!"}}, "invalid_argument"),
        ("process.Process/List", b"{", "invalid_argument"),
        ("process.Process/Update", {"process": {"pid": 99999}}, "not_found"),
        ("process.Process/Update", {"process": {"tag": "nobody"}, "pty": {}}, "not_found"),
        (
            "process.Process/Update",
            {"process": {"pid": 5}, "pty": {"size": {"rows": 70000, "cols": 1}}},
            "invalid_argument",
        ),
        ("filesystem.Filesystem/Stat", {"path": "/nowhere"}, "not_found"),
        ("filesystem.Filesystem/Stat", {"path": "/a\0b"}, "invalid_argument"),
        ("filesystem.Filesystem/Stat", {"path": "/" + "x" * 5000}, "invalid_argument"),
        ("filesystem.Filesystem/Stat", {"path": "~bob/x"}, "invalid_argument"),
        ("filesystem.Filesystem/ListDir", {"path": "/nowhere"}, "not_found"),
        ("filesystem.Filesystem/ListDir", {"path": "/", "depth": -1}, "invalid_argument"),
        ("filesystem.Filesystem/ListDir", {"path": "/etc/passwd"}, "invalid_argument"),
        ("filesystem.Filesystem/MakeDir", {"path": "/tmp"}, "already_exists"),
        ("filesystem.Filesystem/MakeDir", {"path": "/etc/passwd"}, "invalid_argument"),
        ("filesystem.Filesystem/Move", {"source": "/nowhere", "destination": "/tmp/x"}, "not_found"),
        ("filesystem.Filesystem/GetWatcherEvents", {"watcherId": "x"}, "not_found"),
        ("filesystem.Filesystem/CreateWatcher", {"path": "/nowhere"}, "not_found"),
        ("filesystem.Filesystem/CreateWatcher", {"path": "/etc/passwd"}, "invalid_argument"),
    ],
)
def test_a_remote_call_that_cannot_be_has_its_code(client: RawClient, call: str, body: object, code: str) -> None:
    answer = client.unary(call, body)
    assert answer.json()["code"] == code, answer.text
    assert 400 <= answer.status_code < 502


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_argument"),
        ({"process": {"cmd": ""}}, "invalid_argument"),
        ({"process": {"cmd": "/no/such/program"}}, "invalid_argument"),
        ({"process": {"cmd": "x\0"}}, "invalid_argument"),
        ({"process": {"cmd": "true", "envs": {"A=": "x"}}}, "invalid_argument"),
        ({"process": {"cmd": "true", "cwd": "/nowhere"}}, "invalid_argument"),
        ({"process": {"cmd": "true"}, "tag": "two\nlines"}, "invalid_argument"),
        (b"", "invalid_argument"),
        (b"\x00\x00\x00", "invalid_argument"),
        (b"\x00\xff\xff\xff\xff{}", "resource_exhausted"),
        (b"\x01\x00\x00\x00\x02{}", "unimplemented"),
    ],
)
def test_a_start_that_cannot_be_ends_its_stream_with_the_reason(client: RawClient, body: object, code: str) -> None:
    (end,) = client.stream("process.Process/Start", body)
    assert end["error"]["code"] == code, end


def test_a_wrong_content_type_or_header_is_refused(client: RawClient) -> None:
    assert client.unary("process.Process/List", {}, **{"content-type": "application/proto"}).status_code == 415
    assert client.unary("process.Process/Start", {}).status_code == 415
    assert client.envd("GET", "/process.Process/List").status_code == 405
    assert client.unary("process.Process/List", {}, **{"connect-timeout-ms": "soon"}).status_code == 400
    assert client.unary("process.Process/List", {}, **{"connect-protocol-version": "7"}).status_code == 400
    assert client.unary("process.Process/List", {}, authorization="Basic !").status_code == 401
    assert client.unary("process.Process/Nothing", {}).status_code == 404


@pytest.mark.parametrize(
    ("method", "query", "headers", "status"),
    [
        ("GET", "path=/nowhere", {}, 404),
        ("GET", "path=/tmp", {}, 400),
        ("GET", "path=/a%00b", {}, 400),
        ("GET", "path=~bob", {}, 400),
        ("GET", "path=%ff", {}, 404),
        ("GET", "path=/tmp/%zz", {}, 404),
        ("GET", "path=/etc/passwd&username=%ff", {}, 401),
        ("GET", "path=/etc/passwd&username=nobody-here", {}, 401),
        ("GET", "path=/etc/passwd", {"Accept-Encoding": "br, identity;q=0"}, 406),
        ("GET", "path=/etc/passwd&signature=x&signature_expiration=soon", {"X-Access-Token": ""}, 401),
        ("POST", "path=/tmp", {"Content-Type": "application/octet-stream"}, 400),
        ("POST", "", {"Content-Type": "application/octet-stream"}, 400),
        ("POST", "path=/tmp/x", {"Content-Type": "text/plain"}, 400),
        ("POST", "path=/tmp/x", {}, 400),
        ("POST", "path=/tmp/x", {"Content-Type": "multipart/form-data"}, 400),
        ("POST", "path=/tmp/x", {"Content-Type": "multipart/form-data; boundary=x"}, 400),
        ("POST", "path=/tmp/x", {"Content-Type": "application/octet-stream", "Content-Encoding": "br"}, 400),
        ("POST", "path=/tmp/x", {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}, 400),
        ("POST", "path=/tmp/x", {"Content-Type": "application/octet-stream", "X-Metadata-a": "x" * 5000}, 400),
        ("DELETE", "path=/tmp/x", {}, 404),
    ],
)
def test_a_file_request_that_cannot_be_is_refused(
    client: RawClient, method: str, query: str, headers: dict[str, str], status: int
) -> None:
    answer = client.envd(
        method, f"/files?{query}", headers=headers, content=b"some bytes" if method == "POST" else None
    )
    assert (answer.status_code, answer.json()["code"]) == (status, status), answer.text


def test_two_files_for_one_path_are_told(client: RawClient) -> None:
    files = [("file", ("/tmp/twice", b"one")), ("file", ("/tmp/twice", b"two"))]
    answer = client.envd("POST", "/files", files=files)
    assert answer.status_code == 400
    assert "you cannot upload multiple files to the same path '/tmp/twice'" in answer.json()["message"]
    assert client.envd("GET", "/files?path=/tmp/twice").content == b"one"


def ask(server: RunningServer, data: bytes) -> bytes:
    """Raw bytes to the server; everything it answers until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"400"),
        (b"CONNECT example.test:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    ],
)
def test_bytes_that_are_not_a_fair_request_end_the_connection(
    server: RunningServer, request_bytes: bytes, status: bytes
) -> None:
    answer = ask(server, request_bytes)
    assert answer.split(b" ")[1] == status, answer[:200]


def test_an_idempotency_key_gives_one_sandbox(client: RawClient) -> None:
    made = []
    try:
        for _ in range(2):
            answer = client.api("POST", "/v2/sandboxes", new(), headers={"Idempotency-Key": "key-1"})
            assert answer.status_code == 201
            made.append(answer.json()["sandboxID"])
        assert made[0] == made[1]
        other = client.api("POST", "/v2/sandboxes", new(timeout=9), headers={"Idempotency-Key": "key-1"})
        assert other.status_code == 409
    finally:
        client.api("DELETE", f"/sandboxes/{made[0]}")
    again = client.api("POST", "/v2/sandboxes", new(), headers={"Idempotency-Key": "key-1"})
    assert (again.status_code, "has ended" in again.text) == (409, True)
    for bad in ("", "UPPER", "a_b", "x" * 256):
        answer = client.api("POST", "/v2/sandboxes", new(), headers={"Idempotency-Key": bad})
        assert (answer.status_code, "Idempotency-Key" in answer.text) == (400, True)


def test_a_preflight_is_answered_on_both_planes(client: RawClient) -> None:
    for headers in ({}, client.headers()):
        answer = client.http.options("/files", headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "*")


@pytest.mark.thorough
def test_a_deadline_kills_the_program_and_says_so(client: RawClient) -> None:
    events = client.run("sleep 60", **{"connect-timeout-ms": "300"})
    assert "start" in events[0]["event"]
    assert events[-1]["error"]["code"] == "deadline_exceeded"
    assert messages(b"") == []
