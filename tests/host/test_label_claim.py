"""A label is one living server's: a copy of its state folder starts no second one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firkin.drivers.ground.label_claim import LabelClaim
from firkin.law.errors import BackendFailure

_HOLDS = """
import sys
from pathlib import Path
from firkin.drivers.ground.label_claim import LabelClaim
LabelClaim(Path(sys.argv[1]), "abcd").take()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_server(folder: Path) -> Iterator[int]:
    """A process that has the label ``abcd`` for as long as the block runs."""
    argv = [sys.executable, "-c", _HOLDS, str(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


def test_while_another_server_has_it_it_cannot_be_taken(tmp_path: Path) -> None:
    claim = LabelClaim(tmp_path, "abcd")
    with (
        another_server(tmp_path) as pid,
        pytest.raises(BackendFailure, match=rf"another server \(process {pid}\) .* one is a copy of the other's"),
    ):
        claim.take()
    claim.take()  # it was killed: nothing but its file is left
    claim.release()
    assert not list(tmp_path.iterdir())


def test_servers_of_other_labels_are_in_nobodys_way(tmp_path: Path) -> None:
    with another_server(tmp_path):
        claim = LabelClaim(tmp_path, "ef01")
        claim.take()
        claim.release()
        claim.release()
    assert [path.name for path in tmp_path.iterdir()] == ["abcd.lock"]
