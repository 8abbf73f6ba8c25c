"""What a process of ours shows of itself to whoever can list processes: a name, and nothing of the host."""

from __future__ import annotations

import ctypes

from firkin.guest.syscalls import PR_SET_NAME, prctl

_FIRST_FIELD = 45  # of /proc/self/stat after the name: arg_start, arg_end, env_start, env_end


def overwrite_arguments(name: bytes) -> None:
    """Replace argv and environ in this process's own memory: /proc/PID/cmdline must not show host paths."""
    text = ctypes.create_string_buffer(name[:15])
    prctl(PR_SET_NAME, ctypes.addressof(text))
    with open("/proc/self/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    arguments, arguments_end, environment, environment_end = map(int, fields[_FIRST_FIELD : _FIRST_FIELD + 4])
    if not arguments:  # a kernel that does not tell
        return
    ctypes.memset(arguments, 0, arguments_end - arguments)
    ctypes.memset(environment, 0, environment_end - environment)
    ctypes.memmove(arguments, name, min(len(name), arguments_end - arguments - 1))
