"""The protocol over HTTP, as an ASGI application.

Starlette routes everything but inference, which comes so often that it has a way of its own: one look at the path, one
pass over the headers, no objects in between.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as WebRequest
from starlette.responses import Response
from starlette.routing import Route

from poolexport.errors import RequestError
from poolexport.serve import core as describe
from poolexport.serve import page
from poolexport.serve.core import Core
from poolexport.serve.model import Model
from poolexport.serve.protocol import NO_MEMORY, decode, encode

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]

INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
#: Seconds after which a long run looks whether its client is still there.
PATIENCE = 0.2
#: Answers shorter than this are not worth compressing.
SMALL = 1024
JSON, BINARY = b"application/json", b"application/octet-stream"
log = logging.getLogger("poolexport.serve")


class Application:
    """The server as an ASGI application; ``core`` is started and stopped with it.

    Args:
        core: what it serves.
        companions: more to start and stop, as asynchronous context managers; a gRPC server, say.
    """

    def __init__(self, core: Core, *companions: Callable[[], Any]) -> None:
        self.core = core
        self._companions = companions
        self._limit = core.settings.limits.body
        self._seconds = core.settings.limits.body_seconds
        self._routed = Starlette(
            routes=[Route(path, endpoint, methods=methods) for path, endpoint, methods in self._routes()],
            exception_handlers={HTTPException: _http_error, RequestError: _request_error, Exception: _fault},
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/infer"):
            match = INFER.fullmatch(scope["path"])
            if match is not None:
                await self._answer(match, scope, receive, send)
                return
        if scope["type"] == "http" and self.core.settings.tokens and not _is_open(scope["path"]):
            try:
                self._authorize(dict(scope["headers"]))
            except RequestError as error:
                await _send(send, *_refusal(error))
                return
        await self._routed(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> Any:
        await self.core.start()
        running = [companion() for companion in self._companions]
        for companion in running:
            await companion.__aenter__()
        yield
        self.core.ready = False
        for companion in running:
            await companion.__aexit__(None, None, None)
        await self.core.stop()

    # inference

    async def _answer(self, match: re.Match[str], scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = dict(scope["headers"])
        try:
            if scope["method"] != "POST":
                raise RequestError(405, "inference is asked for with POST")
            self._authorize(headers)
            model = self.core.repository.find(match[1], match[2])
        except RequestError as error:
            await _send(send, *_refusal(error))
            return
        try:
            arrived = time.perf_counter()
            body = await self._body(headers, receive)
            status, reply, body = await self._infer(model, headers, body, receive, arrived)
        except RequestError as error:
            model.meter.failed(error.status)
            status, reply, body = _refusal(error)
        except asyncio.CancelledError:
            model.meter.failed(499)
            return
        except MemoryError:
            model.meter.failed(503)
            status, reply, body = _refusal(RequestError(503, NO_MEMORY))
        except Exception:
            log.exception("a request could not be answered", extra={"facts": {"model": model.name}})
            model.meter.failed(500)
            status, reply, body = _refusal(RequestError(500, "the server could not answer; its log says why"))
        await _send(send, status, reply, body)

    async def _infer(
        self, model: Model, headers: Headers, body: bytes, receive: Receive, arrived: float
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        length = headers.get(b"inference-header-content-length")
        started = time.perf_counter()
        request = decode(body, length.decode("latin-1") if length is not None else None, model.signature)
        decoded = time.perf_counter()
        if model.quick(request.feeds):
            answers, run = await self.core.engine.infer(model, request.feeds, request.outputs, request.seconds)
        else:
            with_client = asyncio.current_task()
            assert with_client is not None
            listener = _Listener(receive, with_client)
            try:
                answers, run = await self.core.engine.infer(model, request.feeds, request.outputs, request.seconds)
            finally:
                listener.close()
        computed = time.perf_counter()
        reply, head = encode(model.name, model.version, request, answers)
        fields = [(b"content-type", JSON if head is None else BINARY)]
        if head is not None:
            fields.append((b"inference-header-content-length", b"%d" % head))
        coding = headers.get(b"accept-encoding")
        if coding is not None and len(reply) >= SMALL:
            reply = _compressed(reply, coding, fields)
        ended = time.perf_counter()
        queue = run.started - decoded
        model.meter.answered(queue, decoded - started, computed - run.started, ended - computed, run.rows)
        return 200, fields, reply

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The body of a request, decompressed.

        Raises:
            RequestError: it is too large (413), too slow (408), or in a form that is not known (415, 400).
        """
        length = headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > self._limit:
            raise _too_large(self._limit)
        body = await self._received(receive)
        coding = headers.get(b"content-encoding")
        return body if coding is None else _decompressed(body, coding.strip().lower(), self._limit)

    async def _received(self, receive: Receive) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        late = False

        def expire() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(self._seconds, expire)
        try:
            message = await receive()
            body: bytes = message.get("body", b"")
            if not message.get("more_body") and message["type"] == "http.request":
                return body
            received = bytearray(body)
            while message.get("more_body") and message["type"] == "http.request":
                message = await receive()
                received += message.get("body", b"")
                if len(received) > self._limit:
                    raise _too_large(self._limit)
        except asyncio.CancelledError:
            if not late:
                raise
            if hasattr(task, "uncancel"):
                task.uncancel()
            raise RequestError(408, f"the body did not arrive in {self._seconds:g} s") from None
        finally:
            timer.cancel()
        if message["type"] != "http.request":
            # the client left, or what it sent is no HTTP
            raise RequestError(400, "the body broke off before its end")
        return bytes(received)

    # everything else

    def _authorize(self, headers: Headers) -> None:
        if self.core.settings.tokens:
            self.core.authorize(headers.get(b"authorization", b"").decode("latin-1"))

    def _routes(self) -> list[tuple[str, Callable[[WebRequest], Awaitable[Response]], list[str]]]:
        model = "/v2/models/{model}"
        routes = [
            ("/v2", self._metadata, ["GET"]),
            ("/v2/health/live", self._live, ["GET"]),
            ("/v2/health/ready", self._ready, ["GET"]),
            ("/v2/models/stats", self._statistics, ["GET"]),
            ("/v2/repository/index", self._index, ["POST"]),
            ("/v2/repository/models/{model}/load", self._load, ["POST"]),
            ("/v2/repository/models/{model}/unload", self._unload, ["POST"]),
        ]
        for prefix in (model, model + "/versions/{version}"):
            routes += [
                (prefix, self._model, ["GET"]),
                (prefix + "/ready", self._model_ready, ["GET"]),
                (prefix + "/config", self._config, ["GET"]),
                (prefix + "/stats", self._statistics, ["GET"]),
            ]
        return [*routes, *page.routes(self.core)]

    def _asked(self, request: WebRequest) -> Model:
        return self.core.repository.find(request.path_params["model"], request.path_params.get("version"))

    async def _metadata(self, _: WebRequest) -> Response:
        return _json(describe.server_metadata())

    async def _live(self, _: WebRequest) -> Response:
        return Response()

    async def _ready(self, _: WebRequest) -> Response:
        if not self.core.ready:
            raise RequestError(503, "the server is not ready")
        return Response()

    async def _model(self, request: WebRequest) -> Response:
        model = self._asked(request)
        return _json(describe.model_metadata(model, self.core.repository.versions(model.name)))

    async def _model_ready(self, request: WebRequest) -> Response:
        self._asked(request)
        return await self._ready(request)

    async def _config(self, request: WebRequest) -> Response:
        core = self.core
        return _json(describe.model_config(self._asked(request), core.engine.slots, core.settings.batch_delay))

    async def _statistics(self, request: WebRequest) -> Response:
        asked = self.core.chosen(request.path_params.get("model"), request.path_params.get("version"))
        found = [describe.model_statistics(model, self.core.statistics(model)) for model in asked]
        return _json({"model_stats": found})

    async def _index(self, request: WebRequest) -> Response:
        asked = await self._document(request)
        return _json(describe.index(self.core.repository, ready=asked.get("ready") is True))

    async def _load(self, request: WebRequest) -> Response:
        asked = await self._document(request)
        await self.core.load(request.path_params["model"], asked.get("parameters"))
        return Response()

    async def _unload(self, request: WebRequest) -> Response:
        await self._document(request)
        await self.core.unload(request.path_params["model"])
        return Response()

    async def _document(self, request: WebRequest) -> dict[str, Any]:
        body = await self._body(dict(request.scope["headers"]), request.receive)
        try:
            document = orjson.loads(body) if body else {}
        except orjson.JSONDecodeError as error:
            raise RequestError(400, f"the request is not JSON: {error.msg}") from None
        if not isinstance(document, dict):
            raise RequestError(400, "the request must be a JSON object")
        return document


class _Listener:
    """Cancels a task when its client leaves, once the task has taken a while."""

    def __init__(self, receive: Receive, task: asyncio.Task[Any]) -> None:
        self._receive = receive
        self._task = task
        self._ear: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._start)

    def _start(self) -> None:
        self._ear = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._task.cancel()
                return

    def close(self) -> None:
        self._timer.cancel()
        if self._ear is not None:
            self._ear.cancel()


def _is_open(path: str) -> bool:
    """Whether a path may be read without a token."""
    return path.startswith("/v2/health/") or path in page.OPEN


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the request has more than {limit} bytes")


def _decompressed(body: bytes, coding: bytes, limit: int) -> bytes:
    if coding == b"identity":
        return body
    if coding not in (b"gzip", b"x-gzip", b"deflate"):
        raise RequestError(415, "Content-Encoding must be gzip, deflate or identity")
    # deflate is wrapped by zlib, as the standard wants it, or bare, as some clients send it
    bare = coding == b"deflate" and not (
        len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    )
    stream = zlib.decompressobj(-15 if bare else 31 if coding != b"deflate" else 15)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(400, f"the body is not {coding.decode()}") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not stream.eof or stream.unused_data:
        raise RequestError(400, f"the body is not one whole stream of {coding.decode()}")
    return plain


def _compressed(reply: bytes, accepted: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    wanted = {part.split(b";")[0].strip().lower(): part for part in accepted.split(b",")}
    for coding, bits in ((b"gzip", 31), (b"deflate", 15)):
        if coding in wanted and not re.search(rb"q=0(\.0*)?\s*$", wanted[coding]):
            stream = zlib.compressobj(1, wbits=bits)
            fields.append((b"content-encoding", coding))
            return stream.compress(reply) + stream.flush()
    return reply


async def _send(send: Send, status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    fields.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def _refusal(error: RequestError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    fields = [(b"content-type", JSON)]
    if error.status == 503:
        fields.append((b"retry-after", b"1"))
    elif error.status == 401:
        fields.append((b"www-authenticate", b"Bearer"))
    elif error.status == 405:
        fields.append((b"allow", b"POST"))
    if error.status in (408, 413):
        # the rest of the body is not read
        fields.append((b"connection", b"close"))
    return error.status, fields, orjson.dumps({"error": str(error)})


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


async def _request_error(_: WebRequest, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    status, fields, body = _refusal(error)
    return Response(body, status, {name.decode(): value.decode() for name, value in fields})


async def _http_error(_: WebRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing at this address", 405: "this address does not take this method"}
    text = words.get(error.status_code, str(error.detail))
    return Response(orjson.dumps({"error": text}), error.status_code, error.headers, "application/json")


async def _fault(_: WebRequest, error: Exception) -> Response:
    return Response(
        orjson.dumps({"error": "the server could not answer; its log says why"}), 500, None, "application/json"
    )
