"""What an ELF file names, compared with what this machine's own loader makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from firkin.host.elf_files import loader_of, needed_by

INTERPRETER = Path(os.path.realpath(sys.executable))


def test_the_loader_that_is_named_runs_the_program() -> None:
    done = subprocess.run([loader_of(INTERPRETER), INTERPRETER, "-c", "print(1)"], capture_output=True, timeout=20)
    assert done.stdout == b"1\n"


def test_every_library_that_is_named_is_one_that_the_loader_loads() -> None:
    listed = subprocess.run([loader_of(INTERPRETER), "--list", INTERPRETER], capture_output=True, timeout=20).stdout
    loaded = {Path(line.split()[0].decode()).name for line in listed.splitlines()}
    needed = needed_by(INTERPRETER)
    assert any(name.startswith("libc.so") for name in needed)
    assert set(needed) <= loaded


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(80)])
def test_what_is_no_elf_file_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    for read in (loader_of, needed_by):
        with pytest.raises(ValueError, match="program"):
            read(path)


def test_a_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(INTERPRETER.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut off"):
        needed_by(path)
