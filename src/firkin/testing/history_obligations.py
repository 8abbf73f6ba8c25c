"""Obligations of a backend: what became of a sandbox is told, also after its end."""

from __future__ import annotations

import pytest

from firkin.law.backend import SandboxBackend
from firkin.law.errors import NotFound
from firkin.law.ids import SandboxId
from firkin.law.sandboxes import (
    DeleteOptions,
    SandboxInfo,
    Timeout,
)
from firkin.law.states import EndCause, SandboxState
from firkin.law.templates import TemplateInfo
from firkin.testing.backend_suite import (
    FREE,
    BackendSuite,
    MakeBackend,
    linear,
)

_S = SandboxState


class HistoryObligations(BackendSuite):
    async def test_a_history_says_why_and_by_whom_also_after_the_end(
        self, backend: SandboxBackend, sandbox: SandboxInfo
    ) -> None:
        assert await linear(backend, sandbox.id) == [_S.CREATING, _S.RUNNING]
        assert (await backend.sandboxes.history(sandbox.id)).info == sandbox
        await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True, actor="key ann"))
        states = await linear(backend, sandbox.id)
        assert states[-1] is _S.DELETED
        history = await backend.sandboxes.history(sandbox.id)
        assert history.info.end_cause is EndCause.REQUESTED
        assert history.info.ended_at is not None
        assert history.changes[-1].actor == "key ann"
        assert {change.actor for change in history.changes[:2]} <= {"caller", "engine"}

    async def test_a_deadline_is_in_the_history(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        info = await backend.sandboxes.create(self.spec(template, deadline=Timeout(0.1)))
        await self.gone(backend, info.id)
        await linear(backend, info.id)
        history = await backend.sandboxes.history(info.id)
        assert history.info.end_cause is EndCause.DEADLINE
        assert history.changes[-1].actor == "deadline"

    async def test_an_unknown_sandbox_has_no_history(self, backend: SandboxBackend) -> None:
        with pytest.raises(NotFound):
            await backend.sandboxes.history(SandboxId("neverexisted"))

    async def test_a_history_outlives_a_restart(self, make_backend: MakeBackend) -> None:
        first = await make_backend(FREE)
        template = await first.templates.prepare(self.template_spec)
        info = await first.sandboxes.create(self.spec(template))
        await first.sandboxes.delete(info.id, DeleteOptions(force=True))
        before = await first.sandboxes.history(info.id)
        await first.aclose()
        second = await make_backend(FREE)
        try:
            assert await second.sandboxes.history(info.id) == before
        finally:
            await second.aclose(kill_all=True)
