"""Runs one agent: ``python -I -S agent_process.py SRC SOCKET IMPORTS [NOFILE]``.

Whatever is imported once the agent serves is written to IMPORTS: in a sandbox
it would not be found.
"""

import os
import sys

sys.path.insert(0, sys.argv[1])

import socket

from firkin.guest import agent
from firkin.guest.spawn import SpawnPlan


class Recorder:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        fd = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, name.encode() + b"\n")
        os.close(fd)


def main() -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(sys.argv[2])
    listener.listen(16)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    nofile = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    sys.meta_path.insert(0, Recorder())
    agent.serve(listener.detach(), spawn=SpawnPlan(nofile=nofile), ready=lambda: None)


main()
