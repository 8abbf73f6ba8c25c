"""What a rehearsal leaves of the process that it was held in: everything as it was."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.guest.conftest import SOURCES

_LOOK = """
import json, os, signal, sys
sys.path.insert(0, {sources!r})
from firkin.guest.rehearsal import rehearse

def look():
    mask = os.umask(0o077)
    os.umask(mask)
    names = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    return {{
        "umask": mask,
        "descriptors": names,
        "child": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
        "wakeup": signal.set_wakeup_fd(-1),
        "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
        "children": open("/proc/self/task/%d/children" % os.getpid()).read(),
    }}

os.umask(0o027)
before = look()
rehearse()
print(json.dumps([before, look()]))
"""


def test_a_process_is_after_a_rehearsal_what_it_was_before() -> None:
    script = _LOOK.format(sources=SOURCES)
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=20, check=True
    )
    before, after = json.loads(said.stdout)
    assert after == before
    assert before["wakeup"] == -1


def test_a_rehearsal_reads_no_accounts_of_the_host() -> None:
    script = (
        f"import sys; sys.path.insert(0, {SOURCES!r})\n"
        "from firkin.guest.rehearsal import rehearse\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "rehearse()\n"
        "print([name for name in opened if name.startswith('/etc')])\n"
    )
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=20, check=True
    )
    assert said.stdout == "[]\n"
