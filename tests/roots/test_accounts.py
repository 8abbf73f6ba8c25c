"""The user `user`: made, found, or given another number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firkin.host.confined import ConfinedTree
from firkin.host.fittings import fit

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners need root"),
]


def _fitted(root: Path, *, passwd: str = "", group: str = "", shadow: str = "") -> dict[str, str]:
    """Fit a root with these account files; its lines of passwd by name."""
    (root / "etc").mkdir()
    for name, content in (("passwd", passwd), ("group", group), ("shadow", shadow)):
        if content:
            (root / "etc" / name).write_text(content)
    with ConfinedTree.at(str(root)) as tree:
        fit(tree)
    return {line.split(":")[0]: line for line in (root / "etc/passwd").read_text().splitlines()}


def test_a_root_without_accounts_gets_root_and_user(tmp_path: Path) -> None:
    accounts = _fitted(tmp_path)
    assert list(accounts) == ["root", "user"]
    assert accounts["user"] == "user:x:1000:1000:user:/home/user:/bin/sh"
    home = os.stat(tmp_path / "home/user")
    assert (home.st_uid, home.st_gid, home.st_mode & 0o7777) == (1000, 1000, 0o755)


def test_bash_is_the_shell_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bash").touch(0o755)
    assert _fitted(tmp_path)["user"].endswith(":/bin/bash")


def test_the_owner_of_uid_1000_keeps_it(tmp_path: Path) -> None:
    accounts = _fitted(tmp_path, passwd="node:x:1000:1000:node:/home/node:/bin/sh\n", group="node:x:1000:\n")
    assert accounts["node"].startswith("node:x:1000:1000:")
    assert accounts["user"].startswith("user:x:1001:1001:")
    assert os.stat(tmp_path / "home/user").st_uid == 1001


def test_a_user_of_that_name_is_kept_with_its_number(tmp_path: Path) -> None:
    accounts = _fitted(tmp_path, passwd="user:x:1500:100::/home/user:/bin/ash\n")
    assert accounts["user"] == "user:x:1500:100::/home/user:/bin/ash"
    assert os.stat(tmp_path / "home/user").st_uid == 1500


def test_a_group_of_that_name_is_used(tmp_path: Path) -> None:
    accounts = _fitted(tmp_path, group="user:x:777:\n")
    assert accounts["user"].startswith("user:x:1000:777:")


def test_lines_that_are_no_accounts_are_left_alone(tmp_path: Path) -> None:
    accounts = _fitted(tmp_path, passwd="garbage\nuser:x:not-a-number:1::/:/bin/sh\n+::::::\n")
    assert accounts["user"].startswith("user:x:1000:1000:")
    assert "garbage" in accounts


def test_a_locked_shadow_entry_is_added_where_there_is_a_shadow_file(tmp_path: Path) -> None:
    _fitted(tmp_path, shadow="root:*:19000:0:99999:7:::\n")
    lines = (tmp_path / "etc/shadow").read_text().splitlines()
    assert [line.split(":")[:2] for line in lines] == [["root", "*"], ["user", "*"]]
    assert os.stat(tmp_path / "etc/shadow").st_mode & 0o7777 == 0o640


def test_sudo_is_allowed_once_and_only_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/sudo").touch(0o4755)
    _fitted(tmp_path)
    with ConfinedTree.at(str(tmp_path)) as tree:
        fit(tree)
    sudoers = tmp_path / "etc/sudoers"
    assert sudoers.read_text().count("NOPASSWD") == 1
    assert os.stat(sudoers).st_mode & 0o7777 == 0o440


def test_tmp_is_everyones_and_mount_points_are_real(tmp_path: Path) -> None:
    _fitted(tmp_path)
    assert os.stat(tmp_path / "tmp").st_mode & 0o7777 == 0o1777
    assert all((tmp_path / name).is_dir() for name in ("proc", "sys", "dev", "run"))
