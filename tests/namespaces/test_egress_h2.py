"""HTTP/2 and gRPC from inside sandboxes to hosts with rules, by real clients to real servers."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.engine.backend import LocalBackend
from firkin.gateway.judgement import Refusal
from firkin.law.ids import SecretName, TemplateId
from firkin.law.network import HeaderRule
from firkin.law.sandboxes import SandboxSpec
from firkin.law.secrets import SecretSpec
from firkin.law.templates import TemplateSpec
from tests.namespaces.internet import Internet, internet
from tests.namespaces.modern_hosts import CALLED, HIDDEN, HOSTS, MODERN
from tests.namespaces.test_denied import refused
from tests.namespaces.test_egress import bash, made_backend, policy, python

pytestmark = pytest.mark.asyncio(loop_scope="module")

VALUE = "sk-live-4712-watson"
HEADERS = {"Authorization": "Bearer ${e2b.secrets.api}", "X-Team": "a"}
RULES = tuple(HeaderRule(domain=domain, headers=HEADERS) for domain in (MODERN, CALLED, "api.rule.test"))
URL = f"https://{MODERN}"
OPEN = f"""
import json, socket, ssl, sys
sys.path.insert(0, '/tmp/lib')
import h2.connection, h2.events
def opened(name='{MODERN}', address='{HOSTS[MODERN]}', offered=('h2',)):
    context = ssl.create_default_context(); context.set_alpn_protocols(list(offered))
    return context.wrap_socket(socket.create_connection((address, 443), 10), server_hostname=name)
def head(path='/', authority='{MODERN}', method='GET'):
    return [(':method', method), (':scheme', 'https'), (':authority', authority), (':path', path)]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with internet(tmp_path_factory.mktemp("internet"), modern=True) as up:
        yield up


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(
    tmp_path_factory: pytest.TempPathFactory, world: Internet
) -> AsyncIterator[tuple[Runtime, LocalBackend]]:
    backend, _ = made_backend(tmp_path_factory.mktemp("state"), world)
    async with Runtime.open(backend) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        assert backend.secrets is not None
        await backend.secrets.create(SecretSpec(name=SecretName("api"), value=VALUE))
        yield opened, backend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boxed(both: tuple[Runtime, LocalBackend]) -> AsyncIterator[Sandbox]:
    """May reach the hosts with rules, and has `h2` and `grpc` in /tmp/lib."""
    wanted = policy(MODERN, CALLED, "api.rule.test", "untrusted.test", rules=RULES)
    async with await both[0].sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        await sandbox.fs.write("/tmp/lib.tar", _libraries())
        done = await bash(sandbox, "mkdir /tmp/lib && tar -xf /tmp/lib.tar -C /tmp/lib")
        assert done.status.code == 0, done
        yield sandbox


def _libraries() -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name in ("h2", "hpack", "hyperframe", "grpc", "typing_extensions"):
            spec = find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            path = Path(spec.origin)
            path = path.parent if spec.submodule_search_locations else path
            archive.add(path, arcname=path.name, filter=lambda entry: None if "__pycache__" in entry.name else entry)
    return raw.getvalue()


def sent(seen: dict[str, object]) -> list[list[str]]:
    return [pair for pair in seen["headers"] if pair[0] in ("authorization", "x-team")]  # type: ignore[attr-defined]


async def test_curl_speaks_it_with_the_secret_that_it_never_sees(boxed: Sandbox, world: Internet) -> None:
    own = "-H 'Authorization: mine' -H 'X-Team: mine' -H 'x-other: mine'"
    done = await bash(
        boxed, f"curl -sS --http2 -m 10 {own} -d body {URL}/a -w '%{{http_version}} %{{ssl_verify_result}}'"
    )
    assert done.stdout.endswith(b"2 0"), done
    [seen] = world.records(path="/a")
    assert sorted(sent(seen)) == [["authorization", f"Bearer {VALUE}"], ["x-team", "a"]]
    assert ["x-other", "mine"] in seen["headers"]
    assert seen["size"] == 4


@pytest.mark.parametrize(
    ("url", "flag", "version"),
    [(URL, "--http1.1", "1.1"), ("https://api.rule.test", "--http2", "1.1"), (URL, "--no-alpn", "1.1")],
)
async def test_both_sides_speak_what_the_server_picked(
    boxed: Sandbox, world: Internet, url: str, flag: str, version: str
) -> None:
    path = f"/picked{flag}"
    done = await bash(boxed, f"curl -sS {flag} -m 10 {url}{path} -w '%{{http_version}}'")
    assert done.stdout.endswith(version.encode()), done
    assert world.records(path=path)


async def test_a_hundred_streams_share_one_connection(boxed: Sandbox, world: Internet) -> None:
    done = await bash(boxed, f"curl -sS --http2 -Z --parallel-max 100 -m 20 '{URL}/many/[1-100]' -o /dev/null")
    assert done.status.code == 0, done
    seen = [line for line in world.records(modern="h2") if line["path"].startswith("/many/")]
    assert len(seen) == 100
    assert len({line["connection"] for line in seen}) <= 2
    assert all(["authorization", f"Bearer {VALUE}"] in sent(line) for line in seen)


async def test_no_other_authority_is_served_on_a_connection(boxed: Sandbox, world: Internet) -> None:
    text = f"""{OPEN}
s = opened(); c = h2.connection.H2Connection(); c.initiate_connection(); said = {{}}
c.send_headers(1, head('/no', authority='other.test'), end_stream=True)
c.send_headers(3, head('/yes'), end_stream=True)
ended = set()
while len(ended) < 2:
    s.sendall(c.data_to_send())
    for event in c.receive_data(s.recv(65536)):
        if isinstance(event, h2.events.ResponseReceived): said[event.stream_id] = dict(event.headers)[b':status']
        if isinstance(event, h2.events.StreamEnded): ended.add(event.stream_id)
print(said)
"""
    assert await python(boxed, text) == "{1: b'421', 3: b'200'}"
    done = await bash(boxed, f"curl -sS --http2 -m 5 -H 'Host: other.test' {URL}/no -w '%{{http_code}}'")
    assert done.stdout.endswith(b"421"), done
    assert b"another host" in done.stdout
    assert world.records(path="/yes")
    assert not world.records(path="/no")


async def test_large_bodies_pass_both_ways_at_once(boxed: Sandbox, world: Internet) -> None:
    make = "head -c 50000000 /dev/urandom > /tmp/big"
    echo = f"curl -sS --http2 -m 60 -T /tmp/big {URL}/echo -X POST | cmp - /tmp/big && echo same"
    done = await bash(boxed, f"{make}; {echo}", timeout_s=90)
    assert done.stdout == b"same\n", done
    sizes = await bash(boxed, f"curl -sS --http2 -m 60 {URL}/bytes/50000000 | wc -c", timeout_s=90)
    assert sizes.stdout.strip() == b"50000000"


async def test_an_answer_that_is_not_read_stops_no_other(boxed: Sandbox) -> None:
    text = f"""{OPEN}
s = opened(); c = h2.connection.H2Connection(); c.initiate_connection(); c.increment_flow_control_window(1 << 25)
c.send_headers(1, head('/bytes/20000000'), end_stream=True)
c.send_headers(3, head('/bytes/20000000'), end_stream=True)
got = {{1: 0, 3: 0}}; over = False
while not over:
    s.sendall(c.data_to_send())
    for event in c.receive_data(s.recv(65536)):
        if isinstance(event, h2.events.DataReceived):  # stream 1 is never acknowledged
            got[event.stream_id] += len(event.data)
            if event.stream_id == 3: c.acknowledge_received_data(event.flow_controlled_length, 3)
        over = over or isinstance(event, h2.events.StreamEnded)
print(got)
"""
    assert await python(boxed, text) == "{1: 65535, 3: 20000000}"


GRPC = f"""
import sys; sys.path.insert(0, '/tmp/lib')
import grpc
roots = open('/etc/ssl/certs/ca-certificates.crt', 'rb').read()
channel = grpc.secure_channel('{CALLED}:443', grpc.ssl_channel_credentials(roots))
"""


async def test_grpc_streams_both_ways_with_metadata_and_status(boxed: Sandbox, world: Internet) -> None:
    text = f"""{GRPC}
import queue
asked = queue.Queue()
own = (('authorization', 'mine'), ('x-b', 'c'))
call = channel.stream_stream('/t.T/chat')(iter(asked.get, None), metadata=own, timeout=20)
for word in (b'one', b'two', b'x' * 1000000):
    asked.put(word); said = next(call); print(len(said), said[:3])
asked.put(None)
print(list(call), dict(call.initial_metadata())['x-first'], call.code().name)
print(sorted((name, value) for name, value in call.trailing_metadata()))
try: channel.unary_unary('/t.T/deny')(b'', timeout=20)
except grpc.RpcError as error: print(error.code().name, error.details())
counting = channel.unary_stream('/t.T/count')(b'', timeout=20)
print([next(counting) for _ in range(3)]); counting.cancel()
"""
    assert await python(boxed, text) == (
        "3 b'ONE'\n3 b'TWO'\n1000000 b'XXX'\n[] words OK\n[('x-count', '3'), ('x-raw-bin', b'\\x00\\xff')]\n"
        "FAILED_PRECONDITION not like this: ä\n[b'0', b'1', b'2']"
    )
    [seen] = world.records(called="/t.T/chat")
    assert [value for name, value in seen["metadata"] if name == "authorization"] == [f"Bearer {VALUE}"]
    assert ["x-b", "c"] in seen["metadata"]
    async with asyncio.timeout(10):
        while not world.records(counted="off"):  # noqa: ASYNC110 — another process writes it
            await asyncio.sleep(0.05)


async def test_a_deleted_secret_is_403_and_a_new_value_counts_at_once(
    both: tuple[Runtime, LocalBackend], boxed: Sandbox, world: Internet
) -> None:
    secrets = both[1].secrets
    assert secrets is not None
    text = f"""{OPEN}
s = opened(); c = h2.connection.H2Connection(); c.initiate_connection()
for stream, path in ((1, '/s1'), (3, '/s2'), (5, '/s3')):
    c.send_headers(stream, head(path), end_stream=True); done = False
    while not done:
        s.sendall(c.data_to_send())
        for event in c.receive_data(s.recv(65536)):
            if isinstance(event, h2.events.ResponseReceived): print(dict(event.headers)[b':status'].decode())
            done = done or isinstance(event, h2.events.StreamEnded)
    open('/tmp/step' + str(stream), 'w').close()
    import os, time
    while stream < 5 and not os.path.exists('/tmp/go' + str(stream)): time.sleep(0.02)
"""
    running = asyncio.get_running_loop().create_task(python(boxed, text))
    await bash(boxed, "until [ -e /tmp/step1 ]; do sleep 0.02; done")
    await secrets.update("", "api", "sk-second")
    await bash(boxed, "touch /tmp/go1; until [ -e /tmp/step3 ]; do sleep 0.02; done")
    await secrets.delete("", "api")
    await bash(boxed, "touch /tmp/go3")
    said = await running
    await secrets.create(SecretSpec(name=SecretName("api"), value=VALUE))
    assert said == "200\n200\n403"
    values = [dict(map(tuple, world.records(path=path)[0]["headers"]))["authorization"] for path in ("/s1", "/s2")]
    assert values == [f"Bearer {VALUE}", "Bearer sk-second"]
    assert not world.records(path="/s3")


async def test_a_server_without_a_trusted_certificate_gets_nothing(both: tuple[Runtime, LocalBackend]) -> None:
    wanted = policy("untrusted.test", rules=(HeaderRule(domain="untrusted.test", headers=HEADERS),))
    async with await both[0].sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        await sandbox.fs.write("/tmp/lib.tar", _libraries())
        await bash(sandbox, "mkdir /tmp/lib && tar -xf /tmp/lib.tar -C /tmp/lib")
        text = f"""{OPEN}
s = opened('untrusted.test', '8.7.6.13'); c = h2.connection.H2Connection(); c.initiate_connection(); done = False
c.send_headers(1, head(authority='untrusted.test'), end_stream=True)
while not done:
    s.sendall(c.data_to_send())
    for event in c.receive_data(s.recv(65536)):
        if isinstance(event, h2.events.ResponseReceived): print(dict(event.headers)[b':status'])
        if isinstance(event, h2.events.DataReceived): print(event.data)
        done = done or isinstance(event, h2.events.StreamEnded)
"""
        said = await python(sandbox, text)
        assert said.startswith("b'502'"), said
        assert "certificate is not trusted" in said


async def test_a_policy_that_forbids_it_cuts_what_is_open(both: tuple[Runtime, LocalBackend], world: Internet) -> None:
    async with await both[0].sandboxes.create(
        SandboxSpec.from_template("base", network=policy(MODERN, rules=RULES))
    ) as sandbox:
        cut = f"curl -sS --http2 -m 30 {URL}/stuck -w '%{{http_code}}'; echo $?"
        running = asyncio.get_running_loop().create_task(bash(sandbox, cut))
        async with asyncio.timeout(10):
            while not world.records(path="/stuck"):  # noqa: ASYNC110 — another process writes it
                await asyncio.sleep(0.05)
        await sandbox.update_network(policy("allowed.test"))
        done = await asyncio.wait_for(running, 5)
        assert not done.stdout.endswith(b"\n0\n"), done
        refused = await bash(sandbox, f"curl -sS --http2 -m 5 {URL}/after")
        assert not refused.stdout
    assert not world.records(path="/after")


async def test_http_2_in_the_clear_is_refused_in_its_own_words(boxed: Sandbox) -> None:
    text = f"""{OPEN}
s = socket.create_connection(('{HOSTS[MODERN]}', 80), 5); c = h2.connection.H2Connection(); c.initiate_connection()
c.send_headers(1, head(), end_stream=True); s.sendall(c.data_to_send())
for event in c.receive_data(s.recv(65536)):
    if isinstance(event, h2.events.ConnectionTerminated): print(event.error_code.name, event.additional_data)
"""
    said = await python(boxed, text)
    assert said.startswith("HTTP_1_1_REQUIRED"), said
    assert "use https" in said
    curl = await bash(boxed, "curl -sS --http2 -m 5 http://api.rule.test/upgraded -w '%{http_version} %{http_code}'")
    assert b"https only" in curl.stdout, "an upgrade that is asked for in HTTP/1.1 is judged there"


async def test_json_of_refusals_has_none_of_the_guest_s_words(boxed: Sandbox) -> None:
    use = (await boxed.network()).use
    assert use is not None
    told = json.dumps([flow.rule for flow in use.refused])
    assert "another host" in told
    assert "other.test" not in told


BARE = f"""
import socket, ssl
bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); bare.set_alpn_protocols(['h2'])
try: bare.wrap_socket(socket.create_connection(('{HOSTS[MODERN]}', 443), 5), server_hostname='{MODERN}')
except ssl.SSLCertVerificationError: print('not trusted')
"""


async def test_each_refusal_is_told_with_name_protocol_port_and_rule(both: tuple[Runtime, LocalBackend]) -> None:
    gone = HeaderRule(domain=MODERN, headers={"Authorization": "${e2b.secrets.passing}"})
    secrets = both[1].secrets
    assert secrets is not None
    await secrets.create(SecretSpec(name=SecretName("passing"), value=VALUE))
    spec = SandboxSpec.from_template("base", network=policy(MODERN, rules=(gone,)))
    async with await both[0].sandboxes.create(spec) as sandbox:
        ask = f"curl -sS --http2 -m 5 {URL}/path-of-mine"
        assert await python(sandbox, BARE) == "not trusted"
        await bash(sandbox, f"{ask} -H 'Host: other.test'")
        await secrets.delete("", "passing")
        await bash(sandbox, f"{ask}; {ask}")
        wanted = {
            (MODERN, "tcp", 443, 1, f"{Refusal.NOT_TRUSTED_INSIDE.value}: rule {MODERN}"),
            (MODERN, "http", 443, 1, f"{Refusal.OTHER_HOST.value}: rule {MODERN}"),
            (MODERN, "http", 443, 2, f"secret passing deleted: rule {MODERN}"),
        }
        flows = await refused(sandbox, lambda flows: sum(flow.packets for flow in flows) >= 4)
        assert {(flow.destination, flow.protocol, flow.port, flow.packets, flow.rule) for flow in flows} == wanted


async def test_a_private_server_is_reached_only_where_allow_out_has_its_address_too(
    both: tuple[Runtime, LocalBackend], world: Internet
) -> None:
    rules = (HeaderRule(domain=HIDDEN, headers=HEADERS),)
    ask = f"curl -sS --http2 -m 5 --resolve {HIDDEN}:443:{HOSTS[HIDDEN]} https://{HIDDEN}/"
    clear = f"curl -sS --http2-prior-knowledge -m 5 http://{HOSTS[HIDDEN]}/"
    spec = SandboxSpec.from_template("base", network=policy(HIDDEN, HOSTS[HIDDEN], rules=rules))
    async with await both[0].sandboxes.create(spec) as sandbox:
        done = await bash(sandbox, f"{ask}named -w '%{{http_version}}'")
        assert done.stdout.endswith(b"2"), done
    [seen] = world.records(path="/named")
    assert ["authorization", f"Bearer {VALUE}"] in sent(seen)
    spec = SandboxSpec.from_template("base", network=policy(HIDDEN, rules=rules))
    async with await both[0].sandboxes.create(spec) as sandbox:
        await bash(sandbox, f"{ask}hidden; {clear}hidden")
        flows = await refused(sandbox, lambda flows: len(flows) >= 2)
        assert {(flow.destination, flow.protocol, flow.port, flow.rule) for flow in flows} == {
            (HIDDEN, "tcp", 443, f"the name leads to a private address: allow_out {HIDDEN}"),
            (HOSTS[HIDDEN], "http", 80, "a private or link-local address that allow_out does not name"),
        }
    assert not world.records(path="/hidden")
