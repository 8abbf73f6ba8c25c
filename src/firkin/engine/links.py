"""The way into each sandbox: one connection to its agent, shared by everybody.

It is opened at boot and dialled again when it was lost while the instance lives,
which is how a restarted server comes back to what it left running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from firkin.engine.guest_faults import process_errors
from firkin.engine.guest_files import GuestFiles
from firkin.engine.guest_link import GuestLink
from firkin.engine.guest_ports import GuestPorts
from firkin.engine.guest_processes import GuestProcesses
from firkin.engine.introductions import Greeting, nothing_to_say
from firkin.engine.roster import Resident, Roster
from firkin.engine.tiers import Tiers
from firkin.engine.trust import VARIABLES
from firkin.law.capabilities import CapabilityName
from firkin.law.errors import DeadlineExceeded, SandboxUnavailable
from firkin.law.ids import SandboxId
from firkin.law.introductions import Introducer
from firkin.law.sandboxes import PauseMode

DIAL_WITHIN_S = 10.0
PING_WITHIN_S = 5.0
_PAUSED: Mapping[PauseMode | None, str] = {
    PauseMode.FULL: "who was connected is cut off; its programs go on after a resumption, connect to them again then",
    PauseMode.FILESYSTEM: "it keeps its files and not its memory, so its programs have ended",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What can be done through one connection. `env` is what every command gets beneath its own.

    `own_env` is the same without what the sandbox's creator gave: what the template's programs get, which may have run
    before he came.
    """

    link: GuestLink
    greeting: Greeting
    processes: GuestProcesses
    files: GuestFiles
    ports: GuestPorts
    own_env: Mapping[str, str]
    env: Mapping[str, str]

    async def introduce(self) -> None:
        """Tell the agent who its sandbox is, and wait for no answer. `SandboxUnavailable` when the link is lost."""
        self.greeting.say()
        await self.link.flush()


class Links:
    def __init__(self, roster: Roster, tiers: Tiers, introducer: Introducer = nothing_to_say) -> None:
        self._roster = roster
        self._tiers = tiers
        self._introducer = introducer

    async def enter(self, sandbox_id: SandboxId, operation: str, *needs: CapabilityName) -> Inside:
        """The inside of a running sandbox. `NotFound`, `WrongState`, `UnsupportedCapability`, `SandboxUnavailable`."""
        resident = self._roster.get(sandbox_id)
        tier = await (self._tiers.default() if resident is None else self._tiers.of(resident.info.driver))
        tier.capabilities.require(operation, *needs)
        if resident is None:
            raise await self._roster.absence(operation, sandbox_id)
        resident.require_running(operation)
        return await self.connect(resident)

    async def connect(self, resident: Resident) -> Inside:
        """The open connection of a resident, or a new one. Those who ask together share it."""
        inside = resident.inside
        if inside is not None and not inside.link.closed.is_set():
            return inside
        async with resident.dialling:
            inside = resident.inside
            if inside is None or inside.link.closed.is_set():
                inside = resident.inside = await self._dial(resident)
        return inside

    def leaves(self, resident: Resident) -> dict[str, int]:
        """The files that its agent will be told to leave inside, and how many bytes each."""
        return {path: len(text.encode()) for path, text in self._introducer(resident.info).files.items()}

    async def ping(self, resident: Resident) -> None:
        """Return when the agent has answered; `SandboxUnavailable` otherwise."""
        inside = await self.connect(resident)
        with process_errors("reach the agent", resident.id):
            await inside.link.call("ping", {}, within_s=PING_WITHIN_S)

    async def drop(self, resident: Resident) -> None:
        """Close the connection for good: who is inside or on the way gets `SandboxUnavailable`."""
        resident.leaving = True
        if resident.dial_limit is not None and not resident.dial_limit.expired():
            resident.dial_limit.reschedule(asyncio.get_running_loop().time())
        inside, resident.inside = resident.inside, None
        if inside is not None:
            reason = _PAUSED.get(resident.info.pause_mode)
            await (inside.link.aclose(reason, paused=True) if reason else inside.link.aclose())

    def readmit(self, resident: Resident) -> None:
        """Let callers in again after a pause that had dropped the connection."""
        resident.leaving = False

    async def _dial(self, resident: Resident) -> Inside:
        instance = resident.instance
        if instance is None or resident.leaving:
            raise _left(resident)
        resident.dial_limit = limit = asyncio.timeout(DIAL_WITHIN_S)
        try:
            async with limit:
                link = await GuestLink.open(await instance.dial(), resident.id, within_s=DIAL_WITHIN_S / 2)
        except TimeoutError as error:
            if resident.leaving:
                raise _left(resident) from error
            raise DeadlineExceeded("reach the agent", DIAL_WITHIN_S, sandbox_id=resident.id) from error
        except OSError as error:
            raise SandboxUnavailable("reach the agent", resident.id, f"its agent cannot be reached: {error}") from error
        finally:
            resident.dial_limit = None
        if resident.leaving:
            await link.aclose()
            raise _left(resident)
        return self._inside(link, resident)

    def _inside(self, link: GuestLink, resident: Resident) -> Inside:
        info = resident.info
        user, workdir = info.default_user, info.default_workdir
        introduction = self._introducer(info)
        greeting = Greeting(link, introduction)
        trust = VARIABLES if info.network.rules else {}
        own = {**introduction.env, **trust, **resident.origin.base_env}
        return Inside(
            link=link,
            greeting=greeting,
            processes=GuestProcesses(link, default_user=user, default_workdir=workdir, greeting=greeting),
            files=GuestFiles(link),
            ports=GuestPorts(link),
            own_env=own,
            env={**own, **info.env},
        )

    async def acquaint(self, resident: Resident) -> Inside:
        """It has become another's: the inside, whose commands and agent know it by its record of now."""
        link = (await self.connect(resident)).link
        resident.inside = inside = self._inside(link, resident)
        return inside


def _left(resident: Resident) -> SandboxUnavailable:
    reason = _PAUSED.get(resident.info.pause_mode)
    return SandboxUnavailable("reach the agent", resident.id, reason or "it has ended", paused=reason is not None)
