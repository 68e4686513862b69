"""Told to stop: nobody is told that the server is ready, and what was accepted is answered."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import signal
import threading
import time
from typing import Any

import pytest

from poolexport.serve.check import facts
from poolexport.serve.config import Settings
from poolexport.serve.core import Core
from poolexport.serve.http import Application
from poolexport.serve.repository import Repository
from poolexport.serve.state import Entry, Place, State, Store
from serve.conftest import Server
from serve.requests import times
from serve.test_process import FRONTS

SLOW = "/v2/models/slow/infer"


async def asked(application: Application, method: str, path: str, body: bytes = b"") -> int:
    """Status of an answer, without a server in between."""
    sent: list[Any] = []

    async def receive() -> Any:
        if sent or received:
            await asyncio.Event().wait()
        received.append(True)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    received: list[bool] = []
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}
    await application(scope, receive, send)
    return int(sent[0]["status"])


def test_it_is_ready_from_its_start_until_it_is_told_to_stop_and_live_throughout(bundles, tmp_path):
    path = bundles / "slow.onnx"
    store = Store(tmp_path)
    store.write(State(1, (Entry(Place("slow", "1", str(path)), True, facts=facts(path), loads=1),)))
    application = Application(Core(Settings(slots=1), Repository(store, Settings())))

    async def live() -> list[int]:
        found = []
        for path in ("/v2/health/ready", "/v2/models/slow/ready", "/v2/health/live"):
            with contextlib.suppress(IndexError):
                found.append(await asked(application, "GET", path))
        return found

    async def life() -> None:
        told: asyncio.Queue[Any] = asyncio.Queue()
        heard: asyncio.Queue[Any] = asyncio.Queue()
        assert await live() == [503, 404, 200]
        running = asyncio.create_task(application({"type": "lifespan"}, told.get, heard.put))
        await told.put({"type": "lifespan.startup"})
        assert (await heard.get())["type"] == "lifespan.startup.complete"
        assert await live() == [200, 200, 200]
        run = asyncio.create_task(asked(application, "POST", SLOW, times(2000)))
        await asyncio.sleep(0.05)
        await told.put({"type": "lifespan.shutdown"})
        await asyncio.sleep(0.05)
        assert not run.done()
        assert await live() == [503, 503, 200]
        assert await run == 200
        assert (await heard.get())["type"] == "lifespan.shutdown.complete"
        await running

    asyncio.run(asyncio.wait_for(life(), 20))


def probed(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/v2/health/ready")
    answer = connection.getresponse()
    answer.read()
    return answer.status


@FRONTS
def test_no_probe_is_told_that_it_is_ready_while_it_drains(bundles, tmp_path, front):
    server = Server(bundles / "mean", bundles / "slow.onnx", "--server", front, "--drain-seconds", "5", cwd=tmp_path)
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    answers: list[int] = []
    run = threading.Thread(target=lambda: answers.append(server.post(SLOW, times(3000)).status))
    try:
        assert probed(kept) == 200
        run.start()
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        for _ in range(3):
            # neither on a connection that was there before nor on a new one
            with pytest.raises((OSError, http.client.HTTPException)):
                probed(kept)
            kept.close()
        assert run.is_alive()
        run.join()
        assert answers == [200]
    finally:
        assert server.stop() == 0
