"""The server's end of a gateway: what it believes of what it hears, and how it starts the next one."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest

from firkin.gateway.denials import Denial, encode_denial
from firkin.gateway.judgement import Refusal
from firkin.gateway.keeper import DIED, REVIVED, Gateway
from firkin.gateway.orders import SandboxOrder, Setup
from firkin.law.network import NetworkPolicy

SETUP = Setup(user=1, network=-1, tcp=-1, dns_udp=-1, dns_tcp=-1, resolvers=())
ORDER = SandboxOrder(sandbox_id="known", address="198.18.0.2", policy=NetworkPolicy(dns_servers=("9.9.9.9",)))
DENIAL = Denial(why=Refusal.NAME_NOT_ALLOWED, protocol="dns", port=53, name="a.test")


class Heard:
    """What a keeper passes on."""

    def __init__(self) -> None:
        self.denied: list[tuple[str, Denial, int]] = []
        self.told: list[str] = []
        self.gateway = Gateway("ann", SETUP, denied=self._deny, told=self.told.append)
        self.gateway._orders[ORDER.address] = ORDER

    def _deny(self, order: SandboxOrder, denial: Denial, count: int) -> None:
        self.denied.append((order.sandbox_id, denial, count))


def test_what_was_denied_is_passed_on_for_those_that_are_led() -> None:
    heard = Heard()
    for sandbox in ("known", "stranger", None, 7):
        heard.gateway._heard({"sandbox": sandbox, "denied": [encode_denial(DENIAL, 3)]})
    assert heard.denied == [("known", DENIAL, 3)]


@pytest.mark.parametrize("denied", [None, {}, "x", [[]], [["NEVER", "dns", 53, "a.test", "", 1]]], ids=str)
def test_a_gateway_that_talks_nonsense_is_taken_for_dead(denied: Any) -> None:
    heard = Heard()
    with pytest.raises(ValueError, match="a gateway reported"):
        heard.gateway._heard({"sandbox": "stranger", "denied": denied})
    heard.gateway._heard({"done": {}})
    heard.gateway._heard({})
    assert heard.denied == []


@pytest.mark.thorough
async def test_those_that_die_young_follow_each_other_ever_later_and_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is dead as soon as it is born."""
    begun: list[float] = []
    enough = asyncio.Event()

    async def begin(self: Gateway) -> asyncio.StreamReader:
        begun.append(time.monotonic())
        if len(begun) == 6:
            enough.set()
        reader = asyncio.StreamReader()
        reader.feed_eof()
        return reader

    monkeypatch.setattr(Gateway, "_begin", begin)
    heard = Heard()
    await heard.gateway.start()
    async with asyncio.timeout(10):
        await enough.wait()
    await heard.gateway.aclose()
    waits = [after - before for before, after in pairwise(begun)]
    assert all(wait > least for wait, least in zip(waits, (0.019, 0.039, 0.079, 0.159, 0.319), strict=True))
    assert heard.told[0] == DIED
    assert heard.told[1].startswith(REVIVED)
    assert len(heard.told) == 2
