"""``firkin doctor --every-tier``: of what it says is usable a sandbox was seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_commands import firkin
from tests.qemu.homes import KERNEL

from .served import READINESS, TIERS, Served

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not READINESS.ready, reason="; ".join(READINESS.reasons) or "ready"),
]


def test_a_sandbox_of_every_usable_tier_is_booted(served: Served, tmp_path: Path) -> None:
    options = f'[driver_options]\n"qemu.kernel" = "{KERNEL}"\n"qemu.accelerator" = "tcg"\n"ready_slots" = "3"\n'
    (tmp_path / "config.toml").write_text(options)
    done = firkin("doctor", "--every-tier", "--json", state=tmp_path, within_s=280)
    findings = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    for tier in TIERS:
        assert (f"probe {tier}" in findings) is not bool(served.lacking(tier))
        if f"probe {tier}" in findings:
            assert findings[f"probe {tier}"]["status"] == "ok", findings[f"probe {tier}"]


def test_the_two_options_exclude_each_other(tmp_path: Path) -> None:
    done = firkin("doctor", "--every-tier", "--no-probe", state=tmp_path)
    assert done.returncode == 2
    assert b"give one of them" in done.stderr
