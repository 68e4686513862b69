"""One request over HTTP and its answer, whichever way the front server hands them over.

Two are known: ASGI, which uvicorn and Ray Serve speak, and Granian's RSGI (``rsgi.py``), which crosses into Python less
often for each request. What reads a request meets neither; it meets an ``Exchange``.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeVar

import orjson

from poolexport.errors import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Fields = list[tuple[str, str]]
T = TypeVar("T")

#: Answers shorter than this are not worth compressing.
SMALL = 1024
#: How many times the limit a body may say it has and still be read, and dropped, before it is refused.
DROPPED = 2
JSON, BINARY = "application/json", "application/octet-stream"


class Exchange(Protocol):
    """A request and the way to answer it.

    Args:
        method, path: of the request; the path is decoded.
    """

    method: str
    path: str

    def header(self, name: str) -> str | None:
        """A header of the request, by its name in lower case.

        Raises:
            RequestError: it is there twice (400): who else reads the request may have taken the other one.
        """

    async def read(self, limit: int) -> bytes:
        """The body.

        Raises:
            RequestError: it has more bytes than the limit (413), or breaks off (400).
        """

    async def drop(self) -> None:
        """Read the body, up to where it ends or breaks off, and keep nothing of it."""

    async def left(self) -> None:
        """Return once the client is gone."""

    async def send(self, status: int, fields: Fields, body: bytes) -> None:
        """Answer."""


class Asgi:
    """An exchange over ASGI.

    Args:
        scope, receive, send: of the request; without ``send`` it can only be read.
    """

    __slots__ = ("_fields", "_headers", "_receive", "_send", "method", "path")

    def __init__(self, scope: Scope, receive: Receive, send: Send | None = None) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._fields: list[tuple[bytes, bytes]] = scope["headers"]
        self._headers = dict(self._fields)
        self._receive = receive
        self._send = send

    def header(self, name: str) -> str | None:
        key = name.encode()
        value = self._headers.get(key)
        if value is None:
            return None
        if len(self._headers) < len(self._fields) and sum(found == key for found, _ in self._fields) > 1:
            raise twice(name)
        return value.decode("latin-1")

    async def read(self, limit: int) -> bytes:
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body"):
            return body
        received = bytearray(body)
        while message["type"] == "http.request" and message.get("more_body"):
            message = await self._receive()
            received += message.get("body", b"")
            if len(received) > limit:
                raise too_large(limit)
        if message["type"] != "http.request":
            raise broken_off()
        return bytes(received)

    async def drop(self) -> None:
        message: Message = {"type": "http.request", "more_body": True}
        while message["type"] == "http.request" and message.get("more_body"):
            message = await self._receive()

    async def left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, status: int, fields: Fields, body: bytes) -> None:
        assert self._send is not None
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


async def received(exchange: Exchange, limit: int, seconds: float) -> bytes:
    """The body of a request, decompressed.

    Args:
        exchange: it comes with.
        limit: bytes that it may have, before and after decompression.
        seconds: that the client may take to send it.

    Raises:
        RequestError: it is too large (413), too slow (408), or in a form that is not known (415, 400).
    """
    length = exchange.header("content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        # A client that is cut off while it sends may never read why; one that expects an answer first reads it.
        if int(length) <= DROPPED * limit and exchange.header("expect") is None:
            with contextlib.suppress(RequestError):
                await _in_time(exchange.drop(), seconds)
        raise too_large(limit)
    body = await _in_time(exchange.read(limit), seconds)
    coding = exchange.header("content-encoding")
    return body if coding is None else _decompressed(body, coding.strip().lower(), limit)


async def _in_time(body: Awaitable[T], seconds: float) -> T:
    task = asyncio.current_task()
    assert task is not None
    late = False

    def expire() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        return await body
    except asyncio.CancelledError:
        if not late:
            raise
        if hasattr(task, "uncancel"):
            task.uncancel()
        raise RequestError(408, f"the body did not arrive in {seconds:g} s") from None
    finally:
        timer.cancel()


def twice(name: str) -> RequestError:
    return RequestError(400, f"the header {name} is there twice")


def too_large(limit: int) -> RequestError:
    return RequestError(413, f"the request has more than {limit} bytes")


def broken_off() -> RequestError:
    # the client left, or what it sent is no HTTP
    return RequestError(400, "the body broke off before its end")


def _decompressed(body: bytes, coding: str, limit: int) -> bytes:
    if coding == "identity":
        return body
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise RequestError(415, "Content-Encoding must be gzip, deflate or identity")
    # deflate is wrapped by zlib, as the standard wants it, or bare, as some clients send it
    bare = coding == "deflate" and not (
        len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    )
    stream = zlib.decompressobj(-15 if bare else 31 if coding != "deflate" else 15)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(400, f"the body is not {coding}") from None
    if len(plain) > limit:
        raise too_large(limit)
    if not stream.eof or stream.unused_data:
        raise RequestError(400, f"the body is not one whole stream of {coding}")
    return plain


def compressed(reply: bytes, accepted: str, fields: Fields) -> bytes:
    """An answer in the first coding that the client accepts; ``fields`` get the name of it."""
    wanted = {part.split(";")[0].strip().lower(): part for part in accepted.split(",")}
    for coding, bits in (("gzip", 31), ("deflate", 15)):
        if coding in wanted and not re.search(r"q=0(\.0*)?\s*$", wanted[coding]):
            stream = zlib.compressobj(1, wbits=bits)
            fields.append(("content-encoding", coding))
            return stream.compress(reply) + stream.flush()
    return reply


def refusal(error: RequestError) -> tuple[int, Fields, bytes]:
    """The answer to a request that is refused: status, headers and body."""
    fields = [("content-type", JSON)]
    if error.status == 503:
        fields.append(("retry-after", "1"))
    elif error.status == 401:
        fields.append(("www-authenticate", "Bearer"))
    elif error.status == 405:
        fields.append(("allow", "POST"))
    if error.status in (408, 413):
        # some of the body may be on its way
        fields.append(("connection", "close"))
    return error.status, fields, orjson.dumps({"error": str(error)})
