"""Ports of sandboxes, by sandbox id."""

from __future__ import annotations

from collections.abc import Sequence

from firkin.engine.node import Node, offer_for, require
from firkin.engine.substrate import substrate
from firkin.law.capabilities import NOT_REPORTED, CapabilityName, Permanent
from firkin.law.errors import UnsupportedCapability
from firkin.law.events import PortChanged
from firkin.law.ids import SandboxId
from firkin.law.ports import ByteChannel, DomainProxy, DomainProxySpec, Port, PortBinding, PortExposure, PortProtocol

CONNECT_WITHIN_S = 10.0
_C = CapabilityName


class LocalPorts:
    """The `PortControl` of the engine."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def connect(self, sandbox_id: SandboxId, port: Port) -> ByteChannel:
        operation = "connect to a port"
        node = self._node
        await require(node, operation, sandbox_id, _C.PORTS_CONNECT)
        resident = await node.roster.meet(operation, sandbox_id)
        resident.require_running(operation)
        if resident.instance is not None:
            async with substrate(operation, resident.info.driver, within_s=CONNECT_WITHIN_S, sandbox_id=sandbox_id):
                channel = await resident.instance.dial_port(port)
            if channel is not None:
                return channel
        return await (await node.links.connect(resident)).ports.connect(port)

    async def list(self, sandbox_id: SandboxId) -> Sequence[PortBinding]:
        inside = await self._node.links.enter(sandbox_id, "list ports", _C.PORTS_CONNECT)
        listening = {binding.guest: binding for binding in await inside.ports.list()}
        shown = {**listening, **self._node.exposures.of(sandbox_id)}
        return [shown[port] for port in sorted(shown)]

    async def expose(self, sandbox_id: SandboxId, port: Port, exposure: PortExposure) -> PortBinding:
        operation = "expose a port"
        if exposure.protocol is not PortProtocol.TCP:
            raise UnsupportedCapability(operation, _C.PORTS_EXPOSE, Permanent("only TCP ports can be exposed"))
        await self._node.links.enter(sandbox_id, operation, _C.PORTS_EXPOSE)

        async def connect() -> ByteChannel:
            return await self.connect(sandbox_id, port)

        binding = await self._node.exposures.open(sandbox_id, port, exposure.host_port, connect)
        resident = self._node.roster.get(sandbox_id)
        if resident is None or resident.instance is None:  # it ended while the listener was made
            await self._node.exposures.drop(sandbox_id)
            raise await self._node.roster.absence(operation, sandbox_id)
        self._node.events.publish(PortChanged(sandbox_id, port))
        return binding

    async def domain_proxy(self, sandbox_id: SandboxId, spec: DomainProxySpec) -> DomainProxy:
        """Refused: the server in front of the engine gives out domains."""
        reason = (await offer_for(self._node, sandbox_id)).refusal(_C.PORTS_DOMAIN_PROXY) or NOT_REPORTED
        raise UnsupportedCapability("serve a domain", _C.PORTS_DOMAIN_PROXY, reason)

    async def unexpose(self, sandbox_id: SandboxId, port: Port) -> None:
        await self._node.roster.meet("unexpose a port", sandbox_id)
        await self._node.exposures.close(sandbox_id, port)
        self._node.events.publish(PortChanged(sandbox_id, port))
