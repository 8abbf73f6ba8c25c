"""Step: give up every right on the host. After `confine` there is no way back.

Order, and why it is this one:
1. only the descriptors that the agent needs stay open, so nothing of the host
   can be reached by /proc/self/fd;
2. the user namespace is entered: from here on root is an unprivileged id
   outside, with all capabilities inside only;
3. the filter is loaded while CAP_SYS_ADMIN inside is still held, because
   without no_new_privs (sudo must work) the kernel asks for it;
4. bounding, permitted and effective sets shrink to `CAPABILITIES`, for good.

The process keeps running the launcher's code and becomes the agent. It was
forked, never exec'd: its memory belongs to the initial user namespace and is
not dumpable, so not even root inside can read or trace it.
"""

from __future__ import annotations

import os
import resource

from firkin.drivers.boxes.orders import LaunchOrder
from firkin.drivers.boxes.rights import CAPABILITIES, go_first, limits
from firkin.host.syscalls import (
    CLONE_NEWUSER,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    SeccompProgram,
    close_all_but,
    prctl,
    set_capabilities,
    setns,
)


def confine(
    order: LaunchOrder, user_namespace: int, keep: tuple[int, ...], program: SeccompProgram, last_capability: int
) -> None:
    """Leave the calling process with `keep` and the rights of a root inside `user_namespace`."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_all_but((*keep, user_namespace))
    os.umask(0o022)
    for limit, soft, hard in limits(order.nofile):
        resource.setrlimit(limit, (soft, hard))
    if order.weighed:
        go_first()
    setns(user_namespace, CLONE_NEWUSER)
    os.close(user_namespace)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    prctl(PR_SET_DUMPABLE, 0)
    if order.hardened:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    program.load()
    set_capabilities(CAPABILITIES, last=last_capability)
