"""Many sandboxes alive: what an idle one costs, and whether a new one still comes as fast.

Sandboxes are made over plain HTTP, so that the benchmark's own memory does not
grow with them and distort the figure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firkin.cli.bench.samples import Lifecycle, Series, percentile
from firkin.cli.bench.stage import Stage, meminfo, resident_kb
from firkin.cli.client import ServerClient
from firkin.cli.failures import CommandFailure

_AT_ONCE = 10
_SETTLE_S = 2.0
_LIFE_S = 3600
_START = "process.Process/Start"


async def density(stage: Stage) -> list[Series]:
    found = []
    async with ServerClient(stage.address) as server:
        if stage.address.pid is not None:
            found.append(_idle_server(stage, stage.address.pid))
        if stage.amounts.idle:
            found.append(await _memory_per_idle(stage, server))
        if stage.amounts.alive:
            found += await _create_beside(stage, server)
    return found


def _idle_server(stage: Stage, pid: int) -> Series:
    return Series(
        metric="server.resident_mb",
        values=(resident_kb(pid) / 1024,),
        unit="MB",
        lifecycle=Lifecycle.RESOURCES,
        isolation=stage.isolation,
        workload="resident memory of the server's own process, no sandbox alive, after the scenarios above",
        target="80",
    )


async def _memory_per_idle(stage: Stage, server: ServerClient) -> Series:
    count = stage.amounts.idle
    await asyncio.sleep(_SETTLE_S)
    before = meminfo("MemAvailable")
    async with _alive(stage, server, count) as ids:
        silent = [sandbox_id for sandbox_id in ids if not await _answers(server, sandbox_id)]
        await asyncio.sleep(_SETTLE_S)
        taken = before - meminfo("MemAvailable")
    return Series(
        metric="memory.idle_sandbox_mb",
        values=(taken / 1024 / count,),
        unit="MB",
        lifecycle=Lifecycle.RESOURCES,
        isolation=stage.isolation,
        workload=f"fall of MemAvailable with {count} sandboxes alive, divided by {count}; each has answered",
        target="3",
        failures=len(silent),
    )


async def _create_beside(stage: Stage, server: ServerClient) -> list[Series]:
    alone = await _create_times(stage, server)
    async with _alive(stage, server, stage.amounts.alive):
        crowded = await _create_times(stage, server)
    ratio = percentile(crowded, 50) / percentile(alone, 50)
    return [
        _create_series(stage, "create.none_alive_ms", alone, "", "no other sandbox alive"),
        _create_series(
            stage,
            f"create.{stage.amounts.alive}_alive_ms",
            crowded,
            f"{ratio:.2f} times the p50 with none alive",
            f"{stage.amounts.alive} sandboxes alive",
        ),
    ]


def _create_series(stage: Stage, metric: str, values: list[float], note: str, beside: str) -> Series:
    return Series(
        metric=metric,
        values=tuple(values),
        unit="ms",
        lifecycle=Lifecycle.COLD_PREPARED,
        isolation=stage.isolation,
        workload=f"POST /sandboxes until it is answered, {beside}",
        target="1.5 times the p50 with none" if note else "",
        note=note,
    )


async def _create_times(stage: Stage, server: ServerClient) -> list[float]:
    values = []
    for _ in range(stage.amounts.n):
        began = time.perf_counter()
        sandbox_id = await create(stage, server)
        values.append((time.perf_counter() - began) * 1000)
        await server.call("DELETE", f"/sandboxes/{sandbox_id}")
    return values


async def create(stage: Stage, server: ServerClient) -> str:
    body = {"templateID": stage.template, "timeout": _LIFE_S, "secure": True}
    made, _ = await server.call("POST", "/sandboxes", body=body)
    return str(made["sandboxID"])


@asynccontextmanager
async def _alive(stage: Stage, server: ServerClient, count: int) -> AsyncIterator[list[str]]:
    ids: list[str] = []
    try:
        for at in range(0, count, _AT_ONCE):
            fresh = (create(stage, server) for _ in range(min(_AT_ONCE, count - at)))
            results = await asyncio.gather(*fresh, return_exceptions=True)
            ids += [result for result in results if isinstance(result, str)]
            for result in results:
                if isinstance(result, BaseException):
                    raise CommandFailure(f"only {len(ids)} of {count} sandboxes could be made: {result}") from result
        yield ids
    finally:
        for at in range(0, len(ids), _AT_ONCE):
            chunk = ids[at : at + _AT_ONCE]
            await asyncio.gather(*(server.call("DELETE", f"/sandboxes/{each}") for each in chunk))


async def _answers(server: ServerClient, sandbox_id: str) -> bool:
    body = {"process": {"cmd": "/bin/echo", "args": ["hi"]}, "stdin": False}
    try:
        async for message in server.stream(sandbox_id, _START, body, user=None):
            if "end" in message.get("event", {}):
                return True
    except CommandFailure:
        return False
    return False
