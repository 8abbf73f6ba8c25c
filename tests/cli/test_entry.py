"""The first moments of the program, and what a command does not show of the engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.thorough

_INTERRUPTED_WHILE_LOADING = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)

ignored = "ignored" in sys.argv  # a shell has its background jobs ignore it, and these tests may be one
signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
sys.meta_path.insert(0, Interrupter())
sys.argv = ["firkin", "--version"]
from firkin.cli.entry import main
main()
"""

_WARNED = """
import logging
from firkin.cli.event_loops import run_command

async def work():
    logging.getLogger("firkin.engine").warning("not for this terminal")

run_command(work())
"""


def python(program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", program, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )


def test_an_interrupt_while_the_program_loads_ends_it_without_a_word() -> None:
    done = python(_INTERRUPTED_WHILE_LOADING)
    assert (done.returncode, done.stdout, done.stderr) == (-2, b"", b"")


def test_an_interrupt_that_the_parent_has_ignored_stays_ignored() -> None:
    done = python(_INTERRUPTED_WHILE_LOADING, "ignored")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"firkin ")


def test_warnings_of_the_engine_do_not_reach_a_commands_terminal() -> None:
    done = python(_WARNED)
    assert (done.returncode, done.stderr) == (0, b"")
