"""What the commands that talk to a running server share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firkin.cli.discovery import find_server, operator_of
from firkin.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from firkin.cli.client import ServerClient


def call(where: dict[str, Any], method: str, path: str, **request: Any) -> Any:
    """The answer of one request."""

    async def work(server: ServerClient) -> Any:
        return (await server.call(method, path, **request))[0]

    return talk(where, work)


def talk(where: dict[str, Any], work: Callable[[ServerClient], Awaitable[Any]]) -> Any:
    """Run `work` with a client of the server that the options name."""
    from firkin.cli.client import ServerClient
    from firkin.cli.event_loops import run_command

    address = find_server(**where)
    operator = operator_of(read_settings({"state_dir": where["state_dir"]}).state_dir) if address.pid else None

    async def session() -> Any:
        async with ServerClient(address, operator=operator) as server:
            return await work(server)

    return run_command(session())
