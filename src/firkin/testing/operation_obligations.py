"""Obligations of a backend: capacity, restarts, ports, and what can be observed from outside."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from firkin.law.backend import PortControl, ProcessControl, SandboxBackend
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import (
    CapacityRejected,
    FirkinError,
    NotFound,
    PortFailure,
    RetryClass,
    UnsupportedCapability,
)
from firkin.law.events import EventFilter, LifecycleChanged
from firkin.law.logs import LogFilter
from firkin.law.metrics import MetricFilter
from firkin.law.policies import Capacity, DeadlinePolicy, HygienePolicy, Policies
from firkin.law.ports import ByteChannel, DomainProxySpec, Port, PortExposure
from firkin.law.processes import Argv, ById, Command
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import DeleteOptions, Never, SandboxFilter, SandboxInfo, SandboxSpec, Timeout
from firkin.law.states import SandboxState
from firkin.law.templates import TemplateInfo
from firkin.testing.backend_suite import FREE, PATIENCE_S, BackendSuite, MakeBackend, eventually

_PORT = Port(18080)
_SMALL = SandboxResources(vcpus=1, memory_bytes=128 * MIB, disk_bytes=64 * MIB)


def _limited(**limits: int) -> Policies:
    return Policies(capacity=Capacity(memory_floor_bytes=0, disk_floor_bytes=0, **limits))


class CapacityObligations(BackendSuite):
    async def test_one_above_the_limit_is_rejected_with_what_is_short(self, make_backend: MakeBackend) -> None:
        backend = await make_backend(_limited(max_sandboxes=1))
        try:
            template = await backend.templates.prepare(self.template_spec)
            first = await backend.sandboxes.create(self.spec(template))
            with pytest.raises(CapacityRejected) as caught:
                await backend.sandboxes.create(self.spec(template))
            assert "sandbox" in caught.value.short
            assert (caught.value.requested, caught.value.available) == (1, 0)
            assert caught.value.retry is RetryClass.RETRYABLE
            await backend.sandboxes.delete(first.id, DeleteOptions(force=True))
            await backend.sandboxes.create(self.spec(template))
        finally:
            await backend.aclose(kill_all=True)

    async def test_cpus_and_memory_are_counted_too(self, make_backend: MakeBackend) -> None:
        backend = await make_backend(_limited(max_vcpus=1, max_memory_bytes=200 * MIB))
        try:
            template = await backend.templates.prepare(self.template_spec)
            await backend.sandboxes.create(self.spec(template, resources=_SMALL))
            with pytest.raises(CapacityRejected):
                await backend.sandboxes.create(self.spec(template, resources=_SMALL))
            assert len(await backend.sandboxes.list(SandboxFilter())) == 1
        finally:
            await backend.aclose(kill_all=True)

    async def test_a_rush_gets_exactly_what_is_allowed(self, make_backend: MakeBackend) -> None:
        backend = await make_backend(_limited(max_sandboxes=5))
        try:
            template = await backend.templates.prepare(self.template_spec)
            answers = await asyncio.gather(
                *(backend.sandboxes.create(self.spec(template)) for _ in range(20)), return_exceptions=True
            )
            made = [answer for answer in answers if isinstance(answer, SandboxInfo)]
            rejected = [answer for answer in answers if isinstance(answer, CapacityRejected)]
            assert (len(made), len(rejected)) == (5, 15)
            assert {info.id for info in await backend.sandboxes.list(SandboxFilter())} == {info.id for info in made}
        finally:
            await backend.aclose(kill_all=True)

    async def test_deadline_policies_are_enforced(self, make_backend: MakeBackend) -> None:
        deadlines = DeadlinePolicy(default_timeout_s=50.0, max_timeout_s=100.0)
        backend = await make_backend(Policies(capacity=FREE.capacity, deadlines=deadlines))
        try:
            template = await backend.templates.prepare(self.template_spec)
            info = await backend.sandboxes.create(SandboxSpec.from_template(template.id))
            assert info.deadline_at is not None
            assert info.deadline_at - datetime.now(UTC) < timedelta(seconds=51)
            for deadline in (Timeout(101), Never()):
                with pytest.raises(FirkinError):
                    await backend.sandboxes.create(self.spec(template, deadline=deadline))
                with pytest.raises(FirkinError):
                    await backend.sandboxes.update_deadline(info.id, deadline)
        finally:
            await backend.aclose(kill_all=True)


class RestartObligations(BackendSuite):
    async def test_a_restarted_backend_finds_everything_again(self, make_backend: MakeBackend) -> None:
        first = await make_backend(FREE)
        template = await first.templates.prepare(self.template_spec)
        info = await first.sandboxes.create(self.spec(template, metadata={"k": "v"}, deadline=Timeout(500)))
        if first.processes is not None:
            await first.processes.run(info.id, Command.shell("echo kept > /tmp/kept"))
            started = await first.processes.start(info.id, Command(mode=Argv("cat"), keep_stdin=True))
        await first.aclose()
        second = await make_backend(FREE)
        try:
            assert await second.templates.get(template.id) == template
            assert await second.sandboxes.inspect(info.id) == info
            if second.processes is not None:
                assert (await second.processes.run(info.id, Command.argv("cat", "/tmp/kept"))).stdout == b"kept\n"
                await second.processes.send_input(info.id, ById(started.id), b"still here\n")
                await second.processes.close_stdin(info.id, ById(started.id))
                assert (await second.processes.wait(info.id, ById(started.id))).stdout == b"still here\n"
        finally:
            await second.aclose(kill_all=True)

    async def test_a_deadline_that_passed_meanwhile_is_enforced_at_start(self, make_backend: MakeBackend) -> None:
        first = await make_backend(FREE)
        template = await first.templates.prepare(self.template_spec)
        info = await first.sandboxes.create(self.spec(template, deadline=Timeout(0.3)))
        await first.aclose()
        await asyncio.sleep(0.3)
        second = await make_backend(FREE)
        try:
            assert "deadline" in (await self.gone(second, info.id)).detail
        finally:
            await second.aclose(kill_all=True)

    async def test_ends_are_remembered_over_a_restart(self, make_backend: MakeBackend) -> None:
        first = await make_backend(FREE)
        template = await first.templates.prepare(self.template_spec)
        info = await first.sandboxes.create(self.spec(template))
        await first.sandboxes.delete(info.id, DeleteOptions(force=True))
        await first.aclose()
        second = await make_backend(FREE)
        try:
            with pytest.raises(NotFound) as caught:
                await second.sandboxes.inspect(info.id)
            assert caught.value.detail
            assert (await second.sandboxes.create(self.spec(template))).id != info.id
        finally:
            await second.aclose(kill_all=True)

    async def test_kill_on_close_leaves_nothing(self, make_backend: MakeBackend) -> None:
        backend = await make_backend(Policies(capacity=FREE.capacity, hygiene=HygienePolicy(kill_on_close=True)))
        template = await backend.templates.prepare(self.template_spec)
        await backend.sandboxes.create(self.spec(template))
        await backend.aclose()
        later = await make_backend(FREE)
        try:
            assert await self.leftovers(later) == []
        finally:
            await later.aclose(kill_all=True)


async def _echoed(channel: ByteChannel, data: bytes) -> bytes:
    await channel.write(data)
    await channel.end()
    received = b""
    async with asyncio.timeout(PATIENCE_S):
        while part := await channel.read():
            received += part
    await channel.aclose()
    return received


class PortObligations(BackendSuite):
    @pytest.fixture
    def ports(self, backend: SandboxBackend, capabilities: Capabilities) -> PortControl:
        if backend.ports is None:
            pytest.skip(f"no ports here: {capabilities.refusal(CapabilityName.PORTS_CONNECT)}")
        return backend.ports

    async def _listening(self, processes: ProcessControl, ports: PortControl, sandbox: SandboxInfo) -> None:
        await processes.start(sandbox.id, self.listener(_PORT))

        async def listens() -> bool:
            return _PORT in [binding.guest for binding in await ports.list(sandbox.id)]

        await eventually(listens)

    async def test_a_port_without_listener_refuses(self, ports: PortControl, sandbox: SandboxInfo) -> None:
        with pytest.raises(PortFailure) as caught:
            await ports.connect(sandbox.id, _PORT)
        assert (caught.value.refused, caught.value.port) == (True, _PORT)

    async def test_bytes_go_both_ways(
        self, ports: PortControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await self._listening(processes, ports, sandbox)
        data = bytes(range(256)) * 1000
        answers = await asyncio.gather(*(_echo_through(ports, sandbox, data + bytes([number])) for number in range(2)))
        assert answers == [data + b"\x00", data + b"\x01"]

    async def test_an_exposed_port_is_reached_from_the_host(
        self, ports: PortControl, processes: ProcessControl, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        if not capabilities.supports(CapabilityName.PORTS_EXPOSE):
            pytest.skip(str(capabilities.refusal(CapabilityName.PORTS_EXPOSE)))
        await self._listening(processes, ports, sandbox)
        binding = await ports.expose(sandbox.id, _PORT, PortExposure())
        assert binding.host is not None
        assert binding in await ports.list(sandbox.id)
        reader, writer = await asyncio.open_connection("127.0.0.1", binding.host)
        writer.write(b"through")
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b"through"
        writer.close()
        await writer.wait_closed()
        await ports.unexpose(sandbox.id, _PORT)
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", binding.host)

    async def test_a_domain_is_served_or_refused(
        self, ports: PortControl, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        wish = DomainProxySpec("sandboxes.example")
        if capabilities.supports(CapabilityName.PORTS_DOMAIN_PROXY):
            assert (await ports.domain_proxy(sandbox.id, wish)).domain == wish.domain
            return
        with pytest.raises(UnsupportedCapability) as refused:
            await ports.domain_proxy(sandbox.id, wish)
        assert refused.value.capability is CapabilityName.PORTS_DOMAIN_PROXY


async def _echo_through(ports: PortControl, sandbox: SandboxInfo, data: bytes) -> bytes:
    return await _echoed(await ports.connect(sandbox.id, _PORT), data)


class ObservationObligations(BackendSuite):
    async def test_events_tell_a_life_in_order(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        if backend.events is None:
            pytest.skip("no events here")
        stream = await backend.events.subscribe(EventFilter())
        info = await backend.sandboxes.create(self.spec(template))
        await backend.sandboxes.delete(info.id, DeleteOptions(force=True))
        states: list[SandboxState] = []
        async with asyncio.timeout(PATIENCE_S):
            while SandboxState.DELETED not in states:
                kind = (await anext(stream)).kind
                if isinstance(kind, LifecycleChanged):
                    assert kind.sandbox_id == info.id
                    states.append(kind.state)
        await stream.aclose()
        assert SandboxState.RUNNING in states
        assert states.index(SandboxState.RUNNING) < states.index(SandboxState.DELETED)
        assert states == sorted(states, key=list(SandboxState).index)

    async def test_a_subscriber_sees_only_what_it_asked_for(
        self, backend: SandboxBackend, template: TemplateInfo
    ) -> None:
        if backend.events is None:
            pytest.skip("no events here")
        one, two = [await backend.sandboxes.create(self.spec(template)) for _ in range(2)]
        stream = await backend.events.subscribe(EventFilter(sandbox_id=two.id))
        for info in (one, two):
            await backend.sandboxes.delete(info.id, DeleteOptions(force=True))
        async with asyncio.timeout(PATIENCE_S):
            assert getattr((await anext(stream)).kind, "sandbox_id", None) == two.id
        await stream.aclose()

    async def test_logs_are_kept_and_filtered(
        self, backend: SandboxBackend, template: TemplateInfo, sandbox: SandboxInfo
    ) -> None:
        if backend.logs is None:
            pytest.skip("no logs here")
        other = await backend.sandboxes.create(self.spec(template))
        entries = await backend.logs.list(LogFilter(sandbox_id=sandbox.id))
        assert entries
        assert {entry.sandbox_id for entry in entries} == {sandbox.id}
        assert [entry.observed_at for entry in entries] == sorted(entry.observed_at for entry in entries)
        assert len(await backend.logs.list(LogFilter(limit=1))) == 1
        late = datetime.now(UTC) + timedelta(days=1)
        assert list(await backend.logs.list(LogFilter(sandbox_id=other.id, since=late))) == []

    async def test_log_entries_are_told_as_they_are_written(
        self, backend: SandboxBackend, template: TemplateInfo
    ) -> None:
        if backend.logs is None:
            pytest.skip("no logs here")
        stream = await backend.logs.stream(LogFilter())
        info = await backend.sandboxes.create(self.spec(template))
        async with asyncio.timeout(PATIENCE_S):
            while (await anext(stream)).sandbox_id != info.id:
                pass
        await stream.aclose()

    async def test_metrics_have_units_and_prefixes(self, backend: SandboxBackend, sandbox: SandboxInfo) -> None:
        if backend.metrics is None:
            pytest.skip("no metrics here")
        metrics = await backend.metrics.snapshot(MetricFilter())
        assert metrics
        prefix = metrics[0].name[:4]
        chosen = await backend.metrics.snapshot(MetricFilter(prefix=prefix))
        assert {metric.name for metric in chosen} == {m.name for m in metrics if m.name.startswith(prefix)}

    async def test_usage_is_a_sample_within_the_limits(
        self, backend: SandboxBackend, capabilities: Capabilities, template: TemplateInfo
    ) -> None:
        if backend.metrics is None or not capabilities.supports(CapabilityName.METRICS_GUEST):
            pytest.skip("no figures of sandboxes here")
        info = await backend.sandboxes.create(self.spec(template, resources=_SMALL))
        usage = await backend.metrics.usage(info.id)
        assert (usage.sandbox_id, usage.cpu_count) == (info.id, 1)
        assert usage.cpu_used_pct >= 0
        assert 0 < usage.memory_used_bytes <= usage.memory_total_bytes
        assert 0 <= usage.disk_used_bytes <= usage.disk_total_bytes
        assert usage.memory_total_bytes == _SMALL.memory_bytes
