"""How each figure grows: with the number of clients at once, and with the number of sandboxes alive.

One life is create, command, pause, resume, command, kill, each timed by itself
over plain HTTP. At a level of concurrency, so many clients live such lives one
after the other; at a level of density, one client does beside so many idle ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from firkin.cli.bench.density import Crowd
from firkin.cli.bench.raw_http import RawCaller
from firkin.cli.bench.samples import Lifecycle, Series, percentile
from firkin.cli.bench.stage import LIFE_S, Stage
from firkin.cli.failures import CommandFailure
from firkin.lifetimes import children

CONCURRENCY = (1, 2, 4, 8, 16, 32, 64, 100)
ALIVE = (0, 1, 10, 100, 250, 500, 1000, 2000, 4000, 8000)
_FIGURES = {
    "scale.create_ms": (Lifecycle.COLD_PREPARED, "POST /sandboxes until it is answered"),
    "scale.first_stdout_ms": (Lifecycle.COLD_PREPARED, "POST /sandboxes, then /bin/echo to its first byte"),
    "scale.exec_ms": (Lifecycle.HOT, "/bin/echo to its first byte"),
    "scale.pause_ms": (Lifecycle.RESUMED, "POST /sandboxes/ID/pause until it is answered"),
    "scale.resume_ms": (Lifecycle.RESUMED, "POST /sandboxes/ID/connect, then /bin/echo to its first byte"),
    "scale.kill_ms": (Lifecycle.CLEANUP, "DELETE /sandboxes/ID until it is answered"),
}
Samples = dict[str, list[float]]


def levels(steps: Sequence[int], most: int) -> list[int]:
    """Those up to `most`, and `most` itself."""
    return [*(step for step in steps if step < most), most]


async def by_concurrency(stage: Stage) -> list[Series]:
    found: list[Series] = []
    if stage.amounts.at_once:
        for level in levels(CONCURRENCY, stage.amounts.at_once):
            found += await _at_once(stage, level)
    return [*found, *_breakpoints(stage, found, "clients")]


async def _at_once(stage: Stage, level: int) -> list[Series]:
    lives_each = max(1, stage.amounts.n // level)
    samples: Samples = {name: [] for name in _FIGURES}
    failures = 0

    async def client() -> None:
        nonlocal failures
        async with RawCaller(stage) as caller:
            for _ in range(lives_each):
                try:
                    await _live(stage, caller, samples)
                except CommandFailure:
                    failures += 1

    began = time.perf_counter()
    async with children() as clients:
        await asyncio.gather(*(clients.start(client(), name=f"client {at}") for at in range(level)))
    rate = lives_each * level / (time.perf_counter() - began)
    what = f"lives of create, command, pause, resume, command, kill in a second, {level} clients at once"
    whole = stage.series(
        "scale.lives_per_s", [rate], Lifecycle.COLD_PREPARED, what, unit="1/s", axis="clients", level=level
    )
    return [*_swept(stage, samples, "clients", level, failures), whole]


async def by_density(stage: Stage) -> list[Series]:
    """`CommandFailure` when so many cannot be alive; what was measured until then is in what was returned before."""
    most, found = stage.amounts.alive, []
    if not most:
        return []
    async with Crowd(stage) as crowd, RawCaller(stage) as caller:
        for level in levels(ALIVE, most):
            try:
                await crowd.grow(level)
            except CommandFailure as error:
                what = f"{level} sandboxes alive"
                note = str(error)[:300]
                found.append(
                    stage.series(
                        "density.alive",
                        [crowd.size],
                        Lifecycle.RESOURCES,
                        what,
                        unit="sandboxes",
                        note=note,
                        failures=1,
                    )
                )
                break
            samples: Samples = {name: [] for name in _FIGURES}
            for _ in range(stage.amounts.n):
                await _live(stage, caller, samples)
            found += _swept(stage, samples, "alive", level, 0)
        else:
            silent = await crowd.silent()
            what = "sandboxes alive at once, each of which answered a command while all were"
            found.append(
                stage.series(
                    "density.alive", [crowd.size - silent], Lifecycle.RESOURCES, what, unit="sandboxes", failures=silent
                )
            )
    return [*found, *_ratio(stage, found, most), *_breakpoints(stage, found, "alive")]


async def _live(stage: Stage, caller: RawCaller, samples: Samples) -> None:
    inside, create_ms = await caller.create()
    path = f"/sandboxes/{inside.sandbox_id}"
    try:
        first_ms = await caller.echo(inside)
        exec_ms = await caller.echo(inside)
        pause_ms = await caller.call("POST", f"{path}/pause")
        connect_ms = await caller.call("POST", f"{path}/connect", {"timeout": LIFE_S})
        resumed_ms = await caller.echo(inside)
    except BaseException:
        await caller.kill(inside)
        raise
    kill_ms = await caller.kill(inside)
    taken = (create_ms, create_ms + first_ms, exec_ms, pause_ms, connect_ms + resumed_ms, kill_ms)
    for name, value in zip(_FIGURES, taken, strict=True):
        samples[name].append(value)


def _swept(stage: Stage, samples: Samples, axis: str, level: int, failures: int) -> list[Series]:
    beside = f"{level} clients at once" if axis == "clients" else f"{level} idle sandboxes alive"
    return [
        stage.series(name, samples[name], lifecycle, f"{what}; {beside}", axis=axis, level=level, failures=failures)
        for name, (lifecycle, what) in _FIGURES.items()
    ]


def _ratio(stage: Stage, found: Sequence[Series], most: int) -> list[Series]:
    """How much longer a create takes beside many, as the p50 of both."""
    creates = {each.level: each for each in found if each.metric == "scale.create_ms" and each.axis == "alive"}
    alone, crowded = creates.get(0), creates.get(most)
    if alone is None or crowded is None or not alone.values or not crowded.values:
        return []
    values = [percentile(crowded.values, 50) / percentile(alone.values, 50)]
    what = f"p50 of a create over HTTP beside {most} sandboxes, divided by that beside none"
    return [stage.series("create.alive_to_none_ratio", values, Lifecycle.COLD_PREPARED, what, unit="ratio")]


def _breakpoints(stage: Stage, found: Sequence[Series], axis: str) -> list[Series]:
    """The largest level at which a p95 is at most twice that of the first level."""
    result = []
    for name in ("scale.create_ms", "scale.exec_ms"):
        swept = [each for each in found if each.metric == name and each.axis == axis and each.values]
        if swept:
            short = name.removeprefix("scale.").removesuffix("_ms")
            what = f"largest tested number of {axis} at which the p95 of {short} is at most twice that of the first"
            value = float(breakpoint_of(swept))
            metric = f"density.max_{axis}_before_{short}_p95_doubles"
            result.append(stage.series(metric, [value], Lifecycle.RESOURCES, what, unit=axis))
    return result


def breakpoint_of(swept: Sequence[Series]) -> int:
    """Levels in growing order; those after the first that is too slow do not count."""
    limit = 2 * percentile(swept[0].values, 95)
    fast = swept[0].level
    for each in swept:
        if percentile(each.values, 95) > limit:
            break
        fast = each.level
    return fast
