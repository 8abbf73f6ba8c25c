"""``filesystem.Filesystem/ListDir``: short lists at once, long ones in turn.

What a directory holds is the sandbox's to say, and a list is in this process's memory until
its client has taken it. So of long ones a tenant has a few at a time and the others wait,
holding nothing. None is made into an answer in one go: others want the event loop meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from firkin.e2b.calls import RpcCall
from firkin.e2b.connect_codec import Code, RpcError
from firkin.e2b.envd_filesystem import entry_json, path_of
from firkin.e2b.long_answers import SLICE, answer_pieces, encoded
from firkin.e2b.proto_json import Message
from firkin.law.errors import FileFault, FilesystemFailure
from firkin.law.files import ListOptions, SandboxPath

LONG_AT_ONCE = 3
_SHORT = 1000
_TURN_WITHIN_S = 60.0
_MAX_DEPTH = (1 << 32) - 1


class _ListDir(Message):
    path: str = ""
    depth: int = 0


@dataclass(slots=True)
class _Line:
    """One tenant's long lists. `present`: those that have their turn or wait for it."""

    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LONG_AT_ONCE))
    present: int = 0


class Listing:
    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    async def list_dir(self, call: RpcCall) -> None:
        request = await call.unary_request(_ListDir)
        if not 0 <= request.depth <= _MAX_DEPTH:
            raise RpcError(Code.INVALID_ARGUMENT, f"depth must be from 0 to {_MAX_DEPTH}")
        path, depth = await path_of(call, request.path), request.depth or 1
        try:
            entries = await call.files.list(call.sandbox_id, path, ListOptions(depth=depth, at_most=_SHORT))
        except FilesystemFailure as error:
            if error.fault is FileFault.NOT_A_DIRECTORY:
                raise RpcError(Code.INVALID_ARGUMENT, f"path is not a directory: {path}") from error
            if error.fault is not FileFault.LIMIT:
                raise
            await self._answer_long(call, path, depth)
            return
        if len(entries) <= SLICE:
            await call.answer({"entries": [entry_json(entry) for entry in entries]})
        else:
            await _answer(call, await encoded(entries, entry_json))

    async def _answer_long(self, call: RpcCall, path: SandboxPath, depth: int) -> None:
        async with AsyncExitStack() as held:
            async with call.exchange.wanted():
                await held.enter_async_context(self._turn(call.info.owner))
                entries = await call.files.list(call.sandbox_id, path, ListOptions(depth=depth))
                pieces = await encoded(entries, entry_json)
                del entries  # it may be larger than what came of it
            await _answer(call, pieces)

    @asynccontextmanager
    async def _turn(self, owner: str) -> AsyncIterator[None]:
        line = self._lines.setdefault(owner, _Line())
        line.present += 1
        try:
            try:
                async with asyncio.timeout(_TURN_WITHIN_S):
                    await line.turns.acquire()
            except TimeoutError:
                text = f"{LONG_AT_ONCE} long lists of yours are being answered; read them, or list fewer at once"
                raise RpcError(Code.RESOURCE_EXHAUSTED, text) from None
            try:
                yield
            finally:
                line.turns.release()
        finally:
            line.present -= 1
            if not line.present:
                self._lines.pop(owner, None)


async def _answer(call: RpcCall, entries: list[bytes]) -> None:
    await answer_pieces(call.exchange, [b'{"entries":', *entries, b"}"])
