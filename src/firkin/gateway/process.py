"""The gateway's process: reads its setup, gives up its rights, says that it is ready, serves until the server goes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
from contextlib import suppress
from typing import Any  # the JSON edge of the control socket

from firkin.gateway import authorities, dialling
from firkin.gateway.confinement import confine
from firkin.gateway.denials import Denial, encode_denial
from firkin.gateway.dns_service import DnsService
from firkin.gateway.judgement import Refusal
from firkin.gateway.orders import Setup, decode_order, decode_setup
from firkin.gateway.passage import Passages
from firkin.gateway.resolver import Resolver
from firkin.gateway.tenants import MOST_CONNECTIONS, Tenant
from firkin.gateway.upstreams import Upstreams
from firkin.guest.disguise import overwrite_arguments
from firkin.host import syscalls
from firkin.lifetimes import Children, children

_MOST_MESSAGE = 64 << 20
_REPORT_EVERY_S = 1.0


def main(control: int, parent: int) -> None:
    """What the server starts. `control` is a stream socket to it."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    channel = socket.socket(fileno=control)
    setup = decode_setup(_message(channel))
    upstreams = Upstreams(dialling.trust(setup.trust))
    _load_what_is_loaded_late()
    if setup.confined:
        overwrite_arguments(b"firkin-egress")
        confine(setup, parent)
    asyncio.run(_Gateway(setup, channel, upstreams).serve())


def _load_what_is_loaded_late() -> None:
    """While there are files: codecs that `ssl` and `socket` look up by name, and the parts of `cryptography`."""
    for codec in ("idna", "ascii", "latin-1", "utf-8"):
        "warm.example".encode(codec)
    authority = authorities.new_authority(["warm.example"])
    authorities.Issuer(authority.certificate, authority.key).leaf("warm.example")


def _message(channel: socket.socket) -> bytes:
    (size,) = struct.unpack("!I", _exactly(channel, 4))
    return _exactly(channel, size)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data


class _Gateway:
    """All that is served, and what is known of whom."""

    def __init__(self, setup: Setup, channel: socket.socket, upstreams: Upstreams) -> None:
        self._setup = setup
        self._channel = channel
        self._tenants: dict[str, Tenant] = {}
        self._told = asyncio.Event()
        self._resolver = Resolver([_udp(fd) for fd in setup.resolvers])
        self._dialler = dialling.Dialler(self._resolver)
        self._passages = Passages(self._dialler, upstreams)

    async def serve(self) -> None:
        await self._resolver.start()
        async with children() as tasks:
            dns = DnsService(self._resolver, self._dialler, self._tenants.get, tasks)
            reader, writer = await asyncio.open_connection(sock=self._channel)
            _say(writer, {"ready": True})
            tasks.start(self._open_doors(dns, tasks), name="doors")
            tasks.start(self._report(writer), name="report")
            await self._obey(reader, writer)
        os._exit(0)

    async def _open_doors(self, dns: DnsService, tasks: Children) -> None:
        """Once the server has told of everybody: one who is not known yet would be turned away."""
        await self._told.wait()
        await dns.serve_udp(_udp(self._setup.dns_udp))
        tasks.start(self._accept(_tcp(self._setup.tcp), self._passages.lead, tasks), name="accept")
        tasks.start(self._accept(_tcp(self._setup.dns_tcp), dns.talk, tasks), name="accept dns")

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the server hangs up."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                (size,) = struct.unpack("!I", await reader.readexactly(4))
                if size > _MOST_MESSAGE:
                    return
                message = json.loads(await reader.readexactly(size))
                self._do(message)
                _say(writer, {"done": message["number"]})
                await writer.drain()

    def _do(self, message: dict[str, Any]) -> None:
        if "told" in message:
            self._told.set()
            return
        if "forget" in message:
            self._replace(message["forget"], None)
            return
        order = decode_order(message["lead"])
        known = self._tenants.get(order.address)
        if known is not None and known.keeps(order):
            known.order = order
            return
        self._replace(order.address, Tenant(order))

    def _replace(self, address: str, tenant: Tenant | None) -> None:
        """What was open under another policy is cut."""
        known = self._tenants.pop(address, None)
        if known is not None:
            known.cut()
        if tenant is not None:
            self._tenants[address] = tenant

    async def _accept(self, listening: socket.socket, lead: Any, tasks: Children) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, (address, _) = await loop.sock_accept(listening)
            except OSError:  # too many files: what is open ends sometime
                await asyncio.sleep(0.05)
                continue
            tenant = self._tenants.get(address)
            if tenant is None or len(tenant.connections) >= MOST_CONNECTIONS:
                if tenant is not None:
                    tenant.denials.note(Denial(why=Refusal.TOO_MANY))
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()
                continue
            task = tasks.start(_contained(lead(tenant, accepted), tenant), name="connection")
            tenant.connections.add(task)
            task.add_done_callback(tenant.connections.discard)

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        """Tell what was refused, and how often."""
        while True:
            await asyncio.sleep(_REPORT_EVERY_S)
            for tenant in self._tenants.values():
                denied = [encode_denial(*one) for one in tenant.denials.taken()]
                if denied:
                    _say(writer, {"sandbox": tenant.order.sandbox_id, "denied": denied})
            await writer.drain()


async def _contained(work: Any, tenant: Tenant) -> None:
    """A connection's end, however it ends, is nobody else's."""
    try:
        await work
    except Exception:  # noqa: BLE001 — the root of a connection: a fault of ours must not end the others
        tenant.denials.note(Denial(why=Refusal.FAILED))


def _say(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    raw = json.dumps(message).encode()
    writer.write(struct.pack("!I", len(raw)) + raw)


def _udp(fd: int) -> socket.socket:
    made = socket.socket(fileno=fd)
    made.setblocking(False)
    return made


def _tcp(fd: int) -> socket.socket:
    return _udp(fd)
