"""Tenants of a shared server do not reach into the operator's network by way of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from firkin.bootstrap.serving import server_settings
from firkin.e2b.exchange import Refused
from firkin.e2b.models import NetworkConfig
from firkin.e2b.networks import policy_of
from firkin.e2b.tenant_limits import TenantLimits
from firkin.law.errors import InvalidSpec
from firkin.law.ids import TemplateId
from firkin.law.network import EVERYWHERE
from firkin.law.templates import OciSource, TemplateBase, TemplateSource
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


@pytest.mark.parametrize("image", ["127.0.0.1:22/x", "localhost/x", "10.0.0.5:5000/x", "evil.example/x"])
def test_no_tenants_image_leads_this_server_to_an_unknown_registry(tmp_path: Path, image: str) -> None:
    tenants = limits(tmp_path)
    assert tenants is not None
    with pytest.raises(InvalidSpec, match=rf"names the registry {image[:-2]}, .* setting tenant_registries"):
        tenants.require_source(OciSource(image))


@pytest.mark.parametrize(
    "source", [OciSource("debian:12"), OciSource("near.example/x"), TemplateBase(TemplateId("base"))]
)
def test_builds_on_anything_else_begin(tmp_path: Path, source: TemplateSource) -> None:
    tenants = limits(tmp_path, image_mirrors={"near.example/": "127.0.0.1:5000/"})
    assert tenants is not None
    tenants.require_source(source)


def test_only_the_registries_that_the_operator_names_are_asked(tmp_path: Path) -> None:
    tenants = limits(tmp_path, tenant_registries=["registry.example"])
    assert tenants is not None
    tenants.require_source(OciSource("registry.example/x"))
    with pytest.raises(InvalidSpec, match=r"docker\.io, .*: registry\.example$"):
        tenants.require_source(OciSource("debian"))
