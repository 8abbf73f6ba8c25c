"""Ports inside a sandbox, and byte channels to them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from firkin.law.errors import InvalidReason, InvalidSpec

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class Port(int):
    """1…65535; raises `InvalidSpec` (`INVALID_PORT`) otherwise."""

    __slots__ = ()

    def __new__(cls, number: int) -> Port:
        if not 0 < number < 65536:
            raise InvalidSpec("check port", InvalidReason.INVALID_PORT, f"{number} is not a port; use 1…65535")
        return super().__new__(cls, number)


class PortProtocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class PortBinding:
    guest: Port
    host: Port | None = None
    protocol: PortProtocol = PortProtocol.TCP


@dataclass(frozen=True, slots=True)
class PortExposure:
    protocol: PortProtocol = PortProtocol.TCP
    host_port: Port | None = None


@dataclass(frozen=True, slots=True)
class DomainProxySpec:
    """A wish for the sandbox's services to be reached below `domain`. `InvalidSpec` for what is no domain name."""

    domain: str

    def __post_init__(self) -> None:
        labels = self.domain.removesuffix(".").split(".")
        if len(self.domain) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
            detail = f"{self.domain[:253]!r} is no domain name"
            raise InvalidSpec("check domain", InvalidReason.INVALID_NETWORK, detail)


@dataclass(frozen=True, slots=True)
class DomainProxy:
    """The domain that serves a sandbox."""

    domain: str


class ByteChannel(Protocol):
    """A two-way stream of bytes, as TCP or a Unix socket gives."""

    async def read(self, limit: int = 65536) -> bytes:
        """Up to `limit` bytes; empty at the end of the stream."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of `data`, waiting while the other side does not read."""
        ...

    async def end(self) -> None:
        """Say that no more will be written."""
        ...

    async def aclose(self) -> None: ...
