"""What every driver must do. Inherit the class and supply a driver; each test has its own.

The substrate itself is asked what is left (`Driver.live`), never our records.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from firkin.law.capabilities import CapabilityName
from firkin.law.driver import Driver, InstanceRef
from firkin.law.errors import SandboxUnavailable
from firkin.law.ids import SandboxId
from firkin.law.isolation import IsolationReport
from firkin.law.states import EndCause
from firkin.testing.conversation import Conversation
from firkin.testing.driver_capture_obligations import CaptureObligations, ContinuationObligations
from firkin.testing.driver_identity_obligations import (
    DriverPortObligations,
    FreezeObligations,
    IdentityObligations,
)
from firkin.testing.driver_layer_obligations import LayerObligations
from firkin.testing.driver_suite import ENDS_WITHIN_S, DriverSuite
from firkin.testing.driver_volume_obligations import DriverVolumeObligations
from firkin.wire.frames import CHUNK, PROTOCOL, WINDOW

USAGE_KEYS = {"cpu_us", "memory_bytes", "memory_cache_bytes", "disk_used_bytes", "oom_kills"}


class InstanceObligations(DriverSuite):
    # -- what it says of itself -----------------------------------------------------------------

    async def test_it_is_ready_and_has_a_name(self, driver: Driver) -> None:
        preflight = await driver.preflight()
        assert preflight.ready, preflight.reasons
        assert driver.name

    async def test_capabilities_name_all_and_give_a_reason_for_each_refusal(self, driver: Driver) -> None:
        report = list(await driver.capabilities())
        assert [name for name, _ in report] == list(CapabilityName)
        for name, reason in report:
            assert reason is None or str(reason).strip(), f"{name} is refused without a reason"

    # -- boot and dial --------------------------------------------------------------------------

    async def test_a_booted_instance_greets_first_and_answers(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("greets")))
        assert instance.sandbox_id == "greets"
        assert instance.ref.driver == driver.name
        async with await Conversation.open(await instance.dial()) as talk:
            assert talk.hello is not None
            assert talk.hello["protocol"] == PROTOCOL
            assert (await talk.call("ping")).result == {}

    async def test_two_connections_are_served_apart(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("twice")))
        async with await Conversation.open(await instance.dial()) as first:
            async with await Conversation.open(await instance.dial()) as second:
                assert (await second.call("ping")).result == {}
            assert (await first.call("ping")).result == {}

    async def test_a_broken_frame_ends_only_its_own_connection(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("broken")))
        async with await Conversation.open(await instance.dial()) as healthy:
            channel = await instance.dial()
            await channel.write(b"\xff" * 64)
            async with asyncio.timeout(ENDS_WITHIN_S):
                while await channel.read():
                    pass
            await channel.aclose()
            assert (await healthy.call("ping")).result == {}

    async def test_a_program_runs_with_its_arguments_exactly_as_given(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("exactly")))
        async with await Conversation.open(await instance.dial()) as talk:
            answer = await talk.run("echo", "a  b", "$HOME;", "*")
        assert bytes(answer.stdout) == b"a  b $HOME; *\n"
        assert answer.result == {"exit": 0}

    async def test_output_never_exceeds_the_credit(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("credit")))
        async with await Conversation.open(await instance.dial()) as talk:
            stream = await talk.request("start", argv=["yes"], env={}, cwd="", user="", stdin=False, pty=None)
            await talk.event(stream)
            answer = talk.answers[stream]
            before = -1
            while len(answer.stdout) > before:  # until nothing more comes
                before = len(answer.stdout)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await talk.finished(stream, grant=False)
            assert WINDOW - CHUNK < len(answer.stdout) <= WINDOW
            assert (await talk.call("ping")).result == {}

    async def test_two_instances_do_not_see_each_others_files(self, driver: Driver) -> None:
        one = await driver.boot(self.boot_plan(SandboxId("one")))
        two = await driver.boot(self.boot_plan(SandboxId("two")))
        async with await Conversation.open(await one.dial()) as talk:
            assert (await talk.run("sh", "-c", "echo secret > /tmp/mine")).result == {"exit": 0}
        async with await Conversation.open(await two.dial()) as talk:
            fault = (await talk.call("stat", path="/tmp/mine", follow=False)).fault
        assert fault is not None
        assert fault["code"] == "not_found"

    async def test_live_tells_what_runs(self, driver: Driver) -> None:
        await driver.boot(self.boot_plan(SandboxId("alpha")))
        await driver.boot(self.boot_plan(SandboxId("beta")))
        assert sorted(await driver.live()) == ["alpha", "beta"]

    # -- the end --------------------------------------------------------------------------------

    async def test_a_destroyed_instance_says_so_and_is_gone(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("destroyed")))
        await instance.destroy()
        async with asyncio.timeout(ENDS_WITHIN_S):
            end = await instance.ended()
        assert end.cause is EndCause.REQUESTED
        assert list(await driver.live()) == []
        with pytest.raises(SandboxUnavailable):
            await instance.dial()

    async def test_destroy_is_idempotent_and_may_race_itself(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("again")))
        await asyncio.gather(instance.destroy(), instance.destroy())
        await instance.destroy()
        assert list(await driver.live()) == []

    async def test_destroy_ends_open_connections_and_running_programs(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("open")))
        async with await Conversation.open(await instance.dial()) as talk:
            stream = await talk.request("start", argv=["sleep", "1000"], env={}, cwd="", user="", stdin=False, pty=None)
            await talk.event(stream)
            await instance.destroy()
            with suppress(ConnectionError):  # the program's end may still have come through
                await talk.finished(stream)
            with pytest.raises(ConnectionError):
                await talk.call("ping")

    async def test_somebody_waiting_for_the_end_can_give_up(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("patient")))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await instance.ended()
        await instance.destroy()
        assert (await instance.ended()).cause is EndCause.REQUESTED

    async def test_a_cancelled_boot_leaves_nothing(self, driver: Driver) -> None:
        for wait_s in (0.0, 0.001, 0.005, 0.02):
            boot = asyncio.get_running_loop().create_task(driver.boot(self.boot_plan(SandboxId("cancelled"))))
            await asyncio.sleep(wait_s)
            boot.cancel()
            with suppress(asyncio.CancelledError):
                await (await boot).destroy()  # it was faster than the cancellation
            await driver.discard(SandboxId("cancelled"))
            assert list(await driver.live()) == []
        assert list(await driver.sweep(keep=())) == []

    async def test_an_id_can_be_booted_again_after_discard(self, driver: Driver) -> None:
        plan = self.boot_plan(SandboxId("anew"))
        instance = await driver.boot(plan)
        await instance.destroy()
        await driver.discard(plan.sandbox_id)
        await driver.discard(plan.sandbox_id)
        again = await driver.boot(plan)
        assert again.ref != instance.ref

    async def test_discard_of_what_never_was_is_nothing(self, driver: Driver) -> None:
        await driver.discard(SandboxId("never"))

    # -- after a restart ------------------------------------------------------------------------

    async def test_a_later_server_adopts_what_lives(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("adopted")))
        async with await Conversation.open(await instance.dial()) as talk:
            await talk.run("sh", "-c", "echo kept > /tmp/kept")
        later = await self._restarted(driver)
        found = await later.adopt(instance.sandbox_id, instance.ref)
        assert found is not None
        async with await Conversation.open(await found.dial()) as talk:
            assert bytes((await talk.run("cat", "/tmp/kept")).stdout) == b"kept\n"
        await found.destroy()
        assert list(await later.live()) == []

    async def test_what_is_gone_is_not_adopted(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("gone")))
        await instance.destroy()
        later = await self._restarted(driver)
        assert await later.adopt(instance.sandbox_id, instance.ref) is None
        assert await later.adopt(SandboxId("never"), InstanceRef(driver.name, {})) is None

    async def test_sweep_keeps_what_it_is_told_to_and_removes_the_rest(self, driver: Driver) -> None:
        await driver.boot(self.boot_plan(SandboxId("kept")))
        await driver.boot(self.boot_plan(SandboxId("orphan")))
        removed = await driver.sweep(keep=[SandboxId("kept")])
        assert any("orphan" in line for line in removed)
        assert not any("kept" in line for line in removed)
        assert list(await driver.live()) == ["kept"]
        assert list(await driver.sweep(keep=[SandboxId("kept")])) == []

    # -- isolation ------------------------------------------------------------------------------

    async def test_it_reports_what_holds_it_in_and_why_the_rest_is_not_known(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("held")))
        report = await instance.isolation()
        assert report.driver == instance.ref.driver
        assert report.tier
        for name in IsolationReport.facts():
            assert (getattr(report, name) is None) == (name in report.unread), name
        await instance.destroy()
        with pytest.raises(SandboxUnavailable):
            await instance.isolation()

    # -- figures --------------------------------------------------------------------------------

    async def test_usage_has_every_counter(self, driver: Driver) -> None:
        instance = await driver.boot(self.boot_plan(SandboxId("usage")))
        usage = await instance.usage()
        assert set(usage) >= USAGE_KEYS
        assert all(value >= 0 for value in usage.values())
        assert usage["memory_bytes"] > 0

    async def test_ten_boots_at_once_all_live(self, driver: Driver) -> None:
        plans = [self.boot_plan(SandboxId(f"many{number}")) for number in range(10)]
        await asyncio.gather(*(driver.boot(plan) for plan in plans))
        assert len(await driver.live()) == 10


class DriverContract(
    InstanceObligations,
    FreezeObligations,
    IdentityObligations,
    DriverPortObligations,
    CaptureObligations,
    ContinuationObligations,
    LayerObligations,
    DriverVolumeObligations,
):
    """Supply what `firkin.testing.driver_suite.DriverSuite` asks for."""
