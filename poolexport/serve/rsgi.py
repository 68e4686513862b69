"""The application over RSGI, Granian's own interface: body and answer cross into Python once each, not in parts.

Inference comes so often that this pays, and is answered as it comes; the rest is handed on as ASGI.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from granian.rsgi import ProtocolClosed

from poolexport.serve.exchange import Fields, Message, broken_off, too_large, twice
from poolexport.serve.http import Application
from poolexport.serve.inference import answer

#: Bytes of a body that may come in one piece: the server's own copy has no room to fail in.
WHOLE = 1 << 20
log = logging.getLogger("poolexport.serve")


class Rsgi:
    """An exchange over RSGI."""

    __slots__ = ("_headers", "_protocol", "method", "path")

    def __init__(self, scope: Any, protocol: Any) -> None:
        self.method: str = scope.method
        self.path: str = scope.path
        self._headers = scope.headers
        self._protocol = protocol

    def header(self, name: str) -> str | None:
        values: list[str] = self._headers.get_all(name)
        if len(values) > 1:
            raise twice(name)
        return values[0] if values else None

    async def read(self, limit: int) -> bytes:
        try:
            length = self.header("content-length")
            if length is not None and length.isdigit() and int(length) <= WHOLE:
                body: bytes = await self._protocol()
                return body
            received = bytearray()
            async for part in self._protocol:
                received += part
                if len(received) > limit:
                    raise too_large(limit)
        except ProtocolClosed:
            raise broken_off() from None
        return bytes(received)

    async def drop(self) -> None:
        with contextlib.suppress(ProtocolClosed):
            async for _ in self._protocol:
                pass

    async def left(self) -> None:
        await self._protocol.client_disconnect()

    async def send(self, status: int, fields: Fields, body: bytes) -> None:
        self._protocol.response_bytes(status, fields, body)


class Front:
    """An application as Granian calls it.

    Args:
        application: the server.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._life = application.life()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._life.__aenter__())

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._life.__aexit__(None, None, None))

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if not await answer(self._application.core, Rsgi(scope, protocol)):
            await _as_asgi(self._application, scope, protocol)


async def _as_asgi(application: Application, scope: Any, protocol: Any) -> None:
    """Answer a request through the ASGI application."""
    parts = aiter(protocol)
    whole = False

    async def receive() -> Message:
        nonlocal whole
        if whole:
            await protocol.client_disconnect()
            return {"type": "http.disconnect"}
        try:
            return {"type": "http.request", "body": await anext(parts), "more_body": True}
        except StopAsyncIteration:
            whole = True
            return {"type": "http.request", "body": b"", "more_body": False}
        except ProtocolClosed:
            return {"type": "http.disconnect"}

    status, body = 500, bytearray()
    fields: Fields = []

    async def send(message: Message) -> None:
        nonlocal status, fields
        if message["type"] == "http.response.start":
            status = message["status"]
            # the length is written by the server
            fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
        else:
            body.extend(message.get("body", b""))

    asgi = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": scope.http_version,
        "method": scope.method,
        "scheme": scope.scheme,
        "path": scope.path,
        "raw_path": scope.path.encode(),
        "query_string": scope.query_string.encode("latin-1"),
        "root_path": "",
        "headers": [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name in dict.fromkeys(scope.headers.keys())
            for value in scope.headers.get_all(name)
        ],
        "server": _place(scope.server),
        "client": _place(scope.client),
    }
    try:
        await application(asgi, receive, send)
    except Exception:
        # it was answered with 500 before
        log.exception("a request could not be answered", extra={"facts": {"path": scope.path}})
    protocol.response_bytes(status, fields, bytes(body))


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port) if port.isdigit() else 0
