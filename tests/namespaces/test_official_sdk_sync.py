"""The official SDK's synchronous client against real sandboxes: every test that the memory driver passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2b.exceptions import InvalidArgumentException

from e2b import Sandbox
from tests.e2b.conftest import RunningServer, in_a_thread
from tests.e2b.test_sdk_sync import *  # noqa: F403 — the tests themselves are what is wanted
from tests.namespaces.conftest import backend_at


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state_dir = tmp_path_factory.mktemp("state")
    with in_a_thread(lambda: backend_at(state_dir)) as running:
        yield running


def test_a_directory_that_may_not_be_entered_is_not_called_missing(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidArgumentException, match="cwd '/root': Permission denied"):
        sandbox.commands.run("pwd", cwd="/root")
