"""JSON payloads: names that are no text survive, other shapes are refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.wire import codec
from firkin.wire.frames import WireError


@given(name=st.binary(max_size=50))
def test_any_file_name_survives(name: bytes) -> None:
    assert os.fsencode(codec.decode(codec.encode({"name": os.fsdecode(name)}))["name"]) == name


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"1", b'"x"', b"{", b"\xff", b'{"a":\xc3\xa4}', b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}"],
)
def test_anything_but_an_object_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        codec.decode(payload)


@pytest.mark.parametrize("value", [None, 1, True, [], {}])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="'key'"):
        codec.text({"key": value}, "key")


@pytest.mark.parametrize("value", [None, "1", True, 1.5])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="'key'"):
        codec.integer({"key": value}, "key")


@pytest.mark.parametrize("value", [None, "true", 1])
def test_what_is_no_flag_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="'key'"):
        codec.flag({"key": value}, "key")


@pytest.mark.parametrize("value", [None, "a", [1], {"a": "b"}])
def test_what_is_no_list_of_texts_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="'key'"):
        codec.texts({"key": value}, "key")


@pytest.mark.parametrize("value", [None, "a", ["a"], {"a": 1}])
def test_what_is_no_map_of_texts_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="'key'"):
        codec.mapping({"key": value}, "key")


def test_defaults_stand_in_for_what_is_missing() -> None:
    assert codec.text({}, "a", "b") == "b"
    assert codec.integer({}, "a", 3) == 3
    assert codec.flag({}, "a") is False
    assert codec.mapping({}, "a") == {}
