"""What a policy says, and what counts as a name. No I/O."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firkin.gateway.judgement import Judge, Refusal, Refused
from firkin.gateway.names import clean_name, matches, most_specific
from firkin.law.network import EVERYWHERE, HeaderRule, NetworkPolicy
from firkin.law.reach import PRIVATE, Reach, denial

_NEAR = st.builds(
    lambda block, off: (int(ipaddress.IPv4Address(block.partition("/")[0])) + off) % 2**32,
    st.sampled_from(PRIVATE),
    st.integers(-2, 70_000),
)
_ADDRESSES = st.one_of(_NEAR, st.integers(0, 0xFFFFFFFF)).map(lambda number: str(ipaddress.IPv4Address(number)))
_LISTS = st.lists(st.builds(lambda at, size: f"{at}/{size}", _ADDRESSES, st.integers(0, 32)), max_size=5).map(tuple)
_POLICIES = st.builds(
    lambda internet, allow, deny: NetworkPolicy(internet=internet, allow_out=allow, deny_out=deny),
    st.booleans(),
    _LISTS,
    _LISTS,
)


def refusal(judge: Judge, address: str) -> Refusal | None:
    try:
        judge.require_address(address)
    except Refused as refused:
        return refused.why
    return None


NOBODY_S = ("127.0.0.1", "198.18.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255")


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "127.0.0.1", "169.254.169.254", "172.31.0.1", "192.168.0.1", "198.18.0.1", "100.64.0.1", "0.0.0.0",
     "224.0.0.1", "255.255.255.255"],
)  # fmt: skip
def test_private_addresses_need_an_address_in_allow_out(address: str) -> None:
    assert refusal(Judge(NetworkPolicy(internet=True)), address) is Refusal.PRIVATE
    assert refusal(Judge(NetworkPolicy(allow_out=("*",))), address) is Refusal.PRIVATE
    assert refusal(Judge(NetworkPolicy(internet=True, allow_out=(EVERYWHERE,))), address) is Refusal.PRIVATE
    never = Reach.of(NetworkPolicy(allow_out=(address,))).is_nothing
    assert refusal(Judge(NetworkPolicy(allow_out=(address,))), address) is (Refusal.PRIVATE if never else None)
    assert never is (address in NOBODY_S)


@pytest.mark.thorough
@settings(max_examples=80)
@given(_POLICIES, _ADDRESSES)
def test_by_address_a_gateway_judges_as_the_law_does(policy: NetworkPolicy, address: str) -> None:
    assert (refusal(Judge(policy), address) is None) is (denial(policy, address) == "")


def test_allow_wins_over_deny_and_deny_over_internet() -> None:
    judge = Judge(NetworkPolicy(internet=True, allow_out=("8.8.8.0/24",), deny_out=("8.8.0.0/16",)))
    assert [refusal(judge, address) for address in ("8.8.8.8", "8.8.4.4", "9.9.9.9")] == [None, Refusal.DENIED, None]
    assert refusal(Judge(NetworkPolicy(allow_out=("8.8.8.8",))), "9.9.9.9") is Refusal.NOT_ALLOWED


def test_names_are_answered_for_as_far_as_they_are_allowed() -> None:
    narrow = Judge(NetworkPolicy(internet=True, allow_out=("a.test", "*.b.test"), deny_out=(EVERYWHERE,)))
    found = [narrow.answers_for(name) for name in ("a.test", "x.b.test", "b.test", "c.test")]
    assert found == [True, True, False, False]
    assert Judge(NetworkPolicy(internet=True)).answers_for("c.test")
    assert not Judge(NetworkPolicy(allow_out=("8.8.8.8",))).answers_for("c.test")


def test_the_exact_rule_decides_else_the_longest() -> None:
    rules = [HeaderRule(domain=domain, headers={"X": domain}) for domain in ("*.test", "*.a.test", "b.a.test")]
    judge = Judge(NetworkPolicy(internet=True, rules=tuple(rules)))
    found = [judge.rule(name) for name in ("b.a.test", "c.a.test", "d.e.a.test", "x.test", "test")]
    assert [rule and rule.domain for rule in found] == ["b.a.test", "*.a.test", "*.a.test", "*.test", None]
    assert most_specific(["*"], "any") == "*"


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"API.Example.COM", "api.example.com"),
        (b"example.com.", "example.com"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"_dmarc.example.com", "_dmarc.example.com"),
        (b"localhost", "localhost"),
        (b"", None),
        (b".", None),
        (b"a..b", None),
        (b"-a.test", None),
        (b"127.0.0.1", None),
        (b"127.1", None),
        (b"0x7f.1", None),
        (b"0x7f000001", None),
        (b"2130706433", None),
        (b"[::1]", None),
        (b"a.test:443", None),
        (b"a.test/b", None),
        (b"a\0.test", None),
        (b"*.test", None),
        (b"a.test\r\n", None),
        ("b\u00fccher.test".encode(), None),
        (b"a" * 64 + b".test", None),
        (b"a." * 127 + b"test", None),
    ],
)
def test_what_is_a_name(raw: bytes, name: str | None) -> None:
    assert clean_name(raw) == name


def test_wildcards_take_everything_below_and_not_what_only_ends_alike() -> None:
    assert matches("*.a.test", "b.a.test")
    assert matches("*.a.test", "c.b.a.test")
    assert not matches("*.a.test", "a.test")
    assert not matches("*.a.test", "ba.test")
    assert not matches("a.test", "b.a.test")
