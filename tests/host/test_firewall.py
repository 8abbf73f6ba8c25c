"""A host that lacks what networks take is told so, and opens nothing instead."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest

from firkin.cli import kernel_checks
from firkin.drivers.boxes import host_checks
from firkin.engine.sandbox_requests import check_network
from firkin.host.cgroups import detect
from firkin.host.firewall import Doors, Firewall, FirewallUnavailable, led_group
from firkin.law.capabilities import CapabilityName, HostPreflightGated
from firkin.law.errors import UnsupportedCapability
from firkin.law.network import EVERYWHERE, NetworkPolicy

DOORS = Doors(tcp=1, dns_tcp=2, dns_udp=3)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Firewall:
    """On a host that has neither nft's library nor its program."""

    def no_library(name: str) -> NoReturn:
        raise OSError(f"{name}: cannot open shared object file")

    def no_program(words: list[str], **_: Any) -> NoReturn:
        raise FileNotFoundError(words[0])

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setattr(subprocess, "run", no_program)
    return Firewall("test", tmp_path / "users")


def test_without_nft_no_table_is_thought_to_be_there(bare: Firewall) -> None:
    with pytest.raises(FirewallUnavailable, match="nft is missing; install it: apt-get install nftables"):
        bare.install()
    with pytest.raises(FirewallUnavailable, match="nft is missing"):
        bare.open_doors(led_group(1), "198.18.0.1", DOORS)
    bare.close()


def test_the_preflight_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nft" else which(name))
    monkeypatch.setattr(host_checks.os, "geteuid", lambda: 0)
    found = host_checks.check(tmp_path)
    assert not found.ready
    assert "nft is missing; install it: apt-get install nftables" in found.reasons


@pytest.mark.parametrize(
    "policy",
    [
        NetworkPolicy(allow_out=("9.9.9.9",)),
        NetworkPolicy(internet=True, deny_out=("9.9.9.9",)),
        NetworkPolicy(deny_out=(EVERYWHERE,), allow_out=("a.test",)),
        NetworkPolicy(peers=("a",)),
        NetworkPolicy(ports=(80,)),
    ],
    ids=str,
)
def test_a_kernel_that_cannot_decide_is_asked_for_no_decision(
    monkeypatch: pytest.MonkeyPatch, policy: NetworkPolicy
) -> None:
    """Rather none than a wider one."""
    monkeypatch.setattr(host_checks, "missing_for_policies", lambda: "nftables at the ingress of interfaces")
    offer = host_checks.capabilities(detect(), "namespaces")
    with pytest.raises(UnsupportedCapability, match="nftables at the ingress") as refused:
        check_network("create a sandbox", policy, offer, gateways=True)
    assert refused.value.capability is CapabilityName.NETWORK_POLICY
    assert isinstance(refused.value.reason, HostPreflightGated)
    for plain in (NetworkPolicy(), NetworkPolicy(internet=True)):
        check_network("create a sandbox", plain, offer, gateways=True)


def findings() -> dict[str, kernel_checks.Finding]:
    return {finding.name: finding for finding in kernel_checks.kernel_findings()}


def test_the_doctor_says_when_policies_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "missing_for_policies", lambda: "nftables at the ingress of interfaces")
    assert "the kernel lacks nftables at the ingress" in findings()["network policies"].detail


@pytest.mark.parametrize(("held", "most", "fine"), [("0", "262144", True), ("262000", "262144", False), ("", "", True)])
def test_the_doctor_says_when_the_table_of_connections_is_nearly_full(
    monkeypatch: pytest.MonkeyPatch, held: str, most: str, fine: bool
) -> None:
    read = kernel_checks._read
    told = {"count": held, "max": most}
    monkeypatch.setattr(
        kernel_checks,
        "_read",
        lambda path: told[path.rpartition("_")[2]] if "nf_conntrack_" in path else read(path),
    )
    assert (findings()["connections"].mend == "") is fine
