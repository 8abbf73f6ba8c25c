"""What the real servers of rules are held to, for each set of protocols that may be agreed on with them.

A TLS context offers one set of protocols to everybody, so each set needs its own. They are
made when they are first needed (it takes 50 ms to read the system's authorities again),
out of the first one: by then there are no files.
"""

from __future__ import annotations

import asyncio
import ssl

from firkin.gateway.dialling import Stream

HTTP_1, HTTP_2 = "http/1.1", "h2"
_SPOKEN = (b"h2", b"http/1.1")


class Upstreams:
    """`first` is for servers that are offered HTTP/1.1 alone."""

    def __init__(self, first: ssl.SSLContext) -> None:
        self._first = first
        self._made: dict[tuple[str, ...], ssl.SSLContext] = {(HTTP_1,): first}

    def offering(self, offered: tuple[bytes, ...]) -> ssl.SSLContext:
        """As a guest offered them, best first; what is not spoken here is left out."""
        spoken = tuple(dict.fromkeys(name.decode() for name in offered if name in _SPOKEN)) or (HTTP_1,)
        if spoken not in self._made:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=b"".join(self._first.get_ca_certs(binary_form=True)))
            context.set_alpn_protocols(list(spoken))
            self._made[spoken] = context
        return self._made[spoken]


async def agreed(dialled: asyncio.Task[Stream], offered: tuple[bytes, ...]) -> str:
    """What the server picked, 1.1 if nothing; where there is no server, what the guest can be told so in."""
    if b"h2" not in offered:
        return HTTP_1
    await asyncio.wait((dialled,))
    if dialled.cancelled() or dialled.exception() is not None:
        return HTTP_1 if b"http/1.1" in offered else HTTP_2
    return protocol_of(dialled.result()) or HTTP_1


def protocol_of(stream: Stream) -> str | None:
    """What a handshake agreed on."""
    secured = stream.writer.get_extra_info("ssl_object")
    return None if secured is None else secured.selected_alpn_protocol()
