"""DNS messages, whole and broken."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.gateway.dns_messages import (
    A,
    Addresses,
    Code,
    MalformedMessage,
    answer,
    ask,
    parse_addresses,
    parse_question,
)


def test_a_question_and_its_answer_fit() -> None:
    question = parse_question(ask(7, "Api.Test"))
    assert (question.number, question.name, question.kind, question.wants_recursion) == (7, "api.test", A, True)
    said = answer(question, Code.NO_ERROR, ("9.9.9.9", "8.8.8.8"), 60)
    assert parse_addresses(said, 7, "Api.Test") == Addresses(code=0, addresses=("9.9.9.9", "8.8.8.8"), ttl_s=60)
    assert parse_addresses(answer(question, Code.NO_SUCH_NAME), 7, "Api.Test").code == 3


def test_an_answer_to_another_question_is_none() -> None:
    said = answer(parse_question(ask(7, "api.test")), Code.NO_ERROR, ("9.9.9.9",), 60)
    for number, name in ((8, "api.test"), (7, "aPi.test"), (7, "b.test")):
        with pytest.raises(MalformedMessage):
            parse_addresses(said, number, name)


def test_aliases_are_followed_and_loops_end() -> None:
    question = ask(1, "a.test")[12:-11]
    target = b"\x01b\x04test\0"
    alias = b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 30, len(target)) + target
    address = target + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton("9.9.9.9")
    head = struct.pack("!6H", 1, 0x8180, 1, 2, 0, 0)
    found = parse_addresses(head + question + alias + address, 1, "a.test")
    assert (found.addresses, found.ttl_s) == (("9.9.9.9",), 30)
    back = target + struct.pack("!HHIH", 5, 1, 30, 2) + b"\xc0\x0c"
    assert parse_addresses(head + question + alias + back, 1, "a.test").addresses == ()


def test_a_stranger_s_record_is_no_answer() -> None:
    question = ask(1, "a.test")[12:-11]
    other = b"\x01x\x04test\0" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton("6.6.6.6")
    head = struct.pack("!6H", 1, 0x8180, 1, 1, 0, 0)
    assert parse_addresses(head + question + other, 1, "a.test").addresses == ()


def test_names_that_point_at_themselves_end() -> None:
    head = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0)
    with pytest.raises(MalformedMessage):
        parse_question(head + b"\xc0\x0c\0\x01\0\x01")


@given(st.binary(max_size=300))
def test_nothing_breaks_it(data: bytes) -> None:
    for read in (parse_question, lambda raw: parse_addresses(raw, int.from_bytes(raw[:2], "big"), "a.test")):
        with suppress(MalformedMessage):
            read(data)
