"""A capability report answers for every name, and refuses by name with a reason."""

from __future__ import annotations

import pytest

from firkin.law.capabilities import (
    NOT_REPORTED,
    BuildFeatureGated,
    Capabilities,
    CapabilityName,
    HostPreflightGated,
    Permanent,
    RuntimeStateGated,
    Supported,
    Unsupported,
)
from firkin.law.errors import InvalidSpec, UnsupportedCapability

_C = CapabilityName


def test_there_are_42_dotted_names() -> None:
    assert len(CapabilityName) == 42
    assert all("." in name for name in CapabilityName)
    assert [_C.parse(name.value) for name in _C] == list(_C)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"runtime\.fly"):
        CapabilityName.parse("runtime.fly")


def test_what_was_never_mentioned_reads_as_not_reported() -> None:
    report = Capabilities({})
    assert report.refusal(_C.RUNTIME_CREATE) == NOT_REPORTED
    assert not report.supports(_C.RUNTIME_CREATE)
    assert [name for name, _ in report] == list(_C)


def test_later_words_win_and_the_earlier_report_is_unchanged() -> None:
    none = Capabilities.all_unsupported(Permanent("no"))
    some = none.with_supported(_C.PROCESS_RUN, _C.PROCESS_PTY).with_unsupported(Permanent("never"), _C.PROCESS_PTY)
    assert list(some.supported()) == [_C.PROCESS_RUN]
    assert some.refusal(_C.PROCESS_PTY) == Permanent("never")
    assert list(none.supported()) == []


def test_a_status_is_a_value_to_match_on() -> None:
    report = Capabilities.all_unsupported(Permanent("no")).with_supported(_C.PROCESS_RUN)
    assert report.status(_C.PROCESS_RUN) == Supported()
    assert report.status(_C.PROCESS_PTY) == Unsupported(Permanent("no"))


def test_require_names_the_first_that_is_missing() -> None:
    report = Capabilities.all_unsupported(HostPreflightGated("a kernel of 6.13")).with_supported(_C.PROCESS_RUN)
    report.require("run a program", _C.PROCESS_RUN)
    with pytest.raises(UnsupportedCapability) as caught:
        report.require("watch files", _C.PROCESS_RUN, _C.FILESYSTEM_WATCH, _C.PAUSE_CAPTURE)
    assert caught.value.capability is _C.FILESYSTEM_WATCH
    assert caught.value.operation == "watch files"
    assert "a kernel of 6.13" in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Permanent("no clock"), "no clock"),
        (BuildFeatureGated("snapshots"), "needs the feature snapshots"),
        (HostPreflightGated("nft"), "this host lacks nft"),
        (RuntimeStateGated("starting"), "not while starting"),
    ],
)
def test_every_reason_reads_as_words(reason: object, text: str) -> None:
    assert str(reason) == text
