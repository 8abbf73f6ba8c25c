"""The server's end of a gateway: starts it, tells it what holds, and starts another when it dies.

The listening sockets are the server's, so connections made while there is no
gateway wait for the next one; nothing goes out meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any  # the JSON edge of the control socket

from firkin.gateway.denials import Denial, decode_denial
from firkin.gateway.orders import SandboxOrder, Setup, encode_order, encode_setup
from firkin.law.errors import BackendFailure
from firkin.lifetimes import Children, finish

_START = "import sys; sys.path[:0] = {paths!r}; from firkin.gateway.process import main; main({fd}, {parent})"
_READY_WITHIN_S = 15.0
_TOLD_WITHIN_S = 15.0
_FIRST_PATIENCE_S, _MOST_PATIENCE_S = 0.02, 5.0
_YOUNG_S, _TOLD_EVERY_S = 10.0, 5.0
DIED = "egress gateway died: nothing goes out until another one runs"
REVIVED = "egress gateway runs again"
_MOST_REPORT = 1 << 16
_log = logging.getLogger("firkin.gateway")

Denied = Callable[[SandboxOrder, Denial, int], None]
Told = Callable[[str], None]


class _Gone(Exception):
    """The process ended, or would not begin; the text says why, if it is known."""


class Gateway:
    """One gateway. `denied` hears how often what was refused to whom; `told` a sentence of each death and revival."""

    def __init__(self, name: str, setup: Setup, *, denied: Denied, told: Told) -> None:
        self._name = name
        self._setup = setup
        self._denied = denied
        self._told = told
        self._orders: dict[str, SandboxOrder] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self._up = asyncio.Event()
        self._tasks = Children()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def addresses(self) -> frozenset[str]:
        """Those of the sandboxes that it leads."""
        return frozenset(self._orders)

    async def start(self) -> None:
        """Raises `BackendFailure` when it does not become ready."""
        try:
            reader = await self._begin()
        except _Gone as error:
            raise BackendFailure("start an egress gateway", "the gateway", str(error)) from None
        self._tasks.start(self._attend(reader), name=f"gateway {self._name}")

    async def aclose(self) -> None:
        """End it. Its sandboxes reach nothing from now on."""
        await self._tasks.aclose()
        await self._end()

    async def lead(self, order: SandboxOrder) -> None:
        """What holds for a sandbox from now on; returns when the gateway has it. Raises `BackendFailure`."""
        self._orders[order.address] = order
        await self._tell({"lead": encode_order(order)})

    async def forget(self, address: str) -> None:
        """Cut whatever is open from there, and take no more. Safe for an unknown one."""
        if self._orders.pop(address, None) is not None:
            await self._tell({"forget": address})

    async def _tell(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(_TOLD_WITHIN_S):
                while True:
                    await self._up.wait()
                    try:
                        return await self._ask(message)
                    except _Gone:
                        continue
        except TimeoutError:
            raise BackendFailure("tell an egress gateway", "the gateway", "it does not answer") from None

    async def _ask(self, message: dict[str, Any]) -> None:
        if self._writer is None:
            raise _Gone
        self._number += 1
        number = self._number
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._writer.write(_framed(json.dumps({**message, "number": number}).encode()))
            await self._writer.drain()
            await future
        except OSError as error:
            raise _Gone from error
        finally:
            self._waiting.pop(number, None)

    async def _begin(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        code = _START.format(paths=_paths(), fd=theirs.fileno(), parent=os.getpid())
        setup = self._setup
        kept = (theirs.fileno(), setup.network, setup.tcp, setup.dns_udp, setup.dns_tcp, *setup.resolvers)
        self._process = subprocess.Popen(  # noqa: ASYNC220 — vfork: a millisecond, and no child watcher to depend on
            [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", code],
            env={}, cwd="/", pass_fds=[fd for fd in kept if fd >= 0],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                self._writer.write(_framed(encode_setup(setup)))
                await _message(reader)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError):
            complaint = await self._complaint()
            await self._end()
            raise _Gone(complaint) from None
        if self._process.stderr is not None:
            self._process.stderr.close()  # what it might say later could have a guest's words in it
        for order in list(self._orders.values()):
            self._send_unasked({"lead": encode_order(order)})
        self._send_unasked({"told": True})
        self._up.set()
        return reader

    async def _complaint(self) -> str:
        process = self._process
        if process is None or process.stderr is None:
            return "it was closed"
        process.kill()
        text = await asyncio.to_thread(process.stderr.read)
        return text.decode(errors="replace").strip().rpartition("\n")[2][:300] or "it did not become ready"

    async def _attend(self, reader: asyncio.StreamReader) -> None:
        """Hear it out, and begin anew when it ends: at once, but ever later if each one dies young."""
        patience_s, told_at = 0.0, -_TOLD_EVERY_S
        while True:
            began = time.monotonic()
            with suppress(asyncio.IncompleteReadError, OSError, ValueError):
                while True:
                    self._heard(await _message(reader))
            self._up.clear()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_Gone())
            _log.error("egress gateway died owner=%s pid=%s sandboxes=%d", self._name, self.pid, len(self._orders))
            died_at = time.monotonic()
            tells = died_at >= told_at + _TOLD_EVERY_S
            if tells:
                told_at = died_at
                self._told(DIED)
            young = died_at < began + _YOUNG_S
            patience_s = min(max(_FIRST_PATIENCE_S, 2 * patience_s), _MOST_PATIENCE_S) if young else 0.0
            await asyncio.sleep(patience_s)
            reader = await self._revived()
            _log.warning("egress gateway started again owner=%s pid=%s", self._name, self.pid)
            if tells:
                self._told(f"{REVIVED} after {time.monotonic() - died_at:.1f} s")

    async def _revived(self) -> asyncio.StreamReader:
        patience_s = _FIRST_PATIENCE_S
        while True:
            await self._end()
            try:
                return await self._begin()
            except (_Gone, OSError) as error:
                _log.error("egress gateway does not start owner=%s error=%s", self._name, error)
            await asyncio.sleep(patience_s)
            patience_s = min(2 * patience_s, _MOST_PATIENCE_S)

    def _send_unasked(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(_framed(json.dumps({**message, "number": 0}).encode()))

    def _heard(self, message: dict[str, Any]) -> None:
        if isinstance(message.get("done"), int):
            future = self._waiting.get(message["done"])
            if future is not None and not future.done():
                future.set_result(None)
        elif "denied" in message:
            self._hear_denied(message)

    def _hear_denied(self, message: dict[str, Any]) -> None:
        """Raises `ValueError` for what no gateway says. One that is no longer led has nothing to be told."""
        order = next((one for one in self._orders.values() if one.sandbox_id == message.get("sandbox")), None)
        if not isinstance(message["denied"], list):
            raise ValueError("a gateway reported what is no list")
        for denial, count in map(decode_denial, message["denied"]):
            if order is not None:
                self._denied(order, denial, count)

    async def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.abort()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await finish(asyncio.to_thread(process.wait), within_s=10.0)
            if process.stderr is not None:
                process.stderr.close()


def _framed(raw: bytes) -> bytes:
    return struct.pack("!I", len(raw)) + raw


async def _message(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The gateway is trusted with less than the server: what it says is bounded and is numbers. Raises ValueError."""
    (size,) = struct.unpack("!I", await reader.readexactly(4))
    if size > _MOST_REPORT:
        raise ValueError(size)
    message = json.loads(await reader.readexactly(size))
    if not isinstance(message, dict):
        raise ValueError(message)
    return message


def _paths() -> list[str]:
    """Where Firkin is and what a gateway imports, and nothing else of what is installed is looked for."""
    found = [Path(__file__).parents[2]]
    for module in ("cryptography", "_cffi_backend", "h2", "hpack", "hyperframe"):
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            place = Path(spec.origin).parent
            found.append(place.parent if spec.submodule_search_locations else place)
    return [str(path) for path in dict.fromkeys(found)]
