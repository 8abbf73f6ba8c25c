"""A runtime over the oci driver, and one sandbox a module to attack."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from firkin import Runtime
from firkin.drivers.oci.driver import OciDriver, OciTier
from firkin.law.ids import TemplateId
from firkin.law.templates import TemplateSpec
from tests.contract.boxes import require
from tests.namespaces.conftest import backend_at, shell

__all__ = ["shell"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    state = tmp_path_factory.mktemp("state")
    require(OciTier(""), state)
    async with Runtime.open(backend_at(state, OciDriver)) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        yield opened
