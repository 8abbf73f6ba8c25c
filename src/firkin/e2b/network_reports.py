"""What became of a sandbox's traffic, as ``GET /firkin/v1/sandboxes/{id}/network`` tells it."""

from __future__ import annotations

from typing import Any

from firkin.e2b.networks import shown
from firkin.law.network_use import NetworkUse, RefusedFlow, SandboxNetwork
from firkin.law.sandboxes import SandboxInfo


def network_report(info: SandboxInfo, network: SandboxNetwork) -> dict[str, Any]:
    """`address` and the counters are null while it has no network: paused without its memory, or without a kernel."""
    return {
        "sandboxID": str(info.id),
        "policy": {"internet": info.network.internet, **shown(info)},
        **(_nothing() if network.use is None else _used(network.use)),
    }


def _nothing() -> dict[str, Any]:
    return {"address": None, "counters": None, "refused": [], "trouble": ""}


def _used(use: NetworkUse) -> dict[str, Any]:
    return {
        "address": use.address,
        "counters": {
            "packetsOut": use.packets_out,
            "bytesOut": use.bytes_out,
            "packetsIn": use.packets_in,
            "bytesIn": use.bytes_in,
            "packetsRefused": use.packets_refused,
        },
        "refused": [_flow(flow) for flow in use.refused],
        "trouble": use.trouble,
    }


def _flow(flow: RefusedFlow) -> dict[str, Any]:
    return {
        "at": flow.at.isoformat(),
        "destination": flow.destination,
        "protocol": flow.protocol,
        "port": flow.port,
        "packets": flow.packets,
        "rule": flow.rule,
    }
