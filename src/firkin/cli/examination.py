"""Gathers every finding of ``firkin doctor``: host, driver, and a sandbox that really boots."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from firkin.bootstrap.composition import close_abandoned, ensure_template, open_backend
from firkin.bootstrap.driver_loading import load_driver
from firkin.bootstrap.temporary_states import temporary_state
from firkin.bootstrap.tier_assembly import TIERS, build_driver, options_by_driver
from firkin.cli.failures import one_sentence
from firkin.cli.findings import Finding, Status, found
from firkin.cli.floor_checks import floor_findings
from firkin.cli.kernel_checks import kernel_findings
from firkin.cli.tool_checks import tls_findings, tool_findings
from firkin.law.backend import TierStatus
from firkin.law.driver import TieredDriver
from firkin.law.errors import FirkinError
from firkin.law.isolation import Isolation
from firkin.law.processes import Command
from firkin.law.sandboxes import DeleteOptions, SandboxSpec
from firkin.settings import Settings

_PROBE_WITHIN_S = 60.0
_TIER_WITHIN_S = 300.0  # of microVMs: with a kernel to fetch, a root to image and a machine to boot, emulated
_PROBE_WHY = "a sandbox was created, answered and was removed: the proof that everything above is enough"


async def examine(settings: Settings, *, probe: bool, every_tier: bool = False) -> list[Finding]:
    """`probe` boots a sandbox; with `every_tier` also one of each further tier that says it is usable."""
    findings = await asyncio.to_thread(
        lambda: [*kernel_findings(), *floor_findings(settings), *tool_findings(), *tls_findings(settings)]
    )
    if settings.driver != "namespaces":  # the host's shortcomings do not stop another driver
        findings = [
            replace(each, status=Status.DEGRADED, needed=False) if each.status is Status.MISSING else each
            for each in findings
        ]
    async with temporary_state(settings, close_abandoned) as temporary:
        findings += await _driver_findings(temporary)
        tiers = await _further_tiers(temporary)
        if isinstance(tiers, Finding):
            return [*findings, tiers]
        findings += [_tier_finding(status) for status in tiers]
        if probe:
            findings.append(await _probe(temporary))
        if probe and every_tier:
            findings += [await _tier_probe(temporary, status) for status in tiers if status.preflight.ready]
    return findings


async def _driver_findings(settings: Settings) -> list[Finding]:
    try:
        driver = load_driver(settings.driver, settings.state_dir / "drivers" / "examined", _own_options(settings))
        preflight = await driver.preflight()
    except FirkinError as error:
        return [_driver_finding(settings.driver, Status.MISSING, one_sentence(error))]
    hook: Any = getattr(driver, "doctor", None)
    own = [] if hook is None else [_finding_of(raw) for raw in await hook()]
    if preflight.ready:
        return [*own, _driver_finding(settings.driver, Status.OK, "preflight passed")]
    return [*own, *(_driver_finding(settings.driver, Status.MISSING, reason) for reason in preflight.reasons)]


def _own_options(settings: Settings) -> Mapping[str, str]:
    """Those of the default driver: of a tier, its part of what is written for several."""
    if settings.driver not in TIERS:
        return settings.driver_options
    return options_by_driver(settings.driver, settings.driver_options).get(settings.driver, {})


async def _further_tiers(settings: Settings) -> list[TierStatus] | Finding:
    """The tiers beside the default one, which are there for who asks for them."""
    try:
        driver = await asyncio.to_thread(build_driver, settings)
    except FirkinError as error:
        told = one_sentence(error)
        why = "a server with these settings does not start"
        return Finding(name="tiers", status=Status.MISSING, detail=told, why=why, mend=told, needed=True)
    tiers = await driver.tiers() if isinstance(driver, TieredDriver) else []
    return [status for status in tiers if not status.is_default]


def _tier_finding(status: TierStatus) -> Finding:
    reasons = "; ".join(status.preflight.reasons)
    return found(
        f"tier {status.isolation}",
        status.preflight.ready,
        f"usable, by the driver {status.driver}" if status.preflight.ready else reasons,
        why=f"sandboxes that ask for the isolation {status.isolation}, which are refused without it",
        mend=reasons,
    )


def _driver_finding(driver: str, status: Status, detail: str) -> Finding:
    return Finding(
        name=f"driver {driver}",
        status=status,
        detail=detail,
        why="the driver's own check of what it needs",
        mend="" if status is Status.OK else detail,
        needed=True,
    )


def _finding_of(raw: Any) -> Finding:
    """A driver's own finding: an object with `name`, `ok`, `detail`, `why` and `mend`."""
    if isinstance(raw, Finding):
        return raw
    status = Status.OK if raw.ok else Status.DEGRADED
    return Finding(name=raw.name, status=status, detail=raw.detail, why=raw.why, mend="" if raw.ok else raw.mend)


async def _probe(settings: Settings) -> Finding:
    worked, detail = await _booted_one(settings, f"driver {settings.driver}", _PROBE_WITHIN_S)
    status, mend = (Status.OK, "") if worked else (Status.MISSING, "see above")
    return Finding(name="probe", status=status, detail=detail, why=_PROBE_WHY, mend=mend, needed=True)


async def _tier_probe(settings: Settings, tier: TierStatus) -> Finding:
    worked, detail = await _booted_one(settings, f"tier {tier.isolation}", _TIER_WITHIN_S, tier.isolation)
    mend = f"choose another tier, or install another version of what the driver {tier.driver} uses"
    return found(f"probe {tier.isolation}", worked, detail, why=_PROBE_WHY, mend=mend)


async def _booted_one(
    settings: Settings, what: str, within_s: float, isolation: Isolation | None = None
) -> tuple[bool, str]:
    """Whether one answered, and what to say of it."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(within_s):
            said = await _boot_one(settings, isolation)
    except (FirkinError, OSError, TimeoutError) as error:
        return False, f"it failed: {one_sentence(error)}" if str(error) else f"no answer within {within_s:g} s"
    return True, f"a sandbox of {what} said {said!r}; {time.perf_counter() - began:.2f} s in all"


async def _boot_one(settings: Settings, isolation: Isolation | None) -> str:
    async with open_backend(settings, kill_all=True) as backend:
        template = await ensure_template(backend)
        info = await backend.sandboxes.create(SandboxSpec.from_template(template.id, isolation=isolation))
        try:
            return await _say_hello(backend.processes, info.id)
        finally:
            await backend.sandboxes.delete(info.id, DeleteOptions(force=True))


async def _say_hello(processes: Any, sandbox_id: str) -> str:
    if processes is None:
        return "nothing (this driver runs no processes)"
    output = await processes.run(sandbox_id, Command.argv("echo", "hello"))
    text: Iterable[str] = output.stdout.decode(errors="replace").split()
    return " ".join(text)
