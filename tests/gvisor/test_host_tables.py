"""What a sandbox of the gvisor driver can put into the machine's tables."""

from __future__ import annotations

import pytest

from tests.namespaces.test_attacks import test_packet_sockets_are_refused
from tests.namespaces.test_host_tables import (
    public_host,
    test_a_sandbox_with_internet_still_finds_its_way,
    test_neighbours_that_nobody_has_take_no_place_in_the_machine_s_table,
    test_parts_of_packets_do_not_wait_on_the_host_for_others,
)

__all__ = [
    "public_host",
    "test_a_sandbox_with_internet_still_finds_its_way",
    "test_neighbours_that_nobody_has_take_no_place_in_the_machine_s_table",
    "test_packet_sockets_are_refused",
    "test_parts_of_packets_do_not_wait_on_the_host_for_others",
]

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
