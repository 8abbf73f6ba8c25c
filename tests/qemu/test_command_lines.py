"""What QEMU is told of a machine, by type and accelerator."""

from __future__ import annotations

from itertools import pairwise

import pytest

from firkin.drivers.qemu.machines import Shape, command_line
from firkin.law.errors import InvalidSpec
from firkin.law.resources import MIB, SandboxResources


def _told(machine: str, accelerator: str, *, waking: bool = False, counter_khz: int = 0) -> dict[str, str]:
    """The options that are given once, by name."""
    shape = Shape(memory_bytes=256 * MIB, vcpus=2, accelerator=accelerator, machine=machine)
    start = ("/.firkin/loader", "start.py")
    argv = command_line(shape, start=start, name="one", waking=waking, counter_khz=counter_khz)
    return {name: value for name, value in pairwise(argv) if name.startswith("-")} | {"": argv[0]}


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_arm64_is_a_virt_machine_without_words_for_x86(accelerator: str) -> None:
    told = _told("aarch64", accelerator)
    assert told[""] == "qemu-system-aarch64"
    assert told["-M"] == f"virt,accel={accelerator},gic-version=max"
    assert not {"tsc", "lpj", "timer_check"} & set(told["-append"].replace("_", " ").replace("=", " ").split())


def test_x86_is_a_microvm_that_knows_its_clock_s_rate_where_it_is_emulated() -> None:
    told = _told("x86_64", "tcg")
    assert told[""] == "qemu-system-x86_64"
    assert told["-M"].startswith("microvm,accel=tcg,")
    assert "tsc_early_khz=" in told["-append"]
    assert "tsc_early_khz=" not in _told("x86_64", "kvm")["-append"]


@pytest.mark.parametrize(("khz", "trusted"), [(2_499_997, True), (0, False)])
def test_an_emulated_clock_is_the_host_s_counter_where_that_counts_evenly(khz: int, trusted: bool) -> None:
    words = _told("x86_64", "tcg", counter_khz=khz)["-append"].split()
    assert ("tsc=reliable" in words, f"tsc_early_khz={khz}" in words) == (trusted, trusted)


@pytest.mark.parametrize(
    ("machine", "accelerator", "processor"),
    [
        ("x86_64", "tcg", "max,-la57,-smap,-smep,-umip,-pku,-rdrand,-rdseed"),
        ("x86_64", "kvm", "host"),
        ("aarch64", "tcg", "max,pauth-impdef=on"),
        ("aarch64", "kvm", "host"),
    ],
)
def test_a_processor_is_the_host_s_own_only_where_it_runs_the_guest(
    machine: str, accelerator: str, processor: str
) -> None:
    assert _told(machine, accelerator)["-cpu"] == processor


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_machine_that_is_woken_has_the_same_parts(machine: str) -> None:
    born, woken = _told(machine, "tcg"), _told(machine, "tcg", waking=True)
    assert woken.pop("-S") == "-incoming"
    assert woken.pop("-incoming").startswith("fd:")
    assert woken == born
    assert born["-global"] == "migration.send-configuration=off"


def test_less_memory_than_a_kernel_starts_with_is_refused_before_anything_boots() -> None:
    with pytest.raises(InvalidSpec, match="at least 100663296"):
        Shape.of(SandboxResources(memory_bytes=64 * MIB), "tcg")
    assert Shape.of(SandboxResources(memory_bytes=96 * MIB), "tcg").memory_mib == 96
