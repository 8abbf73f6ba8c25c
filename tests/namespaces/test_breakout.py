"""Every promise of isolation, attacked from inside as root and as the default user."""

from __future__ import annotations

import os
import platform

import pytest

from firkin import Runtime
from firkin.law.sandboxes import SandboxSpec
from tests.namespaces.conftest import Shell

pytestmark = pytest.mark.asyncio(loop_scope="module")

PYTHON = "/usr/bin/python3"

SYSCALL = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
result = libc.syscall(*[ctypes.c_long(int(word, 0)) for word in sys.argv[1:]])
print(result, ctypes.get_errno())
"""

# name, x86-64 number, arguments
FORBIDDEN = [
    ("mount", 165, "0 0 0 0 0"),
    ("umount2", 166, "0 0"),
    ("unshare user namespace", 272, "0x10000000"),
    ("unshare mount namespace", 272, "0x20000"),
    ("unshare network namespace", 272, "0x40000000"),
    ("setns", 308, "0 0"),
    ("pivot_root", 155, "0 0"),
    ("keyctl", 250, "0 0 0 0 0"),
    ("add_key", 248, "0 0 0 0 0"),
    ("request_key", 249, "0 0 0 0"),
    ("bpf", 321, "0 0 0"),
    ("io_uring_setup", 425, "1 0"),
    ("io_uring_enter", 426, "0 0 0 0 0 0"),
    ("userfaultfd", 323, "0"),
    ("perf_event_open", 298, "0 0 0 0 0"),
    ("open_by_handle_at", 304, "0 0 0"),
    ("name_to_handle_at", 303, "0 0 0 0 0"),
    ("clone into a user namespace", 56, "0x10000011 0 0 0 0"),
    ("fsopen", 430, "0 0"),
    ("fsmount", 432, "0 0 0"),
    ("move_mount", 429, "0 0 0 0 0"),
    ("open_tree", 428, "0 0 0"),
    ("mount_setattr", 442, "0 0 0 0 0"),
    ("sethostname", 170, "0 0"),
    ("reboot", 169, "0 0 0 0"),
    ("kexec_load", 246, "0 0 0 0"),
    ("syslog", 103, "10 0 0"),
    ("init_module", 175, "0 0 0"),
    ("acct", 163, "0"),
    ("swapon", 167, "0 0"),
    ("settimeofday", 164, "0 0"),
    ("clock_settime", 227, "0 0"),
    ("process_vm_readv", 310, "1 0 0 0 0 0"),
    ("pidfd_getfd", 438, "0 0 0"),
    ("personality ADDR_NO_RANDOMIZE", 135, "0x40000"),
    ("prlimit of the agent", 302, "1 7 0 0"),
    ("sched_setaffinity of the agent", 203, "1 0 0"),
    ("vsock", 41, "40 1 0"),
    ("kernel crypto sockets", 41, "38 5 0"),
]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers below are those of x86-64")
@pytest.mark.parametrize(("name", "number", "arguments"), FORBIDDEN, ids=[row[0] for row in FORBIDDEN])
async def test_a_dangerous_system_call_is_refused_to_root(shell: Shell, name: str, number: int, arguments: str) -> None:
    output = await shell(f"{PYTHON} -c '{SYSCALL}' {number} {arguments}", user="root")
    assert output.stdout == b"-1 1\n", f"{name} answered {output.stdout!r} {output.stderr!r}"


async def test_clone3_is_hidden_so_that_its_flags_cannot_slip_by(shell: Shell) -> None:
    output = await shell(f"{PYTHON} -c '{SYSCALL}' 435 0 0", user="root")
    assert output.stdout == b"-1 38\n"


async def test_root_inside_is_an_unprivileged_unique_id_outside(shell: Shell) -> None:
    output = await shell("cat /proc/self/uid_map", user="root")
    inside, outside, count = (int(word) for word in output.stdout.split())
    assert (inside, count) == (0, 65536)
    assert outside >= 0x70000000


async def test_the_capability_set_is_the_documented_one_and_empty_for_the_user(shell: Shell) -> None:
    root = (await shell("grep Cap /proc/self/status", user="root")).stdout.decode()
    user = (await shell("grep -E 'Cap|Seccomp:' /proc/self/status")).stdout.decode()
    assert root.count("00000000a80425fb") == 3
    assert user.split()[:9] == [
        "CapInh:", "0000000000000000", "CapPrm:", "0000000000000000", "CapEff:", "0000000000000000",
        "CapBnd:", "00000000a80425fb", "CapAmb:",
    ]  # fmt: skip
    assert user.split()[-2:] == ["Seccomp:", "2"]


async def test_a_process_has_only_its_three_descriptors(shell: Shell) -> None:
    output = await shell("ls /proc/self/fd | tr '\\n' ' '; ls /proc/$$/fd | tr '\\n' ' '")
    assert output.stdout.split() == [b"0", b"1", b"2", b"3", b"0", b"1", b"2", b"255"] or output.stdout.split()[:4] == [
        b"0",
        b"1",
        b"2",
        b"3",
    ]


async def test_nothing_of_the_host_s_environment_is_inherited(shell: Shell) -> None:
    output = await shell("env -0 | tr '\\0' '\\n' | cut -d= -f1 | sort | tr '\\n' ' '")
    allowed = {"HOME", "LOGNAME", "PATH", "PWD", "SHELL", "SHLVL", "USER", "_", "LANG"}
    assert set(output.stdout.decode().split()) <= allowed


@pytest.mark.parametrize(
    "path",
    [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/kmsg",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/sda",
        "/dev/vda",
        "/dev/loop0",
        "/dev/kvm",
        "/dev/fuse",
        "/sys/fs/cgroup/memory/release_agent",
        "/sys/kernel/notes",
        "/sys/firmware/acpi",
        "/root/.ssh",
        "/var/lib/dpkg/status",
        "/var/run/docker.sock",
        "/run/containerd",
        "/etc/machine-info",
    ],
)
async def test_a_host_path_is_absent_or_empty(shell: Shell, path: str) -> None:
    output = await shell(
        f"cat {path} 2>/dev/null | head -c 64 | wc -c; ls -A {path} 2>/dev/null | grep -vx {path} | wc -l", user="root"
    )
    assert output.stdout.split() == [b"0", b"0"]


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/irq/default_smp_affinity",
    ],
)
async def test_a_lever_of_the_host_is_read_only(shell: Shell, path: str) -> None:
    output = await shell(f"echo h > {path}", user="root")
    assert not output.ok
    assert b"Read-only" in output.stderr or b"No such file" in output.stderr or b"denied" in output.stderr


@pytest.mark.parametrize("attack", ["mknod /tmp/m b 7 0", "mknod /dev/m c 1 1", "mknod /home/user/m b 254 0"])
async def test_device_nodes_cannot_be_made(shell: Shell, attack: str) -> None:
    output = await shell(attack, user="root")
    assert not output.ok


@pytest.mark.parametrize("signal", ["KILL", "TERM", "INT", "STOP", "SEGV", "HUP", "QUIT", "USR1", "ALRM"])
async def test_the_agent_cannot_be_signalled_to_death(shell: Shell, signal: str) -> None:
    await shell(f"kill -{signal} 1", user="root")
    assert (await shell("echo alive")).stdout == b"alive\n"


@pytest.mark.parametrize("name", ["exe", "cwd", "root", "environ", "maps", "mem", "fd"])
async def test_the_agent_cannot_be_read_by_root(shell: Shell, name: str) -> None:
    output = await shell(f"ls -l /proc/1/{name}/ 2>&1; head -c 1 /proc/1/{name}", user="root")
    assert b"denied" in output.stderr or b"denied" in output.stdout


async def test_the_agent_cannot_be_traced(shell: Shell) -> None:
    attack = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.ptrace(16, 1, 0, 0), ctypes.get_errno())"
    output = await shell(f"{PYTHON} -c '{attack}'", user="root")
    assert output.stdout == b"-1 1\n"


async def test_the_agent_s_command_line_shows_no_host_path(shell: Shell) -> None:
    output = await shell("tr '\\0' ' ' < /proc/1/cmdline; cat /proc/1/comm", user="root")
    assert b"/" not in output.stdout


async def test_the_mount_table_shows_no_host_path(shell: Shell) -> None:
    output = await shell("cat /proc/self/mountinfo", user="root")
    assert os.getcwd().encode() not in output.stdout
    assert b"/tmp/pytest" not in output.stdout


async def test_a_read_only_mount_stays_read_only(shell: Shell) -> None:
    for attack in ("mount -o remount,rw /usr", "mount --bind /tmp /usr", "umount /proc/sys", "touch /usr/x"):
        assert not (await shell(attack, user="root")).ok
    assert not (await shell("echo 1 > /proc/sys/vm/drop_caches", user="root")).ok


async def test_sudo_works_for_the_default_user(shell: Shell) -> None:
    output = await shell("sudo -n id -u")
    assert output.stdout == b"0\n"
    assert output.stderr == b""


async def test_killing_everything_leaves_the_agent_answering(shell: Shell) -> None:
    await shell("kill -9 -1", user="root")
    assert (await shell("echo alive")).stdout == b"alive\n"


async def test_a_hardened_sandbox_gains_no_privileges(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", hardened=True)) as sandbox:
        assert (await sandbox.exec("grep NoNewPrivs /proc/self/status")).stdout.split() == [b"NoNewPrivs:", b"1"]
        assert not (await sandbox.exec("sudo -n id")).ok


async def test_a_listing_of_everything_skips_what_only_the_agent_may_read(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base")) as sandbox:
        names = {entry.path for entry in await sandbox.fs.list("/", depth=3)}
        assert "/etc/passwd" in names
        assert "/proc/1" in names
