"""The attacks on what is outside that the namespaces driver withstands, on a sandbox of the gvisor driver.

Those on a sandbox's own kernel are left out: root inside may do there as it likes, to
itself (it can end its own sandbox by killing process 1, which Linux would refuse).
"""

from __future__ import annotations

import pytest

from tests.namespaces.test_breakout import (
    test_a_dangerous_system_call_is_refused_to_root,
    test_a_host_path_is_absent_or_empty,
    test_clone3_is_hidden_so_that_its_flags_cannot_slip_by,
    test_nothing_of_the_host_s_environment_is_inherited,
    test_the_mount_table_shows_no_host_path,
)

__all__ = [
    "test_a_dangerous_system_call_is_refused_to_root",
    "test_a_host_path_is_absent_or_empty",
    "test_clone3_is_hidden_so_that_its_flags_cannot_slip_by",
    "test_nothing_of_the_host_s_environment_is_inherited",
    "test_the_mount_table_shows_no_host_path",
]

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
