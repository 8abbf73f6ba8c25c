"""Ports of one sandbox."""

from __future__ import annotations

from collections.abc import Sequence

from firkin.law.backend import PortControl, SandboxBackend
from firkin.law.capabilities import CapabilityName
from firkin.law.ids import SandboxId
from firkin.law.ports import ByteChannel, DomainProxy, DomainProxySpec, Port, PortBinding, PortExposure, PortProtocol
from firkin.runtime.required import required


class SandboxPorts:
    """The ports of one sandbox."""

    def __init__(self, backend: SandboxBackend, sandbox_id: SandboxId) -> None:
        self._backend = backend
        self._sandbox_id = sandbox_id

    async def connect(self, port: int) -> ByteChannel:
        """A connection to 127.0.0.1:`port` inside."""
        control = await self._control("connect to a port", CapabilityName.PORTS_CONNECT)
        return await control.connect(self._sandbox_id, Port(port))

    async def list(self) -> Sequence[PortBinding]:
        return await (await self._control("list ports", CapabilityName.PORTS_CONNECT)).list(self._sandbox_id)

    async def expose(
        self, port: int, *, host_port: int | None = None, protocol: PortProtocol = PortProtocol.TCP
    ) -> PortBinding:
        """Listen on the host's loopback, on `host_port` or a free one."""
        control = await self._control("expose a port", CapabilityName.PORTS_EXPOSE)
        exposure = PortExposure(protocol=protocol, host_port=None if host_port is None else Port(host_port))
        return await control.expose(self._sandbox_id, Port(port), exposure)

    async def unexpose(self, port: int) -> None:
        control = await self._control("unexpose a port", CapabilityName.PORTS_EXPOSE)
        await control.unexpose(self._sandbox_id, Port(port))

    async def domain_proxy(self, domain: str) -> DomainProxy:
        """Serve its ports below `domain`; `UnsupportedCapability` where the backend cannot."""
        control = await self._control("serve a domain", CapabilityName.PORTS_DOMAIN_PROXY)
        return await control.domain_proxy(self._sandbox_id, DomainProxySpec(domain))

    async def _control(self, operation: str, capability: CapabilityName) -> PortControl:
        return await required(self._backend, self._backend.ports, operation, capability)
