"""A SOCKS5 proxy that is spoken to over TLS: what goes through it, what it has to show, and what its death does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.gateway.judgement import Refusal
from firkin.law.ids import SecretName, TemplateId
from firkin.law.network import EgressProxy
from firkin.law.processes import Argv, Command
from firkin.law.sandboxes import SandboxSpec
from firkin.law.secrets import SecretSpec
from firkin.law.templates import TemplateSpec
from tests.namespaces.internet import NAMES, PROXY, Internet, internet, proxy
from tests.namespaces.test_denied import refused
from tests.namespaces.test_egress import RULE, VALUE, bash, made_backend, policy, refused_tls
from tests.namespaces.test_policy import said

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD, STRANGER, PLAIN = 1443, 1444, 1080
SMALL = 16 << 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with (
        internet(tmp_path_factory.mktemp("internet")) as up,
        proxy(up, GOOD, certificate="proxy.test"),
        proxy(up, STRANGER, certificate="untrusted.test"),
    ):
        yield up


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(state: Path, world: Internet) -> AsyncIterator[Runtime]:
    backend, _ = made_backend(state, world)
    async with Runtime.open(backend, kill_all=True) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        assert backend.secrets is not None
        await backend.secrets.create(SecretSpec(name=SecretName("api"), value=VALUE))
        yield opened


def by_tls(port: int = GOOD, host: str = "proxy.test", password: str = "p", **more: str) -> EgressProxy:
    return EgressProxy(address=f"{host}:{port}", username="u", password=password, tls=True, **more)  # type: ignore[arg-type]  # texts


@asynccontextmanager
async def behind(runtime: Runtime, one: EgressProxy) -> AsyncIterator[Sandbox]:
    allowed = ("allowed.test", "api.rule.test", "8.7.6.12")
    wanted = policy(*allowed, rules=(RULE,), egress_proxy=one)
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        yield sandbox


@pytest.mark.parametrize("own_authority", [False, True], ids=["known authority", "authority of the policy"])
@pytest.mark.parametrize("host", ["proxy.test", PROXY], ids=["by name", "by address"])
async def test_everything_goes_through_it_and_secrets_too(
    runtime: Runtime, world: Internet, host: str, own_authority: bool
) -> None:
    more = {"tls_ca": world.authority.read_text()} if own_authority else {}
    if host == PROXY:
        more["tls_server_name"] = "proxy.test"
    path = f"/tls-{host}-{own_authority}"
    async with behind(runtime, by_tls(host=host, **more)) as sandbox:
        assert b'"path"' in (await bash(sandbox, f"curl -sS -k -m 10 https://allowed.test{path}")).stdout
        assert b'"path"' in (await bash(sandbox, f"curl -sS -m 10 https://api.rule.test{path}")).stdout
        assert b'"path"' in (await bash(sandbox, f"curl -sS -m 10 http://8.7.6.12{path}")).stdout
        assert b'"path"' not in (await bash(sandbox, f"curl -sS -k -m 10 https://other.test{path}")).stdout
        large = await bash(sandbox, "curl -sS -m 20 https://api.rule.test/bytes/3000000 | wc -c")
        assert large.stdout.strip() == b"3000000"
    assert {record["host"] for record in world.records(path=path)} == {"allowed.test", "api.rule.test", "8.7.6.12"}
    assert VALUE in json.dumps(world.records(path=path, host="api.rule.test"))
    proxied = [line["proxied"] for line in world.records() if "proxied" in line]
    assert proxied[-4:] == ["allowed.test", "api.rule.test", "8.7.6.12", "api.rule.test"], "names go as names"


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (by_tls(STRANGER), Refusal.PROXY_UNTRUSTED),
        (by_tls(tls_server_name="another.test"), Refusal.PROXY_UNTRUSTED),
        (by_tls(host=PROXY), Refusal.PROXY_UNTRUSTED),
        (by_tls(password="x"), Refusal.PROXY_LOCKED),
        (by_tls(PLAIN), Refusal.PROXY_FAILED),
        (by_tls(1999), Refusal.PROXY_FAILED),
        (by_tls(tls_ca="no certificate"), Refusal.PROXY_FAILED),
        (by_tls(host="10.1.2.3"), Refusal.PROXY_PRIVATE),
        (by_tls(host="private.test"), Refusal.PROXY_PRIVATE),
        (by_tls(host="nowhere.test"), Refusal.PROXY_FAILED),
    ],
    ids=[
        "stranger", "another name", "no name", "password", "speaks no tls", "not there", "bad authority", "private",
        "private by name", "unknown",
    ],
)  # fmt: skip
async def test_a_proxy_that_is_not_the_one_gets_nothing_and_the_reason_is_told(
    runtime: Runtime, world: Internet, one: EgressProxy, why: Refusal
) -> None:
    before = [line for line in world.records() if "proxied" in line]
    async with behind(runtime, one) as sandbox:
        assert (await refused_tls(sandbox, "allowed.test", NAMES["allowed.test"])).startswith("refused")
        done = await bash(sandbox, "curl -sS -m 12 -w '%{http_code}' https://api.rule.test/never")
        assert done.stdout == f"firkin egress: {why.value}\n502".encode()
        flows = await refused(sandbox, lambda flows: len(flows) >= 2)
        assert {(flow.destination, flow.rule) for flow in flows} == {
            ("allowed.test", why.value),
            ("api.rule.test", why.value),
        }
    assert [line for line in world.records() if "proxied" in line] == before
    assert not world.records(path="/never")


async def test_nothing_in_the_state_folder_has_the_password(runtime: Runtime, state: Path) -> None:
    async with behind(runtime, by_tls(password="open-sesame-4711")) as sandbox:
        await sandbox.update_network((await sandbox.network()).policy)
        await sandbox.snapshot()
        await sandbox.pause(keep_memory=False)
        assert files_with("proxy.test:1443", state), "the policy itself is there"
        assert files_with("open-sesame-4711", state) == []
        await sandbox.resume()
        assert files_with("open-sesame-4711", state) == []


def files_with(word: str, folder: Path) -> list[Path]:
    """But for images of disks, which the sandbox wrote."""
    small = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < SMALL]
    return [path for path in small if word.encode() in path.read_bytes()]


HOLD = """
import socket, time
line = socket.create_connection(("8.7.6.12", 7000), 5)
line.settimeout(10)
line.sendall(b"x")
print("open" if line.recv(1) == b"x" else "closed", flush=True)
try:
    print("ended", line.recv(1), flush=True)
except OSError as error:
    print("ended", type(error).__name__, flush=True)
"""


async def test_what_a_dying_proxy_carries_ends_and_its_successor_is_used(runtime: Runtime, world: Internet) -> None:
    ask = "curl -sS -m 5 -w '%{http_code}' https://api.rule.test/"
    async with behind(runtime, by_tls(1445)) as sandbox:
        with proxy(world, 1445, certificate="proxy.test"):
            assert b'"path": "/alive"' in (await bash(sandbox, f"{ask}alive")).stdout
            stream = await sandbox.process.stream(Command(mode=Argv("/usr/bin/python3", ("-c", HOLD))))
            await said(stream, b"open")
        await said(stream, b"ended", within_s=8)
        await stream.aclose()
        done = await bash(sandbox, f"{ask}dead")
        assert done.stdout == f"firkin egress: {Refusal.PROXY_FAILED.value}\n502".encode()
        with proxy(world, 1445, certificate="proxy.test"):
            assert b'"path": "/back"' in (await bash(sandbox, f"{ask}back")).stdout
    assert not world.records(path="/dead")
