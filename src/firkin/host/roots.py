"""Template preparation on this machine: any source becomes one unshifted root file system.

Each source has a module of its own; this one chooses it, bounds its time and
runs what touches strangers' bytes in a process apart (`unpacking`). The source
is only read.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from firkin.host.host_root import build_host_root
from firkin.host.programs import Report, find_program, program_environment, run_program
from firkin.host.recipes import build_recipe
from firkin.host.registries import TAG, convert_archive, fetch_image
from firkin.host.unpacking import Job, Unpacked, decode_answer
from firkin.law.driver import PreparedRoot, RootFilesystem
from firkin.law.errors import DeadlineExceeded, IoFailure, TemplateFault, TemplatePrepareFailure
from firkin.law.templates import GitSource, HostSource, LocalSource, OciSource, RecipeSource, TemplateBase, TemplateSpec

_ROOT = "rootfs"
_LAYOUT = "layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class RootLimits:
    """The most that a source may unpack to."""

    max_bytes: int = 64 << 30
    max_entries: int = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRootPreparer:
    """The `RootPreparer` of this machine."""

    limits: RootLimits = field(default_factory=RootLimits)

    async def prepare(self, spec: TemplateSpec, into: Path, report: Callable[[str], None]) -> PreparedRoot:
        """See `RootPreparer.prepare`. `DeadlineExceeded` after `spec.timeout_s`; `IoFailure` when the disk is full."""
        work = _Preparation(into.resolve(), report, self.limits)
        limit = asyncio.timeout(spec.timeout_s)
        try:
            async with limit:
                return await work.of(spec)
        except TimeoutError as failure:
            if limit.expired():
                raise DeadlineExceeded("prepare template", spec.timeout_s) from failure
            raise
        except OSError as failure:
            raise IoFailure("prepare template in", str(into), failure.strerror or str(failure)) from failure


class _Preparation:
    """One source on its way into one folder."""

    def __init__(self, into: Path, report: Report, limits: RootLimits) -> None:
        self._into = into
        self._root = into / _ROOT
        self._layout = into / _LAYOUT
        self._report = report
        self._limits = limits

    async def of(self, spec: TemplateSpec) -> PreparedRoot:
        self._root.mkdir(mode=0o755)
        match spec.source:
            case HostSource():
                return await self._host()
            case OciSource(reference):
                return self._prepared(await self._image(reference))
            case LocalSource(path):
                return self._prepared(await self._local(path))
            case RecipeSource(name):
                return self._prepared(await self._recipe(name))
            case TemplateBase():
                raise TypeError("a template on another one is made by whoever knows the other one")
            case GitSource():
                detail = "templates from git repositories cannot be prepared here"
                raise TemplatePrepareFailure(TemplateFault.TOOL_MISSING, detail)

    def _prepared(self, done: Unpacked) -> PreparedRoot:
        return PreparedRoot(
            root=RootFilesystem(base=str(self._root)),
            config=done.config,
            size_bytes=done.size_bytes,
            digest=done.digest,
        )

    async def _host(self) -> PreparedRoot:
        made = await build_host_root(self._root)
        root = RootFilesystem(base=str(self._root), shared=made.shared, hidden=made.hidden)
        return PreparedRoot(root=root, config=made.config, size_bytes=_file_bytes(self._root), digest=made.digest)

    async def _image(self, reference: str) -> Unpacked:
        transport, _, rest = reference.partition(":")
        match transport:
            case "oci":
                path, tag = _split_tag(rest)
                return await self._unpack("layout", source=_existing(path), tag=tag)
            case "oci-archive":
                path, tag = _split_tag(rest)
                self._layout.mkdir()
                return await self._unpack("layout-archive", source=_existing(path), tag=tag)
            case "docker-archive":
                path, tag = _split_tag(rest)
                await convert_archive(_existing(path) + (f":{tag}" if tag else ""), self._layout, self._report)
            case _:
                await fetch_image(reference, self._layout, self._report)
        done = await self._unpack("layout", source=str(self._layout), tag=TAG)
        await asyncio.to_thread(shutil.rmtree, self._layout)
        return done

    async def _local(self, path: str) -> Unpacked:
        source = os.path.realpath(_existing(path))
        if not os.path.isdir(source):
            return await self._unpack("tar", source=source)
        if Path(source) in (self._into, *self._into.parents):
            detail = f"{source} holds the folder that the template is made in; copy it elsewhere first"
            raise TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, detail)
        await self._copy(source)
        done = await self._unpack("fit")
        status = os.stat(source)
        return _with_digest(done, f"folder:{source}:{status.st_mtime_ns}")

    async def _copy(self, source: str) -> None:
        self._report(f"copying {source}")
        tool = find_program("cp", package="coreutils")
        argv = [tool, "--archive", "--reflink=auto", "--one-file-system", "--", f"{source}/.", str(self._root)]
        done = await run_program(argv, env=program_environment(self._into), report=self._report)
        if done.exit_code != 0:
            raise TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, f"cannot copy {source}: {done.last_line}")

    async def _recipe(self, name: str) -> Unpacked:
        digest = await build_recipe(name, self._root, self._report)
        return _with_digest(await self._unpack("fit", plain_profile=True), digest)

    async def _unpack(self, kind: str, *, source: str = "", tag: str = "", plain_profile: bool = False) -> Unpacked:
        job = Job(
            kind=kind,
            root=str(self._root),
            source=source,
            tag=tag,
            scratch=str(self._layout),
            max_bytes=self._limits.max_bytes,
            max_entries=self._limits.max_entries,
            plain_profile=plain_profile,
        )
        argv = [sys.executable, "-I", "-m", "firkin.host.unpacking"]
        done = await run_program(argv, env=program_environment(self._into), stdin=job.encode(), report=self._report)
        if done.exit_code != 0:
            raise IoFailure("prepare template from", source or str(self._root), done.last_line)
        return decode_answer(done.stdout)


def _split_tag(rest: str) -> tuple[str, str]:
    """``FOLDER:TAG``; a colon inside the path's folders is the path's."""
    path, colon, tag = rest.rpartition(":")
    return (path, tag) if colon and "/" not in tag else (rest, "")


def _existing(path: str) -> str:
    """The absolute path of what must exist and be readable."""
    if "\0" in path or not path:
        raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, f"{path!r} is no path")
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        raise TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, f"{path} is neither a folder nor a file")
    if not os.access(path, os.R_OK):
        why = "cannot be read" if os.path.lexists(path) else os.strerror(errno.ENOENT).lower()
        raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, f"{path}: {why}")
    return os.path.abspath(path)


def _with_digest(done: Unpacked, digest: str) -> Unpacked:
    return Unpacked(config=done.config, size_bytes=done.size_bytes, digest=digest)


def _file_bytes(root: Path) -> int:
    return sum(os.lstat(os.path.join(path, name)).st_blocks * 512 for path, _, names in os.walk(root) for name in names)
