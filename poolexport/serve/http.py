"""The protocol over HTTP, as an ASGI application: Starlette routes everything but inference."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
from poolexport.serve.exchange import Asgi, Receive, Scope, Send, received, refusal
from poolexport.serve.inference import answer
from poolexport.serve.model import Model


class Application:
    """The server as an ASGI application; ``core`` is started and stopped with it.

    Args:
        core: what it serves.
        companions: more to start and stop, as asynchronous context managers; a gRPC server, say.
    """

    def __init__(self, core: Core, *companions: Callable[[], Any]) -> None:
        self.core = core
        self._companions = companions
        self._routed = Starlette(
            routes=[Route(path, endpoint, methods=methods) for path, endpoint, methods in self._routes()],
            exception_handlers={HTTPException: _http_error, RequestError: _request_error, Exception: _fault},
            lifespan=lambda _: self.life(),
        )
        self._routed.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            exchange = Asgi(scope, receive, send)
            if await answer(self.core, exchange):
                return
            if not _is_open(exchange.path):
                try:
                    self.core.authorize(exchange.header("authorization"))
                except RequestError as error:
                    await exchange.send(*refusal(error))
                    return
        await self._routed(scope, receive, send)

    @asynccontextmanager
    async def life(self) -> Any:
        """The server runs inside of this."""
        await self.core.start()
        running = [companion() for companion in self._companions]
        for companion in running:
            await companion.__aenter__()
        yield
        self.core.ready = False
        for companion in running:
            await companion.__aexit__(None, None, None)
        await self.core.stop()

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
        limits = self.core.settings.limits
        body = await received(Asgi(request.scope, request.receive), limits.body, limits.body_seconds)
        try:
            document = orjson.loads(body) if body else {}
        except orjson.JSONDecodeError as error:
            raise RequestError(400, f"the request is not JSON: {error.msg}") from None
        if not isinstance(document, dict):
            raise RequestError(400, "the request must be a JSON object")
        return document


def _is_open(path: str) -> bool:
    """Whether a path may be read without a token."""
    return path.startswith("/v2/health/") or path in page.OPEN


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


async def _request_error(_: WebRequest, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    status, fields, body = refusal(error)
    return Response(body, status, dict(fields))


async def _http_error(_: WebRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing at this address", 405: "this address does not take this method"}
    text = words.get(error.status_code, str(error.detail))
    return Response(orjson.dumps({"error": text}), error.status_code, error.headers, "application/json")


async def _fault(_: WebRequest, error: Exception) -> Response:
    return Response(
        orjson.dumps({"error": "the server could not answer; its log says why"}), 500, None, "application/json"
    )
