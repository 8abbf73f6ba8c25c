"""Images of registries: what is fetched and what is not, whose password it was, and mirrors."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from firkin.host.image_manifests import Image, LayerBlob
from firkin.host.image_names import ImageName, check_mirrors, mirrored, parse_image_name
from firkin.host.image_sources import PULLS, Bench, ImageSources, RegistrySettings, _whose, layer_contents
from firkin.host.images import Layout
from firkin.host.layer_stacks import LayerStacks, RootLimits, _chain, facts_of
from firkin.host.layer_store import LayerStore
from firkin.host.registries import Registry
from firkin.host.roots import HostRootPreparer
from firkin.host.tenant_registries import TenantRegistries
from firkin.law.builds import built_id
from firkin.law.driver import PreparedRoot
from firkin.law.errors import InvalidSpec, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import OciSource, RegistryLogin, TemplateSpec

from .conftest import LastRoot, Prepare
from .images_made import BASE, LayoutMaker, file
from .registries_run import RunningRegistry, running_registry

on_a_host = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and overlays need root"),
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed"),
]
LOGIN = RegistryLogin(username="firkin", password="open sesame")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path / "locked", locked=True) as running:
        yield running


@pytest.fixture
def layout(tmp_path: Path) -> LayoutMaker:
    made = LayoutMaker(tmp_path / "layout")
    made.add(BASE, [file("hello", "world")], config={"Env": ["A=1"], "WorkingDir": "/srv"})
    return made


def _image(layout: LayoutMaker, tag: str = "latest") -> Image:
    return Layout(str(layout.path)).image(tag)


TENANTS = built_id("t" + "x" * 19, "0" * 32)


class Fetcher:
    """Prepares images with settings of registries."""

    def __init__(self, store: LayerStore, into: Path) -> None:
        self._store = store
        self._into = into
        self.told: list[str] = []

    async def __call__(
        self,
        name: str,
        *,
        login: RegistryLogin | None = None,
        auth_file: Path | None = None,
        mirrors: Mapping[str, str] | None = None,
        by_tenant: bool = False,
    ) -> PreparedRoot:
        settings = RegistrySettings(mirrors=mirrors or {}, auth_file=auth_file)
        preparer = HostRootPreparer(layers=self._store, registries=settings)
        spec = TemplateSpec(source=OciSource(name), id=TENANTS if by_tenant else None, login=login)
        return await preparer.prepare(spec, self._into, self.told.append)


@pytest.fixture
def fetch(store: LayerStore, into: Path) -> Fetcher:
    return Fetcher(store, into)


class TestPulls:
    pytestmark = on_a_host

    async def test_an_image_is_pulled_and_its_config_honoured(
        self, registry: RunningRegistry, layout: LayoutMaker, into: Path, prepare: Prepare, last: LastRoot
    ) -> None:
        made = await prepare(registry.push(layout, "things/small:1"))
        assert (last.path / "hello").read_text() == "world"
        assert (made.config.env, made.config.workdir) == ({"A": "1"}, "/srv")
        assert made.digest == _image(layout).digest
        assert os.listdir(into) == []

    async def test_an_unknown_tag_is_missing(
        self, registry: RunningRegistry, layout: LayoutMaker, prepare: Prepare
    ) -> None:
        name = registry.push(layout, "things/small:1")
        with pytest.raises(TemplatePrepareFailure) as caught:
            await prepare(name + "2")
        assert caught.value.fault is TemplateFault.SOURCE_MISSING

    async def test_layers_that_are_here_are_not_fetched(
        self, registry: RunningRegistry, layout: LayoutMaker, store: LayerStore, prepare: Prepare, last: LastRoot
    ) -> None:
        layout.add(BASE, [file("other")], tag="other")
        await prepare(registry.push(layout, "small"))
        second = registry.push(layout, "other", tag="other")
        registry.lose(_image(layout).layers[0].digest)
        await prepare(second)
        assert (last.path / "other").exists()
        assert os.listdir(store.directory / PULLS) == []

    async def test_an_image_whose_layers_are_all_here_is_not_fetched_at_all(
        self, registry: RunningRegistry, layout: LayoutMaker, prepare: Prepare, progress: list[str]
    ) -> None:
        first = await prepare(f"oci:{layout.path}")
        name = registry.push(layout, "small")
        progress.clear()
        assert (await prepare(name)).root == first.root
        assert progress == [f"asking for {name}:latest"]

    async def test_what_an_interrupted_pull_brought_is_used_if_it_is_whole(
        self, registry: RunningRegistry, layout: LayoutMaker, store: LayerStore, prepare: Prepare, last: LastRoot
    ) -> None:
        name, image = registry.push(layout, "small"), _image(layout)
        pulled = store.directory / PULLS / image.digest.replace(":", "-") / "sha256"
        pulled.mkdir(parents=True)
        whole, half = (layer.digest for layer in image.layers)
        shutil.copy(layout.blob(whole), pulled / whole.removeprefix("sha256:"))
        (pulled / half.removeprefix("sha256:")).write_bytes(layout.blob(half).read_bytes()[:-1])
        (pulled / "oci-put-blob123").write_bytes(b"half")
        registry.lose(whole)
        await prepare(name)
        assert (last.path / "hello").read_text() == "world"
        assert os.listdir(store.directory / PULLS) == []

    async def test_a_killed_fetch_is_a_failure_that_leaves_the_next_one_alone(
        self, registry: RunningRegistry, layout: LayoutMaker, into: Path, prepare: Prepare, last: LastRoot
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.settimeout(10)
            work = asyncio.create_task(prepare(f"127.0.0.1:{silent.getsockname()[1]}/small:1"))
            connection, _ = await asyncio.to_thread(silent.accept)
            with connection:
                os.kill(_skopeo_of(into), signal.SIGKILL)
                with pytest.raises(TemplatePrepareFailure) as caught:
                    await work
        assert caught.value.fault is TemplateFault.REGISTRY_UNAVAILABLE
        await prepare(registry.push(layout, "small"))
        assert (last.path / "hello").read_text() == "world"

    async def test_a_digest_pins_what_is_fetched_and_is_asked_for_once(
        self, registry: RunningRegistry, layout: LayoutMaker, prepare: Prepare
    ) -> None:
        name = registry.push(layout, "small")
        pinned = f"{name}@{_image(layout).digest}"
        first = await prepare(pinned)
        registry.stop()
        assert await prepare(pinned) == first

    async def test_another_digest_is_missing(
        self, registry: RunningRegistry, layout: LayoutMaker, prepare: Prepare
    ) -> None:
        name = registry.push(layout, "small")
        with pytest.raises(TemplatePrepareFailure) as caught:
            await prepare(f"{name}@sha256:{'0' * 64}")
        assert caught.value.fault is TemplateFault.SOURCE_MISSING

    async def test_an_image_for_another_machine_is_refused_before_it_is_fetched(
        self, registry: RunningRegistry, layout: LayoutMaker, prepare: Prepare, progress: list[str]
    ) -> None:
        layout.add(BASE, architecture="riscv64", tag="other")
        with pytest.raises(TemplatePrepareFailure) as caught:
            await prepare(registry.push(layout, "other", tag="other"))
        assert caught.value.fault is TemplateFault.UNSUPPORTED_IMAGE_CONFIG
        assert not any("fetching" in line for line in progress)


def _skopeo_of(into: Path) -> int:
    for entry in Path("/proc").iterdir():
        try:
            told = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"skopeo" in told[0] and str(into).encode() in told[1]:
            return int(entry.name)
    raise AssertionError("nothing is being fetched")


class TestLogins:
    pytestmark = on_a_host

    @pytest.fixture
    def private(self, locked: RunningRegistry, layout: LayoutMaker) -> str:
        return locked.push(layout, "small:1", login="firkin:open sesame")

    async def test_a_login_opens_a_private_image_and_is_shown_nowhere(
        self, private: str, fetch: Fetcher, into: Path
    ) -> None:
        await fetch(private, login=LOGIN)
        shown = " ".join(fetch.told) + repr(LOGIN) + repr(TemplateSpec(source=OciSource("x"), login=LOGIN))
        assert "sesame" not in shown
        assert os.listdir(into) == []

    async def test_without_one_or_with_a_wrong_one_there_is_no_such_image(self, private: str, fetch: Fetcher) -> None:
        for login in (None, RegistryLogin(username="firkin", password="close sesame")):
            with pytest.raises(TemplatePrepareFailure) as caught:
                await fetch(private, login=login)
            assert caught.value.fault is TemplateFault.SOURCE_MISSING
            assert "sesame" not in str(caught.value)

    async def test_what_a_password_opened_is_not_had_for_its_digest(self, private: str, fetch: Fetcher) -> None:
        made = await fetch(private, login=LOGIN)
        with pytest.raises(TemplatePrepareFailure) as caught:
            await fetch(f"{private}@{made.digest}")
        assert caught.value.fault is TemplateFault.SOURCE_MISSING

    async def test_the_operators_file_opens_it_for_everybody(
        self, private: str, fetch: Fetcher, tmp_path: Path
    ) -> None:
        auth_file = tmp_path / "auth.json"
        secret = base64.b64encode(b"firkin:open sesame").decode()
        auth_file.write_text(json.dumps({"auths": {private.partition("/")[0]: {"auth": secret}}}))
        assert (await fetch(private, auth_file=auth_file)).digest.startswith("sha256:")

    async def test_what_the_operators_file_opened_is_not_a_tenants_to_have(
        self, private: str, store: LayerStore, into: Path, tmp_path: Path
    ) -> None:
        address = private.partition("/")[0]
        auth_file = tmp_path / "auth.json"
        secret = base64.b64encode(b"firkin:open sesame").decode()
        auth_file.write_text(json.dumps({"auths": {address: {"auth": secret}}}))
        settings = RegistrySettings(
            mirrors={"images.example/": f"{address}/"}, auth_file=auth_file, tenants=TenantRegistries()
        )
        preparer = HostRootPreparer(layers=store, registries=settings)

        async def made(name: str, *, by_tenant: bool) -> PreparedRoot:
            spec = TemplateSpec(source=OciSource(name), id=TENANTS if by_tenant else None)
            return await preparer.prepare(spec, into, lambda line: None)

        pinned = f"images.example/small@{(await made('images.example/small:1', by_tenant=False)).digest}"
        await made(pinned, by_tenant=False)
        for name in ("images.example/small:1", pinned):
            with pytest.raises(TemplatePrepareFailure) as caught:
                await made(name, by_tenant=True)
            assert caught.value.fault is TemplateFault.SOURCE_MISSING


class TestMirrors:
    pytestmark = on_a_host

    async def test_names_of_the_hub_come_from_a_registry_nearby(
        self, registry: RunningRegistry, layout: LayoutMaker, fetch: Fetcher
    ) -> None:
        registry.push(layout, "library/small:1")
        mirrors = {"docker.io/library/": f"{registry.address}/library/"}
        assert (await fetch("small:1", mirrors=mirrors)).digest == _image(layout).digest

    async def test_names_come_from_a_layout_on_this_machine(self, layout: LayoutMaker, fetch: Fetcher) -> None:
        digest = layout.add([*BASE, file("twelve")], tag="12")
        mirrors = {"debian": f"oci:{layout.path}"}
        assert (await fetch("debian:12", mirrors=mirrors)).digest == digest
        pinned = f"debian@{digest}"
        assert (await fetch(pinned, mirrors=mirrors)).digest == digest

    async def test_a_layout_that_has_another_digest_than_was_named_is_refused(
        self, layout: LayoutMaker, fetch: Fetcher
    ) -> None:
        mirrors = {"debian:12": f"oci:{layout.path}:latest"}
        with pytest.raises(TemplatePrepareFailure) as caught:
            await fetch(f"debian:12@sha256:{'0' * 64}", mirrors=mirrors)
        assert caught.value.fault is TemplateFault.SOURCE_CORRUPT


@pytest.mark.parametrize("other", [None, RegistryLogin(username="firkin", password="guessed")])
def test_an_image_that_claims_a_private_ones_layers_does_not_find_them(other: RegistryLogin | None) -> None:
    layer = LayerBlob(digest=f"sha256:{'a' * 64}", size=1, unpacked=f"sha256:{'b' * 64}")
    image = Image(digest=f"sha256:{'c' * 64}", layers=(layer, layer), env={}, user="", workdir="")
    name = parse_image_name("private.example/app")

    def found(login: RegistryLogin | None, auth_file: Path | None = None, at: ImageName = name) -> set[str]:
        return set(_chain(layer_contents(image, "", _whose(at, login, auth_file))))

    private = found(LOGIN)
    assert private == found(LOGIN), "the same login finds them again"
    assert not private & found(other)
    assert not private & found(LOGIN, at=parse_image_name("evil.example/app"))
    operators = found(None, Path("auth.json"))
    assert not operators & (found(other) | found(None, Path("auth.json"), parse_image_name("evil.example/app")))
    assert found(None) == found(None, at=parse_image_name("other.example/app")), "what is public is everybody's"


class Gone(Exception):
    """What a registry of a test answers."""


class Stalling(Registry):
    """Serves the blobs of an image once `go_on` is set; never means it."""

    def __init__(self, go_on: asyncio.Event) -> None:
        self.go_on = go_on
        self.asked = asyncio.Event()

    async def fetch(self, name: ImageName, image: Image, into: Path, blobs: Path) -> None:
        self.asked.set()
        await self.go_on.wait()
        raise Gone


async def test_a_tenants_pull_waits_for_no_other_registry_with_the_same_image(store: LayerStore, into: Path) -> None:
    layer = LayerBlob(digest=f"sha256:{'a' * 64}", size=1, unpacked=f"sha256:{'b' * 64}")
    image = Image(digest=f"sha256:{'c' * 64}", layers=(layer,), env={}, user="", workdir="")
    stacks = LayerStacks(store, into, print, RootLimits())
    bench = Bench(store=store, facts=facts_of(store), stacks=stacks, scratch=into, report=print)
    sources = ImageSources(bench, RegistrySettings(), None, stranger=True)
    never, at_once = Stalling(asyncio.Event()), Stalling(asyncio.Event())
    at_once.go_on.set()
    slow = asyncio.ensure_future(  # noqa: TID251 — cancelled and awaited below
        sources._pulled(never, parse_image_name("evil.example/debian"), image, "")
    )
    await asyncio.wait_for(never.asked.wait(), 10)
    with pytest.raises(Gone):
        await asyncio.wait_for(sources._pulled(at_once, parse_image_name("debian"), image, ""), 10)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


@pytest.mark.parametrize("place", ["oci:/srv/private/debian", "docker-archive:/srv/private/debian.tar"])
async def test_a_tenants_build_is_not_told_where_the_operators_mirror_is(fetch: Fetcher, place: str) -> None:
    with pytest.raises(TemplatePrepareFailure) as caught:
        await fetch("debian:12", mirrors={"debian:12": place}, by_tenant=True)
    assert caught.value.fault is TemplateFault.SOURCE_MISSING
    told = [str(caught.value), *fetch.told]
    assert not any("/srv" in line for line in told), told
    assert "ask its operator" in told[0]
    with pytest.raises(TemplatePrepareFailure, match="/srv/private"):
        await fetch("debian:12", mirrors={"debian:12": place})
    assert f"docker.io/library/debian:12 is {place} here" in fetch.told


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("debian:12", "docker.io/library/debian:12"),
        ("debian", "docker.io/library/debian:latest"),
        ("e2bdev/base", "docker.io/e2bdev/base:latest"),
        ("index.docker.io/library/debian", "docker.io/library/debian:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("registry.example:5000/team/x:1", "registry.example:5000/team/x:1"),
        (f"debian@sha256:{'a' * 64}", f"docker.io/library/debian@sha256:{'a' * 64}"),
        (f"debian:12@sha256:{'a' * 64}", f"docker.io/library/debian:12@sha256:{'a' * 64}"),
    ],
)
def test_short_names_mean_whole_ones(text: str, whole: str) -> None:
    assert str(parse_image_name(text)) == whole


@pytest.mark.parametrize("text", ["", "..", "a/../b", "a//b", "/a", "A", "a:", "a@sha256:1", "a b", "x" * 600])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="no image reference"):
        parse_image_name(text)


def test_the_longest_beginning_decides_and_a_word_is_not_cut() -> None:
    mirrors = {"docker.io/library/": "a.example/all/", "debian": "b.example/deb", "debian:12": "oci:/srv/d:12"}

    def found(name: str) -> str | None:
        place = mirrored(parse_image_name(name), mirrors)
        return None if place is None else place.place

    assert found("debian:12") == "oci:/srv/d:12"
    assert found("debian:11") == "b.example/deb:11"
    assert found("debian-slim:1") == "a.example/all/debian-slim:1"
    assert found("debian:12.5") == "b.example/deb:12.5"
    assert found("other.example/debian:12") is None


@pytest.mark.parametrize("mirrors", [{"": "x"}, {"a b": "x"}, {"debian": "oci:relative"}, {"debian": "-x y"}])
def test_a_mirror_that_can_never_be_used_is_refused(mirrors: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec, match="image mirror"):
        check_mirrors(mirrors)
