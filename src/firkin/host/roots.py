"""Template preparation on this machine: any source becomes one unshifted root file system of shared layers.

Each source has a module of its own; this one chooses it, bounds its time and
runs what touches strangers' bytes in a process apart (`unpacking`). The source
is only read.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from firkin.host.fingerprints import file_digest, folder_fingerprint
from firkin.host.git_roots import with_repository
from firkin.host.host_root import keep_host_root
from firkin.host.image_sources import Bench, ImageSources, RegistrySettings, existing
from firkin.host.layer_stacks import Content, LayerStacks, RootLimits, Stacked, Wishes, facts_of
from firkin.host.layer_store import LayerStore
from firkin.host.program_paths import find_program
from firkin.host.programs import program_environment, run_program
from firkin.host.recipes import build_recipe, recipe_digest
from firkin.host.unpacking import Step
from firkin.law.builds import builder_of
from firkin.law.driver import PreparedRoot, RootFilesystem
from firkin.law.errors import DeadlineExceeded, HostDiskFull, IoFailure, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import GitSource, HostSource, LocalSource, OciSource, RecipeSource, TemplateBase, TemplateSpec

_OWN_LAYERS = "layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRootPreparer:
    """The `RootPreparer` of this machine. Without `layers` each root is alone, in the folder that it is made in."""

    layers: LayerStore | None = None
    registries: RegistrySettings = field(default_factory=RegistrySettings)
    limits: RootLimits = field(default_factory=RootLimits)

    async def prepare(self, spec: TemplateSpec, into: Path, report: Callable[[str], None]) -> PreparedRoot:
        """See `RootPreparer.prepare`. `DeadlineExceeded` after `spec.timeout_s`; `HostDiskFull`."""
        async with _bounded(spec, into):
            bench = await self._bench(into.resolve(), report)
            return await _Preparation(bench, self.registries, spec).made()

    async def prepare_on(
        self, base: PreparedRoot, spec: TemplateSpec, into: Path, report: Callable[[str], None]
    ) -> PreparedRoot:
        """See `LayeringPreparer.prepare_on`: a repository. Fails as `prepare` does."""
        if not isinstance(spec.source, GitSource):
            raise TypeError(f"{spec.source!r} is a root of its own")
        async with _bounded(spec, into):
            return await with_repository(await self._bench(into.resolve(), report), base, spec.source)

    async def _bench(self, into: Path, report: Callable[[str], None]) -> Bench:
        store = self.layers
        if store is None:
            store = LayerStore(into / _OWN_LAYERS)
            await store.load()
        stacks = LayerStacks(store, into, report, self.limits)
        return Bench(store=store, facts=facts_of(store), stacks=stacks, scratch=into, report=report)


@asynccontextmanager
async def _bounded(spec: TemplateSpec, into: Path) -> AsyncIterator[None]:
    limit = asyncio.timeout(spec.timeout_s)
    try:
        async with limit:
            yield
    except TimeoutError as failure:
        if limit.expired():
            raise DeadlineExceeded("prepare template", spec.timeout_s) from failure
        raise
    except OSError as failure:
        if HostDiskFull.explains(failure):
            raise HostDiskFull("prepare template") from failure
        raise IoFailure("prepare template in", "the state folder", failure.strerror or str(failure)) from failure


class _Preparation:
    """One source on its way into the store."""

    def __init__(self, bench: Bench, registries: RegistrySettings, spec: TemplateSpec) -> None:
        self._bench = bench
        self._registries = registries
        self._spec = spec

    async def made(self) -> PreparedRoot:
        match self._spec.source:
            case HostSource():
                return await keep_host_root(self._bench.store, self._bench.scratch)
            case OciSource(reference):
                stranger = self._spec.id is not None and builder_of(self._spec.id) is not None
                images = ImageSources(self._bench, self._registries, self._spec.login, stranger=stranger)
                return _prepared(*await images.stack(reference))
            case LocalSource(path):
                return await self._local(path)
            case RecipeSource(name):
                return await self._recipe(name)
            case TemplateBase() | GitSource():
                raise TypeError("a template on another one is made by whoever knows the other one")

    async def _local(self, path: str) -> PreparedRoot:
        source = os.path.realpath(existing(path))
        if not os.path.isdir(source):
            self._bench.report(f"reading {source}")
            digest = await file_digest(source, self._bench.facts)
            content = Content(key=f"tar {digest}", steps=(Step(kind="tar", source=source, digest=digest),))
            return _prepared(await self._bench.stacks.stack([content], Wishes()), digest)
        for ours in (self._bench.scratch, self._bench.store.directory.resolve()):
            if Path(source) in (ours, *ours.parents):
                detail = f"{source} holds the folder that the template is made in; copy it elsewhere first"
                raise TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, detail)
        return await self._folder(source)

    async def _folder(self, source: str) -> PreparedRoot:
        fingerprint = await folder_fingerprint(source)

        async def copy(into: Path) -> None:
            await self._copy(source, into)
            if await folder_fingerprint(source) != fingerprint and "+" not in fingerprint:
                detail = f"{source} changed while it was copied; prepare it again when it is at rest"
                raise TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, detail)

        content = Content(key=fingerprint, fill=copy, steps=(Step(kind="sweep"),))
        return _prepared(await self._bench.stacks.stack([content], Wishes()), fingerprint)

    async def _copy(self, source: str, into: Path) -> None:
        self._bench.report(f"copying {source}")
        tool = find_program("cp", package="coreutils")
        argv = [tool, "--archive", "--reflink=auto", "--one-file-system", "--", f"{source}/.", str(into)]
        done = await run_program(argv, env=program_environment(self._bench.scratch), report=self._bench.report)
        if done.exit_code != 0:
            raise TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, f"cannot copy {source}: {done.last_line}")

    async def _recipe(self, name: str) -> PreparedRoot:
        digest = recipe_digest(name)
        key = f"{digest} {secrets.token_hex(8)}" if self._spec.force else digest

        async def build(into: Path) -> None:
            await build_recipe(into, self._bench.scratch, self._bench.report)

        content = Content(key=key, fill=build, steps=(Step(kind="sweep"),))
        return _prepared(await self._bench.stacks.stack([content], Wishes(plain_profile=True)), digest)


def _prepared(made: Stacked, digest: str) -> PreparedRoot:
    return PreparedRoot(
        root=RootFilesystem(base=made.layers[0], layers=made.layers[1:]),
        config=made.config,
        size_bytes=made.size_bytes,
        digest=digest,
    )
