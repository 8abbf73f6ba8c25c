"""Webhooks: everything in order, signed, again after failures and restarts, and no secret shown."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from firkin.engine import deliveries
from firkin.engine.webhooks import GIVE_UP_AFTER_S, MOST_WEBHOOKS
from firkin.law.errors import InvalidSpec, NotFound
from firkin.law.events import JournalQuery
from firkin.law.ids import SandboxId
from firkin.law.sandboxes import DeleteOptions, SandboxSpec
from firkin.law.states import SandboxState
from firkin.law.webhooks import WebhookSpec
from firkin.testing.virtual_clock import VirtualClock
from tests.engine.conftest import SPEC, TEMPLATE, Engine, engine_over, eventually

SECRET = "s3cret"
CREATED_AND_KILLED = ["sandbox.lifecycle.created", "sandbox.lifecycle.killed"]


class Receiver:
    """An HTTP server on loopback that keeps what it was sent and answers as the test wishes."""

    def __init__(self) -> None:
        self.url = ""
        self.taken: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.tries = 0
        self.answer: Callable[[], Awaitable[int]] = self.accept

    async def accept(self) -> int:
        return 200

    async def handle(self, request: web.Request) -> web.Response:
        self.tries += 1
        body = await request.read()
        status = await self.answer()
        if status == 200:
            assert _signature(body) == request.headers["e2b-signature"]
            self.taken.append(json.loads(body))
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
        return web.Response(status=status, headers={"Location": self.url} if status == 302 else {})

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.taken]


def _signature(body: bytes) -> str:
    """As E2B's page on webhooks has its readers compute it."""
    digest = hashlib.sha256((SECRET + body.decode()).encode("utf-8")).digest()
    return base64.b64encode(digest).decode("utf-8").rstrip("=")


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as one:
        yield one


async def _live(engine: Engine, **spec: Any) -> SandboxId:
    info = await engine.backend.sandboxes.create(SandboxSpec.from_template(TEMPLATE, **spec) if spec else SPEC)
    await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True, actor="key ann"))
    return info.id


async def test_every_change_is_delivered_in_order_and_signed(engine: Engine, receiver: Receiver) -> None:
    before = await _live(engine)
    webhook = await engine.backend.webhooks.add(WebhookSpec(url=receiver.url, secret=SECRET))
    lives = [await _live(engine, owner="ann", metadata={"n": str(number)}) for number in range(3)]
    await eventually(lambda: len(receiver.taken) == 6)
    assert receiver.types == CREATED_AND_KILLED * 3
    assert [event["sandbox_id"] for event in receiver.taken] == [one for one in lives for _ in range(2)]
    assert before not in {event["sandbox_id"] for event in receiver.taken}
    killed = receiver.taken[1]
    assert (killed["sandboxId"], killed["version"], killed["sandbox_team_id"]) == (lives[0], "v2", "ann")
    assert killed["event_data"]["sandbox_metadata"] == {"n": "0"}
    assert killed["event_data"]["actor"] == "key ann"
    headers = receiver.headers
    assert {one["e2b-webhook-id"] for one in headers} == {webhook.id}
    assert {one["e2b-signature-version"] for one in headers} == {"v1"}
    assert len({one["e2b-delivery-id"] for one in headers}) == 6
    newest = await engine.backend.events.journal(JournalQuery(became=frozenset({SandboxState.STOPPED})))
    await eventually_async(lambda: _delivered(engine), newest[-1].number)


async def _delivered(engine: Engine) -> int:
    return (await engine.backend.webhooks.list())[0].delivered


async def eventually_async(measured: Callable[[], Awaitable[int]], wanted: int) -> None:
    async with asyncio.timeout(5):
        while await measured() != wanted:  # noqa: ASYNC110 — the database's thread brings it about
            await asyncio.sleep(0.005)


async def test_only_the_wanted_states_are_told(engine: Engine, receiver: Receiver) -> None:
    events = frozenset({"sandbox.lifecycle.killed"})
    webhook = await engine.backend.webhooks.add(WebhookSpec(url=receiver.url, secret=SECRET, events=events))
    assert webhook.events == events
    await _live(engine)
    await _live(engine)
    await eventually(lambda: len(receiver.taken) == 2)
    assert receiver.types == ["sandbox.lifecycle.killed"] * 2


async def test_what_was_not_told_before_a_restart_is_told_after_it(tmp_path: Path, receiver: Receiver) -> None:
    async with engine_over(tmp_path / "state") as first:
        await first.backend.webhooks.add(WebhookSpec(url=receiver.url, secret=SECRET))
        await _live(first)
        await eventually(lambda: len(receiver.taken) == 2)
        told_before = receiver.taken[-1]["event_data"]["number"]
        await eventually_async(lambda: _delivered(first), told_before)
        receiver.answer = _refuse
        lost = await _live(first)
    async with engine_over(tmp_path / "state") as second:
        receiver.answer = receiver.accept
        (webhook,) = await second.backend.webhooks.list()
        assert webhook.url == receiver.url
        await eventually(lambda: len(receiver.taken) == 4)
        assert receiver.types == CREATED_AND_KILLED * 2
        assert {event["sandbox_id"] for event in receiver.taken[2:]} == {lost}


async def _refuse() -> int:
    return 500


async def _redirect() -> int:
    return 302


@pytest.mark.thorough
async def test_a_failing_receiver_is_tried_again_with_growing_patience(tmp_path: Path, receiver: Receiver) -> None:
    clock = VirtualClock()
    receiver.answer = _refuse
    async with engine_over(tmp_path / "state", clock=clock) as engine:
        await engine.backend.webhooks.add(WebhookSpec(url=receiver.url, secret=SECRET))
        await engine.backend.sandboxes.create(SPEC)
        for tries, patience_s in enumerate((1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300), start=1):
            await _tried(engine, receiver, tries)
            await clock.advance(patience_s - 0.6)
            assert receiver.tries == tries
            await clock.advance(0.6)
        await _tried(engine, receiver, 12)
        (webhook,) = await engine.backend.webhooks.list()
        assert (webhook.failures, webhook.last_failure) == (12, "it answered 500")
        receiver.answer = receiver.accept
        await clock.advance(300)
        await eventually(lambda: receiver.types == CREATED_AND_KILLED)  # its deadline has passed meanwhile
        await eventually_async(lambda: _failures(engine), 0)


async def _tried(engine: Engine, receiver: Receiver, tries: int) -> None:
    """Until the receiver has refused so often, and that is recorded."""
    await eventually(lambda: receiver.tries == tries)
    await eventually_async(lambda: _failures(engine), tries)


async def _failures(engine: Engine) -> int:
    return (await engine.backend.webhooks.list())[0].failures


async def test_a_redirect_is_not_followed(engine: Engine, receiver: Receiver) -> None:
    receiver.answer = _redirect
    webhook = await engine.backend.webhooks.add(WebhookSpec(url=receiver.url, secret=SECRET))
    assert await engine.backend.webhooks.test(webhook.id) == "it answered 302"
    assert receiver.tries == 1


async def test_one_slow_receiver_delays_no_other(engine: Engine, receiver: Receiver) -> None:
    async with receiving() as slow:
        released = asyncio.Event()

        async def hold() -> int:
            await released.wait()
            return 200

        slow.answer = hold
        await engine.backend.webhooks.add(WebhookSpec(url=slow.url, secret=SECRET))
        await engine.backend.webhooks.add(WebhookSpec(url=receiver.url, secret=SECRET))
        for _ in range(3):
            await _live(engine)
        await eventually(lambda: len(receiver.taken) == 6)
        assert slow.taken == []
        released.set()
        await eventually(lambda: len(slow.taken) == 6)
        assert slow.types == CREATED_AND_KILLED * 3


async def test_a_receiver_that_never_answers_is_given_its_time_and_no_more(
    engine: Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = asyncio.Event()

    async def hold() -> int:
        await released.wait()
        return 200

    receiver.answer = hold
    monkeypatch.setattr(deliveries, "ANSWER_WITHIN_S", 0.05)
    with pytest.raises(deliveries.NotDelivered, match=r"no answer within 0\.05 s"):
        await deliveries.Courier().deliver(receiver.url, SECRET, "wh1", {})
    released.set()


@pytest.mark.parametrize(
    ("endless", "says"),
    [
        (b"HTTP/1.1 102 Processing\r\n\r\n", "1xx"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\nX: y", "limit|chunk|Separator"),
        (b"SSH-2.0-x\r\n\r\n", "no valid HTTP"),
    ],
)
async def test_an_endless_answer_is_read_to_a_limit(endless: bytes, says: str) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                writer.write(endless * 100)
                await writer.drain()

    service = await asyncio.start_server(babble, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{service.sockets[0].getsockname()[1]}/hook?token=theirs"
    async with service:
        with pytest.raises(deliveries.NotDelivered, match=says) as refused:
            await deliveries.Courier().deliver(url, SECRET, "wh1", {})
    assert "theirs" not in str(refused.value)


async def test_after_a_week_of_failures_the_present_goes_on_and_the_gap_is_told(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock()
    receiver.answer = _refuse
    async with engine_over(tmp_path / "state", clock=clock) as engine:
        await engine.backend.webhooks.add(WebhookSpec(url=receiver.url, secret=SECRET))
        await _live(engine)
        await _tried(engine, receiver, 1)
        await engine.node.records.run(
            lambda connection: connection.execute(
                "UPDATE webhooks SET failing_since = failing_since - ?", (GIVE_UP_AFTER_S,)
            )
        )
    async with engine_over(tmp_path / "state", clock=clock) as engine:
        with caplog.at_level(logging.ERROR):
            await eventually(lambda: "webhook given up" in caplog.text)
        receiver.answer = receiver.accept
        (webhook,) = await engine.backend.webhooks.list()
        assert webhook.last_failure.startswith("given up at ")
        later = await _live(engine)
        await eventually(lambda: len(receiver.taken) == 2)
        assert {event["sandbox_id"] for event in receiver.taken} == {later}
        await eventually_async(lambda: _failures(engine), 0)


async def test_a_removed_webhook_hears_nothing_more(engine: Engine, receiver: Receiver) -> None:
    async with receiving() as other:
        receiver.answer = _refuse
        webhooks = engine.backend.webhooks
        gone = await webhooks.add(WebhookSpec(url=receiver.url, secret=SECRET))
        await webhooks.add(WebhookSpec(url=other.url, secret=SECRET))
        await _live(engine)
        await eventually(lambda: receiver.tries == 1)
        await webhooks.remove(gone.id)
        await _live(engine)
        await eventually(lambda: len(other.taken) == 4)
        assert receiver.tries == 1
        assert [webhook.url for webhook in await webhooks.list()] == [other.url]
        for act in (webhooks.remove, webhooks.test):
            with pytest.raises(NotFound, match="webhook"):
                await act(gone.id)


async def test_a_test_says_what_went_wrong(engine: Engine, receiver: Receiver) -> None:
    webhooks = engine.backend.webhooks
    here = await webhooks.add(WebhookSpec(url=receiver.url, secret=SECRET))
    assert await webhooks.test(here.id) == ""
    assert receiver.types == ["firkin.webhook.test"]
    nowhere = await webhooks.add(WebhookSpec(url="http://127.0.0.1:1/hook", secret=SECRET))
    assert "refused" in await webhooks.test(nowhere.id)
    assert (await webhooks.list())[0].delivered == 0


IMPOSSIBLE = (
    "",
    "example.com/hook",
    "ftp://example.com/",
    "http://",
    "http://a b/",
    "http://a:99999/",
    "http://x/\n",
    "http://x/" + "y" * 3000,
    "http://127.0.0.1:9/ü",
    "http://exa\x7fmple/",
    "http://name:word@127.0.0.1:9/",
)


@pytest.mark.parametrize("url", IMPOSSIBLE, ids=range(len(IMPOSSIBLE)))
async def test_an_address_that_cannot_be_is_refused(engine: Engine, url: str) -> None:
    with pytest.raises(InvalidSpec, match="address"):
        await engine.backend.webhooks.add(WebhookSpec(url=url, secret=SECRET))
    with pytest.raises(InvalidSpec, match="secret"):
        await engine.backend.webhooks.add(WebhookSpec(url="http://x/", secret=""))


async def test_there_is_a_limit_and_no_secret_is_shown(engine: Engine) -> None:
    webhooks = engine.backend.webhooks
    for number in range(MOST_WEBHOOKS):
        await webhooks.add(WebhookSpec(url=f"http://127.0.0.1:1/{number}", secret=SECRET))
    with pytest.raises(InvalidSpec, match="remove one"):
        await webhooks.add(WebhookSpec(url="http://127.0.0.1:1/", secret=SECRET))
    assert SECRET not in repr(await webhooks.list())
