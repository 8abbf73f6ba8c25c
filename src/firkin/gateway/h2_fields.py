"""Header fields of HTTP/2, read so that no later reader can understand them differently (RFC 9113 8).

A guest's fields have passed the protocol machine, which refuses upper case, fields of
one hop, pseudo-fields out of place and a Host beside another authority. What it lets through
and a server that speaks HTTP/1.1 behind it could stumble on is refused here. Servers make
mistakes that every client forgives (`connection: close`, spaces around a value): those are mended.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hpack import NeverIndexedHeaderTuple

from firkin.gateway.heads import MOST_FIELDS, Malformed
from firkin.gateway.judgement import Refusal, Refused
from firkin.gateway.names import clean_name

Field = tuple[bytes, bytes]
Fields = Sequence[Field]

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_TARGET = re.compile(rb"/[!-~\x80-\xff]{0,32767}")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_OF_ONE_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_NOT_A_RULE_S = _OF_ONE_HOP | {b"te", b"content-length"}
_NOT_IN_TRAILERS = frozenset((b"host", b"content-length", b"te", b"trailer", b"authorization", b"cookie"))
_NOT_SHOWN = _OF_ONE_HOP | {b"alt-svc"}  # it invites to QUIC, which does not pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request's head. `length` is what it says of its body, if anything."""

    method: bytes
    authority: bytes
    path: bytes
    fields: Fields
    length: int | None

    @property
    def weight(self) -> int:
        """About how much memory it takes."""
        return sum(len(name) + len(value) + 32 for name, value in self.fields) + len(self.path)

    def written(self, replaced: Mapping[str, str]) -> list[Field]:
        """As it goes on, with `replaced` in place of the guest's own, and out of the compressor's memory."""
        own = lowered(replaced)
        placed = {name.lower().encode(): value.encode() for name, value in replaced.items()}
        authority = placed.pop(b"host", self.authority)
        head = [(b":method", self.method), (b":scheme", b"https"), (b":authority", authority), (b":path", self.path)]
        head += [pair for pair in self.fields if pair[0] not in own]
        head += [NeverIndexedHeaderTuple(*pair) for pair in placed.items() if pair[0] not in _NOT_A_RULE_S]
        return head


def read_request(raw: Iterable[Field], *, name: str, port: int, ended: bool) -> Asked:
    """A request on a connection to `name`; `ended` says that no body follows. Raises `Refused`."""
    pseudo, fields = _split(raw)
    authority = _authority(pseudo, fields)
    host, _, at = authority.partition(b":")
    if clean_name(host) != name or at not in (b"", str(port).encode()):
        raise Refused(Refusal.OTHER_HOST)
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    whole = _METHOD.fullmatch(method) and (_TARGET.fullmatch(path) or (method, path) == (b"OPTIONS", b"*"))
    if not whole or method == b"CONNECT" or b":protocol" in pseudo or pseudo.get(b":scheme") != b"https":
        raise Refused(Refusal.MALFORMED)
    length = _length(fields)
    if ended and length:
        raise Refused(Refusal.MALFORMED)
    kept = [pair for pair in fields if pair[0] != b"host"]
    return Asked(method=method, authority=authority, path=path, fields=kept, length=length)


def read_answer(raw: Iterable[Field]) -> list[Field]:
    """The head of an answer as it is shown. Raises `Malformed`."""
    mended = [_mended(pair) for pair in raw]
    status = mended[0][1] if mended and mended[0][0] == b":status" else b""
    if not _STATUS.fullmatch(status) or status == b"101":
        raise Malformed
    return [mended[0], *_shown(mended[1:])]


def read_trailers(raw: Iterable[Field], *, without: Collection[bytes]) -> list[Field]:
    """A guest's trailers: never with what a rule says, nor with what is a head's to say. Raises `Malformed`."""
    kept = _shown([_mended(pair) for pair in raw])
    return [pair for pair in kept if pair[0] not in without and pair[0] not in _NOT_IN_TRAILERS]


def read_answer_trailers(raw: Iterable[Field]) -> list[Field]:
    """A server's trailers as they are shown. Raises `Malformed`."""
    return _shown([_mended(pair) for pair in raw])


def lowered(names: Iterable[str]) -> frozenset[bytes]:
    """Names of headers as HTTP/2 writes them."""
    return frozenset(name.lower().encode() for name in names)


def _split(raw: Iterable[Field]) -> tuple[dict[bytes, bytes], list[Field]]:
    pseudo: dict[bytes, bytes] = {}
    fields: list[Field] = []
    for pair in raw:
        name, value = pair
        if not _VALUE.fullmatch(value):
            raise Refused(Refusal.MALFORMED)
        if name.startswith(b":"):
            pseudo[name] = value
        elif _NAME.fullmatch(name):
            fields.append(pair)
        else:
            raise Refused(Refusal.MALFORMED)
    if len(fields) > MOST_FIELDS:
        raise Refused(Refusal.MALFORMED)
    return pseudo, fields


def _authority(pseudo: Mapping[bytes, bytes], fields: Fields) -> bytes:
    """One, said once or twice the same."""
    said = [value for name, value in fields if name == b"host"]
    if b":authority" in pseudo:
        said.append(pseudo[b":authority"])
    if not said or len(set(said)) > 1:
        raise Refused(Refusal.OTHER_HOST)
    return said[0]


def _length(fields: Fields) -> int | None:
    lengths = [value for name, value in fields if name == b"content-length"]
    if not lengths:
        return None
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise Refused(Refusal.MALFORMED)
    return int(lengths[0])


def _mended(pair: Field) -> Field:
    name, value = pair
    if not _VALUE.fullmatch(value):
        raise Malformed
    return pair if value == value.strip(b" \t") else (name, value.strip(b" \t"))


def _shown(fields: Fields) -> list[Field]:
    if len(fields) > MOST_FIELDS or not all(_NAME.fullmatch(name) for name, _ in fields):
        raise Malformed
    return [pair for pair in fields if pair[0] not in _NOT_SHOWN]
