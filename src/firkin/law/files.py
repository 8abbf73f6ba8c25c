"""Files inside a sandbox."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.processes import check_user

MAX_PATH_BYTES = 4095
MAX_MODE = 0o7777


class SandboxPath(str):
    """An absolute path inside a sandbox: no NUL, at most 4,095 bytes (Linux PATH_MAX less its NUL).

    ``..`` is allowed: the agent resolves it inside the sandbox's own root, which
    it cannot leave. Raises `InvalidSpec` (`INVALID_PATH`).
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not text:
            raise _invalid("the path is empty")
        if "\0" in text:
            raise _invalid("the path contains a NUL character")
        if not text.startswith("/"):
            raise _invalid(f"the path {text[:64]!r} is not absolute; it must start with '/'")
        if len(text.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
            raise _invalid(f"the path is longer than {MAX_PATH_BYTES} bytes")
        return super().__new__(cls, text)

    @property
    def name(self) -> str:
        return posixpath.basename(self)

    @property
    def parent(self) -> SandboxPath:
        return SandboxPath(posixpath.dirname(self.rstrip("/")) or "/")

    def below(self, *parts: str) -> SandboxPath:
        return SandboxPath(posixpath.join(self, *parts))


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("check path", InvalidReason.INVALID_PATH, detail)


class FileType(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One name in a directory, never following it.

    For a symlink, `symlink_target` is the fully resolved path and `target_type`
    and `target_mode` describe what it leads to; all three are None when it leads
    nowhere. `mode` holds the twelve permission bits only.
    """

    path: SandboxPath
    file_type: FileType
    size_bytes: int
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    owner: str = ""
    group: str = ""
    modified_at_ns: int = 0
    symlink_target: str | None = None
    target_type: FileType | None = None
    target_mode: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """`length` None reads to the end. Raises `InvalidSpec` for a negative one, and for a negative offset."""

    offset: int = 0
    length: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("offset", self.offset), ("length", self.length)):
            if value is not None and value < 0:
                detail = f"the {name} is {value}; it must not be below 0"
                raise InvalidSpec("read a file", InvalidReason.INVALID_RANGE, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How to write a file.

    `user` owns the file and every directory made for it; None means root. An
    existing file is replaced when all bytes have arrived and not before, keeping
    its mode (one with several hard links is written in place), or appended to.
    `metadata` replaces all of the file's metadata when it is not None. `mode` is
    the twelve permission bits of a new file, set-user-id among them. Raises
    `InvalidSpec` for what is no mode and for an empty user.
    """

    user: str | None = None
    append: bool = False
    mode: int = 0o644
    create_parents: bool = True
    metadata: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_user("write a file", self.user)
        if not 0 <= self.mode <= MAX_MODE:
            detail = f"{self.mode} is not a file's mode; it must be between 0 and 0o{MAX_MODE:o}"
            raise InvalidSpec("write a file", InvalidReason.INVALID_MODE, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """`depth` 1 lists the directory itself; None has no limit.

    A list of more than `at_most` entries fails (`LIMIT`); None is as many as there may be. One with long names
    counts as several.
    """

    depth: int | None = 1
    at_most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    overwrite: bool = False
    user: str | None = None

    def __post_init__(self) -> None:
        check_user("copy a file", self.user)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """`held`: the watch outlives pauses that keep the memory, so it must be closed even after one."""

    recursive: bool = False
    include_entry: bool = False
    allow_network_mounts: bool = False
    held: bool = False


class FileEventKind(StrEnum):
    CREATE = "create"
    WRITE = "write"
    REMOVE = "remove"
    RENAME = "rename"
    CHMOD = "chmod"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEvent:
    """A change below a watched directory; `name` is relative to it.

    `entry` is set when it was asked for and the file still existed.
    """

    kind: FileEventKind
    name: str
    entry: FileEntry | None = None


class FileEventStream(Protocol):
    """Events until `aclose`. The watch is in force when the stream is returned.

    What nobody asks for waits in the sandbox, up to a limit. What comes after that
    is lost, and told as a `FilesystemFailure` (`LIMIT`) after all that was kept.
    """

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> FileEvent: ...

    async def drain(self) -> list[FileEvent]:
        """Every event of changes that were complete before this call, without waiting for more.

        Half a million at most; what is left then comes with the next call.
        """
        ...

    async def page(self) -> tuple[list[FileEvent], int]:
        """As `drain`, but no more than a few hundred at once, and how many are left."""
        ...

    async def aclose(self) -> None: ...
