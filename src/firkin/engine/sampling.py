"""What each sandbox has used over its life, from the host's counters alone: nothing inside is asked.

One task samples all of them: each a second after its start and then every five,
less often when there are so many that this would take more than a fiftieth of one
CPU. A sandbox's samples are packed; when there is no room for another, every second
one of the older is dropped, so that the whole life stays in view.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from firkin.engine.clock import Clock
from firkin.engine.logs import LogStore
from firkin.engine.programs import Programs
from firkin.engine.records import Records
from firkin.engine.roster import Resident, Roster
from firkin.law.errors import FirkinError
from firkin.law.ids import SandboxId
from firkin.law.logs import LogLevel, LogSource
from firkin.law.metrics import SandboxUsage
from firkin.law.states import SandboxState

TICK_S = 0.5
FIRST_AFTER_S = 1.0
EVERY_S = 5.0
EVERY_AT_MOST_S = 60.0
MOST_CPU_SHARE = 0.02
KEPT = 240
COUNTERS_WITHIN_S = 1.0
_NEWEST_KEPT = KEPT // 3
_SHORTEST_INTERVAL_S = 0.05
_POINT = struct.Struct("<dfQQQ")  # Unix time, per cent of a CPU, memory, its file cache, disk
_MOST_BYTES = (1 << 63) - 1
_ENDED = frozenset({SandboxState.STOPPED, SandboxState.FAILED})
_log = logging.getLogger("firkin.engine")

Point = tuple[float, float, int, int, int]


class UsageTrack:
    """The samples of one sandbox, oldest first: 36 bytes each, at most `KEPT`."""

    __slots__ = ("_packed", "anchor", "cpu_pct", "due", "peak_bytes", "told")

    def __init__(self, due: float) -> None:
        self._packed = bytearray()
        self.due = due
        self.anchor: tuple[float, int] | None = None  # monotonic time and CPU µs that the next interval begins with
        self.cpu_pct = 0.0
        self.peak_bytes = 0
        self.told = False  # its peak and its log are recorded, for it has ended

    def __len__(self) -> int:
        return len(self._packed) // _POINT.size

    def __iter__(self) -> Iterator[Point]:
        return _POINT.iter_unpack(bytes(self._packed))

    @property
    def size_bytes(self) -> int:
        return len(self._packed)

    def add(self, point: Point) -> None:
        if len(self) >= KEPT:
            self._thin_out()
        self._packed += _POINT.pack(*point)

    def _thin_out(self) -> None:
        points = list(self)
        older, newer = points[:-_NEWEST_KEPT], points[-_NEWEST_KEPT:]
        self._packed = bytearray(b"".join(_POINT.pack(*point) for point in (*older[::2], *newer)))

    def pct_since_anchor(self, now: float, cpu_us: int, began: float) -> float:
        """Per cent of one CPU since the anchor, or since `began` where there is none."""
        before, used = self.anchor or (began, 0)
        took_s = now - before
        if took_s < _SHORTEST_INTERVAL_S:
            return self.cpu_pct
        spent_us = cpu_us - used if cpu_us >= used else cpu_us  # less than before: it was booted anew
        return spent_us / (took_s * 10_000)


class Samples:
    """The tracks of every sandbox on the roster, and the task that fills them."""

    def __init__(self, roster: Roster, *, clock: Clock, records: Records, logs: LogStore, programs: Programs) -> None:
        self._roster = roster
        self._clock = clock
        self._records = records
        self._logs = logs
        self._programs = programs
        self._tracks: dict[SandboxId, UsageTrack] = {}
        self._cost_s = 0.0

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            try:
                await self._round()
            except FirkinError as error:
                _log.error("sampling failed error=%s", error)
            await self._clock.sleep_until(self._clock.monotonic() + TICK_S)

    @property
    def every_s(self) -> float:
        """How long it is from one sample of a sandbox to its next."""
        needed_s = len(self._tracks) * self._cost_s / MOST_CPU_SHARE
        return min(EVERY_AT_MOST_S, max(EVERY_S, needed_s))

    async def now(self, resident: Resident) -> SandboxUsage | None:
        """A sample taken and kept at once; None when it has nothing to measure."""
        track = self._track(resident)
        await self._sample(resident, track)
        newest = list(track)[-1:]
        return _usage(resident, newest[0]) if newest else None

    def history(self, resident: Resident) -> list[SandboxUsage]:
        """What is kept of it, oldest first."""
        track = self._tracks.get(resident.id)
        return [] if track is None else [_usage(resident, point) for point in track]

    def cpu_pct(self, resident: Resident, cpu_us: int) -> float:
        """Per cent of one CPU since the last sample, which this reading leaves as it is."""
        track = self._tracks.get(resident.id) or UsageTrack(0.0)
        return round(track.pct_since_anchor(self._clock.monotonic(), cpu_us, self._began(resident)), 2)

    def peak_bytes(self, sandbox_id: SandboxId) -> int:
        """The most memory measured; 0 when nothing was, or when it is gone."""
        track = self._tracks.get(sandbox_id)
        return 0 if track is None else track.peak_bytes

    def reached_limit(self, resident: Resident) -> None:
        """The kernel found all of its memory in use, which samples are too seldom to see."""
        track = self._track(resident)
        track.peak_bytes = max(track.peak_bytes, resident.info.resources.memory_bytes)

    def retire(self, sandbox_id: SandboxId) -> None:
        """The sandbox is gone: keep its peak in the records and drop the rest."""
        track = self._tracks.pop(sandbox_id, None)
        if track is not None and track.peak_bytes:
            self._records.keep_peak(sandbox_id, track.peak_bytes)

    def _track(self, resident: Resident) -> UsageTrack:
        track = self._tracks.get(resident.id)
        if track is None:
            track = self._tracks[resident.id] = UsageTrack(self._clock.monotonic() + FIRST_AFTER_S)
        return track

    async def _round(self) -> None:
        now = self._clock.monotonic()
        for resident in self._roster:
            state = resident.info.state
            if state is SandboxState.RUNNING and resident.instance is not None:
                track = self._track(resident)
                if track.due <= now or track.anchor is None:
                    await self._measure(resident, track)
            elif (old := self._tracks.get(resident.id)) is not None:
                self._rest(resident, old)
        for sandbox_id in [sandbox_id for sandbox_id in self._tracks if sandbox_id not in self._roster]:
            self.retire(sandbox_id)

    def _rest(self, resident: Resident, track: UsageTrack) -> None:
        """It does not run: the time that it stands still is no part of an interval."""
        track.anchor = None
        if resident.info.state in _ENDED and not track.told:
            track.told = True
            self._records.keep_peak(resident.id, track.peak_bytes)
            self._logs.keep(resident.id)

    async def _measure(self, resident: Resident, track: UsageTrack) -> None:
        began = time.thread_time()
        if track.due <= self._clock.monotonic():
            await self._sample(resident, track)
        else:
            counters = await self._counters(resident)
            if counters is not None and track.anchor is None:
                track.anchor = (self._clock.monotonic(), counters.get("cpu_us", 0))
        spent_s = time.thread_time() - began
        self._cost_s = spent_s if not self._cost_s else 0.9 * self._cost_s + 0.1 * spent_s
        await asyncio.sleep(0)  # others may run between two sandboxes

    async def _sample(self, resident: Resident, track: UsageTrack) -> None:
        track.due = self._clock.monotonic() + self.every_s
        counters = await self._counters(resident)
        if counters is None:
            return
        memory = _amount(counters, "memory_bytes")
        track.peak_bytes = max(track.peak_bytes, memory, _amount(counters, "memory_peak_bytes"))
        now, cpu_us = self._clock.monotonic(), _amount(counters, "cpu_us")
        track.cpu_pct = track.pct_since_anchor(now, cpu_us, self._began(resident))
        track.anchor = (now, cpu_us)
        cache, disk = _amount(counters, "memory_cache_bytes"), _amount(counters, "disk_used_bytes")
        track.add((self._clock.now().timestamp(), track.cpu_pct, memory, cache, disk))

    async def _counters(self, resident: Resident) -> Mapping[str, int] | None:
        if resident.instance is None:
            return None
        try:
            async with asyncio.timeout(COUNTERS_WITHIN_S):
                counters = await resident.instance.usage()
        except (FirkinError, OSError, TimeoutError) as error:  # it may be ending
            _log.debug("not sampled sandbox=%s error=%s", resident.id, error)
            return None
        if self._programs.saw_oom_kills(resident.id, _amount(counters, "oom_kills")):
            told = "out of memory: the kernel killed a program inside, for the sandbox had used all of its memory"
            self._logs.write(resident.id, LogSource.PROCESS, told, LogLevel.WARN)
            self.reached_limit(resident)
        return counters

    def _began(self, resident: Resident) -> float:
        started = resident.info.started_at or resident.info.created_at
        return self._clock.monotonic() - max(0.0, (self._clock.now() - started).total_seconds())


def _amount(counters: Mapping[str, int], name: str) -> int:
    return min(_MOST_BYTES, max(0, counters.get(name, 0)))


def _usage(resident: Resident, point: Point) -> SandboxUsage:
    at, cpu_pct, memory, cache, disk = point
    resources = resident.info.resources
    return SandboxUsage(
        sandbox_id=resident.id,
        observed_at=datetime.fromtimestamp(at, UTC),
        cpu_count=resources.vcpus,
        cpu_used_pct=round(cpu_pct, 2),
        memory_used_bytes=memory,
        memory_cache_bytes=cache,
        memory_total_bytes=resources.memory_bytes,
        disk_used_bytes=disk,
        disk_total_bytes=resources.disk_bytes,
    )
