"""Tenants' images: which registries are asked for them, how, and with whose credentials."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from firkin.host.image_names import parse_image_name
from firkin.host.image_sources import RegistrySettings
from firkin.host.layer_store import LayerStore
from firkin.host.registries import Access
from firkin.host.roots import HostRootPreparer
from firkin.host.tenant_registries import PUBLIC_REGISTRIES, TenantRegistries, may_be_known
from firkin.law.builds import built_id
from firkin.law.errors import InvalidSpec, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import OciSource, RegistryLogin, TemplateSpec

TENANTS = built_id("t" + "x" * 19, "0" * 32)  # how the templates of tenants' builds are called
ECR = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"


def known(name: str, *registries: str) -> bool:
    return TenantRegistries(registries=registries or PUBLIC_REGISTRIES).know(parse_image_name(name))


@pytest.mark.parametrize(
    "name",
    [
        *("debian:12", "team/x", "index.docker.io/team/x", "quay.io/a/b", "GHCR.io/a/b", "eu.gcr.io/a/b"),
        *("europe-docker.pkg.dev/p/r/i", "public.ecr.aws/a/b", f"{ECR}/x", "mine.azurecr.io/x", "quay.io:443/x"),
    ],
)
def test_public_registries_are_known(name: str) -> None:
    assert known(name)


@pytest.mark.parametrize(
    "name",
    [
        *("localhost/x", "localhost:5000/x", "127.0.0.1:22/x", "[::1]:80/x", "10.0.0.5/x", "169.254.169.254/x"),
        *("registry:5000/x", "a.localhost/x", "evil.example/x", "quay.io.evil.example/x", "evilgcr.io/x"),
        *("quay.io:8443/x", "127.1:80/x", "0x7f.0x1/x", "pkg.dev/x", "a.dkr.ecr.s3.amazonaws.com/x"),
        *(f"x.{ECR}/x", "bucket.s3.amazonaws.com/x", "127.0.0.1.azurecr.io.1/x"),
    ],
)
def test_no_other_registry_is_known(name: str) -> None:
    assert not known(name)


def test_a_list_of_the_operators_own_stands_in_place_of_the_public_ones() -> None:
    own = ("registry.example:5000", "*.corp.example", "registry-1.docker.io")
    for name in ("registry.example:5000/x", "a.b.corp.example/x", "debian"):
        assert known(name, *own)
    for name in ("registry.example/x", "corp.example/x", "quay.io/x"):
        assert not known(name, *own)


@pytest.mark.parametrize(
    "pattern", ["10.0.0.5", "10.0.0.5:5000", "localhost:5000", "registry", "*.local host", "*", ""]
)
def test_an_address_or_a_local_name_is_nothing_to_give_to_tenants(pattern: str) -> None:
    assert not may_be_known(pattern)


@dataclass(frozen=True, slots=True)
class FakeSkopeo:
    """Says of every image that it is not there, or has but its `manifest`, and keeps what it was asked."""

    calls: Path
    manifest: Path

    @property
    def asked(self) -> Sequence[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSkopeo:
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    (folder / "skopeo").write_text(
        f'#!/bin/sh\necho "$*" >> {calls}\necho "home $HOME" >> {calls}\n'
        f'case "$*" in *--config*) ;; *--raw*) [ -e {folder}/manifest ] && cat {folder}/manifest && exit;; esac\n'
        f'while [ $# -gt 0 ]; do [ "$1" = --authfile ] && echo "has $(cat "$2")" >> {calls}; shift; done\n'
        "echo 'level=fatal msg=\"manifest unknown\"' >&2\nexit 1\n"
    )
    (folder / "skopeo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return FakeSkopeo(calls, folder / "manifest")


class Asker:
    """Prepares images of registries in vain, for the operator or a tenant."""

    def __init__(self, store: LayerStore, into: Path, skopeo: FakeSkopeo, settings: RegistrySettings) -> None:
        self._preparer = HostRootPreparer(layers=store, registries=settings)
        self._into = into
        self._skopeo = skopeo

    async def __call__(self, name: str, *, by_tenant: bool, login: RegistryLogin | None = None) -> str:
        """What skopeo heard of it."""
        before = len(self._skopeo.asked)
        spec = TemplateSpec(source=OciSource(name), id=TENANTS if by_tenant else None, login=login)
        with pytest.raises(TemplatePrepareFailure) as caught:
            await self._preparer.prepare(spec, self._into, lambda line: None)
        assert caught.value.fault is TemplateFault.SOURCE_MISSING
        return "\n".join(self._skopeo.asked[before:])


class TestWhatIsAsked:
    async def test_a_tenants_registry_is_asked_over_tls_alone_and_the_operators_as_ever(
        self, store: LayerStore, into: Path, skopeo: FakeSkopeo
    ) -> None:
        ask = Asker(store, into, skopeo, RegistrySettings(tenants=TenantRegistries()))
        assert "--tls-verify=true" in await ask("quay.io/a/b", by_tenant=True)
        assert "--tls-verify=false" in await ask("127.0.0.1:5000/a", by_tenant=False)
        assert "--tls-verify" not in await ask("registry.example/a", by_tenant=False)

    async def test_a_tenants_unknown_registry_is_never_asked(
        self, store: LayerStore, into: Path, skopeo: FakeSkopeo
    ) -> None:
        ask = Asker(store, into, skopeo, RegistrySettings(tenants=TenantRegistries()))
        for name in ("127.0.0.1:22/x", "evil.example/x"):
            with pytest.raises(InvalidSpec, match=r"setting tenant_registries for API keys: docker\.io, quay\.io"):
                await ask(name, by_tenant=True)
        with pytest.raises(InvalidSpec, match="no image reference"):
            await ask("oci:/srv/images/x", by_tenant=True)
        assert not skopeo.asked

    async def test_what_the_operator_maps_to_a_registry_nearby_is_asked_there(
        self, store: LayerStore, into: Path, skopeo: FakeSkopeo
    ) -> None:
        mirrors = {"images.example/": "127.0.0.1:5000/"}
        ask = Asker(store, into, skopeo, RegistrySettings(mirrors=mirrors, tenants=TenantRegistries()))
        assert "--tls-verify=false docker://127.0.0.1:5000/x:1" in await ask("images.example/x:1", by_tenant=True)

    async def test_who_holds_the_only_key_names_any_registry(
        self, store: LayerStore, into: Path, skopeo: FakeSkopeo
    ) -> None:
        ask = Asker(store, into, skopeo, RegistrySettings())
        assert "--tls-verify=false" in await ask("localhost:5000/a", by_tenant=True)


class TestCredentials:
    @pytest.fixture
    def auth_file(self, tmp_path: Path) -> Path:
        path = tmp_path / "auth.json"
        path.write_text("the operator's")
        return path

    @pytest.mark.parametrize("mirrors", [{}, {"quay.io/": "registry.example/"}])
    async def test_a_tenant_without_a_login_is_nobody(
        self, store: LayerStore, into: Path, skopeo: FakeSkopeo, auth_file: Path, mirrors: dict[str, str]
    ) -> None:
        tenants = TenantRegistries()
        for found in (auth_file, None):
            settings = RegistrySettings(auth_file=found, tenants=tenants, mirrors=mirrors)
            heard = await Asker(store, into, skopeo, settings)("quay.io/a", by_tenant=True)
            assert "--no-creds" in heard
            assert "--authfile" not in heard

    async def test_a_tenants_own_login_is_used_and_the_operators_for_the_operator(
        self, store: LayerStore, into: Path, skopeo: FakeSkopeo, auth_file: Path
    ) -> None:
        ask = Asker(store, into, skopeo, RegistrySettings(auth_file=auth_file, tenants=TenantRegistries()))
        login = RegistryLogin(username="bob", password="sesame")
        secret = base64.b64encode(b"bob:sesame").decode()
        own = await ask("quay.io/a", by_tenant=True, login=login)
        assert f'has {{"auths": {{"quay.io": {{"auth": "{secret}"}}}}}}' in own
        operators = await ask("quay.io/a", by_tenant=False)
        assert "has the operator's" in operators
        assert "--no-creds" not in own + operators
        assert (f"home {into}" in own, f"home {into}" in operators) == (True, False)

    @pytest.mark.parametrize("tenants", [None, TenantRegistries(use_auth_file=True)])
    async def test_the_operators_file_is_for_tenants_where_he_says_so_and_where_there_are_none(
        self, store: LayerStore, into: Path, skopeo: FakeSkopeo, auth_file: Path, tenants: TenantRegistries | None
    ) -> None:
        ask = Asker(store, into, skopeo, RegistrySettings(auth_file=auth_file, tenants=tenants))
        assert "has the operator's" in await ask("quay.io/a", by_tenant=True)

    def test_copies_are_as_anonymous_as_questions(self) -> None:
        access = Access(alone=True, only_tls=True)
        assert access.options("quay.io/a", source="src-") == ["--src-no-creds", "--src-tls-verify=true"]


@pytest.mark.parametrize(
    "config",
    ['{"urls": ["http://10.0.0.1/"]}', '{"URL\u017f": ["http://10.0.0.1/"]}', '{"urls": ["http://a/"]}, "config": {}'],
)
async def test_no_part_of_an_image_is_fetched_from_where_its_manifest_says(
    store: LayerStore, into: Path, skopeo: FakeSkopeo, config: str
) -> None:
    skopeo.manifest.write_text(f'{{"schemaVersion": 2, "layers": [], "config": {config}}}')
    preparer = HostRootPreparer(layers=store)
    with pytest.raises(TemplatePrepareFailure, match=r"has parts that its registry does not keep \(urls\)"):
        await preparer.prepare(TemplateSpec(source=OciSource("debian")), into, lambda line: None)
    assert "--config" not in " ".join(skopeo.asked)
