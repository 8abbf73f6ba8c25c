"""The names of a sandbox in /etc, as the agent writes them: over whatever files an image or an earlier waking left."""

from __future__ import annotations

from pathlib import Path

import pytest

from firkin.guest import identity

_OLD, _NEW = b"i0123456789abcdefghij\n", "iabcdefghij0123456789"


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /etc."""
    write, read = identity._write, identity._read
    monkeypatch.setattr(identity, "_write", lambda path, data: write(f"{tmp_path}{path}", data))
    monkeypatch.setattr(identity, "_read", lambda path: read(f"{tmp_path}{path}"))
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc"


@pytest.mark.parametrize("old", [_OLD, b"sandbox\n", b"a-name-much-longer-than-those-of-sandboxes.example\n", b""])
def test_a_name_takes_the_place_of_one_of_any_length(etc: Path, old: bytes) -> None:
    (etc / "hostname").write_bytes(old)
    identity.settle(_NEW, machine_id="", restored=False)
    assert (etc / "hostname").read_text() == _NEW + "\n"


def test_a_link_in_place_of_a_file_is_not_followed(etc: Path) -> None:
    (etc / "elsewhere").write_bytes(_OLD)
    (etc / "machine-id").symlink_to(etc / "elsewhere")
    identity.settle(_NEW, machine_id="ab" * 16, restored=False)
    assert (etc / "elsewhere").read_bytes() == _OLD
    assert (etc / "machine-id").read_text() == "ab" * 16 + "\n"
    assert not (etc / "machine-id").is_symlink()


def test_only_the_line_of_its_own_name_changes_in_the_list_of_hosts(etc: Path) -> None:
    (etc / "hosts").write_text("127.0.0.1\tlocalhost\n127.0.1.1\tsandbox\n10.0.0.7\tdb\n")
    identity.settle(_NEW, machine_id="", restored=False)
    assert (etc / "hosts").read_text() == f"127.0.0.1\tlocalhost\n10.0.0.7\tdb\n127.0.1.1\t{_NEW}\n"
