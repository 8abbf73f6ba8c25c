"""A runtime over the gvisor driver, and one sandbox a module to attack."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from firkin import Runtime
from firkin.drivers.gvisor.driver import GvisorDriver, GvisorTier
from firkin.law.ids import TemplateId
from firkin.law.templates import TemplateSpec
from tests.contract.boxes import require
from tests.namespaces.conftest import backend_at, shell

__all__ = ["shell"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    state = tmp_path_factory.mktemp("state")
    require(GvisorTier(""), state)
    async with Runtime.open(backend_at(state, GvisorDriver)) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        yield opened
