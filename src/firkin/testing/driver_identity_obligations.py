"""Obligations of a driver: an instance can be stopped where it is, knows who it is, and its ports are reached."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from firkin.law.capabilities import CapabilityName
from firkin.law.driver import Driver, Instance
from firkin.law.errors import PortFailure
from firkin.law.ids import SandboxId
from firkin.testing.backend_suite import ECHO_SERVER
from firkin.testing.conversation import Conversation
from firkin.testing.driver_suite import ENDS_WITHIN_S, DriverSuite, becomes, begun, needs, said

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
COUNTING = "i=0; while true; do i=$((i+1)); echo $i >> /tmp/lines; done"
_PORT = 7777
_PAUSES = (CapabilityName.PAUSE_CAPTURE, CapabilityName.PAUSE_RESUME)


async def silent(instance: Instance) -> bool:
    """Whether its agent says nothing for a while."""
    channel = await instance.dial()
    try:
        async with asyncio.timeout(0.2):
            return not await channel.read()
    except TimeoutError:
        return True
    finally:
        await channel.aclose()


class FreezeObligations(DriverSuite):
    async def test_a_frozen_instance_is_silent_until_thawed(self, driver: Driver) -> None:
        await needs(driver, *_PAUSES)
        instance = await driver.boot(self.boot_plan(SandboxId("frozen")))
        async with await Conversation.open(await instance.dial()) as talk:
            await instance.freeze()
            stream = await talk.request("ping")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await talk.finished(stream)
            await instance.thaw()
            assert (await talk.finished(stream)).result == {}

    async def test_freezing_and_thawing_twice_are_once(self, driver: Driver) -> None:
        await needs(driver, *_PAUSES)
        instance = await driver.boot(self.boot_plan(SandboxId("twicefrozen")))
        await instance.thaw()
        await instance.freeze()
        await instance.freeze()
        assert await silent(instance)
        await instance.thaw()
        await instance.thaw()
        assert await said(instance, "echo well") == "well\n"

    async def test_racing_freezes_and_thaws_leave_the_last_ones_state(self, driver: Driver) -> None:
        await needs(driver, *_PAUSES)
        instance = await driver.boot(self.boot_plan(SandboxId("racing")))
        await asyncio.gather(*(instance.freeze() for _ in range(4)))
        assert await silent(instance)
        await asyncio.gather(*(instance.thaw() for _ in range(4)))
        assert await said(instance, "echo well") == "well\n"

    async def test_programs_go_on_after_a_freeze_where_they_were(self, driver: Driver) -> None:
        await needs(driver, *_PAUSES)
        instance = await driver.boot(self.boot_plan(SandboxId("goeson")))
        await begun(instance, "echo $$ > /tmp/pid; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo $$ > /tmp/after")
        await becomes(instance, "[ -s /tmp/pid ]; echo $?", "0\n")
        await instance.freeze()
        await instance.reclaim()
        await instance.thaw()
        await said(instance, "echo > /tmp/go")
        await becomes(instance, "[ -s /tmp/after ]; echo $?", "0\n")
        assert await said(instance, "cat /tmp/pid") == await said(instance, "cat /tmp/after")

    async def test_reclaiming_never_fails(self, driver: Driver) -> None:
        await needs(driver, *_PAUSES)
        instance = await driver.boot(self.boot_plan(SandboxId("reclaimed")))
        await instance.freeze()
        await asyncio.gather(instance.reclaim(), instance.reclaim())
        reclaiming = asyncio.gather(instance.reclaim(), instance.thaw())
        await reclaiming
        assert await said(instance, "echo well") == "well\n"
        await instance.destroy()
        await instance.reclaim()

    async def test_a_frozen_instance_is_held_in_as_before(self, driver: Driver) -> None:
        await needs(driver, *_PAUSES)
        instance = await driver.boot(self.boot_plan(SandboxId("heldfrozen")))
        report = await instance.isolation()
        await instance.freeze()
        assert (await instance.isolation()).uid_map == report.uid_map

    async def test_a_frozen_instance_can_be_destroyed(self, driver: Driver) -> None:
        await needs(driver, *_PAUSES)
        instance = await driver.boot(self.boot_plan(SandboxId("frozenend")))
        await instance.freeze()
        async with asyncio.timeout(ENDS_WITHIN_S):
            await instance.destroy()
        assert list(await driver.live()) == []

    async def test_a_frozen_instance_is_adopted_frozen(self, driver: Driver) -> None:
        await needs(driver, *_PAUSES)
        instance = await driver.boot(self.boot_plan(SandboxId("asleep")))
        await said(instance, "echo kept > /tmp/kept")
        await instance.freeze()
        later = await self._restarted(driver)
        found = await later.adopt(instance.sandbox_id, instance.ref)
        assert found is not None
        assert await silent(found)
        await found.thaw()
        assert await said(found, "cat /tmp/kept") == "kept\n"


class IdentityObligations(DriverSuite):
    async def test_the_hostname_is_the_plans(self, driver: Driver) -> None:
        plan = replace(self.boot_plan(SandboxId("named")), hostname="named-so")
        instance = await driver.boot(plan)
        assert await said(instance, "hostname") == "named-so\n"
        assert await said(instance, "cat /etc/hostname") == "named-so\n"
        assert "named-so" in (await said(instance, "cat /etc/hosts")).split()

    async def test_the_machine_id_is_the_plans(self, driver: Driver) -> None:
        plan = replace(self.boot_plan(SandboxId("machine")), machine_id="0123456789abcdef" * 2)
        assert await said(await driver.boot(plan), "cat /etc/machine-id") == plan.machine_id + "\n"

    async def test_the_boot_id_is_of_one_boot_and_survives_a_freeze(self, driver: Driver) -> None:
        await needs(driver, *_PAUSES)
        one = await driver.boot(self.boot_plan(SandboxId("one")))
        two = await driver.boot(self.boot_plan(SandboxId("two")))
        mine = await said(one, BOOT_ID)
        assert len(mine.strip()) == 36
        assert mine != await said(two, BOOT_ID)
        await one.freeze()
        await one.thaw()
        assert await said(one, BOOT_ID) == mine


class DriverPortObligations(DriverSuite):
    def listener(self, port: int) -> list[str]:
        """A command that serves connections on a port and sends back what it gets."""
        return ["python3", "-c", ECHO_SERVER.format(port=port)]

    async def test_a_port_is_dialled_past_the_agent_where_the_driver_can(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("ports")))
        try:
            assert await instance.dial_port(_PORT) is None, "nothing listens yet"
            pytest.skip("only the agent makes connections here")
        except PortFailure as failure:
            refused = failure.refused
        assert refused
        async with await Conversation.open(await instance.dial()) as talk:
            stream = await talk.request(
                "start", argv=self.listener(_PORT), env={}, cwd="", user="", stdin=False, pty=None
            )
            await talk.event(stream)
            while _PORT not in ((await talk.call("listening")).result or {}).get("ports", []):
                assert talk.answers[stream].result is None, bytes(talk.answers[stream].stderr)
        channel = await instance.dial_port(_PORT)
        assert channel is not None
        await channel.write(b"through")
        await channel.end()
        async with asyncio.timeout(ENDS_WITHIN_S):
            received = b""
            while data := await channel.read():
                received += data
        assert received == b"through"
        await channel.aclose()
