"""Identifiers, paths and ports are checked once, at the edge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.files import MAX_PATH_BYTES, SandboxPath
from firkin.law.ids import MAX_ID_LENGTH, Identifier, ProcessId, ProcessTag, SandboxId, TemplateId
from firkin.law.ports import Port


@pytest.mark.parametrize("text", ["a", "A-b_c.d", "0", "...", "a" * MAX_ID_LENGTH])
def test_a_name_of_allowed_characters_is_an_id(text: str) -> None:
    assert TemplateId(text) == text


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a b", "ü", "a\n", "a\0", "a" * (MAX_ID_LENGTH + 1)])
def test_other_names_are_refused_and_the_reason_names_the_kind(text: str) -> None:
    with pytest.raises(InvalidSpec, match="template id") as caught:
        TemplateId(text)
    assert caught.value.reason is InvalidReason.INVALID_ID


@pytest.mark.thorough
@given(st.text(max_size=200))
def test_whatever_is_accepted_is_safe_as_a_file_name(text: str) -> None:
    try:
        name = Identifier(text)
    except InvalidSpec:
        return
    assert name == text
    assert "/" not in name
    assert "\0" not in name
    assert name not in ("", ".", "..")
    assert len(name.encode()) <= 255


@pytest.mark.parametrize("text", ["A", "a-b", "a_b", "a.b", "a" * 49])
def test_sandbox_ids_are_host_name_labels(text: str) -> None:
    assert SandboxId("i0z") == "i0z"
    with pytest.raises(InvalidSpec):
        SandboxId(text)


@pytest.mark.parametrize("text", ["0", "-1", "01", "1.0", "12345678901", "x"])
def test_process_ids_are_decimal_numbers(text: str) -> None:
    with pytest.raises(InvalidSpec):
        ProcessId(text)


@pytest.mark.parametrize("text", ["", "relative", "~/x", "/a\0b", "/" + "a" * MAX_PATH_BYTES])
def test_paths_that_no_file_can_have_are_refused(text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        SandboxPath(text)
    assert caught.value.reason is InvalidReason.INVALID_PATH


def test_paths_know_their_name_and_parent() -> None:
    path = SandboxPath("/a/b\udcff")
    assert (path.name, path.parent, SandboxPath("/").parent) == ("b\udcff", "/a", "/")
    assert path.below("c", "d") == "/a/b\udcff/c/d"
    assert SandboxPath("/" + "a" * (MAX_PATH_BYTES - 1))


@pytest.mark.parametrize("number", [0, -1, 65536])
def test_a_port_outside_the_range_is_refused(number: int) -> None:
    assert Port(1) == 1
    assert Port(65535) == 65535
    with pytest.raises(InvalidSpec) as caught:
        Port(number)
    assert caught.value.reason is InvalidReason.INVALID_PORT


@pytest.mark.parametrize("text", ["my tag", "é/…", "999", ".", "t" * 1024])
def test_a_process_tag_is_free_text(text: str) -> None:
    assert ProcessTag(text) == text


@pytest.mark.parametrize("text", ["", "a\nb", "a\0", "\x7f", "\x85", "t" * 1025])
def test_a_process_tag_has_no_control_characters(text: str) -> None:
    with pytest.raises(InvalidSpec, match="process tag"):
        ProcessTag(text)
