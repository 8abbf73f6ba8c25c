"""Watching directories: a stream of changes, or a watcher that is asked now and then."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firkin.e2b.calls import RpcCall
from firkin.e2b.connect_codec import Code, RpcError, envelope
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.envd_filesystem import entry_json, path_of
from firkin.e2b.event_streams import EventStream
from firkin.e2b.exchange import JSON
from firkin.e2b.json_text import encode
from firkin.e2b.proto_json import Message
from firkin.law.errors import FileFault, FilesystemFailure, NotFound, ResourceKind
from firkin.law.files import FileEvent, FileEventKind, FileEventStream, WatchOptions

_KEEPALIVE = envelope(b'{"keepalive":{}}')
_STARTED = envelope(b'{"start":{}}')
_WITH_ENTRY = frozenset({FileEventKind.CREATE, FileEventKind.WRITE, FileEventKind.CHMOD})


class _Watch(Message):
    """Protobuf's JSON allows both spellings of a field."""

    path: str = ""
    recursive: bool = False
    includeEntry: bool = False
    include_entry: bool = False
    allowNetworkMounts: bool = False
    allow_network_mounts: bool = False

    def options(self, *, held: bool) -> WatchOptions:
        return WatchOptions(
            held=held,
            recursive=self.recursive,
            include_entry=self.includeEntry or self.include_entry,
            allow_network_mounts=self.allowNetworkMounts or self.allow_network_mounts,
        )


class _Watcher(Message):
    watcherId: str = ""
    watcher_id: str = ""

    @property
    def id(self) -> str:
        return self.watcherId or self.watcher_id


@dataclass(frozen=True, slots=True)
class _Held:
    sandbox_id: str
    stream: FileEventStream


class Watching:
    """The watch calls, and the watchers that clients hold by id.

    A watcher lives as long as its sandbox does, and on through a pause that keeps the memory.
    """

    def __init__(self, directory: SandboxDirectory, limit: int) -> None:
        self._held: dict[str, _Held] = {}
        self._making: list[str] = []
        self._limit = limit
        directory.when_over(self._forget)

    async def watch_dir(self, call: RpcCall) -> None:
        request = await call.stream_request(_Watch)
        stream = await _open(call, request, held=False)
        answer: EventStream[FileEvent] = EventStream(call, stream, first=_STARTED, keepalive=_KEEPALIVE, encode=_encode)
        await answer.run()

    async def create(self, call: RpcCall) -> None:
        request = await call.unary_request(_Watch)
        watcher_id = secrets.token_hex(12)
        with self._room_for_one(call.sandbox_id):
            self._held[watcher_id] = _Held(call.sandbox_id, await _open(call, request, held=True))
        await call.answer({"watcherId": watcher_id})

    @contextmanager
    def _room_for_one(self, sandbox_id: str) -> Iterator[None]:
        """Those that are being made count, too. Raises `RpcError`."""
        held = sum(one.sandbox_id == sandbox_id for one in self._held.values())
        if held + self._making.count(sandbox_id) >= self._limit:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"a sandbox may have {self._limit} watchers at once")
        self._making.append(sandbox_id)
        try:
            yield
        finally:
            self._making.remove(sandbox_id)

    async def events(self, call: RpcCall) -> None:
        """All changes that were complete before the question, page by page: there may be very many."""
        request = await call.unary_request(_Watcher)
        stream = self._find(call, request).stream
        try:
            events, left = await stream.page()
        except NotFound as error:
            if error.resource is not ResourceKind.FILE:
                raise
            self._held.pop(request.id, None)  # it belonged to an earlier life of the sandbox
            raise _missing(request.id) from error
        exchange, before = call.exchange, b'{"events":['
        await exchange.start(200, [JSON])
        while events:
            await exchange.write(before + b",".join(encode(event_json(event)) for event in events))
            before = b","
            events = (await stream.page())[0] if left > 0 else []
            left -= len(events)
        await exchange.write((b"" if before == b"," else before) + b"]}", more=False)

    async def remove(self, call: RpcCall) -> None:
        request = await call.unary_request(_Watcher)
        held = self._find(call, request)
        del self._held[request.id]
        await held.stream.aclose()
        await call.answer(b"{}")

    def _find(self, call: RpcCall, request: _Watcher) -> _Held:
        held = self._held.get(request.id)
        if held is None or held.sandbox_id != call.sandbox_id:
            raise _missing(request.id)
        return held

    def _forget(self, sandbox_id: str) -> None:
        for watcher_id in [key for key, held in self._held.items() if held.sandbox_id == sandbox_id]:
            del self._held[watcher_id]

    async def aclose(self) -> None:
        held, self._held = self._held, {}
        for one in held.values():
            await one.stream.aclose()


def _missing(watcher_id: str) -> RpcError:
    return RpcError(Code.NOT_FOUND, f"watcher with id {watcher_id[:64]} not found")


async def _open(call: RpcCall, request: _Watch, *, held: bool) -> FileEventStream:
    path = await path_of(call, request.path)
    try:
        return await call.files.watch(call.sandbox_id, path, request.options(held=held))
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
