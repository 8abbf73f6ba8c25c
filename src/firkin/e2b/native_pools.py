"""Warm pools under ``/firkin/v1/pools``, for the operator: what waits takes the machine's room from everybody.

A pool is named as a template is. E2B's clients know nothing of it: a create that it fits is
only faster.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from firkin.e2b.auth import ApiKey
from firkin.e2b.descriptions import timestamp
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.models import NetworkConfig, parse
from firkin.e2b.networks import policy_of
from firkin.e2b.template_names import Meant, TemplateNames, tag_of
from firkin.law.backend import SandboxBackend, WarmPoolControl
from firkin.law.builds import tagged_name
from firkin.law.ids import TemplateId, WarmPoolKey
from firkin.law.isolation import Isolation
from firkin.law.sandboxes import FromTemplate
from firkin.law.warm_pool import WarmEvictionPolicy, WarmMaintainReport, WarmPoolEntry, WarmPoolSpec

ANSWER_WITHIN_S = 30.0
_MAX_BODY = 64 * 1024
T = TypeVar("T", bound=msgspec.Struct)
_USUAL = policy_of(NetworkConfig(), internet=True, tenants=None)  # of a create that says nothing of its network


class PoolWish(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of ``PUT /firkin/v1/pools/{template}``. `minReady` is `depth` unless it is given."""

    depth: int
    minReady: int | None = None
    eviction: WarmEvictionPolicy = WarmEvictionPolicy.OLDEST
    isolation: str | None = None

    def spec(self) -> WarmPoolSpec:
        """Raises the law's `InvalidSpec`."""
        return WarmPoolSpec(
            depth=self.depth,
            min_ready=self.depth if self.minReady is None else self.minReady,
            eviction=self.eviction,
            network=_USUAL,
            isolation=None if self.isolation is None else Isolation.parse(self.isolation),
        )


class Eviction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    count: int


class NativePools:
    """``pools`` and what is below it. Whoever may not is kept out before."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend
        self._names = TemplateNames(backend)

    async def answer(self, exchange: Exchange, tenant: ApiKey, words: list[str]) -> None:
        control = self._control()
        match exchange.method, words:
            case "GET", ["pools"]:
                await exchange.answer_json(200, [pool_json(entry) for entry in (await control.status()).entries])
            case "GET", ["pools", *name]:
                await exchange.answer_json(200, pool_json(await self._pool(control, tenant, "/".join(name))))
            case "PUT", ["pools", *name]:
                wish = await _body(exchange, PoolWish)
                await exchange.answer_json(200, await self._set(control, tenant, "/".join(name), wish.spec()))
            case "POST", ["pools", *name, "evict"]:
                wish_to_evict = await _body(exchange, Eviction)
                if wish_to_evict.count < 1:
                    raise Refused(400, "count must be 1 or more", should_retry=False)
                pool = await self._pool(control, tenant, "/".join(name))
                report = await control.evict(pool.key, wish_to_evict.count)
                await exchange.answer_json(200, _report_json(report))
            case "DELETE", ["pools", *name]:
                pool = await self._pool(control, tenant, "/".join(name))
                await control.prewarm(TemplateId(pool.key), WarmPoolSpec.of_depth(0))
                await exchange.answer(204)
            case _:
                raise Refused(404, f"no route {exchange.method} {exchange.path[:200]}")

    def _control(self) -> WarmPoolControl:
        if self._backend.warm_pool is None:
            raise Refused(400, "nothing is kept ready on this server", should_retry=False)
        return self._backend.warm_pool

    async def _set(self, control: WarmPoolControl, tenant: ApiKey, name: str, spec: WarmPoolSpec) -> dict[str, Any]:
        """Answers when it is full, cannot be, or takes long: the server goes on then."""
        meant = await self._meant(tenant, name)
        if not isinstance(meant.source, FromTemplate):
            raise Refused(400, f"'{name[:128]}' is a snapshot; a pool is of a template", should_retry=False)
        template_id = meant.source.template_id
        if meant.named is not None:
            spec = replace(spec, follows=tagged_name(meant.named.id, tag_of(name)))
        report = WarmMaintainReport()
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                report = await control.prewarm(template_id, spec)
        key = WarmPoolKey(template_id)
        removed = WarmPoolEntry(key=key, ready=0, total=0, spec=WarmPoolSpec.of_depth(0))
        found = next((entry for entry in (await control.status()).entries if entry.key == key), removed)
        return {**_report_json(report), **pool_json(found)}

    async def _pool(self, control: WarmPoolControl, tenant: ApiKey, name: str) -> WarmPoolEntry:
        """By its template's id or any of its names. Raises `Refused` (404)."""
        names = {name}
        with suppress(Refused):
            meant = await self._meant(tenant, name)
            if isinstance(meant.source, FromTemplate):
                names.add(str(meant.source.template_id))
        for entry in (await control.status()).entries:
            if str(entry.key) in names:
                return entry
        raise Refused(404, f"there is no warm pool of '{name[:128]}'", should_retry=False)

    async def _meant(self, tenant: ApiKey, name: str) -> Meant:
        """What the key that the operator calls with means by it, else whatever is called so. Raises `Refused`."""
        try:
            return await self._names.meant(tenant, name)
        except Refused as refused:
            if refused.status not in (400, 404):
                raise
            return await self._names.anybodys(name)


async def _body(exchange: Exchange, kind: type[T]) -> T:
    return parse(await exchange.body(_MAX_BODY), kind)


def _report_json(report: WarmMaintainReport) -> dict[str, Any]:
    return {
        "created": report.created,
        "evicted": report.evicted,
        "ready": report.ready,
        "failures": list(report.failures),
    }


def pool_json(entry: WarmPoolEntry) -> dict[str, Any]:
    spec = entry.spec
    return {
        "template": str(entry.key),
        "depth": spec.depth,
        "minReady": spec.min_ready,
        "eviction": spec.eviction.value,
        "isolation": None if spec.isolation is None else spec.isolation.value,
        "ready": entry.ready,
        "total": entry.total,
        "hits": entry.hits,
        "misses": entry.misses,
        "held": entry.held,
        "failure": entry.failure,
        "oldestAt": None if entry.oldest_at is None else timestamp(entry.oldest_at),
    }
