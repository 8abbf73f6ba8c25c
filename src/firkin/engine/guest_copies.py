"""Files and trees between host and sandbox, in constant memory.

What the sandbox says about names is not believed: on the host every step goes
through a descriptor of the directory before, follows no symlink, and accepts
one plain name at a time, so nothing is written outside the target.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from firkin.law.errors import (
    AlreadyExists,
    FileFault,
    FilesystemFailure,
    IoFailure,
    NotFound,
    ResourceKind,
)
from firkin.law.files import (
    CopyOptions,
    FileEntry,
    FileType,
    ListOptions,
    ReadOptions,
    SandboxPath,
    WriteOptions,
)

if TYPE_CHECKING:
    from firkin.engine.guest_files import GuestFiles

P = ParamSpec("P")
T = TypeVar("T")

_PIECE = 1 << 20
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class GuestCopies:
    def __init__(self, files: GuestFiles) -> None:
        self._files = files

    async def copy_in(self, host: Path, guest: SandboxPath, options: CopyOptions) -> FileEntry:
        """Raises `AlreadyExists` for a taken name unless `overwrite`; directories are merged then."""
        todo = [(host, guest)]
        while todo:
            source, target = todo.pop()
            todo += await self._put(source, target, options)
        return await self._files.stat(guest)

    async def _put(self, source: Path, target: SandboxPath, options: CopyOptions) -> list[tuple[Path, SandboxPath]]:
        """Copy one thing; what is left to do when it is a directory."""
        status = await _on_host(source, os.lstat, source)
        present = await self._present(target)
        mode = stat.S_IMODE(status.st_mode)
        if present is not None and not options.overwrite:
            raise AlreadyExists("copy in", ResourceKind.FILE, target)
        if stat.S_ISDIR(status.st_mode):
            if present is None:
                await self._files.mkdir(target, parents=True, user=options.user, mode=mode)
            names = await _on_host(source, os.listdir, source)
            return [(source / name, target.below(name)) for name in sorted(names)]
        if present is not None and present.file_type is FileType.DIRECTORY:
            raise _clash("copy in", target)
        if present is not None:  # a new file gets the mode asked for; an old one would keep its own
            await self._files.remove(target)
        if stat.S_ISLNK(status.st_mode):
            await self._files.symlink(target, await _on_host(source, os.readlink, source), user=options.user)
        elif stat.S_ISREG(status.st_mode):
            await self._files.write(target, _host_bytes(source), WriteOptions(user=options.user, mode=mode))
        else:
            raise IoFailure("copy", str(source), "it is no file, directory or symlink")
        return []

    async def _present(self, target: SandboxPath) -> FileEntry | None:
        try:
            return await self._files.stat(target)
        except NotFound:
            return None

    async def copy_out(self, guest: SandboxPath, host: Path, options: CopyOptions) -> None:
        """As `copy_in`, the other way. Permission bits come along, set-user-id bits and owners do not."""
        entry = await self._files.stat(guest)
        parent = await _on_host(host, os.open, host.absolute().parent, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        folders = [parent]
        pending = [[(entry, guest, host.name)]]
        modes: list[int] = []
        try:
            while pending:
                if not pending[-1]:
                    pending.pop()
                    folder = folders.pop()
                    if modes:
                        await _on_host(host, os.fchmod, folder, modes.pop())
                    os.close(folder)
                    continue
                entry, path, name = pending[-1].pop()
                if entry.file_type is not FileType.DIRECTORY:
                    await self._get(entry, path, folders[-1], name, options)
                    continue
                children = await self._children(path)
                folders.append(await asyncio.to_thread(_make_folder, folders[-1], name, options.overwrite))
                pending.append(children)
                modes.append(entry.mode & 0o777)
        finally:
            for folder in folders:
                os.close(folder)

    async def _children(self, path: SandboxPath) -> list[tuple[FileEntry, SandboxPath, str]]:
        entries = await self._files.list(path, ListOptions(depth=1))
        found = []
        for entry in entries:
            name = entry.name
            if name in ("", ".", "..") or "/" in name or entry.path != path.below(name):
                raise FilesystemFailure(
                    "copy out", FileFault.OTHER, f"the sandbox told of an impossible name below {path}", path=path
                )
            found.append((entry, path.below(name), name))
        return found

    async def _get(self, entry: FileEntry, path: SandboxPath, folder: int, name: str, options: CopyOptions) -> None:
        if entry.file_type is FileType.SYMLINK:
            text = await self._files.link_text(path)
            await asyncio.to_thread(_make_symlink, folder, name, text, options.overwrite)
        elif entry.file_type is FileType.FILE:
            await self._get_file(path, folder, name, options)
        else:
            raise FilesystemFailure(
                "copy out", FileFault.NOT_REGULAR, f"{path} is no file, directory or symlink", path=path
            )

    async def _get_file(self, path: SandboxPath, folder: int, name: str, options: CopyOptions) -> None:
        entry, data = await self._files.open_read(path, ReadOptions())
        try:
            fd = await asyncio.to_thread(_make_file, folder, name, options.overwrite)
            try:
                async for chunk in data:
                    await _on_host(path, _write_all, fd, chunk)
                await _on_host(path, _end_here, fd)
                await _on_host(path, os.fchmod, fd, entry.mode & 0o777)
            finally:
                os.close(fd)
        finally:
            await data.aclose()  # type: ignore[attr-defined]  # ours has one


async def _host_bytes(source: Path) -> AsyncIterator[bytes]:
    fd = await _on_host(source, os.open, source, _READ_FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise IoFailure("copy", str(source), "it is no longer a regular file")
        while data := await _on_host(source, os.read, fd, _PIECE):
            yield data
    finally:
        os.close(fd)


async def _on_host(what: object, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A blocking call on the host's files, beside the event loop. Raises `IoFailure`."""
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except OSError as error:
        raise IoFailure("copy", str(what), os.strerror(error.errno or 0)) from error


def _write_all(fd: int, data: bytes) -> None:
    """Zeros become a hole: a file that takes nothing inside must not fill the host."""
    if data.count(0) == len(data):
        os.lseek(fd, len(data), os.SEEK_CUR)
        return
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _end_here(fd: int) -> None:
    os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))


def _make_folder(folder: int, name: str, overwrite: bool) -> int:
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        if not overwrite:
            raise AlreadyExists("copy out", ResourceKind.FILE, name) from None
    except OSError as error:
        raise _host_failure(name, error) from error
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    except OSError as error:
        raise _host_failure(name, error) from error


def _make_file(folder: int, name: str, overwrite: bool) -> int:
    try:
        _make_way(folder, name, overwrite)
        return os.open(name, _NEW_FLAGS, 0o600, dir_fd=folder)
    except OSError as error:
        raise _host_failure(name, error) from error


def _make_symlink(folder: int, name: str, text: str, overwrite: bool) -> None:
    try:
        _make_way(folder, name, overwrite)
        os.symlink(text, name, dir_fd=folder)
    except OSError as error:
        raise _host_failure(name, error) from error


def _make_way(folder: int, name: str, overwrite: bool) -> None:
    try:
        status = os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return
    if not overwrite:
        raise AlreadyExists("copy out", ResourceKind.FILE, name)
    if stat.S_ISDIR(status.st_mode):
        raise _clash("copy out", name)
    os.unlink(name, dir_fd=folder)


def _clash(operation: str, path: str) -> FilesystemFailure:
    return FilesystemFailure(
        operation, FileFault.IS_A_DIRECTORY, f"{path} is a directory where a file has to go", path=path
    )


def _host_failure(name: str, error: OSError) -> IoFailure:
    return IoFailure("copy to", name, os.strerror(error.errno or 0))
