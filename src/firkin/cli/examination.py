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
from firkin.law.processes import Command
from firkin.law.sandboxes import DeleteOptions, SandboxSpec
from firkin.settings import Settings

_PROBE_WITHIN_S = 60.0
_PROBE_WHY = "a sandbox was created, answered and was removed: the proof that everything above is enough"


async def examine(settings: Settings, *, probe: bool) -> list[Finding]:
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
        findings += await _tier_findings(temporary)
        if probe:
            findings.append(await _probe(temporary))
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


async def _tier_findings(settings: Settings) -> list[Finding]:
    """The tiers beside the default one, which are there for who asks for them."""
    try:
        driver = await asyncio.to_thread(build_driver, settings)
    except FirkinError as error:
        told = one_sentence(error)
        why = "a server with these settings does not start"
        return [Finding(name="tiers", status=Status.MISSING, detail=told, why=why, mend=told, needed=True)]
    tiers = await driver.tiers() if isinstance(driver, TieredDriver) else []
    return [_tier_finding(status) for status in tiers if not status.is_default]


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
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_PROBE_WITHIN_S):
            said = await _boot_one(settings)
    except (FirkinError, OSError, TimeoutError) as error:
        said = f"it failed: {one_sentence(error)}" if str(error) else f"no answer within {_PROBE_WITHIN_S:g} s"
        return Finding(name="probe", status=Status.MISSING, detail=said, why=_PROBE_WHY, mend="see above", needed=True)
    detail = f"a sandbox of driver {settings.driver} said {said!r}; {time.perf_counter() - began:.2f} s in all"
    return Finding(name="probe", status=Status.OK, detail=detail, why=_PROBE_WHY, needed=True)


async def _boot_one(settings: Settings) -> str:
    async with open_backend(settings, kill_all=True) as backend:
        template = await ensure_template(backend)
        info = await backend.sandboxes.create(SandboxSpec.from_template(template.id))
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
