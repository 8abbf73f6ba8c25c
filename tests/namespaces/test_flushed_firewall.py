"""Another program takes all firewall tables of the host: Firkin's are back within seconds, and open nothing on the way.

In a network namespace of its own, for the tables are everybody's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="the namespaces driver needs root")]

_LIFE = """
import asyncio, json, socket, subprocess
from firkin import open_runtime
from firkin.law.errors import BackendFailure
from firkin.law.network import NetworkPolicy
from firkin.law.processes import Argv, Command
from firkin.law.sandboxes import SandboxSpec

HOST = "9.9.9.1"
TRY = "import socket, sys; socket.create_connection((sys.argv[1], 7777), 0.5)"

def nft(words):
    return subprocess.run(["nft", *words.split()], check=True, capture_output=True, text=True).stdout

async def reaches(sandbox):
    done = await sandbox.process.run(Command(mode=Argv("/usr/bin/python3", ("-c", TRY, HOST))))
    return done.ok

async def main():
    subprocess.run("ip link add up0 type veth peer name up1; ip addr add 9.9.9.1/24 dev up0;"
                   "ip link set up0 up; ip link set up1 up; ip route add default dev up0", shell=True, check=True)
    listener = socket.create_server((HOST, 7777))
    out = {}
    async with open_runtime() as runtime:
        plain = await runtime.sandboxes.create(SandboxSpec.from_template("base", network=NetworkPolicy(internet=True)))
        policy = NetworkPolicy(allow_out=("9.9.9.0/24",))
        narrow = await runtime.sandboxes.create(SandboxSpec.from_template("base", network=policy))
        out["before"] = [await reaches(plain), await reaches(narrow)]
        nft("flush ruleset")
        try:
            await runtime.sandboxes.create(SandboxSpec.from_template("base"))
            out["meanwhile"] = "created"
        except BackendFailure as error:
            out["meanwhile"] = str(error)
        async with asyncio.timeout(15):
            while "chain server_" not in nft("list ruleset") or "table netdev firkin-" not in nft("list ruleset"):
                await asyncio.sleep(0.05)
        out["after"] = [await reaches(plain), await reaches(narrow)]
        later = await runtime.sandboxes.create(SandboxSpec.from_template("base"))
        out["later"] = await reaches(later)
    listener.close()
    print(json.dumps(out))

asyncio.run(main())
"""


def test_policies_come_back_after_a_flush_and_nothing_is_created_without(tmp_path: Path) -> None:
    script = tmp_path / "life.py"
    script.write_text(textwrap.dedent(_LIFE))
    alone = [
        "unshare",
        "--net",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        'ip link set lo up; exec "$@"',
        "sh",
    ]
    done = subprocess.run(
        [*alone, sys.executable, str(script)],
        env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["before"] == [False, False]  # an address of the host itself
    assert "removed Firkin's firewall table" in told["meanwhile"]
    assert told["after"] == [False, False]
    assert told["later"] is False
