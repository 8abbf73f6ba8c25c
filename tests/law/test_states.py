"""The life of a sandbox is one table."""

from __future__ import annotations

import pytest

from firkin.law.errors import ResourceKind, WrongState
from firkin.law.states import ALIVE, Act, EndCause, SandboxState, allows, next_state

_S = SandboxState
EVERY_MOVE = [(state, act) for state in SandboxState for act in Act]


def test_stop_kill_and_delete_are_three_things() -> None:
    assert next_state("x", _S.RUNNING, Act.STOP) is _S.STOPPING
    assert next_state("x", _S.RUNNING, Act.KILL) is _S.STOPPED
    assert next_state("x", _S.STOPPED, Act.DELETE) is _S.DELETED
    assert not allows(_S.RUNNING, Act.DELETE)


@pytest.mark.parametrize(("state", "act"), EVERY_MOVE)
def test_a_move_is_in_the_table_or_refused_with_the_state(state: SandboxState, act: Act) -> None:
    if allows(state, act):
        assert isinstance(next_state("x", state, act), SandboxState)
        return
    with pytest.raises(WrongState) as caught:
        next_state("x", state, act)
    assert (caught.value.resource, caught.value.id, caught.value.state) == (ResourceKind.SANDBOX, "x", state.value)


def test_nothing_comes_back_from_an_end() -> None:
    for state, act in EVERY_MOVE:
        if state not in ALIVE and allows(state, act):
            assert next_state("x", state, act) not in ALIVE


def test_everything_alive_can_be_killed() -> None:
    assert all(allows(state, Act.KILL) for state in ALIVE)


def test_ends_by_a_callers_wish_can_be_repeated() -> None:
    for act in (Act.STOP, Act.KILL):
        assert next_state("x", _S.STOPPED, act) is _S.STOPPED


def test_each_cause_reads_as_words() -> None:
    assert len({cause.value for cause in EndCause}) == len(EndCause)
    assert all(cause.value.replace(" ", "").replace("-", "").isalpha() for cause in EndCause)
