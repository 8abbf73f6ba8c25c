"""Tiers, and reports that never guess."""

from __future__ import annotations

from dataclasses import replace

import pytest

from firkin.law.capabilities import TierGated
from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.isolation import Isolation, IsolationReport, NamespaceNumbers

NOTHING = IsolationReport.without_facts("none", "memory", "there is nothing")


def test_a_tier_is_read_by_its_name() -> None:
    assert [Isolation.parse(tier.value) for tier in Isolation] == list(Isolation)
    with pytest.raises(InvalidSpec, match=r"no isolation is called 'kvm'; there are microvm, gvisor") as caught:
        Isolation.parse("kvm")
    assert caught.value.reason is InvalidReason.INVALID_ISOLATION


def test_every_absent_fact_has_its_reason() -> None:
    assert set(NOTHING.unread) == set(IsolationReport.facts())
    known = {name: why for name, why in NOTHING.unread.items() if name != "kernel_release"}
    assert replace(NOTHING, kernel_release="6.1", unread=known).kernel_release == "6.1"


@pytest.mark.parametrize(
    "unread",
    [{}, {**NOTHING.unread, "tier": "no"}, {**NOTHING.unread, "limits": ""}],
    ids=["no reasons", "a reason for what is there", "an empty reason"],
)
def test_a_report_with_a_gap_is_refused(unread: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        replace(NOTHING, unread=unread)
    with pytest.raises(ValueError, match="kernel_release"):
        replace(NOTHING, kernel_release="6.1")


def test_a_namespace_is_its_own_when_its_number_is() -> None:
    assert NamespaceNumbers(inside=2, host=1).is_own
    assert not NamespaceNumbers(inside=1, host=1).is_own


def test_a_tier_that_cannot_be_had_says_all_that_is_missing() -> None:
    text = str(TierGated("microvm", ("no /dev/kvm; load kvm_intel", "no qemu; install it")))
    assert text == "this machine cannot isolate by microvm: no /dev/kvm; load kvm_intel; no qemu; install it"
    assert str(TierGated(Isolation.GVISOR)) == "this machine cannot isolate by gvisor: it is not ready"
