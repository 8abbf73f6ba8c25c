"""Private addresses that `allow_out` names beside host names: these are reached through the gateway, and no others."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.law.ids import SecretName, TemplateId
from firkin.law.network import EVERYWHERE, EgressProxy, HeaderRule, NetworkPolicy
from firkin.law.sandboxes import SandboxSpec
from firkin.law.secrets import SecretSpec
from firkin.law.templates import TemplateSpec
from tests.namespaces.internet import NAMES, PRIVATE, Internet, internet
from tests.namespaces.test_egress import VALUE, bash, made_backend, policy, refused_tls

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMED, NOT_NAMED = PRIVATE


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with internet(tmp_path_factory.mktemp("internet")) as up:
        yield up


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(
    tmp_path_factory: pytest.TempPathFactory, world: Internet
) -> AsyncIterator[tuple[Runtime, NamespacesDriver]]:
    backend, driver = made_backend(tmp_path_factory.mktemp("state"), world)
    async with Runtime.open(backend, kill_all=True) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        assert backend.secrets is not None
        await backend.secrets.create(SecretSpec(name=SecretName("api"), value=VALUE))
        yield opened, driver


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(both: tuple[Runtime, NamespacesDriver]) -> Runtime:
    return both[0]


def spec(wanted: NetworkPolicy) -> SandboxSpec:
    return SandboxSpec.from_template("base", network=wanted)


async def reached(sandbox: Sandbox, *hosts: str) -> set[str]:
    """Those whose web server answers."""
    text = "; ".join(f"curl -s -m 3 http://{host}/ | grep -q path && echo {host}" for host in hosts)
    return set((await bash(sandbox, text)).stdout.decode().split())


PUBLIC = (NAMES["allowed.test"], NAMES["other.test"])
HOSTS = ("allowed.test", "other.test", "private.test", *PRIVATE, *PUBLIC)


@pytest.mark.parametrize(
    ("allowed", "wanted"),
    [
        (("allowed.test",), {"allowed.test"}),
        (("allowed.test", NAMED), {"allowed.test", NAMED}),
        (("allowed.test", "10.1.2.0/30"), {"allowed.test", NAMED}),
        (("allowed.test", "private.test"), {"allowed.test"}),
        (("allowed.test", "private.test", NAMED), {"allowed.test", "private.test", NAMED}),
        (("allowed.test", "8.0.0.0/6", "127.0.0.0/8", "198.18.0.0/15"), {"allowed.test", *PUBLIC}),
        (("allowed.test", EVERYWHERE), {"allowed.test", *PUBLIC}),
    ],
    ids=str,
)
async def test_what_is_named_by_address_is_reached_beside_names(
    runtime: Runtime, allowed: tuple[str, ...], wanted: set[str]
) -> None:
    async with await runtime.sandboxes.create(spec(policy("8.7.6.10", *PRIVATE, "allowed.test"))) as control:
        assert await reached(control, *PRIVATE) == set(PRIVATE), "they answer"
        async with await runtime.sandboxes.create(spec(policy(*allowed))) as sandbox:
            assert await reached(sandbox, *HOSTS) == wanted


async def test_another_sandbox_s_addresses_are_not_one_s_own(runtime: Runtime) -> None:
    """They have one gateway, whose own network is as wide as both together."""
    async with (
        await runtime.sandboxes.create(spec(policy("allowed.test", NAMED))) as first,
        await runtime.sandboxes.create(spec(policy("allowed.test", "private.test", NOT_NAMED))) as second,
    ):
        assert await reached(first, *PRIVATE) == {NAMED}
        assert await reached(second, *PRIVATE, "private.test") == {NOT_NAMED}


async def test_an_update_opens_and_shuts_them_and_the_gateway_s_own_network_follows(
    both: tuple[Runtime, NamespacesDriver],
) -> None:
    runtime, driver = both
    async with await runtime.sandboxes.create(spec(policy("allowed.test"))) as sandbox:
        interface = interface_of_gateway(driver)
        assert table(interface) == ""
        await sandbox.update_network(policy("allowed.test", NAMED))
        assert await reached(sandbox, *HOSTS) == {"allowed.test", NAMED}
        assert NAMED in table(interface)
        assert NOT_NAMED not in table(interface)
        await sandbox.update_network(policy("allowed.test"))
        assert await reached(sandbox, *HOSTS) == {"allowed.test"}
        assert table(interface) == ""
        await sandbox.update_network(policy("allowed.test", NAMED))
        assert NAMED in table(interface)
    assert table(interface) == "", "it went with the sandbox"


def interface_of_gateway(driver: NamespacesDriver) -> str:
    return driver._ground.gateways._manned[""].slot.numbers.interface


def table(interface: str) -> str:
    listed = ["nft", "list", "table", "netdev", f"firkin-{interface}"]
    return subprocess.run(listed, capture_output=True, text=True, check=False).stdout


async def test_a_rule_s_host_and_a_resolver_and_a_proxy_may_be_private_where_they_are_named(
    runtime: Runtime, world: Internet
) -> None:
    rule = HeaderRule(domain="private.test", headers={"Authorization": "Bearer ${e2b.secrets.api}"})
    async with await runtime.sandboxes.create(spec(policy("private.test", NAMED, rules=(rule,)))) as sandbox:
        assert b'"path"' in (await bash(sandbox, "curl -sS -m 5 https://private.test/within")).stdout
    [seen] = world.records(path="/within")
    assert VALUE in str(seen)
    proxy = EgressProxy(address=f"{NAMED}:1080", username="u", password="p")
    proxied = policy("allowed.test", NAMED, egress_proxy=proxy)
    async with await runtime.sandboxes.create(spec(proxied)) as sandbox:
        said = await refused_tls(sandbox, "allowed.test", NAMES["allowed.test"])
        assert said.startswith("in "), said
    resolved = policy("allowed.test", NAMED, dns_servers=(NAMED,))
    async with await runtime.sandboxes.create(spec(resolved)) as sandbox:
        assert await reached(sandbox, "allowed.test") == {"allowed.test"}
