"""What a sandbox of the gvisor driver may reach, by address: decided outside of the sentry, as for all others."""

from __future__ import annotations

import pytest

from tests.namespaces.test_policy import (
    box,
    outside,
    test_a_policy_holds_from_the_first_moment,
    test_an_open_connection_is_cut_as_soon_as_it_is_no_longer_allowed,
    test_the_host_is_out_of_reach_even_when_it_is_named,
    test_what_a_policy_allows_is_reached_and_nothing_else,
)

__all__ = [
    "box",
    "outside",
    "test_a_policy_holds_from_the_first_moment",
    "test_an_open_connection_is_cut_as_soon_as_it_is_no_longer_allowed",
    "test_the_host_is_out_of_reach_even_when_it_is_named",
    "test_what_a_policy_allows_is_reached_and_nothing_else",
]

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
