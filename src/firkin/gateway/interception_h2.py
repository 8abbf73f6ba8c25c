"""Requests in HTTP/2 to a host of a rule: the bytes between a guest, a `Relay` and the real server.

HTTP/2 on both sides, and one connection to the server for one of the guest, as with
HTTP/1.1. Each end is written to as fast as it takes what comes; bodies
leave the relay only then, and what is not a body stops the reading when it piles up.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from firkin.gateway.dialling import Stream
from firkin.gateway.h2_end import End
from firkin.gateway.h2_frames import TooMuch
from firkin.gateway.h2_relay import Relay
from firkin.gateway.interception import BETWEEN_REQUESTS_S
from firkin.gateway.judgement import Refusal, Refused
from firkin.gateway.splicing import IDLE_S
from firkin.gateway.tenants import MOST_CONNECTIONS, MOST_HELD, Tenant
from firkin.gateway.upstreams import HTTP_2, protocol_of
from firkin.lifetimes import children

_PIECE = 1 << 16
_MOST_WAITING = 1 << 20
_FAIR_SHARE = MOST_HELD // MOST_CONNECTIONS
_LAST_WORDS_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class _Side:
    """One end and its bytes. `wakes` is set when it may have something to say."""

    relay: Relay
    end: End
    stream: Stream
    wakes: asyncio.Event
    other_wakes: asyncio.Event

    def wake_both(self) -> None:
        self.wakes.set()
        self.other_wakes.set()


class InterceptionH2:
    """One connection of a guest to `name`, for as long as it lasts."""

    def __init__(self, tenant: Tenant, guest: Stream, *, name: str, port: int, address: str) -> None:
        self._tenant = tenant
        self._guest = guest
        self._name = name
        self._port = port
        self._address = address
        self._room = asyncio.Event()
        self._moved_at = asyncio.get_running_loop().time()

    async def run(self, dialled: asyncio.Task[Stream]) -> None:
        """Serve requests. `dialled` has ended: with the connection to the server, or why there is none.

        Raises `Refused` of what ends the connection; refused requests are counted.
        """
        server, why = await _outcome(dialled)
        if protocol_of(self._guest) != HTTP_2:  # its second hello offered other things than its first
            self._guest.writer.transport.abort()
            raise Refused(Refusal.MALFORMED)
        relay = Relay(self._tenant, name=self._name, port=self._port, address=self._address, refused=why)
        try:
            await self._serve(relay, server)
        except (OSError, TimeoutError):
            self._guest.writer.transport.abort()
        except Refused:
            await self._say_last(relay)
            raise
        except BaseException:  # cut, or a fault
            self._guest.writer.transport.abort()
            raise
        else:
            relay.retire()
            await self._say_last(relay)
        finally:
            relay.close()
            if server is not None:
                server.writer.transport.abort()

    async def _serve(self, relay: Relay, server: Stream | None) -> None:
        """Until nothing more can come. Raises OSError, `TimeoutError` and `Refused`."""
        guest_wakes, server_wakes = asyncio.Event(), asyncio.Event()
        guest = _Side(relay, relay.guest, self._guest, guest_wakes, server_wakes)
        guest.wake_both()  # both ends have a greeting to say
        async with children() as tasks:
            ends = {
                tasks.start(self._hear_guest(guest), name="hear guest"),
                tasks.start(self._tell(guest), name="tell guest"),
                tasks.start(self._watch(relay), name="watch"),
            }
            running = set(ends)
            if server is not None:  # when it is lost, the guest is still to hear so
                side = _Side(relay, relay.server, server, server_wakes, guest_wakes)
                running.add(tasks.start(self._hear_server(side), name="hear server"))
                running.add(tasks.start(self._tell_server(side), name="tell server"))
            while ends <= running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()

    async def _hear_guest(self, side: _Side) -> None:
        try:
            while data := await self._heard(side):
                side.relay.guest_said(data, asyncio.get_running_loop().time())
                self._require_modesty(side.relay)
                side.wake_both()
        except ProtocolError:
            raise Refused(Refusal.MALFORMED) from None
        except TooMuch:
            raise _told_off(side.relay) from None

    async def _hear_server(self, side: _Side) -> None:
        why = Refusal.UNREACHABLE
        try:
            while data := await self._heard(side):
                side.relay.server_said(data, asyncio.get_running_loop().time())
                self._require_modesty(side.relay)
                side.wake_both()
        except (OSError, ProtocolError):
            pass
        except TooMuch:
            why = Refusal.TOO_MUCH
        side.relay.server_lost(why)
        side.wake_both()

    async def _heard(self, side: _Side) -> bytes:
        while side.relay.guest.waiting + side.relay.server.waiting > _MOST_WAITING:
            self._room.clear()
            await self._room.wait()
        data = await side.stream.reader.read(_PIECE)
        self._note_movement(side.relay)
        return data

    def _note_movement(self, relay: Relay) -> None:
        """Pings alone keep no connection open."""
        if not relay.idle:
            self._moved_at = asyncio.get_running_loop().time()

    def _require_modesty(self, relay: Relay) -> None:
        """Windows bound each stream; this bounds all streams of all connections of one sandbox. Raises `Refused`."""
        if self._tenant.held > MOST_HELD and relay.held > _FAIR_SHARE:
            raise _told_off(relay)

    async def _tell(self, side: _Side) -> None:
        """Whatever is to go out there, as fast as it is taken; to the guest, until there is nothing more to say."""
        while not (side.relay.over and side.end is side.relay.guest):
            await side.wakes.wait()
            side.wakes.clear()
            while True:
                if side.relay.fill(side.end):
                    side.other_wakes.set()
                data = side.end.take()
                if not data:
                    break
                side.stream.writer.write(data)
                await side.stream.writer.drain()
                self._note_movement(side.relay)
                self._room.set()

    async def _tell_server(self, side: _Side) -> None:
        with suppress(OSError):
            await self._tell(side)
        side.stream.writer.transport.abort()  # its reader hears of it, and says so

    async def _watch(self, relay: Relay) -> None:
        """Raises `TimeoutError` when nothing moved for too long."""
        loop = asyncio.get_running_loop()
        while True:
            within_s = BETWEEN_REQUESTS_S if relay.idle else IDLE_S
            left_s = self._moved_at + within_s - loop.time()
            if left_s <= 0:
                if not relay.idle:
                    raise TimeoutError
                relay.retire()
                return
            await asyncio.sleep(min(left_s, BETWEEN_REQUESTS_S))

    async def _say_last(self, relay: Relay) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_WITHIN_S):
                self._guest.writer.write(relay.guest.take())
                await self._guest.writer.drain()
        self._guest.writer.close()


async def _outcome(dialled: asyncio.Task[Stream]) -> tuple[Stream | None, Refusal | None]:
    try:
        return await dialled, None
    except Refused as refused:
        return None, refused.why


def _told_off(relay: Relay) -> Refused:
    relay.guest.go_away(relay.guest.last_stream, ErrorCodes.ENHANCE_YOUR_CALM, Refusal.TOO_MUCH.value.encode())
    return Refused(Refusal.TOO_MUCH)
