"""What must be the same where a stored machine goes on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.qemu.machines import Shape
from firkin.drivers.qemu.stores import Fit, Store
from firkin.law.errors import SnapshotIntegrityFailure

FIT = Fit(
    qemu="QEMU 7.2",
    kit="kit",
    root="root",
    processor="emulated",
    shape=Shape(memory_bytes=1 << 28, vcpus=1, accelerator="tcg"),
    counter_khz=2_500_000,
)


@pytest.mark.parametrize(
    ("there", "fits"), [(2_500_000, True), (2_499_900, True), (2_600_000, False), (2_400_000, False), (0, False)]
)
def test_a_clock_goes_on_only_where_its_counter_is_as_fast(there: int, fits: bool) -> None:
    store = Store(folder=Path("/nowhere"), fit=replace(FIT, counter_khz=there), disk_bytes=0, digests={})
    outcome: AbstractContextManager[object] = nullcontext()
    if not fits:
        outcome = pytest.raises(SnapshotIntegrityFailure, match=f"{there} kHz")
    with outcome:
        store.require_fit(FIT)


def test_a_clock_that_counts_ticks_goes_on_wherever_none_counts_evenly() -> None:
    ticking = replace(FIT, counter_khz=0)
    Store(folder=Path("/nowhere"), fit=ticking, disk_bytes=0, digests={}).require_fit(ticking)
