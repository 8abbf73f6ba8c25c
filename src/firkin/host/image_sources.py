"""Images, wherever they are: layout folders, archives, registries and their mirrors.

What an image holds is known by its manifest. For an archive, and for a name that
is pinned by a digest, what was read once is remembered, so that neither is
unpacked nor asked for again while the layers are there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from firkin.host.archives import corrupt
from firkin.host.facts import Facts
from firkin.host.fingerprints import file_digest
from firkin.host.image_manifests import Image, LayerBlob
from firkin.host.image_names import LOCAL, ImageName, Mirrored, check_mirrors, mirrored, parse_image_name
from firkin.host.images import Layout
from firkin.host.layer_stacks import Content, LayerStacks, Stacked, Wishes
from firkin.host.layer_store import LayerStore, layer_key
from firkin.host.programs import Report
from firkin.host.pulls import Pull
from firkin.host.registries import TAG, Access, Registry, convert_archive, login_file
from firkin.host.tenant_registries import TenantRegistries
from firkin.host.unpacking import Step
from firkin.law.errors import InvalidReason, InvalidSpec, IoFailure, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import RegistryLogin

_log = logging.getLogger("firkin.host")
_LAYOUT = "layout"
PULLS = ".pulls"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """`mirrors`: where names that begin so are instead. `auth_file`: credentials, as `skopeo login` writes them.

    `tenants` is None where whoever asks is the operator.
    """

    mirrors: Mapping[str, str] = field(default_factory=dict)
    auth_file: Path | None = None
    tenants: TenantRegistries | None = None

    def __post_init__(self) -> None:
        check_mirrors(self.mirrors)

    def require_for_tenants(self, reference: str) -> None:
        """`InvalidSpec` unless tenants may name that image. What has a mirror is not asked for where it is named."""
        name = parse_image_name(reference)
        if self.tenants is None or self.tenants.know(name) or mirrored(name, self.mirrors) is not None:
            return
        registry = name.repository.partition("/")[0]
        detail = (
            f"fromImage names the registry {registry}, and this server asks only those of its setting"
            f" tenant_registries for API keys: {', '.join(self.tenants.registries) or 'none'}"
        )
        raise InvalidSpec("prepare template", InvalidReason.MISSING_TEMPLATE, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What one preparation works with. `scratch` is empty and on the disk of the store."""

    store: LayerStore
    facts: Facts
    stacks: LayerStacks
    scratch: Path
    report: Report


class ImageSources:
    """Images for one preparation. One for a `stranger` is not told where mirrors are, and has what tenants may."""

    def __init__(
        self, bench: Bench, settings: RegistrySettings, login: RegistryLogin | None, *, stranger: bool = False
    ) -> None:
        self._bench = bench
        self._settings = settings
        self._login = login
        self._stranger = stranger
        self._tenants = settings.tenants if stranger else None

    async def stack(self, reference: str) -> tuple[Stacked, str]:
        """The layers of the image, and its digest."""
        if self._tenants is not None:
            self._settings.require_for_tenants(reference)
        transport, _, rest = reference.partition(":")
        if transport in LOCAL:
            return await self._local(transport, rest)
        name = parse_image_name(reference)
        instead = mirrored(name, self._settings.mirrors)
        if instead is None:
            return await self._remote(name, self._login, only_tls=self._tenants is not None)
        if not self._stranger:
            self._bench.report(f"{name} is {instead.place} here")
            return await self._from_mirror(instead, name.digest)
        self._bench.report(f"{name} is from this server's mirror")
        quiet = ImageSources(replace(self._bench, report=_log.info), self._settings, None, stranger=True)
        with _untold(name):
            return await quiet._from_mirror(instead, name.digest)

    async def _from_mirror(self, instead: Mirrored, pinned: str) -> tuple[Stacked, str]:
        if instead.is_local:
            transport, _, rest = instead.place.partition(":")
            return await self._local(transport, rest, pinned=pinned)
        return await self._remote(parse_image_name(instead.place), None)  # the login is for the registry that was named

    async def _local(self, transport: str, rest: str, pinned: str = "") -> tuple[Stacked, str]:
        path, tag = split_tag(rest)
        path = existing(path)
        if transport != "oci":
            return await self._archive(transport, path, tag, pinned)
        return await self._layout(Layout(path), tag, pinned)

    async def _layout(self, layout: Layout, tag: str, pinned: str) -> tuple[Stacked, str]:
        image = await asyncio.to_thread(layout.image, tag, digest=pinned)
        return await self._made(image, layout.blobs), image.digest

    async def _archive(self, transport: str, path: str, tag: str, pinned: str) -> tuple[Stacked, str]:
        self._bench.report(f"reading {path}")
        digest = await file_digest(path, self._bench.facts)
        key = layer_key(transport, digest, tag, pinned)
        image = self._remembered(key)
        if image is not None:
            return await self._made(image, ""), image.digest
        folder = self._bench.scratch / _LAYOUT
        folder.mkdir()
        if transport == "oci-archive":
            await self._bench.stacks.unpack(path, digest, folder)
        else:
            await convert_archive(path + (f":{tag}" if tag else ""), folder, self._bench.report)
        image = await asyncio.to_thread(Layout(str(folder)).image, tag if transport == "oci-archive" else TAG)
        if pinned and image.digest != pinned:
            raise corrupt(f"{path} holds {image.digest}, not {pinned}")
        made = await self._made(image, str(folder / "blobs"))
        self._remember(key, image)
        await asyncio.to_thread(shutil.rmtree, folder)
        return made, image.digest

    async def _remote(
        self, name: ImageName, login: RegistryLogin | None, *, only_tls: bool = False
    ) -> tuple[Stacked, str]:
        # what one caller's password opened is not another's to have for the knowledge of a digest
        alone = self._tenants is not None and not self._tenants.use_auth_file
        operators = None if alone else self._operators()
        kind = "pinned, by nobody" if alone else "pinned"
        key = layer_key(kind, str(name)) if name.digest and login is None else ""
        whose = _whose(name, login, operators)
        image = self._remembered(key, whose) if key else None
        if image is not None:
            return await self._made(image, "", whose), image.digest
        given = login_file(login, name, self._bench.scratch) if login is not None else nullcontext(operators)
        with given as auth_file:
            access = Access(auth_file=auth_file, alone=alone, only_tls=only_tls)
            registry = Registry(self._bench.scratch, self._bench.report, access)
            image = await registry.image(name)
            made = await self._pulled(registry, name, image, whose)
        if key:
            self._remember(key, image)
        return made, image.digest

    def _operators(self) -> Path | None:
        found = self._settings.auth_file
        return found if found is not None and found.exists() else None

    async def _pulled(self, registry: Registry, name: ImageName, image: Image, whose: str) -> Stacked:
        """Its blobs are fetched by one at a time; who waited finds the layers."""
        bench, apart = self._bench, whose
        if self._stranger:  # nobody waits for the registry of another, which may serve the same image and never end
            apart = layer_key("registry", name.repository.partition("/")[0], whose)
        pull = Pull(bench.store.directory / PULLS, image, apart)
        contents = layer_contents(image, str(pull.blobs), whose)
        async with bench.store.making(layer_key("pull", image.digest, apart)):
            with bench.stacks.holding(contents):
                if not bench.stacks.can_make(contents, wishes_of(image)):
                    present = [image.layers[at] for at in bench.stacks.present(contents)]
                    await pull.fetch(registry, name, bench.scratch, present)
                made = await self._made(image, str(pull.blobs), whose)
            await pull.done()
        return made

    async def _made(self, image: Image, blobs: str, whose: str = "") -> Stacked:
        return await self._bench.stacks.stack(layer_contents(image, blobs, whose), wishes_of(image))

    def _remembered(self, key: str, whose: str = "") -> Image | None:
        """The image, if its layers are here."""
        fact = self._bench.facts.get("image", key)
        if fact is None:
            return None
        image = Image(**{**fact, "layers": tuple(LayerBlob(**layer) for layer in fact["layers"])})
        return image if self._bench.stacks.can_make(layer_contents(image, "", whose), wishes_of(image)) else None

    def _remember(self, key: str, image: Image) -> None:
        self._bench.facts.put("image", key, asdict(image))


@contextmanager
def _untold(name: ImageName) -> Iterator[None]:
    """What fails at a mirror, for whoever may not know where that is. The log says it whole."""
    try:
        yield
    except (TemplatePrepareFailure, IoFailure) as failure:
        _log.warning("mirror failed image=%s error=%s", name, failure)
        detail = f"{name} cannot be had from this server's mirror; ask its operator"
        fault = failure.fault if isinstance(failure, TemplatePrepareFailure) else TemplateFault.SOURCE_CORRUPT
        raise TemplatePrepareFailure(fault, detail, retry=failure.retry) from failure


def _whose(name: ImageName, login: RegistryLogin | None, auth_file: Path | None) -> str:
    """Whose the layers are that are pulled so: empty for everybody's, which nobody needed a password for.

    Layers are found by digests that an image merely claims for itself. Whoever has seen
    those of a private image would have its files with an image of his own, from any registry.
    """
    registry = name.repository.partition("/")[0]
    if login is not None:
        return layer_key("login", registry, login.username, login.password)
    return layer_key("auth file", registry) if auth_file is not None else ""


def layer_contents(image: Image, blobs: str, whose: str = "") -> list[Content]:
    """`whose` is part of the lowest one's key, and with it of all that lie on it."""
    keys = [layer.unpacked for layer in image.layers]
    if whose and keys:
        keys[0] = f"{whose} {keys[0]}"
    return [
        Content(key=key, steps=(Step(kind="blob", source=blobs, digest=layer.digest, unpacked=layer.unpacked),))
        for key, layer in zip(keys, image.layers, strict=True)
    ]


def wishes_of(image: Image) -> Wishes:
    return Wishes(user=image.user, workdir=image.workdir, env=image.env)


def split_tag(rest: str) -> tuple[str, str]:
    """``FOLDER:TAG``; a colon inside the path's folders is the path's."""
    path, colon, tag = rest.rpartition(":")
    return (path, tag) if colon and "/" not in tag else (rest, "")


def existing(path: str) -> str:
    """`path`, which must be absolute (ours is another working directory than the caller's), exist and be readable."""
    if "\0" in path or not path.startswith("/"):
        raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, f"{path!r} is no absolute path")
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        raise TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, f"{path} is neither a folder nor a file")
    if not os.access(path, os.R_OK):
        why = "cannot be read" if os.path.lexists(path) else os.strerror(errno.ENOENT).lower()
        raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, f"{path}: {why}")
    return os.path.abspath(path)
