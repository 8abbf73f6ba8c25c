"""What root inside may do, and what every process inside may take of what no control group counts."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

# chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod
# audit_write setfcap: Docker's default list.
CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))

# Kernel memory that no control group of version 1 counts; each sandbox's users have accounts of their own.
_PER_USER = {resource.RLIMIT_SIGPENDING: 4096, resource.RLIMIT_MSGQUEUE: 819_200, resource.RLIMIT_MEMLOCK: 8 << 20}


def limits(nofile: int) -> Iterator[tuple[int, int, int]]:
    """Each resource with its soft and hard limit. None may exceed what the host itself was given."""
    for limit, most_inside in ((resource.RLIMIT_NOFILE, nofile), *_PER_USER.items()):
        _, hard = resource.getrlimit(limit)
        wanted = most_inside if hard == resource.RLIM_INFINITY else min(most_inside, hard)
        yield limit, wanted, wanted
    _, core = resource.getrlimit(resource.RLIMIT_CORE)
    yield resource.RLIMIT_CORE, 0, core


def go_first(pid: int = 0) -> None:
    """The agent gets the processor before its sandbox's programs: thousands of them must not keep it from ending them.

    Nice values count within a control group, so this is only for a sandbox that has
    a share of its own. The flag resets them for every child: no program inherits it.
    """
    os.setpriority(os.PRIO_PROCESS, pid, -20)
    os.sched_setscheduler(pid, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
