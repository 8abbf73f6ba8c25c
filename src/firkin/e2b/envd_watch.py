"""Watching directories: a stream of changes, or a watcher that is asked now and then."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import msgspec

from firkin.e2b.calls import RpcCall
from firkin.e2b.connect_codec import Code, RpcError, envelope
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.envd_filesystem import entry_json, path_of
from firkin.e2b.event_streams import EventStream
from firkin.e2b.json_text import encode
from firkin.law.errors import FileFault, FilesystemFailure, NotFound
from firkin.law.files import FileEvent, FileEventKind, FileEventStream, WatchOptions

_KEEPALIVE = envelope(b'{"keepalive":{}}')
_STARTED = envelope(b'{"start":{}}')
_WITH_ENTRY = frozenset({FileEventKind.CREATE, FileEventKind.WRITE, FileEventKind.CHMOD})


class _Watch(msgspec.Struct, forbid_unknown_fields=True):
    """Protobuf's JSON allows both spellings of a field."""

    path: str = ""
    recursive: bool = False
    includeEntry: bool = False
    include_entry: bool = False
    allowNetworkMounts: bool = False
    allow_network_mounts: bool = False

    def options(self) -> WatchOptions:
        return WatchOptions(
            recursive=self.recursive,
            include_entry=self.includeEntry or self.include_entry,
            allow_network_mounts=self.allowNetworkMounts or self.allow_network_mounts,
        )


class _Watcher(msgspec.Struct, forbid_unknown_fields=True):
    watcherId: str = ""
    watcher_id: str = ""


_WATCH = msgspec.json.Decoder(_Watch)
_WATCHER = msgspec.json.Decoder(_Watcher)


@dataclass(frozen=True, slots=True)
class _Held:
    sandbox_id: str
    stream: FileEventStream


class Watching:
    """The watch calls, and the watchers that clients hold by id."""

    def __init__(self, directory: SandboxDirectory, limit: int) -> None:
        self._held: dict[str, _Held] = {}
        self._limit = limit
        directory.when_ended(self._forget)

    async def watch_dir(self, call: RpcCall) -> None:
        request = await call.stream_request(_WATCH)
        stream = await _open(call, request)
        answer: EventStream[FileEvent] = EventStream(call, stream, first=_STARTED, keepalive=_KEEPALIVE, encode=_encode)
        await answer.run()

    async def create(self, call: RpcCall) -> None:
        request = await call.unary_request(_WATCH)
        if sum(held.sandbox_id == call.sandbox_id for held in self._held.values()) >= self._limit:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"a sandbox may have {self._limit} watchers at once")
        stream = await _open(call, request)
        watcher_id = secrets.token_hex(12)
        self._held[watcher_id] = _Held(call.sandbox_id, stream)
        await call.answer({"watcherId": watcher_id})

    async def events(self, call: RpcCall) -> None:
        """All changes that were complete before the question."""
        held = self._find(call, await call.unary_request(_WATCHER))
        await call.answer({"events": [event_json(event) for event in await held.stream.drain()]})

    async def remove(self, call: RpcCall) -> None:
        request = await call.unary_request(_WATCHER)
        held = self._find(call, request)
        del self._held[request.watcherId or request.watcher_id]
        await held.stream.aclose()
        await call.answer(b"{}")

    def _find(self, call: RpcCall, request: _Watcher) -> _Held:
        watcher_id = request.watcherId or request.watcher_id
        held = self._held.get(watcher_id)
        if held is None or held.sandbox_id != call.sandbox_id:
            raise RpcError(Code.NOT_FOUND, f"watcher with id {watcher_id[:64]} not found")
        return held

    def _forget(self, sandbox_id: str) -> None:
        for watcher_id in [key for key, held in self._held.items() if held.sandbox_id == sandbox_id]:
            del self._held[watcher_id]

    async def aclose(self) -> None:
        held, self._held = self._held, {}
        for one in held.values():
            await one.stream.aclose()


async def _open(call: RpcCall, request: _Watch) -> FileEventStream:
    path = await path_of(call, request.path)
    try:
        return await call.files.watch(call.sandbox_id, path, request.options())
    except NotFound as error:
        raise RpcError(Code.NOT_FOUND, f"path {path} not found: {error}") from error
    except FilesystemFailure as error:
        if error.fault is FileFault.NOT_A_DIRECTORY:
            raise RpcError(Code.INVALID_ARGUMENT, f"path {path} is not a directory") from error
        if error.fault is FileFault.NETWORK_FILESYSTEM:
            raise RpcError(Code.INVALID_ARGUMENT, f"cannot watch path on network filesystem: {path}") from error
        raise


def event_json(event: FileEvent) -> dict[str, object]:
    described: dict[str, object] = {"name": event.name, "type": f"EVENT_TYPE_{event.kind.name}"}
    if event.entry is not None and event.kind in _WITH_ENTRY:
        described["entry"] = entry_json(event.entry)
    return described


def _encode(event: FileEvent) -> bytes:
    return envelope(encode({"filesystem": event_json(event)}))
