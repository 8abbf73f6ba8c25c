"""What a sandbox of the gvisor driver may reach, by address: decided outside of the sentry, as for all others."""

from __future__ import annotations

import pytest

from firkin import Runtime, Sandbox
from firkin.law.network import NetworkPolicy
from tests.namespaces.test_policy import (
    EVERYWHERE,
    METADATA,
    OTHER,
    PORT,
    PRIVATE,
    PUBLIC,
    box,
    outside,
    python,
    spec,
    test_an_open_connection_is_cut_as_soon_as_it_is_no_longer_allowed,
)

__all__ = ["box", "outside", "test_an_open_connection_is_cut_as_soon_as_it_is_no_longer_allowed"]

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]

# By TCP: gVisor tells of a refusal also on a datagram socket that is not connected, where Linux keeps silent.
_PROBE = """
import selectors, socket, sys, time
ready, reached = selectors.DefaultSelector(), set()
for address in sys.argv[1:]:
    probe = socket.socket()
    probe.setblocking(False)
    if probe.connect_ex((address, {port})) in (0, 115):
        ready.register(probe, selectors.EVENT_WRITE, address)
until = time.monotonic() + 2
while (left := until - time.monotonic()) > 0 and ready.get_map():
    for key, _ in ready.select(left):
        ready.unregister(key.fileobj)
        if not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            reached.add(key.data)
print(*sorted(reached))
"""


async def _reached(sandbox: Sandbox) -> set[str]:
    probe = _PROBE.format(port=PORT)
    return set((await sandbox.exec(python(probe, PUBLIC, OTHER, PRIVATE, METADATA))).stdout.decode().split())


@pytest.mark.parametrize(
    ("policy", "reached"),
    [
        (NetworkPolicy(), set()),
        (NetworkPolicy(internet=True), {PUBLIC, OTHER}),
        (NetworkPolicy(allow_out=(PUBLIC,)), {PUBLIC}),
        (NetworkPolicy(internet=True, deny_out=(PUBLIC,)), {OTHER}),
        (NetworkPolicy(internet=True, deny_out=(EVERYWHERE,)), set()),
        (NetworkPolicy(allow_out=(PRIVATE,)), {PRIVATE}),
        (NetworkPolicy(internet=True, allow_out=(METADATA,), deny_out=(EVERYWHERE,)), {METADATA}),
    ],
    ids=str,
)
async def test_what_a_policy_allows_is_reached_and_nothing_else(
    box: Sandbox, policy: NetworkPolicy, reached: set[str]
) -> None:
    await box.update_network(policy)
    assert await _reached(box) == reached


async def test_a_policy_holds_from_the_first_moment(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(spec(allow_out=(PUBLIC, PRIVATE))) as sandbox:
        assert await _reached(sandbox) == {PUBLIC, PRIVATE}
