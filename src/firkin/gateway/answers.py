"""What a guest hears, in either version of HTTP, when nothing of its request goes on."""

from __future__ import annotations

from http import HTTPStatus

from firkin.gateway.judgement import Refusal

_BEYOND = frozenset(
    (
        Refusal.UNREACHABLE,
        Refusal.UNTRUSTED,
        Refusal.UNRESOLVED,
        Refusal.PROXY_FAILED,
        Refusal.PROXY_PRIVATE,
        Refusal.PROXY_UNTRUSTED,
        Refusal.PROXY_LOCKED,
        Refusal.PROXY_DECLINED,
        Refusal.TOO_MUCH,  # of the server: a guest that does so gets no answer
    )
)


def status_of(why: Refusal) -> HTTPStatus:
    """Whose fault it is: the request's own, a server's or a proxy's, else a matter of the policy."""
    if why is Refusal.MALFORMED:
        return HTTPStatus.BAD_REQUEST
    return HTTPStatus.BAD_GATEWAY if why in _BEYOND else HTTPStatus.FORBIDDEN


def text_of(why: Refusal) -> bytes:
    return b"firkin egress: %s\n" % why.value.encode()
