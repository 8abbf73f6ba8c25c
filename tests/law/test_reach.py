"""Which addresses a policy lets be reached: the set and the decision step by step are the same."""

from __future__ import annotations

import ipaddress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firkin.law.network import NetworkPolicy
from firkin.law.reach import NEVER, NO_INTERNET, OTHER_SANDBOX, PRIVATE, PRIVATE_ADDRESS, Reach, denial

_NUMBERS = st.integers(0, 0xFFFFFFFF)
_ADDRESSES = _NUMBERS.map(lambda number: str(ipaddress.IPv4Address(number)))
_NEAR = st.sampled_from([block.split("/")[0] for block in PRIVATE]).map(ipaddress.IPv4Address)
_INTERESTING = st.one_of(
    _ADDRESSES,
    st.builds(lambda base, off: str(ipaddress.IPv4Address((int(base) + off) % 2**32)), _NEAR, st.integers(-2, 70000)),
)
_NETWORKS = st.builds(lambda address, prefix: f"{address}/{prefix}", _INTERESTING, st.integers(0, 32))
_LISTS = st.lists(_NETWORKS, max_size=6).map(tuple)
_POLICIES = st.builds(
    lambda internet, allow, deny: NetworkPolicy(internet=internet, allow_out=allow, deny_out=deny),
    st.booleans(),
    _LISTS,
    _LISTS,
)


@pytest.mark.thorough
@settings(max_examples=100)
@given(_POLICIES, st.lists(_INTERESTING, min_size=1, max_size=12), st.data())
def test_the_set_is_what_the_order_of_the_rules_decides(
    policy: NetworkPolicy, addresses: list[str], data: st.DataObject
) -> None:
    edges = [text.split("/")[0] for text in (*policy.allow_out, *policy.deny_out)]
    peers = data.draw(st.lists(st.sampled_from(["198.18.0.2", "198.18.0.6"]), max_size=2))
    reach = Reach.of(policy, peers)
    for address in (*addresses, *edges, *peers):
        assert reach.holds(address) is (denial(policy, address, peers) == ""), address


@pytest.mark.thorough
@given(_POLICIES)
def test_spans_are_in_order_and_neither_touch_nor_overlap(policy: NetworkPolicy) -> None:
    spans = Reach.of(policy).spans
    assert all(first <= last for first, last in spans)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(spans))


@pytest.mark.thorough
@given(st.lists(_POLICIES, max_size=3), _INTERESTING)
def test_joined_holds_what_any_of_them_holds(policies: list[NetworkPolicy], address: str) -> None:
    reaches = [Reach.of(policy) for policy in policies]
    joined = Reach.joined(reaches)
    assert joined.holds(address) is any(reach.holds(address) for reach in reaches)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(joined.spans))


@pytest.mark.thorough
@given(_POLICIES)
def test_no_policy_opens_the_host_s_loopback_or_another_sandbox(policy: NetworkPolicy) -> None:
    reach = Reach.of(policy)
    for block in map(ipaddress.IPv4Network, NEVER):
        assert not reach.holds(str(block.network_address))
        assert not reach.holds(str(block.broadcast_address))


@pytest.mark.parametrize(
    ("policy", "address", "rule"),
    [
        (NetworkPolicy(), "9.9.9.9", NO_INTERNET),
        (NetworkPolicy(internet=True), "9.9.9.9", ""),
        (NetworkPolicy(internet=True), "10.0.0.1", PRIVATE_ADDRESS),
        (NetworkPolicy(internet=True), "169.254.169.254", PRIVATE_ADDRESS),
        (NetworkPolicy(internet=True, allow_out=("0.0.0.0/0",)), "10.0.0.1", PRIVATE_ADDRESS),
        (NetworkPolicy(internet=True, allow_out=("10.0.0.0/7",)), "10.0.0.1", PRIVATE_ADDRESS),
        (NetworkPolicy(allow_out=("10.0.0.0/8",)), "10.0.0.1", ""),
        (NetworkPolicy(allow_out=("10.0.0.1",), deny_out=("10.0.0.0/8",)), "10.0.0.1", ""),
        (NetworkPolicy(internet=True, deny_out=("9.9.9.9",)), "9.9.9.9", "deny_out 9.9.9.9"),
        (NetworkPolicy(internet=True, deny_out=("::/0", "9.0.0.0/8")), "9.9.9.9", "deny_out 9.0.0.0/8"),
        (NetworkPolicy(internet=True, deny_out=("9.0.0.0/8",), allow_out=("9.9.9.9",)), "9.9.9.9", ""),
        (NetworkPolicy(internet=True, allow_out=("198.18.0.0/15",)), "198.18.0.2", OTHER_SANDBOX),
    ],
    ids=str,
)
def test_the_rule_that_denies_is_named(policy: NetworkPolicy, address: str, rule: str) -> None:
    assert denial(policy, address) == rule


def test_a_peer_is_reached_and_its_neighbour_is_not() -> None:
    reach = Reach.of(NetworkPolicy(), ["198.18.0.6"])
    assert reach.spans == ((0xC6120006, 0xC6120006),)
    assert not reach.is_plain


def test_what_comes_down_to_internet_or_nothing_is_known_as_such() -> None:
    assert Reach.of(NetworkPolicy(internet=True)).is_plain
    assert Reach.of(NetworkPolicy(internet=True, allow_out=("0.0.0.0/0",), deny_out=("0.0.0.0/0",))).is_plain
    assert Reach.of(NetworkPolicy()).is_nothing
    assert Reach.of(NetworkPolicy(internet=True, deny_out=("0.0.0.0/0",))).is_nothing
    assert Reach.of(NetworkPolicy(ports=(80,), peers=("somebody",))).is_nothing
