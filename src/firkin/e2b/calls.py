"""One remote call of the data plane: who asks, for which sandbox, with which deadline."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from firkin.e2b.connect_codec import (
    HTTP_STATUS,
    STREAM_TYPE,
    UNARY_TYPE,
    Code,
    EnvelopeReader,
    RpcError,
    check_version,
    gunzip,
    is_gzip,
    timeout_s,
)
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.exchange import JSON, ClientGone, Exchange, Header, Refused
from firkin.e2b.json_text import encode
from firkin.e2b.proto_json import Message, decode
from firkin.e2b.settings import ServerSettings
from firkin.law.backend import FilesystemControl, ProcessControl
from firkin.law.ids import SandboxId
from firkin.law.processes import GuestUser
from firkin.law.sandboxes import SandboxInfo
from firkin.lifetimes import children

T = TypeVar("T", bound=Message)
STREAM_HEADERS: tuple[Header, ...] = ((b"content-type", STREAM_TYPE),)
DEADLINE_PASSED = "the deadline of the call has passed"
_DEFAULT_KEEPALIVE_S = 90


@dataclass(frozen=True, slots=True)
class RpcCall:
    """`user` None is the sandbox's default user. `deadline_s` None is no deadline. `gzip`: its messages may be that."""

    exchange: Exchange
    info: SandboxInfo
    directory: SandboxDirectory
    settings: ServerSettings
    user: str | None
    deadline_s: float | None
    keepalive_s: int
    gzip: bool

    @property
    def sandbox_id(self) -> SandboxId:
        return self.info.id

    @property
    def username(self) -> str:
        return self.user or self.info.default_user

    @property
    def processes(self) -> ProcessControl:
        control = self.directory.backend.processes
        if control is None:
            raise RpcError(Code.UNIMPLEMENTED, "this server runs no processes")
        return control

    @property
    def files(self) -> FilesystemControl:
        control = self.directory.backend.filesystems
        if control is None:
            raise RpcError(Code.UNIMPLEMENTED, "this server gives no files")
        return control

    async def guest_user(self) -> GuestUser:
        """The account that asks. Raises the law's `NotFound` for an unknown one."""
        return await self.directory.user(self.info, self.username)

    async def unary_request(self, kind: type[T]) -> T:
        """The request of a unary call."""
        body = await self.exchange.body(self.settings.max_rpc_bytes)
        if body and self.gzip:
            body = await asyncio.to_thread(gunzip, body, self.settings.max_rpc_bytes)
        return decode(body or b"{}", kind)

    def envelopes(self) -> EnvelopeReader:
        """What reads the messages of a streamed request."""
        return EnvelopeReader(self.settings.max_rpc_bytes, gzip=self.gzip)

    async def stream_request(self, kind: type[T]) -> T:
        """The one request message of a call whose answer is a stream."""
        reader = self.envelopes()
        messages = reader.feed(await self.exchange.body(self.settings.max_rpc_bytes + 64))
        reader.finish()
        requests = [message for message in messages if not message.ends_stream]
        if len(requests) != 1:
            raise RpcError(Code.INVALID_ARGUMENT, f"expected one request message, got {len(requests)}")
        return decode(requests[0].payload, kind)

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """`work`, which may wait for a program in the sandbox; given up when the client leaves (`ClientGone`)."""
        async with children() as tasks:
            working = tasks.start(work, name="call")
            gone = tasks.start(self.exchange.left(), name="call-client")
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGone
            working.result()

    @contextlib.asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """The block must end before the client's own deadline. Raises `RpcError` when it does not."""
        limit = asyncio.timeout(self.deadline_s)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise RpcError(Code.DEADLINE_EXCEEDED, DEADLINE_PASSED) from None

    async def answer(self, value: object) -> None:
        await self.exchange.answer(200, value if isinstance(value, bytes) else encode(value), [JSON])


def read_call(
    exchange: Exchange, info: SandboxInfo, directory: SandboxDirectory, settings: ServerSettings, *, streaming: bool
) -> RpcCall:
    """The call's headers. Raises `RpcError`."""
    check_version(exchange.header(b"connect-protocol-version"))
    encoding = exchange.header(b"connect-content-encoding" if streaming else b"content-encoding")
    return RpcCall(
        exchange,
        info,
        directory,
        settings,
        user=user_of(exchange.header(b"authorization")),
        deadline_s=timeout_s(exchange.header(b"connect-timeout-ms")),
        keepalive_s=_keepalive(exchange.header(b"keepalive-ping-interval")),
        gzip=is_gzip(encoding),
    )


def _keepalive(header: bytes | None) -> int:
    if header is None or not header.isdigit() or len(header) > 5:
        return _DEFAULT_KEEPALIVE_S
    return int(header) or _DEFAULT_KEEPALIVE_S


def user_of(authorization: bytes | None) -> str | None:
    """The user out of ``Authorization: Basic base64(user:)``. Raises `RpcError`."""
    scheme, _, value = (authorization or b"").partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        raise RpcError(Code.UNAUTHENTICATED, "the Authorization header is not valid Basic authentication") from None
    return name or None


def check_content_type(exchange: Exchange, *, streaming: bool) -> None:
    """Refuse another codec than JSON, as the Connect protocol has it. Raises `Refused` (415)."""
    wanted = STREAM_TYPE if streaming else UNARY_TYPE
    given = (exchange.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    if given != wanted:
        raise Refused(415, f"the content type must be {wanted.decode()}", should_retry=False)


async def answer_rpc_error(exchange: Exchange, error: RpcError) -> None:
    """The failure of a unary call."""
    await exchange.answer(HTTP_STATUS[error.code], error.as_json(), [JSON])
