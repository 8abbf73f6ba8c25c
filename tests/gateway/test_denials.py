"""What is told of a refusal: hosts' names and the policy's own words, never more of the guest's, and never much."""

from __future__ import annotations

import json
import random

import pytest

from firkin.gateway.denials import (
    DNS,
    HTTP,
    MOST_FLOWS,
    NOT_SHOWN,
    TCP,
    Denial,
    DenialLog,
    decode_denial,
    destination_of,
    encode_denial,
    rule_of,
)
from firkin.gateway.judgement import Refusal
from firkin.gateway.orders import SandboxOrder
from firkin.law.network import EVERYWHERE, HeaderRule, NetworkPolicy

SECRET = "sk-Live-4711"
RULE = HeaderRule(domain="api.test", headers={"A": "${e2b.secrets.one}", "B": "${e2b.secrets.two}"})
ORDER = SandboxOrder(
    sandbox_id="s",
    address="198.18.0.2",
    policy=NetworkPolicy(
        allow_out=("good.test", "*.wide.test", "8.8.8.8"), deny_out=("9.9.8.0/24", EVERYWHERE), rules=(RULE,)
    ),
    secrets={"one": SECRET},
)
LABEL_63 = "a" * 63


@pytest.mark.parametrize(
    "name", ["a", "a.test", "xn--bcher-kva.test", "1-2.test", f"{LABEL_63}.test", ".".join([LABEL_63] * 3 + ["b" * 61])]
)
def test_what_every_host_could_be_called_is_shown(name: str) -> None:
    assert destination_of(Denial(why=Refusal.NAME_NOT_ALLOWED, name=name, address="9.9.9.9"), ORDER) == name


@pytest.mark.parametrize(
    "name",
    [
        "A.test",
        "a_b.test",
        "-a.test",
        "a-.test",
        ".a.test",
        "a..test",
        "a.test.",
        "a.test\n",
        "a test",
        "a.test\x1b[2J",
        "a\0.test",
        "bücher.test",
        "a.test/path?key=1",
        "user:pass@a.test",
        "a.test:443",
        "*.test",
        f"{LABEL_63}a.test",
        ".".join([LABEL_63] * 3 + ["b" * 62]),
        f"x.{SECRET.lower()}.tunnel.test",
    ],
)
def test_what_no_host_is_called_is_not_repeated(name: str) -> None:
    asked = Denial(why=Refusal.NAME_NOT_ALLOWED, protocol=DNS, port=53, name=name)
    assert destination_of(asked, ORDER) == NOT_SHOWN
    assert rule_of(asked, ORDER) == Refusal.NAME_NOT_ALLOWED.value
    led = Denial(why=Refusal.PRIVATE, protocol=TCP, port=443, name=name, address="10.0.0.1")
    assert destination_of(led, ORDER) == "10.0.0.1"
    assert name not in rule_of(led, ORDER)


@pytest.mark.parametrize(
    ("denial", "rule"),
    [
        (
            Denial(why=Refusal.NAME_NOT_ALLOWED, name="evil.test", address="9.9.9.9"),
            "allow_out does not have that name",
        ),
        (
            Denial(why=Refusal.NO_TLS_NAME, address="9.9.9.9"),
            "no name in the TLS hello, and allow_out does not have that address",
        ),
        (
            Denial(why=Refusal.PRIVATE, name="good.test", address="10.0.0.1"),
            "the name leads to a private address: allow_out good.test",
        ),
        (
            Denial(why=Refusal.PRIVATE, protocol=DNS, name="a.b.wide.test"),
            "the name leads to a private address: allow_out *.wide.test",
        ),
        (
            Denial(why=Refusal.PRIVATE, name="evil.test", address="10.0.0.1"),
            "a private or link-local address that allow_out does not name",
        ),
        (Denial(why=Refusal.PRIVATE, address="198.18.0.9"), "another sandbox or the host"),
        (Denial(why=Refusal.DENIED, address="9.9.8.7"), "deny_out 9.9.8.0/24"),
        (Denial(why=Refusal.DENIED, address="9.9.9.9"), "deny_out 0.0.0.0/0"),
        (Denial(why=Refusal.NOT_ALLOWED, address="9.9.9.9"), "deny_out 0.0.0.0/0"),
        (
            Denial(why=Refusal.OTHER_ADDRESS, name="good.test", address="9.9.9.9"),
            "the name is allowed, but that is no address of it: allow_out good.test",
        ),
        (Denial(why=Refusal.SECRET_MISSING, protocol=HTTP, name="api.test"), "secret two deleted: rule api.test"),
        (
            Denial(why=Refusal.OTHER_HOST, protocol=HTTP, name="api.test"),
            "the request asks for another host than its connection: rule api.test",
        ),
        (Denial(why=Refusal.TOO_MANY), "too many connections at once"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.why.name,
)
def test_the_rule_that_forbade_it_is_named(denial: Denial, rule: str) -> None:
    assert rule_of(denial, ORDER) == rule
    assert SECRET not in rule


class Hand:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_same_again_is_counted_and_told_once() -> None:
    log, denial = DenialLog(Hand()), Denial(why=Refusal.NAME_NOT_ALLOWED, name="a.test")
    for _ in range(1000):
        log.note(denial)
    assert log.taken() == [(denial, 1000)]
    assert log.taken() == []
    log.note(denial)
    assert log.taken() == [(denial, 1)]


def test_of_a_flood_of_names_a_few_are_remembered_and_all_are_counted() -> None:
    hand = Hand()
    log = DenialLog(hand)
    for number in range(10_000):
        log.note(Denial(why=Refusal.NAME_NOT_ALLOWED, protocol=DNS, port=53, name=f"n{number}.test"))
    told = dict(log.taken())
    assert len(told) == 17
    assert sum(told.values()) == 10_000
    assert told[Denial(why=Refusal.NAME_NOT_ALLOWED)] == 10_000 - 16
    hand.now += 2.0
    for number in range(10):
        log.note(Denial(why=Refusal.NAME_NOT_ALLOWED, name=f"m{number}.test"))
    assert len(log.taken()) == 3
    for number in range(10 * MOST_FLOWS):
        hand.now += 1.0
        log.note(Denial(why=Refusal.NAME_NOT_ALLOWED, name=f"o{number}.test"))
        log.taken()
    assert len(log._known) == MOST_FLOWS


def test_a_report_comes_back_as_it_was() -> None:
    denial = Denial(why=Refusal.PRIVATE, protocol=TCP, port=443, name="a.test", address="10.0.0.1")
    assert decode_denial(json.loads(json.dumps(encode_denial(denial, 7)))) == (denial, 7)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"why": "PRIVATE"},
        ["PRIVATE", "tcp", 443, "a.test", "10.0.0.1"],
        ["NEVER", "tcp", 443, "a.test", "10.0.0.1", 1],
        ["PRIVATE", "smtp", 443, "a.test", "10.0.0.1", 1],
        ["PRIVATE", "tcp", 65536, "a.test", "10.0.0.1", 1],
        ["PRIVATE", "tcp", -1, "a.test", "10.0.0.1", 1],
        ["PRIVATE", "tcp", 443, ["a.test"], "10.0.0.1", 1],
        ["PRIVATE", "tcp", 443, "a.test", "<b>", 1],
        ["PRIVATE", "tcp", 443, "a.test", "10.0.0.1", 0],
        ["PRIVATE", "tcp", 443, "a.test", "10.0.0.1", 1e400],
        ["PRIVATE", "tcp", 443, "a.test", "10.0.0.1", 1 << 60],
    ],
    ids=str,
)
def test_what_is_no_report_is_not_believed(body: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_denial(body)


@pytest.mark.thorough
def test_random_names_are_shown_only_as_letters_digits_hyphens_and_dots() -> None:
    chance = random.Random(22)
    for _ in range(20_000):
        name = "".join(chance.choice("ab1-._ /:\x07\x1bÄ\n") for _ in range(chance.randrange(1, 12)))
        shown = destination_of(Denial(why=Refusal.NAME_NOT_ALLOWED, name=name), ORDER)
        assert shown == NOT_SHOWN or set(shown) <= set("ab1-.")
