"""Builds as their owners see and stop them: E2B's own API starts builds and has no word for stopping one."""

from __future__ import annotations

from firkin.e2b.auth import ApiKey
from firkin.e2b.descriptions import timestamp
from firkin.e2b.exchange import Exchange, Refused
from firkin.law.backend import SandboxBackend
from firkin.law.builds import Build, NamedTemplate
from firkin.law.errors import NotFound


class NativeBuilds:
    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def answer(self, exchange: Exchange, tenant: ApiKey, words: list[str]) -> None:
        """``GET builds``: the tenant's, newest first. ``DELETE builds/ID`` stops one that goes on."""
        match exchange.method, words:
            case "GET", ["builds"]:
                await exchange.answer_json(200, [_described(named, build) for named, build in await self._own(tenant)])
            case "DELETE", ["builds", build_id]:
                await self._cancel(tenant, build_id)
                await exchange.answer(204)
            case _:
                raise Refused(404, f"no route {exchange.method} {exchange.path[:200]}")

    async def _own(self, tenant: ApiKey) -> list[tuple[NamedTemplate, Build]]:
        builds = self._backend.builds
        if builds is None:
            return []
        own = await builds.templates(tenant.name)
        found = [(named, build) for named in own for build in await builds.builds(named.id)]
        return sorted(found, key=lambda pair: pair[1].created_at, reverse=True)

    async def _cancel(self, tenant: ApiKey, build_id: str) -> None:
        missing = Refused(404, f"build '{build_id[:64]}' not found", should_retry=False)
        builds = self._backend.builds
        if builds is None:
            raise missing
        try:
            build = await builds.get(build_id)
            if all(named.owner != tenant.name for named in await builds.called(build.template_id)):
                raise missing
            await builds.cancel(build_id)
        except NotFound as error:
            raise missing from error


def _described(named: NamedTemplate, build: Build) -> dict[str, object]:
    return {
        "id": build.id,
        "template": named.id,
        "name": named.name,
        "tags": list(build.tags),
        "status": build.status.value,
        "created_at": timestamp(build.created_at),
        "finished_at": None if build.finished_at is None else timestamp(build.finished_at),
        "failure": build.failure,
        "failed_step": build.failed_step,
    }
