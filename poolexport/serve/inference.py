"""Inference over HTTP. It comes so often that it has a way of its own: one look at the path, no routing in between."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Any

from poolexport.errors import RequestError
from poolexport.serve.core import Core
from poolexport.serve.exchange import BINARY, JSON, SMALL, Exchange, Fields, compressed, received, refusal
from poolexport.serve.model import Model
from poolexport.serve.protocol import NO_MEMORY, decode, encode

PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
#: Seconds after which a long run looks whether its client is still there.
PATIENCE = 0.2
log = logging.getLogger("poolexport.serve")


async def answer(core: Core, exchange: Exchange) -> bool:
    """Answer a request if it asks for inference, and whether it did."""
    path = exchange.path
    match = PATH.fullmatch(path) if path.endswith("/infer") else None
    if match is None:
        return False
    try:
        if exchange.method != "POST":
            raise RequestError(405, "inference is asked for with POST")
        if core.settings.tokens:
            core.authorize(exchange.header("authorization"))
        model = core.repository.find(match[1], match[2])
    except RequestError as error:
        await exchange.send(*refusal(error))
        return True
    try:
        status, fields, body = await _inferred(core, model, exchange)
    except RequestError as error:
        model.meter.failed(error.status)
        status, fields, body = refusal(error)
    except asyncio.CancelledError:
        model.meter.failed(499)
        return True
    except MemoryError:
        model.meter.failed(503)
        status, fields, body = refusal(RequestError(503, NO_MEMORY))
    except Exception:
        log.exception("a request could not be answered", extra={"facts": {"model": model.name}})
        model.meter.failed(500)
        status, fields, body = refusal(RequestError(500, "the server could not answer; its log says why"))
    await exchange.send(status, fields, body)
    return True


async def _inferred(core: Core, model: Model, exchange: Exchange) -> tuple[int, Fields, bytes]:
    limits = core.settings.limits
    body = await received(exchange, limits.body, limits.body_seconds)
    started = time.perf_counter()
    request = decode(body, exchange.header("inference-header-content-length"), model.signature)
    decoded = time.perf_counter()
    if model.quick(request.feeds):
        answers, run = await core.engine.infer(model, request.feeds, request.outputs, request.seconds)
    else:
        listener = _Listener(exchange)
        try:
            answers, run = await core.engine.infer(model, request.feeds, request.outputs, request.seconds)
        finally:
            listener.close()
    computed = time.perf_counter()
    reply, head = encode(model.name, model.version, request, answers)
    fields = [("content-type", JSON if head is None else BINARY)]
    if head is not None:
        fields.append(("inference-header-content-length", str(head)))
    if len(reply) >= SMALL:
        coding = exchange.header("accept-encoding")
        if coding is not None:
            reply = compressed(reply, coding, fields)
    ended = time.perf_counter()
    model.meter.answered(run.started - decoded, decoded - started, computed - run.started, ended - computed, run.rows)
    return 200, fields, reply


class _Listener:
    """Cancels the task that runs now when its client leaves, once it has taken a while."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._task = asyncio.current_task()
        self._ear: asyncio.Task[Any] | None = None
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._start)

    def _start(self) -> None:
        self._ear = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        await self._exchange.left()
        assert self._task is not None
        self._task.cancel()

    def close(self) -> None:
        self._timer.cancel()
        if self._ear is not None:
            self._ear.cancel()
