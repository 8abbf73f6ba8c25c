"""QEMU's command line: what a microVM is made of.

The same for the machine that is stored and for those that are woken from it:
device state fits only a machine of the same parts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from firkin.drivers.qemu.inside import RESET, TRUNK
from firkin.host.agent_bundle import PLACE
from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.resources import SandboxResources

# Descriptors as the launched process has them.
FD_TRUNK, FD_RESET, FD_CONTROL, FD_ROOT, FD_DISK, FD_MEMORY, FD_STATE, FD_TAP, FD_KERNEL, FD_INITRAMFS = range(10, 20)
PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
MIB = 1 << 20
RANDOM = "/dev/urandom"  # the host's, for what QEMU gives its machine
_LEAST_MEMORY = 96 * MIB  # below, Debian's kernel and the agent's initramfs do not fit (88 are too little)
_SERIAL_PORTS = 4
_MAC = "02:fc:00:00:00:01"  # the same in all: each is alone on its wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What two machines must have in common for one to go on where the other stopped."""

    memory_bytes: int
    vcpus: int
    accelerator: str
    machine: str = os.uname().machine

    @classmethod
    def of(cls, resources: SandboxResources, accelerator: str) -> Shape:
        """`InvalidSpec` for less memory than a kernel of its own starts with."""
        if resources.memory_bytes < _LEAST_MEMORY:
            detail = (
                f"memory_bytes is {resources.memory_bytes}, but a microVM has a kernel of its own and needs at least"
                f" {_LEAST_MEMORY}; ask for more memory or for another isolation"
            )
            raise InvalidSpec("create sandbox", InvalidReason.INVALID_RESOURCES, detail)
        return cls(memory_bytes=resources.memory_bytes, vcpus=resources.vcpus, accelerator=accelerator)

    @property
    def memory_mib(self) -> int:
        return -(-self.memory_bytes // MIB)

    @property
    def cpu(self) -> str:
        """What an emulated kernel would do for its own protection, or with tables of five levels, is work for nothing.

        Nor has an emulated x86 instructions that draw random numbers: QEMU draws those itself, and copies of its
        process (`warm`) would draw the same. `pauth-impdef`: signing pointers with the architecture's own cipher is
        most of an emulated arm64's.
        """
        if self.accelerator == "kvm":
            return "host"
        return (
            "max,pauth-impdef=on" if self.machine == "aarch64" else "max,-la57,-smap,-smep,-umip,-pku,-rdrand,-rdseed"
        )

    @property
    def name(self) -> str:
        """QEMU's name of the machine type."""
        return "microvm" if self.machine == "x86_64" else "virt"


def program(machine: str = os.uname().machine) -> str:
    return f"qemu-system-{machine}"


def command_line(shape: Shape, *, start: tuple[str, ...], name: str, waking: bool, counter_khz: int = 0) -> list[str]:
    """`start` is how the agent begins in the initramfs; `waking`: from the state in `FD_STATE`, and standing still.

    `counter_khz` is the rate of the host's time stamp counter; 0 where no clock is to be made of that.
    """
    argv = [program(shape.machine), "-name", f"{name},process=firkin-vm", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-no-reboot", "-M", _machine(shape), "-cpu", shape.cpu]
    argv += ["-m", f"{shape.memory_mib}M", "-smp", str(shape.vcpus)]
    memory = f"memory-backend-file,id=ram,size={shape.memory_mib}M,mem-path=/proc/self/fd/{FD_MEMORY},share=off"
    argv += ["-object", memory, "-machine", "memory-backend=ram"]
    argv += ["-kernel", f"/proc/self/fd/{FD_KERNEL}", "-initrd", f"/proc/self/fd/{FD_INITRAMFS}"]
    argv += ["-append", _kernel_command_line(shape, start, counter_khz)]
    argv += _disk("root", FD_ROOT, read_only=True) + _disk("disk", FD_DISK, read_only=False)
    card = f"virtio-net-device,netdev=net0,mac={_MAC},guest_announce=off"  # it has another address when it wakes
    argv += ["-netdev", f"tap,id=net0,fd={FD_TAP}", "-device", card]
    argv += ["-object", f"rng-random,id=random,filename={RANDOM}", "-device", "virtio-rng-device,rng=random"]
    argv += ["-device", f"virtio-serial-device,max_ports={_SERIAL_PORTS}"]
    for number, (fd, port) in enumerate(((FD_TRUNK, TRUNK), (FD_RESET, RESET)), 1):
        argv += ["-chardev", f"socket,id=serial{number},fd={fd},server=on,wait=off"]
        argv += ["-device", f"virtserialport,nr={number},chardev=serial{number},name={port}"]
    argv += ["-chardev", f"socket,id=control,fd={FD_CONTROL},server=on,wait=off", "-mon", "control,mode=control"]
    argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    argv += ["-global", "migration.send-configuration=off"]  # QEMU's version and the shape are compared by `stores`
    if waking:
        argv += ["-S", "-incoming", f"fd:{FD_STATE}"]
    return argv


def _machine(shape: Shape) -> str:
    accelerator = "kvm" if shape.accelerator == "kvm" else "tcg"
    if shape.name == "virt":
        return f"virt,accel={accelerator},gic-version=max"
    return f"microvm,accel={accelerator},rtc=on,pit=off,pic=off,isa-serial=off"


def _disk(name: str, fd: int, *, read_only: bool) -> list[str]:
    """A set of one descriptor: QEMU duplicates it in place of opening a path, of which it can see none.

    What the host's disk cannot take is an error of the guest's, as on other tiers. By itself QEMU would stop the
    machine, with nobody told, until somebody has it go on.
    """
    node = f"driver=raw,node-name={name},read-only={'on' if read_only else 'off'},file.driver=file"
    node += f",file.filename=/dev/fdset/{fd},file.locking=off" + ("" if read_only else ",discard=unmap")
    device = f"virtio-blk-device,drive={name},werror=report,rerror=report"
    return ["-add-fd", f"fd={fd},set={fd}", "-blockdev", node, "-device", device]


def _kernel_command_line(shape: Shape, start: tuple[str, ...], counter_khz: int) -> str:
    """`panic=-1`: a kernel that cannot go on ends the machine. The rates spare a calibration that hangs under TCG.

    `tsc=reliable`: an emulated counter is the host's own. A kernel that was not told that compares it with its timer's
    ticks, takes it for the one that is wrong as soon as the host is busy, and loses time with every late tick.

    An emulated processor does not speculate, so what guards against that only costs a tenth of its time. And a program
    that lies elsewhere each time it is started (`norandmaps` says: does not) is translated anew each time: for a shell
    that says one word, this is two thirds of its time.
    """
    words = ["quiet", "loglevel=0", "panic=-1", "reboot=t", "random.trust_cpu=on", "PYTHONHASHSEED=0"]
    if shape.accelerator != "kvm":
        words += ["mitigations=off", "norandmaps", "audit=0", "cryptomgr.notests", "nowatchdog"]
    if shape.accelerator != "kvm" and shape.machine == "x86_64":
        words += [f"tsc_early_khz={counter_khz or _khz()}", "lpj=4000000", "no_timer_check"]
        words += ["tsc=reliable"] if counter_khz else []
    return " ".join([*words, f"rdinit={start[0]}", "--", *start[1:]])


def agent_start(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The bundle's command, in words without spaces: a kernel's command line knows no quotes for its first program.

    Isolated but for the environment, which is the kernel's own and says what the dictionaries' hashes begin with.
    Python would ask for random numbers for that, and a kernel takes a second to find its first ones by itself.
    """
    words = ("-Ps" if word == "-I" else word for word in argv[: argv.index("-c")])
    return (*words, f"{PLACE}/start.py")


def _khz() -> int:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("cpu MHz"):
                return int(float(line.partition(":")[2]) * 1000)
    except (OSError, ValueError):
        pass
    return 2_000_000
