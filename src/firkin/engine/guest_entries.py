"""Entries and events as the agent sends them, checked and made the law's values. Raises `WireError`."""

from __future__ import annotations

from sys import getsizeof

from firkin.law.errors import InvalidSpec
from firkin.law.files import FileEntry, FileEvent, FileEventKind, FileType, SandboxPath
from firkin.wire import codec
from firkin.wire.codec import Object
from firkin.wire.frames import WireError

_PERMISSIONS = 0o7777
_WITH_TYPE = 0o177777
_USUAL_TEXTS = 512  # bytes


def read_entry(source: Object) -> FileEntry:
    """An entry of type OTHER keeps the type bits in its mode: nothing else tells a FIFO from a device."""
    linked = "link" in source
    try:
        file_type = FileType(codec.text(source, "type"))
        return FileEntry(
            path=SandboxPath(codec.text(source, "path")),
            file_type=file_type,
            size_bytes=codec.integer(source, "size"),
            mode=codec.integer(source, "mode") & (_WITH_TYPE if file_type is FileType.OTHER else _PERMISSIONS),
            uid=codec.integer(source, "uid"),
            gid=codec.integer(source, "gid"),
            owner=codec.text(source, "owner"),
            group=codec.text(source, "group"),
            modified_at_ns=codec.integer(source, "mtime_ns"),
            symlink_target=codec.text(source, "link") if linked else None,
            target_type=FileType(codec.text(source, "link_type")) if linked else None,
            target_mode=codec.integer(source, "link_mode") & 0o7777 if linked else None,
            metadata=codec.mapping(source, "metadata"),
        )
    except (ValueError, InvalidSpec) as error:
        raise WireError(f"not an entry: {type(error).__name__}") from None


def weight(entry: FileEntry) -> int:
    """How many entries of usual size take as much memory."""
    size = getsizeof(entry.path) + getsizeof(entry.symlink_target) + getsizeof(entry.owner) + getsizeof(entry.group)
    if entry.metadata:
        size += sum(getsizeof(name) + getsizeof(value) for name, value in entry.metadata.items())
    return 1 + size // _USUAL_TEXTS


def event_weight(event: FileEvent) -> int:
    """As `weight`."""
    return 1 + getsizeof(event.name) // _USUAL_TEXTS + (0 if event.entry is None else weight(event.entry))


def read_entries(event: Object) -> list[FileEntry]:
    return [read_entry(item) for item in _objects(event, "entries")]


def read_events(event: Object) -> list[FileEvent]:
    return [_event(item) for item in _objects(event, "events")]


def _event(source: Object) -> FileEvent:
    name = codec.text(source, "name")
    if not is_relative(name):
        raise WireError("an event's name leads out of the watched directory")
    entry = source.get("entry")
    try:
        kind = FileEventKind(codec.text(source, "kind"))
    except ValueError:
        raise WireError("an event of unknown kind") from None
    if entry is not None and not isinstance(entry, dict):
        raise WireError("an event's entry is not an object")
    return FileEvent(kind=kind, name=name, entry=None if entry is None else read_entry(entry))


def is_relative(name: str) -> bool:
    """True for a path that stays below where it starts."""
    return bool(name) and not name.startswith("/") and "\0" not in name and ".." not in name.split("/")


def _objects(source: Object, key: str) -> list[Object]:
    found = source.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise WireError(f"{key!r} is not a list of objects")
    return found
