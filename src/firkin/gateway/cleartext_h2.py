"""HTTP/2 without TLS (RFC 9113 3.3): a connection that names no host before it has been answered.

Its requests name hosts, each its own, and a reader of the first bytes sees none of them. So it is
led by address, and where only names are allowed, or a rule's headers would be missing, it is
refused in its own words.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame, SettingsFrame

from firkin.gateway.h2_frames import PREFACE
from firkin.gateway.judgement import Refusal, Refused
from firkin.gateway.tenants import Tenant


def begins_with_preface(accepted: socket.socket) -> bool:
    """Whether it has said so already; what it said stays where it lies."""
    try:
        return accepted.recv(len(PREFACE), socket.MSG_PEEK) == PREFACE
    except OSError:
        return False


def judge_by_address(tenant: Tenant, address: str) -> None:
    """Raises `Refused` where a name would have been needed."""
    if tenant.judge.allows_by_address(address):
        return
    if tenant.has_rule_at(address):
        raise Refused(Refusal.CLEARTEXT_HTTP2)
    try:
        tenant.judge.require_address(address)
    except Refused as refused:
        by_name = refused.why in (Refusal.NOT_ALLOWED, Refusal.DENIED) and not tenant.judge.knows_all_names
        raise Refused(Refusal.CLEARTEXT_HTTP2 if by_name else refused.why) from None


def turn_away(accepted: socket.socket, why: Refusal) -> None:
    """Say no so that its client understands it."""
    text = why.value.encode()
    answer = GoAwayFrame(0, last_stream_id=0, error_code=ErrorCodes.HTTP_1_1_REQUIRED, additional_data=text)
    with suppress(OSError):
        accepted.send(SettingsFrame(0).serialize() + answer.serialize())
