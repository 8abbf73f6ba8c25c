"""``filesystem.Filesystem``: names, entries and directories inside a sandbox; lists are in `envd_listing`."""

from __future__ import annotations

import stat
from datetime import UTC, datetime

from firkin.e2b.calls import RpcCall
from firkin.e2b.connect_codec import Code, RpcError
from firkin.e2b.guest_paths import resolve
from firkin.e2b.proto_json import Message
from firkin.law.errors import FileFault, FilesystemFailure, NotFound, ResourceKind
from firkin.law.files import FileEntry, FileType, SandboxPath

_TYPES = {FileType.FILE: "FILE_TYPE_FILE", FileType.DIRECTORY: "FILE_TYPE_DIRECTORY"}
_SPECIAL = {stat.S_IFIFO: "p", stat.S_IFSOCK: "S", stat.S_IFBLK: "D", stat.S_IFCHR: "D"}
_EARLIEST_NS = -62135596800 * 10**9
_LATEST_NS = 253402300799 * 10**9


class _Path(Message):
    path: str = ""


class _Move(Message):
    source: str = ""
    destination: str = ""


async def path_of(call: RpcCall, text: str) -> SandboxPath:
    """The absolute path that the caller's user means by `text`."""
    return resolve(text, await call.guest_user(), call.info)


async def stat_entry(call: RpcCall) -> None:
    path = await path_of(call, (await call.unary_request(_Path)).path)
    await call.answer({"entry": entry_json(await call.files.stat(call.sandbox_id, path))})


async def make_dir(call: RpcCall) -> None:
    path = await path_of(call, (await call.unary_request(_Path)).path)
    try:
        entry = await call.files.mkdir(call.sandbox_id, path, parents=True, user=call.username)
    except FilesystemFailure as error:
        if error.fault is FileFault.NOT_A_DIRECTORY:
            message = f"path already exists but it is not a directory: {path}"
            raise RpcError(Code.INVALID_ARGUMENT, message) from error
        raise
    await call.answer({"entry": entry_json(entry)})


async def move(call: RpcCall) -> None:
    request = await call.unary_request(_Move)
    source, target = await path_of(call, request.source), await path_of(call, request.destination)
    entry = await call.files.rename(call.sandbox_id, source, target, user=call.username)
    await call.answer({"entry": entry_json(entry)})


async def remove(call: RpcCall) -> None:
    """Remove a file or a whole directory. What is not there is fine."""
    path = await path_of(call, (await call.unary_request(_Path)).path)
    try:
        await call.files.remove(call.sandbox_id, path, recursive=True)
    except NotFound as error:
        if error.resource is not ResourceKind.FILE:
            raise
    await call.answer(b"{}")


def entry_json(entry: FileEntry) -> dict[str, object]:
    """An entry; a symlink shows type and mode of what it leads to, and its own size and permissions."""
    link = entry.file_type is FileType.SYMLINK
    shown = entry.target_type if link else entry.file_type
    mode = entry.target_mode if link and entry.target_mode is not None else entry.mode
    described: dict[str, object] = {
        "name": entry.name or "/",
        "type": "FILE_TYPE_UNSPECIFIED" if shown is None else _TYPES.get(shown, "FILE_TYPE_UNSPECIFIED"),
        "path": str(entry.path),
        "size": str(entry.size_bytes),
        "mode": mode & 0o777,
        "permissions": permissions(entry),
        "owner": entry.owner or str(entry.uid),
        "group": entry.group or str(entry.gid),
        "modifiedTime": _timestamp(entry.modified_at_ns),
        "metadata": dict(entry.metadata),
    }
    if link:
        described["isSymlink"] = True
        if entry.symlink_target is not None:
            described["symlinkTarget"] = entry.symlink_target
    return described


def permissions(entry: FileEntry) -> str:
    """As Go prints a file mode: ``-rw-r--r--``, ``Lrwxrwxrwx``, ``dtrwxrwxrwx``, ``prw-r--r--``, ``Dcrw-rw-rw-``."""
    mode = entry.mode
    kinds = {FileType.DIRECTORY: "d", FileType.SYMLINK: "L", FileType.OTHER: _SPECIAL.get(stat.S_IFMT(mode), "?")}
    letters = (
        (kinds.get(entry.file_type, ""), True),
        ("u", mode & stat.S_ISUID),
        ("g", mode & stat.S_ISGID),
        ("c", entry.file_type is FileType.OTHER and stat.S_ISCHR(mode)),
        ("t", mode & stat.S_ISVTX),
    )
    return ("".join(letter for letter, set_ in letters if set_) or "-") + stat.filemode(mode & 0o777)[1:]


def _timestamp(nanoseconds: int) -> str:
    """Within the years 1 to 9999, as protobuf has it: a program inside may set any time."""
    seconds, rest = divmod(max(_EARLIEST_NS, min(nanoseconds, _LATEST_NS)), 10**9)
    text = datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
    return f"{text}.{rest:09d}Z" if rest else f"{text}Z"
