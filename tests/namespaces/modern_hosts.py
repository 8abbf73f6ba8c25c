"""Hosts of the test internet that speak HTTP/2: one made with `h2`, and a gRPC server made with grpcio.

Both write down what they see. They run in threads of `tests.namespaces.internet`'s program.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

MODERN, CALLED, HIDDEN = "modern.rule.test", "grpc.rule.test", "private.test"
HOSTS = {MODERN: "8.7.6.20", CALLED: "8.7.6.21", HIDDEN: "10.1.2.3"}
_WINDOW = 1 << 20


def serve(folder: Path) -> None:
    """In the calling thread, for ever."""
    server = _grpc_server(folder)
    server.start()
    asyncio.run(_serve_h2(folder))


def _note(folder: Path, seen: dict[str, Any]) -> None:
    with open(folder / "seen", "a") as file:
        file.write(json.dumps(seen) + "\n")


async def _serve_h2(folder: Path) -> None:
    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _Connection(folder, reader, writer).serve()
        except (OSError, ProtocolError):
            pass
        finally:
            writer.close()

    for name in (MODERN, HIDDEN):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{name}.pem")
        context.set_alpn_protocols(["h2", "http/1.1"])
        server = await asyncio.start_server(accepted, HOSTS[name], 443, ssl=context)
    (folder / "modern").touch()
    await server.serve_forever()


class _Connection:
    """/bytes/N answers with N bytes, /echo with the body as it comes, /stuck with nothing; the rest tells what came."""

    def __init__(self, folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._folder = folder
        self._reader = reader
        self._writer = writer
        self._peer = writer.get_extra_info("peername")[1]
        self._machine = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._requests: dict[int, dict[str, Any]] = {}
        self._bodies: dict[int, bytearray] = {}
        self._ended: set[int] = set()

    async def serve(self) -> None:
        protocol = self._writer.get_extra_info("ssl_object").selected_alpn_protocol()
        if protocol != "h2":
            return await self._serve_old(protocol)
        machine = self._machine
        machine.initiate_connection()
        machine.increment_flow_control_window(_WINDOW)
        while True:
            self._writer.write(machine.data_to_send())
            await self._writer.drain()
            data = await self._reader.read(1 << 16)
            if not data:
                return None
            for event in machine.receive_data(data):
                self._heard(event)
            await self._pour()

    async def _serve_old(self, protocol: str | None) -> None:
        head = await self._reader.readuntil(b"\r\n\r\n")
        _note(self._folder, {"modern": "old", "path": head.split()[1].decode(), "protocol": protocol})
        self._writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nold\n")
        await self._writer.drain()

    def _heard(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._requests[event.stream_id] = {
                    "modern": "h2", "path": dict(event.headers)[":path"], "connection": self._peer,
                    "headers": [list(pair) for pair in event.headers], "size": 0,
                }  # fmt: skip
                if dict(event.headers)[":path"] == "/echo":
                    self._machine.send_headers(event.stream_id, [(":status", "200")])
                    self._bodies[event.stream_id] = bytearray()
            case DataReceived():
                self._requests[event.stream_id]["size"] += len(event.data)
                if (body := self._bodies.get(event.stream_id)) is not None:
                    body += event.data
                self._machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case TrailersReceived():
                self._requests[event.stream_id]["trailers"] = [list(pair) for pair in event.headers]
            case StreamEnded():
                self._ended.add(event.stream_id)
                if event.stream_id not in self._bodies:
                    self._answer(event.stream_id)
            case StreamReset():
                self._bodies.pop(event.stream_id, None)
                _note(self._folder, {"modern": "reset", "path": self._requests[event.stream_id]["path"]})
            case ConnectionTerminated():
                raise ConnectionResetError
            case WindowUpdated():
                pass

    def _answer(self, stream: int) -> None:
        seen = self._requests[stream]
        _note(self._folder, seen)
        if seen["path"] == "/stuck":
            return
        self._machine.send_headers(stream, [(":status", "200"), ("alt-svc", 'h3=":443"')])
        if seen["path"].startswith("/bytes/"):
            self._bodies[stream] = bytearray(int(seen["path"].rpartition("/")[2]))
        else:
            self._bodies[stream] = bytearray(json.dumps(seen).encode())

    async def _pour(self) -> None:
        """As much of the bodies as the windows let, a frame of each in turn."""
        machine, moved = self._machine, True
        while moved:
            moved = False
            for stream, body in list(self._bodies.items()):
                room = min(16384, machine.local_flow_control_window(stream), len(body))
                if room:
                    machine.send_data(stream, bytes(body[:room]))
                    del body[:room]
                    moved = True
                if not body and stream in self._ended:
                    machine.send_headers(stream, [("x-last", "words")], end_stream=True)
                    del self._bodies[stream]
            if moved:
                self._writer.write(machine.data_to_send())
                await self._writer.drain()


def _grpc_server(folder: Path) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(8), handlers=[_Calls(folder)])
    chain = (folder / f"{CALLED}.pem").read_bytes()
    server.add_secure_port(f"{HOSTS[CALLED]}:443", grpc.ssl_server_credentials([(chain, chain)]))
    return server


class _Calls(grpc.GenericRpcHandler):
    """/t.T/chat gives back each message as it comes; /t.T/deny says no; /t.T/count counts until it is told off."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        metadata = [[name, str(value)] for name, value in details.invocation_metadata]
        _note(self._folder, {"called": details.method, "metadata": metadata})
        method = details.method.rpartition("/")[2]
        return {
            "chat": grpc.stream_stream_rpc_method_handler(self._chat),
            "deny": grpc.unary_unary_rpc_method_handler(self._deny),
            "count": grpc.unary_stream_rpc_method_handler(self._count),
        }.get(method)

    def _chat(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.send_initial_metadata((("x-first", "words"),))
        count = 0
        for message in messages:
            count += 1
            yield message.upper()
        context.set_trailing_metadata((("x-count", str(count)), ("x-raw-bin", b"\0\xff")))

    def _deny(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like this: ä")
        raise AssertionError

    def _count(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(1000):
            if not context.is_active():
                break
            yield str(number).encode()
            time.sleep(0.01)
        _note(self._folder, {"counted": "off" if number < 999 else "all"})
