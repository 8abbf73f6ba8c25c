"""``firkin node``: how the machine of a running server is, and limits that hold until the server ends."""

from __future__ import annotations

from typing import Any

import click

from firkin.cli.options import server_options
from firkin.cli.output import json_option, show_fields, show_json
from firkin.cli.talking import call
from firkin.law.resources import MIB

_ROUTE = "/firkin/v1/node"
_CHANGES_SHOWN = 5


class _Limit(click.ParamType[Any]):
    """A whole number, or ``none``."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value != "none" and not (str(value).isdecimal() and len(str(value)) <= 9):
            self.fail(f"{value!r} is not a limit; write a whole number, or none for no limit", param, ctx)
        return value if value == "none" else int(value)


@click.command()
@click.option("--max-sandboxes", "maxSandboxes", type=_Limit(), help="Set how many may run at once; none is no limit.")
@click.option("--max-vcpus", "maxVcpus", type=_Limit(), help="Set how many vCPUs may be promised.")
@click.option("--max-memory-mb", "maxMemoryMB", type=_Limit(), help="Set how much memory may be promised.")
@server_options
@json_option
def node(
    maxSandboxes: Any,
    maxVcpus: Any,
    maxMemoryMB: Any,
    as_json: bool,
    **where: Any,
) -> None:
    """Show whether the node is under pressure and why, what is free, and who waits for room.

    Limits set here hold until the server ends; what runs already goes on.
    """
    given = {"maxSandboxes": maxSandboxes, "maxVcpus": maxVcpus, "maxMemoryMB": maxMemoryMB}
    limits = {name: None if value == "none" else value for name, value in given.items() if value is not None}
    status = call(where, "PATCH", f"{_ROUTE}/limits", body=limits) if limits else call(where, "GET", _ROUTE)
    if as_json:
        show_json(status)
    else:
        show_fields(_fields(status))


def _fields(status: dict[str, Any]) -> dict[str, str]:
    queue, launches, spare = status["queue"], status["launches"], status["spare"]
    rejected = ", ".join(f"{count} {reason}" for reason, count in queue["rejected"].items() if count)
    return {
        "state": status["state"] + (", refuses new work" if status["refuses"] else ""),
        "reasons": ", ".join(status["reasons"]) or "none",
        "free memory": _room(status["memory"]),
        "free disk": _room(status["disk"]),
        "stalled": f"cpu {_percent(status['cpuStallPct'])}, io {_percent(status['ioStallPct'])}",
        **{share["name"]: _share(share) for share in status["limits"]},
        "queue": f"{queue['waiting']} of at most {queue['maxPending']}, each for at most {queue['maxWaitMs']} ms",
        "admitted": f"{queue['admittedAtOnce']} at once, {queue['admittedAfterWaiting']} after waiting",
        "refused": rejected or "0",
        "launches": f"{launches['running']} of at most {launches['atOnce']} at once, {launches['waiting']} waiting",
        "ready": f"{spare['ready']} of {spare['wanted']} wanted, {spare['evicted']} given up so far",
        "changes": "; ".join(_change(change) for change in status["changes"][-_CHANGES_SHOWN:]) or "none",
    }


def _room(room: dict[str, int]) -> str:
    free, total, floor, refill = (room[name] // MIB for name in ("free", "total", "floor", "refillFloor"))
    return f"{free} of {total} MiB free; floor {floor} MiB, nothing is kept ready below {refill} MiB"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} %"


def _share(share: dict[str, Any]) -> str:
    scale, unit = (MIB, " MiB") if share.get("unit") == "bytes" else (1, "")
    limit = "no limit" if share["limit"] is None else f"at most {share['limit'] // scale}{unit}"
    return f"{share['active'] // scale}{unit} active, {share['warm'] // scale}{unit} ready; {limit}"


def _change(change: dict[str, Any]) -> str:
    why = f" ({', '.join(change['reasons'])})" if change["reasons"] else ""
    return f"{change['state']} at {change['atS']:.1f} s{why}"
