"""The marker reader, at every split of what a shell writes."""

from __future__ import annotations

import itertools
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.law.errors import InvalidSpec
from firkin.law.processes import Argv, Shell
from firkin.runtime.shell_protocol import MarkerReader, quote, script, text_of

NONCE = "0f" * 16
MARKER = f"\x1e{NONCE}007\x1e".encode()

noise = st.lists(
    st.sampled_from([b"\x1e", b"\x1e0f", MARKER[:-8], NONCE.encode(), b"text", b"\n", b"\x00\xff"]), max_size=8
).map(b"".join)


@pytest.mark.thorough
@given(output=noise, cuts=st.lists(st.integers(0, 400), max_size=12))
def test_output_before_the_marker_comes_out_unchanged(output: bytes, cuts: list[int]) -> None:
    if f"\x1e{NONCE}".encode() in output:
        return
    whole = output + MARKER + b"later noise"
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    reader = MarkerReader(NONCE)
    seen = b"".join(reader.feed(whole[start:end]) for start, end in itertools.pairwise(places))
    assert (seen, reader.status) == (output, 7)


def test_every_single_byte_split() -> None:
    reader = MarkerReader(NONCE)
    seen = b"".join(reader.feed(bytes([byte])) for byte in b"ab\x1ec" + MARKER)
    assert (seen, reader.status) == (b"ab\x1ec", 7)


def test_output_is_not_held_back_longer_than_needed() -> None:
    reader = MarkerReader(NONCE)
    assert reader.feed(b"prompt> ") == b"prompt> "
    assert reader.feed(b"x\x1e") == b"x"
    assert reader.feed(b"y") == b"\x1ey"


def test_end_without_a_marker_gives_what_was_held() -> None:
    reader = MarkerReader(NONCE)
    assert reader.feed(b"a" + MARKER[:10]) == b"a"
    assert reader.rest() == MARKER[:10]


@pytest.mark.parametrize("text", ["it's", "", "a b", "$HOME `id` \\", "new\nline", "''"])
def test_quoted_text_is_one_word(text: str) -> None:
    assert shlex.split(quote(text)) == [text]


def test_argv_words_are_quoted_and_text_is_not() -> None:
    assert text_of(Shell("a | b")) == "a | b"
    assert text_of(Argv("if", ("A=b", "c d"))) == "'if' 'A=b' 'c d'"


@pytest.mark.parametrize("name", ["1a", "a-b", "a.b", "é"])
def test_names_that_a_shell_cannot_export_are_refused(name: str) -> None:
    with pytest.raises(InvalidSpec, match="cannot export"):
        script("true", NONCE, env={name: "x"})
