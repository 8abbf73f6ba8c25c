"""Ways out: straight to an address that was looked up here, or through the tenant's SOCKS5 proxy (RFC 1928, 1929)."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass

from firkin.gateway.judgement import Refusal, Refused
from firkin.gateway.names import clean_name
from firkin.gateway.resolver import Resolver, Unresolved
from firkin.gateway.tenants import Tenant
from firkin.law.network import EgressProxy

CONNECT_WITHIN_S = 10.0
LIMIT = 1 << 18
_MOST_TRIED = 3
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Stream:
    """Both directions of one connection.

    `beneath`: the one that carries it. Since Python 3.12 a writer that nobody holds closes its connection.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    beneath: Stream | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to. With a `name`, that is what was allowed, and `address` is only where the guest thought it was."""

    address: str
    port: int
    name: str | None = None


class Dialler:
    """Makes connections for sandboxes. Raises `Refused`."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def addresses(self, tenant: Tenant, name: str) -> tuple[str, ...]:
        """Those of `name` that a name may lead to."""
        try:
            found = await self._resolver.look_up(name, tenant.order.policy.dns_servers)
        except Unresolved as error:
            raise Refused(Refusal.UNRESOLVED) from error
        public = tuple(address for address in found.addresses if _is_public(tenant, address))
        if not public:
            raise Refused(Refusal.PRIVATE)
        return public

    async def dial(self, tenant: Tenant, target: Target) -> Stream:
        proxy = tenant.order.policy.egress_proxy
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                if proxy is not None:
                    return await self._by_proxy(tenant, proxy, target)
                if target.name is None:
                    return await _first((target.address,), target.port)
                return await _first(await self.addresses(tenant, target.name), target.port)
        except (OSError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError) as error:
            raise Refused(Refusal.UNREACHABLE if proxy is None else Refusal.PROXY_FAILED) from error

    async def _by_proxy(self, tenant: Tenant, proxy: EgressProxy, target: Target) -> Stream:
        host, port = proxy_address(proxy)
        addresses: tuple[str, ...] = (host,)
        if clean_name(host.encode()):
            addresses = await self._proxy_addresses(tenant, host)
        elif not _is_public(tenant, host):
            raise Refused(Refusal.PROXY_PRIVATE)
        stream = await _first(addresses, port)
        try:
            if proxy.tls:
                stream = await over_tls(stream, _proxy_context(proxy), proxy.tls_server_name or host)
            await _socks(stream, proxy, target)
        except ssl.SSLCertVerificationError as error:
            stream.writer.transport.abort()
            raise Refused(Refusal.PROXY_UNTRUSTED) from error
        except BaseException:
            stream.writer.transport.abort()
            raise
        return stream

    async def _proxy_addresses(self, tenant: Tenant, host: str) -> tuple[str, ...]:
        """As `addresses`, but a failure is the proxy's, not the name's that the guest asked for."""
        try:
            return await self.addresses(tenant, host)
        except Refused as refused:
            private = refused.why is Refusal.PRIVATE
            raise Refused(Refusal.PROXY_PRIVATE if private else Refusal.PROXY_FAILED) from refused


def _is_public(tenant: Tenant, address: str) -> bool:
    try:
        tenant.judge.require_public(address)
    except Refused:
        return False
    return True


async def _first(addresses: tuple[str, ...], port: int) -> Stream:
    """To the first of `addresses` that takes it. Raises OSError."""
    failure: OSError = OSError("no address")
    for address in addresses[:_MOST_TRIED]:
        connected = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S / 2):
                await asyncio.get_running_loop().sock_connect(connected, (address, port))
            return Stream(*await asyncio.open_connection(sock=prepared(connected), limit=LIMIT))
        except (OSError, TimeoutError) as error:
            connected.close()
            failure = error if isinstance(error, OSError) else OSError("no answer")
        except BaseException:
            connected.close()
            raise
    raise failure


async def over_tls(plain: Stream, context: ssl.SSLContext, name: str) -> Stream:
    """TLS over a stream, with ends of its own: those of `plain` go on knowing the transport beneath."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LIMIT)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport = await loop.start_tls(plain.writer.transport, protocol, context, server_hostname=name)
    if transport is None:
        raise ConnectionResetError("closed during the handshake")
    protocol.connection_made(transport)
    return Stream(reader, asyncio.StreamWriter(transport, protocol, reader, loop), beneath=plain)


def prepared(connected: socket.socket) -> socket.socket:
    """Without delay, and noticing that the other end is gone."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return connected


def proxy_address(proxy: EgressProxy) -> tuple[str, int]:
    """Host and port of ``host:port``, perhaps behind ``socks5://``. Raises `Refused`."""
    host, _, port = proxy.address.removeprefix("socks5://").removeprefix("socks5h://").rpartition(":")
    if not host or _PORT.fullmatch(port) is None or not 0 < int(port) < 65536:
        raise Refused(Refusal.PROXY_FAILED)
    if clean_name(host.encode(errors="replace")) is None:
        try:
            return str(ipaddress.IPv4Address(host)), int(port)
        except ValueError:
            raise Refused(Refusal.PROXY_FAILED) from None
    return host.lower(), int(port)


def _proxy_context(proxy: EgressProxy) -> ssl.SSLContext:
    if proxy.tls_ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=proxy.tls_ca)
        return context
    return _SYSTEM


_SYSTEM = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def trust(pem: str) -> ssl.SSLContext:
    """Read the system's authorities, and these, while there are files; what upstream servers are held to from then."""
    _SYSTEM.load_default_certs()
    if pem:
        _SYSTEM.load_verify_locations(cadata=pem)
    _SYSTEM.set_alpn_protocols(["http/1.1"])
    return _SYSTEM


async def _socks(stream: Stream, proxy: EgressProxy, target: Target) -> None:
    """Ask the proxy for `target`: by name where a name was allowed (E2B's contract: remote DNS)."""
    with_password = bool(proxy.username)
    stream.writer.write(b"\x05\x01\x02" if with_password else b"\x05\x01\x00")
    if await stream.reader.readexactly(2) != (b"\x05\x02" if with_password else b"\x05\x00"):
        raise Refused(Refusal.PROXY_LOCKED)
    if with_password:
        user, password = proxy.username.encode()[:255], proxy.password.encode()[:255]
        stream.writer.write(b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password)
        if (await stream.reader.readexactly(2))[1] != 0:
            raise Refused(Refusal.PROXY_LOCKED)
    if target.name is not None:
        where = b"\x03" + bytes([len(target.name)]) + target.name.encode()
    else:
        where = b"\x01" + socket.inet_aton(target.address)
    stream.writer.write(b"\x05\x01\x00" + where + target.port.to_bytes(2, "big"))
    said = await stream.reader.readexactly(4)
    if said[:3] != b"\x05\x00\x00":
        raise Refused(Refusal.PROXY_DECLINED)
    bound = {1: 4, 4: 16}.get(said[3])
    await stream.reader.readexactly((bound if bound is not None else (await stream.reader.readexactly(1))[0]) + 2)
