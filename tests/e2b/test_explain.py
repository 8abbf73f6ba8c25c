"""Every end has its explanation: who, when, why, and what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from firkin.e2b.explanations import explain, summary
from firkin.e2b.operators import OPERATOR_HEADER, operator_token
from firkin.law.ids import SandboxId
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import PauseMode, SandboxHistory, SandboxInfo, StateChange
from firkin.law.states import EndCause, SandboxState

from .conftest import BOB, SECRET, RunningServer
from .raw import raw_client

AT = datetime(2030, 1, 1, tzinfo=UTC)
OPERATOR = {OPERATOR_HEADER: operator_token(SECRET)}
ADVICE = {
    EndCause.REQUESTED: "create another",
    EndCause.DEADLINE: "longer timeout",
    EndCause.OUT_OF_MEMORY: "more memory",
    EndCause.AGENT_DIED: "create another",
    EndCause.CREATE_FAILED: "firkin doctor",
    EndCause.SERVER_SHUTDOWN: "kill-on-exit",
    EndCause.LOST: "server started again",
    EndCause.DRIVER_FAILED: "firkin doctor",
    EndCause.HOST_RESTARTED: "machine was restarted",
    EndCause.DISK_FAILED: "kernel log",
    EndCause.AGENT_SILENT: "the template starts",
}


def _history(cause: EndCause | None, *, actor: str = "key ann", **fields: object) -> SandboxHistory:
    info = SandboxInfo(
        id=SandboxId("a"),
        state=SandboxState.DELETED if cause else SandboxState.RUNNING,
        created_at=AT,
        started_at=AT,
        resources=SandboxResources(),
        ended_at=AT + timedelta(hours=2, minutes=3) if cause else None,
        end_cause=cause,
    )
    became = SandboxState.STOPPED if cause else SandboxState.RUNNING
    change = StateChange(at=AT, was=SandboxState.RUNNING, became=became, cause="c", actor=actor)
    return SandboxHistory(info=replace(info, **fields), changes=(change,), peak_memory_bytes=7 * MIB)  # type: ignore[arg-type]  # the test's own fields


@pytest.mark.parametrize(
    ("cause", "told"),
    [(EndCause.AGENT_DIED, "switched it off or restarted it"), (EndCause.OUT_OF_MEMORY, "as a whole")],
)
def test_a_virtual_machines_end_is_not_told_as_that_of_a_process_inside(cause: EndCause, told: str) -> None:
    assert told in summary(_history(cause, end_detail="its virtual machine ended"))


@pytest.mark.parametrize("cause", EndCause)
def test_every_cause_has_its_sentence_and_says_what_to_do(cause: EndCause) -> None:
    told = summary(_history(cause))
    assert ADVICE[cause] in told
    assert told.endswith(".")
    assert "None" not in told
    assert len({summary(_history(one)) for one in EndCause}) == len(EndCause)


def test_what_lives_is_told_too() -> None:
    assert "until somebody ends it" in summary(_history(None))
    assert "until 2030-01-01 00:00:00 UTC" in summary(_history(None, deadline_at=AT))
    paused = {"state": SandboxState.PAUSED}
    assert "its memory and its files" in summary(_history(None, **paused, pause_mode=PauseMode.FULL))
    assert "with its files kept" in summary(_history(None, **paused, pause_mode=PauseMode.FILESYSTEM))
    assert "stopping" in summary(_history(None, state=SandboxState.STOPPING))


def test_the_figures_are_there() -> None:
    told = explain(_history(EndCause.DEADLINE, actor="deadline"), [])
    assert (told["cause"], told["actor"], told["lived_s"]) == ("deadline", "deadline", 7380.0)
    assert "2 h 3 min" in told["summary"]
    assert told["peak_memory_bytes"] == 7 * MIB
    assert told["limits"]["memory_bytes"] == SandboxResources().memory_bytes
    short = explain(_history(EndCause.OUT_OF_MEMORY), [])
    assert short["peak_memory_bytes"] == SandboxResources().memory_bytes
    assert explain(_history(None), [])["actor"] is None


def test_who_ended_it_is_named_once() -> None:
    assert "by key ann (deleted)" in summary(_history(EndCause.REQUESTED, end_detail="deleted"))
    assert summary(_history(EndCause.REQUESTED, end_detail="killed by key ann")).count("key ann") == 1
    assert "by its owner or the operator" in summary(_history(EndCause.REQUESTED, actor="caller"))
    assert "by the server" in summary(_history(EndCause.REQUESTED, actor="engine"))


@pytest.mark.thorough
def test_an_end_is_explained_to_its_owner_and_to_the_operator(server: RunningServer) -> None:
    with raw_client(server) as client:
        sandbox_id = client.sandbox["sandboxID"]
        path = f"/firkin/v1/sandboxes/{sandbox_id}/explain"
        assert client.api("GET", path).json()["state"] == "running"
        client.run("exit 4")
        client.api("DELETE", f"/sandboxes/{sandbox_id}")
        told = client.api("GET", path).json()
        assert (told["state"], told["cause"], told["actor"]) == ("deleted", "requested", "key alice")
        assert [one["became"] for one in told["states"]] == ["creating", "running", "stopped", "deleted"]
        assert any("exit status 4" in line["message"] for line in told["logs"])
        assert told["peak_memory_bytes"] is None or told["peak_memory_bytes"] > 0
        foreign, unknown = client.api("GET", path, key=BOB), client.api("GET", path.replace(sandbox_id, "i0"), key=BOB)
        assert (foreign.status_code, unknown.status_code) == (404, 404)
        assert foreign.json()["message"].replace(sandbox_id, "i0") == unknown.json()["message"]
        assert client.api("GET", path.replace(sandbox_id, "UP.")).status_code == 404
        assert client.api("GET", path, key=BOB, headers=OPERATOR).json() == told
