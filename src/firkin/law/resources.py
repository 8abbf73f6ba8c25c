"""How much of a machine a sandbox may use."""

from __future__ import annotations

from dataclasses import dataclass

from firkin.law.errors import InvalidReason, InvalidSpec

MIB = 1024 * 1024
GIB = 1024 * MIB

MIN_MEMORY_BYTES = 16 * MIB
MIN_DISK_BYTES = 16 * MIB
MAX_VCPUS = 512
MAX_MEMORY_BYTES = 16 * 1024 * GIB
MAX_DISK_BYTES = 16 * 1024 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResources:
    """Limits of one sandbox: whole CPUs, bytes of memory, bytes of disk, processes.

    Raises `InvalidSpec` (`INVALID_RESOURCES`) for a value no machine could honour.
    """

    vcpus: int = 2
    memory_bytes: int = GIB
    disk_bytes: int = 10 * GIB
    pids: int = 4096

    def __post_init__(self) -> None:
        _within("vcpus", self.vcpus, 1, MAX_VCPUS)
        _within("memory_bytes", self.memory_bytes, MIN_MEMORY_BYTES, MAX_MEMORY_BYTES)
        _within("disk_bytes", self.disk_bytes, MIN_DISK_BYTES, MAX_DISK_BYTES)
        _within("pids", self.pids, 16, 4_194_304)


def _within(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int:  # nor a truth value: what a caller gives is not always what its type says
        detail = f"{name} is {value!r}; it must be a whole number between {least} and {most}"
        raise InvalidSpec("check resources", InvalidReason.INVALID_RESOURCES, detail)
    if not least <= value <= most:
        raise InvalidSpec(
            "check resources",
            InvalidReason.INVALID_RESOURCES,
            f"{name} is {value}; it must be between {least} and {most}",
        )
