from __future__ import annotations

from pathlib import Path

import pytest

from firkin.drivers.ground.leases import BLOCK, SlotLeases
from firkin.drivers.ground.numbers import SLOTS, SlotNumbers


def test_two_servers_never_get_the_same_slot(tmp_path: Path) -> None:
    first = SlotLeases("first", lambda _: True, tmp_path)
    second = SlotLeases("second", lambda _: True, tmp_path)
    taken = [*first.take(), *second.take(), *first.take()]
    assert len(set(taken)) == 3 * BLOCK


def test_a_restarted_server_gets_its_blocks_back(tmp_path: Path) -> None:
    first = SlotLeases("same", lambda _: True, tmp_path)
    slots = first.take()
    first.release(keep={slots[3]})
    again = SlotLeases("same", lambda _: True, tmp_path)
    assert again.recover() == slots


def test_a_block_of_a_dead_server_with_living_sandboxes_is_left_alone(tmp_path: Path) -> None:
    first = SlotLeases("dead", lambda _: True, tmp_path)
    slots = first.take()
    first.release(keep=set(slots))
    assert set(SlotLeases("other", lambda _: True, tmp_path).take()).isdisjoint(slots)
    assert SlotLeases("third", lambda _: False, tmp_path).take() == slots


def test_a_block_without_sandboxes_is_given_up_at_the_end(tmp_path: Path) -> None:
    leases = SlotLeases("one", lambda _: False, tmp_path)
    leases.take()
    leases.release(keep=set())
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_different_slots_never_overlap() -> None:
    first, last = SlotNumbers(0), SlotNumbers(SLOTS - 1)
    assert SlotNumbers(1).first_uid - first.first_uid == 65536
    assert last.first_uid + 65536 <= 0x7FFE0000
    assert last.host_address.startswith("198.18.")
    assert len({SlotNumbers(slot).guest_address for slot in range(SLOTS)}) == SLOTS
    with pytest.raises(ValueError, match="is not 0"):
        SlotNumbers(SLOTS)
