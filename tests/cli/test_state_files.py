"""The small files of a state folder: made once, private, and honest about dead servers."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest

from firkin.bootstrap.state_files import (
    ServerRecord,
    claim_state_dir,
    generated_key,
    make_state_dir,
    read_server_record,
    remove_server_record,
    server_secret,
    write_server_record,
)
from firkin.law.errors import InvalidSpec, IoFailure


def record(pid: int) -> ServerRecord:
    return ServerRecord(url="http://127.0.0.1:1", pid=pid, api_key="e2b_00", domain="d", driver="memory", version="0")


def test_a_key_is_made_once_and_is_one_that_every_sdk_accepts(tmp_path: Path) -> None:
    first = generated_key(tmp_path)
    assert re.fullmatch(r"e2b_[0-9a-f]{40}", first)
    assert generated_key(tmp_path) == first


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    make_state_dir(tmp_path / "state")
    generated_key(tmp_path / "state")
    server_secret(tmp_path / "state")
    write_server_record(tmp_path / "state", record(1))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    assert modes == {"api_key": 0o600, "secret": 0o600, "server.json": 0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["zz\n", "ab\n", "ab" * 33])
def test_a_damaged_secret_is_told_and_not_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    with pytest.raises(IoFailure, match="it is damaged; it holds 64 hexadecimal digits"):
        server_secret(tmp_path)
    assert (tmp_path / "secret").read_text() == text


def test_the_secret_has_32_bytes_and_stays(tmp_path: Path) -> None:
    assert len(server_secret(tmp_path)) == 32
    assert server_secret(tmp_path) == server_secret(tmp_path)


def test_a_server_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_server_record(tmp_path, record(os.getpid()))
    found = read_server_record(tmp_path)
    assert found == record(os.getpid())
    assert found.alive


def test_a_record_of_an_ended_process_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert not record(process.pid).alive


def test_only_its_own_server_removes_a_record(tmp_path: Path) -> None:
    write_server_record(tmp_path, record(1234))
    remove_server_record(tmp_path, 1)
    assert read_server_record(tmp_path) is not None
    remove_server_record(tmp_path, 1234)
    assert read_server_record(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"url": "x", "pid": "y"}'])
def test_a_broken_record_reads_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    assert read_server_record(tmp_path) is None


def test_a_state_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSpec, match="cannot be made"):
        make_state_dir(tmp_path / "file" / "state")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_of_other_peoples_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidSpec, match=f"{tmp_path} holds other files .*; choose an empty folder with --state-dir"):
        claim_state_dir(tmp_path)
    assert mode(tmp_path) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("names", [[], ["config.toml"], ["drivers", "secret", "lock", ".secret.4711"], ["lost+found"]])
def test_a_folder_that_is_empty_or_half_begun_is_taken_for_its_owner_alone(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    tmp_path.chmod(0o755)
    claim_state_dir(tmp_path)
    assert mode(tmp_path) == 0o700


def test_a_state_folder_stays_one_whatever_else_was_put_in_it(tmp_path: Path) -> None:
    (tmp_path / "drivers").mkdir()
    sqlite3.connect(tmp_path / "state.db").execute("create table t (x)").connection.close()
    (tmp_path / "notes.txt").write_text("mine")
    tmp_path.chmod(0o755)
    claim_state_dir(tmp_path)
    assert mode(tmp_path) == 0o700
