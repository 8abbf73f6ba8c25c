"""Facts of a process as the kernel tells them, and reasons for what it does not tell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from firkin.host.isolation_facts import IsolationFacts, namespaces, status, uid_map
from firkin.law.isolation import IsolationReport, SeccompMode

PROCESS = ("uid_map", "capabilities", "seccomp", "no_new_privs", "namespaces")


def test_this_process_is_told_as_it_is() -> None:
    facts = IsolationFacts()
    facts.of_process(os.getpid())
    assert set(facts.found) == set(PROCESS)
    assert facts.found["capabilities"].effective == int(status(os.getpid())["CapEff"], 16)
    assert facts.found["seccomp"] in list(SeccompMode)
    assert facts.found["uid_map"] == uid_map(os.getpid())
    assert not any(numbers.is_own for numbers in facts.found["namespaces"].values())
    assert namespaces(os.getpid())["net"].inside == os.stat("/proc/self/ns/net").st_ino


def test_a_process_that_has_ended_is_not_guessed_about() -> None:
    done = subprocess.Popen(["true"])
    done.wait(10)
    facts = IsolationFacts()
    facts.of_process(done.pid)
    assert facts.found == {}
    assert set(facts.unread) == set(PROCESS)
    assert all(f"/proc/{done.pid}/" in reason for reason in facts.unread.values())


@pytest.mark.parametrize("nothing", [None, {}, ()])
def test_an_empty_answer_is_no_fact(nothing: object) -> None:
    facts = IsolationFacts()
    facts.read("limits", lambda: nothing)
    assert (facts.found, facts.unread) == ({}, {"limits": "the system does not say"})


def test_what_was_collected_makes_a_report() -> None:
    facts = IsolationFacts()
    facts.of_process(os.getpid())
    facts.read("kernel_release", lambda: os.uname().release)
    facts.read("limits", lambda: {"pids.max": Path("/nowhere/pids.max").read_text()})
    facts.absent("not looked at", "accelerator", "network")
    report = IsolationReport(tier="namespaces", driver="test", unread=facts.unread, **facts.found)
    assert report.limits is None
    assert "/nowhere/pids.max" in report.unread["limits"]
