"""A server's name on the machine: kept whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firkin.drivers.ground.ground import _label
from firkin.law.errors import IoFailure


def test_a_label_is_made_once(tmp_path: Path) -> None:
    made = _label(tmp_path / "ground")
    assert len(made) == 8
    assert _label(tmp_path / "ground") == made
    assert os.listdir(tmp_path / "ground") == ["label"]


def test_a_label_that_a_full_disk_left_empty_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "label").write_text("")
    assert len(_label(tmp_path)) == 8


def test_a_full_disk_is_told_in_one_sentence_and_leaves_no_label(tmp_path: Path) -> None:
    (tmp_path / f".label.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(IoFailure, match=r"cannot keep the name of this server in .*/label: No space left on device"):
        _label(tmp_path)
    assert os.listdir(tmp_path) == []
