"""Tenants of a shared server do not reach into the operator's network by way of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firkin.bootstrap.serving import server_settings
from firkin.e2b.auth import ApiKey
from firkin.e2b.exchange import Exchange, Message, Refused
from firkin.e2b.models import NetworkConfig
from firkin.e2b.networks import policy_of
from firkin.e2b.tenant_limits import TenantLimits
from firkin.law.errors import InvalidSpec
from firkin.law.network import EVERYWHERE
from firkin.settings import read_settings

KEYS = ["alice:e2b_0123456789abcdef", "bob:e2b_fedcba9876543210"]


def limits(tmp_path: Path, **given: object) -> TenantLimits | None:
    settings = read_settings({"state_dir": tmp_path, "api_keys": KEYS, **given}, environ={})
    return server_settings(settings).tenants


def asked(*allow_out: str, tenants: TenantLimits | None) -> tuple[str, ...]:
    config = NetworkConfig(allowOut=list(allow_out), denyOut=[EVERYWHERE])
    return policy_of(config, internet=True, tenants=tenants).allow_out


@pytest.mark.parametrize("keys", [[], KEYS[:1]])
def test_whoever_holds_the_only_key_is_the_operator(tmp_path: Path, keys: list[str]) -> None:
    assert limits(tmp_path, api_keys=keys) is None
    assert asked("169.254.169.254", "10.0.0.0/8", tenants=None) == ("169.254.169.254", "10.0.0.0/8")


@pytest.mark.parametrize("text", ["169.254.169.254", "10.0.0.0/8", "10.20.0.5", "192.168.1.0/24", "100.64.0.1"])
def test_no_tenant_opens_the_operators_private_network(tmp_path: Path, text: str) -> None:
    tenants = limits(tmp_path)
    for named in ((text,), ("1.1.1.1", text), ("intra.example", text)):
        with pytest.raises(Refused, match="tenant_private_networks of this server's settings says: none") as caught:
            asked(*named, tenants=tenants)
        assert caught.value.status == 400


def test_tenants_name_public_addresses_names_and_what_opens_nothing(tmp_path: Path) -> None:
    named = ("1.1.1.1", "140.82.112.0/20", EVERYWHERE, "intra.example", "127.0.0.1", "fd00::1")
    assert asked(*named, tenants=limits(tmp_path)) == named


def test_the_operator_opens_some_private_networks_to_tenants(tmp_path: Path) -> None:
    tenants = limits(tmp_path, tenant_private_networks=["10.20.0.0/16", "192.168.7.9"])
    assert asked("10.20.3.0/24", "192.168.7.9", tenants=tenants) == ("10.20.3.0/24", "192.168.7.9")
    for text in ("10.0.0.0/8", "10.21.0.1", "192.168.7.8", "169.254.169.254"):
        with pytest.raises(Refused, match=r"says: 10\.20\.0\.0/16, 192\.168\.7\.9/32"):
            asked(text, tenants=tenants)


class Started:
    """A build's start, and the bodies that came to it."""

    def __init__(self) -> None:
        self.bodies: list[object] = []

    async def __call__(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        self.bodies.append(json.loads(await exchange.body(1 << 20)))


async def start(tenants: TenantLimits, body: object) -> Started:
    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Message) -> None:
        raise AssertionError("nothing is answered here")

    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    started = Started()
    await tenants.images_checked(started)(Exchange(scope, receive, send), ApiKey("bob", KEYS[1]), "t", "b")
    return started


@pytest.mark.parametrize("image", ["127.0.0.1:22/x", "localhost/x", "10.0.0.5:5000/x", "evil.example/x"])
async def test_no_tenants_image_leads_this_server_to_an_unknown_registry(tmp_path: Path, image: str) -> None:
    tenants = limits(tmp_path)
    assert tenants is not None
    with pytest.raises(InvalidSpec, match=rf"names the registry {image[:-2]}, .* setting tenant_registries"):
        await start(tenants, {"fromImage": image})


@pytest.mark.parametrize(
    "body",
    [
        {"fromImage": "debian:12", "steps": []},
        {"fromImage": "e2bdev/base"},
        {"fromTemplate": "base"},
        {"fromImage": "near.example/x"},
        {},
    ],
)
async def test_builds_on_anything_else_begin_as_they_did(tmp_path: Path, body: object) -> None:
    tenants = limits(tmp_path, image_mirrors={"near.example/": "127.0.0.1:5000/"})
    assert tenants is not None
    assert (await start(tenants, body)).bodies == [body]


async def test_this_servers_own_base_is_no_image_of_a_registry(tmp_path: Path) -> None:
    tenants = limits(tmp_path, tenant_registries=["registry.example"])
    assert tenants is not None
    await start(tenants, {"fromImage": "e2bdev/base:latest"})
    with pytest.raises(InvalidSpec, match=r"docker\.io, .*: registry\.example$"):
        await start(tenants, {"fromImage": "debian"})
